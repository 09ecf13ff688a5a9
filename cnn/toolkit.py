"""What a program needs to train an extractor from plain settings: the door of this package.

Settings are named as in `description.Block`, `description.Description`, `training.Settings` and `images.Augmentation`;
besides there are `filters`, `backbone`, `weights`, `weights_sha256`, `layer`, `compile` and `device`.
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
from .training import Evaluation, Part, Settings, Trained, Trainer, Watch, evaluate, pick_device

OWN = "cnn"  # the backbone that the settings describe block by block

Rows = tuple[Pixels, npt.NDArray[Any]]  # pixels (n, height * width * channels), class numbers (n,)


class Prepared(NamedTuple):
    """Settings that have been checked, before any data is looked at; `width` is the number of features of an image."""

    description: AnyDescription
    settings: Settings
    device: torch.device
    options: Mapping[str, Any]
    width: int

    @property
    def label(self) -> str:
        return self.description.label


class Made(NamedTuple):
    """A trained extractor, how its training went, and what the network alone makes of each part."""

    extractor: Extractor
    trained: Trained
    figures: dict[str, Evaluation]


def prepare(options: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int) -> Prepared:
    """Check the settings for images (height, width, channels).

    Raises
    ------
    DescriptionError : settings that cannot be
    MissingError : a device or a package is not there
    """
    description: AnyDescription
    if options["backbone"] == OWN:
        of_blocks = {one.name: options[one.name] for one in fields(Block) if one.name != "filters"}
        blocks = make_blocks(options["filters"], **of_blocks)
        dense, init = tuple(options["dense"]), options["init"]
        description = Description(image_shape=image_shape, classes=classes, blocks=blocks, dense=dense, init=init)
    else:
        description = BackboneDescription(options["backbone"], image_shape, classes)
    shared = {one.name: options[one.name] for one in fields(Settings) if one.name in options}
    augmentation = Augmentation(options["flip"], options["shift"], options["erase"])
    settings = Settings(**shared, augmentation=augmentation, compiled=options["compile"])
    # Weights that do not fit and a layer that is not there show now, not after hours.
    width = Extractor(description, fresh(description, settings, options), None, options["layer"]).width
    return Prepared(description, settings, pick_device(options["device"]), options, width)


def fresh(description: AnyDescription, settings: Settings, options: Mapping[str, Any]) -> torch.nn.Module:
    """The network before training."""
    network = make_network(description, settings.seed)
    if isinstance(network, Backbone) and options["weights"] is not None:
        load_weights(network, Path(options["weights"]), options["weights_sha256"])
    return network


def train(
    prepared: Prepared,
    parts: Mapping[str, Rows],
    scaling: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    watch: Watch,
    checkpoint: tuple[bytes, str] | None = None,
) -> Made:
    """Train on the part "train", watch "validation" if there is one, and measure all parts.

    Parameters
    ----------
    scaling : shift and factor, see `images.Scaling`
    checkpoint : bytes and name of one to go on from

    Raises
    ------
    DivergedError : the loss became no number
    FileError : a checkpoint that does not fit
    """
    scale = Scaling(*scaling)
    shape = prepared.description.image_shape
    loaded = {name: Part(Images(x, shape, scale, prepared.device), y) for name, (x, y) in parts.items()}
    network = fresh(prepared.description, prepared.settings, prepared.options)
    trainer = Trainer(network, loaded["train"], loaded.get("validation"), prepared.settings, watch)
    if checkpoint is not None:
        trainer.resume(*checkpoint)
    trained = trainer.run()
    ended = trained.stopped != "signal"
    figures = {name: evaluate(network, part, prepared.settings.autocast) for name, part in loaded.items() if ended}
    return Made(Extractor(prepared.description, network, scale, prepared.options["layer"]), trained, figures)
