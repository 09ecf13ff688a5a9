"""From outputs and targets to figures: the loss and accuracy of an epoch, and the full metrics of a data part."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.checks import check_targets
from fastmlp.metrics import classification_metrics, regression_metrics
from fastmlp.model import Model
from fastmlp.network import FloatArray, Network


def loss_and_accuracy(network: Network, z: FloatArray, y: npt.NDArray[Any]) -> tuple[float, float | None]:
    """Mean loss (without penalties, without label smoothing) and accuracy (None for plain targets) from pre-activations z.

    Smoothing is part of training only, so that losses of smoothed and plain networks compare.
    """
    from dataclasses import replace

    from fastmlp.reference import row_losses, target_rows

    plain = replace(network, label_smoothing=0.0)
    loss, _ = row_losses(plain, z.astype(np.float64), target_rows(plain, y, np.float64))
    return float(loss.mean()), float((z.argmax(axis=1) == y).mean()) if y.ndim == 1 else None


def evaluate(model: Model, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> dict[str, Any]:
    """All figures of a model on a data part.

    Parameters
    ----------
    x : (n, features) rows as they came from the data, unscaled
    y : (n,) class numbers or (n, outputs) targets

    Returns
    -------
    dict : "loss"; for classes also what `metrics.classification_metrics` gives, else `metrics.regression_metrics`

    Raises
    ------
    DataError : x or y do not fit the network
    """
    z = model.forward(x)
    y = check_targets(model.network, y, len(z), "evaluation", z.dtype)
    loss, _ = loss_and_accuracy(model.network, z, y)
    if y.ndim == 1:
        return {"loss": loss, **classification_metrics(y, z.argmax(axis=1), model.classes)}
    from fastmlp.reference import OUTPUTS

    outputs = OUTPUTS[model.network.output or ""](z.astype(np.float64))
    return {"loss": loss, **regression_metrics(y, outputs)}
