"""Tests of benchmarks/promises.py, which times calls and measures the largest of many time ratios a second time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import promises

ROUNDS = 3
ALL_CALLS = 5 * (ROUNDS + 1)  # number of calls in the first measurement, including the warm-up


class Clock:
    """Simulated clock.

    `call` returns a function whose calls take these times in seconds, one after another; the last time applies to all further
    calls.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def call(self, *lengths: float) -> Callable[[], None]:
        left = list(lengths)

        def tick() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return tick


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(promises.time, "perf_counter", lambda: made.now)
    return made


def test_ratios_have_a_median_and_a_range(clock: Clock) -> None:
    assert promises.ratios(clock.call(3, 1, 4), clock.call(2), 3) == {"value": 1.5, "least": 0.5, "most": 2.0}


def test_the_worst_ratio_is_one_that_is_slow_twice(clock: Clock) -> None:
    """The pair that is slower in both measurements is returned, although two others were slower in the first one."""
    pairs = {f"unlucky {i}": [clock.call(*[1.2] * ALL_CALLS, 1.0), clock.call(1)] for i in range(2)}
    pairs |= {f"quick {i}": [clock.call(0.5), clock.call(1)] for i in range(4)} | {"slow": [clock.call(1.06), clock.call(1)]}
    assert promises.worst_of(pairs, ROUNDS) == ("slow", pytest.approx(1.06))


def test_a_ratio_that_is_slow_only_once_does_not_count(clock: Clock) -> None:
    pairs = {"unlucky": [clock.call(*[1.2] * ALL_CALLS, 1.0), clock.call(1)], "even": [clock.call(1), clock.call(1)]}
    assert promises.worst_of(pairs, ROUNDS)[1] == 1


def test_the_first_round_and_the_first_call_of_each_are_warm_up(clock: Clock) -> None:
    slow_start = [9.0] * 5
    assert promises.ratio_of_sums(clock.call(1), clock.call(9.0, 1.0)) == 1
    assert promises.medians_in_turn({"a": [clock.call(*slow_start, 1.0), clock.call(1)]}, 1) == {"a": 1}
