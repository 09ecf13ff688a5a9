"""Tests of many sizes: 1 to 20 rows, layer widths around tile sizes, short last batches, changing batch sizes, buffers."""

from __future__ import annotations

import dataclasses
import mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cpu import fused_job
from support.engines import make_course, run_course, same_bits, start_state
from support.tolerances import check_against_reference, forward_tolerance
from support.tolerances import excess as beyond

from fastmlp.engines.cpu import plan
from fastmlp.engines.cpu.codegen.simd import lanes
from fastmlp.engines.cpu.engine import ALIGNMENT, HUGE_PAGE, NumbaEngine, aligned
from fastmlp.engines.cpu.kernels.gemm import deepest_piece
from fastmlp.engines.cpu.kernels.passes import BATCH_DEPTHS
from fastmlp.engines.cpu.plan import CHUNK_ROWS, GROUP_COLUMNS
from fastmlp.engines.cpu.threads import ThreadTuner
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.optimizers import Optimizer

SOME_THREADS = 2
BEYOND = BATCH_DEPTHS[lanes()] + 1  # smallest batch size for which gradient sums are split


pytestmark = [pytest.mark.usefixtures("eager_threads"), pytest.mark.full]


@pytest.mark.parametrize("tail", [0, 10**9], ids=["by columns", "by rows"])
@pytest.mark.parametrize("batch", range(1, 21))
def test_every_number_of_rows(batch: int, tail: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is correct with tiles of all heights; except for batches of one row, the last batch is one row short."""
    monkeypatch.setattr(plan, "TAIL_WEIGHTS", tail)
    spec = fused_job((9, 70, 33, 15, 3), batch_size=batch, threads=SOME_THREADS)
    check_against_reference("numba", spec, make_course(spec.network, rows=2 * batch + max(batch - 1, 1), batch=batch, epochs=1))


AROUND = sorted(
    {n + d for n in (8, 16, 32, CHUNK_ROWS, GROUP_COLUMNS, 2 * CHUNK_ROWS, deepest_piece(lanes())) for d in (-1, 0, 1)}
)


@pytest.mark.parametrize("tail", [0, 10**9], ids=["by columns", "by rows"])
@pytest.mark.parametrize("width", AROUND)
def test_widths_around_tiles_vectors_and_pieces(width: int, tail: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each width is used for inputs, hidden layers and outputs, with batches just large enough to split gradient sums."""
    monkeypatch.setattr(plan, "TAIL_WEIGHTS", tail)
    for sizes in ((width, 13, 5), (6, width, width, 4), (7, 9, width)):
        spec = fused_job(sizes, Optimizer("momentum"), batch_size=BEYOND, threads=SOME_THREADS)
        check_against_reference("numba", spec, make_course(spec.network, rows=BEYOND + 90, batch=BEYOND, epochs=1, rate=0.01))


@given(
    sizes=st.lists(st.integers(1, 70), min_size=2, max_size=5),
    rows=st.integers(1, 140),
    batch=st.integers(1, 140),
    threads=st.integers(1, 5),
    tail=st.sampled_from([0, 500, 10**9]),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_any_sizes_train_as_the_reference(sizes: list[int], rows: int, batch: int, threads: int, tail: int) -> None:
    spec = fused_job(tuple(sizes), batch_size=batch, threads=threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "TAIL_WEIGHTS", tail)
        check_against_reference("numba", spec, make_course(spec.network, rows=rows, batch=batch, epochs=1, rate=0.01))


@pytest.mark.parametrize("left", [1, 2, 5, 6, 63, 64, 65, 149])
def test_a_short_last_batch_is_a_batch_of_its_own(left: int) -> None:
    """A short last batch gives the same bits as a full batch of the same size."""
    spec = fused_job((13, 70, 21, 3), batch_size=150, threads=3)
    course = make_course(spec.network, rows=150 + left, batch=150, epochs=1, rate=0.01)
    state, results = run_course("numba", spec, start_state(spec), course)
    first = course._replace(indices=course.indices[:150], learning_rates=course.learning_rates[:1])
    last = course._replace(indices=course.indices[150:], learning_rates=course.learning_rates[1:])
    middle, first_results = run_course("numba", spec, start_state(spec), first)
    parts = run_course("numba", dataclasses.replace(spec, batch_size=left), middle, last)
    assert same_bits(parts[0], state)
    assert same_bits(np.r_[first_results.loss, parts[1].loss], results.loss)


def test_batches_may_be_larger_and_smaller_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine makes a new plan for a larger batch, and reuses it for a smaller batch if the number of threads is the same."""
    spec = fused_job((13, 70, 21, 3), batch_size=200, threads=5)
    whole = make_course(spec.network, rows=200, batch=200, epochs=1, rate=0.01)
    engine = NumbaEngine(spec)
    engine.load(start_state(spec))
    state, planned = start_state(spec), []
    for rows, threads in ((1, 1), (20, 2), (7, 1), (150, 5), (149, 4), (200, 5), (3, 1), (199, 5)):
        course = whole._replace(indices=whole.indices[:rows], learning_rates=whole.learning_rates[:1])
        tuner = ThreadTuner(threads, fewest=threads)
        monkeypatch.setattr(engine, "tuner_of", lambda *call, tuner=tuner: tuner)
        results = engine.train(*course)
        alone = dataclasses.replace(spec, batch_size=rows, threads=1)
        state, wanted = run_course("numba", alone, state, course)
        assert same_bits(results, wanted), rows
        assert same_bits(engine.state(), state), rows
        planned.append((engine.rows, engine.layout.plan.shares.shape[1] - 1))
    assert planned == [(1, 1), (20, 2), (20, 1), (150, 5), (150, 4), (200, 5), (200, 1), (200, 5)]
    engine.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_predictions_of_every_number_of_rows(threads: int) -> None:
    spec = fused_job((13, 70, 21, 3), threads=threads)
    engine, exact = NumbaEngine(spec), NumpyEngine(dataclasses.replace(spec, dtype=np.float64))
    engine.load(start_state(spec))
    exact.load(start_state(spec))
    x = np.random.default_rng(0).normal(size=(300, 13)).astype(np.float32)
    whole = engine.forward(x)
    assert beyond(whole, exact.forward(x), forward_tolerance(spec.network, start_state(spec).parameters, x)) == 0
    for rows in (0, *range(1, 21), 63, 64, 65, 127, 128, 129, 300):
        assert same_bits(engine.forward(x[:rows]), whole[:rows]), rows
    engine.close()


# ------------------------------------------------------------------------------------------------ buffers


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (5, 7), (3, 1024), (100_003,), (3, 500_001)])
def test_buffers_are_zeros_on_a_cache_line(shape: tuple[int, ...], dtype: Any) -> None:
    array = aligned(shape, dtype)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert not array.any()
    alignment = HUGE_PAGE if array.nbytes >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE") else ALIGNMENT
    assert array.size == 0 or array.ctypes.data % alignment == 0
    array[...] = 7
    assert (array == 7).all()
