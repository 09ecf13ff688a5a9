"""Tests of the training loop: row order, engine calls, history, and the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import same_bits
from support.problems import problem, set_up

import fastmlp.engines.chunks
import fastmlp.training.loop
from fastmlp.data.rows import Subset
from fastmlp.data.scaling import fit_scaling
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, RowMetrics, State
from fastmlp.errors import ConfigError
from fastmlp.models.metrics import mean_metrics
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import SGD, Optimizer
from fastmlp.nn.philox import generator
from fastmlp.nn.schedules import Schedule
from fastmlp.training.api import train

KEYS = [
    "epoch",
    "rows",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "seconds",
    "eval_seconds",
    "rows_per_second",
]
TIMES = ("seconds", "eval_seconds", "rows_per_second")
NETWORK = Network((4, 12, 3))


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


class Recorder:
    """A wrapper around an engine that records the arguments of calls."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name, self.threads = engine, engine.name, engine.threads
        self.calls: list[tuple[Any, Any, Any]] = []
        self.forwards: list[tuple[str, int]] = []
        self.holds: list[tuple[str, int]] = []
        self.evaluations = 0
        self.closed = 0

    def load(self, state: State) -> None:
        self.engine.load(state)

    def state(self, slots: bool = True) -> State:
        return self.engine.state(slots)

    def train(self, x: Any, y: Any, order: Any, rates: Any, weights: Any = None) -> RowMetrics:
        self.calls.append((order.copy(), rates.copy(), weights))
        return self.engine.train(x, y, order, rates, weights)

    def forward(self, x: Any) -> Any:
        self.forwards.append((x.dtype.name, len(x)))
        return self.engine.forward(x)

    def hold(self, x: Any, y: Any) -> Any:
        self.holds.append((x.dtype.name, len(x)))
        return self.engine.hold(x, y)

    def evaluate(self, held: Any, z: Any = None) -> RowMetrics:
        self.evaluations += 1
        return self.engine.evaluate(held, z)

    def close(self) -> None:
        self.closed += 1
        self.engine.close()


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Wrap all engines that `train` creates during the test, and return the list of wrappers."""
    made: list[Recorder] = []

    def make(backend: str, job: EngineSpec) -> Recorder:
        made.append(Recorder(make_engine(backend, job)))
        return made[-1]

    monkeypatch.setattr(fastmlp.training.loop, "make_engine", make)
    return made


def test_training_equals_an_explicit_loop(backend: str) -> None:
    """`train` gives the same history and state as direct engine calls with the initial weights and row order of the seed."""
    x, y = problem(50)
    schedule = Schedule("inverse-time", decay=0.5, warmup=0.5)
    settings = set_up(optimizer=SGD(0.2), schedule=schedule, epochs=3, seed=5, backend=backend)
    training = train(NETWORK, (x, y), settings=settings, scaling=None)
    engine = make_engine(backend, EngineSpec(NETWORK, Optimizer("sgd"), batch_size=16, seed=5))
    engine.load(State(NETWORK.initial_parameters(5), np.empty((0, NETWORK.parameters), np.float32), 0))
    history = []
    for epoch in range(1, 4):
        rates = 0.2 * schedule.multipliers(4 * (epoch - 1), 4, 4, 3)
        results = engine.train(x, y.astype(np.int32), generator(5, "order", epoch).permutation(50), rates)
        history.append((float(results.loss.astype(np.float64).mean()), float(results.correct.mean()), rates[0]))
    assert same_bits(training.state, engine.state())
    engine.close()
    found = [(row["loss"], row["accuracy"], row["lr"]) for row in training.history]
    np.testing.assert_allclose(found, history, rtol=1e-12)
    assert training.stopped == "epochs"
    assert training.state.step == 12
    assert (training.backend, training.best_epoch) == (backend, 3)


@pytest.mark.parametrize("mapped", [False, True])
def test_rows_that_are_not_shuffled_have_the_same_mini_batches_in_every_epoch(
    mapped: bool, tmp_path: Path, recorders: list[Recorder]
) -> None:
    """The rows stay in the order of the training data, with the weights of each row, for arrays and for subsets of arrays."""
    x, y = problem(50)
    weights, chosen = np.linspace(1, 2, 50, dtype=np.float32), np.random.default_rng(1).permutation(50)[:40]
    np.save(tmp_path / "x.npy", x)
    given: Any = Subset(np.load(tmp_path / "x.npy", mmap_mode="r"), chosen) if mapped else x[chosen]
    settings = set_up(epochs=3, shuffle=False, backend="numpy")
    found = train(NETWORK, (given, y[chosen]), settings=settings, sample_weight=weights[chosen], scaling=None)
    rows = np.concatenate([indices for indices, _, _ in recorders[-1].calls if len(indices)])
    assert rows.tolist() == (chosen if mapped else np.arange(40)).tolist() * 3
    engine = make_engine("numpy", EngineSpec(NETWORK, SGD(0.1), batch_size=16, seed=0))
    engine.load(State(NETWORK.initial_parameters(0), np.empty((0, NETWORK.parameters), np.float32), 0))
    for _ in range(3):
        engine.train(x[chosen], y[chosen].astype(np.int32), np.arange(40), np.full(3, 0.1), weights[chosen])
    assert same_bits(found.state, engine.state())


def test_history_has_a_row_per_epoch_with_the_documented_keys() -> None:
    x, y = problem()
    validated = train(NETWORK, (x, y), settings=set_up(), validation=problem(30, 1), scaling=None).history
    without = train(NETWORK, (x, y), settings=set_up(), scaling=None).history
    for history in (validated, without):
        assert [row["epoch"] for row in history] == [1, 2, 3, 4]
        assert all(list(row) == KEYS for row in history)
        assert all(row["rows"] == 150 and row["lr"] == 0.1 for row in history)
        assert all(row["seconds"] > 0 and row["eval_seconds"] >= 0 for row in history)
        assert all(row["rows_per_second"] == pytest.approx(row["rows"] / row["seconds"]) for row in history)
        assert all(0 <= row["accuracy"] <= 1 for row in history)
        assert {type(row[key]) for row in history for key in ("loss", "accuracy", "lr", "seconds")} == {float}
    assert all(row["val_loss"] is None and row["val_accuracy"] is None for row in without)
    assert all(type(row["val_loss"]) is type(row["val_accuracy"]) is float for row in validated)


def test_training_reaches_high_accuracy(backend: str) -> None:
    x, y = problem(300)
    training = train(NETWORK, (x, y), settings=set_up(optimizer=SGD(0.3), epochs=60, backend=backend), scaling=None)
    assert (training.model.predict(x) == y).mean() > 0.95
    assert training.history[-1]["loss"] < 0.5 * training.history[0]["loss"]


def test_validation_metrics_equal_those_of_the_model(backend: str) -> None:
    """Validation metrics do not include penalties or label smoothing."""
    x, y = problem()
    validation = problem(40, 1)
    network = Network((4, 12, 3), l2=0.1, label_smoothing=0.2)
    training = train(network, (x, y), settings=set_up(backend=backend), validation=validation, scaling=None)
    row = training.history[training.best_epoch - 1]
    metrics = training.model.evaluate(*validation)
    assert (row["val_loss"], row["val_accuracy"]) == (metrics["loss"], metrics["accuracy"])
    plain = np.log(training.model.predict_proba(validation[0]))[np.arange(40), validation[1]]
    assert row["val_loss"] == pytest.approx(-plain.mean(), rel=1e-6)


def test_training_is_a_function_of_the_seed(backend: str) -> None:
    x, y = problem()
    one, same, other = (train(NETWORK, (x, y), settings=set_up(seed=s, backend=backend), scaling=None) for s in (1, 1, 2))
    assert same_bits(one.state, same.state)
    assert same_bits(one.model.parameters, same.model.parameters)
    assert timeless(one.history) == timeless(same.history)
    assert not same_bits(one.state, other.state)
    assert timeless(one.history) != timeless(other.history)


STEP_KEYS = ["step", "epoch", "loss", "val_loss", "val_accuracy"]


@pytest.mark.parametrize("chunk_seconds", [1e-9, 1e9])
@pytest.mark.parametrize("every", [1, 3, 4, 7, 100])
def test_validation_every_val_steps_updates(every: int, chunk_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation happens after the expected updates, and its metrics equal those of direct engine calls."""
    monkeypatch.setattr(fastmlp.engines.chunks, "CHUNK_SECONDS", chunk_seconds)
    x, y = problem(50)
    validation = problem(30, 1)
    training = train(
        NETWORK, (x, y), settings=set_up(epochs=3, val_steps=every, backend="numpy"), validation=validation, scaling=None
    )
    steps = [step for row in training.history for step in row["steps"]]
    assert [step["step"] for step in steps] == [step for step in range(1, 13) if step % every == 0]
    assert all(list(step) == STEP_KEYS for step in steps)
    assert all(step["epoch"] == step["step"] / 4 for step in steps)
    engine = make_engine("numpy", EngineSpec(NETWORK, Optimizer("sgd"), batch_size=16))
    engine.load(State(NETWORK.initial_parameters(0), np.empty((0, NETWORK.parameters), np.float32), 0))
    held = engine.hold(validation[0], validation[1].astype(np.int32))
    expected, losses = {}, []
    for step in range(1, 13):
        order = generator(0, "order", (step - 1) // 4 + 1).permutation(50)[(step - 1) % 4 * 16 :][:16]
        losses = losses[len(losses) * ((step - 1) % 4 == 0) :]  # reset in each epoch
        losses.append(engine.train(x, y.astype(np.int32), order, np.full(1, 0.1)).loss.astype(np.float64))
        expected[step] = (np.concatenate(losses).mean(), *mean_metrics(engine, held, classes=True))
        losses = losses[len(losses) * (step % every == 0) :]
    found = [(step["loss"], step["val_loss"], step["val_accuracy"]) for step in steps]
    np.testing.assert_allclose(found, [expected[step["step"]] for step in steps] or np.empty((0, 3)).tolist(), rtol=1e-12)
    plain = train(NETWORK, (x, y), settings=set_up(epochs=3, backend="numpy"), validation=validation, scaling=None)
    assert same_bits(plain.state, training.state)
    assert timeless(plain.history) == [{k: v for k, v in row.items() if k != "steps"} for row in timeless(training.history)]


def test_val_steps_needs_a_validation_split_and_a_positive_number() -> None:
    x, y = problem()
    with pytest.raises(ConfigError, match="val_steps needs a validation split"):
        train(NETWORK, (x, y), settings=set_up(val_steps=5), scaling=None)
    with pytest.raises(ConfigError, match="val_steps must be at least 1"):
        set_up(val_steps=0)


def test_the_size_of_chunks_does_not_change_the_bits(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk sizes depend on measured times, so results must not depend on chunk sizes."""
    x, y = problem()
    network = Network((4, 18, 3), dropout=0.3)
    found = []
    for seconds in (1e-9, 1e9):
        monkeypatch.setattr(fastmlp.engines.chunks, "CHUNK_SECONDS", seconds)
        found.append(
            train(network, (x, y), settings=set_up(backend=backend), sample_weight=np.linspace(1, 2, 150), scaling=None)
        )
    assert same_bits(found[0].state, found[1].state)
    assert timeless(found[0].history) == timeless(found[1].history)


@pytest.mark.usefixtures("eager_threads")
def test_the_number_of_threads_does_not_change_the_bits(numba_backend: str) -> None:
    x, y = problem()
    found = [train(NETWORK, (x, y), settings=set_up(backend=numba_backend, threads=t), scaling=None) for t in (1, 2, 3)]
    assert [training.threads for training in found] == [1, 2, 3]
    assert same_bits(found[0].state, found[1].state)
    assert same_bits(found[0].state, found[2].state)


@pytest.mark.parametrize("chunk_seconds", [1e-9, 1e9])
def test_orders_and_rates_that_the_engine_sees(
    recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch, chunk_seconds: float
) -> None:
    monkeypatch.setattr(fastmlp.engines.chunks, "CHUNK_SECONDS", chunk_seconds)
    x, y = problem(50)
    schedule = Schedule("cosine", warmup=0.5)
    train(NETWORK, (x, y), settings=set_up(schedule=schedule, epochs=3), scaling=None)
    (recorder,) = recorders
    calls = [call for call in recorder.calls if len(call[0])]
    assert all(len(order) % 16 == 0 or len(order) % 16 == 2 for order, _, _ in calls)  # 2 rows in the last batch
    assert all(len(rates) == -(-len(order) // 16) for order, rates, _ in calls)
    orders = np.concatenate([order for order, _, _ in calls]).reshape(3, 50)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(50), (3, 1)))
    assert len({order.tobytes() for order in orders}) == 3
    assert not any(np.array_equal(order, np.arange(50)) for order in orders)
    rates = np.concatenate([rates for _, rates, _ in calls])
    assert np.array_equal(rates, 0.1 * schedule.multipliers(0, 12, 4, 3))
    assert len(set(rates)) > 8
    if chunk_seconds < 1:
        assert len(calls) == 12
    assert recorder.closed == 1


def test_a_small_epoch_is_one_call_and_the_first_chunk_of_a_large_one_is_small(recorders: list[Recorder]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 300)).astype(np.float32), rng.integers(0, 3, 500)
    train(Network((300, 3)), (x, y), settings=set_up(epochs=1), scaling=None)
    train(Network((300, 300, 3)), (x, y), settings=set_up(epochs=1), scaling=None)
    small, large = ([len(order) for order, _, _ in recorder.calls if len(order)] for recorder in recorders)
    assert small == [500]
    assert large[0] == 16


def test_kernels_are_compiled_before_the_first_step(recorders: list[Recorder]) -> None:
    """Kernels are compiled for the dtypes of the training and the validation split, which may differ."""
    pixels = np.arange(160, dtype=np.uint8).reshape(40, 4)
    y = np.arange(40) % 3
    train(NETWORK, (pixels, y), settings=set_up(epochs=3), validation=(pixels / 255, y), scaling=None)
    (recorder,) = recorders
    assert recorder.forwards == [("uint8", 0)]
    assert recorder.holds == [("float32", 40), ("float32", 0)]  # the validation split is passed once, not per epoch
    assert recorder.evaluations == 4
    assert len(recorder.calls[0][0]) == 0


def test_data_can_be_lists_or_have_other_dtypes() -> None:
    x, y = problem(40)
    wanted = train(NETWORK, (x, y), settings=set_up(), scaling=None).state
    for same_x, same_y in (
        (x.tolist(), y.tolist()),
        (x.astype(np.float64), y.astype(np.uint8)),
        (np.asfortranarray(x), y.astype(np.int16)),
        (np.repeat(x, 2, axis=0)[::2], np.repeat(y, 2)[::2]),
    ):
        assert same_bits(train(NETWORK, (same_x, same_y), settings=set_up(), scaling=None).state, wanted)
    ints = np.arange(160).reshape(40, 4) % 7
    as_float = train(NETWORK, (ints.astype(np.float32), y), settings=set_up(), scaling=None).state
    assert same_bits(train(NETWORK, (ints, y), settings=set_up(), scaling=None).state, as_float)


def test_read_only_data_can_be_trained_on_and_stay_unchanged() -> None:
    x, y = problem(40)
    copies = x.copy(), y.copy()
    x.flags.writeable = y.flags.writeable = False
    train(NETWORK, (x, y), settings=set_up(), validation=(x, y), scaling=None)
    assert same_bits((x, y), copies)


def test_scaling_is_applied_and_stored_with_the_model(backend: str) -> None:
    x, y = problem()
    pixels = (128 + 30 * x).clip(0, 255).astype(np.uint8)
    scaling = fit_scaling("zscore", pixels)
    training = train(NETWORK, (pixels, y), settings=set_up(backend=backend), scaling=scaling)
    explicit = train(NETWORK, (scaling.apply(pixels), y), settings=set_up(backend=backend), scaling=None)
    assert same_bits(training.state, explicit.state)
    assert training.model.scaling is scaling
    assert same_bits(training.model.forward(pixels), explicit.model.forward(scaling.apply(pixels)))


def test_regression_has_no_accuracy() -> None:
    x, _ = problem(100)
    network = Network((4, 12, 2), activation="tanh", loss="squared-error")
    targets = np.stack([x[:, 0] * x[:, 1], np.sin(x[:, 2])], axis=1)
    training = train(network, (x, targets), settings=set_up(epochs=60), validation=(x, targets), scaling=None)
    assert all(row["accuracy"] is None and row["val_accuracy"] is None for row in training.history)
    assert training.history[-1]["val_loss"] < 0.5 * training.history[0]["val_loss"]
    assert training.model.classes == ()
    assert training.model.predict(x).shape == (100, 2)


def test_one_hot_targets_are_equivalent_to_labels() -> None:
    x, y = problem(50)
    one = train(NETWORK, (x, y), settings=set_up(dtype=np.float64), scaling=None)
    other = train(NETWORK, (x, np.eye(3)[y]), settings=set_up(dtype=np.float64), scaling=None)
    np.testing.assert_allclose(other.state.parameters, one.state.parameters, rtol=1e-12)
    assert one.history[0]["accuracy"] is not None
    assert other.history[0]["accuracy"] is None


def test_float64_data_are_not_rounded_to_float32() -> None:
    x, y = problem(50)
    x = x.astype(np.float64) + 1e-9  # not representable in float32
    one = train(NETWORK, (x, y), settings=set_up(dtype=np.float64), scaling=None)
    assert one.state.parameters.dtype == one.model.parameters.dtype == np.float64
    other = train(NETWORK, (x.astype(np.float32), y), settings=set_up(dtype=np.float64), scaling=None)
    assert not np.array_equal(one.state.parameters, other.state.parameters)


def test_class_names_are_stored_and_default_to_numbers() -> None:
    x, y = problem(40)
    assert train(NETWORK, (x, y), settings=set_up(), scaling=None).model.classes == ("0", "1", "2")
    named = train(NETWORK, (x, y), settings=set_up(), classes=["low", "mid", "high"], scaling=None)
    assert named.model.classes == ("low", "mid", "high")


# ------------------------------------------------------------------------------------------------ sample weights


def test_integer_weights_are_equivalent_to_repeated_rows() -> None:
    """In full-batch training, a row with weight 3 is equivalent to three copies of the row."""
    x, y = problem(40)
    times = np.random.default_rng(0).integers(1, 4, 40)
    common = {"dtype": np.float64, "optimizer": SGD(0.3)}
    settings = set_up(batch_size=40, val_steps=1, **common)
    weighted = train(NETWORK, (x, y), settings=settings, sample_weight=times, validation=(x, y), scaling=None)
    repeated = train(
        NETWORK, (np.repeat(x, times, 0), np.repeat(y, times)), settings=set_up(batch_size=times.sum(), **common), scaling=None
    )
    np.testing.assert_allclose(weighted.state.parameters, repeated.state.parameters, rtol=1e-10)
    for key in ("loss", "accuracy"):
        found, wanted = ([row[key] for row in t.history] for t in (weighted, repeated))
        assert found == pytest.approx(wanted, rel=1e-10)
    whole = [(row["loss"], [step["loss"] for step in row["steps"]]) for row in weighted.history]
    assert all(steps == [loss] for loss, steps in whole)  # one validation per epoch, which covers all rows of the epoch
    plain = train(NETWORK, (x, y), settings=set_up(batch_size=40, **common), scaling=None)
    assert not np.allclose(plain.state.parameters, weighted.state.parameters, rtol=1e-6)


def test_weights_are_passed_to_the_engine(recorders: list[Recorder]) -> None:
    x, y = problem(40)
    weights = np.random.default_rng(0).uniform(0.5, 2, 40)
    train(NETWORK, (x, y), settings=set_up(), sample_weight=weights.tolist(), scaling=None)
    for order, _, seen in recorders[0].calls:
        assert len(order) == 0 or np.array_equal(seen, weights.astype(np.float32))


class RecordedProgress:
    """A progress display that records its calls."""

    def __init__(self) -> None:
        self.updates: list[tuple[Any, ...]] = []
        self.rows: list[dict[str, Any]] = []

    def update(self, *args: Any) -> None:
        self.updates.append(args)

    def epoch_done(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def test_progress_is_updated_after_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastmlp.engines.chunks, "CHUNK_SECONDS", 1e-9)
    x, y = problem(50)
    progress = RecordedProgress()
    training = train(NETWORK, (x, y), settings=set_up(epochs=2), progress=progress, scaling=None)
    assert progress.rows == training.history
    assert [(epoch, done, total) for epoch, done, total, *_ in progress.updates] == [
        (epoch, done, 50) for epoch in (1, 2) for done in (16, 32, 48, 50)
    ]
    for _, _, _, loss, accuracy, rows_per_second in progress.updates:
        assert loss > 0
        assert 0 <= accuracy <= 1
        assert rows_per_second > 0


def test_progress_gets_the_patience_but_the_history_does_not() -> None:
    x, y = problem(60)
    progress = RecordedProgress()
    pair, settings = (x, y), set_up(epochs=40, patience=3)
    training = train(NETWORK, pair, (x[:20], y[:20][::-1]), settings=settings, progress=progress, scaling=None)
    assert training.stopped == "patience"
    best, waited = np.inf, []
    for log in training.history:
        waited.append(0 if log["val_loss"] < best else waited[-1] + 1)
        best = min(best, log["val_loss"])
    assert [row.pop("patience") for row in progress.rows] == [(epochs, 3) for epochs in waited]
    assert progress.rows == training.history
    assert "patience" not in training.history


def test_an_error_in_a_callback_propagates_and_the_engine_is_closed(recorders: list[Recorder]) -> None:
    def callback(row: dict[str, Any], engine: Engine) -> None:
        raise ZeroDivisionError("mine")

    x, y = problem(60)
    with pytest.raises(ZeroDivisionError, match="mine"):
        train(NETWORK, (x, y), settings=set_up(), callbacks=[callback], scaling=None)
    assert recorders[0].closed == 1
