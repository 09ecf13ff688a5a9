"""Activations as scalar functions, and their registry.

The same function of each is compiled for the CPU and for CUDA. The NumPy formulas of the specification are in reference.py;
a test compares both on a grid. The functions use only `math` and typed constants, which every Numba target supports; a literal
`1.0` would convert float32 to float64.

value(z, a) is f(z); slope(z, y, a) is f'(z), given z and y = f(z). `a` is the activation's parameter:
the slope on the negative side for leaky-relu and leaky-gelu, alpha for elu; the others ignore it.

=========== ================================================= =========
name        f(z)                                              default a
=========== ================================================= =========
linear      z
relu        max(z, 0), slope 0 at 0
leaky-relu  z for z > 0, a z otherwise                        0.01
tanh        tanh z
sigmoid     1 / (1 + exp(-z))
gelu        z P(z), P the normal distribution function
leaky-gelu  a z + (1 - a) gelu(z)                             0.01
silu        z sigmoid(z)
elu         z for z > 0, a (exp(z) - 1) otherwise             1.0
=========== ================================================= =========

There is no standard definition of leaky-gelu. This one follows leaky-relu: leaky-relu(z) = a z + (1 - a) relu(z), so
leaky-gelu(z) = a z + (1 - a) gelu(z), with slope a far to the left and 1 far to the right.

Sources: gelu, Hendrycks & Gimpel 2016 (arXiv:1606.08415) section 2, exact form; silu, Elfwing et al. 2017 (arXiv:1702.03118);
elu, Clevert et al. 2015 (arXiv:1511.07289) equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastmlp.errors import ConfigError
from fastmlp.nn.names import canonical_name

ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
SQRT_HALF = np.float32(math.sqrt(0.5))
INV_SQRT_2PI = np.float32(1 / math.sqrt(2 * math.pi))


def linear_value(z: Any, a: Any) -> Any:
    return z


def linear_slope(z: Any, y: Any, a: Any) -> Any:
    return ONE


def relu_value(z: Any, a: Any) -> Any:
    return ZERO if z <= ZERO else z  # in this form NaN stays NaN


def relu_slope(z: Any, y: Any, a: Any) -> Any:
    return ONE if z > ZERO else ZERO


def leaky_relu_value(z: Any, a: Any) -> Any:
    return a * z if z <= ZERO else z


def leaky_relu_slope(z: Any, y: Any, a: Any) -> Any:
    return ONE if z > ZERO else a


def tanh_value(z: Any, a: Any) -> Any:
    return math.tanh(z)


def tanh_slope(z: Any, y: Any, a: Any) -> Any:
    return ONE - y * y


def sigmoid_value(z: Any, a: Any) -> Any:
    return ONE / (ONE + math.exp(-z))


def sigmoid_slope(z: Any, y: Any, a: Any) -> Any:
    return y * (ONE - y)


def normal_cdf(z: Any) -> Any:
    """Return P(z), computed by erfc, which keeps the relative accuracy in the left tail."""
    return HALF * math.erfc(-z * SQRT_HALF)


def normal_density(z: Any) -> Any:
    """Return the density of the normal distribution; its exponential is that of erfc, so the compiler computes it once."""
    x = abs(-z * SQRT_HALF)
    return INV_SQRT_2PI * math.exp(-x * x)


def gelu_value(z: Any, a: Any) -> Any:
    return z * normal_cdf(z)


def gelu_slope(z: Any, y: Any, a: Any) -> Any:
    return normal_cdf(z) + z * normal_density(z)


def leaky_gelu_value(z: Any, a: Any) -> Any:
    return a * z + (ONE - a) * (z * normal_cdf(z))


def leaky_gelu_slope(z: Any, y: Any, a: Any) -> Any:
    return a + (ONE - a) * (normal_cdf(z) + z * normal_density(z))


def silu_value(z: Any, a: Any) -> Any:
    return z / (ONE + math.exp(-z))


def silu_slope(z: Any, y: Any, a: Any) -> Any:
    s = ONE / (ONE + math.exp(-z))
    return s + y * (ONE - s)


def elu_value(z: Any, a: Any) -> Any:
    return a * math.expm1(z) if z <= ZERO else z


def elu_slope(z: Any, y: Any, a: Any) -> Any:
    return ONE if z > ZERO else y + a


class Activation(NamedTuple):
    """An activation: its value, its derivative, and the default of its parameter (None if it has no parameter)."""

    value: Callable[[Any, Any], Any]
    slope: Callable[[Any, Any, Any], Any]
    default: float | None = None


ACTIVATIONS = {
    "linear": Activation(linear_value, linear_slope),
    "relu": Activation(relu_value, relu_slope),
    "leaky-relu": Activation(leaky_relu_value, leaky_relu_slope, 0.01),
    "tanh": Activation(tanh_value, tanh_slope),
    "sigmoid": Activation(sigmoid_value, sigmoid_slope),
    "gelu": Activation(gelu_value, gelu_slope),
    "leaky-gelu": Activation(leaky_gelu_value, leaky_gelu_slope, 0.01),
    "silu": Activation(silu_value, silu_slope),
    "elu": Activation(elu_value, elu_slope, 1.0),
}


def parse_activation(text: str) -> tuple[str, float]:
    """Return name and parameter of "name" or "name:parameter".

    >>> parse_activation("leaky-relu:0.2"), parse_activation("ReLU")
    (('leaky-relu', 0.2), ('relu', 0.0))
    """
    name, _, parameter = text.partition(":")
    name = canonical_name("activation", name, ACTIVATIONS)
    default = ACTIVATIONS[name].default
    if not parameter:
        return name, default or 0.0
    if default is None:
        raise ConfigError(f"activation {name!r} has no parameter, but {text!r} sets one; write {name!r}")
    return name, parse_number(f"activation {text!r}", parameter)


def canonical_activation(text: str) -> str:
    """Return "name" or "name:parameter" with the name as in `ACTIVATIONS`; raise ConfigError if it is unknown.

    >>> canonical_activation("LeakyReLU:0.2"), canonical_activation("swish")
    ('leaky-relu:0.2', 'silu')
    """
    parse_activation(text)
    name, colon, parameter = text.partition(":")
    return canonical_name("activation", name, ACTIVATIONS) + colon + parameter


def parse_number(where: str, text: str) -> float:
    """Return the finite number in `text`; raise ConfigError, with `where` in the message, if it is none."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{where}: {text!r} is not a finite number; write for example leaky-relu:0.01")
    return number
