"""The pieces that the CPU engine's kernels are made of: products by tiles, passes over rows, updates, sharing of work.

Each is a small compiled function, or a factory of one; cpu_kernels.py puts them together.

How threads share work: one shared word holds the number of the current phase and the next ticket in it; a thread draws a
ticket, which is a task, by adding one. Whoever finishes the last task of a phase opens the next.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit

from fastmlp.cpu_cache import KernelCache
from fastmlp.cpu_plan import TILE_ROWS, TILE_VECTORS
from fastmlp.cpu_simd import atomic_load, atomic_store, fetch_add, make_tile, pause, yield_core
from fastmlp.functions import ACTIVATIONS
from fastmlp.optimizers import RULES
from fastmlp.philox import MASK32, SHIFT32, philox4x32

ZERO = np.float32(0)
FLOAT_BYTES = 4
DEPTH = 256  # of a piece of a product's sum: 256 x 2 vectors of B are 32 KiB

# Words of `shared`, each on a cache line of its own.
WORD, DONE = 0, 8
SHARED_WORDS = 16
TICKETS = 32  # the low bits of the word hold the ticket, the high ones the phase
SPINS = 2000  # pauses before a waiting thread offers its core to another, about 50 microseconds


def compiled(function: Callable[..., Any]) -> Any:
    """njit as every kernel wants it: no GIL, IEEE arithmetic (no fastmath: a NaN must be seen), no exceptions.

    Numba makes a function's symbol from its name and a counter that starts anew in every process. Machine code from the
    cache would meet symbols of other code under the same name, and the linker would silently take one for the other. So
    each function gets a name that no other process has.
    """
    unique = copy_of(function, function.__globals__)
    unique.__qualname__ = f"{function.__qualname__}_{secrets.token_hex(8)}"
    return njit(nogil=True, error_model="numpy", boundscheck=False)(unique)


def copy_of(function: Callable[..., Any], names: dict[str, Any]) -> FunctionType:
    """The same code with other global names."""
    assert isinstance(function, FunctionType)
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__qualname__ = function.__qualname__
    return copy


def cached(function: Callable[..., Any], name: str) -> Any:
    """An entry kernel: compiled, and kept on disk under `name`."""
    dispatcher = compiled(function)
    dispatcher._cache = KernelCache(name)
    return dispatcher


def compiled_with_callees(function: Callable[..., Any]) -> Any:
    """Compile a scalar formula together with the plain functions of its own file that it calls."""
    names = [name for name in function.__code__.co_names if isinstance(function.__globals__.get(name), FunctionType)]
    replaced = {name: compiled_with_callees(function.__globals__[name]) for name in names}
    return compiled(copy_of(function, {**function.__globals__, **replaced}))


# ------------------------------------------------------------------------------------------------ pieces


def make_product(lanes: int, epilogue: str, extra_like_c: bool) -> Any:
    """product(a, a_row, b, b_panel, c, c_row, k, extra, rows, panels): C = epilogue(A B), by tiles.

    A (rows, k) and C are row-major with rows a_row and c_row apart, rows a multiple of TILE_ROWS; B lies in panels of
    `lanes` columns, b_panel apart, each k rows of `lanes`. `extra` holds a number per column, or is laid out like C.
    Addresses in bytes, strides in elements. The sum over k is cut into pieces of DEPTH, whose panels stay in the first
    cache while all rows pass; no bit depends on it.
    """
    wide = make_tile(TILE_ROWS, TILE_VECTORS, lanes, epilogue)
    narrow = make_tile(TILE_ROWS, 1, lanes, epilogue)

    @compiled
    def product(a, a_row, b, b_panel, c, c_row, k, extra, rows, panels):
        for j in range(0, k, DEPTH):
            depth = min(DEPTH, k - j)
            first, last = j == 0, j + depth == k
            for p in range(0, panels, TILE_VECTORS):
                b_at = b + (p * b_panel + j * lanes) * FLOAT_BYTES
                for i in range(0, rows, TILE_ROWS):
                    a_at = a + (i * a_row + j) * FLOAT_BYTES
                    at = (i * c_row + p * lanes) * FLOAT_BYTES
                    ex = extra + (at if extra_like_c else p * lanes * FLOAT_BYTES)
                    if p + TILE_VECTORS <= panels:
                        wide(a_at, a_row, 1, b_at, lanes, b_panel, c + at, c_row, lanes, depth, ex, first, last)
                    else:
                        narrow(a_at, a_row, 1, b_at, lanes, b_panel, c + at, c_row, lanes, depth, ex, first, last)

    return product


def make_activate(names: tuple[str, ...]) -> Any:
    """activate(code, a, y, s): y holds z and becomes f(z), s becomes f'(z), for the activation number `code` of `names`."""
    if not names:
        return compiled(lambda code, a, y, s: None)
    value, slope = (compiled_with_callees(f) for f in ACTIVATIONS[names[-1]][:2])
    number = len(names) - 1
    others = make_activate(names[:-1])

    @compiled
    def activate(code, a, y, s):
        if code == number:
            for i in range(len(y)):
                z = y[i]
                y[i] = value(z, a)
                s[i] = slope(z, y[i], a)
        else:
            others(code, a, y, s)

    return activate


def make_update(rule_name: str) -> Any:
    """update(p, m, v, g, s): the rule over a run of parameters; slots that the rule lacks are left alone."""
    rule = compiled_with_callees(RULES[rule_name].update)
    has_m, has_v = "m" in RULES[rule_name].slots, "v" in RULES[rule_name].slots

    @compiled
    def update(p, m, v, g, s):
        for i in range(len(p)):
            p_new, m_new, v_new = rule(p[i], g[i], m[i] if has_m else ZERO, v[i] if has_v else ZERO, s)
            p[i] = p_new
            if has_m:
                m[i] = m_new
            if has_v:
                v[i] = v_new

    return update


@compiled
def scale_row(x, shift, factor, out):
    """out = (x - shift) factor for one row, from uint8 or float32."""
    for k in range(len(x)):
        out[k] = (np.float32(x[k]) - shift[k]) * factor[k]


philox_scalar = compiled(philox4x32)


@compiled
def drop_row(y, s, layer, row, step, seed, threshold, scale):
    """Multiply a row of activations and slopes by the dropout factors of `philox.keep_mask`; len(y) is a multiple of 4."""
    key = np.uint64(seed)
    for group in range(len(y) // 4):
        words = philox_scalar(np.uint64(group), np.uint64(row), np.uint64(layer), np.uint64(step), key & MASK32, key >> SHIFT32)
        for word in range(4):
            factor = scale if words[word] >= threshold else ZERO
            y[4 * group + word] *= factor
            s[4 * group + word] *= factor


@compiled
def first_peak(z):
    """Index of the first largest element, as np.argmax for finite numbers."""
    best = 0
    for j in range(1, len(z)):
        if z[j] > z[best]:
            best = j
    return best


@compiled
def scalars_of(table, step):
    """A row of the table as a tuple, so that loops over parameters keep it in registers."""
    row = table[step]
    return (row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7])


@compiled
def clip(gradient, largest):
    """Scale the whole gradient, padding (zeros) included, down to Euclidean norm `largest` if it is longer."""
    total = 0.0
    for i in range(len(gradient)):
        total += np.float64(gradient[i]) * np.float64(gradient[i])
    norm = math.sqrt(total)
    if norm > largest:
        scale = np.float32(largest / norm)
        for i in range(len(gradient)):
            gradient[i] *= scale


# ------------------------------------------------------------------------------------------------ sharing work


@compiled
def draw(shared):
    """The current phase and a ticket in it, drawn from the shared word."""
    word = fetch_add(shared + 8 * WORD, 1)
    return word >> TICKETS, word & ((1 << TICKETS) - 1)


@compiled
def last_of_phase(shared, tasks):
    """Report a finished task; True to the thread that finished the last one, which must then call `open_phase`.

    The atomic add makes what every thread wrote in the phase visible to this one.
    """
    return fetch_add(shared + 8 * DONE, 1) == tasks - 1


@compiled
def open_phase(shared, phase):
    """Open a phase: the release makes all that was written before visible to whoever draws a ticket in it."""
    atomic_store(shared + 8 * DONE, 0)
    atomic_store(shared + 8 * WORD, phase << TICKETS)


@compiled
def wait_for_end_of(shared, phase):
    """Wait until another phase is open: spin, then let others have the core."""
    spins = 0
    while atomic_load(shared + 8 * WORD) >> TICKETS == phase:
        pause()
        spins += 1
        if spins > SPINS:
            yield_core()
