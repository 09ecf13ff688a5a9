"""Helpers of the engine tests: engines by name, the simulated GPU, and random training data."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, RowMetrics, State, step_count
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.network import Network

# Each loss with each of its output functions; the parameters of losses are not the default values.
LOSS_PAIRS = [
    ({"huber": "huber:0.6", "quantile": "quantile:0.8"}.get(loss, loss), output)
    for loss, outputs in LOSSES.items()
    for output in outputs
]

REAL_GPU = os.environ.get("FASTMLP_TEST_GPU") == "1"  # backend "cuda" runs on a device, not in the simulator


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    """Return the pytest markers of tests of a backend; without a GPU, backend "cuda" is simulated, which is slow."""
    return [pytest.mark.full, pytest.mark.gpu] if name == "cuda" else []


def need_backend(name: str) -> str:
    """Return the name of a backend; skip the test if the package that it needs is not installed."""
    if name == "cuda" and not REAL_GPU and importlib.util.find_spec("greenlet") is None:
        pytest.skip("the simulator of backend 'cuda' needs greenlet: pip install greenlet")
    if name == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("backend 'torch' needs PyTorch: pip install torch")
    return name


@contextlib.contextmanager
def simulation() -> Iterator[None]:
    """Run backend "cuda" in a simulator with small thread blocks, so that tests need no GPU.

    With FASTMLP_TEST_GPU=1, tests use the GPU and the usual block sizes.
    """
    if REAL_GPU:
        yield
        return
    from fastmlp.engines.cuda import engine as cuda
    from fastmlp.engines.cuda.kernels.programs import Shape
    from fastmlp.engines.cuda.kernels.tiles import Tile
    from support import cuda_simulator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmlp.engines.cuda.engine.default_runtime", cuda_simulator.Runtime)
        patch.setattr("fastmlp.engines.cuda.engine.usable", lambda: False)  # `auto` must not select a simulator
        patch.setattr("fastmlp.engines.cuda.engine.SHAPE", Shape(16, 4))
        patch.setitem(cuda.TILES, "float32", Tile(8, 8, 4, 4, 4, 1))
        patch.setitem(cuda.TILES, "tf32", Tile(32, 16, 16, 2, 4, 1, gap=8))
        patch.setitem(cuda.TILES, "bf16", Tile(32, 16, 32, 2, 4, 1, gap=8, packed=2))
        yield


class Course(NamedTuple):
    """Arguments of one call of `Engine.train`."""

    x: Any
    y: Any
    indices: Any
    learning_rates: Any
    weights: Any = None


def make_course(
    network: Network,
    rows: int = 24,
    batch: int = 8,
    *,
    epochs: int = 2,
    rate: float = 0.05,
    targets: bool = False,
    weighted: bool = False,
    uint8: bool = False,
    seed: int = 0,
) -> Course:
    """Return random data for a network, shuffled indices for each epoch, and slowly decreasing learning rates."""
    rng = np.random.default_rng([seed, rows, batch, *network.sizes])
    features, outputs = network.sizes[0], network.sizes[-1]
    x = rng.integers(0, 256, (rows, features), np.uint8) if uint8 else rng.normal(size=(rows, features))
    if targets and network.loss_name == "cross-entropy":
        y = rng.dirichlet(np.ones(outputs), rows)
    elif targets and network.loss_name == "binary-cross-entropy":
        y = rng.uniform(size=(rows, outputs))
    elif targets and network.loss_name == "poisson":
        y = rng.poisson(1.0, (rows, outputs))
    elif targets:
        y = rng.normal(size=(rows, outputs))
    else:
        y = rng.integers(0, outputs, rows)
    return Course(
        x if uint8 else x.astype(np.float32),
        y.astype(np.float32 if targets else np.int32),
        np.concatenate([rng.permutation(rows) for _ in range(epochs)]),
        rate / (1 + 0.1 * np.arange(step_count(epochs * rows, batch))),
        rng.uniform(0.5, 2, rows).astype(np.float32) if weighted else None,
    )


def start_state(spec: EngineSpec, seed: int = 1) -> State:
    """Return initial parameters with non-zero biases, and optimizer slots filled with zeros."""
    network = spec.network
    parameters = network.initial_parameters(seed, spec.dtype)
    rng = np.random.default_rng(seed)
    for _, b in network.views(parameters):
        b[:] = rng.normal(0, 0.1, b.shape)
    return State(parameters, np.zeros((len(spec.optimizer.slots), network.parameters), spec.dtype), 0)


def run_course(backend: str, spec: EngineSpec, state: State, course: Course) -> tuple[State, RowMetrics]:
    """Train a new engine with one call of `train`; return its state and the row metrics."""
    engine = make_engine(backend, spec)
    try:
        engine.load(state)
        results = engine.train(*course)
        return engine.state(), results
    finally:
        engine.close()


@contextlib.contextmanager
def engine_of(backend: str, spec: EngineSpec, state: State | None = None) -> Iterator[Engine]:
    """Create an engine, load a state, and close the engine at the end of the block."""
    engine = make_engine(backend, spec)
    try:
        engine.load(start_state(spec) if state is None else state)
        yield engine
    finally:
        engine.close()


def exact_spec(spec: EngineSpec) -> EngineSpec:
    """Return the same spec in float64."""
    return dataclasses.replace(spec, dtype=np.float64)


def same_bits(one: Any, other: Any) -> bool:
    """Return whether two arrays, or tuples of arrays and numbers, have equal dtypes, shapes and bits."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same_bits(a, b) for a, b in zip(one, other, strict=True))
    a, b = np.asarray(one), np.asarray(other)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
