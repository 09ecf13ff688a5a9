"""From a description to a PyTorch module, its initial weights, and its layers by name.

Images come in as (n, channels, height, width) float32. A backbone is a network of torchvision with an output of its own.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .description import FLATTEN, Block, Description
from .errors import DescriptionError, FileError, MissingError
from .files import read_state

OUTPUT = "output"

# Weights of convolutions and dense layers; biases become zero. Xavier: Glorot & Bengio 2010; he: He et al. 2015, for ReLU;
# orthogonal: Saxe et al. 2014. "random" leaves what PyTorch makes: uniform, kaiming_uniform_ with a = sqrt(5).
INITIALIZERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "xavier": nn.init.xavier_uniform_,
    "he": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "orthogonal": nn.init.orthogonal_,
}


def build(description: Description, seed: int) -> nn.Sequential:
    """The network with its initial weights, a pure function of the description and the seed.

    Its children are the layers of the description, in order: block1, …, flatten, dense1, …, output.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels, layers = description.image_shape[2], OrderedDict[str, nn.Module]()
        for number, block in enumerate(description.blocks, start=1):
            layers[f"block{number}"] = build_block(block, channels)
            channels = block.filters
        layers[FLATTEN], size = nn.Flatten(), description.features
        for number, width in enumerate(description.dense, start=1):
            layers[f"dense{number}"] = nn.Sequential(nn.Linear(size, width), nn.ReLU())
            size = width
        layers[OUTPUT] = nn.Linear(size, description.classes)
        network = nn.Sequential(layers)
        initialize(network, description.init)
    return network


def build_block(block: Block, channels: int) -> nn.Sequential:
    """Convolution, ReLU, pooling, regularisation."""
    steps = OrderedDict[str, nn.Module]()
    steps["conv"] = nn.Conv2d(channels, block.filters, block.kernel, block.stride, block.padding)
    steps["relu"] = nn.ReLU()
    if block.pool == "global":
        steps["pool"] = nn.AdaptiveAvgPool2d(1)
    elif block.pool != "none":
        pooling = nn.MaxPool2d if block.pool == "max" else nn.AvgPool2d
        steps["pool"] = pooling(block.pool_kernel, block.pool_stride or None, block.pool_padding)
    if block.regularize == "batch":
        steps["regularize"] = nn.BatchNorm2d(block.filters)
    elif block.regularize == "dropout":
        steps["regularize"] = nn.Dropout(block.dropout)
    return nn.Sequential(steps)


def initialize(network: nn.Module, init: str) -> None:
    """Fill the weights of convolutions and dense layers by a name of `description.INITIALISATIONS`."""
    if init not in INITIALIZERS:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            INITIALIZERS[init](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ------------------------------------------------------------------------------------------------ backbones


class Grey(nn.Module):
    """A single channel three times, for networks that were made for colours: their first weights stay as they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(-1, 3, -1, -1)  # of three channels nothing changes


class Backbone(nn.Module):
    """A torchvision network behind `Grey`; its last dense layer has an output per class."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        self.name = name
        self.grey = Grey()
        self.body = load_torchvision().models.get_model(name, weights=None)
        self.head = last_dense(self.body, name)
        parent = self.body.get_submodule(self.head.rpartition(".")[0])
        dense = self.body.get_submodule(self.head)
        setattr(parent, self.head.rpartition(".")[2], nn.Linear(dense.in_features, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(self.grey(x))
        return found


def load_torchvision() -> Any:
    """torchvision, or a MissingError that tells what to install."""
    try:
        import torchvision
    except ImportError as error:
        raise MissingError(f"torchvision is not there ({error}); install it with: pip install 'fastmlp[cnn]'") from error
    except RuntimeError as error:  # operators that its own torch build would have
        raise MissingError(
            f"torchvision does not fit this torch ({torch.__version__}): {' '.join(str(error).split())}; install both from one "
            "place, such as: pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
        ) from error
    return torchvision


def last_dense(body: nn.Module, name: str) -> str:
    """Name of the last dense layer of a torchvision classifier."""
    dense = [path for path, module in body.named_modules() if isinstance(module, nn.Linear)]
    if not dense:
        message = f"backbone {name} does not end in a dense layer; choose another, such as resnet18"
        raise DescriptionError(message, settings=("backbone",))
    return dense[-1]


def build_backbone(name: str, image_shape: tuple[int, int, int], classes: int, seed: int) -> Backbone:
    """A network of torchvision by name, untrained, for images (height, width, channels) of 1 or 3 channels.

    Raises
    ------
    DescriptionError : no such network, or one that these images are too small for
    MissingError : torchvision is missing, or does not fit torch
    """
    known = load_torchvision().models.list_models(module=load_torchvision().models)
    if name not in known:
        raise DescriptionError(f"no backbone {name!r}; torchvision has {', '.join(known)}", settings=("backbone",))
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise DescriptionError(f"backbones need images with 1 or 3 channels, not {channels}", settings=("backbone",))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(name, classes)
        try:
            with torch.inference_mode():
                backbone.eval()(torch.zeros(1, channels, height, width))
        except RuntimeError as error:
            message = f"backbone {name} does not accept images of {height}x{width}: {' '.join(str(error).split())}"
            raise DescriptionError(message, settings=("backbone",)) from None
    return backbone


def load_weights(backbone: Backbone, path: Path, sha256: str | None) -> None:
    """Take over trained weights, but those of the head, which has other classes, from a file of torchvision.

    Raises
    ------
    FileError : a missing or damaged file, another SHA-256, or weights of another network
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); check the path"
        raise FileError(message, settings=("weights",)) from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        message = f"{path}: SHA-256 is {found}, not {sha256}; download the file again, or correct the expected hash"
        raise FileError(message, settings=("weights_sha256",))
    state = read_state(data, str(path))
    own = backbone.body.state_dict()
    state = {key: own[key] if key.startswith(f"{backbone.head}.") else value for key, value in state.items()}
    try:
        backbone.body.load_state_dict(state)
    except RuntimeError as error:
        message = f"{path}: not weights of {backbone.name}: {' '.join(str(error).split())[:200]}"
        raise FileError(message, settings=("weights", "backbone")) from None


# ------------------------------------------------------------------------------------------------ layers by name


def extraction_tools() -> Any:
    """torchvision.models.feature_extraction, which cuts a network off behind a layer."""
    load_torchvision()
    from torchvision.models import feature_extraction

    return feature_extraction


def layer_names(network: nn.Module) -> list[str]:
    """The names that `up_to` takes."""
    if isinstance(network, Backbone):
        return [name for name in extraction_tools().get_graph_node_names(network)[1] if name != "x"]
    return [name for name, _ in network.named_modules() if name]


def default_layer(network: nn.Module) -> str:
    """The layer whose output are the features: the flattened last block, or what enters a backbone's head."""
    if not isinstance(network, Backbone):
        return FLATTEN
    names = layer_names(network)
    return names[names.index(f"body.{network.head}") - 1]


def up_to(network: nn.Module, layer: str) -> nn.Module:
    """The part of a network that gives the flattened output of a layer, (n, features).

    Raises
    ------
    DescriptionError : no such layer
    """
    names = layer_names(network)
    if layer not in names:
        raise DescriptionError(f"no layer {layer!r}; this network has {', '.join(names)}", settings=("layer",))
    if isinstance(network, Backbone):
        return Output(extraction_tools().create_feature_extractor(network, {layer: "features"}))
    child, _, inner = layer.partition(".")
    children = list(network.named_children())
    last = [name for name, _ in children].index(child)
    parts = [module for _, module in children[: last + 1]]
    if inner:
        steps = list(parts.pop().named_children())
        parts += [module for _, module in steps[: [name for name, _ in steps].index(inner) + 1]]
    return nn.Sequential(*parts, nn.Flatten())


class Output(nn.Module):
    """The flattened entry "features" of what a feature extractor gives."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.extractor(x)["features"]
        return found.flatten(1)
