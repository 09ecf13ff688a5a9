"""Learning-rate schedules, which determine the learning rate of each update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastmlp.errors import ConfigError
from fastmlp.nn.names import canonical_name


def constant(t: float, schedule: Schedule) -> float:
    return 1.0


def inverse_time(t: float, schedule: Schedule) -> float:
    return 1 / (1 + schedule.decay * t)


def exponential(t: float, schedule: Schedule) -> float:
    return math.exp(-schedule.decay * t)


def staircase(t: float, schedule: Schedule) -> float:
    return schedule.factor ** math.floor(t / schedule.every)


def cosine(t: float, schedule: Schedule) -> float:
    span = max(schedule.epochs - schedule.warmup, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(t / span, 1)))


SCHEDULES: dict[str, Callable[[float, Schedule], float]] = {
    "constant": constant,
    "inverse-time": inverse_time,
    "exponential": exponential,
    "step": staircase,
    "cosine": cosine,
}


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule, with optional linear warm-up.

    Let t be the number of epochs since the end of the warm-up, including fractions of an epoch. The learning rate is `rate`
    multiplied by

    ============ =====================================
    constant     1
    inverse-time 1 / (1 + decay t)
    exponential  exp(-decay t)
    step         factor ^ floor(t / every)
    cosine       (1 + cos(pi t / (epochs - warmup))) / 2
    ============ =====================================

    During the warm-up, the learning rate of update k, counted from 0, is `rate` * (k + 1) / (warmup * steps_per_epoch).

    Parameters
    ----------
    rate : learning rate at the end of the warm-up, > 0
    kind : name of the schedule, a key of `SCHEDULES`
    decay : decay rate per epoch; only used by inverse-time and exponential
    factor, every : the learning rate is multiplied by `factor` after every `every` epochs; only used by step
    warmup : number of epochs of linear warm-up; 0 disables the warm-up
    epochs : total number of training epochs, including the warm-up; only used by cosine

    Raises
    ------
    ConfigError : `kind` is unknown, or a value is invalid

    Examples
    --------
    >>> Schedule(0.1, "inverse-time", decay=0.5).rates(first=4, count=3, steps_per_epoch=2).round(4).tolist()
    [0.05, 0.0444, 0.04]
    """

    rate: float
    kind: str = "constant"
    decay: float = 0.02
    factor: float = 0.5
    every: float = 10.0
    warmup: float = 0.0
    epochs: float = 200.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", canonical_name("schedule", self.kind, SCHEDULES))
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ConfigError(f"the learning rate must be a positive number, not {self.rate}", settings=("rate",))
        if not 0 < self.factor <= 1:
            raise ConfigError(f"factor must be above 0 and at most 1, not {self.factor}", settings=("factor",))
        for field in ("every", "epochs"):
            if not (getattr(self, field) > 0 and math.isfinite(getattr(self, field))):
                raise ConfigError(f"{field} must be a positive number of epochs, not {getattr(self, field)}", settings=(field,))
        for field in ("decay", "warmup"):
            if not (getattr(self, field) >= 0 and math.isfinite(getattr(self, field))):
                raise ConfigError(f"{field} must be zero or a positive number, not {getattr(self, field)}", settings=(field,))

    def rates(self, first: int, count: int, steps_per_epoch: int) -> npt.NDArray[np.float64]:
        """Return the learning rates of the updates `first` to `first + count - 1`, counted from 0, as (count,) float64."""
        multiplier = SCHEDULES[self.kind]
        warmup = self.warmup * steps_per_epoch  # number of updates in the warm-up
        if multiplier is constant and first >= warmup:
            return np.full(count, self.rate)  # avoids one function call per update
        return np.array(
            [
                self.rate * (min((k + 1) / warmup, 1.0) if k < warmup else multiplier((k - warmup) / steps_per_epoch, self))
                for k in range(first, first + count)
            ]
        )


@dataclass(frozen=True)
class ReduceOnPlateau:
    """Multiply the learning rate by `factor` when the monitored loss has stopped improving.

    The rule is the same as that of `torch.optim.lr_scheduler.ReduceLROnPlateau` with mode="min" and threshold_mode="rel".

    Parameters
    ----------
    factor : factor by which the learning rate is multiplied, in (0, 1)
    patience : number of epochs without improvement that are allowed, >= 0; the next one reduces the learning rate
    threshold : minimum relative decrease of the loss that counts as an improvement, in [0, 1)
    min_factor : lower bound of the product of all reductions, in [0, 1)

    Raises
    ------
    ConfigError : a value is invalid
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    min_factor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ConfigError(f"factor must be above 0 and below 1, not {self.factor}", settings=("factor",))
        if not self.patience >= 0:
            raise ConfigError(f"patience must be zero or a positive number, not {self.patience}", settings=("patience",))
        for field in ("threshold", "min_factor"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 0 and below 1, not {getattr(self, field)}", settings=(field,))


class PlateauTracker:
    """State of a `ReduceOnPlateau` schedule during a training run.

    >>> tracker = PlateauTracker(ReduceOnPlateau(factor=0.5, patience=1))
    >>> [tracker.update(loss) for loss in (3.0, 2.0, 2.0, 2.0, 2.0, 2.0)]
    [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(self, schedule: ReduceOnPlateau) -> None:
        self.schedule = schedule
        self.best = math.inf
        self.epochs_without_improvement = 0
        self.multiplier = 1.0

    def update(self, loss: float) -> float:
        """Record the loss of an epoch, and return the factor of the initial learning rate for the next epoch."""
        if loss < self.best * (1 - self.schedule.threshold):
            self.best, self.epochs_without_improvement = loss, 0
        else:
            self.epochs_without_improvement += 1
        if self.epochs_without_improvement > self.schedule.patience:
            self.multiplier = max(self.multiplier * self.schedule.factor, self.schedule.min_factor)
            self.epochs_without_improvement = 0
        return self.multiplier
