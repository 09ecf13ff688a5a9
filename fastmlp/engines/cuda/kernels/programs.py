"""Kernels for training and inference on NVIDIA GPUs. One launch can run many training steps.

A training step is divided into phases, which are separated by grid-wide barriers or by kernel launches. A step of a network
with L layers, numbered from 0, has 2 L + 1 phases, and two more if the gradient is clipped:

======== =================================================== ===================================
phase    work                                                results are read by
======== =================================================== ===================================
0 … L-1  forward pass of layer i, with i = phase              the next phases
L        losses of the rows; dz of the last layer            the next phases
L+1 … 2L with i = 2L - phase: dz of layer i-1 if i > 0;      the next phases; the next step
         gradient and update of layer i+1 if i+1 < L; and
         gradient and update of layer 0 if i = 0
2L+1     sums of squares of the gradient                     the next phase
2L+2     norm of the gradient; update of all parameters      the next step
======== =================================================== ===================================

The parameters of layer i+1 are updated only when dz of layer i, which depends on its weights, has been computed.
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
    """Options with which a kernel is compiled. Sizes and values are arguments of the kernel instead.

    activations : unique names, in the order of `DeviceLayout.activations`
    loss, output, rule : names of the loss, of the output function, and of the optimizer
    pixels : whether the inputs are uint8
    classes : whether the targets are class labels
    drops, penalised, clips : whether there is dropout, an L1 or L2 penalty, and gradient clipping
    precision : precision of the operands of matrix products; kernels for small mini-batches support only float32
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
    """Block shape for small mini-batches.

    threads : threads per block, a power of four
    staged : rows of the mini-batch that `gradient` holds in shared memory at a time
    resident : minimum number of resident blocks per multiprocessor
    """

    threads: int = 256
    staged: int = 32
    resident: int = 1

    def shared(self, lanes: int) -> int:
        """Float32 elements of shared memory: enough for the sums of the warps, and enough for the rows of `gradient`."""
        return max(SUMS * self.threads // lanes, 2 * self.staged * 2 * round(self.threads**0.5))


def phases(layers: int, clips: bool) -> int:
    """Return the number of phases of a training step.

    >>> phases(2, False), phases(1, True)
    (5, 5)
    """
    return 2 * layers + 1 + 2 * clips


def forward_of(dev: Any, kind: KernelSpec, shape: Shape | Tile, drops: bool) -> Any:
    """Return the function of the forward phase: the tiled one if `shape` is a `Tile`, else the one for small mini-batches."""
    if isinstance(shape, Tile):
        return make_tiled_forward(dev, shape, kind.precision, kind.pixels, kind.activations, drops)
    return make_forward(dev, shape.threads, kind.pixels, kind.activations, drops)


def make_train(dev: Any, kind: KernelSpec, shape: Shape | Tile) -> Any:
    """Return the kernel train(…), which runs phases `first` to `end` - 1 of a call to `Engine.train`.

    If a launch has more than one phase, its blocks wait for each other, so all of them must be resident at the same time.

    table, alpha, thresholds, scales : see `DeviceLayout`
    x, shift, factor : (n * width,), (width,), (width,), inputs and their scaling
    y : labels (n,), or float targets (n * outputs,)
    on_value, off_value : smoothed targets of the labelled class and of the other classes
    loss_parameter : parameter of the loss
    indices, loss_weight : (count,), row numbers and the weights of the rows in the loss of their mini-batch
    loss, correct : (count,), results
    scalars : (steps * 2 * SCALAR_COUNT,), scalars of the update for weights and for biases
    parameters, m, v, gradients : (size,); m, v and gradients are (1,) if they are not used
    partial : partial sums of the squares of the gradient
    arena : see `DeviceLayout`
    counter : (1,) uint64, must be 0 before each launch with more than one phase
    clock : (1,) int64, number of updates before this call
    batch, count : number of rows of a mini-batch and of the call
    seed : seed of dropout
    largest : maximum norm of the gradient
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
        table, alpha, thresholds, scales, x, shift, factor, y, on_value, off_value, loss_parameter, indices, loss_weight,
        loss, correct, scalars, parameters, m, v, gradients, partial, arena, counter, clock, batch, count, first, end, seed,
        largest,
    ):  # fmt: skip
        shared = cuda.shared.array(memory, float32, alignment=16)
        layers = len(table) // COLUMNS
        each, target = 2 * layers + 1 + (2 if clips else 0), uint64(0)
        tables, inputs, slots = (table, alpha, thresholds, scales), (x, shift, factor), (m, v)
        constants = (on_value, off_value, loss_parameter)
        for phase in range(first, end):
            now = phase // each
            start, q, at = now * batch, phase - now * each, 2 * SCALAR_COUNT * now
            rows = min(batch, count - start)
            s = (scalars[at : at + SCALAR_COUNT], scalars[at + SCALAR_COUNT : at + 2 * SCALAR_COUNT])
            if q < layers:
                forward(q, layers - 1, tables, inputs, indices, start, rows, clock[0] + now, seed, parameters, arena, shared)
            elif q == layers:
                losses(layers - 1, table, y, constants, indices, loss_weight, start, rows, arena, loss, correct)
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
    """Return the options of the kernel `apply`. Those for training are cleared, so that fewer variants are compiled."""
    return kind._replace(rule="", drops=False, penalised=False, clips=False)


def make_apply(dev: Any, kind: KernelSpec, shape: Shape | Tile) -> Any:
    """Return the kernel apply(…), which computes the forward pass without dropout for a block of rows.

    The rows are indices[start], …, indices[start + rows - 1]. If `evaluates` is not 0, the kernel also computes the loss of
    each row, without label smoothing, and whether its prediction is correct. It writes them to loss and correct from index
    `start` on. Otherwise y, loss and correct are not used. The other arguments are those of `make_train`.
    """
    cuda, float32, uint64 = dev.cuda, dev.float32, dev.uint64
    barrier, forward = make_barrier(dev), forward_of(dev, kind, shape, drops=False)
    losses = make_losses(dev, kind.loss, kind.output, kind.classes, training=False)
    memory, on_value, off_value = shape.shared(dev.WARP), float32(1), float32(0)

    @dev.kernel(shape.threads, shape.resident)
    def apply(
        table, alpha, thresholds, scales, x, shift, factor, y, loss_parameter, indices, loss, correct, parameters, arena,
        counter, start, rows, evaluates,
    ):  # fmt: skip
        shared = cuda.shared.array(memory, float32, alignment=16)
        layers, target = len(table) // COLUMNS, uint64(0)
        tables, inputs = (table, alpha, thresholds, scales), (x, shift, factor)
        constants = (on_value, off_value, loss_parameter)
        for layer in range(layers):
            forward(layer, layers - 1, tables, inputs, indices, start, rows, 0, uint64(0), parameters, arena, shared)
            if layer + 1 < layers or evaluates != 0:
                target += uint64(cuda.gridDim.x)
                barrier(counter, target)
        if evaluates != 0:
            # `loss` is passed in place of loss_weight, which is not read
            losses(layers - 1, table, y, constants, indices, loss, start, rows, arena, loss, correct)

    return apply


def make_barriers(dev: Any, kind: KernelSpec, shape: Shape | Tile) -> Any:
    """Return the kernel barriers(counter, count), which only executes `count` grid-wide barriers. It ignores `kind`.

    It is used to test a device and to measure the cost of a barrier.

    counter : (1,) uint64, must be 0 before each launch
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
    """Return the types of the arguments of a kernel of `KERNELS`, such as "int32", or "int32[]" for an array."""
    if name in ARGUMENTS:
        return ARGUMENTS[name]
    x, y = "uint8[]" if kind.pixels else "float32[]", "int32[]" if kind.classes else "float32[]"
    network, rows = ("int32[]", "float32[]", "uint32[]", "float32[]"), (x, "float32[]", "float32[]")
    if name == "barriers":
        return "uint64[]", "int32"
    if name == "apply":
        results = ("float32[]", "bool[]")
        return (*network, *rows, y, "float32", "int32[]", *results, "float32[]", "float32[]", "uint64[]", *["int32"] * 3)
    of_rows = (y, *["float32"] * 3, "int32[]", "float32[]", "float32[]", "bool[]")
    stores = (*["float32[]"] * 5, "float64[]", "float32[]", "uint64[]", "int64[]")
    return (*network, *rows, *of_rows, *stores, *["int32"] * 4, "uint64", "float32")
