"""What happens to arrays before training: checked, split into parts, scaled.

Here: `check_features`, `check_labels`, `check_values`, `split_rows`, `Scaling` with `fit_scaling`.
Not here: where data come from (`data.py`) and file formats (`data_files.py`).
Source of the stratified counts: Hamilton's method of largest remainders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.rows import Features, blocks, first_not_finite
from fastmlp.errors import ConfigError, DataError, unknown_name
from fastmlp.nn.philox import generator

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
MOST_CLASSES = 65536  # a larger label is taken for damage, not for a reason to allocate that many outputs
CHUNK_ROWS = 1024  # rows turned into float64 at a time while statistics are summed,
CHUNK_VALUES = 1 << 22  # but no more than this many values


class Place(NamedTuple):
    """Where an array came from, so that an error can name one row of it.

    >>> Place("a.csv", "line", 2).row(5)
    'a.csv: line 7'
    """

    text: str
    unit: str = "row"
    first: int = 0

    def row(self, index: int) -> str:
        """Place of row `index` (from 0)."""
        return f"{self.text}: {self.unit} {self.first + index}"


# --- checks: any array → the types of `data.Dataset`, or a DataError that names the place -------------------


def check_features(values: Any, place: Place) -> tuple[Array, tuple[int, int, int] | None]:
    """Rows (n, features), uint8 or finite float32, and the image shape if values are images (n, h, w[, c]).

    >>> check_features([[1, 2], [3, 4]], Place("x"))[0].dtype
    dtype('float32')
    """
    array = _array(values, place)
    if array.ndim not in (2, 3, 4):
        raise DataError(f"{place.text}: shape {array.shape}; needed (n, features) or (n, height, width[, channels])")
    height, width, channels = (*array.shape[1:], 1, 1)[:3]
    rows = array.reshape(len(array), -1)
    x = np.ascontiguousarray(rows) if rows.dtype == np.uint8 else _float32(rows, place)
    return x, None if array.ndim == 2 else (height, width, channels)


def check_values(values: Any, place: Place) -> Array:
    """Targets of regression, (n, k) float32, from (n,) or (n, k).

    >>> check_values([1, 2], Place("y")).tolist()
    [[1.0], [2.0]]
    """
    array = _array(values, place)
    if array.ndim > 2:
        raise DataError(f"{place.text}: shape {array.shape}; targets must be (n,) or (n, k)")
    return _float32(array.reshape(len(array), -1), place)


def check_labels(values: Any, classes: tuple[str, ...], place: Place) -> tuple[Array, tuple[str, ...]]:
    """Class numbers (n,) int32 and the names of all classes; if none are given, those that the labels show.

    >>> check_labels(["b", "a", "b"], (), Place("y"))
    (array([1, 0, 1], dtype=int32), ('a', 'b'))
    """
    array = _array(values, place)
    if array.ndim != 1 and array.shape != (len(array), 1):
        raise DataError(f"{place.text}: shape {array.shape}; labels must be (n,)")
    array = array.ravel()
    if array.dtype.kind == "U":
        names, codes = np.unique(array, return_inverse=True)
        number = {name: index for index, name in enumerate(classes or names.tolist())}
        if unknown := [name for name in names.tolist() if name not in number]:
            row = int((array == unknown[0]).argmax())
            raise DataError(f"{place.row(row)}: {unknown_name('class', unknown[0], number)}")
        return np.array([number[name] for name in names.tolist()], np.int32)[codes], tuple(number)
    if array.dtype.kind not in "buif":
        raise DataError(f"{place.text}: labels of type {array.dtype}; whole numbers or strings are needed")
    last = len(classes or range(MOST_CLASSES)) - 1
    good = np.isfinite(array) & (array >= 0) & (array <= last) & (np.floor(array) == array)
    if not good.all():
        row = int(good.argmin())
        remedy = "correct it, or for regression use target 'value'"
        raise DataError(f"{place.row(row)}: label {array[row]} is not a whole number in 0..{last}; {remedy}")
    labels = array.astype(np.int32)
    return labels, classes or tuple(map(str, range(int(labels.max()) + 1)))


def _array(values: Any, place: Place) -> Array:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{place.text}: rows of different lengths; make them equal") from error
    if array.size == 0 or array.ndim == 0:
        raise DataError(f"{place.text}: empty (shape {array.shape}); give at least one row")
    return array


def _float32(rows: Array, place: Place) -> Array:
    """(n, k) numbers as C-contiguous float32, all finite."""
    if rows.dtype.kind not in "buif":
        raise DataError(f"{place.text}: values of type {rows.dtype}; numbers are needed")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused below by its place
        result: Array = np.ascontiguousarray(rows, np.float32)
    if (at := first_not_finite(result)) is not None:
        row, column = at
        reason = f"{rows[row, column]} is not a finite float32 number"
        raise DataError(f"{place.row(row)}, column {column}: {reason}; correct or remove it")
    return result


# --- splitting ----------------------------------------------------------------------------------------------


def split_rows(y: npt.ArrayLike, parts: Sequence[float | int], stratify: bool = False, seed: int = 0) -> tuple[Indices, ...]:
    """Split rows at random into a rest, which comes first, and parts of given sizes.

    Parameters
    ----------
    y : (n,) labels; unless `stratify`, only its length is used
    parts : sizes of the parts: a float in [0, 1) is a fraction of all n rows, rounded to the nearest whole
        number; an int is a number of rows. A part of size 0 is empty.
    stratify : of a part of size s each class c gets s n_c / n rows: rounded down, then one row more for the
        classes with the largest remainders (the lower class in a tie) until the sum is s
    seed : 0 ≤ seed < 2^64; the split is a function of n, the sizes and the seed, with `stratify` also of y

    Returns
    -------
    tuple of (rows,) int64: the rest, then the parts; each in the order of one shuffle of all rows, not sorted

    Raises
    ------
    ConfigError : a size that is neither fraction nor count, a fraction of no row, parts that leave no rest,
        a seed out of range, stratifying without classes
    DataError : a class with too few rows to be in the rest and in each part that is not empty

    Examples
    --------
    >>> train, validation, test = split_rows([0, 1] * 50, (0.2, 6), stratify=True)
    >>> len(train), len(validation), len(test), int((validation % 2).sum())
    (74, 20, 6, 10)
    """
    y = np.asarray(y)
    n = len(y)
    sizes = [_rows_of(part, n) for part in parts]
    if sum(sizes) >= n:
        raise ConfigError(f"parts of {sizes} rows leave nothing of {n} rows to train on; make them smaller")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed} is out of range; give a whole number from 0 to 2^64 - 1")
    order = generator(seed, "split").permutation(n).astype(np.int64)
    sizes.append(n - sum(sizes))
    number = _stratified(y[order], sizes) if stratify else np.repeat(np.arange(len(sizes)), sizes)
    *cut, rest = (order[number == part] for part in range(len(sizes)))
    return (rest, *cut)


def _rows_of(part: float | int, n: int) -> int:
    """Rows of a part that is given as a fraction or as a count."""
    if isinstance(part, int | np.integer) and not isinstance(part, bool) and part >= 0:
        return int(part)
    if isinstance(part, float | np.floating) and 0 <= part < 1:
        rows = round(float(part) * n)
        if rows == 0 and part > 0:
            raise ConfigError(f"a fraction of {part} of {n} rows is no row; give a larger fraction, or a count")
        return rows
    raise ConfigError(f"a part of {part!r} rows: give a fraction as a float in [0, 1), or a count as a whole number")


def _stratified(y: Array, sizes: list[int]) -> Indices:
    """Number of the part for each row; the last part is the rest."""
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ConfigError("stratified splitting needs class labels; leave it out for regression")
    names, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    table = np.array([_largest_remainder(counts, size) for size in sizes[:-1]], np.int64).reshape(-1, len(counts))
    table = np.vstack([table, counts - table.sum(axis=0)])
    short = table < (np.array(sizes) > 0)[:, None]
    if short.any():
        which = int(short.any(axis=0).argmax())
        raise DataError(
            f"class {names[which]} has {counts[which]} rows, too few for parts of {sizes} rows; "
            "add rows, change the sizes, or split without stratifying"
        )
    # Rows of one class, in shuffled order, fill the parts one after another.
    number = np.empty(len(y), np.int64)
    number[np.argsort(codes, kind="stable")] = np.repeat(np.tile(np.arange(len(sizes)), len(counts)), table.T.ravel())
    return number


def _largest_remainder(counts: Indices, size: int) -> Indices:
    """Whole numbers near size * counts / sum(counts) that sum to size."""
    whole, remainder = np.divmod(size * counts.astype(np.int64), counts.sum())
    first = np.argsort(-remainder, kind="stable")[: size - int(whole.sum())]
    whole[first] += 1
    return whole


# --- scaling ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scaling:
    """What is done to inputs: (x - shift) * factor per feature, exactly two float32 operations.

    Parameters
    ----------
    kind : a name in `SCALINGS`
    shift, factor : (features,) float32

    Raises
    ------
    DataError : unknown kind, or numbers that cannot be a scaling (from a damaged model file)
    """

    kind: str
    shift: npt.NDArray[np.float32]
    factor: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise DataError(unknown_name("scaling", self.kind, SCALINGS))
        for name, array in self.to_arrays().items():
            if array.dtype != np.float32 or array.shape != self.shift.shape or array.ndim != 1:
                given = f"{array.dtype} {array.shape}, shift has {self.shift.shape}"
                raise DataError(f"scaling {name} must be (features,) float32, but is {given}")
            if not np.isfinite(array).all():
                raise DataError(f"scaling {name} holds values that are not finite; fit it again")

    def apply(self, x: Array) -> npt.NDArray[np.float32]:
        """Scaled copy of x (n, features), float32. Raises DataError if the number of features differs.

        >>> scaling = fit_scaling("symmetric", np.array([[0, 9]], np.uint8))
        >>> scaling.apply(np.array([[0, 255]], np.uint8)).tolist()
        [[-1.0, 1.0]]
        """
        if x.ndim != 2 or x.shape[1] != len(self.shift):
            raise DataError(f"scaling was fitted on {len(self.shift)} features, but the data has shape {x.shape}")
        scaled = x.astype(np.float32)  # in place from here: (x.astype(float32) - shift) * factor
        scaled -= self.shift
        scaled *= self.factor
        return scaled

    def to_arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """The arrays by name; with `kind`, they make the scaling again: `Scaling(kind, **arrays)`."""
        return {"shift": self.shift, "factor": self.factor}


def fit_scaling(kind: str, x: Features) -> Scaling:
    """Fit a scaling on the training part.

    Parameters
    ----------
    kind : "none"; "unit": to [0, 1]; "symmetric": to [-1, 1]; "zscore": each feature to mean 0 and standard
        deviation 1 (of the population); "zscore-global": with one mean and one deviation for all features.
        For "unit" and "symmetric" pixels (uint8) range over 0..255, other features as they do in x.
        A feature that is constant in x gets factor 1, as in scikit-learn's StandardScaler.
    x : (n, features) uint8 or float, finite, n ≥ 1; an array, which may be memory-mapped, or a `rows.Subset`

    Returns
    -------
    Scaling, its numbers computed in float64 and then rounded to float32

    Raises
    ------
    ConfigError : unknown kind
    DataError : no rows, or not (n, features)

    Examples
    --------
    >>> scaling = fit_scaling("zscore", np.array([[1.0, 5.0], [3.0, 5.0]], np.float32))
    >>> scaling.shift.tolist(), scaling.factor.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    if kind not in SCALINGS:
        raise ConfigError(unknown_name("scaling", kind, SCALINGS))
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"a scaling needs rows (n, features) to be fitted on, not an array of shape {x.shape}")
    shift, spread = SCALINGS[kind](x)
    # Below the smallest normal float32, 1 / spread could overflow; such a feature is as good as constant.
    factor = 1 / np.where(spread >= np.finfo(np.float32).tiny, spread, 1)
    return Scaling(kind, shift.astype(np.float32), factor.astype(np.float32))


def _nothing(x: Features) -> tuple[Float64, Float64]:
    return np.zeros(x.shape[1]), np.ones(x.shape[1])


def _extremes(x: Features) -> tuple[Array, Array]:
    """Least and greatest value of each feature, in the type of x."""
    low = high = x[:1][0]
    for _, block in blocks(x):
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    return low, high


def _range(x: Features) -> tuple[Float64, Float64]:
    """Least and greatest value of each feature, or what a pixel can be."""
    if x.dtype == np.uint8:
        return np.zeros(x.shape[1]), np.full(x.shape[1], 255.0)
    low, high = _extremes(x)
    return low.astype(np.float64), high.astype(np.float64)


def _unit(x: Features) -> tuple[Float64, Float64]:
    low, high = _range(x)
    return low, high - low


def _symmetric(x: Features) -> tuple[Float64, Float64]:
    low, high = _range(x)
    return (low + high) / 2, (high - low) / 2


def _moments(x: Features) -> tuple[Float64, Float64, bool]:
    """Mean and population variance of each feature, two passes in float64, and whether all values are equal.

    In chunks of rows: no float copy of all pixels is made. The second pass loses nothing to cancellation.
    """
    step = max(1, min(CHUNK_ROWS, CHUNK_VALUES // x.shape[1]))
    chunks = [slice(start, start + step) for start in range(0, len(x), step)]
    total = sum((x[rows].sum(axis=0, dtype=np.float64) for rows in chunks), np.zeros(x.shape[1]))
    mean = total / len(x)
    squares = sum((_squares(x[rows] - mean) for rows in chunks), np.zeros(x.shape[1]))
    low, high = _extremes(x)  # exact, where rounding of the mean would leave a tiny variance
    return mean, np.where(low == high, 0, squares / len(x)), bool(low.min() == high.max())


def _squares(deviations: Float64) -> Float64:
    """Sum of squares of each feature; the deviations are overwritten."""
    deviations *= deviations
    return deviations.sum(axis=0)


def _zscore(x: Features) -> tuple[Float64, Float64]:
    mean, variance, _ = _moments(x)
    return mean, np.sqrt(variance)


def _zscore_global(x: Features) -> tuple[Float64, Float64]:
    """From the moments of each feature, all of which have the same number of rows."""
    mean, variance, constant = _moments(x)
    if constant:
        return mean, np.zeros_like(mean)
    deviation = math.sqrt((variance + np.square(mean - mean.mean())).mean())
    return np.full_like(mean, mean.mean()), np.full_like(mean, deviation)


# Each gives shift and spread (features,) float64; the factor is 1 / spread.
SCALINGS: dict[str, Callable[[Features], tuple[Float64, Float64]]] = {
    "none": _nothing,
    "unit": _unit,
    "symmetric": _symmetric,
    "zscore": _zscore,
    "zscore-global": _zscore_global,
}
