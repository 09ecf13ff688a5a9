"""Random splits into training, validation and test sets, optionally stratified.

Source of the stratified counts: Hamilton's method of largest remainders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import CheckedRows
from fastmlp.data.dataset import Dataset
from fastmlp.data.rows import Array, Indices, take
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.philox import generator

SIZE_SETTINGS = ("val_fraction", "test_fraction")
Splits = dict[str, CheckedRows]  # keys "train", "validation", "test"; only splits that have rows


def split_rows(y: npt.ArrayLike, sizes: Sequence[float | int], stratify: bool = False, seed: int = 0) -> tuple[Indices, ...]:
    """Split rows at random into splits of given sizes and the rest, which comes first.

    Parameters
    ----------
    y : (n,) labels; unless `stratify`, only its length is used
    sizes : a float in [0, 1) is a fraction of all n rows, rounded to the nearest whole number; an int is a number of rows.
        A split of size 0 is empty.
    stratify : in a split of size s, class c has s n_c / n rows, rounded down, plus one row for the classes with the largest
        remainders (the lower class in a tie) until the sum is s
    seed : 0 ≤ seed < 2^64; the result is a function of n, the sizes and the seed, with `stratify` also of y

    Returns
    -------
    tuple of (rows,) int64 : the rest, then the splits; each in the order of one shuffle of all rows, not sorted

    Raises
    ------
    ConfigError : a size that is neither a fraction nor a count, a fraction that rounds to no row, splits that leave no rest,
        a seed out of range, stratification without classes
    DataError : a class with too few rows for the rest and each non-empty split

    Examples
    --------
    >>> train, validation, test = split_rows([0, 1] * 50, (0.2, 6), stratify=True)
    >>> len(train), len(validation), len(test), int((validation % 2).sum())
    (74, 20, 6, 10)
    """
    y = np.asarray(y)
    n = len(y)
    counts = [_count_rows(size, n) for size in sizes]
    if sum(counts) >= n:
        raise ConfigError(
            f"splits of {counts} rows leave none of {n} rows to train on; make them smaller", settings=SIZE_SETTINGS
        )
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed} is out of range; give a whole number from 0 to 2^64 - 1", settings=("seed",))
    order = generator(seed, "split").permutation(n).astype(np.int64)
    counts.append(n - sum(counts))
    numbers = _stratified(y[order], counts) if stratify else np.repeat(np.arange(len(counts)), counts)
    *splits, rest = (order[numbers == number] for number in range(len(counts)))
    return (rest, *splits)


def _count_rows(size: float | int, n: int) -> int:
    """Return the number of rows of a split whose size is a fraction or a count."""
    if isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 0:
        return int(size)
    if isinstance(size, float | np.floating) and 0 <= size < 1:
        rows = round(float(size) * n)
        if rows == 0 and size > 0:
            raise ConfigError(
                f"a fraction of {size} of {n} rows rounds to 0 rows; give a larger fraction, or a count",
                settings=SIZE_SETTINGS,
            )
        return rows
    raise ConfigError(
        f"the size of a split must be a fraction as a float in [0, 1), or a count as a whole number, not {size!r}",
        settings=SIZE_SETTINGS,
    )


def _stratified(y: Array, sizes: list[int]) -> Indices:
    """Return the split number of each row, stratified by y (n,); the last split is the rest."""
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ConfigError("stratify needs class labels; leave it out for regression", settings=("stratify",))
    names, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    table = np.array([_largest_remainder(counts, size) for size in sizes[:-1]], np.int64).reshape(-1, len(counts))
    table = np.vstack([table, counts - table.sum(axis=0)])
    short = table < (np.array(sizes) > 0)[:, None]
    if short.any():
        which = int(short.any(axis=0).argmax())
        raise DataError(
            f"class {names[which]} has {counts[which]} rows, too few for splits of {sizes} rows; "
            "add rows, change the sizes, or split without stratification",
            settings=("stratify", *SIZE_SETTINGS),
        )
    # The rows of a class, in shuffled order, fill one split after another.
    numbers = np.empty(len(y), np.int64)
    numbers[np.argsort(codes, kind="stable")] = np.repeat(np.tile(np.arange(len(sizes)), len(counts)), table.T.ravel())
    return numbers


def _largest_remainder(counts: Indices, size: int) -> Indices:
    """Round size * counts / sum(counts) to whole numbers that sum to size."""
    whole, remainder = np.divmod(size * counts.astype(np.int64), counts.sum())
    first = np.argsort(-remainder, kind="stable")[: size - int(whole.sum())]
    whole[first] += 1
    return whole


def split(data: Dataset, validation: float | int, test: float | int, stratify: bool = False, seed: int = 0) -> Splits:
    """Split a data set into training, validation and test rows; a split without rows is left out.

    Splits of memory-mapped rows are subsets, not copies.

    Parameters
    ----------
    validation, test : sizes as in `split_rows`; ignored for a split that is part of the data set
    stratify, seed : as in `split_rows`

    Raises
    ------
    ConfigError, DataError : as `split_rows`
    """
    indices, classes = split_indices(data, validation, test, stratify, seed), len(data.classes)
    splits = {name: CheckedRows(take(data.x, rows), data.y[rows], classes) for name, rows in indices.items()}
    if data.x_test is not None and data.y_test is not None:
        splits["test"] = CheckedRows(data.x_test, data.y_test, classes)
    return splits


def split_indices(
    data: Dataset, validation: float | int, test: float | int, stratify: bool = False, seed: int = 0
) -> dict[str, npt.NDArray[np.int64]]:
    """Return the rows of `data.x` in each split that has any, a pure function of y, the sizes, `stratify` and the seed.

    Validation and test sets of the data set take precedence; otherwise both are split off together. If the data set has
    validation rows, no test rows are split off.
    """
    if data.validation is not None:
        rest = np.setdiff1d(np.arange(len(data.y)), data.validation, assume_unique=True)
        return {name: rows for name, rows in (("train", rest), ("validation", data.validation)) if len(rows)}
    sizes = {"validation": validation} | ({"test": test} if data.x_test is None else {})
    rest, *splits = split_rows(data.y, [*sizes.values()], stratify, seed)
    return {name: rows for name, rows in {"train": rest, **dict(zip(sizes, splits, strict=True))}.items() if len(rows)}


def split_names(data: Dataset, *sizes: Any, **settings: Any) -> set[str]:
    """Return the names of the splits that `split` returns for the same arguments, without copying rows."""
    return {*split_indices(data, *sizes, **settings), *(() if data.x_test is None else ("test",))}
