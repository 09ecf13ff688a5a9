"""Training on an NVIDIA GPU in one launch: all phases of all steps, with a barrier over the whole grid between two phases.

A step of L layers of weights has 2 L + 1 phases, and two more if the gradient is clipped:

======== =================================================== ===================================
phase    what                                                who reads what it wrote
======== =================================================== ===================================
0 … L-1  forward of a layer, the last gives z                the next layer; its gradient
L        losses of the rows, dz of the last layer            delta, gradient
L+1 … 2L delta of layer i = 2L - phase; update of layer i+1,  the next delta and update; the next
         whose weights no delta needs any more; in the last  step's forward
         phase of layers 1 and 0
2L+1     sums of squares of the gradient                     the next phase
2L+2     its norm, and the update of all parameters          the next step's forward
======== =================================================== ===================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastmlp.cuda_pieces import (
    SCALAR_COUNT,
    SUMS,
    make_barrier,
    make_change,
    make_delta,
    make_forward,
    make_gradient,
    make_losses,
    make_use,
)
from fastmlp.cuda_plan import BIAS, COLUMNS, OUT_WIDTH, WEIGHTS
from fastmlp.cuda_tiled import make_tiled_delta, make_tiled_forward, make_tiled_gradient
from fastmlp.cuda_tiles import Tile

CHUNK = 1024  # parameters whose squares a warp adds


class Kind(NamedTuple):
    """What a kernel is compiled for: everything but sizes and numbers.

    activations : names, each once, in the order of the plan
    pixels : whether inputs are uint8; classes : whether targets are labels
    """

    activations: Sequence[str]
    loss: str
    output: str
    rule: str
    pixels: bool
    classes: bool
    drops: bool
    penalised: bool
    clips: bool


class Shape(NamedTuple):
    """Threads of a block, a square of twice a power of two, and how many rows of the batch `gradient` stages at a time."""

    threads: int = 256
    staged: int = 32

    def shared(self, lanes: int) -> int:
        """Floats of shared memory: for the sums of the warps, and for the staged rows of both factors."""
        return max(SUMS * self.threads // lanes, 2 * self.staged * 2 * round(self.threads**0.5))


def phases(layers: int, clips: bool) -> int:
    """Phases of a step.

    >>> phases(2, False), phases(1, True)
    (5, 5)
    """
    return 2 * layers + 1 + 2 * clips


def make_warp_sum(dev: Any) -> Any:
    """warp_sum(value): the sum over the lanes of a warp, in each of them."""
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
    """squares(size, gradient, partial), and clip(size, layers, table, s, largest, gradient, partial, parameters, slots).

    The norm is taken in float64 over chunks of fixed size, so that it depends on no grid.
    """
    cuda, load, store, divide, remainder = dev.cuda, dev.load, dev.store, dev.divide, dev.remainder
    float32, float64, lanes, warps = dev.float32, dev.float64, dev.WARP, threads // dev.WARP
    warp_sum, change = make_warp_sum(dev), make_change(dev, rule)
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
        for chunk in range(remainder(t, lanes), divide(size + CHUNK - 1, CHUNK), lanes):  # each warp of the grid the same
            total += load(partial, chunk)
        norm = math.sqrt(warp_sum(total))
        scale = float32(float64(largest) / norm) if norm > float64(largest) else float32(1)
        for layer in range(layers):
            first, bias = load(table, layer * COLUMNS + WEIGHTS), load(table, layer * COLUMNS + BIAS)
            end = bias + load(table, layer * COLUMNS + OUT_WIDTH)
            for i in range(first + cuda.blockIdx.x * threads + t, end, cuda.gridDim.x * threads):
                change(i, load(gradient, i) * scale, s[0] if i < bias else s[1], parameters, slots[0], slots[1])

    return squares, clip


def forward_of(dev: Any, kind: Kind, shape: Shape | Tile, drops: bool | None = None) -> Any:
    """The forward phase for small batches, or by tiles."""
    make = make_tiled_forward if isinstance(shape, Tile) else make_forward
    return make(
        dev,
        shape if isinstance(shape, Tile) else shape.threads,
        kind.pixels,
        kind.activations,
        kind.drops if drops is None else drops,
    )


def make_train(dev: Any, kind: Kind, shape: Shape | Tile) -> Any:
    """The kernel train(…): phases `first` to before `end` of a call to `Engine.train`.

    All blocks must be at work at once, since they wait for each other; or each launch has one phase, and none waits.

    table … scales : of a `Plan`; x (n * width,), shift, factor (width,): inputs and their scaling; y : labels, or plain targets
    hot, cold : targets of a label's class and of the others
    order, row_scale, loss, correct : (rows of the call,): which rows, their share in the batch's loss, and what came out
    scalars : (steps * 2 * SCALAR_COUNT,), of weights and of biases; parameters, m, v, kept : (size,); partial : sums of squares
    counter : (1,) uint32, 0 before each launch; batch, count : rows of a batch and of the call; step : updates before this call
    """
    cuda, uint32, float32 = dev.cuda, dev.uint32, dev.float32
    barrier, forward, losses = (
        make_barrier(dev),
        forward_of(dev, kind, shape),
        make_losses(dev, kind.loss, kind.output, kind.classes),
    )
    use = make_use(dev, kind.rule, kind.penalised, kind.clips)
    if isinstance(shape, Tile):
        delta, gradient = make_tiled_delta(dev, shape), make_tiled_gradient(dev, shape, kind.pixels, use)
    else:
        delta, gradient = make_delta(dev, shape.threads), make_gradient(dev, shape.threads, shape.staged, kind.pixels, use)
    squares, clip = make_clip(dev, shape.threads, kind.rule)
    memory, clips = shape.shared(dev.WARP), kind.clips

    @dev.kernel(shape.threads)
    def train(
        table, alpha, thresholds, scales, x, shift, factor, y, hot, cold, order, row_scale, loss, correct, scalars,
        parameters, m, v, kept, partial, arena, counter, batch, count, first, end, step, seed, largest,
    ):  # fmt: skip
        shared = cuda.shared.array(memory, float32, alignment=16)
        layers = len(table) // COLUMNS
        each, target = 2 * layers + 1 + (2 if clips else 0), uint32(0)
        tables, inputs, slots = (table, alpha, thresholds, scales), (x, shift, factor), (m, v)
        for phase in range(first, end):
            now = phase // each
            start, q, at = now * batch, phase - now * each, 2 * SCALAR_COUNT * now
            rows = min(batch, count - start)
            s = (scalars[at : at + SCALAR_COUNT], scalars[at + SCALAR_COUNT : at + 2 * SCALAR_COUNT])
            if q < layers:
                forward(q, layers - 1, tables, inputs, order, start, rows, step + now, seed, parameters, arena, shared)
            elif q == layers:
                losses(layers - 1, table, y, hot, cold, order, row_scale, start, rows, arena, loss, correct)
            elif q <= 2 * layers:
                i = 2 * layers - q
                if i > 0:
                    delta(i, table, rows, parameters, arena, shared)
                for layer in range(i + 1 if i > 0 else 0, min(i + 2, layers)):
                    turn = cuda.gridDim.x // 2 if layer > 0 else 0
                    gradient(layer, turn, table, inputs, order, start, rows, s, parameters, slots, kept, arena, shared)
            elif q == 2 * layers + 1:
                squares(len(parameters), kept, partial)
            else:
                clip(len(parameters), layers, table, s, largest, kept, partial, parameters, slots)
            if phase + 1 < end:
                target += uint32(cuda.gridDim.x)
                barrier(counter, target)

    return train


def make_apply(dev: Any, kind: Kind, shape: Shape | Tile) -> Any:
    """The kernel apply(table … scales, x, shift, factor, order, parameters, arena, counter, rows): the forward pass alone.

    Arguments as those of `make_train`; without dropout.
    """
    cuda, uint32, float32, uint64 = dev.cuda, dev.uint32, dev.float32, dev.uint64
    barrier, forward = make_barrier(dev), forward_of(dev, kind, shape, drops=False)
    memory = shape.shared(dev.WARP)

    @dev.kernel(shape.threads)
    def apply(table, alpha, thresholds, scales, x, shift, factor, order, parameters, arena, counter, rows):
        shared = cuda.shared.array(memory, float32, alignment=16)
        layers, target = len(table) // COLUMNS, uint32(0)
        tables, inputs = (table, alpha, thresholds, scales), (x, shift, factor)
        for layer in range(layers):
            forward(layer, layers - 1, tables, inputs, order, 0, rows, 0, uint64(0), parameters, arena, shared)
            if layer + 1 < layers:
                target += uint32(cuda.gridDim.x)
                barrier(counter, target)

    return apply
