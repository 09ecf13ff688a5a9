"""Parts of a training step on NVIDIA GPUs, except matrix products: barriers, inputs, activations, losses, updates, clipping.

Each factory takes a device API (device.py or a simulator) and returns a device function, which all threads of a launch call.
The matrix products call `store_activation` or `apply_gradient` with each element of their result.

Notation: x, y, z and dz as in nn/network.py; `table` and `arena` as in layout.py; m is a row of the mini-batch, n is a unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastmlp.engines.cuda.kernels.layout import (
    ACTIVATION,
    BIAS,
    COLUMNS,
    FAN_OUT,
    GRADIENT,
    OUT_WIDTH,
    OUTPUT,
    SLOPES,
    WEIGHTS,
)  # fmt: skip
from fastmlp.nn.activations import formulas_of
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.optimizers import RULES, SCALARS, with_penalties
from fastmlp.nn.philox import philox4x32

SCALAR_COUNT = len(SCALARS)
CHUNK = 1024  # number of gradient elements whose squares a warp sums
# Maximum number of polls of a barrier's counter before a block aborts the kernel. A poll is a round trip to the L2 cache and
# takes at least a third of a microsecond, so the limit is at least ten seconds. No phase should take that long. Without a
# limit, a block that waits forever would occupy the device until the process is killed, or longer.
MOST_POLLS = 1 << 25


def make_barrier(dev: Any, most: int = MOST_POLLS) -> Any:
    """Return barrier(counter, target), which waits until blocks have arrived `target` times since the start of the launch.

    counter : (1,) uint64; a 32-bit counter could overflow in a long launch, and the blocks would then wait forever
    most : number of polls after which the kernel is aborted
    """
    cuda, arrive, arrived, trap = dev.cuda, dev.arrive, dev.arrived, dev.trap

    @dev.device
    def barrier(counter, target):
        cuda.syncthreads()  # makes the writes of the block visible to thread 0, which publishes them
        if cuda.threadIdx.x == 0:
            arrive(counter, 0)
            polls = 0
            while arrived(counter, 0) < target:
                polls += 1
                if polls > most:
                    trap()
        cuda.syncthreads()

    return barrier


def make_fetch(dev: Any, pixels: bool) -> Any:
    """Return fetch(to, o, x, at, shift, factor, k), which reads features k to k + 3 of the row that starts at x[at].

    The features are scaled and written to to[o], …, to[o + 3]. `pixels` : whether x is uint8
    """
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


def make_read4(dev: Any) -> Any:
    """Return read4(to, o, source, i), which sets to[o + k] = source[i + k] for k = 0, …, 3."""
    load4 = dev.load4

    @dev.device
    def read4(to, o, source, i):
        to[o], to[o + 1], to[o + 2], to[o + 3] = load4(source, i)

    return read4


# ------------------------------------------------------------------------------------------------ outputs of a layer


def make_activate(dev: Any, names: Sequence[str]) -> Any:
    """Return activate(number, z, a), which returns y = f(z) and f'(z) for the activation names[number] with parameter a."""
    float32 = dev.float32

    def chosen(number: int, value: Any, slope: Any, others: Any) -> Any:
        @dev.device
        def choose(wanted, z, a):
            if wanted == number:
                y = float32(value(z, a))  # a custom activation may return another type
                return y, float32(slope(z, y, a))
            return others(wanted, z, a)

        return choose

    one = float32(1)

    @dev.device
    def linear(wanted, z, a):
        return z, one

    found = linear
    for number, name in enumerate(names):
        value, slope = (dev.formula(function) for function in formulas_of(name)[:2])
        found = chosen(number, value, slope, found)
    return found


def make_is_kept(dev: Any) -> Any:
    """Return is_kept(seed, step, layer, m, n, threshold), which decides if dropout keeps unit n of row m.

    See `philox.keep_mask`.
    """
    words_of = dev.formula(philox4x32)
    uint64 = dev.uint64

    @dev.device
    def is_kept(seed, step, layer, m, n, threshold):
        mask = uint64(0xFFFFFFFF)
        words = words_of(uint64(n >> 2), uint64(m), uint64(layer), uint64(step), seed & mask, seed >> uint64(32))
        low, high = (words[1] if n & 1 else words[0]), (words[3] if n & 1 else words[2])
        return (high if n & 2 else low) >= uint64(threshold)

    return is_kept


def make_store_activation(dev: Any, names: Sequence[str], drops: bool) -> Any:
    """Return store_activation(z, layer, last, m, n, step, seed, tables, arena).

    It computes y and f'(z) of one unit from its z, applies dropout to both, and writes them to the arena.
    """
    load, store, zero = dev.load, dev.store, dev.float32(0)
    activate, is_kept = make_activate(dev, names), make_is_kept(dev)

    @dev.device
    def store_activation(z, layer, last, m, n, step, seed, tables, arena):
        table, alpha, thresholds, scales = tables
        row = layer * COLUMNS
        at, y, slope = m * load(table, row + OUT_WIDTH) + n, zero, zero
        if n < load(table, row + FAN_OUT):
            y = z
            if layer < last:
                y, slope = activate(load(table, row + ACTIVATION), z, load(alpha, layer))
            if drops and load(thresholds, layer) > 0:
                scale = load(scales, layer) if is_kept(seed, step, layer, m, n, load(thresholds, layer)) else zero
                y, slope = y * scale, slope * scale
        store(arena, load(table, row + OUTPUT) + at, y)
        if layer < last:
            store(arena, load(table, row + SLOPES) + at, slope)

    return store_activation


# ------------------------------------------------------------------------------------------------ losses and updates


def make_losses(dev: Any, loss: str, output: str, classes: bool, training: bool = True) -> Any:
    """Return losses(last, table, y, constants, indices, loss_weight, start, rows, arena, loss, correct).

    It computes the loss, the correctness and dz of each row.

    y : labels (n,), or float targets (n * outputs,)
    constants : smoothed targets of the labelled class and of the other classes, and the parameter of the loss
    loss_weight : (n,) weights in the order of `indices`, by which dz is multiplied; not used if `training` is false

    Each thread computes whole rows, because most networks have few outputs. The targets of a row are written to the `slopes`
    of the last layer in the arena, and dz to its `gradient`. Without training, dz is not multiplied by the weights.
    """
    cuda, load, store, zero = dev.cuda, dev.load, dev.store, dev.float32(0)
    formula = dev.formula(LOSSES[loss][output])

    @dev.device
    def losses(last, table, y, constants, indices, loss_weight, start, rows, arena, loss, correct):
        on_value, off_value, a = constants
        row = last * COLUMNS
        n, width = load(table, row + FAN_OUT), load(table, row + OUT_WIDTH)
        for m in range(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, rows, cuda.gridDim.x * cuda.blockDim.x):
            at, chosen = load(table, row + SLOPES) + m * width, load(indices, start + m)
            z = arena[load(table, row + OUTPUT) + m * width :][:n]
            t, dz = arena[at : at + n], arena[load(table, row + GRADIENT) + m * width :][:width]
            best = 0
            for j in range(n):
                if classes:
                    t[j] = on_value if j == load(y, chosen) else off_value
                else:
                    t[j] = load(y, chosen * n + j)
                if z[j] > z[best]:
                    best = j
            store(loss, start + m, formula(z, t, dz, n, a))
            store(correct, start + m, classes and best == load(y, chosen))
            if training:
                for j in range(width):
                    dz[j] = dz[j] * load(loss_weight, start + m) if j < n else zero

    return losses


def make_update(dev: Any, rule: str) -> Any:
    """Return update(i, g, s, parameters, m, v), which updates parameter i with its gradient g and the step's scalars s."""
    load, store, zero = dev.load, dev.store, dev.float32(0)
    formula = dev.formula(RULES[rule].update)
    has_m, has_v = "m" in RULES[rule].slots, "v" in RULES[rule].slots

    @dev.device
    def update(i, g, s, parameters, m, v):
        m_i, v_i = load(m, i) if has_m else zero, load(v, i) if has_v else zero
        p_i, m_i, v_i = formula(load(parameters, i), g, m_i, v_i, s)
        store(parameters, i, p_i)
        if has_m:
            store(m, i, m_i)
        if has_v:
            store(v, i, v_i)

    return update


def make_apply_gradient(dev: Any, rule: str, penalised: bool, stores: bool) -> Any:
    """Return apply_gradient(i, g, s, parameters, slots, gradient), which processes the gradient g of parameter i.

    It adds the penalties if `penalised` is true. If `stores` is true, it then stores the gradient for clipping; otherwise it
    updates the parameter.
    """
    load, store = dev.load, dev.store
    penalties, update = dev.formula(with_penalties), make_update(dev, rule)

    @dev.device
    def apply_gradient(i, g, s, parameters, slots, gradient):
        if penalised:
            g = penalties(load(parameters, i), g, s)
        if stores:
            store(gradient, i, g)
        else:
            update(i, g, s, parameters, slots[0], slots[1])

    return apply_gradient


def make_warp_sum(dev: Any) -> Any:
    """Return warp_sum(value), which returns the sum of `value` over the lanes of a warp in every lane."""
    shuffle, lanes = dev.cuda.shfl_xor_sync, dev.WARP

    @dev.device
    def warp_sum(value):
        distance = 1
        while distance < lanes:
            value += shuffle(0xFFFFFFFF, value, distance)
            distance *= 2
        return value

    return warp_sum


def make_clip(dev: Any, threads: int, rule: str) -> tuple[Any, Any]:
    """Return the two phases of clipping as functions.

    squares(size, gradient, partial) computes sums of squares of the gradient.
    clip(size, layers, table, s, largest, gradient, partial, parameters, slots) computes the norm from these sums, clips the
    gradient to the norm `largest`, and updates all parameters.

    The squares are summed in float64 in chunks of fixed size, so the norm does not depend on the number of blocks.
    """
    cuda, load, store, divide, remainder = dev.cuda, dev.load, dev.store, dev.divide, dev.remainder
    float32, float64, lanes, warps = dev.float32, dev.float64, dev.WARP, threads // dev.WARP
    warp_sum, update = make_warp_sum(dev), make_update(dev, rule)
    nothing = float64(0)

    @dev.device
    def squares(size, gradient, partial):
        t = cuda.threadIdx.x
        for chunk in range(cuda.blockIdx.x * warps + divide(t, lanes), divide(size + CHUNK - 1, CHUNK), cuda.gridDim.x * warps):
            total = nothing
            for i in range(chunk * CHUNK + remainder(t, lanes), min(size, (chunk + 1) * CHUNK), lanes):
                g = float64(load(gradient, i))
                total += g * g
            total = warp_sum(total)
            if remainder(t, lanes) == 0:
                store(partial, chunk, total)

    @dev.device
    def clip(size, layers, table, s, largest, gradient, partial, parameters, slots):
        t, total = cuda.threadIdx.x, nothing
        for chunk in range(remainder(t, lanes), divide(size + CHUNK - 1, CHUNK), lanes):  # the same in all warps
            total += load(partial, chunk)
        norm = math.sqrt(warp_sum(total))
        scale = float32(float64(largest) / norm) if norm > float64(largest) else float32(1)
        for layer in range(layers):
            first, bias = load(table, layer * COLUMNS + WEIGHTS), load(table, layer * COLUMNS + BIAS)
            end = bias + load(table, layer * COLUMNS + OUT_WIDTH)
            for i in range(first + cuda.blockIdx.x * threads + t, end, cuda.gridDim.x * threads):
                update(i, load(gradient, i) * scale, s[0] if i < bias else s[1], parameters, slots[0], slots[1])

    return squares, clip
