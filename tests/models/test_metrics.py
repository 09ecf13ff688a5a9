"""Tests that compare the metrics with manually computed values and with scikit-learn, and tests of invalid input."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    root_mean_squared_error,
)

from fastmlp.errors import DataError
from fastmlp.models.metrics import classification_metrics, regression_metrics

# Class 3 ("absent") does not occur in the true or the predicted classes.
TRUE = np.array([0, 0, 0, 0, 1, 1, 2], dtype=np.int32)
PRED = np.array([0, 0, 1, 2, 1, 0, 2], dtype=np.int64)
CLASSES = ("a", "b", "c", "absent")


def test_confusion_has_true_rows_and_predicted_columns() -> None:
    table = classification_metrics(TRUE, PRED, CLASSES)
    assert table["confusion"] == [[2, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_accuracy_and_per_class_metrics_against_manual_values() -> None:
    table = classification_metrics(TRUE, PRED, CLASSES)
    assert table["accuracy"] == pytest.approx(4 / 7, rel=1e-15)
    # class: precision, recall, f1 = 2pr/(p+r), support
    expected = {
        "a": (2 / 3, 2 / 4, 4 / 7, 4),
        "b": (1 / 2, 1 / 2, 1 / 2, 2),
        "c": (1 / 2, 1 / 1, 2 / 3, 1),
        "absent": (0.0, 0.0, 0.0, 0),
    }
    assert [row["class"] for row in table["per_class"]] == list(CLASSES)
    for row in table["per_class"]:
        got = (row["precision"], row["recall"], row["f1"], row["support"])
        assert got == pytest.approx(expected[row["class"]], rel=1e-14)


def test_averages_against_manual_values() -> None:
    table = classification_metrics(TRUE, PRED, CLASSES)
    macro = {
        "precision": (2 / 3 + 1 / 2 + 1 / 2) / 4,
        "recall": (1 / 2 + 1 / 2 + 1) / 4,
        "f1": (4 / 7 + 1 / 2 + 2 / 3) / 4,
    }
    weighted = {
        "precision": (4 * 2 / 3 + 2 * 1 / 2 + 1 / 2) / 7,
        "recall": 4 / 7,
        "f1": (4 * 4 / 7 + 2 * 1 / 2 + 2 / 3) / 7,
    }
    assert table["macro"] == pytest.approx(macro, rel=1e-14)
    assert table["weighted"] == pytest.approx(weighted, rel=1e-14)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_perfect_prediction(k: int) -> None:
    y = np.arange(k).repeat(3)
    table = classification_metrics(y, y, tuple("abcde"[:k]))
    assert table["accuracy"] == 1.0
    assert table["macro"] == table["weighted"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert table["confusion"] == (3 * np.eye(k, dtype=int)).tolist()


def test_all_rows_predicted_as_a_class_that_never_occurs() -> None:
    table = classification_metrics(np.zeros(3, dtype=int), np.ones(3, dtype=int), ("x", "y"))
    assert table["accuracy"] == 0.0
    assert [row["f1"] for row in table["per_class"]] == [0.0, 0.0]
    assert [row["support"] for row in table["per_class"]] == [3, 0]


def test_many_classes_in_few_rows_raise_no_warning() -> None:
    y = np.arange(30)
    table = classification_metrics(y, y[::-1].copy(), tuple(f"class {i}" for i in range(100)))
    assert table["accuracy"] == 0.0
    assert len(table["per_class"]) == 100


def test_classification_metrics_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    y_true, y_pred = rng.integers(0, 7, 997), rng.integers(0, 6, 997)
    names = tuple("abcdefg")
    table = classification_metrics(y_true, y_pred, names)
    report = classification_report(y_true, y_pred, target_names=names, output_dict=True, zero_division=0)
    assert table["accuracy"] == accuracy_score(y_true, y_pred)
    assert table["confusion"] == confusion_matrix(y_true, y_pred).tolist()
    rows = [*table["per_class"], {"class": "macro avg", **table["macro"]}]
    for row in [*rows, {"class": "weighted avg", **table["weighted"]}]:
        reference = report[row["class"]]
        assert (row["precision"], row["recall"]) == pytest.approx((reference["precision"], reference["recall"]))
        assert row["f1"] == pytest.approx(reference["f1-score"])
        assert row.get("support", 997) == reference["support"]


def test_regression_metrics_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    y_true = rng.normal(size=(97, 4))
    y_pred = y_true + rng.normal(size=(97, 4))
    y_true[:, 1:3] = 2  # constant targets: one predicted exactly, one not
    y_pred[:, 1] = 2
    for columns in ([0, 3], [1], [2], [0, 1, 2, 3]):
        given = y_true[:, columns], y_pred[:, columns]
        reference = {"mse": mean_squared_error(*given), "mae": mean_absolute_error(*given), "r2": r2_score(*given)}
        reference["rmse"] = root_mean_squared_error(*given)
        assert regression_metrics(*given) == pytest.approx(reference, rel=1e-12)


def assert_plain(value: object) -> None:
    """Assert that all values have plain Python types, because most NumPy numbers cannot be written to JSON."""
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        for item in value.values():
            assert_plain(item)
    elif isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert type(value) in {int, float, str}, f"{value!r} is a {type(value)}"


def test_results_are_plain_and_unchanged_by_json() -> None:
    for table in (
        classification_metrics(TRUE, PRED, CLASSES),
        regression_metrics(np.ones((2, 1), dtype=np.float32), np.zeros((2, 1), dtype=np.float32)),
    ):
        assert_plain(table)
        assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_assert_plain_detects_a_numpy_number() -> None:
    with pytest.raises(AssertionError, match="float64"):
        assert_plain({"a": [np.float64(1)]})


def test_regression_metrics_against_manual_values() -> None:
    y_true = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], dtype=np.float32)
    y_pred = np.array([[1.0, 13.0], [2.0, 20.0], [4.0, 26.0]], dtype=np.float32)
    # The squared errors of the two targets are 0, 0, 1 and 9, 0, 16; their absolute errors are 0, 0, 1 and 3, 0, 4. The
    # coefficients of determination are 1 - 1/2 and 1 - 25/200.
    got = regression_metrics(y_true, y_pred)
    rmse = ((1 / 3) ** 0.5 + (25 / 3) ** 0.5) / 2
    assert got == pytest.approx({"mse": 26 / 6, "mae": 8 / 6, "rmse": rmse, "r2": (0.5 + 0.875) / 2}, rel=1e-12)


def test_r2_of_a_single_row_is_none() -> None:
    assert regression_metrics(np.array([[1.0]]), np.array([[3.0]])) == {"mse": 4.0, "mae": 2.0, "rmse": 2.0, "r2": None}


def test_squares_of_large_float32_errors_do_not_overflow() -> None:
    got = regression_metrics(np.zeros((2, 1), dtype=np.float32), np.full((2, 1), 1e30, dtype=np.float32))
    assert got["mse"] == pytest.approx(1e60, rel=1e-6)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (np.array([0, 1]), np.array([0]), r"shape \(2,\), but y_pred has shape \(1,\)"),
        (np.array([], dtype=int), np.array([], dtype=int), "at least one row"),
        (np.array([0.0, 1.0]), np.array([0, 1]), "y_true has dtype float64"),
        (np.array([0, 1]), np.array([0, 2]), "y_pred contains class 2, but there are 2 classes"),
        (np.array([0, -1]), np.array([0, 1]), "y_true contains class -1"),
        (np.array([[0, 1]]), np.array([[0, 1]]), r"y_true has shape \(1, 2\)"),
    ],
)
def test_invalid_labels_are_rejected(y_true: np.ndarray, y_pred: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        classification_metrics(y_true, y_pred, ("no", "yes"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (np.ones((2, 1)), np.ones((3, 1)), r"shape \(2, 1\), but y_pred has shape \(3, 1\)"),
        (np.ones(2), np.ones(2), r"y_true has shape \(2,\)"),
        (np.ones((0, 1)), np.ones((0, 1)), "at least one of each"),
        (np.ones((2, 1)), np.array([[1.0], [np.nan]]), "y_pred contains NaN"),
        (np.array([[np.inf], [1.0]]), np.ones((2, 1)), "y_true contains NaN or infinity"),
    ],
)
def test_invalid_targets_are_rejected(y_true: np.ndarray, y_pred: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        regression_metrics(y_true, y_pred)
    assert "\n" not in str(caught.value)


@pytest.mark.full
def test_metrics_do_not_import_scikit_learn() -> None:
    code = """
import sys
import numpy as np
from fastmlp.models.metrics import classification_metrics, regression_metrics
classification_metrics(np.zeros(3, int), np.ones(3, int), ("x", "y"))
regression_metrics(np.ones((3, 1)), np.zeros((3, 1)))
sys.exit("sklearn" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
