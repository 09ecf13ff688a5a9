"""Tests of PyTorch modules made from descriptions: output shapes, initial weights, layers by name, backbones."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fastmlp.cnn import network as cnn_network
from fastmlp.cnn.description import INITIALISATIONS, Description, make_blocks
from fastmlp.cnn.errors import DescriptionError, FileError, MissingError
from fastmlp.cnn.network import build, build_backbone, default_layer, layer_names, load_weights, up_to
from support.cnn import PUBLISHED
from torch import nn

NO_TORCHVISION = importlib.util.find_spec("torchvision") is None
needs_torchvision = pytest.mark.skipif(NO_TORCHVISION, reason="torchvision is not installed")


def small(**more: Any) -> Description:
    blocks = make_blocks((4, 6), pool="max", regularize="batch")
    return Description(**({"image_shape": (8, 8, 1), "classes": 3, "blocks": blocks, "dense": (5,)} | more))


@pytest.mark.parametrize("name", PUBLISHED)
def test_output_shapes_equal_those_of_the_description(name: str) -> None:
    description = Description(image_shape=(28, 28, 1), classes=10, blocks=PUBLISHED[name][0], dense=(7,))
    network = build(description, seed=0)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in network.named_modules():
        if path in description.shapes():
            module.register_forward_hook(lambda _, __, out, path=path: shapes.__setitem__(path, tuple(out.shape[1:])))
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert shapes == description.shapes()
    assert up_to(network, "flatten")(torch.zeros(2, 1, 28, 28)).shape == (2, description.features)


def test_weights_depend_on_the_seed_and_the_global_generator_is_not_changed() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    one, other, third = (build(small(), seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(one["block1.conv.weight"], third["block1.conv.weight"])


# Variance of the initial weights as a function of the numbers of inputs and outputs of a layer.
VARIANCES = {
    "random": lambda fan_in, fan_out: 1 / (3 * fan_in),
    "xavier": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
}


@pytest.mark.parametrize("init", VARIANCES)
def test_initial_weights_have_the_published_variance(init: str) -> None:
    description = Description(
        image_shape=(8, 8, 3), classes=10, blocks=make_blocks((64, 128), pool="max"), dense=(512,), init=init
    )
    network = build(description, seed=0)
    for name, fan_in, fan_out in (("block2.conv", 64 * 9, 128 * 9), ("dense1.0", 128 * 16, 512)):
        layer: Any = network.get_submodule(name)
        count, wanted = layer.weight.numel(), VARIANCES[init](fan_in, fan_out)
        assert float(layer.weight.detach().var()) == pytest.approx(wanted, rel=6 / math.sqrt(count) + 0.005)
        assert abs(float(layer.weight.detach().mean())) < 5 * math.sqrt(wanted / count)
        assert (init == "random") == bool(layer.bias.detach().abs().max() > 0)


def test_orthogonal_weights_are_orthogonal() -> None:
    network = build(small(init="orthogonal", blocks=make_blocks((4, 6))), seed=0)
    for name in ("block1.conv", "block2.conv", "dense1.0"):
        weight = network.get_submodule(name).weight.detach().flatten(1)  # type: ignore[union-attr]
        rows = min(weight.shape)
        product = weight @ weight.T if len(weight) == rows else weight.T @ weight
        torch.testing.assert_close(product, torch.eye(rows), atol=1e-5, rtol=0)
    assert set(INITIALISATIONS) == {*VARIANCES, "orthogonal"}


def test_regularization_follows_pooling() -> None:
    for regularize, kind in (("batch", nn.BatchNorm2d), ("dropout", nn.Dropout), ("dropout2d", nn.Dropout2d)):
        block = build(small(blocks=make_blocks((4, 6), pool="avg", regularize=regularize, dropout=0.3)), 0).get_submodule(
            "block1"
        )
        assert [name for name, _ in block.named_children()] == ["conv", "relu", "pool", "regularize"]
        assert isinstance(block.get_submodule("regularize"), kind)
        if regularize != "batch":
            assert block.get_submodule("regularize").p == 0.3


def test_dropout2d_drops_whole_channels() -> None:
    for regularize, whole in (("dropout", False), ("dropout2d", True)):
        network = build(small(blocks=make_blocks((200,), pool="none", regularize=regularize, dropout=0.5)), 0).train()
        dropped = network.get_submodule("block1").get_submodule("regularize")(torch.ones(4, 200, 5, 5)).flatten(2) == 0
        assert 0.4 < dropped.float().mean() < 0.6
        assert bool((dropped.all(2) | ~dropped.any(2)).all()) == whole


def test_layers_by_name() -> None:
    network = build(small(), seed=0).eval()
    x = torch.rand(2, 1, 8, 8)
    children = dict(network.named_children())
    first = children["block1"](x)
    last = children["block2"](first).flatten(1)
    dense = children["dense1"](last)
    for name, wanted in (("block1", first.flatten(1)), ("flatten", last), ("block2", last), ("dense1", dense)):
        assert torch.equal(up_to(network, name)(x), wanted)
    inner = network.get_submodule("block1.conv")(x).flatten(1)
    assert torch.equal(up_to(network, "block1.conv")(x), inner)
    assert torch.equal(up_to(network, "output")(x), network(x))
    assert default_layer(network) == "flatten"
    assert {"block1", "block1.conv", "flatten", "dense1", "output"} <= set(layer_names(network))
    with pytest.raises(DescriptionError, match="unknown layer 'block9'; this network has block1, "):
        up_to(network, "block9")


# ------------------------------------------------------------------------------------------------ backbones


@pytest.mark.full
@needs_torchvision
@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("mobilenet_v3_small", 1024)])
@pytest.mark.parametrize("channels", [1, 3])
def test_backbones_have_the_given_number_of_classes(name: str, features: int, channels: int) -> None:
    network = build_backbone(name, (32, 32, channels), 7, seed=0).eval()
    x = torch.rand(2, channels, 32, 32)
    with torch.inference_mode():
        assert network(x).shape == (2, 7)
        found = up_to(network, default_layer(network)).eval()(x)
        assert found.shape == (2, features)
        assert torch.equal(network.body.get_submodule(network.head)(found), network(x))
        if channels == 1:
            assert torch.equal(network(x), network.body(x.repeat(1, 3, 1, 1)))


@pytest.mark.full
@needs_torchvision
def test_weights_of_a_backbone_are_loaded_from_a_checked_file(tmp_path: Path) -> None:
    import torchvision

    given = torchvision.models.resnet18(weights=None)
    file = tmp_path / "resnet18.pth"
    torch.save(given.state_dict(), file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    network = build_backbone("resnet18", (32, 32, 1), 7, seed=0)
    head = network.body.fc.weight.detach().clone()
    load_weights(network, file, sha256.upper())
    assert torch.equal(network.body.conv1.weight, given.conv1.weight)
    assert torch.equal(network.body.fc.weight, head)
    with pytest.raises(FileError, match=f"SHA-256 is {sha256}, not 1234"):
        load_weights(network, file, "1234")
    with pytest.raises(FileError, match="cannot be read"):
        load_weights(network, tmp_path / "none.pth", None)
    with pytest.raises(FileError, match="these are not weights of mobilenet_v3_small"):
        load_weights(build_backbone("mobilenet_v3_small", (32, 32, 1), 7, seed=0), file, None)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FileError, match="not a readable PyTorch file"):
        load_weights(network, file, None)


@needs_torchvision
def test_invalid_backbones() -> None:
    with pytest.raises(DescriptionError, match=r"unknown backbone 'resnet19'; torchvision has .*resnet18"):
        build_backbone("resnet19", (32, 32, 1), 7, seed=0)
    with pytest.raises(DescriptionError, match="1 or 3 channels, not 4"):
        build_backbone("resnet18", (32, 32, 4), 7, seed=0)
    with pytest.raises(DescriptionError, match="backbone alexnet does not accept images of 8x8"):
        build_backbone("alexnet", (8, 8, 1), 7, seed=0)


def test_a_missing_or_incompatible_torchvision_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    broken = tmp_path / "torchvision" / "__init__.py"
    broken.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(MissingError, match=r"incompatible with torch .*nms does not exist; install both from the same index"):
        cnn_network.load_torchvision()
    broken.write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    with pytest.raises(MissingError, match=r"torchvision cannot be imported .*pip install 'fastmlp\[cnn\]'"):
        cnn_network.load_torchvision()
