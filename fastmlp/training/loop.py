"""The training loop: epochs, chunks, validation, early stopping, time budget, signals. Readable Python over any engine.

Not here: arithmetic (engines), settings (settings.py), files and pictures (runs.py, report.py).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastmlp.data.checks import Rows
from fastmlp.data.rows import Array, Indices, in_whole
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, Job, RowResults, State, steps_of
from fastmlp.engines.interrupts import Signals
from fastmlp.errors import DivergedError
from fastmlp.models.evaluation import epoch_figures, mean
from fastmlp.models.model import Model
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.philox import generator
from fastmlp.training.augment import Moves, augmented, draw_moves
from fastmlp.training.settings import Settings, TrainingData

Row = dict[str, Any]  # a line of the history; see `Training`
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

    def __init__(self, message: str, training: Training | None) -> None:
        super().__init__(message)
        self.training = training


@contextmanager
def loop_for(
    network: Network, settings: Settings, data: TrainingData, progress: Progress | None = None, threads: int | None = None
) -> Iterator[Loop]:
    """A training about to begin, on an engine of its own that is closed afterwards.

    data are what `check_data` gives. threads are the engine's; None takes those of the settings.
    """
    batch, seed, threads = settings.batch_size, settings.seed, threads or settings.threads
    job = Job(network, settings.optimizer, batch, seed, data.scaling, threads, settings.dtype, settings.precision)
    engine = make_engine(settings.backend, job)
    try:
        yield Loop(engine, network, settings, data, progress)
    finally:
        engine.close()


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
                raise DivergedError(diverged_message(f"weights became infinite after epoch {row['epoch']}", self.settings))
            self.score, self.epoch, self.parameters = score, row["epoch"], parameters

    def tired(self, epoch: int) -> bool:
        patience = self.settings.patience
        return patience is not None and epoch - self.epoch >= patience


class Measured:
    """Measurements of the validation part within an epoch, every `Settings.val_steps` updates; nothing without them.

    before : updates of the epochs before
    weights : of the epoch's rows in their order, or None
    """

    def __init__(self, settings: Settings, data: TrainingData, before: int, steps: int, weights: FloatArray | None) -> None:
        self.settings, self.data, self.before, self.steps, self.weights = settings, data, before, steps, weights
        self.found: list[Row] = []
        self.losses: list[FloatArray] = []
        self.since = 0  # rows of this epoch at the last measurement
        self.seconds = 0.0

    def rows_left(self, done: int) -> int:
        """Rows of this epoch until the next measurement, after so many whole batches of it."""
        every, batch = self.settings.val_steps, self.settings.batch_size
        return sys.maxsize if every is None else (every - (self.before + done // batch) % every) * batch

    def saw(self, part: RowResults, done: int, engine: Engine) -> None:
        """Measure if it is time; `part` are the rows that were trained on since the last call."""
        every, step = self.settings.val_steps, steps_of(done, self.settings.batch_size)
        if every is None or self.data.validation is None:
            return
        self.losses.append(part.loss.astype(np.float64))
        if (self.before + step) % every == 0:
            began = time.perf_counter()
            loss, accuracy = validate(engine, self.data.validation, self.settings, f"step {self.before + step}")
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


class Loop:
    """One training from start to end; `run` reads top to bottom."""

    def __init__(
        self, engine: Engine, network: Network, settings: Settings, data: TrainingData, progress: Progress | None
    ) -> None:
        self.engine, self.network, self.settings, self.data, self.progress = engine, network, settings, data, progress
        self.x, self.rows, self.y, self.weights = in_whole(data.x, data.y, data.weights)
        self.history: list[Row] = []
        self.best = Best(settings, data.validation is not None)
        self.chunk = self._whole_batches(CHUNK_SECONDS * SLOWEST / network.flops_per_row)  # rows until the engine returns
        self.deadline = math.inf
        slots = np.zeros((len(settings.optimizer.slots), network.parameters), settings.dtype)
        engine.load(State(network.initial_parameters(settings.seed, settings.dtype), slots, 0))

    def compile(self) -> None:
        """Let the engine compile on no rows, before the clock and the signal handlers start."""
        self.engine.train(self.x, self.y, np.empty(0, np.int64), np.empty(0))
        self.engine.forward(self.x[:0])
        if self.data.validation is not None:
            x, y = self.data.validation  # one part may be uint8 and the other not
            self.engine.score(self.engine.forward(x[:0]), y[:0])

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
                raise Diverged(str(error), self._result("diverged") if self.history else None) from None
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
        results: list[RowResults] = []
        weights = None if self.weights is None else self.weights[order].astype(np.float64)
        measured = Measured(settings, self.data, (epoch - 1) * steps, steps, weights)
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
        self, epoch: int, rows: int, results: list[RowResults], weights: FloatArray | None, seconds: float, rate: float
    ) -> Row:
        began = time.perf_counter()
        loss = np.concatenate([part.loss for part in results]).astype(np.float64)
        correct = np.concatenate([part.correct for part in results])
        val_loss = val_accuracy = None
        if self.data.validation is not None:
            val_loss, val_accuracy = validate(self.engine, self.data.validation, self.settings, f"epoch {epoch}")
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


def validate(engine: Engine, part: Rows, settings: Settings, when: str) -> tuple[float, float | None]:
    """Loss and accuracy of the validation part; raises DivergedError if the loss is NaN or infinite."""
    loss, accuracy = epoch_figures(engine, *part)
    if not math.isfinite(loss):
        raise DivergedError(diverged_message(f"the validation loss became {loss} after {when}", settings))
    return loss, accuracy


def check_finite(loss: FloatArray, epoch: int, first_step: int, settings: Settings) -> None:
    """Raise DivergedError naming epoch and step if a row's loss is NaN or infinite."""
    if np.isfinite(loss).all():
        return
    at = int(np.flatnonzero(~np.isfinite(loss))[0])
    step = first_step + at // settings.batch_size + 1
    raise DivergedError(diverged_message(f"the loss became {loss[at]} in epoch {epoch}, step {step}", settings))


def diverged_message(what: str, settings: Settings) -> str:
    """What happened, and the remedies that these settings leave open."""
    remedies = [f"lower the learning rate (now {settings.schedule.rate:g})"]
    if not settings.optimizer.clip_norm:
        remedies.append("clip the gradient (--clip-norm 1)")
    return f"{what}: {', or '.join(remedies)}, or scale the data (--scale zscore)"
