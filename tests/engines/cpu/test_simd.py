"""Tests of the vector code: tiles with all epilogues, shapes and vector widths, transposition, and the vector width."""

from __future__ import annotations

import functools
import os
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from llvmlite import binding
from numba import njit
from support.cpu import FLOAT_BYTES, MEANINGS, Case, Placed, excess_of, make_case, placed, scattered
from support.engines import same_bits
from support.tolerances import EPS

from fastmlp.engines.cpu.codegen.simd import (
    BIAS_RELU,
    EPILOGUES,
    KEEP,
    SINGLE_VECTORS,
    TILES,
    WHERE_POSITIVE,
    lanes,
    make_tile,
    make_transpose,
)

WIDTHS = (4, 8, 16)
DEPTHS = (1, 2, 7, 64)
every_epilogue = pytest.mark.parametrize("epilogue", range(len(EPILOGUES)), ids=[f.__name__ for f in EPILOGUES])


def shapes(width: int) -> list[tuple[int, int]]:
    """Return rows and vectors of all tiles of the product kernel."""
    tall, low, pair = TILES[width]
    return [(rows, vectors) for rows in (tall, low) for vectors in (pair, 1)] + [(1, SINGLE_VECTORS), (1, 1)]


@functools.cache
def runner(rows: int, vectors: int, width: int) -> Any:
    """Return a compiled function that calls a tile with a tuple of arguments."""
    tile = make_tile(rows, vectors, width)

    @njit(nogil=True, error_model="numpy")
    def run(arguments):
        tile(*arguments)

    return run


def run_tile(epilogue: int, width: int, case: Case, cuts: tuple[int, ...] = (), finished: bool = True) -> Placed:
    """Return C of one tile, surrounded by guard values; check that A, B and extra are unchanged.

    The sum over k is split at `cuts`, with one call per piece. The last call applies the epilogue only if `finished`.
    """
    (rows, k), vectors = case.a.shape, case.b.shape[1] // width
    a = scattered(case.a)
    b = placed(case.b.reshape(k, vectors, width), (width, (k + 2) * width, 1))
    c = placed(np.full((rows, vectors, width), np.float32(np.nan)), (vectors * width + 9, width, 1))
    like_c = MEANINGS[epilogue].extra_like_c
    extra = placed(case.extra.reshape(-1, vectors, width), (vectors * width + 4, width, 1))
    before = [operand.buffer.copy() for operand in (a, b, extra)]
    for start, stop in pairwise((0, *cuts, k)):
        last = stop == k and finished
        runner(rows, vectors, width)(
            (
                *(a.at + start * FLOAT_BYTES, a.rows),
                *(b.block[start:].ctypes.data, b.strides[1]),
                *(c.at, c.strides[0], stop - start, int(start == 0)),
                *(epilogue if last else KEEP, extra.at, extra.strides[0] if like_c else 0),
            )
        )
    assert same_bits(tuple(before), tuple(operand.buffer for operand in (a, b, extra)))
    return c


def values_of(c: Placed) -> Any:
    """Return C as a matrix (rows, columns)."""
    return c.block.reshape(len(c.block), -1)


def test_every_epilogue_has_a_meaning_here() -> None:
    assert list(MEANINGS) == list(range(len(EPILOGUES)))


@every_epilogue
@pytest.mark.parametrize("width", WIDTHS)
def test_tiles_equal_numpy_and_stay_inside(epilogue: int, width: int) -> None:
    for rows, vectors in shapes(width):
        for k in DEPTHS:
            case = make_case(epilogue, rows, vectors * width, k)
            c = run_tile(epilogue, width, case)
            assert excess_of(epilogue, case, values_of(c)) <= 0, (rows, vectors, k)
            assert c.stray() == 0, (rows, vectors, k)


def test_the_checks_of_tiles_see_a_wrong_number_and_a_stray_write() -> None:
    case = make_case(KEEP, 6, 16, 64)
    c = run_tile(KEEP, 8, case)
    c.block[5, 1, 7] += 1e-3
    assert excess_of(KEEP, case, values_of(c)) > 0
    c.block[5, 1, 7] = np.nan
    assert excess_of(KEEP, case, values_of(c)) == np.inf
    for at in (32, 33 + 16, len(c.buffer) - 1):  # before, between and after rows
        c.buffer[at] = 0
    assert c.stray() == 3


@every_epilogue
def test_nan_and_infinity_are_kept(epilogue: int) -> None:
    case = make_case(epilogue, 6, 16, 7)
    case.a[2, 3] = np.nan
    case.a[5, 3] = np.inf
    case.extra[...] = 1
    c = values_of(run_tile(epilogue, 8, case))
    assert np.isnan(c[2]).all()
    assert (c[5] == np.where((epilogue == BIAS_RELU) & (case.b[3] < 0), 0, np.sign(case.b[3]) * np.inf)).all()
    assert np.isfinite(np.delete(c, (2, 5), axis=0)).all()


def test_where_positive_takes_nan_and_zeros_for_not_positive() -> None:
    case = make_case(WHERE_POSITIVE, 6, 16, 7)
    case.extra[:, :4] = [np.nan, 0.0, -0.0, np.float32(1e-45)]
    c = values_of(run_tile(WHERE_POSITIVE, 8, case))
    assert same_bits(c[:, :3].copy(), np.zeros((6, 3), np.float32))
    assert (c[:, 3] != 0).all()


# ------------------------------------------------------------------------------------------------ the order of the sum


def rounded(exact: Fraction) -> np.float32:
    """Round an exact number to float32, ties to even; a conversion through float64 would round twice."""
    guess = np.float32(float(exact))
    near = (np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf)))
    return min(near, key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view(np.uint32)) & 1))


def sequential(a: Any, b: Any, *, fused: bool = True) -> np.float32:
    """Sum a[k] b[k] in the order of k, with exact fused multiply-adds, or with each product rounded first."""
    total = np.float32(0)
    for x, y in zip(a, b, strict=True):
        product = Fraction(float(x)) * Fraction(float(y))
        total = rounded((product if fused else Fraction(float(rounded(product)))) + Fraction(float(total)))
    return total


def test_rounding_to_float32_is_exact() -> None:
    tie, beyond = Fraction(1) + Fraction(1, 2**24), Fraction(1) + Fraction(1, 2**24) + Fraction(1, 2**60)
    assert rounded(tie) == 1
    assert rounded(beyond) == np.float32(1) + EPS
    assert np.float32(float(beyond)) == 1  # the double rounding that `rounded` avoids


@pytest.mark.parametrize("width", WIDTHS)
def test_each_entry_is_one_fused_sum_in_the_order_of_k(width: int) -> None:
    rows, _, pair = TILES[width]
    case = make_case(KEEP, rows, pair * width, 64)
    c = values_of(run_tile(KEEP, width, case))
    columns = range(0, pair * width, 3)
    entries = [(i, j) for i in range(0, rows, 3) for j in columns]
    found = np.array([c[i, j] for i, j in entries])

    def emulated(step: int, fused: bool) -> Any:
        return np.array([sequential(case.a[i, ::step], case.b[::step, j], fused=fused) for i, j in entries])

    assert same_bits(found, emulated(1, True))
    assert not same_bits(found, emulated(-1, True))  # another order
    assert not same_bits(found, emulated(1, False))  # not fused


def cut_up(epilogue: int, width: int, case: Case, rows: int, columns: int) -> Any:
    """Compute C from tiles with the given numbers of rows and columns."""
    like_c = MEANINGS[epilogue].extra_like_c
    c = np.empty((len(case.a), case.b.shape[1]), np.float32)
    for i in range(0, len(c), rows):
        for j in range(0, c.shape[1], columns):
            at = slice(i, i + rows), slice(j, j + columns)
            piece = Case(case.a[at[0]], case.b[:, at[1]], case.extra[at] if like_c else case.extra[at[1]])
            c[at] = values_of(run_tile(epilogue, width, piece))
    return c


@every_epilogue
def test_the_shape_of_the_tile_changes_no_bit(epilogue: int) -> None:
    tiles = [(width, rows, vectors) for width in WIDTHS for rows, vectors in shapes(width)]
    rows_of_all = int(np.lcm.reduce([rows for _, rows, _ in tiles]))
    columns_of_all = int(np.lcm.reduce([width * vectors for width, _, vectors in tiles]))
    case = make_case(epilogue, rows_of_all, columns_of_all, 64)
    whole = cut_up(epilogue, 4, case, 1, 4)
    for width, rows, vectors in tiles:
        assert same_bits(cut_up(epilogue, width, case, rows, vectors * width), whole), (width, rows, vectors)


@every_epilogue
def test_a_sum_that_is_cut_has_the_bits_of_one_call(epilogue: int) -> None:
    for width in WIDTHS:
        for rows, vectors in shapes(width):
            case = make_case(epilogue, rows, vectors * width, 64)
            whole = run_tile(epilogue, width, case)
            for cuts in ((1,), (63,), (20, 27)):
                assert same_bits(run_tile(epilogue, width, case, cuts).buffer, whole.buffer), (width, rows, vectors, cuts)
            begun = Case(case.a[:, :20], case.b[:20], case.extra)
            plain = run_tile(KEEP, width, begun._replace(extra=np.zeros((rows, vectors * width), np.float32)))
            unfinished = run_tile(epilogue, width, begun, finished=False)  # only the last piece applies the epilogue
            assert same_bits(unfinished.buffer, plain.buffer)


# ------------------------------------------------------------------------------------------------ transpose, width


@pytest.mark.parametrize("width", WIDTHS)
def test_transpose(width: int) -> None:
    transpose = make_transpose(width)

    @njit
    def run(a, a_row, c, c_row):
        transpose(a, a_row, c, c_row)

    numbers = np.arange(width * width, dtype=np.float32).reshape(1, width, width)
    for a_row, c_row in ((width, width), (width + 3, width), (width, width + 5)):
        a = placed(numbers, (1, a_row, 1))
        c = placed(np.zeros_like(numbers), (1, c_row, 1))
        run(a.block.ctypes.data, a_row, c.block.ctypes.data, c_row)
        assert np.array_equal(c.block[0], numbers[0].T)
        assert np.array_equal(a.block, numbers)
        assert a.stray() == c.stray() == 0


@pytest.mark.skipif("NUMBA_CPU_NAME" in os.environ, reason="Numba compiles for another processor")
def test_lanes_are_those_of_the_widest_vector() -> None:
    has = binding.get_host_cpu_features()
    if has.get("avx512f"):
        assert lanes() == 16
    elif has.get("avx2") and has.get("fma"):
        assert lanes() == 8
    else:
        assert lanes() == 4
