"""Tests with guard zones around every buffer and between pieces of the arena: no kernel reads or writes out of bounds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from support.cpu import EVERY_IDS, PENALISED, every_job, fused_job, outcome, pieces_of_arena
from support.engines import Course, make_course, same_bits, start_state

from fastmlp.engines.base import EngineSpec, RowMetrics
from fastmlp.engines.cpu import engine as cpu
from fastmlp.engines.cpu import plan as cpu_plan
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.kernels.losses import loss_block
from fastmlp.engines.cpu.plan import PAIR, Layout, make_layout, round_up
from fastmlp.nn.optimizers import Optimizer

ALIGNED, SCRATCH_SIZE = cpu.aligned, cpu.scratch_size  # the originals, which tests replace
KINDS = ("y_at", "s_at", "dz_at")


pytestmark = pytest.mark.usefixtures("eager_threads")


class Zones:
    """Buffers between guard zones: out-of-bounds reads cause NaN in the results, and out-of-bounds writes are detected."""

    MARGIN = 4096  # bytes on either side; a multiple of the page size, to keep the alignment
    GAP = 1024  # floats between pieces of the arena, between packed copies, and after each thread's scratch memory

    def __init__(self) -> None:
        self.all: list[tuple[Any, Any]] = []  # pairs of bytes and a mask of the guard bytes

    def guarded(self, array: Any) -> Any:
        """Return a copy of the array between guard zones, with the alignment of `cpu.aligned`."""
        raw = np.full(array.nbytes + 2 * self.MARGIN + cpu.ALIGNMENT, 0xFF, np.uint8)  # NaN, or the integer -1
        start = -raw.ctypes.data % cpu.ALIGNMENT + self.MARGIN
        guards = np.ones(len(raw), bool)
        guards[start : start + array.nbytes] = False
        view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        view[...] = array
        self.all.append((raw, guards))
        return view

    def spread(self, *given: Any, **options: Any) -> Layout:
        """Return the layout of `make_layout` with gaps between the pieces of the arena and between the packed copies."""
        layout = make_layout(*given, **options)
        widths = layout.plan.widths
        for n, kind in enumerate(KINDS):
            widths[kind] += self.GAP * (1 + n * len(widths) + np.arange(len(widths)))
        widths["packed_at"] += self.GAP * (1 + np.arange(len(widths)))
        arena = layout.arena + self.GAP * (3 * len(widths) + 1)
        return layout._replace(arena=arena, packed=layout.packed + self.GAP * (len(widths) + 1))

    def fence(self, array: Any, pieces: list[tuple[int, int]]) -> None:
        """Turn all entries outside the pieces (start, length) of an array's rows into guard zones."""
        guards = np.ones(array.shape, bool)
        for start, length in pieces:
            guards[..., start : start + length] = False
        raw, inside = array.reshape(-1).view(np.uint8), np.repeat(guards.reshape(-1), array.itemsize)
        raw[inside] = 0xFF
        self.all.append((raw, inside))

    def fence_training(self, engine: NumbaEngine) -> None:
        """Turn the gaps in the arena, between packed copies and after each thread's scratch memory into guard zones."""
        plan = engine.layout.plan
        sizes = [engine.rows * round_up(int(size), PAIR * engine.lanes) for size in plan.layers["fan_out_p"]]
        self.fence(engine.arena, pieces_of_arena(engine.layout, engine.rows, engine.gathers))
        self.fence(engine.packed, list(zip(plan.widths["packed_at"][1:].tolist(), sizes, strict=True)))
        self.fence(engine.scratch, [(0, SCRATCH_SIZE() + loss_block(engine.spec.network, engine.lanes))])

    def stray(self) -> int:
        """Return the number of bytes in guard zones that have changed."""
        return sum(int((raw[guards] != 0xFF).sum()) for raw, guards in self.all)


def zones_around_engines(monkeypatch: pytest.MonkeyPatch) -> Zones:
    """Put guard zones around every buffer of engines created from now on, and around their row metrics."""
    found, reserve, init = Zones(), NumbaEngine.reserve, NumbaEngine.__init__

    def make_fenced(engine: NumbaEngine, spec: EngineSpec) -> None:
        init(engine, spec)
        found.fence(engine.predict_arena, pieces_of_arena(engine.predicting, cpu.MOST_ROWS, gathers=True))

    def make_fenced_room(engine: NumbaEngine, rows: int, threads: int, gathers: bool) -> None:
        before = engine.layout
        reserve(engine, rows, threads, gathers)
        if engine.layout is not before:
            found.fence_training(engine)

    monkeypatch.setattr(cpu, "aligned", lambda *args: found.guarded(ALIGNED(*args)))
    monkeypatch.setattr(cpu, "RowMetrics", lambda *arrays: RowMetrics(*map(found.guarded, arrays)))
    monkeypatch.setattr(cpu, "make_layout", found.spread)
    monkeypatch.setattr(cpu, "scratch_size", lambda: SCRATCH_SIZE() + Zones.GAP)
    monkeypatch.setattr(NumbaEngine, "__init__", make_fenced)
    monkeypatch.setattr(NumbaEngine, "reserve", make_fenced_room)
    return found


AWKWARD = [
    (1, 1, 1, 1),
    (7, 8, 9, 10),
    (13, 16, 16, 10),
    (15, 17, 31, 33, 2),
    (65, 129, 64, 3),
    (3, 2, 2, 2, 2, 1),
    (48, 31, 11),
]


def guarded_course(course: Course, zones: Zones) -> Course:
    return Course(*(array if array is None else zones.guarded(array) for array in course))


@pytest.mark.parametrize("tail", [0, cpu_plan.TAIL_WEIGHTS])
@pytest.mark.parametrize("sizes", AWKWARD, ids=lambda sizes: "x".join(map(str, sizes)))
def test_kernels_stay_inside_their_buffers(sizes: tuple[int, ...], tail: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_plan, "TAIL_WEIGHTS", tail)
    cases = [(batch, rows, threads) for batch, rows in ((1, 3), (7, 10), (8, 17), (65, 90)) for threads in (1, 5)]
    specs = [fused_job(sizes, batch_size=batch, threads=threads) for batch, _, threads in cases]
    courses = [make_course(spec.network, rows=rows, batch=batch) for spec, (batch, rows, _) in zip(specs, cases, strict=True)]
    unguarded = [outcome(spec, course) for spec, course in zip(specs, courses, strict=True)]
    found = zones_around_engines(monkeypatch)
    stays = sizes[0] % 16 == 0  # training reads these rows in place
    assert all(
        NumbaEngine(spec).reads_in_place(course.x, training=True) == stays for spec, course in zip(specs, courses, strict=True)
    )
    for case, spec, course, wanted in zip(cases, specs, courses, unguarded, strict=True):
        assert same_bits(outcome(spec, guarded_course(course, found)), wanted), case
        assert found.stray() == 0, case
        assert np.isfinite(wanted[0].parameters).all()


@pytest.mark.parametrize("spec", [every_job(PENALISED), every_job(Optimizer("momentum"), dropout=0.25)], ids=EVERY_IDS)
def test_other_kernels_stay_inside_their_buffers(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    found = zones_around_engines(monkeypatch)
    course = make_course(spec.network, rows=30, batch=7)
    for tail in (0, cpu_plan.TAIL_WEIGHTS):
        monkeypatch.setattr(cpu_plan, "TAIL_WEIGHTS", tail)
        state, results, z = outcome(spec, guarded_course(course, found))
        assert found.stray() == 0
        assert all(np.isfinite(array).all() for array in (state.parameters, state.slots, results.loss, z))


def test_guard_zones_see_stray_writes_and_spoil_stray_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_plan, "TAIL_WEIGHTS", 0)
    spec = fused_job(threads=3)
    course = make_course(spec.network, rows=10, batch=7)
    found = zones_around_engines(monkeypatch)
    engine = NumbaEngine(spec)
    assert len(found.all) == 6  # store, transposed, scratch, shared, the prediction arena and its gaps
    engine.load(start_state(spec))
    engine.train(*course)
    assert len(found.all) == 13  # also arena, packed, gaps of arena, packed and scratch, loss, correct
    assert found.stray() == 0
    assert np.isfinite(engine.forward(course.x)).all()

    layers, widths = engine.predicting.plan.layers, engine.layout.plan.widths
    b_at = int(layers["b_at"][0])
    layers["b_at"][0] = engine.store.size - 1  # biases are now read beyond the end of the store
    assert np.isnan(engine.forward(course.x)).any()
    layers["b_at"][0] = b_at
    assert found.stray() == 0

    counts = [0]

    def strays_when(record: Any, field: str, at: int, value: int) -> None:
        """Train one step with one wrong offset in the plan; in later steps, NaN could be written to guards unnoticed."""
        engine.load(start_state(spec))
        right = int(record[field][at])
        record[field][at] = value
        engine.train(course.x, course.y, course.indices[:7], course.learning_rates[:1])
        record[field][at] = right
        counts.append(found.stray())

    strays_when(widths, "y_at", 0, int(widths["y_at"][0]) - 16)  # the scaled inputs start in the gap before them
    strays_when(widths, "dz_at", 2, int(widths["dz_at"][2]) + 16)  # gradients extend into the gap after them
    strays_when(widths, "s_at", 2, engine.arena.size + 64)  # no slopes are written: linear and relu are fused
    strays_when(widths, "packed_at", len(widths) - 1, engine.layout.packed - 64)  # in the gap after the last copy
    strays_when(engine.layout.plan.layers, "t_at", 1, engine.transposed.size + 16)
    assert [after > before for before, after in pairwise(counts)] == [True, True, False, True, True]
    engine.close()
