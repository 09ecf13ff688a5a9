"""The CPU engine's own threads: a team that runs one compiled function, and how many threads make sense.

Plain Python threads around `nogil` kernels: no OpenMP (a forked child would be killed, a second runtime beside PyTorch's
crashes), no nested use, nothing global.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

Task = tuple[Callable[..., None], tuple[Any, ...]]


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
        self._inboxes: list[SimpleQueue[Task | None]] = []
        self._outbox: SimpleQueue[BaseException | None] = SimpleQueue()
        self._process = 0

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Call function(t, *args) for every t at once; return when all have returned, even if Ctrl-C comes meanwhile.

        The function must let any of its threads do all the work: a thread that starts late must delay nobody.
        """
        if self.threads > 1 and self._process != os.getpid():
            self._start()
        for inbox in self._inboxes:
            inbox.put((function, args))
        raised: BaseException | None = None
        try:
            function(0, *args)
        except BaseException as error:  # raised again when all have returned
            raised = error
        waiting = len(self._inboxes)
        while waiting:
            try:
                came = self._outbox.get()
                waiting -= 1
            except KeyboardInterrupt as interrupt:
                came = interrupt
            raised = raised or came
        if raised is not None:
            raise raised

    def _start(self) -> None:
        self._process = os.getpid()
        self._inboxes = [SimpleQueue() for _ in range(self.threads - 1)]
        self._outbox = SimpleQueue()
        for t, inbox in enumerate(self._inboxes, start=1):
            threading.Thread(target=work, args=(t, inbox, self._outbox), name=f"fastmlp-{t}", daemon=True).start()
        self._stop = weakref.finalize(self, stop, self._inboxes)

    def close(self) -> None:
        """End the threads; a later run starts new ones."""
        if self._inboxes:
            self._stop()
            self._inboxes = []
            self._process = 0


def work(t: int, inbox: SimpleQueue[Task | None], outbox: SimpleQueue[BaseException | None]) -> None:
    """The life of thread t: run what comes until None comes; hand on what is raised."""
    while (task := inbox.get()) is not None:
        function, args = task
        try:
            function(t, *args)
        except BaseException as error:  # it is raised again in the caller
            outbox.put(error)
        else:
            outbox.put(None)
        del task, function, args  # a sleeping thread must keep no array alive


def stop(inboxes: list[SimpleQueue[Task | None]]) -> None:
    for inbox in inboxes:
        inbox.put(None)
