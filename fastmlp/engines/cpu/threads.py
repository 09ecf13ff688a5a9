"""Threads of the CPU engine: a thread pool that runs one compiled function, and the choice of the number of threads.

The threads are Python threads that run `nogil` kernels. OpenMP is not used: it would terminate a child process that was forked
after its threads had started, and two OpenMP runtimes in one process can crash it (PyTorch has its own). There is no nested
parallelism and no global state.
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

# All thresholds are per step and per thread. They were measured, see benchmarks/NOTES.md.
LEAST_ROWS, LEAST_FLOPS = 16, 200_000  # with less work, dispatch to a thread costs more time than it saves
MUCH_FLOPS = 500_000  # with at least this many operations, a thread is worthwhile even for fewer rows
SURE_FLOPS = 10_000_000  # with at least this many operations, using more threads is always faster
# Trials of other numbers of threads: the maximum fraction of the run time that they may cost, and the minimum and maximum
# number of calls between two trials.
TRIALS_SHARE, FEWEST_CALLS, MOST_CALLS = 0.02, 2, 2000
CLOCK_GRAIN = 1e-9  # seconds; the minimum duration of a call, so that no measured time is zero
SLOWER = 1.2  # a call this many times slower than the previous calls suggests that another number of threads is better
WORTH_CALLS = 25  # such a slow call brings the next trial forward by this many calls


class TeamRun(NamedTuple):
    """One parallel call of a function by a `Team`.

    function, args : the function and its arguments, without the thread index
    reports : for each thread that has returned, except the caller's: the exception that the function raised, or None
    done : a queue that wakes the caller. Threads are counted by `reports`, because KeyboardInterrupt may discard an item that
        the caller has already taken from the queue
    """

    function: Callable[..., None]
    args: tuple[Any, ...]
    reports: list[BaseException | None]
    done: SimpleQueue[None]

    def wait_for(self, sent: list[None]) -> None:
        """Wait until all threads to which this call was sent have returned; `sent` has one item per thread."""
        while len(self.reports) < len(sent):
            self.done.get()


def available_cores() -> int:
    """Return the number of cores available to this process, according to its CPU affinity and its cgroup v2 quota (Linux)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def worthwhile(threads: int, rows: int, flops: int) -> int:
    """Return the largest number of threads, at most `threads`, that can speed up a step.

    rows, flops : rows and floating-point operations of the step; each thread must get enough of them
    """
    for count in range(threads, 1, -1):
        if (rows >= LEAST_ROWS * count and flops >= LEAST_FLOPS * count) or flops >= MUCH_FLOPS * count:
            return count
    return 1


def tuner_for(threads: int, rows: int, flops: int) -> ThreadTuner:
    """Return a tuner of up to `threads` threads for steps of `rows` rows and `flops` floating-point operations.

    For large steps the tuner makes no trials and always uses the maximum number of threads.
    """
    most = worthwhile(threads, rows, flops)
    return ThreadTuner(most, fewest=most if flops >= SURE_FLOPS * most else 1)


class ThreadTuner:
    """Chooses the number of threads for small steps by timing calls, because dispatch costs vary by machine and over time.

    Most calls run on the current number of threads. A trial runs one call on the next smaller or larger power of two; if the
    call is faster, the trial's number becomes the current one. Trials are made occasionally, and sooner after a call that was
    much slower than the calls before it. The more time a failed trial has lost, the later the next trial is made. Trials can
    be expensive: waking a thread takes ten times as long as a call of a few microseconds.
    """

    def __init__(self, most: int, fewest: int = 1) -> None:
        self.most, self.fewest, self.usual = most, fewest, most
        self.recent: deque[float] = deque(maxlen=2)  # seconds per row of the last calls on `usual` threads
        self.left: float = FEWEST_CALLS  # number of calls until the next trial
        self.tries_fewer = True

    def next(self) -> int:
        """Return the number of threads for the next call. The caller must then report its time with `end` or `record`."""
        if self.left > 0:
            return self.usual
        fewer, more = max(1 << (self.usual - 1).bit_length() >> 1, self.fewest), min(1 << self.usual.bit_length(), self.most)
        return fewer if more == self.usual or (self.tries_fewer and fewer < self.usual) else more

    def begin(self) -> None:
        """Start the timer of a call."""
        self.began = time.perf_counter()

    def end(self, threads: int, rows: int) -> None:
        """Record the time since `begin` for a call with `rows` rows on `threads` threads, the number that `next` returned."""
        self.record(threads, max(time.perf_counter() - self.began, CLOCK_GRAIN) / max(rows, 1))

    def record(self, threads: int, seconds: float) -> None:
        """Record the seconds per row of a call on `threads` threads."""
        if self.fewest == self.most:  # only one number of threads is possible
            return
        if threads == self.usual:
            self.left -= 1
            if self.recent and seconds > SLOWER * max(self.recent):
                self.left -= WORTH_CALLS
                self.recent.clear()
            self.recent.append(seconds)
            return
        lost = seconds / min(self.recent) - 1  # time lost by the trial, in units of a call on `usual` threads
        faster = lost < 0
        self.tries_fewer = (threads < self.usual) == faster  # try the same direction again if faster, else the other
        self.left = min(max(lost / TRIALS_SHARE, FEWEST_CALLS), MOST_CALLS)
        if faster:
            self.usual = threads
            self.recent.clear()
            self.recent.append(seconds)


class Team:
    """A pool of threads that all call the same function, each with its own index; the calling thread has index 0.

    threads : number of threads, including the calling thread

    The other threads start at the first call of `run` and sleep between calls. They end at `close`, when the process exits,
    or when the team is garbage collected. A forked child process starts threads of its own.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._inboxes: list[SimpleQueue[TeamRun | None]] = []
        self._process = 0

    def run(self, function: Callable[..., None], *args: Any, threads: int | None = None) -> None:
        """Call function(t, *args) in parallel for every thread index t, and wait for all calls, even after Ctrl-C.

        threads : number of threads to use; None uses all

        The function must divide its work dynamically: if a thread starts late, the other threads must be able to do its part.
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
                # A single C call, so that no signal handler can run between sending an item and counting it.
                sent.extend(map(SimpleQueue.put, self._inboxes[: threads - 1], repeat(this)))
                function(0, *args)
            finally:
                this.wait_for(sent)
        except BaseException as error:  # KeyboardInterrupt may have ended the wait, so wait again
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
        except BaseException:  # no more threads could be started, or Ctrl-C: end those already started
            stopper()
            raise
        self._inboxes, self._stop, self._process = inboxes, stopper, os.getpid()

    def close(self) -> None:
        """End the threads. A later call of `run` starts new threads."""
        if self._inboxes:
            self._stop()
            self._inboxes = []
            self._process = 0


def work(t: int, inbox: SimpleQueue[TeamRun | None]) -> None:
    """Main function of thread t: execute every call from the queue `inbox` and report its exception, until None arrives."""
    while (this := inbox.get()) is not None:
        raised: BaseException | None = None
        try:
            this.function(t, *this.args)
        except BaseException as error:  # `Team.run` raises it in the calling thread
            raised = error
        this.reports.append(raised)
        this.done.put(None)
        del this, raised  # otherwise a sleeping thread would keep the arrays alive


def stop(inboxes: list[SimpleQueue[TeamRun | None]]) -> None:
    """Tell all threads to end, by sending None to their queues."""
    for inbox in inboxes:
        inbox.put(None)
