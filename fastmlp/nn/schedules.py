"""Learning-rate schedules, which determine the learning rate of each update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, changed
from fastmlp.errors import ConfigError
from fastmlp.nn.checks import check_number, check_whole, shown, with_hints
from fastmlp.nn.names import canonical_name


def constant(t: float, span: float, schedule: Schedule) -> float:
    return 1.0


def inverse_time(t: float, span: float, schedule: Schedule) -> float:
    return 1 / (1 + schedule.decay * t)


def exponential(t: float, span: float, schedule: Schedule) -> float:
    return math.exp(-schedule.decay * t)


def staircase(t: float, span: float, schedule: Schedule) -> float:
    return schedule.gamma ** math.floor(t / schedule.step)


def cosine(t: float, span: float, schedule: Schedule) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(t / span, 1)))


SCHEDULES: dict[str, Callable[[float, float, Schedule], float]] = {
    "constant": constant,
    "inverse-time": inverse_time,
    "exponential": exponential,
    "step": staircase,
    "cosine": cosine,
}
PLATEAU = "plateau"
SCHEDULE_NAMES = (*SCHEDULES, PLATEAU)


@dataclass(frozen=True, repr=False)
class Schedule(Summarized):
    """A learning-rate schedule, with optional linear warm-up: a multiplier of the learning rate of the optimizer.

    Let t be the number of epochs since the end of the warm-up, including fractions of an epoch. The multiplier is

    ============ =====================================
    constant     1
    inverse-time 1 / (1 + decay t)
    exponential  exp(-decay t)
    step         gamma ^ floor(t / step)
    cosine       (1 + cos(pi t / (epochs - warmup))) / 2
    ============ =====================================

    where `epochs` is the number of epochs of the training run. During the warm-up, the multiplier of update k, counted from 0,
    is (k + 1) / (warmup * steps_per_epoch).

    Parameters
    ----------
    kind : name of the schedule, a key of `SCHEDULES`
    warmup : number of epochs of linear warm-up; 0 disables the warm-up
    decay : decay rate per epoch; only used by inverse-time and exponential
    gamma, step : the learning rate is multiplied by `gamma` after every `step` epochs; only used by step

    Raises
    ------
    ConfigError : `kind` is unknown, or a value is invalid

    Examples
    --------
    >>> Schedule("inverse-time", decay=0.5).multipliers(first=4, count=3, steps_per_epoch=2, epochs=9).round(4).tolist()
    [0.5, 0.4444, 0.4]
    """

    kind: str = "constant"
    warmup: float = 0.0
    decay: float = 0.02
    gamma: float = 0.5
    step: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", canonical_name("schedule", self.kind, SCHEDULES))
        check_number("gamma", self.gamma, lambda x: 0 < x <= 1, "above 0 and at most 1", settings=("lr_gamma",))
        check_number("step", self.step, lambda x: 0 < x < math.inf, "a positive number of epochs", settings=("lr_step",))
        for field in ("decay", "warmup"):
            needed = "zero or a positive number"
            check_number(field, getattr(self, field), lambda x: 0 <= x < math.inf, needed, settings=(f"lr_{field}",))

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows: the settings that are not the default values."""
        return changed(self, Schedule(self.kind), "kind")

    @property
    def depends_on_epochs(self) -> bool:
        """Whether the multiplier of an update depends on the number of epochs of the training run."""
        return self.kind == "cosine"

    def multipliers(self, first: int, count: int, steps_per_epoch: int, epochs: float) -> npt.NDArray[np.float64]:
        """Return the multipliers of the learning rate for some updates, (count,) float64.

        Parameters
        ----------
        first : index of the first update, counted from 0
        count : number of updates
        steps_per_epoch : number of updates per epoch
        epochs : number of epochs of the training run, including the warm-up
        """
        multiplier = SCHEDULES[self.kind]
        warmup = self.warmup * steps_per_epoch  # number of updates in the warm-up
        if multiplier is constant and first >= warmup:
            return np.ones(count)  # avoids one function call per update
        span = max(epochs - self.warmup, 1e-9)
        return np.array(
            [
                min((k + 1) / warmup, 1.0) if k < warmup else multiplier((k - warmup) / steps_per_epoch, span, self)
                for k in range(first, first + count)
            ]
        )


@dataclass(frozen=True, repr=False)
class ReduceOnPlateau(Summarized):
    """Multiply the learning rate by `factor` when the validation loss, or the training loss without one, stops improving.

    The rule is the same as that of `torch.optim.lr_scheduler.ReduceLROnPlateau` with mode="min" and threshold_mode="rel".

    Parameters
    ----------
    factor : factor by which the learning rate is multiplied, in (0, 1)
    patience : number of epochs without improvement that are allowed, >= 0; the next one reduces the learning rate. It should
        be smaller than the early-stopping patience.
    threshold : minimum relative decrease of the loss that counts as an improvement, in [0, 1)
    min_factor : lower bound of the product of all reductions, in [0, 1)

    Raises
    ------
    ConfigError : a value is invalid
    """

    factor: float = 0.5
    patience: int = 3
    threshold: float = 1e-4
    min_factor: float = 0.0

    def __post_init__(self) -> None:
        check_number("factor", self.factor, lambda x: 0 < x < 1, "above 0 and below 1", settings=("lr_gamma",))
        check_whole("patience", self.patience, 0, settings=("lr_patience",))
        for field in ("threshold", "min_factor"):
            check_number(field, getattr(self, field), lambda x: 0 <= x < 1, "at least 0 and below 1")

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows: the settings that are not the default values."""
        return changed(self, ReduceOnPlateau())


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


hinted = with_hints(
    T_max="nothing: the schedule covers the epochs of the training run",
    epochs="nothing: the schedule covers the epochs of the training run",
    step_size="step",
    gamma="fastmlp.Step(step=1, gamma=0.9), or fastmlp.Exponential(decay=0.1)",
    warmup_epochs="warmup",
    learning_rate="optimizer=fastmlp.Adam(learning_rate=0.001) in fastmlp.train",
)


@hinted
def Constant(warmup: float = 0.0) -> Schedule:
    """Return the schedule with a constant learning rate after the warm-up; see `Schedule`."""
    return Schedule("constant", warmup)


@hinted
def InverseTime(decay: float = 0.02, warmup: float = 0.0) -> Schedule:
    """Return the schedule 1 / (1 + decay t); see `Schedule`."""
    return Schedule("inverse-time", warmup, decay=decay)


@hinted
def Exponential(decay: float = 0.02, warmup: float = 0.0) -> Schedule:
    """Return the schedule exp(-decay t); see `Schedule`."""
    return Schedule("exponential", warmup, decay=decay)


@hinted
def Step(step: float = 10.0, gamma: float = 0.5, warmup: float = 0.0) -> Schedule:
    """Return the schedule that multiplies the learning rate by `gamma` after every `step` epochs; see `Schedule`."""
    return Schedule("step", warmup, gamma=gamma, step=step)


@hinted
def Cosine(warmup: float = 0.0) -> Schedule:
    """Return the schedule that decreases to 0 along half a period of a cosine; see `Schedule`.

    >>> Cosine(warmup=1).multipliers(0, 5, steps_per_epoch=1, epochs=5).round(2).tolist()
    [1.0, 1.0, 0.85, 0.5, 0.15]
    """
    return Schedule("cosine", warmup)


def make_schedule(given: Any) -> Schedule | ReduceOnPlateau:
    """Return a schedule, which may be given by its name: a key of `SCHEDULES`, or "plateau" for `ReduceOnPlateau`.

    Raises
    ------
    ConfigError : the name is unknown, or `given` is neither a name nor a schedule
    """
    if isinstance(given, Schedule | ReduceOnPlateau):
        return given
    if not isinstance(given, str):
        called = f"; write {given.__name__}()" if callable(given) and hasattr(given, "__name__") else ""
        raise ConfigError(f"schedule must be a name or a schedule, such as fastmlp.Cosine(), not {shown(given)}{called}")
    name = canonical_name("schedule", given, SCHEDULE_NAMES)
    return ReduceOnPlateau() if name == PLATEAU else Schedule(name)
