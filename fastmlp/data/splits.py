"""Random splits into training, validation and test sets, optionally stratified.

Source: the class counts of stratified splits are rounded by Hamilton's method of largest remainders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import CheckedRows
from fastmlp.data.rows import Array, Indices, take
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.philox import generator

if TYPE_CHECKING:
    from fastmlp.data.dataset import Dataset

SIZE_SETTINGS = ("val_fraction", "test_fraction")
Splits = dict[str, CheckedRows]  # keys "train", "validation" and "test"; empty splits are omitted


def split_rows(y: npt.ArrayLike, sizes: Sequence[float | int], stratify: bool = False, seed: int = 0) -> tuple[Indices, ...]:
    """Split rows at random into splits of the given sizes and the remaining rows, which are returned first.

    Parameters
    ----------
    y : (n,) labels; without `stratify`, only the length of y is used
    sizes : the size of each split; a float in [0, 1) is a fraction of all n rows and is rounded to a whole number of rows; an
        int is a number of rows. A split of size 0 is empty.
    stratify : whether the splits keep the class proportions of y. If class c has n_c rows, a split of size s first gets
        s * n_c / n of them, rounded down. The classes with the largest remainders then add one row each until the split has s
        rows; ties are resolved in favour of the lower class.
    seed : random seed, 0 ≤ seed < 2^64; the result depends only on n, the sizes and the seed, and with `stratify` also on y

    Returns
    -------
    tuple of int64 arrays of row indices : the remaining rows, then one array per split. All rows are shuffled once, and each
        array keeps the shuffled order.

    Raises
    ------
    ConfigError : a size that is neither a fraction nor a number of rows, a fraction that rounds to 0 rows, splits that leave
        no remaining rows, a seed out of range, or stratification without class labels
    DataError : with `stratify`, a class with too few rows to be in every non-empty split and in the remaining rows

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
            f"splits of {counts} rows leave none of the {n} rows for training; make them smaller", settings=SIZE_SETTINGS
        )
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed} is out of range; give a whole number from 0 to 2^64 - 1", settings=("seed",))
    order = generator(seed, "split").permutation(n).astype(np.int64)
    counts.append(n - sum(counts))
    numbers = _stratified(y[order], counts) if stratify else np.repeat(np.arange(len(counts)), counts)
    *splits, rest = (order[numbers == number] for number in range(len(counts)))
    return (rest, *splits)


def _count_rows(size: float | int, n: int) -> int:
    """Return the number of rows of a split whose size is given as a fraction or as a number of rows."""
    if isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 0:
        return int(size)
    if isinstance(size, float | np.floating) and 0 <= size < 1:
        rows = round(float(size) * n)
        if rows == 0 and size > 0:
            raise ConfigError(
                f"a fraction of {size} of {n} rows rounds to 0 rows; give a larger fraction, or a number of rows",
                settings=SIZE_SETTINGS,
            )
        return rows
    raise ConfigError(
        f"the size of a split must be a float in [0, 1) (a fraction) or a whole number of rows, not {size!r}",
        settings=SIZE_SETTINGS,
    )


def _stratified(y: Array, sizes: list[int]) -> Indices:
    """Return the index of the split to which each row belongs, stratified by y (n,)."""
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
    """Round size * counts / sum(counts) to whole numbers whose sum is `size`."""
    whole, remainder = np.divmod(size * counts.astype(np.int64), counts.sum())
    first = np.argsort(-remainder, kind="stable")[: size - int(whole.sum())]
    whole[first] += 1
    return whole


def split(data: Dataset, validation: float | int, test: float | int, stratify: bool = False, seed: int = 0) -> Splits:
    """Split a data set into training, validation and test sets; empty splits are omitted.

    The splits of a memory-mapped data set are `Subset` objects, not copies.

    Parameters
    ----------
    validation, test : sizes as in `split_rows`; ignored for a split that is part of the data set
    stratify, seed : as in `split_rows`

    Raises
    ------
    ConfigError, DataError : as in `split_rows`
    """
    indices, classes = split_indices(data, validation, test, stratify, seed), len(data.classes)
    splits = {
        name: CheckedRows(take(data.x, rows), data.y[rows], classes, None if data.weight is None else data.weight[rows])
        for name, rows in indices.items()
    }
    if data.x_test is not None and data.y_test is not None:
        splits["test"] = CheckedRows(data.x_test, data.y_test, classes)
    return splits


def split_indices(
    data: Dataset, validation: float | int, test: float | int, stratify: bool = False, seed: int = 0
) -> dict[str, npt.NDArray[np.int64]]:
    """Return the indices of the rows of `data.x` in each split, without empty splits.

    The result depends only on the data set, the sizes, `stratify` and the seed. If the data set defines validation rows, they
    are used, and no test rows are split off. Otherwise, validation rows are split off at random, and test rows too unless the
    data set has a test set.
    """
    if data.validation is not None:
        rest = np.setdiff1d(np.arange(len(data.y)), data.validation, assume_unique=True)
        return {name: rows for name, rows in (("train", rest), ("validation", data.validation)) if len(rows)}
    sizes = {"validation": validation} | ({"test": test} if data.x_test is None else {})
    rest, *splits = split_rows(data.y, [*sizes.values()], stratify, seed)
    return {name: rows for name, rows in {"train": rest, **dict(zip(sizes, splits, strict=True))}.items() if len(rows)}


def training_rows(
    y: npt.ArrayLike, validation: float | int, test: float | int, stratify: bool = False, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Return the rows of the training split of data without a test split; see `split_indices`."""
    return split_rows(y, (validation, test), stratify, seed)[0]


def split_names(data: Dataset, *sizes: Any, **settings: Any) -> set[str]:
    """Return the names of the splits that `split` returns for the same arguments, without copying rows."""
    return {*split_indices(data, *sizes, **settings), *(() if data.x_test is None else ("test",))}
