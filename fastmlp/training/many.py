"""Many models at once: networks of different shapes, learning rates and seeds, trained on the same data in one process.

Each model is trained by one thread, and threads do not wait for each other: kernels run without the interpreter lock. The
results have the same bits as if `train` had trained each model alone. Between kernels Python needs some tenths of a
millisecond per epoch, which only one thread can run at a time, so models whose epochs take a few milliseconds or less gain
less from more threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.rows import Features
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.engines.interrupts import Signals
from fastmlp.errors import ConfigError, FastMLPError
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.scaling import Scaling
from fastmlp.training.loop import Callback, Diverged, Interrupted, TrainResult, loop_for
from fastmlp.training.monitor import EpochLog
from fastmlp.training.settings import Settings, Task, TrainingData, check_data, make_task

Result = TrainResult | Diverged
EpochCallback = Callable[[int, EpochLog], None]
ResultCallback = Callable[[int, Result], None]

# Interval at which the waiting main thread lets Python run signal handlers.
WAIT_SECONDS = 0.2


class ManyInterrupted(KeyboardInterrupt):
    """A signal ended the training of many models.

    results : in the order of the jobs: finished models as in `train_many`, unfinished models with their best weights so far
        (`stopped` is "interrupted"), None for models that were not started
    signal : the signal's number
    """

    def __init__(self, results: list[Result | None], signal: int) -> None:
        started = sum(result is not None for result in results)
        super().__init__(f"training interrupted, {started} of {len(results)} models started")
        self.results = results
        self.signal = signal


def train_many(  # noqa: PLR0913 - as `train`
    jobs: Sequence[tuple[Network, Settings]],
    x: Features,
    y: npt.NDArray[Any],
    *,
    validation: tuple[Features, npt.NDArray[Any]] | None = None,
    scaling: Scaling | None = None,
    sample_weight: FloatArray | None = None,
    classes: Sequence[str] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    threads: int | None = None,
    callbacks: Sequence[Sequence[Callback]] | None = None,
    progress: EpochCallback | None = None,
    finished: ResultCallback | None = None,
) -> list[Result]:
    """Train many networks on the same data at once, each on one thread, with the same bits as by `train`.

    The data are checked once and shared. Models with the most operations start first.

    Parameters
    ----------
    jobs : a network and its settings for each model; `Settings.threads` is only used for predictions
    x, y, validation, scaling, sample_weight, classes, image_shape : as for `train`, the same for all models
    threads : number of models trained at the same time; None for one per core that this process may use
    callbacks : of each job, as for `train`; called in the thread that trains the model
    progress : called in the caller's thread with the index of a job and each new row of its history
    finished : called in the caller's thread with the index of a job and its result, when it has ended, unless by a signal

    Returns
    -------
    list : in the order of `jobs`, the `TrainResult` of each model, or the `Diverged` error that `train` would have raised,
        whose `training` has the epochs before. Other models continue.

    Raises
    ------
    ConfigError, DataError : as from `train`, naming the job, before any model starts
    ManyInterrupted : SIGINT or SIGTERM was received (in the main thread only); all models have ended

    Exceptions raised by `progress` or `finished`, and errors other than divergence, stop all models and are then raised again.

    Examples
    --------
    >>> from fastmlp.nn.schedules import Schedule
    >>> x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    >>> y = (x[:, 0] > x[:, 1]).astype(int)
    >>> jobs = [(Network((2, width, 2)), Settings(Schedule(0.1), epochs=3, seed=width)) for width in (4, 8, 12)]
    >>> [len(training.history) for training in train_many(jobs, x, y)]
    [3, 3, 3]
    """

    described = {"scaling": scaling, "classes": None if classes is None else tuple(classes), "image_shape": image_shape}

    def checked(network: Network, dtype: np.dtype[Any]) -> TrainingData:
        return check_data(network, dtype, (x, y), validation, sample_weight, **described)

    return train_tasks(make_tasks(jobs, checked), threads=threads, callbacks=callbacks, progress=progress, finished=finished)


def train_tasks(
    tasks: list[Task],
    *,
    threads: int | None = None,
    callbacks: Sequence[Sequence[Callback]] | None = None,
    progress: EpochCallback | None = None,
    finished: ResultCallback | None = None,
) -> list[Result]:
    """Train the networks of `make_tasks`; parameters, result and errors as for `train_many`."""
    threads = Settings(threads=threads).threads or available_cores()  # checks the value
    if callbacks is not None and len(callbacks) != len(tasks):
        raise ConfigError(f"callbacks for {len(callbacks)} jobs, but there are {len(tasks)}; give a sequence for each")
    compile_kernels(tasks)
    with Signals() as signals:
        pool = Pool(tasks, signals, progress, finished, callbacks)
        pool.run(min(threads, len(tasks)))
        if signals.received:
            raise ManyInterrupted(pool.results, signals.received)
    return [result for result in pool.results if result is not None]


@contextmanager
def naming(index: int) -> Iterator[None]:
    """Add the index of the job to errors."""
    try:
        yield
    except FastMLPError as error:
        raise type(error)(f"jobs[{index}]: {error}", settings=error.settings) from None


def make_tasks(
    jobs: Sequence[tuple[Network, Settings]], checked: Callable[[Network, np.dtype[Any]], TrainingData]
) -> list[Task]:
    """Combine jobs with their data, which all networks of a dtype share.

    checked : returns the data, checked for a network and an engine dtype; called once for each dtype

    Raises
    ------
    ConfigError, DataError : as from `train`, naming the job
    """
    shared: dict[np.dtype[Any], TrainingData] = {}
    tasks = []
    for index, (network, settings) in enumerate(jobs):
        dtype = np.dtype(settings.dtype)
        with naming(index):
            if dtype not in shared:
                shared[dtype] = checked(network, dtype)
            tasks.append(make_task(network, settings, shared[dtype]))
    return tasks


def compile_kernels(tasks: list[Task]) -> None:
    """Compile the kernels of all tasks, once per `kernel_key`, before the threads start, which would wait for each other."""
    largest_first = sorted(range(len(tasks)), key=lambda index: tasks[index].cost, reverse=True)
    for index in {tasks[index].kernel_key: index for index in largest_first}.values():
        with naming(index), loop_for(tasks[index], threads=1) as loop:
            loop.compile()


class Pool:
    """Threads that take tasks from a shared queue and train them.

    results : of each task, None until it has ended
    """

    def __init__(
        self,
        tasks: list[Task],
        signals: Signals,
        progress: EpochCallback | None,
        finished: ResultCallback | None,
        callbacks: Sequence[Sequence[Callback]] | None = None,
    ) -> None:
        self.tasks, self.signals, self.progress, self.finished = tasks, signals, progress, finished
        self.callbacks = callbacks or [()] * len(tasks)
        self.results: list[Result | None] = [None] * len(tasks)
        # Shared by the threads: the interpreter lock makes `next` atomic.
        self.next = iter(sorted(range(len(tasks)), key=lambda index: tasks[index].cost, reverse=True))
        self.errors: list[BaseException] = []
        # Rows for `progress`, results for `finished`, and None when a thread ends.
        self.inbox: SimpleQueue[tuple[int, EpochLog | Result] | None] = SimpleQueue()

    def run(self, threads: int) -> None:
        """Train all models; return or raise when all threads have ended."""
        workers = [threading.Thread(target=self._work, name=f"fastmlp-model-{number}") for number in range(threads)]
        try:
            for worker in workers:
                worker.start()
            self._watch(threads)
        except BaseException:  # from `progress`, a second Ctrl-C, or if a thread cannot be started
            self.signals.end()
            raise
        finally:
            for worker in filter(lambda worker: worker.ident is not None, workers):
                worker.join()
        if self.errors:
            raise self.errors[0]

    def _watch(self, running: int) -> None:
        """Pass on rows and results until all threads have ended. Python runs signal handlers here."""
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
        """Call `finished` with a result, or `progress` with a row of the history."""
        if isinstance(message, TrainResult | Diverged):
            if self.finished is not None:
                self.finished(index, message)
        elif self.progress is not None:
            self.progress(index, message)

    def _work(self) -> None:
        """Train tasks until there are none left; the target of the threads."""
        try:
            for index in self.next:
                if self.signals.received:
                    break
                self.results[index] = result = self._train(index)
                if not self.signals.received:
                    self.inbox.put((index, result))
        except BaseException as error:  # raised again in the caller's thread
            self.errors.append(error)
            self.signals.end()
        finally:
            self.inbox.put(None)

    def _train(self, index: int) -> Result:
        report: list[Callback] = [lambda row, engine: self.inbox.put((index, row))] if self.progress is not None else []
        with loop_for(self.tasks[index], threads=1) as loop:
            try:
                return loop.run(self.signals, [*self.callbacks[index], *report])
            except Interrupted as stop:
                return stop.training
            except Diverged as error:
                error.__context__ = None  # its frames would keep the engine alive
                return error.with_traceback(None)
