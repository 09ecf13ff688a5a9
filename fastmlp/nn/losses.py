"""Loss functions for one row, and their registry.

A row function takes the pre-activations z and the targets t of a row (n values each), writes the gradient dz = d loss / d z,
and returns the loss of the row. `a` is the parameter of the loss: delta of huber, and the level of quantile. The other losses
ignore it. Sums are accumulated in index order. The same functions are compiled for CPU and CUDA. The NumPy formulas of the
reference implementation are in reference.py.

Sources: huber, Huber 1964 ("Robust estimation of a location parameter"); quantile, Koenker & Bassett 1978 ("Regression
quantiles").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastmlp.errors import ConfigError
from fastmlp.nn.activations import HALF, ONE, ZERO, parse_number, sigmoid_slope, sigmoid_value
from fastmlp.nn.names import canonical_name


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


def cross_entropy_row(z: Any, t: Any, dz: Any, n: int, a: Any) -> Any:
    """Softmax cross-entropy, sum_j t_j (log_sum_exp(z) - z_j), with dz = softmax(z) - t. The targets must sum to 1."""
    log_sum = softmax_row(z, dz, n)
    loss = ZERO
    for j in range(n):
        if t[j] != ZERO:
            loss += t[j] * (log_sum - z[j])
        dz[j] = dz[j] - t[j]
    return loss


def squared_error_linear_row(z: Any, t: Any, dz: Any, n: int, a: Any) -> Any:
    """Half the squared distance between y = z and t, with dz = y - t."""
    loss = ZERO
    for j in range(n):
        error = z[j] - t[j]
        loss += HALF * error * error
        dz[j] = error
    return loss


def squared_error_sigmoid_row(z: Any, t: Any, dz: Any, n: int, a: Any) -> Any:
    """Half the squared distance between y = sigmoid(z) and t, with dz = (y - t) y (1 - y)."""
    loss = ZERO
    for j in range(n):
        y = sigmoid_value(z[j], ZERO)
        error = y - t[j]
        loss += HALF * error * error
        dz[j] = error * sigmoid_slope(z[j], y, ZERO)
    return loss


def squared_error_softmax_row(z: Any, t: Any, dz: Any, n: int, a: Any) -> Any:
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


def binary_cross_entropy_row(z: Any, t: Any, dz: Any, n: int, a: Any) -> Any:
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


def poisson_row(z: Any, t: Any, dz: Any, n: int, a: Any) -> Any:
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


def absolute_error_row(z: Any, t: Any, dz: Any, n: int, a: Any) -> Any:
    """Sum of |y - t| with y = z, and dz = sign(y - t), which is 0 for y = t."""
    loss = ZERO
    for j in range(n):
        error = z[j] - t[j]
        loss += abs(error)
        dz[j] = ONE if error > ZERO else -ONE if error < ZERO else error  # the error is 0 or NaN in the last case
    return loss


def huber_row(z: Any, t: Any, dz: Any, n: int, a: Any) -> Any:
    """Huber loss of the errors e = y - t with y = z and delta a, with dz = e, limited to [-a, a].

    The loss of an output is e^2 / 2 if |e| <= a, and a (|e| - a / 2) otherwise.
    """
    loss = ZERO
    for j in range(n):
        error = z[j] - t[j]
        size = abs(error)
        loss += HALF * error * error if size <= a else a * (size - HALF * a)
        dz[j] = a if error > a else -a if error < -a else error
    return loss


def quantile_row(z: Any, t: Any, dz: Any, n: int, a: Any) -> Any:
    """Quantile loss (pinball loss) of y = z with the level a, the sum of max(a (t - y), (a - 1) (t - y)).

    The gradient dz is 1 - a for y > t, -a for y < t, and 0 for y = t.
    """
    loss = ZERO
    for j in range(n):
        error = z[j] - t[j]
        loss += (ONE - a) * error if error > ZERO else -a * error
        dz[j] = ONE - a if error > ZERO else -a if error < ZERO else error  # the error is 0 or NaN in the last case
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
    "absolute-error": {"linear": absolute_error_row},
    "huber": {"linear": huber_row},
    "quantile": {"linear": quantile_row},
}
OUTPUTS = tuple(dict.fromkeys(output for outputs in LOSSES.values() for output in outputs))  # names of the output functions


class LossParameter(NamedTuple):
    """The parameter of a loss: its default value, and the bounds of the open interval of its valid values."""

    default: float
    lower: float
    upper: float


LOSS_PARAMETERS = {"huber": LossParameter(1.0, 0, math.inf), "quantile": LossParameter(0.5, 0, 1)}  # others have none


def parse_loss(text: Any) -> tuple[str, float]:
    """Split "name" or "name:parameter" into the registry name and the parameter; the parameter is 0 if there is none.

    Raises
    ------
    ConfigError : the name is unknown, the loss has no parameter, or the parameter is outside its range in float32

    Examples
    --------
    >>> parse_loss("huber:1.5"), parse_loss("pinball"), parse_loss("MSE")
    (('huber', 1.5), ('quantile', 0.5), ('squared-error', 0.0))
    """
    given, colon, number = text.partition(":") if isinstance(text, str) else (text, "", "")
    name = canonical_name("loss", given, LOSSES)
    parameter = LOSS_PARAMETERS.get(name)
    if not colon:
        return name, parameter.default if parameter else 0.0
    if parameter is None:
        message = f"loss {name!r} has no parameter, but {text!r} sets one; write {name!r}"
        raise ConfigError(message, settings=("loss",))
    value = parse_number(f"loss {text!r}", number, settings=("loss",))
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    if not parameter.lower < rounded < parameter.upper:
        message = f"loss {text!r}: the parameter must be a float32 number in the range ({parameter.lower}, {parameter.upper})"
        raise ConfigError(message, settings=("loss",))
    return name, value


def canonical_loss(text: Any) -> str:
    """Return "name" or "name:parameter" with the name as spelled in `LOSSES`; raise ConfigError if it is invalid.

    >>> canonical_loss("Huber_Loss:1.5"), canonical_loss("mae")
    ('huber:1.5', 'absolute-error')
    """
    name, _ = parse_loss(text)
    _, colon, number = text.partition(":")
    return name + colon + number
