"""Activations, forward and back, and losses with their gradients: NumPy's arrays, and the CPU engine's loops over rows.

    python -m pytest benchmarks/bench_functions.py --benchmark-columns=median,iqr,rounds

An activation gives its values y = f(z) and, for the way back, its slopes f'(z), as the engine does in one pass; multiplying by
them is the end of a matrix product (bench_products.py). In the engine relu and linear run so only where there is dropout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.measuring import Subject, check, exact, measure, numbers, rounding, sized
from benchmarks.workbench import Workbench, activation_kernel, losses_kernel, on_bench
from fastmlp.engines.cpu.codegen.simd import lanes
from fastmlp.engines.cpu.kernels.losses import loss_block
from fastmlp.nn import activations as functions
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.network import Network
from fastmlp.reference import ACTIVATIONS, row_losses, target_rows

ROWS, UNITS = sized((64, 500), (7, 9))
OUTPUTS = 10

# ------------------------------------------------------------------------------------------------ activations


def numpy_activation(name: str, a: Any, z: Any) -> Subject:
    value, slope = ACTIVATIONS[name]

    def run() -> Any:
        y = value(z, a)
        return y, slope(z, y, a)

    return Subject(run, run)


def numba_activation(name: str, a: Any, z: Any) -> Subject:
    kernel, y, s = activation_kernel(name), np.empty_like(z), np.empty_like(z)
    return on_bench(lambda: kernel(a, z, y, s), lambda: (y, s))


ACTIVATION = {"numpy": numpy_activation, "numba": numba_activation}


@pytest.mark.parametrize("backend", ACTIVATION)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(benchmark: Any, name: str, backend: str) -> None:
    a, z = np.float32(functions.ACTIVATIONS[name].default or 0), 3 * numbers(ROWS, UNITS)
    subject = ACTIVATION[backend](name, a, z)
    check(subject.answer(), numpy_activation(name, np.float64(a), *exact(z)).answer(), rounding(0))
    measure(benchmark, f"activation {name} forward + backward, {ROWS}x{UNITS}", backend, subject)


# ------------------------------------------------------------------------------------------------ losses


def numpy_loss(network: Network, z: Any, y: Any) -> Subject:
    """Row losses, dz of the mean loss, and hits, of class targets."""
    scale = z.dtype.type(1 / len(z))

    def run() -> Any:
        loss, dz = row_losses(network, z, target_rows(network, y, z.dtype))
        return loss, dz * scale, z.argmax(axis=1) == y

    return Subject(run, run)


def numba_loss(network: Network, z: Any, y: Any) -> Subject:
    bench, rows = Workbench(network, len(z)), len(z)
    bench.load(np.zeros(network.parameters, np.float32))
    bench.block("y", 1)[:] = z
    kernel, code = losses_kernel(), bench.engine.code(np.float32, training=True)
    batches = bench.engine.batches(np.zeros((rows, 1), np.float32), y, np.arange(rows), np.ones(1), None)
    block = np.zeros(loss_block(network, lanes()), np.float32)
    loss, correct = np.empty(rows, np.float32), np.empty(rows, bool)
    memory = bench.engine.arena, block, loss, correct
    return on_bench(lambda: kernel(code, bench.plan, batches, memory, rows), lambda: (loss, bench.block("dz", 1), correct))


LOSS = {"numpy": numpy_loss, "numba": numba_loss}
PAIRS = [(loss, output) for loss, outputs in LOSSES.items() for output in outputs]


@pytest.mark.parametrize("backend", LOSS)
@pytest.mark.parametrize(("loss", "output"), PAIRS)
def test_loss(benchmark: Any, loss: str, output: str, backend: str) -> None:
    network = Network((1, OUTPUTS), loss=loss, output=output)
    z = 3 * numbers(ROWS, OUTPUTS)
    y = np.random.default_rng(0).integers(0, OUTPUTS, ROWS, np.int32)
    subject = LOSS[backend](network, z, y)
    (precise,) = exact(z)
    check(subject.answer(), numpy_loss(network, precise, y).answer(), (rounding(OUTPUTS), rounding(OUTPUTS), 0))
    measure(benchmark, f"loss {loss} of {output}, {ROWS}x{OUTPUTS}", backend, subject)
