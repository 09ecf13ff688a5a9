"""Activation functions as scalar functions, and the registry of built-in and custom ones.

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
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from fastmlp.errors import ConfigError
from fastmlp.nn.custom import check_functions, digest, snapshot
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


class Formulas(NamedTuple):
    """The value and the derivative of an activation, and the default value of its parameter (None if it has none)."""

    value: Callable[[Any, Any], Any]
    slope: Callable[[Any, Any, Any], Any]
    default: float | None = None


ACTIVATIONS = {
    "linear": Formulas(linear_value, linear_slope),
    "relu": Formulas(relu_value, relu_slope),
    "leaky-relu": Formulas(leaky_relu_value, leaky_relu_slope, 0.01),
    "tanh": Formulas(tanh_value, tanh_slope),
    "sigmoid": Formulas(sigmoid_value, sigmoid_slope),
    "gelu": Formulas(gelu_value, gelu_slope),
    "leaky-gelu": Formulas(leaky_gelu_value, leaky_gelu_slope, 0.01),
    "silu": Formulas(silu_value, silu_slope),
    "elu": Formulas(elu_value, elu_slope, 1.0),
}

# ------------------------------------------------------------------------------------------------ custom activations


@dataclass(frozen=True)
class Activation:
    """A custom activation, defined by two scalar functions that every engine compiles with Numba.

    The functions and all values that they use are copied when the object is created. Networks and model files contain only
    the name of the activation. It is registered in the current process when the object is passed to `Network`.

    Parameters
    ----------
    name : a letter, followed by letters, digits, hyphens and underscores
    value : function value(z, a) that returns f(z)
    slope : function slope(z, y, a) that returns the derivative f'(z), where y = f(z)
    default : default value of the parameter `a`, which "name:0.5" sets to 0.5; None if there is no parameter: `a` is then 0
    differentiable : whether slope is the derivative of value, which is then checked with finite differences at a few points.
        False allows other functions, such as the straight-through estimator of a step function.

    The functions may use numbers, tuples, the modules math and numpy, and other functions of the same kind. They must not raise
    exceptions. A constant such as 1.0 is a float64 number, and computing in float64 is several times slower: use
    np.float32(1). The result is always rounded to float32 by the engines that compute in float32.

    Raises
    ------
    ConfigError : the name is invalid, or a function is not supported, fails, or does not return a number; or slope is not the
        derivative of value. A function that Numba cannot compile is reported by the engine.

    Examples
    --------
    >>> one = np.float32(1)
    >>> softsign = Activation(
    ...     "softsign", value=lambda z, a: z / (one + abs(z)), slope=lambda z, y, a: (one - abs(y)) * (one - abs(y))
    ... )
    """

    name: str
    value: Callable[[Any, Any], Any]
    slope: Callable[[Any, Any, Any], Any]
    default: float | None = None
    differentiable: bool = True
    formulas: Formulas = field(init=False, repr=False, compare=False)
    digest: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.name):
            raise ConfigError(
                "the name of an activation must be a letter, followed by letters, digits, hyphens and underscores, "
                f"not {self.name!r}"
            )
        where = f"activation {self.name!r}"
        default: Any = self.default
        if default is not None and not (isinstance(default, Real) and math.isfinite(default)):
            raise ConfigError(f"{where}: default must be a finite number or None, not {default!r}")
        default = None if default is None else float(default)
        value, slope = snapshot(self.value, f"{where}: value", 2), snapshot(self.slope, f"{where}: slope", 3)
        check_functions(where, value, slope, default or 0.0, self.differentiable)
        object.__setattr__(self, "formulas", Formulas(value, slope, default))  # sets a field of a frozen dataclass
        object.__setattr__(self, "digest", digest(value, slope, default))

    def __reduce__(self) -> Any:
        """Return how to create a copy, for pickle and `copy`: from the functions that the user passed."""
        return restored, (self.name, self.value, self.slope, self.default, self.differentiable)


CUSTOM: dict[str, Activation] = {}  # the custom activations that are registered in this process


class UnknownActivation(ConfigError):
    """An activation is neither built in nor registered. `activation` is its name."""

    activation = ""


def register(activation: Activation) -> str:
    """Register a custom activation, unless the same one is registered already. Return its name as spelled in the registry.

    Two activations are the same if their code, constants and default are, so a definition may be executed repeatedly.

    Raises
    ------
    ConfigError : the name is that of a built-in activation, or of a registered one with other functions
    """
    try:
        name = registry_name(activation.name)
    except UnknownActivation:
        CUSTOM[activation.name] = activation
        return activation.name
    if name in ACTIVATIONS:
        raise ConfigError(f"{activation.name!r} is a name of the built-in activation {name!r}; choose another name")
    if CUSTOM[name].digest != activation.digest:
        raise ConfigError(
            f"activation {name!r} is already registered with other functions, constants or default; choose another name, "
            "because networks and kernels refer to activations by name"
        )
    return name


def restored(*fields: Any) -> Activation:
    """Create and register a custom activation; networks that are unpickled with it can then be used."""
    activation = Activation(*fields)
    register(activation)
    return activation


# ------------------------------------------------------------------------------------------------ lookup


def registry_name(name: str) -> str:
    """Return the registered spelling of a name. Raise UnknownActivation, a ConfigError, if there is no such activation."""
    try:
        return canonical_name("activation", name, [*ACTIVATIONS, *CUSTOM])
    except ConfigError as error:
        unknown = UnknownActivation(
            f"{error}; a custom activation must first be passed to Network or load as a fastmlp.Activation"
        )
        unknown.activation = name
        raise unknown from None


def formulas_of(name: str) -> Formulas:
    """Return the formulas of an activation. Raise UnknownActivation if it is a custom one that is not registered."""
    return ACTIVATIONS[name] if name in ACTIVATIONS else CUSTOM[registry_name(name)].formulas


def digest_of(name: str) -> str:
    """Return the hash of the code of a custom activation, for the keys of cached kernels; "" for a built-in activation."""
    return "" if name in ACTIVATIONS else CUSTOM[registry_name(name)].digest


def parse_activation(text: str) -> tuple[str, float]:
    """Split "name" or "name:parameter" into the registry name and the parameter; the parameter is 0 if there is none.

    >>> parse_activation("leaky-relu:0.2"), parse_activation("ReLU")
    (('leaky-relu', 0.2), ('relu', 0.0))
    """
    name, _, parameter = text.partition(":")
    name = registry_name(name)
    default = formulas_of(name).default
    if not parameter:
        return name, default or 0.0
    if default is None:
        raise ConfigError(f"activation {name!r} has no parameter, but {text!r} sets one; write {name!r}")
    return name, parse_number(f"activation {text!r}", parameter)


def canonical_activation(given: Any) -> str:
    """Return "name" or "name:parameter" with the name as spelled in the registry; raise ConfigError if it is unknown.

    An `Activation` object is registered, and replaced by its name.

    >>> canonical_activation("LeakyReLU:0.2"), canonical_activation("swish")
    ('leaky-relu:0.2', 'silu')
    """
    if isinstance(given, Activation):
        return register(given)
    if not isinstance(given, str):
        raise ConfigError(f"activation must be a name or a fastmlp.Activation, not {given!r}", settings=("activation",))
    parse_activation(given)
    name, colon, parameter = given.partition(":")
    return registry_name(name) + colon + parameter


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
