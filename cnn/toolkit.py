"""Training of an extractor from plain settings: the interface of this package for programs.

Settings are named as in `description.Block`, `description.Description`, `training.Settings` and `images.Augmentation`. Further
settings are `filters`, `backbone`, `weights`, `weights_sha256`, `layer`, `compile` and `device`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .description import Block, Description, make_blocks
from .extractor import AnyDescription, BackboneDescription, Extractor, make_network
from .images import Augmentation, Images, Pixels, Scaling
from .network import Backbone, load_weights
from .training import Evaluation, Settings, Split, Trainer, TrainResult, Watch, evaluate, pick_device

CUSTOM = "cnn"  # the backbone that the settings describe block by block

SplitArrays = tuple[Pixels, npt.NDArray[Any]]  # pixels (n, height * width * channels), class numbers (n,)


class Prepared(NamedTuple):
    """Checked settings, without any data; `width` is the number of features of an image."""

    description: AnyDescription
    settings: Settings
    device: torch.device
    options: Mapping[str, Any]
    width: int

    @property
    def label(self) -> str:
        """Short name of the network."""
        return self.description.label


class TrainedExtractor(NamedTuple):
    """A trained extractor, the result of its training, and `figures`, the metrics of the whole network on each split.

    `figures` is empty if the training was stopped by a signal.
    """

    extractor: Extractor
    trained: TrainResult
    figures: dict[str, Evaluation]


def prepare(options: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int) -> Prepared:
    """Check the settings for images (height, width, channels).

    Raises
    ------
    DescriptionError : a setting is out of range or an unknown name, or does not fit the images
    FileError : the file of weights is missing or corrupt, has another SHA-256, or holds weights of another network
    MissingError : a device or a package is not available
    """
    description: AnyDescription
    if options["backbone"] == CUSTOM:
        of_blocks = {one.name: options[one.name] for one in fields(Block) if one.name != "filters"}
        blocks = make_blocks(options["filters"], **of_blocks)
        dense, init = tuple(options["dense"]), options["init"]
        description = Description(image_shape=image_shape, classes=classes, blocks=blocks, dense=dense, init=init)
    else:
        description = BackboneDescription(options["backbone"], image_shape, classes)
    shared = {one.name: options[one.name] for one in fields(Settings) if one.name in options}
    augmentation = Augmentation(options["flip"], options["shift"], options["erase"])
    settings = Settings(**shared, augmentation=augmentation, compiled=options["compile"])
    # An error in the weights or the layer is raised here rather than after the training.
    width = Extractor(description, initial_network(description, settings, options), None, options["layer"]).width
    return Prepared(description, settings, pick_device(options["device"]), options, width)


def initial_network(description: AnyDescription, settings: Settings, options: Mapping[str, Any]) -> torch.nn.Module:
    """Return the network with its initial or pretrained weights."""
    network = make_network(description, settings.seed)
    if isinstance(network, Backbone) and options["weights"] is not None:
        load_weights(network, Path(options["weights"]), options["weights_sha256"])
    return network


def train(
    prepared: Prepared,
    parts: Mapping[str, SplitArrays],
    scaling: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    watch: Watch,
    checkpoint: tuple[bytes, str] | None = None,
) -> TrainedExtractor:
    """Train on the split "train", select the best epoch on "validation" if present, and evaluate on all splits.

    Parameters
    ----------
    prepared : the result of `prepare`
    parts : pixels (n, height * width * channels) and class numbers (n,) of each split, by name
    scaling : shift and factor, see `images.Scaling`
    watch : callbacks
    checkpoint : bytes and name of the checkpoint to resume from; None to train from the start

    Raises
    ------
    DivergedError : the loss became NaN or infinite
    FileError : the checkpoint is corrupt, has another format version, or belongs to another network or optimizer
    """
    scale = Scaling(*scaling)
    shape = prepared.description.image_shape
    splits = {name: Split(Images(x, shape, scale, prepared.device), y) for name, (x, y) in parts.items()}
    network = initial_network(prepared.description, prepared.settings, prepared.options)
    trainer = Trainer(network, splits["train"], splits.get("validation"), prepared.settings, watch)
    if checkpoint is not None:
        trainer.resume(*checkpoint)
    trained = trainer.run()
    evaluated = {} if trained.stopped == "signal" else splits
    figures = {name: evaluate(network, split, prepared.settings.autocast) for name, split in evaluated.items()}
    return TrainedExtractor(Extractor(prepared.description, network, scale, prepared.options["layer"]), trained, figures)
