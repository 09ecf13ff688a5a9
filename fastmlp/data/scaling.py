"""Fit the scaling of the inputs to the training set. See also `fastmlp.nn.scaling`, which applies it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastmlp.data.convert import as_array
from fastmlp.data.rows import Array, Features, Float64, Subset
from fastmlp.errors import DataError
from fastmlp.nn.blocks import blocks
from fastmlp.nn.names import canonical_name
from fastmlp.nn.scaling import Scaling

CHUNK_ROWS = 1024  # maximum number of rows converted to float64 at a time when statistics are computed
CHUNK_VALUES = 1 << 22  # maximum number of values converted to float64 at a time


def fit_scaling(kind: str, x: Features) -> Scaling:
    """Fit a scaling to the training set.

    Parameters
    ----------
    kind : "none" leaves x unchanged; "unit" maps the range of x to [0, 1]; "symmetric" maps it to [-1, 1]; "zscore" gives
        each feature mean 0 and population standard deviation 1; "zscore-global" does this with one mean and one standard
        deviation for all features. For "unit" and "symmetric", the range is 0 to 255 if x is uint8, and otherwise the
        minimum and maximum of each feature. A feature that is constant in x gets factor 1, as in scikit-learn's
        StandardScaler.
    x : (n, features) uint8 or finite float values, n ≥ 1; an array, which may be memory-mapped, or a `rows.Subset`

    Returns
    -------
    Scaling, computed in float64 and then rounded to float32

    Raises
    ------
    ConfigError : unknown `kind`
    DataError : x is empty or does not have two dimensions

    Examples
    --------
    >>> scaling = fit_scaling("zscore", np.array([[1.0, 5.0], [3.0, 5.0]], np.float32))
    >>> scaling.shift.tolist(), scaling.factor.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    kind = canonical_name("scaling", kind, STATISTICS)
    x = x if isinstance(x, Subset) else as_array(x, "x")
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"a scaling is fitted to rows of shape (n, features), not to an array of shape {x.shape}")
    shift, scale = STATISTICS[kind](x)
    # If scale is below the smallest normal float32 number, 1 / scale could overflow; the feature is then treated as constant.
    factor = 1 / np.where(scale >= np.finfo(np.float32).tiny, scale, 1)
    return Scaling(kind, shift.astype(np.float32), factor.astype(np.float32))


def _none(x: Features) -> tuple[Float64, Float64]:
    return np.zeros(x.shape[1]), np.ones(x.shape[1])


def _extremes(x: Features) -> tuple[Array, Array]:
    """Return the minimum and the maximum of each feature, in the dtype of x."""
    low = high = x[:1][0]
    for _, block in blocks(x):
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    return low, high


def _range(x: Features) -> tuple[Float64, Float64]:
    """Return the minimum and the maximum of each feature, or 0 and 255 if x is uint8."""
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
    """Return the mean and the population variance of each feature, and whether all values of x are equal.

    Two passes over x in float64 avoid the cancellation errors of a single pass. Rows are processed in chunks to avoid a float
    copy of the whole array.
    """
    step = max(1, min(CHUNK_ROWS, CHUNK_VALUES // x.shape[1]))
    chunks = [slice(start, start + step) for start in range(0, len(x), step)]
    total = sum((x[rows].sum(axis=0, dtype=np.float64) for rows in chunks), np.zeros(x.shape[1]))
    mean = total / len(x)
    squares = sum((_squares(x[rows] - mean) for rows in chunks), np.zeros(x.shape[1]))
    low, high = _extremes(x)  # the variance of a constant feature could be slightly above 0 due to rounding
    return mean, np.where(low == high, 0, squares / len(x)), bool(low.min() == high.max())


def _squares(deviations: Float64) -> Float64:
    """Return the sum of squares of each feature; the deviations are overwritten."""
    deviations *= deviations
    return deviations.sum(axis=0)


def _zscore(x: Features) -> tuple[Float64, Float64]:
    mean, variance, _ = _moments(x)
    return mean, np.sqrt(variance)


def _zscore_global(x: Features) -> tuple[Float64, Float64]:
    """Combine the means and variances of the features into one mean and one standard deviation for all features."""
    mean, variance, constant = _moments(x)
    if constant:
        return mean, np.zeros_like(mean)
    deviation = math.sqrt((variance + np.square(mean - mean.mean())).mean())
    return np.full_like(mean, mean.mean()), np.full_like(mean, deviation)


# For each kind of scaling, a function that returns shift and scale as float64 arrays (features,); the factor is 1 / scale.
STATISTICS: dict[str, Callable[[Features], tuple[Float64, Float64]]] = {
    "none": _none,
    "unit": _unit,
    "symmetric": _symmetric,
    "zscore": _zscore,
    "zscore-global": _zscore_global,
}
