"""What a run writes while it trains: a line for each epoch, the figures of each class, and checkpoints, every so many epochs.

Here: `Recorder`, which also shows progress, and `Snapshots`, a callback of the training loop. Not here: what is written at the
end (result.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmlp.data.checks import Rows
from fastmlp.engines.base import Engine
from fastmlp.experiments.config.train import Config
from fastmlp.experiments.folder import CHECKPOINTS_NAME, CLASSES_NAME, CONFIG_NAME, METRICS_NAME
from fastmlp.files import append_line, one_line_error, write_toml
from fastmlp.models.file import save
from fastmlp.models.metrics import classification_metrics, measure
from fastmlp.models.model import Model
from fastmlp.training.monitor import Row
from fastmlp.training.progress import Progress


class Snapshots:
    """Called after each epoch with its row and the engine, as it is then, not as the best epoch left it. An epoch that was cut
    short is left out.

    Every `Config.classes_every` epochs a line goes to classes.jsonl: the epoch, and for the training and the validation part
    what `metrics.classification_metrics` tells, dropout off. Every `Config.checkpoint_every` epochs a model goes to
    checkpoints/epoch-N.safetensors, to evaluate, predict or load like any other.

    Parameters
    ----------
    folder : of the run
    model : what the run trains, its parameters not yet
    parts : rows by the name of their part, "train" and "validation" among them
    """

    def __init__(self, folder: Path, config: Config, model: Model, parts: dict[str, Rows]) -> None:
        self.folder, self.config, self.model = folder, config, model
        self.parts = {name: parts[name] for name in ("train", "validation") if name in parts}

    def __call__(self, row: Row, engine: Engine) -> None:
        epoch = row["epoch"]
        if row["rows"] < len(self.parts["train"][0]):  # cut short, by a signal or the time
            return
        if self.config.classes_every and epoch % self.config.classes_every == 0:
            figures = {name: self._figures(engine, *part) for name, part in self.parts.items()}
            append_line(self.folder / CLASSES_NAME, {"epoch": epoch} | figures)
        if self.config.checkpoint_every and epoch % self.config.checkpoint_every == 0:
            kept = dataclasses.replace(self.model, parameters=engine.state(slots=False).parameters)
            path = self.folder / CHECKPOINTS_NAME / f"epoch-{epoch:04d}.safetensors"
            with one_line_error("make the folder", path.parent):
                path.parent.mkdir(exist_ok=True)
            save(kept, path)

    def _figures(self, engine: Engine, x: Any, y: Any) -> dict[str, Any]:
        _, predicted = measure(self.model.network, engine, x, y)
        return classification_metrics(y, predicted, self.model.classes)


class Recorder:
    """Progress that also writes metrics.jsonl; the files of a run begin with its first finished epoch."""

    def __init__(self, display: Progress, folder: Path, config: Mapping[str, Any]) -> None:
        self.display, self.folder, self.config = display, folder, config
        self.update = display.update

    def epoch_done(self, row: Row) -> None:
        if row["epoch"] == 1:
            write_toml(self.folder / CONFIG_NAME, self.config)
        append_line(self.folder / METRICS_NAME, row)
        self.display.epoch_done(row)
