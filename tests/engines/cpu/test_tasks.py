"""Division of a training step: phases are in order, and tasks cover everything once and are assigned to one thread each."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmlp.engines.cpu import plan as cpu_plan
from fastmlp.engines.cpu.codegen.simd import TILES
from fastmlp.engines.cpu.kernels.gemm import make_height
from fastmlp.engines.cpu.plan import (
    BACKWARD,
    CHUNK_ROWS,
    FORWARD,
    GATHER,
    GROUP_COLUMNS,
    PAIR,
    ROWS,
    TAIL_WEIGHTS,
    UPDATE,
    WEIGHTS,
    Layout,
    StepPlan,
    make_layout,
    packed_views,
)
from fastmlp.nn.network import Network

WIDTHS = (4, 8, 16)
AWKWARD = [(1, 1), (7, 8, 9), (13, 31, 33, 10), (129, 257, 11), (784, 128, 10), (300, 130, 140, 260, 70, 3)]

every_size = settings(derandomize=True, deadline=None, max_examples=150)
some_sizes = st.lists(st.integers(1, 300), min_size=2, max_size=5)
some_lanes = st.sampled_from(WIDTHS)
some_threads = st.integers(1, 17)


def tasks_of(plan: StepPlan, phase: Any) -> Any:
    return plan.tasks[phase["first"] : phase["first"] + phase["tasks"]]


def kinds_and_layers(layout: Layout) -> list[tuple[int, int]]:
    return [(int(phase["kind"]), int(phase["layer"])) for phase in layout.plan.phases]


# ------------------------------------------------------------------------------------------------ phases


@given(sizes=some_sizes, lanes=some_lanes, threads=some_threads, rows=st.integers(1, 200), clip=st.booleans())
@every_size
def test_phases_follow_the_network_there_and_back(sizes: list[int], lanes: int, threads: int, rows: int, clip: bool) -> None:
    layout = make_layout(Network(sizes), lanes, rows, threads, clip)
    layers = layout.plan.layers
    large = layers["fan_in_p"] * layers["fan_out_p"] >= TAIL_WEIGHTS
    wide = min(int(np.argmin([*large, False])), len(layers) - 1)  # the output layer is computed with the losses
    forward = [(GATHER, 0)] * (wide > 0) + [(FORWARD, layer) for layer in range(wide)]
    backward = [(BACKWARD, layer) for layer in range(wide - 1, 0, -1)]
    update = [(UPDATE, 0)] * clip
    found = kinds_and_layers(layout)
    assert found == [*forward, (ROWS, wide), *backward, (WEIGHTS, 0), *update]
    without = make_layout(Network(sizes), lanes, rows, threads, clip, gathers=False)
    assert kinds_and_layers(without) == [kind for kind in found if kind[0] != GATHER]


# ------------------------------------------------------------------------------------------------ tasks


def uneven_weights(layout: Layout, lanes: int, tasks: Any) -> str:
    """Describe the first weight or bias that the tasks do not cover exactly once; return "" if there is none."""
    row = np.zeros(layout.store, np.float32)
    for layer, panel, panels, first, rows, *_ in tasks.tolist():
        weights, biases = packed_views(layout.plan, lanes, row, layer)
        covered = weights[panel : panel + panels, first : first + rows]
        if covered.shape[:2] != (panels, rows) or not 1 <= panels <= max(GROUP_COLUMNS // lanes, PAIR):
            return f"task {layer, panel, panels, first, rows} exceeds the matrix"
        covered += 1
        if first == 0:  # the first rectangle of a column also covers its biases
            biases[panel * lanes : (panel + panels) * lanes] += 1
    wrong = np.flatnonzero(row != 1)
    return f"entry {wrong[0]} is covered {row[wrong[0]]:.0f} times" if wrong.size else ""


def uneven_blocks(layer: int, panels: int, rows: int, tasks: Any) -> str:
    """Describe the first row and panel of a layer that the tasks do not cover exactly once; return "" if there is none."""
    covered = np.zeros((panels, rows), np.int64)
    for of, panel, count, first, height, *_ in tasks.tolist():
        block = covered[panel : panel + count, first : first + height]
        if of != layer or block.shape != (count, height) or not 1 <= count <= PAIR:
            return f"task {of, panel, count, first, height} exceeds layer {layer}"
        block += 1
    wrong = np.argwhere(covered != 1)
    return f"panel, row {wrong[0]} is covered {covered[tuple(wrong[0])]} times" if wrong.size else ""


def uneven_rows(rows: int, tasks: Any) -> str:
    """Describe the first row that the tasks do not cover exactly once; return "" if there is none."""
    covered = np.zeros(rows, np.int64)
    for _, _, _, first, height, *_ in tasks.tolist():
        if not 0 <= first < first + height <= rows:
            return f"task {first, height} exceeds the batch"
        covered[first : first + height] += 1
    wrong = np.flatnonzero(covered != 1)
    return f"row {wrong[0]} is covered {covered[wrong[0]]} times" if wrong.size else ""


def uneven(layout: Layout, lanes: int, rows: int) -> str:
    """Describe an error in the tasks of any phase; return "" if there is none."""
    for phase in layout.plan.phases:
        tasks, layer = tasks_of(layout.plan, phase), int(phase["layer"])
        if phase["kind"] in (WEIGHTS, UPDATE):
            wrong = uneven_weights(layout, lanes, tasks)
        elif phase["kind"] in (GATHER, ROWS):
            wrong = uneven_rows(rows, tasks)
        else:
            side = "fan_out_p" if phase["kind"] == FORWARD else "fan_in_p"
            wrong = uneven_blocks(layer, layout.plan.layers[layer][side] // lanes, rows, tasks)
        if wrong:
            return f"phase {phase}: {wrong}"
    return ""


@given(sizes=some_sizes, lanes=some_lanes, threads=some_threads, rows=st.integers(1, 200), clip=st.booleans())
@every_size
def test_tasks_cover_everything_once(sizes: list[int], lanes: int, threads: int, rows: int, clip: bool) -> None:
    layout = make_layout(Network(sizes), lanes, rows, threads, clip)
    assert uneven(layout, lanes, rows) == ""


@pytest.mark.parametrize(("rows", "threads"), [(1, 16), (7, 3), (128, 2), (1000, 5), (60_000, 2)])
@pytest.mark.parametrize("sizes", AWKWARD)
def test_tasks_of_small_and_large_batches(
    sizes: tuple[int, ...], rows: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_plan, "TAIL_WEIGHTS", 0)
    layout = make_layout(Network(sizes), 8, rows, threads, clip=True)
    assert (kinds_and_layers(layout)[0] == (GATHER, 0)) == (len(sizes) > 2)
    assert uneven(layout, 8, rows) == ""


DAMAGES = [("rows", 8), ("rows", -8), ("first", 8), ("panel", 1), ("panels", -1), ("layer", 1)]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [(kind, damage) for kind in range(6) for damage in (DAMAGES[:3] if kind in (GATHER, ROWS) else DAMAGES)],
)
def test_the_check_of_tasks_sees_damage(kind: int, damage: tuple[str, int]) -> None:
    field, change = damage
    layout = make_layout(Network((300, 130, 140, 17)), 16, 100, 2, clip=True)
    assert uneven(layout, 16, 100) == ""
    (phase, *_) = layout.plan.phases[layout.plan.phases["kind"] == kind]
    layout.plan.tasks[field][phase["first"] + phase["tasks"] // 2] += change
    assert uneven(layout, 16, 100) != ""


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize("sizes", AWKWARD)
def test_rectangles_are_whole_tiles_and_whole_vectors(sizes: tuple[int, ...], lanes: int) -> None:
    plan = make_layout(Network(sizes), lanes, 10, 3).plan
    (phase,) = plan.phases[plan.phases["kind"] == WEIGHTS]
    first, rows = (tasks_of(plan, phase)[name] for name in ("first", "rows"))
    tall, low, _ = TILES[lanes]
    height = make_height(lanes)
    assert (first % CHUNK_ROWS == 0).all()
    assert (rows % lanes == 0).all()  # square blocks are transposed
    assert ((rows > 0) & (rows <= CHUNK_ROWS)).all()
    for left in np.unique(rows):
        while left > 0:  # split rows as the gradient kernel does
            assert height.py_func(left) in (tall, low)
            left -= height.py_func(left)  # noqa: PLW2901
        assert left == 0
    assert CHUNK_ROWS % np.lcm.reduce([tall, *WIDTHS]) == 0


# ------------------------------------------------------------------------------------------------ shares


@given(sizes=some_sizes, lanes=some_lanes, threads=some_threads, rows=st.integers(1, 200), clip=st.booleans())
@every_size
def test_shares_hand_out_every_task_once_and_evenly(sizes: list[int], lanes: int, threads: int, rows: int, clip: bool) -> None:
    plan = make_layout(Network(sizes), lanes, rows, threads, clip).plan
    assert plan.shares.shape == (len(plan.phases), threads + 1)
    for phase, ends in zip(plan.phases, plan.shares.tolist(), strict=True):
        counts = [end - start for start, end in pairwise(ends)]
        assert (ends[0], ends[-1]) == (0, phase["tasks"])
        assert 0 <= min(counts) <= max(counts) <= min(counts) + 1
    starts = plan.phases["first"]
    assert [*starts[1:], len(plan.tasks)] == (starts + plan.phases["tasks"]).tolist()
    assert starts[0] == 0
    assert (plan.phases["tasks"] > 0).all()  # a phase without tasks would never end


def at_home(plan: StepPlan) -> float:
    """Return the fraction of weights in wide layers that the FORWARD and WEIGHTS phases assign to the same thread."""
    forward: dict[tuple[int, int], set[int]] = {}
    homes = weights = 0
    for phase, ends in zip(plan.phases, plan.shares.tolist(), strict=True):
        for t, (start, end) in enumerate(pairwise(ends)):
            for layer, panel, panels, _, rows, *_ in tasks_of(plan, phase)[start:end].tolist():
                for each in range(panel, panel + panels):
                    if phase["kind"] == FORWARD:
                        forward.setdefault((layer, each), set()).add(t)
                    elif phase["kind"] == WEIGHTS and (layer, each) in forward:
                        homes += rows * (t in forward[layer, each])
                        weights += rows
    return homes / weights


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize("sizes", [(784, 512, 256, 10), (784, 1024, 1024, 10), (784, 128, 10), (3072, 2048, 1000, 500, 10)])
def test_weights_stay_with_their_thread_for_the_most_part(sizes: tuple[int, ...], lanes: int) -> None:
    for threads, least in ((1, 1.0), (2, 0.95), (8, 0.75), (16, 0.75)):
        assert at_home(make_layout(Network(sizes), lanes, 128, threads).plan) >= least, threads


def test_the_check_of_homes_sees_weights_that_move() -> None:
    plan = make_layout(Network((784, 512, 10)), 8, 128, 2).plan
    assert at_home(plan) >= 0.95
    (phase,) = plan.phases[plan.phases["kind"] == WEIGHTS]
    tasks_of(plan, phase)[:] = tasks_of(plan, phase)[::-1].copy()
    assert at_home(plan) < 0.1
