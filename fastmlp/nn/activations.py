"""Activation functions as scalar functions, and their registry.

The same functions are compiled for CPU and CUDA. A test compares them with the NumPy formulas of the reference implementation
(reference.py). They use only `math` and typed constants, which all Numba targets support. A literal `1.0` would promote
float32 to float64.

value(z, a) computes f(z), and slope(z, y, a) computes the derivative f'(z) from z and y = f(z). `a` is the parameter of the
activation: the slope for negative z of leaky-relu and leaky-gelu, and alpha of elu. The other activations ignore it.

=========== ================================================= =========
name        f(z)                                              default a
=========== ================================================= =========
linear      z
relu        max(z, 0), with derivative 0 at z = 0
leaky-relu  z for z > 0, a z otherwise                        0.01
tanh        tanh z
sigmoid     1 / (1 + exp(-z))
gelu        z P(z), P is the standard normal CDF
leaky-gelu  a z + (1 - a) gelu(z)                             0.01
silu        z sigmoid(z)
elu         z for z > 0, a (exp(z) - 1) otherwise             1.0
=========== ================================================= =========

There is no standard definition of leaky-gelu. Here it is defined by analogy with leaky-relu(z) = a z + (1 - a) relu(z):
leaky-gelu(z) = a z + (1 - a) gelu(z). Its derivative tends to a for z -> -inf and to 1 for z -> inf.

Sources: gelu (exact form), Hendrycks & Gimpel 2016 (arXiv:1606.08415) section 2; silu, Elfwing et al. 2017 (arXiv:1702.03118);
elu, Clevert et al. 2015 (arXiv:1511.07289) equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    return ZERO if z <= ZERO else z  # returns NaN for NaN, unlike max(z, 0)


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
    """Return the standard normal CDF. It is computed with erfc, which is accurate to a small relative error for z << 0."""
    return HALF * math.erfc(-z * SQRT_HALF)


def normal_density(z: Any) -> Any:
    """Return the standard normal density. erfc needs the same exponential, so the compiler can compute it once for both."""
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
    """The value and the derivative of an activation, and the default value of its parameter (None if it has none)."""

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
    """Split "name" or "name:parameter" into the registry name and the parameter; the parameter is 0 if there is none.

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
    """Return "name" or "name:parameter" with the name as spelled in `ACTIVATIONS`; raise ConfigError if it is unknown.

    >>> canonical_activation("LeakyReLU:0.2"), canonical_activation("swish")
    ('leaky-relu:0.2', 'silu')
    """
    parse_activation(text)
    name, colon, parameter = text.partition(":")
    return canonical_name("activation", name, ACTIVATIONS) + colon + parameter


def parse_number(where: str, text: str, *, settings: Sequence[str] = ()) -> float:
    """Convert `text` to a finite number.

    If it is not one, raise ConfigError with these settings and a message that starts with `where`.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        message = f"{where}: {text!r} is not a finite number; valid examples: elu:0.5, huber:1.5, normal:0.1"
        raise ConfigError(message, settings=settings)
    return number
