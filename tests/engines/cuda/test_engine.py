"""The simulated CUDA engine: both kernel designs agree with the reference and give the same bits for any grid size.

The contract tests also cover this engine, with small batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.cuda import CLIPPED, SPEC, check_evaluated, trained

pytest.importorskip("greenlet", reason="the simulator of backend 'cuda' needs greenlet: pip install greenlet")

from support.cuda_simulator import ALL_LANES, FEW_LANES, Runtime
from support.engines import make_course, same_bits, start_state
from support.tolerances import check_against_reference, check_course, expected

import fastmlp.engines.cuda.kernels.passes
from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cuda.engine import CudaEngine
from fastmlp.engines.cuda.kernels.layout import ACTIVATION, COLUMNS, make_layout, pad, padded_views, unpad
from fastmlp.engines.cuda.kernels.programs import Shape
from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.philox import drop_threshold, keep_mask

pytestmark = [pytest.mark.usefixtures("simulated_gpu"), pytest.mark.full]


@pytest.fixture(params=["one launch", "tiles"])
def design(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select each of the two kernel designs in turn, for all batch sizes."""
    name: str = request.param
    monkeypatch.setattr("fastmlp.engines.cuda.engine.SMALL_BATCH", 256 if name == "one launch" else 0)
    return name


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Select the kernel design for large batches, for all batch sizes."""
    monkeypatch.setattr("fastmlp.engines.cuda.engine.SMALL_BATCH", 0)
    yield


def test_networks_that_order_activations_otherwise_share_a_kernel() -> None:
    """The layout table holds the activation of each layer, so the order of activations needs no other kernel."""
    for names in (("tanh", "relu", "tanh"), ("relu", "tanh", "tanh"), ("tanh", "tanh", "relu")):
        layout = make_layout(Network((3, 4, 4, 4, 2), names), 8)
        assert layout.activations == ("relu", "tanh")
        of_layers = layout.table.reshape(-1, COLUMNS)[:-1, ACTIVATION]
        assert tuple(layout.activations[number] for number in of_layers) == names


@pytest.mark.parametrize("spec", [SPEC, CLIPPED])
def test_the_grid_and_the_order_of_threads_change_no_bit(spec: EngineSpec, design: str) -> None:
    wanted = trained(spec, Runtime(1, 0))
    for blocks, seed in ((1, -5), (2, 1), (3, 8), (7, 3)):
        assert same_bits(trained(spec, Runtime(blocks, seed)), wanted)


def test_warps_of_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is correct with 32 lanes per warp, as on a GPU, and two warps per block."""
    monkeypatch.setattr("fastmlp.engines.cuda.engine.SHAPE", Shape(64, 8))
    course = make_course(SPEC.network, 22, 9, epochs=1, weighted=True)
    check_course(expected(SPEC, start_state(SPEC), course), *trained(SPEC, Runtime(2, 1, ALL_LANES)))


@pytest.mark.parametrize("spec", [SPEC, CLIPPED])
@pytest.mark.parametrize("seed", [0, -5, 3])
def test_an_evaluation_equals_that_of_the_numpy_engine(
    spec: EngineSpec, seed: int, design: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation is correct in one pass, and in two passes of which the second has only a few rows."""
    course = make_course(spec.network, 22, spec.batch_size, epochs=1)
    check_evaluated(spec, course, Runtime(2, seed))
    monkeypatch.setattr("fastmlp.engines.cuda.engine.APPLIED", 20)
    check_evaluated(spec, course, Runtime(3, seed))


# The cases cover every option of networks and of training, with layer widths that are not multiples of a tile.
LARGE: list[tuple[EngineSpec, dict[str, Any]]] = [
    (EngineSpec(Network((13, 18, 5)), Optimizer("sgd"), batch_size=8), {"rate": 1e-4, "uint8": True}),
    (EngineSpec(Network((13, 10)), Optimizer("adam"), batch_size=8), {"rows": 20}),
    (
        EngineSpec(Network((13, 31, 29, 11), dropout=0.3, l2=0.1), Optimizer("momentum"), 7, 2**63 + 5),
        {"rows": 37, "weighted": True},
    ),
    (
        EngineSpec(Network((13, 18, 11, 5), l1=1e-2), Optimizer("adamw", weight_decay=0.3, max_grad_norm=2.0), 8),
        {"rows": 21, "rate": 0.003},
    ),
    (
        EngineSpec(Network((7, *range(6, 15), 4), tuple(ACTIVATIONS), loss="squared-error"), Optimizer("nesterov"), 8),
        {"rows": 20, "targets": True, "rate": 0.01},
    ),
    (EngineSpec(Network((13, 18, 5), loss="huber:0.6"), Optimizer("sgd"), 8), {"rows": 20, "targets": True}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("spec", "of_course"), LARGE)
def test_large_batches_train_and_predict_as_the_specification(spec: EngineSpec, of_course: dict[str, Any], tiles: None) -> None:
    course = make_course(spec.network, **{"rows": 24, "batch": spec.batch_size} | of_course)
    check_against_reference("cuda", spec, course)


def test_a_graph_is_recorded_once_for_all_epochs_of_a_size(tiles: None) -> None:
    recorded: list[int] = []

    class Counted(Runtime):
        def record(self, launches: Any) -> Any:
            recorded.append(len(launches))
            return super().record(launches)

    course = make_course(SPEC.network, 22, 9, epochs=1)
    engine = CudaEngine(SPEC, Counted())
    engine.load(start_state(SPEC))
    for change in (
        {},
        {"indices": course.indices[::-1].copy()},
        {"x": course.x.copy()},
        {"indices": course.indices[:9], "learning_rates": course.learning_rates[:1]},
    ):
        engine.train(*course._replace(**change))
    assert recorded == [21, 7]  # three steps with seven phases each, then one step
    whole = CudaEngine(SPEC, Runtime())
    whole.load(start_state(SPEC))
    for indices in (course.indices, course.indices[::-1].copy(), course.indices, course.indices[:9]):
        whole.train(*course._replace(indices=indices, learning_rates=course.learning_rates[: -(-len(indices) // 9)]))
    assert same_bits(engine.state(), whole.state())


def test_networks_with_other_parameters_of_a_loss_use_the_same_kernels(design: str) -> None:
    """The parameter is an argument of the kernels: it changes losses and gradients, and no kernel is compiled for it."""
    used: list[Any] = []

    class Watched(Runtime):
        def program(self, *request: Any) -> Any:
            used.append(request)
            return super().program(*request)

    trained, evaluated = [], []
    for loss in ("quantile:0.1", "quantile:0.7"):
        spec = EngineSpec(Network((6, 5, 3), loss=loss), Optimizer("sgd"), batch_size=9)
        course = make_course(spec.network, 9, 9, epochs=1, targets=True)
        engine = CudaEngine(spec, Watched())
        engine.load(start_state(spec))
        evaluated.append(engine.evaluate(engine.hold(course.x, course.y)).loss)
        engine.train(*course)
        trained.append(engine.state().parameters)
    assert used[: len(used) // 2] == used[len(used) // 2 :]
    assert {name for name, _, _ in used} == {"apply", "train"}
    for one, other in (trained, evaluated):
        assert np.abs(one - other).max() > 1e-3


def test_parameters_there_and_back() -> None:
    network = Network((13, 18, 5))
    vector = start_state(EngineSpec(network, Optimizer("sgd"))).parameters
    whole = pad(network, vector, make_layout(network, 1).parameters)
    assert same_bits(unpad(network, whole), vector)
    assert np.count_nonzero(whole) == np.count_nonzero(vector)
    assert [w.shape for w, _ in padded_views(network, whole)] == [(13, 18), (18, 5)]


def test_what_is_padded_stays_zero(design: str) -> None:
    engine = CudaEngine(SPEC, Runtime())
    engine.load(start_state(SPEC))
    engine.train(*make_course(SPEC.network, 22, 9))
    for name in ("parameters", "m"):
        whole = engine.handles[name]
        beyond = np.ones(len(whole), bool)
        for w, b in padded_views(SPEC.network, beyond):
            w[:] = b[:] = False
        assert not whole[beyond].any()
        assert whole[~beyond].all()


def test_dropout_masks_are_those_of_the_specification() -> None:
    is_kept = fastmlp.engines.cuda.kernels.passes.make_is_kept(FEW_LANES)
    seed = 2**63 + 5
    wanted = keep_mask(seed, 1_000_000, 1, 3, 9, 0.3)
    found = [[is_kept(np.uint64(seed), 1_000_000, 1, m, n, drop_threshold(0.3)) for n in range(9)] for m in range(3)]
    assert np.array_equal(found, wanted)


def test_rows_stay_on_the_device_until_others_come() -> None:
    put: list[int] = []

    class Counted(Runtime):
        def put(self, array: Any) -> Any:  # type: ignore[override]
            put.append(array.nbytes)
            return super().put(array)

        def fill(self, handle: Any, array: Any, first: int = 0) -> None:  # type: ignore[override]
            put.append(array.nbytes)
            super().fill(handle, array, first)

    course = make_course(SPEC.network, 2000, 9, epochs=1)._replace(indices=np.arange(9), learning_rates=np.full(1, 0.1))
    engine = CudaEngine(SPEC, Counted())
    engine.load(start_state(SPEC))
    for x, copies in ((course.x, 1), (course.x, 0), (course.x.copy(), 1)):
        put.clear()
        engine.train(*course._replace(x=x))
        assert sum(size >= course.x.nbytes for size in put) == copies
