"""The CUDA engine's kernels in a simulator: the same bits for any grid and order of threads, and planted mistakes are caught.

What the engine computes is judged by the contract's tests, which run over it as over the other engines.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("greenlet", reason="the simulator of backend 'cuda' needs greenlet: pip install greenlet")

import cuda_simulator
from conftest import check_course, expected, make_course, same_bits, start_state
from cuda_simulator import ALL_LANES, FEW_LANES, Runtime, StuckError

import fastmlp.cuda_kernels
import fastmlp.cuda_pieces
from fastmlp.contract import Job, RowResults, State
from fastmlp.cuda import CudaEngine
from fastmlp.cuda_kernels import Shape
from fastmlp.cuda_plan import gathered, make_plan, places, spread
from fastmlp.cuda_words import WORDS
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer
from fastmlp.philox import drop_threshold, keep_mask

SMALL = Shape(16, 4)
# Every phase, two tiles for a block, rows beyond a tile, a short last batch, dropout, and an optimiser with slots.
JOB = Job(Network((20, 13, 9, 5), ("relu", "silu"), dropout=(0.3, 0.0), l2=0.1), Optimizer("momentum"), batch_size=9, seed=7)
CLIPPED = Job(Network((20, 40, 5), "tanh", l1=1e-2), Optimizer("adamw", clip_norm=1.0), batch_size=9)


def trained(job: Job, runtime: Runtime, shape: Shape = SMALL) -> tuple[State, RowResults]:
    """State and row results after two steps and a short one."""
    course = make_course(job.network, 22, job.batch_size, epochs=1, weighted=True)
    engine = CudaEngine(job, runtime, shape)
    engine.load(start_state(job))
    results = engine.train(*course)
    return engine.state(), results


@pytest.mark.parametrize("job", [JOB, CLIPPED])
def test_the_grid_and_the_order_of_threads_change_no_bit(job: Job) -> None:
    wanted = trained(job, Runtime(1, 0))
    for blocks, seed in ((1, -5), (2, 1), (3, 8), (7, 3)):
        assert same_bits(trained(job, Runtime(blocks, seed)), wanted)


def test_warps_of_all_lanes() -> None:
    """As on a device: 32 lanes a warp, two warps a block."""
    course = make_course(JOB.network, 22, 9, epochs=1, weighted=True)
    found = trained(JOB, Runtime(2, 1, ALL_LANES), Shape(64, 8))
    check_course(expected(JOB, start_state(JOB), course), *found)


def test_parameters_there_and_back() -> None:
    network = Network((13, 18, 5))
    vector = start_state(Job(network, Optimizer())).parameters
    whole = spread(network, vector, make_plan(network, 1).parameters)
    assert same_bits(gathered(network, whole), vector)
    assert np.count_nonzero(whole) == np.count_nonzero(vector)
    assert [w.shape for w, _ in places(network, whole)] == [(13, 18), (18, 5)]


def test_what_is_padded_stays_zero() -> None:
    engine = CudaEngine(JOB, Runtime(), SMALL)
    engine.load(start_state(JOB))
    engine.train(*make_course(JOB.network, 22, 9))
    for whole in (engine.parameters, engine.slots[0]):
        beyond = np.ones(len(whole), bool)
        for w, b in places(JOB.network, beyond):
            w[:] = b[:] = False
        assert not whole[beyond].any()
        assert whole[~beyond].all()


def test_dropout_masks_are_those_of_the_specification() -> None:
    kept = fastmlp.cuda_pieces.make_kept(FEW_LANES)
    seed = 2**63 + 5
    wanted = keep_mask(seed, 1_000_000, 1, 3, 9, 0.3)
    found = [[kept(np.uint64(seed), 1_000_000, 1, m, n, drop_threshold(0.3)) for n in range(9)] for m in range(3)]
    assert np.array_equal(found, wanted)


def test_rows_stay_on_the_device_until_others_come() -> None:
    put: list[int] = []

    class Counted(Runtime):
        def put(self, array: Any) -> Any:  # type: ignore[override]
            put.append(array.nbytes)
            return super().put(array)

    course = make_course(JOB.network, 2000, 9, epochs=1)._replace(order=np.arange(9), rates=np.full(1, 0.1))
    engine = CudaEngine(JOB, Counted(), SMALL)
    engine.load(start_state(JOB))
    for x, copies in ((course.x, 1), (course.x, 0), (course.x.copy(), 1)):
        put.clear()
        engine.train(*course._replace(x=x))
        assert sum(size >= course.x.nbytes for size in put) == copies


# ------------------------------------------------------------------------------------------------ the simulator


def test_the_simulator_has_every_word() -> None:
    for words in (FEW_LANES, ALL_LANES):
        assert set(WORDS) <= set(vars(words)) | {"kernel"}


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_a_device_has_every_word() -> None:
    from fastmlp import cuda_device

    assert set(WORDS) <= set(vars(cuda_device))


def launched(function: Any, *arguments: Any, blocks: int = 1, threads: int = 4, seed: int = 0) -> None:
    FEW_LANES.kernel(threads)(function).launch(blocks, arguments, seed)


def test_the_simulator_reports_what_a_device_would_not() -> None:
    cuda, a = FEW_LANES.cuda, np.zeros(8, np.float32)  # type: ignore[attr-defined]

    def some_wait() -> None:
        if cuda.threadIdx.x:
            cuda.syncthreads()

    def look_in_vain(counter: Any) -> None:
        while cuda_simulator.arrived(counter, 0) == 0:
            pass

    def poisoned(out: Any) -> None:
        out[0] = cuda.shared.array(4, np.float32)[0] + cuda.local.array(4, np.float32)[0]

    with pytest.raises(StuckError, match="3 of 4 wait in block 0"):
        launched(some_wait)
    with pytest.raises(StuckError, match="looks in vain"):
        launched(look_in_vain, np.zeros(1, np.uint32))
    for bad in (lambda: cuda_simulator.load(a, -1), lambda: cuda_simulator.load4(a, 2), lambda: cuda_simulator.load4(a, 8)):
        with pytest.raises(AssertionError):
            launched(bad)
    launched(poisoned, a)
    assert np.isnan(a[0])


# file, what stands there (where it stands first), what stands there instead
PLANTED = {
    "no barrier between phases": ("kernels", "barrier(counter, target)", "pass"),
    "a barrier for the first thread alone": (
        "pieces",
        "                pass\n        cuda.syncthreads()",
        "                pass",
    ),
    "a barrier before the block has written": (
        "pieces",
        "        cuda.syncthreads()  # what the block has written is seen by its first thread, which tells the others\n",
        "",
    ),
    "sums overwritten before they are read": ("pieces", "        cuda.syncthreads()  # the tile before has been read\n", ""),
    "sums read before they are written": (
        "pieces",
        "            store(shared, warp * SUMS + lane * each + i, sums[i])\n        cuda.syncthreads()",
        "            store(shared, warp * SUMS + lane * each + i, sums[i])",
    ),
    "rows staged before those before are read": (
        "pieces",
        "        cuda.syncthreads()  # the rows before have been read\n",
        "",
    ),
    "rows read before they are staged": (
        "pieces",
        "(four[0], four[1], four[2], four[3]))\n        cuda.syncthreads()",
        "(four[0], four[1], four[2], four[3]))",
    ),
    "weights updated while delta reads them": (
        "kernels",
        "range(i + 1 if i > 0 else 0, min(i + 2, layers))",
        "range(i, min(i + 1 if i else 2, layers))",
    ),
    "a row beyond the batch": (
        "pieces",
        "if m < rows:\n                        at =",
        "if m < rows + 1:\n                        at =",
    ),
    "a tile forgotten": (
        "pieces",
        "divide(rows + TILE - 1, TILE) * columns\n        sums, places",
        "divide(rows, TILE) * columns\n        sums, places",
    ),
    "the norm of half the gradient": (
        "kernels",
        "min(size, (chunk + 1) * CHUNK), lanes)",
        "min(size, (chunk + 1) * CHUNK), 2 * lanes)",
    ),
}


@pytest.fixture
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels whose source has a mistake."""
    where, right, wrong = PLANTED[request.param]
    modules = {"pieces": fastmlp.cuda_pieces, "kernels": fastmlp.cuda_kernels}
    source = Path(str(modules[where].__file__)).read_text(encoding="utf-8")
    assert right in source
    for name in ("pieces", "kernels"):  # kernels takes its pieces from the module that it finds
        full = f"fastmlp.cuda_{name}"
        text = (
            source.replace(right, wrong, 1) if name == where else Path(str(modules[name].__file__)).read_text(encoding="utf-8")
        )
        module = ModuleType(full)
        monkeypatch.setitem(sys.modules, full, module)
        exec(compile(text, f"<{full} with a mistake>", "exec"), vars(module))
    monkeypatch.setattr("fastmlp.cuda.train_kernel", sys.modules["fastmlp.cuda_kernels"].make_train)
    yield


@pytest.mark.parametrize("planted", PLANTED, indirect=True)
def test_planted_mistakes_are_caught(planted: None) -> None:
    """By some order of threads, as stuck threads, an index that cannot be, or figures beyond the tolerance."""
    for job in (JOB, CLIPPED):
        course = make_course(job.network, 22, job.batch_size, epochs=1, weighted=True)
        want = expected(job, start_state(job), course)
        for seed in (0, -9, 1, 5, 9):
            try:
                check_course(want, *trained(job, Runtime(2, seed)))
            except (AssertionError, StuckError, IndexError):
                return
    pytest.fail("the mistake went through")
