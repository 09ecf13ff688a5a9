"""Tests of the memory layout: padded sizes, packing and unpacking, and buffers that do not overlap."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cpu import pieces_of_arena
from support.engines import same_bits

from fastmlp.engines.cpu.plan import (
    BY_ROWS,
    CACHE_LINE,
    PAIR,
    RELU,
    UNIT,
    WEIGHTS,
    Layout,
    make_layout,
    pack,
    pack_transposed,
    round_up,
    unpack,
)
from fastmlp.nn.network import Network
from fastmlp.nn.philox import drop_threshold

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
    """Return a parameter vector whose entries are distinct and nonzero."""
    return np.arange(1, network.parameters + 1, dtype=np.float32)


def packed(network: Network, layout: Layout, lanes: int) -> tuple[Any, Any]:
    """Return a row of `store` and the transposed weights, both packed into arrays that were filled with NaN."""
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
    row, transposed = packed(network, layout, lanes)
    for layer, (w, b) in enumerate(network.views(numbers(network))):
        k, n = np.indices(w.shape)
        size = layout.plan.layers[layer]
        k_p, n_p = size["fan_in_p"], size["fan_out_p"]
        assert np.array_equal(row[size["w_at"] + (n // lanes) * k_p * lanes + k * lanes + n % lanes], w)
        assert np.array_equal(row[size["b_at"] + np.arange(len(b))], b)
        if layer:
            assert np.array_equal(transposed[size["t_at"] + (k // lanes) * n_p * lanes + n * lanes + k % lanes], w)


@given(sizes=some_sizes, lanes=some_lanes)
@every_size
def test_padded_sizes_are_the_least_that_tiles_and_vectors_divide(sizes: list[int], lanes: int) -> None:
    layers = make_layout(Network(sizes), lanes, 0).plan.layers
    unit = np.lcm(lanes, UNIT)
    assert layers["fan_in"].tolist() == sizes[:-1]
    assert layers["fan_out"].tolist() == sizes[1:]
    for name in ("fan_in", "fan_out"):
        true, padded = layers[name], layers[f"{name}_p"]
        assert (padded % unit == 0).all()
        assert ((padded >= true) & (padded - true < unit)).all()


# ------------------------------------------------------------------------------------------------ buffers


def overlaps(pieces: list[tuple[int, int]], size: int) -> str:
    """Describe an overlap of pieces (start, length) of a buffer with `size` entries; return "" if there is none."""
    for (start, length), (following, _) in pairwise([*sorted(pieces), (size, 0)]):
        if start < 0 or start + length > following:
            return f"[{start}, {start + length}) reaches beyond {following}"
    return ""


def weight_tasks(layout: Layout) -> Any:
    phases = layout.plan.phases
    (of_weights,) = phases[phases["kind"] == WEIGHTS]
    return layout.plan.tasks[of_weights["first"] : of_weights["first"] + of_weights["tasks"]]


def pieces_of_packed(layout: Layout, lanes: int, rows: int) -> list[tuple[int, int]]:
    """Return (start, length) of the packed copy of dz of each layer, which consists of complete pairs of panels."""
    sizes = layout.plan.layers["fan_out_p"].tolist()
    places = layout.plan.widths["packed_at"][1:].tolist()
    return [(at, rows * round_up(size, PAIR * lanes)) for at, size in zip(places, sizes, strict=True)]


@given(sizes=some_sizes, lanes=some_lanes, rows=st.integers(1, 100), threads=st.integers(1, 9))
@every_size
def test_buffers_lie_apart_and_inside(sizes: list[int], lanes: int, rows: int, threads: int) -> None:
    layout = make_layout(Network(sizes), lanes, rows, threads)
    layers = layout.plan.layers
    weights = layers["fan_in_p"] * layers["fan_out_p"]
    in_store = [*zip(layers["w_at"], weights, strict=True), *zip(layers["b_at"], layers["fan_out_p"], strict=True)]
    assert overlaps(pieces_of_arena(layout, rows), layout.arena) == ""
    assert overlaps(in_store, layout.store) == ""
    assert overlaps(list(zip(layers["t_at"][1:], weights[1:], strict=True)), layout.transposed) == ""
    assert overlaps(pieces_of_packed(layout, lanes, rows), layout.packed) == ""
    assert (layout.plan.row_at == layout.plan.widths["ld"][:, None] * 4 * np.arange(rows)).all()
    without = make_layout(Network(sizes), lanes, rows, threads, gathers=False)
    assert overlaps(pieces_of_arena(without, rows, gathers=False), without.arena) == ""
    assert layout.arena - without.arena == rows * layout.plan.widths["ld"][0]


def test_the_check_of_buffers_sees_an_overlap_and_an_end_that_is_too_near() -> None:
    layout = make_layout(Network((5, 20, 3)), 8, 10)
    assert overlaps(pieces_of_arena(layout, 10), layout.arena - 1) != ""
    assert overlaps(pieces_of_arena(layout, 11), layout.arena + 1000) != ""
    assert overlaps(pieces_of_packed(layout, 8, 10), layout.packed - 1) != ""
    assert overlaps(pieces_of_packed(layout, 8, 11), layout.packed + 1000) != ""
    layout.plan.widths["s_at"][2] -= 1
    assert overlaps(pieces_of_arena(layout, 10), layout.arena) != ""


@given(sizes=some_sizes, lanes=some_lanes)
@every_size
def test_rows_lie_an_odd_number_of_cache_lines_apart(sizes: list[int], lanes: int) -> None:
    plan = make_layout(Network(sizes), lanes, 1).plan
    widths = np.array([*plan.layers["fan_in_p"], plan.layers["fan_out_p"][-1]])
    lds = plan.widths["ld"]
    assert (lds >= widths).all()
    assert (lds - widths <= 2 * CACHE_LINE).all()
    assert (lds // CACHE_LINE % 2 == 1).all()
    if lanes == CACHE_LINE:  # with shorter vectors, rows may end within a cache line
        assert (lds % CACHE_LINE == 0).all()


def test_only_what_holds_rows_grows_with_them() -> None:
    small, large = (make_layout(Network((13, 9, 4)), 16, rows) for rows in (8, 80))
    for name in ("arena", "packed"):
        assert getattr(large, name) == 10 * getattr(small, name) > 0
    for name in ("store", "transposed"):
        assert getattr(large, name) == getattr(small, name) > 0
    assert same_bits(large.plan.layers, small.plan.layers)
    assert weight_tasks(large).tolist() == weight_tasks(small).tolist()


# ------------------------------------------------------------------------------------------------ other values


def test_activations_and_dropout_become_numbers() -> None:
    network = Network((5, 4, 4, 4, 3), ["relu", "leaky-relu:0.25", "elu"], dropout=[0.0, 0.25, 0.5])
    layers = make_layout(network, 8, 0).plan.layers[:-1]
    assert layers["fused"].tolist() == [RELU, BY_ROWS, BY_ROWS]
    assert make_layout(network, 8, 0, fused=False).plan.layers["fused"].tolist() == [BY_ROWS] * 4
    assert layers["parameter"].tolist() == [0.0, 0.25, 1.0]
    assert layers["threshold"].tolist() == [0, drop_threshold(0.25), drop_threshold(0.5)]
    assert layers["keep_scale"].tolist() == [1.0, np.float32(4 / 3), 2.0]
