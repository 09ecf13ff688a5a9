"""Checks that a training run is the one that wrote a checkpoint, so that it can be resumed with bitwise identical results."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from typing import Any

import msgspec
import numpy as np

from fastmlp.errors import ConfigError, DataError, printable
from fastmlp.files import json_bytes
from fastmlp.nn.activations import digest_of
from fastmlp.nn.blocks import blocks
from fastmlp.nn.checks import shown
from fastmlp.nn.schedules import Schedule
from fastmlp.training.checkpoints.file import StoredCheckpoint
from fastmlp.training.settings import Settings, Task, TrainingData

# Settings that may differ when a run is resumed. The first three determine when it ends, the others where it is computed.
CHANGEABLE = ("epochs", "patience", "max_time", "backend", "threads")


def settings_table(settings: Settings) -> dict[str, Any]:
    """Return the fields of `Settings`, with the fields of the optimizer and the schedule, in a form that JSON can represent.

    >>> table = settings_table(Settings(seed=3))
    >>> table["seed"], table["optimizer.name"], table["schedule"]
    (3, 'adam', 'Schedule')
    """
    table: dict[str, Any] = {}
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if dataclasses.is_dataclass(value):
            table[one.name] = type(value).__name__
            table |= {f"{one.name}.{inner.name}": getattr(value, inner.name) for inner in dataclasses.fields(value)}
        else:
            table[one.name] = np.dtype(value).name if one.name == "dtype" else value
    return dict(msgspec.json.decode(json_bytes(table)))


def data_digest(data: TrainingData) -> str:
    """Return the SHA-256 hash of the arrays and the scalings with which a network is trained."""
    total = hashlib.sha256()
    for rows in (data.train, data.validation):
        for array in () if rows is None else (rows.x, rows.y, rows.weight):
            if array is not None:
                total.update(f"{array.dtype.str} {array.shape} ".encode())
                for _, block in blocks(array):
                    total.update(np.ascontiguousarray(block).data)
    for scaling in (data.scaling, data.target_scaling):
        if scaling is not None:
            for values in scaling.to_arrays().values():
                total.update(values.tobytes())
    return total.hexdigest()


def activation_digests(task: Task) -> dict[str, str]:
    """Return the hash of the code of each custom activation of a network."""
    digests = {layer.activation: digest_of(layer.activation) for layer in task.network.layers[:-1]}
    return {name: digest for name, digest in digests.items() if digest}


def check_same(stored: StoredCheckpoint, task: Task, data: str) -> None:
    """Check that a training run is the one that wrote a checkpoint, so that it can be resumed.

    data : `data_digest` of the training data

    Raises
    ------
    ConfigError : the network, an activation or a setting differs; or the number of epochs, on which the schedule depends
    DataError : the data differ
    """
    where, record = stored.path, stored.record
    if changed := differences(stored, task):
        raise ConfigError(
            f"{where}: the settings of a training run cannot be changed when it is resumed: {'; '.join(changed)}. "
            "Use the same settings, or start a new run with another folder"
        )
    if len(stored.checkpoint.state.slots) != len(task.settings.optimizer.slots):
        found, needed = len(stored.checkpoint.state.slots), len(task.settings.optimizer.slots)
        problem = f"the checkpoint has {found} optimizer slots per parameter, but the optimizer needs {needed}"
        raise DataError(f"{where}: {problem}; start a new run in another folder")
    digests = activation_digests(task)
    if names := [name for name in digests if digests[name] != record.activations.get(name)]:
        raise ConfigError(f"{where}: the code of the activation {names[0]!r} has changed; restore it, or start a new run")
    check_epochs(stored, task.settings)
    if data != record.data:
        raise DataError(
            f"{where}: the training or validation arrays, the sample weights or the scaling differ from those of the "
            "checkpoint; use the same data, or start a new run with another folder"
        )


def differences(stored: StoredCheckpoint, task: Task) -> list[str]:
    """Return a text for each field of the network and each setting that differs from those of a checkpoint."""
    now, network = settings_table(task.settings), stored.checkpoint.model.network
    # Checkpoints of older versions lack the settings that were added later, whose default values describe these versions.
    defaults = {name: value for name, value in settings_table(Settings()).items() if "." not in name}
    before = defaults | stored.record.settings
    names = [one.name for one in dataclasses.fields(network) if one.name != "hidden"]
    pairs = {name: (getattr(network, name), getattr(task.network, name)) for name in names}
    pairs |= {name: (before.get(name), now.get(name)) for name in {**before, **now} if name not in CHANGEABLE}
    changed = {name: f"{name} was {shown(old)} and is now {shown(new)}" for name, (old, new) in pairs.items() if old != new}
    owners = {name: name.partition(".")[0] for name in changed}  # "schedule" of "schedule.gamma"
    return [text for name, text in changed.items() if owners[name] == name or owners[name] not in changed]


def check_epochs(stored: StoredCheckpoint, settings: Settings) -> None:
    """Raise ConfigError if the number of epochs is smaller than that of the checkpoint, or if the schedule depends on it."""
    before, epochs, schedule = stored.record.settings["epochs"], settings.epochs, settings.schedule
    if epochs != before and isinstance(schedule, Schedule) and schedule.depends_on_epochs:
        raise ConfigError(
            f"{stored.path}: epochs must stay {before}, because the learning rates of the schedule {schedule.kind} depend "
            f"on it; use {before} epochs, or start a new run",
            settings=("epochs", "schedule"),
        )
    done = len(stored.checkpoint.history) + (stored.checkpoint.partial is not None)
    if epochs < done:
        raise ConfigError(
            f"{stored.path}: the checkpoint is in epoch {done}, so epochs must be at least {done}, not {epochs}",
            settings=("epochs",),
        )


def check_environment(stored: StoredCheckpoint, now: dict[str, str], *, strict: bool) -> None:
    """Warn, or with `strict` raise ConfigError, if the numerical environment is not that of the checkpoint.

    now : see `engines.environment`
    """
    before = stored.record.environment
    if before == now:
        return
    # Another engine uses other packages.
    names = ["backend"] if before["backend"] != now["backend"] else [name for name in now if now[name] != before.get(name)]
    changed = ", ".join(f"{name} {before.get(name, 'none')} (now {now[name]})" for name in names)
    text = f"the checkpoint was written with {changed}"
    if strict:
        raise ConfigError(
            f"{stored.path}: {text}; use the same engine, processor and package versions, or turn off strict to accept results "
            "that are not bitwise identical",
            settings=("strict",),
        )
    warnings.warn(
        f"{printable(text)}; the results may differ, because rounding differences grow during training",
        RuntimeWarning,
        stacklevel=4,
    )
