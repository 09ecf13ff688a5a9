"""What a run leaves behind: the model, result.json, pictures and reports, and the manifest that seals them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.data.dataset import Dataset
from fastmlp.data.splits import Parts
from fastmlp.engines import installed_versions
from fastmlp.errors import ConfigError, DivergedError, ThresholdError
from fastmlp.experiments.folder import CLASSES_NAME, RESULT_NAME, take_away, write_manifest
from fastmlp.experiments.plan import PART_NAMES, Plan, of_images
from fastmlp.files import read_lines, write_bytes, write_json
from fastmlp.models.file import FILE_NAME, save
from fastmlp.models.metrics import judge
from fastmlp.nn.network import Network
from fastmlp.reports.text import PREDICTIONS_NAME, REPORT_NAME, classification_report, predictions_text
from fastmlp.training.loop import Training

CURVES_NAME = "curves.png"
CONFUSION_NAME = "confusion.png"
CLASSES_PICTURE = "classes.png"
NOT_ALWAYS = (CONFUSION_NAME, CLASSES_PICTURE, REPORT_NAME, PREDICTIONS_NAME)  # what some runs do not write
PACKAGES = ("numpy", "numba", "llvmlite", "scikit-learn")


class Ended(NamedTuple):
    """How a training ended: `signal` or 0, `error` if it diverged after its first epoch, and wall `seconds`."""

    training: Training
    signal: int
    error: DivergedError | None
    seconds: float


def finish(plan: Plan, ended: Ended, folder: Path) -> dict[str, Any]:
    """Write what a run leaves behind, first what cannot be had again; the object in result.json."""
    model = dataclasses.replace(ended.training.model, **of_images(plan.data))
    training = ended.training._replace(model=model)
    save(model, folder / FILE_NAME)
    left_out = ("train",) if ended.signal else ()  # to end soon
    judged = {name: judge(model, *plan.parts[name]) for name in plan.parts if name not in left_out}
    figures = {name: found for name, (found, _) in judged.items()}
    result = describe(plan, ended._replace(training=training), figures) | {"out": str(folder)}
    write_json(folder / RESULT_NAME, result)
    write_manifest(folder)
    take_away(folder, NOT_ALWAYS)  # those of an earlier run
    if plan.config.predictions:
        found, predicted = judged["test"]
        write_bytes(folder / PREDICTIONS_NAME, predictions_text(plan.parts["test"][1], predicted, found).encode())
    shown = result["test"] or result["validation"] or result["train"]
    if model.classes and shown is not None:
        write_bytes(folder / REPORT_NAME, classification_report(shown).encode())
    draw(training, shown, folder)
    return result


def draw(training: Training, shown: dict[str, Any] | None, folder: Path) -> None:
    """The pictures of a run; `shown` are the figures of the part whose confusions are to be seen."""
    from fastmlp.reports.confusion import plot_classes, plot_confusion
    from fastmlp.reports.curves import plot_curves

    classes = training.model.classes
    plot_curves(training.history, training.best_epoch, folder / CURVES_NAME)
    if classes and shown is not None:
        plot_confusion(shown["confusion"], classes, folder / CONFUSION_NAME)
    if (folder / CLASSES_NAME).exists():
        plot_classes(read_lines(folder / CLASSES_NAME), classes, folder / CLASSES_PICTURE)


def describe(plan: Plan, ended: Ended, figures: dict[str, Any]) -> dict[str, Any]:
    """The object in result.json but "out", with the figures of each part that was measured."""
    training, history = ended.training, ended.training.history
    rows = len(plan.parts["train"][0])
    whole = [row["seconds"] for row in history if row["rows"] == rows]
    epoch = statistics.median(whole or [row["seconds"] * rows / row["rows"] for row in history])
    return {
        **{name: figures.get(name) for name in PART_NAMES},
        "epochs": len(history),
        "best_epoch": training.best_epoch,
        "stopped": training.stopped,
        "seconds_per_epoch": epoch,
        "seconds": ended.seconds,
        "gflops": plan.network.flops_per_row * rows / epoch / 1e9,
        "parameters": plan.network.parameters,
        "backend": training.backend,
        "threads": training.threads,
        "seed": plan.config.seed,
        "data": describe_data(plan.data, plan.parts),
        "network": describe_network(plan.network),
        "versions": installed_versions((*PACKAGES, "torch") if training.backend == "torch" else PACKAGES),
    }


def describe_data(data: Dataset, parts: Parts) -> dict[str, Any]:
    """What result.json tells of the data."""
    return {
        "name": data.name,
        "sha256": data.sha256,
        "features": data.x.shape[1],
        "classes": list(data.classes),
        **({} if data.about is None else {"extracted": dict(data.about)}),
        "rows": {name: len(x) for name, (x, _) in parts.items()},
    }


def describe_network(network: Network) -> dict[str, Any]:
    """What result.json tells of the network."""
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(network).items()}
    return {"label": network.label, **fields}


def check_accuracy(result: Mapping[str, Any], part: str, least: float | None) -> None:
    """Raise ThresholdError if the accuracy of a part is lower than asked for."""
    if least is None:
        return
    if "accuracy" not in result[part]:
        raise ConfigError("min_accuracy is for classes, but this model predicts values; leave it out")
    accuracy = result[part]["accuracy"]
    if accuracy < least:
        raise ThresholdError(f"{part} accuracy {accuracy:.6g} is below the {least:g} of --min-accuracy")
