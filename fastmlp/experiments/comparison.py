"""Comparison of runs: their metrics, the settings that differ, and their learning curves: `compare_runs`.

reports/tables.py formats the tables, and reports/comparison.py draws the curves.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmlp.errors import ConfigError
from fastmlp.experiments.config.fields import one_of
from fastmlp.experiments.config.train import FIELDS
from fastmlp.experiments.plan import SPLIT_NAMES
from fastmlp.experiments.sweeps.stored import Entry, expanded, read_entry
from fastmlp.files.reading import given_path, given_paths
from fastmlp.reports.comparison import Curve, Panel, plot_comparison
from fastmlp.reports.tables import METRIC_FORMATS
from fastmlp.reports.text import short_name
from fastmlp.training.result import METRICS, EpochLog, mean_and_deviation

METRIC = one_of("metric", METRIC_FORMATS)
TASK_METRICS = {"classification": ("accuracy", "loss", "macro_f1"), "regression": ("r2", "mae", "rmse", "loss")}
LARGER_IS_BETTER = {"accuracy", "macro_f1", "r2"}
LOSS_SETTINGS = ("loss", "target_scale")  # losses are comparable only if these settings are the same
EARLY_ENDS = ("interrupted", "diverged", "failed")  # values of `stopped` for which there is a note
PICTURE_SUFFIX = ".png"
LONGEST_LABEL, LONGEST_TITLE = 40, 100  # characters of a name in the legend, and of the title


def compare_runs(
    paths: str | Path | Sequence[str | Path],
    *,
    split: str = "test",
    sort: str | None = None,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Compare the metrics, the settings and the learning curves of runs.

    Parameters
    ----------
    paths : one or more run folders, output folders of several seeds, or folders that contain such folders, which are all
        compared. The metrics of several seeds are means and sample standard deviations. A run that has not finished has only
        validation metrics, which are those of the best epoch in metrics.jsonl
    split : split of the metrics: "test", "validation" or "train"
    sort : metric by which the runs are sorted, the best first; None keeps the order of `paths`
    out : PNG file for the curves of the validation accuracy and loss per epoch, or of the training accuracy and loss for runs
        without a validation split; an existing file is replaced. None draws no curves

    Returns
    -------
    dict : `split`; `metrics`, the names of the metrics; `runs`, one dict per run with `name`, `folder`, `data`, `network`,
        `parameters`, `metrics` (name to value or None), `std` (None, or name to standard deviation if the run has several
        seeds), `seeds`, `best_epoch`, `epochs`, `max_epochs`, `seconds`, `backend`, `finished` and `stopped`; `best`, for each
        metric the names of the runs with the best value, if at least two runs have comparable values; `settings`, for each
        setting that differs its values in the order of the runs; `notes`, messages for the user; and `out`

    Raises
    ------
    ConfigError : no runs, or a run is given twice, or an option is invalid
    DataError : a path contains no run, or a file of a run is missing or damaged, or the figure cannot be written

    Examples
    --------
    >>> import tempfile
    >>> from fastmlp.experiments import TrainConfig, run_training
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for lr in (0.01, 0.001):
    ...         config = TrainConfig(hidden=(8,), epochs=2, lr=lr, backend="numpy", out=f"{folder}/lr-{lr}")
    ...         _ = run_training(config, quiet=True)
    ...     result = compare_runs([folder], sort="accuracy")
    >>> [run["name"] for run in result["runs"]], result["best"]["accuracy"], result["settings"]
    (['lr-0.01', 'lr-0.001'], ['lr-0.01'], {'lr': [0.01, 0.001]})
    """
    paths = given_paths("paths", paths)
    check_options(paths, split, out)
    key = None if sort is None else METRIC.value("sort", sort, settings=("sort",))
    entries = [read_entry(path, split) for path in expanded(paths)]
    tasks = {run.task for entry in entries for run in entry.runs}
    metrics = list(dict.fromkeys(name for task, names in TASK_METRICS.items() if task in tasks for name in names))
    rows = [describe(entry, name, metrics) for entry, name in zip(entries, names_of(entries), strict=True)]
    if key is not None:
        order = sorted_by(key, rows)
        entries, rows = [entries[index] for index in order], [rows[index] for index in order]
    if out is not None:
        draw(entries, rows, Path(out))
    return {
        "split": split,
        "metrics": metrics,
        "runs": rows,
        "best": {name: best_of(name, entries, rows) for name in metrics},
        "settings": different_settings(entries),
        "notes": notes_of(entries, split),
        "out": None if out is None else str(out),
    }


def check_options(paths: Sequence[str | Path], split: str, out: str | Path | None) -> None:
    """Raise ConfigError if there are no paths, or the split or the name of the figure is invalid."""
    if not paths:
        raise ConfigError("there are no runs to compare; give at least one run folder")
    if split not in SPLIT_NAMES:
        raise ConfigError(f"split must be one of {', '.join(SPLIT_NAMES)}, not {split!r}", settings=("split",))
    if out is not None and given_path("out", out).suffix.lower() != PICTURE_SUFFIX:
        raise ConfigError(f"out: the name {str(out)!r} must end with {PICTURE_SUFFIX}", settings=("out",))


# ------------------------------------------------------------------------------------------------ rows


def names_of(entries: Sequence[Entry]) -> list[str]:
    """Return the names of the folders, or their paths if two of them have the same name."""
    names = [entry.folder.absolute().name or str(entry.folder) for entry in entries]
    return [name if names.count(name) == 1 else str(entry.folder) for name, entry in zip(names, entries, strict=True)]


def describe(entry: Entry, name: str, metrics: Sequence[str]) -> dict[str, Any]:
    """Return the row of an entry, see `compare_runs`."""
    first, values, deviations = entry.runs[0], entry.runs[0].metrics, None
    row = dict(first.row)
    if entry.seeds is not None:
        known = [{key: value for key, value in run.metrics.items() if value is not None} for run in entry.runs]
        summary = mean_and_deviation(known)
        values = {key: mean for key, (mean, _) in summary.items()}
        deviations = {key: deviation for key, (_, deviation) in summary.items()}
        for key in ("best_epoch", "epochs", "seconds"):
            counts = [run.row[key] for run in entry.runs]
            row[key] = None if None in counts else statistics.fmean(counts)
        row |= {"finished": all(run.row["finished"] for run in entry.runs), "stopped": None}
    return {
        "name": name,
        "folder": str(entry.folder),
        "data": first.data.name,
        **row,
        "max_epochs": first.config.epochs,
        "metrics": {key: values.get(key) for key in metrics},
        "std": deviations,
        "seeds": None if entry.seeds is None else list(entry.seeds),
    }


def sorted_by(key: str, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the order of the rows in which the best value of a metric is first, and rows without a value are last.

    Raises
    ------
    ConfigError : no row has a value
    """
    values = [row["metrics"].get(key) for row in rows]
    if not any(value is not None for value in values):
        names = ", ".join(name for name in rows[0]["metrics"] if any(row["metrics"][name] is not None for row in rows))
        raise ConfigError(f"no run has the metric {key}; metrics of these runs: {names or 'none'}", settings=("sort", "split"))
    sign = -1 if key in LARGER_IS_BETTER else 1
    return sorted(range(len(rows)), key=lambda index: (values[index] is None, sign * (values[index] or 0)))


def best_of(name: str, entries: Sequence[Entry], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the rows with the best value of a metric; none if fewer than two have comparable values."""
    values = {row["name"]: row["metrics"][name] for row in rows if row["metrics"][name] is not None}
    compared = [entry for entry, row in zip(entries, rows, strict=True) if row["name"] in values]
    if len(values) < 2 or len({basis(entry, name) for entry in compared}) > 1:
        return []
    best = (max if name in LARGER_IS_BETTER else min)(values.values())
    return [row for row, value in values.items() if value == best]


def basis(entry: Entry, name: str) -> tuple[Any, ...]:
    """Return the data and the settings that must be equal for the values of a metric to be comparable."""
    run = entry.runs[0]
    return (run.data.sha256, *([getattr(run.config, key) for key in LOSS_SETTINGS] if name == "loss" else []))


# ------------------------------------------------------------------------------------------------ settings and notes


def different_settings(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Return, for each setting that differs, its value in each entry; a list of values if the runs of an entry differ."""
    found = {}
    for name in FIELDS:
        values = [values_of(entry, name) for entry in entries]
        if any(value != values[0] for value in values):
            found[name] = values
    if len({run.config.split_sizes()["seed"] for entry in entries for run in entry.runs}) == 1:
        found.pop("split_seed", None)  # it is None if it is the same as the seed
    return found


def values_of(entry: Entry, name: str) -> Any:
    """Return the value of a setting in an entry, as a type of JSON."""
    values = [getattr(run.config, name) for run in entry.runs]
    plain = [list(value) if isinstance(value, tuple) else value for value in values]
    return plain[0] if all(value == plain[0] for value in plain) else plain


def notes_of(entries: Sequence[Entry], split: str) -> list[str]:
    """Return messages about runs that have not finished or ended early, and about metrics that cannot be compared."""
    notes = []
    for entry in entries:
        for folder, run in zip(entry.folders, entry.runs, strict=True):
            done = f"{run.row['epochs']} of {run.config.epochs} epochs"
            if not run.row["finished"]:
                without = "" if run.metrics else f"; it has no metrics of the {split} split"
                notes.append(f"{folder} has not finished: {done} completed{without}")
            elif run.row["stopped"] in EARLY_ENDS:
                notes.append(f"{folder} ended early ({run.row['stopped']}), after {done}")
    firsts = [entry.runs[0] for entry in entries]
    data = {run.data.sha256: run.data.name for run in firsts}
    if len(tasks := {run.task for run in firsts}) > 1:
        notes.append(f"the runs have different tasks ({', '.join(sorted(tasks))}), with different metrics")
    elif len(data) > 1:
        names = list(dict.fromkeys(data.values()))
        different = f"data ({', '.join(names)})" if len(names) > 1 else f"data with the name {names[0]}"
        notes.append(f"the runs have different {different}; their metrics are not comparable")
    elif len({repr(run.config.split_sizes()) for run in firsts}) > 1:
        notes.append("the runs have different splits, so their metrics may have been computed on different rows")
    settings = [name for name in LOSS_SETTINGS if len({getattr(run.config, name) for run in firsts}) > 1]
    if len(data) == 1 and settings:
        notes.append(f"the runs have different values of {' and '.join(settings)}; their losses are not comparable")
    return notes


# ------------------------------------------------------------------------------------------------ figure


def draw(entries: Sequence[Entry], rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw the accuracy, if any run has one, and the loss per epoch of all runs."""
    panels = panels_of(entries, [row["name"] for row in rows])
    if not panels:
        raise ConfigError("out: no run has completed an epoch, so there are no curves; leave it out", settings=("out",))
    data = dict.fromkeys(row["data"] for row in rows)
    subject = f"{len(rows)} runs" if len(rows) > 1 else rows[0]["name"]
    plot_comparison(panels, out, short_name(f"{next(iter(data))}, {subject}" if len(data) == 1 else subject, LONGEST_TITLE))


def legend_labels(names: Sequence[str]) -> list[str]:
    """Return distinct legend labels: truncated names, or else less truncated names, or else numbered names."""
    for longest in (LONGEST_LABEL, LONGEST_TITLE):
        labels = [short_name(name, longest) for name in names]
        if len({*labels}) == len(labels):
            return labels
    return [f"{number}: {short_name(name, LONGEST_LABEL)}" for number, name in enumerate(names, start=1)]


def panels_of(entries: Sequence[Entry], names: Sequence[str]) -> list[Panel]:
    """Return the panels of the figure: for each metric, a curve per entry that has it."""
    histories = [history_of(entry) for entry in entries]
    splits = ["validation" if any("val_loss" in row for row in history) else "training" for history in histories]
    labels = legend_labels(names)
    if len({split for split, history in zip(splits, histories, strict=True) if history}) > 1:
        labels = [f"{label} (training)" if split == "training" else label for label, split in zip(labels, splits, strict=True)]
    panels = []
    for metric in ("accuracy", "loss"):
        curves = []
        for place, (entry, history, split) in enumerate(zip(entries, histories, splits, strict=True)):
            key = f"val_{metric}" if split == "validation" else metric
            first = entry.runs[0]
            best = first.row["best_epoch"] if entry.seeds is None and first.config.restore_best else None
            if any(key in row for row in history):
                curves.append(Curve(labels[place], place, history, best, None, split))
        panels += [Panel("", metric, curves)] if curves else []
    return panels


def history_of(entry: Entry) -> list[EpochLog]:
    """Return the metrics per epoch, without those that are None. For several seeds, they are means and standard deviations.

    The history of several seeds ends with the shortest run.
    """
    found = []
    for number, epochs in enumerate(zip(*(run.history for run in entry.runs), strict=False), start=1):
        known = [{key: row[key] for key in METRICS if row.get(key) is not None} for row in epochs]
        if entry.seeds is None:
            found.append({"epoch": number, **known[0]})
        else:
            summary = mean_and_deviation(known)
            means = {key: mean for key, (mean, _) in summary.items()}
            found.append({"epoch": number, **means, **{f"{key}_std": deviation for key, (_, deviation) in summary.items()}})
    return found
