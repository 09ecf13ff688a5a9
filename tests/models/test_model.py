"""Tests of the predictions of models, of their error messages for invalid input, and of evaluation."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.engines import same_bits
from support.tolerances import excess, forward_tolerance

import fastmlp
import fastmlp.models.model
from fastmlp.data.scaling import fit_scaling
from fastmlp.engines.base import EngineSpec
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.errors import ConfigError, DataError
from fastmlp.models.metrics import mean_metrics, measure
from fastmlp.models.model import Model, check_rows
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.reference import plain_losses

NETWORK = Network((7, 9, 3))
X = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 40)


def make_model(network: Network = NETWORK, backend: str = "numpy", **changes: Any) -> Model:
    defaults: dict[str, Any] = {
        "parameters": network.initial_parameters(0),
        "classes": ("a", "b", "c"),
        "backend": backend,
    }
    return Model(network, **{**defaults, **changes})


def reference_forward(x: Any) -> Any:
    """Return the pre-activations of NETWORK's output layer in float64."""
    (w0, b0), (w1, b1) = NETWORK.views(NETWORK.initial_parameters(0).astype(np.float64))
    return np.maximum(x @ w0 + b0, 0) @ w1 + b1


def test_predictions_match_the_specification(backend: str) -> None:
    model = make_model(backend=backend)
    z = reference_forward(X.astype(np.float64))
    tolerance = forward_tolerance(NETWORK, model.parameters, X)
    assert excess(model.forward(X), z, tolerance) == 0
    probabilities = model.predict_proba(X)
    assert probabilities.dtype == np.float64
    wanted = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert excess(probabilities, wanted, tolerance.max()) == 0
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-14)
    assert np.array_equal(model.predict(X), np.array(["a", "b", "c"])[z.argmax(axis=1)])
    assert np.array_equal(model.predict(X), np.array(["a", "b", "c"])[probabilities.argmax(axis=1)])


@pytest.mark.parametrize("output", LOSSES["squared-error"])
def test_regression_predicts_the_outputs_of_the_network(output: str) -> None:
    network = Network((7, 9, 3), loss="squared-error", output=output)
    model = make_model(network, classes=())
    z = reference_forward(X.astype(np.float64))
    wanted = {
        "linear": z,
        "sigmoid": 1 / (1 + np.exp(-z)),
        "softmax": np.exp(z) / np.exp(z).sum(axis=1, keepdims=True),
    }[output]
    np.testing.assert_allclose(model.predict(X), wanted, rtol=1e-4, atol=1e-6)
    assert same_bits(model.predict(X), model.outputs(X))
    with pytest.raises(ConfigError, match="predict_proba needs a classifier"):
        model.predict_proba(X)


def test_inputs_are_scaled(backend: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (40, 7), np.uint8)
    scaling = fit_scaling("zscore", pixels)
    scaled = make_model(backend=backend, scaling=scaling).forward(pixels)
    assert same_bits(scaled, make_model(backend=backend).forward(scaling.apply(pixels)))


def test_predictions_do_not_depend_on_the_block_size(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions of 40 rows in blocks of 7 rows equal those of all rows at once, up to rounding errors."""
    whole = make_model(backend=backend).forward(X)
    monkeypatch.setattr("fastmlp.nn.blocks.ROWS_AT_ONCE", 7)
    in_blocks = make_model(backend=backend).forward(X)
    if backend != "numba":
        assert excess(in_blocks, whole, 2 * forward_tolerance(NETWORK, NETWORK.initial_parameters(0), X)) == 0
    else:
        assert same_bits(in_blocks, whole)


def test_predictions_of_zero_rows_are_empty(backend: str) -> None:
    model = make_model(backend=backend)
    assert model.forward(X[:0]).shape == (0, 3)
    assert model.predict_proba(X[:0]).shape == (0, 3)
    assert model.predict(X[:0]).shape == (0,)


def test_rows_can_be_lists_or_have_other_dtypes() -> None:
    model = make_model()
    wanted = model.forward(X)
    for same in (X.tolist(), X.astype(np.float64), np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2]):
        assert same_bits(model.forward(same), wanted)


def test_float64_models_compute_in_float64() -> None:
    parameters = NETWORK.initial_parameters(0, np.float64)
    for backend in ("numpy", "auto"):
        model = make_model(parameters=parameters, backend=backend)
        assert model.forward(X).dtype == np.float64
        engine = NumpyEngine(EngineSpec(NETWORK, Optimizer("sgd"), dtype=np.float64))
        engine.load(fastmlp.models.model.State(parameters, np.empty((0, NETWORK.parameters)), 0))
        assert same_bits(model.forward(X), engine.forward(X))


def test_a_model_can_be_compared_and_replaced() -> None:
    model = make_model()
    assert dataclasses.replace(model, threads=2).threads == 2
    before = model.forward(X)
    other = dataclasses.replace(model, parameters=model.parameters * 2)
    assert not np.array_equal(other.forward(X), before)  # the new model has its own engine
    assert same_bits(model.forward(X), before)
    assert model == model  # noqa: PLR0124 - comparison must not raise
    assert model != other


@pytest.mark.usefixtures("eager_threads")
def test_a_deleted_model_ends_its_threads(backend: str) -> None:
    make_model(backend=backend, threads=3).forward(X)
    gc.collect()
    for _ in range(6000):
        names = {thread.name for thread in threading.enumerate() if thread.name.startswith("fastmlp")}
        if not names:
            break
        time.sleep(0.01)
    assert names == set()


@pytest.mark.usefixtures("eager_threads")
def test_predictions_in_many_threads_have_the_same_bits(backend: str) -> None:
    """Eight Python threads that share a new model get bitwise the same predictions as a single thread."""
    batches = [np.random.default_rng(seed).normal(size=(200, 7)).astype(np.float32) for seed in range(16)]
    wanted = [make_model(backend=backend).forward(batch) for batch in batches]
    for _ in range(3):
        model = make_model(backend=backend, threads=2)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(model.forward, batches, timeout=60))
        assert same_bits(tuple(found), tuple(wanted))


# ------------------------------------------------------------------------------------------------ invalid input


def with_entry(value: float) -> Any:
    x = X.astype(np.float64)
    x[3, 5] = value
    return x


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "too few features": (X[:, :6], r"rows of 7 features, but the data has shape \(40, 6\)"),
    "too many features": (np.c_[X, X], r"\(40, 14\)"),
    "one row": (X[0], r"\(7,\)"),
    "images": (X.reshape(40, 1, 7)[..., :6], r"\(40, 6\)"),
    "a number": (3.0, "must be an array, a list or a data frame, not float"),
    "NaN": (with_entry(np.nan), "row 3, feature 5 is nan"),
    "infinite": (with_entry(np.inf), "row 3, feature 5 is inf"),
    "too large": (with_entry(1e300), "row 3, feature 5"),
    "text": (X.astype(str), "must be numbers"),
    "objects": (np.where(X > 0, "a", X.astype(object)), "must be numbers"),
    "complex": (X.astype(complex), "must be numbers"),
    "dates": (X.astype("datetime64[s]"), "must be numbers"),
    "ragged": ([[1.0] * 7, [1.0] * 6], "rows"),
}


@pytest.mark.parametrize("damage", BAD_ROWS)
def test_invalid_rows_are_rejected_with_a_message_of_one_line(damage: str) -> None:
    x, message = BAD_ROWS[damage]
    model = make_model()
    for method in (model.forward, model.predict, model.predict_proba):
        with pytest.raises(DataError, match=message) as caught:
            method(x)
        assert "\n" not in str(caught.value)


def test_checked_rows_are_contiguous_and_have_a_dtype_of_engines() -> None:
    for given, wanted in (
        (np.asfortranarray(X), np.float32),
        (X.astype(np.float64), np.float32),
        (X > 0, np.float32),
        (X.astype(np.int64), np.float32),
        (X.astype(np.float16), np.float32),
        ((X > 0).astype(np.uint8)[:, ::-1], np.uint8),
    ):
        rows = check_rows(given, 7, np.float32)
        assert rows.dtype == wanted
        assert rows.flags.c_contiguous
        assert np.array_equal(rows, given)


# ------------------------------------------------------------------------------------------------ evaluation


def test_plain_losses_against_manual_values() -> None:
    z = np.log([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    losses = plain_losses(NETWORK, z, np.array([0, 1]))
    assert losses == pytest.approx([-np.log(0.5), -np.log(0.2)])
    smoothed = dataclasses.replace(NETWORK, label_smoothing=0.3, l2=1.0)
    assert same_bits(plain_losses(smoothed, z, np.array([0, 1])), losses)
    regression = Network((7, 9, 3), loss="squared-error")
    assert plain_losses(regression, np.ones((2, 3)), np.array([[2.0, 3, 1], [1, 1, 4]])).tolist() == [2.5, 4.5]


def test_mean_metrics_are_means_over_the_rows(backend: str) -> None:
    model, labels = make_model(backend=backend), Y.astype(np.int32)
    z = model.forward(X)
    losses, classes = measure(NETWORK, model.engine(), X, labels)
    assert losses == pytest.approx(plain_losses(NETWORK, z, Y), rel=1e-6)
    assert classes.tolist() == z.argmax(axis=1).tolist()
    assert mean_metrics(model.engine(), model.engine().hold(X, labels), classes=True) == (losses.mean(), (classes == Y).mean())
    regression = make_model(Network((7, 9, 3), loss="squared-error"), classes=(), backend=backend)
    targets = np.eye(3, dtype=np.float32)[Y]
    losses, values = measure(regression.network, regression.engine(), X, targets)
    assert losses == pytest.approx(plain_losses(regression.network, regression.forward(X), targets), rel=1e-5)
    assert np.array_equal(values, regression.predict(X))
    assert mean_metrics(regression.engine(), regression.engine().hold(X, targets), classes=False) == (losses.mean(), None)


def test_evaluate_returns_the_loss_and_the_metrics(backend: str) -> None:
    metrics = make_model(backend=backend).evaluate(X, Y)
    p = make_model(backend=backend).predict_proba(X)
    rounding = 1e-12 if backend == "numpy" else 3e-7  # the compiled engines compute float32 losses
    assert metrics["loss"] == pytest.approx(-np.log(p[np.arange(40), Y]).mean(), rel=rounding)
    assert metrics["accuracy"] == (p.argmax(axis=1) == Y).mean()
    assert np.trace(metrics["confusion"]) == 40 * metrics["accuracy"]
    assert [row["class"] for row in metrics["per_class"]] == ["a", "b", "c"]


def test_evaluate_of_a_regression() -> None:
    network = Network((7, 9, 3), loss="squared-error", output="sigmoid")
    model = make_model(network, classes=())
    targets = np.random.default_rng(3).random((40, 3))
    metrics = model.evaluate(X, targets)
    assert metrics["loss"] == pytest.approx(1.5 * metrics["mse"], rel=1e-12)
    assert metrics["mse"] == pytest.approx(((model.predict(X) - targets) ** 2).mean(), rel=1e-6)


BAD_TARGETS: dict[str, Any] = {
    "too few": Y[:39],
    "too many": np.r_[Y, 0],
    "class too high": Y + 1,
    "class negative": Y - 1,
    "one class too high": np.r_[Y[:39], 10**6],
    "wrong width": np.zeros((40, 4)),
    "fractions": Y + 0.5,
    "unknown names": np.array(["a", "b", "d"])[Y],
}


@pytest.mark.parametrize("damage", BAD_TARGETS)
def test_invalid_targets_are_rejected_with_a_message_of_one_line(damage: str) -> None:
    with pytest.raises(DataError) as caught:
        make_model().evaluate(X, BAD_TARGETS[damage])
    assert "\n" not in str(caught.value)
