"""One training run, from its settings to its run folder: `run_training`.

plan.py checks settings and data before the training. record.py writes files during the training, result.py at its end.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.filesize import decimal

from fastmlp.data.dataset import Dataset
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.folder import run_folder
from fastmlp.experiments.plan import RunPlan, Say, make_plan, with_inputs
from fastmlp.experiments.record import PeriodicSaver, Recorder, RunCheckpoints
from fastmlp.experiments.result import TrainOutcome, save_result, seconds_of
from fastmlp.experiments.resume import Resume, nothing_left, resumed_from, start_for
from fastmlp.files.reading import size_of
from fastmlp.models.file import files_in
from fastmlp.models.model import Model
from fastmlp.reports.style import load_matplotlib
from fastmlp.training.loop import Diverged, Interrupted, WriteFailed, train_task
from fastmlp.training.progress import Progress, make_progress


class RunResult(NamedTuple):
    """The content of result.json, and the number of the signal that ended the training early, or 0."""

    result: dict[str, Any]
    signal: int


def run_training(
    config: TrainConfig,
    *,
    quiet: bool = False,
    say: Say = lambda text: None,
    data: Dataset | None = None,
    resume: Resume = "never",
    strict: bool = False,
) -> RunResult:
    """Train with the given settings, evaluate the best weights, and write the run folder.

    Parameters
    ----------
    config : the settings
    quiet : if true, show no progress on stderr
    say : function that is called with each status message
    data : a data set in memory, such as features that were just extracted; it replaces the one that `config.data` names
    resume : whether to continue the run in `config.out` from its newest checkpoint, or from the beginning if it has none.
        "always" is for settings from `resume.resumed_config`; "if possible" starts a new run if the folder has no run with the
        same settings and data
    strict : whether to refuse an engine that may give different bits, see `Checkpoints`

    Returns
    -------
    RunResult : `signal` is SIGINT or SIGTERM if that signal ended the training early; the run folder is complete even then

    Raises
    ------
    FastMLPError : settings or data cannot be used; no run folder is created
    Diverged : the training diverged. If at least one epoch was finished, the run folder is complete and has the best weights;
        otherwise there is no run folder
    WriteError : a file could not be written. The training was stopped, and the best weights were saved, in another place if
        they could not be saved in the run folder

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = TrainConfig(hidden=(16,), epochs=2, backend="numpy", out=f"{folder}/run")
    ...     result, signal = run_training(config, quiet=True)
    ...     sorted(path.name for path in Path(folder, "run").iterdir())  # doctest: +NORMALIZE_WHITESPACE
    ['checkpoints', 'config.toml', 'confusion-train.png', 'confusion-validation.png', 'confusion.png', 'curves.png',
     'data.json', 'manifest.json', 'metrics.jsonl', 'mistakes.png', 'model.safetensors', 'report.txt', 'result.json',
     'timings.jsonl']
    """
    plan = make_plan(config, progress=not quiet, data=data)
    rows = ", ".join(f"{len(split):,} {name}" for name, split in plan.splits.items())
    for note in plan.data.notes:
        say(note)
    say(f"{plan.data.name}: {rows} rows; network {plan.network.label}, {plan.network.parameters:,} parameters")
    load_matplotlib()  # before the training, so that a run ends quickly after Ctrl-C
    now = datetime.now().astimezone()
    with run_folder(config.out, plan.data.name, plan.network.label, now, force=config.force or resume == "always") as folder:
        start = start_for(plan, folder, resume)
        if text := resumed_from(folder, start, resume):
            say(text)
        checkpoints = RunCheckpoints(plan, folder, start, strict=strict)
        with make_progress(quiet=quiet, epochs=config.epochs) as display:
            outcome = train_plan(plan, checkpoints, display)
        result = save_result(plan, outcome, folder)
        say(f"{outcome.training.end}: {folder}{disk_usage(checkpoints)}")
        if start is not None and not outcome.signal and nothing_left(start, outcome.training):
            say("no epoch was left to train; increase epochs, or patience after early stopping, to train for longer")
    if outcome.error is not None:
        raise outcome.error
    return RunResult(result, outcome.signal)


def disk_usage(checkpoints: RunCheckpoints) -> str:
    """Return a text with the number and the size of the checkpoints."""
    files = [] if checkpoints.folder is None else files_in(checkpoints.folder)
    size = sum(map(size_of, files))
    return f" ({len(files)} checkpoint{'s'[: len(files) != 1]}, {decimal(size)})" if files else ""


def train_plan(plan: RunPlan, checkpoints: RunCheckpoints, display: Progress) -> TrainOutcome:
    """Run the training and return its outcome, also after a signal; raise Diverged if the first epoch diverges."""
    signal, error = 0, None
    began = time.perf_counter()
    try:
        saver = periodic_saver(plan, checkpoints.run)
        recorder = Recorder(display, checkpoints.run)
        training = train_task(plan.task, [saver], recorder, checkpoints)
    except Interrupted as stop:
        training, signal = stop.training, stop.signal
    except (Diverged, WriteFailed) as stop:
        if stop.training is None:
            checkpoints.remove()
            raise
        training, error = stop.training, stop
    before = 0.0 if checkpoints.start is None else seconds_of(checkpoints.start.checkpoint.history)
    return TrainOutcome(training, signal, error, before + time.perf_counter() - began)


def periodic_saver(plan: RunPlan, folder: Path) -> PeriodicSaver:
    """Return the callback that saves models and per-class metrics of a run at intervals."""
    network, settings, data = plan.task
    start, classes = np.zeros(network.parameters, settings.dtype), plan.data.classes
    model = Model(
        network,
        start,
        data.scaling,
        classes,
        backend=settings.backend,
        target_scaling=data.target_scaling,
        text_labels=data.text_labels,
        image_stats=data.image_stats,
    )
    return PeriodicSaver(folder, plan.config, with_inputs(model, plan.data), plan.splits)
