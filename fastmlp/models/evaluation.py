"""From rows and targets to figures: the loss and accuracy of an epoch, and the full metrics of a data part.

Rows pass in blocks, and no more is kept of a row than its loss and its prediction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import check_part
from fastmlp.data.rows import Features
from fastmlp.engines.base import Engine
from fastmlp.models.metrics import classification_metrics, regression_metrics
from fastmlp.models.model import Model, forward_blocks
from fastmlp.nn.network import FloatArray, Network


def measure(network: Network, engine: Engine, x: Features, y: npt.NDArray[Any]) -> tuple[FloatArray, npt.NDArray[Any]]:
    """Loss and prediction of each row of a data part, x and y as `checks.check_part` gives them.

    Losses (n,) are without penalties and without label smoothing, which is part of training only, so that losses of smoothed
    and plain networks compare. Predictions are (n,) int64 classes for classes y, else (n, outputs) float64.
    """
    from fastmlp.reference import OUTPUTS

    losses = np.empty(len(x))
    predictions = np.empty(y.shape, np.int64 if y.ndim == 1 else np.float64)
    for rows, z in forward_blocks(engine, x):
        losses[rows] = engine.score(z, y[rows]).loss
        predictions[rows] = z.argmax(axis=1) if y.ndim == 1 else OUTPUTS[network.output or ""](z.astype(np.float64))
    return losses, predictions


def epoch_figures(engine: Engine, x: Features, y: npt.NDArray[Any]) -> tuple[float, float | None]:
    """Mean loss and accuracy (None for plain targets) of a data part; the same figures as by `measure`."""
    losses, correct = np.empty(len(x)), np.empty(len(x), bool)
    for rows, z in forward_blocks(engine, x):
        losses[rows], correct[rows] = engine.score(z, y[rows])
    return mean(losses), mean(correct) if y.ndim == 1 else None


def mean(values: npt.NDArray[Any], weights: FloatArray | None = None) -> float:
    """Mean of rows' figures, weighted if there are weights; as `ndarray.mean`, which takes twice the time for few rows."""
    return float(values.sum(dtype=np.float64) / len(values) if weights is None else np.average(values, weights=weights))


def evaluate(model: Model, x: Features, y: npt.NDArray[Any]) -> dict[str, Any]:
    """All figures of a model on a data part.

    Parameters
    ----------
    x : (n, features) rows as they came from the data, unscaled: an array, which may be memory-mapped, or a `rows.Subset`
    y : (n,) class numbers or (n, outputs) targets

    Returns
    -------
    dict : "loss"; for classes also what `metrics.classification_metrics` gives, else `metrics.regression_metrics`

    Raises
    ------
    DataError : x or y do not fit the network
    """
    return judge(model, x, y)[0]


def judge(model: Model, x: Features, y: npt.NDArray[Any]) -> tuple[dict[str, Any], npt.NDArray[Any]]:
    """The figures of `evaluate`, and the predictions of `measure` that they are of."""
    x, y = check_part(model.network, x, y, "evaluation", model.parameters.dtype)
    losses, predictions = measure(model.network, model.engine(), x, y)
    loss = {"loss": mean(losses)}
    if y.ndim == 1:
        return loss | classification_metrics(y, predictions, model.classes), predictions
    return loss | regression_metrics(y, predictions), predictions
