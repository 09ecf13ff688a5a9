"""Measure the GFLOP/s of matrix products for several tile shapes: python -m benchmarks.tiles [--rounds 15]

First, products of typical sizes are timed for each tile shape: 64 rows, with K = 784 (the weights fit into the L2 cache) and
K = 128 (all operands fit into the L1 cache). Then the engine's tile shape is timed on one core and on all cores at once, with
separate matrices for each thread, to measure how the speed scales with the number of cores.
"""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any

import numpy as np
from numba import njit

from benchmarks.epochs import machine
from fastmlp.engines.cpu.codegen.simd import KEEP, TILES, lanes, make_tile
from fastmlp.engines.cpu.kernels.gemm import FLOAT_BYTES
from fastmlp.engines.cpu.threads import available_cores

SHAPES = ((4, 2), (5, 2), (6, 2), (8, 1), (8, 2), (12, 2), (3, 4), (4, 3), (4, 4))
PANELS = 24  # number of panels of columns; a multiple of the panels per tile
FLOP_PER_CALL = 4e9  # takes tens of milliseconds, much longer than starting a thread


def make_product(rows: int, vectors: int, width: int) -> Any:
    """Return a compiled function product(a, b, c, repeats) that computes c = a b `repeats` times, in full tiles.

    a : (m, k)
    b : (panels, k, width)
    c : (m, n)
    """
    tile = make_tile(rows, vectors, width)

    @njit(nogil=True)
    def product(a, b, c, repeats):  # type: ignore[no-untyped-def]
        m, k, n = a.shape[0], a.shape[1], c.shape[1]
        a_rows = np.arange(rows) * k * FLOAT_BYTES
        for _ in range(repeats):
            for p in range(0, n // width, vectors):
                b_at = b.ctypes.data + p * k * width * FLOAT_BYTES
                for i in range(0, m, rows):
                    a_at = a.ctypes.data + i * k * FLOAT_BYTES
                    c_at = c.ctypes.data + (i * n + p * width) * FLOAT_BYTES
                    tile(a_at, a_rows.ctypes.data, b_at, k * width, c_at, n, k, 1, KEEP, 0, 0)

    return product


def matrices(m: int, k: int, width: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    return (
        rng.random((m, k), np.float32),
        rng.random((PANELS, k, width), np.float32),
        np.empty((m, PANELS * width), np.float32),
    )


def measure(rows: int, vectors: int, k: int, rounds: int, threads: int = 1) -> float:
    """Check the product; return the total GFLOP/s of `threads` threads in the fastest round."""
    width = lanes()
    m = rows * -(-64 // rows)
    product = make_product(rows, vectors, width)
    sets = [matrices(m, k, width) for _ in range(threads)]
    for a, b, c in sets:
        product(a, b, c, 1)
        np.testing.assert_allclose(c, a @ b.transpose(1, 0, 2).reshape(k, PANELS * width), rtol=1e-4)
    flop = 2 * m * k * PANELS * width
    repeats = max(1, int(FLOP_PER_CALL / flop))
    best = float("inf")
    for _ in range(rounds):
        team = [threading.Thread(target=product, args=(*own, repeats)) for own in sets]
        began = time.perf_counter()
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()
        best = min(best, time.perf_counter() - began)
    return flop * repeats * threads / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(machine())
    for rows, vectors in SHAPES:
        speeds = ", ".join(f"K {k}: {measure(rows, vectors, k, rounds):.0f}" for k in (784, 128))
        print(f"{rows} x {vectors}, 1 thread, GFLOP/s: {speeds}", flush=True)
    own = TILES[lanes()]
    for threads in sorted({1, available_cores()}):
        gflops = measure(own.rows, own.vectors, 128, rounds, threads)
        print(f"the engine's tile, {threads} threads, K 128: {gflops:.0f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
