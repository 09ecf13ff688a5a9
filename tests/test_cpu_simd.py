"""The vector layer: tiles of every epilogue, shape and width against NumPy and bit by bit, transposes, the width."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import EPS, product_tolerance, same_bits
from llvmlite import binding
from numba import njit

from fastmlp.cpu_simd import EPILOGUES, lanes, make_tile, make_transpose

WIDTHS = (4, 8, 16)
SHAPES = ((1, 1), (1, 2), (8, 1), (8, 2))  # rows, vectors
DEPTHS = (1, 2, 7, 64)
GUARD = np.float32(-12345.678)
FLOAT_BYTES = 4


class Meaning(NamedTuple):
    """What an epilogue must do, in NumPy: value(product, extra), and the tolerance of that from the product's."""

    value: Callable[[Any, Any], Any]
    tolerance: Callable[[Any, Any, Any], Any]
    extra_like_c: bool


MEANINGS = {
    "keep": Meaning(lambda p, e: p, lambda t, p, e: t, True),
    "bias": Meaning(lambda p, e: p + e, lambda t, p, e: t + EPS * abs(p + e), False),
    "bias-relu": Meaning(lambda p, e: np.maximum(p + e, 0), lambda t, p, e: t + EPS * abs(p + e), False),
    "times": Meaning(lambda p, e: p * e, lambda t, p, e: t * abs(e) + EPS * abs(p * e), True),
    "where-positive": Meaning(lambda p, e: np.where(e > 0, p, 0), lambda t, p, e: t * (e > 0), True),
}


class Layout(NamedTuple):
    """How a test lays out A, B and C."""

    a_transposed: bool
    b_packed: bool  # panels, as weights; else row-major, as rows of a batch
    c_packed: bool


LAYOUTS = (Layout(False, True, False), Layout(True, False, True), Layout(True, True, False))


@functools.cache
def runner(epilogue: str, width: int) -> Any:
    """run(rows, vectors, arguments of the tile) for the four shapes, in one compilation."""
    one_one, one_two, eight_one, eight_two = (make_tile(*shape, width, epilogue) for shape in SHAPES)

    @njit(nogil=True, error_model="numpy")
    def run(rows, vectors, arguments):
        if rows == 1 and vectors == 1:
            one_one(*arguments)
        elif rows == 1:
            one_two(*arguments)
        elif vectors == 1:
            eight_one(*arguments)
        else:
            eight_two(*arguments)

    return run


class Placed(NamedTuple):
    """A three-dimensional block inside a larger buffer full of guard values."""

    buffer: Any
    block: Any
    strides: tuple[int, ...]

    def stray(self) -> int:
        """How many entries outside the block are no longer what they were."""
        outside = self.buffer.copy()
        place(outside, self.block.shape, self.strides)[...] = GUARD
        return int((outside != GUARD).sum())


def place(buffer: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A view of the given strides (elements) that starts off every vector's alignment."""
    return np.lib.stride_tricks.as_strided(buffer[33:], shape, [FLOAT_BYTES * s for s in strides])


def placed(values: Any, strides: tuple[int, ...]) -> Placed:
    """The values at these strides, guard values before, between and behind."""
    size = 66 + sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True))
    buffer = np.full(size, GUARD)
    block = place(buffer, values.shape, strides)
    block[...] = values
    return Placed(buffer, block, strides)


class Case(NamedTuple):
    """Operands of a tile: a (rows, k), b (k, vectors * width), extra (columns,) or (rows, columns)."""

    a: Any
    b: Any
    extra: Any


def make_case(epilogue: str, rows: int, columns: int, k: int, seed: int = 0) -> Case:
    rng = np.random.default_rng([seed, rows, columns, k])
    a, b, extra = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, k), (k, columns), (rows, columns)))
    extra[:, ::3] = 0  # where-positive must tell 0 from positive
    return Case(a, b, extra if MEANINGS[epilogue].extra_like_c else extra[0])


def run_tile(
    epilogue: str, width: int, case: Case, layout: Layout = LAYOUTS[0], cuts: tuple[int, ...] = (), finished: bool = True
) -> Placed:
    """C of one tile, placed among guard values; A, B and extra are checked to be left alone.

    The sum over k is cut into one call for each piece between `cuts`; unless `finished`, none of them is the last one.
    """
    (rows, k), vectors = case.a.shape, case.b.shape[1] // width
    a = placed(case.a, (1, rows + 3) if layout.a_transposed else (k + 5, 1))
    b_panels = case.b.reshape(k, vectors, width)
    b = placed(b_panels, (width, (k + 2) * width, 1) if layout.b_packed else (vectors * width + 3, width, 1))
    c_strides = (width, rows * width + 7, 1) if layout.c_packed else (vectors * width + 9, width, 1)
    c = placed(np.full((rows, vectors, width), np.float32(np.nan)), c_strides)
    if MEANINGS[epilogue].extra_like_c:
        extra = placed(case.extra.reshape(rows, vectors, width), c_strides)
    else:
        extra = placed(case.extra[None, None], (1, 1, 1))
    before = [operand.buffer.copy() for operand in (a, b, extra)]
    for start, stop in pairwise((0, *cuts, k)):
        where_a, where_b = a.block[:, start:].ctypes.data, b.block[start:].ctypes.data
        where_c, where_extra = c.block.ctypes.data, extra.block.ctypes.data
        first, last = int(start == 0), int(stop == k and finished)
        arguments = (
            where_a,
            *a.strides,
            where_b,
            *b.strides[:2],
            where_c,
            *c_strides[:2],
            stop - start,
            where_extra,
            first,
            last,
        )
        runner(epilogue, width)(rows, vectors, arguments)
    assert same_bits(tuple(before), tuple(operand.buffer for operand in (a, b, extra)))
    return c


def values_of(c: Placed) -> Any:
    """C as (rows, columns)."""
    return c.block.reshape(len(c.block), -1)


def excess_of(epilogue: str, case: Case, c: Any) -> float:
    """By how much the worst entry of C is beyond its tolerance; infinite for NaN."""
    meaning = MEANINGS[epilogue]
    a, b, extra = (array.astype(np.float64) for array in case)
    product = a @ b
    wanted = meaning.value(product, extra)
    beyond = abs(c - wanted) - meaning.tolerance(product_tolerance(a, b), product, extra)
    return float(np.nan_to_num(beyond, nan=np.inf).max())


def test_every_epilogue_has_a_meaning_here() -> None:
    assert set(EPILOGUES) == set(MEANINGS)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_tiles_equal_numpy_and_stay_inside(epilogue: str, width: int) -> None:
    for rows, vectors in SHAPES:
        for k in DEPTHS:
            case = make_case(epilogue, rows, vectors * width, k)
            for layout in LAYOUTS:
                c = run_tile(epilogue, width, case, layout)
                assert excess_of(epilogue, case, values_of(c)) <= 0, (rows, vectors, k, layout)
                assert c.stray() == 0, (rows, vectors, k, layout)


def test_the_checks_of_tiles_see_a_wrong_number_and_a_stray_write() -> None:
    case = make_case("keep", 8, 16, 64)
    c = run_tile("keep", 8, case)
    c.block[7, 1, 7] += 1e-3
    assert excess_of("keep", case, values_of(c)) > 0
    c.block[7, 1, 7] = np.nan
    assert excess_of("keep", case, values_of(c)) == np.inf
    for at in (32, 33 + 16, len(c.buffer) - 1):  # before, between two rows, behind
        c.buffer[at] = 0
    assert c.stray() == 3


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_nan_and_infinity_are_kept(epilogue: str) -> None:
    case = make_case(epilogue, 8, 16, 7)
    case.a[2, 3] = np.nan
    case.a[5, 3] = np.inf
    case.extra[...] = 1
    c = values_of(run_tile(epilogue, 8, case))
    assert np.isnan(c[2]).all()
    assert (c[5] == np.where((epilogue == "bias-relu") & (case.b[3] < 0), 0, np.sign(case.b[3]) * np.inf)).all()
    assert np.isfinite(np.delete(c, (2, 5), axis=0)).all()


def test_where_positive_takes_nan_and_zeros_for_not_positive() -> None:
    case = make_case("where-positive", 8, 16, 7)
    case.extra[:, :4] = [np.nan, 0.0, -0.0, np.float32(1e-45)]
    c = values_of(run_tile("where-positive", 8, case))
    assert same_bits(c[:, :3].copy(), np.zeros((8, 3), np.float32))
    assert (c[:, 3] != 0).all()


# ------------------------------------------------------------------------------------------------ the order of the sum


def rounded(exact: Fraction) -> np.float32:
    """The float32 nearest to an exact number, ties to even; through float64 alone it would be rounded twice."""
    guess = np.float32(float(exact))
    near = (np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf)))
    return min(near, key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view(np.uint32)) & 1))


def sequential(a: Any, b: Any, *, fused: bool = True) -> np.float32:
    """sum over k of a[k] b[k] in the order of k, by exact fused multiply-adds, or with each product rounded first."""
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
    case = make_case("keep", 8, 2 * width, 64)
    c = values_of(run_tile("keep", width, case))
    columns = range(0, 2 * width, 3)
    entries = [(i, j) for i in range(0, 8, 3) for j in columns]
    found = np.array([c[i, j] for i, j in entries])

    def emulated(step: int, fused: bool) -> Any:
        return np.array([sequential(case.a[i, ::step], case.b[::step, j], fused=fused) for i, j in entries])

    assert same_bits(found, emulated(1, True))
    assert not same_bits(found, emulated(-1, True))  # another order
    assert not same_bits(found, emulated(1, False))  # not fused


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_the_shape_of_the_tile_changes_no_bit(epilogue: str) -> None:
    case = make_case(epilogue, 8, 16, 64)
    like_c = MEANINGS[epilogue].extra_like_c
    whole = values_of(run_tile(epilogue, 8, case))
    for width in WIDTHS:
        for rows, vectors in SHAPES:
            step = vectors * width
            if step > 16:
                continue
            pieces = [
                values_of(
                    run_tile(
                        epilogue,
                        width,
                        Case(
                            case.a[i : i + rows],
                            case.b[:, j : j + step],
                            case.extra[i : i + rows, j : j + step] if like_c else case.extra[j : j + step],
                        ),
                    )
                )
                for i in range(0, 8, rows)
                for j in range(0, 16, step)
            ]
            blocks = np.array(pieces).reshape(8 // rows, 16 // step, rows, step)
            assert same_bits(blocks.swapaxes(1, 2).reshape(8, 16), whole), (width, rows, vectors)


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_a_sum_that_is_cut_has_the_bits_of_one_call(epilogue: str) -> None:
    for width in WIDTHS:
        for rows, vectors in SHAPES:
            case = make_case(epilogue, rows, vectors * width, 64)
            whole = run_tile(epilogue, width, case)
            for cuts in ((1,), (63,), (20, 27)):
                assert same_bits(run_tile(epilogue, width, case, cuts=cuts).buffer, whole.buffer), (width, rows, vectors, cuts)
            begun = Case(case.a[:, :20], case.b[:20], case.extra)
            plain = run_tile("keep", width, begun._replace(extra=np.zeros((rows, vectors * width), np.float32)))
            unfinished = run_tile(epilogue, width, begun, finished=False)  # the epilogue waits for the last piece
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


@pytest.mark.skipif("NUMBA_CPU_NAME" in os.environ, reason="Numba compiles for another processor than this one")
def test_lanes_are_those_of_the_widest_vector() -> None:
    has = binding.get_host_cpu_features()
    if has.get("avx512f"):
        assert lanes() == 16
    elif has.get("avx2") and has.get("fma"):
        assert lanes() == 8
    else:
        assert lanes() == 4
