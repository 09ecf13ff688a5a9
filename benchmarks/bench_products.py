"""Benchmarks of a layer's matrix products, forward and backward, and of the whole backward pass.

    python -m pytest benchmarks/bench_products.py --benchmark-columns=median,iqr,rounds

NumPy with its BLAS is compared with the CPU engine and the CUDA engine. As in training, a product includes the operations
that are fused with it: adding the bias and applying relu, multiplying by the derivatives of the activation, or computing the
gradient of the biases. On a GPU, batches of 64 rows use the engine's kernels for small batches, and batches of 1024 rows use
its kernels for large batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.cases import Case
from benchmarks.cuda_workbench import KEEP_GRADIENT, CudaWorkbench, device
from benchmarks.measuring import CASES, Subject, blas_threads, check, exact, measure, numbers, rounding, sized
from benchmarks.workbench import Workbench, on_bench, one_layer
from fastmlp.engines.cuda.kernels.layout import GRADIENT, OUTPUT, SLOPES
from fastmlp.nn.network import Network
from fastmlp.reference import ForwardPass, backward, forward


class Shape(NamedTuple):
    """Sizes of a product: rows of the mini-batch, and inputs and outputs of the layer."""

    rows: int
    fan_in: int
    fan_out: int


SHAPES = sized(
    [Shape(64, 784, 128), Shape(64, 128, 10), Shape(64, 500, 250), Shape(1024, 784, 128), Shape(1024, 512, 256)],
    [Shape(7, 13, 9)],
)

# ------------------------------------------------------------------------------------------------ y = relu(x w + b)


def numpy_forward(x: Any, w: Any, b: Any) -> Subject:
    def run() -> Any:
        return (np.maximum(x @ w + b, 0),)

    return Subject(run, run, blas_threads())


def with_output(w: Any, b: Any) -> tuple[Network, Any]:
    """Return a network whose hidden layer has weights w and biases b, and its parameters. The output layer is all zeros."""
    zeros = np.zeros(w.shape[1] + 1, np.float32)
    return Network((*w.shape, 1), activation="relu", loss="squared-error"), np.concatenate([w.ravel(), b, zeros])


def numba_forward(x: Any, w: Any, b: Any) -> Subject:
    network, parameters = with_output(w, b)
    bench = Workbench(network, len(x))
    bench.load(parameters)
    bench.block("y", 0)[:] = x
    return on_bench(bench.forward(0), lambda: (bench.block("y", 1),))


def cuda_forward(x: Any, w: Any, b: Any) -> Subject:
    network, parameters = with_output(w, b)
    bench = CudaWorkbench(network, len(x), device())
    bench.load(parameters)
    bench.inputs(x)
    return on_bench(bench.forward(0), lambda: (bench.block(OUTPUT, 0),), None)


FORWARD = {"numpy": numpy_forward, "numba": numba_forward, "cuda": cuda_forward}


@pytest.mark.parametrize("backend", FORWARD)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(benchmark: Any, shape: Shape, backend: str) -> None:
    operands = numbers(shape.rows, shape.fan_in), numbers(shape.fan_in, shape.fan_out), numbers(shape.fan_out)
    x, w, b = exact(*operands)
    subject = FORWARD[backend](*operands)
    check(subject.answer(), (np.maximum(x @ w + b, 0),), rounding(shape.fan_in))
    measure(benchmark, "matmul {0}x{1} @ {1}x{2}, bias, relu".format(*shape), backend, subject)


# ------------------------------------------------------------------------------------------------ dx = (dz w') relu'


def numpy_input_gradient(dz: Any, w: Any, y: Any) -> Subject:
    def run() -> Any:
        return ((dz @ w.T) * (y > 0),)

    return Subject(run, run, blas_threads())


def with_input(w: Any) -> tuple[Network, Any]:
    """Return a network whose output layer has weights w, and its parameters. All other parameters are zero."""
    fan_in, fan_out = w.shape
    parameters = np.concatenate([np.zeros(2 * fan_in, np.float32), w.ravel(), np.zeros(fan_out, np.float32)])
    return Network((1, fan_in, fan_out), activation="relu", loss="squared-error"), parameters


def numba_input_gradient(dz: Any, w: Any, y: Any) -> Subject:
    network, parameters = with_input(w)
    bench = Workbench(network, len(dz))
    bench.load(parameters)
    bench.block("y", 1)[:], bench.block("dz", 2)[:] = y, dz
    return on_bench(bench.input_gradients(), lambda: (bench.block("dz", 1),))


def cuda_input_gradient(dz: Any, w: Any, y: Any) -> Subject:
    network, parameters = with_input(w)
    bench = CudaWorkbench(network, len(dz), device())
    bench.load(parameters)
    bench.fill({(SLOPES, 0): y > 0, (GRADIENT, 1): dz})
    return on_bench(bench.input_gradient(), lambda: (bench.block(GRADIENT, 0),), None)


INPUT_GRADIENT = {"numpy": numpy_input_gradient, "numba": numba_input_gradient, "cuda": cuda_input_gradient}


@pytest.mark.parametrize("backend", INPUT_GRADIENT)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_input_gradient(benchmark: Any, shape: Shape, backend: str) -> None:
    operands = numbers(shape.rows, shape.fan_out), numbers(shape.fan_in, shape.fan_out), numbers(shape.rows, shape.fan_in)
    dz, w, y = exact(*operands)
    subject = INPUT_GRADIENT[backend](*operands)
    check(subject.answer(), ((dz @ w.T) * (y > 0),), rounding(shape.fan_out))
    measure(benchmark, "matmul {0}x{2} @ {2}x{1}, times relu'".format(*shape), backend, subject)


# ------------------------------------------------------------------------------------------------ dw = x' dz, db = 1' dz


def numpy_weight_gradient(x: Any, dz: Any) -> Subject:
    def run() -> Any:
        return x.T @ dz, dz.sum(axis=0)

    return Subject(run, run, blas_threads())


def numba_weight_gradient(x: Any, dz: Any) -> Subject:
    network = one_layer(x.shape[1], dz.shape[1])
    bench = Workbench(network, len(x))
    bench.fill([x], [], dz)
    return on_bench(bench.weight_gradients(), lambda: network.views(bench.gradient())[0])


def cuda_weight_gradient(x: Any, dz: Any) -> Subject:
    network = one_layer(x.shape[1], dz.shape[1])
    bench = CudaWorkbench(network, len(x), device(), KEEP_GRADIENT)
    bench.inputs(x)
    bench.fill({(GRADIENT, 0): dz})
    return on_bench(bench.backward(), lambda: network.views(bench.gradient())[0], None)


WEIGHT_GRADIENT = {"numpy": numpy_weight_gradient, "numba": numba_weight_gradient, "cuda": cuda_weight_gradient}


@pytest.mark.parametrize("backend", WEIGHT_GRADIENT)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weight_gradient(benchmark: Any, shape: Shape, backend: str) -> None:
    operands = numbers(shape.rows, shape.fan_in), numbers(shape.rows, shape.fan_out)
    x, dz = exact(*operands)
    subject = WEIGHT_GRADIENT[backend](*operands)
    check(subject.answer(), (x.T @ dz, dz.sum(axis=0)), rounding(shape.rows))
    measure(benchmark, "matmul {1}x{0} @ {0}x{2}, sum of rows".format(*shape), backend, subject)


# ------------------------------------------------------------------------------------------------ the whole backward pass


def numpy_backward(network: Network, parameters: Any, passed: ForwardPass, dz: Any) -> Subject:
    layers = network.views(parameters)

    def run() -> Any:
        return backward(network, layers, passed, dz)

    return Subject(run, lambda: flat_views(network, run()), blas_threads())


def numba_backward(network: Network, parameters: Any, passed: ForwardPass, dz: Any) -> Subject:
    bench = Workbench(network, len(dz))
    bench.load(parameters)
    bench.fill(passed.inputs, passed.slopes, dz)
    inputs, weights = bench.input_gradients(), bench.weight_gradients()

    def run() -> None:
        inputs()
        weights()

    return on_bench(run, lambda: flat_views(network, bench.gradient()))


def flat_views(network: Network, vector: Any) -> tuple[Any, ...]:
    """Return the weights and biases of all layers as a tuple of arrays, layer by layer."""
    return tuple(array for pair in network.views(vector) for array in pair)


def cuda_backward(network: Network, parameters: Any, passed: ForwardPass, dz: Any) -> Subject:
    bench = CudaWorkbench(network, len(dz), device(), KEEP_GRADIENT)
    bench.load(parameters)
    bench.inputs(passed.inputs[0])
    blocks = {(OUTPUT, layer): y for layer, y in enumerate(passed.inputs[1:])}
    blocks |= {(SLOPES, layer): s for layer, s in enumerate(passed.slopes)}
    bench.fill(blocks | {(GRADIENT, len(network.layers) - 1): dz})
    return on_bench(bench.backward(), lambda: flat_views(network, bench.gradient()), None)


BACKWARD = {"numpy": numpy_backward, "numba": numba_backward, "cuda": cuda_backward}


@pytest.mark.parametrize("backend", BACKWARD)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_backward(benchmark: Any, case: Case, backend: str) -> None:
    network = Network(case.sizes)
    parameters = network.initial_parameters(0)
    passed = forward(network, network.views(parameters), numbers(case.batch, case.sizes[0]))
    dz = numbers(case.batch, case.sizes[-1])
    subject = BACKWARD[backend](network, parameters, passed, dz)
    precise = ForwardPass(list(exact(*passed.inputs)), list(exact(*passed.slopes)), passed.z)
    wanted = backward(network, network.views(*exact(parameters)), precise, *exact(dz))
    check(subject.answer(), flat_views(network, wanted), rounding(case.batch + sum(case.sizes)))
    measure(benchmark, f"backward {case.label}", backend, subject)
