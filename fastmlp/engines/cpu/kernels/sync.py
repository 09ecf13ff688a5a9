"""How threads share the tasks of a step, and how engines share the interpreter: claims, phases, turns.

How threads share work: the tasks of a phase are shared out in order, a share for each thread, and each share has a word that
holds the number of the phase and the next ticket. A thread claims tasks of its own share, then helps with the others'.
Whoever finishes the last task of a phase opens the next.

How engines share the interpreter: only one thread of a process can run Python at a time, and one that finds the interpreter's
lock taken sleeps; being woken takes longer than many an epoch of Python between two kernels. So a thread that leaves a kernel
first waits inside, spinning, for its turn: a word of the whole process holds which thread's it is. A turn ends with that
thread's next kernel. It is advice and no lock: who has waited too long goes ahead, and the interpreter's own lock keeps order.
"""

from __future__ import annotations

import numpy as np

from fastmlp.engines.cpu.codegen.compiler import compiled
from fastmlp.engines.cpu.codegen.intrinsics import atomic_load, atomic_store, fetch_add, pause, swap_if, yield_core

# Words of `shared`: the phase, its finished tasks, the address of the word that tells whose turn it is (0: takes no part) and
# the caller's name there, and from SHARES on a word for each thread; those that change on cache lines of their own.
PHASE, DONE, TURN, CALLER, SHARES = 0, 8, 16, 17, 24
STRIDE = 8
TICKETS = 32  # the low bits of a share's word hold the ticket, the high ones the phase
SPINS = 2000  # pauses before a waiting thread offers its core to another, about 50 microseconds
TURN_OFFERS = 500  # such offers before a thread goes ahead without its turn, some tenths of a millisecond in all


@compiled
def claim(shared, share, phase, tasks):
    """The next ticket of a share of `tasks` tasks, or -1 if there is none left or the phase is over."""
    at = shared + 8 * (SHARES + STRIDE * share)
    while True:
        word = atomic_load(at)
        ticket = word & ((1 << TICKETS) - 1)
        if word >> TICKETS != phase or ticket >= tasks:
            return -1
        if swap_if(at, word, word + 1):
            return ticket


@compiled
def last_of_phase(shared, done, tasks):
    """Report `done` finished tasks; True to the thread that reports the last of all, which must then open the next phase.

    The atomic add makes what every thread wrote in the phase visible to this one.
    """
    return done > 0 and fetch_add(shared + 8 * DONE, done) == tasks - done


@compiled
def open_phase(shared, threads, phase):
    """Open a phase: the releases make all that was written before visible to whoever claims a task in it."""
    atomic_store(shared + 8 * DONE, 0)
    for t in range(threads):
        atomic_store(shared + 8 * (SHARES + STRIDE * t), phase << TICKETS)
    atomic_store(shared + 8 * PHASE, phase)


@compiled
def spin(spins):
    """One more turn of a loop that waits: a pause, and after many the core is offered to others; how many there were."""
    pause()
    if spins >= SPINS:
        yield_core()
    return spins + 1


@compiled
def wait_for_end_of(shared, phase):
    """Wait until another phase is open."""
    spins = np.int64(0)  # a literal would be compiled once more
    while atomic_load(shared + 8 * PHASE) == phase:
        spins = spin(spins)


@compiled
def end_turn(shared):
    """Let another thread have the interpreter, if it was the caller's turn."""
    word = atomic_load(shared + 8 * TURN)
    if word:
        swap_if(word, atomic_load(shared + 8 * CALLER), 0)


@compiled
def await_turn(shared):
    """Wait until it is the caller's turn to run Python, or for too long."""
    word, caller = atomic_load(shared + 8 * TURN), atomic_load(shared + 8 * CALLER)
    if not word:
        return
    spins = np.int64(0)
    while atomic_load(word) or not swap_if(word, 0, caller):  # who only looks does not disturb the others
        if spins == SPINS + TURN_OFFERS:
            atomic_store(word, caller)
            return
        spins = spin(spins)
