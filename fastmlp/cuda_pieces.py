"""The phases of a training step on an NVIDIA GPU, for small batches: products, losses, updates, each over the whole grid.

Each factory takes the words of a device (cuda_device.py, or a simulator's) and gives a function that every thread of a launch
calls; what a block does is decided by its number alone, and no sum depends on how many blocks there are: the same bits for any
grid. Small products are latency, not arithmetic, so a team of warps shares a tile of 8 x 8 sums and splits its terms.

Names: x, y, z, dz as in network.py; `table` and the places in `arena` as in cuda_plan.py; t, lane, warp are of a thread in its
block, m and n of a row of the batch and a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmlp.cuda_plan import (
    ACTIVATION,
    BIAS,
    COLUMNS,
    FAN_OUT,
    GRADIENT,
    IN_WIDTH,
    INPUT,
    OUT_WIDTH,
    OUTPUT,
    SLOPES,
    WEIGHTS,
)  # fmt: skip
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.optimizers import RULES, SCALARS, with_penalties
from fastmlp.philox import philox4x32

TILE = 8  # rows and columns of a team's tile
SUMS = TILE * TILE
SCALAR_COUNT = len(SCALARS)


def make_barrier(dev: Any) -> Any:
    """barrier(counter, target): go on when all blocks are here; `target` is how many have arrived since the launch began."""
    cuda, arrive, arrived = dev.cuda, dev.arrive, dev.arrived

    @dev.device
    def barrier(counter, target):
        cuda.syncthreads()  # what the block has written is seen by its first thread, which tells the others
        if cuda.threadIdx.x == 0:
            arrive(counter, 0)
            while arrived(counter, 0) < target:
                pass
        cuda.syncthreads()

    return barrier


def make_fetch(dev: Any, pixels: bool) -> Any:
    """fetch(to, o, x, at, shift, factor, k): four inputs of a row that begins at x[at], from its feature k, scaled."""
    load4, load_word, float32, uint32 = dev.load4, dev.load_word, dev.float32, dev.uint32
    byte, bits = uint32(255), uint32(8)

    @dev.device
    def fetch(to, o, x, at, shift, factor, k):
        s, f = load4(shift, k), load4(factor, k)
        if pixels:
            word = load_word(x, at + k)
            to[o] = (float32(word & byte) - s[0]) * f[0]
            to[o + 1] = (float32((word >> bits) & byte) - s[1]) * f[1]
            to[o + 2] = (float32((word >> (bits + bits)) & byte) - s[2]) * f[2]
            to[o + 3] = (float32(word >> (bits + bits + bits)) - s[3]) * f[3]
        else:
            v = load4(x, at + k)
            to[o], to[o + 1] = (v[0] - s[0]) * f[0], (v[1] - s[1]) * f[1]
            to[o + 2], to[o + 3] = (v[2] - s[2]) * f[2], (v[3] - s[3]) * f[3]

    return fetch


def make_reduce(dev: Any) -> Any:
    """reduce(sums, lane): add 64 sums over the lanes of a warp; lane i then has numbers 64 i / lanes and on in sums[0], ….

    In each round a lane keeps one half of what it has and gives the other away: 63 shuffles instead of 320.
    """
    shuffle = dev.cuda.shfl_xor_sync

    def level(distance: int, half: int, rest: Any) -> Any:
        @dev.device
        def halve(sums, lane):
            upper = lane & distance
            for i in range(half):
                low, high = sums[i], sums[i + half]  # loaded first: a choice of addresses would push the array out of registers
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
    """team_of(chunks): log2 of the warps that share a tile whose sums have so many chunks of four terms."""
    lanes, warps = dev.WARP, threads // dev.WARP

    @dev.device
    def team_of(chunks):
        size = 0
        while (lanes << size) < chunks and (2 << size) <= warps:
            size += 1
        return size

    return team_of


def make_finish(dev: Any, threads: int) -> Any:
    """finish(sums, shared, t): the sums of each warp of the block, in shared memory, 64 for each."""
    cuda, store, divide, remainder = dev.cuda, dev.store, dev.divide, dev.remainder
    reduce, lanes, each = make_reduce(dev), dev.WARP, SUMS // dev.WARP

    @dev.device
    def finish(sums, shared, t):
        lane, warp = remainder(t, lanes), divide(t, lanes)
        reduce(sums, lane)
        cuda.syncthreads()  # the tile before has been read
        for i in range(each):
            store(shared, warp * SUMS + lane * each + i, sums[i])
        cuda.syncthreads()

    return finish


# ------------------------------------------------------------------------------------------------ forward


def make_activate(dev: Any, names: Sequence[str]) -> Any:
    """activate(number, z, a): y = f(z) and f'(z) of the activation of this number among `names`."""

    def chosen(number: int, value: Any, slope: Any, others: Any) -> Any:
        @dev.device
        def choose(wanted, z, a):
            if wanted == number:
                y = value(z, a)
                return y, slope(z, y, a)
            return others(wanted, z, a)

        return choose

    @dev.device
    def linear(wanted, z, a):
        return z, dev_one

    dev_one = dev.float32(1)
    found = linear
    for number, name in enumerate(names):
        value, slope = (dev.formula(function) for function in ACTIVATIONS[name][:2])
        found = chosen(number, value, slope, found)
    return found


def make_kept(dev: Any) -> Any:
    """kept(seed, step, layer, m, n, threshold): whether dropout keeps a unit, as `philox.keep_mask` has it."""
    words = dev.formula(philox4x32)
    uint64 = dev.uint64

    @dev.device
    def kept(seed, step, layer, m, n, threshold):
        mask = uint64(0xFFFFFFFF)
        four = words(uint64(n >> 2), uint64(m), uint64(layer), uint64(step), seed & mask, seed >> uint64(32))
        low, high = (four[1] if n & 1 else four[0]), (four[3] if n & 1 else four[2])
        return (high if n & 2 else low) >= uint64(threshold)

    return kept


def make_settle(dev: Any, names: Sequence[str], drops: bool) -> Any:
    """settle(z, layer, last, m, n, step, seed, tables, arena): write y and f'(z), dropout included, of one unit of one row."""
    load, store, zero = dev.load, dev.store, dev.float32(0)
    activate, kept = make_activate(dev, names), make_kept(dev)

    @dev.device
    def settle(z, layer, last, m, n, step, seed, tables, arena):
        table, alpha, thresholds, scales = tables
        row = layer * COLUMNS
        at, y, slope = m * load(table, row + OUT_WIDTH) + n, zero, zero
        if n < load(table, row + FAN_OUT):
            y = z
            if layer < last:
                y, slope = activate(load(table, row + ACTIVATION), z, load(alpha, layer))
            if drops and load(thresholds, layer) > 0:
                scale = load(scales, layer) if kept(seed, step, layer, m, n, load(thresholds, layer)) else zero
                y, slope = y * scale, slope * scale
        store(arena, load(table, row + OUTPUT) + at, y)
        if layer < last:
            store(arena, load(table, row + SLOPES) + at, slope)

    return settle


def make_four(dev: Any) -> Any:
    """four(to, o, source, i): to[o + k] = source[i + k], k below 4."""
    load4 = dev.load4

    @dev.device
    def four(to, o, source, i):
        to[o], to[o + 1], to[o + 2], to[o + 3] = load4(source, i)

    return four


def make_multiply(dev: Any, pixels: bool | None) -> Any:
    """multiply(sums, own, step, n0, places, height, width, source, weights, inputs, parameters, arena): a lane's share of a tile.

    The rows are in the data, uint8 pixels or not, by their numbers in `places`; or in the arena from `source`, if `pixels` is None.
    """
    cuda, divide, float32, int64 = dev.cuda, dev.divide, dev.float32, dev.int64
    fetch, four = make_fetch(dev, bool(pixels)), make_four(dev)

    @dev.device
    def multiply(sums, own, step, n0, places, height, width, source, weights, inputs, parameters, arena):
        a, b = cuda.local.array(32, float32), cuda.local.array(8, float32)
        for c in range(own, divide(height, 4), step):
            for i in range(TILE):
                if pixels is None:
                    four(a, 4 * i, arena, source + places[i] * height + 4 * c)
                else:
                    fetch(a, 4 * i, inputs[0], int64(places[i]) * height, inputs[1], inputs[2], 4 * c)
            for k in range(4):
                at = weights + (4 * c + k) * width + n0
                four(b, 0, parameters, at)
                four(b, 4, parameters, at + 4)
                for i in range(TILE):
                    for j in range(TILE):
                        sums[TILE * i + j] += a[4 * i + k] * b[j]

    return multiply


def make_forward(dev: Any, threads: int, pixels: bool, names: Sequence[str], drops: bool) -> Any:
    """forward(layer, last, tables, inputs, order, start, rows, step, seed, parameters, arena, shared): outputs of a layer.

    z = x w + b and what `settle` makes of it, for the batch x[order[start]], …; inputs: x, shift, factor; the outputs of the
    last layer are its z.
    """
    cuda, load, divide, remainder = dev.cuda, dev.load, dev.divide, dev.remainder
    lanes, warps, zero, float32, int32 = dev.WARP, threads // dev.WARP, dev.float32(0), dev.float32, dev.int32
    first_multiply, multiply, team_of = make_multiply(dev, pixels), make_multiply(dev, None), make_team(dev, threads)
    finish, settle = make_finish(dev, threads), make_settle(dev, names, drops)

    @dev.device
    def forward(layer, last, tables, inputs, order, start, rows, step, seed, parameters, arena, shared):
        t, row, table = cuda.threadIdx.x, layer * COLUMNS, tables[0]
        height, width, source = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH), load(table, row + INPUT)
        columns, size = divide(width, TILE), team_of(divide(height, 4))
        together = lanes << size
        team, teams = divide(t, together), warps >> size
        own, tiles = t - team * together, divide(rows + TILE - 1, TILE) * columns
        sums, places = cuda.local.array(64, float32), cuda.local.array(8, int32)
        for first in range(cuda.blockIdx.x * teams, tiles, cuda.gridDim.x * teams):
            m0, n0 = divide(first + team, columns) * TILE, remainder(first + team, columns) * TILE
            for i in range(SUMS):
                sums[i] = zero
            if first + team < tiles:
                for i in range(TILE):  # beyond the batch its last row again, which is then not written
                    m = min(m0 + i, rows - 1)
                    places[i] = load(order, start + m) if layer == 0 else m
                at = load(table, row + WEIGHTS)
                if layer == 0:
                    first_multiply(sums, own, together, n0, places, height, width, source, at, inputs, parameters, arena)
                else:
                    multiply(sums, own, together, n0, places, height, width, source, at, inputs, parameters, arena)
            finish(sums, shared, t)
            if first + team < tiles:
                for o in range(own, SUMS, together):
                    m, n, z = m0 + divide(o, TILE), n0 + remainder(o, TILE), zero
                    for w in range(1 << size):
                        z += load(shared, ((team << size) + w) * SUMS + o)
                    if m < rows:
                        z += load(parameters, load(table, row + BIAS) + n)
                        settle(z, layer, last, m, n, step, seed, tables, arena)

    return forward


# ------------------------------------------------------------------------------------------------ losses and backward


def make_losses(dev: Any, loss: str, output: str, classes: bool) -> Any:
    """losses(last, table, y, hot, cold, order, row_scale, start, rows, arena, loss, correct): loss, hit and dz of each row.

    y : labels (n,), or plain targets (n * outputs,); hot and cold are a smoothed label's target, and that of other classes
    row_scale : (n,) in the order of `order`: what dz is multiplied by
    A thread has a row: few outputs are the rule, and the formula is the one that the CPU compiles too.
    """
    cuda, load, store, zero = dev.cuda, dev.load, dev.store, dev.float32(0)
    formula = dev.formula(LOSSES[loss][output])

    @dev.device
    def losses(last, table, y, hot, cold, order, row_scale, start, rows, arena, loss, correct):
        row = last * COLUMNS
        n, width = load(table, row + FAN_OUT), load(table, row + OUT_WIDTH)
        for m in range(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, rows, cuda.gridDim.x * cuda.blockDim.x):
            at, chosen = load(table, row + SLOPES) + m * width, load(order, start + m)
            z = arena[load(table, row + OUTPUT) + m * width :][:n]
            t, dz = arena[at : at + n], arena[load(table, row + GRADIENT) + m * width :][:width]
            best = 0
            for j in range(n):
                if classes:
                    t[j] = hot if j == load(y, chosen) else cold
                else:
                    t[j] = load(y, chosen * n + j)
                if z[j] > z[best]:
                    best = j
            store(loss, start + m, formula(z, t, dz, n))
            store(correct, start + m, classes and best == load(y, chosen))
            for j in range(width):
                dz[j] = dz[j] * load(row_scale, start + m) if j < n else zero

    return losses


def make_delta(dev: Any, threads: int) -> Any:
    """delta(layer, table, rows, parameters, arena, shared): dz of the layer below, (dz w^T) times its f'(z)."""
    cuda, load, store, divide, remainder = dev.cuda, dev.load, dev.store, dev.divide, dev.remainder
    lanes, warps, zero, float32 = dev.WARP, threads // dev.WARP, dev.float32(0), dev.float32
    four, team_of, finish = make_four(dev), make_team(dev, threads), make_finish(dev, threads)

    @dev.device
    def multiply(sums, own, step, chunks, source, weights, width, m0, k0, rows, parameters, arena):
        a, b = cuda.local.array(32, float32), cuda.local.array(4, float32)
        for c in range(own, chunks, step):
            for i in range(TILE):
                four(a, 4 * i, arena, source + min(m0 + i, rows - 1) * width + 4 * c)
            for j in range(TILE):
                four(b, 0, parameters, weights + (k0 + j) * width + 4 * c)
                for i in range(TILE):
                    for k in range(4):
                        sums[TILE * i + j] += a[4 * i + k] * b[k]

    @dev.device
    def delta(layer, table, rows, parameters, arena, shared):
        t, row, below = cuda.threadIdx.x, layer * COLUMNS, (layer - 1) * COLUMNS
        height, width, source = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH), load(table, row + GRADIENT)
        chunks, columns = divide(width, 4), divide(height, TILE)
        size = team_of(chunks)
        together = lanes << size
        team, teams = divide(t, together), warps >> size
        own, tiles = t - team * together, divide(rows + TILE - 1, TILE) * columns
        sums = cuda.local.array(64, float32)
        for first in range(cuda.blockIdx.x * teams, tiles, cuda.gridDim.x * teams):
            m0, k0 = divide(first + team, columns) * TILE, remainder(first + team, columns) * TILE
            for i in range(SUMS):
                sums[i] = zero
            if first + team < tiles:
                multiply(
                    sums, own, together, chunks, source, load(table, row + WEIGHTS), width, m0, k0, rows, parameters, arena
                )
            finish(sums, shared, t)
            if first + team < tiles:
                for o in range(own, SUMS, together):
                    m, k, sum_ = m0 + divide(o, TILE), k0 + remainder(o, TILE), zero
                    for w in range(1 << size):
                        sum_ += load(shared, ((team << size) + w) * SUMS + o)
                    if m < rows:
                        at = m * height + k
                        store(arena, load(table, below + GRADIENT) + at, sum_ * load(arena, load(table, below + SLOPES) + at))

    return delta


# ------------------------------------------------------------------------------------------------ gradients and updates


def make_change(dev: Any, rule: str) -> Any:
    """change(i, g, s, parameters, m, v): update parameter i by its gradient; s are the step's scalars."""
    load, store, zero = dev.load, dev.store, dev.float32(0)
    update = dev.formula(RULES[rule].update)
    has_m, has_v = "m" in RULES[rule].slots, "v" in RULES[rule].slots

    @dev.device
    def change(i, g, s, parameters, m, v):
        m_i, v_i = load(m, i) if has_m else zero, load(v, i) if has_v else zero
        p_i, m_i, v_i = update(load(parameters, i), g, m_i, v_i, s)
        store(parameters, i, p_i)
        if has_m:
            store(m, i, m_i)
        if has_v:
            store(v, i, v_i)

    return change


def make_use(dev: Any, rule: str, penalised: bool, kept: bool) -> Any:
    """use(i, g, s, parameters, slots, gradient): what is done with a gradient: the update, or keep it until its norm is known."""
    load, store = dev.load, dev.store
    penalties, change = dev.formula(with_penalties), make_change(dev, rule)

    @dev.device
    def use(i, g, s, parameters, slots, gradient):
        if penalised:
            g = penalties(load(parameters, i), g, s)
        if kept:
            store(gradient, i, g)
        else:
            change(i, g, s, parameters, slots[0], slots[1])

    return use


def make_gradient(dev: Any, threads: int, staged: int, pixels: bool, use: Any) -> Any:
    """gradient(layer, turn, table, inputs, order, start, rows, s, parameters, slots, kept, arena, shared): dw = x^T dz, db.

    turn : the block that takes the first tile, so that two layers in one phase begin at different blocks
    s : the step's scalars for weights, then for biases
    A block has a tile of as many weights as four times its threads, each thread 2 x 2 of them; `staged` rows of the batch at a
    time lie in shared memory. `use` has each sum, so that gradients never reach memory unless it keeps them.
    """
    cuda, load, load2, load4, store4 = dev.cuda, dev.load, dev.load2, dev.load4, dev.store4
    divide, remainder, zero, float32 = dev.divide, dev.remainder, dev.float32(0), dev.float32
    side = 2 * round(threads**0.5)
    half, quads = side // 2, side // 4
    fetch = make_fetch(dev, pixels)

    @dev.device
    def stage(layer, table, inputs, order, start, rows, first, k0, n0, arena, shared):
        row, t, four = layer * COLUMNS, cuda.threadIdx.x, cuda.local.array(4, float32)
        height, width = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH)
        x, shift, factor = inputs
        cuda.syncthreads()  # the rows before have been read
        for e in range(t, staged * quads, threads):
            m, k, n = first + divide(e, quads), k0 + 4 * remainder(e, quads), n0 + 4 * remainder(e, quads)
            four[0] = four[1] = four[2] = four[3] = zero
            if m < rows and k < height:
                if layer == 0:
                    fetch(four, 0, x, load(order, start + m) * height, shift, factor, k)
                else:
                    four[0], four[1], four[2], four[3] = load4(arena, load(table, row + INPUT) + m * height + k)
            store4(shared, 4 * e, (four[0], four[1], four[2], four[3]))
            four[0] = four[1] = four[2] = four[3] = zero
            if m < rows and n < width:
                four[0], four[1], four[2], four[3] = load4(arena, load(table, row + GRADIENT) + m * width + n)
            store4(shared, staged * side + 4 * e, (four[0], four[1], four[2], four[3]))
        cuda.syncthreads()

    @dev.device
    def gradient(layer, turn, table, inputs, order, start, rows, s, parameters, slots, kept, arena, shared):
        row, t, grid = layer * COLUMNS, cuda.threadIdx.x, cuda.gridDim.x
        height, width = load(table, row + IN_WIDTH), load(table, row + OUT_WIDTH)
        down, right, columns = divide(t, half), remainder(t, half), divide(width + side - 1, side)
        for tile in range(remainder(cuda.blockIdx.x + turn, grid), divide(height + side - 1, side) * columns, grid):
            k0, n0 = divide(tile, columns) * side, remainder(tile, columns) * side
            g00, g01, g10, g11, b0, b1 = zero, zero, zero, zero, zero, zero
            for first in range(0, rows, staged):
                stage(layer, table, inputs, order, start, rows, first, k0, n0, arena, shared)
                for m in range(staged):
                    x = load2(shared, m * side + 2 * down)
                    dz = load2(shared, staged * side + m * side + 2 * right)
                    g00, g01, b0 = g00 + x[0] * dz[0], g01 + x[0] * dz[1], b0 + dz[0]
                    g10, g11, b1 = g10 + x[1] * dz[0], g11 + x[1] * dz[1], b1 + dz[1]
            k, n = k0 + 2 * down, n0 + 2 * right
            if k < height and n < width:  # both are even, so there are two of each
                at, bias = load(table, row + WEIGHTS) + k * width + n, load(table, row + BIAS) + n
                use(at, g00, s[0], parameters, slots, kept)
                use(at + 1, g01, s[0], parameters, slots, kept)
                use(at + width, g10, s[0], parameters, slots, kept)
                use(at + width + 1, g11, s[0], parameters, slots, kept)
                if k == 0:
                    use(bias, b0, s[1], parameters, slots, kept)
                    use(bias + 1, b1, s[1], parameters, slots, kept)

    return gradient
