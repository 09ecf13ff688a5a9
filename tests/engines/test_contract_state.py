"""Contract tests of the engines, part 2: states, split calls, inputs and threads; most comparisons are bit-exact."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.engines import Course, engine_of, make_course, run_course, same_bits, start_state
from support.processes import check_in_a_forked_child
from support.tolerances import check_against_reference

from fastmlp.engines import make_engine
from fastmlp.engines.base import EngineSpec, RowMetrics, State
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

pytestmark = pytest.mark.usefixtures("eager_threads")

# ------------------------------------------------------------------------------------------------ state

BASE = EngineSpec(Network((13, 18, 5)), Optimizer("sgd"), batch_size=8, threads=2)
WITH_SLOTS = EngineSpec(Network((13, 18, 11, 5)), Optimizer("adamw", max_grad_norm=0.5), batch_size=8, threads=2)


@pytest.fixture(scope="module")
def backend(every_backend: str) -> str:
    """Run each test with every backend; without a GPU, backend "cuda" is simulated."""
    return every_backend


@pytest.mark.parametrize("spec", [BASE, WITH_SLOTS], ids=["sgd", "adamw"])
def test_what_is_loaded_comes_out_bit_by_bit(backend: str, spec: EngineSpec) -> None:
    rng = np.random.default_rng(0)
    size = spec.network.parameters
    parameters = rng.normal(size=size).astype(np.float32)
    parameters[:4] = [-0.0, 1e-42, np.inf, np.nan]  # special values are kept
    state = State(parameters, rng.random((len(spec.optimizer.slots), size)).astype(np.float32), 7)
    with engine_of(backend, spec, state) as engine:
        assert same_bits(engine.state(), state)
        alone = engine.state(slots=False)
        assert same_bits((alone.parameters, alone.step), (state.parameters, state.step))
        assert alone.slots.shape == (0, spec.network.parameters)
        engine.load(start_state(spec))
        assert same_bits(engine.state(), start_state(spec))


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


@pytest.mark.parametrize("spec", [BASE, WITH_SLOTS], ids=["sgd", "adamw"])
def test_a_state_goes_on_in_another_engine(backend: str, spec: EngineSpec) -> None:
    """Training that continues in a new engine from a saved `State` is bit-identical to uninterrupted training."""
    course, start = make_course(spec.network, 24, epochs=4), start_state(spec)
    whole, whole_results = run_course(backend, spec, start, course)
    half, first = run_course(
        backend, spec, start, course._replace(indices=course.indices[:48], learning_rates=course.learning_rates[:6])
    )
    end, second = run_course(
        backend, spec, half, course._replace(indices=course.indices[48:], learning_rates=course.learning_rates[6:])
    )
    assert same_bits(end, whole)
    assert same_bits(np.concatenate([first.loss, second.loss]), whole_results.loss)
    assert half.step == 6
    assert end.step == 12


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_change_no_bit(backend: str, chunk: int) -> None:
    """One call of `train` and several calls give the same bits, since dropout masks depend only on the step."""
    network = Network((13, 18, 5), dropout=0.3)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=4, threads=3)
    course = make_course(network, 30, 4, epochs=1, weighted=True)
    whole = run_course(backend, spec, start_state(spec), course)
    with engine_of(backend, spec) as engine:
        parts = []
        for k in range(0, len(course.learning_rates), chunk):
            indices, learning_rates = course.indices[4 * k : 4 * (k + chunk)], course.learning_rates[k : k + chunk]
            parts.append(engine.train(course.x, course.y, indices, learning_rates, course.weights))
        joined = RowMetrics(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
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
    for spec in (BASE, WITH_SLOTS):
        course, start = make_course(spec.network), start_state(spec)
        assert same_bits(run_course(backend, spec, start, course), run_course(backend, spec, start, course))


def test_the_seed_decides_the_dropout(backend: str) -> None:
    network = Network((13, 18, 5), dropout=0.3)
    course = make_course(network)
    states = []
    for seed in (1, 2):
        spec = EngineSpec(network, Optimizer("sgd"), batch_size=8, seed=seed)
        states.append(run_course(backend, spec, start_state(spec), course)[0])
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
    """The indices of a training call may omit some rows and repeat others."""
    course = make_course(BASE.network, 24)
    indices = np.random.default_rng(5).integers(3, 20, 40)
    check_against_reference(backend, BASE, course._replace(indices=indices, learning_rates=np.full(5, 0.05)))


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


# ------------------------------------------------------------------------------------------------ threads

THREAD_JOBS = {
    "primes": (Network((13, 31, 29, 11)), Optimizer("sgd"), 37, 7),
    "one row": (Network((13, 18, 5)), Optimizer("sgd"), 1, 1),
    "fewer rows than threads": (Network((13, 18, 5)), Optimizer("sgd"), 6, 3),
    "many tiles": (Network((200, 150, 33)), Optimizer("sgd"), 150, 70),
    "dropout": (Network((70, 150, 33), dropout=0.3), Optimizer("sgd"), 150, 70),
    "clipped adamw": (Network((70, 150, 33), l2=0.1), Optimizer("adamw", max_grad_norm=0.5), 150, 70),
}


@pytest.mark.parametrize("case", THREAD_JOBS)
def test_the_number_of_threads_changes_no_bit(numba_backend: str, case: str) -> None:
    network, optimizer, rows, batch = THREAD_JOBS[case]
    course = make_course(network, rows, batch, rate=0.01)
    found = []
    for threads in (1, 2, 5, 2):
        spec = EngineSpec(network, optimizer, batch_size=batch, threads=threads)
        with engine_of(numba_backend, spec) as engine:
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
    """Two engines that train at the same time in two Python threads give the same bits as when they train in sequence."""
    network, epochs, rounds = (Network((9, 17, 5)), 1, 1) if backend == "cuda" else (Network((40, 70, 11)), 10, 5)  # simulated
    specs = [EngineSpec(network, Optimizer("sgd"), batch_size=32, threads=threads) for threads in (2, 3)]
    courses = [make_course(network, 200, 32, epochs=epochs, seed=seed) for seed in (0, 1)]
    serial = [run_course(backend, spec, start_state(spec), c) for spec, c in zip(specs, courses, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            futures = [
                pool.submit(run_course, backend, spec, start_state(spec), c) for spec, c in zip(specs, courses, strict=True)
            ]
            assert same_bits(tuple(f.result(timeout=60) for f in futures), tuple(serial))


def system_threads() -> int:
    """Return the number of threads of this process: from /proc, or from Python if the system has no /proc."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()


def quiet_count() -> int:
    """Wait until the number of threads has not changed for 0.1 seconds, and return it."""
    counts: list[int] = []
    while len(counts) < 10 or len(set(counts[-10:])) > 1:
        counts.append(max(threading.active_count(), system_threads()))
        time.sleep(0.01)
    return counts[-1]


def settles_at(count: int) -> bool:
    """Return whether the number of threads falls to `count` within a minute; threads do not end immediately."""
    for _ in range(6000):
        if threading.active_count() <= count and system_threads() <= count:
            return True
        time.sleep(0.01)
    return False


def test_closed_engines_leave_no_threads(backend: str) -> None:
    course = make_course(BASE.network)
    run_course(backend, BASE, start_state(BASE), course)  # a library may start permanent threads on first use
    before = quiet_count()
    for threads in (2, 3) * 25:
        run_course(backend, dataclasses.replace(BASE, threads=threads), start_state(BASE), course)
    assert settles_at(before)


def test_dropped_engines_leave_no_threads_either(backend: str) -> None:
    """An engine whose `close` was never called ends its threads when it is garbage-collected."""
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_engine_works_in_a_forked_child(backend: str) -> None:
    course = make_course(BASE.network)
    with engine_of(backend, BASE) as engine:
        wanted = engine.forward(course.x)
        check_in_a_forked_child(lambda: same_bits(engine.forward(course.x), wanted), seconds=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_that_errs_or_hangs_is_seen() -> None:
    check_in_a_forked_child(lambda: True, seconds=60)
    with pytest.raises(AssertionError):
        check_in_a_forked_child(lambda: False, seconds=60)
    with pytest.raises(pytest.fail.Exception, match="did not finish"):
        check_in_a_forked_child(lambda: bool(time.sleep(60)), seconds=0.2)
