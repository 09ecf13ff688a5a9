"""Loss functions for one row, and their registry.

A row function takes the pre-activations z and the targets t of a row (n values each), writes the gradient dz = d loss / d z,
and returns the loss of the row. Sums are accumulated in index order. The same functions are compiled for CPU and CUDA. The
NumPy formulas of the reference implementation are in reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastmlp.nn.activations import HALF, ONE, ZERO, sigmoid_slope, sigmoid_value


def softmax_row(z: Any, y: Any, n: int) -> Any:
    """Write softmax(z) to y, and return log(sum(exp(z))). The maximum is subtracted first to avoid overflow."""
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
    """Softmax cross-entropy, sum_j t_j (log_sum_exp(z) - z_j), with dz = softmax(z) - t. The targets must sum to 1."""
    log_sum = softmax_row(z, dz, n)
    loss = ZERO
    for j in range(n):
        if t[j] != ZERO:
            loss += t[j] * (log_sum - z[j])
        dz[j] = dz[j] - t[j]
    return loss


def squared_error_linear_row(z: Any, t: Any, dz: Any, n: int) -> Any:
    """Half the squared distance between y = z and t, with dz = y - t."""
    loss = ZERO
    for j in range(n):
        error = z[j] - t[j]
        loss += HALF * error * error
        dz[j] = error
    return loss


def squared_error_sigmoid_row(z: Any, t: Any, dz: Any, n: int) -> Any:
    """Half the squared distance between y = sigmoid(z) and t, with dz = (y - t) y (1 - y)."""
    loss = ZERO
    for j in range(n):
        y = sigmoid_value(z[j], ZERO)
        error = y - t[j]
        loss += HALF * error * error
        dz[j] = error * sigmoid_slope(z[j], y, ZERO)
    return loss


def squared_error_softmax_row(z: Any, t: Any, dz: Any, n: int) -> Any:
    """Half the squared distance between y = softmax(z) and t, with dz_j = y_j ((y_j - t_j) - sum_i (y_i - t_i) y_i).

    The gradient follows from the Jacobian of softmax, dy_i/dz_j = y_i (1[i=j] - y_j).
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


def binary_cross_entropy_row(z: Any, t: Any, dz: Any, n: int) -> Any:
    """Binary cross-entropy of y = sigmoid(z), summed over the outputs, with dz = y - t. The targets must be in [0, 1].

    The loss of an output is max(z, 0) - z t + log(1 + e) with e = exp(-|z|). To be accurate for small e, log(1 + e) is
    computed as log(u) + (e - (u - 1)) / u, where u is the rounded value of 1 + e.
    """
    loss = ZERO
    for j in range(n):
        positive = z[j] if z[j] > ZERO else ZERO
        e = math.exp(z[j] if z[j] < ZERO else -z[j])
        u = ONE + e
        loss += positive - z[j] * t[j] + (math.log(u) + (e - (u - ONE)) / u)
        dz[j] = sigmoid_value(z[j], ZERO) - t[j]
    return loss


def poisson_row(z: Any, t: Any, dz: Any, n: int) -> Any:
    """Half the Poisson deviance of y = exp(z), sum_j (y_j - t_j - t_j log(y_j / t_j)), with dz = y - t.

    The targets must be >= 0. With r = log(y / t), the term of an output is computed as t (exp(r) - 1 - r) if r <= 1, because
    y - t - t r would lose significant digits there. If t = 0, the term is y.
    """
    loss = ZERO
    for j in range(n):
        counted = t[j] > ZERO
        y = math.exp(z[j])
        r = z[j] - math.log(t[j] if counted else ONE)
        near = t[j] * (math.expm1(r) - r)
        far = (y - t[j]) - t[j] * r  # t * exp(r) could overflow for small t
        loss += (far if r > ONE else near) if counted else y
        dz[j] = y - t[j]
    return loss


LOSSES: dict[str, dict[str, Callable[..., Any]]] = {
    "cross-entropy": {"softmax": cross_entropy_row},
    "squared-error": {
        "linear": squared_error_linear_row,
        "sigmoid": squared_error_sigmoid_row,
        "softmax": squared_error_softmax_row,
    },
    "binary-cross-entropy": {"sigmoid": binary_cross_entropy_row},
    "poisson": {"exp": poisson_row},
}
OUTPUTS = tuple(dict.fromkeys(output for outputs in LOSSES.values() for output in outputs))  # names of the output functions
