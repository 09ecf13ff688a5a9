"""Rows of scikit-learn's inputs as the engines need them: dense or sparse, weighted, merged, in blocks."""

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
    """Checked rows of `fit`.

    x : (n, features) float array, C-contiguous, or a SciPy sparse matrix in CSR format; in the dtype of the engine
    y : (n,) int32 classes, or (n, outputs) float targets in the dtype of the engine
    weights : (n,) float64, not negative; None for equal weights
    """

    x: Any
    y: Array
    weights: FloatArray | None


def cast_rows(x: Any, dtype: npt.DTypeLike) -> Any:
    """Return rows in the dtype of the engine, C-contiguous or CSR; a value that is too large for it becomes infinity."""
    with np.errstate(over="ignore"):
        return x.tocsr().astype(dtype) if issparse(x) else np.ascontiguousarray(x, dtype)


def select_rows(rows: FitRows, indices: Indices) -> FitRows:
    """Return some of the rows, with their targets and weights."""
    return FitRows(rows.x[indices], rows.y[indices], None if rows.weights is None else rows.weights[indices])


def dense_rows(x: Any, rows: Indices | slice) -> Array:
    """Return the rows `rows` of x as a dense array."""
    return x[rows].toarray() if issparse(x) else x[rows]


def dense_block_rows(x: Any) -> int:
    """Number of rows of a sparse matrix that are converted to a dense array at a time, at least 1."""
    return max(1, min(BLOCK_BYTES // max(1, x.dtype.itemsize * x.shape[1]), ROWS_AT_ONCE))


def forward_rows(engine: Engine, x: Any) -> FloatArray:
    """Return `engine.forward` of all rows of x, dense or sparse, in blocks."""
    if x.shape[0] == 1 and not issparse(x):  # the blocks take as long as the row
        return engine.forward(x)
    return np.concatenate([engine.forward(block) for block in _blocks(x)])


def _blocks(x: Any) -> Iterator[Array]:
    if not issparse(x):
        yield from (block for _, block in inference_blocks(x))
        return
    step = dense_block_rows(x)
    for start in range(0, max(x.shape[0], 1), step):
        yield dense_rows(x, slice(start, start + step))


def merge_equal_rows(rows: FitRows) -> FitRows:
    """Return the distinct rows, sorted, each with the sum of the weights of the rows that are equal to it.

    Full-batch training on these rows minimizes the same objective. It gives the same bits for any order of the rows, and for a
    row that is repeated k times or has the weight k, because sums then run over the same numbers in the same order. Sparse rows
    become dense, as the engine needs those of a mini-batch.
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
