"""Subsets of the rows of arrays that are too large to copy, such as memory-mapped files.

See also `fastmlp.nn.blocks`, which iterates over rows in blocks.
"""

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
    """A selection of rows of an array, in any order, like torch.utils.data.Subset. Rows are copied only when they are used.

    Training on a subset gives bitwise the same result as training on the copy `array[rows]`. Subsets are meant for
    memory-mapped arrays that are too large to be copied into memory. Slicing a subset copies the rows of the slice, and
    `numpy.asarray` copies all rows of the subset.

    Parameters
    ----------
    array : (n, features) array
    rows : (m,) row indices, integers from 0 to n - 1; stored as int64

    Raises
    ------
    DataError : `rows` is not one-dimensional, not integer, or out of range

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
            raise DataError(f"a subset needs an array and a list of row indices, not {rows.dtype} of shape {rows.shape}")
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(array):
            raise DataError(f"the subset has rows {rows.min()} to {rows.max()}, but the array has rows 0 to {len(array) - 1}")
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
        """Return a copy of some rows of the subset; `key` is a slice or an array of positions within the subset."""
        return self.array[self.rows[key]]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a Subset cannot be converted to an array without a copy")
        return np.asarray(self[:], dtype)

    def scatter(self, values: Array) -> Array:
        """Return an array (n, ...) with the values (m, ...) at the row indices of the subset, and zeros elsewhere.

        Raise DataError if a row that occurs more than once in the subset has different values.
        """
        whole = np.zeros((len(self.array), *values.shape[1:]), values.dtype)
        whole[self.rows] = values
        same = (whole[self.rows] == values).reshape(len(values), -1).all(axis=1)
        if not same.all():
            row = self.rows[same.argmin()]
            raise DataError(f"row {row} is in the subset more than once, with different targets or weights; make them equal")
        return whole


Features = Array | Subset


def is_mapped(array: Array) -> bool:
    """Return whether an array is a memory-mapped file or a view of one."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


def take(array: Array, rows: Indices) -> Features:
    """Select rows of an array. Return a `Subset` if the array is memory-mapped, else a copy, which is faster to read."""
    return Subset(array, rows) if is_mapped(array) else array[rows]


def base_rows(x: Features, y: Array, weights: Array | None) -> tuple[Array, int | Indices, Array, Array | None]:
    """Return the base array of x, its rows (their number or their indices), the targets and the weights for `Engine.train`.

    If x is a `Subset`, the targets and the weights are scattered to the rows of the base array, so that the same indices apply
    to all arrays. Raise DataError as `Subset.scatter` does.
    """
    if not isinstance(x, Subset):
        return x, len(x), y, weights
    return x.array, x.rows, x.scatter(y), None if weights is None else x.scatter(weights)


def first_not_finite(x: Features) -> tuple[int, ...] | None:
    """Return the index of the first NaN or infinity in x (n, ...), or None if all values are finite.

    >>> first_not_finite(np.array([[1.0, 2.0], [3.0, np.nan]]))
    (1, 1)
    """
    for place, block in blocks(x):
        good = np.isfinite(block)
        if not good.all():
            row, *rest = np.unravel_index(int(good.argmin()), good.shape)
            return (place.start + int(row), *map(int, rest))
    return None
