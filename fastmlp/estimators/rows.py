"""Conversion of the rows that users pass to the estimators into the rows that engines need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse

from fastmlp.data.rows import Array, Indices
from fastmlp.engines.base import Engine
from fastmlp.nn.blocks import BLOCK_BYTES, ROWS_AT_ONCE, inference_blocks
from fastmlp.nn.network import FloatArray


class FitRows(NamedTuple):
    """Checked training data. An engine needs x and y in the form that `stochastic.cast` returns.

    x : (n, features) float32 or float64 array, or SciPy sparse matrix in CSR or CSC format
    y : (n,) int32 class numbers, or (n, outputs) float targets
    weights : (n,) float64 nonnegative weights; None for equal weights
    """

    x: Any
    y: Array
    weights: FloatArray | None


def cast_rows(x: Any, dtype: npt.DTypeLike) -> Any:
    """Return x in the dtype of the engine, as a C-contiguous array or a CSR matrix.

    Values that are too large for this dtype become infinite.
    """
    with np.errstate(over="ignore"):
        return x.tocsr().astype(dtype) if issparse(x) else np.ascontiguousarray(x, dtype)


def select_rows(rows: FitRows, indices: Indices) -> FitRows:
    """Return the rows with these indices, with their targets and weights."""
    return FitRows(rows.x[indices], rows.y[indices], None if rows.weights is None else rows.weights[indices])


def dense_rows(x: Any, rows: Indices | slice) -> Array:
    """Return the selected rows of x, which may be sparse, as a dense array."""
    return x[rows].toarray() if issparse(x) else x[rows]


def dense_block_rows(x: Any) -> int:
    """Return the number of rows of a sparse matrix that are converted to a dense array at a time, which is at least 1."""
    return max(1, min(BLOCK_BYTES // max(1, x.dtype.itemsize * x.shape[1]), ROWS_AT_ONCE))


def forward_rows(engine: Engine, x: Any) -> FloatArray:
    """Compute `engine.forward` for all rows of x, dense or sparse, in blocks. Return the pre-activations, (n, outputs)."""
    if x.shape[0] == 1 and not issparse(x):  # skips the overhead of the blocks
        return engine.forward(x)
    return np.concatenate([engine.forward(block) for block in _blocks(x)])


def _blocks(x: Any) -> Iterator[Array]:
    if not issparse(x):
        yield from (block for _, block in inference_blocks(x, 1))  # the result has the outputs of all rows in any case
        return
    step = dense_block_rows(x)
    for start in range(0, max(x.shape[0], 1), step):
        yield dense_rows(x, slice(start, start + step))


def merge_equal_rows(rows: FitRows) -> FitRows:
    """Merge rows that have equal features and targets into one row with the sum of their weights. The result is sorted.

    Full-batch training on the result minimizes the same objective. The trained parameters are bitwise identical for any order
    of the given rows, and also if a row with weight k is replaced by k equal rows, because all sums are computed from the same
    numbers in the same order. Sparse rows are converted to dense rows, which an engine needs for a mini-batch.
    """
    if issparse(rows.x):
        rows = rows._replace(x=rows.x.toarray())
    y = rows.y.reshape(len(rows.y), -1)
    table = np.hstack([rows.x, y.astype(rows.x.dtype)])
    keys = np.ascontiguousarray(table).view(np.dtype((np.void, table.itemsize * table.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    if rows.weights is None and len(first) == len(keys):
        return FitRows(rows.x[first], rows.y[first], None)
    weights = np.bincount(inverse, weights=rows.weights, minlength=len(first)).astype(np.float64)
    return FitRows(rows.x[first], rows.y[first], weights)
