"""Benchmarks of activations with their derivatives, dropout, and losses with their gradients.

    python -m pytest benchmarks/bench_functions.py --benchmark-columns=median,iqr,rounds

NumPy, the CPU engine and the CUDA engine are compared. As in the engines, an activation computes y = f(z) and the derivatives
f'(z), which the backward pass needs, in a single pass over the data. Multiplying by the derivatives is part of a matrix
product (bench_products.py). The CPU engine computes relu and linear in this way only with dropout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.cuda_workbench import CudaWorkbench, device, on_vectors
from benchmarks.measuring import Subject, check, exact, measure, numbers, rounding, sized
from benchmarks.workbench import Workbench, activation_kernel, dropout_kernel, losses_kernel, on_bench
from fastmlp.engines.cpu.codegen.simd import lanes
from fastmlp.engines.cpu.kernels.losses import loss_block
from fastmlp.engines.cuda.kernels.layout import GRADIENT, OUTPUT
from fastmlp.engines.cuda.kernels.programs import PLAIN
from fastmlp.nn import activations as functions
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.network import Network
from fastmlp.nn.philox import drop_threshold, keep_mask
from fastmlp.reference import ACTIVATIONS, row_losses, target_rows

ROWS, UNITS = sized((64, 500), (7, 9))
OUTPUTS = 10
DROPOUT_RATE, SEED, STEP = 0.2, 7, 3  # arguments of the dropout benchmark

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


def cuda_activation(name: str, a: Any, z: Any) -> Subject:
    arguments = 0, a, z, np.empty_like(z), np.empty_like(z)
    return on_vectors(device(), "activations", PLAIN._replace(activations=(name,)), arguments, (3, 4))


ACTIVATION = {"numpy": numpy_activation, "numba": numba_activation, "cuda": cuda_activation}


@pytest.mark.parametrize("backend", ACTIVATION)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(benchmark: Any, name: str, backend: str) -> None:
    a, z = np.float32(functions.ACTIVATIONS[name].default or 0), 3 * numbers(ROWS, UNITS)
    subject = ACTIVATION[backend](name, a, z)
    check(subject.answer(), numpy_activation(name, np.float64(a), *exact(z)).answer(), rounding(0))
    measure(benchmark, f"activation {name} forward + backward, {ROWS}x{UNITS}", backend, subject)


# ------------------------------------------------------------------------------------------------ dropout


def numpy_dropout(x: Any) -> Subject:
    """Multiply dropped units by 0 and the others by 1 / (1 - dropout rate)."""
    scale = x.dtype.type(1 / (1 - DROPOUT_RATE))

    def run() -> Any:
        return (x * (keep_mask(SEED, STEP, 0, *x.shape, DROPOUT_RATE) * scale),)

    return Subject(run, run)


def numba_dropout(x: Any) -> Subject:
    rows, units = x.shape
    kernel, y = dropout_kernel(lanes()), np.zeros((rows, -(-units // lanes()) * lanes()), np.float32)
    settings = STEP, SEED, int(drop_threshold(DROPOUT_RATE)), np.float32(1 / (1 - DROPOUT_RATE))
    return on_bench(lambda: kernel(x, y, *settings), lambda: (y[:, :units],))


def cuda_dropout(x: Any) -> Subject:
    settings = np.uint64(SEED), STEP, 0, drop_threshold(DROPOUT_RATE), np.float32(1 / (1 - DROPOUT_RATE)), x.shape[1]
    return on_vectors(device(), "dropout", PLAIN, (*settings, x, np.empty_like(x)), (7,))


DROPOUT = {"numpy": numpy_dropout, "numba": numba_dropout, "cuda": cuda_dropout}


@pytest.mark.parametrize("backend", DROPOUT)
def test_dropout(benchmark: Any, backend: str) -> None:
    x = numbers(ROWS, UNITS)
    subject = DROPOUT[backend](x)
    check(subject.answer(), numpy_dropout(*exact(x)).answer(), rounding(0))
    measure(benchmark, f"dropout {DROPOUT_RATE}, {ROWS}x{UNITS}", backend, subject)


# ------------------------------------------------------------------------------------------------ losses


def numpy_loss(network: Network, z: Any, y: Any) -> Subject:
    """Compute the loss of each row, the gradient of the mean loss, and whether each row is classified correctly."""
    scale = z.dtype.type(1 / len(z))

    def run() -> Any:
        loss, dz = row_losses(network, z, target_rows(network, y, z.dtype))
        return loss, dz * scale, z.argmax(axis=1) == y

    return Subject(run, run)


def numba_loss(network: Network, z: Any, y: Any) -> Subject:
    bench, rows = Workbench(network, len(z)), len(z)
    bench.load(np.zeros(network.parameters, np.float32))
    bench.block("y", 1)[:] = z
    kernel, table = losses_kernel(), bench.engine.kernel_table(np.float32, training=True)
    batches = bench.engine.batches(np.zeros((rows, 1), np.float32), y, np.arange(rows), np.ones(1), None)
    block = np.zeros(loss_block(network, lanes()), np.float32)
    loss, correct = np.empty(rows, np.float32), np.empty(rows, bool)
    memory = bench.engine.arena, block, loss, correct
    return on_bench(lambda: kernel(table, bench.plan, batches, memory, rows), lambda: (loss, bench.block("dz", 1), correct))


def cuda_loss(network: Network, z: Any, y: Any) -> Subject:
    bench = CudaWorkbench(network, len(z), device())
    bench.labels(y)
    bench.fill({(OUTPUT, 0): z})
    return on_bench(bench.losses(), lambda: (bench.vector("loss"), bench.block(GRADIENT, 0), bench.vector("correct")), None)


LOSS = {"numpy": numpy_loss, "numba": numba_loss, "cuda": cuda_loss}
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
