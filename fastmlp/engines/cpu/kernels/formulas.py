"""Kernels that differ between networks: activations, losses, update rules, penalties, dropout, and input scaling.

The training and prediction kernels call each of these kernels by its address, for whole rows or blocks of rows. The training
and prediction kernels are therefore compiled only once for all networks. A new network compiles only those formulas that are
not in the disk cache.

Addresses are in bytes, strides and sizes in elements.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.engines.cpu.codegen.compiler import address_of, compiled, compiled_custom, compiled_with_callees
from fastmlp.engines.cpu.codegen.intrinsics import array_at, smaller
from fastmlp.engines.cpu.codegen.vector_random import make_drop
from fastmlp.engines.cpu.kernels.gemm import FLOAT_BYTES, gradient_address, product_address
from fastmlp.engines.cpu.kernels.losses import loss_address
from fastmlp.engines.cpu.plan import FUSED
from fastmlp.engines.functions import naming_activation
from fastmlp.nn.activations import ACTIVATIONS, digest_of, formulas_of
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import RULES, SCALARS, with_penalties

ZERO = np.float32(0)
SCALAR_COUNT = len(SCALARS)


class KernelTable(NamedTuple):
    """Addresses of the kernels that training and prediction call for one network; 0 means that a kernel is not needed.

    product : see `product_address`
    gradient : see `gradient_address`
    scale : see `scale_address`; 0 if the rows need no scaling and are read in place
    loss : see `losses.loss_address`
    update : see `update_address`
    penalise : see `penalise_address`
    drop : see `drop_address`
    activations : (hidden layers,) int64, see `activation_address`; 0 for activations computed in the epilogue of the product
    in_registers : whether the update is computed in the epilogue of the gradient. This is not possible with gradient clipping,
        which needs all gradients before the first update
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
    """Return the prediction kernels for input rows of dtype `pixels`.

    fused : whether activations may run as epilogues of the matrix products; False is slower
    scaled : whether the rows are copied and scaled; if not, they must be float32
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
    """Return the training kernels for input rows of dtype `pixels` (uint8 or float32).

    rule : name of the update rule
    clip : whether the gradient is clipped
    fused : whether activations and updates may run as epilogues of the matrix products; False is slower
    scaled : see `prediction_table`
    """
    in_registers, penalised = fused and not clip, network.l1 > 0 or network.l2 > 0
    dropped = [layer.dropout > 0 for layer in network.layers[:-1]]
    table = prediction_table(network, pixels, lanes, fused, scaled)
    for number, (layer, drops) in enumerate(zip(network.layers[:-1], dropped, strict=True)):
        if drops and layer.activation == "linear":  # with dropout the slopes must be stored
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
    """Return the address of scale(x, shift, factor, out, n): out = (x - shift) * factor for a row of n uint8 or float32."""
    kind = np.dtype(pixels).type

    def scale(x, shift, factor, out, n):
        row, scaled = array_at(x, n, kind), array_at(out, n, np.float32)
        shifts, factors = array_at(shift, n, np.float32), array_at(factor, n, np.float32)
        for k in range(n):
            scaled[k] = (np.float32(row[k]) - shifts[k]) * factors[k]

    return address_of(scale, f"scale {pixels}", 5)


def activation_address(name: str) -> int:
    """Return the address of the kernel of an activation, see `activate_address`.

    Raises
    ------
    ConfigError : it is a custom activation that is not registered in this process, or that Numba cannot compile
    """
    value, slope, _ = formulas_of(name)
    if name in ACTIVATIONS:
        return activate_address(compiled_with_callees(value), compiled_with_callees(slope), f"activate {name}")
    with naming_activation(name):
        # The name of the kernel in the disk cache contains the code of the functions.
        return activate_address(compiled_custom(value), compiled_custom(slope), f"activate {name} {digest_of(name)}")


@functools.cache
def activate_address(value: Any, slope: Any, name: str) -> int:
    """Return the address of activate(y, s, ld, rows, columns, padded, a), which replaces z in y by f(z) and writes f'(z) to s.

    The block has `rows` rows with leading dimension `ld` and `padded` columns. The columns from `columns` on are padding and
    are set to zero. `a` is the parameter of the activation.
    """

    def activate(y, s, ld, rows, columns, padded, a):
        for r in range(rows):
            at = r * ld * FLOAT_BYTES
            y_row, s_row = array_at(y + at, padded, np.float32), array_at(s + at, padded, np.float32)
            for i in range(padded):
                z = y_row[i]
                y_row[i] = value(z, a)
                s_row[i] = slope(z, y_row[i], a)
            for i in range(columns, padded):  # padding must be zero even if f(0) is not
                y_row[i] = s_row[i] = ZERO

    return address_of(activate, name, 6, 1)


@compiled
def scalars_at(address):
    """Return the scalars of one step (`SCALARS`) as a tuple, so that loops over parameters can keep them in registers."""
    row = array_at(address, SCALAR_COUNT, np.float32)
    return (row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9])


@functools.cache
def update_address(rule_name: str) -> int:
    """Return the address of update(p, m, v, g, n, scalars), which applies an update rule to n parameters.

    The slots m and v are neither read nor written if the rule does not have them.
    """
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
    """Return the address of penalise(p, g, n, scalars), which adds the gradient of the L1 and L2 penalties to g."""
    formula = compiled_with_callees(with_penalties)

    def penalise(p, g, n, scalars):
        s, ps, gs = scalars_at(scalars), array_at(p, n, np.float32), array_at(g, n, np.float32)
        for i in range(n):
            gs[i] = formula(ps[i], gs[i], s)

    return address_of(penalise, "penalise", 4)


@functools.cache
def drop_address(lanes: int) -> int:
    """Return the address of drop(y, s, slopes, ld, column, columns, layer, row, rows, step, seed, threshold, scale).

    It applies the dropout mask of `philox.keep_mask` to a block of activations: kept units are multiplied by `scale`, the
    others by 0. The block has the columns [column, column + columns) of the rows [row, row + rows) of the batch; `column` and
    `columns` must be multiples of `lanes`. y is the address of the block, and its rows are `ld` elements apart. If `slopes` is
    not 0, the block of slopes at address s is multiplied by the same factors.
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
