"""Settings of an `extract` run. Each field of `ExtractConfig` is also a flag, an environment variable and a TOML key.

fastmlp.cnn validates the values and builds the network. fields.py defines the types of settings, and sources.py reads their
values.
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
from fastmlp.experiments.config.shared import (
    DataSettings,
    check_intervals,
    data_setting,
    fields_of,
    network_setting,
    result_setting,
    training_setting,
)
from fastmlp.nn.scaling import SCALINGS
from fastmlp.training.settings import MONITORS

# Default learning rates: the values of the original papers for adam and adamw, and a common value for sgd with momentum.
DEFAULT_LEARNING_RATE = {"adam": 0.001, "adamw": 0.001, "sgd": 0.01}
RATES_HELP = ", ".join(f"{rate:g} for {name}" for name, rate in DEFAULT_LEARNING_RATE.items())
# Settings that were added after feature files had been published, with the values that describe older files. `key` leaves these
# values out, so that older files are still recognized.
ADDED = {"shuffle": True, "restore_best": True}
# Data settings that `extract` passes on to a training run on the features.
INHERITED = tuple(name for name in fields_of(DataSettings) if name not in ("scale", "seed"))
# Settings that do not change the features.
NOT_IN_KEY = {"device", "data_dir", "skip_bad", "max_decompressed"}
NOT_IN_KEY |= {"out", "pictures", "force", "resume", "per_class_every", "save_every", "predictions"}
CNN = "cnn"  # name of the backbone that is built from the settings of blocks, such as `filters` and `kernel`

# Valid names in fastmlp.cnn, which is not imported here because it needs PyTorch. A test checks that they are the same.
POOLINGS = ("none", "max", "avg", "global")
REGULARIZERS = ("none", "batch", "dropout", "dropout2d")
INITS = ("random", "xavier", "he", "orthogonal")
SCHEDULES = ("constant", "step", "cosine")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(DataSettings):
    """Settings of an `extract` run. Settings of convolutional blocks have one value for all blocks, or one value per block.

    Raises
    ------
    ConfigError : a name is unknown, a value is out of range, or settings contradict each other
    """

    scale: str = data_setting(one_of("scaling", SCALINGS), "symmetric", "Scaling of the pixels, fitted to the training split.")

    filters: tuple[int, ...] = network_setting(
        INTEGERS, (16, 32, 64, 128, 256), "Number of output channels of the convolution in each block.", common=True
    )
    kernel: tuple[int, ...] = network_setting(INTEGERS, (3,), "Kernel size of the convolutions.", common=True)
    stride: tuple[int, ...] = network_setting(INTEGERS, (1,), "Stride of the convolutions.")
    padding: tuple[int, ...] = network_setting(INTEGERS, (1,), "Padding of the convolutions.")
    pool: tuple[str, ...] = network_setting(
        list_of(one_of("pool", POOLINGS), "names, such as max or max,avg", "NAME,..."),
        ("max",),
        f"Pooling: {', '.join(POOLINGS)}; a single name applies to all blocks except the last one, or to the only block.",
        common=True,
    )
    pool_kernel: tuple[int, ...] = network_setting(INTEGERS, (2,), "Kernel size of the pooling layers.")
    pool_stride: tuple[int, ...] = network_setting(INTEGERS, (0,), "Stride of the pooling layers; 0 means the kernel size.")
    pool_padding: tuple[int, ...] = network_setting(INTEGERS, (0,), "Padding of the pooling layers.")
    regularize: tuple[str, ...] = network_setting(
        list_of(one_of("regularize", REGULARIZERS), "names, such as batch or batch,none", "NAME,..."),
        ("none",),
        "Last layer of each block: none, batch (batch normalization), dropout, or dropout2d, which drops whole channels.",
    )
    dropout: tuple[float, ...] = network_setting(FLOATS, (0.25,), "Dropout rate of the blocks with dropout, see `regularize`.")
    dense: tuple[int, ...] = network_setting(
        INTEGERS, (128,), "Sizes of the hidden dense layers before the output layer, or none.", common=True
    )
    init: str = network_setting(one_of("init", INITS), "random", "Initialization of the weights; random is PyTorch's default.")
    backbone: str = network_setting(NAME, CNN, "A torchvision network, such as resnet18, instead of blocks.", common=True)
    weights: str | None = network_setting(
        FILE, None, "File with pretrained torchvision weights of the backbone [default: random weights].", common=True
    )
    weights_sha256: str | None = network_setting(STRING, None, "Expected SHA-256 hash of the weights file.")

    epochs: int = training_setting(INTEGER, 10, "Maximum number of epochs.", common=True)
    batch_size: int = training_setting(INTEGER, 64, "Mini-batch size.", common=True)
    optimizer: str = training_setting(one_of("optimizer", DEFAULT_LEARNING_RATE), "adam", "Optimizer.", common=True)
    lr: float | None = training_setting(FLOAT, None, f"Learning rate [default: {RATES_HELP}].", common=True)
    momentum: float = training_setting(FLOAT, 0.9, "Momentum of the optimizer sgd.")
    weight_decay: float = training_setting(FLOAT, 0.0, "Weight decay; it is decoupled for adamw.")
    schedule: str = training_setting(one_of("schedule", SCHEDULES), "constant", "Learning-rate schedule.")
    lr_step: int = training_setting(INTEGER, 10, "Epochs between two learning-rate steps, for schedule step.")
    lr_gamma: float = training_setting(FLOAT, 0.5, "Each step multiplies the learning rate by this factor, for schedule step.")
    patience: int | None = training_setting(
        INTEGER, None, "Early-stopping patience in epochs [default: no early stopping].", common=True
    )
    monitor: str = training_setting(
        one_of("monitor", MONITORS), "loss", "Validation metric that determines the best epoch and early stopping."
    )
    restore_best: bool = training_setting(
        BOOLEAN, True, "Keep the weights of the best epoch; otherwise, keep those of the last epoch."
    )
    label_smoothing: float = training_setting(FLOAT, 0.0, "Amount of label smoothing.")
    shuffle: bool = training_setting(
        BOOLEAN, True, "Shuffle the training images in every epoch; otherwise, all epochs have the same mini-batches."
    )
    flip: float = training_setting(FLOAT, 0.0, "In every epoch, mirror each training image with this probability.", common=True)
    shift: int = training_setting(INTEGER, 0, "In every epoch, shift images randomly by up to N pixels in each direction.")
    erase: float = training_setting(
        FLOAT, 0.0, "In every epoch, erase a random rectangle of each training image with this probability."
    )
    autocast: bool = training_setting(BOOLEAN, False, "Train in mixed precision with bfloat16 (torch.autocast).")
    compile: bool = training_setting(BOOLEAN, False, "Compile the network with torch.compile.")

    device: str = result_setting(NAME, "auto", "Device: auto, cpu or cuda.", common=True)
    layer: str | None = result_setting(
        NAME, None, "Layer whose output is used as features [default: the last block, flattened]."
    )
    feature_dtype: str = result_setting(
        one_of("feature dtype", ("float32", "float16")), "float32", "Floating-point type of the saved features."
    )
    out: str | None = result_setting(
        FILE,
        None,
        "Feature file (.npz or .safetensors), or folder of memory-mapped arrays "
        "[default: DATA-NETWORK.npz, or a folder if the features exceed 1 GiB].",
        common=True,
    )
    pictures: str | None = result_setting(
        FOLDER, None, "Folder for the figures and reports [default: next to `out`, or the run folder]."
    )
    per_class_every: int | None = result_setting(
        INTEGER,
        None,
        "Every N epochs, write per-class metrics and confusion matrices to cnn-classes.jsonl; plot them in cnn-classes.png.",
    )
    save_every: int | None = result_setting(INTEGER, None, "Save the CNN every N epochs in the subfolder cnn-models.")
    predictions: bool = result_setting(
        BOOLEAN,
        False,
        "Write cnn-predictions.txt with the test loss, the accuracy, and the true and predicted class of each image.",
    )
    force: bool = result_setting(BOOLEAN, False, "Replace `out` if it was made with other settings.")
    resume: bool = result_setting(BOOLEAN, True, "Resume an interrupted run from its checkpoint.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.complete({"task": "classification"})
        check_intervals(self)
        if self.task != "classification":
            raise ConfigError("extract trains a classifier, so task must be classification; leave it out")
        if self.weights is not None and self.backbone == CNN:
            raise ConfigError("weights need a backbone; set backbone, or leave weights out", settings=("backbone", "weights"))
        if self.weights_sha256 is not None and self.weights is None:
            raise ConfigError("weights_sha256 needs a file of weights; set weights", settings=("weights",))
        self.complete({"lr": DEFAULT_LEARNING_RATE[self.optimizer]})

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> ExtractConfig:
        """Return the settings from a result of `key`, in which JSON may have replaced tuples with lists."""
        types = {name: one.metadata["type"] for name, one in fields_of(cls).items()}
        return cls(**{name: types[name].value(name, value) for name, value in table.items() if name in types})

    def inherited_flags(self) -> dict[str, Any]:
        """Return `data` and `data_dir`, if they are set, as flags for a training run on the features."""
        return {name: value for name in ("data", "data_dir") if (value := getattr(self, name)) is not None}

    def key(self) -> dict[str, Any]:
        """Return the settings that determine the features, without those for the device, the data folder and the output.

        `skip_bad` is left out too, because the images determine the features, whether files were skipped or not. So are the
        values in `ADDED`.
        """
        table = {name: value for name, value in self.table().items() if name not in NOT_IN_KEY}
        return {name: value for name, value in table.items() if name not in ADDED or value != ADDED[name]}
