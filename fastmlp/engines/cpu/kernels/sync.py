"""Synchronisation: work sharing between the threads of a step, and access to the interpreter between engines.

Work sharing: the tasks of a phase are divided in order into one share per thread, and each share has a word with the number of
the phase and the next ticket. A thread claims tasks of its own share, then of the others. The thread that finishes the last
task of a phase opens the next.

Interpreter: only one thread of a process can run Python at a time, and a thread that finds the interpreter lock taken sleeps;
waking it takes longer than the Python code between two kernels of a short epoch. So a thread that leaves a kernel first spins
inside it until its turn, which a word of the process records. A turn ends when that thread enters its next kernel. Turns are
advisory: a thread that has waited too long continues, and the interpreter lock still protects Python.
"""

from __future__ import annotations

import numpy as np

from fastmlp.engines.cpu.codegen.compiler import compiled
from fastmlp.engines.cpu.codegen.intrinsics import atomic_load, atomic_store, fetch_add, pause, swap_if, yield_core

# Words of `shared`: the phase, its finished tasks, the address of the word with the current turn (0: does not take turns), the
# caller's id there, and from SHARES on one word per thread; words that change are on separate cache lines.
PHASE, DONE, TURN, CALLER, SHARES = 0, 8, 16, 17, 24
STRIDE = 8
TICKETS = 32  # the low bits of a share's word hold the ticket, the high ones the phase
SPINS = 2000  # pauses before a waiting thread yields its core to another, about 50 microseconds
TURN_OFFERS = 500  # such yields before a thread goes ahead without its turn, some tenths of a millisecond in all


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
    """Report `done` finished tasks; True for the thread that reports the last one, which must then open the next phase.

    The atomic add makes what every thread wrote in the phase visible to this one.
    """
    return done > 0 and fetch_add(shared + 8 * DONE, done) == tasks - done


@compiled
def open_phase(shared, threads, phase):
    """Open a phase: the releases make all earlier writes visible to threads that claim its tasks."""
    atomic_store(shared + 8 * DONE, 0)
    for t in range(threads):
        atomic_store(shared + 8 * (SHARES + STRIDE * t), phase << TICKETS)
    atomic_store(shared + 8 * PHASE, phase)


@compiled
def spin(spins):
    """One iteration of a waiting loop: pause, and yield the core after many pauses; returns the number of iterations."""
    pause()
    if spins >= SPINS:
        yield_core()
    return spins + 1


@compiled
def wait_for_end_of(shared, phase):
    """Wait until `phase` has ended and another phase is open."""
    spins = np.int64(0)  # a literal would be compiled once more
    while atomic_load(shared + 8 * PHASE) == phase:
        spins = spin(spins)


@compiled
def end_turn(shared):
    """End the caller's turn, if it has one, so that another thread may run Python."""
    word = atomic_load(shared + 8 * TURN)
    if word:
        swap_if(word, atomic_load(shared + 8 * CALLER), 0)


@compiled
def await_turn(shared):
    """Wait until it is the caller's turn to run Python, or until the limit."""
    word, caller = atomic_load(shared + 8 * TURN), atomic_load(shared + 8 * CALLER)
    if not word:
        return
    spins = np.int64(0)
    while atomic_load(word) or not swap_if(word, 0, caller):  # reading alone does not invalidate the cache line of others
        if spins == SPINS + TURN_OFFERS:
            atomic_store(word, caller)
            return
        spins = spin(spins)
