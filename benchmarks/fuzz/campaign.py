"""Worker processes that read mutants, and the process that starts them and ends those that hang."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fuzz.mutants import mutant
from benchmarks.fuzz.outcomes import (
    CRASH,
    FINDINGS,
    HANG,
    MEMORY,
    SECONDS,
    WAITING,
    Outcome,
    Target,
    check,
    size_of,
    write_sample,
)
from benchmarks.fuzz.readers import Reader

BATCH = 100  # mutants of a task
MOST_BYTES = 4 << 30  # maximum growth of a worker's resident memory; beyond it, the worker is killed
MOST_ADDRESSES = 16 << 30  # maximum growth of its address space; allocations beyond this fail with MemoryError
GRACE = 5.0  # seconds to wait for a worker that the alarm did not interrupt before it is killed
TICK = 0.2  # polling interval, in seconds
SHARED = Path("/dev/shm")  # a file system in memory


class Task(NamedTuple):
    """Mutants of a reader with consecutive numbers."""

    reader: str
    first: int
    last: int


class Batch(NamedTuple):
    """The results of a task: the numbers of outcomes, the findings by number of the mutant, and maxima."""

    task: Task
    counts: Counter[str]
    findings: list[tuple[int, Outcome]]
    seconds: float
    slowest: float
    grown: int


class Finding(NamedTuple):
    """The smallest mutant with a finding, and the number of mutants with the same finding."""

    reader: str
    index: int
    outcome: Outcome
    size: int
    count: int


# ------------------------------------------------------------------------------------------------ worker


def work(connection: Connection, current: Any, targets: Sequence[Target], seed: int, place: Path, seconds: float) -> None:
    """Read the mutants of the tasks that are received, until the connection is closed.

    current : shared array of the number of the mutant that is being read, and of the time at which this was started
    place : folder for the files
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    sys.dont_write_bytecode = True
    output = redirect(place)
    by_name = {target.name: target for target in targets}
    for target in targets:  # large packages are imported now, and buffers that are kept are allocated
        for sample in target.samples:
            check(target, write_sample(sample, place / "sample"), size_of(sample), 10 * seconds)
    limit_addresses()
    current[:] = (-1, 0)
    connection.send(None)
    with contextlib.suppress(EOFError):
        while True:
            task = connection.recv()
            connection.send(run(task, by_name[task.reader], seed, place, (current, output, seconds)))


def redirect(place: Path) -> int:
    """Redirect the standard streams to a file, and the traces of crashes to another one; return the first descriptor."""
    place.mkdir(parents=True, exist_ok=True)
    faulthandler.enable((place / "crash.txt").open("w"))
    output = os.open(place / "output.txt", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    return output


def limit_addresses() -> None:
    """Limit the address space of this process, in which libraries have already reserved much that they do not use."""
    with contextlib.suppress(FileNotFoundError):  # not Linux
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MOST_ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(task: Task, target: Target, seed: int, place: Path, shared: tuple[Any, int, float]) -> Batch:
    """Read the mutants of a task."""
    current, output, seconds = shared
    counts: Counter[str] = Counter()
    findings, slowest, grown, started = [], 0.0, 0, time.perf_counter()
    for index in range(task.first, task.last):
        current[:] = (index, time.monotonic())
        sample = mutant(target.samples, seed, target.name, index)
        path = write_sample(sample, place / "mutant")
        outcome = check(target, path, size_of(sample), seconds, output)
        current[1] = 0
        counts[outcome.kind] += 1
        slowest, grown = max(slowest, outcome.seconds), max(grown, outcome.grown)
        if outcome.kind in FINDINGS:
            findings.append((index, outcome))
    return Batch(task, counts, findings, time.perf_counter() - started, slowest, grown)


# ------------------------------------------------------------------------------------------------ parent


class Worker:
    """A worker process with its connection."""

    def __init__(self, targets: Sequence[Target], seed: int, place: Path, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.arguments = (targets, seed, place, seconds)
        self.place, self.seconds = place, seconds
        self.connection, theirs = context.Pipe()
        self.current = context.Array("d", 2, lock=False)
        self.process = context.Process(target=work, args=(theirs, self.current, *self.arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = Task("", 0, 0)  # until it is ready
        self.resident = 0

    def restarted(self) -> Worker:
        """Return a new worker in the place of one that has ended."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return Worker(*self.arguments)

    def index(self) -> int:
        """Return the number of the mutant that is or was read."""
        return int(self.current[0])

    def fault(self) -> str:
        """Return HANG or MEMORY if the worker must be ended, else an empty string."""
        if self.task is None or self.task.reader == "" or not self.current[1]:
            return ""
        if time.monotonic() - self.current[1] > WAITING * self.seconds + GRACE:
            return HANG
        return MEMORY if self.resident and resident_bytes(self.process.pid) > self.resident + MOST_BYTES else ""

    def crash(self) -> Outcome:
        """Return the outcome of the mutant that ended the worker."""
        self.process.join(GRACE)
        code = self.process.exitcode or 0
        trace = (self.place / "crash.txt").read_text("utf-8", "replace")
        found = re.search(r'most recent call first\):\s+File "([^"]+)", line \d+ in (\S+)', trace)
        frame = f"{'/'.join(Path(found[1]).parts[-2:])}:{found[2]}" if found else ""
        return Outcome(CRASH, signal.Signals(-code).name if code < 0 else f"exit status {code}", frame)


def resident_bytes(pid: int | None) -> int:
    """Return the resident memory of a process; 0 if it has ended, or if it is not available."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def campaign(readers: Sequence[Reader], mutants: int, seed: int, jobs: int, seconds: float = SECONDS) -> Iterator[Batch]:
    """Read the given number of mutants of each reader in worker processes, and yield the results of the tasks.

    A mutant that ends its worker gets a result of its own; the others of its task are read again.
    """
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    targets = [reader.target() for reader in readers]
    starts = range(0, mutants, BATCH)
    tasks = deque(Task(target.name, first, min(first + BATCH, mutants)) for first in starts for target in targets)
    with tempfile.TemporaryDirectory(prefix="fastmlp-fuzz-", dir=SHARED if SHARED.is_dir() else None) as place:
        workers = [Worker(targets, seed, Path(place, str(number)), seconds) for number in range(jobs)]
        try:
            while workers:
                yield from step(workers, tasks)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()


def step(workers: list[Worker], tasks: deque[Task]) -> Iterator[Batch]:
    """Receive results from workers, give them tasks, and replace those that have crashed or hang."""
    ready = wait([worker.connection for worker in workers], TICK)
    for worker in list(workers):
        fault = worker.fault()
        try:
            if worker.connection in ready:
                batch = worker.connection.recv()
                worker.resident = resident_bytes(worker.process.pid)
                if batch is not None:
                    yield batch
                worker.task = None
                give(worker, tasks, workers)
                continue
        except (EOFError, ConnectionResetError):
            fault = CRASH
        if fault:
            yield ended(worker, fault, tasks)
            workers[workers.index(worker)] = worker.restarted()


def give(worker: Worker, tasks: deque[Task], workers: list[Worker]) -> None:
    """Give a worker the next task; if there is none, end it."""
    if tasks:
        worker.task = tasks.popleft()
        worker.connection.send(worker.task)
    else:
        worker.connection.close()
        worker.process.join()
        shutil.rmtree(worker.place, ignore_errors=True)
        workers.remove(worker)


def ended(worker: Worker, fault: str, tasks: deque[Task]) -> Batch:
    """Return the result of a mutant that crashed its worker, or for which it must be ended; the others are read again."""
    task, index = worker.task, worker.index()
    if task is None or task.reader == "" or index < task.first:
        raise RuntimeError(
            f"a worker ended before it read a mutant: {worker.crash()}\n{(worker.place / 'output.txt').read_text()}"
        )
    if fault != CRASH:
        os.kill(worker.process.pid or 0, signal.SIGABRT)  # faulthandler then writes where the worker was
    outcome = worker.crash()
    if fault != CRASH:
        outcome = Outcome(fault, "the worker had to be ended", outcome.frame)
    rest = [Task(task.reader, task.first, index), Task(task.reader, index + 1, task.last)]
    tasks.extendleft(one for one in rest if one.first < one.last)
    one = Task(task.reader, index, index + 1)
    return Batch(one, Counter({outcome.kind: 1}), [(index, outcome)], 0.0, worker.seconds, 0)


def merge(findings: dict[Any, Finding], batch: Batch, sizes: Any) -> None:
    """Add the findings of a batch to those with the same key, of which the smallest mutant is kept.

    sizes : function that returns the size of a mutant from its reader and number
    """
    for index, outcome in batch.findings:
        key = (batch.task.reader, *outcome.key)
        new = Finding(batch.task.reader, index, outcome, sizes(batch.task.reader, index), 1)
        old = findings.get(key, new._replace(count=0))
        best = min(old, new, key=lambda one: (one.size, one.index))
        findings[key] = best._replace(count=old.count + 1)
