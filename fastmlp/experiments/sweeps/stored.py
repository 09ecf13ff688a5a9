"""Runs on disk: find the runs in a folder, and read their settings, metrics and histories. comparison.py compares them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments.config.sources import read_config, stored_settings
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.folder import (
    CONFIG_NAME,
    DATA_NAME,
    METRICS_NAME,
    RESULT_NAME,
    SEED_FOLDER,
    TIMINGS_NAME,
    RunData,
    check_manifest,
    read_data,
    read_history,
    read_run_result,
)
from fastmlp.experiments.resume import check_is_run, is_finished, seeds_in
from fastmlp.experiments.sweeps.seeds import SEEDS_NAME, read_seeds
from fastmlp.files import converted, read_lines
from fastmlp.files.reading import entries, exists, is_folder, real_path
from fastmlp.training.monitor import kept_epoch
from fastmlp.training.result import EpochLog


class EpochTimings(msgspec.Struct):
    """The items of a line of timings.jsonl that are read."""

    seconds: float
    eval_seconds: float


class MacroFigures(msgspec.Struct):
    """The macro average of a split in result.json."""

    f1: float


class ClassFigures(msgspec.Struct):
    """The metrics of a classifier on a split in result.json that are compared."""

    accuracy: float
    loss: float | None
    macro: MacroFigures


class ValueFigures(msgspec.Struct):
    """The metrics of a regression on a split in result.json that are compared."""

    r2: float | None
    mae: float
    mse: float
    loss: float | None


class StoredRun(NamedTuple):
    """The content of a run folder that is compared; the run may be unfinished.

    config : its settings
    data : name, SHA-256 hash, number of features and classes of its data
    history : one dict per epoch
    metrics : its metrics on the split that is compared, by name; empty if there are none
    row : the other items of its row in the table: `network`, `parameters`, `best_epoch`, `epochs`, `seconds`, `backend`,
        `finished` and `stopped`
    """

    config: TrainConfig
    data: RunData
    history: Sequence[EpochLog]
    metrics: Mapping[str, float | None]
    row: Mapping[str, Any]

    @property
    def task(self) -> str:
        return "classification" if self.data.classes else "regression"


class Entry(NamedTuple):
    """A row of the table: a run, or several runs that differ only in their seeds.

    folder : the run folder, or the output folder of the seeds
    runs : the runs; several only for an output folder of seeds
    seeds : the seeds of the runs, or None for a single run
    """

    folder: Path
    runs: Sequence[StoredRun]
    seeds: Sequence[int] | None

    @property
    def folders(self) -> list[Path]:
        """The run folder of each run."""
        return seed_folders(self.folder, self.seeds)


# ------------------------------------------------------------------------------------------------ which runs


def expanded(paths: Sequence[str | Path]) -> list[Path]:
    """Return the folders to compare: the paths, where a folder that contains runs is replaced with these runs.

    Raises
    ------
    ConfigError : a run is given twice
    DataError : a path contains no run
    """
    given: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = {real_path(folder): folder for folder in runs_in(path)}
        for resolved, folder in found.items():
            if resolved in given:
                also = "" if given[resolved] == folder else f", also as {given[resolved]}"
                raise ConfigError(f"the run {folder} is given twice{also}; give each run once")
        given |= found
    return list(given.values())


def runs_in(path: Path) -> list[Path]:
    """Return a path itself if it is a run or the output folder of several seeds, else the runs in it."""
    if not exists(path):
        raise DataError(f"{path}: no such folder; check the path")
    if is_entry(path) or not is_folder(path):
        return [path]
    # A symbolic link to a run in the same folder is the same run. Links are sorted last, so that the name of the run is kept.
    inner = sorted((one for one in entries(path) if is_folder(one)), key=lambda one: (one.is_symlink(), one.name))
    found: dict[Path, Path] = {}
    for folder in inner:
        # If seeds.json is missing, not all seeds have finished; then their runs are compared as single runs.
        runs = [folder] if is_entry(folder) else [run for run in seeds_in(folder).values() if is_entry(run)]
        for run in runs:
            found.setdefault(real_path(run), run)
    return sorted(found.values(), key=natural) or [path]  # a folder without runs is reported when it is read


def natural(path: Path) -> list[tuple[bool, Any]]:
    """Return a key that sorts paths with numbers in the order of these numbers, such as run-2 before run-10."""
    parts = re.split(r"([0-9]+)", str(path))
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in parts]


def is_entry(folder: Path) -> bool:
    return exists(folder / CONFIG_NAME) or exists(folder / SEEDS_NAME)


# ------------------------------------------------------------------------------------------------ reading


def read_entry(folder: Path, split: str) -> Entry:
    """Read a run, or the runs of several seeds; raise DataError if a file is missing or damaged."""
    if exists(folder / CONFIG_NAME) or not exists(folder / SEEDS_NAME):
        return Entry(folder, [read_run(folder, split)], None)
    seeds = read_seeds(folder)
    return Entry(folder, [read_run(run, split) for run in seed_folders(folder, seeds)], seeds)


def seed_folders(folder: Path, seeds: Sequence[int] | None) -> list[Path]:
    """Return the run folders of the seeds in the output folder of several seeds, or the folder itself without seeds."""
    return [folder] if seeds is None else [folder / f"{SEED_FOLDER}{seed}" for seed in seeds]


def read_run(folder: Path, split: str) -> StoredRun:
    """Read a run, finished or not; raise DataError if a file is missing or damaged."""
    check_is_run(folder)
    if not is_finished(folder):
        return read_unfinished(folder, split)
    check_manifest(folder, (CONFIG_NAME, RESULT_NAME))
    result = read_run_result(folder)
    data = converted(folder / RESULT_NAME, result["data"], RunData)
    names = ("parameters", "best_epoch", "epochs", "seconds", "backend", "stopped")
    row = {"network": result["network"]["label"], **{name: result[name] for name in names}, "finished": True}
    metrics = {} if result[split] is None else metrics_of(folder / RESULT_NAME, result[split])
    return StoredRun(read_config(folder / CONFIG_NAME), data, read_history(folder), metrics, row)


def read_unfinished(folder: Path, split: str) -> StoredRun:
    """Read a run that is still training, or was killed: the epochs so far, and the metrics of the epoch that is kept."""
    config, data = read_config(folder / CONFIG_NAME), converted(folder / DATA_NAME, read_data(folder), RunData)
    history = read_history(folder) if exists(folder / METRICS_NAME) else []
    validated = [row for row in history if row["val_loss"] is not None]
    with stored_settings(folder / CONFIG_NAME):
        best = kept_epoch(validated or history, config.settings(), bool(validated))
        # The number of targets of a regression is not stored before the end of the run.
        network = config.network(data.features, len(data.classes)) if data.classes else None
    metrics = {}
    if split == "validation" and validated:
        names = ("accuracy", "loss") if data.classes else ("loss",)
        metrics = {name: history[best - 1][f"val_{name}"] for name in names}
    row = {
        "network": network and network.label,
        "parameters": network and network.parameters,
        "best_epoch": best or None,
        "epochs": len(history),
        "seconds": read_seconds(folder / TIMINGS_NAME),
        "backend": None if config.backend == "auto" else config.backend,
        "stopped": None,
        "finished": False,
    }
    return StoredRun(config, data, history, metrics, row)


def read_seconds(path: Path) -> float | None:
    """Return the duration of the epochs in a file timings.jsonl, or None if there is no file."""
    if not exists(path):
        return None
    return sum(row.seconds + row.eval_seconds for row in converted(path, read_lines(path), list[EpochTimings]))


def metrics_of(path: Path, figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the metrics to compare from those of a split in result.json; raise DataError if one is missing.

    path : the file, for error messages
    """
    if "accuracy" in figures:
        found = converted(path, figures, ClassFigures)
        return {"accuracy": found.accuracy, "loss": found.loss, "macro_f1": found.macro.f1}
    values = converted(path, figures, ValueFigures)
    return {"r2": values.r2, "mae": values.mae, "rmse": math.sqrt(values.mse), "loss": values.loss}
