"""Concurrent training of many models, for example with different sizes, learning rates and seeds, on the same data.

Each model is trained in one thread. Kernels release the global interpreter lock (GIL), so the threads run in parallel. The
results are bit-identical to those of separate calls of `train`. The Python code between kernels takes some tenths of a
millisecond per epoch and needs the GIL, so the speedup is smaller for models whose epochs take only a few milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from fastmlp.engines.cpu.threads import available_cores
from fastmlp.engines.interrupts import Signals
from fastmlp.errors import ConfigError, FastMLPError
from fastmlp.training.checkpoints.folder import Checkpoints
from fastmlp.training.loop import Callback, Diverged, Progress, WriteFailed, loop_for
from fastmlp.training.result import EpochLog, TrainResult
from fastmlp.training.settings import Settings, Task

Result = TrainResult | Diverged | WriteFailed
EpochCallback = Callable[[int, EpochLog], None]
ResultCallback = Callable[[int, Result], None]

# While the main thread waits for a message, it wakes up at this interval, so that Python can run signal handlers.
WAIT_SECONDS = 0.2


class ManyInterrupted(KeyboardInterrupt):
    """Raised if a signal stopped `train_many`.

    results : one entry per job: the result as returned by `train_many` if the model was finished, the result so far if it was
        not (its `stopped` is "interrupted"), or None if it was not started
    signal : number of the signal
    """

    def __init__(self, results: list[Result | None], signal: int) -> None:
        started = sum(result is not None for result in results)
        super().__init__(f"training interrupted, {started} of {len(results)} models started")
        self.results = results
        self.signal = signal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.results, self.signal)


def train_tasks(
    tasks: list[Task],
    *,
    threads: int | None = None,
    callbacks: Sequence[Sequence[Callback]] | None = None,
    progress: EpochCallback | None = None,
    finished: ResultCallback | None = None,
    displays: Sequence[Progress | None] | None = None,
    checkpoints: Sequence[Checkpoints | None] | None = None,
) -> list[Result]:
    """Train tasks from `api.make_tasks`. See `api.train_many` for the parameters, the return value and the exceptions.

    displays, checkpoints : arguments of `train_task` for each task
    """
    threads = Settings(threads=threads).threads or available_cores()  # `Settings` validates the value
    if callbacks is not None and len(callbacks) != len(tasks):
        raise ConfigError(f"callbacks has {len(callbacks)} sequences, but there are {len(tasks)} jobs; give one per job")
    compile_kernels(tasks)
    with Signals() as signals:
        pool = Pool(tasks, signals, progress, finished, callbacks, displays, checkpoints)
        pool.run(min(threads, len(tasks)))
    if signals.received:
        raise ManyInterrupted(pool.results, signals.received)
    return [result for result in pool.results if result is not None]


@contextmanager
def naming(index: int) -> Iterator[None]:
    """Add the index of the job to the messages of errors raised in this context."""
    try:
        yield
    except FastMLPError as error:
        raise type(error)(f"jobs[{index}]: {error}", settings=error.settings) from None


def compile_kernels(tasks: list[Task]) -> None:
    """Compile the kernels of all tasks, once per `kernel_key`. Otherwise threads would wait for each other to compile."""
    largest_first = sorted(range(len(tasks)), key=lambda index: tasks[index].cost, reverse=True)
    for index in {tasks[index].kernel_key: index for index in largest_first}.values():
        with naming(index), loop_for(tasks[index], threads=1) as loop:
            loop.compile()


class Pool:
    """Pool of threads that take tasks from a shared iterator and train them.

    results : one entry per task; None until the training has ended
    """

    def __init__(
        self,
        tasks: list[Task],
        signals: Signals,
        progress: EpochCallback | None,
        finished: ResultCallback | None,
        callbacks: Sequence[Sequence[Callback]] | None = None,
        displays: Sequence[Progress | None] | None = None,
        checkpoints: Sequence[Checkpoints | None] | None = None,
    ) -> None:
        self.tasks, self.signals, self.progress, self.finished = tasks, signals, progress, finished
        self.callbacks = callbacks or [()] * len(tasks)
        self.displays, self.checkpoints = displays or [None] * len(tasks), checkpoints or [None] * len(tasks)
        self.results: list[Result | None] = [None] * len(tasks)
        # All threads use the same iterator, which is safe because the GIL makes `next` atomic.
        self.next = iter(sorted(range(len(tasks)), key=lambda index: tasks[index].cost, reverse=True))
        self.errors: list[BaseException] = []
        # Receives history entries for `progress`, results for `finished`, and None from each thread that ends.
        self.inbox: SimpleQueue[tuple[int, EpochLog | Result] | None] = SimpleQueue()

    def run(self, threads: int) -> None:
        """Train all models. Return, or raise an exception, only after all threads have ended."""
        workers = [threading.Thread(target=self._work, name=f"fastmlp-model-{number}") for number in range(threads)]
        try:
            for worker in workers:
                worker.start()
            self._watch(threads)
        except BaseException:  # an error in a callback, a second Ctrl-C, or a thread that cannot be started
            self.signals.end()
            raise
        finally:
            for worker in filter(lambda worker: worker.ident is not None, workers):
                worker.join()
        if self.errors:
            raise self.errors[0]

    def _watch(self, running: int) -> None:
        """Dispatch history entries and results until all threads have ended. Meanwhile, Python can run signal handlers."""
        while running:
            try:
                message = self.inbox.get(timeout=WAIT_SECONDS)
            except Empty:
                continue
            if message is None:
                running -= 1
            else:
                self._dispatch(*message)

    def _dispatch(self, index: int, message: EpochLog | Result) -> None:
        """Call `finished` if the message is a result, or `progress` if it is a history entry."""
        if isinstance(message, Result):
            if self.finished is not None:
                self.finished(index, message)
        elif self.progress is not None:
            self.progress(index, message)

    def _work(self) -> None:
        """Train tasks until none are left. This is the target function of the threads."""
        try:
            for index in self.next:
                if self.signals.received:
                    break
                self.results[index] = result = self._train(index)
                if not self.signals.received:
                    self.inbox.put((index, result))
        except BaseException as error:  # raised in the thread of the caller
            self.errors.append(error)
            self.signals.end()
        finally:
            self.inbox.put(None)

    def _train(self, index: int) -> Result:
        report: list[Callback] = [lambda row, engine: self.inbox.put((index, row))] if self.progress is not None else []
        with loop_for(self.tasks[index], self.displays[index], threads=1) as loop:
            try:
                return loop.run(self.signals, [*self.callbacks[index], *report], self.checkpoints[index])
            except (Diverged, WriteFailed) as error:
                error.__context__ = None  # its traceback would keep the engine alive
                return error.with_traceback(None)
