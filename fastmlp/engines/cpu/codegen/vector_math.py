"""Elementary functions in float32 as plain arithmetic: the CPU engine's replacement of `math` in the scalar formulas.

A call of `math.exp` is a call of the C library for each number, and no loop around it becomes vector instructions. The
functions here are polynomials, selections and a few operations on bits, without branches: compiled, they melt into the loop
that calls them, and LLVM makes vectors of it. They take and return float32, and every constant is float32: a float64 would
halve the width of the vectors. They need Numba's error_model="numpy", under which a division cannot raise.

============  ===========  ===================================================
function      error (ulp)  where it differs from the C library
============  ===========  ===================================================
exp           1.0          0 where the result is below 2^-126.5 (x < -87.68)
expm1         1.5          +0 at -0
tanh          2.5          +0 at -0
erfc          6.5          0 for x >= 9.37
erfc, x <= 0  3.5
log           1.0
============  ===========  ===================================================

The errors are maxima over all floats, or every fourth float, of the intervals where the errors are large, rounded up. A unit in
the last place (ulp) is that of the exact result; subnormal results of erfc (x > 9.19) are left out. NaN gives NaN,
infinities give the limits. Without fused multiply-add in the processor erfc's right tail is off by about x^2 ulp; the other
figures stay.

The polynomials are minimax fits made for this file: Remez's exchange algorithm in float64, weighted for the relative error
of the function, then rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from fastmlp.engines.cpu.codegen.intrinsics import fused, polynomial

# ------------------------------------------------------------------------------------------------ exp and its kin


def floats(*numbers: float) -> tuple[np.float32, ...]:
    """The numbers as float32."""
    return tuple(np.float32(number) for number in numbers)


ZERO, ONE, TWO, INFINITY, NAN = floats(0, 1, 2, math.inf, math.nan)

SHIFT = np.float32(1.5 * 2**23 + 127)  # n + SHIFT has no fraction, and its low bits are n + 127, the exponent field of 2^n
LAST_SHIFTED = np.float32(SHIFT + 127)  # of the largest power of two; beyond, r grows and the polynomial overflows in time
LOWEST = np.float32(-88)  # here n is -127, whose exponent field is that of 0
LOG2_E = np.float32(1 / math.log(2))
# log 2 in two parts, n times the first exact (Cody & Waite, "Software Manual for the Elementary Functions", 1980).
LN2_HIGH, LN2_LOW = floats(0.693359375, math.log(2) - 0.693359375)
# (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2, and on to log 2 because n ends at 127.
EXP_TAIL = floats(0.5, 0.16666695, 0.04166668, 0.008327729, 0.0013913045, 0.00022381512)


def exp_parts(x):
    """exp(r) - 1 and 2^n, where x = n log 2 + r and n is an integer from -127 (2^n = 0) to 127."""
    x = LOWEST if x < LOWEST else x  # in this order a NaN stays a NaN
    shifted = fused(x, LOG2_E, SHIFT)
    shifted = LAST_SHIFTED if shifted > LAST_SHIFTED else shifted
    n = shifted - SHIFT
    r = fused(n, -LN2_LOW, fused(n, -LN2_HIGH, x))
    power = np.int32(np.float32(shifted).view(np.int32) << np.int32(23)).view(np.float32)
    return fused(r * r, polynomial(r, EXP_TAIL), r), power


def exp(x):
    """e^x, to 1 ulp; 0 for x < -87.68, infinite for x > 88.7228."""
    part, power = exp_parts(x)
    return fused(power, part, power)


def expm1(x):
    """e^x - 1, to 1.5 ulp, near 0 too: there n = 0 and nothing cancels."""
    part, power = exp_parts(x)
    return fused(power, part, power - ONE)


TANH_END = np.float32(9.5)  # tanh rounds to 1 from 9.02 on


def tanh(x):
    """tanh x = u / (u + 2) with u = e^2x - 1, to 2.5 ulp; never beyond -1 or 1."""
    x = TANH_END if x > TANH_END else x
    u = expm1(x + x)
    return u / (u + TWO)


# ------------------------------------------------------------------------------------------------ erfc

# (x + 2) exp(x^2) erfc(x) for 0 <= x <= 9.2 as a polynomial in (x - 2) / (x + 2), the variable of Shepherd & Laframboise,
# "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", 1981. A random search moved the coefficients by a few ulp, to lessen
# the largest error measured and to make erfc(0) = 1.
ERFC_SCALED = floats(
    *(1.0215827, -0.687161, 0.2794698, -0.036434736, -0.021484407, 0.006434681, 0.0029795542, -0.0007501761, -0.00045899017)
)
ERFC_END = np.float32(-100)  # where exp is 0 already; further down x^2 may be infinite
MINUS_FOUR = np.float32(-4)


def erfc(x):
    """The complementary error function 1 - erf x, to 6.5 ulp, and to 3.5 for x <= 0.

    `lost` is the rounding error of the exponent; left alone it would put the right tail off by up to 70 ulp.
    """
    size = abs(x)
    exponent = -size * size
    lost = ZERO if exponent < ERFC_END else fused(size, size, exponent)
    power = exp(exponent)
    r = ONE / (size + TWO)
    tail = polynomial(fused(r, MINUS_FOUR, ONE), ERFC_SCALED) * r * fused(power, -lost, power)
    return TWO - tail if x < ZERO else tail


# ------------------------------------------------------------------------------------------------ log

# (log(1 + f) - f + f^2 / 2) / f^3 for sqrt(1/2) <= 1 + f <= sqrt(2), the form of logf in Moshier's Cephes library.
LOG_TAIL = floats(*(0.3333333, -0.25000823, 0.20001258, -0.16623351, 0.14201178, -0.13159639, 0.12764725, -0.076393776))
MINUS_HALF = np.float32(-0.5)
SMALLEST_NORMAL = np.finfo(np.float32).tiny
RAISED = np.float32(23)  # powers of two that bring subnormal numbers among the normal ones
RAISE = np.float32(2**23)
SQRT_HALF_BITS = np.int32(0x3F3504F3)
FRACTION = np.int32(0x7FFFFF)


def log(x):
    """The natural logarithm, to 1 ulp, of subnormal numbers too; -inf at 0, NaN below.

    x = 2^n (1 + f): subtracting the bits of sqrt(1/2) leaves n above the fraction's bits.
    """
    subnormal = x < SMALLEST_NORMAL
    bits = np.int32(np.float32(x * RAISE if subnormal else x).view(np.int32) - SQRT_HALF_BITS)
    n = np.float32(np.int32(bits >> np.int32(23))) - (RAISED if subnormal else ZERO)
    f = np.int32((bits & FRACTION) + SQRT_HALF_BITS).view(np.float32) - ONE
    square = f * f
    low = fused(f * square, polynomial(f, LOG_TAIL), n * LN2_LOW)
    result = fused(n, LN2_HIGH, f + fused(square, MINUS_HALF, low))
    result = NAN if x < ZERO else result
    result = -INFINITY if x == ZERO else result
    return result if x < INFINITY else x  # NaN too


# ------------------------------------------------------------------------------------------------ the module

FUNCTIONS = (exp, expm1, tanh, erfc, log)


def vector_math(compiler: Callable[[Callable[..., Any]], Any]) -> ModuleType:
    """A module to take the place of `math`: the `FUNCTIONS` of this file, compiled, and for all other names `math`'s own.

    `compiler` compiles a function together with those of its own file that it calls. A formula that needs another function
    still compiles, but is not vectorised; math.sqrt is a vector instruction already.
    """
    module = ModuleType("math")
    vars(module).update(vars(math), **{function.__name__: compiler(function) for function in FUNCTIONS})
    return module
