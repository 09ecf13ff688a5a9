"""Matrix products on the tensor cores of NVIDIA GPUs, for large mini-batches. The tiles are those of tiles.py.

The operands of a product are rounded when they are copied to shared memory: to tf32 (10 mantissa bits), or to bf16 (7 mantissa
bits), two of which are packed in a word. The products of elements are exact in float32 and are accumulated in float32.
Everything else, including the weights, remains float32.

A warp computes 8 `high` rows and 4 `wide` columns of a tile as fragments of 16 x 8 elements. Lane 4 g + p holds four elements
of a fragment, in rows g and g + 8 and columns 2 p and 2 p + 1. It reads words p and p + 4 of rows g and g + 8 of the left
operand, and of column g of the right operand. `Tile.gap` places consecutive words of a row 8 banks apart in shared memory, so
that the 32 lanes access 32 different banks.

Source: PTX ISA 8.0, section 9.7.13.4 (mma.m16n8k8 with .tf32, mma.m16n8k16 with .bf16).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmlp.engines.cuda.kernels.tiles import Arithmetic, Tile

FIRST_CAPABILITY = (8, 0)  # lowest compute capability whose tensor cores support tf32 and bf16
LANES, HIGH, WIDE, WORDS = 32, 16, 8, 8  # lanes; rows and columns of a fragment; words per step

# Four warps with 32 x 32 sums each. The tiles were chosen by instruction counts, not by measurement.
MMA_TILES: Mapping[str, Tile] = {
    "tf32": Tile(64, 64, 16, high=4, wide=8, gap=8),
    "bf16": Tile(64, 64, 32, high=4, wide=8, gap=8, packed=2),
}


def check_tile(tile: Tile, precision: str, lanes: int) -> None:
    """Raise ValueError if the tile cannot be divided into fragments for tensor cores."""
    uneven = tile.rows % (8 * tile.high), tile.columns % (4 * tile.wide), tile.high % 2, tile.wide % 2
    if any(uneven) or tile.terms // tile.packed % WORDS or tile.packed != MMA_TILES[precision].packed or lanes != LANES:
        raise ValueError(f"tensor cores cannot multiply {tile} in {precision} with {lanes} lanes")


def make_word(dev: Any, precision: str) -> Any:
    """Return word(held, i, j), see `Arithmetic`."""
    tf32_of, bf16_pair, number_of = dev.tf32_of, dev.bf16_pair, dev.number_of

    @dev.device
    def rounded(held, i, j):
        return number_of(tf32_of(held[i]))

    @dev.device
    def pair(held, i, j):
        return number_of(bf16_pair(held[i], held[j]))

    return rounded if precision == "tf32" else pair


def make_place(dev: Any, tile: Tile) -> Any:
    """Return place(t), which returns the first row and column of thread t's warp in the tile, and the g and p of its lane."""
    divide, remainder, high, wide = dev.divide, dev.remainder, 8 * tile.high, 4 * tile.wide
    across = tile.columns // wide

    @dev.device
    def place(t):
        warp, lane = divide(t, LANES), remainder(t, LANES)
        return divide(warp, across) * high, remainder(warp, across) * wide, divide(lane, 4), remainder(lane, 4)

    return place


def make_multiply(dev: Any, tile: Tile, mma: Any) -> Any:
    """Return multiply(sums, shared, at_a, at_b, t), see `Arithmetic`."""
    cuda, uint32, load, bits_of, place = dev.cuda, dev.uint32, dev.load, dev.bits_of, make_place(dev, tile)
    down, over, words = tile.high // 2, tile.wide // 2, tile.terms // tile.packed
    apart_a, apart_b, left_words, right_words = tile.rows + tile.gap, tile.columns + tile.gap, 4 * down, 2 * over

    @dev.device
    def step(sums, left, right, shared, at_a, at_b):
        for i in range(down):
            at = at_a + HIGH * i
            left[4 * i], left[4 * i + 1] = bits_of(load(shared, at)), bits_of(load(shared, at + 8))
            at += 4 * apart_a
            left[4 * i + 2], left[4 * i + 3] = bits_of(load(shared, at)), bits_of(load(shared, at + 8))
        for j in range(over):
            at = at_b + WIDE * j
            right[2 * j], right[2 * j + 1] = bits_of(load(shared, at)), bits_of(load(shared, at + 4 * apart_b))
        for i in range(down):
            for j in range(over):
                o, a, b = 4 * (over * i + j), 4 * i, 2 * j
                sums[o], sums[o + 1], sums[o + 2], sums[o + 3] = mma(
                    left[a], left[a + 1], left[a + 2], left[a + 3], right[b], right[b + 1],
                    sums[o], sums[o + 1], sums[o + 2], sums[o + 3],
                )  # fmt: skip

    @dev.device
    def multiply(sums, shared, at_a, at_b, t):
        left, right = cuda.local.array(left_words, uint32), cuda.local.array(right_words, uint32)
        row, column, g, p = place(t)
        at_a, at_b = at_a + p * apart_a + row + g, at_b + p * apart_b + column + g
        for k in range(0, words, WORDS):
            step(sums, left, right, shared, at_a + k * apart_a, at_b + k * apart_b)

    return multiply


def make_store_tile(dev: Any, tile: Tile) -> Any:
    """Return store_tile(shared, sums, t), see `Arithmetic`."""
    store2, place, down, over, width = dev.store2, make_place(dev, tile), tile.high // 2, tile.wide // 2, tile.columns

    @dev.device
    def store_tile(shared, sums, t):
        row, column, g, p = place(t)
        for i in range(down):
            for j in range(over):
                o, at = 4 * (over * i + j), (row + HIGH * i + g) * width + column + WIDE * j + 2 * p
                store2(shared, at, (sums[o], sums[o + 1]))
                store2(shared, at + 8 * width, (sums[o + 2], sums[o + 3]))

    return store_tile


def make_warp_sums(dev: Any, tile: Tile, precision: str) -> Arithmetic:
    """Return the `Arithmetic` for tensor cores, with operands rounded to `precision` and sums in float32."""
    check_tile(tile, precision, dev.WARP)
    mma = dev.mma_tf32 if precision == "tf32" else dev.mma_bf16
    return Arithmetic(make_word(dev, precision), make_multiply(dev, tile, mma), make_store_tile(dev, tile))
