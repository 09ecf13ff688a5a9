"""Reading of training checkpoints. A checkpoint may be an untrusted file, so all its entries are checked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .description import MAX_SIZE
from .errors import FileError
from .files import Source, check_tensors, read_dict, read_versioned, shapes_of, state_of

CHECKPOINT_VERSION = 1  # format version of checkpoints
CHECKPOINT_KEYS = ("optimizer_name", "network", "optimizer", "history", "best_epoch", "best_score", "best_network")
RETRAIN = "delete it to train from the start"
# Tensors of each optimizer that have the shapes of the parameters, by the name of the optimizer.
MOMENTS = {"adam": {"exp_avg", "exp_avg_sq"}, "adamw": {"exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}
# Keys of the entries of the history. Apart from "epoch", the values are numbers; those of the second line may be None.
LOG_KEYS = ("epoch", "loss", "accuracy", "lr", "seconds", "eval_seconds", "rows_per_second")
VALIDATION_KEYS = ("val_loss", "val_accuracy")


def read_checkpoint(data: bytes, name: str, network: nn.Module, optimizer: str) -> dict[str, Any]:
    """Return the entries of a checkpoint.

    Parameters
    ----------
    data : content of the checkpoint
    name : name of the file, for error messages
    network : the network that is to be trained
    optimizer : name of the optimizer that is to be used

    Returns
    -------
    dict with the `CHECKPOINT_KEYS`; "optimizer" is a dict from the number of a parameter to its tensors

    Raises
    ------
    FileError : the checkpoint is damaged, has another format version, or was written for another network or optimizer
    """
    kind, keys = "a training checkpoint", CHECKPOINT_KEYS
    state = read_versioned(data, name, version=CHECKPOINT_VERSION, keys=keys, kind=kind, remedy=RETRAIN)
    source, given = Source(name, "damaged checkpoint", RETRAIN), state["optimizer_name"]
    if type(given) is not str or given not in MOMENTS:
        raise source.error(f"unknown optimizer {str(given)[:60]!r}")
    if given != optimizer:
        message = f"{name}: the checkpoint was written with optimizer {given!r}, but the setting is {optimizer!r}"
        message += f"; set optimizer to {given!r}, or delete the checkpoint to train from the start"
        raise FileError(message, settings=("optimizer",))
    other = Source(name, "the checkpoint does not match the network", RETRAIN)
    for key in ("network", "best_network"):
        state[key] = state_of(network, check_tensors(other, key, state[key], shapes_of(network)))
    state["optimizer"] = read_moments(source, state["optimizer"], list(network.parameters()), optimizer)
    check_history(source, state["history"], state["best_epoch"])
    if type(state["best_score"]) is not float:
        raise source.error(f"best_score is of type {type(state['best_score']).__name__}, not float")
    return state


def read_moments(source: Source, found: Any, parameters: list[nn.Parameter], optimizer: str) -> dict[int, dict[str, Any]]:
    """Return the tensors of the optimizer for each parameter, by its number; raise FileError if they are invalid.

    The hyperparameters in the checkpoint are not used, because the settings contain them.
    """
    moments = read_dict((read_dict(found) or {}).get("state"))
    if moments is None:
        raise source.error("the optimizer state is missing")
    checked: dict[int, dict[str, Any]] = {}
    for number, entry in moments.items():
        if type(number) is not int or not 0 <= number < len(parameters):
            problem = f"the optimizer state has parameter {repr(number)[:60]}"
            raise source.error(f"{problem}, but the network has {len(parameters)} parameters")
        place, parameter = f"optimizer {number}", parameters[number]
        shapes = {name: (tuple(parameter.shape), parameter.dtype) for name in MOMENTS[optimizer]}
        if optimizer != "sgd":
            checked[number] = check_tensors(source, place, entry, shapes | {"step": ((), torch.float32)})
            if not 1 <= float(checked[number]["step"]) < math.inf:
                raise source.error(f"{place} has an invalid number of steps")
            continue
        tensors = read_dict(entry)
        absent = tensors in ({}, {"momentum_buffer": None})  # without momentum
        checked[number] = {} if absent else check_tensors(source, place, tensors, shapes)
    return checked


def check_history(source: Source, history: Any, best_epoch: Any) -> tuple[list[dict[str, Any]], int]:
    """Return the history of a training, which has an entry with `LOG_KEYS` and `VALIDATION_KEYS` per epoch, and its best epoch.

    Raises
    ------
    FileError : the history has other entries, or the best epoch is neither 0 nor an epoch of the history
    """
    if type(history) is not list:
        raise source.error("the history is not a list")
    if type(best_epoch) is not int or not 0 <= best_epoch <= len(history):
        raise source.error(f"best_epoch is {repr(best_epoch)[:60]}, not an integer from 0 to {len(history)}")
    for number, entry in enumerate(history, start=1):
        log = read_dict(entry) or {}
        if log.keys() != {*LOG_KEYS, *VALIDATION_KEYS} or type(log["epoch"]) is not int or log["epoch"] != number:
            raise source.error(f"invalid entry {number} of the history")
        numbers = [value for name, value in log.items() if value is not None or name not in VALIDATION_KEYS]
        if not all(type(value) is float or (type(value) is int and abs(value) <= MAX_SIZE) for value in numbers):
            raise source.error(f"a value of entry {number} of the history is not a number")
    return history, best_epoch
