"""Extraction of features from images with a trained network, and serialization of the extractor.

The network is trained in training.py. The feature files are written by `fastmlp extract`, not by this module.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .claims import check_claim
from .description import MAX_OUTPUTS, AnyDescription, Description, read_description
from .errors import DescriptionError, FileError, library_errors
from .files import Source, check_tensor, check_tensors, read_dict, read_versioned, shapes_of, state_of, write_versioned
from .images import Images, Pixels, Scaling
from .network import (
    Backbone,
    backbone_bytes,
    build,
    build_backbone,
    check_backbone,
    check_images,
    default_layer,
    output_shape,
    up_to,
)
from .training import EVALUATED, forward_batches

EXTRACTOR_VERSION = 1  # format version of a serialized extractor
EXTRACTOR_KEYS = ("table", "scaling", "network")
REEXTRACT = "extract the features again"


def make_network(description: AnyDescription, seed: int) -> nn.Module:
    """Build the network of a description, with initial weights that depend on the seed."""
    if isinstance(description, Description):
        return build(description, seed)
    return build_backbone(description.backbone, description.image_shape, description.classes, seed)


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
    DescriptionError : the network has no such layer, or the layer has no features
    """

    description: AnyDescription
    network: nn.Module
    scaling: Scaling | None = None
    layer: str | None = None
    _truncated: list[nn.Module] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._truncated.append(up_to(self.network, self.layer or default_layer(self.network)).eval())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (height, width, channels) of the images."""
        return self.description.image_shape

    @functools.cached_property
    def width(self) -> int:
        """Number of features of an image. Raise DescriptionError if the output of the layer is not an array of features."""
        problem = f"layer {self.layer or 'before the output'} has no features"
        with library_errors(DescriptionError, problem, "choose another layer", ("layer",)):
            shape = output_shape(self._truncated[0], self.image_shape)
        return shape[1]

    def features(
        self, pixels: Pixels, device: torch.device | str = "cpu", batch_size: int = EVALUATED
    ) -> npt.NDArray[np.float32]:
        """Compute the features of images, in evaluation mode and without gradients (torch.inference_mode).

        Parameters
        ----------
        pixels : images of shape (n, height * width * channels), at least one
        device : device of the computation; the network is moved to it
        batch_size : number of images per forward pass; fewer if the outputs of a layer would take more than 1 GiB

        Returns
        -------
        array of shape (n, features), float32
        """
        images = Images(pixels, self.image_shape, self.scaling, device)
        if isinstance(self.description, Description):
            batch_size = min(batch_size, MAX_OUTPUTS // self.description.largest_output)
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
            for _ in forward_batches(self.network, Images(pixels, self.image_shape, self.scaling)):
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
    FileError : the data are damaged, have no or a different format version, or do not contain an extractor
    MissingError : the network is a torchvision backbone, and torchvision cannot be imported
    """
    remedy = REEXTRACT
    state = read_versioned(data, name, version=EXTRACTOR_VERSION, keys=EXTRACTOR_KEYS, kind="an extractor", remedy=remedy)
    source = Source(name, "damaged extractor", remedy)
    if type(state["table"]) is not str:
        raise source.error("the description is not a text")
    with library_errors(FileError, f"{name}: {source.problem}", remedy):
        table = json.loads(state["table"])
    if type(table) is not dict or table.keys() != {"network", "layer"} or type(table["layer"]) is not str:
        raise source.error('the description must have exactly the entries "network" and "layer"')
    try:
        description = read_description(table["network"])
        network = restore_network(source, description, state["network"], len(data))
        scaling = restore_scaling(source, description.image_shape, state["scaling"])
        extractor = Extractor(description, network, scaling, table["layer"])
        _ = extractor.width  # the network may not accept images of this shape, or the layer may have no features
    except DescriptionError as error:
        raise source.error(str(error)) from error
    return extractor


def restore_network(source: Source, description: AnyDescription, found: Any, size: int) -> nn.Module:
    """Build the network of a description with the tensors of a file.

    Their shapes are compared with the description before the network is built, so that a small file cannot make a large network
    be allocated.

    found : state dict that was read from the file
    size : size of the file in bytes

    Raises
    ------
    FileError : the tensors are not those of the network
    DescriptionError : the network cannot be built
    """
    if isinstance(description, Description):
        shapes = {name: (shape, torch.float32 if shape else torch.int64) for name, shape in description.tensor_shapes().items()}
        tensors = check_tensors(source, "network", found, shapes)
        network: nn.Module = build(description, seed=0)
    else:
        check_backbone(description.backbone, description.image_shape[2])
        check_claim(source.name, backbone_bytes(description.backbone), size)
        with torch.random.fork_rng(devices=[]):
            backbone = Backbone(description.backbone, description.classes, head_device="meta")
        check_images(backbone, description.image_shape)
        network = backbone
        tensors = check_tensors(source, "network", found, shapes_of(network))
    if not_finite := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise source.error(f"network {not_finite[0]} has values that are not finite")
    network.load_state_dict(state_of(network, tensors), assign=True)
    return network


def restore_scaling(source: Source, image_shape: tuple[int, int, int], found: Any) -> Scaling | None:
    """Return the scaling of an extractor file; raise FileError if it is invalid for images of this shape."""
    if (values := read_dict(found)) is None:
        raise source.error(f"the scaling is a {type(found).__name__}, not a dict")
    if not values:
        return None
    if values.keys() != {"shift", "factor"}:
        raise source.error("the scaling is not a shift and a factor")
    height, width, channels = image_shape
    arrays = {}
    for name, value in values.items():
        size = value.numel() if isinstance(value, torch.Tensor) else 1
        tensor = check_tensor(source, f"scaling {name}", value, (size,), torch.float32)
        if size not in (1, channels, height * width * channels) or not tensor.isfinite().all():
            raise source.error(f"scaling {name} does not fit the images, or is not finite")
        arrays[name] = tensor.numpy()
    return Scaling(arrays["shift"], arrays["factor"])
