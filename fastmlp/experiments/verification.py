"""Check that a run can be reproduced: `verify_run` repeats its last epochs from a checkpoint, and compares hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmlp.errors import DataError
from fastmlp.experiments.folder import METRICS_NAME
from fastmlp.experiments.plan import Say, make_plan
from fastmlp.experiments.record import log_lines
from fastmlp.experiments.resume import check_data, resumed_config
from fastmlp.files import file_errors, json_bytes
from fastmlp.training.checkpoints.file import files_of, read
from fastmlp.training.replay import digests, replay


def verify_run(folder: Path, flags: Mapping[str, Any], *, say: Say = lambda text: None) -> dict[str, Any]:
    """Train from the checkpoint before the last one, or from the beginning, to the last one, and compare the results.

    Parameters
    ----------
    folder : run folder; it is not changed
    flags : settings to change, see `resume.resumed_config`
    say : function that is called with each status message

    Returns
    -------
    dict : "run"; "from", the name of the checkpoint from which the training was repeated, or None; "epochs", the first and the
        last epoch that was repeated; "same", whether all hashes are equal; and "sha256", with the hashes of the run and of the
        repetition for each part of the result

    Raises
    ------
    FastMLPError : the run has no checkpoint, or its data are not available
    """
    config, found = resumed_config(folder, flags), files_of(folder)
    if not found:
        raise DataError(f"{folder}: the run has no checkpoint, so it cannot be verified")
    before, last = read(found[-2]) if len(found) > 1 else None, read(found[-1])
    plan = make_plan(config)
    check_data(plan, folder)
    done = 0 if before is None else len(before.checkpoint.history)
    start = "the beginning" if before is None else before.path.name
    say(f"repeating the training from {start} to {last.path.name}")
    repeated = replay(plan.task, before, last)
    metrics = b"".join(json_bytes(log_lines(row)[0]) for row in last.checkpoint.history)
    with file_errors("read", folder / METRICS_NAME):
        logged = (folder / METRICS_NAME).read_bytes().startswith(metrics)
    theirs, ours = digests(last.checkpoint), digests(repeated)
    return {
        "run": str(folder),
        "from": None if before is None else before.path.name,
        "epochs": [done + 1, len(last.checkpoint.history) + (last.checkpoint.partial is not None)],
        "same": theirs == ours and logged,
        "log_is_intact": logged,
        "sha256": {name: {"run": theirs[name], "repeated": ours[name]} for name in theirs},
    }


def check_verified(result: Mapping[str, Any]) -> None:
    """Raise DataError if the result of `verify_run` has a difference."""
    differ = [name for name, hashes in result["sha256"].items() if hashes["run"] != hashes["repeated"]]
    if not result["log_is_intact"]:
        differ.append(METRICS_NAME)
    if differ:
        raise DataError(
            f"{result['run']}: the run is not reproduced; different: {', '.join(differ)}. Either a file was changed, or the "
            "engine, the processor or a library is not the same as in the run"
        )
