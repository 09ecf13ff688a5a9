"""Settings and data of a training run, and checks that they are consistent."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import CheckedRows, check_description, check_split, check_weights, match_network
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.names import canonical_name
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.scaling import Scaling
from fastmlp.nn.schedules import Schedule

MONITORS = ("loss", "accuracy")  # metrics of the validation split that select the best epoch


@dataclass(frozen=True)
class Settings:
    """Training settings.

    Parameters
    ----------
    schedule : learning rate and its schedule
    optimizer : optimizer with its settings
    epochs : maximum number of epochs
    batch_size : mini-batch size; the last mini-batch of an epoch may be smaller
    patience : early-stopping patience in epochs; None disables early stopping
    monitor : metric on the validation split that determines the best epoch: "loss" or "accuracy"
    min_delta : minimum change of the monitored metric that counts as an improvement
    flip, shift : augmentation of training images, drawn again in every epoch: probability of a horizontal flip, and maximum
        shift in pixels; see augment.py
    val_steps : number of updates between evaluations of the validation split within an epoch; None to evaluate it only at the
        end of each epoch
    max_time : time limit in seconds, which may also stop training within an epoch; None for no limit
    seed : random seed for initial weights, row order, dropout and augmentation, from 0 to 2^64 - 1
    backend, threads, dtype, precision : see `engines.make_engine` and `base.EngineSpec`

    Raises
    ------
    ConfigError : a value is invalid
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
                raise ConfigError(f"{name} must be at least {least} and a whole number, not {value!r}", settings=(name,))
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip must be a probability between 0 and 1, not {self.flip}", settings=("flip",))
        if not (self.min_delta >= 0 and math.isfinite(self.min_delta)):
            raise ConfigError(f"min_delta must be zero or a positive number, not {self.min_delta}", settings=("min_delta",))
        object.__setattr__(self, "monitor", canonical_name("monitor", self.monitor, MONITORS))
        if self.max_time is not None and not self.max_time > 0:
            raise ConfigError(f"max_time must be a positive number of seconds, not {self.max_time}", settings=("max_time",))
        if self.seed >= 2**64:
            raise ConfigError(f"seed must be between 0 and 2^64 - 1, not {self.seed}", settings=("seed",))


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Data for training, whose values have been checked.

    `check_data` creates it from arrays. It can also be created from the splits of a data set, which have already been checked.
    Afterwards `make_task` checks that the shapes match the network.

    Parameters
    ----------
    train, validation : features and targets of the two splits; validation may be None
    sample_weight : (n,) positive float32 weights of the training rows; None for equal weights
    scaling : scaling that is applied to the features whenever they are used; None for no scaling
    classes : names of the classes, empty for regression; None for "0", "1", …
    image_shape : (height, width, channels) if the rows are images
    """

    train: CheckedRows
    validation: CheckedRows | None = None
    sample_weight: FloatArray | None = None
    scaling: Scaling | None = None
    classes: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int] | None = None


def check_data(
    network: Network,
    dtype: npt.DTypeLike,
    rows: tuple[Any, Any],
    validation: tuple[Any, Any] | None = None,
    sample_weight: Any = None,
    **description: Any,
) -> TrainingData:
    """Check all values in the arrays passed to `train`. Arrays that already have the required dtype are not copied.

    Parameters
    ----------
    dtype : dtype in which the engine computes
    rows, validation : (x, y) of the training split and of the validation split
    description : scaling, classes and image_shape, see `TrainingData`

    Raises
    ------
    DataError : an array does not fit the network, or contains values that are not finite
    """
    train = check_split(network, *rows, "training", dtype)
    held_out = None if validation is None else check_split(network, *validation, "validation", dtype)
    weights = None if sample_weight is None else check_weights(sample_weight, len(train))
    return TrainingData(train, held_out, weights, **description)


class Task(NamedTuple):
    """A network, training settings, and checked data that fit both. Created by `make_task`."""

    network: Network
    settings: Settings
    data: TrainingData

    @property
    def cost(self) -> int:
        """Floating-point operations per training row in all epochs together."""
        return self.network.flops_per_row * self.settings.epochs

    @property
    def kernel_key(self) -> Hashable:
        """Tasks with the same key use the same compiled kernels, whatever their sizes, learning rates and seeds are."""
        network, optimizer = self.network, self.settings.optimizer
        activations = frozenset(layer.activation for layer in network.layers[:-1])
        dropout = any(layer.dropout for layer in network.layers)
        switches = (dropout, network.l1 > 0, network.l2 > 0, network.label_smoothing > 0, optimizer.clip_norm > 0)
        types = (self.settings.backend, np.dtype(self.settings.dtype), self.settings.precision)
        return (*types, activations, network.loss_name, network.output, optimizer.name, switches)


def make_task(network: Network, settings: Settings, data: TrainingData) -> Task:
    """Combine a network, settings and checked data into a task.

    The data are converted to the dtype of the settings if necessary, and the classes are named. The values of the features are
    not checked again, only their shape.

    Raises
    ------
    DataError : the data do not fit the network
    ConfigError : see `check_settings`
    """
    train = match_network(network, data.train, "training", settings.dtype)
    validation = data.validation and match_network(network, data.validation, "validation", settings.dtype)
    if validation is not None and validation.y.ndim != train.y.ndim:
        raise DataError("training and validation targets must both be classes or both be numbers")
    numbered = tuple(map(str, range(network.sizes[-1]))) if train.y.ndim == 1 else ()
    names = numbered if data.classes is None else data.classes
    check_description(network, None if data.scaling is None else len(data.scaling.shift), len(names), data.image_shape)
    given, regression = validation is not None, train.y.ndim == 2
    check_settings(settings, validation=given, images=data.image_shape is not None, regression=regression)
    return Task(network, settings, replace(data, train=train, validation=validation, classes=names))


def check_settings(settings: Settings, *, validation: bool, images: bool, regression: bool = False) -> None:
    """Check that the settings can be used with the data.

    Parameters
    ----------
    validation : whether there is a validation split
    images : whether the rows are images
    regression : whether the targets are numbers instead of class labels

    Raises
    ------
    ConfigError : a setting requires a validation split, images or class labels, which the data do not have
    """
    for name in ("patience", "val_steps"):
        if getattr(settings, name) is not None and not validation:
            raise ConfigError(
                f"{name} needs a validation split; add one, or leave {name} unset", settings=(name, "val_fraction")
            )
    if (settings.flip or settings.shift) and not images:
        raise ConfigError("flip and shift can only be used with images; do not set them", settings=("flip", "shift"))
    if settings.monitor == "accuracy" and regression:
        raise ConfigError("monitor 'accuracy' needs class labels; use monitor 'loss' for regression", settings=("monitor",))
