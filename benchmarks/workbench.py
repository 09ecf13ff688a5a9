"""Access to single operations of the CPU engine, for benchmarks.

A benchmark writes its operands into the engine's memory and then calls one of the engine's compiled functions directly. It
times the code that training uses, with the same memory layout, on one thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.measuring import Arrays, Subject
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.cpu.codegen.compiler import compiled
from fastmlp.engines.cpu.codegen.intrinsics import call
from fastmlp.engines.cpu.codegen.simd import lanes
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.kernels.formulas import activation_address, drop_address, update_address
from fastmlp.engines.cpu.kernels.gemm import gradient_address
from fastmlp.engines.cpu.kernels.passes import GRADIENT, ONE, make_finish, make_gradient, make_pack, update
from fastmlp.engines.cpu.kernels.programs import activations_at, losses_of_batch, make_backward, make_forward
from fastmlp.engines.cpu.plan import WEIGHTS, unpack
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer

LEARNING_RATE, STEP = 1e-3, 3  # STEP is the number of updates before the timed one


def one_layer(fan_in: int, fan_out: int) -> Network:
    """Return a network without hidden layers: one weight matrix and one vector of biases."""
    return Network((fan_in, fan_out), loss="squared-error")


class Workbench:
    """A CPU engine with one thread, and its memory for one mini-batch of `rows` rows.

    A width is an index into the sizes of the network: width 0 is the input, and width n is the output of layer n - 1.
    """

    def __init__(self, network: Network, rows: int, optimizer: Optimizer | None = None) -> None:
        self.network = network
        self.rows = rows
        self.engine = NumbaEngine(EngineSpec(network, optimizer or Optimizer("sgd"), batch_size=rows, threads=1))
        self.engine.reserve(rows, 1, gathers=True)
        self.plan = self.engine.layout.plan
        self.table = self.engine.kernel_table(np.float32, training=False)

    def block(self, name: str, width: int) -> FloatArray:
        """Return a view of one of the arrays of a width, (rows, size) float32, without padding.

        name : "y" (outputs), "s" (derivatives of the activation) or "dz" (gradient of the loss before the activation)
        """
        ld = int(self.plan.widths[width]["ld"])
        at = int(self.plan.widths[width][f"{name}_at"])
        return self.engine.arena[at : at + self.rows * ld].reshape(self.rows, ld)[:, : self.network.sizes[width]]

    def load(self, parameters: FloatArray, slots: FloatArray | None = None) -> None:
        """Load parameters and optimizer slots in the layout of `State`; `slots` is None if the optimizer has no slots."""
        self.engine.load(State(parameters, np.empty((0, len(parameters)), np.float32) if slots is None else slots, STEP))

    def fill(self, ys: list[FloatArray], slopes: list[FloatArray], dz: FloatArray) -> None:
        """Write the results of a forward pass and of the loss.

        ys : input of each layer, (rows, inputs)
        slopes : derivatives of the activation of each hidden layer, (rows, units)
        dz : gradient of the loss with respect to the output layer's result before its activation, (rows, outputs)
        """
        for width, y in enumerate(ys):
            self.block("y", width)[:] = y
        for width, s in enumerate(slopes, start=1):
            self.block("s", width)[:] = s
        self.block("dz", len(self.network.layers))[:] = dz

    def gradient(self) -> FloatArray:
        """Return the gradient of all parameters as one vector, (parameters,)."""
        return unpack(self.network, self.plan, lanes(), self.engine.store[GRADIENT])

    def forward(self, layer: int) -> Callable[[], None]:
        """Return a function that computes a layer's forward pass: the matrix product with fused bias and activation."""
        run, e = forward_kernel(lanes()), self.engine
        return lambda: run(self.table, self.plan, e.store, e.arena, layer, self.rows)

    def input_gradients(self) -> Callable[[], None]:
        """Return a function that computes dx = (dz w') f'(z) for all layers except the first, starting with the last layer."""
        run, e = input_gradients_kernel(lanes()), self.engine
        return lambda: run(self.table, self.plan, e.transposed, e.arena, self.rows)

    def weight_gradients(self, rule: str = "") -> Callable[[], None]:
        """Return a function that computes the gradients dw = x' dz and db of all layers.

        rule : name of the optimizer whose update is fused with the gradients; without one, the parameters are not updated
        """
        run, e = weight_gradients_kernel(lanes(), bool(rule)), self.engine
        table = self.table._replace(gradient=gradient_address(lanes(), rule, False), in_registers=bool(rule))
        if rule:
            table = table._replace(update=update_address(rule))
        optimizer = e.spec.optimizer
        learning_rates = np.array([LEARNING_RATE])
        scalars = np.stack(
            [optimizer.scalars(learning_rates, STEP)[0], replace(optimizer, weight_decay=0).scalars(learning_rates, STEP)[0]]
        )
        phase = self.plan.phases[self.plan.phases["kind"] == WEIGHTS][0]
        tasks = self.plan.tasks[phase["first"] : phase["first"] + phase["tasks"]]
        memory = e.store, e.transposed, e.arena, e.packed, e.scratch[0]
        return lambda: run(table, self.plan, tasks, scalars, memory, self.rows)


def on_bench(run: Callable[[], Any], results: Callable[[], Arrays], threads: int | None = 1) -> Subject:
    """Return a subject: `run` is the timed call, and `results` returns the arrays that it has written."""

    def answer() -> Arrays:
        run()
        return results()

    return Subject(run, answer, threads)


# ------------------------------------------------------------------------------------------------ compiled callers


@functools.cache
def forward_kernel(width: int) -> Any:
    """Return the compiled function run(table, plan, store, arena, layer, rows): a layer's forward pass."""
    forward = make_forward(width)

    def run(table, plan, store, arena, layer, rows):  # type: ignore[no-untyped-def]
        panels = plan.layers[layer].fan_out_p // width
        x, x_rows = activations_at(plan, arena, layer, 0)
        forward(table, plan, store, arena, x, x_rows, layer, 0, panels, 0, rows, -1, np.uint64(0))

    return compiled(run, called="python")


@functools.cache
def input_gradients_kernel(width: int) -> Any:
    """Return the compiled function run(table, plan, transposed, arena, rows): gradients of the layers' inputs."""
    backward = make_backward(width)

    def run(table, plan, transposed, arena, rows):  # type: ignore[no-untyped-def]
        for layer in range(len(plan.layers) - 1, 0, -1):
            backward(table, plan, transposed, arena, layer, 0, plan.layers[layer].fan_in_p // width, 0, rows)

    return compiled(run, called="python")


@functools.cache
def weight_gradients_kernel(width: int, updates: bool) -> Any:
    """Return the compiled function run(table, plan, tasks, scalars, memory, rows): gradients of all weights and biases.

    The tuple `memory` contains the arrays store, transposed, arena, packed and own.
    """
    gradient, pack, finish = make_gradient(width), make_pack(width), make_finish(width)

    def run(table, plan, tasks, scalars, memory, rows):  # type: ignore[no-untyped-def]
        store, transposed, arena, packed, own = memory
        for layer in range(len(plan.layers)):
            pack(plan, arena, packed, layer + 1, 0, plan.layers[layer].fan_out_p // width, 0, rows, ONE)
        for i in range(len(tasks)):
            task = tasks[i]
            x, x_rows = activations_at(plan, arena, task.layer, 0)
            gradient(table, plan, store, x, x_rows, packed, own, scalars, task, rows)
            if updates:
                finish(table, plan, store, transposed, scalars, task)

    return compiled(run, called="python")


@functools.cache
def activation_kernel(name: str) -> Any:
    """Return the compiled function run(a, z, y, s), which computes y = f(z) and s = f'(z) row by row.

    The engine's activation works in place, so z is copied to y first. a is the parameter of the activation.
    """
    activate = activation_address(name)

    def run(a, z, y, s):  # type: ignore[no-untyped-def]
        rows, columns = z.shape
        for r in range(rows):
            z_row, y_row = z[r], y[r]
            for j in range(columns):
                y_row[j] = z_row[j]
            call(activate, (y_row.ctypes.data, s[r].ctypes.data, columns, 1, columns, columns, a))

    return compiled(run, called="python")


@functools.cache
def dropout_kernel(width: int) -> Any:
    """Return the compiled function run(x, y, step, seed, threshold, scale), which applies the dropout of layer 0.

    The engine's dropout works in place, so x is copied to y first.

    x : (rows, units) float32
    y : (rows, ld) float32, where ld is a multiple of `width` and at least the number of units
    """
    drop = drop_address(width)

    def run(x, y, step, seed, threshold, scale):  # type: ignore[no-untyped-def]
        rows, columns = x.shape
        for r in range(rows):
            x_row, y_row = x[r], y[r]
            for j in range(columns):
                y_row[j] = x_row[j]
        at, ld = y.ctypes.data, y.shape[1]
        call(drop, (at, at, False, ld, 0, ld, 0, 0, rows, step, seed, threshold, scale))

    return compiled(run, called="python")


@functools.cache
def losses_kernel() -> Any:
    """Return the compiled function run(table, plan, batches, memory, rows): losses of a mini-batch and their gradient.

    The tuple `memory` contains the arrays arena, block, loss and correct.
    """

    def run(table, plan, batches, memory, rows):  # type: ignore[no-untyped-def]
        arena, block, loss, correct = memory
        losses_of_batch(table, plan, batches, arena, block, loss, correct, 0, 0, rows)

    return compiled(run, called="python")


@functools.cache
def update_kernel() -> Any:
    """Return the compiled function run(table, store, scalars), which updates all parameters in `store`."""

    def run(table, store, scalars):  # type: ignore[no-untyped-def]
        update(table, store, 0, store.shape[1], scalars)

    return compiled(run, called="python")
