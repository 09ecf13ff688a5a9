"""Metrics for classification and regression, returned as plain Python numbers.

The metrics are defined as in scikit-learn, and tests compare the values with scikit-learn's. They are implemented here because
importing scikit-learn takes longer than training a small network. The losses are computed by the engines.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from fastmlp.data.checks import CheckedRows, match_network
from fastmlp.data.pairs import as_split
from fastmlp.data.rows import Features
from fastmlp.engines.base import Engine
from fastmlp.errors import DataError
from fastmlp.nn.blocks import inference_blocks
from fastmlp.nn.network import FloatArray, Network
from fastmlp.reports.text import DENSE_CLASSES

if TYPE_CHECKING:
    from fastmlp.models.model import Model


def classification_metrics(
    y_true: NDArray[np.integer], y_pred: NDArray[np.integer], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Compute accuracy, precision, recall, F1 and the confusion matrix of predicted classes.

    A ratio whose denominator is zero, because a class never occurs or is never predicted, is defined as 0. Every class in
    `classes` has an entry in the result and counts in the macro average, even if it does not occur in `y_true` or `y_pred`.

    Parameters
    ----------
    y_true, y_pred : (n,) integer arrays, n >= 1
        True and predicted class indices, from 0 to k - 1.
    classes : tuple of k str
        Names of the classes.

    Returns
    -------
    dict
        `accuracy`: float, 0 to 1. `per_class`: k dicts with `class`, `precision`, `recall`, `f1` and `support`, the number
        of rows whose true class this is. `macro` (mean over the classes) and `weighted` (mean weighted by support): dicts
        with `precision`, `recall` and `f1`. `confusion`: the confusion matrix, see `confusion_matrix`.

    Raises
    ------
    DataError
        The arrays are empty, differ in length, are not of integer dtype, or contain a number outside 0 to k - 1.

    Examples
    --------
    >>> import numpy as np
    >>> table = classification_metrics(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ("cat", "dog"))
    >>> table["accuracy"], table["confusion"]
    (0.75, [[1, 1], [0, 2]])
    >>> table["per_class"][0]
    {'class': 'cat', 'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'support': 2}
    """
    _check_labels("y_true", y_true, len(classes))
    _check_labels("y_pred", y_pred, len(classes))
    _check_same_shape(y_true, y_pred)
    y_true, y_pred, k = y_true.astype(np.int64), y_pred.astype(np.int64), len(classes)
    correct, support, predicted = (np.bincount(y, minlength=k) for y in (y_true[y_true == y_pred], y_true, y_pred))
    scores = {
        "precision": correct / np.maximum(predicted, 1),  # the numerator is 0 where the denominator is 0
        "recall": correct / np.maximum(support, 1),
        "f1": 2 * correct / np.maximum(support + predicted, 1),
    }
    return {
        "accuracy": float(correct.sum() / y_true.size),
        "per_class": [
            {"class": name, **{key: float(score[i]) for key, score in scores.items()}, "support": int(support[i])}
            for i, name in enumerate(classes)
        ],
        "macro": {key: float(np.average(score)) for key, score in scores.items()},
        "weighted": {key: float(np.average(score, weights=support)) for key, score in scores.items()},
        "confusion": confusion_matrix(y_true, y_pred, k),
    }


def confusion_matrix(y_true: NDArray[np.integer], y_pred: NDArray[np.integer], k: int) -> list[list[int]] | dict[str, Any]:
    """Return the confusion matrix (k, k), with one row per true class and one column per predicted class.

    For at most `DENSE_CLASSES` classes, it is a list of k lists of k int. For more classes, it is in coordinate format: a dict
    with the keys `format`, which is "coo", `shape`, which is [k, k], and `row`, `column` and `count`, the lists of the true
    class, the predicted class and the count of each cell that is not zero, sorted by row and column. There are at most as many
    of these cells as rows of data. `scipy.sparse.coo_array((count, (row, column)), shape)` is the same matrix.

    y_true, y_pred : (n,) int64 class indices from 0 to k - 1, which are not checked

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    [[1, 1], [0, 1]]
    >>> confusion_matrix(np.array([5, 999, 5]), np.array([5, 0, 5]), 1000)
    {'format': 'coo', 'shape': [1000, 1000], 'row': [5, 999], 'column': [5, 0], 'count': [2, 1]}
    """
    cells = y_true * k + y_pred
    if k <= DENSE_CLASSES:
        return np.bincount(cells, minlength=k * k).reshape(k, k).tolist()
    found, count = np.unique(cells, return_counts=True)
    row, column = np.divmod(found, k)
    return {"format": "coo", "shape": [k, k], "row": row.tolist(), "column": column.tolist(), "count": count.tolist()}


def regression_metrics(y_true: NDArray[np.floating], y_pred: NDArray[np.floating]) -> dict[str, float | None]:
    """Compute the errors of predicted values in float64, averaged over rows and targets.

    Parameters
    ----------
    y_true, y_pred : (n, k) float arrays, n >= 1
        Targets and predictions.

    Returns
    -------
    dict
        `mse`: mean squared error; `mae`: mean absolute error; `rmse`: square root of the mean squared error of a target,
        averaged over the k targets; `r2`: coefficient of determination, averaged over the k targets. `r2` is 1 for exact
        predictions, and 0 if the predictions are as good as the mean of the targets. A constant target counts as 1 if it is
        predicted exactly, else as 0. `r2` is None for a single row, for which it is undefined.

    Raises
    ------
    DataError
        The arrays do not have shape (n, k) with n, k >= 1, differ in shape, or contain NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> regression_metrics(np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]]))
    {'mse': 0.5, 'mae': 0.5, 'rmse': 0.7071067811865476, 'r2': 0.5}
    """
    for name, y in (("y_true", y_true), ("y_pred", y_pred)):
        if y.ndim != 2 or y.size == 0:
            raise DataError(f"{name} has shape {y.shape}; metrics need the shape (rows, targets), with at least one of each")
        if not np.isfinite(y).all():
            raise DataError(f"{name} contains NaN or infinity; check the data and the training loss")
    _check_same_shape(y_true, y_pred)
    # The values are converted to float64 first, because the square of a large float32 error would overflow.
    true = y_true.astype(np.float64)
    error = true - y_pred.astype(np.float64)
    squares = np.square(error).mean(axis=0)
    return {
        "mse": float(squares.mean()),
        "mae": float(np.abs(error).mean(axis=0).mean()),
        "rmse": float(np.sqrt(squares).mean()),
        "r2": _r2(true, error) if len(true) > 1 else None,
    }


def _r2(true: NDArray[np.float64], error: NDArray[np.float64]) -> float:
    """Return the coefficient of determination, averaged over the targets, from the true values and the errors (n, k)."""
    errors, deviations = np.square(error).sum(axis=0), np.square(true - true.mean(axis=0)).sum(axis=0)
    constant = deviations == 0
    return float(np.where(constant, errors == 0, 1 - errors / np.where(constant, 1, deviations)).mean())


def _check_labels(name: str, y: NDArray[np.integer], k: int) -> None:
    """Raise DataError unless y (n,) contains only class indices from 0 to k - 1."""
    if y.ndim != 1 or y.size == 0:
        raise DataError(f"{name} has shape {y.shape}; metrics need one class index per row, and at least one row")
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name} has dtype {y.dtype}; metrics need integer class indices from 0 to {k - 1}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= k:
        outside = low if low < 0 else high
        raise DataError(f"{name} contains class {outside}, but there are {k} classes; use numbers 0 to {k - 1}")


def _check_same_shape(y_true: NDArray[Any], y_pred: NDArray[Any]) -> None:
    """Raise DataError unless both arrays have the same shape."""
    if y_true.shape != y_pred.shape:
        raise DataError(f"y_true has shape {y_true.shape}, but y_pred has shape {y_pred.shape}; the shapes must be equal")


def measure(network: Network, engine: Engine, x: Features, y: npt.NDArray[Any]) -> tuple[FloatArray, npt.NDArray[Any]]:
    """Return the loss and the prediction of each row; x and y are as in `checks.CheckedRows`.

    The losses (n,) do not include L1 or L2 penalties or label smoothing, so that networks trained with and without them can be
    compared. The predictions are int64 class indices (n,) if y contains class labels, else float64 outputs (n, outputs).
    """
    from fastmlp.reference import OUTPUTS

    losses = np.empty(len(x))
    predictions = np.empty(y.shape, np.int64 if y.ndim == 1 else np.float64)
    for rows, block in inference_blocks(x, network.sizes[-1]):
        z = np.empty((len(block), network.sizes[-1]))  # float64 represents the values of every engine exactly
        losses[rows] = engine.evaluate(engine.hold(block, y[rows]), z).loss
        predictions[rows] = z.argmax(axis=1) if y.ndim == 1 else OUTPUTS[network.output or ""](z)
    return losses, predictions


def mean_metrics(engine: Engine, held: Any, classes: bool) -> tuple[float, float | None]:
    """Return the mean loss and the accuracy of rows prepared by `Engine.hold`; the accuracy is None if `classes` is False.

    The values are the same as those computed from the result of `measure`.
    """
    loss, correct = engine.evaluate(held)
    return mean(loss.astype(np.float64)), mean(correct) if classes else None


def mean(values: npt.NDArray[Any], weights: FloatArray | None = None) -> float:
    """Return the mean of the values, weighted if weights are given. For few values, `ndarray.mean` takes twice as long."""
    return float(values.sum(dtype=np.float64) / len(values) if weights is None else np.average(values, weights=weights))


def evaluate(model: Model, x: Any, y: Any) -> dict[str, Any]:
    """Implement `Model.evaluate`."""
    dtype = model.parameters.dtype
    split = as_split((x, y), "evaluation", model.network, dtype, classes=model.classes, encoding=model.encoding)
    return evaluate_with_predictions(model, split.rows)[0]


def score(model: Model, x: Any, y: Any) -> float:
    """Implement `Model.score`."""
    metrics = evaluate(model, x, y)
    if "accuracy" in metrics:
        return float(metrics["accuracy"])
    if model.is_multilabel:
        true = np.asarray(y, np.float64).reshape(len(x), -1)
        return float((model.predict(x).reshape(true.shape) == true).all(axis=1).mean())
    return math.nan if metrics["r2"] is None else float(metrics["r2"])


def evaluate_with_predictions(model: Model, rows: CheckedRows) -> tuple[dict[str, Any], npt.NDArray[Any]]:
    """Return the same metrics as `evaluate` and the same predictions as `measure`. The values of the rows are not checked.

    Numbers are predicted on the scale of the targets; the loss is that of the scaled targets.

    Raises
    ------
    DataError : the shapes of the rows do not match the network
    """
    scaling = model.target_scaling
    scaled = rows if scaling is None else replace(rows, y=scaling.apply(rows.y, rows.y.dtype))
    scaled = match_network(model.network, scaled, "evaluation", model.parameters.dtype)
    losses, predictions = measure(model.network, model.engine(), scaled.x, scaled.y)
    loss = {"loss": mean(losses)}
    if rows.y.ndim == 1:
        return loss | classification_metrics(rows.y, predictions, model.classes), predictions
    predictions = predictions if scaling is None else scaling.invert(predictions)
    return loss | regression_metrics(rows.y, predictions), predictions
