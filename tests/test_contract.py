"""The contract of the engines, over every engine and awkward shapes, against the specification in float64.

Compiling a kind of network takes seconds, so the cases share few kinds: shapes all are relu networks under sgd, and a
network with one layer of every activation is trained under each loss and output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    Course,
    check_course,
    excess,
    expected,
    forward_tolerance,
    make_course,
    run_course,
    same_bits,
    start_state,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmlp.backends import BACKENDS, make_engine
from fastmlp.contract import Engine, Job, RowResults, State, row_scales, steps_of
from fastmlp.errors import ConfigError
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.network import Network
from fastmlp.optimizers import RULES, Optimizer
from fastmlp.preprocess import fit_scaling
from fastmlp.reference import NumpyEngine

pytestmark = pytest.mark.usefixtures("eager_threads")


@contextlib.contextmanager
def engine_of(backend: str, job: Job, state: State | None = None) -> Iterator[Engine]:
    """An engine that holds a state, closed at the end."""
    engine = make_engine(backend, job)
    try:
        engine.load(start_state(job) if state is None else state)
        yield engine
    finally:
        engine.close()


def check_against_reference(backend: str, job: Job, course: Course, step: int = 0) -> None:
    """Several steps and a forward pass of an engine against the specification in float64."""
    start = start_state(job)._replace(step=step)
    want = expected(job, start, course)
    with engine_of(backend, job, start) as engine:
        results = engine.train(*course)
        state = engine.state()
        check_course(want, state, results)
        z = engine.forward(course.x)
    exact = NumpyEngine(dataclasses.replace(job, dtype=np.float64))
    exact.load(state)
    rows = exact.rows(course.x)
    assert z.shape == (len(course.x), job.network.sizes[-1])
    assert excess(z, exact.forward(course.x), forward_tolerance(job.network, state.parameters, rows)) == 0


# ------------------------------------------------------------------------------------------------ shapes

# name: sizes, rows, batch
SHAPES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "one row": ((7, 5, 3), 1, 4),
    "one row, batch 1": ((7, 5, 3), 1, 1),
    "one feature": ((1, 6, 3), 13, 4),
    "one hidden unit": ((6, 1, 3), 13, 4),
    "one output": ((6, 4, 1), 13, 4),
    "one of everything": ((1, 1, 1), 3, 2),
    "9 outputs": ((6, 8, 9), 13, 4),
    "17 outputs": ((6, 8, 17), 13, 4),
    "33 outputs": ((6, 8, 33), 13, 4),
    "primes": ((13, 31, 29, 11), 37, 7),
    "no hidden layer": ((13, 10), 20, 8),
    "no hidden layer, wide": ((70, 37), 20, 8),
    "batch 1": ((13, 9, 5), 6, 1),
    "batch of all rows": ((13, 9, 5), 20, 20),
    "batch larger than the data": ((13, 9, 5), 20, 64),
    "last batch of one row": ((13, 9, 5), 17, 8),
    "last batch one row short": ((13, 9, 5), 31, 16),
    "many batches": ((5, 6, 3), 200, 3),
    "batch 65": ((13, 9, 5), 130, 65),
    "batch 129": ((20, 17, 5), 200, 129),
    "deep and narrow": ((5, *[3] * 10, 4), 20, 8),
    "wide and shallow": ((130, 65, 10), 20, 8),
    "two tiles and one": ((64, 129, 10), 20, 8),
    "bottleneck": ((40, 2, 40, 7), 20, 8),
    **{f"hidden {w}": ((13, w, 5), 20, 8) for w in (7, 8, 15, 16, 17, 31, 32, 33, 63)},
    **{f"features {w}": ((w, 9, 5), 20, 8) for w in (7, 8, 9, 15, 16, 17, 31, 33, 65)},
    **{f"batch {b}": ((13, 9, 5), 3 * b - 1, b) for b in (2, 7, 9, 15, 17, 31, 33)},
    **{f"two hidden of {w}": ((9, w, w, 4), 20, 8) for w in (1, 7, 9, 16, 17)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_awkward_shapes(backend: str, shape: str) -> None:
    sizes, rows, batch = SHAPES[shape]
    network = Network(sizes)
    job = Job(network, Optimizer("sgd"), batch_size=batch, threads=3)
    check_against_reference(backend, job, make_course(network, rows, batch))


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=3, max_size=5),
    rows=st.integers(1, 40),
    batch=st.integers(1, 50),
    threads=st.integers(1, 4),
    weighted=st.booleans(),
)
def test_any_shape(backend: str, sizes: list[int], rows: int, batch: int, threads: int, weighted: bool) -> None:
    network = Network(sizes)
    job = Job(network, Optimizer("sgd"), batch_size=batch, threads=threads)
    check_against_reference(backend, job, make_course(network, rows, batch, epochs=1, weighted=weighted))


def test_the_comparison_sees_a_single_wrong_entry(backend: str) -> None:
    """One weight, one bias, one slot, one loss, one flag, one step off by a little: none goes through."""
    network = Network((13, 9, 5))
    job = Job(network, Optimizer("momentum"), batch_size=8)
    course, start = make_course(network, 20), start_state(job)
    want = expected(job, start, course)
    state, results = want.state, want.results
    check_course(want, state, results)
    moved = np.abs(state.parameters - start.parameters)
    assert want.parameters_tolerance.max() < 1e-3 * moved.max()

    def changed(array: Any, at: Any, by: float) -> Any:
        array = array.copy()
        array[at] += by
        return array

    last = network.parameters - 1  # a bias
    little = 1e-3 * moved.max()
    wrong = {
        "weight": (state._replace(parameters=changed(state.parameters, 5, little)), results),
        "bias": (state._replace(parameters=changed(state.parameters, last, little)), results),
        "lost": (state._replace(parameters=changed(state.parameters, 5, np.nan)), results),
        "slot": (state._replace(slots=changed(state.slots, (0, 7), 1e-3)), results),
        "step": (state._replace(step=state.step + 1), results),
        "loss": (state, results._replace(loss=changed(results.loss, 3, 1e-3))),
        "flag": (state, results._replace(correct=results.correct ^ (np.arange(40) == 3))),
    }
    for name, (bad_state, bad_results) in wrong.items():
        with pytest.raises(AssertionError):
            check_course(want, bad_state, bad_results)
            pytest.fail(f"a wrong {name} went through")


# ------------------------------------------------------------------------------------------------ kinds

EVERY_ACTIVATION = ("relu", "tanh", "leaky-gelu:0.2", "linear", "elu:0.7", "silu", "leaky-relu:0.3", "gelu", "sigmoid")

# One network with a layer of each activation under every loss and output; the optimisers are spread over them.
MIXED: dict[str, tuple[str, str, Optimizer, dict[str, Any]]] = {
    "cross-entropy": ("cross-entropy", "softmax", Optimizer("sgd"), {}),
    "linear": ("squared-error", "linear", Optimizer("nesterov", momentum=0.8), {"targets": True, "rate": 0.01}),
    "sigmoid": ("squared-error", "sigmoid", Optimizer("adam", epsilon=1e-3), {"rate": 0.003}),
    "softmax": ("squared-error", "softmax", Optimizer("rmsprop", beta2=0.9), {"targets": True, "rate": 0.001}),
}

# name: of the network, of the optimiser, of the course, step at the start
EXTRAS: dict[str, tuple[dict[str, Any], Optimizer, dict[str, Any], int]] = {
    "l1 and l2": ({"l1": 1e-2, "l2": 0.1}, Optimizer("sgd"), {}, 0),
    "label smoothing": ({"label_smoothing": 0.2}, Optimizer("sgd"), {}, 0),
    "sample weights": ({}, Optimizer("sgd"), {"weighted": True}, 0),
    "dropout": ({"dropout": 0.3}, Optimizer("sgd"), {}, 0),
    "dropout in one layer": ({"dropout": (0.0, 0.5)}, Optimizer("sgd"), {}, 0),
    "dropout, late, l2, weights": ({"dropout": (0.5, 0.2), "l2": 0.1}, Optimizer("sgd"), {"weighted": True}, 10**6),
    "adamw, clipped": ({}, Optimizer("adamw", weight_decay=0.3, clip_norm=0.5), {"rate": 0.003}, 0),
    "adamw, clipped, late": ({}, Optimizer("adamw", weight_decay=0.3, clip_norm=0.5), {"rate": 0.003}, 1000),
    "adamw, clipped, penalties": ({"l1": 1e-2, "l2": 0.1}, Optimizer("adamw", clip_norm=0.5), {"rate": 0.003}, 0),
    "momentum, clipped, dropout, targets": (
        {"dropout": 0.3, "l1": 1e-2},
        Optimizer("momentum", clip_norm=0.7),
        {"targets": True, "weighted": True},
        0,
    ),
}


def test_the_tables_cover_the_registries() -> None:
    """Every activation, loss, output and optimiser is in a table that runs over every engine."""
    assert {text.partition(":")[0] for text in EVERY_ACTIVATION} == set(ACTIVATIONS)
    assert {(loss, output) for loss, output, _, _ in MIXED.values()} == {
        (loss, output) for loss, outputs in LOSSES.items() for output in outputs
    }
    assert {o.name for _, _, o, _ in MIXED.values()} | {o.name for _, o, _, _ in EXTRAS.values()} == set(RULES)
    assert {"numpy", "numba"} <= set(BACKENDS)


@pytest.mark.parametrize("kind", MIXED)
def test_every_activation_under_every_loss_and_output(backend: str, kind: str) -> None:
    loss, output, optimizer, of_course = MIXED[kind]
    sizes = (7, *range(6, 6 + len(EVERY_ACTIVATION)), 4)
    for activations in (EVERY_ACTIVATION, EVERY_ACTIVATION[::-1]):
        network = Network(sizes, activations, loss=loss, output=output)
        job = Job(network, optimizer, batch_size=8, threads=3)
        check_against_reference(backend, job, make_course(network, 20, **of_course))


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras(backend: str, extra: str) -> None:
    of_network, optimizer, of_course, step = EXTRAS[extra]
    network = Network((13, 18, 11, 5), **of_network)
    job = Job(network, optimizer, batch_size=8, seed=2**63 + 5, threads=3)
    check_against_reference(backend, job, make_course(network, 21, **of_course), step)


@pytest.mark.parametrize("kind", ["none", "unit", "symmetric", "zscore", "zscore-global"])
def test_pixels_stay_uint8_and_are_scaled_as_they_are_used(backend: str, kind: str) -> None:
    network = Network((13, 9, 5))
    course = make_course(network, 20, uint8=True, rate=1e-4 if kind == "none" else 0.05)
    job = Job(network, Optimizer("sgd"), batch_size=8, scaling=fit_scaling(kind, course.x), threads=2)
    check_against_reference(backend, job, course)
    start = start_state(job)
    scaled = dataclasses.replace(job, scaling=None)
    one = run_course(backend, job, start, course)
    other = run_course(backend, scaled, start, course._replace(x=job.scaling.apply(course.x)))
    assert same_bits(one, other)  # scaling is two float32 operations, wherever it happens


def test_float_rows_are_scaled_too(backend: str) -> None:
    network = Network((13, 9, 5))
    course = make_course(network, 20)
    job = Job(network, Optimizer("sgd"), batch_size=8, scaling=fit_scaling("zscore", course.x))
    check_against_reference(backend, job, course)


def test_the_compiled_engine_refuses_float64(numba_backend: str) -> None:
    with pytest.raises(ConfigError, match="float32"):
        make_engine(numba_backend, Job(Network((3, 2)), Optimizer(), dtype=np.float64))


# ------------------------------------------------------------------------------------------------ state

BASE = Job(Network((13, 18, 5)), Optimizer("sgd"), batch_size=8, threads=2)
WITH_SLOTS = Job(Network((13, 18, 11, 5)), Optimizer("adamw", clip_norm=0.5), batch_size=8, threads=2)


@pytest.mark.parametrize("job", [BASE, WITH_SLOTS], ids=["sgd", "adamw"])
def test_what_is_loaded_comes_out_bit_by_bit(backend: str, job: Job) -> None:
    rng = np.random.default_rng(0)
    size = job.network.parameters
    parameters = rng.normal(size=size).astype(np.float32)
    parameters[:4] = [-0.0, 1e-42, np.inf, np.nan]  # whatever it is
    state = State(parameters, rng.random((len(job.optimizer.slots), size)).astype(np.float32), 7)
    with engine_of(backend, job, state) as engine:
        assert same_bits(engine.state(), state)
        engine.load(start_state(job))
        assert same_bits(engine.state(), start_state(job))


def test_states_are_copies(backend: str) -> None:
    course, start = make_course(BASE.network), start_state(BASE)
    given_away = State(start.parameters.copy(), start.slots.copy(), 0)
    with engine_of(backend, BASE, given_away) as engine:
        given_away.parameters[:] = np.nan
        taken = engine.state()
        assert same_bits(taken, start)
        engine.train(*course)
        assert same_bits(taken, start)
        trained = engine.state()
        trained.parameters[:] = np.nan
        assert np.isfinite(engine.state().parameters).all()


@pytest.mark.parametrize("job", [BASE, WITH_SLOTS], ids=["sgd", "adamw"])
def test_a_state_goes_on_in_another_engine(backend: str, job: Job) -> None:
    """Half in one engine and half in a fresh one gives the bits of the whole: parameters, slots and step are all."""
    course, start = make_course(job.network, 24, epochs=4), start_state(job)
    whole, whole_results = run_course(backend, job, start, course)
    half, first = run_course(backend, job, start, course._replace(order=course.order[:48], rates=course.rates[:6]))
    end, second = run_course(backend, job, half, course._replace(order=course.order[48:], rates=course.rates[6:]))
    assert same_bits(end, whole)
    assert same_bits(np.concatenate([first.loss, second.loss]), whole_results.loss)
    assert half.step == 6
    assert end.step == 12


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_change_no_bit(backend: str, chunk: int) -> None:
    """One call or many; dropout's masks follow the step, not the call."""
    network = Network((13, 18, 5), dropout=0.3)
    job = Job(network, Optimizer("sgd"), batch_size=4, threads=3)
    course = make_course(network, 30, 4, epochs=1, weighted=True)
    whole = run_course(backend, job, start_state(job), course)
    with engine_of(backend, job) as engine:
        parts = []
        for k in range(0, len(course.rates), chunk):
            order, rates = course.order[4 * k : 4 * (k + chunk)], course.rates[k : k + chunk]
            parts.append(engine.train(course.x, course.y, order, rates, course.weights))
        joined = RowResults(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        assert same_bits((engine.state(), joined), whole)


def test_training_on_no_rows_changes_nothing(backend: str) -> None:
    course = make_course(BASE.network, weighted=True)
    none = np.empty(0, np.int64), np.empty(0)
    with engine_of(backend, BASE) as engine:
        for weights in (None, course.weights):
            results = engine.train(course.x, course.y, *none, weights)
            assert results.loss.shape == results.correct.shape == (0,)
        assert same_bits(engine.state(), start_state(BASE))
        assert engine.forward(course.x[:0]).shape == (0, 5)


def test_the_same_call_gives_the_same_bits(backend: str) -> None:
    for job in (BASE, WITH_SLOTS):
        course, start = make_course(job.network), start_state(job)
        assert same_bits(run_course(backend, job, start, course), run_course(backend, job, start, course))


def test_the_seed_decides_the_dropout(backend: str) -> None:
    network = Network((13, 18, 5), dropout=0.3)
    course = make_course(network)
    states = []
    for seed in (1, 2):
        job = Job(network, Optimizer("sgd"), batch_size=8, seed=seed)
        states.append(run_course(backend, job, start_state(job), course)[0])
    assert not same_bits(*states)


# ------------------------------------------------------------------------------------------------ inputs


def test_inputs_are_left_alone_and_may_be_read_only(backend: str) -> None:
    network = BASE.network
    for of_course in ({}, {"uint8": True, "rate": 1e-4}, {"weighted": True}):
        course = make_course(network, **of_course)
        wanted = run_course(backend, BASE, start_state(BASE), course)
        copies = Course(*(None if array is None else array.copy() for array in course))
        for array in course:
            if array is not None:
                array.flags.writeable = False
        start = start_state(BASE)
        start.parameters.flags.writeable = False
        with engine_of(backend, BASE, start) as engine:
            results = engine.train(*course)
            assert same_bits((engine.state(), results), wanted)
            engine.forward(course.x)
        for array, copy in zip(course, copies, strict=True):
            assert array is None or same_bits(array, copy)


def test_any_order_of_rows_is_taken(backend: str) -> None:
    """A part of the rows, some of them several times."""
    course = make_course(BASE.network, 24)
    order = np.random.default_rng(5).integers(3, 20, 40)
    check_against_reference(backend, BASE, course._replace(order=order, rates=np.full(5, 0.05)))


def test_weights_count_relative_to_their_batch(backend: str) -> None:
    course = make_course(BASE.network, weighted=True)
    one = run_course(backend, BASE, start_state(BASE), course)
    other = run_course(backend, BASE, start_state(BASE), course._replace(weights=course.weights * np.float32(4)))
    assert same_bits(one, other)
    plain = run_course(backend, BASE, start_state(BASE), course._replace(weights=None))
    ones = run_course(backend, BASE, start_state(BASE), course._replace(weights=np.ones(24, np.float32)))
    assert same_bits(plain, ones)
    assert not same_bits(plain[0], one[0])


def test_a_row_of_weight_zero_teaches_nothing(backend: str) -> None:
    course = make_course(BASE.network, 24, epochs=1, weighted=True)
    course.weights[5] = 0
    other = course._replace(x=course.x.copy())
    other.x[5] += 1
    one, two = (run_course(backend, BASE, start_state(BASE), c)[0] for c in (course, other))
    assert same_bits(one, two)


def test_row_scales_are_shares_of_the_batch() -> None:
    order = np.array([2, 0, 1, 2, 1])
    weights = np.array([1, 2, 6], np.float32)
    assert row_scales(order, 2, None).tolist() == [0.5, 0.5, 0.5, 0.5, 1]
    assert row_scales(order, 2, weights).tolist() == [6 / 7, 1 / 7, 0.25, 0.75, 1]
    assert row_scales(order[:0], 2, weights).tolist() == []
    assert [steps_of(rows, 4) for rows in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize("activation", ["relu", *EVERY_ACTIVATION])
def test_a_nan_is_seen_in_the_loss(activation: str, backend: str) -> None:
    """In the row that holds it, and from the next batch on everywhere: no activation swallows it."""
    alone = activation == "relu"  # the other networks share one kind, with a layer of each
    activations = "relu" if alone else (activation, *(a for a in EVERY_ACTIVATION if a != activation))
    network = Network((13, *[9] * (1 if alone else len(EVERY_ACTIVATION)), 5), activations)
    job = Job(network, Optimizer("sgd"), batch_size=8, threads=2)
    course = make_course(network, 24, epochs=1)
    bad = course.order[10]  # a row of the second batch
    course.x[bad, 3] = np.nan
    _, results = run_course(backend, job, start_state(job), course)
    seen = np.isnan(results.loss)
    assert seen[10]
    assert not np.delete(seen[:16], 10).any()
    assert seen[16:].all()
    clean = course.x.copy()
    clean[bad] = 0
    state = start_state(job)
    state.parameters[0] = np.nan
    with engine_of(backend, job, state) as engine:
        assert np.isnan(engine.forward(clean)[0]).any()


def test_correct_is_the_first_largest_output(backend: str) -> None:
    """Equal outputs go to the first class, as argmax has it; plain targets are never correct."""
    network = Network((4, 3), init="uniform:0")
    job = Job(network, Optimizer("sgd"), batch_size=3)
    start = State(network.initial_parameters(0), np.empty((0, network.parameters), np.float32), 0)
    course = Course(np.ones((3, 4), np.float32), np.arange(3, dtype=np.int32), np.arange(3), np.full(1, 0.1))
    _, results = run_course(backend, job, start, course)
    assert results.correct.tolist() == [True, False, False]
    assert results.correct.dtype == bool


# ------------------------------------------------------------------------------------------------ properties


def test_forward_of_a_row_does_not_depend_on_the_others(backend: str) -> None:
    """To the bit where the engine sums in a fixed order; within rounding where BLAS chooses."""
    network = Network((37, 18, 21, 5))
    job = Job(network, Optimizer("sgd"), threads=3)
    x = make_course(network, 150).x
    with engine_of(backend, job) as engine:
        whole = engine.forward(x)
        alone = np.concatenate([engine.forward(x[i : i + 1]) for i in range(len(x))])
        backwards = engine.forward(np.ascontiguousarray(x[::-1]))[::-1]
        parameters = engine.state().parameters
    if backend == "numpy":
        tolerance = 2 * forward_tolerance(network, parameters, x)
        assert excess(alone, whole, tolerance) == excess(backwards, whole, tolerance) == 0
    else:
        assert same_bits(alone, whole)
        assert same_bits(np.ascontiguousarray(backwards), whole)


def test_forward_has_no_dropout_and_changes_nothing(backend: str) -> None:
    network = Network((13, 18, 5), dropout=0.5)
    job = Job(network, Optimizer("sgd"), batch_size=8)
    x = make_course(network).x
    with engine_of(backend, job) as engine:
        before = engine.state()
        z = engine.forward(x)
        assert same_bits(engine.forward(x), z)
        assert same_bits(engine.state(), before)
    with engine_of(backend, dataclasses.replace(job, network=Network((13, 18, 5)))) as plain:
        assert same_bits(plain.forward(x), z)


def test_the_gradient_is_zero_at_a_perfect_fit(backend: str) -> None:
    """Targets that the network gives already: a step of rate 1 moves by rounding only; other targets move it."""
    network = Network((13, *[9] * len(EVERY_ACTIVATION), 5), EVERY_ACTIVATION, loss="squared-error")
    job = Job(network, Optimizer("nesterov"), batch_size=24)  # a kind that MIXED compiles
    x = make_course(network).x
    start = start_state(job)
    with engine_of(backend, job, start) as engine:
        z = engine.forward(x)
        tolerance = forward_tolerance(network, start.parameters, x).max()
        engine.train(x, z, np.arange(24), np.ones(1))
        moved = np.abs(engine.state().parameters - start.parameters).max()
        engine.load(start)
        engine.train(x, z + np.float32(0.1), np.arange(24), np.ones(1))
        assert moved <= 10 * tolerance
        assert np.abs(engine.state().parameters - start.parameters).max() > max(0.05, 100 * moved)


def test_the_order_within_a_batch_matters_by_rounding_only(backend: str) -> None:
    course, start = make_course(BASE.network, weighted=True), start_state(BASE)
    shuffled = course.order.reshape(-1, 8)[:, np.random.default_rng(3).permutation(8)].ravel()
    want = expected(BASE, start, course)
    state, results = run_course(backend, BASE, start, course._replace(order=shuffled))
    assert excess(state.parameters, want.state.parameters, want.parameters_tolerance) == 0
    back = np.argsort(np.random.default_rng(3).permutation(8))
    losses = results.loss.reshape(-1, 8)[:, back].ravel()
    assert excess(losses, want.results.loss, want.loss_tolerance) == 0


def test_training_descends(backend: str) -> None:
    network = Network((13, 18, 5))
    course = make_course(network, 24, epochs=40, rate=0.3)
    _, results = run_course(backend, BASE, start_state(BASE), course)
    epochs = results.loss.reshape(40, 24).mean(axis=1)
    assert epochs[-1] < 0.3 * epochs[0]
    assert results.correct[-24:].mean() > 0.9


# ------------------------------------------------------------------------------------------------ threads

THREAD_JOBS = {
    "primes": (Network((13, 31, 29, 11)), Optimizer("sgd"), 37, 7),
    "one row": (Network((13, 18, 5)), Optimizer("sgd"), 1, 1),
    "fewer rows than threads": (Network((13, 18, 5)), Optimizer("sgd"), 6, 3),
    "many tiles": (Network((200, 150, 33)), Optimizer("sgd"), 150, 70),
    "dropout": (Network((70, 150, 33), dropout=0.3), Optimizer("sgd"), 150, 70),
    "clipped adamw": (Network((70, 150, 33), l2=0.1), Optimizer("adamw", clip_norm=0.5), 150, 70),
}


@pytest.mark.parametrize("case", THREAD_JOBS)
def test_the_number_of_threads_changes_no_bit(numba_backend: str, case: str) -> None:
    network, optimizer, rows, batch = THREAD_JOBS[case]
    course = make_course(network, rows, batch, rate=0.01)
    found = []
    for threads in (1, 2, 5, 2):
        job = Job(network, optimizer, batch_size=batch, threads=threads)
        with engine_of(numba_backend, job) as engine:
            assert engine.threads == threads
            results = engine.train(*course)
            found.append((engine.state(), results, engine.forward(course.x)))
    for other in found[1:]:
        assert same_bits(other, found[0])


def test_the_comparison_of_bits_sees_one() -> None:
    a = np.ones(5, np.float32)
    b = a.copy()
    b[3] = np.nextafter(np.float32(1), np.float32(2))
    assert same_bits((a, 3), (a.copy(), 3))
    assert not same_bits((a, 3), (b, 3))
    assert not same_bits(np.float32([0.0]), np.float32([-0.0]))
    assert not same_bits(a, a.astype(np.float64))


def test_two_engines_at_once_are_two_engines(backend: str) -> None:
    """From two Python threads, each engine with threads of its own: the bits of one after the other."""
    network = Network((40, 70, 11))
    jobs = [Job(network, Optimizer("sgd"), batch_size=32, threads=threads) for threads in (2, 3)]
    courses = [make_course(network, 200, 32, epochs=10, seed=seed) for seed in (0, 1)]
    serial = [run_course(backend, job, start_state(job), c) for job, c in zip(jobs, courses, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            futures = [
                pool.submit(run_course, backend, job, start_state(job), c) for job, c in zip(jobs, courses, strict=True)
            ]
            assert same_bits(tuple(f.result(timeout=60) for f in futures), tuple(serial))


def system_threads() -> int:
    """Threads of this process as the system counts them; Python's own count where there is no /proc."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()


def quiet_count() -> int:
    """Number of threads when it has not changed for a tenth of a second."""
    counts: list[int] = []
    while len(counts) < 10 or len(set(counts[-10:])) > 1:
        counts.append(max(threading.active_count(), system_threads()))
        time.sleep(0.01)
    return counts[-1]


def settles_at(count: int) -> bool:
    """Whether the number of threads comes down to `count` within ten seconds; a thread takes a moment to end."""
    for _ in range(1000):
        if threading.active_count() <= count and system_threads() <= count:
            return True
        time.sleep(0.01)
    return False


def test_closed_engines_leave_no_threads(backend: str) -> None:
    course = make_course(BASE.network)
    run_course(backend, BASE, start_state(BASE), course)  # what the first use of a library starts once stays
    before = quiet_count()
    for threads in (2, 3) * 25:
        run_course(backend, dataclasses.replace(BASE, threads=threads), start_state(BASE), course)
    assert settles_at(before)


def test_dropped_engines_leave_no_threads_either(backend: str) -> None:
    """A model is never closed: its engine ends with it."""
    course = make_course(BASE.network)
    run_course(backend, BASE, start_state(BASE), course)
    before = quiet_count()
    engines = []
    for _ in range(5):
        engine = make_engine(backend, dataclasses.replace(BASE, threads=3))
        engine.load(start_state(BASE))
        engine.train(*course)
        engines.append(engine)
    if backend == "numba":
        assert system_threads() >= before + 10
    del engine
    engines.clear()
    assert settles_at(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_an_engine_works_in_a_forked_child(backend: str) -> None:
    course = make_course(BASE.network)
    with engine_of(backend, BASE) as engine:
        wanted = engine.forward(course.x)
        child = os.fork()
        if child == 0:
            os._exit(0 if same_bits(engine.forward(course.x), wanted) else 9)
        for _ in range(1000):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.01)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert done, "the child hangs"
        assert os.waitstatus_to_exitcode(status) == 0
