"""What a training watches: the best epoch, early stopping, divergence."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from fastmlp.engines.base import Engine, RowMetrics, steps_of
from fastmlp.errors import DivergedError
from fastmlp.models.metrics import epoch_figures, mean
from fastmlp.nn.network import FloatArray
from fastmlp.training.settings import Settings

Row = dict[str, Any]  # a line of the history; see `Training`


class Best:
    """The best epoch so far by the monitored figure, its parameters, and how long ago it was."""

    def __init__(self, settings: Settings, watched: bool) -> None:
        self.key = f"val_{settings.monitor}" if watched else None
        self.settings = settings
        self.sign = -1.0 if settings.monitor == "accuracy" else 1.0
        self.score = math.inf
        self.epoch = 0
        self.parameters: FloatArray | None = None

    def saw(self, row: Row, engine: Engine) -> None:
        """Keep the engine's parameters if this epoch is better; without a validation part the last epoch is the best."""
        score = self.sign * row[self.key] if self.key else -math.inf
        if self.key is None or self.parameters is None or score < self.score - self.settings.min_delta:
            parameters = engine.state(slots=False).parameters
            if not np.isfinite(parameters).all():
                raise diverged_error(f"weights became infinite after epoch {row['epoch']}", self.settings)
            self.score, self.epoch, self.parameters = score, row["epoch"], parameters

    def tired(self, epoch: int) -> bool:
        patience = self.settings.patience
        return patience is not None and epoch - self.epoch >= patience


class Validation(NamedTuple):
    """The validation part as the engine holds it, and whether its targets are classes."""

    held: Any
    classes: bool


class Measured:
    """Measurements of the validation part within an epoch, every `Settings.val_steps` updates; nothing without them.

    before : updates of the epochs before
    weights : of the epoch's rows in their order, or None
    """

    def __init__(
        self, settings: Settings, validation: Validation | None, before: int, steps: int, weights: FloatArray | None
    ) -> None:
        self.settings, self.validation, self.before, self.steps, self.weights = settings, validation, before, steps, weights
        self.found: list[Row] = []
        self.losses: list[FloatArray] = []
        self.since = 0  # rows of this epoch at the last measurement
        self.seconds = 0.0

    def rows_left(self, done: int) -> int:
        """Rows of this epoch until the next measurement, after so many whole batches of it."""
        every, batch = self.settings.val_steps, self.settings.batch_size
        return sys.maxsize if every is None else (every - (self.before + done // batch) % every) * batch

    def saw(self, part: RowMetrics, done: int, engine: Engine) -> None:
        """Measure if it is time; `part` are the rows that were trained on since the last call."""
        every, step = self.settings.val_steps, steps_of(done, self.settings.batch_size)
        if every is None or self.validation is None:
            return
        self.losses.append(part.loss.astype(np.float64))
        if (self.before + step) % every == 0:
            began = time.perf_counter()
            loss, accuracy = validate(engine, self.validation, self.settings, f"step {self.before + step}")
            at = {"step": self.before + step, "epoch": (self.before + step) / self.steps}
            weights = None if self.weights is None else self.weights[self.since : done]
            self.found.append(
                {**at, "loss": mean(np.concatenate(self.losses), weights), "val_loss": loss, "val_accuracy": accuracy}
            )
            self.losses, self.since = [], done
            self.seconds += time.perf_counter() - began

    def into(self, row: Row) -> Row:
        """The epoch's row with them."""
        if self.settings.val_steps is None:
            return row
        return row | {"steps": self.found, "eval_seconds": row["eval_seconds"] + self.seconds}


def validate(engine: Engine, part: Validation, settings: Settings, when: str) -> tuple[float, float | None]:
    """Loss and accuracy of the validation part; raises DivergedError if the loss is NaN or infinite."""
    loss, accuracy = epoch_figures(engine, *part)
    if not math.isfinite(loss):
        raise diverged_error(f"the validation loss became {loss} after {when}", settings)
    return loss, accuracy


def check_finite(loss: FloatArray, epoch: int, first_step: int, settings: Settings) -> None:
    """Raise DivergedError naming epoch and step if a row's loss is NaN or infinite."""
    if np.isfinite(loss).all():
        return
    at = int(np.flatnonzero(~np.isfinite(loss))[0])
    step = first_step + at // settings.batch_size + 1
    raise diverged_error(f"the loss became {loss[at]} in epoch {epoch}, step {step}", settings)


def diverged_error(what: str, settings: Settings) -> DivergedError:
    """Return the error for a training that diverged, with the remedies that its settings have not applied yet."""
    remedies = {"lr": f"lower the learning rate (now {settings.schedule.rate:g})"}
    if not settings.optimizer.clip_norm:
        remedies["max_grad_norm"] = "clip the gradient to norm 1"
    remedies["scale"] = "scale the data by zscore"
    return DivergedError(f"{what}: {', or '.join(remedies.values())}", settings=tuple(remedies))
