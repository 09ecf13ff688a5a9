"""Tests of the choice of a number of threads, with simulated durations; results must not depend on the choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from support.cpu import fused_job
from support.engines import make_course, run_course, same_bits, start_state

from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.plan import MOST_ROWS
from fastmlp.engines.cpu.threads import LEAST_FLOPS, LEAST_ROWS, MUCH_FLOPS, SURE_FLOPS, TRIALS_SHARE, ThreadTuner, tuner_for
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

GOOD, BAD = {1: 1.0, 2: 0.65}, {1: 1.0, 2: 1.5}  # seconds per call by number of threads, on an idle and on a busy machine


def counts_of(tuner: ThreadTuner, seconds: Callable[[int, int], float], calls: int) -> list[int]:
    """Return the numbers of threads that the tuner chooses for `calls` calls, which take seconds(call, threads) each."""
    counts = []
    for call in range(calls):
        counts.append(tuner.next())
        tuner.record(counts[-1], seconds(call, counts[-1]))
    return counts


def total(counts: list[int], seconds: Mapping[int, float]) -> float:
    return sum(seconds[count] for count in counts)


@pytest.mark.parametrize(("seconds", "best"), [(GOOD, 2), (BAD, 1)], ids=["good", "bad"])
def test_two_threads_are_taken_where_they_are_faster(seconds: dict[int, float], best: int) -> None:
    counts = counts_of(ThreadTuner(2), lambda call, threads: seconds[threads], 500)
    assert counts[:2] == [2, 2]
    assert set(counts) == {1, 2}
    assert counts[3:].count(best) >= 0.95 * len(counts[3:])
    assert total(counts, seconds) <= 1.03 * seconds[best] * len(counts)


def test_a_machine_that_changes_is_followed() -> None:
    """The tuner reacts at once if two threads become slower, and at the next trial if they become faster."""

    def seconds(call: int, threads: int) -> float:
        return (BAD if 200 <= call < 400 else GOOD)[threads]

    counts = counts_of(ThreadTuner(2), seconds, 700)
    first = next(call for call in range(200, 400) if counts[call] == 2)  # a slow call
    assert counts[first : first + 4] == [2, 1, 1, 1]
    back = next(call for call in range(400, 700) if counts[call : call + 3] == [2, 2, 2])
    assert back <= 400 + (BAD[2] / BAD[1] - 1) / TRIALS_SHARE + 2
    assert counts[back:].count(2) >= 0.9 * (700 - back)


@pytest.mark.parametrize("best", [1, 2, 4, 8, 12])
def test_the_best_of_many_threads_is_found(best: int) -> None:
    seconds = {count: abs(math.log2(count / best)) + 1 for count in (1, 2, 4, 8, 12)}
    counts = counts_of(ThreadTuner(12), lambda call, threads: seconds[threads], 1000)
    assert counts[30:].count(best) >= 0.96 * len(counts[30:])


@pytest.mark.parametrize("then", [1, 2, 8, 16])
def test_fewer_and_more_are_tried(then: int) -> None:
    """The tuner finds the best number of threads again after it changes from 4 to a smaller or larger number."""
    counts = counts_of(ThreadTuner(16), lambda call, threads: 1 + abs(math.log2(threads / (4 if call < 100 else then))), 600)
    assert counts[40:100].count(4) >= 50
    assert counts[300:].count(then) >= 0.9 * 300


@pytest.mark.parametrize(("seconds", "best"), [(GOOD, 2), (BAD, 1)], ids=["good", "bad"])
def test_calls_that_something_else_delays_cost_little(seconds: dict[int, float], best: int) -> None:
    """Noise costs at most 10 %: one call in thirty takes three times as long, and all durations vary by up to 5 %."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.95, 1.05, 3000) * np.where(rng.random(3000) < 1 / 30, 3, 1)
    counts = counts_of(ThreadTuner(2), lambda call, threads: seconds[threads] * noise[call], 3000)
    assert total(counts, seconds) <= 1.1 * seconds[best] * len(counts)


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_trials_that_cost_much_are_rare(jitter: float) -> None:
    """Two threads are tried rarely if they take ten times as long as one, with constant and with varying durations."""
    rng, seconds = np.random.default_rng(0), {1: 1.0, 2: 10.0}
    counts = counts_of(ThreadTuner(2), lambda call, threads: seconds[threads] * (1 + jitter * rng.random()), 5000)
    assert 2 in counts[5:]
    assert total(counts[5:], seconds) <= (1.025 if jitter == 0 else 1.06) * len(counts[5:])


def test_no_number_below_the_fewest_is_tried() -> None:
    assert set(counts_of(ThreadTuner(8, fewest=8), lambda call, threads: 1.0 + call % 7, 100)) == {8}
    assert set(counts_of(ThreadTuner(8, fewest=4), lambda call, threads: threads, 100)) == {4, 8}
    assert set(counts_of(ThreadTuner(1), lambda call, threads: 1.0 + call % 7, 100)) == {1}


def test_large_steps_take_all_threads_untried() -> None:
    tried, sure = (tuner_for(2, LEAST_ROWS * 2, flops) for flops in (SURE_FLOPS * 2 - 1, SURE_FLOPS * 2))
    assert (tried.most, tried.fewest) == (2, 1)
    assert (sure.most, sure.fewest) == (2, 2)
    assert tuner_for(2, LEAST_ROWS * 2, LEAST_FLOPS * 2).most == tuner_for(2, 1, MUCH_FLOPS * 2).most == 2
    assert tuner_for(2, LEAST_ROWS * 2, LEAST_FLOPS * 2 - 1).most == 1


def test_a_clock_that_stands_still_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measured duration of zero is no error, since some clocks have a resolution of microseconds."""
    monkeypatch.setattr("fastmlp.engines.cpu.threads.time.perf_counter", lambda: 5.0)
    tuner, counts = ThreadTuner(2), []
    for _ in range(20):
        counts.append(tuner.next())
        tuner.begin()
        tuner.end(counts[-1], 10)
    assert set(counts) == {1, 2}


# ------------------------------------------------------------------------------------------------ in the engine


@dataclasses.dataclass
class Script:
    """A fake tuner that cycles through a list of numbers of threads and records its calls."""

    counts: list[int]
    recorded: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def next(self) -> int:
        return self.counts[len(self.recorded) % len(self.counts)]

    def begin(self) -> None:
        pass

    def end(self, threads: int, rows: int) -> None:
        self.recorded.append((threads, rows))


@pytest.mark.parametrize("tail", [0, 10**9], ids=["by columns", "by rows"])
def test_threads_that_change_from_call_to_call_change_no_bit(tail: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.engines.cpu.plan.TAIL_WEIGHTS", tail)
    spec = fused_job((13, 70, 21, 3), batch_size=50, threads=5)
    course = make_course(spec.network, rows=150, batch=50, epochs=1, rate=0.01)
    state, engine, script = start_state(spec), NumbaEngine(spec), Script([5, 2, 1, 3])
    monkeypatch.setattr(engine, "tuner_of", lambda *call: script)
    engine.load(state)
    for _ in range(6):
        results, z = engine.train(*course), engine.forward(course.x)
        state, wanted = run_course("numba", dataclasses.replace(spec, threads=1), state, course)
        assert same_bits(results, wanted)
        assert same_bits(engine.state(), state)
        alone = NumbaEngine(dataclasses.replace(spec, threads=1))
        alone.load(state)
        assert same_bits(z, alone.forward(course.x))
        alone.close()
    assert script.recorded == [(threads, 150) for threads in [5, 2, 1, 3] * 3]
    assert {count: len(layout.plan.shares[0]) - 1 for count, layout in engine.layouts.items()} == {5: 5, 1: 1}
    engine.close()


def test_a_second_thread_is_not_woken_for_one_block_of_rows() -> None:
    network = Network((64, 64, 10))
    engine = NumbaEngine(EngineSpec(network, Optimizer("sgd"), threads=2))
    engine.load(start_state(engine.spec))
    for rows in (0, MOST_ROWS, MOST_ROWS + 1):
        engine.forward(np.zeros((rows, 64), np.float32))
    assert {(rows, most): tuner.most for (_, rows, most), tuner in engine.tuners.items()} == {(0, 1): 1, (7, 1): 1, (7, 2): 2}
    engine.close()


def test_an_engine_asks_trials_of_calls_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and prediction, and long and short calls, have separate tuners; durations are in seconds per row."""
    heard: list[tuple[int, float]] = []
    clock = iter(np.arange(1000.0))
    record = ThreadTuner.record

    def noted(tuner: ThreadTuner, threads: int, seconds: float) -> None:
        heard.append((threads, seconds))
        record(tuner, threads, seconds)

    monkeypatch.setattr("fastmlp.engines.cpu.threads.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(ThreadTuner, "record", noted)
    network = Network((64, 64, 10))
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=64, threads=2)
    engine = NumbaEngine(spec)
    engine.load(start_state(spec))
    whole: Any = make_course(network, rows=512, batch=64, epochs=1, rate=0.01)
    short = whole._replace(indices=whole.indices[:128], learning_rates=whole.learning_rates[:2])
    for _ in range(3):
        engine.train(*whole)
        engine.train(*short)
    engine.forward(whole.x)
    engine.forward(whole.x[:1])
    two, one = [(2, 1 / 512), (2, 1 / 128)], [(1, 1 / 512), (1, 1 / 128)]
    assert heard == [*two, *two, *one, (2, 1 / 512), (1, 1.0)]
    assert sorted(engine.tuners) == [("forward", 1, 1), ("forward", 10, 2), ("train", 8, 2), ("train", 10, 2)]
    engine.close()
