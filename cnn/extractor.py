"""A trained network with what it takes to use it: description, scaling, classes, the layer whose output are the features.

Here: `Extractor`, its bytes on disk and back, features of images. Not here: training (training.py), and feature files, which
belong to whoever reads them.
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
from .training import EVALUATED, outputs

EXTRACTOR_VERSION = 1  # format version of the bytes of an extractor
EXTRACTOR_KEYS = ("table", "scaling", "network")


@dataclass(frozen=True)
class BackboneDescription:
    """A network of torchvision: its name, the images (height, width, channels) and the number of classes."""

    backbone: str
    image_shape: tuple[int, int, int]
    classes: int

    @property
    def label(self) -> str:
        return f"{'x'.join(map(str, self.image_shape))}-{self.backbone}"

    def table(self) -> dict[str, Any]:
        return {"backbone": self.backbone, "image_shape": self.image_shape, "classes": self.classes}


AnyDescription = Description | BackboneDescription


def make_network(description: AnyDescription, seed: int) -> nn.Module:
    """The network of a description, with its initial weights."""
    if isinstance(description, Description):
        return build(description, seed)
    return build_backbone(description.backbone, description.image_shape, description.classes, seed)


def read_description(table: dict[str, Any]) -> AnyDescription:
    """A description from its table."""
    if "backbone" not in table:
        return from_table(table)
    return BackboneDescription(table["backbone"], tuple(table["image_shape"]), table["classes"])


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network that turns images into features.

    Parameters
    ----------
    description : of the network
    network : with its weights
    scaling : of pixels, None for none
    layer : whose flattened output are the features; None takes the flattened last block

    Raises
    ------
    DescriptionError : no such layer
    """

    description: AnyDescription
    network: nn.Module
    scaling: Scaling | None = None
    layer: str | None = None
    _part: list[nn.Module] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._part.append(up_to(self.network, self.layer or default_layer(self.network)).eval())

    @property
    def width(self) -> int:
        """Features of an image."""
        height, width, channels = self.description.image_shape
        return int(self.features(np.zeros((1, height * width * channels), np.float32)).shape[1])

    def features(self, pixels: Pixels, device: torch.device | str = "cpu", at_once: int = EVALUATED) -> npt.NDArray[np.float32]:
        """Features of images (n, height * width * channels): (n, features) float32; n is 1 or more.

        In evaluation mode and without gradients (torch.inference_mode); the network is moved to the device. at_once : images of
        one forward pass.
        """
        images = Images(pixels, self.description.image_shape, self.scaling, device)
        part = self._part[0].to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return np.concatenate([found.cpu().numpy() for found in outputs(part, images, at_once=at_once)])

    def first_filters(self) -> npt.NDArray[np.float32]:
        """The filters of the first convolution, the mean over its input channels: (filters, height, width)."""
        weight: npt.NDArray[np.float32] = self._first().weight.detach().cpu().numpy()
        return weight.mean(axis=1)

    def first_maps(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What the first convolution and ReLU make of one image (1, pixels): (filters, height, width)."""
        found: list[torch.Tensor] = []
        handle = self._first().register_forward_hook(lambda module, given, output: found.append(output.relu()))
        try:
            self.network.cpu()
            for _ in outputs(self.network, Images(pixels, self.description.image_shape, self.scaling)):
                pass
        finally:
            handle.remove()
        return found[0][0].numpy()

    def _first(self) -> nn.Conv2d:
        """The first convolution."""
        return next(module for module in self.network.modules() if isinstance(module, nn.Conv2d))

    def table(self) -> dict[str, Any]:
        """What the extractor is, as plain values."""
        return {"network": self.description.table(), "layer": self.layer or default_layer(self.network)}

    def to_bytes(self) -> bytes:
        """A file that `from_bytes` reads: a dict of tensors and plain values, written by torch.save."""
        scaling: dict[str, Any] = {} if self.scaling is None else {"shift": self.scaling.shift, "factor": self.scaling.factor}
        state = {
            "table": json.dumps(self.table()),
            "scaling": {name: torch.from_numpy(np.array(values)) for name, values in scaling.items()},
            "network": {name: value.cpu() for name, value in self.network.state_dict().items()},
        }
        return write_versioned(EXTRACTOR_VERSION, state)

    @property
    def sha256(self) -> str:
        """SHA-256 over description, layer, scaling and weights."""
        total = hashlib.sha256(json.dumps(self.table(), sort_keys=True).encode())
        if self.scaling is not None:
            total.update(
                np.ascontiguousarray(self.scaling.shift).tobytes() + np.ascontiguousarray(self.scaling.factor).tobytes()
            )
        for name, value in self.network.state_dict().items():
            total.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()


def from_bytes(data: bytes, name: str) -> Extractor:
    """The extractor that `Extractor.to_bytes` wrote; nothing but tensors and plain values is unpickled.

    Raises
    ------
    FileError : damaged, or no extractor
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
