"""Tests of the engine's threads: start, end, errors, Ctrl-C, many engines and callers, more threads than cores."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.cpu import run_script
from support.engines import Course, make_course, run_course, same_bits, start_state

from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cpu import engine as cpu
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.threads import Team
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

PATIENCE = 120  # timeout in seconds


def within_patience(function: Callable[[], Any]) -> Any:
    """Call a function in a separate thread, so that a hang fails the test instead of blocking the test session."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "still waiting"
    assert results, "the function raised an error; see the warning of the thread"
    return results[0]


def new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before]


def all_end(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(PATIENCE)
    return not any(thread.is_alive() for thread in threads)


# ------------------------------------------------------------------------------------------------ the team


@pytest.mark.parametrize("threads", [1, 2, 5, 16])
def test_every_number_runs_once_and_the_caller_is_0(threads: int) -> None:
    team = Team(threads)
    for _ in range(20):
        seen: list[tuple[int, int]] = []
        team.run(lambda t, a, b, seen=seen: seen.append((t, a * b)), 6, 7)
        assert sorted(seen) == [(t, 42) for t in range(threads)]
    idents = dict.fromkeys(range(threads), 0)
    team.run(lambda t: idents.update({t: threading.get_ident()}))
    assert idents[0] == threading.get_ident()
    assert len(set(idents.values())) == threads
    team.close()


def test_a_run_may_take_fewer_threads_and_the_others_sleep_on() -> None:
    team = Team(5)
    for count in (1, 3, 2, 5, 4, 1):
        seen: list[int] = []
        team.run(seen.append, threads=count)
        assert sorted(seen) == list(range(count))
    team.close()


def test_a_run_on_one_thread_starts_none() -> None:
    before = set(threading.enumerate())
    team = Team(5)
    team.run(lambda t: None, threads=1)
    assert new_threads(before) == []


def test_all_numbers_run_at_the_same_time() -> None:
    meeting = threading.Barrier(5, timeout=PATIENCE)
    team = Team(5)
    team.run(lambda t: meeting.wait())  # fails if a thread starts only after another has returned
    team.close()


def test_threads_start_at_the_first_run_and_are_used_again() -> None:
    before = set(threading.enumerate())
    team = Team(4)
    assert new_threads(before) == []
    idents: list[dict[int, int]] = []
    for _ in range(3):
        idents.append({})
        team.run(lambda t: idents[-1].update({t: threading.get_ident()}))
    assert idents[0] == idents[1] == idents[2]
    assert len(new_threads(before)) == 3
    team.close()


def test_close_ends_the_threads_and_a_later_run_starts_new_ones() -> None:
    before = set(threading.enumerate())
    team = Team(3)
    team.close()  # no threads yet
    for _ in range(2):
        seen: list[int] = []
        team.run(seen.append)
        assert sorted(seen) == [0, 1, 2]
        threads = new_threads(before)
        assert len(threads) == 2
        team.close()
        assert all_end(threads)
    team.close()


def test_threads_end_with_the_team() -> None:
    before = set(threading.enumerate())
    team = Team(4)
    team.run(lambda t: None)
    threads = new_threads(before)
    assert len(threads) == 3
    del team
    gc.collect()
    assert all_end(threads)


def test_sleeping_threads_keep_nothing_alive() -> None:
    class Large:
        pass

    team = Team(4)
    large = Large()
    there = weakref.ref(large)
    team.run(lambda t, what: None, large)
    del large
    end = time.monotonic() + PATIENCE  # threads report before they drop references
    while there() is not None and time.monotonic() < end:
        time.sleep(0.001)
    assert there() is None
    team.close()


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_error_of_any_thread_is_raised_when_all_have_returned(failing: int) -> None:
    team = Team(4)
    returned: list[int] = []

    def work(t: int) -> None:
        if t == failing:
            raise ValueError(f"from {t}")
        time.sleep(0.1)
        returned.append(t)

    with pytest.raises(ValueError, match=f"^from {failing}$"):
        team.run(work)
    assert sorted(returned) == [t for t in range(4) if t != failing]
    seen: list[int] = []
    team.run(seen.append)  # the failed run does not affect the next
    assert sorted(seen) == [0, 1, 2, 3]
    team.close()


def test_of_many_errors_one_is_raised_once() -> None:
    team = Team(4)

    def work(t: int) -> None:
        raise ValueError(f"from {t}")

    with pytest.raises(ValueError, match=r"^from \d$"):
        team.run(work)
    team.run(lambda t: None)
    team.close()


def test_a_thread_that_cannot_start_is_an_error_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse_second(thread: threading.Thread) -> None:
        if thread.name == "fastmlp-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    team = Team(4)
    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_second)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            team.run(lambda t: None)
    assert all_end(new_threads(before))

    def again() -> list[int]:
        seen: list[int] = []
        team.run(seen.append)
        return sorted(seen)

    assert within_patience(again) == [0, 1, 2, 3]
    team.close()


# ------------------------------------------------------------------------------------------------ Ctrl-C


# These scripts run in child processes, since a failure would hang or interrupt the whole test session.
INTERRUPT_WHILE_WAITING = """
import faulthandler, signal, sys, threading, time
from fastmlp.engines.cpu.threads import Team

faulthandler.dump_traceback_later(100, exit=True)  # prints where the script hangs
late = int(sys.argv[1])
team, main = Team(3), threading.main_thread().ident
for n in range(20):
    interrupted, returned = threading.Event(), []

    def work(t):
        if t == 1:  # the caller waits or executes its own share
            time.sleep(0.01)
            signal.pthread_kill(main, signal.SIGINT)
            interrupted.set()
        elif t == late:
            interrupted.wait(60)
            time.sleep(0.01)
        returned.append(t)

    try:
        team.run(work)
    except KeyboardInterrupt:
        print("interrupted", 1 in returned, 2 in returned)  # thread 0 is interrupted itself
    seen = []
    team.run(seen.append)
    print(*sorted(seen))
"""


@pytest.mark.full
@pytest.mark.parametrize("late", [0, 2])
def test_ctrl_c_while_waiting_waits_on_and_is_raised_then(late: int) -> None:
    assert run_script(INTERRUPT_WHILE_WAITING, str(late)).splitlines() == ["interrupted True True", "0 1 2"] * 20


INTERRUPT_ANYWHERE = """
import faulthandler, random, signal, sys, time
from fastmlp.engines.cpu.threads import Team

faulthandler.dump_traceback_later(110, exit=True)  # prints where the script hangs
inside = False

def interrupt(*_):
    if inside:
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
team, rng, rounds, interrupts = Team(4), random.Random(0), [], 0
team.run(lambda t: None)  # Python's own Thread.start may turn an interrupt into a RuntimeError
end = time.monotonic() + 100
while interrupts < 2000 and time.monotonic() < end:
    done = []
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 4e-4))
    try:
        inside = True
        team.run(lambda t: (sum(range(1000 * t)), done.append(t)))
        inside = False
    except KeyboardInterrupt:
        inside = False
        interrupts += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    rounds.append((done, len(done)))
time.sleep(0.2)
late = sum(len(done) != count for done, count in rounds)
partial = sum(len(set(done) - {0}) not in (0, 3) for done, _ in rounds)
print(interrupts, late, partial)
"""


@pytest.mark.full
def test_one_ctrl_c_at_any_moment_neither_hangs_nor_returns_early() -> None:
    assert run_script(INTERRUPT_ANYWHERE).split() == ["2000", "0", "0"]


# ------------------------------------------------------------------------------------------------ engines


def make_spec(threads: int, sizes: tuple[int, ...] = (13, 21, 9, 5), batch: int = 7) -> EngineSpec:
    network = Network(sizes, ["relu", *["linear"] * (len(sizes) - 3)])
    return EngineSpec(network, Optimizer("sgd"), batch_size=batch, seed=3, threads=threads)


def course_of(spec: EngineSpec, seed: int = 0) -> Course:
    return make_course(spec.network, rows=30, batch=spec.batch_size, seed=seed)


def trained(spec: EngineSpec, seed: int = 0) -> Any:
    """Return the state and the row metrics after a short training run."""
    return run_course("numba", spec, start_state(spec), course_of(spec, seed))


@pytest.mark.usefixtures("eager_threads")
def test_more_threads_than_cores_and_rows_give_the_same_bits_in_time() -> None:
    assert NumbaEngine(make_spec(16)).threads == cpu.tuner_for(16, 1, 1).next() == 16
    alone = trained(make_spec(1))
    for threads in (2, 5, 16):
        assert same_bits(within_patience(lambda threads=threads: trained(make_spec(threads))), alone)


@pytest.mark.usefixtures("eager_threads")
def test_engines_train_at_the_same_time() -> None:
    specs = [make_spec(2), make_spec(3, (6, 17, 40, 3), 16)]
    alone = [[trained(spec, seed) for seed in range(6)] for spec in specs]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(lambda spec=spec: [trained(spec, seed) for seed in range(6)]) for spec in specs]
        together = [future.result(PATIENCE) for future in waiting]
    assert same_bits(tuple(map(tuple, together)), tuple(map(tuple, alone)))
    assert not same_bits(alone[0][0], alone[0][1])


@pytest.mark.usefixtures("eager_threads")
def test_many_callers_of_one_engine_get_what_one_gets() -> None:
    spec = make_spec(2)
    engine = NumbaEngine(spec)
    engine.load(start_state(spec))
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(rows, 13)).astype(np.float32) for rows in (1, 3, 8, 17, 40, 64, 90, 200)]
    alone = [engine.forward(x) for x in inputs]
    start = threading.Barrier(len(inputs))

    def repeat(x: Any) -> list[Any]:
        start.wait(PATIENCE)
        return [engine.forward(x) for _ in range(20)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        waiting = [pool.submit(repeat, x) for x in inputs]
        found = [future.result(PATIENCE) for future in waiting]
    assert all(same_bits(z, one) for many, one in zip(found, alone, strict=True) for z in many)
    engine.close()


@pytest.mark.usefixtures("eager_threads")
@pytest.mark.parametrize("closed", [True, False])
def test_an_engine_leaves_no_threads_behind(closed: bool) -> None:
    before = set(threading.enumerate())
    spec = make_spec(4)
    engine = NumbaEngine(spec)
    engine.load(start_state(spec))
    engine.train(*course_of(spec))
    threads = new_threads(before)
    assert len(threads) == 3
    if closed:
        engine.close()
    else:
        del engine
        gc.collect()
    assert all_end(threads)
