"""Tests of the extractor: features equal those of an explicit forward pass, for any batch size and after serialization."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from fastmlp.cnn.description import Description, make_blocks
from fastmlp.cnn.errors import DescriptionError, FileError
from fastmlp.cnn.extractor import EXTRACTOR_VERSION, Extractor, from_bytes, make_network
from fastmlp.cnn.files import read_state, write_versioned
from fastmlp.cnn.images import Scaling
from support.cnn import SHAPE, bars, network
from torch.nn.functional import conv2d, max_pool2d

pytestmark = pytest.mark.full

SYMMETRIC = Scaling(np.full(1, 127.5, np.float32), np.full(1, 1 / 127.5, np.float32))
DESCRIPTION = Description(
    image_shape=SHAPE, classes=3, blocks=make_blocks((6, 8), pool="max", regularize="dropout"), dense=(8,)
)
PIXELS = bars(23, 0)[0]


def saved(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def extractor(layer: str | None = None) -> Extractor:
    return Extractor(DESCRIPTION, make_network(DESCRIPTION, seed=4), SYMMETRIC, layer)


def test_features_equal_an_explicit_forward_pass() -> None:
    weights = {name: value.double() for name, value in make_network(DESCRIPTION, seed=4).state_dict().items()}
    x = (torch.from_numpy(PIXELS).double() - 127.5) / 127.5
    x = x.reshape(-1, 1, 8, 8)
    x = max_pool2d(conv2d(x, weights["block1.conv.weight"], weights["block1.conv.bias"], padding=1).relu(), 2)
    x = conv2d(x, weights["block2.conv.weight"], weights["block2.conv.bias"], padding=1).relu().flatten(1)
    found = extractor().features(PIXELS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, x.numpy(), rtol=1e-5, atol=1e-6)
    dense = (x @ weights["dense1.0.weight"].T + weights["dense1.0.bias"]).relu()
    np.testing.assert_allclose(extractor("dense1").features(PIXELS), dense.numpy(), rtol=1e-5, atol=1e-6)


def test_dropout_is_off() -> None:
    one = extractor()
    one.network.train()
    first = one.features(PIXELS)
    assert np.array_equal(first, one.features(PIXELS))


def test_batches_cover_all_images_in_order() -> None:
    one = extractor()
    seen: list[int] = []
    handle = one.network.get_submodule("block1").register_forward_hook(lambda module, given, found: seen.append(len(found)))
    found = one.features(PIXELS, batch_size=5)
    handle.remove()
    assert seen == [5, 5, 5, 5, 3]
    np.testing.assert_allclose(found, one.features(PIXELS), rtol=1e-5, atol=1e-6)
    assert one.width == 8 * 4 * 4


@pytest.mark.parametrize("layer", [None, "dense1", "block1.conv"])
def test_an_extractor_is_restored_from_its_bytes(layer: str | None) -> None:
    one = extractor(layer)
    other = from_bytes(one.to_bytes(), "a.pt")
    assert other.description == one.description
    assert other.table() == one.table()
    assert other.sha256 == one.sha256
    assert np.array_equal(other.features(PIXELS), one.features(PIXELS))


def test_the_hash_depends_on_weights_layer_and_scaling() -> None:
    plain = Extractor(DESCRIPTION, make_network(DESCRIPTION, seed=4))
    other = Extractor(DESCRIPTION, make_network(DESCRIPTION, seed=5), SYMMETRIC)
    assert len({extractor().sha256, extractor("dense1").sha256, plain.sha256, other.sha256}) == 4


def test_an_extractor_has_a_format_version() -> None:
    assert read_state(extractor().to_bytes(), "a.pt")["format_version"] == EXTRACTOR_VERSION == 1


@pytest.mark.parametrize(("version", "found"), [(2, "format version 2"), (0, "format version 0"), (None, "no format version")])
def test_extractors_of_another_format_version_are_refused(version: int | None, found: str) -> None:
    """The format version is checked before the other entries, which are all different from those of version 1."""
    state = {"layers": [1, 2], "table": 3} | ({} if version is None else {"format_version": version})
    with pytest.raises(
        FileError, match=rf"^a\.pt: {found}, but this version of fastmlp reads format version 1; extract the features again$"
    ):
        from_bytes(saved(state), "a.pt")


def test_damaged_and_foreign_files() -> None:
    data = extractor().to_bytes()
    for damaged in (b"", b"PK", data[: len(data) // 2]):
        with pytest.raises(FileError, match=r"a\.pt: not a readable PyTorch file"):
            from_bytes(damaged, "a.pt")
    checkpoint = write_versioned(EXTRACTOR_VERSION, {"network": {}, "optimizer": {}})
    with pytest.raises(FileError, match=r"a\.pt: not an extractor \(missing: table, scaling\); extract the features again"):
        from_bytes(checkpoint, "a.pt")
    for changed in ({"layer": "block7"}, {"network": {}}, {"network": DESCRIPTION.table() | {"dense": (9,)}}):
        state = read_state(data, "a.pt")
        state["table"] = json.dumps(json.loads(state["table"]) | changed)
        with pytest.raises(FileError, match=r"a\.pt: damaged extractor \(.+\); extract the features again"):
            from_bytes(saved(state), "a.pt")
    with pytest.raises(DescriptionError, match="unknown layer 'block7'"):
        Extractor(DESCRIPTION, network(), None, "block7")
