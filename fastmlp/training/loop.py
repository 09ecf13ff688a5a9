"""The training loop: epochs, chunks, validation, early stopping, time budget, signals. Readable Python over any engine.

Here: `train`. Not here: arithmetic (engines), settings (settings.py), what is watched (monitor.py), files and pictures
(experiments).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp.data.rows import Array, Features, Indices, in_whole
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, Job, RowMetrics, State, steps_of
from fastmlp.engines.interrupts import Signals
from fastmlp.errors import DivergedError
from fastmlp.models.metrics import mean
from fastmlp.models.model import Model
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.philox import generator
from fastmlp.nn.scaling import Scaling
from fastmlp.training.augment import Moves, augmented, draw_moves
from fastmlp.training.monitor import Best, Measured, Row, Validation, check_finite, validate
from fastmlp.training.settings import Settings, TrainingData, check_data, match_data

Callback = Callable[[Row, Engine], bool | None]

# A chunk of steps returns to Python after about this many seconds: for progress, signals, and the time budget.
CHUNK_SECONDS = 0.08
SLOWEST = 1e8  # floating-point operations per second that any engine makes: how long the first chunk may be


class Progress(Protocol):
    """What shows the training to a person; see progress.py."""

    def update(self, epoch: int, done: int, total: int, loss: float, accuracy: float | None, rate: float) -> None: ...
    def epoch_done(self, row: Row) -> None: ...


class Training(NamedTuple):
    """What training gave.

    model : with the best weights
    history : a dict per epoch: epoch (from 1), rows, loss, accuracy, val_loss, val_accuracy, rate, seconds (training
        alone), eval_seconds, rows_per_second. loss and accuracy are means over the epoch as it ran (dropout on, weights
        moving); accuracy is None for plain targets, val_* without a validation part. With `Settings.val_steps` also
        steps: a dict per measurement within the epoch, with step (updates since the start), epoch (a fraction), loss (mean
        over the rows of the epoch since the measurement before), val_loss and val_accuracy
    best_epoch : the epoch whose weights the model has
    stopped : why it ended: "epochs", "patience", "time", "callback", "interrupted" or "diverged"
    state : parameters, slots and step at the very end
    threads, backend : what the engine ran with
    """

    model: Model
    history: list[Row]
    best_epoch: int
    stopped: str
    state: State
    backend: str
    threads: int


class Interrupted(KeyboardInterrupt):
    """A signal ended the training; `training` has the best weights so far, `signal` the signal's number."""

    def __init__(self, training: Training, signal: int) -> None:
        super().__init__(f"training interrupted in epoch {len(training.history)}")
        self.training = training
        self.signal = signal


class Diverged(DivergedError):
    """The loss is not finite any more; `training` has the best weights of the epochs before, if any were finished."""

    def __init__(self, message: str, training: Training | None, *, settings: Sequence[str] = ()) -> None:
        super().__init__(message, settings=settings)
        self.training = training


@contextmanager
def loop_for(
    network: Network, settings: Settings, data: TrainingData, progress: Progress | None = None, threads: int | None = None
) -> Iterator[Loop]:
    """A training about to begin, on an engine of its own that is closed afterwards.

    threads : of the engine; None takes those of the settings
    """
    batch, seed, threads = settings.batch_size, settings.seed, threads or settings.threads
    job = Job(network, settings.optimizer, batch, seed, data.scaling, threads, settings.dtype, settings.precision)
    engine = make_engine(settings.backend, job)
    try:
        yield Loop(engine, network, settings, data, progress)
    finally:
        engine.close()


class Loop:
    """One training from start to end; `run` reads top to bottom."""

    def __init__(
        self, engine: Engine, network: Network, settings: Settings, data: TrainingData, progress: Progress | None
    ) -> None:
        self.engine, self.network, self.settings, self.data, self.progress = engine, network, settings, data, progress
        self.x, self.rows, self.y, self.weights = in_whole(data.train.x, data.train.y, data.sample_weight)
        self.history: list[Row] = []
        self.best = Best(settings, data.validation is not None)
        self.chunk = self._whole_batches(CHUNK_SECONDS * SLOWEST / network.flops_per_row)  # rows until the engine returns
        self.deadline = math.inf
        slots = np.zeros((len(settings.optimizer.slots), network.parameters), settings.dtype)
        engine.load(State(network.initial_parameters(settings.seed, settings.dtype), slots, 0))
        self.validation = None
        if data.validation is not None:
            self.validation = Validation(engine.hold(data.validation.x, data.validation.y), data.validation.y.ndim == 1)

    def compile(self) -> None:
        """Let the engine compile on no rows, before the clock and the signal handlers start."""
        self.engine.train(self.x, self.y, np.empty(0, np.int64), np.empty(0))
        self.engine.forward(self.x[:0])
        if self.data.validation is not None:
            x, y = self.data.validation.x, self.data.validation.y  # one split may be uint8 and the other not
            self.engine.evaluate(self.engine.hold(x[:0], y[:0]))

    def run(self, signals: Signals, callbacks: Sequence[Callback] = ()) -> Training:
        """Train to the end, or until `signals`, which loops in other threads may share, has received one."""
        if self.settings.max_time is not None:
            self.deadline = time.monotonic() + self.settings.max_time
        stopped = "epochs"
        for epoch in range(1, self.settings.epochs + 1):
            try:
                row = self._epoch(epoch, signals)
                self.best.saw(row, self.engine)
            except DivergedError as error:
                kept = self._result("diverged") if self.history else None
                raise Diverged(str(error), kept, settings=error.settings) from None
            self.history.append(row)
            if self.progress is not None:
                self.progress.epoch_done(row)
            called = [callback(row, self.engine) for callback in callbacks]
            stopped = self._reason(epoch, any(called))
            if signals.received or stopped != "epochs":
                break
        training = self._result(stopped)
        if signals.received:
            raise Interrupted(training._replace(stopped="interrupted"), signals.received)
        return training

    def _result(self, stopped: str) -> Training:
        assert self.best.parameters is not None
        settings, data = self.settings, self.data
        known = (data.scaling, data.classes or (), data.image_shape)
        model = Model(self.network, self.best.parameters, *known, settings.backend, settings.threads)
        state = self.engine.state()
        return Training(model, self.history, self.best.epoch, stopped, state, self.engine.name, self.engine.threads)

    def _reason(self, epoch: int, called_off: bool) -> str:
        """Why training stops after this epoch, or "epochs" if it goes on as long as there are any."""
        if called_off:
            return "callback"
        if time.monotonic() >= self.deadline:
            return "time"
        return "patience" if self.best.tired(epoch) else "epochs"

    def _epoch(self, epoch: int, signals: Signals) -> Row:
        settings = self.settings
        order = generator(settings.seed, "order", epoch).permutation(self.rows)
        steps = steps_of(len(order), settings.batch_size)
        rates = settings.schedule.rates((epoch - 1) * steps, steps, steps)
        results: list[RowMetrics] = []
        weights = None if self.weights is None else self.weights[order].astype(np.float64)
        measured = Measured(settings, self.validation, (epoch - 1) * steps, steps, weights)
        moving = settings.flip or settings.shift
        moves = draw_moves(settings.seed, epoch, len(order), settings.flip, settings.shift) if moving else None
        done, seconds, total, right = 0, 0.0, 0.0, 0
        while done < len(order) and not (done and (signals.received or time.monotonic() >= self.deadline)):
            rows = order[done : done + min(self.chunk, measured.rows_left(done))]
            first_step = done // settings.batch_size
            chunk_rates = rates[first_step:][: steps_of(len(rows), settings.batch_size)]
            began = time.perf_counter()
            x, y, rows, weighted = self._given(rows, moves and moves.part(done, done + len(rows)))
            part = self.engine.train(x, y, rows, chunk_rates, weighted)
            elapsed = time.perf_counter() - began
            check_finite(part.loss, epoch, first_step, settings)
            results.append(part)
            done, seconds = done + len(rows), seconds + elapsed
            measured.saw(part, done, self.engine)
            if self.progress is not None:
                total, right = total + float(part.loss.sum(dtype=np.float64)), right + int(part.correct.sum())
                accuracy = right / done if self.y.ndim == 1 else None
                self.progress.update(epoch, done, len(order), total / done, accuracy, done / seconds)
            self._adapt(len(rows), elapsed)
        weights = None if weights is None else weights[:done]
        return measured.into(self._row(epoch, done, results, weights, seconds, float(rates[0])))

    def _given(self, rows: Indices, moves: Moves | None) -> tuple[Array, Array, Indices, FloatArray | None]:
        """What the engine takes to train on these rows: x, y, which rows of them, and weights; copies only of moved images."""
        if moves is None or self.data.image_shape is None:
            return self.x, self.y, rows, self.weights
        x = augmented(self.x[rows], self.data.image_shape, moves)
        return x, self.y[rows], np.arange(len(rows)), None if self.weights is None else self.weights[rows]

    def _adapt(self, rows: int, elapsed: float) -> None:
        self.chunk = self._whole_batches(min(rows * CHUNK_SECONDS / max(elapsed, 1e-6), 4 * rows))

    def _whole_batches(self, rows: float) -> int:
        """At most so many rows, but a batch at least."""
        return max(1, int(rows // self.settings.batch_size)) * self.settings.batch_size

    def _row(
        self, epoch: int, rows: int, results: list[RowMetrics], weights: FloatArray | None, seconds: float, rate: float
    ) -> Row:
        began = time.perf_counter()
        loss = np.concatenate([part.loss for part in results]).astype(np.float64)
        correct = np.concatenate([part.correct for part in results])
        val_loss = val_accuracy = None
        if self.validation is not None:
            val_loss, val_accuracy = validate(self.engine, self.validation, self.settings, f"epoch {epoch}")
        return {
            "epoch": epoch,
            "rows": rows,
            "loss": mean(loss, weights),
            "accuracy": mean(correct, weights) if self.y.ndim == 1 else None,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "rate": rate,
            "seconds": seconds,
            "eval_seconds": time.perf_counter() - began,
            "rows_per_second": rows / seconds,
        }


def train(  # noqa: PLR0913 - the settings are one argument; what remains is data
    network: Network,
    x: Features,
    y: npt.NDArray[Any],
    *,
    settings: Settings | None = None,
    validation: tuple[Features, npt.NDArray[Any]] | None = None,
    scaling: Scaling | None = None,
    sample_weight: FloatArray | None = None,
    classes: Sequence[str] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
) -> Training:
    """Train a network.

    Parameters
    ----------
    network : its description
    x : (n, features) uint8 or float, memory-mapped or not, or a `rows.Subset`; scaled by `scaling` as rows are used
    y : (n,) integer classes 0 … outputs - 1, or (n, outputs) targets
    settings : how to train
    validation : (x, y) to measure after each epoch; the weights of the best epoch are kept
    scaling : fitted on x, see `fit_scaling`; stored with the model
    sample_weight : (n,) positive weights of the rows in the loss
    classes : names of the classes; None numbers them
    image_shape : (height, width, channels) if the rows are images, which `Settings.flip` and `shift` move; kept in the model
    callbacks : each is called with the epoch's history row and the engine; True stops the training
    progress : shows the course, see `progress.make_progress`

    Raises
    ------
    ConfigError : settings that contradict each other or the data
    DataError : data that do not fit the network
    Diverged : the loss became NaN or infinite
    Interrupted : SIGINT or SIGTERM came (only seen in the main thread); carries the training so far

    Examples
    --------
    >>> import numpy as np
    >>> from fastmlp.nn.optimizers import Optimizer
    >>> from fastmlp.nn.schedules import Schedule
    >>> x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
    >>> settings = Settings(Schedule(0.03), Optimizer("adam"), epochs=40, batch_size=16)
    >>> training = train(Network((2, 16, 2), activation="tanh"), x, y, settings=settings)
    >>> bool((training.model.predict(x) == y).mean() > 0.9)
    True
    """
    settings = settings or Settings()
    described = {"scaling": scaling, "classes": None if classes is None else tuple(classes), "image_shape": image_shape}
    data = check_data(network, settings.dtype, (x, y), validation, sample_weight, **described)
    return train_checked(network, settings, match_data(network, settings, data), callbacks, progress)


def train_checked(
    network: Network,
    settings: Settings,
    data: TrainingData,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
) -> Training:
    """Train as `train` does, on data and with settings that have been checked: no row is read to check it again.

    Parameters
    ----------
    data : as `settings.match_data` returns it for this network and these settings
    callbacks, progress : as in `train`

    Raises
    ------
    Diverged, Interrupted : as `train`
    """
    with loop_for(network, settings, data, progress) as loop:
        loop.compile()
        with Signals() as signals:
            return loop.run(signals, callbacks)
