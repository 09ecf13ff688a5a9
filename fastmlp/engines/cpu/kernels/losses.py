"""The loss kernel, which training and evaluation call by its address.

For networks with few outputs the kernel computes many rows at once: LLVM unrolls the loops over the outputs and vectorises the
loop over the rows. This takes a seventh of the time and gives bitwise identical results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastmlp.engines.cpu.codegen.compiler import address_of, compiled, compiled_with_callees, from_python
from fastmlp.engines.cpu.codegen.intrinsics import array_at, column_of, prefetch, smaller
from fastmlp.engines.cpu.kernels.gemm import FLOAT_BYTES
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.network import Network

LABEL_BYTES = 4
# Maximum number of outputs for which many rows are computed at once, by vector lanes. LLVM does not unroll longer loops, and
# with vectors of 4 lanes it does not vectorise the loop over rows.
FEW_OUTPUTS = {16: 10, 8: 10, 4: 0}
MANY_ROWS = 16  # number of rows computed at once: a multiple of every vector length
# How many rows ahead a label is prefetched. The losses of 16 rows take about a microsecond, and the processor supports more
# than 16 outstanding loads.
LABELS_AHEAD = 16
# The workspace (block) has one column per row of the batch. Each column contains z, the targets, dz and these fields:
LOSS, SCALE, LABEL, CORRECT, EXTRAS = range(5)

INTEGERS, FLOATS = 11, 3  # arguments of the kernel


def loss_side(network: Network, lanes: int) -> int:
    """Return the number of rows that the loss kernel computes at once: MANY_ROWS if there are few outputs, else 1."""
    return MANY_ROWS if network.sizes[-1] <= FEW_OUTPUTS[lanes] else 1


def block_size(n: int, side: int) -> int:
    """Return the number of floats of the workspace for `side` rows of n outputs."""
    return (3 * n + EXTRAS) * side


def loss_block(network: Network, lanes: int) -> int:
    """Return the number of floats of the workspace that the loss kernel of a network needs."""
    return block_size(network.sizes[-1], loss_side(network, lanes))


def loss_address(network: Network, lanes: int) -> int:
    """Return the address of the loss kernel.

    For `rows` rows, it computes the loss and dz with the functions in `nn.losses.LOSSES`, and whether each prediction is
    correct.

    Its signature is losses(block, z, dz, ld, rows, sources, labels, targets, scales, row_loss, correct, on_value, off_value,
    a). Apart from sizes and the last three arguments, all arguments are addresses.

    block : workspace of `loss_block` floats
    z, dz, ld : pre-activations and gradients of the first row, and their leading dimension; if dz is 0, no gradients are
        computed
    sources : int64, index of each row in the data; 0 means that the rows are consecutive
    labels, targets : int32 labels and float32 targets of the data; one of the two is 0
    scales : float32, factor of dz for each row; not read if dz is 0
    row_loss : float32, the loss of each row is written here
    correct : bool, whether the prediction for each row is correct, that is, whether the first maximum of z is at the row's
        class; False without labels
    on_value, off_value : float32, target values of the row's class and of the other classes
    a : float32, parameter of the loss
    """
    return loss_of_rows(network.loss_name, network.output or "", network.sizes[-1], loss_side(network, lanes))


def loss_function(network: Network, lanes: int) -> Callable[..., None]:
    """Return the kernel at `loss_address` as a function that can be called from Python."""
    return from_python(loss_address(network, lanes), INTEGERS, FLOATS)


@compiled
def label_of(labels, source):
    """Return the label of row `source` of the data."""
    return array_at(labels + source * LABEL_BYTES, 1, np.int32)[0]


@compiled
def prefetch_label(labels, source):
    """Prefetch the label of row `source` of the data, because the labels of a shuffled batch are scattered in memory."""
    prefetch(labels + source * LABEL_BYTES)


@functools.cache
def loss_of_rows(loss: str, output: str, n: int, side: int) -> int:
    """Return the address of the loss kernel for n outputs and `side` rows at once, see `loss_address`."""
    return address_of(make_losses(loss, output, n, side), f"loss {loss} {output} {n} {side}", INTEGERS, FLOATS)


def make_losses(loss: str, output: str, n: int, side: int) -> Callable[..., None]:
    """Return the Python function that is compiled to the loss kernel, see `loss_address`."""
    fill, compute = make_fill(n, side), make_compute(compiled_with_callees(LOSSES[loss][output]), n, side)
    extra, size = 3 * n * side, block_size(n, side)

    def losses(block, z, dz, ld, rows, sources, labels, targets, scales, row_loss, correct, on_value, off_value, a):
        own, source_of = array_at(block, size, np.float32), array_at(sources, rows, np.int64)
        scale_of, loss_of = array_at(scales, rows, np.float32), array_at(row_loss, rows, np.float32)
        correct_of = array_at(correct, rows, np.bool_)
        for first in range(0, rows, side):
            count = smaller(side, rows - first)
            for r in range(count):
                row = first + r
                fill(
                    own, r, z + row * ld * FLOAT_BYTES, source_of[row] if sources else row, labels, targets, on_value, off_value
                )
                if labels and sources and row + LABELS_AHEAD < rows:
                    prefetch_label(labels, source_of[row + LABELS_AHEAD])
                if dz:
                    own[extra + SCALE * side + r] = scale_of[row]
            compute(own, a)
            for r in range(count):
                row = first + r
                loss_of[row], correct_of[row] = own[extra + LOSS * side + r], own[extra + CORRECT * side + r] != 0
                if dz:
                    dz_row = array_at(dz + row * ld * FLOAT_BYTES, n, np.float32)
                    for j in range(n):
                        dz_row[j] = own[(2 * n + j) * side + r]

    return losses


def make_fill(n: int, side: int) -> Any:
    """Return fill(own, r, z, source, labels, targets, on_value, off_value).

    It writes z, the targets and the label of a row to column r of the workspace.
    """

    @compiled
    def fill(own, r, z, source, labels, targets, on_value, off_value):
        z_row, t_row = array_at(z, n, np.float32), array_at(targets + source * n * FLOAT_BYTES, n, np.float32)
        for j in range(n):
            own[j * side + r] = z_row[j]
            own[(n + j) * side + r] = off_value if labels else t_row[j]
        label = label_of(labels, source) if labels else -1
        if labels:
            own[(n + label) * side + r] = on_value
        own[(3 * n + LABEL) * side + r] = label

    return fill


def make_compute(formula: Any, n: int, side: int) -> Any:
    """Return compute(own, a), which computes loss, dz and correctness for each column of the workspace.

    z, targets and dz are stored in a single array. With three separate addresses LLVM could not prove that they do not
    overlap.
    """
    extra = 3 * n * side  # offset of the fields after z, targets and dz

    @compiled
    def compute(own, a):
        for r in range(side):
            z, t = column_of(own, r, n, side), column_of(own, n * side + r, n, side)
            dz = column_of(own, 2 * n * side + r, n, side)
            own[extra + LOSS * side + r] = formula(z, t, dz, n, a)
            highest, peak = z[0], np.float32(0)
            for j in range(1, n):
                higher = z[j] > highest
                highest, peak = z[j] if higher else highest, np.float32(j) if higher else peak
            own[extra + CORRECT * side + r] = peak == own[extra + LABEL * side + r]
            for j in range(n):
                dz[j] *= own[extra + SCALE * side + r]

    return compute
