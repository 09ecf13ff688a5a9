"""Tests of how training ends: early stopping, callbacks, time limit, signals and divergence."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.engines import need_backend, same_bits
from support.problems import Keeper, problem, set_up

import fastmlp.training.loop
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, State
from fastmlp.engines.chunks import CHUNK_SECONDS
from fastmlp.errors import DivergedError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import SGD, Optimizer
from fastmlp.nn.philox import generator
from fastmlp.training.api import train
from fastmlp.training.loop import Diverged, Interrupted, Loop
from fastmlp.training.monitor import kept_epoch
from fastmlp.training.result import TrainResult

NETWORK = Network((4, 12, 3))

# ------------------------------------------------------------------------------------------------ stopping


def simulate(scores: list[float], patience: int, min_delta: float) -> tuple[int, int]:
    """Return the best and the last epoch of training with early stopping, given a score per epoch (lower is better)."""
    best, best_epoch = np.inf, 0
    for epoch, score in enumerate(scores, start=1):
        if score < best - min_delta:
            best, best_epoch = score, epoch
        if patience and epoch - best_epoch >= patience:
            return best_epoch, epoch
    return best_epoch, len(scores)


@pytest.mark.parametrize("min_delta", [0.0, 0.02])
@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
def test_early_stopping_keeps_the_best_weights(monitor: str, patience: int, min_delta: float) -> None:
    """If the network overfits, training stops at the expected epoch and returns the weights of the best epoch."""
    x, y = problem(60, 0, noise=0.5)
    validation = problem(50, 1, noise=0.5)
    changes = {"optimizer": SGD(0.5), "epochs": 30, "monitor": monitor, "min_delta": min_delta}
    whole = train(NETWORK, (x, y), settings=set_up(**changes), validation=validation, scaling=None).history
    sign = -1 if monitor == "accuracy" else 1
    best, last = simulate([sign * row[f"val_{monitor}"] for row in whole], patience, min_delta)
    assert best < 30  # the network overfits

    keeper = Keeper()
    training = train(
        NETWORK, (x, y), settings=set_up(**changes, patience=patience), validation=validation, callbacks=[keeper], scaling=None
    )
    assert (training.best_epoch, len(training.history)) == (best, last)
    assert training.stopped == ("epochs" if not patience or last - best < patience else "patience")
    reason = "early stopping" if training.stopped == "patience" else "maximum number of epochs reached"
    assert training.end == f"{reason} at epoch {last} (best epoch {best})"
    assert same_bits(training.model.parameters, keeper.parameters[best - 1])
    assert same_bits(training.state.parameters, keeper.parameters[-1])
    assert not same_bits(training.model.parameters, training.state.parameters)


@pytest.mark.parametrize("min_delta", [0.0, 0.02])
@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
def test_without_restore_best_the_weights_are_those_of_the_last_epoch(monitor: str, min_delta: float) -> None:
    """Early stopping still counts from the best epoch, so the training ends in the same epoch."""
    x, y = problem(60, 0, noise=0.5)
    settings = {"optimizer": SGD(0.5), "epochs": 30, "monitor": monitor, "min_delta": min_delta, "patience": 3}
    given: dict[str, Any] = {"validation": problem(50, 1, noise=0.5), "scaling": None}
    best = train(NETWORK, (x, y), settings=set_up(**settings), **given)
    display = Display()
    last = train(NETWORK, (x, y), settings=set_up(**settings, restore_best=False), progress=display, **given)
    assert (last.stopped, len(last.history), best.best_epoch) == ("patience", len(best.history), len(best.history) - 3)
    assert last.best_epoch == len(last.history)
    assert last.metrics["val_loss"] == last.history[-1]["val_loss"]
    assert display.patience[-4:] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert same_bits(last.model.parameters, last.state.parameters)
    assert same_bits(last.state.parameters, best.state.parameters)
    assert last.end == f"early stopping at epoch {last.best_epoch} (weights of epoch {last.best_epoch})"
    assert (best.marked_epoch, last.marked_epoch) == (best.best_epoch, None)
    assert [kept_epoch(one.history, set_up(**settings, restore_best=one is best), True) for one in (best, last)] == [
        best.best_epoch,
        last.best_epoch,
    ]


class Display:
    """A progress display that stores the patience of each epoch."""

    def __init__(self) -> None:
        self.patience: list[tuple[int, int]] = []

    def update(self, *figures: Any) -> None: ...

    def epoch_done(self, row: dict[str, Any]) -> None:
        self.patience.append(row["patience"])


def test_without_a_validation_split_the_last_epoch_is_the_best() -> None:
    x, y = problem(60)
    keeper = Keeper()
    training = train(NETWORK, (x, y), settings=set_up(epochs=5), callbacks=[keeper], scaling=None)
    assert training.best_epoch == 5
    assert same_bits(training.model.parameters, keeper.parameters[4])


def test_a_callback_that_returns_true_stops_training_after_all_are_called() -> None:
    x, y = problem(60)
    seen: list[tuple[str, int]] = []

    def record(name: str, answer: Callable[[int], Any]) -> Any:
        def callback(row: dict[str, Any], engine: Engine) -> Any:
            seen.append((name, row["epoch"]))
            assert engine.state().step == 4 * row["epoch"]
            return answer(row["epoch"])

        return callback

    callbacks = [record("a", lambda epoch: epoch == 3), record("b", lambda epoch: None)]
    training = train(NETWORK, (x, y), settings=set_up(epochs=10), callbacks=callbacks, scaling=None)
    assert training.stopped == "callback"
    assert len(training.history) == 3
    assert seen == [(name, epoch) for epoch in (1, 2, 3) for name in "ab"]


BIG = Network((200, 400, 10))


def big_problem(rows: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 200)).astype(np.float32), rng.integers(0, 10, rows)


class Clock:
    """A simulated clock for the training loop. The engine advances it by `row_seconds` per trained row.

    calls : number of rows in each call of `Engine.train`; calls with no rows are not included, since they only compile
    before : function that is called before each of these calls with the number of the call, from 1
    """

    def __init__(self) -> None:
        self.now, self.row_seconds = 0.0, 1.0
        self.calls: list[int] = []
        self.before: Callable[[int], None] = lambda call: None

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def make_engine(self, backend: str, job: EngineSpec) -> Engine:
        engine = make_engine(backend, job)
        original = engine.train

        def train(x: Any, y: Any, order: Any, *rest: Any) -> Any:
            if len(order):
                self.calls.append(len(order))
                self.before(len(self.calls))
                self.now += len(order) * self.row_seconds
            return original(x, y, order, *rest)

        engine.train = train  # type: ignore[method-assign]
        return engine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fastmlp.training.loop, "make_engine", clock.make_engine)
    monkeypatch.setattr(fastmlp.training.loop, "time", clock)
    return clock


def test_max_time_stops_within_an_epoch(clock: Clock) -> None:
    x, y = big_problem(100)
    settings = set_up(optimizer=SGD(0.01), epochs=10, batch_size=16, max_time=130.0)
    training = train(BIG, (x, y), settings=settings, scaling=None)
    assert training.stopped == "time"
    assert clock.calls == [16] * 6 + [4] + [16] * 2  # the last call ends after 132 seconds
    assert [row["rows"] for row in training.history] == [100, 32]
    assert training.state.step == 7 + 2
    assert np.isfinite(training.history[-1]["loss"])


def test_calls_of_the_engine_are_short(clock: Clock) -> None:
    """Engine calls take at most CHUNK_SECONDS, since signals and the time limit are only checked between calls."""
    x, y = big_problem(1000)
    clock.row_seconds = 0.9e-3
    training = train(BIG, (x, y), settings=set_up(optimizer=SGD(0.01), epochs=2, batch_size=8), scaling=None)
    assert sum(clock.calls) == sum(row["rows"] for row in training.history) == 2000
    assert max(clock.calls) * clock.row_seconds <= CHUNK_SECONDS
    assert clock.calls[2] == max(clock.calls) == 88  # as many rows as possible, to reduce overhead


def test_a_sufficient_max_time_does_not_change_the_bits() -> None:
    x, y = problem(60)
    training = train(NETWORK, (x, y), settings=set_up(max_time=600.0), scaling=None)
    assert training.stopped == "epochs"
    assert same_bits(training.state, train(NETWORK, (x, y), settings=set_up(), scaling=None).state)


# ------------------------------------------------------------------------------------------------ signals


def interrupted(number: int, backend: str, clock: Clock, **arguments: Any) -> tuple[Interrupted, Keeper]:
    """Train, raise a signal in engine call 3 of epoch 3, and return the exception and the parameters of each epoch."""
    x, y = big_problem(1000)
    keeper = Keeper()

    def send(call: int) -> None:
        if call == 16 + 16 + 3:
            signal.raise_signal(number)

    clock.before = send
    settings = set_up(optimizer=SGD(0.05), epochs=10_000, batch_size=64, backend=backend)
    with pytest.raises(Interrupted) as caught:
        train(BIG, (x, y), settings=settings, callbacks=[keeper], **arguments)
    return caught.value, keeper


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_training_with_the_best_weights(backend: str, number: int, clock: Clock) -> None:
    x, y = big_problem(200)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    error, keeper = interrupted(number, backend, clock, validation=(x, y))
    assert len(clock.calls) == 16 + 16 + 3  # no call after the one in which the signal was raised
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert isinstance(error, KeyboardInterrupt)
    assert error.signal == number
    training = error.training
    assert training.stopped == "interrupted"
    losses = [row["val_loss"] for row in training.history]
    assert training.best_epoch == 1 + int(np.argmin(losses)) < 3  # the labels are random, so the first epochs are the best
    finished = keeper.parameters  # includes the interrupted epoch
    assert len(finished) == len(losses) == 3
    assert same_bits(training.model.parameters, finished[training.best_epoch - 1])
    assert "epoch 3" in str(error)
    assert training.model.predict(x[:5]).shape == (5,)


def test_the_rows_of_an_interrupted_epoch_are_recorded(clock: Clock) -> None:
    error, _ = interrupted(signal.SIGINT, "numpy", clock)
    assert [row["rows"] for row in error.training.history] == [1000, 1000, 3 * 64]
    assert error.training.state.step == 16 + 16 + 3
    assert error.training.best_epoch == 3
    assert same_bits(error.training.model.parameters, error.training.state.parameters)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    x, y = problem(60)
    before = signal.getsignal(signal.SIGINT)

    def twice(row: dict[str, Any], engine: Engine) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(NETWORK, (x, y), settings=set_up(), callbacks=[twice], scaling=None)
    assert not isinstance(caught.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_signal_during_a_callback_is_not_lost(epoch: int) -> None:
    """`Interrupted` is raised even if the signal arrives in the last epoch, because Ctrl-C should stop the whole program."""
    x, y = problem(60)

    def once(row: dict[str, Any], engine: Engine) -> None:
        if row["epoch"] == epoch:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        train(NETWORK, (x, y), settings=set_up(epochs=4), callbacks=[once], scaling=None)
    assert len(caught.value.training.history) in (epoch, epoch + 1)


def test_a_signal_after_the_last_epoch_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(60)
    original = Loop.run

    def run(*given: Any) -> TrainResult:
        training = original(*given)
        signal.raise_signal(signal.SIGTERM)
        return training

    monkeypatch.setattr(Loop, "run", run)
    with pytest.raises(Interrupted) as caught:
        train(NETWORK, (x, y), settings=set_up(epochs=4), scaling=None)
    assert (caught.value.signal, caught.value.training.stopped) == (signal.SIGTERM, "interrupted")
    assert len(caught.value.training.history) == 4


def test_training_outside_the_main_thread_installs_no_signal_handlers() -> None:
    x, y = problem(60)
    found: list[TrainResult] = []
    handlers: list[Any] = []

    def record(row: dict[str, Any], engine: Engine) -> None:
        handlers.append(signal.getsignal(signal.SIGINT))

    def work() -> None:
        found.append(train(NETWORK, (x, y), settings=set_up(), callbacks=[record], scaling=None))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert same_bits(found[0].state, train(NETWORK, (x, y), settings=set_up(), scaling=None).state)
    assert set(handlers) == {signal.getsignal(signal.SIGINT)}


# ------------------------------------------------------------------------------------------------ divergence


def test_divergence_reports_epoch_step_and_remedies(backend: str) -> None:
    x, y = problem()
    settings = set_up(optimizer=SGD(1000000.0), backend=backend)
    network = Network((4, 12, 12, 3))
    with pytest.raises(Diverged) as caught:
        train(network, (x, y), settings=settings, scaling=None)
    message = str(caught.value)
    found = re.match(r"the loss became (nan|inf) in epoch (\d+), step (\d+): ", message)
    assert found is not None
    for remedy in ("lower the learning rate (now 1e+06)", "clip the gradient", "scale the data"):
        assert remedy in message
    assert caught.value.settings == ("lr", "max_grad_norm", "scale")
    assert "\n" not in message
    assert isinstance(caught.value, DivergedError)
    assert caught.value.exit_code == 5

    # determine the first step whose loss is not finite with direct engine calls
    engine = make_engine(backend, EngineSpec(network, Optimizer("sgd"), batch_size=16))
    engine.load(State(network.initial_parameters(0), np.empty((0, network.parameters), np.float32), 0))
    first = None
    for epoch in range(1, 5):
        order = generator(0, "order", epoch).permutation(150)
        loss = engine.train(x, y.astype(np.int32), order, np.full(10, 1e6)).loss
        if not np.isfinite(loss).all():
            first = epoch, 1 + int(np.argmin(np.isfinite(loss))) // 16
            break
    engine.close()
    assert first == (int(found[2]), int(found[3]))
    assert caught.value.training is None or first[0] > 1


def overwrite_weights(epoch: int, value: float) -> Any:
    """Return a callback that sets all weights to a value after the given epoch, to simulate divergence."""

    def callback(row: dict[str, Any], engine: Engine) -> None:
        if row["epoch"] == epoch:
            state = engine.state()
            engine.load(state._replace(parameters=np.full_like(state.parameters, value)))

    return callback


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_divergence_keeps_the_best_weights_of_the_epochs_before(backend: str, value: float) -> None:
    x, y = problem()
    keeper = Keeper()
    settings = set_up(epochs=10, backend=backend)
    with pytest.raises(Diverged, match=r"in epoch 4, step 1: ") as caught:
        train(
            NETWORK,
            (x, y),
            settings=settings,
            validation=problem(50, 1),
            callbacks=[keeper, overwrite_weights(3, value)],
            scaling=None,
        )
    training = caught.value.training
    assert training is not None
    assert training.stopped == "diverged"
    assert len(training.history) == 3
    assert training.best_epoch == 1 + int(np.argmin([row["val_loss"] for row in training.history]))
    assert same_bits(training.model.parameters, keeper.parameters[training.best_epoch - 1])
    assert np.isfinite(training.model.parameters).all()


@pytest.mark.parametrize("with_validation", [True, False])
def test_weights_that_overflow_in_the_last_step_are_detected_as_divergence(backend: str, with_validation: bool) -> None:
    """Weights that overflow in the last step are detected, although no training loss is computed after this step."""
    x, y = problem()
    settings = set_up(optimizer=SGD(1e38), epochs=1, batch_size=150, backend=backend)
    validation = problem(50, 1) if with_validation else None
    with pytest.raises(Diverged, match="epoch 1"):
        train(NETWORK, (x * np.float32(1e4), y), settings=settings, validation=validation, scaling=None)


def test_a_learning_rate_beyond_float32_raises_divergence_without_warnings(backend: str) -> None:
    """A learning rate that overflows in float32 raises Diverged, and NumPy does not issue a warning."""
    x, y = problem()
    with pytest.raises(Diverged):
        train(NETWORK, (x, y), settings=set_up(optimizer=SGD(1e39), backend=backend), validation=problem(50, 1), scaling=None)


STEEP = Network((4, 3, 1), activation="linear", loss="absolute-error")
WITH_SQUARES = ("rmsprop", "adam", "adamw")  # optimizers that square the gradient


def train_one_step(scale: float, validates: bool = False, dtype: str = "float32", **settings: Any) -> TrainResult:
    """Train for one update, in which the loss is finite and the largest elements of the gradient are close to `scale`."""
    x = problem()[0].astype(dtype)
    x[:, 0] *= scale
    data = x, x[:, 1:2]
    chosen = set_up(epochs=1, batch_size=150, dtype=dtype, **settings)
    return train(STEEP, data, validation=data if validates else None, settings=chosen, scaling=None, target_scaling=None)


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("name", WITH_SQUARES)
def test_a_squared_gradient_that_overflows_is_divergence_even_in_the_last_step(
    every_backend: str, name: str, validates: bool
) -> None:
    settings = {"optimizer": Optimizer(name), "backend": every_backend}
    assert np.isfinite(train_one_step(1e18, validates, **settings).state.slots).all()
    with pytest.raises(Diverged, match="epoch 1"):
        train_one_step(1e20, validates, **settings)


def test_clipped_gradients_whose_squares_overflow_float32_are_accepted(every_backend: str) -> None:
    """The norm is computed in float64, so clipping works for all float32 gradients."""
    training = train_one_step(1e20, optimizer=Optimizer(max_grad_norm=1.0), backend=every_backend)
    assert np.isfinite(training.state.parameters).all()


@pytest.mark.parametrize("name", ["sgd", *WITH_SQUARES])
@pytest.mark.parametrize("other_backend", ["numpy", "torch"])
def test_squares_that_overflow_float64_are_divergence(other_backend: str, name: str) -> None:
    """In float64, the square of the norm also overflows, so clipping does not prevent divergence."""
    settings = {"dtype": "float64", "backend": need_backend(other_backend)}
    clipped = Optimizer(name, max_grad_norm=1.0)
    assert np.isfinite(train_one_step(1e150, **settings, optimizer=clipped).state.parameters).all()
    for optimizer in (clipped, *([Optimizer(name)] if name in WITH_SQUARES else [])):
        with pytest.raises(Diverged, match="epoch 1"):
            train_one_step(1e160, **settings, optimizer=optimizer)


def test_the_remedies_exclude_settings_already_in_use() -> None:
    x, y = problem()
    settings = set_up(optimizer=Optimizer(max_grad_norm=1.0), epochs=5)
    with pytest.raises(Diverged) as caught:
        train(NETWORK, (x, y), settings=settings, callbacks=[overwrite_weights(1, np.nan)], scaling=None)
    assert "clip the gradient" not in str(caught.value)
    assert "lower the learning rate" in str(caught.value)
