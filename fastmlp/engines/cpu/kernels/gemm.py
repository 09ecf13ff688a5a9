"""Matrix products by tiles, which do most of the arithmetic. Each is a separate kernel, called by address.

So one product serves every network and is compiled once per machine, and its callers stay small.
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
PIECE_BYTES = 12_800  # of a panel of B; two of them stay in the first-level cache during the pass over all rows
# By processor and lanes: with a fast second-level cache, fewer tile ends matter more, see benchmarks/NOTES.md.
LARGER_PIECES = {("znver4", 16): 102_400}


@functools.cache
def traced_rule(rule_name: str, penalised: bool) -> Callable[..., Any]:
    """The rule as a formula to trace with vectors, including the penalties of the network if there are any."""
    rule = with_globals(RULES[rule_name].update, {**vars(optimizers), **TRACED_NAMES})
    if not penalised:
        return rule
    penalise = with_globals(with_penalties, {**vars(optimizers), **TRACED_NAMES})
    return lambda p, g, m, v, s: rule(p, penalise(p, g, s), m, v, s)


@functools.cache
def make_height(lanes: int) -> Any:
    """height(left): rows of the next tile if `left` remain, which is a sum of the two tile heights."""
    tall, low, _ = TILES[lanes]

    @compiled
    def height(left):
        return tall if left == tall or left >= tall + low else low

    return height


def deepest_piece(lanes: int) -> int:
    """Most rows of a panel in a piece of the sum of a product."""
    return LARGER_PIECES.get((processor(), lanes), PIECE_BYTES) // (lanes * FLOAT_BYTES)


@functools.cache
def product_address(lanes: int) -> int:
    """Address of product(a, a_rows, b, b_panel, c, c_row, k, rows, panels, epilogue, extra, extra_row): C = epilogue(A B).

    A (rows, k) is row-major, its rows where the table a_rows says (`emit_row`), and C with rows c_row apart; B lies in panels
    of `lanes` columns, b_panel apart, each k rows of `lanes`. For the epilogues and what `extra` holds for them see
    codegen/simd.py. The sum over k is cut into equal pieces, whose panels stay in a near cache while all rows pass; no bit
    depends on it. Addresses in bytes, strides in elements.
    """
    tall, low, pair = TILES[lanes]
    wide, low_wide = make_tile(tall, pair, lanes), make_tile(low, pair, lanes)
    narrow, low_narrow = make_tile(tall, 1, lanes), make_tile(low, 1, lanes)
    single, single_narrow = make_tile(1, SINGLE_VECTORS, lanes), make_tile(1, 1, lanes)
    height, granule = make_height(lanes), math.gcd(tall, low)
    column = lanes * FLOAT_BYTES  # bytes from panel to panel of C
    deepest = deepest_piece(lanes)

    def product(a, a_rows, b, b_panel, c, c_row, k, rows, panels, epilogue, extra, extra_row):
        in_tiles = rows - rows % granule if rows >= low else 0  # the others pass one by one
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
    """Address of gradient(a, a_rows, b, b_pair, panels, c, c_panel, r, depth, p, p_panel, rows, slot, scalars, last).

    `make_gradient_tile` over `rows` rows of a rectangle of `panels` panels, summed over the rows [r, r + depth) of a and b.
    a_rows tells where the rows of A are (`emit_row`); b holds rows of a pair of vectors, b_pair from pair to pair. All
    columns pass before the next rows, so that those of A are read once. rule_name "" keeps the gradient.
    """
    tall, low, pair = TILES[lanes]
    rule = traced_rule(rule_name, penalised) if rule_name else None
    wide, low_wide = (make_gradient_tile(rows, pair, lanes, rule) for rows in (tall, low))
    narrow, low_narrow = (make_gradient_tile(rows, 1, lanes, rule) for rows in (tall, low))
    height, line = make_height(lanes), lanes * FLOAT_BYTES
    two = pair * lanes  # floats of a row of b

    def gradient(a, a_rows, b, b_pair, panels, c, c_panel, r, depth, p, p_panel, rows, slot, scalars, last):
        first, i, rows_r = r == 0, 0, a_rows + r * ROW_BYTES
        for j in range(depth):  # the tiles ask for the next columns of A, but nobody has asked for the first
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
