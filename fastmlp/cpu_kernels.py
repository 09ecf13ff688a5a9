"""The CPU engine's kernels: whole runs of training steps, and prediction, each one compiled function per thread.

`train_kernel` builds them for a `Specialisation`, `predict_kernel` for a `Prediction`; what differs from network to network
only in size is data (cpu_plan.py), not code. Kernels check nothing and cannot raise.

How threads share a step. A step is a sequence of phases: the rows of the batch forward and backward; the gradient of every
weight with its update as the tile's epilogue (with clipping: the gradients, then the updates). A phase is a number of tasks.
One shared word holds phase number and next ticket; a thread draws a ticket by adding one. Whoever finishes the last task of a
phase opens the next. No thread is waited for, only tasks are: a thread that the system has put to sleep delays at most the
one task it holds, and more threads than cores do no harm. Which thread computes a task changes no bit of it: each task
writes what nobody else writes, and each sum runs in a fixed order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastmlp.cpu_pieces import (
    FLOAT_BYTES,
    ZERO,
    cached,
    clip,
    compiled,
    compiled_with_callees,
    draw,
    drop_row,
    first_peak,
    last_of_phase,
    make_activate,
    make_product,
    make_update,
    open_phase,
    scalars_of,
    scale_row,
    wait_for_end_of,
)
from fastmlp.cpu_plan import CHUNK_ROWS, TILE_ROWS, TILE_VECTORS
from fastmlp.cpu_simd import make_tile, make_transpose
from fastmlp.functions import LOSSES
from fastmlp.optimizers import DECAY

ONE = np.float32(1)

# Rows of `store`
PARAMETERS, SLOT_M, SLOT_V, GRADIENT = 0, 1, 2, 3

# Rows of the batch in a piece of a gradient's sum: 64 x 64 of x and 64 x 2 vectors of dz are 24 KiB
BATCH_DEPTH = 64

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


class Specialisation(NamedTuple):
    """What training is compiled for; sizes are data.

    forward : see there
    loss, output : as in `Network`
    rule : name of the update rule
    clip : whether the gradient is clipped
    classes : whether targets are class numbers
    """

    forward: Prediction
    loss: str
    output: str
    rule: str
    clip: bool
    classes: bool


# ------------------------------------------------------------------------------------------------ forward


def make_forward(spec: Prediction) -> Any:
    """forward(plan, store, arena, first, rows, batch_row, step, seed): rows [first, first + rows) of the arena, all layers.

    From scaled inputs at y_at[0] to output pre-activations at y_at[last]; slopes to s_at but for activations that run
    fused. step < 0 means prediction: no dropout. Writes whole tiles: rows up to the next multiple of TILE_ROWS.
    """
    lanes, names = spec.lanes, spec.activations
    plain = make_product(lanes, "bias", False)
    fused_relu = make_product(lanes, "bias-relu", False)
    relu, linear = spec.fused_codes
    dropout = spec.dropout
    activate = make_activate(names)

    @compiled
    def forward(plan, store, arena, first, rows, step, seed):
        rows_p = -(-rows // TILE_ROWS) * TILE_ROWS
        base, weights = arena.ctypes.data, store.ctypes.data
        last = len(plan.fan_in) - 1
        for layer in range(last + 1):
            k, k_p, n, n_p = plan.fan_in[layer], plan.fan_in_p[layer], plan.fan_out[layer], plan.fan_out_p[layer]
            ld_x, ld_y = plan.ld[layer], plan.ld[layer + 1]
            x_at = base + (plan.y_at[layer] + first * ld_x) * FLOAT_BYTES
            y_start = plan.y_at[layer + 1] + first * ld_y
            w_at, b_at = weights + plan.w_at[layer] * FLOAT_BYTES, weights + plan.b_at[layer] * FLOAT_BYTES
            y_at = base + y_start * FLOAT_BYTES
            panels = n_p // lanes
            hidden = layer < last
            drops = dropout and hidden and step >= 0 and plan.threshold[layer] > 0
            if hidden and plan.code[layer] == relu and not drops:
                fused_relu(x_at, ld_x, w_at, k_p * lanes, y_at, ld_y, k, b_at, rows_p, panels)
                continue
            plain(x_at, ld_x, w_at, k_p * lanes, y_at, ld_y, k, b_at, rows_p, panels)
            if not hidden or (plan.code[layer] == linear and not drops):
                continue
            y = arena[y_start : y_start + rows_p * ld_y]
            s_start = plan.s_at[layer + 1] + first * ld_y
            s = arena[s_start : s_start + rows_p * ld_y]
            activate(plan.code[layer], plan.parameter[layer], y, s)
            for r in range(rows):
                at = r * ld_y
                if drops:
                    drop_row(
                        y[at : at + n_p],
                        s[at : at + n_p],
                        layer,
                        first + r,
                        step,
                        seed,
                        plan.threshold[layer],
                        plan.keep_scale[layer],
                    )
                for j in range(n, n_p):  # padding stays zero, whatever f(0) is
                    y[at + j] = ZERO
                    s[at + j] = ZERO

    return forward


# ------------------------------------------------------------------------------------------------ a step's phases


def make_rows_task(spec: Specialisation) -> Any:
    """rows_task(plan, batches, store, transposed, arena, targets, loss, correct, start, first, rows).

    Rows [first, first + rows) of the batch that starts at `start` in the order: scale, forward, loss, and dz of every layer.
    Reads weights; writes these rows of the arena, of loss and of correct. `targets` (outputs,) is the thread's own.
    """
    lanes = spec.forward.lanes
    forward = make_forward(spec.forward)
    loss_row = compiled_with_callees(LOSSES[spec.loss][spec.output])
    relu, linear = spec.forward.fused_codes
    masked = make_product(lanes, "where-positive", True)
    sloped = make_product(lanes, "times", True)
    unchanged = make_product(lanes, "keep", False)
    classes, dropout = spec.classes, spec.forward.dropout

    @compiled
    def rows_task(plan, batches, store, transposed, arena, targets, loss, correct, start, first, rows):
        features, ld = plan.fan_in[0], plan.ld[0]
        for r in range(first, first + rows):
            at = plan.y_at[0] + r * ld
            x = batches.x[batches.order[start + r]]
            scale_row(x, batches.shift, batches.factor, arena[at : at + features])
        step = batches.step + start // batches.batch_size
        forward(plan, store, arena, first, rows, step, batches.seed)

        last = len(plan.fan_in)
        n, n_p, ld = plan.fan_out[last - 1], plan.fan_out_p[last - 1], plan.ld[last]
        for r in range(first, first + rows):
            source = batches.order[start + r]
            z_at, dz_at = plan.y_at[last] + r * ld, plan.dz_at[last] + r * ld
            z, dz = arena[z_at : z_at + n], arena[dz_at : dz_at + n_p]
            for j in range(n):
                targets[j] = batches.cold if classes else batches.targets[source, j]
            if classes:
                targets[batches.labels[source]] = batches.hot
                correct[start + r] = first_peak(z) == batches.labels[source]
            loss[start + r] = loss_row(z, targets, dz, n)
            for j in range(n):
                dz[j] *= batches.row_scale[start + r]

        rows_p = -(-rows // TILE_ROWS) * TILE_ROWS
        base, weights = arena.ctypes.data, transposed.ctypes.data
        for layer in range(last - 1, 0, -1):
            ld_dz, ld_dx = plan.ld[layer + 1], plan.ld[layer]
            n_p, panels = plan.fan_out_p[layer], plan.fan_in_p[layer] // lanes
            dz_at = base + (plan.dz_at[layer + 1] + first * ld_dz) * FLOAT_BYTES
            dx_at = base + (plan.dz_at[layer] + first * ld_dx) * FLOAT_BYTES
            w_at = weights + plan.t_at[layer] * FLOAT_BYTES
            k, panel = plan.fan_out[layer], n_p * lanes
            drops = dropout and plan.threshold[layer - 1] > 0
            if plan.code[layer - 1] == relu and not drops:
                y_at = base + (plan.y_at[layer] + first * ld_dx) * FLOAT_BYTES
                masked(dz_at, ld_dz, w_at, panel, dx_at, ld_dx, k, y_at, rows_p, panels)
            elif plan.code[layer - 1] == linear and not drops:
                unchanged(dz_at, ld_dz, w_at, panel, dx_at, ld_dx, k, 0, rows_p, panels)
            else:
                s_at = base + (plan.s_at[layer] + first * ld_dx) * FLOAT_BYTES
                sloped(dz_at, ld_dz, w_at, panel, dx_at, ld_dx, k, s_at, rows_p, panels)

    return rows_task


def make_weights_tasks(spec: Specialisation) -> tuple[Any, Any, Any]:
    """gradient_task, penalise and update_task, which work on a rectangle of a layer's weights, a row of `Plan.tasks`.

    The rectangle's gradient is held in the float array `gradient`: panel p from g_at + p g_stride on, and its columns'
    biases, which go with the topmost rectangle, from b_at on.
    """
    lanes = spec.forward.lanes
    wide, narrow = make_tile(TILE_ROWS, TILE_VECTORS, lanes, "keep"), make_tile(TILE_ROWS, 1, lanes, "keep")
    row_wide, row_narrow = make_tile(1, TILE_VECTORS, lanes, "keep"), make_tile(1, 1, lanes, "keep")
    update = make_update(spec.rule)
    transpose = make_transpose(lanes)

    @compiled
    def gradient_task(plan, arena, gradient, g_at, g_stride, b_at, ones, task, rows):
        """dw = x' dz and db = 1' dz over `rows` rows. ones: address of a 1.0."""
        layer, panel, panels, k_first, k_rows = task[0], task[1], task[2], task[3], task[4]
        ld_x, ld_dz = plan.ld[layer], plan.ld[layer + 1]
        x = arena.ctypes.data + (plan.y_at[layer] + k_first) * FLOAT_BYTES
        dz = arena.ctypes.data + (plan.dz_at[layer + 1] + panel * lanes) * FLOAT_BYTES
        weights, biases = gradient.ctypes.data + g_at * FLOAT_BYTES, gradient.ctypes.data + b_at * FLOAT_BYTES
        for r in range(0, rows, BATCH_DEPTH):
            depth = min(BATCH_DEPTH, rows - r)
            first = r == 0
            dz_r = dz + r * ld_dz * FLOAT_BYTES
            for k in range(0, k_rows, TILE_ROWS):
                at = weights + k * lanes * FLOAT_BYTES
                x_r = x + (r * ld_x + k) * FLOAT_BYTES
                if panels == TILE_VECTORS:
                    wide(x_r, 1, ld_x, dz_r, ld_dz, lanes, at, lanes, g_stride, depth, 0, first, True)
                else:
                    narrow(x_r, 1, ld_x, dz_r, ld_dz, lanes, at, lanes, g_stride, depth, 0, first, True)
        if k_first == 0:
            if panels == TILE_VECTORS:
                row_wide(ones, 0, 0, dz, ld_dz, lanes, biases, lanes, lanes, rows, 0, True, True)
            else:
                row_narrow(ones, 0, 0, dz, ld_dz, lanes, biases, lanes, lanes, rows, 0, True, True)

    @compiled
    def penalise(plan, batches, store, gradient, g_at, g_stride, task):
        """g += l2 w + l1 sign(w), weights only."""
        layer, panel, panels, k_first, k_rows = task[0], task[1], task[2], task[3], task[4]
        size = k_rows * lanes
        for p in range(panels):
            at = plan.w_at[layer] + ((panel + p) * plan.fan_in_p[layer] + k_first) * lanes
            g = gradient[g_at + p * g_stride : g_at + p * g_stride + size]
            w = store[PARAMETERS, at : at + size]
            for i in range(size):
                sign = np.float32(w[i] > ZERO) - np.float32(w[i] < ZERO)
                g[i] += batches.l2 * w[i] + batches.l1 * sign

    @compiled
    def update_task(plan, store, transposed, gradient, g_at, g_stride, b_at, task, s):
        """The rule over the rectangle and its biases (which do not decay); renews the transposed copy."""
        layer, panel, panels, k_first, k_rows = task[0], task[1], task[2], task[3], task[4]
        k_p, n_p = plan.fan_in_p[layer], plan.fan_out_p[layer]
        size = k_rows * lanes
        for p in range(panels):
            at = plan.w_at[layer] + ((panel + p) * k_p + k_first) * lanes
            g = gradient[g_at + p * g_stride : g_at + p * g_stride + size]
            w = slice(at, at + size)
            update(store[PARAMETERS, w], store[SLOT_M, w], store[SLOT_V, w], g, s)
            if layer > 0:
                source = store.ctypes.data + at * FLOAT_BYTES
                for k in range(0, k_rows, lanes):
                    to = plan.t_at[layer] + ((k_first + k) // lanes * n_p + (panel + p) * lanes) * lanes
                    transpose(source + k * lanes * FLOAT_BYTES, lanes, transposed.ctypes.data + to * FLOAT_BYTES, lanes)
        if k_first == 0:
            at = plan.b_at[layer] + panel * lanes
            g = gradient[b_at : b_at + panels * lanes]
            b = slice(at, at + panels * lanes)
            update(store[PARAMETERS, b], store[SLOT_M, b], store[SLOT_V, b], g, (*s[:DECAY], ZERO))

    return gradient_task, penalise, update_task


# ------------------------------------------------------------------------------------------------ the entry kernels


@functools.cache
def train_kernel(spec: Specialisation) -> Any:
    """train(t, plan, batches, store, transposed, arena, scratch, shared, loss, correct) for thread t of a team.

    Compiled at its first call, or taken from the cache on disk; one per specialisation and process.
    """
    return cached(make_train(spec), f"train {spec}")


@functools.cache
def predict_kernel(spec: Prediction) -> Any:
    """predict(t, plan, x, shift, factor, store, arena, shared, z, rows_per_task), likewise."""
    return cached(make_predict(spec), f"predict {spec}")


def make_train(spec: Specialisation) -> Callable[..., None]:
    """Training steps: two phases each, or three with clipping, where all gradients must be known before the first update."""
    lanes, clipped = spec.forward.lanes, spec.clip
    phases = 3 if clipped else 2
    rows_task = make_rows_task(spec)
    gradient_task, penalise, update_task = make_weights_tasks(spec)
    panel_stride = CHUNK_ROWS * lanes  # of a rectangle's gradient in the thread's own scratch
    biases_at = TILE_VECTORS * panel_stride
    ones_at = biases_at + TILE_VECTORS * lanes

    def train(t, plan, batches, store, transposed, arena, scratch, shared, loss, correct):
        steps = len(batches.scalars)
        own = scratch[t]
        own[ones_at] = ONE
        ones = own.ctypes.data + ones_at * FLOAT_BYTES
        targets = own[ones_at + 1 :]
        gradient = store[GRADIENT] if clipped else own
        while True:
            phase, ticket = draw(shared)
            step, kind = phase // phases, phase % phases
            if step >= steps:
                return
            start = step * batches.batch_size
            rows = min(batches.batch_size, len(batches.order) - start)
            tasks = -(-rows // batches.rows_per_task) if kind == 0 else len(plan.tasks)
            if ticket >= tasks:
                wait_for_end_of(shared, phase)
                continue
            if kind == 0:
                # Reads weights, which the phase before wrote; writes its own rows of y, s, dz.
                first = ticket * batches.rows_per_task
                count = min(batches.rows_per_task, rows - first)
                rows_task(plan, batches, store, transposed, arena, targets, loss, correct, start, first, count)
            else:
                task = plan.tasks[ticket]
                layer, panel, k_first = task[0], task[1], task[3]
                stride = plan.fan_in_p[layer] * lanes if clipped else panel_stride
                g_at = plan.w_at[layer] + panel * stride + k_first * lanes if clipped else 0
                b_at = plan.b_at[layer] + panel * lanes if clipped else biases_at
                if kind == 1:
                    # Reads all rows of y and dz, which the phase before wrote; writes its rectangle of the gradient.
                    gradient_task(plan, arena, gradient, g_at, stride, b_at, ones, task, rows)
                    if batches.l1 > 0 or batches.l2 > 0:
                        penalise(plan, batches, store, gradient, g_at, stride, task)
                if kind == phases - 1:
                    # Reads its rectangle of the gradient, its own or (clipped) scaled by the last finisher of the phase
                    # before; writes its rectangle of weights, slots and transposed weights.
                    scalars = scalars_of(batches.scalars, step)
                    update_task(plan, store, transposed, gradient, g_at, stride, b_at, task, scalars)
            if last_of_phase(shared, tasks):
                if clipped and kind == 1:
                    clip(gradient, batches.clip_norm)
                open_phase(shared, phase + 1)

    return train


def make_predict(spec: Prediction) -> Callable[..., None]:
    """Prediction: one phase, a task is a block of rows that passes through the thread's own rows of the arena."""
    forward = make_forward(spec)

    def predict(t, plan, x, shift, factor, store, arena, shared, z, rows_per_task):
        tasks = -(-len(x) // rows_per_task)
        last = len(plan.fan_in)
        features, outputs = plan.fan_in[0], plan.fan_out[last - 1]
        first = t * rows_per_task
        while True:
            _, ticket = draw(shared)
            if ticket >= tasks:
                return
            start = ticket * rows_per_task
            rows = min(rows_per_task, len(x) - start)
            for r in range(rows):
                at = plan.y_at[0] + (first + r) * plan.ld[0]
                scale_row(x[start + r], shift, factor, arena[at : at + features])
            forward(plan, store[PARAMETERS], arena, first, rows, -1, np.uint64(0))
            for r in range(rows):
                at = plan.y_at[last] + (first + r) * plan.ld[last]
                for j in range(outputs):
                    z[start + r, j] = arena[at + j]

    return predict
