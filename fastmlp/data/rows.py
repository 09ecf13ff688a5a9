"""Selections of rows of arrays that are too large to copy, such as memory-mapped files. See also `fastmlp.nn.blocks`."""

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
    """Rows of an array in any order, copied only on use, like torch.utils.data.Subset.

    Training on a subset gives the same bits as training on the copy `array[rows]`. It is meant for memory-mapped arrays,
    where a copy would be as large as the file. Slicing a subset copies these rows, `numpy.asarray` copies all.

    Parameters
    ----------
    array : (n, features)
    rows : (m,) integers from 0 to n - 1; stored as int64

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
        """Return a copy of the rows at these positions of the subset: a slice, or an array of positions."""
        return self.array[self.rows[key]]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a Subset cannot be converted to an array without a copy")
        return np.asarray(self[:], dtype)

    def scatter(self, values: Array) -> Array:
        """Scatter values (m, ...) of the subset's rows to their positions in the whole array: (n, ...), zeros elsewhere.

        Raise DataError if a row that is in the subset twice has two values.
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
    """Whether an array is a memory-mapped file or a view of one."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


def take(array: Array, rows: Indices) -> Features:
    """Select rows: a copy of an array in memory, which is the fastest to read, or a `Subset` of a memory-mapped one."""
    return Subset(array, rows) if is_mapped(array) else array[rows]


def base_rows(x: Features, y: Array, weights: Array | None) -> tuple[Array, int | Indices, Array, Array | None]:
    """Return the arrays that `Engine.train` indexes: the base array of x, its rows (number or indices), targets and weights.

    For a `Subset`, targets and weights are scattered to the rows of the base array. Raise DataError as `Subset.scatter` does.
    """
    if not isinstance(x, Subset):
        return x, len(x), y, weights
    return x.array, x.rows, x.scatter(y), None if weights is None else x.scatter(weights)


def first_not_finite(x: Features) -> tuple[int, ...] | None:
    """Return the index of the first NaN or infinity in x (n, ...), or None.

    >>> first_not_finite(np.array([[1.0, 2.0], [3.0, np.nan]]))
    (1, 1)
    """
    for place, block in blocks(x):
        good = np.isfinite(block)
        if not good.all():
            row, *rest = np.unravel_index(int(good.argmin()), good.shape)
            return (place.start + int(row), *map(int, rest))
    return None
