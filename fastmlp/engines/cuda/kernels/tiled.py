"""The phases of a training step on NVIDIA GPUs for large mini-batches, with tiled matrix products (tiles.py).

Each phase is a separate launch. For large mini-batches there are enough tiles to keep all multiprocessors busy, and a launch
takes less time than the computation of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmlp.engines.cuda.kernels.layout import BIAS, COLUMNS, GRADIENT, IN_WIDTH, INPUT, OUT_WIDTH, SLOPES, WEIGHTS
from fastmlp.engines.cuda.kernels.passes import make_fetch, make_read4, make_store_activation
from fastmlp.engines.cuda.kernels.tensor_cores import make_warp_sums
from fastmlp.engines.cuda.kernels.tiles import Arithmetic, Tile, make_product, make_sums


def make_arithmetic(dev: Any, tile: Tile, precision: str) -> Arithmetic:
    """Return the `Arithmetic` of matrix products for a precision of `base.PRECISIONS`."""
    return make_sums(dev, tile) if precision == "float32" else make_warp_sums(dev, tile, precision)


def make_get(dev: Any) -> Any:
    """Return get(to, o, matrix, row, column), which reads four consecutive elements of a row, or zeros outside the matrix.

    matrix : (array, first, width, rows), where array[first] is the first element of the matrix
    """
    read4, zero = make_read4(dev), dev.float32(0)

    @dev.device
    def get(to, o, matrix, row, column):
        array, first, width, rows = matrix
        if row < rows and column < width:
            read4(to, o, array, first + row * width + column)
        else:
            to[o] = to[o + 1] = to[o + 2] = to[o + 3] = zero

    return get


def make_get_data(dev: Any, pixels: bool) -> Any:
    """Return get(to, o, data, row, column), which reads four consecutive scaled features of a row of the mini-batch.

    data : (x, shift, factor, indices, start, width, rows). Outside the mini-batch, `get` reads zeros.
    """
    fetch, load, int64, zero = make_fetch(dev, pixels), dev.load, dev.int64, dev.float32(0)

    @dev.device
    def get(to, o, data, row, column):
        x, shift, factor, indices, start, width, rows = data
        if row < rows and column < width:
            fetch(to, o, x, int64(load(indices, start + row)) * width, shift, factor, column)
        else:
            to[o] = to[o + 1] = to[o + 2] = to[o + 3] = zero

    return get


def with_ones(dev: Any, get: Any) -> Any:
    """Return a version of `get` that appends a feature with the value 1 to each row.

    The gradient of the weights of this feature is the gradient of the bias, which follows the weights in memory.
    """
    one = dev.float32(1)

    @dev.device
    def get_with_ones(to, o, factor, row, column):
        get(to, o, factor, row, column)
        if column == factor[-2] and row < factor[-1]:  # width and rows
            to[o] = one

    return get_with_ones


def make_walk(dev: Any, tile: Tile, product: Any) -> Any:
    """Return walk(a, b, rows, columns, terms, shared, to), which computes a whole matrix product.

    It is a grid-stride loop, in which each block computes one tile at a time.
    """
    cuda, divide, remainder, high, wide = dev.cuda, dev.divide, dev.remainder, tile.rows, tile.columns

    @dev.device
    def walk(a, b, rows, columns, terms, shared, to):
        across = divide(columns + wide - 1, wide)
        for t in range(cuda.blockIdx.x, divide(rows + high - 1, high) * across, cuda.gridDim.x):
            product(a, b, divide(t, across) * high, remainder(t, across) * wide, terms, shared, to)

    return walk


def make_tiled_forward(dev: Any, tile: Tile, precision: str, pixels: bool, names: Sequence[str], drops: bool) -> Any:
    """Return the tiled version of `forward`, see `warps.make_forward`."""
    load, store_activation, get = dev.load, make_store_activation(dev, names, drops), make_get(dev)
    arithmetic = make_arithmetic(dev, tile, precision)

    @dev.device
    def put(to, m, n, z):
        layer, last, step, seed, rows, tables, parameters, arena = to
        row = layer * COLUMNS
        if m < rows and n < load(tables[0], row + OUT_WIDTH):
            store_activation(
                z + load(parameters, load(tables[0], row + BIAS) + n), layer, last, m, n, step, seed, tables, arena
            )

    first_walk, walk = (
        make_walk(dev, tile, make_product(dev, tile, arithmetic, (True, rows_of), (False, get), put))
        for rows_of in (make_get_data(dev, pixels), get)
    )

    @dev.device
    def forward(layer, last, tables, inputs, indices, start, rows, step, seed, parameters, arena, shared):
        table, row = tables[0], layer * COLUMNS
        height, width = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH)
        weights = (parameters, load(table, row + WEIGHTS), width, height)
        to = (layer, last, step, seed, rows, tables, parameters, arena)
        if layer == 0:
            data = (inputs[0], inputs[1], inputs[2], indices, start, height, rows)
            first_walk(data, weights, rows, width, height, shared, to)
        else:
            walk((arena, load(table, row + INPUT), height, rows), weights, rows, width, height, shared, to)

    return forward


def make_tiled_delta(dev: Any, tile: Tile, precision: str) -> Any:
    """Return the tiled version of `delta`, see `warps.make_delta`."""
    load, store, get, arithmetic = dev.load, dev.store, make_get(dev), make_arithmetic(dev, tile, precision)

    @dev.device
    def put(to, m, k, value):
        arena, gradient, slopes, width, rows = to
        if m < rows and k < width:
            store(arena, gradient + m * width + k, value * load(arena, slopes + m * width + k))

    walk = make_walk(dev, tile, make_product(dev, tile, arithmetic, (True, get), (True, get), put))

    @dev.device
    def delta(layer, table, rows, parameters, arena, shared):
        row, below = layer * COLUMNS, (layer - 1) * COLUMNS
        height, width = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH)
        dz, weights = (arena, load(table, row + GRADIENT), width, rows), (parameters, load(table, row + WEIGHTS), width, height)
        to = (arena, load(table, below + GRADIENT), load(table, below + SLOPES), height, rows)
        walk(dz, weights, rows, height, width, shared, to)

    return delta


def make_tiled_gradient(dev: Any, tile: Tile, precision: str, pixels: bool, apply_gradient: Any) -> Any:
    """Return the tiled version of `gradient`, see `warps.make_gradient`; it ignores `turn`."""
    load, get, arithmetic = dev.load, make_get(dev), make_arithmetic(dev, tile, precision)

    @dev.device
    def put(to, k, n, g):
        weights, height, width, s, parameters, slots, gradients = to
        if k <= height and n < width:
            apply_gradient(weights + k * width + n, g, s[0] if k < height else s[1], parameters, slots, gradients)

    first_walk, walk = (
        make_walk(dev, tile, make_product(dev, tile, arithmetic, (False, with_ones(dev, rows_of)), (False, get), put))
        for rows_of in (make_get_data(dev, pixels), get)
    )

    @dev.device
    def gradient(layer, turn, table, inputs, indices, start, rows, s, parameters, slots, gradients, arena, shared):
        row = layer * COLUMNS
        height, width = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH)
        dz, to = (
            (arena, load(table, row + GRADIENT), width, rows),
            (load(table, row + WEIGHTS), height, width, s, parameters, slots, gradients),
        )
        if layer == 0:
            data = (inputs[0], inputs[1], inputs[2], indices, start, height, rows)
            first_walk(data, dz, height + 1, width, rows, shared, to)
        else:
            walk((arena, load(table, row + INPUT), height, rows), dz, height + 1, width, rows, shared, to)

    return gradient
