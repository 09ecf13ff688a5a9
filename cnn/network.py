"""Construction of PyTorch modules from descriptions, weight initialization, access to layers by name, and backbones.

The modules take float32 images of shape (n, channels, height, width). A backbone is a classification network of torchvision
whose output layer is replaced by one with the required number of classes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .description import FLATTEN, OUTPUT, Block, Description
from .errors import DescriptionError, FileError, MissingError, library_errors, reason
from .files import read_file, read_weights

ANOTHER = "choose another backbone"

# Initialization of the weights of convolutions and dense layers. xavier: Glorot & Bengio 2010; he: He et al. 2015, for ReLU;
# orthogonal: Saxe et al. 2014. Biases are then set to zero. "random" is not in this table: it keeps PyTorch's default
# initialization of weights and biases, which is kaiming_uniform_ with a = sqrt(5) for the weights.
INITIALIZERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "xavier": nn.init.xavier_uniform_,
    "he": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "orthogonal": nn.init.orthogonal_,
}


def build(description: Description, seed: int) -> nn.Sequential:
    """Build the network of a description. The initial weights depend only on the description and the seed.

    The child modules are block1, …, flatten, dense1, …, output, in this order. The state of the global random number
    generator is preserved.
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
    """Build a block for inputs with the given number of channels: convolution, ReLU, pooling, regularization."""
    layers = OrderedDict[str, nn.Module]()
    layers["conv"] = nn.Conv2d(channels, block.filters, block.kernel, block.stride, block.padding)
    layers["relu"] = nn.ReLU()
    if block.pool == "global":
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
    elif block.pool != "none":
        pooling = nn.MaxPool2d if block.pool == "max" else nn.AvgPool2d
        layers["pool"] = pooling(block.pool_kernel, block.pool_stride or None, block.pool_padding)
    if block.regularize == "batch":
        layers["regularize"] = nn.BatchNorm2d(block.filters)
    elif block.regularize != "none":
        dropout = nn.Dropout2d if block.regularize == "dropout2d" else nn.Dropout
        layers["regularize"] = dropout(block.dropout)
    return nn.Sequential(layers)


def initialize(network: nn.Module, init: str) -> None:
    """Initialize the weights of all convolutions and dense layers; `init` is one of `description.INITIALISATIONS`."""
    if init not in INITIALIZERS:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            INITIALIZERS[init](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ------------------------------------------------------------------------------------------------ backbones


class GreyToRGB(nn.Module):
    """Repeat the channel of grayscale images three times, so that a network for RGB images accepts them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(-1, 3, -1, -1)  # images that already have three channels stay the same


class Backbone(nn.Module):
    """`GreyToRGB`, followed by a torchvision network whose last dense layer is replaced by one with one output per class.

    Parameters
    ----------
    name : name of the network in torchvision
    classes : number of classes
    head_device : device of the new layer; "meta" takes no memory for its weights

    Raises
    ------
    DescriptionError : torchvision cannot build the network, or it has no dense layer
    MissingError : torchvision is not installed, or is incompatible with the installed torch
    """

    def __init__(self, name: str, classes: int, head_device: str = "cpu") -> None:
        super().__init__()
        self.name = name
        self.to_rgb = GreyToRGB()
        with library_errors(DescriptionError, f"backbone {name} cannot be built", ANOTHER, ("backbone",)):
            self.body = load_torchvision().models.get_model(name, weights=None)
        self.head = last_linear(self.body, name)
        parent = self.body.get_submodule(self.head.rpartition(".")[0])
        dense = self.body.get_submodule(self.head)
        setattr(parent, self.head.rpartition(".")[2], nn.Linear(dense.in_features, classes, device=head_device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(self.to_rgb(x))
        return logits


def load_torchvision() -> Any:
    """Import and return torchvision.

    Raises
    ------
    MissingError : torchvision is not installed, or is incompatible with the installed torch
    """
    try:
        import torchvision
    except ImportError as error:
        raise MissingError(f"torchvision cannot be imported ({error}); install it with: pip install 'fastmlp[cnn]'") from error
    except Exception as error:  # torchvision was built for another version of torch
        raise MissingError(
            f"torchvision is incompatible with torch {torch.__version__}: {reason(error)}; install both from "
            "the same index, such as: pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
        ) from error
    return torchvision


def last_linear(body: nn.Module, name: str) -> str:
    """Return the name of the last dense layer of a torchvision network.

    Raises
    ------
    DescriptionError : the network has no dense layer
    """
    dense = [path for path, module in body.named_modules() if isinstance(module, nn.Linear)]
    if not dense:
        message = f"backbone {name} does not end in a dense layer; choose another backbone, such as resnet18"
        raise DescriptionError(message, settings=("backbone",))
    return dense[-1]


def build_backbone(name: str, image_shape: tuple[int, int, int], classes: int, seed: int) -> Backbone:
    """Build a torchvision network with random weights for images of shape (height, width, channels), with 1 or 3 channels.

    Raises
    ------
    DescriptionError : the name is unknown, the network cannot be built or has no dense layer, or it does not accept images of
        this shape
    MissingError : torchvision is not installed, or is incompatible with the installed torch
    """
    check_backbone(name, image_shape[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(name, classes)
    check_images(backbone, image_shape)
    return backbone


def check_images(backbone: Backbone, image_shape: tuple[int, int, int]) -> None:
    """Raise DescriptionError if a backbone does not accept images of shape (height, width, channels)."""
    height, width, _ = image_shape
    problem = f"backbone {backbone.name} does not accept images of {height}x{width} pixels"
    with library_errors(DescriptionError, problem, f"{ANOTHER}, or resize the images", ("backbone", "image_size")):
        output_shape(backbone, image_shape)


def check_backbone(name: str, channels: int) -> None:
    """Raise DescriptionError if torchvision has no such network, or if it does not accept images with this many channels."""
    known = load_torchvision().models.list_models(module=load_torchvision().models)
    if name not in known:
        raise DescriptionError(f"unknown backbone {name!r}; torchvision has {', '.join(known)}", settings=("backbone",))
    if channels not in (1, 3):
        raise DescriptionError(f"backbones need images with 1 or 3 channels, not {channels}", settings=("backbone",))


def backbone_bytes(name: str) -> int:
    """Return the size of the weights of a torchvision network with its original output layer, without building it."""
    models = load_torchvision().models
    with library_errors(DescriptionError, f"the size of backbone {name} is unknown", ANOTHER, ("backbone",)):
        return 4 * int(models.get_model_weights(name).DEFAULT.meta["num_params"])


def output_shape(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the shape of the output of a network for two images, without computing the output or allocating memory for it.

    The network is switched to evaluation mode. Exceptions of PyTorch and torchvision are not converted.
    """
    height, width, channels = image_shape
    tensors = {name: value.to("meta") for name, value in [*network.named_parameters(), *network.named_buffers()]}
    with torch.inference_mode():
        x = torch.zeros(2, channels, height, width, device="meta")
        output: torch.Tensor = torch.func.functional_call(network.eval(), tensors, (x,))
    return tuple(output.shape)


def load_weights(backbone: Backbone, path: Path, sha256: str | None) -> None:
    """Load pretrained torchvision weights. The output layer is left unchanged.

    It keeps its initial weights, because the pretrained network usually has a different number of classes.

    Parameters
    ----------
    backbone : network whose weights are replaced in place
    path : file with a state dict, as published by torchvision
    sha256 : expected SHA-256 hash of the file; None disables the check

    Raises
    ------
    FileError : the file is missing or damaged, has another SHA-256 hash, or contains the weights of another network
    """
    data = read_file(path, settings=("weights",))
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        message = f"{path}: SHA-256 is {found}, not {sha256}; download the file again, or correct the expected hash"
        raise FileError(message, settings=("weights_sha256",))
    state = read_weights(data, str(path))
    own = backbone.body.state_dict()
    state.update({key: own[key] for key in state if key.startswith(f"{backbone.head}.") and key in own})
    problem = f"{path}: these are not weights of {backbone.name}"
    with library_errors(FileError, problem, "choose the weights of this backbone", ("weights", "backbone")):
        backbone.body.load_state_dict(state)


# ------------------------------------------------------------------------------------------------ layers by name


def load_feature_extraction() -> Any:
    """Import and return torchvision.models.feature_extraction."""
    load_torchvision()
    from torchvision.models import feature_extraction

    return feature_extraction


def layer_names(network: nn.Module) -> list[str]:
    """Return the names of all layers of a network that `up_to` accepts."""
    if isinstance(network, Backbone):
        problem = f"the layers of backbone {network.name} cannot be determined"
        with library_errors(DescriptionError, problem, ANOTHER, ("backbone",)):
            names = load_feature_extraction().get_graph_node_names(network)[1]
        return [name for name in names if name != "x"]
    return [name for name, _ in network.named_modules() if name]


def default_layer(network: nn.Module) -> str:
    """Return the name of the layer whose output is used as features by default.

    The default is "flatten", the flattened output of the last block. For a backbone, it is the layer before the output layer.
    """
    if not isinstance(network, Backbone):
        return FLATTEN
    names = layer_names(network)
    return names[names.index(f"body.{network.head}") - 1]


def last_hidden_layer(network: nn.Module) -> str:
    """Return the name of the layer before the output layer."""
    return default_layer(network) if isinstance(network, Backbone) else [name for name, _ in network.named_children()][-2]


def output_layer(network: nn.Module) -> nn.Linear:
    """Return the output layer of a network."""
    found = network.body.get_submodule(network.head) if isinstance(network, Backbone) else network.get_submodule(OUTPUT)
    assert isinstance(found, nn.Linear)
    return found


def up_to(network: nn.Module, layer: str) -> nn.Module:
    """Return the network truncated after a layer. Its output is flattened to shape (n, features).

    Raises
    ------
    DescriptionError : the network has no such layer
    """
    names = layer_names(network)
    if layer not in names:
        raise DescriptionError(f"unknown layer {layer!r}; this network has {', '.join(names)}", settings=("layer",))
    if isinstance(network, Backbone):
        problem = f"the features of layer {layer} of backbone {network.name} cannot be computed"
        with library_errors(DescriptionError, problem, "choose another layer", ("layer",)):
            return FlattenedOutput(load_feature_extraction().create_feature_extractor(network, {layer: "features"}))
    child, _, inner = layer.partition(".")
    children = list(network.named_children())
    last = [name for name, _ in children].index(child)
    modules = [module for _, module in children[: last + 1]]
    if inner:
        grandchildren = list(modules.pop().named_children())
        modules += [module for _, module in grandchildren[: [name for name, _ in grandchildren].index(inner) + 1]]
    return nn.Sequential(*modules, nn.Flatten())


class FlattenedOutput(nn.Module):
    """Wrapper of torchvision's feature extractor that returns its output "features", flattened.

    When it is called, it raises DescriptionError if the output is not a tensor with one row per image.
    """

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.extractor(x)["features"]
        if not isinstance(features, torch.Tensor) or len(features) != len(x):  # such as the sizes of another layer
            raise DescriptionError("this layer does not compute features; choose another layer", settings=("layer",))
        return features.flatten(1)
