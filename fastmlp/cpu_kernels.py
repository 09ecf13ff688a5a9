"""The CPU engine's kernels: whole runs of training steps, and prediction, each one compiled function per thread.

`train_kernel` builds them for a `Specialisation`, `predict_kernel` for a `Prediction`; what differs from network to network
only in size is data (cpu_plan.py), not code. Kernels check nothing and cannot raise.

How threads share a step: see cpu_plan.py for its phases. No thread is waited for, only tasks are: a thread that the system
has put to sleep delays at most the one task it holds, and more threads than cores do no harm. Which thread computes a task
changes no bit of it: each task writes what nobody else writes, and each sum runs in a fixed order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastmlp.cpu_compile import cached, compiled, compiled_with_callees
from fastmlp.cpu_instructions import atomic_load, call
from fastmlp.cpu_pieces import (
    GRADIENT,
    ONE,
    PARAMETERS,
    PHASE,
    ZERO,
    claim,
    clip,
    drop_rows,
    first_peak,
    gather,
    last_of_phase,
    make_activate,
    make_finish,
    make_gradient,
    make_pack,
    open_phase,
    scale_row,
    scratch_size,
    wait_for_end_of,
)
from fastmlp.cpu_plan import FORWARD, GATHER, ROWS, UPDATE, WEIGHTS
from fastmlp.cpu_products import FLOAT_BYTES, gradient_address, product_address
from fastmlp.cpu_simd import BIAS, BIAS_RELU, KEEP, TIMES, WHERE_POSITIVE
from fastmlp.functions import LOSSES

# Activations that run as epilogues of the tiles; the others run their scalar functions over rows still in the cache.
FUSED = ("relu", "linear")


class Prediction(NamedTuple):
    """What the forward pass is compiled for; sizes are data.

    lanes : floats of a vector
    activations : names in use, sorted
    dropout : whether any layer may drop units
    fused : whether the activations of FUSED run as epilogues; without it everything runs, slower
    """

    lanes: int
    activations: tuple[str, ...]
    dropout: bool = False
    fused: bool = True

    @property
    def fused_codes(self) -> tuple[int, ...]:
        """Codes of the activations of FUSED, -1 for those that do not run as epilogues."""
        return tuple(self.activations.index(f) if self.fused and f in self.activations else -1 for f in FUSED)

    @property
    def always_fused(self) -> tuple[str, ...]:
        """Activations that never run over rows: the slope of a linear unit that may be dropped needs a place."""
        if not self.fused:
            return ()
        return tuple(f for f in FUSED if f != "linear" or not self.dropout)


class Specialisation(NamedTuple):
    """What training is compiled for; sizes are data.

    forward : see there
    loss, output : as in `Network`
    rule : name of the update rule
    penalised : whether the network has L1 or L2 penalties
    clip : whether the gradient is clipped
    classes : whether targets are class numbers
    """

    forward: Prediction
    loss: str
    output: str
    rule: str
    penalised: bool
    clip: bool
    classes: bool

    @property
    def in_registers(self) -> bool:
        """Whether the update is an epilogue of the gradient; clipping needs all gradients before the first update."""
        return self.forward.fused and not self.clip


# ------------------------------------------------------------------------------------------------ one layer


class Code(NamedTuple):
    """Addresses of the kernels that the entry kernels call: `product_address`, `gradient_address`."""

    product: int
    gradient: int


def make_forward(spec: Prediction) -> Any:
    """forward(code, plan, store, arena, own, layer, panel, panels, first, rows, step, seed): a block of y = f(x w + b).

    Columns of the panels [panel, panel + panels) of rows [first, first + rows) of a layer's output. The output layer keeps
    its pre-activations. Writes slopes but for activations that run fused. step < 0 means prediction: no dropout.
    `own` is the thread's scratch.
    """
    lanes, dropout = spec.lanes, spec.dropout
    relu, linear = spec.fused_codes
    activate = make_activate(spec.activations, spec.always_fused)

    @compiled
    def forward(code, plan, store, arena, own, layer, panel, panels, first, rows, step, seed):
        size, ld_x, ld_y = plan.layers[layer], plan.widths[layer].ld, plan.widths[layer + 1].ld
        hidden = layer < len(plan.layers) - 1
        inputs = arena.ctypes.data + (plan.widths[layer].y_at + first * ld_x) * FLOAT_BYTES
        block = first * ld_y + panel * lanes
        y = arena.ctypes.data + (plan.widths[layer + 1].y_at + block) * FLOAT_BYTES
        k, panel_size = size.fan_in, size.fan_in_p * lanes
        w = store.ctypes.data + (size.w_at + panel * panel_size) * FLOAT_BYTES
        b = store.ctypes.data + (size.b_at + panel * lanes) * FLOAT_BYTES
        drops = dropout and hidden and step >= 0 and size.threshold > 0
        fused = hidden and size.code == relu
        epilogue = BIAS_RELU if fused else BIAS
        call(code.product, (inputs, ld_x, w, panel_size, y, ld_y, k, rows, panels, epilogue, b, 0))
        if not hidden or ((fused or size.code == linear) and not drops):
            return
        columns, size_of_block = panels * lanes, (rows - 1) * ld_y + panels * lanes
        y_at, s_at = plan.widths[layer + 1].y_at + block, plan.widths[layer + 1].s_at + block
        y_block, s_block = arena[y_at : y_at + size_of_block], arena[s_at : s_at + size_of_block]
        if not fused:
            for r in range(rows):
                at = r * ld_y
                activate(size.code, size.parameter, y_block[at : at + columns], s_block[at : at + columns])
        if drops:
            drop_rows(
                y_block, s_block, not fused, ld_y, own, panel * lanes, columns, layer, first, rows, step, seed,
                np.uint32(size.threshold), size.keep_scale,
            )  # fmt: skip
        if fused:
            return
        true_columns = min(columns, size.fan_out - panel * lanes)
        for r in range(rows):  # padding stays zero, whatever f(0) is
            y_block[r * ld_y + true_columns : r * ld_y + columns] = ZERO
            s_block[r * ld_y + true_columns : r * ld_y + columns] = ZERO

    return forward


def make_backward(spec: Prediction) -> Any:
    """backward(code, plan, transposed, arena, layer, panel, panels, first, rows): a block of dx = (dz w') f'(z below).

    Columns of the transposed panels [panel, panel + panels) of rows [first, first + rows); layer >= 1. Reads dz of the
    layer's output, writes that of its input.
    """
    lanes = spec.lanes
    relu, linear = spec.fused_codes
    dropout = spec.dropout

    @compiled
    def backward(code, plan, transposed, arena, layer, panel, panels, first, rows):
        size, below, width = plan.layers[layer], plan.layers[layer - 1], plan.widths[layer]
        ld_dz, ld = plan.widths[layer + 1].ld, width.ld
        base, block = arena.ctypes.data, first * ld + panel * lanes
        dz = base + (plan.widths[layer + 1].dz_at + first * ld_dz) * FLOAT_BYTES
        dx = base + (width.dz_at + block) * FLOAT_BYTES
        k, panel_size = size.fan_out, size.fan_out_p * lanes
        w = transposed.ctypes.data + (size.t_at + panel * panel_size) * FLOAT_BYTES
        drops = dropout and below.threshold > 0
        epilogue, extra = TIMES, width.s_at
        if below.code == relu:  # dropped units are zeros too; `pack` scales the others
            epilogue, extra = WHERE_POSITIVE, width.y_at
        elif below.code == linear and not drops:
            epilogue = KEEP
        e = base + (extra + block) * FLOAT_BYTES
        call(code.product, (dz, ld_dz, w, panel_size, dx, ld, k, rows, panels, epilogue, e, ld))

    return backward


def make_losses(spec: Specialisation) -> Any:
    """losses(plan, batches, arena, targets, loss, correct, start, first, rows): loss, hit and dz of output rows.

    Rows [first, first + rows) of the batch that starts at `start` in the order. `targets` (outputs,) is the thread's own.
    """
    loss_row = compiled_with_callees(LOSSES[spec.loss][spec.output])
    classes = spec.classes

    @compiled
    def losses(plan, batches, arena, targets, loss, correct, start, first, rows):
        width, n = plan.widths[len(plan.layers)], plan.layers[len(plan.layers) - 1].fan_out
        for r in range(first, first + rows):
            source = batches.order[start + r]
            z_at, dz_at = width.y_at + r * width.ld, width.dz_at + r * width.ld
            z, dz = arena[z_at : z_at + n], arena[dz_at : dz_at + n]
            for j in range(n):
                targets[j] = batches.cold if classes else batches.targets[source, j]
            if classes:
                targets[batches.labels[source]] = batches.hot
                correct[start + r] = first_peak(z) == batches.labels[source]
            loss[start + r] = loss_row(z, targets, dz, n)
            for j in range(n):
                dz[j] *= batches.row_scale[start + r]

    return losses


# ------------------------------------------------------------------------------------------------ the entry kernels


def code_of(spec: Specialisation) -> Code:
    """The kernels that a training kernel calls."""
    rule = spec.rule if spec.in_registers else ""
    return Code(product_address(spec.forward.lanes), gradient_address(spec.forward.lanes, rule, spec.penalised and bool(rule)))


@functools.cache
def train_kernel(spec: Specialisation) -> Any:
    """train(t, code, plan, batches, store, transposed, arena, packed, scratch, shared, loss, correct).

    For thread t of a team.
    Compiled at its first call, or taken from the cache on disk; one per specialisation and process.
    """
    return cached(make_train(spec), f"train {spec}")


@functools.cache
def predict_kernel(spec: Prediction) -> Any:
    """predict(t, code, plan, block, x, shift, factor, store, arena, shared, z), likewise; `block` rows at a time."""
    return cached(make_predict(spec), f"predict {spec}")


def make_task(spec: Specialisation) -> Any:
    """run_task(code, kind, wide, task, plan, batches, buffers …, step, start, rows): one task of a phase of a step.

    What each kind of phase reads was written in earlier phases, and what a task writes no other task of its phase touches.
    """
    lanes, clipped, in_registers = spec.forward.lanes, spec.clip, spec.in_registers
    forward, backward, losses = make_forward(spec.forward), make_backward(spec.forward), make_losses(spec)
    gradient, finish = make_gradient(lanes, spec.penalised, in_registers), make_finish(lanes, spec.rule)
    targets_at, pack = scratch_size(), make_pack(lanes)
    relu, _ = spec.forward.fused_codes

    @compiled
    def run_task(
        code, kind, wide, task, plan, batches, store, transposed, arena, packed, own, loss, correct, step, start, rows
    ):
        if kind in (WEIGHTS, UPDATE):
            # WEIGHTS reads all rows of x, y and dz; writes its rectangle of weights, slots and transposed weights (clipped:
            # of the gradient). UPDATE reads its rectangle of the clipped gradient; writes that of the others.
            if kind == WEIGHTS:
                gradient(code, plan, store, arena, packed, own, batches.scalars[step], task, rows)
            if kind == UPDATE or not clipped:
                finish(plan, store, transposed, batches.scalars[step], task, not in_registers)
            return
        first, count = task.first, min(task.rows, rows - task.first)  # the last batch may be short
        if count <= 0:
            return
        if kind == GATHER or (kind == ROWS and wide == 0):
            # Writes its rows of the scaled inputs.
            gather(batches, start, first, count, plan.widths[0], arena)
        if kind == GATHER:
            return
        # FORWARD reads its columns of w and its rows of x or of the layer below; writes its block of y and s. BACKWARD reads
        # its columns of the transposed w, its rows of dz above and its block of y or s; writes its block of dz. ROWS does
        # both for all columns of its rows, in every layer from `wide` on, and writes their loss and hits.
        rest, top = kind == ROWS, len(plan.layers) - 1
        for layer in range(wide, (top if rest else wide if kind == FORWARD else wide - 1) + 1):
            panels = plan.layers[layer].fan_out_p // lanes if rest else task.panels
            forward(code, plan, store, arena, own, layer, task.panel, panels, first, count, batches.step + step, batches.seed)
        if rest:
            losses(plan, batches, arena, own[targets_at:], loss, correct, start, first, count)
            pack(plan, arena, packed, top + 1, task.panel, plan.layers[top].fan_out_p // lanes, first, count, ONE)
        lowest = max(wide, 1) if kind != FORWARD else top + 1
        for layer in range(top if rest else wide, lowest - 1, -1):
            panels = plan.layers[layer].fan_in_p // lanes if rest else task.panels
            backward(code, plan, transposed, arena, layer, task.panel, panels, first, count)
            below = plan.layers[layer - 1]
            scale = below.keep_scale if below.code == relu and below.threshold > 0 else ONE
            pack(plan, arena, packed, layer, task.panel, panels, first, count, scale)

    return run_task


def make_train(spec: Specialisation) -> Callable[..., None]:
    """Training steps: every loop of a chunk of steps, for one thread."""
    clipped, run_task = spec.clip, make_task(spec)

    def train(t, code, plan, batches, store, transposed, arena, packed, scratch, shared, loss, correct):
        steps, phases, threads = len(batches.scalars), len(plan.phases), plan.shares.shape[1] - 1
        while True:
            now = atomic_load(shared + 8 * PHASE)
            step, index = now // phases, now % phases
            if step >= steps:
                return
            phase = plan.phases[index]
            start = step * batches.batch_size
            rows = min(batches.batch_size, len(batches.order) - start)
            done = np.int64(0)  # a literal would have Numba compile what takes it twice
            for turn in range(threads):
                share = (t + turn) % threads
                first, end = plan.shares[index, share], plan.shares[index, share + 1]
                while True:
                    ticket = claim(shared, share, now, end - first)
                    if ticket < 0:
                        break
                    task = plan.tasks[phase.first + first + ticket]
                    run_task(
                        code, phase.kind, phase.layer, task, plan, batches, store, transposed, arena, packed, scratch[t],
                        loss, correct, step, start, rows,
                    )  # fmt: skip
                    done += 1
            if last_of_phase(shared, done, phase.tasks):
                if clipped and phase.kind == WEIGHTS:
                    clip(store[GRADIENT], batches.clip_norm)
                open_phase(shared, threads, now + 1)
            else:
                wait_for_end_of(shared, now)

    return train


def make_predict(spec: Prediction) -> Callable[..., None]:
    """Prediction: one phase, a task is a block of rows that passes through the thread's own rows of the arena."""
    lanes = spec.lanes
    forward = make_forward(spec)

    def predict(t, code, plan, block, x, shift, factor, store, arena, shared, z):
        own, last = arena[t], len(plan.layers)
        inputs, outputs = plan.widths[0], plan.widths[last]
        tasks = -(-len(x) // block)
        while True:
            ticket = claim(shared, 0, 0, tasks)
            if ticket < 0:
                return
            start = ticket * block
            rows = min(block, len(x) - start)
            for r in range(rows):
                at = inputs.y_at + r * inputs.ld
                scale_row(x[start + r], shift, factor, own[at : at + inputs.ld])
            for layer in range(last):
                panels = plan.layers[layer].fan_out_p // lanes
                forward(code, plan, store[PARAMETERS], own, own, layer, 0, panels, 0, rows, -1, np.uint64(0))
            for r in range(rows):
                at = outputs.y_at + r * outputs.ld
                z_row, row = z[start + r], own[at : at + outputs.ld]
                for j in range(len(z_row)):
                    z_row[j] = row[j]

    return predict
