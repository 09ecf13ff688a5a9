"""Tests of how `train_many` ends: progress callbacks, failures of single models, signals and cleanup."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.many import SMALL, same_training, timeless
from support.problems import problem, set_up

import fastmlp.training.loop
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec
from fastmlp.engines.interrupts import Signals
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import SGD
from fastmlp.nn.schedules import Schedule
from fastmlp.training.api import train, train_many
from fastmlp.training.loop import Diverged, Interrupted
from fastmlp.training.many import ManyInterrupted, Pool
from fastmlp.training.result import TrainResult

EPOCHS = 10_000  # would take minutes, so the tests only pass in time if training stops early

# The matrix products are so small that BLAS uses one thread; BLAS threads would slow each other down on a busy machine.
LONG = Network((50, 60, 10))


def long_problem() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(5000, 50)).astype(np.float32), rng.integers(0, 10, 5000)


def long_job(seed: int, **changes: Any) -> tuple[Network, Any]:
    return LONG, set_up(**{"optimizer": SGD(0.01), "epochs": EPOCHS, "batch_size": 16, "seed": seed, **changes})


# ------------------------------------------------------------------------------------------------ progress and failures


def test_progress_gets_every_row_in_the_callers_thread() -> None:
    x, y = problem(60)
    rows: dict[int, list[dict[str, Any]]] = {index: [] for index in range(5)}
    callers = set()

    def progress(index: int, row: dict[str, Any]) -> None:
        rows[index].append(row)
        callers.add(threading.current_thread())

    results = train_many(SMALL, (x, y), threads=3, progress=progress, scaling=None)
    assert [result.history for result in results if isinstance(result, TrainResult)] == list(rows.values())
    assert callers == {threading.current_thread()}


def model_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastmlp-model")]


def test_an_error_in_progress_stops_all_models() -> None:
    x, y = long_problem()
    calls: list[int] = []
    last = [0] * 4

    def progress(index: int, row: dict[str, Any]) -> None:
        calls.append(index)
        assert len(model_threads()) == 2
        raise ZeroDivisionError("mine")

    def counting(index: int) -> Any:
        def callback(row: dict[str, Any], engine: Engine) -> None:
            last[index] = row["epoch"]

        return callback

    jobs, callbacks = [long_job(seed) for seed in range(4)], [[counting(index)] for index in range(4)]
    with pytest.raises(ZeroDivisionError, match="mine"):
        train_many(jobs, (x, y), threads=2, progress=progress, callbacks=callbacks, scaling=None)
    assert len(calls) == 1
    assert 1 <= max(last[:2]) < EPOCHS
    assert last[2:] == [0, 0]
    assert model_threads() == []


def test_an_error_in_a_thread_stops_all_models_and_propagates(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = long_problem()
    engines: list[Engine] = []
    closed: list[Engine] = []
    trained: list[int] = []

    def make(backend: str, job: EngineSpec) -> Engine:
        engine = make_engine(backend, job)
        engines.append(engine)
        original = engine.train

        def failing(rows: Any, targets: Any, order: Any, *args: Any) -> Any:
            if len(order) and job.seed == 1:
                raise MemoryError("out of memory")
            trained.append(len(order))
            return original(rows, targets, order, *args)

        engine.train = failing  # type: ignore[method-assign]
        engine.close = lambda: closed.append(engine)  # type: ignore[method-assign]
        return engine

    monkeypatch.setattr(fastmlp.training.loop, "make_engine", make)
    with pytest.raises(MemoryError, match="out of memory"):
        train_many([long_job(seed) for seed in range(4)], (x, y), threads=2, scaling=None)
    assert sum(trained) < EPOCHS * len(x)
    assert len(engines) in (2, 3)  # one to compile the kernels, and one for each started model (one or two)
    assert {id(engine) for engine in closed} == {id(engine) for engine in engines}
    assert model_threads() == []


def test_a_model_that_diverges_does_not_stop_the_others() -> None:
    x, y = problem(60)
    diverging = [
        (Network((4, 12, 12, 3)), set_up(optimizer=SGD(1e12))),  # diverges in the first epoch
        (Network((4, 12, 3), l2=1.0), set_up(optimizer=SGD(1e7), schedule=Schedule(warmup=1e6), epochs=40)),  # diverges later
    ]
    singles = [train(network, (x, y), settings=settings, scaling=None) for network, settings in SMALL]
    results = train_many([*SMALL[:3], *diverging, *SMALL[3:]], (x, y), threads=2, scaling=None)
    good = results[:3] + results[5:]
    assert all(
        isinstance(result, TrainResult) and same_training(result, one) for result, one in zip(good, singles, strict=True)
    )
    for (network, settings), result in zip(diverging, results[3:5], strict=True):
        with pytest.raises(Diverged) as caught:
            train(network, (x, y), settings=settings, scaling=None)
        assert isinstance(result, Diverged)
        assert str(result) == str(caught.value)
        assert (result.training is None) == (caught.value.training is None)
        if result.training is not None and caught.value.training is not None:
            assert same_training(result.training, caught.value.training)
            assert result.training.stopped == "diverged"
    assert [result.training is None for result in results[3:5] if isinstance(result, Diverged)] == [True, False]


def test_results_keep_no_engine_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a result nor a returned `Diverged` keeps an engine alive, unlike the traceback of an error from `train`."""
    x, y = problem(60)
    engines: list[weakref.ref[Engine]] = []

    def make(backend: str, job: EngineSpec) -> Engine:
        engine = make_engine(backend, job)
        engines.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(fastmlp.training.loop, "make_engine", make)
    diverging = Network((4, 12, 12, 3)), set_up(optimizer=SGD(1e12))
    results = train_many([*SMALL, diverging], (x, y), scaling=None)
    assert isinstance(results[-1], Diverged)
    assert len(engines) == 6 + 1  # one more to compile the kernels
    gc.collect()
    assert [engine() for engine in engines] == [None] * len(engines)

    with pytest.raises(Diverged) as caught:
        train(diverging[0], (x, y), settings=diverging[1], scaling=None)
    assert engines[-1]() is not None, caught.value


# ------------------------------------------------------------------------------------------------ signals


def interrupted(number: int, jobs: list[Any], callbacks: list[Any]) -> ManyInterrupted:
    """Train, send a signal to the process after three models have finished an epoch, and return the raised exception."""
    x, y = long_problem()
    seen: set[int] = set()

    def progress(index: int, row: dict[str, Any]) -> None:
        before = len(seen)
        seen.add(index)
        if before < 3 <= len(seen):
            threading.Thread(target=os.kill, args=(os.getpid(), number)).start()

    with pytest.raises(ManyInterrupted) as caught:
        train_many(jobs, (x, y), threads=2, progress=progress, callbacks=callbacks, scaling=None)
    return caught.value


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_models_and_returns_their_results_so_far(number: int) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    finished = long_job(0, epochs=2 * EPOCHS)  # starts first
    jobs = [long_job(1), long_job(2, epochs=EPOCHS - 1), finished, long_job(3, epochs=5)]
    error = interrupted(number, jobs, [[], [], [lambda row, engine: True], []])
    assert error.signal == number
    assert isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted)
    assert "3 of 4 models" in str(error)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert model_threads() == []
    one, two, done, not_started = error.results
    assert not_started is None
    assert isinstance(done, TrainResult) and (done.stopped, len(done.history)) == ("callback", 1)
    x, y = long_problem()
    for job, result in ((jobs[0], one), (jobs[1], two)):
        assert isinstance(result, TrainResult)
        assert result.stopped == "interrupted"
        assert 1 <= len(result.history) < EPOCHS - 1
        epochs = sum(row["rows"] == len(x) for row in result.history)  # the last epoch may be incomplete
        whole = train(job[0], (x, y), settings=replace(job[1], epochs=max(epochs, 1)), scaling=None)
        assert timeless(result.history)[:epochs] == timeless(whole.history)[:epochs]


def test_a_signal_delivered_to_another_thread_is_handled() -> None:
    """A signal that the operating system delivers to a training thread is handled by the waiting main thread."""
    x, y = long_problem()

    def send(row: dict[str, Any], engine: Engine) -> None:
        if row["epoch"] == 2:
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # called in the thread of the model

    with pytest.raises(ManyInterrupted) as caught:
        train_many([long_job(seed) for seed in range(2)], (x, y), threads=2, callbacks=[[send], []], scaling=None)
    assert caught.value.signal == signal.SIGINT
    for result in caught.value.results:
        assert isinstance(result, TrainResult)
        assert result.stopped == "interrupted"
        assert len(result.history) < EPOCHS


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    x, y = long_problem()

    def twice(index: int, row: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train_many([long_job(seed) for seed in range(3)], (x, y), threads=2, progress=twice, scaling=None)
    assert not isinstance(caught.value, ManyInterrupted)
    assert model_threads() == []


def test_a_signal_in_the_last_epoch_is_not_lost() -> None:
    x, y = problem(40)

    def last(index: int, row: dict[str, Any]) -> None:
        if (index, row["epoch"]) == (0, 4):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(ManyInterrupted) as caught:
        train_many(SMALL[:1], (x, y), progress=last, scaling=None)
    (result,) = caught.value.results
    assert isinstance(result, TrainResult)
    assert len(result.history) == 4


def test_a_signal_after_the_last_model_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(40)
    original = Pool.run

    def run(pool: Pool, threads: int) -> None:
        original(pool, threads)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Pool, "run", run)
    with pytest.raises(ManyInterrupted) as caught:
        train_many(SMALL[:2], (x, y), scaling=None)
    assert [result is not None and result.stopped for result in caught.value.results] == ["epochs", "epochs"]


def test_no_signal_handlers_are_installed_outside_the_main_thread() -> None:
    x, y = problem(40)
    found: list[Any] = []
    handlers: set[Any] = set()

    def progress(index: int, row: dict[str, Any]) -> None:
        handlers.add(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=lambda: found.extend(train_many(SMALL, (x, y), progress=progress, scaling=None)))
    thread.start()
    thread.join()
    assert len(found) == 5
    assert handlers == {signal.getsignal(signal.SIGINT)}


def test_end_counts_as_a_received_sigterm() -> None:
    with Signals() as signals:
        signals.end()
        assert signals.received == signal.SIGTERM
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        signals.end()
        assert signals.received == signal.SIGINT
