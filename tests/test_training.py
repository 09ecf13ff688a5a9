"""The training loop: what it draws, keeps, stops at, records and refuses."""

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
from conftest import EPS, same_bits

import fastmlp.training
from fastmlp.backends import make_engine
from fastmlp.contract import Engine, Job, RowResults, State
from fastmlp.errors import ConfigError, DataError, DivergedError
from fastmlp.evaluation import evaluate
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer, Schedule
from fastmlp.philox import generator
from fastmlp.preprocess import fit_scaling
from fastmlp.training import Diverged, Interrupted, Settings, Training, train

KEYS = [
    "epoch",
    "rows",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "rate",
    "seconds",
    "eval_seconds",
    "rows_per_second",
]
TIMES = ("seconds", "eval_seconds", "rows_per_second")
NETWORK = Network((4, 12, 3))


def problem(rows: int = 150, seed: int = 0, noise: float = 0.0) -> tuple[Any, Any]:
    """Three classes that a line can nearly part; `noise` is the share of random labels."""
    rng = np.random.default_rng([seed, rows])
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    y = (x @ np.random.default_rng(9).normal(size=(4, 3))).argmax(axis=1)
    random = rng.random(rows) < noise
    y[random] = rng.integers(0, 3, random.sum())
    return x, y


def set_up(**changes: Any) -> Settings:
    defaults: dict[str, Any] = {"schedule": Schedule(0.1), "epochs": 4, "batch_size": 16, "backend": "numpy"}
    return Settings(**{**defaults, **changes})


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


class Keeper:
    """A callback that keeps the parameters at the end of each epoch."""

    def __init__(self) -> None:
        self.parameters: list[Any] = []

    def __call__(self, row: dict[str, Any], engine: Engine) -> None:
        self.parameters.append(engine.state().parameters)
        assert row["epoch"] == len(self.parameters)


class Recorder:
    """A real engine that also notes what it is called with."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name, self.threads = engine, engine.name, engine.threads
        self.calls: list[tuple[Any, Any, Any]] = []
        self.closed = 0

    def load(self, state: State) -> None:
        self.engine.load(state)

    def state(self) -> State:
        return self.engine.state()

    def train(self, x: Any, y: Any, order: Any, rates: Any, weights: Any = None) -> RowResults:
        self.calls.append((order.copy(), rates.copy(), weights))
        return self.engine.train(x, y, order, rates, weights)

    def forward(self, x: Any) -> Any:
        return self.engine.forward(x)

    def close(self) -> None:
        self.closed += 1
        self.engine.close()


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """The engines that `train` makes in this test, each within a recorder."""
    made: list[Recorder] = []

    def make(backend: str, job: Job) -> Recorder:
        made.append(Recorder(make_engine(backend, job)))
        return made[-1]

    monkeypatch.setattr(fastmlp.training, "make_engine", make)
    return made


# ------------------------------------------------------------------------------------------------ the walk


def test_training_is_the_documented_walk(backend: str) -> None:
    """Start, order and rates are functions of the seed; history and state are those of an engine driven by hand."""
    x, y = problem(50)
    schedule = Schedule(0.2, "inverse-time", decay=0.5, warmup=0.5)
    training = train(NETWORK, x, y, settings=set_up(schedule=schedule, epochs=3, seed=5, backend=backend))
    engine = make_engine(backend, Job(NETWORK, Optimizer(), batch_size=16, seed=5))
    engine.load(State(NETWORK.initial_parameters(5), np.empty((0, NETWORK.parameters), np.float32), 0))
    history = []
    for epoch in range(1, 4):
        rates = schedule.rates(4 * (epoch - 1), 4, 4)
        results = engine.train(x, y.astype(np.int32), generator(5, "order", epoch).permutation(50), rates)
        history.append((float(results.loss.astype(np.float64).mean()), float(results.correct.mean()), rates[0]))
    assert same_bits(training.state, engine.state())
    engine.close()
    found = [(row["loss"], row["accuracy"], row["rate"]) for row in training.history]
    np.testing.assert_allclose(found, history, rtol=1e-12)
    assert training.stopped == "epochs"
    assert training.state.step == 12
    assert (training.backend, training.best_epoch) == (backend, 3)


def test_history_has_a_row_per_epoch_with_the_documented_keys() -> None:
    x, y = problem()
    with_part = train(NETWORK, x, y, settings=set_up(), validation=problem(30, 1)).history
    without = train(NETWORK, x, y, settings=set_up()).history
    for history in (with_part, without):
        assert [row["epoch"] for row in history] == [1, 2, 3, 4]
        assert all(list(row) == KEYS for row in history)
        assert all(row["rows"] == 150 and row["rate"] == 0.1 for row in history)
        assert all(row["seconds"] > 0 and row["eval_seconds"] >= 0 for row in history)
        assert all(row["rows_per_second"] == pytest.approx(row["rows"] / row["seconds"]) for row in history)
        assert all(0 <= row["accuracy"] <= 1 for row in history)
        assert {type(row[key]) for row in history for key in ("loss", "accuracy", "rate", "seconds")} == {float}
    assert all(row["val_loss"] is None and row["val_accuracy"] is None for row in without)
    assert all(type(row["val_loss"]) is type(row["val_accuracy"]) is float for row in with_part)


def test_training_learns(backend: str) -> None:
    x, y = problem(300)
    training = train(NETWORK, x, y, settings=set_up(schedule=Schedule(0.3), epochs=60, backend=backend))
    assert (training.model.predict(x) == y).mean() > 0.95
    assert training.history[-1]["loss"] < 0.5 * training.history[0]["loss"]


def test_validation_figures_are_those_of_the_model(backend: str) -> None:
    """Measured with dropout off, without penalties and without label smoothing."""
    x, y = problem()
    validation = problem(40, 1)
    network = Network((4, 12, 3), l2=0.1, label_smoothing=0.2)
    training = train(network, x, y, settings=set_up(backend=backend), validation=validation)
    row = training.history[training.best_epoch - 1]
    figures = evaluate(training.model, *validation)
    assert (row["val_loss"], row["val_accuracy"]) == (figures["loss"], figures["accuracy"])
    plain = np.log(training.model.predict_proba(validation[0]))[np.arange(40), validation[1]]
    assert row["val_loss"] == pytest.approx(-plain.mean(), rel=1e-6)


def test_the_seed_decides_everything(backend: str) -> None:
    x, y = problem()
    one, same, other = (train(NETWORK, x, y, settings=set_up(seed=s, backend=backend)) for s in (1, 1, 2))
    assert same_bits(one.state, same.state)
    assert same_bits(one.model.parameters, same.model.parameters)
    assert timeless(one.history) == timeless(same.history)
    assert not same_bits(one.state, other.state)
    assert timeless(one.history) != timeless(other.history)


def test_how_often_the_engine_returns_changes_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks follow the clock; what is computed must not."""
    x, y = problem()
    network = Network((4, 18, 3), dropout=0.3)
    found = []
    for seconds in (1e-9, 1e9):
        monkeypatch.setattr(fastmlp.training, "CHUNK_SECONDS", seconds)
        found.append(train(network, x, y, settings=set_up(backend=backend), sample_weight=np.linspace(1, 2, 150)))
    assert same_bits(found[0].state, found[1].state)
    assert timeless(found[0].history) == timeless(found[1].history)


def test_the_number_of_threads_changes_nothing(numba_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.cpu.LEAST_FLOPS", 0)
    x, y = problem()
    found = [train(NETWORK, x, y, settings=set_up(backend=numba_backend, threads=t)) for t in (1, 2, 3)]
    assert [training.threads for training in found] == [1, 2, 3]
    assert same_bits(found[0].state, found[1].state)
    assert same_bits(found[0].state, found[2].state)


@pytest.mark.parametrize("chunk_seconds", [1e-9, 1e9])
def test_orders_and_rates_that_the_engine_sees(
    recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch, chunk_seconds: float
) -> None:
    monkeypatch.setattr(fastmlp.training, "CHUNK_SECONDS", chunk_seconds)
    x, y = problem(50)
    schedule = Schedule(0.1, "cosine", epochs=3, warmup=0.5)
    train(NETWORK, x, y, settings=set_up(schedule=schedule, epochs=3))
    (recorder,) = recorders
    calls = [call for call in recorder.calls if len(call[0])]
    assert all(len(order) % 16 == 0 or len(order) % 16 == 2 for order, _, _ in calls)  # whole batches
    assert all(len(rates) == -(-len(order) // 16) for order, rates, _ in calls)
    orders = np.concatenate([order for order, _, _ in calls]).reshape(3, 50)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(50), (3, 1)))
    assert len({order.tobytes() for order in orders}) == 3
    assert not any(np.array_equal(order, np.arange(50)) for order in orders)
    rates = np.concatenate([rates for _, rates, _ in calls])
    assert np.array_equal(rates, schedule.rates(0, 12, 4))
    assert len(set(rates)) > 8
    if chunk_seconds < 1:
        assert len(calls) == 12
    assert recorder.closed == 1


def test_the_data_may_come_as_lists_and_in_other_types() -> None:
    x, y = problem(40)
    wanted = train(NETWORK, x, y, settings=set_up()).state
    for same_x, same_y in (
        (x.tolist(), y.tolist()),
        (x.astype(np.float64), y.astype(np.uint8)),
        (np.asfortranarray(x), y.astype(np.int16)),
        (np.repeat(x, 2, axis=0)[::2], np.repeat(y, 2)[::2]),
    ):
        assert same_bits(train(NETWORK, same_x, same_y, settings=set_up()).state, wanted)
    ints = np.arange(160).reshape(40, 4) % 7
    as_float = train(NETWORK, ints.astype(np.float32), y, settings=set_up()).state
    assert same_bits(train(NETWORK, ints, y, settings=set_up()).state, as_float)


def test_the_data_are_not_changed_nor_kept_writable() -> None:
    x, y = problem(40)
    copies = x.copy(), y.copy()
    x.flags.writeable = y.flags.writeable = False
    train(NETWORK, x, y, settings=set_up(), validation=(x, y))
    assert same_bits((x, y), copies)


def test_scaling_is_applied_and_stored_with_the_model(backend: str) -> None:
    x, y = problem()
    pixels = (128 + 30 * x).clip(0, 255).astype(np.uint8)
    scaling = fit_scaling("zscore", pixels)
    training = train(NETWORK, pixels, y, settings=set_up(backend=backend), scaling=scaling)
    by_hand = train(NETWORK, scaling.apply(pixels), y, settings=set_up(backend=backend))
    assert same_bits(training.state, by_hand.state)
    assert training.model.scaling is scaling
    assert same_bits(training.model.forward(pixels), by_hand.model.forward(scaling.apply(pixels)))


def test_regression_has_no_accuracy() -> None:
    x, _ = problem(100)
    network = Network((4, 12, 2), activation="tanh", loss="squared-error")
    targets = np.stack([x[:, 0] * x[:, 1], np.sin(x[:, 2])], axis=1)
    training = train(network, x, targets, settings=set_up(epochs=60), validation=(x, targets))
    assert all(row["accuracy"] is None and row["val_accuracy"] is None for row in training.history)
    assert training.history[-1]["val_loss"] < 0.5 * training.history[0]["val_loss"]
    assert training.model.classes == ()
    assert training.model.predict(x).shape == (100, 2)


def test_one_hot_targets_are_classes_given_differently() -> None:
    x, y = problem(50)
    one = train(NETWORK, x, y, settings=set_up(dtype=np.float64))
    other = train(NETWORK, x, np.eye(3)[y], settings=set_up(dtype=np.float64))
    np.testing.assert_allclose(other.state.parameters, one.state.parameters, rtol=1e-12)
    assert one.history[0]["accuracy"] is not None
    assert other.history[0]["accuracy"] is None


def test_float64_is_kept_from_data_to_model() -> None:
    x, y = problem(50)
    x = x.astype(np.float64) + 1e-9  # digits that float32 has not
    one = train(NETWORK, x, y, settings=set_up(dtype=np.float64))
    assert one.state.parameters.dtype == one.model.parameters.dtype == np.float64
    other = train(NETWORK, x.astype(np.float32), y, settings=set_up(dtype=np.float64))
    assert not np.array_equal(one.state.parameters, other.state.parameters)


def test_class_names_are_stored_or_numbered() -> None:
    x, y = problem(40)
    assert train(NETWORK, x, y, settings=set_up()).model.classes == ("0", "1", "2")
    named = train(NETWORK, x, y, settings=set_up(), classes=["low", "mid", "high"])
    assert named.model.classes == ("low", "mid", "high")


# ------------------------------------------------------------------------------------------------ sample weights


def test_weights_are_repetitions() -> None:
    """A row of weight 3 in one batch with all others is three rows."""
    x, y = problem(40)
    times = np.random.default_rng(0).integers(1, 4, 40)
    of_all = {"dtype": np.float64, "schedule": Schedule(0.3)}
    weighted = train(NETWORK, x, y, settings=set_up(batch_size=40, **of_all), sample_weight=times)
    repeated = train(
        NETWORK, np.repeat(x, times, 0), np.repeat(y, times), settings=set_up(batch_size=times.sum(), **of_all)
    )
    np.testing.assert_allclose(weighted.state.parameters, repeated.state.parameters, rtol=1e-10)
    for key in ("loss", "accuracy"):
        found, wanted = ([row[key] for row in t.history] for t in (weighted, repeated))
        assert found == pytest.approx(wanted, rel=1e-10)
    plain = train(NETWORK, x, y, settings=set_up(batch_size=40, **of_all))
    assert not np.allclose(plain.state.parameters, weighted.state.parameters, rtol=1e-6)


def test_weights_reach_the_engine(recorders: list[Recorder]) -> None:
    x, y = problem(40)
    weights = np.random.default_rng(0).uniform(0.5, 2, 40)
    train(NETWORK, x, y, settings=set_up(), sample_weight=weights.tolist())
    for order, _, seen in recorders[0].calls:
        assert len(order) == 0 or np.array_equal(seen, weights.astype(np.float32))


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
    training = train(
        NETWORK, x, y, settings=set_up(**changes, patience=patience), validation=validation, callbacks=[keeper]
    )
    assert (training.best_epoch, len(training.history)) == (best, last)
    assert training.stopped == ("epochs" if patience is None or last == 30 and last - best < patience else "patience")
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


def test_an_error_in_a_callback_comes_out_and_the_engine_is_closed(recorders: list[Recorder]) -> None:
    def callback(row: dict[str, Any], engine: Engine) -> None:
        raise ZeroDivisionError("mine")

    x, y = problem(60)
    with pytest.raises(ZeroDivisionError, match="mine"):
        train(NETWORK, x, y, settings=set_up(), callbacks=[callback])
    assert recorders[0].closed == 1


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


class Show:
    """A progress display that keeps what it is shown."""

    def __init__(self) -> None:
        self.updates: list[tuple[Any, ...]] = []
        self.rows: list[dict[str, Any]] = []

    def update(self, *args: Any) -> None:
        self.updates.append(args)

    def epoch_done(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def test_progress_is_shown_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastmlp.training, "CHUNK_SECONDS", 1e-9)
    x, y = problem(50)
    show = Show()
    training = train(NETWORK, x, y, settings=set_up(epochs=2), progress=show)
    assert show.rows == training.history
    assert [(epoch, done, total) for epoch, done, total, *_ in show.updates] == [
        (epoch, done, 50) for epoch in (1, 2) for done in (16, 32, 48, 50)
    ]
    for _, _, _, loss, accuracy, rate in show.updates:
        assert loss > 0
        assert 0 <= accuracy <= 1
        assert rate > 0


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
        train(BIG, x[:6000], y[:6000], settings=settings, callbacks=[keeper, start_timer], **arguments)
    return caught.value, time.monotonic() - sent[0], keeper


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_within_a_second_with_the_best_weights(backend: str, number: int) -> None:
    x, y = big_problem()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    error, seconds, keeper = interrupted(number, backend, validation=(x[6000:7000], y[6000:7000]))
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
    assert rows[:2] == [6000, 6000]
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


# ------------------------------------------------------------------------------------------------ bad input

X, Y = problem(20)[0], np.arange(20) % 3


def with_entry(value: float) -> Any:
    x = X.astype(np.float64)
    x[3, 2] = value
    return x


BAD_DATA: dict[str, tuple[Any, Any, str]] = {
    "NaN": (with_entry(np.nan), Y, "row 3, feature 2 is nan"),
    "infinite": (with_entry(-np.inf), Y, "row 3, feature 2 is -inf"),
    "too large for float32": (with_entry(1e300), Y, "row 3, feature 2"),
    "wrong features": (X[:, :3], Y, "rows of 4 features, but the data has shape"),
    "no features": (X[:, :0], Y, "rows of 4 features"),
    "flat": (X.ravel(), Y, "rows of 4 features"),
    "images": (X.reshape(20, 2, 2), Y, "rows of 4 features"),
    "object": (X.astype(object), Y, "must be numbers, not object"),
    "strings": (X.astype(str), Y, "must be numbers"),
    "complex": (X.astype(complex), Y, "must be numbers, not complex"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], [0, 1], "rows"),
    "none": (None, Y, "rows of 4 features"),
    "empty": (X[:0], Y[:0], "no rows"),
    "more rows than classes": (X, Y[:19], "20 rows but 19 targets"),
    "more classes than rows": (X[:19], Y, "19 rows but 20 targets"),
    "class too high": (X, Y + 1, "classes run from 1 to 3, but the network has outputs 0 to 2"),
    "class negative": (X, Y - 1, "classes run from -1 to 1"),
    "float classes": (X, Y.astype(float), "integer classes"),
    "classes in a column": (X, Y[:, None], "targets must be"),
    "object classes": (X, Y.astype(object), "targets must be"),
    "string classes": (X, Y.astype(str), "targets must be"),
    "no classes": (X, None, "targets"),
    "wrong number of outputs": (X, np.eye(4)[Y], r"\(n, 3\) numbers"),
    "object targets": (X, np.eye(3)[Y].astype(object), "targets must be"),
    "targets that do not sum to 1": (X, 2 * np.eye(3)[Y], "must sum to 1"),
    "targets below 0": (X, 2 * np.eye(3)[Y] - 1 / 3, "negative|below 0"),
    "NaN among the targets": (X, np.eye(3)[Y] + np.where(np.arange(60) == 7, np.nan, 0).reshape(20, 3), "targets"),
}


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize("damage", BAD_DATA)
def test_bad_data_are_refused_with_one_line(damage: str, part: str) -> None:
    x, y, message = BAD_DATA[damage]
    good, bad = (X, Y), (x, y)
    data, validation = (bad, good) if part == "training" else (good, bad)
    with pytest.raises(DataError, match=message) as caught:
        train(NETWORK, *data, settings=set_up(), validation=validation)
    assert "\n" not in str(caught.value)
    if damage not in ("NaN", "infinite", "too large for float32"):
        return
    assert "remove or fill" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_targets_of_regression_must_be_finite(value: float) -> None:
    network = Network((4, 5, 2), loss="squared-error")
    targets = np.zeros((20, 2))
    targets[4, 1] = value
    with pytest.raises(DataError, match="not finite"):
        train(network, X, targets, settings=set_up())


BAD_WEIGHTS: dict[str, Any] = {
    "too few": np.ones(19),
    "too many": np.ones(21),
    "a column": np.ones((20, 1)),
    "a number": 1.0,
    "zero": np.where(np.arange(20) == 3, 0, 1),
    "negative": np.where(np.arange(20) == 3, -1, 1),
    "NaN": np.where(np.arange(20) == 3, np.nan, 1),
    "infinite": np.where(np.arange(20) == 3, np.inf, 1),
    "too large for float32": np.where(np.arange(20) == 3, 1e300, 1),
    "too small for float32": np.where(np.arange(20) == 3, 1e-300, 1),
    "strings": np.array(["heavy"] * 20),
    "objects": np.array([None] * 20),
}


@pytest.mark.parametrize("damage", BAD_WEIGHTS)
def test_bad_sample_weights_are_refused(damage: str) -> None:
    with pytest.raises(DataError, match="sample_weight must be 20 positive finite numbers"):
        train(NETWORK, X, Y, settings=set_up(), sample_weight=BAD_WEIGHTS[damage])


def test_a_scaling_of_other_features_is_refused(backend: str) -> None:
    for features in (1, 3, 5):
        scaling = fit_scaling("zscore", np.random.default_rng(0).random((9, features)).astype(np.float32))
        with pytest.raises(DataError, match="features"):
            train(NETWORK, X, Y, settings=set_up(backend=backend), scaling=scaling)


def test_the_wrong_number_of_class_names_is_refused() -> None:
    with pytest.raises((ConfigError, DataError), match="class"):
        train(NETWORK, X, Y, settings=set_up(), classes=("only", "two"))


def test_patience_needs_a_validation_part() -> None:
    with pytest.raises(ConfigError, match="patience needs a validation part"):
        train(NETWORK, X, Y, settings=set_up(patience=3))


def test_accuracy_cannot_be_monitored_in_regression() -> None:
    network = Network((4, 5, 3), loss="squared-error")
    with pytest.raises(ConfigError, match="needs classes"):
        train(network, X, X[:, :3], settings=set_up(monitor="accuracy"), validation=(X, X[:, :3]))


def test_training_and_validation_must_be_of_one_kind() -> None:
    """Classes here and plain targets there: there is no accuracy to watch."""
    with pytest.raises((ConfigError, DataError)):
        train(NETWORK, X, Y, settings=set_up(monitor="accuracy"), validation=(X, np.eye(3)[Y]))


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "epochs must be at least 1"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"patience": 0}, "patience must be at least 1"),
    ({"threads": 0}, "threads must be at least 1"),
    ({"monitor": "acuracy"}, "monitor must be loss or accuracy"),
    ({"max_time": 0.0}, "max_time must be"),
    ({"max_time": -1.0}, "max_time must be"),
    ({"max_time": float("nan")}, "max_time must be"),
    ({"seed": -1}, "seed must be"),
    ({"seed": 2**64}, "seed must be"),
    ({"min_delta": -0.1}, "min_delta must"),
    ({"min_delta": float("nan")}, "min_delta must"),
    ({"epochs": 2.5}, "epochs must be"),
    ({"batch_size": 16.0}, "batch_size must be"),
    ({"seed": 1.5}, "seed must be"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_up(**changes)


def test_an_unknown_backend_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'numba'"):
        train(NETWORK, X, Y, settings=set_up(backend="nunba"))


def test_auto_takes_an_engine_that_computes_in_the_dtype() -> None:
    training = train(NETWORK, X, Y, settings=set_up(backend="auto", dtype=np.float64))
    assert training.backend == "numpy"
    assert training.model.predict(X).shape == (20,)


def test_the_largest_seed_works() -> None:
    states = [train(NETWORK, X, Y, settings=set_up(seed=seed)).state for seed in (2**64 - 1, 2**64 - 2)]
    assert not same_bits(*states)


def test_the_defaults_train(numba_backend: str) -> None:
    """No settings at all: the fastest engine, SGD; the figures of its first epoch are those of the specification."""
    x, y = problem(100)
    training = train(NETWORK, x, y)
    assert training.backend == numba_backend
    assert len(training.history) == Settings().epochs
    reference = train(NETWORK, x, y, settings=Settings(backend="numpy", epochs=1))
    assert training.history[0]["loss"] == pytest.approx(reference.history[0]["loss"], rel=100 * EPS)
