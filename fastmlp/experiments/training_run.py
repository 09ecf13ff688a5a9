"""One training run from its settings to its folder: `train_run`.

Not here: what is known before it starts (plan.py), what is written while it trains (record.py) and at its end (result.py), the
training loop (training/loop.py), and what is done with a run afterwards (evaluation.py, prediction.py).
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmlp.data.dataset import Dataset
from fastmlp.data.scaling import fit_scaling
from fastmlp.experiments.config.train import Config
from fastmlp.experiments.folder import new_run_folder
from fastmlp.experiments.plan import Plan, Say, make_plan, of_images, portable
from fastmlp.experiments.record import Recorder, Snapshots
from fastmlp.experiments.result import Ended, finish
from fastmlp.models.model import Model
from fastmlp.nn.scaling import Scaling
from fastmlp.training.loop import Diverged, Interrupted, train
from fastmlp.training.progress import make_progress


class Outcome(NamedTuple):
    """The object in result.json, and the signal that ended the training early, 0 for none."""

    result: dict[str, Any]
    signal: int


# ------------------------------------------------------------------------------------------------ before


@contextmanager
def run_folder(plan: Plan) -> Iterator[Path]:
    """The folder of a run; taken away again if it was made here and nothing came into it."""
    config = plan.config
    existed = config.out is not None and Path(config.out).exists()
    now = datetime.now().astimezone()
    folder = new_run_folder(config.out, plan.data.name, plan.network.label, now, force=config.force)
    try:
        yield folder
    finally:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def load_for_the_end() -> None:
    """Load now what only the end needs, fonts and file formats included: after Ctrl-C there is no time for it."""
    from matplotlib.figure import Figure

    Figure().savefig(io.BytesIO())


# ------------------------------------------------------------------------------------------------ the run


def train_run(config: Config, *, quiet: bool = False, say: Say = lambda text: None, data: Dataset | None = None) -> Outcome:
    """Train as the settings say, measure the best weights, and write the run folder.

    Parameters
    ----------
    config : the settings
    quiet : no progress on stderr
    say : takes a line for a person on what is being done
    data : what to train on instead of what the settings name: features that an extractor has just made

    Returns
    -------
    Outcome : its `signal` is SIGINT or SIGTERM if that ended the training; the folder is complete then too

    Raises
    ------
    FastMLPError : settings or data that cannot be used; then no folder is made
    Diverged : if an epoch was finished before, the folder is complete, with the best weights; else none is

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = Config(hidden=(16,), epochs=2, backend="numpy", out=f"{folder}/run")
    ...     result, signal = train_run(config, quiet=True)
    ...     sorted(path.name for path in Path(folder, "run").iterdir())  # doctest: +NORMALIZE_WHITESPACE
    ['config.toml', 'confusion.png', 'curves.png', 'manifest.json', 'metrics.jsonl', 'model.safetensors',
     'report.txt', 'result.json']
    """
    plan = make_plan(config, progress=not quiet, data=data)
    rows = ", ".join(f"{len(x):,} {name}" for name, (x, _) in plan.parts.items())
    say(f"{plan.data.name}: {rows} rows; network {plan.network.label}, {plan.network.parameters:,} parameters")
    load_for_the_end()
    with run_folder(plan) as folder:
        with make_progress(quiet=quiet, epochs=config.epochs) as display:
            ended = run_training(plan, Recorder(display, folder, portable(config)), folder)
        result = finish(plan, ended, folder)
    say(f"{ended.training.stopped} after epoch {result['epochs']}, best {result['best_epoch']}: {folder}")
    if ended.error is not None:
        raise ended.error
    return Outcome(result, ended.signal)


def run_training(plan: Plan, recorder: Recorder, folder: Path) -> Ended:
    """Train to the end, to a signal, or to the epoch before the one that diverged."""
    signal, error = 0, None
    scaling = fit_scaling(plan.config.scale, plan.parts["train"][0])
    began = time.perf_counter()
    try:
        training = train(
            plan.network,
            *plan.parts["train"],
            settings=plan.settings,
            validation=plan.parts.get("validation"),
            scaling=scaling,
            classes=plan.data.classes or None,
            image_shape=plan.data.image_shape,
            callbacks=[snapshots_of(plan, folder, scaling)],
            progress=recorder,
        )
    except Interrupted as stop:
        training, signal = stop.training, stop.signal
    except Diverged as stop:
        if stop.training is None:
            raise
        training, error = stop.training, stop
    return Ended(training, signal, error, time.perf_counter() - began)


def snapshots_of(plan: Plan, folder: Path, scaling: Scaling) -> Snapshots:
    """What is to be kept of a network while it trains."""
    network, start = plan.network, np.zeros(plan.network.parameters, plan.settings.dtype)
    model = Model(network, start, scaling, plan.data.classes, backend=plan.settings.backend, **of_images(plan.data))
    return Snapshots(folder, plan.config, model, plan.parts)
