"""Tiled matrix products on NVIDIA GPUs for large mini-batches. A block computes one tile of the result at a time.

Parts of both operands are copied to shared memory, which is double-buffered: while a block multiplies the contents of one
buffer, its threads load the next parts into registers and then write them to the other buffer. The buffers are transposed where
necessary, so that a thread can read consecutive rows (or columns) of the result as vectors of four. The multiplication is a
parameter, `Arithmetic`: this file has the one for float32, and tensor_cores.py has the one for tensor cores.

Notation: a product has rows m, columns n and an inner dimension k, whose elements are called terms. Operands are called
factors. A factor is `across` if four consecutive elements in memory are four terms. Otherwise they are four rows (or columns)
of the result. A word of shared memory holds one term, or two terms in bf16.

Source: Volkov & Demmel, "Benchmarking GPUs to tune dense linear algebra", SC 2008. The tile shape is that of CUTLASS for SIMT.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Tile(NamedTuple):
    """Shape of the tile that a block computes.

    rows, columns : size of the tile
    terms : number of terms in a buffer of shared memory
    high, wide : rows and columns of the tile whose sums a thread accumulates
    resident : minimum number of resident blocks per multiprocessor
    gap : padding between terms in shared memory, in words, which avoids bank conflicts
    packed : number of terms per word
    """

    rows: int = 64
    columns: int = 64
    terms: int = 16
    high: int = 8
    wide: int = 4
    resident: int = 2
    gap: int = 4
    packed: int = 1

    @property
    def threads(self) -> int:
        return (self.rows // self.high) * (self.columns // self.wide)

    def words(self, extent: int) -> int:
        """Number of words of one buffer for a factor that has `extent` rows or columns in the tile."""
        return self.terms // self.packed * (extent + self.gap)

    def shared(self, lanes: int) -> int:
        """Float32 elements of shared memory: two buffers for each factor. At the end, the same memory holds the sums."""
        return max(2 * (self.words(self.rows) + self.words(self.columns)), self.rows * self.columns)


Factor = tuple[bool, Any]  # whether the factor is `across`, and its function `get`


class Arithmetic(NamedTuple):
    """Functions with which a block multiplies factors in shared memory, for a fixed tile.

    word(held, i, j) : return the word to store in shared memory for held[i], or for held[i] and held[j] if two are packed
    multiply(sums, shared, at_a, at_b, t) : multiply the contents of one buffer and add the products to the sums of thread t
    store_tile(shared, sums, t) : write the sums of thread t to shared memory, where the tile is stored in row-major order
    """

    word: Any
    multiply: Any
    store_tile: Any


def make_factor(dev: Any, tile: Tile, extent: int, across: bool, get: Any, word: Any) -> tuple[Any, Any]:
    """Return two functions that copy a part of a factor to shared memory.

    fetch(held, factor, first, k0, t) reads the part from global memory into registers of thread t.
    stage(shared, base, held, t) writes it from the registers to shared memory.

    extent : rows or columns of the tile
    get : get(to, o, factor, row, column) reads four consecutive elements of the factor, or zeros outside the factor
    """
    divide, remainder, store, store4, packed = dev.divide, dev.remainder, dev.store, dev.store4, tile.packed
    lines, quads = (extent, tile.terms // 4) if across else (tile.terms // packed, extent // 4)
    threads, each, apart = tile.threads, lines * quads // tile.threads, extent + tile.gap
    if each * threads != lines * quads:
        raise ValueError(f"{lines * quads} vectors cannot be divided evenly among {threads} threads")

    @dev.device
    def fetch(held, factor, first, k0, t):
        for i in range(each):
            q = t + i * threads
            line, quad = divide(q, quads), 4 * remainder(q, quads)
            if across:
                get(held, 4 * i, factor, first + line, k0 + quad)
            else:
                for j in range(packed):
                    get(held, 4 * (packed * i + j), factor, k0 + packed * line + j, first + quad)

    @dev.device
    def stage(shared, base, held, t):
        for i in range(each):
            q, o = t + i * threads, 4 * packed * i
            line, quad = divide(q, quads), 4 * remainder(q, quads)
            if across:
                for j in range(4 // packed):
                    at = 4 * i + packed * j
                    store(shared, base + (divide(quad, packed) + j) * apart + line, word(held, at, at + packed - 1))
            else:
                p = o + 4 * (packed - 1)  # second term of the same word
                values = word(held, o, p), word(held, o + 1, p + 1), word(held, o + 2, p + 2), word(held, o + 3, p + 3)
                store4(shared, base + line * apart + quad, values)

    return fetch, stage


def make_sums(dev: Any, tile: Tile) -> Arithmetic:
    """Return the `Arithmetic` for float32.

    Each thread accumulates the sums of groups of four consecutive rows and columns; the groups are interleaved among threads.
    """
    cuda, float32, load4, store4, width = dev.cuda, dev.float32, dev.load4, dev.store4, tile.columns
    divide, remainder, high, wide, depth = dev.divide, dev.remainder, tile.high, tile.wide, tile.terms
    left_threads, right_threads = tile.rows // high, tile.columns // wide
    apart_a, apart_b = tile.rows + tile.gap, tile.columns + tile.gap

    @dev.device
    def word(held, i, j):
        return held[i]

    @dev.device
    def term(sums, row, column, shared, at_a, at_b):
        for q in range(high // 4):
            at = at_a + 4 * q * left_threads
            row[4 * q], row[4 * q + 1], row[4 * q + 2], row[4 * q + 3] = load4(shared, at)
        for q in range(wide // 4):
            at = at_b + 4 * q * right_threads
            column[4 * q], column[4 * q + 1], column[4 * q + 2], column[4 * q + 3] = load4(shared, at)
        for i in range(high):
            for j in range(wide):
                sums[wide * i + j] += row[i] * column[j]

    @dev.device
    def multiply(sums, shared, at_a, at_b, t):
        row, column = cuda.local.array(high, float32), cuda.local.array(wide, float32)
        down, over = 4 * divide(t, right_threads), 4 * remainder(t, right_threads)
        for k in range(depth):
            term(sums, row, column, shared, at_a + k * apart_a + down, at_b + k * apart_b + over)

    @dev.device
    def store_tile(shared, sums, t):
        down, over = divide(t, right_threads), remainder(t, right_threads)
        for i in range(high):
            m = i // 4 * 4 * left_threads + 4 * down + i % 4
            for q in range(wide // 4):
                at, n = wide * i + 4 * q, 4 * (q * right_threads + over)
                store4(shared, m * width + n, (sums[at], sums[at + 1], sums[at + 2], sums[at + 3]))

    return Arithmetic(word, multiply, store_tile)


def make_product(dev: Any, tile: Tile, arithmetic: Arithmetic, left: Factor, right: Factor, put: Any) -> Any:
    """Return product(a, b, m0, n0, terms, shared, to), which computes the tile of the product a b that starts at (m0, n0).

    a and b are passed to the `get` of the left and right factor. For each element of the tile, `put(to, m, n, sum)` is called.
    """
    cuda, float32, zero, load, divide, remainder = dev.cuda, dev.float32, dev.float32(0), dev.load, dev.divide, dev.remainder
    width, size, threads, depth = tile.columns, tile.rows * tile.columns, tile.threads, tile.terms
    sums_of, held_a, held_b = tile.high * tile.wide, depth * tile.rows // threads, depth * tile.columns // threads
    at_b, stage_size = tile.words(tile.rows), tile.words(tile.rows) + tile.words(tile.columns)
    word, multiply, store_tile = arithmetic
    fetch_a, stage_a = make_factor(dev, tile, tile.rows, *left, word)
    fetch_b, stage_b = make_factor(dev, tile, tile.columns, *right, word)

    @dev.device
    def product(a, b, m0, n0, terms, shared, to):
        t, base = cuda.threadIdx.x, 0
        sums = cuda.local.array(sums_of, float32)
        next_a, next_b = cuda.local.array(held_a, float32), cuda.local.array(held_b, float32)
        for i in range(sums_of):
            sums[i] = zero
        fetch_a(next_a, a, m0, 0, t)
        fetch_b(next_b, b, n0, 0, t)
        cuda.syncthreads()  # wait until the previous tile has been read
        stage_a(shared, 0, next_a, t)
        stage_b(shared, at_b, next_b, t)
        cuda.syncthreads()
        for k0 in range(0, terms, depth):
            if k0 + depth < terms:
                fetch_a(next_a, a, m0, k0 + depth, t)
                fetch_b(next_b, b, n0, k0 + depth, t)
            multiply(sums, shared, base, base + at_b, t)
            if k0 + depth < terms:
                stage_a(shared, stage_size - base, next_a, t)
                stage_b(shared, stage_size - base + at_b, next_b, t)
            base = stage_size - base
            cuda.syncthreads()  # the next buffer is full, and this one is no longer needed
        # The sums go through shared memory so that adjacent threads write adjacent elements, and `put` is inlined only once.
        store_tile(shared, sums, t)
        cuda.syncthreads()  # all sums are in shared memory
        for o in range(t, size, threads):
            put(to, m0 + divide(o, width), n0 + remainder(o, width), load(shared, o))

    return product
