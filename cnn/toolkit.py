"""Training of a feature extractor from a dict of settings. This is the interface that `fastmlp extract` uses.

The settings have the names of the fields of `description.Block`, `description.Description`, `training.Settings` and
`images.Augmentation`. There are also the settings `filters`, `backbone`, `weights`, `weights_sha256`, `layer`, `compile` and
`device`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .checkpoint import check_history
from .description import AnyDescription, BackboneDescription, Block, Description, make_blocks
from .extractor import REEXTRACT, Extractor, from_bytes, make_network
from .files import Source
from .images import Augmentation, Images, Pixels, Scaling
from .network import Backbone, last_hidden_layer, load_weights, output_layer
from .training import Evaluation, Settings, Split, Trainer, TrainResult, Watch, evaluate, pick_device

CUSTOM = "cnn"  # value of `backbone` for a network that the settings describe block by block

SplitArrays = tuple[Pixels, npt.NDArray[Any]]  # pixels (n, height * width * channels) and class indices (n,)


class Prepared(NamedTuple):
    """Validated settings of an extractor. `width` is the number of features of an image."""

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
    """A trained extractor, the result of its training, and the metrics of the whole network on each split (`figures`).

    If the training was stopped by `Watch.stop`, the network is not evaluated and `figures` is empty.
    """

    extractor: Extractor
    trained: TrainResult
    figures: dict[str, Evaluation]


class Classifier(NamedTuple):
    """A network as an extractor of the outputs of its last hidden layer, and the output layer.

    extractor : the result of `Extractor.to_bytes`
    weight, bias : of the output layer, of shapes (features, classes) and (classes,), float32
    """

    extractor: bytes
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


class Snapshot(NamedTuple):
    """The network after an epoch of the training, whose weights change in the next epoch. `splits` has no test split."""

    prepared: Prepared
    network: torch.nn.Module
    scaling: Scaling
    splits: Mapping[str, Split]

    def evaluate(self) -> dict[str, Evaluation]:
        """Return the metrics and predictions on the splits "train" and, if present, "validation"."""
        return {name: evaluate(self.network, one, self.prepared.settings.autocast) for name, one in self.splits.items()}

    def classifier(self) -> Classifier:
        """Return the whole network as an extractor and its output layer."""
        output = output_layer(self.network)
        weight, bias = (value.detach().cpu().numpy().copy() for value in (output.weight.T, output.bias))
        extractor = Extractor(self.prepared.description, self.network, self.scaling, last_hidden_layer(self.network))
        return Classifier(extractor.to_bytes(), weight, bias)


def prepare(options: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int) -> Prepared:
    """Validate the settings for images of shape (height, width, channels).

    Raises
    ------
    DescriptionError : a number is out of range, a name is unknown, or a setting is invalid for images of this shape
    FileError : the weight file is missing or damaged, has another SHA-256 hash, or contains the weights of another network
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
    # Building the extractor here detects invalid weights and layers before the training.
    width = Extractor(description, initial_network(description, settings, options), None, options["layer"]).width
    return Prepared(description, settings, pick_device(options["device"]), options, width)


def initial_network(description: AnyDescription, settings: Settings, options: Mapping[str, Any]) -> torch.nn.Module:
    """Build the network, with initial weights or, if `weights` is set for a backbone, pretrained weights."""
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
    snapshot: Callable[[int, Snapshot], None] | None = None,
) -> TrainedExtractor:
    """Train on the split "train", select the best epoch on the split "validation" if present, and evaluate all splits.

    Parameters
    ----------
    prepared : result of `prepare`
    parts : for each split, by name, pixels of shape (n, height * width * channels) and class indices of shape (n,)
    scaling : shift and factor, as in `images.Scaling`
    watch : callbacks
    checkpoint : content and file name of the checkpoint to resume from; None trains from the start
    snapshot : called after each epoch, before its checkpoint is written, with the epoch number and the network

    Raises
    ------
    DivergedError : the loss became NaN or infinite
    FileError : the checkpoint is damaged, has another format version, or was written for another network or optimizer
    """
    scale = Scaling(*scaling)
    splits = make_splits(prepared, parts, scale)
    network = initial_network(prepared.description, prepared.settings, prepared.options)
    if snapshot is not None:
        shown = Snapshot(prepared, network, scale, {name: one for name, one in splits.items() if name != "test"})
        watch = replace(watch, weights=lambda epoch: snapshot(epoch, shown))
    trainer = Trainer(network, splits["train"], splits.get("validation"), prepared.settings, watch)
    if checkpoint is not None:
        trainer.resume(*checkpoint)
    trained = trainer.run()
    evaluated = {} if trained.stopped == "signal" else splits
    figures = {name: evaluate(network, split, prepared.settings.autocast) for name, split in evaluated.items()}
    return TrainedExtractor(Extractor(prepared.description, network, scale, prepared.options["layer"]), trained, figures)


def restore(
    prepared: Prepared, parts: Mapping[str, SplitArrays], extractor: tuple[bytes, str], cnn: Mapping[str, Any]
) -> TrainedExtractor:
    """Return the result of an earlier call of `train`: restore the network, and evaluate it on all splits again.

    Parameters
    ----------
    prepared, parts : as for `train`
    extractor : the result of `Extractor.to_bytes` after the training, and the name of its file
    cnn : the fields of `TrainResult`: "history", "best_epoch" and "stopped"; other keys are ignored

    Raises
    ------
    FileError : the extractor is damaged, has another format version, or is not that of `prepared`, or `cnn` is invalid
    MissingError : the network is a torchvision backbone, and torchvision cannot be imported
    """
    restored = from_bytes(*extractor)
    source = Source(extractor[1], "damaged features", REEXTRACT)
    if restored.description != prepared.description:
        raise source.error("they were made with another network")
    history, best_epoch = check_history(source, cnn.get("history"), cnn.get("best_epoch"))
    if type(stopped := cnn.get("stopped")) is not str:
        raise source.error("entry 'stopped' is missing or is not a text")
    network = restored.network.to(prepared.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    splits = make_splits(prepared, parts, restored.scaling)
    figures = {name: evaluate(network, split, prepared.settings.autocast) for name, split in splits.items()}
    return TrainedExtractor(restored, TrainResult(history, best_epoch, stopped), figures)


def make_splits(prepared: Prepared, parts: Mapping[str, SplitArrays], scaling: Scaling | None) -> dict[str, Split]:
    """Return the images of each split on the device, with their scaling, and their labels."""
    shape = prepared.description.image_shape
    return {name: Split(Images(x, shape, scaling, prepared.device), y) for name, (x, y) in parts.items()}
