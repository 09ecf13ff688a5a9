"""Thread synchronization, tested with real threads: atomic operations, release stores, task claims and turns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit

from fastmlp.engines.cpu.codegen.compiler import compiled
from fastmlp.engines.cpu.codegen.intrinsics import atomic_load, atomic_store, fetch_add, pause, swap_if, yield_core
from fastmlp.engines.cpu.kernels.sync import (
    CALLER,
    DONE,
    PHASE,
    SHARES,
    STRIDE,
    TICKETS,
    TURN,
    await_turn,
    claim,
    end_turn,
    last_of_phase,
    open_phase,
    wait_for_end_of,
)
from fastmlp.engines.kernel_cache import with_globals

THREADS = 4
DRAWN = 1_000_000  # tickets per thread; enough that the threads collide


def in_threads(count: int, function: Callable[[int], None]) -> None:
    """Call function(t) in `count` threads that start at the same time; fail if one does not return."""
    start = threading.Barrier(count)

    def begin(t: int) -> None:
        start.wait(60)
        function(t)

    threads = [threading.Thread(target=begin, args=(t,), daemon=True) for t in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_fetch_add_gives_every_ticket_once() -> None:
    @njit(nogil=True)
    def draw(at, count):
        """Draw `count` tickets; return their sum, or -1 if they are not strictly increasing."""
        total, last = 0, -1
        for _ in range(count):
            ticket = fetch_add(at, 1)
            if ticket <= last:
                return -1
            total, last = total + ticket, ticket
        return total

    words = np.zeros(16, np.int64)
    assert draw(words.ctypes.data, 0) == 0  # compiles
    totals: list[int] = []
    in_threads(THREADS, lambda t: totals.append(draw(words.ctypes.data, DRAWN)))
    drawn = THREADS * DRAWN
    assert words[0] == drawn
    assert min(totals) > 0
    assert sum(totals) == drawn * (drawn - 1) // 2


@njit
def swap(at, expected, new):
    return swap_if(at, expected, new)


def test_swap_if_changes_only_what_it_expects() -> None:
    words = np.array([5, 6, 7], np.int64)
    at = words[1:].ctypes.data
    assert not swap(at, 5, 8)
    assert words.tolist() == [5, 6, 7]
    assert swap(at, 6, -(2**40))
    assert words.tolist() == [5, -(2**40), 7]
    assert not swap(at, -(2**40) & 0xFFFFFFFF, 1)  # all 64 bits are compared
    assert words.tolist() == [5, -(2**40), 7]


def test_a_stored_word_publishes_what_was_written_before_it() -> None:
    rounds = 2_000

    @njit(nogil=True)
    def send(to, back, data):
        for i in range(1, rounds + 1):
            data[0] = i
            data[64] = -i
            atomic_store(to, i)
            while atomic_load(back) != i:
                pause()
                yield_core()

    @njit(nogil=True)
    def receive(to, back, data):
        wrong = 0
        for i in range(1, rounds + 1):
            while atomic_load(to) != i:
                pause()
                yield_core()
            wrong += (data[0] != i) + (data[64] != -i)
            atomic_store(back, i)
        return wrong

    words, data = np.zeros(32, np.int64), np.zeros(65, np.int64)
    ends = words.ctypes.data, words[16:].ctypes.data
    wrong = []
    sides = [lambda: send(*ends, data), lambda: wrong.append(receive(*ends, data))]
    in_threads(2, lambda t: sides[t]())
    assert wrong == [0]
    assert words[[0, 16]].tolist() == [rounds, rounds]


def test_pause_and_yield_return() -> None:
    @njit(nogil=True)
    def rest(n):
        for _ in range(n):
            pause()
            yield_core()
        return n

    assert rest(1000) == 1000


# ------------------------------------------------------------------------------------------------ claims


def shared_words(threads: int = THREADS) -> Any:
    return np.zeros(SHARES + STRIDE * threads, np.int64)


@njit(nogil=True)
def claim_one(shared, share, phase, tasks):
    return claim(shared, share, phase, tasks)


@njit(nogil=True)
def open_one(shared, threads, phase):
    open_phase(shared, threads, phase)


def test_tickets_of_a_share_come_in_order_and_end() -> None:
    words = shared_words()
    open_one(words.ctypes.data, THREADS, 3)
    assert [claim_one(words.ctypes.data, 1, 3, 4) for _ in range(7)] == [0, 1, 2, 3, -1, -1, -1]
    assert [claim_one(words.ctypes.data, 2, 3, 2) for _ in range(3)] == [0, 1, -1]  # each share has its own tickets
    assert claim_one(words.ctypes.data, 0, 3, 0) == -1  # an empty share
    assert words[PHASE] == 3


def test_a_claim_in_another_phase_gets_nothing_and_takes_nothing() -> None:
    words = shared_words()
    open_one(words.ctypes.data, THREADS, 7)
    before = words.copy()
    for stale in (0, 6, 8, 2**30):
        assert claim_one(words.ctypes.data, 1, stale, 4) == -1
    assert np.array_equal(words, before)
    assert claim_one(words.ctypes.data, 1, 7, 4) == 0


@pytest.mark.parametrize("phase", [1, 2**31 - 1])
def test_opening_a_phase_gives_every_share_its_tickets_again(phase: int) -> None:
    words = shared_words()
    for now in (phase - 1, phase):
        open_one(words.ctypes.data, THREADS, now)
        assert (words[PHASE], words[DONE]) == (now, 0)
        for share in range(THREADS):
            assert [claim_one(words.ctypes.data, share, now, 2) for _ in range(3)] == [0, 1, -1]
    assert not words[[i for i in range(len(words)) if i % STRIDE]].any()  # unused words of cache lines
    assert words[SHARES] >> TICKETS == phase


@njit(nogil=True)
def work_through(t, threads, phases, sizes, shared, claimed, opened):
    """Run phases like a thread of the engine; count the claims of each ticket, and how often each phase is opened."""
    tasks = 0
    for size in sizes:
        tasks += size
    while True:
        now = atomic_load(shared + 8 * PHASE)
        if now >= phases:
            return
        done = 0
        for turn in range(threads):
            share = (t + turn) % threads
            while True:
                ticket = claim(shared, share, now, sizes[share])
                if ticket < 0:
                    break
                claimed[now, share, ticket] += 1  # not atomic, since no other thread may have this ticket
                done += 1
        if last_of_phase(shared, done, tasks):
            opened[now] += 1
            open_phase(shared, threads, now + 1)
        else:
            wait_for_end_of(shared, now)


def test_each_task_of_each_phase_is_claimed_once_and_each_phase_opened_once() -> None:
    phases, sizes = 3000, np.array([5, 0, 17, 2])
    words = shared_words()
    opened = np.zeros(phases, np.int64)
    claimed = np.zeros((phases, THREADS, sizes.max()), np.int64)
    work_through(0, THREADS, 0, sizes, words.ctypes.data, claimed, opened)  # compiles
    in_threads(THREADS, lambda t: work_through(t, THREADS, phases, sizes, words.ctypes.data, claimed, opened))
    wanted = np.arange(sizes.max()) < sizes[:, None]
    assert (claimed == wanted).all()
    assert (opened == 1).all()
    assert words[PHASE] == phases


def test_claims_give_every_ticket_once() -> None:
    """Threads that claim tickets of one share at the same time receive every ticket exactly once."""
    tasks = THREADS * DRAWN

    @njit(nogil=True)
    def draw(shared, count):
        """Claim `count` tickets; return their sum, or -1 if they are not strictly increasing."""
        total, last = 0, -1
        for _ in range(count):
            ticket = claim(shared, 0, 5, tasks)
            if ticket <= last:
                return -1
            total, last = total + ticket, ticket
        return total

    words = shared_words(1)
    open_one(words.ctypes.data, 1, 5)
    assert draw(words.ctypes.data, 0) == 0  # compiles
    totals: list[int] = []
    in_threads(THREADS, lambda t: totals.append(draw(words.ctypes.data, DRAWN)))
    assert words[SHARES] & ((1 << TICKETS) - 1) == tasks
    assert min(totals) > 0
    assert sum(totals) == tasks * (tasks - 1) // 2
    assert draw(words.ctypes.data, 1) == -1  # no ticket is left


@njit(nogil=True)
def claim_many(shared, share, phases, stop, claimed):
    """Claim tickets of the current phase and, like a delayed thread, of the previous one; count successful late claims."""
    late = 0
    while atomic_load(stop) == 0:
        now = atomic_load(shared + 8 * PHASE)
        late += claim(shared, share, now - 1, 1000) >= 0
        ticket = claim(shared, share, now, 1000)
        if ticket >= 0:
            fetch_add(claimed + 8 * (now * 1000 + ticket), 1)
    return late


def test_under_contention_no_ticket_is_handed_out_twice_and_none_of_a_past_phase() -> None:
    """While one thread opens phases, the others claim tickets of one share; claims for a past phase must fail."""
    phases = 400

    @njit(nogil=True)
    def advance(shared, stop, least):
        """Open the next phase as soon as `least` tickets of the current phase have been claimed."""
        for phase in range(1, phases):
            while atomic_load(shared + 8 * SHARES) & ((1 << TICKETS) - 1) < least:
                pause()
                yield_core()
            open_phase(shared, 1, phase)
        atomic_store(stop, 1)

    words, stop = shared_words(1), np.ones(1, np.int64)
    claimed = np.zeros((phases, 1000), np.int64)
    arguments = words.ctypes.data, 0, phases, stop.ctypes.data, claimed.ctypes.data
    claim_many(*arguments)  # compiles
    late: list[int] = []

    def work(t: int) -> None:
        if t == 0:
            advance(words.ctypes.data, stop.ctypes.data, 20)
        else:
            late.append(claim_many(*arguments))

    advance(words.ctypes.data, stop.ctypes.data, 0)
    words[:], stop[:] = 0, 0
    in_threads(THREADS, work)
    assert late == [0] * (THREADS - 1)
    assert claimed.max() == 1
    assert (claimed.sum(axis=1)[:-1] >= 20).all()  # threads claimed tickets in every phase
    assert (np.diff(claimed, axis=1) <= 0).all()  # tickets are claimed in order, without gaps


# ------------------------------------------------------------------------------------------------ turns


@njit(nogil=True)
def end_one(shared):
    end_turn(shared)


@njit(nogil=True)
def await_one(shared):
    await_turn(shared)


def taking_turns(word: Any, callers: tuple[int, ...] = (1, 2)) -> list[Any]:
    """Return the synchronization words of one engine per caller; the engines take turns through `word`."""
    engines = [shared_words(1) for _ in callers]
    for words, caller in zip(engines, callers, strict=True):
        words[TURN], words[CALLER] = word.ctypes.data, caller
    return engines


def test_a_turn_is_taken_kept_from_others_and_ended_by_its_owner() -> None:
    word = np.zeros(1, np.int64)
    mine, other = taking_turns(word)
    await_one(mine.ctypes.data)
    assert word[0] == mine[CALLER]
    end_one(other.ctypes.data)
    assert word[0] == mine[CALLER]  # only the owner can end a turn
    end_one(mine.ctypes.data)
    assert word[0] == 0
    end_one(mine.ctypes.data)
    assert word[0] == 0


def test_who_waits_too_long_goes_ahead() -> None:
    word = np.zeros(1, np.int64)
    gone, mine = taking_turns(word)
    await_one(gone.ctypes.data)
    await_one(mine.ctypes.data)
    assert word[0] == mine[CALLER]
    end_one(gone.ctypes.data)  # has lost its turn to the other thread
    assert word[0] == mine[CALLER]


def test_engines_of_one_thread_have_one_turn() -> None:
    """Engines called from the same thread share its turn, so they never wait for each other."""
    word = np.zeros(1, np.int64)
    for engine in taking_turns(word, (7, 7)):
        end_one(engine.ctypes.data)
        assert word[0] == 0
        await_one(engine.ctypes.data)
        assert word[0] == 7


def test_an_engine_that_takes_no_turns_neither_waits_nor_writes() -> None:
    words = shared_words(1)
    for call in (end_one, await_one):
        call(words.ctypes.data)
        assert not words.any()


def make_taker(wait: Any) -> Any:
    """Return take(shared, turns).

    It waits for a turn with `wait`, holds it for ten pauses of the processor, and ends it, `turns` times. It returns the number
    of turns that another engine took before they ended.
    """

    @njit(nogil=True)
    def take(shared, turns):
        lost = 0
        for _ in range(turns):
            wait(shared)
            for _ in range(10):
                pause()
            lost += atomic_load(atomic_load(shared + 8 * TURN)) != atomic_load(shared + 8 * CALLER)
            end_turn(shared)
        return lost

    return take


@njit(nogil=True)
def give_away(shared):
    atomic_store(atomic_load(shared + 8 * TURN), -1)


def lost_turns(wait: Any, turns: int) -> int:
    """Return the number of turns lost by two engines that take `turns` turns each at the same time."""
    take, engines, lost = make_taker(wait), taking_turns(np.zeros(1, np.int64)), []
    assert take(engines[0].ctypes.data, 1) == 0  # compiles
    in_threads(2, lambda t: lost.append(take(engines[t].ctypes.data, turns)))
    assert len(lost) == 2
    return sum(lost)


def test_who_waits_without_end_never_takes_a_turn_from_its_owner() -> None:
    code = await_turn.py_func
    endless = compiled(with_globals(code, {**code.__globals__, "TURN_OFFERS": 2**60}))
    assert lost_turns(endless, 200_000) == 0


def test_two_engines_take_turns() -> None:
    """A turn is lost only if the operating system preempts its owner, which happens once in hundreds of turns."""
    engines = taking_turns(np.zeros(1, np.int64))
    assert make_taker(give_away)(engines[0].ctypes.data, 100) == 100  # lost turns are counted
    assert lost_turns(await_turn, 200_000) < 20_000  # without waiting, a quarter to a third are lost on two cores
