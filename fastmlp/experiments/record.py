"""Files that a run writes during training: metrics after each epoch, and per-class metrics and models at intervals.

`Recorder` also shows the progress; `PeriodicSaver` is a callback of the training loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmlp.data.checks import CheckedRows
from fastmlp.data.splits import Splits
from fastmlp.engines.base import Engine
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.folder import CHECKPOINTS_NAME, CLASSES_NAME, CONFIG_NAME, METRICS_NAME
from fastmlp.files import append_line, file_errors, write_toml
from fastmlp.models.metrics import classification_metrics, measure
from fastmlp.models.model import Model
from fastmlp.training.progress import Progress
from fastmlp.training.result import EpochLog


class PeriodicSaver:
    """Callback that saves per-class metrics and models at intervals, with the current weights instead of the best ones.

    It is called after each epoch with the epoch's row of the history and with the engine. It skips an epoch that a signal or
    the time limit ended early.

    Every `TrainConfig.per_class_every` epochs, it appends a line to classes.jsonl. The line has the number of the epoch and,
    for the training and the validation split, the result of `metrics.classification_metrics`, computed without dropout.
    Every `TrainConfig.save_every` epochs, it saves a model as checkpoints/epoch-N.safetensors, which can be loaded, evaluated
    and used for prediction like any other model.

    Parameters
    ----------
    folder : run folder
    config : settings of the run
    model : the model that is trained; its parameters are not used
    splits : rows by split; "train" is required, "validation" is optional
    """

    def __init__(self, folder: Path, config: TrainConfig, model: Model, splits: Splits) -> None:
        self.folder, self.config, self.model = folder, config, model
        self.splits = {name: splits[name] for name in ("train", "validation") if name in splits}

    def __call__(self, row: EpochLog, engine: Engine) -> None:
        epoch = row["epoch"]
        if row["rows"] < len(self.splits["train"]):  # a signal or max_time ended the epoch early
            return
        if self.config.per_class_every and epoch % self.config.per_class_every == 0:
            metrics = {name: self._metrics(engine, rows) for name, rows in self.splits.items()}
            append_line(self.folder / CLASSES_NAME, {"epoch": epoch} | metrics)
        if self.config.save_every and epoch % self.config.save_every == 0:
            kept = dataclasses.replace(self.model, parameters=engine.state(slots=False).parameters)
            path = self.folder / CHECKPOINTS_NAME / f"epoch-{epoch:04d}.safetensors"
            with file_errors("make the folder", path.parent):
                path.parent.mkdir(exist_ok=True)
            kept.save(path)

    def _metrics(self, engine: Engine, rows: CheckedRows) -> dict[str, Any]:
        _, predicted = measure(self.model.network, engine, rows.x, rows.y)
        return classification_metrics(rows.y, predicted, self.model.classes)


class Recorder:
    """Progress display that also writes metrics.jsonl, and config.toml after the first epoch."""

    def __init__(self, display: Progress, folder: Path, config: Mapping[str, Any]) -> None:
        self.display, self.folder, self.config = display, folder, config
        self.update = display.update

    def epoch_done(self, row: EpochLog) -> None:
        if row["epoch"] == 1:
            write_toml(self.folder / CONFIG_NAME, self.config)
        append_line(self.folder / METRICS_NAME, row)
        self.display.epoch_done(row)
