"""The phases of a training step on NVIDIA GPUs for small mini-batches.

Small matrix products are limited by latency, not by arithmetic. So several warps, called a team, compute a tile of 8 x 4 sums
together, and each warp computes a part of the terms of each sum (split-K). The order of summation does not depend on the number
of blocks, so results are bitwise identical for any grid size. Functions of passes.py process the sums.

Notation: x, y, z and dz as in nn/network.py; `table` and `arena` as in layout.py; t is the index of a thread in its block, and
lane and warp are derived from it; m is a row of the mini-batch, n is a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmlp.engines.cuda.kernels.layout import BIAS, COLUMNS, GRADIENT, IN_WIDTH, INPUT, OUT_WIDTH, SLOPES, WEIGHTS
from fastmlp.engines.cuda.kernels.passes import make_fetch, make_read4, make_store_activation

HIGH, WIDE = 8, 4  # rows and columns of a tile; with 8 columns, registers spill in some kernels
SUMS, FACTORS = HIGH * WIDE, 4 * WIDE  # sums per tile; elements of the right operand per chunk of four terms


def make_reduce(dev: Any) -> Any:
    """Return reduce(sums, lane), which adds each of 32 sums over the lanes of a warp.

    Afterwards sums[0], … of lane i are the totals of the sums from number 32 i / lanes on. In each round a lane keeps half of
    its sums and sends the other half to another lane, which takes 31 shuffles instead of 160.
    """
    shuffle = dev.cuda.shfl_xor_sync

    def level(distance: int, half: int, rest: Any) -> Any:
        @dev.device
        def halve(sums, lane):
            upper = lane & distance
            for i in range(half):
                low, high = (
                    sums[i],
                    sums[i + half],
                )  # load both: selecting an address would move the array out of registers
                sums[i] = (high if upper else low) + shuffle(0xFFFFFFFF, low if upper else high, distance)
            rest(sums, lane)

        return halve

    @dev.device
    def nothing(sums, lane):
        pass

    found, distance, half = nothing, 1, SUMS // dev.WARP
    while distance < dev.WARP:
        found, distance, half = level(distance, half, found), distance * 2, half * 2
    return found


def make_team(dev: Any, threads: int) -> Any:
    """Return team_of(chunks), which returns log2 of the number of warps in a team. `chunks` is a quarter of the terms."""
    lanes, warps = dev.WARP, threads // dev.WARP

    @dev.device
    def team_of(chunks):
        size = 0
        while (lanes << size) < chunks and (2 << size) <= warps:
            size += 1
        return size

    return team_of


def make_finish(dev: Any, threads: int) -> Any:
    """Return finish(sums, shared, t), which writes the 32 sums of each warp of the block to shared memory."""
    cuda, store, divide, remainder = dev.cuda, dev.store, dev.divide, dev.remainder
    reduce, lanes, each = make_reduce(dev), dev.WARP, SUMS // dev.WARP

    @dev.device
    def finish(sums, shared, t):
        lane, warp = remainder(t, lanes), divide(t, lanes)
        reduce(sums, lane)
        cuda.syncthreads()  # wait until the previous tile has been read
        for i in range(each):
            store(shared, warp * SUMS + lane * each + i, sums[i])
        cuda.syncthreads()

    return finish


# ------------------------------------------------------------------------------------------------ forward and backward


def make_multiply(dev: Any, pixels: bool | None) -> Any:
    """Return multiply(sums, own, step, n0, row_indices, height, width, source, weights, inputs, parameters, arena).

    It adds the products that one thread computes to `sums`. The thread processes chunks own, own + step, … of four terms each.
    If `pixels` is None, `row_indices` are rows of the matrix that starts at `source` in the arena. Otherwise they are rows of
    the data, which are uint8 if `pixels` is true and float32 if it is false.
    """
    cuda, divide, float32, int64 = dev.cuda, dev.divide, dev.float32, dev.int64
    fetch, read4 = make_fetch(dev, bool(pixels)), make_read4(dev)

    @dev.device
    def multiply(sums, own, step, n0, row_indices, height, width, source, weights, inputs, parameters, arena):
        a, b = cuda.local.array(4, float32), cuda.local.array(FACTORS, float32)
        for c in range(own, divide(height, 4), step):
            for k in range(4):
                read4(b, WIDE * k, parameters, weights + (4 * c + k) * width + n0)
            for i in range(HIGH):
                if pixels is None:
                    read4(a, 0, arena, source + row_indices[i] * height + 4 * c)
                else:
                    fetch(a, 0, inputs[0], int64(row_indices[i]) * height, inputs[1], inputs[2], 4 * c)
                for k in range(4):
                    for j in range(WIDE):
                        sums[WIDE * i + j] += a[k] * b[WIDE * k + j]

    return multiply


def make_forward(dev: Any, threads: int, pixels: bool, names: Sequence[str], drops: bool) -> Any:
    """Return forward(layer, last, tables, inputs, indices, start, rows, step, seed, parameters, arena, shared).

    It computes z = x w + b of a layer and calls `store_activation` with each z. The last layer stores z itself.

    inputs : (x, shift, factor); the mini-batch is x[indices[start]], …, x[indices[start + rows - 1]]
    """
    cuda, load, divide, remainder = dev.cuda, dev.load, dev.divide, dev.remainder
    lanes, warps, zero, float32, int32 = dev.WARP, threads // dev.WARP, dev.float32(0), dev.float32, dev.int32
    first_multiply, multiply, team_of = make_multiply(dev, pixels), make_multiply(dev, None), make_team(dev, threads)
    finish, store_activation = make_finish(dev, threads), make_store_activation(dev, names, drops)

    @dev.device
    def forward(layer, last, tables, inputs, indices, start, rows, step, seed, parameters, arena, shared):
        t, row, table = cuda.threadIdx.x, layer * COLUMNS, tables[0]
        height, width, source = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH), load(table, row + INPUT)
        columns, size = divide(width, WIDE), team_of(divide(height, 4))
        together = lanes << size
        team, teams = divide(t, together), warps >> size
        own, tiles = t - team * together, divide(rows + HIGH - 1, HIGH) * columns
        sums, row_indices = cuda.local.array(SUMS, float32), cuda.local.array(8, int32)
        for first in range(cuda.blockIdx.x * teams, tiles, cuda.gridDim.x * teams):
            m0, n0 = divide(first + team, columns) * HIGH, remainder(first + team, columns) * WIDE
            for i in range(SUMS):
                sums[i] = zero
            if first + team < tiles:
                for i in range(HIGH):  # beyond the mini-batch, repeat the last row; the results are discarded
                    m = min(m0 + i, rows - 1)
                    row_indices[i] = load(indices, start + m) if layer == 0 else m
                at = load(table, row + WEIGHTS)
                if layer == 0:
                    first_multiply(sums, own, together, n0, row_indices, height, width, source, at, inputs, parameters, arena)
                else:
                    multiply(sums, own, together, n0, row_indices, height, width, source, at, inputs, parameters, arena)
            finish(sums, shared, t)
            if first + team < tiles:
                for o in range(own, SUMS, together):
                    m, n, z = m0 + divide(o, WIDE), n0 + remainder(o, WIDE), zero
                    for w in range(1 << size):
                        z += load(shared, ((team << size) + w) * SUMS + o)
                    if m < rows:
                        z += load(parameters, load(table, row + BIAS) + n)
                        store_activation(z, layer, last, m, n, step, seed, tables, arena)

    return forward


def make_delta(dev: Any, threads: int) -> Any:
    """Return delta(layer, table, rows, parameters, arena, shared), which computes dz of layer - 1 as (dz w^T) f'(z)."""
    cuda, load, store, divide, remainder = dev.cuda, dev.load, dev.store, dev.divide, dev.remainder
    lanes, warps, zero, float32 = dev.WARP, threads // dev.WARP, dev.float32(0), dev.float32
    read4, team_of, finish = make_read4(dev), make_team(dev, threads), make_finish(dev, threads)

    @dev.device
    def multiply(sums, own, step, chunks, source, weights, width, m0, k0, rows, parameters, arena):
        a, b = cuda.local.array(4, float32), cuda.local.array(FACTORS, float32)
        for c in range(own, chunks, step):
            for j in range(WIDE):
                read4(b, 4 * j, parameters, weights + (k0 + j) * width + 4 * c)
            for i in range(HIGH):
                read4(a, 0, arena, source + min(m0 + i, rows - 1) * width + 4 * c)
                for j in range(WIDE):
                    for k in range(4):
                        sums[WIDE * i + j] += a[k] * b[4 * j + k]

    @dev.device
    def delta(layer, table, rows, parameters, arena, shared):
        t, row, below = cuda.threadIdx.x, layer * COLUMNS, (layer - 1) * COLUMNS
        height, width, source = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH), load(table, row + GRADIENT)
        chunks, columns = divide(width, 4), divide(height, WIDE)
        size = team_of(chunks)
        together = lanes << size
        team, teams = divide(t, together), warps >> size
        own, tiles = t - team * together, divide(rows + HIGH - 1, HIGH) * columns
        sums = cuda.local.array(SUMS, float32)
        for first in range(cuda.blockIdx.x * teams, tiles, cuda.gridDim.x * teams):
            m0, k0 = divide(first + team, columns) * HIGH, remainder(first + team, columns) * WIDE
            for i in range(SUMS):
                sums[i] = zero
            if first + team < tiles:
                multiply(
                    sums, own, together, chunks, source, load(table, row + WEIGHTS), width, m0, k0, rows, parameters, arena
                )
            finish(sums, shared, t)
            if first + team < tiles:
                for o in range(own, SUMS, together):
                    m, k, sum_ = m0 + divide(o, WIDE), k0 + remainder(o, WIDE), zero
                    for w in range(1 << size):
                        sum_ += load(shared, ((team << size) + w) * SUMS + o)
                    if m < rows:
                        at = m * height + k
                        store(arena, load(table, below + GRADIENT) + at, sum_ * load(arena, load(table, below + SLOPES) + at))

    return delta


def make_gradient(dev: Any, threads: int, staged: int, pixels: bool, apply_gradient: Any) -> Any:
    """Return gradient(layer, turn, table, inputs, indices, start, rows, s, parameters, slots, gradients, arena, shared).

    It computes dw = x^T dz and db of a layer, and calls `apply_gradient` with each element. Gradients are therefore written to
    memory only if `apply_gradient` stores them. A block computes one tile of dw at a time, in which each thread has 2 x 2
    elements. Shared memory holds `staged` rows of the mini-batch at a time.

    turn : offset of the assignment of tiles to blocks; if a phase has two layers, their first tiles then go to different blocks
    s : scalars of the step for weights, and for biases
    """
    cuda, load, load2, load4, store4 = dev.cuda, dev.load, dev.load2, dev.load4, dev.store4
    divide, remainder, zero, float32 = dev.divide, dev.remainder, dev.float32(0), dev.float32
    side = 2 * round(threads**0.5)
    half, quads = side // 2, side // 4
    fetch = make_fetch(dev, pixels)

    @dev.device
    def stage(layer, table, inputs, indices, start, rows, first, k0, n0, arena, shared):
        row, t, quad = layer * COLUMNS, cuda.threadIdx.x, cuda.local.array(4, float32)
        height, width = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH)
        x, shift, factor = inputs
        cuda.syncthreads()  # wait until the previous rows have been read
        for e in range(t, staged * quads, threads):
            m, k, n = first + divide(e, quads), k0 + 4 * remainder(e, quads), n0 + 4 * remainder(e, quads)
            quad[0] = quad[1] = quad[2] = quad[3] = zero
            if m < rows and k < height:
                if layer == 0:
                    fetch(quad, 0, x, load(indices, start + m) * height, shift, factor, k)
                else:
                    quad[0], quad[1], quad[2], quad[3] = load4(arena, load(table, row + INPUT) + m * height + k)
            store4(shared, 4 * e, (quad[0], quad[1], quad[2], quad[3]))
            quad[0] = quad[1] = quad[2] = quad[3] = zero
            if m < rows and n < width:
                quad[0], quad[1], quad[2], quad[3] = load4(arena, load(table, row + GRADIENT) + m * width + n)
            store4(shared, staged * side + 4 * e, (quad[0], quad[1], quad[2], quad[3]))
        cuda.syncthreads()

    @dev.device
    def gradient(layer, turn, table, inputs, indices, start, rows, s, parameters, slots, gradients, arena, shared):
        row, t, grid = layer * COLUMNS, cuda.threadIdx.x, cuda.gridDim.x
        height, width = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH)
        down, right, columns = divide(t, half), remainder(t, half), divide(width + side - 1, side)
        for tile in range(remainder(cuda.blockIdx.x + turn, grid), divide(height + side - 1, side) * columns, grid):
            k0, n0 = divide(tile, columns) * side, remainder(tile, columns) * side
            g00, g01, g10, g11, b0, b1 = zero, zero, zero, zero, zero, zero
            for first in range(0, rows, staged):
                stage(layer, table, inputs, indices, start, rows, first, k0, n0, arena, shared)
                for m in range(staged):
                    x = load2(shared, m * side + 2 * down)
                    dz = load2(shared, staged * side + m * side + 2 * right)
                    g00, g01, b0 = g00 + x[0] * dz[0], g01 + x[0] * dz[1], b0 + dz[0]
                    g10, g11, b1 = g10 + x[1] * dz[0], g11 + x[1] * dz[1], b1 + dz[1]
            k, n = k0 + 2 * down, n0 + 2 * right
            if k < height and n < width:  # height and width are even, so k + 1 and n + 1 are valid, too
                at, bias = load(table, row + WEIGHTS) + k * width + n, load(table, row + BIAS) + n
                apply_gradient(at, g00, s[0], parameters, slots, gradients)
                apply_gradient(at + 1, g01, s[0], parameters, slots, gradients)
                apply_gradient(at + width, g10, s[0], parameters, slots, gradients)
                apply_gradient(at + width + 1, g11, s[0], parameters, slots, gradients)
                if k == 0:
                    apply_gradient(bias, b0, s[1], parameters, slots, gradients)
                    apply_gradient(bias + 1, b1, s[1], parameters, slots, gradients)

    return gradient
