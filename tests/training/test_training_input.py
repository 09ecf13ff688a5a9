"""Tests of the inputs of `train`: invalid data, invalid settings and default values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from support.engines import same_bits
from support.problems import problem, set_up
from support.tolerances import EPS

from fastmlp.data.scaling import fit_scaling
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.network import Network
from fastmlp.training.api import train
from fastmlp.training.settings import Settings

NETWORK = Network((4, 12, 3))

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
    "flat": (X.ravel(), Y, r"shape \(80,\); write x\[:, None\] for one feature"),
    "images": (X.reshape(20, 2, 2)[:, :1], Y, "rows of 4 features"),
    "objects": (np.where(X > 0, "a", X.astype(object)), Y, "must be numbers"),
    "missing": (np.where(X > 0, pd.NA, X.astype(object)), Y, "which is not a number; fill or remove it"),
    "masked": (np.ma.masked_array(X, X > 0), Y, "masked values"),
    "sparse": (csr_matrix(X), Y, "a sparse matrix"),
    "a column of names": (pd.DataFrame(X[:, :3]).assign(kind="red"), Y, "column 'kind' holds 'red'; encode it"),
    "strings": (X.astype(str), Y, "must be numbers"),
    "complex": (X.astype(complex), Y, "must be numbers, not complex"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], [0, 1], "rows"),
    "none": (None, Y, "must be an array, a list or a data frame, not NoneType"),
    "empty": (X[:0], Y[:0], "no rows"),
    "more rows than classes": (X, Y[:19], "20 rows but 19 targets"),
    "more classes than rows": (X[:19], Y, "19 rows but 20 targets"),
    "class too high": (X, Y + 1, "labels range from 1 to 3, but there are 3 classes"),
    "class negative": (X, Y - 1, "labels range from -1 to 1, but there are 3 classes"),
    "fractional classes": (X, Y + 0.5, "row 0 is 0.5, but class labels are strings or whole numbers"),
    "two columns of classes": (X, np.stack([Y, Y], 1), "targets must be"),
    "mixed classes": (X, np.where(Y, Y.astype(object), "zero"), "row 1 is 1, but other labels are strings"),
    "missing classes": (X, np.where(Y, "one", None), "row 0 is None, but other labels are strings"),
    "too many names": (X, np.arange(20).astype(str), "class"),
    "no classes": (X, None, "training targets must be an array|validation targets must be an array"),
    "wrong number of outputs": (X, np.eye(4)[Y], r"\(n, 3\) numbers"),
    "objects as targets": (X, np.array([{}] * 20), "which is not a number"),
    "targets that do not sum to 1": (X, 2 * np.eye(3)[Y], "must be nonnegative and sum to 1"),
    "targets below 0": (X, 2 * np.eye(3)[Y] - 1 / 3, "negative|below 0"),
    "NaN among the targets": (X, np.eye(3)[Y] + np.where(np.arange(60) == 7, np.nan, 0).reshape(20, 3), "targets"),
}


@pytest.mark.parametrize("split", ["training", "validation"])
@pytest.mark.parametrize("damage", BAD_DATA)
def test_invalid_data_are_rejected_with_a_message_of_one_line(damage: str, split: str) -> None:
    x, y, message = BAD_DATA[damage]
    good, bad = (X, np.eye(3)[Y] if np.ndim(y) == 2 else Y), (x, y)
    data, validation = (bad, good) if split == "training" else (good, bad)
    with pytest.raises(DataError, match=message) as caught:
        train(NETWORK, data, settings=set_up(), validation=validation, scaling=None)
    assert "\n" not in str(caught.value)
    if damage in ("NaN", "infinite"):
        assert "remove or fill" in str(caught.value)
    if damage == "too large for float32":
        assert "rescale the feature" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_regression_targets_must_be_finite(value: float) -> None:
    network = Network((4, 5, 2), loss="squared-error")
    targets = np.zeros((20, 2))
    targets[4, 1] = value
    with pytest.raises(DataError, match="not finite"):
        train(network, (X, targets), settings=set_up(), scaling=None)


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
def test_invalid_sample_weights_are_rejected(damage: str) -> None:
    with pytest.raises(
        DataError,
        match=r"sample_weight (must be|of row \d+ is .*; all weights must be positive)",
    ):
        train(NETWORK, (X, Y), settings=set_up(), sample_weight=BAD_WEIGHTS[damage], scaling=None)


def test_a_scaling_of_other_features_is_rejected(backend: str) -> None:
    for features in (1, 3, 5):
        scaling = fit_scaling("zscore", np.random.default_rng(0).random((9, features)).astype(np.float32))
        with pytest.raises(DataError, match="features"):
            train(NETWORK, (X, Y), settings=set_up(backend=backend), scaling=scaling)


def test_the_wrong_number_of_class_names_is_rejected() -> None:
    with pytest.raises((ConfigError, DataError), match="class"):
        train(NETWORK, (X, Y), settings=set_up(), classes=("only", "two"), scaling=None)


def test_patience_needs_a_validation_split() -> None:
    with pytest.raises(ConfigError, match="patience needs a validation split"):
        train(NETWORK, (X, Y), settings=set_up(patience=3), scaling=None)


def test_accuracy_cannot_be_monitored_in_regression() -> None:
    network = Network((4, 5, 3), loss="squared-error")
    with pytest.raises(ConfigError, match="needs class labels"):
        train(network, (X, X[:, :3]), settings=set_up(monitor="accuracy"), validation=(X, X[:, :3]), scaling=None)


def test_training_and_validation_targets_must_be_of_the_same_kind() -> None:
    """Class labels in one split and float targets in the other are rejected."""
    with pytest.raises((ConfigError, DataError)):
        train(NETWORK, (X, Y), settings=set_up(monitor="accuracy"), validation=(X, 0.5 * np.eye(3)[Y]), scaling=None)


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "epochs must be at least 1"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"patience": -1}, "patience must be at least 0"),
    ({"threads": 0}, "threads must be at least 1"),
    ({"monitor": "acuracy"}, "unknown monitor"),
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
    ({"flip": 1.5}, "flip must be a probability"),
    ({"flip": float("nan")}, "flip must be a probability"),
    ({"shift": -1}, "shift must be"),
    ({"shift": 1.5}, "shift must be"),
    ({"shuffle": "no"}, "shuffle must be True or False, not 'no'"),
    ({"restore_best": None}, "restore_best must be True or False, not None"),
    ({"shuffle": 0}, "shuffle must be True or False, not 0"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS)
def test_invalid_settings_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_up(**changes)


def test_the_message_for_an_unknown_backend_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'numba'"):
        train(NETWORK, (X, Y), settings=set_up(backend="nunba"), scaling=None)


def test_auto_selects_an_engine_that_supports_the_dtype() -> None:
    training = train(NETWORK, (X, Y), settings=set_up(backend="auto", dtype=np.float64), scaling=None)
    assert training.backend == "numpy"
    assert training.model.predict(X).shape == (20,)


def test_the_largest_seed_is_valid() -> None:
    states = [train(NETWORK, (X, Y), settings=set_up(seed=seed), scaling=None).state for seed in (2**64 - 1, 2**64 - 2)]
    assert not same_bits(*states)


def test_the_default_settings(numba_backend: str) -> None:
    """By default, the Numba engine is selected, and the loss of the first epoch equals that of the NumPy engine."""
    x, y = problem(100)
    training = train(NETWORK, (x, y))
    assert training.backend == numba_backend
    assert len(training.history) == Settings().epochs
    reference = train(NETWORK, (x, y), settings=Settings(backend="numpy", epochs=1))
    assert training.model.scaling.kind == "zscore"
    assert training.history[0]["loss"] == pytest.approx(reference.history[0]["loss"], rel=100 * EPS)
