"""Compare the results of recipes with the published figures: accuracies, losses, macro recall and F1, and numbers of epochs.

The table `published` of a recipe has these keys for the network that `train` trains, and the same under the key "cnn" for the
convolutional network:

- train, validation, test: metrics of a split after training, such as { accuracy = 0.8825 }; the names are in `METRICS`,
- epochs, best_epoch: number of epochs until early stopping, and the epoch whose weights were kept,
- printed: epochs that the report prints, each [epoch, training loss and accuracy, validation loss and accuracy]. The training
  metrics are those of an epoch while it trains, as in our metrics.jsonl: before each update, and with dropout,
- note: text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastmlp.experiments.config.shared import fields_of
from fastmlp.experiments.config.sources import resolve_as
from fastmlp.experiments.folder import METRICS_NAME
from fastmlp.experiments.plan import SPLIT_NAMES
from fastmlp.experiments.recipes.run import RecipeJob, extracted_of
from fastmlp.files import read_lines

# For each published metric of a split: its keys in our result of a split.
METRICS = {"accuracy": ("accuracy",), "loss": ("loss",), "macro_recall": ("macro", "recall"), "macro_f1": ("macro", "f1")}
FORMATS = {
    "loss": (1, ".4f"),
    "epochs": (1, "d"),
    "best_epoch": (1, "d"),
}  # factor and format of a metric as text; a percentage for all others
PRINTED = ("loss", "accuracy", "val_loss", "val_accuracy")  # metrics of an epoch in `printed`, after its number
# Groups of settings that define an experiment, and settings in them that do not: they select files, or random numbers.
DEFINING_GROUPS = ("Data", "Network", "Training")
NOT_DEFINING = ("data_dir", "skip_bad", "max_decompressed", "seed", "split_seed", "max_time")


class Figure(NamedTuple):
    """A published figure of a network and ours; None if it was not published, or if the recipe is not finished.

    Parameters
    ----------
    split : split of the metric, or "" for a number of epochs
    metric : a key of `METRICS`, "epochs" or "best_epoch"
    epoch : the epoch of the metric, such as "best epoch" or "epoch 110"; "" after training
    """

    split: str
    metric: str
    published: float | None
    ours: float | None
    epoch: str = ""

    @property
    def name(self) -> str:
        """Such as "test accuracy", "validation loss, epoch 110" or "best epoch"."""
        metric = self.metric.replace("f1", "F1").replace("_", " ")
        return f"{self.split} {metric}".strip() + (f", {self.epoch}" if self.epoch else "")

    @property
    def difference(self) -> float | None:
        """Our figure minus the published one; None if one of them is missing."""
        return None if self.published is None or self.ours is None else self.ours - self.published

    def table(self) -> dict[str, Any]:
        """Return the fields, the name and the difference, for JSON."""
        return {"name": self.name, **self._asdict(), "difference": self.difference}


def networks(job: RecipeJob) -> dict[str, tuple[dict[str, Any], Any, Sequence[Mapping[str, Any]]]]:
    """Return, for each network of a recipe ("cnn" and "mlp"), the published figures, our result or None, and our history."""
    result, published = job.result, dict(job.recipe.published)
    found: dict[str, tuple[dict[str, Any], Any, Sequence[Mapping[str, Any]]]] = {}
    if job.images is not None:
        ours = result and extracted_of(job.recipe, result)["cnn"]
        found["cnn"] = (published.pop("cnn", {}), ours, ours["history"] if ours else ())
    if job.config is not None:
        found["mlp"] = (published, result, read_lines(job.folder / METRICS_NAME) if result else ())
    return found


def figures(published: Mapping[str, Any], ours: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Return the published figures of a network beside ours; with none of a split, our test accuracy (or that of training)."""
    split_figures = list(of_splits(published, ours))
    if not split_figures:
        split = "test" if ours is None or ours.get("test") else "train"
        split_figures = [Figure(split, "accuracy", None, value_of(ours, split, "accuracy"))]
    return [*split_figures, *of_epoch(published, ours, history), *of_epochs(published, ours)]


def of_splits(published: Mapping[str, Any], ours: Mapping[str, Any] | None) -> Iterator[Figure]:
    """Yield the figures of the splits after training."""
    for split in SPLIT_NAMES:
        for metric, value in published.get(split, {}).items():
            yield Figure(split, metric, value, value_of(ours, split, metric))


def value_of(ours: Mapping[str, Any] | None, split: str, metric: str) -> float | None:
    """Return a metric of a split of our result; None if there is none."""
    value: Any = (ours or {}).get(split)
    for key in METRICS[metric]:
        value = (value or {}).get(key)
    return value


def of_epoch(
    published: Mapping[str, Any], ours: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]
) -> Iterator[Figure]:
    """Yield the figures of the published best epoch and of our best epoch; if it is not printed, of the last printed epoch.

    Training that stops early need not reach the same epoch, so the best epochs are compared.
    """
    rows = {int(row[0]): row[1:] for row in published.get("printed", ())}
    if not rows:
        return
    best = published.get("best_epoch")
    number = best if best in rows else max(rows)
    ours_number = ours["best_epoch"] if ours and best in rows else number
    own = next((row for row in history if row["epoch"] == ours_number), {})
    for key, value in zip(PRINTED, rows[number], strict=True):
        metric = key.removeprefix("val_")
        split = "train" if metric == key else "validation"
        yield Figure(split, metric, value, own.get(key), "best epoch" if best in rows else f"epoch {number}")


def of_epochs(published: Mapping[str, Any], ours: Mapping[str, Any] | None) -> Iterator[Figure]:
    """Yield the numbers of epochs."""
    for key in ("epochs", "best_epoch"):
        if key in published:
            yield Figure("", key, published[key], None if ours is None else ours[key])


def overridden(job: RecipeJob) -> list[str]:
    """Return the settings of a job that differ from those of its recipe, so that published figures cannot be compared.

    Seeds, folders, the engine and outputs do not count.
    """
    names: dict[str, None] = {}
    for config, own in ((job.images, job.recipe.extract), (job.config, job.recipe.train)):
        if config is None or own is None:
            continue
        plain = resolve_as(type(config), {}, {}, recipe=own)
        ignored = ("data", *NOT_DEFINING) if config is job.config and job.images is not None else NOT_DEFINING
        for name, one in fields_of(type(config)).items():
            defines = one.metadata["group"] in DEFINING_GROUPS and name not in ignored
            if defines and getattr(config, name) != getattr(plain, name):
                names[name] = None
    return [*names]


def comparison(job: RecipeJob) -> dict[str, Any]:
    """Return the published figures of a recipe beside ours, for JSON, and the settings that differ from the recipe."""
    changed, row = overridden(job), {}
    for kind, (published, ours, history) in networks(job).items():
        found = figures({} if changed else published, ours, history)
        times = {name: None if ours is None else ours[name] for name in ("epochs", "best_epoch", "seconds")}
        row[kind] = {"figures": [one.table() for one in found], **times}
    return {"name": job.recipe.name, "done": job.result is not None, "overridden": changed, **row}


# ------------------------------------------------------------------------------------------------ text

HEADS = ("recipe", "", "figure", "published", "ours", "difference", "epochs", "seconds")


def comparison_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the comparisons as a table, and a note for each recipe that ran with other settings."""
    cells = [
        cell for row in rows for kind in ("cnn", "mlp") if kind in row for cell in network_cells(row["name"], kind, row[kind])
    ]
    widths = [max(len(line[column]) for line in [HEADS, *cells]) for column in range(len(HEADS))]
    lines = [
        "  ".join(align(text, width) for align, text, width in zip(ALIGNED, line, widths, strict=True)).rstrip()
        for line in [HEADS, *cells]
    ]
    notes = [
        f"{row['name']} ran with other settings than the recipe ({', '.join(row['overridden'])}): the published figures are "
        "left out, because a difference from them would mean nothing"
        for row in rows
        if row["overridden"]
    ]
    return "\n".join([*lines, *notes])


ALIGNED = (str.ljust, str.ljust, str.ljust, str.rjust, str.rjust, str.rjust, str.rjust, str.rjust)


def network_cells(name: str, kind: str, network: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table for one network; the first one has its name, epochs and seconds."""
    lines = []
    for number, one in enumerate(network["figures"]):
        values = [shown(one[key], one["metric"], sign) for key, sign in (("published", ""), ("ours", ""), ("difference", "+"))]
        first = (
            (name, kind.upper()),
            (shown(network["epochs"], "epochs"), "–" if network["seconds"] is None else f"{network['seconds']:.1f}"),
        )
        (left, right) = first if number == 0 else (("", ""), ("", ""))
        lines.append((*left, one["name"], *values, *right))
    return lines


def shown(value: float | None, metric: str, sign: str = "") -> str:
    """Return a figure as text: percentages without the sign %, losses with 4 digits.

    >>> shown(0.8825, "accuracy"), shown(-0.00123, "loss", "+"), shown(110, "epochs"), shown(None, "loss")
    ('88.25', '-0.0012', '110', '–')
    """
    factor, form = FORMATS.get(metric, (100, ".2f"))
    return "–" if value is None else format(factor * value, sign + form)
