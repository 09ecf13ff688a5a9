"""What threads share words with: atomic addition, publishing stores, pauses. The threads are real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numba import njit

from fastmlp.cpu_simd import atomic_load, atomic_store, fetch_add, pause, yield_core


def in_threads(count: int, function: Callable[[int], None]) -> None:
    """function(t) in `count` threads at once; fails if one does not return."""
    threads = [threading.Thread(target=function, args=(t,), daemon=True) for t in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_fetch_add_gives_every_ticket_once() -> None:
    threads, seconds = 4, 0.3  # so long that some run at the same time, even on a busy machine

    @njit(nogil=True)
    def draw(at, stop):
        """Draw tickets until told to stop: how many, and their sum modulo 2^64; -1 if they do not rise."""
        count, total, last = 0, 0, -1
        while atomic_load(stop) == 0:
            ticket = fetch_add(at, 1)
            if ticket <= last:
                return -1, 0
            count, total, last = count + 1, total + ticket, ticket
        return count, total

    words = np.zeros(32, np.int64)
    at, stop = words.ctypes.data, words[16:].ctypes.data
    words[16] = 1
    assert draw(at, stop) == (0, 0)  # compiles
    words[16] = 0
    drawn = []
    timer = threading.Timer(seconds, lambda: words.__setitem__(16, 1))
    timer.start()
    in_threads(threads, lambda t: drawn.append(draw(at, stop)))
    timer.join()
    counts, totals = zip(*drawn, strict=True)
    assert min(counts) > 1000
    assert sum(counts) == words[0]
    assert sum(totals) % 2**64 == (int(words[0]) * (int(words[0]) - 1) // 2) % 2**64


def test_a_stored_word_publishes_what_was_written_before_it() -> None:
    rounds = 20_000

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
