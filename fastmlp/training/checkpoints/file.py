"""Checkpoint files: the state of a training run, from which it can be resumed as if it had not been interrupted.

A checkpoint is a model file (models/file.py) with the weights to be kept so far, so it can be loaded, evaluated and used for
prediction. It also has these tensors, whose names start with "training.", where P is the number of parameters, S the number of
optimizer slots, and n the number of rows of a partial epoch:

    parameters (P,), slots (S, P)   float32 or float64, the current weights and the state of the optimizer
    loss (n,), correct (n,)         float and bool, metrics of the rows of a partial epoch; missing after a complete epoch
    record (bytes,)                 uint8, a `Record` in JSON

The state of early stopping and of the learning-rate schedule is not stored, because it is a function of the history.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from fastmlp.engines.base import RowMetrics, State
from fastmlp.errors import DataError, printable
from fastmlp.files import RESTORE, converted, decoded, json_bytes
from fastmlp.files.reading import is_folder
from fastmlp.models import file
from fastmlp.models.file import CHECKPOINTS_NAME, TRAINING, check_format_version, files_in
from fastmlp.models.model import Model
from fastmlp.training.result import EpochLog, EpochMetrics, History

VERSION = 1


class PartialEpoch(NamedTuple):
    """An epoch that a signal or the time limit ended early.

    metrics : metrics of the rows trained on so far, in the order of training
    steps : results of the validations within the epoch
    since : number of rows trained on before the last of these validations
    seconds, eval_seconds : duration of the training and of the validations so far, in seconds
    """

    metrics: RowMetrics
    steps: list[EpochLog]
    since: int
    seconds: float
    eval_seconds: float


class Checkpoint(NamedTuple):
    """The state of a training run.

    state : weights, optimizer slots and number of updates
    model : the model with the weights of `best_epoch`; with the current weights if no epoch was completed
    best_epoch : number of the best epoch, or with `restore_best` false of the last one; 0 if no epoch was completed
    history : the completed epochs
    partial : the epoch that was ended early, or None
    """

    state: State
    model: Model
    best_epoch: int
    history: History
    partial: PartialEpoch | None = None


class Record(msgspec.Struct):
    """The part of a checkpoint that is stored as JSON.

    settings : fields of `Settings`, see `settings_table`
    activations : hash of the code of each custom activation
    data : `data_digest` of the training data
    environment : see `engines.environment`
    partial : fields of `PartialEpoch` other than `metrics`, or None
    """

    format_version: int
    step: int
    best_epoch: int
    settings: dict[str, Any]
    activations: dict[str, str]
    data: str
    environment: dict[str, str]
    history: list[EpochLog]
    partial: dict[str, Any] | None


class StoredCheckpoint(NamedTuple):
    """A checkpoint, the file from which it was read, and the description of the training run that wrote it."""

    path: Path
    checkpoint: Checkpoint
    record: Record


def write(path: Path, checkpoint: Checkpoint, record: Record) -> None:
    """Write a checkpoint atomically; raise WriteError if it cannot be written."""
    tensors: dict[str, npt.NDArray[Any]] = {"parameters": checkpoint.state.parameters, "slots": checkpoint.state.slots}
    if checkpoint.partial is not None:
        tensors |= {"loss": checkpoint.partial.metrics.loss, "correct": checkpoint.partial.metrics.correct}
    tensors["record"] = np.frombuffer(json_bytes(record), np.uint8)
    file.save(checkpoint.model, path, tensors)


def read(path: Path) -> StoredCheckpoint:
    """Read a checkpoint; raise DataError if it is damaged, or was written by another version of fastmlp."""
    fields, tensors = file.read_checkpoint(path)
    if not tensors.keys() >= {"parameters", "slots", "record"}:
        raise DataError(f"{path} is a model, not a checkpoint; continue from a checkpoint, or from a run folder")
    text = tensors["record"].tobytes()
    found = decoded(path, text)
    check_format_version(path, found, VERSION)
    record = converted(path, found, Record)
    converted(path, record.history, list[EpochMetrics])
    converted(path, record.settings, StoredSettings)
    converted(path, record.environment, StoredEnvironment)
    model = Model(**fields)
    check_tensors(path, model, record, tensors)
    state = State(tensors["parameters"], tensors["slots"], record.step)
    partial = None
    if record.partial is not None:
        converted(path, record.partial, PartialFields)
        partial = PartialEpoch(RowMetrics(tensors["loss"], tensors["correct"]), **record.partial)
    return StoredCheckpoint(path, Checkpoint(state, model, record.best_epoch, History(record.history), partial), record)


class StoredSettings(msgspec.Struct):
    """The field of `Record.settings` that fastmlp uses; other fields are ignored."""

    epochs: int


class StoredEnvironment(msgspec.Struct):
    """The field of `Record.environment` that fastmlp uses; other fields are ignored."""

    backend: str


class PartialFields(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of a `PartialEpoch` that are stored as JSON."""

    steps: list[dict[str, Any]]
    since: int
    seconds: float
    eval_seconds: float


def check_tensors(path: Path, model: Model, record: Record, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise DataError unless the tensors of a checkpoint have the dtypes and shapes in the docstring of this module."""
    missing = np.empty(0)
    size, slots = len(model.parameters), len(np.atleast_1d(tensors["slots"]))
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {"parameters": ("f", (size,)), "slots": ("f", (slots, size))}
    if record.partial is not None:
        rows = np.atleast_1d(tensors.get("loss", missing)).shape[:1]
        wanted |= {"loss": ("f", rows), "correct": ("b", rows)}
    for name, (kind, shape) in wanted.items():
        found = tensors.get(name, missing)
        if found.dtype.kind != kind or found.shape != shape:
            raise DataError(f"{path}: the tensor {TRAINING}{name} is missing, or has a wrong dtype or shape; {RESTORE}")


def files_of(folder: Path) -> list[Path]:
    """Return the checkpoints of a run folder, or those in a folder of checkpoints; the last one is the newest."""
    inner = folder / CHECKPOINTS_NAME
    return files_in(inner if is_folder(inner) else folder)


def read_newest(files: list[Path]) -> StoredCheckpoint:
    """Read the last one of the given checkpoints, or if it is damaged, the one before.

    Warns
    -----
    RuntimeWarning : the last checkpoint is damaged, and an older one is used

    Raises
    ------
    DataError : all checkpoints are damaged, or another version of fastmlp has written them
    """
    for index in range(len(files) - 1, -1, -1):
        try:
            return read(files[index])
        except DataError as error:
            if index == 0:
                raise
            text = f"{error}. Using the checkpoint before it, {files[index - 1].name}"
            warnings.warn(printable(text), RuntimeWarning, stacklevel=2)
    raise AssertionError("there are no checkpoints")
