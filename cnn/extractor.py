"""Extraction of features from images with a trained network, and serialization of the extractor.

The network is trained in training.py. The feature files are written by `fastmlp extract`, not by this module.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .description import Description, from_table
from .errors import DescriptionError, FileError
from .files import read_versioned, write_versioned
from .images import Images, Pixels, Scaling
from .network import build, build_backbone, default_layer, up_to
from .training import EVALUATED, forward_batches

EXTRACTOR_VERSION = 1  # format version of a serialized extractor
EXTRACTOR_KEYS = ("table", "scaling", "network")


@dataclass(frozen=True)
class BackboneDescription:
    """Description of a torchvision classification network.

    Parameters
    ----------
    backbone : name of the network in torchvision, such as "resnet18"
    image_shape : (height, width, channels) of the images
    classes : number of classes
    """

    backbone: str
    image_shape: tuple[int, int, int]
    classes: int

    @property
    def label(self) -> str:
        """Short name, such as 32x32x3-resnet18."""
        return f"{'x'.join(map(str, self.image_shape))}-{self.backbone}"

    def table(self) -> dict[str, Any]:
        """Return the description as a dict that can be written as JSON; `read_description` is the inverse."""
        return {"backbone": self.backbone, "image_shape": self.image_shape, "classes": self.classes}


AnyDescription = Description | BackboneDescription


def make_network(description: AnyDescription, seed: int) -> nn.Module:
    """Build the network of a description, with initial weights that depend on the seed."""
    if isinstance(description, Description):
        return build(description, seed)
    return build_backbone(description.backbone, description.image_shape, description.classes, seed)


def read_description(table: dict[str, Any]) -> AnyDescription:
    """Return the description from the result of `Description.table` or `BackboneDescription.table`."""
    if "backbone" not in table:
        return from_table(table)
    return BackboneDescription(table["backbone"], tuple(table["image_shape"]), table["classes"])


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network that computes features of images.

    Parameters
    ----------
    description : description of the network
    network : the trained network
    scaling : scaling of the pixels; None if the pixels are not scaled
    layer : name of the layer whose flattened output is the features; None selects `default_layer(network)`

    Raises
    ------
    DescriptionError : the network has no such layer
    """

    description: AnyDescription
    network: nn.Module
    scaling: Scaling | None = None
    layer: str | None = None
    _truncated: list[nn.Module] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._truncated.append(up_to(self.network, self.layer or default_layer(self.network)).eval())

    @property
    def width(self) -> int:
        """Number of features of an image."""
        height, width, channels = self.description.image_shape
        return int(self.features(np.zeros((1, height * width * channels), np.float32)).shape[1])

    def features(
        self, pixels: Pixels, device: torch.device | str = "cpu", batch_size: int = EVALUATED
    ) -> npt.NDArray[np.float32]:
        """Compute the features of images, in evaluation mode and without gradients (torch.inference_mode).

        Parameters
        ----------
        pixels : images of shape (n, height * width * channels), at least one
        device : device of the computation; the network is moved to it
        batch_size : number of images per forward pass

        Returns
        -------
        array of shape (n, features), float32
        """
        images = Images(pixels, self.description.image_shape, self.scaling, device)
        network = self._truncated[0].to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return np.concatenate([output.cpu().numpy() for output in forward_batches(network, images, batch_size=batch_size)])

    def first_filters(self) -> npt.NDArray[np.float32]:
        """Return the kernels of the first convolution, averaged over the input channels, of shape (filters, height, width)."""
        weight: npt.NDArray[np.float32] = self._first_convolution().weight.detach().cpu().numpy()
        return weight.mean(axis=1)

    def first_maps(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the feature maps of one image after the first convolution and ReLU.

        The image has shape (1, height * width * channels). The result has shape (filters, height, width).
        """
        maps: list[torch.Tensor] = []
        handle = self._first_convolution().register_forward_hook(lambda module, inputs, output: maps.append(output.relu()))
        try:
            self.network.cpu()
            for _ in forward_batches(self.network, Images(pixels, self.description.image_shape, self.scaling)):
                pass
        finally:
            handle.remove()
        return maps[0][0].numpy()

    def _first_convolution(self) -> nn.Conv2d:
        """Return the first convolution layer of the network."""
        return next(module for module in self.network.modules() if isinstance(module, nn.Conv2d))

    def table(self) -> dict[str, Any]:
        """Return the description of the network and the name of the layer as a dict that can be written as JSON."""
        return {"network": self.description.table(), "layer": self.layer or default_layer(self.network)}

    def to_bytes(self) -> bytes:
        """Serialize the extractor with torch.save, as a dict of tensors and plain values; `from_bytes` is the inverse."""
        scaling: dict[str, Any] = {} if self.scaling is None else {"shift": self.scaling.shift, "factor": self.scaling.factor}
        state = {
            "table": json.dumps(self.table()),
            "scaling": {name: torch.from_numpy(np.array(values)) for name, values in scaling.items()},
            "network": {name: value.cpu() for name, value in self.network.state_dict().items()},
        }
        return write_versioned(EXTRACTOR_VERSION, state)

    @property
    def sha256(self) -> str:
        """SHA-256 hash of the description, the layer, the scaling and the weights."""
        digest = hashlib.sha256(json.dumps(self.table(), sort_keys=True).encode())
        if self.scaling is not None:
            digest.update(
                np.ascontiguousarray(self.scaling.shift).tobytes() + np.ascontiguousarray(self.scaling.factor).tobytes()
            )
        for name, value in self.network.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def from_bytes(data: bytes, name: str) -> Extractor:
    """Restore an extractor from the result of `Extractor.to_bytes`. Only tensors and plain values are unpickled.

    Parameters
    ----------
    data : content of the file
    name : name of the file, for error messages

    Raises
    ------
    FileError : the data are corrupt, have no or a different format version, or do not contain an extractor
    MissingError : the network is a torchvision backbone, and torchvision cannot be imported
    """
    remedy = "extract the features again"
    state = read_versioned(data, name, version=EXTRACTOR_VERSION, keys=EXTRACTOR_KEYS, kind="an extractor", remedy=remedy)
    try:
        table = json.loads(state["table"])
        description = read_description(table["network"])
        network = make_network(description, seed=0)
        network.load_state_dict(state["network"])
        kept = state["scaling"]
        scaling = Scaling(kept["shift"].numpy(), kept["factor"].numpy()) if kept else None
        return Extractor(description, network, scaling, table["layer"])
    except (KeyError, ValueError, TypeError, RuntimeError, DescriptionError) as error:
        raise FileError(f"{name}: corrupt extractor ({' '.join(str(error).split())[:200]}); {remedy}") from error
