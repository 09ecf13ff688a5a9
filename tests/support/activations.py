"""Custom activations for tests, with their NumPy formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import exp
from typing import Any

import numpy as np

from fastmlp.nn.activations import Activation

ONE = np.float32(1)


def softplus(z: Any) -> Any:
    return math.log1p(math.exp(z))


def mish_value(z: Any, a: Any) -> Any:
    return z * math.tanh(softplus(z))


def mish_slope(z: Any, y: Any, a: Any) -> Any:
    """Return the derivative; the Python constants make it float64."""
    t = math.tanh(softplus(z))
    return t + z * (1.0 - t * t) / (1 + exp(-z))


def softsign_value(z: Any, a: Any) -> Any:
    return z / (ONE + a * abs(z))


def softsign_slope(z: Any, y: Any, a: Any) -> Any:
    d = ONE + a * abs(z)
    return ONE / (d * d)


def with_closure(width: float, inner: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Return a smooth step of the given width and its derivative, as functions with closure variables."""

    def value(z: Any, a: Any) -> Any:
        return inner(z / width)

    def slope(z: Any, y: Any, a: Any) -> Any:
        return (1 - y * y) / width

    return value, slope


# Float64 constants and helper functions; float32 constants and a parameter; closures; a step with another slope.
MISH = Activation("mish", mish_value, mish_slope)
SOFTSIGN = Activation("softsign", softsign_value, softsign_slope, 1.0)
STEP = Activation("smooth-step", *with_closure(1.5, lambda z: math.tanh(z)))  # noqa: PLW0108 - must be a Python function
BINARY = Activation("binary", lambda z, a: 1 if z > 0 else 0, lambda z, y, a: ONE if abs(z) < ONE else 0, differentiable=False)


def numpy_mish(z: Any, a: float) -> tuple[Any, Any]:
    """Return the value and the derivative of mish. Source: Misra 2019 (arXiv:1908.08681), equations 1 and 3."""
    t = np.tanh(np.log1p(np.exp(z)))
    return z * t, t + z * (1 - t * t) / (1 + np.exp(-z))


def numpy_softsign(z: Any, a: float) -> tuple[Any, Any]:
    return z / (1 + a * np.abs(z)), (1 + a * np.abs(z)) ** -2.0


def numpy_step(z: Any, a: float) -> tuple[Any, Any]:
    y = np.tanh(z / 1.5)
    return y, (1 - y * y) / 1.5


def numpy_binary(z: Any, a: float) -> tuple[Any, Any]:
    return (z > 0).astype(z.dtype), (np.abs(z) < 1).astype(z.dtype)


FORMULAS: dict[str, tuple[Activation, Callable[[Any, float], tuple[Any, Any]]]] = {
    "mish": (MISH, numpy_mish),
    "softsign": (SOFTSIGN, numpy_softsign),
    "smooth-step": (STEP, numpy_step),
    "binary": (BINARY, numpy_binary),
}
