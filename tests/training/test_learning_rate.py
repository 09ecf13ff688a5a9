"""Tests of the learning-rate range test: its losses, its end, its suggestion, and its errors."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from support.data import message
from support.engines import marks_of, need_backend, same_bits, simulation
from support.problems import problem

import fastmlp
from fastmlp import SGD, Adam, ConfigError, DataError, DivergedError, Network, Settings, find_learning_rate
from fastmlp.data.checks import check_rows
from fastmlp.data.scaling import fit_scaling
from fastmlp.engines import chunks, make_engine
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.philox import generator
from fastmlp.training.augment import augment, sample_augmentation
from fastmlp.training.learning_rate import LearningRateCurve, longest_descent

X, Y = problem(60)
SHORT: dict[str, Any] = {"batch_size": 16, "backend": "numpy", "seed": 3}

CHECKPOINTS = ("checkpoints", "checkpoint_seconds", "resume", "strict")


def found(x: Any = X, y: Any = Y, network: Network | None = None, **changes: Any) -> LearningRateCurve:
    return find_learning_rate(network or Network(hidden=(12,)), (x, y), **{**SHORT, **changes})


def explicit(
    network: Network, x: Any, y: Any, settings: Settings, learning_rates: Any, weights: Any = None, shape: Any = None
) -> Any:
    """Return the losses of a loop that trains one mini-batch at a time with the NumPy engine, from the definition."""
    x = check_rows(x, network.sizes[0], np.float32)
    spec = EngineSpec(network, settings.optimizer, settings.batch_size, settings.seed, fit_scaling("zscore", x))
    engine, losses = make_engine("numpy", spec), []
    slots = np.zeros((len(settings.optimizer.slots), network.parameters), np.float32)
    engine.load(State(network.initial_parameters(settings.seed, np.float32), slots, 0))
    rates = iter(learning_rates)
    for epoch in itertools.count(1):
        order = generator(settings.seed, "order", epoch).permutation(len(x)) if settings.shuffle else np.arange(len(x))
        moved = x[order]
        if settings.flip or settings.shift:
            moved = augment(moved, shape, sample_augmentation(settings.seed, epoch, len(x), settings.flip, settings.shift))
        for start in range(0, len(x), settings.batch_size):
            if (rate := next(rates, None)) is None:
                return np.array(losses)
            rows = np.arange(start, min(start + settings.batch_size, len(x)))
            of_order = None if weights is None else weights[order]
            loss = engine.train(moved, y[order], rows, np.array([rate]), of_order).loss.astype(np.float64)
            shares = np.full(len(rows), 1 / len(rows))
            if of_order is not None:
                shares = of_order[rows].astype(np.float64)
                shares /= in_order(shares)
            losses.append(in_order(loss * shares))
    raise AssertionError


def in_order(values: Any) -> Any:
    """Return the sum of the values, added in the order in which NumPy adds a segment of an array."""
    return np.add.reduceat(values, [0])[0]


# ------------------------------------------------------------------------------------------------ losses

IMAGES = np.random.default_rng(1).normal(size=(60, 4, 4, 1)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).uniform(0.5, 2, 60).astype(np.float32)
TARGETS = (X @ np.array([[1.0], [2], [0], [-1]], np.float32) + 3).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "y", "network", "changes"),
    [
        (X, Y, Network((4, 12, 3)), {"optimizer": "adam"}),
        (X, Y, Network((4, 9, 3), dropout=0.3, l2=0.01), {"optimizer": Adam(max_grad_norm=1.0), "batch_size": 7}),
        (X, Y, Network((4, 12, 3)), {"optimizer": "momentum", "sample_weight": WEIGHTS}),
        (X, Y, Network((4, 12, 3)), {"optimizer": "adam", "shuffle": False, "sample_weight": WEIGHTS}),
        (X, TARGETS, Network((4, 5, 1), loss="squared-error"), {"optimizer": "sgd", "target_scaling": None}),
        (IMAGES, Y, Network((16, 8, 3)), {"optimizer": "sgd", "flip": 0.5, "shift": 1}),
    ],
    ids=["adam", "dropout", "weights", "not shuffled", "regression", "augmentation"],
)
def test_losses_are_those_of_an_explicit_loop(x: Any, y: Any, network: Network, changes: dict[str, Any]) -> None:
    given = {**SHORT, **changes}
    curve = found(x, y, network, **given, steps=40, start=1e-4, end=0.1)
    assert same_bits(curve.learning_rates, np.geomspace(1e-4, 0.1, 40))
    settings = Settings(**{name: given[name] for name in given.keys() - {"sample_weight", "target_scaling"}})
    weights, y = given.get("sample_weight"), y.astype(np.int32) if y.ndim == 1 else y
    assert same_bits(curve.losses, explicit(network, x, y, settings, curve.learning_rates, weights, x.shape[1:]))


def test_the_engine_receives_the_learning_rates_in_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    train = NumpyEngine.train

    def spy(self: NumpyEngine, x: Any, y: Any, indices: Any, learning_rates: Any, weights: Any = None) -> Any:
        seen.append((learning_rates, indices))
        return train(self, x, y, indices, learning_rates, weights)

    monkeypatch.setattr(NumpyEngine, "train", spy)
    curve = found(optimizer="sgd", end=0.1, steps=20)
    assert same_bits(np.concatenate([rates for rates, _ in seen]), np.geomspace(1e-7, 0.1, 20))
    assert same_bits(curve.learning_rates, np.geomspace(1e-7, 0.1, 20))
    order = np.concatenate([generator(3, "order", epoch).permutation(60) for epoch in range(1, 6)])
    assert np.concatenate([rows for _, rows in seen]).tolist() == order.tolist()  # 20 mini-batches are five whole passes
    assert len(seen) < 12  # one call compiles the kernels, and a call has at least one mini-batch


def test_the_number_of_mini_batches_per_call_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = found()
    monkeypatch.setattr(chunks, "CHUNK_SECONDS", 1e-9)  # one mini-batch per call
    assert same_bits(dataclasses.astuple(found()), dataclasses.astuple(wanted))


@pytest.mark.parametrize("backend", [pytest.param(name, marks=marks_of(name)) for name in ("numba", "torch", "cuda")])
def test_all_backends_give_the_same_curve(backend: str) -> None:
    range_of_rates: dict[str, Any] = {"start": 1e-3, "end": 0.1, "steps": 20}
    with simulation():
        one = found(backend=need_backend(backend), **range_of_rates)
    other = found(**range_of_rates)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)
    assert same_bits(one.learning_rates, other.learning_rates)
    assert one.suggestion == other.suggestion


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    one, *others = (found(backend="numba", threads=threads, network=Network(hidden=(64, 32))) for threads in (1, 2, 3))
    for other in others:
        assert same_bits(dataclasses.astuple(other), dataclasses.astuple(one))


def test_smoothed_losses_are_weighted_means() -> None:
    curve = found()
    for count in (1, 2, 10, len(curve.losses)):
        weights = 0.95 ** np.arange(count)[::-1]
        assert curve.smoothed[count - 1] == pytest.approx(np.average(curve.losses[:count], weights=weights), rel=1e-12)


def test_a_subset_of_a_mapped_array_gives_the_same_bits(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    rows = np.arange(0, 60, 2)
    mapped = fastmlp.Subset(np.load(tmp_path / "x.npy", mmap_mode="r"), rows)
    assert same_bits(dataclasses.astuple(found(mapped, Y[rows])), dataclasses.astuple(found(X[rows], Y[rows])))


def test_settings_of_the_training_run_that_have_no_effect() -> None:
    others = Settings(
        Adam(0.5), schedule=fastmlp.Cosine(warmup=1), epochs=1, patience=3, val_steps=2, max_time=1e-9, min_delta=1.0, **SHORT
    )
    assert same_bits(dataclasses.astuple(found(settings=others)), dataclasses.astuple(found(optimizer="adam")))
    assert found(settings=others, seed=4).losses[0] != found(settings=others).losses[0]


# ------------------------------------------------------------------------------------------------ end of the test


def test_divergence_stops_the_test() -> None:
    x, y = load_diabetes(return_X_y=True)
    curve = find_learning_rate(Network(), (x, y), optimizer="sgd", backend="numpy", steps=200)
    limits = 4 * np.minimum.accumulate(curve.smoothed)
    assert (curve.smoothed[:-1] <= limits[:-1]).all()
    assert curve.smoothed[-1] > limits[-1]
    assert len(curve.losses) == len(curve.smoothed) == len(curve.learning_rates) < 200
    assert curve.suggestion < curve.learning_rates[-1] / 3


def test_a_slow_increase_stops_the_test_just_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    train = NumpyEngine.train

    def increase(self: NumpyEngine, x: Any, y: Any, indices: Any, learning_rates: Any, weights: Any = None) -> Any:
        metrics = train(self, x, y, indices, learning_rates * 1e-9, weights)
        metrics.loss[:] = 1 + np.repeat(learning_rates, SHORT["batch_size"])[: len(indices)]
        return metrics

    monkeypatch.setattr(NumpyEngine, "train", increase)
    curve = found(steps=2000)
    limits = 4 * np.minimum.accumulate(curve.smoothed)
    assert (curve.smoothed[:-1] <= limits[:-1]).all()
    assert limits[-1] < curve.smoothed[-1] < 1.02 * limits[-1]
    assert len(curve.losses) < 2000


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_test(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, train = found(), NumpyEngine.train

    def overflow(self: NumpyEngine, x: Any, y: Any, indices: Any, learning_rates: Any, weights: Any = None) -> Any:
        metrics = train(self, x, y, indices, learning_rates, weights)
        metrics.loss[np.repeat(learning_rates, 16)[: len(indices)] > 0.01] = value
        return metrics

    monkeypatch.setattr(NumpyEngine, "train", overflow)
    monkeypatch.setattr(chunks, "CHUNK_SECONDS", 1e-9)  # so that each call has a single mini-batch of up to 16 rows
    curve = found()
    assert curve.learning_rates.tolist() == wanted.learning_rates[wanted.learning_rates <= 0.01].tolist()
    assert same_bits(curve.losses, wanted.losses[: len(curve.losses)])


def test_a_small_first_loss_does_not_stop_the_test() -> None:
    """The mean loss of few rows can be small by chance. With one row per mini-batch, this would stop half of the tests."""
    for seed in range(8):
        curve = found(X, TARGETS, batch_size=1, seed=seed, optimizer="adam")
        assert len(curve.losses) > 100
        assert 1e-4 < curve.suggestion < 1


# ------------------------------------------------------------------------------------------------ suggestion


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_suggestion_is_stable_for_a_quadratic_loss(scale: float) -> None:
    """Gradient descent on least squares converges for learning rates below 2 / (largest eigenvalue of X'X / n)."""
    x = scale * np.random.default_rng(0).normal(size=(64, 3)) * [1, 0.8, 0.5]
    y = x @ [[1], [-2], [1.5]] / scale
    network, plain = Network(hidden=()), {"scaling": None, "target_scaling": None, "backend": "numpy", "batch_size": 64}
    with_bias = np.column_stack([x, np.ones(64)])
    limit = 2 / np.linalg.eigvalsh(with_bias.T @ with_bias / 64).max()
    curve = find_learning_rate(network, (x, y), optimizer="sgd", end=1e4, **plain)
    assert limit / 100 < curve.suggestion < limit < curve.learning_rates[-1]
    result = fastmlp.train(network, (x, y), optimizer=SGD(curve.suggestion), epochs=300, **plain)
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 100


def test_the_suggestion_is_a_learning_rate_within_the_descent() -> None:
    curve = found()
    index = curve.learning_rates.tolist().index(curve.suggestion)
    assert curve.smoothed.min() < curve.smoothed[index] < curve.smoothed[0]
    descent = 3 + longest_descent(curve.smoothed[3:])  # the first average of 64 rows is that of four mini-batches
    assert index == descent[2 * (len(descent) - 1) // 3]


@pytest.mark.parametrize("seed", range(3))
def test_noisy_regression_has_a_useful_suggestion(seed: int) -> None:
    """At the start of the test, the slope of the smoothed loss is largest by chance; such learning rates are useless."""
    x, y = load_diabetes(return_X_y=True)
    for optimizer in ("sgd", "adam"):
        assert 1e-3 < find_learning_rate(Network(), (x, y), optimizer=optimizer, seed=seed).suggestion < 0.05


@pytest.mark.parametrize("seed", range(20))
def test_longest_descent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 8, rng.integers(1, 10)).astype(float)  # some values are equal
    path = longest_descent(values)
    assert (np.diff(path) > 0).all()
    assert (np.diff(values[path]) < 0).all()
    longest = max(
        count
        for count in range(1, len(values) + 1)
        if any((np.diff(one) < 0).all() for one in itertools.combinations(values, count))
    )
    assert len(path) == longest


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"start": 0}, "start and end must be positive numbers with start < end, not 0 and 10.0"),
        ({"start": 1, "end": 1}, "start < end, not 1 and 1"),
        ({"end": math.inf}, "start < end, not 1e-07 and inf"),
        ({"start": math.nan}, "not nan and 10.0"),
        ({"steps": 9}, "steps must be a whole number of at least 10, not 9"),
        ({"steps": 20.5}, "not 20.5"),
        ({"learning_rate": 0.1}, "no argument 'learning_rate'; write optimizer=fastmlp.Adam"),
        ({"flip": 0.5}, "flip and shift can only be used with images"),
        ({"optimizer": "sgd", "start": 1e3, "end": 1e4}, "5 learning rates from 1000 to 1.05e+03; choose a smaller start"),
        ({"end": 1e-6, "seed": 4, "batch_size": 30, "steps": 20}, "20 learning rates from 1e-07 to 1e-06; choose a larger end"),
    ],
)
def test_errors(changes: dict[str, Any], text: str) -> None:
    assert text in message(ConfigError, found, **changes)


def test_first_guesses_of_the_data() -> None:
    text = "the data must be one pair: write fastmlp.find_learning_rate(network, (x, y))"
    assert message(ConfigError, find_learning_rate, Network(), X, Y) == text
    assert message(ConfigError, find_learning_rate, Network(), (X, Y), (X, Y)) == text
    assert "must be a pair (x, y)" in message(ConfigError, find_learning_rate, Network(), X)
    assert "60 rows but 59 targets" in message(DataError, found, X, Y[1:])


def test_a_loss_that_is_not_finite_at_the_start_is_an_error() -> None:
    text = message(DivergedError, found, 1e30 * X, TARGETS, scaling=None)
    assert text == "the loss of the initial weights is not finite: scale the data with zscore"


# ------------------------------------------------------------------------------------------------ interface


def test_help_shows_the_same_settings_as_train() -> None:
    own, of_train = (inspect.signature(function).parameters for function in (find_learning_rate, fastmlp.train))
    assert own.keys() - of_train.keys() == {"start", "end", "steps"}
    assert of_train.keys() - own.keys() == {"validation", "callbacks", "progress", "seeds", *CHECKPOINTS}


def test_a_curve_has_a_short_description_and_cannot_be_changed() -> None:
    curve = LearningRateCurve(np.array([0.1, 0.2, 0.4]), np.array([3.0, 2, 1]), np.array([3.0, 2.5, 1.75]), 0.2)
    assert repr(curve) == "LearningRateCurve(suggestion=0.2, learning_rates=3 from 0.1 to 0.4, least_loss=1.75)"
    assert "<th>suggestion</th><td>0.2</td>" in curve._repr_html_()
    with pytest.raises(dataclasses.FrozenInstanceError):
        curve.suggestion = 1.0  # type: ignore[misc]
