"""Product and gradient kernels, called by address as in the engine, with many sizes and all optimizers."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba import njit
from support.cpu import FLOAT_BYTES, MEANINGS, Case, Placed, excess_of, make_case, placed, scattered
from support.engines import same_bits
from support.tolerances import excess, product_tolerance

from fastmlp.engines.cpu.codegen.compiler import compiled_with_callees, from_python
from fastmlp.engines.cpu.codegen.intrinsics import call
from fastmlp.engines.cpu.codegen.simd import BIAS_RELU, EPILOGUES, KEEP, SINGLE_VECTORS, TILES, TIMES, lanes
from fastmlp.engines.cpu.kernels import gemm
from fastmlp.engines.cpu.kernels.gemm import deepest_piece, gradient_address, make_height, product_address
from fastmlp.engines.cpu.plan import CHUNK_ROWS
from fastmlp.nn.optimizers import RULES, Optimizer, with_penalties

WIDTHS = (4, 8, 16)


# ------------------------------------------------------------------------------------------------ heights of tiles


@pytest.mark.parametrize("width", WIDTHS)
def test_heights_add_up_to_every_number_of_rows_that_they_can(width: int) -> None:
    tall, low, _ = TILES[width]
    height = make_height(width).py_func
    sums = {i * tall + j * low for i in range(100) for j in range(100)}
    for rows in sorted(sums - {0})[:60]:
        left = rows
        while left > 0:
            assert height(left) in (tall, low)
            left -= height(left)
        assert left == 0, rows


# ------------------------------------------------------------------------------------------------ products


def run_product(width: int, epilogue: int, case: Case) -> Placed:
    """Return C of a product, surrounded by guard values; check that A, B and extra are unchanged."""
    (rows, k), panels = case.a.shape, case.b.shape[1] // width
    like_c = MEANINGS[epilogue].extra_like_c
    a = scattered(case.a)
    b = placed(case.b.reshape(k, panels, width), (width, (k + 2) * width, 1))
    c = placed(np.full((rows, panels, width), np.float32(np.nan)), (panels * width + 9, width, 1))
    extra = placed(case.extra.reshape(-1, panels, width), (panels * width + 4, width, 1))
    before = [operand.buffer.copy() for operand in (a, b, extra)]
    from_python(product_address(width), 12)(
        *(a.at, a.rows, b.at, b.strides[1], c.at, c.strides[0], k, rows, panels),
        *(epilogue, extra.at, extra.strides[0] if like_c else 0),
    )
    assert same_bits(tuple(before), tuple(operand.buffer for operand in (a, b, extra)))
    return c


def values_of(c: Placed) -> Any:
    """Return C as a matrix (rows, columns)."""
    return c.block.reshape(len(c.block), -1)


@functools.cache
def row_by_row(epilogue: int, rows: int, columns: int, k: int) -> Any:
    """Compute the product of `make_case` row by row with vectors of 4; every other tiling must give the same bits."""
    case = make_case(epilogue, rows, columns, k)
    like_c = MEANINGS[epilogue].extra_like_c
    c = [
        values_of(run_product(4, epilogue, Case(case.a[[i]], case.b, case.extra[i] if like_c else case.extra)))
        for i in range(rows)
    ]
    return np.concatenate(c)


@pytest.mark.parametrize("width", WIDTHS)
def test_products_of_every_size_equal_numpy_and_stay_inside(width: int) -> None:
    for rows in range(1, 21):
        for panels in (1, 2, 3, SINGLE_VECTORS, SINGLE_VECTORS + 1):
            epilogue = (rows + panels) % len(EPILOGUES)
            case = make_case(epilogue, rows, panels * width, 33)
            c = run_product(width, epilogue, case)
            assert excess_of(epilogue, case, values_of(c)) <= 0, (rows, panels)
            assert c.stray() == 0, (rows, panels)
            assert same_bits(values_of(c).copy(), row_by_row(epilogue, rows, panels * width, 33)), (rows, panels)


@pytest.mark.parametrize("epilogue", range(len(EPILOGUES)), ids=[f.__name__ for f in EPILOGUES])
@pytest.mark.parametrize(("pieces", "more"), [(0, 1), (1, -1), (1, 0), (1, 1), (2, 0), (2, 7)])
def test_long_sums_in_pieces_keep_their_epilogue_and_their_bits(pieces: int, more: int, epilogue: int) -> None:
    for width in WIDTHS:
        k = pieces * deepest_piece(width) + more
        case = make_case(epilogue, 15, 3 * 16, k)
        c = run_product(width, epilogue, case)
        assert excess_of(epilogue, case, values_of(c)) <= 0
        assert c.stray() == 0
        assert same_bits(values_of(c).copy(), row_by_row(epilogue, 15, 3 * 16, k))


@pytest.mark.parametrize(("name", "width", "rows"), [("znver4", 16, 1600), ("znver4", 8, 400), ("skylake-avx512", 16, 200)])
def test_pieces_are_as_large_as_the_processor_likes(name: str, width: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "processor", lambda: name)
    assert deepest_piece(width) == rows


def test_no_rows_and_no_panels_are_no_work() -> None:
    case = make_case(KEEP, 4, 16, 5)
    for rows, panels in ((0, 2), (4, 0), (0, 0)):
        c = placed(np.full((4, 16), np.float32(7)), (20, 1))
        a_rows = np.arange(4) * 5 * FLOAT_BYTES
        arguments = (case.a.ctypes.data, a_rows.ctypes.data, case.b.ctypes.data, 40, c.at, 20, 5, rows, panels, KEEP, 0, 0)
        from_python(product_address(8), 12)(*arguments)
        assert (c.block == 7).all()


def test_extra_may_be_c_itself_and_kernels_call_by_address() -> None:
    """A compiled kernel calls a product by address, once with slopes in the memory to which the product is written."""
    case = make_case(BIAS_RELU, 5, 16, 9)
    product = product_address(8)

    @njit
    def run(arguments):
        call(product, arguments)

    b = np.ascontiguousarray(case.b.reshape(9, 2, 8).swapaxes(0, 1))
    c = np.full((5, 16), np.float32(np.nan))
    address, a_rows = c.ctypes.data, np.arange(5) * 9 * FLOAT_BYTES
    run((case.a.ctypes.data, a_rows.ctypes.data, b.ctypes.data, 72, address, 16, 9, 5, 2, BIAS_RELU, case.extra.ctypes.data, 0))
    assert excess_of(BIAS_RELU, case, c) <= 0
    slopes = np.random.default_rng(0).normal(size=c.shape).astype(np.float32)
    c[...] = slopes
    run((case.a.ctypes.data, a_rows.ctypes.data, b.ctypes.data, 72, address, 16, 9, 5, 2, TIMES, address, 16))
    assert excess_of(TIMES, case._replace(extra=slopes), c) <= 0


# ------------------------------------------------------------------------------------------------ gradients


class Weights(NamedTuple):
    """Parameters and two optimizer slots, each (panels, rows, width), one after another in a buffer of guard values."""

    buffer: Any
    places: list[Any]
    slot: int
    panel: int

    @property
    def values(self) -> list[Any]:
        return [place.copy() for place in self.places]

    def stray(self) -> int:
        """Return the number of entries outside the three arrays that have changed."""
        inside = np.zeros(len(self.buffer), bool)
        for place in self.places:
            start = (place.ctypes.data - self.buffer.ctypes.data) // FLOAT_BYTES
            for q in range(len(place)):
                inside[start + q * self.panel : start + q * self.panel + place[q].size] = True
        return int(np.isfinite(self.buffer[~inside]).sum())


def place_weights(values: list[Any]) -> Weights:
    """Copy three arrays into one buffer, surrounded by NaN."""
    panels, rows, width = values[0].shape
    panel = (rows + 3) * width + 1
    slot = panels * panel + 5
    buffer = np.full(3 * slot + 66, np.float32(np.nan))
    places = []
    for n, value in enumerate(values):
        strides = [FLOAT_BYTES * s for s in (panel, width, 1)]
        places.append(np.lib.stride_tricks.as_strided(buffer[33 + n * slot :], value.shape, strides))
        places[-1][...] = value
    return Weights(buffer, places, slot, panel)


class Gradients(NamedTuple):
    """Operands of a gradient: a (batch, rows), b (batch, panels * width), parameters and slots, scalars of the step."""

    a: Any
    b: Any
    weights: list[Any]
    scalars: Any


def make_gradients(width: int, rows: int, panels: int, batch: int, rule: str = "adamw", seed: int = 0) -> Gradients:
    rng = np.random.default_rng([seed, width, rows, panels, batch])
    a, b = (rng.normal(size=(batch, n)).astype(np.float32) for n in (rows, panels * width))
    weights = [rng.normal(size=(panels, rows, width)).astype(np.float32) for _ in range(3)]
    weights[0][:, ::3, 1] = 0  # where sign(w), and so the gradient of the L1 penalty, is 0
    weights[2][...] = abs(weights[2])
    scalars = Optimizer(rule).scalars(np.array([0.05]), 3, 0.01, 0.02)[0]
    return Gradients(a, b, weights, scalars)


def in_pairs(b: Any, width: int) -> Any:
    """Pack the rows of dz like the engine, one pair of panels after another; an incomplete pair is padded with NaN."""
    step = TILES[width].vectors * width
    b = np.pad(b, ((0, 0), (0, -b.shape[1] % step)), constant_values=np.float32(np.nan))
    return np.concatenate([b[:, at : at + step].ravel() for at in range(0, b.shape[1], step)])


def run_gradient(rule: str, penalised: bool, g: Gradients, width: int, cuts: tuple[int, ...] = ()) -> Weights:
    """Run the kernel once per piece of the sum, check that the operands are unchanged, and return the weights."""
    batch, rows = g.a.shape
    panels, pair = g.b.shape[1] // width, TILES[width].vectors
    a, b = scattered(g.a), in_pairs(g.b, width)
    before = a.buffer.copy()
    sums = placed(np.full((panels, CHUNK_ROWS, width), np.float32(np.nan)), (CHUNK_ROWS * width, width, 1))
    weights = place_weights(g.weights)
    scalars = g.scalars.copy()
    kernel = from_python(gradient_address(width, rule, penalised), 15)
    for start, stop in pairwise((0, *cuts, batch)):
        kernel(
            *(a.at, a.rows, b.ctypes.data, batch * pair * width, panels, sums.at, sums.strides[0]),
            *(start, stop - start, weights.places[0].ctypes.data, weights.panel, rows),
            *(weights.slot, scalars.ctypes.data, int(stop == batch)),
        )
    assert same_bits((a.buffer, b, scalars), (before, in_pairs(g.b, width), g.scalars))
    assert sums.stray() == 0
    return weights


def gradient_of(g: Gradients, width: int) -> tuple[Any, Any]:
    """Return the product of a transposed and b in float64, and its tolerance, both (panels, rows, width)."""
    a, b = (array.astype(np.float64) for array in (g.a.T, g.b))
    parts = (a @ b, product_tolerance(a, b))
    one, tolerance = (part.reshape(len(part), -1, width).swapaxes(0, 1) for part in parts)
    return one, tolerance


@pytest.mark.parametrize("width", WIDTHS)
def test_gradients_of_every_size_equal_numpy_and_stay_inside(width: int) -> None:
    for rows in range(8, CHUNK_ROWS + 1, 8):
        for panels in (1, TILES[width].vectors, 5):
            for batch, cuts in ((1, ()), (65, ()), (65, (64,)), (30, (1, 7))):
                g = make_gradients(width, rows, panels, batch)
                found = run_gradient("", False, g, width, cuts)
                wanted, tolerance = gradient_of(g, width)
                assert excess(found.places[0], wanted, tolerance) == 0, (rows, panels, batch, cuts)
                assert found.stray() == 0
                assert same_bits(tuple(found.values[1:]), tuple(g.weights[1:]))
                assert same_bits(found.values[0], run_gradient("", False, g, width).values[0])  # same bits


def test_the_checks_of_gradients_see_a_wrong_number_and_a_stray_write() -> None:
    g = make_gradients(8, 16, 2, 30)
    found = run_gradient("", False, g, 8)
    wanted, tolerance = gradient_of(g, 8)
    found.places[0][1, 15, 7] += 1e-3
    assert excess(found.places[0], wanted, tolerance) > 0
    found.buffer[32] = found.buffer[33 + 16 * 8] = found.buffer[-1] = 0  # before, between and after panels
    assert found.stray() == 3


@functools.cache
def scalar_update(rule: str, penalised: bool) -> Any:
    """Return update(p, g, m, v, s), which applies the scalar formula of an optimizer to arrays, element by element."""
    formula, penalise = compiled_with_callees(RULES[rule].update), compiled_with_callees(with_penalties)

    @njit(error_model="numpy")
    def update(p, g, m, v, s):
        for i in range(len(p)):
            p[i], m[i], v[i] = formula(p[i], penalise(p[i], g[i], s) if penalised else g[i], m[i], v[i], s)

    return update


@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_updates_in_registers_have_the_bits_of_the_scalar_formula(rule: str, penalised: bool) -> None:
    width = lanes()
    for panels in (1, TILES[width].vectors):
        g = make_gradients(width, 24, panels, 40, rule)
        g.a[:, 5] = 0  # a zero gradient
        g.a[3, 7] = np.nan
        found = run_gradient(rule, penalised, g, width, (17,))
        gradient = run_gradient("", False, g, width).values[0].ravel()
        wanted = [array.copy().ravel() for array in g.weights]
        scalar_update(rule, penalised)(wanted[0], gradient, *wanted[1:], tuple(g.scalars))
        for one, two in zip(found.values, wanted, strict=True):
            numbers = ~np.isnan(two)
            assert same_bits(one.ravel()[numbers], two[numbers])
            assert np.isnan(one.ravel()[~numbers]).all()
        assert np.isnan(found.places[0][:, 7]).all()
        assert np.isfinite(np.delete(found.places[0], 7, axis=1)).all()
        assert found.stray() == 0
        kept = [n for n, name in enumerate(("m", "v"), start=1) if name not in RULES[rule].slots]
        assert all(same_bits(found.values[n], g.weights[n]) for n in kept)
        assert not same_bits(found.values[0], g.weights[0])
