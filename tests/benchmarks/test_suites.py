"""The suites of benchmarks: each runs once, untimed, and is shown a wrong answer, which it must not time."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.processes import ROOT

from benchmarks import bench_functions, bench_products, bench_steps, bench_updates
from benchmarks.bench_products import Shape
from benchmarks.cases import Case
from benchmarks.measuring import Subject, blas_threads, check, rounding
from fastmlp.engines import BACKENDS
from fastmlp.engines.base import RowResults
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.engines.numpy_engine import NumpyEngine

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
    """Stands where pytest-benchmark's fixture stands, and counts what it is given to time."""

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
    """A forward product whose sums stop one input short."""
    return bench_products.numpy_forward(x[:, :-1], w[:-1], b)


def slightly_off(maker: Callable[..., Subject]) -> Callable[..., Subject]:
    """The same, but the first entry of the first result is off by a thousandth of the largest."""

    def make(*operands: Any) -> Subject:
        subject = maker(*operands)

        def answer() -> Any:
            first, *others = (np.array(array) for array in subject.answer())
            first.flat[0] += 1e-3 * np.abs(first).max()
            return first, *others

        return subject._replace(answer=answer)

    return make


class WrongEngine(NumpyEngine):
    """The specification, but for a learning rate that is a hundredth too high and a slip in prediction."""

    def train(self, x: Any, y: Any, order: Any, rates: Any, weights: Any = None) -> RowResults:
        return super().train(x, y, order, 1.01 * rates, weights)

    def forward(self, x: Any) -> Any:
        return super().forward(x) * np.float32(1.001)


# Test of a suite, what it finds its subjects in, the subject that is wrong, arguments between `benchmark` and `backend`
KINDS: dict[str, tuple[Callable[..., None], dict[str, Any], Any, tuple[Any, ...]]] = {
    "product": (bench_products.test_forward, bench_products.FORWARD, wrong_product, (SHAPE,)),
    "forward": (bench_products.test_forward, bench_products.FORWARD, None, (SHAPE,)),
    "input gradient": (bench_products.test_input_gradient, bench_products.INPUT_GRADIENT, None, (SHAPE,)),
    "weight gradient": (bench_products.test_weight_gradient, bench_products.WEIGHT_GRADIENT, None, (SHAPE,)),
    "backward": (bench_products.test_backward, bench_products.BACKWARD, None, (CASE,)),
    "activation": (bench_functions.test_activation, bench_functions.ACTIVATION, None, ("gelu",)),
    "loss": (bench_functions.test_loss, bench_functions.LOSS, None, ("cross-entropy", "softmax")),
    "update": (bench_updates.test_update, bench_updates.UPDATE, None, ("adam",)),
    "gradient and update": (bench_updates.test_gradient_update, bench_updates.GRADIENT_UPDATE, None, ("adam",)),
    "step": (bench_steps.test_step, BACKENDS, WrongEngine, (CASE,)),
    "epoch": (bench_steps.test_epoch, BACKENDS, WrongEngine, (CASE,)),
    "predict": (bench_steps.test_predict, BACKENDS, WrongEngine, (CASE,)),
}


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_steps, "EPOCH_ROWS", 60)
    monkeypatch.setattr(bench_steps, "PREDICT_ROWS", 40)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("few_rows")
def test_a_wrong_answer_is_not_timed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test, table, wrong, arguments = KINDS[kind]
    honest, recorder = Recorder(), Recorder()
    test(honest, *arguments, "numpy")
    assert honest.timed == 1
    monkeypatch.setitem(table, "wrong", wrong or slightly_off(table["numpy"]))
    with pytest.raises(AssertionError, match="is off by"):
        test(recorder, *arguments, "wrong")
    assert recorder.timed == 0


def test_a_rival_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastmlp.bench.rounds", reason="this version has no module fastmlp.bench.rounds")
    from benchmarks import bench_rivals
    from fastmlp.bench.contestant import OwnEngine, Task

    class OfAnotherRate(OwnEngine):
        def prepare(self, task: Task) -> None:
            super().prepare(dataclasses.replace(task, rate=2 * task.rate))

    monkeypatch.setattr(bench_rivals, "EPOCH_ROWS", 60)
    monkeypatch.setitem(bench_rivals.CONTESTANTS, ("wrong", 1), OfAnotherRate("numpy", 1))
    honest, recorder = Recorder(), Recorder()
    bench_rivals.test_rivals(honest, CASE, ("numpy", 1))
    assert honest.timed == 1
    with pytest.raises(AssertionError, match="is off by"):
        bench_rivals.test_rivals(recorder, CASE, ("wrong", 1))
    assert recorder.timed == 0


def test_the_check_sees_nan_and_another_shape() -> None:
    wanted = (np.array([1.0, -2.0]),)
    check((np.array([1.0, -2.0], np.float32),), wanted, rounding(1))
    check((np.array([1.0, -2.0 - 1e-6]),), wanted, rounding(1))
    for wrong, message in (([1.0, np.nan], "off by nan"), ([1.0, -2.0, 0.0], "has shape"), ([1.0, -2.00001], "off by 1e-05")):
        with pytest.raises(AssertionError, match=message):
            check((np.array(wrong),), wanted, rounding(1))
    with pytest.raises(ValueError):  # another number of arrays
        check((), wanted, rounding(1))


# ------------------------------------------------------------------------------------------------ tables


def test_a_table_has_a_row_for_each_backend_with_its_threads() -> None:
    rows = {backend: Recorder() for backend in ("numpy", "numba")}
    for backend, row in rows.items():
        bench_products.test_forward(row, SHAPE, backend)
    assert {row.group for row in rows.values()} == {"matmul 7x13 @ 13x9, bias, relu"}
    assert rows["numba"].name == "numba (1 thread)"
    assert rows["numpy"].extra_info == {"backend": "numpy", "threads": blas_threads()}
    assert 1 <= blas_threads() <= max(available_cores(), os.cpu_count() or 1)
