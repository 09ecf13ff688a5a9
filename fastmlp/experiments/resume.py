"""Continuation of a run that was interrupted or killed: its settings, its newest checkpoint, and what its folder contains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments.config.sources import read_config, resolve
from fastmlp.experiments.config.train import FIELDS, TrainConfig
from fastmlp.experiments.folder import (
    CONFIG_NAME,
    DATA_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    MODELS_NAME,
    SEED_FOLDER,
    check_manifest,
    read_data,
    read_run_result,
)
from fastmlp.experiments.plan import RunPlan, in_memory, portable
from fastmlp.files.reading import exists, files_matching, is_file, is_folder, read_bytes
from fastmlp.models.file import CHECKPOINTS_NAME
from fastmlp.training.checkpoints.compare import CHANGEABLE
from fastmlp.training.checkpoints.file import StoredCheckpoint, files_of, read_newest
from fastmlp.training.result import TrainResult

Resume = Literal["never", "if possible", "always"]
# Settings that may differ when a run is resumed: those of the training, and those that only concern the files of the run.
RESUMABLE = {
    *CHANGEABLE,
    "data",
    "data_dir",
    "max_decompressed",
    "out",
    "force",
    "checkpoints",
    "checkpoint_seconds",
    "predictions",
    "min_accuracy",
}


def resumed_config(folder: Path, flags: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a run that is resumed. Environment variables are ignored.

    Parameters
    ----------
    folder : run folder
    flags : settings to change, see `config.sources.resolve`; only those in `RESUMABLE` may differ from those of the run

    Raises
    ------
    ConfigError : a setting that determines the results is changed
    DataError : the folder is not a run folder
    """
    check_is_run(folder)
    if flags.get("out") is not None:
        raise ConfigError("out cannot be changed when a run is resumed; resume a copy of the folder instead", settings=("out",))
    before, now = read_config(folder / CONFIG_NAME), resolve(flags, {}, folder / CONFIG_NAME)
    changed = [name for name in FIELDS if name not in RESUMABLE and getattr(now, name) != getattr(before, name)]
    if changed:
        values = ", ".join(f"{name} was {getattr(before, name)} and is now {getattr(now, name)}" for name in changed)
        raise ConfigError(
            f"{folder}: these settings cannot be changed when a run is resumed: {values}; leave them out, or start a new run",
            settings=changed,
        )
    if in_memory(now.data):
        raise ConfigError(f"{folder}: {now.data} were kept in memory only, so the run cannot be resumed; run it again")
    return replace(now, out=str(folder))


def check_is_run(folder: Path) -> None:
    """Raise DataError, with a remedy, if a path is not a run folder."""
    if exists(folder / CONFIG_NAME):
        return
    if found := seeds_in(folder):
        raise DataError(f"{folder} has the runs of several seeds; give one of them, such as {next(iter(found.values()))}")
    owner = next((parent for parent in folder.parents if exists(parent / CONFIG_NAME)), None)
    if owner is not None:
        raise DataError(f"{folder} is part of the run folder {owner}; give the path of the run folder")
    raise DataError(f"{folder} is not a run folder, since it has no {CONFIG_NAME}; check the path, or start a new run")


def seeds_in(folder: Path) -> dict[int, Path]:
    """Return the run folders by seed in the output folder of `--seeds`, in the order of the seeds."""
    found = {path.name.removeprefix(SEED_FOLDER): path for path in files_matching(folder, f"{SEED_FOLDER}*")}
    return dict(sorted((int(seed), path) for seed, path in found.items() if seed.isdecimal()))


def resumed_seeds(folder: Path, flags: Mapping[str, Any]) -> tuple[TrainConfig, list[int]] | None:
    """Return the settings and the seeds of the runs in the output folder of `--seeds`, or None for any other folder.

    The folders of all seeds are created before the settings are written, so a run may have been killed before it had any. The
    folder of a seed that diverged in its first epoch is removed.
    """
    found = {} if exists(folder / CONFIG_NAME) else seeds_in(folder)
    with_settings = [path for path in found.values() if exists(path / CONFIG_NAME)]
    if not with_settings:
        return None
    return replace(resumed_config(with_settings[0], flags), out=str(folder)), list(found)


def start_of(plan: RunPlan, folder: Path) -> StoredCheckpoint | None:
    """Return the checkpoint from which a run continues, or None if it was killed or failed before it wrote one.

    Raises
    ------
    DataError : the data differ from those of the run, or its checkpoints are damaged
    ConfigError : the run ended without checkpoints
    """
    if not exists(folder / CONFIG_NAME):  # of several seeds; the others have settings
        return None
    check_data(plan, folder)
    if files := files_of(folder):
        return read_newest(files)
    if has_ended(folder):
        raise ConfigError(f"{folder}: the run has ended, and has no checkpoint to resume from; start a new run")
    return None


def has_ended(folder: Path) -> bool:
    """Return whether a run has all its files, and none of them could not be written."""
    return exists(folder / MANIFEST_NAME) and read_run_result(folder)["stopped"] != "failed"


def check_data(plan: RunPlan, folder: Path) -> None:
    """Raise DataError if the data of a plan are not those of the run in a folder."""
    if read_data(folder).get("sha256") != plan.data.sha256:
        raise DataError(
            f"{plan.config.data} has changed since the run in {folder} was started; restore the data, or start a new run",
            settings=("data", "data_dir"),
        )


def start_for(plan: RunPlan, folder: Path, resume: Resume) -> StoredCheckpoint | None:
    """Return the checkpoint from which a run starts, or None to start from the beginning.

    resume : "never"; "always", see `start_of`; or "if possible", if `has_run` is true
    """
    resumes = resume == "always" or (resume == "if possible" and has_run(plan, folder))
    return start_of(plan, folder) if resumes else None


def resumed_from(folder: Path, start: StoredCheckpoint | None, resume: Resume) -> str:
    """Return a message that tells where a run is resumed; empty for a run that is not resumed."""
    if start is None:
        return f"{folder} has no checkpoint; training from the beginning" if resume == "always" else ""
    done, partial = len(start.checkpoint.history), start.checkpoint.partial
    if partial is None:
        return f"resuming after epoch {done}, from {start.path}"
    return f"resuming in epoch {done + 1}, after {len(partial.metrics.loss):,} rows, from {start.path}"


def nothing_left(start: StoredCheckpoint, training: TrainResult) -> bool:
    """Return whether a run was resumed although its training had ended."""
    return start.checkpoint.partial is None and len(training.history) == len(start.checkpoint.history)


def has_run(plan: RunPlan, folder: Path) -> bool:
    """Return whether a folder has a run with the settings and the data of a plan that can be resumed."""
    if not exists(folder / CONFIG_NAME) or not exists(folder / DATA_NAME):
        return False
    same = portable(read_config(folder / CONFIG_NAME)) == portable(plan.config)
    same = same and read_data(folder).get("sha256") == plan.data.sha256
    return same and (bool(files_of(folder)) or not has_ended(folder))


# ------------------------------------------------------------------------------------------------ unfinished runs


class RunState(NamedTuple):
    """A saved model, and the run that it belongs to.

    config : the settings of the run; the defaults for a model file that is not in a run folder
    data : description of the data of the run, see `result.describe_data`; empty for such a file
    model : file with the model, or the run folder
    unfinished : message for the user if the run has not finished, else ""
    """

    config: TrainConfig
    data: dict[str, Any]
    model: Path
    unfinished: str


def state_of(path: Path) -> RunState:
    """Return the run of a run folder, a model file or a checkpoint; of an unfinished run, the model is the newest checkpoint.

    Raises
    ------
    DataError : a file of a finished run is missing or damaged, or an unfinished run has no checkpoint
    """
    folder = run_of(path)
    if folder is None:
        return RunState(TrainConfig(), {}, path, "")
    check_is_run(folder)
    if is_finished(folder):
        check_manifest(folder)
        return RunState(read_config(folder / CONFIG_NAME), dict(read_run_result(folder)["data"]), path, "")
    config, data = read_config(folder / CONFIG_NAME), read_data(folder)
    text = f"{folder}: the run has not finished"
    if is_file(path):
        return RunState(config, data, path, text)
    if not (files := files_of(folder)):
        raise DataError(f"{text}, and has no checkpoint, only {contents(folder)}; resume or repeat the run")
    stored = read_newest(files)
    done, best = len(stored.checkpoint.history), stored.checkpoint.best_epoch
    text += f"; the newest checkpoint, {stored.path.name}, has {done} of {config.epochs} epochs"
    text += f", and the weights of epoch {best}, the {'best' if config.restore_best else 'last'} one" if best else ""
    return RunState(config, data, stored.path, text)


def is_finished(folder: Path) -> bool:
    """Return whether the files of a run folder are those of a finished run, of which some may be missing."""
    return exists(folder / MANIFEST_NAME) or not exists(folder / DATA_NAME)


def contents(folder: Path) -> str:
    """Return what an unfinished run without checkpoints has, in words."""
    metrics = folder / METRICS_NAME
    epochs = read_bytes(metrics).count(b"\n") if exists(metrics) else 0
    models = len(files_matching(folder / MODELS_NAME, "*.safetensors"))
    parts = ["its settings"]
    if epochs:
        parts.append(f"the metrics of {epochs} epoch{'s'[: epochs != 1]}")
    if models:
        parts.append(f"{models} model{'s'[: models != 1]} in the subfolder {MODELS_NAME}")
    return " and ".join(parts)


def run_of(path: Path) -> Path | None:
    """Return the run folder of a path: a folder itself, or the folder of the run that saved a model or a checkpoint.

    Return None for any other file.
    """
    if is_folder(path):
        return path
    inner = path.absolute().parent
    is_in_run = inner.name in (CHECKPOINTS_NAME, MODELS_NAME) and exists(inner.parent / CONFIG_NAME)
    return inner.parent if is_in_run else None
