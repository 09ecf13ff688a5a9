"""Iteration over the rows of an array in blocks, which limits memory use for arrays that are memory-mapped or very large."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 1 << 24  # maximum size of a block, in bytes
# Maximum number of rows per forward pass in inference. It limits memory use, and the delay until Ctrl-C takes effect.
ROWS_AT_ONCE = 16384
OUTPUT_BYTES = 1 << 27  # maximum size of the outputs of a block in float64; it is reached with more than 1024 outputs


class RowSource(Protocol):
    """Rows that can be read by slicing: an array in memory, a memory-mapped array, or a lazy subset (`data.rows.Subset`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> npt.NDArray[Any]: ...


def block_rows(x: RowSource, max_rows: int | None = None) -> int:
    """Return the number of rows per block of x: the largest number within BLOCK_BYTES and `max_rows`, but at least 1."""
    row_bytes = max(1, x.dtype.itemsize * math.prod(x.shape[1:]))
    return max(1, min(BLOCK_BYTES // row_bytes, max_rows or len(x)))


def blocks(x: RowSource, max_rows: int | None = None, first: int = 0) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Yield the slice and the rows of each block of x (n, ...), starting at row `first`; see `block_rows`."""
    step = block_rows(x, max_rows)
    for start in range(first, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield rows, x[rows]


def inference_blocks(x: RowSource, outputs: int) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Yield blocks of at most ROWS_AT_ONCE rows, whose outputs (rows, outputs) take at most OUTPUT_BYTES, but at least 1 row.

    If x has no rows, yield one empty block, so that the kernels are still called, and therefore compiled.
    """
    most = max(1, min(ROWS_AT_ONCE, OUTPUT_BYTES // (8 * outputs)))
    return blocks(x, most) if len(x) else iter([(slice(0, 0), x[:0])])
