"""What differs from network to network: activations, losses, update rules, penalties, dropout, the type of the pixels.

Each is a kernel of its own that the training and prediction kernels call by its address, over whole rows or blocks;
so those two are compiled once for all networks, and a new network compiles only the formulas that no other had before.

Addresses in bytes, strides and sizes in elements.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.cpu_compile import address_of, compiled, compiled_with_callees
from fastmlp.cpu_instructions import array_at
from fastmlp.cpu_plan import FUSED
from fastmlp.cpu_products import FLOAT_BYTES, gradient_address, product_address
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.network import Network
from fastmlp.optimizers import RULES, SCALARS, with_penalties
from fastmlp.philox import MASK32, ROUNDS, SHIFT32, WEYL_0, WEYL_1, philox_round

ZERO = np.float32(0)
SCALAR_COUNT = len(SCALARS)
DROP_ROWS, DROP_COLUMNS = 48, 64  # of units whose random numbers are drawn together
DROPPED = DROP_ROWS * DROP_COLUMNS


class Code(NamedTuple):
    """What the training and prediction kernels call for one network: addresses, 0 for what it does without.

    product : see `product_address`
    gradient : see `gradient_address`
    scale, loss, update, penalise, drop : see the functions below
    activations : (hidden layers,) int64, of those activations that run over rows
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


def prediction_code(network: Network, pixels: npt.DTypeLike, lanes: int, fused: bool = True) -> Code:
    """What prediction calls for rows of the type `pixels`; `fused` as in `training_code`."""
    activations = [
        0 if fused and layer.activation in FUSED else activation_address(layer.activation) for layer in network.layers[:-1]
    ]
    scale = scale_address(np.dtype(pixels).name)
    return Code(product_address(lanes), 0, scale, 0, 0, 0, 0, np.array(activations, np.int64), False)


def training_code(network: Network, rule: str, clip: bool, pixels: npt.DTypeLike, lanes: int, fused: bool = True) -> Code:
    """What training calls for rows of the type `pixels` (uint8 or float32).

    rule : name of the update rule
    clip : whether the gradient is clipped
    fused : whether activations and updates may run as epilogues of the tiles; without it everything runs, slower
    """
    in_registers, penalised = fused and not clip, network.l1 > 0 or network.l2 > 0
    dropped = [layer.dropout > 0 for layer in network.layers[:-1]]
    code = prediction_code(network, pixels, lanes, fused)
    for number, (layer, drops) in enumerate(zip(network.layers[:-1], dropped, strict=True)):
        if drops and layer.activation == "linear":  # the slope of a unit that may be dropped needs a place
            code.activations[number] = activation_address("linear")
    return code._replace(
        gradient=gradient_address(lanes, rule if in_registers else "", penalised and in_registers),
        loss=loss_address(network.loss, network.output or ""),
        update=update_address(rule),
        penalise=penalise_address() if penalised and not in_registers else 0,
        drop=drop_address() if any(dropped) else 0,
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
            for i in range(columns, padded):  # whatever f(0) is
                y_row[i] = s_row[i] = ZERO

    return address_of(activate, f"activate {name}", 6, 1)


@functools.cache
def loss_address(loss: str, output: str) -> int:
    """Address of row_loss(z, t, dz, n, result, scale): `functions.LOSSES` of one row; dz is multiplied by `scale`."""
    formula = compiled_with_callees(LOSSES[loss][output])

    def row_loss(z, t, dz, n, result, scale):
        slopes = array_at(dz, n, np.float32)
        array_at(result, 1, np.float32)[0] = formula(array_at(z, n, np.float32), array_at(t, n, np.float32), slopes, n)
        for j in range(n):
            slopes[j] *= scale

    return address_of(row_loss, f"loss {loss} {output}", 5, 1)


@compiled
def scalars_at(address):
    """A row of the table of scalars as a tuple, so that loops over parameters keep it in registers."""
    row = array_at(address, SCALAR_COUNT, np.float32)
    return (row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9])


@functools.cache
def update_address(rule_name: str) -> int:
    """Address of update(p, m, v, g, n, scalars): the rule over n parameters. Slots that the rule lacks are left alone."""
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


# ------------------------------------------------------------------------------------------------ dropout


def make_draw() -> Any:
    """draw(words, group, groups, row, rows, layer, step, seed): `philox.philox4x32` of the counters
    (group + g, row + r, layer, step), word w of each in words[w, r groups + g].

    Round by round over all of them, so that each round becomes vector instructions. words: (4, at least rows groups) uint32.
    """
    one_round = compiled(philox_round)

    @compiled
    def draw(words, group, groups, row, rows, layer, step, seed):
        k0, k1 = np.uint64(seed) & MASK32, np.uint64(seed) >> SHIFT32
        n = rows * groups  # slices of whole rows of `words` stay contiguous, which vector instructions need
        w0, w1, w2, w3 = words[0][:n], words[1][:n], words[2][:n], words[3][:n]
        for r in range(rows):
            groups_of_row, row_of_groups = w0[r * groups : (r + 1) * groups], w1[r * groups : (r + 1) * groups]
            for g in range(len(groups_of_row)):
                groups_of_row[g], row_of_groups[g] = np.uint32(group + g), np.uint32(row + r)
        w2[:], w3[:] = np.uint32(layer), np.uint32(step)
        for _ in range(ROUNDS):
            for i in range(len(w0)):
                a, b, c, d = one_round(np.uint64(w0[i]), np.uint64(w1[i]), np.uint64(w2[i]), np.uint64(w3[i]), k0, k1)
                w0[i], w1[i], w2[i], w3[i] = np.uint32(a), np.uint32(b), np.uint32(c), np.uint32(d)
            k0, k1 = (k0 + WEYL_0) & MASK32, (k1 + WEYL_1) & MASK32

    return draw


@functools.cache
def drop_address() -> int:
    """Address of drop(y, s, slopes, ld, own, column, columns, layer, row, rows, step, seed, threshold, scale).

    Multiplies a block of activations, and of their slopes if asked, by the dropout factors of `philox.keep_mask`: columns
    [column, column + columns), multiples of 4, of rows [row, row + rows), which are `ld` apart in y and s. own: a thread's
    scratch, at least 2 DROPPED floats.
    """
    draw = make_draw()

    def drop(y, s, slopes, ld, own, column, columns, layer, row, rows, step, seed, threshold, scale):
        words = array_at(own, DROPPED, np.uint32).reshape(4, DROPPED // 4)
        factors, least = array_at(own + DROPPED * FLOAT_BYTES, DROPPED, np.float32), np.uint32(threshold)
        for c in range(0, columns, DROP_COLUMNS):
            width = min(DROP_COLUMNS, columns - c)
            groups = width // 4
            for r in range(0, rows, DROP_ROWS):
                count = min(DROP_ROWS, rows - r)
                draw(words, (column + c) // 4, groups, row + r, count, layer, step, seed)
                w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
                for i in range(count * groups):
                    j = np.uint64(4 * i)  # unsigned, or Numba would ask whether it is negative
                    factors[j] = scale if w0[i] >= least else ZERO
                    factors[j + np.uint64(1)] = scale if w1[i] >= least else ZERO
                    factors[j + np.uint64(2)] = scale if w2[i] >= least else ZERO
                    factors[j + np.uint64(3)] = scale if w3[i] >= least else ZERO
                for i in range(count):
                    at = ((r + i) * ld + c) * FLOAT_BYTES
                    factor, y_row = factors[i * width : (i + 1) * width], array_at(y + at, width, np.float32)
                    for j in range(len(factor)):
                        y_row[j] *= factor[j]
                    if slopes:
                        s_row = array_at(s + at, width, np.float32)
                        for j in range(len(factor)):
                            s_row[j] *= factor[j]

    return address_of(drop, "drop", 13, 1)
