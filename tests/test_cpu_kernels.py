"""The compiled engine's kernels: plain and fused alike, padding that stays zero, bits that never vary, no stray access."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from conftest import Course, make_course, run_course, same_bits, start_state

from fastmlp import cpu
from fastmlp.contract import Job, RowResults
from fastmlp.cpu import NumbaEngine
from fastmlp.cpu_kernels import GRADIENT, PARAMETERS, SLOT_M, SLOT_V, train_kernel
from fastmlp.cpu_plan import pack, pack_transposed
from fastmlp.functions import ACTIVATIONS
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer

ALIGNED = cpu.aligned  # as it is before a test puts guard zones around it
PATIENCE = 60  # seconds after which a test calls a wait a hang

# Few kernels serve all tests of this file, since each takes seconds to compile: sizes are data.
FUSED_NAMES = ["relu", "linear"]
EVERY_NAME = [f"{name}:0.5" if entry.default is not None else name for name, entry in ACTIVATIONS.items()]
PENALISED = Optimizer("adam", clip_norm=0.5)


def fused_job(sizes: tuple[int, ...] = (13, 21, 9, 5), **settings: Any) -> Job:
    """Hidden layers relu and linear in turn, sgd, classes: all activations run as epilogues."""
    names = (FUSED_NAMES * len(sizes))[: len(sizes) - 2]
    return Job(Network(sizes, names), Optimizer("sgd"), **{"batch_size": 7, "seed": 3, "threads": 1} | settings)


def every_job(optimizer: Optimizer, dropout: float = 0.0, **settings: Any) -> Job:
    """A hidden layer of each activation, none of a size that needs no padding, with penalties."""
    sizes = (11, *(9 + 2 * (n % 5) for n in range(len(EVERY_NAME))), 5)
    network = Network(sizes, EVERY_NAME, dropout=dropout, l1=1e-3, l2=1e-2)
    return Job(network, optimizer, **{"batch_size": 7, "seed": 3, "threads": 2} | settings)


def trained_engine(job: Job, course: Course) -> tuple[NumbaEngine, RowResults]:
    engine = NumbaEngine(job)
    engine.load(start_state(job))
    return engine, engine.train(*course)


def outcome(job: Job, course: Course) -> tuple[Any, ...]:
    """State, row results and predictions after a training."""
    engine, results = trained_engine(job, course)
    z = engine.forward(course.x)
    state = engine.state()
    engine.close()
    return state, results, z


@pytest.fixture(autouse=True)
def always_teams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest step use all threads."""
    monkeypatch.setattr(cpu, "LEAST_FLOPS", 0)


# ------------------------------------------------------------------------------------------------ the fast path


def test_without_epilogues_of_activations_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    job = fused_job((13, 21, 34, 9, 5))
    course = make_course(job.network, rows=30, batch=7, epochs=3)
    fast = outcome(job, course)
    prediction = NumbaEngine.prediction

    def without(engine: NumbaEngine, dropout: bool = False) -> Any:
        return prediction(engine, dropout)._replace(fused=False)

    monkeypatch.setattr(NumbaEngine, "prediction", without)
    plain_spec = NumbaEngine(job).specialisation(True)
    assert plain_spec.forward.fused_codes == (-1, -1)
    plain = outcome(job, course)
    assert same_bits(plain, fast)
    assert train_kernel(plain_spec).signatures  # it has run
    assert not same_bits(fast[0].parameters, start_state(job).parameters)


# ------------------------------------------------------------------------------------------------ padding


def dirty(engine: NumbaEngine) -> list[str]:
    """Where padding of weights, slots, gradients or transposed weights is not exactly zero."""
    network, plan, lanes = engine.job.network, engine.plan, engine.lanes
    ones = np.ones(network.parameters, np.float32)
    real, real_transposed = np.empty_like(engine.store[0]), np.empty_like(engine.transposed)
    pack(network, plan, lanes, ones, real)
    pack_transposed(network, plan, lanes, ones, real_transposed)
    assert real.sum() == network.parameters < real.size
    rows = {"parameters": PARAMETERS, "m": SLOT_M, "v": SLOT_V, "gradient": GRADIENT}
    padding = {name: engine.store[row][real == 0] for name, row in rows.items()}
    padding["transposed"] = engine.transposed[real_transposed == 0]
    return [name for name, values in padding.items() if values.astype(np.float64).any() or np.isnan(values).any()]


def wrong_transposes(engine: NumbaEngine) -> int:
    """How many transposed weights differ from the weights."""
    wanted = np.empty_like(engine.transposed)
    pack_transposed(engine.job.network, engine.plan, engine.lanes, engine.state().parameters, wanted)
    return int((wanted != engine.transposed).sum())


@pytest.mark.parametrize(
    "job",
    [every_job(PENALISED), every_job(Optimizer("momentum"), dropout=0.25)],
    ids=["clipped adam", "momentum with dropout"],
)
def test_padding_stays_zero(job: Job) -> None:
    course = make_course(job.network, rows=30, batch=7, epochs=3)
    engine, results = trained_engine(job, course)
    assert np.isfinite(results.loss).all()
    assert not same_bits(engine.state().parameters, start_state(job).parameters)
    assert dirty(engine) == []
    assert wrong_transposes(engine) == 0
    last_batch = len(course.order) % 7
    for layer in range(1, len(job.network.layers)):
        at, ld, width = engine.plan.y_at[layer], engine.plan.ld[layer], engine.plan.fan_in_p[layer]
        rows = engine.arena[at : at + last_batch * ld].reshape(last_batch, ld)[:, :width]
        assert not rows[:, job.network.sizes[layer] :].any(), f"activations of layer {layer}"
        assert rows[:, : job.network.sizes[layer]].any()
    engine.close()


def test_the_checks_of_padding_see_the_least_number() -> None:
    job = fused_job()
    engine, _ = trained_engine(job, make_course(job.network, rows=8, batch=7))
    assert dirty(engine) == []
    assert wrong_transposes(engine) == 0
    engine.store[SLOT_V, -1] = np.float32(1e-45)
    engine.transposed[-1] = np.nan
    assert dirty(engine) == ["v", "transposed"]
    assert wrong_transposes(engine) == 1
    engine.close()


# ------------------------------------------------------------------------------------------------ bits


@pytest.mark.parametrize(
    "job",
    [fused_job(batch_size=150), every_job(PENALISED, batch_size=150)],
    ids=["fused", "every activation"],
)
def test_neither_blocks_of_rows_nor_threads_change_a_bit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    course = make_course(job.network, rows=170, batch=150, rate=0.01)
    wanted = outcome(dataclasses.replace(job, threads=1), course)
    for block in (8, 16, 64):
        monkeypatch.setattr(cpu, "rows_per_task", lambda rows, threads, block=block: block)
        for threads in (1, 2, 5):
            assert same_bits(outcome(dataclasses.replace(job, threads=threads), course), wanted), (block, threads)


def test_one_call_or_many_change_no_bit() -> None:
    job = every_job(Optimizer("momentum"), dropout=0.25)
    course = make_course(job.network, rows=30, batch=7, epochs=2)
    whole, results = run_course("numba", job, start_state(job), course)
    engine = NumbaEngine(job)
    engine.load(start_state(job))
    parts = []
    for step in range(len(course.rates)):
        rows = course.order[7 * step : 7 * step + 7]
        parts.append(engine.train(course.x, course.y, rows, course.rates[step : step + 1]))
    assert same_bits(engine.state(), whole)
    assert same_bits(np.concatenate([part.loss for part in parts]), results.loss)
    engine.close()


# ------------------------------------------------------------------------------------------------ stray access


class Zones:
    """Buffers that lie between guard zones. What is read beyond an end is NaN and spoils the numbers; a write is seen."""

    MARGIN = 4096  # bytes on either side; a multiple of a page, so that the alignment is kept

    def __init__(self) -> None:
        self.all: list[Any] = []

    def guarded(self, array: Any) -> Any:
        """A copy of the array between guard zones, aligned like those of `cpu.aligned`."""
        raw = np.empty(array.nbytes + 2 * self.MARGIN + cpu.ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % cpu.ALIGNMENT
        inner = slice(start + self.MARGIN, start + self.MARGIN + array.nbytes)
        raw[:] = 0xFF  # a NaN, of float32 and of float64, and the integer -1
        view = raw[inner].view(array.dtype).reshape(array.shape)
        view[...] = array
        self.all.append((raw, inner))
        return view

    def stray(self) -> int:
        """Bytes of the zones that have changed."""
        return sum(int((raw[: inner.start] != 0xFF).sum() + (raw[inner.stop :] != 0xFF).sum()) for raw, inner in self.all)


@pytest.fixture
def zones(monkeypatch: pytest.MonkeyPatch) -> Zones:
    """Guard zones around every buffer of engines made from now on, and around their row results."""
    found = Zones()
    monkeypatch.setattr(cpu, "aligned", lambda *args: found.guarded(ALIGNED(*args)))
    monkeypatch.setattr(cpu, "RowResults", lambda *arrays: RowResults(*map(found.guarded, arrays)))
    return found


AWKWARD = [(1, 1, 1, 1), (7, 8, 9, 10), (13, 16, 16, 10), (15, 17, 31, 33, 2), (65, 129, 64, 3), (3, 2, 2, 2, 2, 1)]


@pytest.mark.parametrize("sizes", AWKWARD, ids=lambda sizes: "x".join(map(str, sizes)))
def test_kernels_stay_inside_their_buffers(sizes: tuple[int, ...], zones: Zones, monkeypatch: pytest.MonkeyPatch) -> None:
    for batch, rows in ((1, 3), (7, 10), (8, 17), (65, 90)):
        for threads in (1, 5):
            job = fused_job(sizes, batch_size=batch, threads=threads)
            course = make_course(job.network, rows=rows, batch=batch)
            guarded = Course(*(array if array is None else zones.guarded(array) for array in course))
            found = outcome(job, guarded)
            assert zones.stray() == 0, (batch, threads)
            with monkeypatch.context() as patch:
                patch.setattr(cpu, "aligned", ALIGNED)
                patch.setattr(cpu, "RowResults", RowResults)
                assert same_bits(found, outcome(job, course)), (batch, threads)
            assert np.isfinite(found[0].parameters).all()


def test_other_kernels_stay_inside_their_buffers(zones: Zones) -> None:
    for job in (every_job(PENALISED), every_job(Optimizer("momentum"), dropout=0.25)):
        course = make_course(job.network, rows=30, batch=7)
        state, results, z = outcome(job, Course(*(array if array is None else zones.guarded(array) for array in course)))
        assert zones.stray() == 0
        assert all(np.isfinite(array).all() for array in (state.parameters, state.slots, results.loss, z))


def test_guard_zones_see_stray_writes_and_spoil_stray_reads(zones: Zones) -> None:
    job = fused_job()
    course = make_course(job.network, rows=10, batch=7)
    engine = NumbaEngine(job)
    assert len(zones.all) == 4  # store, transposed, scratch, shared
    engine.load(start_state(job))
    engine.train(*course)
    assert len(zones.all) == 7  # and arena, loss, correct
    assert zones.stray() == 0
    at = engine.plan.b_at[0]
    assert np.isfinite(engine.forward(course.x)).all()
    engine.plan.b_at[0] = engine.store.size - 1  # the biases now are read from beyond the store
    assert np.isnan(engine.forward(course.x)).any()
    assert zones.stray() == 0
    engine.plan.b_at[0] = at
    engine.plan.y_at[0] = engine.arena.size - 20  # the scaled rows now are written beyond the arena
    engine.train(*course)
    assert zones.stray() > 0
    engine.close()


# ------------------------------------------------------------------------------------------------ a thread that sleeps


def test_a_thread_that_sleeps_delays_nobody() -> None:
    job = fused_job(threads=3)
    course = make_course(job.network, rows=30, batch=7, epochs=20)
    wanted, wanted_results = run_course("numba", dataclasses.replace(job, threads=1), start_state(job), course)
    engine = NumbaEngine(job)
    engine.load(start_state(job))
    train = train_kernel(engine.specialisation(True))
    returned = [threading.Event() for _ in range(3)]
    late: list[bool] = []

    def sleepy(t: int, *args: Any) -> None:
        if t == 2:  # as if the system had put it to sleep: it comes when the others have done all the work
            late.extend(event.wait(PATIENCE) for event in returned[:2])
        train(t, *args)
        returned[t].set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "train_kernel", lambda spec: sleepy)
        results = engine.train(*course)
    assert late == [True, True]
    assert same_bits(engine.state(), wanted)
    assert same_bits(results, wanted_results)
    engine.close()
