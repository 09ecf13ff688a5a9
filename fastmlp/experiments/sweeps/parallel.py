"""Training of several runs on the same data in parallel, each with its own run folder: `train_in_parallel`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from fastmlp.experiments.folder import clear_logs, locked, removed_if_empty
from fastmlp.experiments.plan import RunPlan, Say, portable
from fastmlp.experiments.record import Recorder
from fastmlp.experiments.result import TrainOutcome, write_result
from fastmlp.experiments.training_run import periodic_saver
from fastmlp.training.loop import Diverged
from fastmlp.training.many import ManyInterrupted, Result, train_tasks
from fastmlp.training.progress import make_progress
from fastmlp.training.result import EpochLog


class NamedRun(NamedTuple):
    """A run that is ready to be trained, its name in messages, and its run folder."""

    name: str
    plan: RunPlan
    folder: Path


def train_in_parallel(runs: Sequence[NamedRun], threads: int | None, say: Say) -> int:
    """Train several runs in parallel, and write their run folders; return the signal that interrupted them, or 0.

    Parameters
    ----------
    runs : runs that share their data
    threads : number of runs that are trained in parallel; None means one per core
    say : function that is called with a status message when a run has ended
    """
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(locked(run.folder))
            stack.enter_context(removed_if_empty(run.folder))
            clear_logs(run.folder)
        return train_locked(runs, threads, say)


def train_locked(runs: Sequence[NamedRun], threads: int | None, say: Say) -> int:
    """Implement `train_in_parallel` for folders that are locked."""

    def finished(index: int, result: Result) -> None:
        name, plan, folder = runs[index]
        error = result if isinstance(result, Diverged) else None
        training = result.training if isinstance(result, Diverged) else result
        if training is None:
            say(f"{name}: {error}")
            return
        seconds = sum(row["seconds"] + row["eval_seconds"] for row in training.history)
        write_result(plan, TrainOutcome(training, 0, error, seconds), folder)
        say(f"{name}: {training.end}")

    def seen(index: int, row: EpochLog) -> None:
        recorders[index].epoch_done(row)

    with make_progress(quiet=True, epochs=1) as silent:
        recorders = [Recorder(silent, run.folder, portable(run.plan.config)) for run in runs]
        callbacks = [[periodic_saver(run.plan, run.folder)] for run in runs]
        tasks = [run.plan.task for run in runs]
        try:
            train_tasks(tasks, threads=threads, callbacks=callbacks, progress=seen, finished=finished)
        except ManyInterrupted as stop:
            return stop.signal
    return 0
