"""Settings of an `extract` run: one description from which flags, variables and a TOML file are made.

fastmlp.cnn checks the values, and defines what they mean for a network. See fields.py for the types of settings, and sources.py
for where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastmlp.errors import ConfigError
from fastmlp.experiments.config.fields import (
    BOOLEAN,
    FILE,
    FLOAT,
    FLOATS,
    FOLDER,
    INTEGER,
    INTEGERS,
    NAME,
    STRING,
    list_of,
    one_of,
)
from fastmlp.experiments.config.train import (
    DataSettings,
    data_setting,
    fields_of,
    network_setting,
    result_setting,
    training_setting,
)
from fastmlp.nn.scaling import SCALINGS
from fastmlp.training.settings import MONITORS

# Default learning rates: those of the authors of adam and adamw; for sgd with momentum a common one.
DEFAULT_LEARNING_RATE = {"adam": 0.001, "adamw": 0.001, "sgd": 0.01}
RATES_HELP = ", ".join(f"{rate:g} for {name}" for name, rate in DEFAULT_LEARNING_RATE.items())
# Settings of data that a training on features inherits from the extraction.
INHERITED = tuple(name for name in fields_of(DataSettings) if name not in ("scale", "seed"))
CNN = "cnn"  # the backbone that the settings describe block by block

# Names that fastmlp.cnn knows; it is not imported here, since it needs PyTorch. A test compares them.
POOLINGS = ("none", "max", "avg", "global")
REGULARIZERS = ("none", "batch", "dropout")
INITS = ("random", "xavier", "he", "orthogonal")
SCHEDULES = ("constant", "step", "cosine")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(DataSettings):
    """Settings of an `extract` run. Settings of blocks have one value for all blocks, or one for each.

    Raises
    ------
    ConfigError : an unknown name, a value out of range, or settings that contradict each other
    """

    scale: str = data_setting(one_of("scaling", SCALINGS), "symmetric", "Scaling of the pixels, fitted to the training split.")

    filters: tuple[int, ...] = network_setting(
        INTEGERS, (16, 32, 64, 128, 256), "Output channels of the convolution of each block.", common=True
    )
    kernel: tuple[int, ...] = network_setting(INTEGERS, (3,), "Kernel size of the convolutions.", common=True)
    stride: tuple[int, ...] = network_setting(INTEGERS, (1,), "Stride of the convolutions.")
    padding: tuple[int, ...] = network_setting(INTEGERS, (1,), "Padding of the convolutions.")
    pool: tuple[str, ...] = network_setting(
        list_of(one_of("pool", POOLINGS), "names, such as max or max,avg", "NAME,..."),
        ("max",),
        f"Pooling: {', '.join(POOLINGS)}; a single name applies to every block but the last of several.",
        common=True,
    )
    pool_kernel: tuple[int, ...] = network_setting(INTEGERS, (2,), "Kernel size of the poolings.")
    pool_stride: tuple[int, ...] = network_setting(INTEGERS, (0,), "Stride of the poolings; 0 for the kernel size.")
    pool_padding: tuple[int, ...] = network_setting(INTEGERS, (0,), "Padding of the poolings.")
    regularize: tuple[str, ...] = network_setting(
        list_of(one_of("regularize", REGULARIZERS), "names, such as batch or batch,none", "NAME,..."),
        ("none",),
        "Last layer of a block: none, batch (normalization) or dropout.",
    )
    dropout: tuple[float, ...] = network_setting(FLOATS, (0.25,), "Dropout rate, for `regularize` dropout.")
    dense: tuple[int, ...] = network_setting(
        INTEGERS, (128,), "Sizes of the dense layers before the output, or none.", common=True
    )
    init: str = network_setting(one_of("init", INITS), "random", "Initialization of the weights; random is PyTorch's default.")
    backbone: str = network_setting(NAME, CNN, "A network of torchvision instead of blocks, such as resnet18.", common=True)
    weights: str | None = network_setting(
        FILE, None, "Pretrained weights of the backbone, a file of torchvision [default: untrained].", common=True
    )
    weights_sha256: str | None = network_setting(STRING, None, "Expected SHA-256 of `weights`.")

    epochs: int = training_setting(INTEGER, 10, "Maximum number of epochs.", common=True)
    batch_size: int = training_setting(INTEGER, 64, "Mini-batch size.", common=True)
    optimizer: str = training_setting(one_of("optimizer", DEFAULT_LEARNING_RATE), "adam", "Optimizer.", common=True)
    lr: float | None = training_setting(FLOAT, None, f"Learning rate [default: {RATES_HELP}].", common=True)
    momentum: float = training_setting(FLOAT, 0.9, "Momentum, for sgd.")
    weight_decay: float = training_setting(FLOAT, 0.0, "Weight decay; for adamw decoupled.")
    schedule: str = training_setting(one_of("schedule", SCHEDULES), "constant", "Learning-rate schedule.")
    lr_step: int = training_setting(INTEGER, 10, "Epochs between two steps, for schedule step.")
    lr_gamma: float = training_setting(FLOAT, 0.5, "Factor of each step, for schedule step.")
    patience: int | None = training_setting(
        INTEGER, None, "Early-stopping patience in epochs [default: no early stopping].", common=True
    )
    monitor: str = training_setting(
        one_of("monitor", MONITORS), "loss", "Validation metric that selects the best epoch and stops early."
    )
    label_smoothing: float = training_setting(FLOAT, 0.0, "Label smoothing.")
    flip: float = training_setting(
        FLOAT, 0.0, "Mirror each training image with this probability, redrawn every epoch.", common=True
    )
    shift: int = training_setting(INTEGER, 0, "Shift training images by up to N pixels in each direction, redrawn every epoch.")
    erase: float = training_setting(FLOAT, 0.0, "Erase a random rectangle of each training image with this probability.")
    autocast: bool = training_setting(BOOLEAN, False, "Use bfloat16 where it is precise enough (torch.autocast).")
    compile: bool = training_setting(BOOLEAN, False, "Use torch.compile.")

    device: str = result_setting(NAME, "auto", "auto, cpu or cuda.", common=True)
    layer: str | None = result_setting(NAME, None, "Layer whose output is the features [default: the flattened last block].")
    feature_dtype: str = result_setting(
        one_of("feature dtype", ("float32", "float16")), "float32", "Data type of the features in the file."
    )
    out: str | None = result_setting(
        FILE,
        None,
        "File of the features, .npz or .safetensors, or a folder, which training maps into memory "
        "[default: DATA-NETWORK.npz, above 1 GiB a folder].",
        common=True,
    )
    pictures: str | None = result_setting(FOLDER, None, "Folder of the figures [default: next to `out`; in a chain the run].")
    force: bool = result_setting(BOOLEAN, False, "Replace `out` if it was made with other settings.")
    resume: bool = result_setting(BOOLEAN, True, "Resume an interrupted run from its checkpoint.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task != "classification":
            raise ConfigError("extract trains a classifier, so task must be classification; leave it out")
        if self.weights is not None and self.backbone == CNN:
            raise ConfigError("weights need a backbone; set backbone, or leave weights out", settings=("backbone", "weights"))
        if self.weights_sha256 is not None and self.weights is None:
            raise ConfigError("weights_sha256 needs a file of weights; set weights", settings=("weights",))
        self.complete({"lr": DEFAULT_LEARNING_RATE[self.optimizer]})

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> ExtractConfig:
        """Return the settings that `key` returned, also after JSON made lists of tuples."""
        types = {name: one.metadata["type"] for name, one in fields_of(cls).items()}
        return cls(**{name: types[name].value(name, value) for name, value in table.items() if name in types})

    def inherited_flags(self) -> dict[str, Any]:
        """Return the settings that a training on the features inherits, as flags."""
        return {name: value for name in ("data", "data_dir") if (value := getattr(self, name)) is not None}

    def key(self) -> dict[str, Any]:
        """Return the settings that decide the features: all except those of where they are computed and written."""
        return {
            name: value
            for name, value in self.table().items()
            if name not in ("out", "pictures", "force", "resume", "device", "data_dir")
        }
