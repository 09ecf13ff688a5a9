"""Learning-rate schedules: the learning rate of each update as a function of the epoch."""

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

    With t the number of epochs (including fractions) since the end of the warm-up, the learning rate is `rate` times

    ============ =====================================
    constant     1
    inverse-time 1 / (1 + decay t)
    exponential  exp(-decay t)
    step         factor ^ floor(t / every)
    cosine       (1 + cos(pi t / (epochs - warmup))) / 2
    ============ =====================================

    During the warm-up, update number k (from 0) has the learning rate `rate` (k + 1) / (warmup x steps per epoch).

    Parameters
    ----------
    rate : learning rate, > 0
    kind : a key of `SCHEDULES`
    decay : decay per epoch; only used by inverse-time and exponential
    factor, every : step multiplies the learning rate by `factor` every `every` epochs
    warmup : epochs of linear warm-up, 0 for none
    epochs : epochs of the whole training; only used by cosine

    Raises
    ------
    ConfigError : an unknown kind, or an invalid value

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
        """Return the learning rates of `count` updates from number `first` (from 0) on, (count,) float64."""
        multiplier = SCHEDULES[self.kind]
        warmup = self.warmup * steps_per_epoch  # in updates
        if multiplier is constant and first >= warmup:
            return np.full(count, self.rate)  # the same values, without a call for each
        return np.array(
            [
                self.rate * (min((k + 1) / warmup, 1.0) if k < warmup else multiplier((k - warmup) / steps_per_epoch, self))
                for k in range(first, first + count)
            ]
        )
