"""Where everything lies in the memory of the CPU engine: padded sizes, panels, buffers. Private to the engine.

Every width is padded with zeros to a multiple of a vector and of a tile's rows, so that tiles never have edges; what is
padded stays exactly zero. Weights [K, N] live in panels of one vector's width:

    store[w_at + (n // lanes) K_p lanes + k lanes + n % lanes] = w[k, n]

and, for every layer but the first, once more transposed, in panels along k, for the gradient of the layer's input. Optimiser
slots and gradients are further rows of `store`, laid out alike. Rows of a batch are row-major with a leading dimension of an
odd number of cache lines (and a part of one, where vectors are shorter than a line), so that a column of tiles does not fall
into few sets of the cache.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.network import FloatArray, Network
from fastmlp.philox import drop_threshold

# A micro-tile: 8 x 2 accumulators leave registers for B and for a broadcast, and hide the latency of 8 to 10 FMAs.
TILE_ROWS = 8
TILE_VECTORS = 2
CHUNK_ROWS = 64  # rows of w in one gradient task: a multiple of TILE_ROWS and of every vector width
CACHE_LINE = 16  # floats

Ints = npt.NDArray[np.int64]


class Plan(NamedTuple):
    """Sizes and offsets in elements; index l is a layer of weights, or for `*_at` of rows the width number l (0 = input).

    fan_in, fan_out : true sizes
    fan_in_p, fan_out_p : padded sizes
    w_at, b_at : weights and biases in a row of `store`; t_at : transposed weights, in `transposed`
    y_at : inputs of layer l (l = 0: scaled data; last: output pre-activations), in `arena`
    s_at, dz_at : slopes and gradients of width l, in `arena`
    ld : leading dimension of width l
    code, parameter : activation of hidden layer l, as an index into the sorted names in use
    threshold, keep_scale : dropout of hidden layer l; threshold 0 drops nothing
    tasks : (n, 5) the gradient tasks: layer, first panel, panels, first row of w, rows of w
    """

    fan_in: Ints
    fan_out: Ints
    fan_in_p: Ints
    fan_out_p: Ints
    w_at: Ints
    b_at: Ints
    t_at: Ints
    y_at: Ints
    s_at: Ints
    dz_at: Ints
    ld: Ints
    code: Ints
    parameter: npt.NDArray[np.float32]
    threshold: npt.NDArray[np.uint64]
    keep_scale: npt.NDArray[np.float32]
    tasks: Ints


class Batches(NamedTuple):
    """What a run of steps trains on.

    x (n, features) uint8 or float32; labels (n,) int32 and targets (n, outputs) float32, one of them empty
    order (rows,) int64; row_scale (rows,) float32: share of each row in its batch's mean
    shift, factor (features,) float32: x is scaled to (x - shift) factor
    scalars (steps, len(SCALARS)) float32: `Optimizer.scalars`
    batch_size; rows_per_task; step: updates made before; seed
    l1, l2, hot, cold, clip_norm: penalties; target of the row's class and of the others; largest gradient norm
    """

    x: Any
    labels: Any
    targets: Any
    order: Any
    row_scale: Any
    shift: Any
    factor: Any
    scalars: Any
    batch_size: int
    rows_per_task: int
    step: int
    seed: Any
    l1: Any
    l2: Any
    hot: Any
    cold: Any
    clip_norm: Any


class Layout(NamedTuple):
    """A plan and the sizes of the buffers it speaks of, in elements."""

    plan: Plan
    store: int
    transposed: int
    arena: int


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def activation_names(network: Network) -> tuple[str, ...]:
    """The activations in use, sorted: what `Plan.code` counts in."""
    return tuple(sorted({layer.activation for layer in network.layers[:-1]}))


def offsets(sizes: list[int]) -> tuple[Ints, int]:
    """Start of each piece when pieces follow each other, and the end."""
    ends = np.cumsum([0, *sizes])
    return ends[:-1].astype(np.int64), int(ends[-1])


def make_layout(network: Network, lanes: int, rows: int) -> Layout:
    """Layout for batches of up to `rows` rows, on vectors of `lanes` floats."""
    unit = max(lanes, TILE_ROWS)
    widths = [round_up(size, unit) for size in network.sizes]
    lds = [width + CACHE_LINE if (width // CACHE_LINE) % 2 == 0 else width for width in widths]
    layers = network.layers
    pairs = list(pairwise(widths))
    w_at, end = offsets([k * n + n for k, n in pairs])
    t_at, transposed = offsets([k * n if index else 0 for index, (k, n) in enumerate(pairs)])
    buffers, arena = offsets([rows * ld for ld in lds] * 3)
    y_at, s_at, dz_at = buffers.reshape(3, -1)
    names = activation_names(network)
    plan = Plan(
        fan_in=ints(layer.fan_in for layer in layers),
        fan_out=ints(layer.fan_out for layer in layers),
        fan_in_p=ints(widths[:-1]),
        fan_out_p=ints(widths[1:]),
        w_at=w_at,
        b_at=w_at + ints(k * n for k, n in pairs),
        t_at=t_at,
        y_at=y_at,
        s_at=s_at,
        dz_at=dz_at,
        ld=ints(lds),
        code=ints(names.index(layer.activation) for layer in layers[:-1]),
        parameter=np.array([layer.parameter for layer in layers[:-1]], np.float32),
        threshold=np.array([drop_threshold(layer.dropout) for layer in layers[:-1]], np.uint64),
        keep_scale=np.array([1 / (1 - layer.dropout) for layer in layers[:-1]], np.float32),
        tasks=gradient_tasks(pairs, lanes),
    )
    return Layout(plan, end, transposed, arena)


def ints(values: Any) -> Ints:
    return np.array(list(values), np.int64)


def gradient_tasks(pairs: list[tuple[int, int]], lanes: int) -> Ints:
    """Rectangles of the weight matrices, a pair of panels wide and CHUNK_ROWS high; see `Plan.tasks`.

    Tasks that read the same columns of x follow each other, so that these stay in the second cache.
    """
    tasks = [
        (layer, panel, min(TILE_VECTORS, n // lanes - panel), first, min(CHUNK_ROWS, k - first))
        for layer, (k, n) in enumerate(pairs)
        for first in range(0, k, CHUNK_ROWS)
        for panel in range(0, n // lanes, TILE_VECTORS)
    ]
    return np.array(tasks, np.int64)


def pack(network: Network, plan: Plan, lanes: int, vector: FloatArray, row: npt.NDArray[np.float32]) -> None:
    """Write a flat parameter vector into a row of `store`; padding becomes zero."""
    row[:] = 0
    for layer, (w, b) in enumerate(network.views(vector)):
        w_view, b_view = packed_views(plan, lanes, row, layer)
        k, n = w.shape
        padded = np.zeros((plan.fan_in_p[layer], plan.fan_out_p[layer]), np.float32)
        padded[:k, :n] = w
        w_view[:] = padded.reshape(len(padded), -1, lanes).transpose(1, 0, 2)
        b_view[:n] = b


def unpack(network: Network, plan: Plan, lanes: int, row: npt.NDArray[np.float32]) -> FloatArray:
    """The flat parameter vector of a row of `store`."""
    vector = np.empty(network.parameters, np.float32)
    for layer, (w, b) in enumerate(network.views(vector)):
        w_view, b_view = packed_views(plan, lanes, row, layer)
        k, n = w.shape
        w[:] = w_view.transpose(1, 0, 2).reshape(w_view.shape[1], -1)[:k, :n]
        b[:] = b_view[:n]
    return vector


def pack_transposed(network: Network, plan: Plan, lanes: int, vector: FloatArray, out: npt.NDArray[np.float32]) -> None:
    """Write the transposed panels of every layer but the first."""
    out[:] = 0
    for layer, (w, _) in enumerate(network.views(vector)):
        if layer:
            k_p, n_p = plan.fan_in_p[layer], plan.fan_out_p[layer]
            padded = np.zeros((n_p, k_p), np.float32)
            padded[: w.shape[1], : w.shape[0]] = w.T
            at = plan.t_at[layer]
            out[at : at + k_p * n_p] = padded.reshape(n_p, -1, lanes).transpose(1, 0, 2).ravel()


def packed_views(plan: Plan, lanes: int, row: npt.NDArray[np.float32], layer: int) -> tuple[Any, Any]:
    """Panels (panels, K_p, lanes) and bias (N_p,) of a layer in a row of `store`."""
    k_p, n_p = int(plan.fan_in_p[layer]), int(plan.fan_out_p[layer])
    w_at, b_at = int(plan.w_at[layer]), int(plan.b_at[layer])
    return row[w_at:b_at].reshape(n_p // lanes, k_p, lanes), row[b_at : b_at + n_p]
