"""Building blocks of the CPU engine's kernels: packing, weight gradients, updates, input scaling, gradient clipping.

Each building block is a small compiled function, or a factory that returns one. programs.py combines them into kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastmlp.engines.cpu.codegen.compiler import compiled
from fastmlp.engines.cpu.codegen.intrinsics import array_at, call, smaller
from fastmlp.engines.cpu.codegen.simd import TILES, make_transpose
from fastmlp.engines.cpu.kernels.formulas import ZERO
from fastmlp.engines.cpu.kernels.gemm import FLOAT_BYTES
from fastmlp.engines.cpu.plan import CHUNK_ROWS, GROUP_COLUMNS

ONE = np.float32(1)

# Rows of the array `store`
PARAMETERS, SLOT_M, SLOT_V, GRADIENT = 0, 1, 2, 3

# Number of batch rows over which a gradient is summed at once, by vector lanes; measured, see benchmarks/NOTES.md. On AVX2,
# 128 rows of 2 vectors of dz are 8 KiB, and stay in the L1 cache together with the columns of x. On AVX-512, the L2 cache is
# large and fast enough for more rows.
BATCH_DEPTHS = {16: 256, 8: 128, 4: 128}


# ------------------------------------------------------------------------------------------------ building blocks


def scratch_size() -> int:
    """Return the number of floats of scratch memory that each thread needs for the partial sums of a gradient."""
    return GROUP_COLUMNS * CHUNK_ROWS


def make_pack(lanes: int) -> Any:
    """Return pack(plan, arena, packed, width, panel, panels, first, rows, scale), which scales dz and copies it to `packed`.

    It processes the panels [panel, panel + panels) of the rows [first, first + rows), while they are still in the cache;
    `panel` must be even.
    """
    pair = TILES[lanes].vectors
    two = pair * lanes

    @compiled
    def pack(plan, arena, packed, width, panel, panels, first, rows, scale):
        size = plan.widths[width]
        for q in range(panel, panel + panels, pair):
            columns = smaller(pair, panel + panels - q) * lanes
            pair_at = size.packed_at + q // pair * plan.rows * two
            for r in range(first, first + rows):
                source, to = size.dz_at + r * size.ld + q * lanes, pair_at + r * two
                dz = array_at(arena.ctypes.data + source * FLOAT_BYTES, columns, np.float32)
                copy = array_at(packed.ctypes.data + to * FLOAT_BYTES, columns, np.float32)
                if scale != ONE:
                    for j in range(columns):
                        dz[j] *= scale
                for j in range(columns):
                    copy[j] = dz[j]

    return pack


@compiled
def add_rows(matrix, rows, ld, n, sums):
    """Write the sum of the rows of a matrix to `sums`.

    Rows are added in order, in groups of four. If rows were added one by one, each addition would have to wait for the one
    before. `matrix` and `sums` are addresses, and n is the number of columns.
    """
    total, fours, row = array_at(sums, n, np.float32), rows // 4, ld * FLOAT_BYTES
    for j in range(n):
        total[j] = ZERO
    for r in range(0, 4 * fours, 4):
        a, b = array_at(matrix + r * row, n, np.float32), array_at(matrix + (r + 1) * row, n, np.float32)
        c, d = array_at(matrix + (r + 2) * row, n, np.float32), array_at(matrix + (r + 3) * row, n, np.float32)
        for j in range(n):
            total[j] += (a[j] + b[j]) + (c[j] + d[j])
    for r in range(4 * fours, rows):
        a = array_at(matrix + r * row, n, np.float32)
        for j in range(n):
            total[j] += a[j]


def make_gradient(lanes: int) -> Any:
    """Return gradient(table, plan, store, x, x_rows, packed, own, scalars, task, rows), which computes dw = x' dz.

    x' is x transposed, and the sum is over `rows` rows. The task is a rectangle of weights. The task at the top of the matrix
    also computes the gradient db of the biases, the sum of the rows of dz. x and x_rows locate the inputs of the layer, see
    `programs.inputs_at`; `own` is the scratch memory of the thread.

    If table.in_registers is True, each tile also updates its weights. Otherwise the gradient, including penalties, is written
    to the row GRADIENT of `store`. The gradient of the biases is always written to that row.
    """
    pair, deepest = TILES[lanes].vectors, BATCH_DEPTHS[lanes]

    @compiled
    def gradient(table, plan, store, x, x_rows, packed, own, scalars, task, rows):
        layer, panel, panels = task.layer, task.panel, task.panels
        size, a = plan.layers[layer], x + task.first * FLOAT_BYTES
        dz_pair = plan.rows * pair * lanes
        dz_at = plan.widths[layer + 1].packed_at + panel // pair * dz_pair
        b = packed.ctypes.data + dz_at * FLOAT_BYTES
        start = size.w_at + (panel * size.fan_in_p + task.first) * lanes
        panel_size, slot = size.fan_in_p * lanes, store.shape[1]
        p = store.ctypes.data + ((PARAMETERS if table.in_registers else GRADIENT) * slot + start) * FLOAT_BYTES
        for r in range(0, rows, deepest):
            depth = smaller(deepest, rows - r)
            call(
                table.gradient,
                (
                    a, x_rows, b, dz_pair, panels, own.ctypes.data, CHUNK_ROWS * lanes, r, depth,
                    p, panel_size, task.rows, slot, scalars.ctypes.data, np.int64(r + depth == rows),
                ),
            )  # fmt: skip
        if table.penalise:
            for q in range(panels):
                w = store.ctypes.data + (start + q * panel_size) * FLOAT_BYTES
                g = w + GRADIENT * slot * FLOAT_BYTES
                call(table.penalise, (w, g, task.rows * lanes, scalars.ctypes.data))
        if task.first == 0:
            for q in range(0, panels, pair):
                columns, b_at = smaller(pair, panels - q) * lanes, size.b_at + (panel + q) * lanes
                sums = store.ctypes.data + (GRADIENT * slot + b_at) * FLOAT_BYTES
                add_rows(b + q // pair * dz_pair * FLOAT_BYTES, rows, pair * lanes, columns, sums)

    return gradient


@compiled
def update(table, store, at, size, scalars):
    """Apply the update rule to the parameters [at, at + size), with their gradients from the row GRADIENT of `store`."""
    slot = store.shape[1] * FLOAT_BYTES
    p = store.ctypes.data + at * FLOAT_BYTES
    call(table.update, (p, p + SLOT_M * slot, p + SLOT_V * slot, p + GRADIENT * slot, size, scalars.ctypes.data))


def make_finish(lanes: int) -> Any:
    """Return finish(table, plan, store, transposed, scalars, task), which completes the update of a rectangle of weights.

    It updates the biases, and also the weights unless `gradient` has already updated them in registers. It then copies the
    weights to the transposed copy, from which the gradient of the layer input is computed.
    """
    transpose = make_transpose(lanes)

    @compiled
    def finish(table, plan, store, transposed, scalars, task):
        size = plan.layers[task.layer]
        if not table.in_registers:
            for panel in range(task.panel, task.panel + task.panels):
                update(table, store, size.w_at + (panel * size.fan_in_p + task.first) * lanes, task.rows * lanes, scalars[0])
        if task.layer > 0:
            for k in range(0, task.rows, lanes):
                for panel in range(task.panel, task.panel + task.panels):
                    source = size.w_at + (panel * size.fan_in_p + task.first + k) * lanes
                    to = size.t_at + ((task.first + k) // lanes * size.fan_out_p + panel * lanes) * lanes
                    transpose(store.ctypes.data + source * FLOAT_BYTES, lanes, transposed.ctypes.data + to * FLOAT_BYTES, lanes)
        if task.first == 0:
            update(table, store, size.b_at + task.panel * lanes, task.panels * lanes, scalars[1])

    return finish


@compiled
def gather(table, batches, start, first, rows, width, arena):
    """Scale the inputs of some rows and write them to the arena.

    The rows are [first, first + rows) of the batch that starts at indices[start].
    """
    features, shift, factor = len(batches.shift), batches.shift.ctypes.data, batches.factor.ctypes.data
    for r in range(first, first + rows):
        to = arena.ctypes.data + (width.y_at + r * width.ld) * FLOAT_BYTES
        call(table.scale, (batches.x + batches.x_at[start + r], shift, factor, to, features))


@compiled
def clip(gradient, largest):
    """Scale the gradient down to Euclidean norm `largest` if its norm is larger. The padding is zero, so it has no effect."""
    total = 0.0
    for i in range(len(gradient)):
        total += np.float64(gradient[i]) * np.float64(gradient[i])
    norm = math.sqrt(total)
    if norm > largest:
        scale = np.float32(largest / norm)
        for i in range(len(gradient)):
            gradient[i] *= scale
