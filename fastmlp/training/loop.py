"""The training loop of all engines: epochs, validation, early stopping, time limit and signals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp.data.rows import Indices, base_rows
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, RowMetrics, State, step_count
from fastmlp.engines.chunks import ChunkSize
from fastmlp.engines.interrupts import Signals
from fastmlp.errors import DivergedError, WriteError
from fastmlp.models.metrics import mean
from fastmlp.models.model import Model
from fastmlp.nn.network import FloatArray
from fastmlp.nn.philox import generator
from fastmlp.nn.schedules import PlateauTracker, ReduceOnPlateau
from fastmlp.training.augment import Augmentation, augment, sample_augmentation
from fastmlp.training.checkpoints.file import Checkpoint, PartialEpoch
from fastmlp.training.checkpoints.folder import Checkpoints
from fastmlp.training.monitor import EarlyStopping, StepValidation, Validation, check_finite, validate
from fastmlp.training.result import EpochLog, History, TrainResult
from fastmlp.training.settings import Task

Callback = Callable[[EpochLog, Engine], bool | None]


class Progress(Protocol):
    """Interface of the progress display that the training loop needs; see progress.py."""

    def update(
        self, epoch: int, done: int, total: int, loss: float, accuracy: float | None, rows_per_second: float
    ) -> None: ...
    def epoch_done(self, row: EpochLog) -> None: ...


class Interrupted(KeyboardInterrupt):
    """Raised if a signal stopped training; `training` is the result so far, `signal` is the number of the signal."""

    def __init__(self, training: TrainResult, signal: int) -> None:
        super().__init__(f"training interrupted in epoch {len(training.history)}")
        self.training = training
        self.signal = signal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.training, self.signal)


class Diverged(DivergedError):
    """Raised if training diverged; `training` is the result of the epochs before, or None if no epoch was completed."""

    def __init__(self, message: str, training: TrainResult | None, *, settings: Sequence[str] = ()) -> None:
        super().__init__(message, settings=settings)
        self.training = training

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.training), {"settings": self.settings}


class WriteFailed(WriteError):
    """Raised if a file could not be written during training; `training` is the result of the epochs so far."""

    def __init__(self, message: str, training: TrainResult) -> None:
        super().__init__(message)
        self.training = training

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.training)


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
        self.task = task
        self.network, self.settings, self.data = network, settings, data = task
        self.engine, self.progress = engine, progress
        self.x, self.rows, self.y, self.weights = base_rows(data.train.x, data.train.y, data.train.weight)
        self.history = History()
        self.plateau = PlateauTracker(settings.schedule) if isinstance(settings.schedule, ReduceOnPlateau) else None
        self.stopping = EarlyStopping(settings, data.validation is not None)
        self.chunk = ChunkSize(settings.batch_size, network.flops_per_row)  # rows per call of the engine
        self.deadline = math.inf
        self.partial: PartialEpoch | None = None  # the epoch that was ended early, which is the last one
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

    def run(self, signals: Signals, callbacks: Sequence[Callback] = (), checkpoints: Checkpoints | None = None) -> TrainResult:
        """Train all epochs, or until `signals` has received a signal; then `stopped` of the result is "interrupted".

        Loops in different threads may share `signals`.

        Raises
        ------
        ConfigError, DataError : the training cannot continue from the checkpoint
        Diverged, WriteFailed : the training ended early
        """
        checkpoints = checkpoints or Checkpoints(self.task)
        if (checkpoint := checkpoints.begin(self.engine)) is not None:
            self.load(checkpoint)
        if self.settings.max_time is not None:
            self.deadline = time.monotonic() + self.settings.max_time
        stopped = self._reason(len(self.history), False) if self.history else "epochs"
        try:
            while stopped == "epochs" and len(self.history) < self.settings.epochs:
                stopped = self._next_epoch(signals, callbacks, checkpoints)
                if signals.received:
                    break
            if self.partial is None and checkpoints.folder is not None:
                checkpoints.write(self.checkpoint(), self.engine)
        except WriteError as error:
            raise WriteFailed(str(error), self._result("failed")) from error
        return self._result("interrupted" if signals.received else stopped)

    def _next_epoch(self, signals: Signals, callbacks: Sequence[Callback], checkpoints: Checkpoints) -> str:
        """Train one epoch, and return the reason to stop after it, or "epochs" if there is none."""
        epoch, early = len(self.history) + 1, None
        try:
            row = self._epoch(epoch, signals)
            if self.partial is not None and checkpoints.folder is not None:
                early = self.checkpoint()  # does not contain the results of this epoch, which continues from the checkpoint
            self.stopping.update(row, self.engine)
        except DivergedError as error:
            result = self._result("diverged") if self.history else None
            raise Diverged(str(error), result, settings=error.settings) from None
        self.history.append(row)
        self._update_schedule(row)
        if early is not None:
            checkpoints.write(early, self.engine)
        if self.progress is not None:
            self.progress.epoch_done(row | self.stopping.patience(epoch))
        called = [callback(row, self.engine) for callback in callbacks]
        stopped = self._reason(epoch, any(called))
        ends = stopped != "epochs" or signals.received or epoch == self.settings.epochs
        if not ends and checkpoints.due:
            checkpoints.write(self.checkpoint(), self.engine)
        return stopped

    def _update_schedule(self, row: EpochLog) -> None:
        if self.plateau is not None:
            self.plateau.update(row["loss"] if row["val_loss"] is None else row["val_loss"])

    def checkpoint(self) -> Checkpoint:
        """Return the state after the completed epochs, and the metrics of the epoch that was ended early."""
        state, best = self.engine.state(), self.stopping.parameters
        model = self._model(state.parameters if best is None else best)
        return Checkpoint(state, model, self.stopping.epoch, History(self.history), self.partial)

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same training."""
        self.engine.load(checkpoint.state)
        self.history, self.partial = History(checkpoint.history), checkpoint.partial
        for row in self.history:
            self._update_schedule(row)
        if self.history:
            self.stopping.restore(self.history, checkpoint.model.parameters)

    def _model(self, parameters: FloatArray) -> Model:
        """Return the model with these weights."""
        settings, data = self.settings, self.data
        return Model(
            self.network,
            parameters,
            data.scaling,
            data.classes or (),
            data.image_shape,
            settings.backend,
            settings.threads,
            target_scaling=data.target_scaling,
            text_labels=data.text_labels,
            encoding=data.encoding,
            image_stats=data.image_stats,
        )

    def _result(self, stopped: str) -> TrainResult:
        assert self.stopping.parameters is not None
        model, epoch, restored = self._model(self.stopping.parameters), self.stopping.epoch, self.settings.restore_best
        engine = self.engine
        return TrainResult(model, self.history, epoch, stopped, engine.state(), engine.name, engine.threads, restored)

    def _reason(self, epoch: int, called_off: bool) -> str:
        """Return the reason to stop training after this epoch, or "epochs" if there is none."""
        if called_off:
            return "callback"
        if time.monotonic() >= self.deadline:
            return "time"
        return "patience" if self.stopping.should_stop(epoch) else "epochs"

    def _epoch(self, epoch: int, signals: Signals) -> EpochLog:
        settings = self.settings
        order, augmentation = self.order(epoch)
        steps = step_count(len(order), settings.batch_size)
        learning_rates = self.learning_rates((epoch - 1) * steps, steps)
        results: list[RowMetrics] = []
        done, seconds, total, right = 0, 0.0, 0.0, 0
        weights = None if self.weights is None else self.weights[order].astype(np.float64)
        step_validation = StepValidation(settings, self.validation, (epoch - 1) * steps, steps, weights)
        if self.partial is not None:
            results, done, seconds = [self.partial.metrics], len(self.partial.metrics.loss), self.partial.seconds
            total, right = float(results[0].loss.sum(dtype=np.float64)), int(results[0].correct.sum())
            step_validation.restore(self.partial)
        while done < len(order) and not (done and (signals.received or time.monotonic() >= self.deadline)):
            rows = order[done : done + min(self.chunk.rows, step_validation.rows_left(done))]
            first_step = done // settings.batch_size
            chunk_learning_rates = learning_rates[first_step:][: step_count(len(rows), settings.batch_size)]
            began = time.perf_counter()
            part = self.train_rows(rows, chunk_learning_rates, augmentation and augmentation.select(done, done + len(rows)))
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
        metrics = RowMetrics(*map(np.concatenate, zip(*results, strict=True)))
        self.partial = None if done == len(order) else step_validation.partial(metrics, seconds)
        weights = None if weights is None else weights[:done]
        return step_validation.merge(self._row(epoch, metrics, weights, seconds, float(learning_rates[0])))

    def order(self, epoch: int) -> tuple[Indices, Augmentation | None]:
        """Return the rows in the order of an epoch, and their augmentation; None if rows are not augmented."""
        settings = self.settings
        if settings.shuffle:
            order = generator(settings.seed, "order", epoch).permutation(self.rows)
        else:
            order = np.arange(self.rows) if isinstance(self.rows, int) else self.rows
        if not (settings.flip or settings.shift):
            return order, None
        return order, sample_augmentation(settings.seed, epoch, len(order), settings.flip, settings.shift)

    def train_rows(
        self, rows: Indices, learning_rates: npt.NDArray[np.float64], augmentation: Augmentation | None
    ) -> RowMetrics:
        """Call `Engine.train` with the given rows and their augmentation. Rows are copied only if they are augmented."""
        if augmentation is None or self.data.image_shape is None:
            return self.engine.train(self.x, self.y, rows, learning_rates, self.weights)
        x, y = augment(self.x[rows], self.data.image_shape, augmentation), self.y[rows]
        weights = None if self.weights is None else self.weights[rows]
        return self.engine.train(x, y, np.arange(len(rows)), learning_rates, weights)

    def learning_rates(self, first: int, steps: int) -> npt.NDArray[np.float64]:
        """Return the learning rate of each update of an epoch, (steps,); `first` is the index of its first update."""
        schedule, epochs = self.settings.schedule, self.settings.epochs
        if isinstance(schedule, ReduceOnPlateau):
            multipliers = np.full(steps, 1.0 if self.plateau is None else self.plateau.multiplier)
        else:
            multipliers = schedule.multipliers(first, steps, steps, epochs)
        return self.settings.optimizer.learning_rate * multipliers

    def _row(self, epoch: int, metrics: RowMetrics, weights: FloatArray | None, seconds: float, lr: float) -> EpochLog:
        began, rows = time.perf_counter(), len(metrics.loss)
        val_loss = val_accuracy = None
        if self.validation is not None:
            val_loss, val_accuracy = validate(self.engine, self.validation, self.settings, f"epoch {epoch}")
        return {
            "epoch": epoch,
            "rows": rows,
            "loss": mean(metrics.loss.astype(np.float64), weights),
            "accuracy": mean(metrics.correct, weights) if self.y.ndim == 1 else None,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "lr": lr,
            "seconds": seconds,
            "eval_seconds": time.perf_counter() - began,
            "rows_per_second": rows / seconds,
        }


def train_task(
    task: Task,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainResult:
    """Train a task, and return the model with the weights of the best epoch, or of the last one, see `Settings.restore_best`.

    Parameters
    ----------
    task : the network, settings and checked data, from `settings.make_task`
    callbacks, progress : see `api.train`
    checkpoints : the checkpoints to write, and the one to continue from; None for no checkpoints

    Raises
    ------
    ConfigError, DataError, Diverged, Interrupted, WriteFailed : see `Loop.run`
    """
    with loop_for(task, progress) as loop:
        loop.compile()
        with Signals() as signals:
            training = loop.run(signals, callbacks, checkpoints)
        if signals.received:  # perhaps after the last check of `run`
            raise Interrupted(training._replace(stopped="interrupted"), signals.received)
        return training
