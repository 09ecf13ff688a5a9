"""Early stopping, validation within an epoch, and detection of divergence."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastmlp.engines.base import Engine, RowMetrics, step_count
from fastmlp.errors import DivergedError
from fastmlp.models.metrics import mean, mean_metrics
from fastmlp.nn.network import FloatArray
from fastmlp.training.checkpoints.file import PartialEpoch
from fastmlp.training.result import PATIENCE_KEY, EpochLog
from fastmlp.training.settings import Settings


class EarlyStopping:
    """Keep the parameters of the best epoch, or with `restore_best` false those of the last one, and decide when to stop.

    `best` is the number of the epoch with the best monitored metric, from which the patience counts. `epoch` is the number of
    the epoch whose `parameters` are kept.

    settings : training settings, of which `monitor`, `min_delta`, `patience` and `restore_best` are used
    validates : whether there is a validation split; without one, the last epoch is the best epoch
    """

    def __init__(self, settings: Settings, validates: bool) -> None:
        self.key = f"val_{settings.monitor}" if validates else None
        self.settings = settings
        self.sign = -1.0 if settings.monitor == "accuracy" else 1.0
        self.score = math.inf
        self.best = self.epoch = 0
        self.parameters: FloatArray | None = None

    def update(self, row: EpochLog, engine: Engine) -> None:
        """Store the parameters of the engine if they are to be kept; raise DivergedError if they are not finite."""
        if self.is_best(row) or not self.settings.restore_best:
            parameters = engine.state(slots=False).parameters
            if not np.isfinite(parameters).all():
                raise diverged_error(f"the weights became infinite or NaN in epoch {row['epoch']}", self.settings)
            self.parameters = parameters
        self.record(row)

    def is_best(self, row: EpochLog) -> bool:
        """Return whether an epoch with this row of the history is the best so far."""
        if self.key is None or self.best == 0:
            return True
        return bool(self.sign * row[self.key] < self.score - self.settings.min_delta)

    def record(self, row: EpochLog) -> None:
        """Update the numbers of the epochs, but not the parameters, after an epoch with this row of the history."""
        if self.is_best(row):
            self.score = self.sign * row[self.key] if self.key else -math.inf
            self.best = row["epoch"]
        if self.best == row["epoch"] or not self.settings.restore_best:
            self.epoch = row["epoch"]

    def restore(self, history: Sequence[EpochLog], parameters: FloatArray) -> None:
        """Continue after the epochs of a history, with the parameters that were kept."""
        for row in history:
            self.record(row)
        self.parameters = parameters

    def should_stop(self, epoch: int) -> bool:
        """Return whether the metric has not improved in the last `patience` epochs."""
        patience = self.settings.patience
        return patience is not None and 0 < patience <= epoch - self.best

    def patience(self, epoch: int) -> dict[str, tuple[int, int]]:
        """Return what a progress display shows: the number of epochs without improvement, and the patience if it is set."""
        patience = self.settings.patience
        return {PATIENCE_KEY: (epoch - self.best, patience)} if patience else {}


def kept_epoch(history: Sequence[EpochLog], settings: Settings, validates: bool) -> int:
    """Return the epoch of a history whose weights `EarlyStopping` keeps; 0 for an empty history."""
    stopping = EarlyStopping(settings, validates)
    for row in history:
        stopping.record(row)
    return stopping.epoch


class Validation(NamedTuple):
    """The validation split as returned by `Engine.hold`, and whether its targets are class labels."""

    held: Any
    classes: bool


class StepValidation:
    """Validation within an epoch, after every `Settings.val_steps` updates. Does nothing if `val_steps` is None.

    Parameters
    ----------
    validation : the validation split
    before : number of updates in all previous epochs
    steps : number of updates per epoch
    weights : sample weights of the rows of this epoch, in the order of training; None for equal weights
    """

    def __init__(
        self, settings: Settings, validation: Validation | None, before: int, steps: int, weights: FloatArray | None
    ) -> None:
        self.settings, self.validation, self.before, self.steps, self.weights = settings, validation, before, steps, weights
        self.results: list[EpochLog] = []
        self.losses: list[FloatArray] = []
        self.since = 0  # rows trained on in this epoch before the last validation
        self.seconds = 0.0

    def rows_left(self, done: int) -> int:
        """Return the number of rows until the next validation; `done` is the number of rows trained on in this epoch."""
        every, batch = self.settings.val_steps, self.settings.batch_size
        return sys.maxsize if every is None else (every - (self.before + done // batch) % every) * batch

    def update(self, chunk: RowMetrics, done: int, engine: Engine) -> None:
        """Validate if it is due. `chunk`: metrics of the rows since the last call. `done`: rows trained on in this epoch."""
        every, step = self.settings.val_steps, step_count(done, self.settings.batch_size)
        if every is None or self.validation is None:
            return
        self.losses.append(chunk.loss.astype(np.float64))
        if (self.before + step) % every == 0:
            began = time.perf_counter()
            loss, accuracy = validate(engine, self.validation, self.settings, f"step {self.before + step}")
            at = {"step": self.before + step, "epoch": (self.before + step) / self.steps}
            weights = None if self.weights is None else self.weights[self.since : done]
            self.results.append(
                {**at, "loss": mean(np.concatenate(self.losses), weights), "val_loss": loss, "val_accuracy": accuracy}
            )
            self.losses, self.since = [], done
            self.seconds += time.perf_counter() - began

    def partial(self, metrics: RowMetrics, seconds: float) -> PartialEpoch:
        """Return the state of an epoch that has not ended; `seconds` is the duration of its training."""
        return PartialEpoch(metrics, self.results, self.since, seconds, self.seconds)

    def restore(self, partial: PartialEpoch) -> None:
        """Continue the validation of an epoch."""
        self.results, self.since, self.seconds = [*partial.steps], partial.since, partial.eval_seconds
        self.losses = [partial.metrics.loss[self.since :].astype(np.float64)]

    def merge(self, row: EpochLog) -> EpochLog:
        """Return the history entry of this epoch, with the results of the validations added as "steps"."""
        if self.settings.val_steps is None:
            return row
        return row | {"steps": self.results, "eval_seconds": row["eval_seconds"] + self.seconds}


def validate(engine: Engine, validation: Validation, settings: Settings, when: str) -> tuple[float, float | None]:
    """Return the loss and the accuracy on the validation split; raise DivergedError if the loss is not finite."""
    loss, accuracy = mean_metrics(engine, *validation)
    if not math.isfinite(loss):
        raise diverged_error(f"the validation loss became {loss} after {when}", settings)
    return loss, accuracy


def check_finite(loss: FloatArray, epoch: int, first_step: int, settings: Settings) -> None:
    """Raise DivergedError, with epoch and step in the message, if the loss of any row is not finite."""
    if np.isfinite(loss).all():
        return
    at = int(np.flatnonzero(~np.isfinite(loss))[0])
    step = first_step + at // settings.batch_size + 1
    raise diverged_error(f"the loss became {loss[at]} in epoch {epoch}, step {step}", settings)


def diverged_error(what: str, settings: Settings) -> DivergedError:
    """Return the error for diverged training. Its message suggests remedies, except gradient clipping if already in use."""
    remedies = {"lr": f"lower the learning rate (now {settings.optimizer.learning_rate:g})"}
    if not settings.optimizer.max_grad_norm:
        remedies["max_grad_norm"] = "clip the gradient to norm 1"
    remedies["scale"] = "scale the data with zscore"
    return DivergedError(f"{what}: {', or '.join(remedies.values())}", settings=tuple(remedies))
