"""Threads of the CPU engine: a team that runs one compiled function, and the choice of the number of threads.

These are Python threads that run `nogil` kernels, without OpenMP (a forked child would be killed, and a second runtime in a
process with PyTorch's crashes), without nesting, and without global state.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

# Measured, see benchmarks/NOTES.md. Below these, dispatch to threads always costs more than it saves.
LEAST_ROWS, LEAST_FLOPS = 16, 200_000  # of a step, for each thread
MUCH_FLOPS = 500_000  # of a step, for each thread, that compensate for fewer rows
SURE_FLOPS = 10_000_000  # of a step, for each thread, above which more threads are always faster
# Trials of other numbers of threads: largest fraction of the time they may cost; fewest and most calls between two trials.
TRIALS_SHARE, FEWEST_CALLS, MOST_CALLS = 0.02, 2, 2000
CLOCK_GRAIN = 1e-9  # seconds
SLOWER = 1.2  # ratio to the previous calls above which another number of threads may be better,
WORTH_CALLS = 25  # so that the call counts as this many calls


class TeamRun(NamedTuple):
    """One run of a team: the function, its arguments, and a report of each thread but the caller: its exception, or None.

    The number of reports is the number of threads that have returned. `done` only wakes the caller: Ctrl-C may discard an
    item that was received.
    """

    function: Callable[..., None]
    args: tuple[Any, ...]
    reports: list[BaseException | None]
    done: SimpleQueue[None]

    def wait_for(self, sent: list[None]) -> None:
        """Wait until all threads that were sent the run have reported."""
        while len(self.reports) < len(sent):
            self.done.get()


def available_cores() -> int:
    """Number of cores available to this process, by its affinity and the quota of its control group (Linux, version 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def worthwhile(threads: int, rows: int, flops: int) -> int:
    """Largest number of threads, up to `threads`, that can speed up a step: each needs enough rows or operations."""
    for count in range(threads, 1, -1):
        if (rows >= LEAST_ROWS * count and flops >= LEAST_FLOPS * count) or flops >= MUCH_FLOPS * count:
            return count
    return 1


def tuner_for(threads: int, rows: int, flops: int) -> ThreadTuner:
    """Tuner for steps of so many rows and operations, up to `threads` threads; large steps use all threads without trials."""
    most = worthwhile(threads, rows, flops)
    return ThreadTuner(most, fewest=most if flops >= SURE_FLOPS * most else 1)


class ThreadTuner:
    """Chooses the number of threads of small steps by trials, since dispatch costs vary between machines and over time.

    Calls run on the usual number of threads. Occasionally, and after a call that was much slower than before, a call runs on
    the next power of two below or above; if that is faster, it becomes the usual number. The more a failed trial cost, the
    longer the wait for the next: waking a thread takes ten times as long as a call of a few microseconds.
    """

    def __init__(self, most: int, fewest: int = 1) -> None:
        self.most, self.fewest, self.usual = most, fewest, most
        self.recent: deque[float] = deque(maxlen=2)  # seconds per row on the usual number
        self.left: float = FEWEST_CALLS  # calls until the next trial
        self.tries_fewer = True

    def next(self) -> int:
        """Number of threads for the next call, to be followed by `record`."""
        if self.left > 0:
            return self.usual
        fewer, more = max(1 << (self.usual - 1).bit_length() >> 1, self.fewest), min(1 << self.usual.bit_length(), self.most)
        return fewer if more == self.usual or (self.tries_fewer and fewer < self.usual) else more

    def begin(self) -> None:
        """Start timing a call."""
        self.began = time.perf_counter()

    def end(self, threads: int, rows: int) -> None:
        """Record the time since `begin` for `threads`, the number that `next` returned."""
        self.record(threads, max(time.perf_counter() - self.began, CLOCK_GRAIN) / max(rows, 1))

    def record(self, threads: int, seconds: float) -> None:
        """Record the seconds per row of a call."""
        if self.fewest == self.most:  # nothing to choose
            return
        if threads == self.usual:
            self.left -= 1
            if self.recent and seconds > SLOWER * max(self.recent):
                self.left -= WORTH_CALLS
                self.recent.clear()
            self.recent.append(seconds)
            return
        lost = seconds / min(self.recent) - 1  # in calls on the usual number
        faster = lost < 0
        self.tries_fewer = (threads < self.usual) == faster  # continue in this direction, or reverse it next time
        self.left = min(max(lost / TRIALS_SHARE, FEWEST_CALLS), MOST_CALLS)
        if faster:
            self.usual = threads
            self.recent.clear()
            self.recent.append(seconds)


class Team:
    """`threads` threads that run the same function of their number; the caller is number 0.

    The others start at the first run, sleep between runs, and end with `close`, with the process, or when the team is
    garbage collected. After a fork the child starts its own.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._inboxes: list[SimpleQueue[TeamRun | None]] = []
        self._process = 0

    def run(self, function: Callable[..., None], *args: Any, threads: int | None = None) -> None:
        """Call function(t, *args) for every t in parallel; return when all have returned, even after Ctrl-C.

        threads : number of threads that take part; None for all

        Any thread must be able to do all the work of the function, so that a thread that starts late delays no other.
        """
        threads = threads or self.threads
        if threads == 1:
            function(0, *args)
            return
        if self._process != os.getpid():
            self._start()
        this = TeamRun(function, args, [], SimpleQueue())
        sent: list[None] = []
        raised: BaseException | None = None
        try:
            try:
                # A single call in C, so that no signal handler runs between sending and counting.
                sent.extend(map(SimpleQueue.put, self._inboxes[: threads - 1], repeat(this)))
                function(0, *args)
            finally:
                this.wait_for(sent)
        except BaseException as error:  # Ctrl-C may have ended the wait: continue waiting
            raised = error
            this.wait_for(sent)
        raised = raised or next(filter(None, this.reports), None)
        if raised is not None:
            raise raised

    def _start(self) -> None:
        inboxes: list[SimpleQueue[TeamRun | None]] = [SimpleQueue() for _ in range(self.threads - 1)]
        stopper = weakref.finalize(self, stop, inboxes)
        try:
            for t, inbox in enumerate(inboxes, start=1):
                threading.Thread(target=work, args=(t, inbox), name=f"fastmlp-{t}", daemon=True).start()
        except BaseException:  # cannot start more threads, or Ctrl-C: end the running ones
            stopper()
            raise
        self._inboxes, self._stop, self._process = inboxes, stopper, os.getpid()

    def close(self) -> None:
        """End the threads; a later run starts new ones."""
        if self._inboxes:
            self._stop()
            self._inboxes = []
            self._process = 0


def work(t: int, inbox: SimpleQueue[TeamRun | None]) -> None:
    """Main function of thread t: run everything received until None; report exceptions."""
    while (this := inbox.get()) is not None:
        raised: BaseException | None = None
        try:
            this.function(t, *this.args)
        except BaseException as error:  # raised again in the caller
            raised = error
        this.reports.append(raised)
        this.done.put(None)
        del this, raised  # a sleeping thread must keep no array alive


def stop(inboxes: list[SimpleQueue[TeamRun | None]]) -> None:
    """Signal every thread to end."""
    for inbox in inboxes:
        inbox.put(None)
