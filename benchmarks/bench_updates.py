"""Benchmarks of the optimizers: each update rule applied to a vector, and fused with the gradient.

    python -m pytest benchmarks/bench_updates.py --benchmark-columns=median,iqr,rounds

The CPU engine usually updates weights as soon as their gradient is complete, while it is still in registers. The biases are
updated as a vector. With gradient clipping, all parameters are updated as a vector.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.cuda_workbench import CudaWorkbench, device, on_vectors
from benchmarks.measuring import Subject, blas_threads, check, exact, measure, numbers, rounding, sized
from benchmarks.workbench import LEARNING_RATE, STEP, Workbench, on_bench, one_layer, update_kernel
from fastmlp.engines.base import State
from fastmlp.engines.cpu.engine import SLOT_ROWS
from fastmlp.engines.cpu.kernels.passes import GRADIENT, PARAMETERS
from fastmlp.engines.cuda.kernels import layout
from fastmlp.engines.cuda.kernels.programs import PLAIN
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import RULES, Optimizer
from fastmlp.reference import ForwardPass, backward, update

FAN_IN, FAN_OUT, ROWS = sized((784, 128, 64), (13, 9, 7))
SIZE = f"{FAN_IN}x{FAN_OUT}"


class Start(NamedTuple):
    """State of P parameters before an update.

    p : parameters, (P,)
    slots : slots of the optimizer, (number of slots, P)
    decay : weight decay of each parameter, (P,)
    """

    p: Any
    slots: Any
    decay: Any

    @classmethod
    def of(cls, optimizer: Optimizer, network: Network) -> Start:
        """Return random parameters and slots. Slots are positive, since second moments are; biases have no weight decay."""
        p, slots = numbers(network.parameters), numbers(len(optimizer.slots), network.parameters, seed=1)
        decay = np.zeros_like(p)
        network.views(decay)[0][0][:] = optimizer.weight_decay
        return cls(p, np.abs(slots), decay)


# ------------------------------------------------------------------------------------------------ a rule on a vector


def numpy_update(optimizer: Optimizer, start: Start, g: Any) -> Subject:
    p, slots = start.p.copy(), start.slots.copy()
    return on_bench(lambda: update(optimizer, p, g, slots, STEP, LEARNING_RATE, start.decay), lambda: (p, *slots))


def numba_update(optimizer: Optimizer, start: Start, g: Any) -> Subject:
    places = [PARAMETERS, *(SLOT_ROWS[name] for name in optimizer.slots)]
    store = np.zeros((GRADIENT + 1, len(g)), np.float32)
    store[places], store[GRADIENT] = [start.p, *start.slots], g
    table = Workbench(one_layer(1, 1), 1, optimizer).engine.kernel_table(np.float32, training=True)
    kernel, scalars = update_kernel(), optimizer.scalars(np.array([LEARNING_RATE]), STEP)[0]
    return on_bench(lambda: kernel(table, store, scalars), lambda: tuple(store[places]))


def cuda_update(optimizer: Optimizer, start: Start, g: Any) -> Subject:
    slots, none = dict(zip(optimizer.slots, start.slots, strict=True)), np.zeros(1, np.float32)
    scalars = optimizer.scalars(np.array([LEARNING_RATE]), STEP)[0]
    arguments = scalars, g, start.p, slots.get("m", none), slots.get("v", none)
    results = 2, *(3 + "mv".index(name) for name in optimizer.slots)
    return on_vectors(device(), "updates", PLAIN._replace(rule=optimizer.name), arguments, results)


UPDATE = {"numpy": numpy_update, "numba": numba_update, "cuda": cuda_update}


@pytest.mark.parametrize("backend", UPDATE)
@pytest.mark.parametrize("rule", RULES)
def test_update(benchmark: Any, rule: str, backend: str) -> None:
    optimizer, network = Optimizer(rule), one_layer(FAN_IN, FAN_OUT)
    start, g = Start.of(optimizer, network), numbers(network.parameters, seed=2)
    start.decay[:] = optimizer.weight_decay  # of every element, since the vector contains no biases
    subject = UPDATE[backend](optimizer, start, g)
    check(subject.answer(), numpy_update(optimizer, Start(*exact(*start)), *exact(g)).answer(), rounding(0))
    measure(benchmark, f"optimizer {rule}, {SIZE}", backend, subject)


# ------------------------------------------------------------------------------------------------ gradient and update


def numpy_gradient_update(optimizer: Optimizer, start: Start, x: Any, dz: Any) -> Subject:
    network = one_layer(FAN_IN, FAN_OUT)
    p, slots = start.p.copy(), start.slots.copy()

    def run() -> None:
        g = backward(network, network.views(p), ForwardPass([x], [], dz), dz)
        update(optimizer, p, g, slots, STEP, LEARNING_RATE, start.decay)

    return on_bench(run, lambda: (p, *slots), blas_threads())


def numba_gradient_update(optimizer: Optimizer, start: Start, x: Any, dz: Any) -> Subject:
    bench = Workbench(one_layer(FAN_IN, FAN_OUT), len(x), optimizer)
    bench.load(start.p, start.slots)
    bench.fill([x], [], dz)

    return on_bench(bench.weight_gradients(optimizer.name), lambda: parameters_of(bench.engine.state()))


def cuda_gradient_update(optimizer: Optimizer, start: Start, x: Any, dz: Any) -> Subject:
    bench = CudaWorkbench(one_layer(FAN_IN, FAN_OUT), len(x), device(), optimizer)
    bench.load(start.p, start.slots)
    bench.inputs(x)
    bench.fill({(layout.GRADIENT, 0): dz})
    return on_bench(bench.backward(), lambda: parameters_of(bench.engine.state()), None)


def parameters_of(state: State) -> Any:
    """Return the parameters and each slot, (parameters,) each."""
    return state.parameters, *state.slots


GRADIENT_UPDATE = {"numpy": numpy_gradient_update, "numba": numba_gradient_update, "cuda": cuda_gradient_update}


@pytest.mark.parametrize("backend", GRADIENT_UPDATE)
@pytest.mark.parametrize("rule", RULES)
def test_gradient_update(benchmark: Any, rule: str, backend: str) -> None:
    optimizer = Optimizer(rule)
    start = Start.of(optimizer, one_layer(FAN_IN, FAN_OUT))
    operands = numbers(ROWS, FAN_IN), numbers(ROWS, FAN_OUT)
    subject = GRADIENT_UPDATE[backend](optimizer, start, *operands)
    wanted = numpy_gradient_update(optimizer, Start(*exact(*start)), *exact(*operands)).answer()
    check(subject.answer(), wanted, rounding(ROWS))
    measure(benchmark, f"gradient and optimizer {rule}, {SIZE}, {ROWS} rows", backend, subject)
