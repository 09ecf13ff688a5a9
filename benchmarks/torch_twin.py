"""Compare finished runs with PyTorch: python -m benchmarks.torch_twin RUN… [--out FILE.json]

The script reads the folders of finished runs and trains their networks again with the engine `torch`. Splits, scaling,
initial weights, order of rows and dropout masks are the same, but PyTorch computes the activations, losses, gradients and
updates. If the results agree, they are not caused by an error in fastmlp's engines. For each run, the loss curves of both
trainings are plotted in twin-NAME.png in the folder of FILE.json, where NAME is the name of the run's folder. Rows of other
runs in FILE.json are kept.

In float64, both training runs agree (tests/engines/test_torch_engine.py). In float32, rounding errors make them diverge slowly.
They diverge abruptly when the input of a relu is so close to 0 that rounding determines its sign: the derivative of the relu
is then 0 in one training and 1 in the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.epochs import machine
from fastmlp.experiments.config.sources import resolve
from fastmlp.experiments.folder import CONFIG_NAME, METRICS_NAME, RESULT_NAME, read_result
from fastmlp.experiments.plan import RunPlan, make_plan
from fastmlp.files import read_json, read_lines, write_json
from fastmlp.models.metrics import evaluate_with_predictions
from fastmlp.reports.style import BLUE, ORANGE, epoch_axis, new_figure, own_style, save
from fastmlp.training.loop import train_task
from fastmlp.training.result import TrainResult

DIGITS = 6  # significant digits of stored losses; float32 has about seven
CURVES = {"loss": ("training", BLUE), "val_loss": ("validation", ORANGE)}


def train_by(backend: str, plan: RunPlan) -> TrainResult:
    """Run the training of a plan with the engine `backend`."""
    settings = dataclasses.replace(plan.task.settings, backend=backend)
    return train_task(plan.task._replace(settings=settings))


def metrics_of(epoch: int, of_split: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of the best epoch on the validation and test splits, if available, and the losses of all epochs."""
    found: dict[str, Any] = {"epoch": epoch}
    for split in ("validation", "test"):
        found |= {
            f"{split}_{name}": of_split[split][name] for name in ("loss", "accuracy") if name in (of_split.get(split) or {})
        }
    found.pop("test_loss", None)
    return found | {"history": losses(history)}


def losses(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the loss curves of a history."""
    return {key: [row[key] for row in history] for key in CURVES if history[0][key] is not None}


def largest_difference(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> float:
    """Return the largest relative difference between the curves of two training runs, over the epochs that both have."""
    both = min(len(one["loss"]), len(other["loss"]))
    first, second = (np.array([curves[key][:both] for key in one]) for curves in (one, other))
    return float(np.max(np.abs(second - first) / np.abs(first)))


def compare(run: Path) -> dict[str, Any]:
    """Train a finished run again with PyTorch; return a row with the results of fastmlp and of PyTorch."""
    plan = make_plan(resolve({}, {}, run / CONFIG_NAME))
    result = read_result(run / RESULT_NAME)
    ours = read_lines(run / METRICS_NAME)
    retrained = train_by("torch", plan)
    metrics = {
        name: evaluate_with_predictions(retrained.model, plan.splits[name])[0]
        for name in ("validation", "test")
        if name in plan.splits
    }
    return {
        "name": run.resolve().name,
        "network": plan.network.label,
        "data": plan.data.name,
        "dropout": list(plan.config.dropout),
        "ours": metrics_of(result["best_epoch"], result, ours),
        "pytorch": metrics_of(retrained.best_epoch, metrics, retrained.history),
        "largest_difference": largest_difference(losses(ours), losses(retrained.history)),
        "machine": machine(),
    }


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Round the curves of a row to significant digits."""
    short: dict[str, Any] = {"largest_difference": float(f"{row['largest_difference']:.3g}")}
    for who in ("ours", "pytorch"):
        curves = row[who]["history"].items()
        short[who] = row[who] | {"history": {key: [float(f"{x:.{DIGITS}g}") for x in curve] for key, curve in curves}}
    return row | short


def draw(row: Mapping[str, Any], path: Path) -> None:
    """Write a PNG with the loss curves of both training runs.

    fastmlp's curves are wide and light. PyTorch's curves are drawn over them as thin, dashed black lines.
    """
    with own_style():
        figure = new_figure(7.0, 4.6, f"{row['network']} on {row['data']}, trained by fastmlp and by PyTorch")
        axes = figure.add_subplot()
        for key, curve in row["ours"]["history"].items():
            label, color = CURVES[key]
            epochs = range(1, len(curve) + 1)
            axes.plot(epochs, curve, color=color, lw=7, alpha=0.35, solid_capstyle="round", label=f"{label}, fastmlp")
        for key, curve in row["pytorch"]["history"].items():
            label = "both, PyTorch" if key == "loss" else None
            axes.plot(range(1, len(curve) + 1), curve, color="black", lw=1.3, ls=(0, (4, 2)), label=label)
        axes.set_title(f"largest relative difference of the curves {row['largest_difference']:.2g}", fontsize=9)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        epoch_axis(axes, 1, len(row["ours"]["history"]["loss"]))
        axes.legend(frameon=False)
        save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = {row["name"]: row for row in read_json(options.out)["rows"]} if options.out and options.out.exists() else {}
    for run in options.runs:
        row = rounded(compare(run))
        rows[row["name"]] = row
        print(json.dumps(row), flush=True)
        if options.out:
            write_json(options.out, {"rows": [*rows.values()]})
            draw(row, options.out.parent / f"twin-{row['name']}.png")


if __name__ == "__main__":
    main()
