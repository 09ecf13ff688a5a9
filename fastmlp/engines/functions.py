"""Scalar functions of the engines: copies with compiled callees, and custom activations as functions of arrays.

The compiled engines call the scalar functions of an activation in their kernels. The engines that work on whole arrays, which
are the NumPy engine and the PyTorch engine, use `array_activations`. Numba compiles these functions for float32 and float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any

import numpy as np

from fastmlp.engines.jit import check_jit
from fastmlp.engines.kernel_cache import with_globals
from fastmlp.errors import ConfigError
from fastmlp.nn.activations import ACTIVATIONS, formulas_of
from fastmlp.nn.custom import global_names
from fastmlp.nn.network import FloatArray, Network

ArrayFunction = Callable[..., FloatArray]


def with_callees(function: Callable[..., Any], replace: Callable[[Any], Any]) -> FunctionType:
    """Return a copy of a scalar function, in which `replace` is applied to the globals and closure variables that it reads."""
    assert isinstance(function, FunctionType)
    names = [name for name in global_names(function.__code__) if name in function.__globals__]
    replaced = {name: replace(function.__globals__[name]) for name in names}
    cells = tuple(CellType(replace(cell.cell_contents)) for cell in function.__closure__ or ())
    return with_globals(function, {**function.__globals__, **replaced}, cells)


@contextmanager
def naming_activation(name: str) -> Iterator[None]:
    """Convert an error in the compilation of a custom activation into a ConfigError that contains its name.

    Numba raises exceptions of many types. An error in a built-in activation is not converted.
    """
    try:
        yield
    except Exception as error:
        if name in ACTIVATIONS:
            raise
        raise ConfigError(f"activation {name!r} cannot be compiled by Numba: {numba_message(error)}") from error


def numba_message(error: Exception) -> str:
    """Return the type and the essential lines of an error message of Numba, shortened.

    >>> numba_message(TypeError("Failed in nopython mode pipeline (step: nopython frontend)\\nUnknown attribute 'foo'\\n"))
    "TypeError: Unknown attribute 'foo'"
    """
    lines = [line.strip() for line in str(error).splitlines()]
    kept = " ".join(line for line in lines if line and not line.startswith(("Failed in nopython mode", "During:", "File ")))
    return f"{type(error).__name__}: {kept[:300]}"


# ------------------------------------------------------------------------------------------------ arrays


def array_activations(network: Network) -> dict[str, tuple[ArrayFunction, ArrayFunction]]:
    """Return value(z, a) and slope(z, y, a) of the custom activations of a network, as functions of float32 or float64 arrays.

    Raises
    ------
    ConfigError : a custom activation is not registered in this process, or Numba cannot compile it
    UnavailableError : there is a custom activation, but Numba's JIT compiler is disabled
    """
    names = {layer.activation for layer in network.layers} - set(ACTIVATIONS)
    if names:
        check_jit(f"activation {min(names)!r}")
    found = {}
    for name in sorted(names):
        value, slope, _ = formulas_of(name)
        with naming_activation(name):
            found[name] = over_arrays(value, 2), over_arrays(slope, 3)
    return found


@functools.cache
def over_arrays(function: Callable[..., Any], arguments: int) -> ArrayFunction:
    """Compile a scalar function with this number of arguments as a NumPy ufunc; overflow and NaN cause no warnings."""
    from numba import vectorize

    types = ("float32", "float64")
    signatures = [f"{kind}({', '.join([kind] * arguments)})" for kind in types]
    ufunc = vectorize(signatures)(with_callees(function, jitted))  # type: ignore[no-untyped-call]

    def quiet(*given: Any) -> Any:
        with np.errstate(all="ignore"):
            return ufunc(*given)

    return quiet


def jitted(value: Any) -> Any:
    """Compile a function with Numba, together with the functions that it calls; return other values unchanged."""
    from numba import njit

    return njit(error_model="numpy")(with_callees(value, jitted)) if isinstance(value, FunctionType) else value
