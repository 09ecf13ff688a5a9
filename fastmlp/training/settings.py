"""How to train, and on what: the settings of a training, its data, and whether they go together.

Not here: the training loop (loop.py), settings of commands (experiments/config/train.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import Rows, check_description, check_part, check_weights
from fastmlp.data.rows import Features
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.scaling import Scaling
from fastmlp.nn.schedules import Schedule

MONITORS = ("loss", "accuracy")  # figures of the validation part by which the best epoch is kept


@dataclass(frozen=True)
class Settings:
    """How to train.

    Parameters
    ----------
    schedule : learning rate and its course
    optimizer : the update rule
    epochs : passes over the training part at most
    batch_size : rows of a step; the last batch of an epoch may be shorter
    patience : stop after this many epochs without a better `monitor`; None never stops early
    monitor : "loss" or "accuracy" of the validation part; its best epoch's weights are kept
    min_delta : by how much the monitor must be better to count
    flip, shift : what is done to training images anew in each epoch: mirrored with this probability, moved by up to so many
        pixels each way; see augment.py
    val_steps : measure the validation part also after every so many updates; None only after epochs
    max_time : seconds after which training stops, mid-epoch if need be; None for no limit
    seed : of initial weights, row order, dropout, flip and shift, 0 to 2^64 - 1
    backend, threads, dtype, precision : see `engines.make_engine` and `base.EngineSpec`

    Raises
    ------
    ConfigError : a value that cannot be
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(0.01))
    optimizer: Optimizer = field(default_factory=Optimizer)
    epochs: int = 50
    batch_size: int = 64
    patience: int | None = None
    monitor: str = "loss"
    min_delta: float = 0.0
    flip: float = 0.0
    shift: int = 0
    val_steps: int | None = None
    max_time: float | None = None
    seed: int = 0
    backend: str = "auto"
    threads: int | None = None
    dtype: npt.DTypeLike = np.float32
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "val_steps", "threads", "seed", "shift"):
            value, least = getattr(self, name), 0 if name in ("seed", "shift") else 1
            if value is not None and not (isinstance(value, Integral) and int(value) >= least):
                raise ConfigError(f"{name} must be at least {least}, a whole number, not {value!r}")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip is a probability between 0 and 1, not {self.flip}")
        if not (self.min_delta >= 0 and math.isfinite(self.min_delta)):
            raise ConfigError(f"min_delta must be zero or a positive number, not {self.min_delta}")
        if self.monitor not in MONITORS:
            raise ConfigError(f"monitor must be loss or accuracy, not {self.monitor!r}")
        if self.max_time is not None and not self.max_time > 0:
            raise ConfigError(f"max_time must be a positive number of seconds, not {self.max_time}")
        if self.seed >= 2**64:
            raise ConfigError(f"seed must be between 0 and 2^64 - 1, not {self.seed}")


class TrainingData(NamedTuple):
    """What networks are trained on, as `train` takes it; `check_data` puts it into the types that engines take."""

    x: Features
    y: npt.NDArray[Any]
    validation: Rows | None = None
    weights: FloatArray | None = None
    scaling: Scaling | None = None
    classes: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int] | None = None


def check_data(network: Network, dtype: npt.DTypeLike, given: TrainingData) -> TrainingData:
    """The data in the types that engines take, for networks with this one's inputs, outputs and loss; or a DataError.

    What has these types already is not copied.
    """
    x, y = check_part(network, given.x, given.y, "training", dtype)
    validation = None if given.validation is None else check_part(network, *given.validation, "validation", dtype)
    if validation is not None and validation[1].ndim != y.ndim:
        raise DataError("training and validation targets must both be classes or both be numbers")
    weights = None if given.weights is None else check_weights(given.weights, len(x))
    numbered = tuple(map(str, range(network.sizes[-1]))) if y.ndim == 1 else ()
    names = numbered if given.classes is None else given.classes
    check_description(network, None if given.scaling is None else len(given.scaling.shift), len(names), given.image_shape)
    return TrainingData(x, y, validation, weights, given.scaling, names, given.image_shape)


def check_settings(settings: Settings, data: TrainingData) -> None:
    """Raise ConfigError if there is nothing in the data that the settings want watched."""
    if settings.patience is not None and data.validation is None:
        raise ConfigError("patience needs a validation part to watch; give one (--val-fraction) or leave patience out")
    if settings.val_steps is not None and data.validation is None:
        raise ConfigError("val_steps needs a validation part to measure; give one (--val-fraction) or leave val_steps out")
    check_moves(settings, data.image_shape)
    if settings.monitor == "accuracy" and data.y.ndim == 2:
        raise ConfigError("monitor 'accuracy' needs classes; regression watches 'loss'")


def check_moves(settings: Settings, image_shape: tuple[int, int, int] | None) -> None:
    """Raise ConfigError if something is to be moved that is no image."""
    if (settings.flip or settings.shift) and image_shape is None:
        raise ConfigError("flip and shift move images, and the rows are none; leave them out (extract has its own)")
