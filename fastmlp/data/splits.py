"""Random splits into training, validation and test rows, plain or stratified.

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

SIZES = ("val_fraction", "test_fraction")  # settings of the command line that give the sizes
Splits = dict[str, CheckedRows]  # by name: "train", "validation", "test"; only splits that have rows


def split_rows(y: npt.ArrayLike, sizes: Sequence[float | int], stratify: bool = False, seed: int = 0) -> tuple[Indices, ...]:
    """Split rows at random into splits of given sizes and the rest.

    Parameters
    ----------
    y : (n,) labels; unless `stratify`, only its length is used
    sizes : of the splits: a float in [0, 1) is a fraction of all n rows, rounded to the nearest whole
        number; an int is a number of rows. A split of size 0 is empty.
    stratify : in a split of size s, class c has s n_c / n rows, rounded down; the classes with the largest remainders (in a
        tie, the lower class) get one more row each until the sum is s
    seed : 0 ≤ seed < 2^64; the result is a function of n, the sizes and the seed, with `stratify` also of y

    Returns
    -------
    tuple of (rows,) int64: the rest, then the splits; rows are in shuffled order

    Raises
    ------
    ConfigError : an invalid size, a fraction that rounds to no row, sizes that leave no rest, a seed out of range, stratified
        splitting without classes
    DataError : a class with too few rows to be in the rest and in each split that is not empty

    Examples
    --------
    >>> train, validation, test = split_rows([0, 1] * 50, (0.2, 6), stratify=True)
    >>> len(train), len(validation), len(test), int((validation % 2).sum())
    (74, 20, 6, 10)
    """
    y = np.asarray(y)
    n = len(y)
    counts = [_rows_of(size, n) for size in sizes]
    if sum(counts) >= n:
        raise ConfigError(f"splits of {counts} rows leave nothing of {n} rows to train on; make them smaller", settings=SIZES)
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed} is out of range; give a whole number from 0 to 2^64 - 1", settings=("seed",))
    order = generator(seed, "split").permutation(n).astype(np.int64)
    counts.append(n - sum(counts))
    number = _stratified(y[order], counts) if stratify else np.repeat(np.arange(len(counts)), counts)
    *cut, rest = (order[number == size] for size in range(len(counts)))
    return (rest, *cut)


def _rows_of(size: float | int, n: int) -> int:
    """Number of rows of a split whose size is a fraction or a number of rows."""
    if isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 0:
        return int(size)
    if isinstance(size, float | np.floating) and 0 <= size < 1:
        rows = round(float(size) * n)
        if rows == 0 and size > 0:
            raise ConfigError(
                f"a fraction of {size} of {n} rows is no row; give a larger fraction, or a number of rows", settings=SIZES
            )
        return rows
    raise ConfigError(
        f"a split of {size!r} rows: give a fraction as a float in [0, 1), or a number of rows as an integer", settings=SIZES
    )


def _stratified(y: Array, sizes: list[int]) -> Indices:
    """Number of the split of each row; the last one is the rest."""
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ConfigError("stratified splitting needs class labels; leave it out for regression", settings=("stratify",))
    names, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    table = np.array([_largest_remainder(counts, size) for size in sizes[:-1]], np.int64).reshape(-1, len(counts))
    table = np.vstack([table, counts - table.sum(axis=0)])
    short = table < (np.array(sizes) > 0)[:, None]
    if short.any():
        which = int(short.any(axis=0).argmax())
        raise DataError(
            f"class {names[which]} has {counts[which]} rows, too few for splits of {sizes} rows; "
            "add rows, change the sizes, or split without stratifying",
            settings=("stratify", *SIZES),
        )
    # The rows of a class, in shuffled order, fill the splits one after another.
    number = np.empty(len(y), np.int64)
    number[np.argsort(codes, kind="stable")] = np.repeat(np.tile(np.arange(len(sizes)), len(counts)), table.T.ravel())
    return number


def _largest_remainder(counts: Indices, size: int) -> Indices:
    """Integers close to size * counts / sum(counts) whose sum is size."""
    whole, remainder = np.divmod(size * counts.astype(np.int64), counts.sum())
    first = np.argsort(-remainder, kind="stable")[: size - int(whole.sum())]
    whole[first] += 1
    return whole


def split(data: Dataset, validation: float | int, test: float | int, stratify: bool = False, seed: int = 0) -> Splits:
    """Split a data set into training, validation and test rows; a split without rows is left out.

    Splits of memory-mapped rows are subsets, not copies.

    validation, test : sizes as in `split_rows`; ignored for a split that the data set has of its own
    """
    indices, classes = split_indices(data, validation, test, stratify, seed), len(data.classes)
    splits = {name: CheckedRows(take(data.x, rows), data.y[rows], classes) for name, rows in indices.items()}
    if data.x_test is not None and data.y_test is not None:
        splits["test"] = CheckedRows(data.x_test, data.y_test, classes)
    return splits


def split_indices(
    data: Dataset, validation: float | int, test: float | int, stratify: bool = False, seed: int = 0
) -> dict[str, npt.NDArray[np.int64]]:
    """Row numbers of `data.x` in each split that has any: a function of y, the sizes, `stratify` and the seed.

    Validation and test splits that the data set has of its own are used as they are.
    """
    if data.validation is not None:
        rest = np.setdiff1d(np.arange(len(data.y)), data.validation, assume_unique=True)
        return {name: rows for name, rows in (("train", rest), ("validation", data.validation)) if len(rows)}
    sizes = {"validation": validation} | ({"test": test} if data.x_test is None else {})
    rest, *cut = split_rows(data.y, [*sizes.values()], stratify, seed)
    return {name: rows for name, rows in {"train": rest, **dict(zip(sizes, cut, strict=True))}.items() if len(rows)}


def split_names(data: Dataset, *sizes: Any, **settings: Any) -> set[str]:
    """Names of the splits that `split` returns for the same arguments; no row is copied."""
    return {*split_indices(data, *sizes, **settings), *(() if data.x_test is None else ("test",))}
