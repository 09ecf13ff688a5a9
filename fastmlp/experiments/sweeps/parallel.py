"""Training of several runs on the same data in parallel, each with its own run folder: `train_in_parallel`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from fastmlp.engines.cpu.codegen.observer import observer
from fastmlp.errors import WriteError
from fastmlp.experiments.folder import CONFIG_NAME, locked, removed_if_empty
from fastmlp.experiments.plan import RunPlan, Say
from fastmlp.experiments.record import Recorder, RunCheckpoints
from fastmlp.experiments.result import TrainOutcome, save_result, seconds_of
from fastmlp.experiments.resume import Resume, resumed_from, start_for
from fastmlp.experiments.training_run import periodic_saver
from fastmlp.files.reading import exists
from fastmlp.training.many import ManyInterrupted, Result, train_tasks
from fastmlp.training.progress import COMPILING, make_progress
from fastmlp.training.result import TrainResult


class NamedRun(NamedTuple):
    """A run that is ready to be trained, its name in messages, and its run folder."""

    name: str
    plan: RunPlan
    folder: Path


def train_in_parallel(
    runs: Sequence[NamedRun], threads: int | None, say: Say, *, resume: Resume = "never", strict: bool = False
) -> int:
    """Train several runs in parallel, and write their run folders; return the signal that interrupted them, or 0.

    Parameters
    ----------
    runs : runs that share their data
    threads : number of runs that are trained in parallel; None means one per core
    say : function that is called with a status message when a run has ended
    resume : whether to resume the runs in the folders, see `resume.start_for`
    strict : whether to refuse another engine, processor or package version when a run is resumed

    Raises
    ------
    WriteError : a file of a run could not be written; raised after the other runs have ended
    """
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(locked(run.folder))
            stack.enter_context(removed_if_empty(run.folder))
        return train_locked(runs, threads, say, resume, strict)


def train_locked(runs: Sequence[NamedRun], threads: int | None, say: Say, resume: Resume, strict: bool) -> int:
    """Implement `train_in_parallel` for folders that are locked."""
    starts = [start_for(run.plan, run.folder, resume) for run in runs]
    checkpoints = [RunCheckpoints(run.plan, run.folder, start, strict=strict) for run, start in zip(runs, starts, strict=True)]
    for run, start in zip(runs, starts, strict=True):
        if (text := resumed_from(run.folder, start, resume)) and exists(run.folder / CONFIG_NAME):
            say(f"{run.name}: {text}")
    failed: list[WriteError] = []

    def finished(index: int, result: Result) -> None:
        name, plan, folder = runs[index]
        error = None if isinstance(result, TrainResult) else result
        training = result if isinstance(result, TrainResult) else result.training
        if training is None:
            checkpoints[index].remove()
            say(f"{name}: {error}")
            return
        try:
            save_result(plan, TrainOutcome(training, 0, error, seconds_of(training.history)), folder)
            say(f"{name}: {training.end}")
        except WriteError as unwritten:
            failed.append(unwritten)
            say(f"{name}: {unwritten}")

    with make_progress(quiet=True, epochs=1) as silent, observer(lambda: say(COMPILING)):
        recorders = [Recorder(silent, run.folder) for run in runs]
        callbacks = [[periodic_saver(run.plan, run.folder)] for run in runs]
        tasks = [run.plan.task for run in runs]
        for one in checkpoints:
            if one.start is None:
                one.prepare()  # also the runs that will not have started if the process is killed
        try:
            train_tasks(
                tasks, threads=threads, callbacks=callbacks, displays=recorders, finished=finished, checkpoints=checkpoints
            )
        except ManyInterrupted as stop:
            return stop.signal
    if failed:
        raise failed[0]
    return 0
