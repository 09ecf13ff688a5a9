"""The settings of a `train` run: one description from which flags, variables and config.toml are made.

Here: `Config`, a field per setting with its kind, default and help, and its way into `Network` and
`Settings`, which check what they are given. Not here: how a value is read (fields.py), where it comes
from (sources.py), and Click (commands/options.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from fastmlp.engines import CHOICES
from fastmlp.engines.base import PRECISIONS
from fastmlp.errors import ConfigError
from fastmlp.experiments.config.fields import (
    DURATION,
    FLAG,
    FOLDER,
    NAME,
    NAMES,
    NUMBER,
    NUMBERS,
    SIZE,
    SOURCE,
    WHOLE,
    WHOLES,
    Kind,
    one_of,
)
from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.network import ALIASES, INITIALIZERS, Network
from fastmlp.nn.optimizers import DEFAULT_LEARNING_RATE, RULES, Optimizer
from fastmlp.nn.scaling import SCALINGS
from fastmlp.nn.schedules import SCHEDULES, Schedule
from fastmlp.training.settings import MONITORS, Settings

PATIENCE = 10

OUTPUTS = tuple(dict.fromkeys(output for outputs in LOSSES.values() for output in outputs))
RATES_HELP = ", ".join(f"{rate:g} for {name}" for name, rate in DEFAULT_LEARNING_RATE.items())


def setting(group: str, kind: Kind, default: Any, text: str) -> Any:
    """A field of `Config`; the group is its heading in --help. None: not set, or by the rule in the text."""
    return field(default=default, metadata={"group": group, "kind": kind, "help": text})


def of_data(kind: Kind, default: Any, text: str) -> Any:
    return setting("Data", kind, default, text)


def of_network(kind: Kind, default: Any, text: str) -> Any:
    return setting("Network", kind, default, text)


def of_training(kind: Kind, default: Any, text: str) -> Any:
    return setting("Training", kind, default, text)


def of_run(kind: Kind, default: Any, text: str) -> Any:
    return setting("Engine and result", kind, default, text)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data, and their parts: what every command that trains has.

    Raises
    ------
    ConfigError : a share or a number of rows that cannot be
    """

    data: str = of_data(
        SOURCE, "digits", "Data set by name, .npz, .safetensors or .csv file, folder of x.npy and y.npy or of image folders."
    )
    data_dir: str | None = of_data(FOLDER, None, "Where named data sets lie [default: in the user's cache].")
    image_size: tuple[int, int] | None = of_data(SIZE, None, "Resize the images of a folder.")
    target: str = of_data(one_of("target", ("class", "value")), "class", "What is predicted; value is regression.")
    val_fraction: float | None = of_data(NUMBER, 0.2, "Share of the rows kept for validation, 0 for none.")
    val_count: int | None = of_data(WHOLE, None, "Validation rows as a number, instead of --val-fraction.")
    test_fraction: float | None = of_data(NUMBER, 0.2, "Share kept for the test if the data has no test part.")
    test_count: int | None = of_data(WHOLE, None, "Test rows as a number, instead of --test-fraction.")
    stratify: bool = of_data(FLAG, False, "Give each part the same mix of classes.")
    scale: str = of_data(one_of("scaling", SCALINGS), "zscore", "Scaling of inputs, fitted on the training part.")
    seed: int = of_data(WHOLE, 0, "For the split, the initial weights, the order of rows, and all else at random.")

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        for name in ("val_count", "test_count"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")

    def split_sizes(self) -> dict[str, Any]:
        """What `data.splits.split` takes beside the data set."""
        validation = self.val_count if self.val_count is not None else self.val_fraction or 0
        test = self.test_count if self.test_count is not None else self.test_fraction or 0
        return {"validation": validation, "test": test, "stratify": self.stratify, "seed": self.seed}

    def table(self) -> dict[str, Any]:
        """The settings that are set, as TOML takes them; `resolve` reads them back."""
        table = {name: getattr(self, name) for name in fields_of(type(self)) if getattr(self, name) is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in table.items()}

    def text(self) -> str:
        """The settings that are set, as TOML.

        >>> print(Config(seed=7).text().splitlines()[0])
        data = "digits"
        """
        return tomli_w.dumps(self.table())

    def complete(self, values: dict[str, Any]) -> None:
        """Give settings that are not set their values; only for the time of making one."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # the way a frozen dataclass completes itself


@dataclass(frozen=True, kw_only=True)
class Config(DataSettings):
    """Everything that decides a `train` run.

    Raises
    ------
    ConfigError : settings that contradict each other

    Examples
    --------
    >>> config = Config(hidden=(16,), optimizer="sgd")
    >>> config.lr, config.network(64, 10).label
    (0.05, '64x16x10')
    """

    hidden: tuple[int, ...] = of_network(WHOLES, (128,), "Sizes of the hidden layers; none gives softmax regression.")
    activation: tuple[str, ...] = of_network(
        NAMES,
        ("relu",),
        f"One, or one per hidden layer: {', '.join(ACTIVATIONS)}; leaky-relu:0.2 sets a slope.",
    )
    dropout: tuple[float, ...] = of_network(NUMBERS, (0.0,), "Share of units dropped, one or one per hidden layer.")
    loss: str | None = of_network(
        one_of("loss", LOSSES), None, "Loss [default: cross-entropy for classes, squared-error for values]."
    )
    output: str | None = of_network(
        one_of("output", OUTPUTS), None, "Output function [default: softmax, for squared-error linear]."
    )
    label_smoothing: float = of_network(NUMBER, 0.0, "Share of each target spread over all classes.")
    l1: float = of_network(NUMBER, 0.0, "Penalty on absolute weights.")
    l2: float = of_network(NUMBER, 0.0, "Penalty on squared weights.")
    init: str = of_network(NAME, "he", f"Initial weights: {', '.join([*INITIALIZERS, *ALIASES])}; normal:0.1 sets a scale.")

    optimizer: str = of_training(one_of("optimizer", RULES), "adam", "Update rule.")
    lr: float | None = of_training(NUMBER, None, f"Learning rate [default: {RATES_HELP}].")
    momentum: float = of_training(NUMBER, 0.9, "For momentum and nesterov.")
    beta1: float = of_training(NUMBER, 0.9, "For adam and adamw: smoothing of the gradient.")
    beta2: float = of_training(NUMBER, 0.999, "For adam, adamw and rmsprop: smoothing of its square.")
    epsilon: float = of_training(NUMBER, 1e-8, "For adam, adamw and rmsprop: added to the root.")
    weight_decay: float = of_training(NUMBER, 0.01, "For adamw.")
    clip_norm: float = of_training(NUMBER, 0.0, "Largest norm of the gradient, 0 for no limit.")
    schedule: str = of_training(one_of("schedule", SCHEDULES), "constant", "Course of the learning rate.")
    decay: float = of_training(NUMBER, 0.02, "Per epoch, for inverse-time and exponential.")
    factor: float = of_training(NUMBER, 0.5, "For step: what the rate is multiplied by.")
    every: float = of_training(NUMBER, 10.0, "For step: epochs between steps.")
    warmup: float = of_training(NUMBER, 0.0, "Epochs in which the rate rises first.")
    batch_size: int = of_training(WHOLE, 64, "Rows of one update.")
    epochs: int = of_training(WHOLE, 50, "Passes over the training part, at most.")
    patience: int | None = of_training(
        WHOLE,
        None,
        f"Epochs without a better --monitor, 0: no end [default: {PATIENCE}, without validation 0].",
    )
    monitor: str = of_training(one_of("monitor", MONITORS), "loss", "Validation figure whose best epoch is kept.")
    min_delta: float = of_training(NUMBER, 0.0, "By how much --monitor must be better to count.")
    flip: float = of_training(NUMBER, 0.0, "Probability that a training image is mirrored, anew in each epoch.")
    shift: int = of_training(WHOLE, 0, "Pixels by which training images are moved each way, at most, anew in each epoch.")
    val_steps: int | None = of_training(WHOLE, None, "Measure the validation part also after every so many updates.")
    max_time: float | None = of_training(DURATION, None, "Stop after this time, such as 30s, 2m, 1h.")

    backend: str = of_run(one_of("backend", CHOICES), "auto", "Engine; auto takes the fastest that runs here.")
    threads: int | None = of_run(WHOLE, None, "Threads of the engine [default: as many as cores may be used].")
    dtype: str = of_run(one_of("dtype", ("float32", "float64")), "float32", "The numba engine has float32 alone.")
    precision: str = of_run(
        one_of("precision", PRECISIONS), "float32", "Of matrix products; tf32 and bf16, by tensor cores, need --backend cuda."
    )
    classes_every: int | None = of_run(
        WHOLE, None, "Epochs between figures and confusion matrices of the classes, in classes.jsonl and classes.png."
    )
    checkpoint_every: int | None = of_run(WHOLE, None, "Epochs between models that are kept in the folder checkpoints.")
    predictions: bool = of_run(FLAG, False, "Write predictions.txt: test loss, accuracy, true,predicted class of each row.")
    out: str | None = of_run(FOLDER, None, "Folder of the run [default: runs/DATE-data-network].")
    force: bool = of_run(FLAG, False, "Write into --out even if it is not empty.")
    min_accuracy: float | None = of_run(NUMBER, None, "Exit with code 6 if the test accuracy is lower.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype == "float64" and self.backend == "numba":
            raise ConfigError("dtype float64 needs backend numpy or torch, not numba; give --backend numpy")
        if not 0 <= (self.min_accuracy or 0) <= 1:
            raise ConfigError(f"min_accuracy must be between 0 and 1, not {self.min_accuracy}")
        for name in ("patience", "min_delta"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("classes_every", "checkpoint_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, not {value}; leave {flag(name)} out for none")
        if self.target == "value":
            self._check_regression()
        watched = bool(self.val_count or self.val_fraction)
        self.complete(
            {
                "lr": DEFAULT_LEARNING_RATE[self.optimizer],
                "loss": "cross-entropy" if self.target == "class" else "squared-error",
                "patience": PATIENCE if watched else 0,
            }
        )

    def _check_regression(self) -> None:
        for name, value in (("loss", "cross-entropy"), ("monitor", "accuracy"), ("stratify", True)):
            if getattr(self, name) == value:
                raise ConfigError(f"{name} {value} is for classes, but target is value; leave {flag(name)} out")
        for name in ("min_accuracy", "label_smoothing", "classes_every", "predictions"):
            if getattr(self, name):
                raise ConfigError(f"{name} is for classes, but target is value; leave {flag(name)} out")

    def network(self, features: int, outputs: int) -> Network:
        """The network for data of so many features and outputs."""
        single = {name: getattr(self, name) for name in ("activation", "dropout")}
        given = {name: values[0] if len(values) == 1 else values for name, values in single.items()}
        return Network((features, *self.hidden, outputs), **(self.shared(Network) | given))

    def settings(self) -> Settings:
        """How to train, with the schedule and the optimizer."""
        schedule = Schedule(self.lr or 0.0, self.schedule, **self.shared(Schedule))
        optimizer = Optimizer(self.optimizer, **self.shared(Optimizer))
        own = {"schedule": schedule, "optimizer": optimizer, "patience": self.patience or None}
        return Settings(**(self.shared(Settings) | own))

    def shared(self, description: Any) -> dict[str, Any]:
        """The settings that a dataclass has under the same names."""
        names = [one.name for one in dataclasses.fields(description) if one.name in FIELDS]
        return {name: getattr(self, name) for name in names}


def fields_of(settings: type[DataSettings]) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a class, by name."""
    return {one.name: one for one in dataclasses.fields(settings)}


FIELDS = fields_of(Config)


def flag(name: str) -> str:
    """The flag of a setting.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")
