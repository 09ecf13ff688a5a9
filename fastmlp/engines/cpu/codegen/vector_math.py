"""Elementary functions in float32 that LLVM can vectorize: the CPU engine's replacement for `math` in scalar formulas.

`math.exp` calls the C library for each number, so LLVM cannot vectorize a loop that contains it. The functions in this file
consist of polynomials, selections and a few bit operations, without branches. They are inlined into the loop that calls them,
and LLVM vectorizes the loop. Arguments, results and all constants are float32, because float64 would halve the number of
vector lanes. The functions require Numba's error_model="numpy", with which a division cannot raise an exception.

============  ===========  ===================================================
function      error (ulp)  difference from the C library
============  ===========  ===================================================
exp           1.0          0 if the result is below 2^-126.5 (x < -87.68)
expm1         1.5          +0 at -0
tanh          2.5          +0 at -0
erfc          6.5          0 for x >= 9.37
erfc, x <= 0  3.5
log           1.0
============  ===========  ===================================================

The table lists maximum errors, rounded up. They were measured at every float, or at every fourth float, of the intervals where
errors are large. One ulp is the unit in the last place of the exact result. Subnormal results of erfc (x > 9.19) are not
included. All functions return NaN for NaN, and their limits for infinite arguments. On a processor without fused
multiply-add, the error of erfc for large x is about x^2 ulp; the other errors are the same.

The polynomials are minimax approximations, computed for this file with the Remez exchange algorithm in float64. The fit
minimizes the relative error of the function, and the coefficients are then rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from fastmlp.engines.cpu.codegen.intrinsics import fused, polynomial

# ------------------------------------------------------------------------------------------------ exp, expm1, tanh


def floats(*numbers: float) -> tuple[np.float32, ...]:
    """Convert the numbers to float32."""
    return tuple(np.float32(number) for number in numbers)


ZERO, ONE, TWO, INFINITY, NAN = floats(0, 1, 2, math.inf, math.nan)

# Adding SHIFT to a number rounds it to an integer n. The low bits of n + SHIFT are n + 127, the exponent field of 2^n.
SHIFT = np.float32(1.5 * 2**23 + 127)
# n + SHIFT for the largest power of two. For larger x, n stays 127 and r grows, so that the result overflows to infinity.
LAST_SHIFTED = np.float32(SHIFT + 127)
LOWEST = np.float32(-88)  # for x = -88, n is -127 and the exponent field of 2^n is 0, so that 2^n becomes 0
LOG2_E = np.float32(1 / math.log(2))
# log(2) as the sum of two parts; the product of n and the first part is exact. Source: Cody & Waite, "Software Manual for the
# Elementary Functions", 1980.
LN2_HIGH, LN2_LOW = floats(0.693359375, math.log(2) - 0.693359375)
# Coefficients of (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2, and for r up to log(2), because n is at most 127.
EXP_TAIL = floats(0.5, 0.16666695, 0.04166668, 0.008327729, 0.0013913045, 0.00022381512)


def exp_parts(x):
    """Return exp(r) - 1 and 2^n, where x = n log(2) + r and n is an integer from -127 to 127. For n = -127, 2^n is 0."""
    x = LOWEST if x < LOWEST else x  # with this comparison NaN stays NaN
    shifted = fused(x, LOG2_E, SHIFT)
    shifted = LAST_SHIFTED if shifted > LAST_SHIFTED else shifted
    n = shifted - SHIFT
    r = fused(n, -LN2_LOW, fused(n, -LN2_HIGH, x))
    power = np.int32(np.float32(shifted).view(np.int32) << np.int32(23)).view(np.float32)
    return fused(r * r, polynomial(r, EXP_TAIL), r), power


def exp(x):
    """Return e^x, with an error of at most 1 ulp; 0 for x < -87.68, infinity for x > 88.7228."""
    part, power = exp_parts(x)
    return fused(power, part, power)


def expm1(x):
    """Return e^x - 1, with an error of at most 1.5 ulp. It is accurate near 0, because n is 0 there and no digits cancel."""
    part, power = exp_parts(x)
    return fused(power, part, power - ONE)


TANH_END = np.float32(9.5)  # tanh(x) rounds to 1 for x >= 9.02


def tanh(x):
    """Return tanh(x) = u / (u + 2) with u = e^(2x) - 1. The error is at most 2.5 ulp, and the result is in [-1, 1]."""
    x = TANH_END if x > TANH_END else x
    u = expm1(x + x)
    return u / (u + TWO)


# ------------------------------------------------------------------------------------------------ erfc

# Coefficients of (x + 2) exp(x^2) erfc(x) for 0 <= x <= 9.2, as a polynomial in (x - 2) / (x + 2). This variable is taken from
# Shepherd & Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", 1981. A random search then changed the
# coefficients by a few ulp, to reduce the largest measured error and to make erfc(0) exactly 1.
ERFC_SCALED = floats(
    *(1.0215827, -0.687161, 0.2794698, -0.036434736, -0.021484407, 0.006434681, 0.0029795542, -0.0007501761, -0.00045899017)
)
ERFC_END = np.float32(-100)  # for exponents below this value exp is 0, and x^2 may be infinite
MINUS_FOUR = np.float32(-4)


def erfc(x):
    """Return the complementary error function 1 - erf(x), with an error of at most 6.5 ulp (3.5 ulp for x <= 0).

    `lost` is the rounding error of the exponent. Without this correction the error for large x would be up to 70 ulp.
    """
    size = abs(x)
    exponent = -size * size
    lost = ZERO if exponent < ERFC_END else fused(size, size, exponent)
    power = exp(exponent)
    r = ONE / (size + TWO)
    tail = polynomial(fused(r, MINUS_FOUR, ONE), ERFC_SCALED) * r * fused(power, -lost, power)
    return TWO - tail if x < ZERO else tail


# ------------------------------------------------------------------------------------------------ log

# Coefficients of (log(1 + f) - f + f^2 / 2) / f^3 for sqrt(1/2) <= 1 + f <= sqrt(2). Source of this form: `logf` in Moshier's
# Cephes library.
LOG_TAIL = floats(*(0.3333333, -0.25000823, 0.20001258, -0.16623351, 0.14201178, -0.13159639, 0.12764725, -0.076393776))
MINUS_HALF = np.float32(-0.5)
SMALLEST_NORMAL = np.finfo(np.float32).tiny
RAISED = np.float32(23)  # log2 of RAISE
RAISE = np.float32(2**23)  # factor that makes subnormal numbers normal
SQRT_HALF_BITS = np.int32(0x3F3504F3)
FRACTION = np.int32(0x7FFFFF)


def log(x):
    """Return the natural logarithm, with an error of at most 1 ulp, also for subnormal x; -inf for 0, NaN for x < 0.

    x is written as 2^n (1 + f). If the bits of sqrt(1/2) are subtracted from the bits of x, the exponent field contains n.
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
    return result if x < INFINITY else x  # x is infinity or NaN


# ------------------------------------------------------------------------------------------------ replacement for `math`

FUNCTIONS = (exp, expm1, tanh, erfc, log)


def vector_math(compiler: Callable[[Callable[..., Any]], Any]) -> ModuleType:
    """Return a replacement for the module `math`: the compiled `FUNCTIONS` of this file, and the rest of `math` unchanged.

    `compiler` compiles a function together with the functions of the same file that it calls. A formula that calls any other
    function of `math` still compiles, but is not vectorized. The exception is math.sqrt, which is a vector instruction.
    """
    module = ModuleType("math")
    vars(module).update(vars(math), **{function.__name__: compiler(function) for function in FUNCTIONS})
    return module
