"""Kernels of the compiled engine: fused and plain kernels agree, padding stays zero, results do not depend on threads."""

from __future__ import annotations

import dataclasses
import threading
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.cpu import EVERY_IDS, PENALISED, every_job, fused_job, outcome, trained_engine
from support.engines import make_course, run_course, same_bits, start_state
from support.tolerances import check_against_reference

from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cpu import engine as cpu
from fastmlp.engines.cpu import plan as cpu_plan
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.kernels.passes import GRADIENT, PARAMETERS, SLOT_M, SLOT_V
from fastmlp.engines.cpu.kernels.programs import train_kernel
from fastmlp.engines.cpu.plan import BY_ROWS, FORWARD, GATHER, LINEAR, RELU, UPDATE, pack, pack_transposed
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.scaling import Scaling

PATIENCE = 60  # timeout in seconds


pytestmark = pytest.mark.usefixtures("eager_threads")


# ------------------------------------------------------------------------------------------------ the fast path


@pytest.mark.parametrize(("rule", "penalised"), [("sgd", False), ("adamw", True)])
def test_without_epilogues_of_activations_and_updates_the_bits_are_the_same(
    rule: str, penalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = fused_job((13, 21, 34, 9, 5), Optimizer(rule), threads=2)
    network = dataclasses.replace(spec.network, l1=1e-3, l2=1e-2) if penalised else spec.network
    spec = dataclasses.replace(spec, network=network)
    course = make_course(network, rows=30, batch=7, epochs=3)
    engine = NumbaEngine(spec)
    assert engine.kernel_table(np.float32, training=True).in_registers
    assert {RELU, LINEAR} <= set(engine.layout.plan.layers["fused"])
    fast = outcome(spec, course)
    monkeypatch.setattr(NumbaEngine, "fused", False)
    engine = NumbaEngine(spec)
    assert not engine.kernel_table(np.float32, training=True).in_registers
    assert all(engine.kernel_table(np.float32, training=True).activations)
    assert set(engine.layout.plan.layers["fused"]) == {BY_ROWS}
    assert same_bits(outcome(spec, course), fast)
    assert not same_bits(fast[0].parameters, start_state(spec).parameters)


def views(rows: int, features: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return the same rows in several memory layouts."""
    plain = np.random.default_rng(0).normal(size=(rows, features)).astype(np.float32)
    plain[3, 2] = -0.0
    wider = np.full((rows, features + 7), np.float32(np.nan))
    wider[:, :features] = plain
    gaps = np.zeros(rows, np.dtype([("x", np.float32, features), ("gap", np.uint8)]))  # stride is no multiple of 4
    gaps["x"] = plain
    return {"plain": plain, "wider": wider[:, :features], "upwards": plain[::-1].copy()[::-1], "gaps": gaps["x"]}


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_that_need_no_scaling_are_read_where_they_are(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = fused_job((13, 21, 5), threads=threads)
    assert spec.scaling is None
    given = views(130, 13)
    outputs, in_place = {}, {}
    for path in (False, True):
        monkeypatch.setattr(NumbaEngine, "in_place", path)
        for name, x in given.items():
            engine = NumbaEngine(spec)
            engine.load(start_state(spec))
            outputs[path, name] = engine.forward(x)
            in_place[path, name] = [table.scale == 0 for table in engine.tables.values()]
            engine.close()
    assert all(same_bits(z, outputs[False, "plain"]) for z in outputs.values())
    assert set(given) == {"plain", "wider", "upwards", "gaps"}
    assert in_place == {(path, name): [path and name != "gaps"] for path in (False, True) for name in given}


WIDE, NARROW = (32, 640, 9, 5), (16, 9, 5)  # with and without layers that are split by columns


@pytest.mark.parametrize("sizes", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3}, {"optimizer": PENALISED}], ids=["sgd", "dropout", "clipped adam"])
@pytest.mark.parametrize("threads", [1, 3])
def test_training_reads_rows_where_they_are(
    sizes: tuple[int, ...], changes: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows read in place give the same bits as gathered rows, also with a short last batch and split sums."""
    monkeypatch.setattr(cpu, "IN_PLACE_WIDTHS", dict.fromkeys(cpu.IN_PLACE_WIDTHS, 640))
    spec = fused_job(sizes, changes.get("optimizer"), threads=threads, batch_size=300)
    spec = dataclasses.replace(spec, network=dataclasses.replace(spec.network, dropout=changes.get("dropout", 0.0)))
    course = make_course(spec.network, rows=640, batch=300, epochs=2)
    given = views(len(course.x), sizes[0])
    states, gathers = {}, {}
    for path in (False, True):
        monkeypatch.setattr(NumbaEngine, "in_place", path)
        for name, x in given.items():
            engine, results = trained_engine(spec, course._replace(x=x))
            states[path, name] = engine.state(), results
            gathers[path, name] = (
                any(GATHER in layout.plan.phases["kind"] for layout in engine.layouts.values()),
                [table.scale != 0 for table in engine.tables.values()],
            )
            engine.close()
    assert all(same_bits(state, states[False, "plain"]) for state in states.values())
    wide = sizes == WIDE
    here, gathered = (False, [False]), (wide, [True])  # narrow networks have no separate phase for gathering
    assert gathers == {(path, name): here if path and name != "gaps" else gathered for path in (False, True) for name in given}


@pytest.mark.parametrize("sizes", [(13, 21, 5), (16, 33, 5)], ids=["padding", "columns"])
def test_training_gathers_rows_that_have_padding_or_are_read_too_often(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "IN_PLACE_WIDTHS", dict.fromkeys(cpu.IN_PLACE_WIDTHS, 32))
    spec = fused_job(sizes)
    engine, _ = trained_engine(spec, make_course(spec.network, rows=30, batch=7))
    assert [table.scale != 0 for table in engine.tables.values()] == [True]
    engine.close()


def test_one_engine_trains_on_rows_of_all_kinds_in_turn() -> None:
    """An engine can alternate between rows that are read in place and rows that are gathered, and between batch sizes."""
    spec = fused_job(NARROW, threads=2, batch_size=9)
    as_they_are = Scaling("none", np.zeros(16, np.float32), np.ones(16, np.float32))
    pixels = np.random.default_rng(0).integers(0, 3, (30, 16)).astype(np.uint8)
    floats, y = pixels.astype(np.float32), np.arange(30, dtype=np.int32) % 5
    states, gathers = [], []
    for one in (spec, dataclasses.replace(spec, scaling=as_they_are)):
        engine = NumbaEngine(one)
        engine.load(start_state(spec))
        for x, rows in ((floats, 5), (pixels, 4), (floats, 3), (pixels, 30), (floats, 30)):
            engine.train(x, y, np.arange(rows)[::-1], np.full(-(-rows // 9), 0.1))
            gathers.append(engine.gathers)
        states.append(engine.state())
        engine.close()
    assert gathers == [False, True, False, True, False] + [True] * 5
    assert same_bits(*states)


def test_rows_that_need_scaling_are_scaled() -> None:
    spec = fused_job((13, 21, 5))
    x = views(70, 13)["plain"]
    scaled = dataclasses.replace(spec, scaling=Scaling("unit", np.full(13, 0.5, np.float32), np.full(13, 2, np.float32)))
    for one, rows in ((scaled, x), (spec, np.abs(x * 100).astype(np.uint8))):
        engine, exact = NumbaEngine(one), NumpyEngine(dataclasses.replace(one, dtype=np.float64))
        for each in (engine, exact):
            each.load(start_state(spec))
        np.testing.assert_allclose(engine.forward(rows), exact.forward(rows), rtol=1e-4, atol=1e-3)
        assert all(table.scale != 0 for table in engine.tables.values())
        engine.close()


def test_long_work_of_one_thread_takes_turns_with_the_interpreter_and_short_work_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    word = np.zeros(1, np.int64)
    monkeypatch.setattr(cpu, "INTERPRETER_AT", word.ctypes.data)
    spec = fused_job(threads=1)
    course = make_course(spec.network, rows=30, batch=7)
    plain = outcome(spec, course)
    assert word[0] == 0
    flops = spec.network.flops_per_row * len(course.indices)
    for threads, most, taken in ((1, flops, True), (2, flops, False), (1, flops + 1, False)):
        monkeypatch.setattr(cpu, "TURN_FLOPS", most)
        word[:] = 0
        engine, results = trained_engine(dataclasses.replace(spec, threads=threads), course)
        assert word[0] == (threading.get_ident() if taken else 0)
        assert same_bits((engine.state(), results), plain[:2])
        engine.close()


def test_a_clip_that_never_clips_changes_no_bit() -> None:
    """Gradient clipping computes all gradients before the updates, but a threshold that is never reached changes no bit."""
    plain = fused_job(batch_size=19, threads=2)
    clipped = dataclasses.replace(plain, optimizer=Optimizer("sgd", max_grad_norm=1e9))
    course = make_course(plain.network, rows=30, batch=19, epochs=3)
    assert same_bits(outcome(clipped, course), outcome(plain, course))
    short = dataclasses.replace(plain, optimizer=Optimizer("sgd", max_grad_norm=1e-3))
    assert not same_bits(outcome(short, course)[0], outcome(plain, course)[0])
    check_against_reference("numba", short, course)


# ------------------------------------------------------------------------------------------------ padding


def dirty(engine: NumbaEngine) -> list[str]:
    """List the arrays whose padding is not exactly zero."""
    network, plan, lanes = engine.spec.network, engine.layout.plan, engine.lanes
    ones = np.ones(network.parameters, np.float32)
    real, real_transposed = np.empty_like(engine.store[0]), np.empty_like(engine.transposed)
    pack(network, plan, lanes, ones, real)
    pack_transposed(network, plan, lanes, ones, real_transposed)
    assert real.sum() == network.parameters < real.size
    rows = {"parameters": PARAMETERS, "m": SLOT_M, "v": SLOT_V, "gradient": GRADIENT}
    padding = {name: engine.store[row][real == 0] for name, row in rows.items()}
    padding["transposed"] = engine.transposed[real_transposed == 0]
    widths, layers = plan.widths, plan.layers
    for index, (true, padded) in enumerate(zip(network.sizes, [*layers["fan_in_p"], layers["fan_out_p"][-1]], strict=True)):
        for kind in ("y_at", "s_at", "dz_at") if index else ("y_at",):
            at, ld = widths[kind][index], widths["ld"][index]
            block = engine.arena[at : at + engine.rows * ld].reshape(engine.rows, ld)
            if index < len(layers) or kind != "y_at":  # the padding of the outputs is never read
                padding[f"{kind} {index}"] = block[:, true:padded]
    return [name for name, values in padding.items() if values.view(np.int32).any()]  # -0.0 counts as nonzero


def wrong_transposes(engine: NumbaEngine) -> int:
    """Return the number of transposed weights that differ from the weights."""
    wanted = np.empty_like(engine.transposed)
    pack_transposed(engine.spec.network, engine.layout.plan, engine.lanes, engine.state().parameters, wanted)
    return int((wanted != engine.transposed).sum())


@pytest.mark.parametrize(
    "spec",
    [every_job(PENALISED), every_job(Optimizer("momentum"), dropout=0.25), fused_job(threads=2)],
    ids=[*EVERY_IDS, "fused"],
)
def test_padding_stays_zero(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    course = make_course(spec.network, rows=30, batch=7, epochs=3)
    for tail in (0, cpu_plan.TAIL_WEIGHTS):
        monkeypatch.setattr(cpu_plan, "TAIL_WEIGHTS", tail)
        engine, results = trained_engine(spec, course)
        assert np.isfinite(results.loss).all()
        assert not same_bits(engine.state().parameters, start_state(spec).parameters)
        assert dirty(engine) == []
        assert wrong_transposes(engine) == 0
        last_batch = len(course.indices) % 7
        for layer in range(1, len(spec.network.layers)):
            at, ld = (engine.layout.plan.widths[name][layer] for name in ("y_at", "ld"))
            rows = engine.arena[at : at + last_batch * ld].reshape(last_batch, ld)
            assert rows[:, : spec.network.sizes[layer]].any(), f"no nonzero activations in layer {layer}"
        engine.close()


def test_the_checks_of_padding_see_the_least_number() -> None:
    spec = fused_job()
    engine, _ = trained_engine(spec, make_course(spec.network, rows=8, batch=7))
    assert dirty(engine) == []
    assert wrong_transposes(engine) == 0
    engine.store[SLOT_V, -1] = np.float32(1e-45)
    engine.transposed[-1] = np.nan
    engine.arena[engine.layout.plan.widths["y_at"][0] + 13] = -0.0
    engine.arena[engine.layout.plan.widths["s_at"][1] + 21] = np.float32(1e-45)
    assert dirty(engine) == ["v", "transposed", "y_at 0", "s_at 1"]
    assert wrong_transposes(engine) == 1
    engine.close()


# ------------------------------------------------------------------------------------------------ bits

EITHER = [
    fused_job(batch_size=150),
    every_job(PENALISED, batch_size=150),
    every_job(Optimizer("momentum"), dropout=0.25, batch_size=150),
]
EITHER_IDS = ["fused", *EVERY_IDS]


@pytest.mark.parametrize("spec", EITHER, ids=EITHER_IDS)
def test_neither_blocks_of_rows_nor_threads_change_a_bit(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    course = make_course(spec.network, rows=170, batch=150, rate=0.01)
    wanted = outcome(dataclasses.replace(spec, threads=1), course)
    for block in (8, 16, 64):
        monkeypatch.setattr(cpu_plan, "MOST_ROWS", block)
        monkeypatch.setattr(cpu_plan, "FEWEST_ROWS", block)
        for threads in (1, 2, 5, 16):
            assert same_bits(outcome(dataclasses.replace(spec, threads=threads), course), wanted), (block, threads)


@pytest.mark.parametrize("spec", EITHER, ids=EITHER_IDS)
def test_neither_wide_layers_nor_groups_of_columns_change_a_bit(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results have the same bits if layers are split by columns or by rows, and for all widths of gradient blocks."""
    course = make_course(spec.network, rows=170, batch=150, rate=0.01)
    wanted = outcome(dataclasses.replace(spec, threads=1), course)
    for tail, threads, group in product((0, 150, 10**9), (1, 2, 5), (16, 64)):
        monkeypatch.setattr(cpu_plan, "TAIL_WEIGHTS", tail)
        monkeypatch.setattr(cpu_plan, "GROUP_COLUMNS", group)
        engine, results = trained_engine(dataclasses.replace(spec, threads=threads), course)
        kinds = set(engine.layout.plan.phases["kind"].tolist())
        assert ({GATHER, FORWARD} <= kinds) == (tail < 10**9)
        assert ({GATHER, FORWARD}.isdisjoint(kinds)) == (tail == 10**9)
        assert (UPDATE in kinds) == (spec.optimizer.max_grad_norm > 0)
        assert same_bits((engine.state(), results, engine.forward(course.x)), wanted), (tail, threads, group)
        engine.close()


def test_one_call_or_many_change_no_bit() -> None:
    spec = every_job(Optimizer("momentum"), dropout=0.25)
    course = make_course(spec.network, rows=30, batch=7, epochs=2)
    whole, results = run_course("numba", spec, start_state(spec), course)
    engine = NumbaEngine(spec)
    engine.load(start_state(spec))
    parts = []
    for step in range(len(course.learning_rates)):
        rows = course.indices[7 * step : 7 * step + 7]
        parts.append(engine.train(course.x, course.y, rows, course.learning_rates[step : step + 1]))
    assert same_bits(engine.state(), whole)
    assert same_bits(np.concatenate([part.loss for part in parts]), results.loss)
    engine.close()


# ------------------------------------------------------------------------------------------------ suspended threads


@pytest.mark.parametrize("tail", [0, cpu_plan.TAIL_WEIGHTS])
def test_a_thread_that_sleeps_delays_nobody(tail: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_plan, "TAIL_WEIGHTS", tail)
    spec = fused_job(threads=3)
    course = make_course(spec.network, rows=30, batch=7, epochs=20)
    wanted, wanted_results = run_course("numba", dataclasses.replace(spec, threads=1), start_state(spec), course)
    engine = NumbaEngine(spec)
    engine.load(start_state(spec))
    train = train_kernel(engine.lanes)
    returned = [threading.Event() for _ in range(3)]
    late: list[bool] = []

    def sleepy(t: int, *args: Any) -> None:
        if t == 2:  # like a thread suspended by the system, it starts when the others have finished
            late.extend(event.wait(PATIENCE) for event in returned[:2])
        train(t, *args)
        returned[t].set()

    monkeypatch.setattr(sleepy, "overloads", train.overloads, raising=False)
    monkeypatch.setattr(cpu, "train_kernel", lambda lanes: sleepy)
    results = engine.train(*course)
    assert late == [True, True]
    assert same_bits(engine.state(), wanted)
    assert same_bits(results, wanted_results)
    assert engine.layout.plan.shares.shape[1] == 4  # the suspended thread had a share, too
    engine.close()
