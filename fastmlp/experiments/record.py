"""Files that a run writes before and during training: settings, data, checkpoints, and metrics after each epoch.

`Recorder` also shows the progress. `EpochFiles` saves per-class metrics and models at intervals: for MLPs, it is called by
`PeriodicSaver`, a callback of the training loop, and for convolutional networks by features/outputs.py. `RunCheckpoints` writes
the checkpoints, and keeps the other files consistent with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fastmlp.data.checks import CheckedRows
from fastmlp.data.splits import Splits
from fastmlp.engines.base import Engine
from fastmlp.errors import DataError, WriteError
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.folder import (
    CLASSES_NAME,
    CONFIG_NAME,
    DATA_NAME,
    DATA_VERSION,
    LOGS,
    MANIFEST_NAME,
    METRICS_NAME,
    MODELS_NAME,
    RESULT_NAME,
    TIMINGS_NAME,
    remove_files,
)
from fastmlp.experiments.plan import RunPlan, portable, with_inputs
from fastmlp.experiments.result import OPTIONAL_FILES, PICTURES, describe_data
from fastmlp.files import RESTORE, append_line, json_bytes, make_folders, sync, write_bytes, write_json, write_toml
from fastmlp.files.locks import unfinished
from fastmlp.files.reading import entries, exists, files_matching, is_folder, library_errors, read_bytes
from fastmlp.models.file import CHECKPOINT_FILES, CHECKPOINTS_NAME, FILE_NAME
from fastmlp.models.metrics import classification_metrics, measure
from fastmlp.models.model import Model
from fastmlp.training.checkpoints.file import Checkpoint, StoredCheckpoint
from fastmlp.training.checkpoints.folder import Checkpoints
from fastmlp.training.progress import Progress
from fastmlp.training.result import PATIENCE_KEY, TIMINGS, EpochLog, History

EPOCH_MODEL, EPOCH_MODELS = "epoch-{:04d}.safetensors", "epoch-*.safetensors"
# Files of an earlier run, which are removed when a new run starts.
FILES = (FILE_NAME, RESULT_NAME, MANIFEST_NAME, *PICTURES, *OPTIONAL_FILES, *LOGS)
FOLDERS = {CHECKPOINTS_NAME: CHECKPOINT_FILES, MODELS_NAME: EPOCH_MODELS}


class EpochFiles(NamedTuple):
    """Per-class metrics and models that a run saves at intervals.

    folder : folder of the files
    per_class_every, save_every : see `TrainConfig`
    prefix : start of the names of the files
    """

    folder: Path
    per_class_every: int | None = None
    save_every: int | None = None
    prefix: str = ""

    @property
    def classes(self) -> Path:
        """Path of the file with a line of per-class metrics for each evaluated epoch."""
        return self.folder / f"{self.prefix}{CLASSES_NAME}"

    @property
    def models(self) -> Path:
        """Folder of the models."""
        return self.folder / f"{self.prefix}{MODELS_NAME}"

    def write(self, epoch: int, metrics: Callable[[], Mapping[str, Any]], save: Callable[[Path], None]) -> None:
        """Write the files of an epoch, if it is one of those that are saved.

        metrics : function that returns the result of `metrics.classification_metrics` for each split, by name
        save : function that saves the model to a path
        """
        if self.per_class_every and epoch % self.per_class_every == 0:
            append_line(self.classes, {"epoch": epoch, **metrics()})
        if self.save_every and epoch % self.save_every == 0:
            make_folders(self.models)
            save(self.models / EPOCH_MODEL.format(epoch))

    def truncate(self, epochs: int) -> None:
        """Remove the lines and models of the epochs after the given number of epochs, and damaged lines."""
        if exists(self.classes):
            lines = [line for line in read_bytes(self.classes).splitlines() if 0 < epoch_of(line) <= epochs]
            if lines:
                write_bytes(self.classes, b"".join(line + b"\n" for line in lines))
            else:  # a file without lines cannot be plotted
                remove_files(self.folder, [self.classes.name])
        kept = {EPOCH_MODEL.format(epoch) for epoch in range(1, epochs + 1)}
        models = [path.name for path in files_matching(self.models, EPOCH_MODELS)]
        remove_files(self.models, [name for name in models if name not in kept])

    def sync(self) -> None:
        """Return when the lines are on the disk. The models are, since they are written atomically."""
        if exists(self.classes):
            sync(self.classes)


class PeriodicSaver:
    """Callback that saves per-class metrics and models at intervals, with the current weights instead of the best ones.

    It is called after each epoch with the epoch's row of the history and with the engine. It skips an epoch that a signal or
    the time limit ended early.

    Every `TrainConfig.per_class_every` epochs, it appends a line to classes.jsonl. The line has the number of the epoch and,
    for the training and the validation split, the result of `metrics.classification_metrics`, computed without dropout.
    Every `TrainConfig.save_every` epochs, it saves a model as models/epoch-N.safetensors, which can be loaded, evaluated
    and used for prediction like any other model.

    Parameters
    ----------
    folder : run folder
    config : settings of the run
    model : the model that is trained; its parameters are not used
    splits : rows by split; "train" is required, "validation" is optional
    """

    def __init__(self, folder: Path, config: TrainConfig, model: Model, splits: Splits) -> None:
        self.files, self.model = EpochFiles(folder, config.per_class_every, config.save_every), model
        self.splits = {name: splits[name] for name in ("train", "validation") if name in splits}

    def __call__(self, row: EpochLog, engine: Engine) -> None:
        if row["rows"] < len(self.splits["train"]):  # a signal or max_time ended the epoch early
            return
        self.files.write(
            row["epoch"],
            lambda: {name: self._metrics(engine, rows) for name, rows in self.splits.items()},
            lambda path: dataclasses.replace(self.model, parameters=engine.state(slots=False).parameters).save(path),
        )

    def _metrics(self, engine: Engine, rows: CheckedRows) -> dict[str, Any]:
        _, predicted = measure(self.model.network, engine, rows.x, rows.y)
        return classification_metrics(rows.y, predicted, self.model.classes)


class Recorder:
    """Progress display that also writes metrics.jsonl and timings.jsonl.

    metrics.jsonl depends only on the data and the settings, so it is the same if the run is repeated or resumed.
    """

    def __init__(self, display: Progress, folder: Path) -> None:
        self.display, self.folder = display, folder
        self.update = display.update

    def epoch_done(self, row: EpochLog) -> None:
        metrics, timings = log_lines(row)
        append_line(self.folder / METRICS_NAME, metrics)
        append_line(self.folder / TIMINGS_NAME, timings)
        self.display.epoch_done(row)


def log_lines(row: EpochLog) -> tuple[EpochLog, EpochLog]:
    """Return the lines of metrics.jsonl and of timings.jsonl for an epoch."""
    metrics = {name: value for name, value in row.items() if name not in (*TIMINGS, PATIENCE_KEY)}
    return metrics, {name: row[name] for name in ("epoch", *TIMINGS)}


def metrics_bytes(history: History) -> bytes:
    """Return the content of metrics.jsonl after the epochs in `history`."""
    return b"".join(json_bytes(log_lines(row)[0]) for row in history)


class RunCheckpoints(Checkpoints):
    """The checkpoints of a run, which are in a subfolder of its folder.

    When the training starts, the settings and a description of the data are written. The files of an earlier run are removed,
    or if the run is resumed, the logs are set to the state of the checkpoint.

    Parameters
    ----------
    plan, folder : the run and its folder
    start : checkpoint from which the run is resumed; None to train from the beginning
    strict : see `Checkpoints`
    """

    def __init__(self, plan: RunPlan, folder: Path, start: StoredCheckpoint | None = None, *, strict: bool = False) -> None:
        own = folder / CHECKPOINTS_NAME if plan.config.checkpoints else None
        super().__init__(plan.task, own, plan.config.checkpoint_seconds, start, strict=strict)
        self.plan, self.run, self.prepared = plan, folder, False

    def begin(self, engine: Engine) -> Checkpoint | None:
        """Set the files of the run to the state of the checkpoint, or of a new run; see `Checkpoints.begin`."""
        is_new = not exists(self.run / CONFIG_NAME)
        try:
            found = super().begin(engine)
            if found is None:
                if not self.prepared:
                    self.prepare()
                return None
        except WriteError:
            if is_new:
                with contextlib.suppress(WriteError):  # the first error is reported
                    self.remove()
            raise
        remove_files(self.run, (MANIFEST_NAME, RESULT_NAME, FILE_NAME))  # results of the epochs so far
        restore_logs(self.run, found.history)
        self.describe()
        return found

    def prepare(self) -> None:
        """Remove the files of an earlier run, and write data.json and config.toml; the run can be resumed from then on.

        Checkpoints are removed first: as long as there is one, the earlier run can be resumed, and needs its other files.
        """
        # They are removed if a signal ends the command line before a new run can be resumed. A run with settings needs them.
        new = set() if exists(self.run / CONFIG_NAME) else {self.run / DATA_NAME, self.run / CHECKPOINTS_NAME}
        unfinished.update(new)
        try:
            for name, pattern in FOLDERS.items():
                if is_folder(self.run / name):
                    remove_files(self.run / name, (pattern,))
                    sync(self.run / name)  # otherwise, a power failure could bring them back
            remove_files(self.run, FILES)
            self.describe()
        finally:
            unfinished.difference_update(new)
        self.prepared = True

    def describe(self) -> None:
        """Write data.json, then config.toml, which makes the folder a run folder."""
        write_json(self.run / DATA_NAME, {"format_version": DATA_VERSION, **describe_data(self.plan.data, self.plan.splits)})
        write_toml(self.run / CONFIG_NAME, portable(self.plan.config))

    def write(self, checkpoint: Checkpoint, engine: Engine) -> None:
        """Write a checkpoint; see `Checkpoints.write`."""
        EpochFiles(self.run).sync()  # the lines are not part of the checkpoint
        super().write(checkpoint._replace(model=with_inputs(checkpoint.model, self.plan.data)), engine)

    def remove(self) -> None:
        """Remove the files of a run that has no result."""
        for name, pattern in FOLDERS.items():
            remove_files(self.run / name, (pattern,))
            if is_folder(self.run / name) and not any(entries(self.run / name)):
                (self.run / name).rmdir()
        remove_files(self.run, (*FILES, CONFIG_NAME, DATA_NAME))


def restore_logs(folder: Path, history: History) -> None:
    """Set the logs of a run to the state after the epochs in `history`, and remove models of later epochs."""
    write_bytes(folder / METRICS_NAME, metrics_bytes(history))
    write_bytes(folder / TIMINGS_NAME, b"".join(json_bytes(log_lines(row)[1]) for row in history))
    EpochFiles(folder).truncate(len(history))


class _LogLine(msgspec.Struct):
    epoch: int


def epoch_of(line: bytes) -> int:
    """Return the epoch of a line of a log; 0 for a line that a power failure has damaged."""
    try:
        with library_errors(CLASSES_NAME, "a damaged line", RESTORE):
            return msgspec.json.decode(line, type=_LogLine).epoch
    except DataError:
        return 0
