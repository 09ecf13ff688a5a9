"""Preparation of a training run: load and split the data, and build the network.

Invalid settings and data are rejected here, before a run folder is created.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.data.dataset import Dataset
from fastmlp.data.images.polarity import ImageStats, image_stats
from fastmlp.data.load import Source, load_source
from fastmlp.data.named import DATASETS
from fastmlp.data.pairs import Split, with_weights
from fastmlp.data.scaling import fit_scaling
from fastmlp.data.splits import Splits, split, training_rows
from fastmlp.errors import ConfigError
from fastmlp.experiments.config.fields import parse_class_weight
from fastmlp.experiments.config.shared import DataSettings
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.files import converted, json_bytes
from fastmlp.models.model import Model
from fastmlp.nn.network import Network
from fastmlp.training.settings import Task, make_task, prepare

SPLIT_NAMES = ("test", "validation", "train")
SPLIT_SETTINGS = {"test": "test_fraction", "validation": "val_fraction"}
FEATURES_OF = "features of "  # prefix of the setting `data` if the features were kept in memory
Say = Callable[[str], None]


class RunPlan(NamedTuple):
    """A validated run that is ready to be trained.

    config : the settings of the run
    data, splits : the whole data set, and its rows by split
    task : input of the training loop: the data, and the network and `Settings` made from `config`
    """

    config: TrainConfig
    data: Dataset
    splits: Splits
    task: Task

    @property
    def network(self) -> Network:
        return self.task.network


def make_plan(
    config: TrainConfig, progress: bool = False, data: Dataset | None = None, same_data: RunPlan | None = None
) -> RunPlan:
    """Load and split the data of a run, fit the scaling, and build the network.

    Parameters
    ----------
    config : the settings
    progress : whether a download shows a progress bar
    data : the data set; if None, the one that `config.data` names is loaded
    same_data : plan of another run with the same data, splits and scaling, whose arrays are reused

    Raises
    ------
    FastMLPError : settings or data cannot be used
    """
    settings = config.settings()  # loading data may take a long time, so invalid settings are reported first
    if same_data is not None:
        data, splits, scaling = same_data.data, same_data.splits, same_data.task.data.scaling
        config = config.with_task("classification" if data.classes else "regression")
    else:
        data = data or load(config, progress)
        config = config.with_task("classification" if data.classes else "regression")
        splits = split(data, **config.split_sizes())
        scaling = fit_scaling(config.scale, splits["train"].x)
    if data.validation is not None and "validation" not in splits:  # features without validation rows
        settings = dataclasses.replace(settings, patience=0)
    check_splits(config, splits)
    json_bytes([data.name, data.notes, portable(config)])  # names that cannot be written are refused before the training
    network = config.network(data.x.shape[1], len(data.classes) or data.y.shape[1])
    train, validation = splits["train"], splits.get("validation")
    if config.class_weight is not None:
        train = with_weights(Split(train, data.classes), None, parse_class_weight(config.class_weight)).rows
    training = prepare(network, train, validation, scaling=scaling, target_scaling=config.target_scale)
    training = dataclasses.replace(
        training,
        classes=data.classes or None,
        image_shape=data.image_shape,
        text_labels=data.text_labels,
        image_stats=image_stats(train.x, data.image_shape),
    )
    return RunPlan(config, data, splits, make_task(network, settings, training))


def in_memory(data: str) -> bool:
    """Return whether a setting `data` stands for features of images that were kept in memory only."""
    return data.startswith(FEATURES_OF)


def load(config: TrainConfig, progress: bool) -> Dataset:
    """Load the data set that `config.data` names; raises the same errors as `load_data`."""
    if in_memory(config.data):
        raise ConfigError(
            f"{config.data} were kept in memory only; run `fastmlp extract … train` again, or use a feature file as data",
            settings=("data",),
        )
    return load_source(
        Source(
            config.data,
            config.data_dir,
            config.image_size,
            config.table_options(),
            progress,
            config.skip_bad,
            config.max_decompressed,
            fit_rows=functools.partial(training_rows, **config.split_sizes()),
        )
    )


def check_splits(config: DataSettings, names: Collection[str]) -> None:
    """Raise ConfigError if a setting needs a split that is not in `names`."""
    for name, needed in (("min_accuracy", "test"), ("predictions", "test"), ("val_steps", "validation")):
        if (value := getattr(config, name, None)) is not None and value is not False and needed not in names:
            raise ConfigError(
                f"{name} needs a {needed} split; set {SPLIT_SETTINGS[needed]}, or leave {name} out",
                settings=(name, SPLIT_SETTINGS[needed]),
            )


def input_fields(data: Dataset) -> dict[str, Any]:
    """Return the fields of `Model` that describe its inputs: images, features of images, or the encoding of a table."""
    if data.extractor is None or data.provenance is None:
        return {"image_shape": data.image_shape, "encoding": data.encoding}
    stats = data.provenance["images"].get("stats")  # unknown in files of earlier versions
    return {
        "image_shape": tuple(data.provenance["network"]["image_shape"]),
        "extractor": data.extractor,
        "image_stats": None if stats is None else converted(data.name, stats, ImageStats),
    }


def with_inputs(model: Model, data: Dataset) -> Model:
    """Return a model that also describes its inputs, see `input_fields`."""
    return dataclasses.replace(model, **input_fields(data))


def portable(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as stored in a run folder: with absolute paths, and without `out` and `force`."""
    table = {name: value for name, value in config.table().items() if name not in ("out", "force")}
    if config.data not in DATASETS and not in_memory(config.data):
        table["data"] = str(Path(config.data).absolute())
    if config.data_dir is not None:
        table["data_dir"] = str(Path(config.data_dir).absolute())
    return table
