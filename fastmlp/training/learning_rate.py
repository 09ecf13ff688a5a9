"""The learning-rate range test: `find_learning_rate`.

Sources: Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3. As in fastai, the learning rate
increases exponentially, and the suggestion is derived from the longest valley of the smoothed loss.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized
from fastmlp.data.rows import Indices
from fastmlp.engines.base import loss_weights, step_count
from fastmlp.errors import ConfigError, DivergedError
from fastmlp.nn.network import Network
from fastmlp.nn.scaling import Scaling
from fastmlp.training.api import DataOptions, Pair, bind, changed_settings, show_settings
from fastmlp.training.loop import Loop, loop_for
from fastmlp.training.settings import (
    DEFAULT_SCALING,
    TEST_END,
    TEST_START,
    TEST_STEPS,
    Settings,
    Task,
    check_range,
    make_task,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Float64 = npt.NDArray[np.float64]

BETA = 0.95  # decay rate of the exponential moving average of the losses
STOP_RATIO = 4  # the test stops if the smoothed loss exceeds the smallest one by this factor, as in fastai
FIRST_ROWS = 64  # rows in the first average that is used; averages of very few rows are too noisy
POSITION = 2 / 3  # of the suggestion in the longest descent; chosen with benchmarks/learning_rate.py


@dataclass(frozen=True, eq=False, repr=False)
class LearningRateCurve(Summarized):
    """Result of `find_learning_rate`.

    Parameters
    ----------
    learning_rates : (n,) float64, the learning rate of each mini-batch, in increasing order
    losses : (n,) float64, the loss of each mini-batch before its update, without L1 and L2 penalties
    smoothed : (n,) float64, exponential moving average of the losses
    suggestion : suggested learning rate, one of `learning_rates`
    """

    learning_rates: Float64
    losses: Float64
    smoothed: Float64
    suggestion: float

    def plot(self, title: str = "Learning-rate range test") -> Figure:
        """Return a figure of the losses and the suggestion; a notebook displays it, and `savefig` writes a file."""
        from fastmlp.reports.learning_rate import learning_rate_figure
        from fastmlp.reports.style import own_style

        with own_style():
            return learning_rate_figure(self.learning_rates, self.losses, self.smoothed, self.suggestion, title)

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows."""
        tested = f"{len(self.losses)} from {self.learning_rates[0]:.3g} to {self.learning_rates[-1]:.3g}"
        return {"suggestion": f"{self.suggestion:.3g}", "learning_rates": tested, "least_loss": f"{self.smoothed.min():.4g}"}


def find_learning_rate(  # noqa: PLR0913 - keyword-only, with defaults
    network: Network,
    train: Pair,
    *misplaced: Any,
    settings: Settings | None = None,
    scaling: str | Scaling | None = DEFAULT_SCALING,
    target_scaling: str | Scaling | None = DEFAULT_SCALING,
    sample_weight: npt.ArrayLike | None = None,
    class_weight: Mapping[Any, float] | str | None = None,
    classes: Sequence[Any] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    start: float = TEST_START,
    end: float = TEST_END,
    steps: int = TEST_STEPS,
    **changes: Any,
) -> LearningRateCurve:
    """Suggest a learning rate by the learning-rate range test.

    The network is trained from its initial weights with a learning rate that increases exponentially from mini-batch to
    mini-batch, while the loss of each mini-batch is recorded before its update. The losses are smoothed by an exponential
    moving average with bias correction and decay rate 0.95. The test stops early when the smoothed loss exceeds four times its
    minimum, or when a loss is not finite. For mini-batches of less than 64 rows, the averages of the first 63 rows are not used
    in this comparison and in the suggestion.

    The suggestion is the learning rate at two thirds of the longest decreasing subsequence of the smoothed losses. This is the
    "valley" of fastai, which takes the learning rate at about half of it. The point of steepest descent, the suggestion of
    Lightning, is not used because of the noise of the losses: where the average contains only few mini-batches, a random change
    can be steeper than the descent (benchmarks/NOTES.md). Learning rates of the same order of magnitude usually work as well.

    Parameters
    ----------
    network, train, settings, scaling, target_scaling, sample_weight, class_weight, classes, image_shape, changes : see
        `fastmlp.train`. Of the settings, the learning rate of the optimizer, `schedule`, `epochs`, `patience`, `monitor`,
        `min_delta`, `restore_best`, `val_steps` and `max_time` have no effect
    start, end : smallest and largest learning rate; training should diverge before `end`, and not at `start`
    steps : number of mini-batches, at least 10; if the data have fewer, they are used in several passes, each in a new random
        order unless `shuffle` is false

    Returns
    -------
    LearningRateCurve : the learning rates, the losses and the suggestion

    Raises
    ------
    ConfigError : the settings contradict each other or do not fit the data; the range of learning rates is invalid; or the loss
        does not fall below its first value, so there is no suggestion
    DataError : the data are invalid, or do not fit the network
    DivergedError : the loss of the initial weights is not finite

    Examples
    --------
    >>> import fastmlp
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> y = x[:, 0] * x[:, 1] > 0
    >>> network = fastmlp.Network(hidden=(16,), activation="tanh")
    >>> curve = find_learning_rate(network, (x, y), optimizer="adam")
    >>> result = fastmlp.train(network, (x, y), optimizer=fastmlp.Adam(curve.suggestion))
    """
    if misplaced:
        raise ConfigError("the data must be one pair: write fastmlp.find_learning_rate(network, (x, y))")
    check_range(start, end, steps)
    # The settings of a later training run may be given, but these two need a validation split.
    settings = changed_settings(settings, changes | {"patience": 0, "val_steps": None})
    options = DataOptions(scaling, target_scaling, sample_weight, class_weight, classes, image_shape)
    network, data = bind(network, settings.dtype, train, None, options)
    return range_test(make_task(network, settings, data), start, end, steps)


show_settings(find_learning_rate)


def range_test(task: Task, start: float, end: float, steps: int) -> LearningRateCurve:
    """Perform the test with the training data of a task, with values that `check_range` accepts; see `find_learning_rate`."""
    learning_rates = np.geomspace(start, end, steps)
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    first = min(step_count(FIRST_ROWS, task.settings.batch_size), steps // 4) - 1
    with loop_for(task._replace(data=replace(task.data, validation=None))) as loop:
        loop.compile()
        for loss in mini_batch_losses(loop, learning_rates):
            if not math.isfinite(loss):
                break
            losses.append(loss)
            average = BETA * average + (1 - BETA) * loss
            smoothed.append(average / (1 - BETA ** len(losses)))
            if len(losses) > first and smoothed[-1] > STOP_RATIO * min(smoothed[first:]):
                break
    if not losses:
        raise DivergedError("the loss of the initial weights is not finite: scale the data with zscore", settings=("scale",))
    tested, curve = learning_rates[: len(losses)], np.array(smoothed)
    descent = first + longest_descent(curve[first:])
    if len(descent) < 2 or curve[descent[-1]] >= curve[first]:
        remedy = "a smaller start" if len(losses) < steps else "a larger end"
        raise ConfigError(
            f"the loss does not fall below its first value at the {len(losses)} learning rates from {start:g} to "
            f"{tested[-1]:.3g}; choose {remedy}",
            settings=("start", "end"),
        )
    return LearningRateCurve(tested, np.array(losses), curve, float(tested[descent[int(POSITION * (len(descent) - 1))]]))


def mini_batch_losses(loop: Loop, learning_rates: Float64) -> Iterator[float]:
    """Train with one mini-batch per learning rate, and yield the loss of each, weighted by the sample weights.

    Several mini-batches are trained per call of the engine, so the engine may be ahead of the losses that were yielded.
    """
    batch_size, step = loop.settings.batch_size, 0
    for epoch in itertools.count(1):
        order, augmentation = loop.order(epoch)
        done = 0
        while done < len(order) and step < len(learning_rates):
            rows = order[done : done + min(loop.chunk.rows, (len(learning_rates) - step) * batch_size)]
            steps = step_count(len(rows), batch_size)
            augmented = augmentation and augmentation.select(done, done + len(rows))
            began = time.perf_counter()
            metrics = loop.train_rows(rows, learning_rates[step : step + steps], augmented)
            loop.chunk.record(len(rows), time.perf_counter() - began)
            weighted = metrics.loss * loss_weights(rows, batch_size, loop.weights)
            yield from np.add.reduceat(weighted, np.arange(0, len(rows), batch_size)).tolist()
            done, step = done + len(rows), step + steps
        if step == len(learning_rates):
            return


def longest_descent(values: Float64) -> Indices:
    """Return the indices of the longest strictly decreasing subsequence of values (n,); of several, the first.

    >>> longest_descent(np.array([5.0, 9.0, 4.0, 6.0, 3.0, 8.0])).tolist()
    [0, 2, 4]
    """
    lengths, previous = np.ones(len(values), np.int64), np.full(len(values), -1)
    for index in range(1, len(values)):
        candidates = np.where(values[:index] > values[index], lengths[:index], 0)
        best = int(candidates.argmax())
        if candidates[best]:
            lengths[index], previous[index] = lengths[best] + 1, best
    path = [int(lengths.argmax())] if len(values) else []
    while path and previous[path[-1]] >= 0:
        path.append(int(previous[path[-1]]))
    return np.array(path[::-1], np.int64)
