"""Tests of `train_many`: bit-identical results to `train`, shared data, constant memory use, and the benchmark."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import same_bits
from support.many import NETWORK, SMALL, same_training, timeless
from support.problems import problem, set_up
from support.processes import ROOT

import fastmlp.training.loop
from benchmarks import many as benchmark
from fastmlp.data.checks import CheckedRows
from fastmlp.data.rows import Subset
from fastmlp.data.scaling import fit_scaling
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import SGD, Adam, Optimizer
from fastmlp.nn.schedules import Schedule
from fastmlp.training.api import DataOptions, bind, make_tasks, train, train_many
from fastmlp.training.loop import Diverged
from fastmlp.training.result import TrainResult
from fastmlp.training.settings import Task, TrainingData


def many_jobs(numba_backend: str) -> list[tuple[Network, Any]]:
    """Return jobs whose networks and settings differ in many ways, but which need only a few different kernels."""
    wide = Network((4, 70, 33, 3), dropout=(0.4, 0.0))
    return [
        (NETWORK, set_up(backend=numba_backend, epochs=3)),
        (
            Network((4, 40, 9, 3)),
            set_up(backend=numba_backend, seed=7, batch_size=7, optimizer=SGD(0.05), schedule=Schedule("cosine")),
        ),
        (wide, set_up(backend=numba_backend, seed=2**63, epochs=12, optimizer=Adam(0.003))),
        (
            wide,
            set_up(
                backend=numba_backend,
                seed=1,
                epochs=9,
                patience=2,
                monitor="accuracy",
                optimizer=Adam(0.01),
                schedule=Schedule(warmup=2),
            ),
        ),
        (Network((4, 8, 3), label_smoothing=0.1), set_up(backend=numba_backend, batch_size=150, seed=3)),
        (Network((4, 20, 3), activation="gelu", l2=0.01), set_up(optimizer=Optimizer("nesterov", max_grad_norm=1.0), seed=4)),
        (
            Network((4, 6, 6, 3), activation="tanh", loss="squared-error"),
            set_up(optimizer=Optimizer("rmsprop"), dtype=np.float64),
        ),
        (Network((4, 3)), set_up(optimizer=Optimizer("momentum"), epochs=20, shuffle=False, restore_best=False)),
    ]


# ------------------------------------------------------------------------------------------------ bits


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    x, y = problem()
    weights = np.random.default_rng(1).uniform(0.5, 2, 150).astype(np.float32)
    return {"train": (x, y), "validation": problem(50, 1), "scaling": fit_scaling("zscore", x), "sample_weight": weights}


@pytest.fixture(scope="module")
def singles(numba_backend: str, data: dict[str, Any]) -> list[TrainResult]:
    return [train(network, settings=settings, **data) for network, settings in many_jobs(numba_backend)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_model_has_the_bits_of_a_single_training(
    numba_backend: str, data: dict[str, Any], singles: list[TrainResult], threads: int
) -> None:
    results = train_many(many_jobs(numba_backend), **data, threads=threads)
    assert len(results) == len(singles)
    for one, result in zip(singles, results, strict=True):
        assert isinstance(result, TrainResult)
        assert same_training(result, one)
        assert result.threads == 1


def test_same_training_detects_differences(singles: list[TrainResult]) -> None:
    one = singles[0]
    assert not same_training(one, singles[1])
    assert not same_training(one, one._replace(stopped="time"))
    assert not same_training(one, one._replace(history=[*one.history[:-1], {**one.history[-1], "loss": 0.1}]))
    assert same_training(one, one._replace(history=[{**row, "seconds": 9.0} for row in one.history]))


def test_the_model_has_the_threads_of_its_settings() -> None:
    x, y = problem(40)
    results = train_many([(NETWORK, set_up(threads=3)), (NETWORK, set_up())], (x, y), scaling=None)
    assert [result.model.threads for result in results if isinstance(result, TrainResult)] == [3, None]


@pytest.mark.parametrize("threads", [None, 1, 9])
def test_any_number_of_models_and_threads(threads: int | None) -> None:
    x, y = problem(40)
    for count in (0, 1, 5):
        results = train_many(SMALL[:count], (x, y), threads=threads, scaling=None)
        assert [timeless(r.history) for r in results if isinstance(r, TrainResult)] == [
            timeless(train(network, (x, y), settings=settings, scaling=None).history) for network, settings in SMALL[:count]
        ]


def test_models_are_trained_concurrently_in_order_of_decreasing_cost() -> None:
    x, y = problem(40)
    started: list[int] = []
    together = threading.Barrier(2, timeout=120)  # fails unless two models are trained concurrently

    def make(backend: str, job: EngineSpec) -> Engine:
        engine = make_engine(backend, job)
        if threading.current_thread() is not threading.main_thread():
            started.append(job.seed)
            if len(started) <= 2:
                together.wait()
        return engine

    jobs = [(Network((4, 8, 3)), set_up(seed=0)), (Network((4, 30, 3)), set_up(seed=1)), (NETWORK, set_up(seed=2, epochs=90))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastmlp.training.loop, "make_engine", make)
        train_many(jobs, (x, y), threads=2, scaling=None)
    assert set(started[:2]) == {1, 2}
    assert started[2] == 0


def test_each_job_has_its_own_callbacks() -> None:
    """A callback gets the history entries and the engine of its model, runs in its thread, and can stop only this model."""
    x, y = problem(40)
    seen: dict[int, list[int]] = {0: [], 1: []}
    parameters: dict[int, Any] = {}

    def keep(job: int, last: int) -> Any:
        def callback(row: Any, engine: Engine) -> bool:
            assert threading.current_thread() is not threading.main_thread()
            seen[job].append(row["epoch"])
            parameters[job] = engine.state().parameters
            return bool(row["epoch"] == last)

        return callback

    found = train_many(
        [(NETWORK, set_up()), (NETWORK, set_up(seed=1))], (x, y), callbacks=[[keep(0, 2)], [keep(1, 99)]], scaling=None
    )
    assert seen == {0: [1, 2], 1: [1, 2, 3, 4]}
    assert [training.stopped for training in found] == ["callback", "epochs"]
    for job, training in enumerate(found):
        assert same_bits(training.state.parameters, parameters[job])
    with pytest.raises(ConfigError, match="callbacks has 1 sequences, but there are 2 jobs"):
        train_many([(NETWORK, set_up())] * 2, (x, y), callbacks=[[]], scaling=None)


# Each entry changes one setting of the network or of the optimizer.
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"activation": "silu"}, {}),
    ({"dropout": 0.1}, {}),
    ({"dropout": (0.0, 0.2)}, {}),
    ({"loss": "squared-error"}, {}),
    ({"loss": "squared-error", "output": "sigmoid"}, {}),
    ({"loss": "squared-error", "output": "softmax"}, {}),
    ({"loss": "huber:0.5"}, {}),
    ({"loss": "huber:2"}, {}),
    ({"l1": 0.1}, {}),
    ({"l2": 0.1}, {}),
    ({"label_smoothing": 0.1}, {}),
    ({"init": "normal"}, {}),
    ({}, {"name": "adam"}),
    ({}, {"max_grad_norm": 1.0}),
    ({}, {"momentum": 0.5}),
]


def test_models_with_the_same_kernel_key_have_the_same_kernels(numba_backend: str) -> None:
    """Tasks with equal `kernel_key` use the same kernels, so compiling one task per key compiles all kernels."""
    keys, kernels = [], []
    for of_network, of_optimizer in CHANGES:
        for sizes, seed in (((4, 6, 7, 3), 0), ((4, 9, 5, 3), 1)):
            network, optimizer = Network(sizes, **of_network), Optimizer(**of_optimizer)
            settings = set_up(optimizer=replace(optimizer, learning_rate=0.1 + seed), seed=seed, batch_size=8 + seed)
            keys.append(Task(network, settings, TrainingData(CheckedRows(*problem(9), 3))).kernel_key)
            engine: Any = make_engine(numba_backend, EngineSpec(network, optimizer, threads=1))
            kernels.append(repr(engine.kernel_table(np.float32, training=True)))
    kernels_of = {key: {kernel for other, kernel in zip(keys, kernels, strict=True) if other == key} for key in keys}
    assert all(len(found) == 1 for found in kernels_of.values())
    assert len(set(kernels)) >= 7
    assert len(kernels_of) < len(keys) / 2


def test_networks_with_other_parameters_of_a_loss_have_the_same_kernel_key() -> None:
    data = TrainingData(CheckedRows(*problem(9), 3))
    keys = [Task(Network((4, 5, 3), loss=loss), set_up(), data).kernel_key for loss in ("huber:0.5", "huber:2", "quantile")]
    assert keys[0] == keys[1] != keys[2]


NO_COMPILATION_IN_THE_THREADS = """
from numba.core import event
import numpy as np
from fastmlp.training.api import make_tasks
from fastmlp.training.many import Pool, compile_kernels
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.engines.interrupts import Signals
from fastmlp.training.api import DataOptions, bind
from fastmlp.training.settings import Settings

x, y = np.ones((9, 4), np.float32), np.arange(9) % 3
adam = Settings(optimizer=Optimizer("adam"), epochs=1)
jobs = [(Network((4, 5, 3)), Settings(epochs=1)), (Network((4, 9, 6, 3)), Settings(epochs=2, seed=1))]
jobs += [(Network((4, 5, 5, 3), dropout=(0.0, 0.1)), adam), (Network((4, 7, 3), dropout=0.2), adam)]
options = DataOptions(*[None] * 6)
tasks = make_tasks(jobs, lambda network, dtype: bind(network, dtype, (x, y), (x, y), options))
with event.install_recorder("numba:compiler_lock") as before:
    compile_kernels(tasks)
with event.install_recorder("numba:compiler_lock") as after:
    Pool(tasks, Signals(), None, None).run(2)
print(len(before.buffer), len(after.buffer))
"""


@pytest.mark.full
def test_everything_is_compiled_before_the_threads_start(numba_backend: str) -> None:
    """In a new process, the training threads never acquire Numba's compiler lock, so they do not compile or load kernels."""
    root = ROOT
    command = [sys.executable, "-W", "error", "-c", NO_COMPILATION_IN_THE_THREADS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before > 0
    assert after == 0


# ------------------------------------------------------------------------------------------------ data


def test_the_data_are_checked_once_and_shared() -> None:
    x, y = problem(40)
    regression = Network((4, 5, 3), loss="squared-error")
    jobs = [*SMALL, (Network((4, 5, 6)), set_up()), (regression, set_up()), (NETWORK, set_up(dtype=np.float64))]
    calls = []

    def bound(network: Network, dtype: Any) -> tuple[Network, TrainingData]:
        calls.append((network.label, dtype))
        return bind(network, dtype, (x, y), (x[:9], y[:9]), DataOptions(*[None] * 6))  # type: ignore[arg-type]

    *singles, double = make_tasks(jobs, bound)
    assert len(calls) == 4  # one for each combination of dtype, sizes of input and output, and loss
    assert all(task.data.train.x is x for task in singles)
    assert all(task.data.train.y is singles[0].data.train.y for task in singles[:5])
    assert double.data.train.x.dtype == np.float64
    assert singles[5].data.classes == tuple("012345")
    assert singles[6].data.classes == tuple("012")


def test_engines_get_the_callers_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines receive the array of the caller itself, which may be read-only and is not modified."""
    x, y = problem(40)
    copy = x.copy()
    x.flags.writeable = False
    seen: list[Any] = []

    class Recorder:
        def __init__(self, engine: Engine) -> None:
            self.engine = engine

        def __getattr__(self, name: str) -> Any:
            return getattr(self.engine, name)

        def train(self, rows: Any, *args: Any) -> Any:
            seen.append(rows)
            return self.engine.train(rows, *args)

    monkeypatch.setattr(fastmlp.training.loop, "make_engine", lambda *args: Recorder(make_engine(*args)))
    train_many(SMALL, (x, y), threads=2, scaling=None)
    assert len(seen) > len(SMALL)
    assert all(rows is x for rows in seen)
    assert same_bits(x, copy)


def test_training_on_a_subset_has_the_bits_of_its_copy() -> None:
    x, y = problem(60)
    rows = np.random.default_rng(0).permutation(60)[:40]
    copied = train_many(SMALL, (x[rows], y[rows]), threads=2, scaling=None)
    for one, other in zip(train_many(SMALL, (Subset(x, rows), y[rows]), threads=2, scaling=None), copied, strict=True):
        assert isinstance(one, TrainResult) and isinstance(other, TrainResult)
        assert same_training(one, other)


REJECTED: list[tuple[tuple[Network, Any], dict[str, Any], type[Exception], str]] = [
    ((Network((5, 3)), set_up()), {}, DataError, r"jobs\[5\]: the network takes rows of 5 features"),
    ((Network((4, 2)), set_up()), {}, DataError, r"jobs\[5\]: training labels range from 0 to 2, but there are 2 classes"),
    ((NETWORK, set_up(patience=1)), {}, ConfigError, r"jobs\[5\]: patience needs a validation split"),
    ((NETWORK, set_up(backend="nunba")), {}, ConfigError, r"jobs\[5\]: unknown backend"),
    ((NETWORK, set_up(backend="numba", dtype=np.float64)), {}, ConfigError, r"jobs\[5\]: backend 'numba' computes in float32"),
    (SMALL[0], {"threads": 0}, ConfigError, "threads must be at least 1"),
    (SMALL[0], {"threads": 1.5}, ConfigError, "threads must be at least 1"),
    (SMALL[0], {"classes": ["a", "b"]}, DataError, r"jobs\[0\]: the training data have 2 classes"),
    (SMALL[0], {"sample_weight": np.zeros(40)}, DataError, r"jobs\[0\]: sample_weight"),
]


@pytest.mark.parametrize(("job", "changes", "error", "message"), REJECTED)
def test_invalid_jobs_are_rejected_before_training(
    job: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    x, y = problem(40)
    rows: list[Any] = []
    with pytest.raises(error, match=message) as caught:
        train_many([*SMALL, job], (x, y), progress=lambda *row: rows.append(row), **changes)
    assert "\n" not in str(caught.value)
    assert rows == []


# ------------------------------------------------------------------------------------------------ memory

FITS = 300
BOUND = 8 * 2**20  # bytes that the allocators of the threads may retain; 300 engines for TINY would need 30 MB
TINY = Network((32, 16, 16, 10))


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process on Linux, or its peak memory on other systems.

    The value is read from smaps_rollup, because statm includes memory-mapped files, and its counters can be wrong by some
    megabytes on machines with many cores.
    """
    rollup = Path("/proc/self/smaps_rollup")
    if rollup.exists():
        return sum(int(found) << 10 for found in re.findall(r"(?m)^(?:Anonymous|Swap):\s+(\d+) kB", rollup.read_text()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def settled_bytes() -> int:
    """Return the memory use after garbage collection, and after the allocator has returned free memory to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
    return anonymous_bytes()


def growth(call: Callable[[int], Any]) -> tuple[int, int]:
    """Return by how many bytes and threads the process grows in repeated calls, after the same number of warm-up calls."""
    for index in range(FITS // 50):
        call(index)
    before, threads = settled_bytes(), threading.active_count()
    for index in range(FITS // 50):
        call(index)
    return settled_bytes() - before, threading.active_count() - threads


def growth_in_new_process(call: Callable[[int], Any]) -> tuple[int, int]:
    """Return `growth`, measured in a new process so that other tests do not affect the memory use."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(growth, call).result()


def train_fifty(backend: str, index: int) -> None:
    """Train fifty small networks, two of which diverge."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 32)).astype(np.float32), rng.integers(0, 10, 100)
    settings = set_up(backend=backend, epochs=5, batch_size=32)
    jobs = [(TINY, replace(settings, seed=50 * index + seed)) for seed in range(48)]
    diverging = [(TINY, replace(settings, optimizer=SGD(rate))) for rate in (1e20, 1e30)]
    results = train_many(jobs + diverging, (x, y), validation=(x[:40], y[:40]), threads=2, scaling=None)
    assert [type(result) for result in results] == [TrainResult] * 48 + [Diverged] * 2


LEAKED: list[Any] = []


def leak(rows: int, index: int) -> None:
    """Simulate fifty training runs, each of which leaks the memory of an engine."""
    LEAKED.extend(np.ones(rows, np.uint8) for _ in range(50))


def test_memory_does_not_grow(numba_backend: str) -> None:
    grown, threads = growth_in_new_process(partial(train_fifty, numba_backend))
    assert grown < BOUND
    assert threads == 0


def test_growth_is_detected() -> None:
    grown, _ = growth_in_new_process(partial(leak, 100_000))
    assert grown > BOUND


# ------------------------------------------------------------------------------------------------ the benchmark


def small_case() -> tuple[benchmark.Case, dict[str, Any]]:
    x, y = problem(60)
    case = benchmark.Case("small", "made up", 60, SMALL)
    return case, {"train": (x, y), "validation": problem(20, 1)}


def test_the_benchmark_runs() -> None:
    row = benchmark.measure(*small_case(), threads=2, rounds=3)
    assert row["models"] == 5
    for key in ("alone_seconds", "together_seconds", "efficiency"):
        assert 0 < row[key]["least"] <= row[key]["median"] <= row[key]["most"]
    assert re.fullmatch(
        r"small, 5 models: sequential .* s, parallel .* s, efficiency .*% \(.*% to .*%\)", benchmark.text_of(row)
    )


def test_the_benchmark_rejects_models_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    original = benchmark.together

    def of_other_seeds(case: benchmark.Case, data: dict[str, Any], threads: int) -> Any:
        others = [(network, replace(settings, seed=settings.seed + 1)) for network, settings in case.jobs]
        return original(case._replace(jobs=others), data, threads)

    monkeypatch.setattr(benchmark, "together", of_other_seeds)
    with pytest.raises(SystemExit, match="model 0 has different weights"):
        benchmark.measure(*small_case(), threads=2, rounds=1)


def test_the_benchmark_cases_match_their_names() -> None:
    tiny, small, large, mix = benchmark.make_cases(15)
    for case, label in ((tiny, "64x32x10"), (small, "784x64x10"), (large, "784x128x10")):
        assert {network.label for network, _ in case.jobs} == {label}
    assert len({network.label for network, _ in mix.jobs}) == 5
    assert {settings.optimizer.name for _, settings in mix.jobs} == set(benchmark.OPTIMIZERS)
    for case in (tiny, small, large, mix):
        assert len({settings.seed for _, settings in case.jobs}) == 15
        assert len({settings.optimizer.learning_rate for _, settings in case.jobs}) == 15
        assert len({task.kernel_key for task in (Task(*job, data=None) for job in case.jobs)}) == (5 if case is mix else 1)  # type: ignore[arg-type]
