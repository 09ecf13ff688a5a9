"""Training on an NVIDIA GPU in one launch: all phases of all steps, with a barrier over the whole grid between two phases.

A step of L layers of weights has 2 L + 1 phases, and two more if the gradient is clipped:

======== =================================================== ===================================
phase    work                                                results are read by
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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastmlp.engines.cuda.kernels.layout import COLUMNS
from fastmlp.engines.cuda.kernels.passes import SCALAR_COUNT, make_apply_gradient, make_barrier, make_clip, make_losses
from fastmlp.engines.cuda.kernels.pieces import ARGUMENTS, make_activations, make_dropout, make_updates
from fastmlp.engines.cuda.kernels.tiled import make_tiled_delta, make_tiled_forward, make_tiled_gradient
from fastmlp.engines.cuda.kernels.tiles import Tile
from fastmlp.engines.cuda.kernels.warps import SUMS, make_delta, make_forward, make_gradient


class KernelSpec(NamedTuple):
    """Options that a kernel is compiled for: everything except sizes and values.

    activations : unique names, in the order of the layout
    pixels : whether inputs are uint8; classes : whether targets are labels
    precision : of the operands of products; small batches support only float32
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
    precision: str = "float32"


PLAIN = KernelSpec(("relu",), "cross-entropy", "softmax", "sgd", False, True, False, False, False)


class Shape(NamedTuple):
    """Block shape for small batches.

    threads : a square of twice a power of two; staged : rows of the batch that `gradient` stages at a time
    resident : fewest blocks at once on a multiprocessor
    """

    threads: int = 256
    staged: int = 32
    resident: int = 1

    def shared(self, lanes: int) -> int:
        """Floats of shared memory: for the sums of the warps, and for the staged rows of both factors."""
        return max(SUMS * self.threads // lanes, 2 * self.staged * 2 * round(self.threads**0.5))


def phases(layers: int, clips: bool) -> int:
    """Phases of a step.

    >>> phases(2, False), phases(1, True)
    (5, 5)
    """
    return 2 * layers + 1 + 2 * clips


def forward_of(dev: Any, kind: KernelSpec, shape: Shape | Tile, drops: bool) -> Any:
    """The forward phase: the version for small batches, or the tiled one."""
    if isinstance(shape, Tile):
        return make_tiled_forward(dev, shape, kind.precision, kind.pixels, kind.activations, drops)
    return make_forward(dev, shape.threads, kind.pixels, kind.activations, drops)


def make_train(dev: Any, kind: KernelSpec, shape: Shape | Tile) -> Any:
    """The kernel train(…): phases `first` to `end` - 1 of a call to `Engine.train`.

    All blocks must be resident at once, since they wait for each other, unless each launch has a single phase.

    table … scales : of a `DeviceLayout`; x (n * width,), shift, factor (width,): inputs and their scaling
    y : labels, or plain targets
    on_value, off_value : targets of the label's class and of the other classes
    indices, loss_weight, loss, correct : (rows of the call,): row numbers, their weights in the loss of the batch, results
    scalars : (steps * 2 * SCALAR_COUNT,), of weights and of biases; parameters, m, v, kept : (size,); partial : sums of squares
    counter : (1,) uint64, 0 before each launch; clock : (1,) int64, updates before this call
    batch, count : rows of a batch and of the call
    """
    cuda, uint64, float32 = dev.cuda, dev.uint64, dev.float32
    barrier, forward, losses = (
        make_barrier(dev),
        forward_of(dev, kind, shape, kind.drops),
        make_losses(dev, kind.loss, kind.output, kind.classes),
    )
    apply_gradient = make_apply_gradient(dev, kind.rule, kind.penalised, kind.clips)
    if isinstance(shape, Tile):
        delta = make_tiled_delta(dev, shape, kind.precision)
        gradient = make_tiled_gradient(dev, shape, kind.precision, kind.pixels, apply_gradient)
    else:
        delta, gradient = (
            make_delta(dev, shape.threads),
            make_gradient(dev, shape.threads, shape.staged, kind.pixels, apply_gradient),
        )
    squares, clip = make_clip(dev, shape.threads, kind.rule)
    memory, clips = shape.shared(dev.WARP), kind.clips

    @dev.kernel(shape.threads, shape.resident)
    def train(
        table, alpha, thresholds, scales, x, shift, factor, y, on_value, off_value, indices, loss_weight, loss, correct,
        scalars, parameters, m, v, gradients, partial, arena, counter, clock, batch, count, first, end, seed, largest,
    ):  # fmt: skip
        shared = cuda.shared.array(memory, float32, alignment=16)
        layers = len(table) // COLUMNS
        each, target = 2 * layers + 1 + (2 if clips else 0), uint64(0)
        tables, inputs, slots = (table, alpha, thresholds, scales), (x, shift, factor), (m, v)
        for phase in range(first, end):
            now = phase // each
            start, q, at = now * batch, phase - now * each, 2 * SCALAR_COUNT * now
            rows = min(batch, count - start)
            s = (scalars[at : at + SCALAR_COUNT], scalars[at + SCALAR_COUNT : at + 2 * SCALAR_COUNT])
            if q < layers:
                forward(q, layers - 1, tables, inputs, indices, start, rows, clock[0] + now, seed, parameters, arena, shared)
            elif q == layers:
                losses(layers - 1, table, y, on_value, off_value, indices, loss_weight, start, rows, arena, loss, correct)
            elif q <= 2 * layers:
                i = 2 * layers - q
                if i > 0:
                    delta(i, table, rows, parameters, arena, shared)
                for layer in range(i + 1 if i > 0 else 0, min(i + 2, layers)):
                    turn = cuda.gridDim.x // 2 if layer > 0 else 0
                    gradient(layer, turn, table, inputs, indices, start, rows, s, parameters, slots, gradients, arena, shared)
            elif q == 2 * layers + 1:
                squares(len(parameters), gradients, partial)
            else:
                clip(len(parameters), layers, table, s, largest, gradients, partial, parameters, slots)
            if phase + 1 < end:
                target += uint64(cuda.gridDim.x)
                barrier(counter, target)

    return train


def apply_spec(kind: KernelSpec) -> KernelSpec:
    """Options of the kernel `apply`, which does not depend on the update."""
    return kind._replace(rule="", drops=False, penalised=False, clips=False)


def make_apply(dev: Any, kind: KernelSpec, shape: Shape | Tile) -> Any:
    """The kernel apply(…): forward pass without dropout, and, if `evaluates` is not 0, loss and correctness of each row.

    The arguments are those of `make_train`, for the rows indices[start], …, indices[start + rows - 1]. loss and correct are
    written from index start on; they and y are used only for evaluation, without label smoothing.
    """
    cuda, float32, uint64 = dev.cuda, dev.float32, dev.uint64
    barrier, forward = make_barrier(dev), forward_of(dev, kind, shape, drops=False)
    losses = make_losses(dev, kind.loss, kind.output, kind.classes, training=False)
    memory, on_value, off_value = shape.shared(dev.WARP), float32(1), float32(0)

    @dev.kernel(shape.threads, shape.resident)
    def apply(
        table, alpha, thresholds, scales, x, shift, factor, y, indices, loss, correct, parameters, arena, counter,
        start, rows, evaluates,
    ):  # fmt: skip
        shared = cuda.shared.array(memory, float32, alignment=16)
        layers, target = len(table) // COLUMNS, uint64(0)
        tables, inputs = (table, alpha, thresholds, scales), (x, shift, factor)
        for layer in range(layers):
            forward(layer, layers - 1, tables, inputs, indices, start, rows, 0, uint64(0), parameters, arena, shared)
            if layer + 1 < layers or evaluates != 0:
                target += uint64(cuda.gridDim.x)
                barrier(counter, target)
        if evaluates != 0:
            # the loss array replaces the weights of rows, which only training reads
            losses(layers - 1, table, y, on_value, off_value, indices, loss, start, rows, arena, loss, correct)

    return apply


def make_barriers(dev: Any, kind: KernelSpec, shape: Shape | Tile) -> Any:
    """The kernel barriers(counter, count): only `count` barriers over the whole grid; does not depend on the kind.

    counter : (1,) uint64, 0 before each launch. For the test of a device, and to measure the cost of a barrier.
    """
    cuda, uint64, barrier = dev.cuda, dev.uint64, make_barrier(dev)

    @dev.kernel(shape.threads, shape.resident)
    def barriers(counter, count):
        target = uint64(0)
        for _ in range(count):
            target += uint64(cuda.gridDim.x)
            barrier(counter, target)

    return barriers


KERNELS: Mapping[str, Callable[[Any, KernelSpec, Shape | Tile], Any]] = {
    "train": make_train,
    "apply": make_apply,
    "barriers": make_barriers,
    "activations": lambda dev, kind, shape: make_activations(dev, shape.threads, shape.resident, kind.activations),
    "updates": lambda dev, kind, shape: make_updates(dev, shape.threads, shape.resident, kind.rule),
    "dropout": lambda dev, kind, shape: make_dropout(dev, shape.threads, shape.resident),
}


def arguments_of(name: str, kind: KernelSpec) -> tuple[str, ...]:
    """The types of the arguments of a kernel of `KERNELS`, "[]" for an array."""
    if name in ARGUMENTS:
        return ARGUMENTS[name]
    x, y = "uint8[]" if kind.pixels else "float32[]", "int32[]" if kind.classes else "float32[]"
    network, rows = ("int32[]", "float32[]", "uint32[]", "float32[]"), (x, "float32[]", "float32[]")
    if name == "barriers":
        return "uint64[]", "int32"
    if name == "apply":
        return (*network, *rows, y, "int32[]", "float32[]", "bool[]", "float32[]", "float32[]", "uint64[]", *["int32"] * 3)
    of_rows = (y, "float32", "float32", "int32[]", "float32[]", "float32[]", "bool[]")
    stores = (*["float32[]"] * 5, "float64[]", "float32[]", "uint64[]", "int64[]")
    return (*network, *rows, *of_rows, *stores, *["int32"] * 4, "uint64", "float32")
