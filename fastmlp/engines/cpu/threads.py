"""The CPU engine's own threads: a team that runs one compiled function, and how many threads make sense.

Plain Python threads around `nogil` kernels: no OpenMP (a forked child would be killed, a second runtime beside PyTorch's
crashes), no nested use, nothing global.
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

# Measured, see benchmarks/NOTES.md. Below, handing over always costs more than it saves.
LEAST_ROWS, LEAST_FLOPS = 16, 200_000  # of a step, for each thread
MUCH_FLOPS = 500_000  # of a step, for each thread, that make up for fewer rows
SURE_FLOPS = 10_000_000  # of a step, for each thread, that are faster on more threads whatever handing over costs
# Of trials of other numbers of threads: the share of all time that they may cost; calls between two, at least and at most.
TRIALS_SHARE, FEWEST_CALLS, MOST_CALLS = 0.02, 2, 2000
CLOCK_GRAIN = 1e-9  # seconds
SLOWER = 1.2  # times as slow as the calls before: another number of threads may now be better, so
WORTH_CALLS = 25  # such a call counts as so many more


class TeamRun(NamedTuple):
    """One run of a team: the function, and the reports of the threads other than the caller: what each raised, or None.

    The length of `reports` says how many have returned. `bell` only wakes the caller: what it gets may be lost to Ctrl-C.
    """

    function: Callable[..., None]
    args: tuple[Any, ...]
    reports: list[BaseException | None]
    done: SimpleQueue[None]

    def wait_for(self, sent: list[None]) -> None:
        """Return when as many threads have reported as were sent the round."""
        while len(self.reports) < len(sent):
            self.done.get()


def available_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its control group (Linux, version 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def worthwhile(threads: int, rows: int, flops: int) -> int:
    """How many of `threads` threads may make a step faster: each must have some rows, or much to do."""
    for count in range(threads, 1, -1):
        if (rows >= LEAST_ROWS * count and flops >= LEAST_FLOPS * count) or flops >= MUCH_FLOPS * count:
            return count
    return 1


def tuner_for(threads: int, rows: int, flops: int) -> ThreadTuner:
    """Which of up to `threads` threads suit steps of so many rows and operations; no trials where there is much to do."""
    most = worthwhile(threads, rows, flops)
    return ThreadTuner(most, fewest=most if flops >= SURE_FLOPS * most else 1)


class ThreadTuner:
    """How many threads small steps take, found by trying: what handing over costs differs between machines and minutes.

    Calls run on the usual number of threads. Now and then, and after one that was suddenly slower, a call runs on the next
    power of two below or above; if that is faster than the calls before, it becomes the usual number. The more a trial that
    failed cost, the longer the wait for the next: waking a thread for a call of few microseconds takes ten times as long.
    """

    def __init__(self, most: int, fewest: int = 1) -> None:
        self.most, self.fewest, self.usual = most, fewest, most
        self.recent: deque[float] = deque(maxlen=2)  # what the usual number took
        self.left: float = FEWEST_CALLS  # calls until the next trial
        self.tries_fewer = True

    def next(self) -> int:
        """Threads for the next call, which `tell` hears about."""
        if self.left > 0:
            return self.usual
        fewer, more = max(1 << (self.usual - 1).bit_length() >> 1, self.fewest), min(1 << self.usual.bit_length(), self.most)
        return fewer if more == self.usual or (self.tries_fewer and fewer < self.usual) else more

    def begin(self) -> None:
        """A call begins."""
        self.began = time.perf_counter()

    def end(self, threads: int, rows: int) -> None:
        """The call that `begin` saw has ended, on the threads that `next` said."""
        self.record(threads, max(time.perf_counter() - self.began, CLOCK_GRAIN) / max(rows, 1))

    def record(self, threads: int, seconds: float) -> None:
        """What a call took for each row."""
        if self.fewest == self.most:  # there is nothing to try
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
        self.tries_fewer = (threads < self.usual) == faster  # further the same way, or the other one next time
        self.left = min(max(lost / TRIALS_SHARE, FEWEST_CALLS), MOST_CALLS)
        if faster:
            self.usual = threads
            self.recent.clear()
            self.recent.append(seconds)


class Team:
    """`threads` threads that run the same function on their number, the caller being number 0.

    The others start at the first run, sleep in between, and end with `close`, with the process, or when nobody holds the
    team any more. After a fork the child starts its own.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._inboxes: list[SimpleQueue[TeamRun | None]] = []
        self._process = 0

    def run(self, function: Callable[..., None], *args: Any, threads: int | None = None) -> None:
        """Call function(t, *args) for every t at once; return when all have returned, even if Ctrl-C comes meanwhile.

        threads : how many take part; None for all

        The function must let any of its threads do all the work: a thread that starts late must delay nobody.
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
                # One call from C to C, so that no signal handler runs between handing out and counting.
                sent.extend(map(SimpleQueue.put, self._inboxes[: threads - 1], repeat(this)))
                function(0, *args)
            finally:
                this.wait_for(sent)
        except BaseException as error:  # Ctrl-C may have ended the wait: wait on
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
        except BaseException:  # no more threads to be had, or Ctrl-C: end those that run
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
    """The life of thread t: run what comes until None comes; hand on what is raised."""
    while (this := inbox.get()) is not None:
        raised: BaseException | None = None
        try:
            this.function(t, *this.args)
        except BaseException as error:  # it is raised again in the caller
            raised = error
        this.reports.append(raised)
        this.done.put(None)
        del this, raised  # a sleeping thread must keep no array alive


def stop(inboxes: list[SimpleQueue[TeamRun | None]]) -> None:
    """Tell every thread to end."""
    for inbox in inboxes:
        inbox.put(None)
