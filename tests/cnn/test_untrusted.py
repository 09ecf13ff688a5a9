"""Untrusted extractors and checkpoints: the error message is one line, and no memory is allocated for declared sizes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from fastmlp.cnn import checkpoint, extractor, toolkit
from fastmlp.cnn.checkpoint import CHECKPOINT_KEYS
from fastmlp.cnn.description import REGULARISATIONS, BackboneDescription, Block, Description, make_blocks
from fastmlp.cnn.errors import CNNError, DescriptionError, FileError
from fastmlp.cnn.extractor import EXTRACTOR_KEYS, Extractor, from_bytes, make_network
from fastmlp.cnn.files import read_state
from fastmlp.cnn.images import Images, Scaling
from fastmlp.cnn.network import build, build_backbone
from fastmlp.cnn.training import Settings, Split, Trainer, Watch
from support.cnn import PUBLISHED, SHAPE, bars, network
from support.torch_files import members, saved, with_pickle, zipped

pytestmark = pytest.mark.full

needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")

PIXELS, LABELS = bars(20, 0)
SCALING = Scaling(np.full(1, 127.5, np.float32), np.full(1, 1 / 127.5, np.float32))
DESCRIPTION = Description(image_shape=SHAPE, classes=3, blocks=make_blocks((2, 3), pool="max", regularize="batch"), dense=(4,))
MUTANTS = 300


@functools.cache
def extractor_file() -> bytes:
    return Extractor(DESCRIPTION, make_network(DESCRIPTION, seed=4), SCALING).to_bytes()


def trainer(optimizer: str = "adam", watch: Watch | None = None) -> Trainer:
    split = Split(Images(PIXELS, SHAPE), LABELS)
    return Trainer(network(), split, split, Settings(optimizer=optimizer, epochs=2), watch)


@functools.cache
def checkpoint_file(optimizer: str = "adam") -> bytes:
    kept: list[bytes] = []
    trainer(optimizer, Watch(checkpoint=kept.append)).run()
    return kept[0]


def refused(data: bytes, match: str = "") -> None:
    """Check that an extractor is rejected with a one-line error message."""
    with pytest.raises(FileError, match=rf"^a\.pt: .*{match}") as caught:
        from_bytes(data, "a.pt")
    assert str(caught.value).isprintable()


def not_resumed(data: bytes, match: str = "", optimizer: str = "adam") -> None:
    """Check that a checkpoint is rejected with a one-line error message, and that the training is not changed."""
    run = trainer(optimizer)
    with pytest.raises(FileError, match=rf"^a\.pt: .*{match}") as caught:
        run.resume(data, "a.pt")
    assert str(caught.value).isprintable()
    before = network().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in run.network.state_dict().items())
    assert run.history == []


# ------------------------------------------------------------------------------------------------ values of other types

WRONG: dict[str, Any] = {"None": None, "1": 1, "x": "x", "list": [], "dict": {}, "tensor": torch.zeros(2)}


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", [*EXTRACTOR_KEYS, "format_version"])
def test_values_of_other_types_in_an_extractor(key: str, value: str) -> None:
    data = saved(read_state(extractor_file(), "a.pt") | {key: WRONG[value]})
    if (key, value) == ("scaling", "dict"):
        assert from_bytes(data, "a.pt").scaling is None
    elif (key, value) == ("format_version", "1"):
        assert from_bytes(data, "a.pt").description == DESCRIPTION
    else:
        refused(data)


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", [*CHECKPOINT_KEYS, "format_version"])
def test_values_of_other_types_in_a_checkpoint(key: str, value: str) -> None:
    data = saved(read_state(checkpoint_file(), "a.pt") | {key: WRONG[value]})
    if (key, value) in (("format_version", "1"), ("best_epoch", "1")):
        trainer().resume(data, "a.pt")
    else:
        not_resumed(data)


TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "shape": lambda tensor: torch.zeros(5),
    "transposed": lambda tensor: tensor.reshape(*tensor.shape[::-1]),
    "dtype": lambda tensor: tensor.double(),
    "expanded": lambda tensor: torch.zeros(1).expand(tensor.shape),
    "integers": lambda tensor: tensor.long(),
    "number": lambda tensor: 0.0,
    "parameter": torch.nn.Parameter,
}


@pytest.mark.parametrize("kind", TENSORS)
def test_other_tensors(kind: str) -> None:
    state = read_state(extractor_file(), "a.pt")
    name = "block2.conv.weight"
    state["network"][name] = TENSORS[kind](state["network"][name])
    refused(saved(state), "damaged extractor .*block2.conv.weight .*; extract the features again")
    state = read_state(checkpoint_file(), "a.pt")
    for tensors in (state["best_network"], state["optimizer"]["state"][0]):
        key = "exp_avg" if "exp_avg" in tensors else name
        kept, tensors[key] = tensors[key], TENSORS[kind](tensors[key])
        not_resumed(saved(state), rf"checkpoint.*{key} .*; delete it to train from the start")
        tensors[key] = kept
    trainer().resume(saved(state), "a.pt")


def test_tensors_that_are_not_finite() -> None:
    for value in (math.nan, math.inf):
        state = read_state(extractor_file(), "a.pt")
        state["network"]["dense1.0.bias"][1] = value
        refused(saved(state), "dense1.0.bias has values that are not finite")
        state = read_state(extractor_file(), "a.pt")
        state["scaling"]["shift"][0] = value
        refused(saved(state), "scaling shift does not fit the images, or is not finite")


def test_missing_and_additional_tensors() -> None:
    state = read_state(extractor_file(), "a.pt")
    state["network"]["more"] = torch.zeros(1)
    refused(saved(state), "network has 19 entries, not 18")
    del state["network"]["more"], state["network"]["output.bias"]
    refused(saved(state), "network: tensor 'output.bias' is missing")


@pytest.mark.parametrize("shape", [(2,), (1, 1), (), (0,), (1 << 40,)])
def test_a_scaling_that_does_not_fit(shape: tuple[int, ...]) -> None:
    state = read_state(extractor_file(), "a.pt")
    shift = torch.zeros(()).expand(shape)
    for scaling in ({"shift": shift}, {"shift": shift, "factor": torch.ones(1)}):
        refused(saved(state | {"scaling": scaling}), "scaling")


# ------------------------------------------------------------------------------------------------ descriptions in JSON

TABLE = json.loads(json.dumps(Extractor(DESCRIPTION, make_network(DESCRIPTION, seed=4)).table()))
JSON_VALUES = ["null", "true", "1.5", "-1", "1" * 400, "1" * 5000, "NaN", "Infinity", '"x"', '"\\ud800\\n"', "[]", "[[]]", "{}"]
JSON_VALUES += ["[" * 100_000, "[" * 100 + "]" * 100, '{"a":' * 100_000, "[null]", "[1, 2, 3, 4]", "[-1, 1, 1]", ""]


def with_json(place: tuple[Any, ...], text: str) -> bytes:
    """Return an extractor whose description has a JSON text at a place."""
    table = json.loads(json.dumps(TABLE))
    inner = table
    for key in place[:-1]:
        inner = inner[key]
    if place:
        inner[place[-1]] = "HERE"
    written = json.dumps(table).replace('"HERE"', text) if place else text
    return saved(read_state(extractor_file(), "a.pt") | {"table": written})


PLACES: list[tuple[Any, ...]] = [("network", one.name) for one in dataclasses.fields(Description)]
PLACES += [(), ("network",), ("layer",)]
PLACES += [("network", "backbone"), ("more",), ("network", "more"), ("network", "blocks", 0), ("network", "image_shape", 0)]
PLACES += [("network", "dense", 0), *(("network", "blocks", 1, one.name) for one in dataclasses.fields(Block))]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_other_values_in_a_description(place: tuple[Any, ...]) -> None:
    for text in JSON_VALUES:
        refused(with_json(place, text))


NUMBERS = (0, 2, 10**6, 2**31 - 1, 2**31, 2**63, 10**30)


@pytest.mark.parametrize("place", [place for place in PLACES if place[-1:] != ("more",)], ids=str)
def test_large_numbers_in_a_description(place: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network is built only if its tensors have the shapes of those in the file, and its outputs fit into memory."""
    built: list[Description] = []
    monkeypatch.setattr(extractor, "build", lambda description, seed: built.append(description) or build(description, seed))
    for number in NUMBERS:
        data = with_json(place, str(number))
        try:
            features = from_bytes(data, "a.pt").features(PIXELS)
        except FileError as error:
            assert str(error).isprintable()
        else:
            assert len(features) == len(PIXELS)
    assert all(max(map(math.prod, one.tensor_shapes().values())) < 1000 for one in built)


def test_a_padding_with_outputs_of_more_than_a_gib() -> None:
    refused(with_json(("network", "blocks", 0, "padding"), "100000"), "a layer has .* outputs for one image, more than 268,435")
    refused(with_json(("network", "image_shape", 0), "1000000000"), "images must have between 1 and 268,435,456 values")


def test_large_outputs_are_computed_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DESCRIPTION.largest_output == 2 * 8 * 8
    monkeypatch.setattr(extractor, "MAX_OUTPUTS", 9 * DESCRIPTION.largest_output + 1)
    one, seen = from_bytes(extractor_file(), "a.pt"), []
    one.network.get_submodule("block1").register_forward_hook(lambda module, given, found: seen.append(len(found)))
    assert one.features(PIXELS).shape == (20, one.width)
    assert seen == [9, 9, 2]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shapes_of_the_tensors_are_those_of_the_network(name: str) -> None:
    for regularize in REGULARISATIONS:
        blocks = tuple(dataclasses.replace(block, regularize=regularize) for block in PUBLISHED[name][0])
        description = Description(image_shape=(28, 28, 3), classes=10, blocks=blocks, dense=(7, 5))
        found = {name: tuple(value.shape) for name, value in build(description, seed=0).state_dict().items()}
        assert description.tensor_shapes() == found


# ------------------------------------------------------------------------------------------------ checkpoints


def test_the_history_is_checked() -> None:
    state = read_state(checkpoint_file(), "a.pt")
    assert {*state["history"][0]} == {*checkpoint.LOG_KEYS, *checkpoint.VALIDATION_KEYS}
    for key in state["history"][0]:
        for value in (None, "x", [], True, 10**500, torch.zeros(2), 0):
            if (value is None and key in checkpoint.VALIDATION_KEYS) or (type(value) is int and value == 0 and key != "epoch"):
                continue
            not_resumed(saved(state | {"history": [state["history"][0] | {key: value}]}), "damaged checkpoint .*history")
    for history in ([{}], [1], [state["history"][0]] * 1 + [{**state["history"][0]}], [state["history"][0] | {"more": 1.0}]):
        not_resumed(saved(state | {"history": history}), "damaged checkpoint .*history")


def test_the_state_of_the_optimizer_is_checked() -> None:
    state = read_state(checkpoint_file(), "a.pt")
    entry, groups = state["optimizer"]["state"][0], state["optimizer"]["param_groups"]
    invalid = [{"x": entry}, {-1: entry}, {99: entry}, {True: entry}, {0: []}, {0: {}}, {0: entry | {"more": torch.zeros(1)}}]
    invalid += [{0: entry | {"step": torch.tensor(value)}} for value in (-1.0, 0.0, math.nan, math.inf, 1)]
    for moments in invalid:
        not_resumed(saved(state | {"optimizer": {"state": moments, "param_groups": groups}}), "damaged checkpoint")
    for best in (-1, 2, True, 1.0):
        not_resumed(saved(state | {"best_epoch": best}), "best_epoch is .*, not an integer from 0 to ")
    other = read_state(checkpoint_file("sgd"), "a.pt")
    trainer("sgd").resume(saved(other), "a.pt")
    for entry in ({"momentum_buffer": None, "more": 1}, {"momentum_buffer": torch.zeros(1)}, {"exp_avg": torch.zeros(1)}):
        broken = {"state": {0: entry}, "param_groups": groups}
        not_resumed(saved(other | {"optimizer": broken}), "damaged checkpoint", "sgd")


def test_hyperparameters_in_a_checkpoint_are_not_used() -> None:
    state = read_state(checkpoint_file(), "a.pt")
    state["optimizer"]["param_groups"][0] |= {"lr": "x", "betas": None, "eps": math.nan}
    run = trainer()
    run.resume(saved(state), "a.pt")
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert len(run.run().history) == 2


# ------------------------------------------------------------------------------------------------ mutants


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes of which some are changed, removed or repeated."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        start, count = int(rng.integers(len(found) or 1)), int(rng.integers(1, 9))
        match rng.integers(4):
            case 0 if found:
                found[start] ^= 1 << int(rng.integers(8))
            case 1:
                found[start : start + count] = rng.bytes(count)
            case 2:
                del found[start : start + count]
            case _:
                found[start:start] = found[start : start + count]
    return bytes(found)


def mutants(data: bytes, seed: int) -> list[bytes]:
    """Return mutants of a file, and files with valid checksums whose pickle is a mutant."""
    rng, contents = np.random.default_rng(seed), members(data)
    inside = [with_pickle(data, lambda pickle: mutated(pickle, rng)) for _ in range(MUTANTS)]
    others = [zipped(contents | {name: mutated(content, rng)}) for name, content in contents.items()]
    return [*(mutated(data, rng) for _ in range(MUTANTS)), *inside, *others]


def test_mutants_of_an_extractor_are_refused_or_read() -> None:
    outcomes = {"read": 0, "refused": 0}
    for data in mutants(extractor_file(), seed=1):
        try:
            assert len(from_bytes(data, "a.pt").features(PIXELS)) == len(PIXELS)
            outcomes["read"] += 1
        except FileError as error:
            assert str(error).isprintable()
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


def test_mutants_of_a_checkpoint_are_refused_or_read() -> None:
    outcomes = {"read": 0, "refused": 0}
    for data in mutants(checkpoint_file(), seed=2):
        run = trainer()
        try:
            run.resume(data, "a.pt")
            run.run()
            outcomes["read"] += 1
        except CNNError as error:
            assert str(error).isprintable()
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


# ------------------------------------------------------------------------------------------------ backbones


def no_network(*_: Any, **__: Any) -> NoReturn:
    pytest.fail("the network is built")


def backbone_file(description: BackboneDescription, layer: str = "body.flatten", **network: torch.Tensor) -> bytes:
    table = json.dumps({"network": description.table(), "layer": layer})
    return saved({"format_version": 1, "table": table, "scaling": {}, "network": network})


@needs_torchvision
def test_a_small_file_cannot_declare_a_large_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(backbone_file(BackboneDescription("shufflenet_v2_x0_5", (32, 32, 1), 2**31 - 1)), "network: tensor ")
    monkeypatch.setattr(extractor, "Backbone", no_network)
    refused(backbone_file(BackboneDescription("regnet_y_128gf", (32, 32, 1), 3)), "declares 2.5 GiB of data")
    refused(backbone_file(BackboneDescription("resnet19", (32, 32, 1), 3)), "unknown backbone 'resnet19'")
    refused(backbone_file(BackboneDescription("resnet18", (32, 32, 2), 3)), "1 or 3 channels, not 2")


@needs_torchvision
@pytest.mark.parametrize("name", ["mnasnet0_5", "shufflenet_v2_x0_5"])
def test_a_backbone_is_restored_from_its_bytes(name: str) -> None:
    description = BackboneDescription(name, SHAPE, 3)
    one = Extractor(description, make_network(description, seed=1))
    data = one.to_bytes()
    other = from_bytes(data, "a.pt")
    assert other.sha256 == one.sha256
    assert np.array_equal(other.features(PIXELS), one.features(PIXELS))
    state = read_state(data, "a.pt")
    state["table"] = state["table"].replace('"classes": 3', '"classes": 4')
    refused(saved(state), r"network .* has shape \[3\b.*, not \[4\b")


@needs_torchvision
def test_the_training_of_a_backbone_is_resumed() -> None:
    description, split = BackboneDescription("mnasnet0_5", SHAPE, 3), Split(Images(PIXELS, SHAPE), LABELS)
    kept: list[bytes] = []
    whole, later = (
        Trainer(make_network(description, 0), split, None, Settings(epochs=2), Watch(checkpoint=kept.append)) for _ in range(2)
    )
    whole.run()
    later.resume(kept[0], "a.pt")
    later.run()
    wanted = whole.network.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in later.network.state_dict().items())


@needs_torchvision
@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_16", 28), ("alexnet", 28), ("vgg11", 28), ("densenet121", 28), ("maxvit_t", 28)]
)
def test_images_that_a_backbone_does_not_accept(name: str, size: int) -> None:
    message = rf"^backbone {name} does not accept images of {size}x{size} pixels \(.+\); choose"
    with pytest.raises(DescriptionError, match=message) as caught:
        build_backbone(name, (size, size, 1), 3, seed=0)
    assert str(caught.value).isprintable()
    assert caught.value.settings == ("backbone", "image_size")


@needs_torchvision
def test_a_layer_without_features() -> None:
    description = BackboneDescription("swin_t", (32, 32, 1), 3)
    network = make_network(description, seed=0)
    for layer in ("body_features_1_0_attn_qkv_weight", "_get_relative_position_bias"):
        with pytest.raises(DescriptionError, match="this layer does not compute features; choose another layer") as caught:
            _ = Extractor(description, network, None, f"body.features.1.0.attn.{layer}").width
        assert caught.value.settings == ("layer",)


# ------------------------------------------------------------------------------------------------ restoring a run

OPTIONS: dict[str, Any] = {one.name: one.default for one in dataclasses.fields(Block) if one.name != "filters"}
OPTIONS |= {"backbone": "cnn", "filters": (2,), "dense": (), "init": "random", "layer": None}
OPTIONS |= {"flip": 0.0, "shift": 0, "erase": 0.0}
OPTIONS |= {"compile": False, "device": "cpu", "weights": None, "weights_sha256": None}


def test_the_run_of_an_extractor_is_checked() -> None:
    prepared = toolkit.prepare(OPTIONS, SHAPE, 3)
    one = Extractor(prepared.description, make_network(prepared.description, 0), SCALING).to_bytes()
    history = read_state(checkpoint_file(), "a.pt")["history"]
    cnn = {"history": history, "best_epoch": 1, "stopped": "epochs"}
    assert toolkit.restore(prepared, {"train": (PIXELS, LABELS)}, (one, "a.npz"), cnn).trained.history == history
    invalid = [{}, {"history": history}, cnn | {"history": [{}]}, cnn | {"history": 1}, cnn | {"best_epoch": "1"}]
    invalid += [cnn | {"best_epoch": 7}, cnn | {"stopped": 1}]
    for broken in invalid:
        with pytest.raises(FileError, match=r"^a\.npz: damaged features \(.+\); extract the features again$"):
            toolkit.restore(prepared, {}, (one, "a.npz"), broken)
    with pytest.raises(FileError, match=r"made with another network"):
        toolkit.restore(prepared, {}, (extractor_file(), "a.npz"), cnn)


def test_error_messages_are_printable() -> None:
    assert str(CNNError("caf\u00e9\n\x1b]0;title\x07 \u202e \udc80")) == "caf\u00e9\\n\\x1b]0;title\\x07 \\u202e \\udc80"
    refused(with_json(("layer",), '"\\u001b]0;x\\u0007"'), r"unknown layer '\\x1b\]0;x\\x07'")
