"""How trainings end: by patience, callbacks and time, by signals, and by divergence, with the best weights kept."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.engines import same_bits
from support.problems import Keeper, problem, set_up

from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, Job, State
from fastmlp.errors import DivergedError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.philox import generator
from fastmlp.nn.schedules import Schedule
from fastmlp.training.loop import Diverged, Interrupted, Training, train

NETWORK = Network((4, 12, 3))

# ------------------------------------------------------------------------------------------------ stopping


def simulate(scores: list[float], patience: int | None, min_delta: float) -> tuple[int, int]:
    """Best epoch and last epoch by the rule, from scores of which less is better."""
    best, best_epoch = np.inf, 0
    for epoch, score in enumerate(scores, start=1):
        if score < best - min_delta:
            best, best_epoch = score, epoch
        if patience is not None and epoch - best_epoch >= patience:
            return best_epoch, epoch
    return best_epoch, len(scores)


@pytest.mark.parametrize("min_delta", [0.0, 0.02])
@pytest.mark.parametrize("patience", [None, 1, 3])
@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
def test_early_stopping_keeps_the_best_weights(monitor: str, patience: int | None, min_delta: float) -> None:
    """On noisy labels the validation part turns; the weights of its best epoch are kept, not the last ones."""
    x, y = problem(60, 0, noise=0.5)
    validation = problem(50, 1, noise=0.5)
    changes = {"schedule": Schedule(0.5), "epochs": 30, "monitor": monitor, "min_delta": min_delta}
    whole = train(NETWORK, x, y, settings=set_up(**changes), validation=validation).history
    sign = -1 if monitor == "accuracy" else 1
    best, last = simulate([sign * row[f"val_{monitor}"] for row in whole], patience, min_delta)
    assert best < 30  # the problem is one that overfits

    keeper = Keeper()
    training = train(NETWORK, x, y, settings=set_up(**changes, patience=patience), validation=validation, callbacks=[keeper])
    assert (training.best_epoch, len(training.history)) == (best, last)
    assert training.stopped == ("epochs" if patience is None or last - best < patience else "patience")
    assert same_bits(training.model.parameters, keeper.parameters[best - 1])
    assert same_bits(training.state.parameters, keeper.parameters[-1])
    assert not same_bits(training.model.parameters, training.state.parameters)


def test_without_a_validation_part_the_last_epoch_is_the_best() -> None:
    x, y = problem(60)
    keeper = Keeper()
    training = train(NETWORK, x, y, settings=set_up(epochs=5), callbacks=[keeper])
    assert training.best_epoch == 5
    assert same_bits(training.model.parameters, keeper.parameters[4])


def test_a_callback_that_returns_true_stops_and_all_are_called() -> None:
    x, y = problem(60)
    seen: list[tuple[str, int]] = []

    def note(name: str, answer: Callable[[int], Any]) -> Any:
        def callback(row: dict[str, Any], engine: Engine) -> Any:
            seen.append((name, row["epoch"]))
            assert engine.state().step == 4 * row["epoch"]
            return answer(row["epoch"])

        return callback

    callbacks = [note("a", lambda epoch: epoch == 3), note("b", lambda epoch: None)]
    training = train(NETWORK, x, y, settings=set_up(epochs=10), callbacks=callbacks)
    assert training.stopped == "callback"
    assert len(training.history) == 3
    assert seen == [(name, epoch) for epoch in (1, 2, 3) for name in "ab"]


BIG = Network((200, 400, 10))


def big_problem(rows: int = 20_000) -> tuple[Any, Any]:
    """Seconds of work for an epoch of BIG with the NumPy engine, tenths for the compiled one."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 200)).astype(np.float32), rng.integers(0, 10, rows)


def test_a_time_budget_stops_within_an_epoch() -> None:
    x, y = big_problem()
    settings = set_up(schedule=Schedule(0.01), epochs=100, batch_size=8, max_time=0.3)
    began = time.monotonic()
    training = train(BIG, x, y, settings=settings)
    assert time.monotonic() - began < 2
    assert training.stopped == "time"
    assert 0 < training.history[-1]["rows"] < len(x)
    assert training.state.step == -(-training.history[-1]["rows"] // 8) + 2500 * (len(training.history) - 1)
    assert np.isfinite(training.history[-1]["loss"])


def test_a_time_budget_that_suffices_changes_nothing() -> None:
    x, y = problem(60)
    training = train(NETWORK, x, y, settings=set_up(max_time=600.0))
    assert training.stopped == "epochs"
    assert same_bits(training.state, train(NETWORK, x, y, settings=set_up()).state)


# ------------------------------------------------------------------------------------------------ signals


def interrupted(number: int, backend: str, **arguments: Any) -> tuple[Interrupted, float, Keeper]:
    """Train, send a signal from another thread amid an epoch; what was raised, seconds after the signal, the epochs."""
    x, y = big_problem()
    keeper = Keeper()
    sent: list[float] = []

    def kill() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    def start_timer(row: dict[str, Any], engine: Engine) -> None:
        if row["epoch"] == 2:
            threading.Timer(0.15, kill).start()

    settings = set_up(schedule=Schedule(0.05), epochs=10_000, batch_size=64, backend=backend)
    with pytest.raises(Interrupted) as caught:
        train(BIG, x[:3000], y[:3000], settings=settings, callbacks=[keeper, start_timer], **arguments)
    return caught.value, time.monotonic() - sent[0], keeper


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_within_a_second_with_the_best_weights(backend: str, number: int) -> None:
    x, y = big_problem()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    error, seconds, keeper = interrupted(number, backend, validation=(x[3000:4000], y[3000:4000]))
    assert seconds < 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert isinstance(error, KeyboardInterrupt)
    assert error.signal == number
    training = error.training
    assert training.stopped == "interrupted"
    losses = [row["val_loss"] for row in training.history]
    assert training.best_epoch == 1 + int(np.argmin(losses))  # random labels: the first epochs are the best
    finished = [*keeper.parameters, training.state.parameters]  # the epoch under way has no callback
    assert len(finished) in (len(losses), len(losses) + 1)
    assert same_bits(training.model.parameters, finished[training.best_epoch - 1])
    assert f"epoch {len(losses)}" in str(error)
    assert training.model.predict(x[:5]).shape == (5,)


def test_an_interrupted_epoch_is_recorded_as_far_as_it_went() -> None:
    error, _, _ = interrupted(signal.SIGINT, "numpy")
    rows = [row["rows"] for row in error.training.history]
    assert rows[:2] == [3000, 3000]
    assert error.training.state.step == sum(-(-count // 64) for count in rows)
    assert error.training.best_epoch == len(rows)
    assert same_bits(error.training.model.parameters, error.training.state.parameters)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    x, y = problem(60)
    before = signal.getsignal(signal.SIGINT)

    def twice(row: dict[str, Any], engine: Engine) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(NETWORK, x, y, settings=set_up(), callbacks=[twice])
    assert not isinstance(caught.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_signal_during_a_callback_is_not_lost(epoch: int) -> None:
    """Not even in the last epoch: whoever pressed Ctrl-C wants everything to end, not only this training."""
    x, y = problem(60)

    def once(row: dict[str, Any], engine: Engine) -> None:
        if row["epoch"] == epoch:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        train(NETWORK, x, y, settings=set_up(epochs=4), callbacks=[once])
    assert len(caught.value.training.history) in (epoch, epoch + 1)


def test_training_outside_the_main_thread_leaves_signals_alone() -> None:
    x, y = problem(60)
    found: list[Training] = []
    handlers: list[Any] = []

    def look(row: dict[str, Any], engine: Engine) -> None:
        handlers.append(signal.getsignal(signal.SIGINT))

    def work() -> None:
        found.append(train(NETWORK, x, y, settings=set_up(), callbacks=[look]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert same_bits(found[0].state, train(NETWORK, x, y, settings=set_up()).state)
    assert set(handlers) == {signal.getsignal(signal.SIGINT)}


# ------------------------------------------------------------------------------------------------ divergence


def test_divergence_names_epoch_step_and_remedies(backend: str) -> None:
    x, y = problem()
    settings = set_up(schedule=Schedule(1e6), backend=backend)
    network = Network((4, 12, 12, 3))
    with pytest.raises(Diverged) as caught:
        train(network, x, y, settings=settings)
    message = str(caught.value)
    found = re.match(r"the loss became (nan|inf) in epoch (\d+), step (\d+): ", message)
    assert found is not None
    for remedy in ("lower the learning rate (now 1e+06)", "--clip-norm", "--scale zscore"):
        assert remedy in message
    assert "\n" not in message
    assert isinstance(caught.value, DivergedError)
    assert caught.value.exit_code == 5

    # the first step whose losses are not finite, found by hand
    engine = make_engine(backend, Job(network, Optimizer(), batch_size=16))
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


def spoil(epoch: int, value: float) -> Any:
    """A callback that loads useless weights after an epoch, as a far too long step would."""

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
        train(NETWORK, x, y, settings=settings, validation=problem(50, 1), callbacks=[keeper, spoil(3, value)])
    training = caught.value.training
    assert training is not None
    assert training.stopped == "diverged"
    assert len(training.history) == 3
    assert training.best_epoch == 1 + int(np.argmin([row["val_loss"] for row in training.history]))
    assert same_bits(training.model.parameters, keeper.parameters[training.best_epoch - 1])
    assert np.isfinite(training.model.parameters).all()


@pytest.mark.parametrize("with_validation", [True, False])
def test_weights_that_overflow_in_the_last_step_are_divergence_too(backend: str, with_validation: bool) -> None:
    """No later loss shows them, but the model would be useless, and its file would be refused."""
    x, y = problem()
    settings = set_up(schedule=Schedule(1e38), epochs=1, batch_size=150, backend=backend)
    validation = problem(50, 1) if with_validation else None
    with pytest.raises(Diverged, match="epoch 1"):
        train(NETWORK, x * np.float32(1e4), y, settings=settings, validation=validation)


def test_a_huge_rate_is_divergence_and_no_warning(backend: str) -> None:
    """Beyond float32 the rate itself becomes infinite; the user sees one error and no warnings of NumPy."""
    x, y = problem()
    with pytest.raises(Diverged):
        train(NETWORK, x, y, settings=set_up(schedule=Schedule(1e39), backend=backend), validation=problem(50, 1))


def test_the_remedies_leave_out_what_is_done_already() -> None:
    x, y = problem()
    settings = set_up(optimizer=Optimizer(clip_norm=1.0), epochs=5)
    with pytest.raises(Diverged) as caught:
        train(NETWORK, x, y, settings=settings, callbacks=[spoil(1, np.nan)])
    assert "--clip-norm" not in str(caught.value)
    assert "lower the learning rate" in str(caught.value)
