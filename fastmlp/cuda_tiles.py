"""Products of large batches on an NVIDIA GPU: a block has a tile of the result, whose factors it stages in shared memory.

Two stages of shared memory: while a block multiplies from one, its threads hold the next terms in registers and write them to
the other. A factor is staged term by term, so that a thread reads its rows, and its columns, as vectors of four.

Names: a product has rows m, columns n and terms k. A factor lies *across* if the four numbers that are read at once from its
memory are terms, and *along* if they are rows (or columns) of the result.

Source: Volkov & Demmel, "Benchmarking GPUs to tune dense linear algebra", SC 2008; the shape is CUTLASS's of simt gemm.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Tile(NamedTuple):
    """A block's tile: rows, columns, terms staged at once; each thread has `high` x `wide` of its sums, multiples of four.

    resident : blocks at once on a multiprocessor, at least
    """

    rows: int = 64
    columns: int = 64
    terms: int = 16
    high: int = 8
    wide: int = 4
    resident: int = 2

    @property
    def threads(self) -> int:
        return (self.rows // self.high) * (self.columns // self.wide)

    def shared(self, lanes: int) -> int:
        """Floats of shared memory: both stages, and in their place, at the end, the sums."""
        return max(2 * self.terms * (pitch(self.rows) + pitch(self.columns)), self.rows * self.columns)


def pitch(extent: int) -> int:
    """Floats from a term to the next: four more than needed, so that terms written one below the other meet different banks."""
    return extent + 4


def make_factor(dev: Any, tile: Tile, extent: int, across: bool, get: Any) -> tuple[Any, Any]:
    """fetch(held, factor, first, k0, t) into registers, and stash(shared, base, held, t) from there, of one factor.

    extent : rows or columns of the tile; get(to, o, factor, row, column) reads four numbers of the factor's memory, or zeros
    """
    divide, remainder, store, store4 = dev.divide, dev.remainder, dev.store, dev.store4
    lines, quads = (extent, tile.terms // 4) if across else (tile.terms, extent // 4)
    threads, each, apart = tile.threads, lines * quads // tile.threads, pitch(extent)
    if each * threads != lines * quads:
        raise ValueError(f"{threads} threads cannot share {lines * quads} vectors evenly")

    @dev.device
    def fetch(held, factor, first, k0, t):
        for i in range(each):
            q = t + i * threads
            line, four = divide(q, quads), 4 * remainder(q, quads)
            if across:
                get(held, 4 * i, factor, first + line, k0 + four)
            else:
                get(held, 4 * i, factor, k0 + line, first + four)

    @dev.device
    def stash(shared, base, held, t):
        for i in range(each):
            q = t + i * threads
            line, four = divide(q, quads), 4 * remainder(q, quads)
            if across:
                for j in range(4):
                    store(shared, base + (four + j) * apart + line, held[4 * i + j])
            else:
                store4(shared, base + line * apart + four, (held[4 * i], held[4 * i + 1], held[4 * i + 2], held[4 * i + 3]))

    return fetch, stash


def make_product(dev: Any, tile: Tile, left: tuple[bool, Any], right: tuple[bool, Any], put: Any) -> Any:
    """product(a, b, m0, n0, terms, shared, to): one tile of a b, each sum of which `put(to, m, n, sum)` has.

    left, right : whether the factor lies across, and its `get`; a and b are what those read from
    """
    cuda, float32, zero, load, load4, store4 = dev.cuda, dev.float32, dev.float32(0), dev.load, dev.load4, dev.store4
    divide, remainder, width, size, threads = dev.divide, dev.remainder, tile.columns, tile.rows * tile.columns, tile.threads
    high, wide, depth, right_threads = tile.high, tile.wide, tile.terms, tile.columns // tile.wide
    left_threads, at_b = tile.rows // tile.high, tile.terms * pitch(tile.rows)
    stage = at_b + tile.terms * pitch(tile.columns)
    fetch_a, stash_a = make_factor(dev, tile, tile.rows, *left)
    fetch_b, stash_b = make_factor(dev, tile, tile.columns, *right)
    held_a, held_b = tile.terms * tile.rows // tile.threads, tile.terms * tile.columns // tile.threads
    sums_of, apart_a, apart_b = high * wide, pitch(tile.rows), pitch(tile.columns)

    @dev.device
    def term(sums, row, column, shared, base, k, down, over):
        for q in range(high // 4):
            row[4 * q], row[4 * q + 1], row[4 * q + 2], row[4 * q + 3] = load4(
                shared, base + k * apart_a + 4 * (q * left_threads + down)
            )
        for q in range(wide // 4):
            column[4 * q], column[4 * q + 1], column[4 * q + 2], column[4 * q + 3] = load4(
                shared, base + at_b + k * apart_b + 4 * (q * right_threads + over)
            )
        for i in range(high):
            for j in range(wide):
                sums[wide * i + j] += row[i] * column[j]

    @dev.device
    def product(a, b, m0, n0, terms, shared, to):
        t = cuda.threadIdx.x
        down, over, base = divide(t, right_threads), remainder(t, right_threads), 0
        sums, row, column = cuda.local.array(sums_of, float32), cuda.local.array(high, float32), cuda.local.array(wide, float32)
        next_a, next_b = cuda.local.array(held_a, float32), cuda.local.array(held_b, float32)
        for i in range(sums_of):
            sums[i] = zero
        fetch_a(next_a, a, m0, 0, t)
        fetch_b(next_b, b, n0, 0, t)
        cuda.syncthreads()  # the tile before has been read
        stash_a(shared, 0, next_a, t)
        stash_b(shared, at_b, next_b, t)
        cuda.syncthreads()
        for k0 in range(0, terms, depth):
            if k0 + depth < terms:
                fetch_a(next_a, a, m0, k0 + depth, t)
                fetch_b(next_b, b, n0, k0 + depth, t)
            for k in range(depth):
                term(sums, row, column, shared, base, k, down, over)
            if k0 + depth < terms:
                stash_a(shared, stage - base, next_a, t)
                stash_b(shared, stage - base + at_b, next_b, t)
            base = stage - base
            cuda.syncthreads()  # written: the next stage; read: this one
        # By way of shared memory: neighbours in a row are then written by neighbouring threads, and `put` is there once.
        for i in range(high):
            m = i // 4 * 4 * left_threads + 4 * down + i % 4
            for q in range(wide // 4):
                at, n = wide * i + 4 * q, 4 * (q * right_threads + over)
                store4(shared, m * width + n, (sums[at], sums[at + 1], sums[at + 2], sums[at + 3]))
        cuda.syncthreads()  # written: the sums
        for o in range(t, size, threads):
            put(to, m0 + divide(o, width), n0 + remainder(o, width), load(shared, o))

    return product
