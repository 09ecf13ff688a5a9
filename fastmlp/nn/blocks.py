"""Passes over rows in blocks, so that memory stays bounded for arrays that are memory-mapped or otherwise too large to copy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 1 << 24  # of the rows that a pass holds at once
# Rows that pass through a network at once in inference: bounds the memory, and the delay of Ctrl-C.
ROWS_AT_ONCE = 16384


class RowSource(Protocol):
    """Rows that can be read in slices: an array, memory-mapped or not, or a lazy subset of one (`data.rows.Subset`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> npt.NDArray[Any]: ...


def block_rows(x: RowSource, most: int | None = None) -> int:
    """Number of rows in a block of x: at least 1, otherwise at most `most` rows and BLOCK_BYTES bytes."""
    size = max(1, x.dtype.itemsize * math.prod(x.shape[1:]))
    return max(1, min(BLOCK_BYTES // size, most or len(x)))


def blocks(x: RowSource, most: int | None = None, first: int = 0) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Yield x (n, ...) from row `first` on in blocks of `block_rows`: the slice of each block, and its rows."""
    step = block_rows(x, most)
    for start in range(first, len(x), step):
        place = slice(start, min(start + step, len(x)))
        yield place, x[place]


def inference_blocks(x: RowSource) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Yield x in `blocks` of at most ROWS_AT_ONCE rows; one empty block if x has no rows, so that kernels are compiled."""
    return blocks(x, ROWS_AT_ONCE) if len(x) else iter([(slice(0, 0), x[:0])])
