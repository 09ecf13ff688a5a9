"""The files of a finished run: the model, result.json, the manifest of hashes, figures and reports."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from fastmlp.data.dataset import Dataset
from fastmlp.data.splits import Splits
from fastmlp.engines import installed_versions
from fastmlp.errors import ConfigError, DataError, DivergedError, ThresholdError, WriteError
from fastmlp.experiments.folder import CLASSES_NAME, LOGS, RESULT_NAME, RESULT_VERSION, remove_files, write_manifest
from fastmlp.experiments.mistakes import MISTAKES_PICTURE, MISTAKES_TABLE, Answers, kinds_of_mistakes, write_mistakes
from fastmlp.experiments.plan import SPLIT_NAMES, RunPlan, portable, with_inputs
from fastmlp.files import iterate_lines, sync, write_bytes, write_json
from fastmlp.files.reading import exists
from fastmlp.models.file import FILE_NAME
from fastmlp.models.metrics import evaluate_with_predictions, regression_metrics
from fastmlp.models.model import Model
from fastmlp.nn.network import Network
from fastmlp.reports.text import (
    PREDICTIONS_NAME,
    REPORT_NAME,
    classification_report,
    metrics_text,
    predictions_text,
    short_name,
)
from fastmlp.training.checkpoints.file import files_of
from fastmlp.training.result import History, TrainResult

CURVES_NAME = "curves.png"
CONFUSION_NAME, OTHER_CONFUSIONS = "confusion.png", "confusion-{}.png"  # of the split that is shown, and of the others
PREDICTIONS_PICTURE = "predictions.png"
CLASSES_PICTURE = "classes.png"
PICTURES = (CURVES_NAME,)
CONFUSIONS = (CONFUSION_NAME, *map(OTHER_CONFUSIONS.format, ("validation", "train")))
FIGURES_OF_SPLITS = (*CONFUSIONS, PREDICTIONS_PICTURE, MISTAKES_PICTURE)
# Files that not every run writes.
OPTIONAL_FILES = (*FIGURES_OF_SPLITS, CLASSES_PICTURE, REPORT_NAME, PREDICTIONS_NAME, MISTAKES_TABLE)
Evaluated = Mapping[str, tuple[dict[str, Any], npt.NDArray[Any]]]  # metrics and predictions of each evaluated split
LONGEST_LABEL = 40  # maximum number of characters of the network in the title of the curves
PACKAGES = ("numpy", "numba", "llvmlite", "scikit-learn")


class TrainOutcome(NamedTuple):
    """Outcome of a training run.

    training : the trained model and its history
    signal : number of the signal that ended the training early, or 0
    error : the error if the training diverged after its first epoch, or a file could not be written, otherwise None
    seconds : wall-clock time of the training
    """

    training: TrainResult
    signal: int
    error: DivergedError | WriteError | None
    seconds: float


def seconds_of(history: History) -> float:
    """Return the duration of the epochs in a history, in seconds."""
    return float(sum(row["seconds"] + row["eval_seconds"] for row in history))


def save_result(plan: RunPlan, outcome: TrainOutcome, folder: Path) -> dict[str, Any]:
    """Save the model and call `write_result`. If a file cannot be written, raise WriteError with the place of the best weights.

    If a file could not be written during the training, raise this error, also with the place of the best weights.
    """
    training, saved = outcome.training._replace(model=with_inputs(outcome.training.model, plan.data)), False
    cause: DataError | None = outcome.error if isinstance(outcome.error, WriteError) else None
    try:
        training.model.save(folder / FILE_NAME)
        saved = True
        result = write_result(plan, outcome._replace(training=training), folder)
    except DataError as error:  # if the folder was removed, it may be reading that fails
        cause = cause or error
    if cause is not None:
        raise WriteError(f"{cause}; {weights_place(training, folder, saved)}") from cause
    return result


def weights_place(training: TrainResult, folder: Path, saved: bool) -> str:
    """Return the place of the best weights in words; save them in another folder if they are not in the run folder.

    saved : whether they were saved in the run folder, which may have been removed since
    """
    place = folder / FILE_NAME
    if not (saved and exists(place)):
        try:
            place = save_elsewhere(training.model, folder)
        except WriteError as error:
            found = files_of(folder)
            hint = f"; the newest checkpoint is {found[-1]}" if found else ""
            return f"the weights cannot be saved in another folder either ({error}){hint}"
    return f"the weights of the {'best' if training.restore_best else 'last'} epoch, {training.best_epoch}, are in {place}"


def save_elsewhere(model: Model, folder: Path) -> Path:
    """Save a model next to its run folder, in the current folder, or in the folder for temporary files; return the path.

    Raises
    ------
    WriteError : the model cannot be saved in any of these folders
    """
    error, places = WriteError(), [Path(tempfile.gettempdir())]
    with contextlib.suppress(FileNotFoundError):  # the current folder was removed
        places = [folder.absolute().parent, Path.cwd(), *places]
    for other in places:
        path = other / f"{folder.name or 'run'}-{datetime.now():%Y-%m-%d_%H%M%S_%f}.safetensors"
        try:
            model.save(path)
        except WriteError as failed:
            error = failed
        else:
            return path
    raise error


def write_result(plan: RunPlan, outcome: TrainOutcome, folder: Path) -> dict[str, Any]:
    """Write the other files of a finished training run, the manifest last, and return the content of result.json."""
    training, model = outcome.training, outcome.training.model
    left_out = ("train",) if outcome.signal else ()  # exit quickly after a signal
    evaluated = {name: evaluate_with_predictions(model, rows) for name, rows in plan.splits.items() if name not in left_out}
    metrics = {name: found for name, (found, _) in evaluated.items()}
    result = describe(plan, outcome, metrics) | {"out": str(folder)}
    write_json(folder / RESULT_NAME, result)
    remove_files(folder, OPTIONAL_FILES)  # files of an earlier run
    if plan.config.predictions:
        found, predicted = evaluated["test"]
        write_bytes(folder / PREDICTIONS_NAME, predictions_text(plan.splits["test"].y, predicted, found).encode())
    shown = next((name for name in SPLIT_NAMES if name in evaluated), None)
    if shown is not None and model.classes:
        write_bytes(folder / REPORT_NAME, classification_report(metrics[shown]).encode())
    if shown is not None and ".csv" in kinds_of_mistakes(plan.data):
        write_mistakes(folder / MISTAKES_TABLE, model, answers_of(plan, evaluated, shown))
    draw(plan, training, evaluated, folder)
    for path in (folder / name for name in LOGS):
        if exists(path):
            sync(path)
    write_manifest(folder)
    return result


def draw(plan: RunPlan, training: TrainResult, evaluated: Evaluated, folder: Path) -> None:
    """Plot the figures of a run. Figures of one split show the test split, or else validation, or else train."""
    from fastmlp.reports.confusion import plot_classes, plot_confusion
    from fastmlp.reports.curves import plot_curves

    data, classes = plan.data, training.model.classes
    label, optimizer = short_name(plan.network.label, LONGEST_LABEL), plan.task.settings.optimizer.name
    title = f"{short_name(data.name)}, {label}, {optimizer}, seed {plan.task.settings.seed}"
    plot_curves(training.history, training.marked_epoch, folder / CURVES_NAME, title)
    splits = [name for name in SPLIT_NAMES if name in evaluated]
    for name in splits if classes else ():
        file = CONFUSION_NAME if name == splits[0] else OTHER_CONFUSIONS.format(name)
        subject = "Confusion matrix" if data.provenance is None else "MLP on features"
        plot_confusion(evaluated[name][0]["confusion"], classes, folder / file, f"{subject}, {name} split")
    if splits:
        answers = answers_of(plan, evaluated, splits[0])
        if not classes:
            draw_predictions(answers, folder / PREDICTIONS_PICTURE)
        if ".png" in kinds_of_mistakes(data):
            write_mistakes(folder / MISTAKES_PICTURE, training.model, answers)
    if exists(folder / CLASSES_NAME):
        plot_classes(iterate_lines(folder / CLASSES_NAME), classes, folder / CLASSES_PICTURE)


def answers_of(plan: RunPlan, evaluated: Evaluated, split: str) -> Answers:
    """Return the predictions for a split of the run."""
    rows = plan.splits[split]
    return Answers(plan.data, split, rows.x, rows, evaluated[split][1], plan.config.split_sizes())


def draw_predictions(answers: Answers, path: Path) -> None:
    """Plot the predictions of a regression against the true values, and the residuals."""
    from fastmlp.reports.regression import MOST_TARGETS, plot_predictions

    data, truth, predicted = answers.data, answers.rows.y, answers.predicted
    names = [f"target {number}" for number in range(1, truth.shape[1] + 1)]
    if truth.shape[1] == 1:
        names = ["" if data.encoding is None else data.encoding.target]
    shown = [[number] for number in range(min(truth.shape[1], MOST_TARGETS))]
    metrics = [metrics_text(regression_metrics(truth[:, one], predicted[:, one])) for one in shown]
    plot_predictions(truth, predicted, names, metrics, path, f"{short_name(data.name)}, {answers.split} split")


def describe(plan: RunPlan, outcome: TrainOutcome, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the content of result.json, except "out"; `metrics` has the metrics of each evaluated split."""
    training, history = outcome.training, outcome.training.history
    rows = len(plan.splits["train"])
    whole = [row["seconds"] for row in history if row["rows"] == rows]
    epoch = statistics.median(whole or [row["seconds"] * rows / row["rows"] for row in history])
    return {
        "format_version": RESULT_VERSION,
        **{name: metrics.get(name) for name in SPLIT_NAMES},
        "epochs": len(history),
        "best_epoch": training.best_epoch,
        "stopped": training.stopped,
        "seconds_per_epoch": epoch,
        "seconds": outcome.seconds,
        "gflops": plan.network.flops_per_row * rows / epoch / 1e9,
        "parameters": plan.network.parameters,
        "backend": training.backend,
        "threads": training.threads,
        "settings": portable(plan.config),
        "data": describe_data(plan.data, plan.splits),
        "network": describe_network(plan.network),
        "versions": installed_versions((*PACKAGES, "torch") if training.backend == "torch" else PACKAGES),
    }


def describe_data(data: Dataset, splits: Splits) -> dict[str, Any]:
    """Return the "data" entry of result.json."""
    return {
        "name": data.name,
        "sha256": data.sha256,
        "features": data.x.shape[1],
        "classes": list(data.classes),
        **({} if data.provenance is None else {"extracted": dict(data.provenance)}),
        "rows": {name: len(rows) for name, rows in splits.items()},
        **({"notes": list(data.notes)} if data.notes else {}),
    }


def describe_network(network: Network) -> dict[str, Any]:
    """Return the "network" entry of result.json."""
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(network).items()}
    fields.pop("hidden")  # part of sizes
    return {"label": network.label, **fields}


def check_accuracy(result: Mapping[str, Any], split: str, least: float | None) -> None:
    """Check that the accuracy of a split is at least `least`; None disables the check.

    Raises
    ------
    ThresholdError : the accuracy is below the minimum
    ConfigError : the model is a regression model, which has no accuracy
    """
    if least is None:
        return
    if "accuracy" not in result[split]:
        raise ConfigError(
            "min_accuracy needs a classifier, but this is a regression model; leave it out", settings=("min_accuracy",)
        )
    accuracy = result[split]["accuracy"]
    if accuracy < least:
        raise ThresholdError(f"{split} accuracy {accuracy:.6g} is below the minimum {least:g}", settings=("min_accuracy",))
