"""A run before it starts: its data, how they are split, its network; all invalid input is rejected here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.data.dataset import Dataset, load_data
from fastmlp.data.named import DATASETS
from fastmlp.data.splits import Parts, split
from fastmlp.errors import ConfigError
from fastmlp.experiments.config.train import Config, flag
from fastmlp.experiments.folder import check_free
from fastmlp.nn.network import Network
from fastmlp.training.settings import Settings, check_moves

PART_NAMES = ("test", "validation", "train")
PART_FLAGS = {"test": "--test-fraction", "validation": "--val-fraction"}
FEATURES_OF = "features of "  # begins what stands in place of the data of a run whose features have no file
Say = Callable[[str], None]


class Plan(NamedTuple):
    """All that a run needs, checked before anything is written."""

    config: Config
    settings: Settings
    data: Dataset
    parts: Parts
    network: Network


def make_plan(config: Config, progress: bool = False, data: Dataset | None = None) -> Plan:
    """Load and split the data, unless they are given, and describe the network that fits them."""
    settings = config.settings()  # first, since wrong settings show at once, and data may take long
    if data is None and config.data.startswith(FEATURES_OF):
        raise ConfigError(
            f"{config.data} were made in memory; run `fastmlp extract … train` again, or give a file of them as --data"
        )
    if data is None:
        data = load_data(config.data, config.data_dir, image_size=config.image_size, target=config.target, progress=progress)
    parts = split(data, **config.split_sizes())
    if data.validation is not None and "validation" not in parts:  # the settings cannot know it
        settings = dataclasses.replace(settings, patience=None)
    check_parts(config, parts)
    check_moves(settings, data.image_shape)
    network = config.network(data.x.shape[1], len(data.classes) or data.y.shape[1])
    return Plan(config, settings, data, parts, network)


def check_parts(config: Config, names: Collection[str]) -> None:
    """Raise ConfigError if a setting needs a part of the data that is not among these."""
    for name, part in (("min_accuracy", "test"), ("predictions", "test"), ("val_steps", "validation")):
        if (value := getattr(config, name)) is not None and value is not False and part not in names:
            raise ConfigError(f"{name} needs a {part} part; give {PART_FLAGS[part]}, or leave {flag(name)} out")


def check_settings(config: Config) -> None:
    """Check what needs no data, for those whose data are features that take long: raises ConfigError as `train_run` would."""
    check_moves(config.settings(), None)
    config.network(1, 2)
    if config.out is not None:
        check_free(Path(config.out), config.force)


def of_images(data: Dataset) -> dict[str, Any]:
    """What a model knows of the images that it is applied to, and of the network that turns them into its inputs."""
    if data.extractor is None or data.about is None:
        return {"image_shape": data.image_shape}
    return {"image_shape": tuple(data.about["network"]["image_shape"]), "extractor": data.extractor}


def portable(config: Config) -> dict[str, Any]:
    """The settings as a run keeps them: they give the same run from any folder, into a folder of its own."""
    table = {name: value for name, value in config.table().items() if name not in ("out", "force")}
    if config.data not in DATASETS and not config.data.startswith(FEATURES_OF):
        table["data"] = str(Path(config.data).absolute())
    if config.data_dir is not None:
        table["data_dir"] = str(Path(config.data_dir).absolute())
    return table
