"""Fitting of scalings to the training set. See also `fastmlp.nn.scaling`, which applies them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastmlp.data.rows import Array, Features, Float64
from fastmlp.errors import DataError
from fastmlp.nn.blocks import blocks
from fastmlp.nn.names import canonical_name
from fastmlp.nn.scaling import Scaling

CHUNK_ROWS = 1024  # rows converted to float64 at a time to sum statistics,
CHUNK_VALUES = 1 << 22  # but at most this many values


def fit_scaling(kind: str, x: Features) -> Scaling:
    """Fit a scaling to the training set.

    Parameters
    ----------
    kind : "none"; "unit": to [0, 1]; "symmetric": to [-1, 1]; "zscore": each feature to mean 0 and standard
        deviation 1 (of the population); "zscore-global": with one mean and one deviation for all features.
        For "unit" and "symmetric", the range is 0..255 for pixels (uint8), else that of each feature in x.
        A feature that is constant in x gets factor 1, as in scikit-learn's StandardScaler.
    x : (n, features) uint8 or float, finite, n ≥ 1; an array, which may be memory-mapped, or a `rows.Subset`

    Returns
    -------
    Scaling, computed in float64 and then rounded to float32

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
    kind = canonical_name("scaling", kind, STATISTICS)
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"a scaling is fitted to rows (n, features), not to an array of shape {x.shape}")
    shift, scale = STATISTICS[kind](x)
    # Below the smallest normal float32, 1 / scale could overflow; such a feature is treated as constant.
    factor = 1 / np.where(scale >= np.finfo(np.float32).tiny, scale, 1)
    return Scaling(kind, shift.astype(np.float32), factor.astype(np.float32))


def _none(x: Features) -> tuple[Float64, Float64]:
    return np.zeros(x.shape[1]), np.ones(x.shape[1])


def _extremes(x: Features) -> tuple[Array, Array]:
    """Return minimum and maximum of each feature, in the dtype of x."""
    low = high = x[:1][0]
    for _, block in blocks(x):
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    return low, high


def _range(x: Features) -> tuple[Float64, Float64]:
    """Return minimum and maximum of each feature; 0 and 255 for pixels."""
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
    """Return mean and population variance of each feature, and whether all values of x are equal.

    Two passes in float64, without the cancellation of a single pass, in chunks of rows to avoid a float copy of all pixels.
    """
    step = max(1, min(CHUNK_ROWS, CHUNK_VALUES // x.shape[1]))
    chunks = [slice(start, start + step) for start in range(0, len(x), step)]
    total = sum((x[rows].sum(axis=0, dtype=np.float64) for rows in chunks), np.zeros(x.shape[1]))
    mean = total / len(x)
    squares = sum((_squares(x[rows] - mean) for rows in chunks), np.zeros(x.shape[1]))
    low, high = _extremes(x)  # exact: rounding of the mean would leave a tiny variance
    return mean, np.where(low == high, 0, squares / len(x)), bool(low.min() == high.max())


def _squares(deviations: Float64) -> Float64:
    """Return the sum of squares of each feature; overwrites the deviations."""
    deviations *= deviations
    return deviations.sum(axis=0)


def _zscore(x: Features) -> tuple[Float64, Float64]:
    mean, variance, _ = _moments(x)
    return mean, np.sqrt(variance)


def _zscore_global(x: Features) -> tuple[Float64, Float64]:
    """Combine the moments of the features, which all have the same number of rows."""
    mean, variance, constant = _moments(x)
    if constant:
        return mean, np.zeros_like(mean)
    deviation = math.sqrt((variance + np.square(mean - mean.mean())).mean())
    return np.full_like(mean, mean.mean()), np.full_like(mean, deviation)


# By kind, as in nn/scaling.py: functions that return shift and scale, (features,) float64; the factor is 1 / scale.
STATISTICS: dict[str, Callable[[Features], tuple[Float64, Float64]]] = {
    "none": _none,
    "unit": _unit,
    "symmetric": _symmetric,
    "zscore": _zscore,
    "zscore-global": _zscore_global,
}
