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
from fastmlp.cpu_plan import Layout, make_layout, pack, pack_transposed
from fastmlp.functions import ACTIVATIONS
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer

ALIGNED = cpu.aligned  # as it is before a test puts guard zones around it
PATIENCE = 60  # seconds after which a test calls a wait a hang

# Few kernels serve all tests of this file, since each takes seconds to compile: sizes are data.
FUSED_NAMES = ["relu", "linear"]
EVERY_NAME = [f"{name}:0.5" if entry.default is not None else name for name, entry in ACTIVATIONS.items()]
PENALISED = Optimizer("adam", clip_norm=0.5)
EVERY_IDS = ["clipped adam", "momentum with dropout"]


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
    ids=EVERY_IDS,
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
    GAP = 1024  # floats between the buffers of an arena

    def __init__(self) -> None:
        self.all: list[tuple[Any, Any]] = []  # bytes, and which of them are guards

    def guarded(self, array: Any) -> Any:
        """A copy of the array between guard zones, aligned like those of `cpu.aligned`."""
        raw = np.full(array.nbytes + 2 * self.MARGIN + cpu.ALIGNMENT, 0xFF, np.uint8)  # NaN, or the integer -1
        start = -raw.ctypes.data % cpu.ALIGNMENT + self.MARGIN
        guards = np.ones(len(raw), bool)
        guards[start : start + array.nbytes] = False
        view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        view[...] = array
        self.all.append((raw, guards))
        return view

    def spread(self, network: Network, lanes: int, rows: int) -> Layout:
        """The layout with gaps between the buffers of the arena."""
        layout = make_layout(network, lanes, rows)
        count = len(layout.plan.ld)
        gaps = self.GAP * np.arange(1, 3 * count + 1).reshape(3, count)
        plan = layout.plan
        plan = plan._replace(y_at=plan.y_at + gaps[0], s_at=plan.s_at + gaps[1], dz_at=plan.dz_at + gaps[2])
        return layout._replace(plan=plan, arena=layout.arena + self.GAP * (3 * count + 1))

    def fence(self, engine: NumbaEngine) -> None:
        """Make guard zones of the gaps in a new arena."""
        guards = np.ones(len(engine.arena), bool)
        for starts in (engine.plan.y_at, engine.plan.s_at, engine.plan.dz_at):
            for at, ld in zip(starts, engine.plan.ld, strict=True):
                guards[at : at + engine.rows * ld] = False
        raw, guards = engine.arena.view(np.uint8), np.repeat(guards, engine.arena.itemsize)
        raw[guards] = 0xFF
        self.all.append((raw, guards))

    def stray(self) -> int:
        """Bytes of the guard zones that have changed."""
        return sum(int((raw[guards] != 0xFF).sum()) for raw, guards in self.all)


def zones_around_engines(monkeypatch: pytest.MonkeyPatch) -> Zones:
    """Guard zones around every buffer of engines made from now on, and around their row results."""
    found, make_room = Zones(), NumbaEngine.make_room

    def make_fenced_room(engine: NumbaEngine, rows: int) -> None:
        before = engine.rows
        make_room(engine, rows)
        if engine.rows > before:
            found.fence(engine)

    monkeypatch.setattr(cpu, "aligned", lambda *args: found.guarded(ALIGNED(*args)))
    monkeypatch.setattr(cpu, "RowResults", lambda *arrays: RowResults(*map(found.guarded, arrays)))
    monkeypatch.setattr(cpu, "make_layout", found.spread)
    monkeypatch.setattr(NumbaEngine, "make_room", make_fenced_room)
    return found


AWKWARD = [(1, 1, 1, 1), (7, 8, 9, 10), (13, 16, 16, 10), (15, 17, 31, 33, 2), (65, 129, 64, 3), (3, 2, 2, 2, 2, 1)]


def guarded_course(course: Course, zones: Zones) -> Course:
    return Course(*(array if array is None else zones.guarded(array) for array in course))


@pytest.mark.parametrize("sizes", AWKWARD, ids=lambda sizes: "x".join(map(str, sizes)))
def test_kernels_stay_inside_their_buffers(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(batch, rows, threads) for batch, rows in ((1, 3), (7, 10), (8, 17), (65, 90)) for threads in (1, 5)]
    jobs = [fused_job(sizes, batch_size=batch, threads=threads) for batch, _, threads in cases]
    courses = [make_course(job.network, rows=rows, batch=batch) for job, (batch, rows, _) in zip(jobs, cases, strict=True)]
    unguarded = [outcome(job, course) for job, course in zip(jobs, courses, strict=True)]
    found = zones_around_engines(monkeypatch)
    for case, job, course, wanted in zip(cases, jobs, courses, unguarded, strict=True):
        assert same_bits(outcome(job, guarded_course(course, found)), wanted), case
        assert found.stray() == 0, case
        assert np.isfinite(wanted[0].parameters).all()


@pytest.mark.parametrize("job", [every_job(PENALISED), every_job(Optimizer("momentum"), dropout=0.25)], ids=EVERY_IDS)
def test_other_kernels_stay_inside_their_buffers(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    found = zones_around_engines(monkeypatch)
    course = make_course(job.network, rows=30, batch=7)
    state, results, z = outcome(job, guarded_course(course, found))
    assert found.stray() == 0
    assert all(np.isfinite(array).all() for array in (state.parameters, state.slots, results.loss, z))


def test_guard_zones_see_stray_writes_and_spoil_stray_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    job = fused_job()
    course = make_course(job.network, rows=10, batch=7)
    found = zones_around_engines(monkeypatch)
    engine = NumbaEngine(job)
    assert len(found.all) == 4  # store, transposed, scratch, shared
    engine.load(start_state(job))
    engine.train(*course)
    assert len(found.all) == 8  # and arena, its gaps, loss, correct
    assert found.stray() == 0
    b_at, y_at, s_at = (int(at[0]) for at in (engine.plan.b_at, engine.plan.y_at, engine.plan.s_at))
    assert np.isfinite(engine.forward(course.x)).all()
    engine.plan.b_at[0] = engine.store.size - 1  # the biases now are read from beyond the store
    assert np.isnan(engine.forward(course.x)).any()
    engine.plan.b_at[0] = b_at
    assert found.stray() == 0
    engine.plan.y_at[0] = s_at - 16  # the scaled rows now reach from a gap into slopes that nobody uses
    engine.train(*course)
    gap = found.stray()
    engine.plan.y_at[0] = engine.arena.size - 20  # and now beyond the arena
    engine.train(*course)
    assert 0 < gap < found.stray()
    engine.plan.y_at[0] = y_at
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
