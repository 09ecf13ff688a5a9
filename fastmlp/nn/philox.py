"""Counter-based random numbers: Philox4x32-10 for dropout masks, and NumPy's Philox generator for everything else.

A dropout mask is a function of (seed, step, layer, row of the mini-batch, column). Therefore no generator state is stored or
shared between threads, and all engines generate the same masks.

Initial weights, the order of rows, data splits and augmentation are drawn with NumPy's Philox generator, which is also
counter-based. Each of these uses has a separate stream, so that their random numbers are independent; see `generator`.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MASK32 = np.uint64(0xFFFFFFFF)
SHIFT32 = np.uint64(32)
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = np.uint64(0x9E3779B9)
WEYL_1 = np.uint64(0xBB67AE85)
ROUNDS = 10

STREAMS = {"weights": 0, "order": 1, "split": 2, "augment": 3}


def philox_round(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Compute one round of `philox4x32`."""
    product_0 = MULTIPLIER_0 * c0
    product_1 = MULTIPLIER_1 * c2
    return (product_1 >> SHIFT32) ^ c1 ^ k0, product_1 & MASK32, (product_0 >> SHIFT32) ^ c3 ^ k1, product_0 & MASK32


def philox4x32(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Return four random 32-bit numbers for a counter (c0 to c3) and a key (k0, k1). All are uint64 scalars or arrays."""
    for _ in range(ROUNDS):
        c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
        k0 = (k0 + WEYL_0) & MASK32
        k1 = (k1 + WEYL_1) & MASK32
    return c0, c1, c2, c3


def drop_threshold(rate: float) -> np.uint64:
    """Return round(rate * 2^32); units whose 32-bit random number is below this threshold are dropped."""
    return np.uint64(round(rate * 2**32))


def keep_mask(seed: int, step: int, layer: int, rows: int, columns: int, rate: float) -> npt.NDArray[np.bool_]:
    """Return the dropout mask of a layer for a mini-batch, (rows, columns) bool, True for units that are kept.

    The random number for row r and column j is output j % 4 of `philox4x32` for the counter (j // 4, r, layer, step) and the
    64-bit key `seed`.

    >>> keep_mask(0, 0, 0, 1000, 64, 0.25).mean().round(2)
    np.float64(0.75)
    """
    groups = -(-columns // 4)
    c0 = np.broadcast_to(np.arange(groups, dtype=np.uint64), (rows, groups))
    c1 = np.broadcast_to(np.arange(rows, dtype=np.uint64)[:, None], (rows, groups))
    c2 = np.full((rows, groups), layer, np.uint64)
    c3 = np.full((rows, groups), step, np.uint64)
    words = philox4x32(c0, c1, c2, c3, np.uint64(seed) & MASK32, np.uint64(seed) >> SHIFT32)
    kept: npt.NDArray[np.bool_] = np.stack(words, axis=-1).reshape(rows, 4 * groups)[:, :columns] >= drop_threshold(rate)
    return kept


class Key(np.random.bit_generator.ISeedSequence):
    """Seed sequence that sets the key of NumPy's Philox. `Philox(key=...)` would needlessly read entropy from the system."""

    def __init__(self, *words: int) -> None:
        self.words = np.array(words, np.uint64)  # without a dtype, NumPy would convert large seeds to float64

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint64) -> npt.NDArray[Any]:
        """Return the key as two 64-bit numbers."""
        return self.words


def generator(seed: int, stream: str, *counter: int) -> np.random.Generator:
    """Return a NumPy generator for a stream in `STREAMS`; `counter` is at most two numbers, such as the epoch or the layer.

    >>> generator(1, "order", 5).permutation(4).tolist() == generator(1, "order", 5).permutation(4).tolist()
    True
    """
    high = np.array([0, 0, *counter, 0, 0][:4], np.uint64)
    key: Any = Key(seed, STREAMS[stream])  # NumPy's annotations do not allow all ISeedSequences
    return np.random.Generator(np.random.Philox(key, counter=high))
