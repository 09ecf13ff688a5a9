"""Tests of the CPU engine's elementary functions: errors in ulp, extreme arguments, and vectorization of loops."""

from __future__ import annotations

import functools
import math
import platform
import re
import warnings
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.special
from numba import float32, njit
from support.engines import same_bits
from support.tolerances import EPS

from fastmlp import reference
from fastmlp.engines.cpu.codegen import vector_math as cpu_math
from fastmlp.engines.cpu.codegen.vector_math import FUNCTIONS, fused, vector_math
from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.optimizers import RULES

TINY = 1.2e-38  # smaller float32 numbers are subnormal
EXACT: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "erfc": scipy.special.erfc,
    "log": np.log,
}
# Signs and ranges of |x| in which results are normal numbers; a few thousand floats of each exponent are tested.
SPANS = {
    "exp": [(1, 1e-30, 88.7228), (-1, 1e-30, 87.33)],
    "expm1": [(1, 1e-37, 88.7228), (-1, 1e-37, 1e30)],
    "tanh": [(1, 1e-37, 1e30), (-1, 1e-37, 1e30)],
    "erfc": [(1, 1e-30, 9.194)],
    "erfc, x <= 0": [(-1, 1e-30, 1e30)],
    "log": [(1, 1e-45, 3.4e38)],
}
# Critical intervals in which every float is tested: where the exponent n of the range reduction changes or is largest, where
# cancellation is complete, and where the result becomes exactly 1.
EVERY = {
    "exp": [(1, 0.3465, 0.3467), (1, 88.37, 88.7228), (-1, 87.1, 87.33)],
    "expm1": [(1, 0.3465, 0.3467), (-1, 0.3465, 0.3467), (1, 17, 17.05), (1, 88.37, 88.7228)],
    "tanh": [(1, 0.1733, 0.1734), (-1, 4.45, 4.55), (1, 8.9, 9.6)],
    "erfc": [(1, 0.999, 1.001), (1, 7.1, 7.2), (1, 9.1, 9.194)],
    "erfc, x <= 0": [(-1, 0.039, 0.0395), (-1, 0.3, 0.301)],
    "log": [(1, 0.9999, 1.0001), (1, 0.7071, 0.7072), (1, 1.4140, 1.4143), (1, 1.17e-38, 1.18e-38)],
}


def stated() -> dict[str, float]:
    """Return the maximum errors in ulp stated in the table of the module's docstring."""
    rows = re.findall(r"^(\w+(?:, x <= 0)?) +(\d+\.\d)\b", cpu_math.__doc__ or "", re.MULTILINE)
    return {name: float(error) for name, error in rows}


def between(low: float, high: float, step: int = 1) -> Any:
    """Return every `step`-th float32 between two positive numbers."""
    first, last = np.array([low, high], np.float32).view(np.int32)
    return np.arange(first, last + 1, step, np.int32).view(np.float32)


def points(name: str) -> Any:
    """Return the floats at which the error of a function is measured."""
    spans = [sign * between(low, high, 2111) for sign, low, high in SPANS[name]]
    return np.concatenate(spans + [sign * between(low, high) for sign, low, high in EVERY[name]])


def ulps(found: Any, exact: Any) -> Any:
    """Return errors in units in the last place (ulp) of the exact value in float32."""
    last_place = np.ldexp(1.0, np.maximum(np.frexp(exact)[1] - 24, -149))
    return np.abs(found.astype(np.float64) - exact) / last_place


compiled = njit(nogil=True, error_model="numpy", boundscheck=False)


@functools.cache
def with_callees(function: Callable[..., Any], math_module: ModuleType = math) -> Any:
    """Compile a function and the functions of its module that it calls, with another module in place of `math`."""
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        if isinstance(names.get(name), FunctionType):
            names[name] = with_callees(names[name], math_module)
    if "math" in names:
        names["math"] = math_module
    return compiled(FunctionType(function.__code__, names, function.__name__))


def processor_fuses() -> bool:
    """Return whether `fused` rounds only once, so that it can compute the rounding error of a product."""
    return bool(compiled(lambda a: fused(a, a, -a * a))(np.float32(1.1)))


def mapped(function: Any) -> Any:
    """Return a compiled function that applies `function` to all entries of an array."""

    @compiled
    def over(x: Any) -> Any:
        y = np.empty_like(x)
        for i in range(len(x)):
            y[i] = function(x[i])
        return y

    return over


@pytest.fixture(scope="module")
def fast_math() -> ModuleType:
    return vector_math(with_callees)


@pytest.fixture(scope="module")
def over_arrays(fast_math: ModuleType) -> dict[str, Any]:
    """Elementary functions by name, each compiled for float32 arrays."""
    loops = {name: mapped(getattr(fast_math, name)) for name in EXACT}
    for loop in loops.values():
        loop.compile((float32[::1],))
    return loops


# ------------------------------------------------------------------------------------------------ the functions


@pytest.mark.parametrize("name", SPANS)
def test_errors_are_within_those_stated(over_arrays: Any, name: str) -> None:
    function = name.partition(",")[0]
    x = points(name)
    error = ulps(over_arrays[function](x), EXACT[function](x.astype(np.float64)))
    if name == "erfc" and not processor_fuses():
        error -= x * x
    worst = error.argmax()
    assert error[worst] <= stated()[name], f"{function}({x[worst]!r}) has an error of {error[worst]:.2f} ulp"
    assert error[worst] > stated()[name] / 2, "the error stated in the table is much too large"


def test_the_table_states_every_function() -> None:
    assert {name.partition(",")[0] for name in stated()} == {function.__name__ for function in FUNCTIONS} == set(EXACT)
    assert stated().keys() == SPANS.keys() == EVERY.keys()


def test_the_measure_of_error_counts_last_places() -> None:
    x = np.array([1.0, 1.5, 0.75, 1e-40], np.float32)
    steps = x.view(np.int32) + np.array([0, 1, -2, 3], np.int32)
    assert ulps(steps.view(np.float32), x.astype(np.float64)).tolist() == [0, 1, 2, 3]


INF, NAN = math.inf, math.nan
EXTREMES = {
    "exp": [(INF, INF), (-INF, 0), (0, 1), (-0.0, 1), (1e-45, 1), (88.73, INF), (1e30, INF), (-103, 0), (-110, 0), (-1e30, 0)],
    "expm1": [(INF, INF), (-INF, -1), (0, 0), (-0.0, 0), (1e-45, 1e-45), (-1e-40, -1e-40), (89, INF), (-18, -1), (-1e30, -1)],
    "tanh": [(INF, 1), (-INF, -1), (0, 0), (-0.0, 0), (1e-45, 1e-45), (-1e-40, -1e-40), (20, 1), (-20, -1), (1e30, 1)],
    "erfc": [(INF, 0), (-INF, 2), (0, 1), (-0.0, 1), (1e-40, 1), (-4, 2), (9.37, 0), (1e19, 0), (1e30, 0), (-1e30, 2)],
    "log": [(INF, INF), (-INF, NAN), (0, -INF), (-0.0, -INF), (1, 0), (-1e-45, NAN), (-1, NAN), (-1e30, NAN)],
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(over_arrays: Any, name: str) -> None:
    x, wanted = np.array([*EXTREMES[name], (NAN, NAN)], np.float32).T.copy()
    np.testing.assert_array_equal(over_arrays[name](x), wanted)


@pytest.mark.parametrize("name", EXTREMES)
def test_a_nan_stays_a_nan_whatever_its_bits(over_arrays: Any, name: str) -> None:
    bits = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFF8001FF, 0xFFFFFFFF], np.uint32)
    assert np.isnan(over_arrays[name](bits.view(np.float32))).all()


def test_what_underflows_becomes_zero_and_nothing_else(over_arrays: Any) -> None:
    """Results of exp that underflow are zero, and those of erfc are tiny and never negative."""
    x = -between(87.3, 110)
    y, exact = over_arrays["exp"](x), np.exp(x.astype(np.float64))
    assert (y[exact < 2.0**-126.5 * (1 - EPS)] == 0).all()
    assert (np.abs(y - exact) <= np.where(exact > 2.0**-126.4, EPS * exact, TINY)).all()
    tail = over_arrays["erfc"](between(9.2, 12, 7))
    assert ((tail >= 0) & (tail <= TINY)).all()


def test_tanh_never_leaves_its_range_and_reaches_it(over_arrays: Any) -> None:
    x = between(3, 12, 61)
    for sign in (1, -1):
        y = sign * over_arrays["tanh"](sign * x)
        assert y.max() == 1
        assert (y[x > 9.02] == 1).all()


@pytest.mark.parametrize("name", EXACT)
def test_bits_depend_on_the_number_alone(over_arrays: Any, name: str) -> None:
    """Results do not depend on the position: the vector loop and the scalar remainder agree."""
    x = np.abs(np.random.default_rng(3).normal(0, 3, 97)).astype(np.float32)
    alone = np.concatenate([over_arrays[name](x[i : i + 1]) for i in range(len(x))])
    assert same_bits(over_arrays[name](x), alone)


@pytest.mark.parametrize("name", EXACT)
def test_nothing_turns_into_float64(fast_math: ModuleType, over_arrays: Any, name: str) -> None:
    (signature,) = getattr(fast_math, name).nopython_signatures
    assert signature.return_type == float32
    (code,) = over_arrays[name].inspect_llvm().values()
    assert not re.search(r"= f\w+ (?:<\d+ x )?double", code)


def test_doubles_in_the_code_are_seen() -> None:
    loop = mapped(compiled(lambda x: x * 0.1))
    loop.compile((float32[::1],))
    (code,) = loop.inspect_llvm().values()
    assert re.search(r"= f\w+ (?:<\d+ x )?double", code)


# ------------------------------------------------------------------------------------------------ the module


def test_other_names_are_those_of_math(fast_math: ModuleType) -> None:
    assert {name for name in dir(math) if getattr(fast_math, name) is not getattr(math, name)} <= {*EXACT, "__name__"}
    assert all(getattr(fast_math, name) is not getattr(math, name) for name in EXACT)


def left_to_the_library(formula: Callable[..., Any]) -> set[str]:
    """Return the `math` functions used by a formula, directly or indirectly, that would still call the C library."""
    names = set(formula.__code__.co_names)
    inner = [formula.__globals__.get(name) for name in names]
    found = [left_to_the_library(function) for function in inner if isinstance(function, FunctionType)]
    return (names & set(dir(math)) - set(EXACT) - {"sqrt"}).union(*found)


def test_every_formula_is_served() -> None:
    formulas = [f for entry in ACTIVATIONS.values() for f in entry[:2]]
    formulas += [f for outputs in LOSSES.values() for f in outputs.values()] + [rule.update for rule in RULES.values()]
    assert set().union(*map(left_to_the_library, formulas)) == set()
    assert left_to_the_library(lambda z, a: math.cos(z) + math.exp(a)) == {"cos"}


def test_sqrt_is_rounded_correctly(fast_math: ModuleType) -> None:
    x = between(1e-45, 3e38, 9973)
    assert same_bits(mapped(fast_math.sqrt)(x), np.sqrt(x))


# ------------------------------------------------------------------------------------------------ activations


def activate(name: str, math_module: ModuleType) -> Any:
    """Compile the loop of an activation as in the engine: y holds z and is set to f(z), and s is set to f'(z)."""
    value, slope = (with_callees(f, math_module) for f in ACTIVATIONS[name][:2])

    @compiled
    def loop(a: Any, y: Any, s: Any) -> None:
        for i in range(len(y)):
            z = y[i]
            y[i] = value(z, a)
            s[i] = slope(z, y[i], a)

    loop.compile((float32, float32[::1], float32[::1]))
    return loop


@pytest.fixture(scope="module")
def activations(fast_math: ModuleType) -> dict[str, Any]:
    return {name: activate(name, fast_math) for name in ACTIVATIONS}


def evaluate(loop: Any, z: Any, a: float) -> tuple[Any, Any]:
    y, s = z.copy(), np.empty_like(z)
    loop(np.float32(a), y, s)
    return y, s


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_the_specification(activations: Any, name: str) -> None:
    """Activations have the error of a few roundings of argument and result; derivatives have a small absolute error."""
    a = float(np.float32(ACTIVATIONS[name].default or 0.0))
    z = np.concatenate([np.linspace(-30, 30, 60_001), [0, -0.0, 1e-30, -1e-30, 100, -100, 1e30, -1e30]]).astype(np.float32)
    exact_value, exact_slope = reference.ACTIVATIONS[name]
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = exact_value(z.astype(np.float64), a)
        wanted_slope = exact_slope(z.astype(np.float64), wanted, a)
        condition = np.abs(z * wanted_slope)
    y, s = evaluate(activations[name], z, a)
    assert (np.abs(y - wanted) <= 8 * EPS * (np.abs(wanted) + condition) + TINY).all()
    assert (np.abs(s - wanted_slope) <= 16 * EPS * max(1, a)).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_infinities_and_nan_as_in_the_plain_formulas(activations: Any, name: str) -> None:
    a = np.float32(ACTIVATIONS[name].default or 0.0)
    z = np.array([np.inf, -np.inf, np.nan], np.float32)
    value, slope, _ = ACTIVATIONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # plain Python may compute inf * 0
        wanted = [np.float32(value(x, a)) for x in z]
        wanted_slopes = [np.float32(slope(x, y, a)) for x, y in zip(z, wanted, strict=True)]
    y, s = evaluate(activations[name], z, float(a))
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(s, wanted_slopes)


# ------------------------------------------------------------------------------------------------ vectors

# Float32 vector instructions, such as vfmadd213ps on x86, and on ARM `fmla v0.4s, …` or, in Apple's syntax, `fmla.4s v0, …`.
ON_ARM = r"\bf(?:mul|div|mla|mls)(?:\.4s|\s+v\d+\.4s)"
PACKED = {"x86_64": r"\bv?(?:mul|div|fn?m(?:add|sub)\d{3})ps\b", "aarch64": ON_ARM, "arm64": ON_ARM}
need_assembly = pytest.mark.skipif(platform.machine() not in PACKED, reason="no support for the assembly of this processor")


def assembly(loop: Any) -> tuple[set[str], set[str]]:
    """Return the C library functions that a loop calls, and its vector arithmetic instructions."""
    (code,) = loop.inspect_asm().values()
    calls = set(re.findall(r"\b_?((?:exp|expm1|tanh|erfc|log)f?)\b", code))
    return calls, set(re.findall(PACKED[platform.machine()], code))


@need_assembly
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "leaky-gelu", "silu", "elu"])
def test_loops_of_activations_are_vectors(activations: Any, name: str) -> None:
    calls, packed = assembly(activations[name])
    assert calls == set()
    assert packed


@need_assembly
@pytest.mark.parametrize("name", EXACT)
def test_loops_of_functions_are_vectors(over_arrays: Any, name: str) -> None:
    calls, packed = assembly(over_arrays[name])
    assert calls == set()
    assert packed


@need_assembly
def test_plain_math_is_seen_to_call_the_library_and_to_have_no_vectors() -> None:
    calls, packed = assembly(activate("gelu", math))
    assert calls == {"expf", "erfcf"}
    assert packed == set()
