"""Tests of the benchmark suites: all benchmarks run, and an operation with wrong results is not timed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import pytest
from support.engines import marks_of, need_backend, simulation
from support.processes import ROOT

from benchmarks import bench_functions, bench_products, bench_steps, bench_updates
from benchmarks.bench_products import Shape
from benchmarks.cases import Case
from benchmarks.cuda_workbench import KEEP_GRADIENT, CudaWorkbench
from benchmarks.measuring import Subject, blas_threads, check, rounding
from fastmlp.engines import BACKENDS
from fastmlp.engines.base import RowMetrics
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.cuda.runtime import Runtime
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.errors import UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import RULES
from fastmlp.reference import ACTIVATIONS

pytestmark = pytest.mark.full

SUITES = sorted((ROOT / "benchmarks").glob("bench_*.py"))
SHAPE, CASE = Shape(7, 13, 9), Case((13, 9, 5), 7)


def test_all_suites_run_once_and_all_answers_agree() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-disable", "-p", "no:cacheprovider"]
    environment = {**os.environ, "FASTMLP_BENCH_SMALL": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(SUITES) == 5
    for path in SUITES:
        assert f"benchmarks/{path.name}" in done.stdout


class Recorder:
    """Replacement for the fixture `benchmark` of pytest-benchmark; it counts how many calls would be timed."""

    enabled = False

    def __init__(self) -> None:
        self.group = self.name = ""
        self.extra_info: dict[str, Any] = {}
        self.timed = 0

    def __call__(self, run: Callable[[], Any]) -> None:
        self.timed += 1
        run()


# ------------------------------------------------------------------------------------------------ wrong answers


def wrong_product(x: Any, w: Any, b: Any) -> Subject:
    """Return a subject that ignores the last input of the layer."""
    return bench_products.numpy_forward(x[:, :-1], w[:-1], b)


def slightly_off(maker: Callable[..., Subject]) -> Callable[..., Subject]:
    """Return a subject whose results are correct except that the first element is off by 0.001 times the largest."""

    def make(*operands: Any) -> Subject:
        subject = maker(*operands)

        def answer() -> Any:
            first, *others = (np.array(array) for array in subject.answer())
            first.flat[0] += 1e-3 * np.abs(first).max()
            return first, *others

        return subject._replace(answer=answer)

    return make


class WrongEngine(NumpyEngine):
    """The NumPy engine with a learning rate that is 1 % too high, and predictions that are 0.1 % too large."""

    def train(self, x: Any, y: Any, indices: Any, learning_rates: Any, weights: Any = None) -> RowMetrics:
        return super().train(x, y, indices, 1.01 * learning_rates, weights)

    def forward(self, x: Any) -> Any:
        return super().forward(x) * np.float32(1.001)


# For each operation: its test in a suite, the table of its subjects, a wrong subject (None: `slightly_off`), and the arguments
# of the test between `benchmark` and `backend`.
KINDS: dict[str, tuple[Callable[..., None], dict[str, Any], Any, tuple[Any, ...]]] = {
    "product": (bench_products.test_forward, bench_products.FORWARD, wrong_product, (SHAPE,)),
    "forward": (bench_products.test_forward, bench_products.FORWARD, None, (SHAPE,)),
    "input gradient": (bench_products.test_input_gradient, bench_products.INPUT_GRADIENT, None, (SHAPE,)),
    "weight gradient": (bench_products.test_weight_gradient, bench_products.WEIGHT_GRADIENT, None, (SHAPE,)),
    "backward": (bench_products.test_backward, bench_products.BACKWARD, None, (CASE,)),
    "activation": (bench_functions.test_activation, bench_functions.ACTIVATION, None, ("gelu",)),
    "dropout": (bench_functions.test_dropout, bench_functions.DROPOUT, None, ()),
    "loss": (bench_functions.test_loss, bench_functions.LOSS, None, ("cross-entropy", "softmax")),
    "update": (bench_updates.test_update, bench_updates.UPDATE, None, ("adam",)),
    "gradient and update": (bench_updates.test_gradient_update, bench_updates.GRADIENT_UPDATE, None, ("adam",)),
    "step": (bench_steps.test_step, BACKENDS, WrongEngine, (CASE,)),
    "epoch": (bench_steps.test_epoch, BACKENDS, WrongEngine, (CASE,)),
    "predict": (bench_steps.test_predict, BACKENDS, WrongEngine, (CASE,)),
}


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the sizes that FASTMLP_BENCH_SMALL=1 would select if it were set when the suites are imported."""
    sizes = {
        bench_steps: {"EPOCH_ROWS": 60, "PREDICT_ROWS": 40},
        bench_functions: {"ROWS": 7, "UNITS": 9},
        bench_updates: {"FAN_IN": 13, "FAN_OUT": 9, "ROWS": 7, "SIZE": "13x9"},
    }
    for suite, values in sizes.items():
        for name, value in values.items():
            monkeypatch.setattr(suite, name, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_sizes")
def test_a_wrong_result_is_not_timed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test, table, wrong, arguments = KINDS[kind]
    honest, recorder = Recorder(), Recorder()
    test(honest, *arguments, "numpy")
    assert honest.timed == 1
    monkeypatch.setitem(table, "wrong", wrong or slightly_off(table["numpy"]))
    monkeypatch.setattr("fastmlp.engines.CHOICES", ("numpy", "wrong"))
    with pytest.raises(AssertionError, match="is off by"):
        test(recorder, *arguments, "wrong")
    assert recorder.timed == 0


def test_a_contestant_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastmlp.bench.rounds", reason="this version has no module fastmlp.bench.rounds")
    from benchmarks import bench_rivals
    from fastmlp.bench.contestant import OwnEngine, Task

    class WrongLearningRate(OwnEngine):
        def prepare(self, task: Task) -> None:
            super().prepare(dataclasses.replace(task, learning_rate=2 * task.learning_rate))

    monkeypatch.setattr(bench_rivals, "EPOCH_ROWS", 60)
    monkeypatch.setitem(bench_rivals.CONTESTANTS, ("wrong", 1), WrongLearningRate("numpy", 1))
    honest, recorder = Recorder(), Recorder()
    bench_rivals.test_rivals(honest, CASE, ("numpy", 1))
    assert honest.timed == 1
    with pytest.raises(AssertionError, match="is off by"):
        bench_rivals.test_rivals(recorder, CASE, ("wrong", 1))
    assert recorder.timed == 0


def test_the_check_detects_nan_and_other_shapes() -> None:
    wanted = (np.array([1.0, -2.0]),)
    check((np.array([1.0, -2.0], np.float32),), wanted, rounding(1))
    check((np.array([1.0, -2.0 - 1e-6]),), wanted, rounding(1))
    for wrong, message in (([1.0, np.nan], "off by nan"), ([1.0, -2.0, 0.0], "has shape"), ([1.0, -2.00001], "off by 1e-05")):
        with pytest.raises(AssertionError, match=message):
            check((np.array(wrong),), wanted, rounding(1))
    with pytest.raises(ValueError):  # the number of arrays differs
        check((), wanted, rounding(1))


# ------------------------------------------------------------------------------------------------ a GPU, or its simulator

PIECES = {"activation": "activations", "update": "updates", "dropout": "dropout"}  # kernels on vectors
SIMULATED = [kind for kind, (_, table, _, _) in KINDS.items() if kind != "product" and table is not BACKENDS]
# Key in KINDS and arguments of all benchmarks of kernels. Steps and epochs are covered by tests/engines/test_contract.py.
CUDA_ROWS = [
    *[("activation", (name,)) for name in ACTIVATIONS],
    *[("loss", pair) for pair in bench_functions.PAIRS],
    *[(kind, (rule,)) for kind in ("update", "gradient and update") for rule in RULES],
    *[(kind, KINDS[kind][3]) for kind in ("dropout", "forward", "input gradient", "weight gradient", "backward")],
    *[("forward", (Shape(19, 21, 17),)), ("weight gradient", (Shape(19, 21, 17),)), ("backward", (Case((13, 18, 9, 5), 19),))],
]


class Watched:
    """A runtime that records which of its attributes are accessed, and which kernels are used with which design."""

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.asked, self.kernels = runtime, [""], set[tuple[str, str]]()

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(self.runtime, name)

    def program(self, name: str, kind: Any, shape: Any) -> Any:
        self.kernels.add((name, type(shape).__name__))
        return self.runtime.program(name, kind, shape)


@pytest.fixture(params=["Shape", "Tile"])
def design(request: pytest.FixtureRequest, small_sizes: None) -> Any:
    """Return the name of a kernel design: "Shape" for small batches, "Tile" for large batches."""
    return request.param


@pytest.fixture
def watched(design: str) -> Iterator[Watched]:
    """Yield the CUDA runtime, which uses the same kernel design for all batch sizes.

    It is the simulator, or the GPU if FASTMLP_TEST_GPU=1 is set.
    """
    need_backend("cuda")
    with simulation(), pytest.MonkeyPatch.context() as patch:
        runtime = Watched(cuda.default_runtime())
        patch.setattr(cuda, "default_runtime", lambda: runtime)
        patch.setattr(cuda, "SMALL_BATCH", 0 if design == "Tile" else sys.maxsize)
        yield runtime


def cuda_test(test: Callable[..., None]) -> Callable[..., None]:
    """Add the markers of a test with backend "cuda"."""
    for mark in marks_of("cuda"):
        test = mark(test)
    return test


def test_cuda_rows_are_of_all_kinds() -> None:
    assert {kind for kind, _ in CUDA_ROWS} == set(SIMULATED)


@cuda_test
@pytest.mark.parametrize(("kind", "arguments"), CUDA_ROWS)
def test_cuda_rows_agree_and_are_timed(kind: str, arguments: tuple[Any, ...], design: str, watched: Watched) -> None:
    recorder = Recorder()
    KINDS[kind][0](recorder, *arguments, "cuda")
    assert recorder.timed == 1
    assert watched.asked[-1] == "wait"  # the timed call waits until the kernel has finished
    assert watched.kernels == {(PIECES[kind], "Shape") if kind in PIECES else ("train", design)}
    assert (recorder.name, recorder.extra_info) == ("cuda", {"backend": "cuda", "threads": None})


@cuda_test
@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("kind", SIMULATED)
def test_a_wrong_result_of_cuda_is_not_timed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test, table, _, arguments = KINDS[kind]
    monkeypatch.setitem(table, "cuda", slightly_off(table["cuda"]))
    recorder = Recorder()
    with pytest.raises(AssertionError, match="is off by"):
        test(recorder, *arguments, "cuda")
    assert recorder.timed == 0


@pytest.mark.parametrize("kind", SIMULATED)
def test_cuda_rows_with_a_driver_of_plain_memory(kind: str, design: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are launched with the argument types that a real driver expects; the simulator does not check them."""
    need_backend("cuda")
    from support.fake_driver import stand_in

    driver, recorder = stand_in(monkeypatch), Recorder()
    runtime = Runtime(driver)
    monkeypatch.setattr(cuda, "default_runtime", lambda: runtime)
    monkeypatch.setattr(cuda, "SMALL_BATCH", 0 if design == "Tile" else sys.maxsize)
    KINDS[kind][0](recorder, *KINDS[kind][3], "cuda")
    assert recorder.timed == 1
    waiting = (kind, design) == ("backward", "Shape")  # its blocks synchronise with each other
    assert ("cuLaunchCooperativeKernel" in driver.calls) == waiting


@cuda_test
@pytest.mark.parametrize("design", ["Shape"], indirect=True)
def test_blocks_synchronise_in_every_run(watched: Watched) -> None:
    """The barrier's counter is reset before each launch; without the reset, only the first launch would synchronise."""
    bench = CudaWorkbench(Network((13, 18, 9, 5)), 19, watched, KEEP_GRADIENT)
    run, arrivals = bench.backward(), []
    for _ in range(3):
        run()
        arrivals.append(int(bench.vector("counter")[0]))
    assert arrivals[0] > 0
    assert len(set(arrivals)) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_sizes")
def test_without_a_device_cuda_rows_are_skipped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> NoReturn:
        raise UnavailableError("no device in this test")

    monkeypatch.setattr(cuda, "default_runtime", missing)
    recorder = Recorder()
    with pytest.raises(pytest.skip.Exception, match="no device in this test"):
        KINDS[kind][0](recorder, *KINDS[kind][3], "cuda")
    assert recorder.timed == 0


# ------------------------------------------------------------------------------------------------ tables


def test_a_table_has_a_row_for_each_backend_with_its_threads() -> None:
    rows = {backend: Recorder() for backend in ("numpy", "numba")}
    for backend, row in rows.items():
        bench_products.test_forward(row, SHAPE, backend)
    assert {row.group for row in rows.values()} == {"matmul 7x13 @ 13x9, bias, relu"}
    assert rows["numba"].name == "numba (1 thread)"
    assert rows["numpy"].extra_info == {"backend": "numpy", "threads": blas_threads()}
    assert 1 <= blas_threads() <= max(available_cores(), os.cpu_count() or 1)
