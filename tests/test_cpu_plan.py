"""Where things lie: padded sizes, packing there and back, buffers that do not touch, tasks that cover every weight once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmlp.cpu_plan import (
    CACHE_LINE,
    CHUNK_ROWS,
    TILE_ROWS,
    TILE_VECTORS,
    Layout,
    Plan,
    activation_names,
    make_layout,
    pack,
    pack_transposed,
    packed_views,
    unpack,
)
from fastmlp.network import Network
from fastmlp.philox import drop_threshold

WIDTHS = (4, 8, 16)
AWKWARD = [
    (1, 1),
    (1, 1, 1),
    (7, 8, 9),
    (15, 16, 17, 2),
    (13, 31, 33, 10),
    (64, 65, 127, 3),
    (129, 257, 11),
    (784, 128, 10),
]

every_size = settings(derandomize=True, deadline=None, max_examples=150)
some_sizes = st.lists(st.integers(1, 200), min_size=2, max_size=5)
some_lanes = st.sampled_from(WIDTHS)


def numbers(network: Network) -> Any:
    """A parameter vector whose entries all differ and are not zero."""
    return np.arange(1, network.parameters + 1, dtype=np.float32)


def packed(network: Network, layout: Layout, lanes: int) -> tuple[Any, Any]:
    """A row of `store` and the transposed weights, written over NaN."""
    row, transposed = (np.full(size, np.nan, np.float32) for size in (layout.store, layout.transposed))
    pack(network, layout.plan, lanes, numbers(network), row)
    pack_transposed(network, layout.plan, lanes, numbers(network), transposed)
    return row, transposed


@given(sizes=some_sizes, lanes=some_lanes)
@every_size
def test_packing_goes_there_and_back(sizes: list[int], lanes: int) -> None:
    network = Network(sizes)
    layout = make_layout(network, lanes, 0)
    row, _ = packed(network, layout, lanes)
    assert same_bits(unpack(network, layout.plan, lanes, row), numbers(network))


@given(sizes=some_sizes, lanes=some_lanes)
@every_size
def test_padding_is_exactly_zero(sizes: list[int], lanes: int) -> None:
    network = Network(sizes)
    row, transposed = packed(network, make_layout(network, lanes, 0), lanes)
    beyond_first = [w.size for w, _ in network.views(numbers(network))[1:]]
    for array, count in ((row, network.parameters), (transposed, sum(beyond_first))):
        padding = array[~(array > 0)]
        assert np.count_nonzero(array) == count
        assert same_bits(padding, np.zeros(array.size - count, np.float32))  # neither NaN nor -0


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize("sizes", AWKWARD)
def test_each_weight_lies_where_the_description_says(sizes: tuple[int, ...], lanes: int) -> None:
    network = Network(sizes)
    layout = make_layout(network, lanes, 0)
    plan = layout.plan
    row, transposed = packed(network, layout, lanes)
    for layer, (w, b) in enumerate(network.views(numbers(network))):
        k, n = np.indices(w.shape)
        k_p, n_p = plan.fan_in_p[layer], plan.fan_out_p[layer]
        assert np.array_equal(row[plan.w_at[layer] + (n // lanes) * k_p * lanes + k * lanes + n % lanes], w)
        assert np.array_equal(row[plan.b_at[layer] + np.arange(len(b))], b)
        if layer:
            assert np.array_equal(transposed[plan.t_at[layer] + (k // lanes) * n_p * lanes + n * lanes + k % lanes], w)


@given(sizes=some_sizes, lanes=some_lanes)
@every_size
def test_padded_sizes_are_the_least_that_tiles_and_vectors_divide(sizes: list[int], lanes: int) -> None:
    plan = make_layout(Network(sizes), lanes, 0).plan
    unit = np.lcm(lanes, TILE_ROWS)
    assert plan.fan_in.tolist() == sizes[:-1]
    assert plan.fan_out.tolist() == sizes[1:]
    for true, padded in ((plan.fan_in, plan.fan_in_p), (plan.fan_out, plan.fan_out_p)):
        assert (padded % unit == 0).all()
        assert ((padded >= true) & (padded - true < unit)).all()


def overlaps(pieces: list[tuple[int, int]], size: int) -> str:
    """What is wrong with pieces (start, length) of a buffer of `size` entries; empty if nothing is."""
    for (start, length), (following, _) in pairwise([*sorted(pieces), (size, 0)]):
        if start < 0 or start + length > following:
            return f"[{start}, {start + length}) reaches beyond {following}"
    return ""


def pieces_of(plan: Plan, rows: int) -> list[tuple[int, int]]:
    """The buffers of the arena."""
    starts = np.array([plan.y_at, plan.s_at, plan.dz_at])
    return [(int(at), rows * int(ld)) for kind in starts for at, ld in zip(kind, plan.ld, strict=True)]


@given(sizes=some_sizes, lanes=some_lanes, rows=st.integers(1, 100))
@every_size
def test_buffers_lie_apart_and_inside(sizes: list[int], lanes: int, rows: int) -> None:
    plan, store, transposed, arena = make_layout(Network(sizes), lanes, rows)
    weights = plan.fan_in_p * plan.fan_out_p
    assert overlaps(pieces_of(plan, rows), arena) == ""
    assert overlaps([*zip(plan.w_at, weights, strict=True), *zip(plan.b_at, plan.fan_out_p, strict=True)], store) == ""
    assert overlaps(list(zip(plan.t_at[1:], weights[1:], strict=True)), transposed) == ""


def test_the_check_of_buffers_sees_an_overlap_and_an_end_that_is_too_near() -> None:
    plan, _, _, arena = make_layout(Network((5, 20, 3)), 8, 10)
    assert overlaps(pieces_of(plan, 10), arena - 1) != ""
    assert overlaps(pieces_of(plan, 11), arena + 1000) != ""
    plan.s_at[1] -= 1
    assert overlaps(pieces_of(plan, 10), arena) != ""


@given(sizes=some_sizes, lanes=some_lanes)
@every_size
def test_rows_lie_an_odd_number_of_cache_lines_apart(sizes: list[int], lanes: int) -> None:
    plan = make_layout(Network(sizes), lanes, 1).plan
    widths = np.array([*plan.fan_in_p, plan.fan_out_p[-1]])
    assert (plan.ld >= widths).all()
    assert (plan.ld - widths <= 2 * CACHE_LINE).all()
    assert (plan.ld // CACHE_LINE % 2 == 1).all()
    if lanes == CACHE_LINE:  # shorter vectors may leave half a line over
        assert (plan.ld % CACHE_LINE == 0).all()


def test_only_the_arena_grows_with_the_rows() -> None:
    small, large = (make_layout(Network((13, 9, 4)), 16, rows) for rows in (8, 80))
    assert large.arena == 10 * small.arena
    assert (large.store, large.transposed) == (small.store, small.transposed)
    assert same_bits(large.plan.w_at, small.plan.w_at)
    assert same_bits(large.plan.tasks, small.plan.tasks)


# ------------------------------------------------------------------------------------------------ gradient tasks


def uneven(layout: Layout, lanes: int, tasks: Any) -> str:
    """The first weight or bias that the tasks do not cover exactly once; empty if there is none."""
    row = np.zeros(layout.store, np.float32)
    for layer, panel, panels, first, rows in tasks:
        weights, biases = packed_views(layout.plan, lanes, row, layer)
        covered = weights[panel : panel + panels, first : first + rows]
        if covered.shape[:2] != (panels, rows) or not 1 <= panels <= TILE_VECTORS:
            return f"task {layer, panel, panels, first, rows} leaves the matrix"
        covered += 1
        if first == 0:  # the topmost rectangle brings its columns' biases
            biases[panel * lanes : (panel + panels) * lanes] += 1
    wrong = np.flatnonzero(row != 1)
    return f"entry {wrong[0]} is covered {row[wrong[0]]:.0f} times" if wrong.size else ""


@given(sizes=some_sizes, lanes=some_lanes)
@every_size
def test_tasks_cover_every_weight_once(sizes: list[int], lanes: int) -> None:
    layout = make_layout(Network(sizes), lanes, 0)
    assert uneven(layout, lanes, layout.plan.tasks) == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda tasks: tasks[:-1],
        lambda tasks: np.r_[tasks, tasks[:1]],
        lambda tasks: np.add(tasks, [0, 0, 0, 0, 8]),
        lambda tasks: np.subtract(tasks, [0, 0, 0, 0, 8]),
        lambda tasks: np.add(tasks, [0, 1, 0, 0, 0]),
        lambda tasks: np.subtract(tasks, [0, 0, 1, 0, 0]),
    ],
)
def test_the_check_of_tasks_sees_damage(damage: Any) -> None:
    layout = make_layout(Network((130, 40, 17)), 16, 0)
    assert uneven(layout, 16, layout.plan.tasks) == ""
    assert uneven(layout, 16, damage(layout.plan.tasks)) != ""


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize("sizes", AWKWARD)
def test_tasks_are_whole_tiles_and_whole_vectors(sizes: tuple[int, ...], lanes: int) -> None:
    tasks = make_layout(Network(sizes), lanes, 0).plan.tasks
    first, rows = tasks[:, 3], tasks[:, 4]
    assert (first % CHUNK_ROWS == 0).all()
    assert (rows % TILE_ROWS == 0).all()
    assert (rows % lanes == 0).all()  # squares of the transposition
    assert ((rows > 0) & (rows <= CHUNK_ROWS)).all()
    assert CHUNK_ROWS % np.lcm.reduce([TILE_ROWS, *WIDTHS]) == 0


# ------------------------------------------------------------------------------------------------ what is no place


def test_activations_and_dropout_become_numbers() -> None:
    network = Network((5, 4, 4, 4, 3), ["tanh", "leaky-relu:0.25", "elu"], dropout=[0.0, 0.25, 0.5])
    plan = make_layout(network, 8, 0).plan
    assert activation_names(network) == ("elu", "leaky-relu", "tanh")
    assert plan.code.tolist() == [2, 1, 0]
    assert plan.parameter.tolist() == [0.0, 0.25, 1.0]
    assert plan.threshold.tolist() == [0, drop_threshold(0.25), drop_threshold(0.5)]
    assert plan.keep_scale.tolist() == [1.0, np.float32(4 / 3), 2.0]
