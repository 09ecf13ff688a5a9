"""Compare settings by validation accuracy: python -m benchmarks.search NAME… [--out FILE.json]

NAME is a search defined in searches.toml. Each variant of the search is trained on the real data (FASTMLP_DATA), and its
results are written as a row to FILE.json (default: results/searches.json). Existing rows with the same settings are reused.
Networks on pixels are trained in parallel. Features extracted by convolutional networks are kept in --folder, so variants that
change only the network trained on the features do not train the convolutional network again.

The test set is not loaded, except in searches that try to reproduce a published test accuracy (`test = true`).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.epochs import machine
from fastmlp.data.dataset import Dataset
from fastmlp.data.load import load_data
from fastmlp.data.splits import Splits
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.shared import DataSettings, fields_of
from fastmlp.experiments.config.sources import resolve, resolve_as
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.features.extraction import Tools, extract_run
from fastmlp.experiments.plan import RunPlan, make_plan
from fastmlp.experiments.recipes.recipe import find
from fastmlp.files import json_bytes, read_json, write_json
from fastmlp.models.metrics import evaluate_with_predictions
from fastmlp.training.loop import Diverged, train_task
from fastmlp.training.many import Result, train_tasks

HERE = Path(__file__).parent
SEARCHES = HERE / "searches.toml"
RESULTS = HERE / "results" / "searches.json"

PRINTED = ("loss", "accuracy", "val_loss", "val_accuracy")  # metrics that a report prints per epoch

Row = dict[str, Any]
Keep = Callable[[Row], None]


def searches() -> Mapping[str, Any]:
    """Return the searches defined in searches.toml, by name."""
    return tomllib.loads(SEARCHES.read_text(encoding="utf-8"))


def variants(search: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the changed settings of each variant: all combinations of `grid`, then the entries of `variants`.

    >>> list(variants({"grid": {"a": [1, 2], "b": [3]}, "variants": [{"a": 5}]}))
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}, {'a': 5}]
    """
    if grid := search.get("grid"):
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))
    yield from search.get("variants", [])


def images_of(search: Mapping[str, Any], data: str) -> Dataset:
    """Load the images of a search; without `test = true`, drop the test set so that it cannot influence the choice."""
    found = load_data(data, os.environ.get("FASTMLP_DATA"))
    return found if search.get("test") else dataclasses.replace(found, x_test=None, y_test=None)


def metrics_of(search: Mapping[str, Any], result: Result, splits: Splits) -> Row:
    """Return the metrics of a trained variant, or the error message if its training diverged."""
    if isinstance(result, Diverged):
        return {"diverged": str(result)}
    history, best = result.history, result.history[result.best_epoch - 1]
    row = {"epochs": len(history), "best_epoch": result.best_epoch, "validation": best["val_accuracy"]}
    row |= {key: best[key] for key in ("loss", "accuracy", "val_loss")}
    row["seconds"] = round(sum(one["seconds"] + one["eval_seconds"] for one in history), 1)
    if (epoch := search.get("epoch", len(history) + 1)) <= len(history):
        row |= {f"{key} in epoch {epoch}": history[epoch - 1][key] for key in ("loss", "val_loss")}
    if search.get("test"):
        row["test"] = evaluate_with_predictions(result.model, splits["test"])[0]["accuracy"]
    return row


def on_pixels(search: Mapping[str, Any], todo: Sequence[dict[str, Any]], keep: Keep) -> None:
    """Train the variants; consecutive variants with the same data, splits and scaling are trained in parallel."""
    configs = [(changed, resolve({}, {}, recipe=settings_of(search)[1] | changed)) for changed in todo]
    shared = [*fields_of(DataSettings), "weight"]
    for _, group in itertools.groupby(configs, key=lambda one: [getattr(one[1], name) for name in shared]):
        train_together(search, list(group), keep)


def train_together(search: Mapping[str, Any], group: Sequence[tuple[dict[str, Any], TrainConfig]], keep: Keep) -> None:
    """Train variants that use the same data and splits, in parallel."""
    data = images_of(search, group[0][1].data)
    plans: list[RunPlan] = []
    for _, config in group:
        plans.append(
            make_plan(dataclasses.replace(config, test_fraction=0.0), data=data, same_data=plans[0] if plans else None)
        )
    splits = plans[0].splits
    train_tasks(
        [plan.task for plan in plans],
        finished=lambda index, result: keep({"settings": group[index][0]} | metrics_of(search, result, splits)),
    )


def on_features(search: Mapping[str, Any], todo: Sequence[dict[str, Any]], folder: Path, keep: Keep) -> None:
    """For each variant, train a convolutional network and an MLP on its features; keep the results of both networks.

    The optional table `follows` of a variant changes settings of the MLP.
    """
    from fastmlp.cnn import toolkit

    (base, follows), tools = settings_of(search), cast("Tools", toolkit)
    folder.mkdir(parents=True, exist_ok=True)
    without_test: dict[str, Any] = {}
    if not search.get("test"):
        images = folder / "images.npz"  # a copy without the test set
        save_images(images_of(search, base["data"]), images)
        without_test = {"data": str(images), "test_fraction": 0.0}  # takes precedence over the settings of a variant
    for changed in todo:
        own = resolve({}, {}, recipe=follows | changed.get("follows", {}))
        cnn_changed = {name: value for name, value in changed.items() if name != "follows"}
        config = resolve_as(
            ExtractConfig, {"data_dir": os.environ.get("FASTMLP_DATA")}, {}, recipe=base | cnn_changed | without_test
        )
        key = hashlib.sha256(json_bytes(config.key())).hexdigest()
        config = dataclasses.replace(config, out=str(folder / f"features-{key[:12]}.safetensors"))
        extracted = extract_run(config, tools, follows=own, say=print)
        if extracted.data is None:
            raise SystemExit(128 + extracted.signal)  # stopped by a signal; the same command continues the search
        plan = make_plan(own, data=extracted.data)
        trained = train_task(plan.task)
        cnn_result = extracted.result["cnn"]
        cnn = {name: cnn_result[name]["accuracy"] for name in ("validation", "test") if name in cnn_result}
        cnn |= {key: cnn_result[key] for key in ("epochs", "best_epoch", "seconds")}
        cnn["history"] = [{key: round(epoch[key], 4) for key in PRINTED} for epoch in cnn_result["history"]]
        keep({"settings": changed, "cnn": cnn} | metrics_of(search, trained, plan.splits))


def save_images(data: Dataset, path: Path) -> None:
    """Write the training images, labels and class names to an .npz file."""
    assert data.image_shape is not None
    shape = data.image_shape[:2] if data.image_shape[2] == 1 else data.image_shape
    np.savez(path, x=np.asarray(data.x[:]).reshape(-1, *shape), y=data.y, classes=np.array(data.classes))


def settings_of(search: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings shared by all variants: those of `extract` (empty for networks on pixels), and those of `train`."""
    if "recipe" in search:
        found = find(search["recipe"])
        return dict(found.extract or {}), dict(found.train or {})
    return dict(search.get("extract", {})), dict(search["train"])


def run(name: str, folder: Path, out: Path) -> None:
    """Train the variants of a search that have no row in `out` yet; write each row as soon as its training ends."""
    search, found = searches()[name], read_json(out) if out.exists() else {}
    extract, own = settings_of(search)
    shared, kept = ({"extract": extract} if extract else {}) | {"train": own}, found.get(name, {})
    rows = list(kept["rows"]) if kept.get("shared") == shared else []  # other shared settings make rows incomparable
    todo = [changed for changed in variants(search) if changed not in [row["settings"] for row in rows]]

    def keep(row: Row) -> None:
        print(row, flush=True)
        rows.append(row | {"machine": machine()})
        found[name] = {"about": search["about"], "shared": shared, "rows": rows}
        write_json(out, found)

    print(f"{name}: {len(todo)} variants to train", flush=True)
    if extract:
        on_features(search, todo, folder, keep)
    else:
        on_pixels(search, todo, keep)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(searches()))
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "searches", help="folder of images and features")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    for name in options.names:
        run(name, options.folder, options.out)


if __name__ == "__main__":
    main()
