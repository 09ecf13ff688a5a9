"""The CPU engine's own threads: a team that runs one compiled function, and how many threads make sense.

Plain Python threads around `nogil` kernels: no OpenMP (a forked child would be killed, a second runtime beside PyTorch's
crashes), no nested use, nothing global.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple


class Round(NamedTuple):
    """One run of a team: the function, and the reports of the threads other than the caller: what each raised, or None.

    The length of `reports` says how many have returned. `bell` only wakes the caller: what it gets may be lost to Ctrl-C.
    """

    function: Callable[..., None]
    args: tuple[Any, ...]
    reports: list[BaseException | None]
    bell: SimpleQueue[None]

    def wait_for(self, sent: list[None]) -> None:
        """Return when as many threads have reported as were sent the round."""
        while len(self.reports) < len(sent):
            self.bell.get()


def available_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its control group (Linux, version 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


class Team:
    """`threads` threads that run the same function on their number, the caller being number 0.

    The others start at the first run, sleep in between, and end with `close`, with the process, or when nobody holds the
    team any more. After a fork the child starts its own.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._inboxes: list[SimpleQueue[Round | None]] = []
        self._process = 0

    def run(self, function: Callable[..., None], *args: Any, threads: int | None = None) -> None:
        """Call function(t, *args) for every t at once; return when all have returned, even if Ctrl-C comes meanwhile.

        threads : how many take part; None for all

        The function must let any of its threads do all the work: a thread that starts late must delay nobody.
        """
        threads = threads or self.threads
        if threads > 1 and self._process != os.getpid():
            self._start()
        this = Round(function, args, [], SimpleQueue())
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
        inboxes: list[SimpleQueue[Round | None]] = [SimpleQueue() for _ in range(self.threads - 1)]
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


def work(t: int, inbox: SimpleQueue[Round | None]) -> None:
    """The life of thread t: run what comes until None comes; hand on what is raised."""
    while (this := inbox.get()) is not None:
        raised: BaseException | None = None
        try:
            this.function(t, *this.args)
        except BaseException as error:  # it is raised again in the caller
            raised = error
        this.reports.append(raised)
        this.bell.put(None)
        del this, raised  # a sleeping thread must keep no array alive


def stop(inboxes: list[SimpleQueue[Round | None]]) -> None:
    """Tell every thread to end."""
    for inbox in inboxes:
        inbox.put(None)
