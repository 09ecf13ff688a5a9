"""Checkpoints: files with the whole state of a training, from which it continues as if it had not been interrupted.

A checkpoint is a model file (models/file.py) with the best weights so far, so it can be loaded, evaluated and used for
prediction. It also has these tensors, whose names start with "training.":

    parameters [P], slots [S, P]   the current weights, and the state of the optimizer
    loss [n], correct [n]          metrics of the rows trained on in an epoch that has not ended; missing after a whole epoch
    record [bytes]                 a `Record` in JSON

The state of early stopping and of the learning-rate schedule is not stored, because it is a function of the history.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from fastmlp.engines.arithmetic import arithmetic
from fastmlp.engines.base import Engine, RowMetrics, State
from fastmlp.errors import ConfigError, DataError
from fastmlp.files import file_errors, json_bytes, make_folders
from fastmlp.files.locks import locked_folder
from fastmlp.models import file
from fastmlp.models.file import CHECKPOINTS_NAME, check_format_version
from fastmlp.models.model import Model
from fastmlp.nn.activations import digest_of
from fastmlp.nn.blocks import blocks
from fastmlp.nn.checks import check_number, shown
from fastmlp.nn.schedules import Schedule
from fastmlp.training.result import EpochLog, History
from fastmlp.training.settings import Settings, Task, TrainingData

VERSION = 1
PATTERN = "step-*.safetensors"
KEPT = 2  # number of checkpoints that are kept: if the last one is damaged, the training continues from the one before
DEFAULT_SECONDS = 20.0
# Settings that may differ when a training continues. The first three determine when it ends, the others where it runs.
CHANGEABLE = ("epochs", "patience", "max_time", "backend", "threads")


class StartedEpoch(NamedTuple):
    """An epoch that a signal or the time limit ended early.

    metrics : metrics of the rows trained on so far, in the order of training
    steps : results of the validations within the epoch
    since : number of rows trained on before the last of these validations
    seconds, eval_seconds : duration of the training and of the validations so far
    """

    metrics: RowMetrics
    steps: list[EpochLog]
    since: int
    seconds: float
    eval_seconds: float


class Checkpoint(NamedTuple):
    """The state of a training.

    state : weights, optimizer slots and number of updates
    model : the model with the weights of the best epoch; with the current weights if no epoch was completed
    best_epoch : number of the best epoch; 0 if no epoch was completed
    history : the completed epochs
    started : the epoch that was ended early, or None
    """

    state: State
    model: Model
    best_epoch: int
    history: History
    started: StartedEpoch | None = None


class Record(msgspec.Struct):
    """The part of a checkpoint that is stored as JSON.

    settings : fields of `Settings`, see `settings_table`
    activations : hash of the code of each custom activation
    data : `data_digest` of the training data
    arithmetic : see `engines.arithmetic`
    started : fields of `StartedEpoch` other than `metrics`, or None
    """

    format_version: int
    step: int
    best_epoch: int
    settings: dict[str, Any]
    activations: dict[str, str]
    data: str
    arithmetic: dict[str, str]
    history: list[EpochLog]
    started: dict[str, Any] | None


class StoredCheckpoint(NamedTuple):
    """A checkpoint, the file from which it was read, and the description of the training that wrote it."""

    path: Path
    checkpoint: Checkpoint
    record: Record


# ------------------------------------------------------------------------------------------------ files


def write(path: Path, checkpoint: Checkpoint, record: Record) -> None:
    """Write a checkpoint atomically; raise WriteError if it cannot be written."""
    tensors: dict[str, npt.NDArray[Any]] = {"parameters": checkpoint.state.parameters, "slots": checkpoint.state.slots}
    if checkpoint.started is not None:
        tensors |= {"loss": checkpoint.started.metrics.loss, "correct": checkpoint.started.metrics.correct}
    tensors["record"] = np.frombuffer(json_bytes(record), np.uint8)
    file.save(checkpoint.model, path, tensors)


def read(path: Path) -> StoredCheckpoint:
    """Read a checkpoint; raise DataError if it is damaged, or was written by another version of fastmlp."""
    fields, tensors = file.read_checkpoint(path)
    if not tensors.keys() >= {"parameters", "slots", "record"}:
        raise DataError(f"{path} is a model, not a checkpoint; continue from a checkpoint, or from a run folder")
    text = tensors["record"].tobytes()
    try:
        check_format_version(path, msgspec.json.decode(text), VERSION)
        record = msgspec.json.decode(text, type=Record)
    except msgspec.MsgspecError as error:
        raise DataError(f"{path}: the record cannot be read ({error}); another version may have written it") from None
    state = State(tensors["parameters"], tensors["slots"], record.step)
    started = None
    if record.started is not None:
        started = StartedEpoch(RowMetrics(tensors["loss"], tensors["correct"]), **record.started)
    model = Model(**fields)
    return StoredCheckpoint(path, Checkpoint(state, model, record.best_epoch, History(record.history), started), record)


def files_of(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, or in its subfolder `CHECKPOINTS_NAME`; the last one is the newest."""
    with file_errors("read", folder):
        inner = folder / CHECKPOINTS_NAME
        return sorted((inner if inner.is_dir() else folder).glob(PATTERN))


def read_newest(path: str | Path) -> StoredCheckpoint:
    """Read a checkpoint.

    path : checkpoint file, folder of checkpoints, or run folder; of several checkpoints, the newest one that is not damaged

    Warns
    -----
    RuntimeWarning : the newest checkpoint is damaged, and an older one is used

    Raises
    ------
    DataError : there is no checkpoint, or all checkpoints are damaged
    """
    path = Path(path)
    found = [path] if path.is_file() else files_of(path)
    if not found:
        raise DataError(f"{path}: there is no checkpoint; check the path, or train from the beginning")
    for older, newest in reversed(list(zip([None, *found], found, strict=False))):
        try:
            return read(newest)
        except DataError as error:
            if older is None:
                raise
            warnings.warn(f"{error}; continuing from {older.name}", RuntimeWarning, stacklevel=2)
    raise AssertionError


# ------------------------------------------------------------------------------------------------ what must be the same


def settings_table(settings: Settings) -> dict[str, Any]:
    """Return the fields of `Settings`, with the fields of the optimizer and the schedule, in a form that JSON can represent.

    >>> table = settings_table(Settings(seed=3))
    >>> table["seed"], table["optimizer.name"], table["schedule"]
    (3, 'adam', 'Schedule')
    """
    table: dict[str, Any] = {}
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if dataclasses.is_dataclass(value):
            table[one.name] = type(value).__name__
            table |= {f"{one.name}.{inner.name}": getattr(value, inner.name) for inner in dataclasses.fields(value)}
        else:
            table[one.name] = np.dtype(value).name if one.name == "dtype" else value
    return dict(msgspec.json.decode(json_bytes(table)))


def data_digest(data: TrainingData) -> str:
    """Return the SHA-256 hash of the arrays and the scalings with which a network is trained."""
    total = hashlib.sha256()
    for rows in (data.train, data.validation):
        for array in () if rows is None else (rows.x, rows.y, rows.weight):
            if array is not None:
                total.update(f"{array.dtype.str} {array.shape} ".encode())
                for _, block in blocks(array):
                    total.update(np.ascontiguousarray(block).data)
    for scaling in (data.scaling, data.target_scaling):
        if scaling is not None:
            for values in scaling.to_arrays().values():
                total.update(values.tobytes())
    return total.hexdigest()


def activation_digests(task: Task) -> dict[str, str]:
    """Return the hash of the code of each custom activation of a network."""
    digests = {layer.activation: digest_of(layer.activation) for layer in task.network.layers[:-1]}
    return {name: digest for name, digest in digests.items() if digest}


def check_same(stored: StoredCheckpoint, task: Task, data: str) -> None:
    """Check that a training is the one that wrote a checkpoint, so that it can continue.

    data : `data_digest` of the training data

    Raises
    ------
    ConfigError : the network, an activation or a setting differs; or the number of epochs, on which the schedule depends
    DataError : the data differ
    """
    where, record, network = stored.path, stored.record, stored.checkpoint.model.network
    now, before = settings_table(task.settings), record.settings
    names = [one.name for one in dataclasses.fields(network) if one.name != "hidden"]
    differ = {name: (getattr(task.network, name), getattr(network, name)) for name in names}
    differ |= {name: (now.get(name), before.get(name)) for name in {**now, **before} if name not in CHANGEABLE}
    changed = [f"{name} is {shown(new)} instead of {shown(old)}" for name, (new, old) in differ.items() if new != old]
    if changed:
        raise ConfigError(f"{where}: the training cannot continue with other settings: {'; '.join(changed)}")
    if activation_digests(task) != record.activations:
        raise ConfigError(f"{where}: the code of a custom activation has changed since the checkpoint")
    epochs, schedule = task.settings.epochs, task.settings.schedule
    if epochs != before["epochs"] and isinstance(schedule, Schedule) and schedule.depends_on_epochs:
        raise ConfigError(
            f"{where}: epochs must stay {before['epochs']}, because the learning rates of schedule {schedule.kind} depend on "
            "the number of epochs",
            settings=("epochs", "schedule"),
        )
    done = len(stored.checkpoint.history) + (stored.checkpoint.started is not None)
    if epochs < done:
        raise ConfigError(
            f"{where}: the checkpoint is in epoch {done}, so epochs must be at least {done}, not {epochs}", settings=("epochs",)
        )
    if data != record.data:
        raise DataError(f"{where}: the data, their splits, weights or scaling differ from those of the checkpoint")


def check_arithmetic(stored: StoredCheckpoint, now: dict[str, str], *, strict: bool) -> None:
    """Warn, or with `strict` raise ConfigError, if the results may differ in their last bits; see `engines.arithmetic`."""
    before = stored.record.arithmetic
    changed = [
        f"{name} {now.get(name, 'none')} instead of {before.get(name, 'none')}"
        for name in {**before, **now}
        if now.get(name) != before.get(name)
    ]
    if not changed:
        return
    text = f"the checkpoint was computed with another engine: {', '.join(changed)}"
    if strict:
        raise ConfigError(f"{stored.path}: {text}; allow small differences, or use the same engine", settings=("strict",))
    warnings.warn(f"{text}; results will differ slightly from those without an interruption", RuntimeWarning, stacklevel=3)


# ------------------------------------------------------------------------------------------------ during training


class Checkpoints:
    """Folder of checkpoints that a training writes, and the checkpoint from which it continues.

    Parameters
    ----------
    task : the training
    folder : folder of the checkpoints, which is created; None to write none
    seconds : a checkpoint is written after an epoch if the last one is at least this old
    start : checkpoint from which the training continues; None to start from the beginning
    strict : whether the engine must be the one of `start`, see `check_arithmetic`

    Raises
    ------
    ConfigError : `seconds` is invalid
    """

    def __init__(
        self,
        task: Task,
        folder: Path | None = None,
        seconds: float = DEFAULT_SECONDS,
        start: StoredCheckpoint | None = None,
        *,
        strict: bool = False,
    ) -> None:
        check_number("checkpoint_seconds", seconds, lambda value: value >= 0, "zero or a positive number of seconds")
        self.task, self.folder, self.seconds, self.start, self.strict = task, folder, seconds, start, strict
        self.written = time.monotonic()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Context manager that creates the folder and locks it against other trainings; not needed in a locked run folder.

        Raises
        ------
        ConfigError : another training is writing to the folder
        WriteError : the folder cannot be created or locked
        """
        if self.folder is None:
            yield
            return
        make_folders(self.folder)
        with ExitStack() as stack:
            with file_errors("lock", self.folder):
                found = stack.enter_context(locked_folder(self.folder))
            if found is False:
                raise ConfigError(f"checkpoints: another training is writing to {self.folder}; choose another folder")
            yield

    def begin(self, engine: Engine) -> Checkpoint | None:
        """Create the folder, start the clock, and return the checkpoint from which the training continues, or None.

        Raises the exceptions of `check_same` and `check_arithmetic`, and WriteError if the folder cannot be created.
        """
        if self.folder is not None:
            make_folders(self.folder)
        self.written = time.monotonic()
        if self.start is None:
            return None
        check_same(self.start, self.task, self.data)
        check_arithmetic(self.start, arithmetic(engine), strict=self.strict)
        return self.start.checkpoint

    @cached_property
    def data(self) -> str:
        """The `data_digest` of the training data, computed when it is first needed."""
        return data_digest(self.task.data)

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is at least `seconds` old."""
        return self.folder is not None and time.monotonic() - self.written >= self.seconds

    def write(self, checkpoint: Checkpoint, engine: Engine) -> None:
        """Write a checkpoint, then remove all but the newest `KEPT`; raise WriteError if it cannot be written.

        Warns
        -----
        RuntimeWarning : an old checkpoint cannot be removed; this takes space, but is no reason to end a training
        """
        if self.folder is None:
            return
        started = checkpoint.started and {
            name: value for name, value in checkpoint.started._asdict().items() if name != "metrics"
        }
        record = Record(
            VERSION,
            checkpoint.state.step,
            checkpoint.best_epoch,
            settings_table(self.task.settings),
            activation_digests(self.task),
            self.data,
            arithmetic(engine),
            checkpoint.history,
            started,
        )
        write(self.folder / f"step-{checkpoint.state.step:012d}.safetensors", checkpoint, record)
        try:
            for path in sorted(self.folder.glob(PATTERN))[:-KEPT]:
                path.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"{self.folder}: old checkpoints cannot be removed ({error.strerror})", RuntimeWarning, stacklevel=2)
        self.written = time.monotonic()


def open_checkpoints(
    task: Task, folder: str | Path | None, seconds: float, resume: str | Path | bool | None, strict: bool
) -> Checkpoints:
    """Return the checkpoints of a training for the arguments `checkpoints`, `resume` … of `api.train`.

    Raises
    ------
    ConfigError : the arguments contradict each other, or `folder` has the checkpoints of another training
    DataError : there is no checkpoint at `resume`, or it is damaged
    """
    if resume is True and folder is None:
        raise ConfigError("resume=True needs checkpoints=FOLDER; or give the path of a checkpoint as resume")
    start = None
    if resume is True:
        assert folder is not None
        start = read_newest(folder) if files_of(Path(folder)) else None
    elif resume:
        start = read_newest(resume)
    elif folder is not None and files_of(Path(folder)):
        raise ConfigError(
            f"{folder} has checkpoints of an earlier training; continue it with resume=True, or choose another folder"
        )
    return Checkpoints(task, None if folder is None else Path(folder), seconds, start, strict=strict)
