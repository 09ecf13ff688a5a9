"""Check that a run can be reproduced: `verify_run` repeats its last epochs from a checkpoint, and compares hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmlp.errors import DataError
from fastmlp.experiments.folder import MANIFEST_NAME, METRICS_NAME, check_manifest
from fastmlp.experiments.plan import Say, make_plan
from fastmlp.experiments.record import metrics_bytes
from fastmlp.experiments.resume import check_data, resumed_config
from fastmlp.files.reading import exists, read_bytes
from fastmlp.models.file import FILE_NAME
from fastmlp.models.model import load
from fastmlp.training.checkpoints.file import Checkpoint, files_of, read
from fastmlp.training.replay import replay


def verify_run(folder: Path, flags: Mapping[str, Any], *, say: Say = lambda text: None) -> dict[str, Any]:
    """Train from the checkpoint before the last one, or from the beginning, to the last one, and compare the results.

    Parameters
    ----------
    folder : run folder; it is not changed
    flags : settings to change, see `resume.resumed_config`
    say : function that is called with each status message

    Returns
    -------
    dict : "run", the folder; "from", the name of the checkpoint from which the training was repeated, or None for the
        beginning; "epochs", a list of the first and the last epoch that was repeated; "same", whether all hashes are equal; and
        "sha256", with the hashes "run" and "repeated" of each part of the result

    Raises
    ------
    DataError : the folder is not that of a single run, has no checkpoint, or has a damaged file; or the data have changed
    ConfigError : a setting that determines the results is changed, or the checkpoints are those of other settings
    """
    config, found = resumed_config(folder, flags), files_of(folder)
    if not found:
        raise DataError(f"{folder}: the run has no checkpoint to compare with; repeat it with checkpoints")
    if exists(folder / MANIFEST_NAME):
        check_manifest(folder)
    before, last = read(found[-2]) if len(found) > 1 else None, read(found[-1])
    plan = make_plan(config)
    check_data(plan, folder)
    start = "the beginning" if before is None else before.path.name
    say(f"repeating the training from {start} to {last.path.name}")
    repeated = replay(plan.task, before, last)
    theirs = parts_of(last.checkpoint) | {METRICS_NAME: logged_metrics(folder, len(repeated.history))}
    ours = parts_of(repeated) | {METRICS_NAME: metrics_bytes(repeated.history)}
    if exists(folder / FILE_NAME) and last.checkpoint.partial is None:  # otherwise, it may be the model of a partial epoch
        theirs[FILE_NAME] = load(folder / FILE_NAME, backend="numpy").parameters.tobytes()
        ours[FILE_NAME] = repeated.model.parameters.tobytes()
    done = 0 if before is None else len(before.checkpoint.history)
    return {
        "run": str(folder),
        "from": None if before is None else before.path.name,
        "epochs": [done + 1, len(last.checkpoint.history) + (last.checkpoint.partial is not None)],
        "same": theirs == ours,
        "sha256": {name: {"run": sha256(theirs[name]), "repeated": sha256(ours[name])} for name in theirs},
    }


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def parts_of(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the weights, the state of the optimizer and, after the first epoch, the best weights, as bytes."""
    parts = {
        "weights": checkpoint.state.parameters.tobytes(),
        "optimizer": checkpoint.state.slots.tobytes() + str(checkpoint.state.step).encode(),
    }
    return parts | ({"best weights": checkpoint.model.parameters.tobytes()} if checkpoint.best_epoch else {})


def logged_metrics(folder: Path, epochs: int) -> bytes:
    """Return the first lines of metrics.jsonl of a run, one per epoch."""
    return b"".join(read_bytes(folder / METRICS_NAME).splitlines(keepends=True)[:epochs])


def check_verified(result: Mapping[str, Any]) -> None:
    """Raise DataError if the result of `verify_run` has a difference."""
    if differ := [name for name, hashes in result["sha256"].items() if hashes["run"] != hashes["repeated"]]:
        raise DataError(
            f"{result['run']} was not reproduced: {', '.join(differ)} differ; use the engine, processor and package versions "
            "of the run, or restore its files"
        )
