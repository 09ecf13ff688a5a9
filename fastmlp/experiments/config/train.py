"""Settings of a `train` run. Each field of `TrainConfig` is also a flag, an environment variable and a key of config.toml.

`TrainConfig` builds the `Network` and the `Settings` of the training, which validate most of the values. fields.py defines the
types of settings, and sources.py reads their values.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from fastmlp.data.tables.encoding import MISSING_STRATEGIES
from fastmlp.data.tables.target import TableOptions
from fastmlp.engines import CHOICES
from fastmlp.engines.base import PRECISIONS
from fastmlp.errors import ConfigError
from fastmlp.experiments.config.fields import (
    BOOLEAN,
    CLASS_WEIGHT,
    COLUMN,
    DELIMITER,
    DURATION,
    FLOAT,
    FLOATS,
    FOLDER,
    INTEGER,
    INTEGERS,
    list_of,
    name_with_number,
    one_of,
)
from fastmlp.experiments.config.shared import (
    DataSettings,
    check_intervals,
    data_setting,
    fields_of,
    network_setting,
    result_setting,
    training_setting,
)
from fastmlp.nn.activations import ACTIVATIONS, canonical_activation
from fastmlp.nn.losses import LOSSES, OUTPUTS, canonical_loss
from fastmlp.nn.network import ALIASES, DEFAULT_HIDDEN, INITIALIZERS, Network, canonical_init
from fastmlp.nn.optimizers import DEFAULT_LEARNING_RATE, RULES, Optimizer
from fastmlp.nn.scaling import SCALINGS
from fastmlp.nn.schedules import PLATEAU, SCHEDULE_NAMES, ReduceOnPlateau, Schedule
from fastmlp.training.checkpoints.folder import DEFAULT_SECONDS
from fastmlp.training.settings import DEFAULT_PATIENCE, DEFAULT_SCALING, MONITORS, Settings

INITS = (*INITIALIZERS, *ALIASES)
ACTIVATION = list_of(name_with_number(ACTIVATIONS, canonical_activation), "names, such as relu or relu,tanh", "NAME,...")
RATES_HELP = ", ".join(f"{rate:g} for {name}" for name, rate in DEFAULT_LEARNING_RATE.items())


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataSettings):
    """Settings of a `train` run.

    Raises
    ------
    ConfigError : a name is unknown, a value is out of range, or settings contradict each other

    Examples
    --------
    >>> config = TrainConfig(hidden=(16,), optimizer="SGD")
    >>> config.optimizer, config.lr, config.network(64, 10).label
    ('sgd', 0.05, '64x16x10')
    """

    target: str | None = data_setting(
        COLUMN, None, "Target column of a table: name, number from 1, first or last [default: see docs/tables.md].", common=True
    )
    drop: tuple[str, ...] = data_setting(
        list_of(COLUMN, "names or numbers of columns", "COLUMN,..."),
        (),
        "Columns of a table to exclude from the features.",
    )
    missing: str | None = data_setting(
        one_of("missing", MISSING_STRATEGIES),
        None,
        "Missing values of a table: drop their rows, or replace them with the mean or median [default: an error].",
    )
    delimiter: str | None = data_setting(DELIMITER, None, "Delimiter of a table: a character, or tab [default: detected].")
    header: bool | None = data_setting(
        BOOLEAN, None, "Whether the first line of a table contains the column names [default: detected]."
    )
    weight: str | None = data_setting(
        COLUMN,
        None,
        "Column of a table, or array, with a positive weight for each training row in the loss; it is not used as a feature.",
    )
    class_weight: str | None = data_setting(
        CLASS_WEIGHT,
        None,
        "Factors of the loss of the rows of a class, such as cat=2,dog=0.5; balanced weights rare classes higher.",
    )
    hidden: tuple[int, ...] = network_setting(
        INTEGERS, DEFAULT_HIDDEN, "Sizes of the hidden layers; none means no hidden layer.", common=True
    )
    activation: tuple[str, ...] = network_setting(
        ACTIVATION,
        (Network.activation,),
        f"Activation function, or one per hidden layer: {', '.join(ACTIVATIONS)}; leaky-relu:0.2 sets the slope.",
        common=True,
    )
    dropout: tuple[float, ...] = network_setting(
        FLOATS, (Network.dropout,), "Dropout rate: one value, or one per hidden layer.", common=True
    )
    init: str = network_setting(
        name_with_number(INITS, canonical_init),
        Network.init,
        f"Initialization of the weights: {', '.join(INITS)}; normal:0.1 sets the scale. pytorch also draws the biases.",
    )
    random_biases: bool = network_setting(
        BOOLEAN, Network.random_biases, "Draw the biases from the same distribution as the weights; otherwise, they are zero."
    )
    l1: float = network_setting(FLOAT, Network.l1, "L1 penalty on the weights.")
    l2: float = network_setting(FLOAT, Network.l2, "L2 penalty on the weights.")
    loss: str | None = network_setting(
        name_with_number(LOSSES, canonical_loss),
        None,
        f"Loss function: {', '.join(LOSSES)}; huber:1.5 sets delta, and quantile:0.9 sets the level "
        "[default: cross-entropy for classification, squared-error for regression].",
    )
    output: str | None = network_setting(
        one_of("output", OUTPUTS),
        None,
        "Output function [default: softmax for cross-entropy, sigmoid for binary-cross-entropy, exp for poisson, else linear].",
    )
    target_scale: str = network_setting(
        one_of("scaling", SCALINGS),
        DEFAULT_SCALING,
        "Scaling of the targets of a regression, fitted to the training split; predictions are on the original scale.",
    )
    label_smoothing: float = network_setting(FLOAT, Network.label_smoothing, "Amount of label smoothing.")

    epochs: int = training_setting(INTEGER, Settings.epochs, "Maximum number of epochs.", common=True)
    batch_size: int = training_setting(INTEGER, Settings.batch_size, "Mini-batch size.", common=True)
    optimizer: str = training_setting(one_of("optimizer", RULES), Optimizer.name, "Optimizer.", common=True)
    lr: float | None = training_setting(FLOAT, None, f"Learning rate [default: {RATES_HELP}].", common=True)
    momentum: float = training_setting(FLOAT, Optimizer.momentum, "Momentum of the optimizers momentum and nesterov.")
    beta1: float = training_setting(FLOAT, Optimizer.beta1, "Decay rate of the mean of gradients, for adam and adamw.")
    beta2: float = training_setting(
        FLOAT, Optimizer.beta2, "Decay rate of the mean of squared gradients, for adam, adamw, rmsprop."
    )
    epsilon: float = training_setting(
        FLOAT, Optimizer.epsilon, "Constant added to the denominator, for adam, adamw and rmsprop."
    )
    weight_decay: float = training_setting(FLOAT, Optimizer.weight_decay, "Decoupled weight decay, for adamw.")
    max_grad_norm: float = training_setting(
        FLOAT, Optimizer.max_grad_norm, "Clip the gradient if its norm is larger than this; 0 disables clipping."
    )
    schedule: str = training_setting(one_of("schedule", SCHEDULE_NAMES), Schedule.kind, "Learning-rate schedule.", common=True)
    lr_warmup: float = training_setting(FLOAT, Schedule.warmup, "Linear warm-up, in epochs.")
    lr_step: float = training_setting(FLOAT, Schedule.step, "Epochs between two learning-rate steps, for schedule step.")
    lr_gamma: float = training_setting(
        FLOAT, Schedule.gamma, "Each step multiplies the learning rate by this factor, for step and plateau."
    )
    lr_patience: int = training_setting(
        INTEGER,
        ReduceOnPlateau.patience,
        "Epochs without improvement before the learning rate is reduced, for schedule plateau.",
    )
    lr_decay: float = training_setting(
        FLOAT, Schedule.decay, "Decay rate per epoch, for schedules inverse-time and exponential."
    )
    patience: int | None = training_setting(
        INTEGER,
        None,
        f"Early-stopping patience in epochs; 0 disables it [default: {DEFAULT_PATIENCE}, or 0 without a validation split].",
        common=True,
    )
    monitor: str = training_setting(
        one_of("monitor", MONITORS), Settings.monitor, "Validation metric that determines the best epoch and early stopping."
    )
    min_delta: float = training_setting(
        FLOAT, Settings.min_delta, "Smallest change of `monitor` that counts as an improvement."
    )
    restore_best: bool = training_setting(
        BOOLEAN, Settings.restore_best, "Keep the weights of the best epoch; otherwise, keep those of the last epoch."
    )
    val_steps: int | None = training_setting(INTEGER, None, "Also validate after every N mini-batches.")
    max_time: float | None = training_setting(DURATION, None, "Stop after this time, such as 30s, 2m or 1h.", common=True)
    shuffle: bool = training_setting(
        BOOLEAN, Settings.shuffle, "Shuffle the training rows in every epoch; otherwise, all epochs have the same mini-batches."
    )
    flip: float = training_setting(FLOAT, Settings.flip, "In every epoch, mirror each training image with this probability.")
    shift: int = training_setting(
        INTEGER, Settings.shift, "In every epoch, shift images randomly by up to N pixels in each direction."
    )

    backend: str = result_setting(
        one_of("backend", CHOICES),
        Settings.backend,
        "Engine; auto chooses the fastest engine that works on this machine.",
        common=True,
    )
    threads: int | None = result_setting(INTEGER, None, "Number of threads [default: one per usable core].")
    dtype: str = result_setting(
        one_of("dtype", ("float32", "float64")), "float32", "Floating-point type; numba and cuda support only float32."
    )
    precision: str = result_setting(
        one_of("precision", PRECISIONS),
        Settings.precision,
        "Precision of matrix products; tf32 and bf16 use tensor cores, and need `backend` cuda.",
    )
    out: str | None = result_setting(FOLDER, None, "Run folder [default: runs/DATE-data-network].", common=True)
    force: bool = result_setting(BOOLEAN, False, "Write into `out` even if it is not empty.")
    checkpoints: bool = result_setting(BOOLEAN, True, "Write checkpoints, from which an interrupted run can be resumed.")
    checkpoint_seconds: float = result_setting(
        DURATION, DEFAULT_SECONDS, "Write a checkpoint after an epoch if the last one is older than this."
    )
    per_class_every: int | None = result_setting(
        INTEGER,
        None,
        "Every N epochs, write per-class metrics and confusion matrices to classes.jsonl; plot them in classes.png.",
    )
    save_every: int | None = result_setting(INTEGER, None, "Save the model every N epochs in the subfolder models.")
    predictions: bool = result_setting(
        BOOLEAN, False, "Write predictions.txt with the test loss, the accuracy, and the true and predicted class of each row."
    )
    min_accuracy: float | None = result_setting(FLOAT, None, "Exit with code 6 if the test accuracy is below this value.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype == "float64" and self.backend == "numba":
            raise ConfigError("dtype float64 needs backend numpy or torch, not numba", settings=("dtype", "backend"))
        if not 0 <= (self.min_accuracy or 0) <= 1:
            raise ConfigError(f"min_accuracy must be between 0 and 1, not {self.min_accuracy}", settings=("min_accuracy",))
        for name in ("patience", "min_delta", "checkpoint_seconds"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}", settings=(name,))
        check_intervals(self)
        if self.schedule == PLATEAU and self.lr_warmup:
            raise ConfigError("schedule plateau has no warm-up; leave lr_warmup out", settings=("lr_warmup", "schedule"))
        if self.task == "regression":
            self._check_regression()
        if self.task is not None:
            self.complete({"loss": "cross-entropy" if self.task == "classification" else "squared-error"})
        self.complete(
            {
                "lr": DEFAULT_LEARNING_RATE[self.optimizer],
                "patience": DEFAULT_PATIENCE if self.val_count or self.val_fraction else 0,
            }
        )

    def with_task(self, task: str) -> TrainConfig:
        """Return the settings for a task that is inferred from the data. Raise ConfigError if a setting is for another task."""
        return self if self.task == task else dataclasses.replace(self, task=task)

    def table_options(self) -> TableOptions:
        """Return how a table is read."""
        return TableOptions(**{name: getattr(self, name) for name in TableOptions._fields})

    def _check_regression(self) -> None:
        for name, value in (("loss", "cross-entropy"), ("monitor", "accuracy"), ("stratify", True)):
            if getattr(self, name) == value:
                raise ConfigError(
                    f"{name} {value} is for classification, but task is regression; leave it out", settings=(name, "task")
                )
        for name in ("min_accuracy", "label_smoothing", "per_class_every", "predictions", "class_weight"):
            if getattr(self, name):
                raise ConfigError(
                    f"{name} is for classification, but task is regression; leave it out", settings=(name, "task")
                )

    def network(self, features: int, outputs: int) -> Network:
        """Return the network for the given numbers of features and outputs."""
        single = {name: getattr(self, name) for name in ("activation", "dropout")}
        given = {name: values[0] if len(values) == 1 else values for name, values in single.items()}
        return Network((features, *self.hidden, outputs), **(self.shared(Network) | given))

    def settings(self) -> Settings:
        """Return the `Settings` of the training, which include the optimizer and the schedule."""
        assert self.lr is not None
        optimizer = Optimizer(self.optimizer, self.lr, **self.shared(Optimizer, "name", "learning_rate"))
        if self.schedule == PLATEAU:
            schedule: Schedule | ReduceOnPlateau = ReduceOnPlateau(self.lr_gamma, self.lr_patience)
        else:
            schedule = Schedule(self.schedule, self.lr_warmup, self.lr_decay, self.lr_gamma, self.lr_step)
        return Settings(optimizer, schedule, **self.shared(Settings, "optimizer", "schedule"))

    def shared(self, description: Any, *left_out: str) -> dict[str, Any]:
        """Return the settings that are fields of a dataclass, as arguments for it, except those in `left_out`."""
        names = [one.name for one in dataclasses.fields(description) if one.name not in left_out]
        return {name: getattr(self, name) for name in names if name in FIELDS}


FIELDS = fields_of(TrainConfig)
