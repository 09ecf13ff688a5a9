"""Losses of rows, as a kernel that training and evaluation call by address; with few outputs it computes many rows at once.

LLVM unrolls the loops over few outputs and vectorises the loop over rows: a seventh of the time, and the same bits.
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
FEW_OUTPUTS = {
    16: 10,
    8: 10,
    4: 0,
}  # by lanes; LLVM unrolls no longer loops, and does not vectorise this one with short vectors
MANY_ROWS = 16  # a multiple of long vectors
LABELS_AHEAD = 16  # rows: about a microsecond of losses, within the processor's limit of outstanding loads
# A block has one column per row: z, targets and dz, followed by
LOSS, SCALE, LABEL, CORRECT, EXTRAS = range(5)

INTEGERS, FLOATS = 11, 2  # arguments of the kernel


def loss_side(network: Network, lanes: int) -> int:
    """Number of rows that a loss computes at once: many if there are few outputs, else one."""
    return MANY_ROWS if network.sizes[-1] <= FEW_OUTPUTS[lanes] else 1


def block_size(n: int, side: int) -> int:
    """Floats of a block of `side` rows of n outputs."""
    return (3 * n + EXTRAS) * side


def loss_block(network: Network, lanes: int) -> int:
    """Floats of the workspace of a network's loss."""
    return block_size(network.sizes[-1], loss_side(network, lanes))


def loss_address(network: Network, lanes: int) -> int:
    """Address of losses(block, z, dz, ld, rows, sources, labels, targets, scales, row_loss, correct, on_value, off_value).

    Loss, correctness and dz of some rows, by `nn.losses.LOSSES`. All but the last two are addresses and sizes: a block of
    `loss_block` floats as workspace; z and dz (0: not wanted) of the first row, with leading dimension ld; the indices of the
    rows in the data (int64; 0: consecutive); the labels (int32) of the data, or 0 and its targets (float32); and for each row
    the factor of its dz (float32, not read without dz), its loss (float32) and whether the first largest z is that of its
    class (bool, False without labels). on_value and off_value are the targets of a row's class and of the others.
    """
    return loss_of_rows(network.loss, network.output or "", network.sizes[-1], loss_side(network, lanes))


def loss_function(network: Network, lanes: int) -> Callable[..., None]:
    """The kernel at `loss_address`, to be called from Python."""
    return from_python(loss_address(network, lanes), INTEGERS, FLOATS)


@compiled
def label_of(labels, source):
    """A row's class."""
    return array_at(labels + source * LABEL_BYTES, 1, np.int32)[0]


@compiled
def prefetch_label(labels, source):
    """Prefetch the label of a row of the data; labels of a batch are scattered in memory."""
    prefetch(labels + source * LABEL_BYTES)


@functools.cache
def loss_of_rows(loss: str, output: str, n: int, side: int) -> int:
    """See `loss_address`."""
    return address_of(make_losses(loss, output, n, side), f"loss {loss} {output} {n} {side}", INTEGERS, FLOATS)


def make_losses(loss: str, output: str, n: int, side: int) -> Callable[..., None]:
    """The kernel before compilation."""
    fill, compute = make_fill(n, side), make_compute(compiled_with_callees(LOSSES[loss][output]), n, side)
    extra, size = 3 * n * side, block_size(n, side)

    def losses(block, z, dz, ld, rows, sources, labels, targets, scales, row_loss, correct, on_value, off_value):
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
            compute(own)
            for r in range(count):
                row = first + r
                loss_of[row], correct_of[row] = own[extra + LOSS * side + r], own[extra + CORRECT * side + r] != 0
                if dz:
                    dz_row = array_at(dz + row * ld * FLOAT_BYTES, n, np.float32)
                    for j in range(n):
                        dz_row[j] = own[(2 * n + j) * side + r]

    return losses


def make_fill(n: int, side: int) -> Any:
    """fill(own, r, z, source, labels, targets, on_value, off_value): write z, targets and label of a row to column r."""

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
    """compute(own): loss, dz and correctness of each column of a block.

    z, targets and dz lie in one block: of three addresses LLVM could not know that they do not overlap.
    """
    extra = 3 * n * side  # offset of the fields after z, targets and dz

    @compiled
    def compute(own):
        for r in range(side):
            z, t = column_of(own, r, n, side), column_of(own, n * side + r, n, side)
            dz = column_of(own, 2 * n * side + r, n, side)
            own[extra + LOSS * side + r] = formula(z, t, dz, n)
            highest, peak = z[0], np.float32(0)
            for j in range(1, n):
                higher = z[j] > highest
                highest, peak = z[j] if higher else highest, np.float32(j) if higher else peak
            own[extra + CORRECT * side + r] = peak == own[extra + LABEL * side + r]
            for j in range(n):
                dz[j] *= own[extra + SCALE * side + r]

    return compute
