"""Tiled matrix products, which do most of the arithmetic.

Each product is a separate kernel that is called by its address. It is compiled only once per machine, for all networks, and
the kernels that call it stay small.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastmlp.engines.cpu.codegen.compiler import address_of, compiled
from fastmlp.engines.cpu.codegen.intrinsics import array_at, prefetch, smaller
from fastmlp.engines.cpu.codegen.simd import (
    KEEP,
    ROW_BYTES,
    SINGLE_VECTORS,
    TILES,
    TRACED_NAMES,
    make_gradient_tile,
    make_tile,
    processor,
)
from fastmlp.engines.kernel_cache import with_globals
from fastmlp.nn import optimizers
from fastmlp.nn.optimizers import RULES, with_penalties

FLOAT_BYTES = 4
# Maximum size of the piece of a panel of B that is multiplied at once. Two pieces of this size stay in the L1 cache while all
# rows of A are processed.
PIECE_BYTES = 12_800
# Exceptions, by processor and vector lanes. With a fast L2 cache, larger pieces are faster, because partial sums are stored
# less often, see benchmarks/NOTES.md.
LARGER_PIECES = {("znver4", 16): 102_400}


@functools.cache
def traced_rule(rule_name: str, penalised: bool) -> Callable[..., Any]:
    """Return an update rule as a formula that can be traced with vectors; with `penalised`, it includes the penalties."""
    rule = with_globals(RULES[rule_name].update, {**vars(optimizers), **TRACED_NAMES})
    if not penalised:
        return rule
    penalise = with_globals(with_penalties, {**vars(optimizers), **TRACED_NAMES})
    return lambda p, g, m, v, s: rule(p, penalise(p, g, s), m, v, s)


@functools.cache
def make_height(lanes: int) -> Any:
    """Return height(left), which computes the number of rows of the next tile.

    `left` is the number of remaining rows. It must be a sum of tile heights, which are `rows` and `low` of the TileShape.
    """
    tall, low, _ = TILES[lanes]

    @compiled
    def height(left):
        return tall if left == tall or left >= tall + low else low

    return height


def deepest_piece(lanes: int) -> int:
    """Return the maximum number of rows of a panel of B that are multiplied at once."""
    return LARGER_PIECES.get((processor(), lanes), PIECE_BYTES) // (lanes * FLOAT_BYTES)


@functools.cache
def product_address(lanes: int) -> int:
    """Return the address of the matrix product C = epilogue(A B).

    Its signature is product(a, a_rows, b, b_panel, c, c_row, k, rows, panels, epilogue, extra, extra_row).

    - A has shape (rows, k); the table a_rows has the byte offset of each row, see `emit_row`.
    - B is stored in panels of shape (k, lanes), which are `b_panel` elements apart.
    - C has rows that are `c_row` elements apart.
    - `epilogue` and the data at `extra` are described in codegen/simd.py.

    The sum over k is divided into pieces of equal length (the last may be shorter), so that the panels of a piece stay in the
    cache while all rows of A are processed. The results are bitwise the same as without this division. Addresses are in bytes,
    strides in elements.
    """
    tall, low, pair = TILES[lanes]
    wide, low_wide = make_tile(tall, pair, lanes), make_tile(low, pair, lanes)
    narrow, low_narrow = make_tile(tall, 1, lanes), make_tile(low, 1, lanes)
    single, single_narrow = make_tile(1, SINGLE_VECTORS, lanes), make_tile(1, 1, lanes)
    height, granule = make_height(lanes), math.gcd(tall, low)
    column = lanes * FLOAT_BYTES  # bytes between two panels of C
    deepest = deepest_piece(lanes)

    def product(a, a_rows, b, b_panel, c, c_row, k, rows, panels, epilogue, extra, extra_row):
        in_tiles = rows - rows % granule if rows >= low else 0  # the remaining rows are processed one by one
        piece = -(-k // -(-k // deepest))
        for j in range(0, k, piece):
            depth, first = smaller(piece, k - j), j == 0
            finish = epilogue if j + depth == k else KEEP
            a_j, b_j = a + j * FLOAT_BYTES, b + j * column
            for p in range(0, panels, pair):
                b_p = b_j + p * b_panel * FLOAT_BYTES
                i = 0
                while i < in_tiles:
                    h = height(in_tiles - i)
                    rows_i, c_i = a_rows + i * ROW_BYTES, c + i * c_row * FLOAT_BYTES + p * column
                    e_i = extra + i * extra_row * FLOAT_BYTES + p * column
                    if p + pair <= panels:
                        if h == tall:
                            wide(a_j, rows_i, b_p, b_panel, c_i, c_row, depth, first, finish, e_i, extra_row)
                        else:
                            low_wide(a_j, rows_i, b_p, b_panel, c_i, c_row, depth, first, finish, e_i, extra_row)
                    elif h == tall:
                        narrow(a_j, rows_i, b_p, b_panel, c_i, c_row, depth, first, finish, e_i, extra_row)
                    else:
                        low_narrow(a_j, rows_i, b_p, b_panel, c_i, c_row, depth, first, finish, e_i, extra_row)
                    i += h
            for i in range(in_tiles, rows):
                rows_i, c_i = a_rows + i * ROW_BYTES, c + i * c_row * FLOAT_BYTES
                e_i = extra + i * extra_row * FLOAT_BYTES
                p = 0
                while p < panels:
                    b_p = b_j + p * b_panel * FLOAT_BYTES
                    c_p, e_p = c_i + p * column, e_i + p * column
                    if p + SINGLE_VECTORS <= panels:
                        single(a_j, rows_i, b_p, b_panel, c_p, c_row, depth, first, finish, e_p, extra_row)
                        p += SINGLE_VECTORS
                    else:
                        single_narrow(a_j, rows_i, b_p, b_panel, c_p, c_row, depth, first, finish, e_p, extra_row)
                        p += 1

    return address_of(product, f"product {lanes}", 12)


@functools.cache
def gradient_address(lanes: int, rule_name: str, penalised: bool) -> int:
    """Return the address of the gradient and update of a rectangle of weights.

    Its signature is gradient(a, a_rows, b, b_pair, panels, c, c_panel, r, depth, p, p_panel, rows, slot, scalars, last). The
    rectangle has `rows` rows and `panels` panels, and is computed by tiles of `make_gradient_tile`. The sum is over the rows
    [r, r + depth) of A and B.

    - a_rows has the byte offset of each row of A, see `emit_row`.
    - b is the packed copy of dz: one pair of panels after another, `b_pair` elements apart.
    - The remaining arguments are those of `make_gradient_tile`.

    For each block of rows of the rectangle, all columns are computed before the next block, so that each column of A is
    loaded into the cache only once. An empty rule_name stores the gradient without an update.
    """
    tall, low, pair = TILES[lanes]
    rule = traced_rule(rule_name, penalised) if rule_name else None
    wide, low_wide = (make_gradient_tile(rows, pair, lanes, rule) for rows in (tall, low))
    narrow, low_narrow = (make_gradient_tile(rows, 1, lanes, rule) for rows in (tall, low))
    height, line = make_height(lanes), lanes * FLOAT_BYTES
    two = pair * lanes  # floats per row of b

    def gradient(a, a_rows, b, b_pair, panels, c, c_panel, r, depth, p, p_panel, rows, slot, scalars, last):
        first, i, rows_r = r == 0, 0, a_rows + r * ROW_BYTES
        for j in range(depth):  # the tiles prefetch only the following columns of A, not the first
            prefetch(a + array_at(rows_r, depth, np.int64)[j])
        while i < rows:
            h = height(rows - i)
            a_i = a + i * FLOAT_BYTES
            for q in range(0, panels, pair):
                b_q = b + (q // pair * b_pair + r * two) * FLOAT_BYTES
                c_q, p_q = c + i * line + q * c_panel * FLOAT_BYTES, p + i * line + q * p_panel * FLOAT_BYTES
                if q + pair <= panels:
                    if h == tall:
                        wide(a_i, rows_r, b_q, two, c_q, c_panel, depth, p_q, p_panel, slot, scalars, first, last)
                    else:
                        low_wide(a_i, rows_r, b_q, two, c_q, c_panel, depth, p_q, p_panel, slot, scalars, first, last)
                elif h == tall:
                    narrow(a_i, rows_r, b_q, two, c_q, c_panel, depth, p_q, p_panel, slot, scalars, first, last)
                else:
                    low_narrow(a_i, rows_r, b_q, two, c_q, c_panel, depth, p_q, p_panel, slot, scalars, first, last)
            i += h

    return address_of(gradient, f"gradient {lanes} {rule_name} {penalised}", 15)
