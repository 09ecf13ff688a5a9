"""The settings of `extract`: one description from which flags, variables and a TOML file are made.

Here: `ExtractConfig`. Not here: what the settings mean for a network, which fastmlp.cnn knows and checks; how a value is
read (fields.py) and where it comes from (sources.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastmlp.errors import ConfigError
from fastmlp.experiments.config.fields import (
    FILE,
    FLAG,
    FOLDER,
    NAME,
    NAMES,
    NUMBER,
    NUMBERS,
    TEXT,
    WHOLE,
    WHOLES,
    Kind,
    one_of,
)
from fastmlp.experiments.config.train import DataSettings, fields_of, of_data, setting
from fastmlp.nn.scaling import SCALINGS
from fastmlp.training.settings import MONITORS

# Learning rates where none is given: those of the authors of adam and adamw; for sgd with momentum a common one.
RATES = {"adam": 0.001, "adamw": 0.001, "sgd": 0.01}
RATES_HELP = ", ".join(f"{rate:g} for {name}" for name, rate in RATES.items())
OF_EXTRACT = tuple(name for name in fields_of(DataSettings) if name not in ("scale", "seed"))  # decided by the features
CNN = "cnn"  # the backbone that the settings describe block by block


def of_blocks(kind: Kind, default: Any, text: str) -> Any:
    return setting("Network", kind, default, text)


def of_training(kind: Kind, default: Any, text: str) -> Any:
    return setting("Training", kind, default, text)


def of_result(kind: Kind, default: Any, text: str) -> Any:
    return setting("Features and result", kind, default, text)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(DataSettings):
    """Everything that decides an `extract` run. Settings of blocks have one value for all, or one for each.

    Raises
    ------
    ConfigError : settings that contradict each other
    """

    scale: str = of_data(one_of("scaling", SCALINGS), "symmetric", "Scaling of pixels, fitted on the training part.")

    filters: tuple[int, ...] = of_blocks(WHOLES, (16, 32, 64, 128, 256), "Channels of each block's convolution.")
    kernel: tuple[int, ...] = of_blocks(WHOLES, (3,), "Pixels along a side of a convolution.")
    stride: tuple[int, ...] = of_blocks(WHOLES, (1,), "Stride of a convolution.")
    padding: tuple[int, ...] = of_blocks(WHOLES, (1,), "Padding of a convolution.")
    pool: tuple[str, ...] = of_blocks(
        NAMES, ("max",), "none, max, avg or global; a single name stands after every block but the last of several."
    )
    pool_kernel: tuple[int, ...] = of_blocks(WHOLES, (2,), "Pixels along a side of a pooling.")
    pool_stride: tuple[int, ...] = of_blocks(WHOLES, (0,), "Stride of a pooling, 0 for that of its kernel.")
    pool_padding: tuple[int, ...] = of_blocks(WHOLES, (0,), "Padding of a pooling.")
    regularize: tuple[str, ...] = of_blocks(NAMES, ("none",), "none, batch (normalisation) or dropout, last in a block.")
    dropout: tuple[float, ...] = of_blocks(NUMBERS, (0.25,), "Share of values dropped, for --regularize dropout.")
    dense: tuple[int, ...] = of_blocks(WHOLES, (128,), "Sizes of the dense layers before the output, or none.")
    init: str = of_blocks(NAME, "random", "Initial weights: random (PyTorch's), xavier, he, orthogonal.")
    backbone: str = of_blocks(NAME, CNN, "A network of torchvision instead of blocks, such as resnet18.")
    weights: str | None = of_blocks(FILE, None, "Trained weights of the backbone, a file of torchvision; else untrained.")
    weights_sha256: str | None = of_blocks(TEXT, None, "SHA-256 that --weights must have.")

    optimizer: str = of_training(one_of("optimizer", RATES), "adam", "Update rule.")
    lr: float | None = of_training(NUMBER, None, f"Learning rate [default: {RATES_HELP}].")
    momentum: float = of_training(NUMBER, 0.9, "For sgd.")
    weight_decay: float = of_training(NUMBER, 0.0, "Decay of all weights; for adamw decoupled.")
    schedule: str = of_training(NAME, "constant", "constant, step or cosine.")
    factor: float = of_training(NUMBER, 0.5, "For step: what the rate is multiplied by.")
    every: int = of_training(WHOLE, 10, "For step: epochs between steps.")
    batch_size: int = of_training(WHOLE, 64, "Images of one update.")
    epochs: int = of_training(WHOLE, 10, "Passes over the training part, at most.")
    patience: int | None = of_training(WHOLE, None, "Epochs without a better --monitor before the end [default: no end].")
    monitor: str = of_training(one_of("monitor", MONITORS), "loss", "Validation figure whose best epoch is kept.")
    label_smoothing: float = of_training(NUMBER, 0.0, "Share of each target spread over all classes.")
    flip: float = of_training(NUMBER, 0.0, "Probability that a training image is mirrored.")
    shift: int = of_training(WHOLE, 0, "Pixels by which training images are moved each way, at most.")
    erase: float = of_training(NUMBER, 0.0, "Probability that a rectangle of a training image is blanked.")
    autocast: bool = of_training(FLAG, False, "Compute in bfloat16 where that is precise enough.")
    compile: bool = of_training(FLAG, False, "Use torch.compile.")

    layer: str | None = of_result(NAME, None, "Layer whose output are the features [default: the flattened last block].")
    feature_dtype: str = of_result(one_of("feature dtype", ("float32", "float16")), "float32", "Type of features in the file.")
    device: str = of_result(NAME, "auto", "auto, cpu or cuda.")
    out: str | None = of_result(
        FILE,
        None,
        "File of the features, .npz or .safetensors, or a folder, from which training reads without loading it "
        "[default: DATA-NETWORK.npz, above 1 GiB a folder].",
    )
    pictures: str | None = of_result(FOLDER, None, "Folder of the pictures [default: beside --out; in a chain the run folder].")
    force: bool = of_result(FLAG, False, "Replace --out if it was made with other settings.")
    resume: bool = of_result(FLAG, True, "Go on from the checkpoint that an interrupted run has left.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target != "class":
            raise ConfigError("extract trains a classifier, so target must be class; leave it out")
        if self.weights is not None and self.backbone == CNN:
            raise ConfigError("weights are for a backbone; give --backbone too, or leave --weights out")
        if self.weights_sha256 is not None and self.weights is None:
            raise ConfigError("weights_sha256 needs a file; give --weights too")
        self.complete({"lr": RATES[self.optimizer]})

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> ExtractConfig:
        """The settings that `key` gave, also after JSON made lists of tuples."""
        kinds = {name: one.metadata["kind"] for name, one in fields_of(cls).items()}
        return cls(**{name: kinds[name].value(name, value) for name, value in table.items() if name in kinds})

    def chained_flags(self) -> dict[str, Any]:
        """What a training on the features takes from the settings of the images."""
        return {name: value for name in ("data", "data_dir") if (value := getattr(self, name)) is not None}

    def key(self) -> dict[str, Any]:
        """The settings that decide the features: all but where they are computed and written."""
        return {
            name: value
            for name, value in self.table().items()
            if name not in ("out", "pictures", "force", "resume", "device", "data_dir")
        }
