"""Contract tests of the engines, part 3: repeated evaluation of rows that an engine holds in memory."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from support.engines import REAL_GPU, engine_of, make_course, same_bits, start_state
from support.tolerances import check_scored

from fastmlp.data.rows import Subset
from fastmlp.engines.base import Engine, EngineSpec, RowMetrics, State
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.reference import plain_losses

pytestmark = pytest.mark.usefixtures("eager_threads")

BASE = EngineSpec(Network((13, 18, 5)), Optimizer("sgd"), batch_size=8, threads=2)
TARGETS = EngineSpec(Network((13, 18, 5), loss="squared-error", output="sigmoid"), Optimizer("sgd"), batch_size=8, threads=2)


@pytest.fixture(scope="module")
def backend(every_backend: str) -> str:
    """Run each test with every backend; without a GPU, backend "cuda" is simulated."""
    return every_backend


def check_evaluation(engine: Engine, spec: EngineSpec, held: Any, x: Any, y: Any) -> None:
    """Check the metrics and output pre-activations of held rows against `forward` and the NumPy reference."""
    z = np.full((len(x), spec.network.sizes[-1]), np.nan, np.float32)
    metrics = engine.evaluate(held, z)
    assert same_bits(z, engine.forward(x))
    check_scored(spec.network, z, y, metrics)
    assert same_bits(tuple(engine.evaluate(held)), tuple(metrics))


@pytest.mark.parametrize("spec", [BASE, TARGETS], ids=["classes", "targets"])
def test_a_handle_is_evaluated_with_the_parameters_of_the_moment(backend: str, spec: EngineSpec) -> None:
    course = make_course(spec.network, 21, targets=spec is TARGETS)
    with engine_of(backend, spec) as engine:
        held = engine.hold(course.x, course.y)
        check_evaluation(engine, spec, held, course.x, course.y)
        before = engine.evaluate(held)
        engine.train(*course)
        check_evaluation(engine, spec, held, course.x, course.y)
        assert not np.array_equal(engine.evaluate(held).loss, before.loss)
        engine.load(start_state(spec))
        assert same_bits(tuple(engine.evaluate(held)), tuple(before))


def test_evaluation_changes_nothing_in_training(backend: str) -> None:
    """Evaluations before, between and after training steps have no effect on training."""
    course = make_course(BASE.network, 45)
    with engine_of(backend, BASE) as engine:
        engine.train(*course)
        wanted = engine.state()
    with engine_of(backend, BASE) as engine:
        held = engine.hold(course.x, course.y)
        for batch in range(len(course.learning_rates)):
            engine.evaluate(held)
            indices = course.indices[8 * batch :][:8]
            engine.train(course.x, course.y, indices, course.learning_rates[batch : batch + 1])
        engine.evaluate(held)
        assert same_bits(engine.state(), wanted)


def test_two_data_sets_are_held_at_once(backend: str) -> None:
    one, other = (make_course(BASE.network, rows, seed=rows) for rows in (9, 30))
    with engine_of(backend, BASE) as engine:
        handles = [(engine.hold(course.x, course.y), course) for course in (one, other)]
        for held, course in [*handles, *handles]:
            check_evaluation(engine, BASE, held, course.x, course.y)
        handles.pop(0)
        gc.collect()
        check_evaluation(engine, BASE, handles[0][0], other.x, other.y)


@pytest.mark.parametrize("uint8", [False, True])
def test_a_subset_equals_its_copy(backend: str, uint8: bool) -> None:
    course = make_course(BASE.network, 30, uint8=uint8)
    chosen = np.array([7, 2, 2, 29, 11, 0])
    with engine_of(backend, BASE) as engine:
        one = engine.evaluate(engine.hold(Subset(course.x, chosen), course.y[chosen]))
        other = engine.evaluate(engine.hold(course.x[chosen], course.y[chosen]))
    assert same_bits(tuple(one), tuple(other))


@pytest.mark.parametrize("rows", [1, 7, 16, 17])
def test_rows_are_evaluated_in_blocks(backend: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics and pre-activations are correct for rows in blocks of 7 on the CPU and of 5 on the GPU."""
    monkeypatch.setattr("fastmlp.nn.blocks.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("fastmlp.engines.cuda.engine.APPLIED", 5)
    course = make_course(BASE.network, rows)
    with engine_of(backend, BASE) as engine:
        z = np.empty((rows, 5), np.float32)
        metrics = engine.evaluate(engine.hold(course.x, course.y), z)
        check_scored(BASE.network, z, course.y, metrics)
        np.testing.assert_allclose(z, engine.forward(course.x), rtol=1e-5, atol=1e-6)


def test_a_subset_is_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The NumPy engine reads a `Subset` in slices of at most one block."""
    monkeypatch.setattr("fastmlp.nn.blocks.ROWS_AT_ONCE", 7)
    asked: list[int] = []

    class Watched(Subset):
        def __getitem__(self, key: Any) -> Any:
            asked.append(len(self.rows[key]))
            return super().__getitem__(key)

    course = make_course(BASE.network, 30)
    with engine_of("numpy", BASE) as engine:
        held = engine.hold(Watched(course.x, np.arange(30)), course.y)
        assert asked == []
        engine.evaluate(held)
    assert asked == [7, 7, 7, 7, 2]


@pytest.mark.parametrize("classes", [True, False])
def test_losses_by_hand(backend: str, classes: bool) -> None:
    """Evaluation ignores label smoothing, dropout and penalties, leaves the state unchanged, and accepts zero rows."""
    of_training: dict[str, Any] = {"label_smoothing": 0.3} if classes else {"loss": "squared-error"}
    network = Network((4, 6, 3), dropout=0.5, l2=1.0, **of_training)
    zeros = State(np.zeros(network.parameters, np.float32), np.empty((0, network.parameters), np.float32), 0)
    x, labels = np.ones((3, 4), np.float32), np.arange(3, dtype=np.int32)
    y = labels if classes else np.diag(np.array([1, 2, 3], np.float32))
    with engine_of(backend, EngineSpec(network, Optimizer("sgd")), zeros) as engine:
        before = engine.state()
        none = engine.evaluate(engine.hold(x[:0], y[:0]), np.empty((0, 3), np.float32))
        assert [len(part) for part in none] == [0, 0]
        loss, correct = engine.evaluate(engine.hold(x, y))
        assert same_bits(engine.state(), before)
    np.testing.assert_allclose(loss, np.full(3, np.log(3)) if classes else [0.5, 2, 4.5], rtol=1e-6)
    assert correct.tolist() == [classes, False, False]
    assert correct.dtype == bool


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_losses_of_outputs_that_diverged_are_not_finite(backend: str, bad: float) -> None:
    """Outputs that are not finite give losses that are not finite, without a warning; the training loop reports divergence."""
    state = start_state(BASE)
    state.parameters[:] = 0
    BASE.network.views(state.parameters)[-1][1][:] = bad
    x, y = np.ones((3, 13), np.float32), np.array([0, 1, 4], np.int32)
    with engine_of(backend, BASE, state) as engine:
        assert not np.isfinite(engine.evaluate(engine.hold(x, y)).loss).any()


def test_the_check_of_losses_sees_a_wrong_entry() -> None:
    network, rng = Network((4, 3)), np.random.default_rng(0)
    z, y = rng.normal(size=(5, 3)).astype(np.float32), np.array([0, 1, 2, 0, 1], np.int32)
    right = RowMetrics(plain_losses(network, z, y).astype(np.float32), z.argmax(axis=1) == y)
    check_scored(network, z, y, right)
    for wrong in (right._replace(loss=right.loss + np.float32(1e-5)), right._replace(correct=~right.correct)):
        with pytest.raises(AssertionError):
            check_scored(network, z, y, wrong)


@pytest.mark.skipif(REAL_GPU, reason="inspects the simulator")
@pytest.mark.full
def test_rows_are_uploaded_once(simulated_gpu: None) -> None:
    """A repeated evaluation uploads only one number, the counter of the grid barrier, and no rows."""
    from support.cuda_simulator import Runtime

    from fastmlp.engines.cuda.engine import CudaEngine

    uploads: list[int] = []

    class Counted(Runtime):
        def put(self, array: Any) -> Any:  # type: ignore[override]
            uploads.append(array.size)
            return super().put(array)

        def fill(self, handle: Any, array: Any, first: int = 0) -> None:  # type: ignore[override]
            uploads.append(array.size)
            super().fill(handle, array, first)

    course = make_course(BASE.network, 21)
    engine = CudaEngine(BASE, Counted())
    engine.load(start_state(BASE))
    held = engine.hold(course.x, course.y)
    engine.evaluate(held)
    for _ in range(2):
        uploads.clear()
        engine.evaluate(held)
        assert uploads == [1]
    engine.close()
    assert held.arrays == []
