"""Losses as functions of one row, and their registry.

A row function takes pre-activations z and targets t, n values each, writes the gradient dz = d loss / d z, and returns the
loss of the row; sums run in the order of the index. Like the activations, each is compiled for the CPU and for CUDA; the NumPy
formulas of the specification are in reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastmlp.nn.activations import HALF, ZERO, sigmoid_slope, sigmoid_value


def softmax_row(z: Any, y: Any, n: int) -> Any:
    """Write y = softmax(z) and return log(sum(exp(z))). The maximum is subtracted first, so nothing overflows."""
    maximum = z[0]
    for j in range(1, n):
        maximum = max(maximum, z[j])
    total = ZERO
    for j in range(n):
        y[j] = math.exp(z[j] - maximum)
    for j in range(n):
        total += y[j]
    for j in range(n):
        y[j] = y[j] / total
    return math.log(total) + maximum


def cross_entropy_row(z: Any, t: Any, dz: Any, n: int) -> Any:
    """Softmax cross-entropy, sum_j t_j (log_sum_exp(z) - z_j), for targets that sum to 1; dz = softmax(z) - t."""
    log_sum = softmax_row(z, dz, n)
    loss = ZERO
    for j in range(n):
        if t[j] != ZERO:
            loss += t[j] * (log_sum - z[j])
        dz[j] = dz[j] - t[j]
    return loss


def squared_error_linear_row(z: Any, t: Any, dz: Any, n: int) -> Any:
    """Half the squared distance of y = z from t; dz = y - t."""
    loss = ZERO
    for j in range(n):
        error = z[j] - t[j]
        loss += HALF * error * error
        dz[j] = error
    return loss


def squared_error_sigmoid_row(z: Any, t: Any, dz: Any, n: int) -> Any:
    """Half the squared distance of y = sigmoid(z) from t; dz = (y - t) y (1 - y)."""
    loss = ZERO
    for j in range(n):
        y = sigmoid_value(z[j], ZERO)
        error = y - t[j]
        loss += HALF * error * error
        dz[j] = error * sigmoid_slope(z[j], y, ZERO)
    return loss


def squared_error_softmax_row(z: Any, t: Any, dz: Any, n: int) -> Any:
    """Half the squared distance of y = softmax(z) from t; dz_j = y_j ((y_j - t_j) - sum_i (y_i - t_i) y_i).

    The gradient follows from the Jacobian dy_i/dz_j = y_i (1[i=j] - y_j).
    """
    softmax_row(z, dz, n)
    loss = ZERO
    mean_error = ZERO
    for j in range(n):
        error = dz[j] - t[j]
        loss += HALF * error * error
        mean_error += error * dz[j]
    for j in range(n):
        dz[j] = dz[j] * (dz[j] - t[j] - mean_error)
    return loss


LOSSES: dict[str, dict[str, Callable[..., Any]]] = {
    "cross-entropy": {"softmax": cross_entropy_row},
    "squared-error": {
        "linear": squared_error_linear_row,
        "sigmoid": squared_error_sigmoid_row,
        "softmax": squared_error_softmax_row,
    },
}
OUTPUTS = tuple(dict.fromkeys(output for outputs in LOSSES.values() for output in outputs))  # names of the output functions
