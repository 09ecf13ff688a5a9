"""Rows of arrays that are too large to copy, selected by their row numbers. Passes in blocks are in nn/blocks.py."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.errors import DataError
from fastmlp.nn.blocks import blocks

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Subset:
    """Selected rows of an array, copied only when they are used, as in torch.utils.data.Subset.

    It is for memory-mapped arrays, of which a copy would be too large. Training on a subset gives the same bits as training on
    the copy `array[rows]`. A slice of a subset is a copy of these rows, `numpy.asarray` a copy of all.

    Parameters
    ----------
    array : (n, features)
    rows : (m,) whole numbers from 0 to n - 1; kept as int64

    Raises
    ------
    DataError : row numbers that are out of range

    Examples
    --------
    >>> subset = Subset(np.array([[0, 1], [2, 3], [4, 5]], np.uint8), [2, 0])
    >>> len(subset), subset.shape, subset[:1].tolist()
    (2, (2, 2), [[4, 5]])
    """

    array: Array
    rows: Indices

    def __post_init__(self) -> None:
        array, rows = np.asarray(self.array), np.asarray(self.rows)
        if array.ndim == 0 or rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise DataError(f"a subset needs an array and a list of row numbers, not {rows.dtype} of shape {rows.shape}")
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(array):
            raise DataError(f"a subset of rows {rows.min()} to {rows.max()}, but the array has rows 0 to {len(array) - 1}")
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "rows", rows.astype(np.int64))

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Array:
        """A copy of rows of the subset, selected by a slice or by an array of positions."""
        return self.array[self.rows[key]]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a Subset becomes an array only by a copy")
        return np.asarray(self[:], dtype)

    def spread(self, values: Array) -> Array:
        """Scatter values of the subset's rows to their positions in the array, (n, ...); zeros elsewhere.

        Raises DataError if a row that is there twice has two values.
        """
        whole = np.zeros((len(self.array), *values.shape[1:]), values.dtype)
        whole[self.rows] = values
        same = (whole[self.rows] == values).reshape(len(values), -1).all(axis=1)
        if not same.all():
            row = self.rows[same.argmin()]
            raise DataError(f"row {row} is in the subset more than once, with different targets or weights; make them equal")
        return whole


Features = Array | Subset  # rows of data


def is_mapped(array: Array) -> bool:
    """Whether an array, or its base, is a memory-mapped file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


def take(array: Array, rows: Indices) -> Features:
    """Select rows: a copy if the array is in memory, which is fastest to read, a `Subset` if it is memory-mapped."""
    return Subset(array, rows) if is_mapped(array) else array[rows]


def in_whole(x: Features, y: Array, weights: Array | None) -> tuple[Array, int | Indices, Array, Array | None]:
    """Arguments of `Engine.train` for rows: the whole array, its row numbers or their number, targets, and weights.

    Raises DataError as `Subset.spread`.
    """
    if not isinstance(x, Subset):
        return x, len(x), y, weights
    return x.array, x.rows, x.spread(y), None if weights is None else x.spread(weights)


def first_not_finite(x: Features) -> tuple[int, ...] | None:
    """Index of the first NaN or infinity in x (n, ...), or None.

    >>> first_not_finite(np.array([[1.0, 2.0], [3.0, np.nan]]))
    (1, 1)
    """
    for place, block in blocks(x):
        good = np.isfinite(block)
        if not good.all():
            row, *rest = np.unravel_index(int(good.argmin()), good.shape)
            return (place.start + int(row), *map(int, rest))
    return None
