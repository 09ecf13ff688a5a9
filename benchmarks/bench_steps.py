"""Benchmarks of training steps, training epochs and predictions with fastmlp's engines.

    python -m pytest benchmarks/bench_steps.py --benchmark-columns=median,iqr,rounds

All cases use plain SGD, relu, softmax cross-entropy and float32. The published results come from `benchmarks.epochs`, which
times the engines in interleaved rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import cycle
from typing import Any

import numpy as np
import pytest

from benchmarks.cases import ROWS, Case
from benchmarks.measuring import CASES, Subject, blas_threads, check, measure, rounding, sized
from fastmlp.bench.rivals import ENGINES
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, State, step_count
from fastmlp.errors import UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

EPOCH_ROWS, PREDICT_ROWS = sized((ROWS, 10_000), (60, 40))
LEARNING_RATE = 0.01
PROBE = 8  # number of first mini-batches, in which rounding errors are still small
# Relative tolerance of the mean loss over an epoch; it is large because rounding errors grow with every update
EPOCH_TOLERANCE = 5e-3


@functools.cache
def random_rows(rows: int, features: int, outputs: int) -> Any:
    """Return random inputs (rows, features) float32 in [0, 1) and random class labels (rows,) int32."""
    draw = np.random.default_rng(0)
    return draw.random((rows, features), np.float32), draw.integers(0, outputs, rows, np.int32)


@contextmanager
def engine_for(backend: str, case: Case, dtype: Any = np.float32) -> Iterator[Engine]:
    """Yield an engine with the initial parameters of a case; skip the benchmark if its package or device is missing."""
    network = Network(case.sizes)
    try:
        engine = make_engine(backend, EngineSpec(network, Optimizer("sgd"), batch_size=case.batch, dtype=dtype))
    except UnavailableError as error:
        pytest.skip(str(error))
    with closing(engine):
        engine.load(State(network.initial_parameters(0), np.empty((0, network.parameters), np.float32), 0))
        yield engine


def threads_of(engine: Engine) -> int | None:
    """Return the number of threads that an engine may use; None if it runs on a GPU."""
    return {"numpy": blas_threads(), "numba": engine.threads}.get(engine.name)


def train(engine: Engine, case: Case, rows: Any) -> Any:
    """Train on the rows with these indices; return the loss of each row."""
    x, y = random_rows(EPOCH_ROWS, case.sizes[0], case.sizes[-1])
    return engine.train(x, y, rows, np.full(step_count(len(rows), case.batch), LEARNING_RATE)).loss


@functools.cache
def specified_losses(case: Case) -> Any:
    """Return the losses of all rows of an epoch, (rows,), computed by the NumPy engine in float64."""
    with engine_for("numpy", case, np.float64) as engine:
        return train(engine, case, np.arange(EPOCH_ROWS))


def stepping(engine: Engine, case: Case) -> Subject:
    """Return a subject that runs one training step per call and cycles through the mini-batches of an epoch."""
    batches = cycle(np.split(np.arange(EPOCH_ROWS), range(case.batch, EPOCH_ROWS, case.batch)))

    def run() -> Any:
        return train(engine, case, next(batches))

    return Subject(run, lambda: (np.concatenate([run() for _ in range(PROBE)]),), threads_of(engine))


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_step(benchmark: Any, case: Case, backend: str) -> None:
    with engine_for(backend, case) as engine:
        subject = stepping(engine, case)
        check(subject.answer(), (specified_losses(case)[: PROBE * case.batch],), rounding(sum(case.sizes)))
        measure(benchmark, f"step {case.label}", backend, subject)


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_epoch(benchmark: Any, case: Case, backend: str) -> None:
    order, wanted, probe = np.arange(EPOCH_ROWS), specified_losses(case), PROBE * case.batch
    with engine_for(backend, case) as engine:

        def answer() -> Any:
            losses = train(engine, case, order)
            return losses[:probe], losses.mean(dtype=np.float64)

        subject = Subject(lambda: train(engine, case, order), answer, threads_of(engine))
        check(subject.answer(), (wanted[:probe], wanted.mean()), (rounding(sum(case.sizes)), EPOCH_TOLERANCE))
        measure(benchmark, f"epoch {case.label}, {EPOCH_ROWS} rows", backend, subject)


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.label)
def test_predict(benchmark: Any, case: Case, backend: str) -> None:
    x, _ = random_rows(PREDICT_ROWS, case.sizes[0], case.sizes[-1])
    with engine_for("numpy", case, np.float64) as engine:
        wanted = engine.forward(x)
    with engine_for(backend, case) as engine:

        def run() -> Any:
            return (engine.forward(x),)

        subject = Subject(run, run, threads_of(engine))
        check(subject.answer(), (wanted,), rounding(sum(case.sizes)))
        measure(benchmark, f"predict {Network(case.sizes).label}, {PREDICT_ROWS} rows", backend, subject)
