"""The training loop of all engines: epochs, validation, early stopping, time limit and signals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp._summary import summary_html, summary_text
from fastmlp.data.rows import Array, Features, Indices, base_rows
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, RowMetrics, State, step_count
from fastmlp.engines.chunks import ChunkSize
from fastmlp.engines.interrupts import Signals
from fastmlp.errors import DivergedError
from fastmlp.models.metrics import mean
from fastmlp.models.model import Model
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.philox import generator
from fastmlp.nn.scaling import Scaling
from fastmlp.training.augment import Augmentation, augment, sample_augmentation
from fastmlp.training.monitor import EarlyStopping, EpochLog, StepValidation, Validation, check_finite, validate
from fastmlp.training.settings import Settings, Task, check_data, make_task

Callback = Callable[[EpochLog, Engine], bool | None]


class Progress(Protocol):
    """Interface of the progress display that the training loop needs; see progress.py."""

    def update(
        self, epoch: int, done: int, total: int, loss: float, accuracy: float | None, rows_per_second: float
    ) -> None: ...
    def epoch_done(self, row: EpochLog) -> None: ...


METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")  # of an epoch, as a repr shows them


class TrainResult(NamedTuple):
    """Result of `train`.

    model : the model, with the weights of the best epoch
    history : one dict per epoch with the keys epoch (from 1), rows (number of rows trained on), loss, accuracy, val_loss,
        val_accuracy, lr (learning rate of the first update), seconds (training time, without evaluation), eval_seconds and
        rows_per_second. loss and accuracy are means over the rows of the epoch; each mini-batch is evaluated before its
        update, with dropout. accuracy is None if the targets are not class labels. val_loss and val_accuracy are None
        without a validation split. If `Settings.val_steps` is set, there is also the key steps: a list with one dict per
        validation within the epoch, with the keys step (number of updates since the start of training), epoch (with
        fraction), loss (mean over the rows since the previous validation in this epoch), val_loss and val_accuracy
    best_epoch : number of the epoch from which the weights of the model were taken
    stopped : why training ended: "epochs", "patience", "time", "callback", "interrupted" or "diverged"
    state : parameters, optimizer slots and number of updates at the end of training
    backend, threads : name of the engine, and number of threads that it used
    """

    model: Model
    history: list[EpochLog]
    best_epoch: int
    stopped: str
    state: State
    backend: str
    threads: int

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows: the metrics are those of the best epoch."""
        metrics = {key: f"{self.history[self.best_epoch - 1][key]:.4g}" for key in METRICS if self._has(key)}
        epochs = f"{self.best_epoch} of {len(self.history)} (stopped: {self.stopped})"
        return {"network": self.model.network.label, "best_epoch": epochs, **metrics, "backend": self.backend}

    def _has(self, key: str) -> bool:
        return self.history[self.best_epoch - 1].get(key) is not None

    # A NamedTuple cannot have the base class Summarized.
    def __repr__(self) -> str:
        return summary_text("TrainResult", self._summary())

    def _repr_html_(self) -> str:
        return summary_html("TrainResult", self._summary())


class Interrupted(KeyboardInterrupt):
    """Raised if a signal stopped training; `training` is the result so far, `signal` is the number of the signal."""

    def __init__(self, training: TrainResult, signal: int) -> None:
        super().__init__(f"training interrupted in epoch {len(training.history)}")
        self.training = training
        self.signal = signal


class Diverged(DivergedError):
    """Raised if training diverged; `training` is the result of the epochs before, or None if no epoch was completed."""

    def __init__(self, message: str, training: TrainResult | None, *, settings: Sequence[str] = ()) -> None:
        super().__init__(message, settings=settings)
        self.training = training


@contextmanager
def loop_for(task: Task, progress: Progress | None = None, threads: int | None = None) -> Iterator[Loop]:
    """Yield a `Loop` with a new engine; the engine is closed when the context exits.

    threads : number of threads of the engine; None to use the number in the settings
    """
    network, settings, data = task
    batch, seed, threads = settings.batch_size, settings.seed, threads or settings.threads
    spec = EngineSpec(network, settings.optimizer, batch, seed, data.scaling, threads, settings.dtype, settings.precision)
    engine = make_engine(settings.backend, spec)
    try:
        yield Loop(engine, task, progress)
    finally:
        engine.close()


class Loop:
    """State and methods of one call of `train`."""

    def __init__(self, engine: Engine, task: Task, progress: Progress | None) -> None:
        self.network, self.settings, self.data = network, settings, data = task
        self.engine, self.progress = engine, progress
        self.x, self.rows, self.y, self.weights = base_rows(data.train.x, data.train.y, data.sample_weight)
        self.history: list[EpochLog] = []
        self.stopping = EarlyStopping(settings, data.validation is not None)
        self.chunk = ChunkSize(settings.batch_size, network.flops_per_row)  # rows per call of the engine
        self.deadline = math.inf
        slots = np.zeros((len(settings.optimizer.slots), network.parameters), settings.dtype)
        engine.load(State(network.initial_parameters(settings.seed, settings.dtype), slots, 0))
        self.validation = None
        if data.validation is not None:
            self.validation = Validation(engine.hold(data.validation.x, data.validation.y), data.validation.y.ndim == 1)

    def compile(self) -> None:
        """Compile the kernels by calling them with no rows, so that compilation is not part of the measured training time."""
        self.engine.train(self.x, self.y, np.empty(0, np.int64), np.empty(0))
        self.engine.forward(self.x[:0])
        if self.data.validation is not None:
            x, y = self.data.validation.x, self.data.validation.y  # may have another dtype than x
            self.engine.evaluate(self.engine.hold(x[:0], y[:0]))

    def run(self, signals: Signals, callbacks: Sequence[Callback] = ()) -> TrainResult:
        """Train all epochs, or until `signals` has received a signal. Loops in different threads may share `signals`."""
        if self.settings.max_time is not None:
            self.deadline = time.monotonic() + self.settings.max_time
        stopped = "epochs"
        for epoch in range(1, self.settings.epochs + 1):
            try:
                row = self._epoch(epoch, signals)
                self.stopping.update(row, self.engine)
            except DivergedError as error:
                result = self._result("diverged") if self.history else None
                raise Diverged(str(error), result, settings=error.settings) from None
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

    def _result(self, stopped: str) -> TrainResult:
        assert self.stopping.parameters is not None
        settings, data = self.settings, self.data
        known = (data.scaling, data.classes or (), data.image_shape)
        model = Model(self.network, self.stopping.parameters, *known, settings.backend, settings.threads)
        state = self.engine.state()
        return TrainResult(model, self.history, self.stopping.epoch, stopped, state, self.engine.name, self.engine.threads)

    def _reason(self, epoch: int, called_off: bool) -> str:
        """Return the reason to stop training after this epoch, or "epochs" if there is none."""
        if called_off:
            return "callback"
        if time.monotonic() >= self.deadline:
            return "time"
        return "patience" if self.stopping.should_stop(epoch) else "epochs"

    def _epoch(self, epoch: int, signals: Signals) -> EpochLog:
        settings = self.settings
        order = generator(settings.seed, "order", epoch).permutation(self.rows)
        steps = step_count(len(order), settings.batch_size)
        learning_rates = settings.schedule.rates((epoch - 1) * steps, steps, steps)
        results: list[RowMetrics] = []
        weights = None if self.weights is None else self.weights[order].astype(np.float64)
        step_validation = StepValidation(settings, self.validation, (epoch - 1) * steps, steps, weights)
        augments = settings.flip or settings.shift
        augmentation = (
            sample_augmentation(settings.seed, epoch, len(order), settings.flip, settings.shift) if augments else None
        )
        done, seconds, total, right = 0, 0.0, 0.0, 0
        while done < len(order) and not (done and (signals.received or time.monotonic() >= self.deadline)):
            rows = order[done : done + min(self.chunk.rows, step_validation.rows_left(done))]
            first_step = done // settings.batch_size
            chunk_learning_rates = learning_rates[first_step:][: step_count(len(rows), settings.batch_size)]
            began = time.perf_counter()
            x, y, rows, weighted = self._arguments(rows, augmentation and augmentation.select(done, done + len(rows)))
            part = self.engine.train(x, y, rows, chunk_learning_rates, weighted)
            elapsed = time.perf_counter() - began
            check_finite(part.loss, epoch, first_step, settings)
            results.append(part)
            done, seconds = done + len(rows), seconds + elapsed
            step_validation.update(part, done, self.engine)
            if self.progress is not None:
                total, right = total + float(part.loss.sum(dtype=np.float64)), right + int(part.correct.sum())
                accuracy = right / done if self.y.ndim == 1 else None
                self.progress.update(epoch, done, len(order), total / done, accuracy, done / seconds)
            self.chunk.record(len(rows), elapsed)
        weights = None if weights is None else weights[:done]
        return step_validation.merge(self._row(epoch, done, results, weights, seconds, float(learning_rates[0])))

    def _arguments(self, rows: Indices, augmentation: Augmentation | None) -> tuple[Array, Array, Indices, FloatArray | None]:
        """Return x, y, row indices and weights for `Engine.train`. Rows are copied only if they are augmented."""
        if augmentation is None or self.data.image_shape is None:
            return self.x, self.y, rows, self.weights
        x = augment(self.x[rows], self.data.image_shape, augmentation)
        return x, self.y[rows], np.arange(len(rows)), None if self.weights is None else self.weights[rows]

    def _row(
        self, epoch: int, rows: int, results: list[RowMetrics], weights: FloatArray | None, seconds: float, lr: float
    ) -> EpochLog:
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
            "lr": lr,
            "seconds": seconds,
            "eval_seconds": time.perf_counter() - began,
            "rows_per_second": rows / seconds,
        }


def train(  # noqa: PLR0913 - keyword-only, with defaults
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
) -> TrainResult:
    """Train a network, and return the model with the weights of the best epoch.

    Parameters
    ----------
    network : description of the network
    x : unscaled features, (n, features) uint8 or float: an array, a memory-mapped array, or a `rows.Subset`
    y : (n,) integer class labels from 0 to outputs - 1, or (n, outputs) targets
    settings : training settings; None for the defaults
    validation : (x, y) of the validation split, which is evaluated after each epoch to determine the best epoch; without it,
        the last epoch is the best
    scaling : scaling that is applied to all features, for example from `fit_scaling`; it is stored with the model
    sample_weight : (n,) positive weights of the rows in the loss
    classes : names of the classes; None for "0", "1", …
    image_shape : (height, width, channels) if the rows are images; required by `Settings.flip` and `Settings.shift`, and
        stored with the model
    callbacks : functions that are called after each epoch with the last dict of the history and the engine; if one of them
        returns True, training stops
    progress : progress display, see `progress.make_progress`

    Raises
    ------
    ConfigError : the settings contradict each other or do not fit the data
    DataError : the data do not fit the network
    Diverged : a loss or a weight became NaN or infinite
    Interrupted : SIGINT or SIGTERM was received (in the main thread only); contains the result so far

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
    return train_task(make_task(network, settings, data), callbacks, progress)


def train_task(task: Task, callbacks: Sequence[Callback] = (), progress: Progress | None = None) -> TrainResult:
    """Train a task whose data are already checked. Otherwise equivalent to `train`.

    Parameters
    ----------
    task : the network, settings and data, from `settings.make_task`
    callbacks, progress : see `train`

    Raises
    ------
    Diverged, Interrupted : see `train`
    """
    with loop_for(task, progress) as loop:
        loop.compile()
        with Signals() as signals:
            return loop.run(signals, callbacks)
