"""Kernels that differ between networks: activations, losses, update rules, penalties, dropout, scaling by input dtype.

The training and prediction kernels call each by address, for whole rows or blocks. So those two are compiled once for all
networks, and a new network compiles only formulas that are not in the cache.

Addresses in bytes, strides and sizes in elements.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.engines.cpu.codegen.compiler import address_of, compiled, compiled_with_callees
from fastmlp.engines.cpu.codegen.intrinsics import array_at, smaller
from fastmlp.engines.cpu.codegen.vector_random import make_drop
from fastmlp.engines.cpu.kernels.gemm import FLOAT_BYTES, gradient_address, product_address
from fastmlp.engines.cpu.kernels.losses import loss_address
from fastmlp.engines.cpu.plan import FUSED
from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import RULES, SCALARS, with_penalties

ZERO = np.float32(0)
SCALAR_COUNT = len(SCALARS)


class KernelTable(NamedTuple):
    """Addresses of the kernels that training and prediction call for one network; 0 for those that it does not need.

    product : see `product_address`
    scale : see `scale_address`; 0 for rows that need no scaling and are read in place
    gradient : see `gradient_address`
    drop : see codegen/vector_random.py
    loss : see losses.py
    update, penalise : see the functions below
    activations : (hidden layers,) int64, of activations that are not fused
    in_registers : whether the update is an epilogue of the gradient; clipping needs all gradients before the first update
    """

    product: int
    gradient: int
    scale: int
    loss: int
    update: int
    penalise: int
    drop: int
    activations: npt.NDArray[np.int64]
    in_registers: bool


NO_KERNELS = KernelTable(0, 0, 0, 0, 0, 0, 0, np.empty(0, np.int64), False)


def prediction_table(
    network: Network, pixels: npt.DTypeLike, lanes: int, fused: bool = True, scaled: bool = True
) -> KernelTable:
    """Kernels of prediction for rows of dtype `pixels`; `fused` as in `training_table`.

    scaled : whether the rows are scaled; if not, they must be float32
    """
    activations = [
        0 if fused and layer.activation in FUSED else activation_address(layer.activation) for layer in network.layers[:-1]
    ]
    scale = scale_address(np.dtype(pixels).name) if scaled else 0
    return KernelTable(product_address(lanes), 0, scale, 0, 0, 0, 0, np.array(activations, np.int64), False)


def training_table(
    network: Network,
    rule: str,
    clip: bool,
    pixels: npt.DTypeLike,
    lanes: int,
    fused: bool = True,
    scaled: bool = True,
) -> KernelTable:
    """Kernels of training for rows of dtype `pixels` (uint8 or float32).

    rule : name of the update rule
    clip : whether the gradient is clipped
    fused : whether activations and updates may run as epilogues of the tiles; slower without
    scaled : as in `prediction_table`
    """
    in_registers, penalised = fused and not clip, network.l1 > 0 or network.l2 > 0
    dropped = [layer.dropout > 0 for layer in network.layers[:-1]]
    table = prediction_table(network, pixels, lanes, fused, scaled)
    for number, (layer, drops) in enumerate(zip(network.layers[:-1], dropped, strict=True)):
        if drops and layer.activation == "linear":  # the slope of a unit with dropout must be stored
            table.activations[number] = activation_address("linear")
    return table._replace(
        gradient=gradient_address(lanes, rule if in_registers else "", penalised and in_registers),
        loss=loss_address(network, lanes),
        update=update_address(rule),
        penalise=penalise_address() if penalised and not in_registers else 0,
        drop=drop_address(lanes) if any(dropped) else 0,
        in_registers=in_registers,
    )


@functools.cache
def scale_address(pixels: str) -> int:
    """Address of scale(x, shift, factor, out, n): out = (x - shift) factor for one row of n uint8 or float32."""
    kind = np.dtype(pixels).type

    def scale(x, shift, factor, out, n):
        row, scaled = array_at(x, n, kind), array_at(out, n, np.float32)
        shifts, factors = array_at(shift, n, np.float32), array_at(factor, n, np.float32)
        for k in range(n):
            scaled[k] = (np.float32(row[k]) - shifts[k]) * factors[k]

    return address_of(scale, f"scale {pixels}", 5)


@functools.cache
def activation_address(name: str) -> int:
    """Address of activate(y, s, ld, rows, columns, padded, a): y holds z and becomes f(z), s becomes f'(z).

    A block of `rows` rows, ld apart; of its `padded` columns only `columns` count, the others become zero.
    """
    value, slope = (compiled_with_callees(f) for f in ACTIVATIONS[name][:2])

    def activate(y, s, ld, rows, columns, padded, a):
        for r in range(rows):
            at = r * ld * FLOAT_BYTES
            y_row, s_row = array_at(y + at, padded, np.float32), array_at(s + at, padded, np.float32)
            for i in range(padded):
                z = y_row[i]
                y_row[i] = value(z, a)
                s_row[i] = slope(z, y_row[i], a)
            for i in range(columns, padded):  # also where f(0) is not 0
                y_row[i] = s_row[i] = ZERO

    return address_of(activate, f"activate {name}", 6, 1)


@compiled
def scalars_at(address):
    """A row of the table of scalars as a tuple, so that loops over the parameters can keep it in registers."""
    row = array_at(address, SCALAR_COUNT, np.float32)
    return (row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9])


@functools.cache
def update_address(rule_name: str) -> int:
    """Address of update(p, m, v, g, n, scalars): the rule over n parameters. Does not touch slots that it does not have."""
    rule = compiled_with_callees(RULES[rule_name].update)
    has_m, has_v = "m" in RULES[rule_name].slots, "v" in RULES[rule_name].slots

    def update(p, m, v, g, n, scalars):
        s, ps, gs = scalars_at(scalars), array_at(p, n, np.float32), array_at(g, n, np.float32)
        ms, vs = array_at(m, n, np.float32), array_at(v, n, np.float32)
        for i in range(n):
            p_new, m_new, v_new = rule(ps[i], gs[i], ms[i] if has_m else ZERO, vs[i] if has_v else ZERO, s)
            ps[i] = p_new
            if has_m:
                ms[i] = m_new
            if has_v:
                vs[i] = v_new

    return address_of(update, f"update {rule_name}", 6)


@functools.cache
def penalise_address() -> int:
    """Address of penalise(p, g, n, scalars): g becomes the gradient of the loss with the network's penalties."""
    formula = compiled_with_callees(with_penalties)

    def penalise(p, g, n, scalars):
        s, ps, gs = scalars_at(scalars), array_at(p, n, np.float32), array_at(g, n, np.float32)
        for i in range(n):
            gs[i] = formula(ps[i], gs[i], s)

    return address_of(penalise, "penalise", 4)


@functools.cache
def drop_address(lanes: int) -> int:
    """Address of drop(y, s, slopes, ld, column, columns, layer, row, rows, step, seed, threshold, scale).

    Multiplies a block of activations, and of their slopes if asked, by the dropout factors of `philox.keep_mask`: columns
    [column, column + columns), multiples of the lanes, of rows [row, row + rows), which are `ld` apart in y and s. Addresses
    in bytes, strides in elements.
    """
    pair, single, wide = make_drop(lanes, 2, 2), make_drop(lanes, 1, 1), 2 * lanes

    def drop(y, s, slopes, ld, column, columns, layer, row, rows, step, seed, threshold, scale):
        in_pairs = columns - columns % wide
        for r in range(0, rows, 2):
            end = in_pairs if r + 1 < rows else 0
            for c in range(0, end, wide):
                at, group = (r * ld + c) * FLOAT_BYTES, (column + c) // 4
                pair(y + at, s + at, slopes, ld, group, row + r, layer, step, seed, threshold, scale)
            for i in range(r, smaller(r + 2, rows)):
                for c in range(end, columns, lanes):
                    at, group = (i * ld + c) * FLOAT_BYTES, (column + c) // 4
                    single(y + at, s + at, slopes, ld, group, row + i, layer, step, seed, threshold, scale)

    return address_of(drop, f"drop {lanes}", 12, 1)
