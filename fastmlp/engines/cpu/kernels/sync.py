"""Synchronization: work stealing between the threads of a step, and turns at running Python between engines.

Work stealing: the tasks of a phase are divided in order into one queue per thread. Each queue is a single integer, which
contains the number of the phase and the number of tasks already claimed. A thread first claims the tasks of its own queue,
then those of the other queues. The thread that finishes the last task of a phase opens the next phase.

Turns: because of the GIL, only one thread of a process can run Python at a time. A thread that finds the GIL taken sleeps, and
waking it takes longer than the Python code between two kernels of a short epoch. If several threads train networks at the
same time, a thread that has finished a kernel therefore spins inside the kernel until it is its turn to run Python. A variable
of the process stores the id of the thread whose turn it is. The turn ends when this thread enters its next kernel. Turns only
improve speed: a thread that has waited too long continues without its turn, and the GIL still protects Python.
"""

from __future__ import annotations

import numpy as np

from fastmlp.engines.cpu.codegen.compiler import compiled
from fastmlp.engines.cpu.codegen.intrinsics import atomic_load, atomic_store, fetch_add, pause, swap_if, yield_core

# Elements of the int64 array `shared`:
# PHASE: number of the current phase; DONE: number of its finished tasks
# TURN: address of the process-wide variable with the id of the thread whose turn it is, or 0 if the call does not take turns
# CALLER: id of the calling thread
# SHARES: first of the task queues, one per thread, STRIDE elements apart
# Elements that change during a call are on separate cache lines.
PHASE, DONE, TURN, CALLER, SHARES = 0, 8, 16, 17, 24
STRIDE = 8
TICKETS = 32  # the low 32 bits of a queue contain the number of claimed tasks, the high bits the phase
SPINS = 2000  # spin-wait iterations before a waiting thread starts to yield its core, about 50 microseconds
TURN_OFFERS = 500  # yields before a thread continues without its turn, a few tenths of a millisecond in all


@compiled
def claim(shared, share, phase, tasks):
    """Claim the next task of queue `share`, which has `tasks` tasks, and return its index in the queue.

    Returns -1 if all tasks of the queue are claimed or if the phase is over.
    """
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
    """Report `done` finished tasks. Return True if no task of the phase is left; the caller must then open the next phase.

    The atomic addition makes everything that the threads wrote in this phase visible to the thread that reports the last task.
    """
    return done > 0 and fetch_add(shared + 8 * DONE, done) == tasks - done


@compiled
def open_phase(shared, threads, phase):
    """Open a phase. The release stores make all earlier writes visible to the threads that claim tasks of the phase."""
    atomic_store(shared + 8 * DONE, 0)
    for t in range(threads):
        atomic_store(shared + 8 * (SHARES + STRIDE * t), phase << TICKETS)
    atomic_store(shared + 8 * PHASE, phase)


@compiled
def spin(spins):
    """Do one spin-wait iteration: pause, and also yield the core after SPINS iterations. Return spins + 1."""
    pause()
    if spins >= SPINS:
        yield_core()
    return spins + 1


@compiled
def wait_for_end_of(shared, phase):
    """Wait until `phase` has ended and the next phase is open."""
    spins = np.int64(0)  # a literal has a type of its own, for which `spin` would be compiled again
    while atomic_load(shared + 8 * PHASE) == phase:
        spins = spin(spins)


@compiled
def end_turn(shared):
    """End the turn of the calling thread, if it is its turn, so that another thread may run Python."""
    word = atomic_load(shared + 8 * TURN)
    if word:
        swap_if(word, atomic_load(shared + 8 * CALLER), 0)


@compiled
def await_turn(shared):
    """Wait until it is the calling thread's turn to run Python, or until TURN_OFFERS yields have been made."""
    word, caller = atomic_load(shared + 8 * TURN), atomic_load(shared + 8 * CALLER)
    if not word:
        return
    spins = np.int64(0)
    while atomic_load(word) or not swap_if(word, 0, caller):  # a read, unlike a swap, leaves the cache line shared
        if spins == SPINS + TURN_OFFERS:
            atomic_store(word, caller)
            return
        spins = spin(spins)
