"""Settings and data of a training run, and checks that they are consistent."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, changed
from fastmlp.data.checks import CheckedRows, check_description, match_network
from fastmlp.data.images.polarity import ImageStats
from fastmlp.data.rows import Features
from fastmlp.data.scaling import fit_scaling
from fastmlp.data.tables.encoding import TableEncoding
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.checks import check_arguments, check_number, check_switch, check_whole, shown
from fastmlp.nn.names import canonical_name
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer, make_optimizer
from fastmlp.nn.scaling import SCALINGS, Scaling
from fastmlp.nn.schedules import ReduceOnPlateau, Schedule, make_schedule

MONITORS = ("loss", "accuracy")  # metrics of the validation split that select the best epoch
# For each setting that is a whole number: its smallest value.
WHOLE_NUMBERS = {"epochs": 1, "batch_size": 1, "patience": 0, "val_steps": 1, "threads": 1, "shift": 0}
OPTIONAL = ("patience", "val_steps", "threads", "max_time")  # settings that may be None
# For each setting that is a number: whether a value is valid, and the requirement in words.
NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "flip": (lambda value: 0 <= value <= 1, "a probability between 0 and 1"),
    "min_delta": (lambda value: 0 <= value < math.inf, "zero or a positive number"),
    "max_time": (lambda value: value > 0, "a positive number of seconds"),
}
SWITCHES = ("shuffle", "restore_best")  # settings that are True or False
DTYPES = ("float32", "float64", np.float32, np.float64, np.dtype(np.float32), np.dtype(np.float64))
DEFAULT_PATIENCE = 10  # epochs, with a validation split
DEFAULT_SCALING = "zscore"  # of the inputs, and of targets that are numbers
TEST_START, TEST_END, TEST_STEPS = 1e-7, 10.0, 200  # defaults of the learning-rate range test
LEAST_TEST_STEPS = 10
# Losses whose targets are scaled if the output function is linear. The other losses restrict the range of the targets.
SCALED_TARGET_LOSSES = ("squared-error", "absolute-error", "huber", "quantile")
# Names of other libraries or of other parts of fastmlp that are easily tried as settings, and what to write instead.
LEARNING_RATE, NETWORK = "optimizer=fastmlp.Adam(learning_rate=0.001)", "fastmlp.Network(hidden=(128,), {}=...)"
INSTEAD = {
    "lr": LEARNING_RATE,
    "learning_rate": LEARNING_RATE,
    "learning_rate_init": LEARNING_RATE,
    "weight_decay": "optimizer=fastmlp.AdamW(weight_decay=0.01)",
    "momentum": "optimizer=fastmlp.SGD(momentum=0.9)",
    "max_grad_norm": "optimizer=fastmlp.Adam(max_grad_norm=1.0)",
    "warmup": "schedule=fastmlp.Cosine(warmup=1)",
    "hidden_layer_sizes": "fastmlp.Network(hidden=(128,))",
    "hidden": "fastmlp.Network(hidden=(128,))",
    **{
        name: NETWORK.format(name)
        for name in ("activation", "dropout", "loss", "output", "l1", "l2", "label_smoothing", "init", "random_biases")
    },
    "validation_data": "the pair as the third argument: train(network, (x, y), (x_validation, y_validation))",
    "max_epochs": "epochs",
    "max_iter": "epochs",
    "early_stopping": "patience=10",
    "n_iter_no_change": "patience",
    "restore_best_weights": "restore_best",
    "random_state": "seed",
    "device": "backend",
    "verbose": "progress=True",
    "x": "the pair (x, y) as the second argument of train",
    "y": "the pair (x, y) as the second argument of train",
}


@dataclass(frozen=True, repr=False)
class Settings(Summarized):
    """Training settings.

    Parameters
    ----------
    optimizer : optimizer with its settings, such as `fastmlp.Adam(learning_rate=0.001)`, or its name
    schedule : learning-rate schedule, such as `fastmlp.Cosine(warmup=1)`, or its name
    epochs : maximum number of epochs
    batch_size : mini-batch size; the last mini-batch of an epoch may be smaller
    patience : early-stopping patience in epochs; 0 disables early stopping. None selects 10 with a validation split, and 0
        without one
    monitor : metric on the validation split that determines the best epoch: "loss" or "accuracy"
    min_delta : minimum change of the monitored metric that counts as an improvement
    shuffle : whether the rows are in a new random order in every epoch; with False, they stay in the order in which they are
        given, so all epochs have the same mini-batches
    restore_best : whether the model gets the weights of the best epoch; with False, it gets those of the last epoch
    flip, shift : augmentation of training images, drawn again in every epoch: probability of a horizontal flip, and maximum
        shift in pixels; see augment.py
    val_steps : number of updates between evaluations of the validation split within an epoch; None to evaluate it only at the
        end of each epoch
    max_time : time limit in seconds, which may also stop training within an epoch; None for no limit
    seed : random seed for initial weights, row order, dropout and augmentation, from 0 to 2^64 - 1
    backend : "auto" (the fastest engine that works), "numba", "numpy", "torch" or "cuda"
    threads : maximum number of CPU threads; None to choose it automatically
    dtype : "float32", or "float64" with the backends numpy and torch
    precision : of matrix products: "float32", or with the backend cuda also "tf32" and "bf16"

    Raises
    ------
    ConfigError : a value is invalid
    """

    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule | ReduceOnPlateau = field(default_factory=Schedule)
    epochs: int = 50
    batch_size: int = 64
    patience: int | None = None
    monitor: str = "loss"
    min_delta: float = 0.0
    shuffle: bool = True
    restore_best: bool = True
    flip: float = 0.0
    shift: int = 0
    val_steps: int | None = None
    max_time: float | None = None
    seed: int = 0
    backend: str = "auto"
    threads: int | None = None
    dtype: npt.DTypeLike = "float32"
    precision: str = "float32"

    def __new__(cls, *args: Any, **given: Any) -> Settings:
        """Check the names of the arguments before `__init__`, to suggest the right ones."""
        check_names(given)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        given: Any = self.optimizer
        if not isinstance(given, Optimizer):
            object.__setattr__(self, "optimizer", make_optimizer(given))
        object.__setattr__(self, "schedule", make_schedule(self.schedule))
        object.__setattr__(self, "monitor", canonical_name("monitor", self.monitor, MONITORS))
        for name, least in WHOLE_NUMBERS.items():
            if getattr(self, name) is not None or name not in OPTIONAL:
                check_whole(name, getattr(self, name), least)
        for name in SWITCHES:
            check_switch(name, getattr(self, name))
        check_whole("seed", self.seed, 0, 2**64 - 1)
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be 'float32' or 'float64', not {shown(self.dtype)}", settings=("dtype",))
        for name, (valid, needed) in NUMBERS.items():
            if getattr(self, name) is not None or name not in OPTIONAL:
                check_number(name, getattr(self, name), valid, needed)

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows: the optimizer, and the settings that are not the default values."""
        return changed(self, Settings(), "optimizer")


def check_names(given: Mapping[str, Any]) -> None:
    """Raise ConfigError if a name is not a setting; the message says what to write instead."""
    check_arguments("fastmlp.Settings", given, [one.name for one in fields(Settings)], INSTEAD)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Data for training, whose values have been checked. `prepare` creates it.

    Parameters
    ----------
    train, validation : features and scaled targets of the two splits; validation may be None
    scaling : scaling that is applied to the features whenever they are used; None for no scaling
    classes : names of the classes, empty if the targets are numbers; None for "0", "1", …
    image_shape : (height, width, channels) if the rows are images
    target_scaling : scaling that has been applied to the targets; None for no scaling
    text_labels : whether the class labels were given as strings
    encoding : for a table or a data frame, the encoding of its columns as features
    image_stats : statistics of the training images of type uint8
    """

    train: CheckedRows
    validation: CheckedRows | None = None
    scaling: Scaling | None = None
    classes: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int] | None = None
    target_scaling: Scaling | None = None
    text_labels: bool = False
    encoding: TableEncoding | None = None
    image_stats: ImageStats | None = None


def prepare(
    network: Network,
    train: CheckedRows,
    validation: CheckedRows | None = None,
    *,
    scaling: str | Scaling | None = DEFAULT_SCALING,
    target_scaling: str | Scaling | None = DEFAULT_SCALING,
) -> TrainingData:
    """Fit the scalings to the training split, and scale the targets.

    Parameters
    ----------
    network : network with known sizes
    train, validation : checked rows; validation may be None
    scaling : scaling of the features: a name, see `data.scaling.fit_scaling`, a `Scaling`, or None for no scaling
    target_scaling : scaling of the targets, given like `scaling`; only used if `scales_targets` is true

    Raises
    ------
    ConfigError, DataError : see `data.scaling.fit_scaling` and `Scaling`
    """
    fitted = fitted_scaling(scaling, train.x)
    of_targets = fitted_scaling(target_scaling, train.y) if scales_targets(network, train) else None
    if of_targets is not None:
        train = replace(train, y=of_targets.apply(train.y, train.y.dtype))
        validation = validation and replace(validation, y=of_targets.apply(validation.y, validation.y.dtype))
    return TrainingData(train, validation, fitted, target_scaling=of_targets)


def fitted_scaling(given: str | Scaling | None, values: Features) -> Scaling | None:
    """Return `given`, or if it is a name, fit the scaling to values (n, features)."""
    other: Any = given
    if not isinstance(other, str | Scaling | None):
        raise ConfigError(f"scaling must be {', '.join(map(repr, SCALINGS))}, None or a fastmlp.Scaling, not {shown(other)}")
    return fit_scaling(given, values) if isinstance(given, str) else given


def scales_targets(network: Network, rows: CheckedRows) -> bool:
    """Return whether the targets are scaled: numbers, a linear output, and one of `SCALED_TARGET_LOSSES`."""
    return rows.y.ndim == 2 and network.output == "linear" and network.loss_name in SCALED_TARGET_LOSSES


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
        switches = (dropout, network.l1 > 0, network.l2 > 0, network.label_smoothing > 0, optimizer.max_grad_norm > 0)
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
    check_description(network, None if data.scaling is None else len(data.scaling.shift), names, data.image_shape)
    given, regression = validation is not None, train.y.ndim == 2
    if data.image_shape is not None and settings.shift >= min(data.image_shape[:2]):
        raise ConfigError(f"shift must be smaller than the images, not {settings.shift}", settings=("shift",))
    check_settings(settings, validation=given, images=data.image_shape is not None, regression=regression)
    if settings.patience is None:
        settings = replace(settings, patience=DEFAULT_PATIENCE if given else 0)
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
        if getattr(settings, name) and not validation:
            raise ConfigError(
                f"{name} needs a validation split; add one, or leave {name} unset", settings=(name, "val_fraction")
            )
    if (settings.flip or settings.shift) and not images:
        raise ConfigError(
            "flip and shift can only be used with images: x of shape (n, height, width[, channels])", settings=("flip", "shift")
        )
    if settings.monitor == "accuracy" and regression:
        raise ConfigError("monitor 'accuracy' needs class labels; use monitor 'loss' for regression", settings=("monitor",))


def check_range(start: float, end: float, steps: Any) -> None:
    """Check the range of learning rates and the number of mini-batches of a learning-rate range test.

    Raises
    ------
    ConfigError : a value is invalid
    """
    if not 0 < start < end < math.inf:
        raise ConfigError(
            f"start and end must be positive numbers with start < end, not {start} and {end}", settings=("start", "end")
        )
    if not (isinstance(steps, Integral) and int(steps) >= LEAST_TEST_STEPS):
        raise ConfigError(f"steps must be a whole number of at least {LEAST_TEST_STEPS}, not {steps!r}", settings=("steps",))
