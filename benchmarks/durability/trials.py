"""Short runs that are failed at chosen calls, and checks of the files that they leave."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import numpy as np
from PIL import Image

from benchmarks.durability.calls import Call, observed, real
from fastmlp import files
from fastmlp.errors import FastMLPError
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.folder import CLASSES_NAME, RESULT_NAME, check_manifest
from fastmlp.experiments.record import EPOCH_MODEL
from fastmlp.experiments.result import CLASSES_PICTURE, CONFUSION_NAME, CURVES_NAME
from fastmlp.experiments.resume import resumed_config
from fastmlp.experiments.training_run import run_training
from fastmlp.files import json_bytes, read_json, read_lines, read_toml, write_bytes
from fastmlp.models.file import CHECKPOINTS_NAME
from fastmlp.models.model import load
from fastmlp.training.checkpoints.file import files_of, read, read_newest

TIMED = ("timings.jsonl", "result.json", "manifest.json")  # files that contain durations, or hashes of such files
RESULTS = ("test", "validation", "train", "epochs", "best_epoch", "stopped")  # keys of result.json without durations
PLACE = re.compile(r"the weights of the best epoch, (\d+), are in (.+)$")
PNG_END = b"IEND\xaeB`\x82"  # last bytes of a PNG file
EPOCHS = 3
# Settings of the runs: all files that a run can write, dropout, early stopping, and a schedule.
SETTINGS: dict[str, Any] = {
    "hidden": (6,),
    "epochs": EPOCHS,
    "batch_size": 16,
    "lr": 0.01,
    "dropout": (0.1,),
    "schedule": "cosine",
    "patience": 2,
    "backend": "numpy",
    "checkpoint_seconds": 0.0,
    "per_class_every": 1,
    "save_every": 2,
    "predictions": True,
}
Contents = dict[str, bytes]


def write_data(path: Path) -> Path:
    """Write a data set of three Gaussian clusters (90 rows, 4 features) to a file, and return its path."""
    y = np.arange(90) % 3
    x = np.random.default_rng(1).normal(size=(90, 4)) + 2 * np.eye(3, 4)[y]
    np.savez(path, x=x.astype(np.float32), y=np.array(["red", "green", "blue"])[y])
    return path


@contextlib.contextmanager
def quick_runs() -> Iterator[None]:
    """Replace the figures of a run with a small image, and do not wait for the disk, so that short runs take little time.

    The calls of fsync are still made and observed.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(buffer, "png")

    def draw(plan: Any, training: Any, evaluated: Any, folder: Path) -> None:
        for name in (CURVES_NAME, CONFUSION_NAME, CLASSES_PICTURE):
            write_bytes(folder / name, buffer.getvalue())
        if (folder / CLASSES_NAME).exists():
            read_lines(folder / CLASSES_NAME)

    with (
        mock.patch("fastmlp.experiments.result.draw", draw),
        mock.patch("fastmlp.experiments.training_run.load_matplotlib"),
        mock.patch.object(real, "fsync", lambda descriptor: None),
        mock.patch.object(os, "fsync", lambda descriptor: None),
    ):
        yield


# ------------------------------------------------------------------------------------------------ files of a run


def damaged(folder: Path, *, torn_logs: bool = False, temporaries: bool = False) -> list[str]:
    """Read all files of a run folder, and return a message for each that cannot be read.

    torn_logs : whether the last line of a log may be incomplete
    temporaries : whether temporary files may exist
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or (temporaries and path.suffix == ".tmp"):
            continue
        try:
            read_file(path, torn_logs)
        except Exception as error:
            found.append(f"{path}: {type(error).__name__}: {error}")
    return found


def read_file(path: Path, torn_logs: bool) -> None:
    """Read a file of a run folder with the function that fastmlp uses for it; raise an exception if it is damaged."""
    if path.suffix == ".safetensors":
        if path.parent.name == CHECKPOINTS_NAME:
            read(path)
        load(path, backend="numpy")
    elif path.suffix == ".json":
        read_json(path)
    elif path.suffix == ".toml":
        read_toml(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
        if not path.read_bytes().endswith(PNG_END):
            raise ValueError("the last bytes are missing")
    elif path.suffix in (".jsonl", ".txt", ".csv"):
        read_text(path, torn_logs)
    else:
        raise ValueError("the run should not have left this file")


def read_text(path: Path, torn: bool) -> None:
    """Read a log or a report; raise an exception if it is damaged. The last line of a log may be incomplete if `torn`."""
    *lines, last = path.read_bytes().split(b"\n")
    if last and not (torn and path.suffix == ".jsonl"):
        raise ValueError("the last line is incomplete")
    if path.suffix == ".jsonl":
        for line in lines:
            msgspec.json.decode(line, type=dict[str, Any])


def contents(folder: Path) -> Contents:
    """Return the files of a finished run by relative path, without checkpoints and durations."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: path.read_bytes() for name, path in found.items() if name not in TIMED and CHECKPOINTS_NAME not in name}
    try:
        result = read_json(folder / RESULT_NAME)
    except FastMLPError:
        result = {}
    return kept | {"result": json_bytes([result.get(name) for name in RESULTS])}


def differences(folder: Path, expected: Contents) -> list[str]:
    """Return a message for each file that differs from that of an uninterrupted run, and for each damaged file."""
    found = contents(folder)
    names = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
    wrong = [f"{folder}: {name} differs from that of an uninterrupted run" for name in names]
    try:
        check_manifest(folder)
    except FastMLPError as error:
        wrong.append(str(error))
    return wrong + damaged(folder)


# ------------------------------------------------------------------------------------------------ runs


class Reference(NamedTuple):
    """Results of an uninterrupted run.

    contents : its files
    best : the best epoch after each epoch, from the first one
    weights : the weights after each epoch
    """

    contents: Contents
    best: list[int]
    weights: list[Any]


class Trial(NamedTuple):
    """A run that is failed.

    name : "new", "plain" (without metrics per class), "forced" (in the folder of another run) or "resumed"
    config : its settings
    start : folder with the files that exist before the run, or None
    reference : results of the same run without a failure
    earlier : files of the other run
    """

    name: str
    config: TrainConfig
    start: Path | None
    reference: Reference
    earlier: Contents

    def run(self, folder: Path) -> None:
        """Start the run, or resume it, in a folder that has the files of `start`."""
        as_in_a_new_process()
        if self.name == "resumed":
            resume(folder)
        else:
            run_training(self.config_for(folder), quiet=True)

    def config_for(self, folder: Path) -> TrainConfig:
        """Return the settings of a new run in a folder."""
        return replace(self.config, out=str(folder), force=self.name == "forced")

    def prepare(self, folder: Path) -> None:
        """Make `folder` as it is before the run, and remove everything else in its parent folder."""
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        if self.start is not None:
            shutil.copytree(self.start, folder)


def as_in_a_new_process() -> None:
    """Forget which folders have no left-over temporary files."""
    files._swept.clear()


def resume(folder: Path) -> None:
    """Continue a run."""
    as_in_a_new_process()
    run_training(resumed_config(folder, {}), quiet=True, resume="always")


def trials(folder: Path) -> dict[str, Trial]:
    """Return the trials by name. Their files are in `folder`."""
    data = str(write_data(folder / "data.npz"))
    config = TrainConfig(data=data, **SETTINGS)
    reference = reference_run(config, folder / "reference")
    other = folder / "other"
    run_training(TrainConfig(data=data, **SETTINGS | {"epochs": EPOCHS + 2, "out": str(other)}), quiet=True)
    unfinished = folder / "unfinished"
    new = Trial("new", config, None, reference, contents(other))
    copy_unfinished(new, folder / "copied" / "run", unfinished)
    plain = replace(config, per_class_every=None)
    return {
        "new": new,
        "plain": Trial("plain", plain, None, reference_run(plain, folder / "plain"), {}),
        "forced": new._replace(name="forced", start=other),
        "resumed": new._replace(name="resumed", start=unfinished),
    }


def reference_run(config: TrainConfig, folder: Path) -> Reference:
    """Train without failures. The weights of each epoch are those of a second run, which saves all of them."""
    run, every = folder / "run", folder / "every"
    run_training(replace(config, out=str(run)), quiet=True)
    run_training(replace(config, out=str(every), save_every=1), quiet=True)
    losses = [row["val_loss"] for row in read_lines(run / "metrics.jsonl")]
    best = [losses.index(min(losses[:done])) + 1 for done in range(1, len(losses) + 1)]
    models = [load(every / "models" / EPOCH_MODEL.format(epoch), backend="numpy") for epoch in range(1, len(losses) + 1)]
    return Reference(contents(run), best, [model.parameters for model in models])


def copy_unfinished(trial: Trial, folder: Path, target: Path) -> None:
    """Copy the files that a run has written when the last epoch is not in a checkpoint yet, but in all other files."""

    def after(call: Call, result: Any) -> None:
        if call.name == "write" and call.path.name == "classes.jsonl" and len(read_lines(call.path)) == EPOCHS - 1:
            shutil.copytree(folder, target)

    trial.prepare(folder)
    with observed(folder, lambda call: None, after):
        trial.run(folder)


def check_best(trial: Trial, folder: Path, message: str) -> list[str]:
    """Check that the best weights so far are where an error message says; if it names no place, in the newest checkpoint."""
    if not has_settings(trial, folder) and PLACE.search(message) is None:
        return []  # the training has not started
    logged, reference = folder / "metrics.jsonl", trial.reference
    done = len(read_lines(logged)) if logged.exists() else 0
    if (named := PLACE.search(message)) is not None:
        epoch, place = int(named[1]), Path(named[2])
        if epoch not in reference.best[max(done - 1, 0) :]:
            return [f"{message}: epoch {epoch} is not the best one after {done} epochs"]
    elif not done:
        return []
    elif files_of(folder):
        stored = read_newest(files_of(folder))
        epoch, place = stored.checkpoint.best_epoch, stored.path
    else:
        return [f"{message}: the weights are lost"]
    try:
        same = np.array_equal(load(place, backend="numpy").parameters, reference.weights[epoch - 1])
    except FastMLPError as error:
        return [f"{message}: {error}"]
    return [] if same else [f"{message}: {place} does not have the weights of epoch {epoch}"]


def check_continues(trial: Trial, folder: Path) -> list[str]:
    """Resume a run, or start it if it has no settings yet, and check that it ends with the results of the reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            if not trial.config.checkpoints and not differences(folder, trial.reference.contents):
                return []  # only the last fsync failed, and a finished run without checkpoints cannot be resumed
            if has_settings(trial, folder):
                resume(folder)
            else:
                trial._replace(name="forced" if trial.name == "resumed" else trial.name).run(folder)
        except (FastMLPError, Warning) as error:
            return [f"not continued: {error}"]
    return differences(folder, trial.reference.contents)


def has_settings(trial: Trial, folder: Path) -> bool:
    """Return whether the settings of the run, and not those of an earlier one, are in its folder."""
    config = folder / "config.toml"
    return config.exists() and config.read_bytes() == trial.reference.contents["config.toml"]


def check_earlier(trial: Trial, folder: Path) -> list[str]:
    """Resume the earlier run whose settings are still in the folder, and check that it ends with its results or is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            resume(folder)
        except FastMLPError:
            return []
        except Warning as warning:
            return [f"the earlier run: {warning}"]
    return [f"the earlier run: {line}" for line in differences(folder, trial.earlier)]
