"""The two main kernels of the CPU engine, one for training steps and one for prediction. Every thread calls the same kernel.

`train_kernel` and `predict_kernel` work for every network. They read the layer sizes from a plan (cpu/plan.py) at run time,
and call the matrix products (gemm.py) and the formulas of the network (formulas.py) by their addresses. Kernels do not check
their arguments and cannot raise exceptions.

cpu/plan.py defines the phases of a step. A phase ends when all of its tasks are finished; there is no barrier at which every
thread must arrive. A thread that the system has suspended therefore delays only the task that it is computing. Results are
bitwise independent of which thread computes a task: no two tasks of a phase write to the same memory, and each sum is computed
in a fixed order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastmlp.engines.cpu.codegen.compiler import cached, compiled
from fastmlp.engines.cpu.codegen.intrinsics import array_at, atomic_load, call, smaller
from fastmlp.engines.cpu.codegen.simd import BIAS, BIAS_RELU, KEEP, ROW_BYTES, TIMES, WHERE_POSITIVE
from fastmlp.engines.cpu.kernels.gemm import FLOAT_BYTES
from fastmlp.engines.cpu.kernels.losses import LABELS_AHEAD, prefetch_label
from fastmlp.engines.cpu.kernels.passes import GRADIENT, ONE, clip, gather, make_finish, make_gradient, make_pack, scratch_size
from fastmlp.engines.cpu.kernels.sync import PHASE, await_turn, claim, end_turn, last_of_phase, open_phase, wait_for_end_of
from fastmlp.engines.cpu.plan import FORWARD, GATHER, LINEAR, RELU, ROWS, UPDATE, WEIGHTS

# Constants with the same types as the arguments of other calls. A literal has a type of its own, for which Numba would compile
# the called function again.
FIRST, NO_STEP, NO_SEED = np.int64(0), np.int64(-1), np.uint64(0)

# ------------------------------------------------------------------------------------------------ one layer


@compiled
def rows_at(plan, width, row):
    """Return the address of element `row` of the row offsets of `plan.widths[width]`, see `StepPlan.row_at`."""
    return plan.row_at.ctypes.data + (width * plan.rows + row) * ROW_BYTES


@compiled
def activations_at(plan, arena, width, row):
    """Return the address of the activations of `plan.widths[width]`, and the address of element `row` of its row offsets."""
    return arena.ctypes.data + plan.widths[width].y_at * FLOAT_BYTES, rows_at(plan, width, row)


@compiled
def inputs_at(table, plan, batches, arena, layer, start, row):
    """Return the address of the inputs of a layer, and the address of element `row` of their table of row offsets.

    The inputs of the first layer are the batch that starts at indices[start], either copied to the arena or read in place.
    """
    if layer == 0 and table.scale == 0:
        return batches.x, batches.x_at.ctypes.data + (start + row) * ROW_BYTES
    return activations_at(plan, arena, layer, row)


@functools.cache
def make_forward(lanes: int) -> Any:
    """Return the function that computes a block of the output y = f(x w + b) of a layer.

    Its signature is forward(table, plan, store, arena, x, x_rows, layer, panel, panels, first, rows, step, seed). The block
    has the columns of the panels [panel, panel + panels) and the rows [first, first + rows). x and x_rows locate the inputs of
    these rows, see `inputs_at`. For the output layer, the pre-activations are stored. Slopes are also stored, unless the
    activation is computed in the epilogue of the product. A negative `step` means prediction, without dropout.
    """

    @compiled
    def forward(table, plan, store, arena, x, x_rows, layer, panel, panels, first, rows, step, seed):
        size, ld_y = plan.layers[layer], plan.widths[layer + 1].ld
        hidden = layer < len(plan.layers) - 1
        block = first * ld_y + panel * lanes
        y = arena.ctypes.data + (plan.widths[layer + 1].y_at + block) * FLOAT_BYTES
        k, panel_size = size.fan_in, size.fan_in_p * lanes
        w = store.ctypes.data + (size.w_at + panel * panel_size) * FLOAT_BYTES
        b = store.ctypes.data + (size.b_at + panel * lanes) * FLOAT_BYTES
        drops = hidden and step >= 0 and size.threshold > 0
        relu = hidden and size.fused == RELU
        epilogue = BIAS_RELU if relu else BIAS
        call(table.product, (x, x_rows, w, panel_size, y, ld_y, k, rows, panels, epilogue, b, 0))
        if not hidden or ((relu or size.fused == LINEAR) and not drops):
            return
        s = arena.ctypes.data + (plan.widths[layer + 1].s_at + block) * FLOAT_BYTES
        columns = panels * lanes
        if not relu:
            true_columns = smaller(columns, size.fan_out - panel * lanes)
            call(table.activations[layer], (y, s, ld_y, rows, true_columns, columns, size.parameter))
        if drops:
            call(
                table.drop,
                (
                    y, s, not relu, ld_y, panel * lanes, columns, layer, first, rows, step, seed,
                    size.threshold, size.keep_scale,
                ),
            )  # fmt: skip

    return forward


def make_backward(lanes: int) -> Any:
    """Return backward(table, plan, transposed, arena, layer, panel, panels, first, rows).

    It computes a block of (dz w') * f'(z), the gradient with respect to the pre-activations z of the layer below. Here dz is
    the gradient with respect to the pre-activations of this layer, and w' is w transposed. The block has the columns of the
    transposed panels [panel, panel + panels) and the rows [first, first + rows). `layer` must be at least 1.
    """

    @compiled
    def backward(table, plan, transposed, arena, layer, panel, panels, first, rows):
        size, below, width = plan.layers[layer], plan.layers[layer - 1], plan.widths[layer]
        ld, base = width.ld, arena.ctypes.data
        block = first * ld + panel * lanes
        dz, dz_rows = base + plan.widths[layer + 1].dz_at * FLOAT_BYTES, rows_at(plan, layer + 1, first)
        dx = base + (width.dz_at + block) * FLOAT_BYTES
        k, panel_size = size.fan_out, size.fan_out_p * lanes
        w = transposed.ctypes.data + (size.t_at + panel * panel_size) * FLOAT_BYTES
        epilogue, extra = TIMES, width.s_at
        if below.fused == RELU:  # dropped units are also 0; `pack` applies the dropout scale
            epilogue, extra = WHERE_POSITIVE, width.y_at
        elif below.fused == LINEAR and below.threshold == 0:
            epilogue = KEEP
        e = base + (extra + block) * FLOAT_BYTES
        call(table.product, (dz, dz_rows, w, panel_size, dx, ld, k, rows, panels, epilogue, e, ld))

    return backward


@compiled
def losses_of_batch(table, plan, batches, arena, block, loss, correct, start, first, rows):
    """Compute loss, correctness and dz of the rows [first, first + rows) of the batch that starts at indices[start]."""
    width, row = plan.widths[len(plan.layers)], start + first
    z = arena.ctypes.data + (width.y_at + first * width.ld) * FLOAT_BYTES
    dz = arena.ctypes.data + (width.dz_at + first * width.ld) * FLOAT_BYTES
    call(
        table.loss,
        (
            block.ctypes.data, z, dz, width.ld, rows, batches.indices.ctypes.data + row * batches.indices.itemsize,
            batches.labels, batches.targets, batches.loss_weight.ctypes.data + row * FLOAT_BYTES,
            loss.ctypes.data + row * FLOAT_BYTES, correct.ctypes.data + row * correct.itemsize,
            batches.on_value, batches.off_value, batches.loss_parameter,
        ),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ the two kernels


@functools.cache
def train_kernel(lanes: int) -> Any:
    """Return the kernel train(t, table, plan, batches, store, transposed, arena, packed, scratch, shared, loss, correct).

    t is the index of the calling thread. The kernel is compiled at the first call, or loaded from the disk cache. All networks
    use the same kernel.
    """
    return cached(make_train(lanes), f"train {lanes}")


@functools.cache
def predict_kernel(lanes: int) -> Any:
    """Return the kernel predict(t, table, plan, block, x, x_row, x_rows, shift, factor, store, arena, shared, z).

    t is the index of the calling thread, and a task has `block` rows. x is the address of the first row of features, x_row the
    distance between rows in bytes, and x_rows the address of a table with the byte offsets of the rows of a block. If
    table.scale is 0, the rows must be float32 and are read in place, because copying them would take a tenth of the time. The
    kernel is compiled or loaded in the same way as `train_kernel`.
    """
    return cached(make_predict(lanes), f"predict {lanes}")


def make_task(lanes: int) -> Any:
    """Return run_task, which runs a single task of a phase of a training step.

    A task reads only results of earlier phases and its own results. No other task of the same phase reads or writes the memory
    that a task writes.
    """
    forward, backward, gradient = make_forward(lanes), make_backward(lanes), make_gradient(lanes)
    finish, block_at, pack = make_finish(lanes), scratch_size(), make_pack(lanes)

    @compiled
    def run_task(
        table, kind, wide, task, plan, batches, store, transposed, arena, packed, own, loss, correct, step, start, rows
    ):
        if kind >= WEIGHTS:
            # WEIGHTS reads all rows of x, y and dz. It writes its rectangle of the weights, slots and transposed weights, or,
            # with clipping, of the gradient. UPDATE follows only with clipping: it reads its rectangle of the clipped gradient
            # and writes the same rectangle of the weights, slots and transposed weights.
            if kind == WEIGHTS:
                x, x_rows = inputs_at(table, plan, batches, arena, task.layer, start, FIRST)
                gradient(table, plan, store, x, x_rows, packed, own, batches.scalars[step], task, rows)
            if kind == UPDATE or batches.clip_norm == 0:
                finish(table, plan, store, transposed, batches.scalars[step], task)
            return
        first, count = task.first, smaller(task.rows, rows - task.first)  # the last batch may be short
        if count <= 0:
            return
        if kind == GATHER or (kind == ROWS and wide == 0 and table.scale != 0):
            # The task writes the scaled inputs of its rows.
            gather(table, batches, start, first, count, plan.widths[0], arena)
        if kind == GATHER:
            return
        # FORWARD reads its columns of w and its rows of the layer inputs, and writes its block of activations and slopes.
        # BACKWARD reads its columns of the transposed w, its rows of dz of this layer, and its block of activations or slopes
        # of the layer below, and writes its block of dz of the layer below. ROWS does both for all columns of its rows, in
        # all layers from `wide` on, and writes the loss and the correctness of its rows.
        rest, top = kind == ROWS, len(plan.layers) - 1
        if rest and batches.labels:
            for r in range(smaller(count, LABELS_AHEAD)):
                prefetch_label(batches.labels, batches.indices[start + first + r])
        for layer in range(wide, (top if rest else wide if kind == FORWARD else wide - 1) + 1):
            panels = plan.layers[layer].fan_out_p // lanes if rest else task.panels
            x, x_rows = inputs_at(table, plan, batches, arena, layer, start, first)
            now = batches.step + step
            forward(table, plan, store, arena, x, x_rows, layer, task.panel, panels, first, count, now, batches.seed)
        if rest:
            losses_of_batch(table, plan, batches, arena, own[block_at:], loss, correct, start, first, count)
            pack(plan, arena, packed, top + 1, task.panel, plan.layers[top].fan_out_p // lanes, first, count, ONE)
        lowest = (wide or 1) if kind != FORWARD else top + 1
        for layer in range(top if rest else wide, lowest - 1, -1):
            panels = plan.layers[layer].fan_in_p // lanes if rest else task.panels
            backward(table, plan, transposed, arena, layer, task.panel, panels, first, count)
            below = plan.layers[layer - 1]
            scale = below.keep_scale if below.fused == RELU and below.threshold > 0 else ONE
            pack(plan, arena, packed, layer, task.panel, panels, first, count, scale)

    return run_task


def make_train(lanes: int) -> Callable[..., None]:
    """Return the Python function that is compiled to `train_kernel`."""
    run_task = make_task(lanes)

    def train(t, table, plan, batches, store, transposed, arena, packed, scratch, shared, loss, correct):
        steps, phases, threads = len(batches.scalars), len(plan.phases), plan.shares.shape[1] - 1
        end_turn(shared)
        while True:
            now = atomic_load(shared + 8 * PHASE)
            step, index = now // phases, now % phases
            if step >= steps:
                break
            phase = plan.phases[index]
            start = step * batches.batch_size
            rows = smaller(batches.batch_size, len(batches.indices) - start)
            done = np.int64(0)
            for turn in range(threads):
                share = (t + turn) % threads
                first, end = plan.shares[index, share], plan.shares[index, share + 1]
                while True:
                    ticket = claim(shared, share, now, end - first)
                    if ticket < 0:
                        break
                    task = plan.tasks[phase.first + first + ticket]
                    run_task(
                        table, phase.kind, phase.layer, task, plan, batches, store, transposed, arena, packed, scratch[t],
                        loss, correct, step, start, rows,
                    )  # fmt: skip
                    done += 1
            if last_of_phase(shared, done, phase.tasks):
                if batches.clip_norm > 0 and phase.kind == WEIGHTS:
                    clip(store[GRADIENT], batches.clip_norm)
                open_phase(shared, threads, now + 1)
            else:
                wait_for_end_of(shared, now)
        await_turn(shared)

    return train


def make_predict(lanes: int) -> Callable[..., None]:
    """Return the Python function that is compiled to `predict_kernel`.

    Prediction has a single phase. A task computes a block of rows, with intermediate results in `arena[t]`, the thread's own
    part of the arena.
    """
    forward = make_forward(lanes)

    def predict(t, table, plan, block, x, x_row, x_rows, shift, factor, store, arena, shared, z):
        own, last = arena[t], len(plan.layers)
        outputs, n = plan.widths[last], z.shape[1]
        tasks, rows_of_x = -(-len(z) // block), len(z)
        end_turn(shared)
        while True:
            ticket = claim(shared, FIRST, FIRST, tasks)
            if ticket < 0:
                break
            start = ticket * block
            rows = smaller(block, rows_of_x - start)
            inputs, input_rows = x + start * x_row, x_rows
            if table.scale:
                given = inputs
                inputs, input_rows = activations_at(plan, own, FIRST, FIRST)
                for r in range(rows):
                    to = inputs + plan.row_at[0, r]
                    call(table.scale, (given + r * x_row, shift.ctypes.data, factor.ctypes.data, to, len(shift)))
            for layer in range(last):
                panels = plan.layers[layer].fan_out_p // lanes
                forward(table, plan, store, own, inputs, input_rows, layer, FIRST, panels, FIRST, rows, NO_STEP, NO_SEED)
                inputs, input_rows = activations_at(plan, own, layer + 1, FIRST)
            for r in range(rows):
                row = array_at(own.ctypes.data + (outputs.y_at + r * outputs.ld) * FLOAT_BYTES, n, np.float32)
                z_row = array_at(z.ctypes.data + (start + r) * n * FLOAT_BYTES, n, np.float32)
                for j in range(n):
                    z_row[j] = row[j]
        await_turn(shared)

    return predict
