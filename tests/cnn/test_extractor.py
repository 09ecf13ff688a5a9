"""Features: equal to a forward pass written by hand, in any block size, and after a trip to disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastmlp.cnn.description import Description, make_blocks
from fastmlp.cnn.errors import DescriptionError, FileError
from fastmlp.cnn.extractor import Extractor, from_bytes, make_network
from fastmlp.cnn.images import Scaling
from support.cnn import SHAPE, bars, network
from torch.nn.functional import conv2d, max_pool2d

pytestmark = pytest.mark.full

SYMMETRIC = Scaling(np.full(1, 127.5, np.float32), np.full(1, 1 / 127.5, np.float32))
DESCRIPTION = Description(
    image_shape=SHAPE, classes=3, blocks=make_blocks((6, 8), pool="max", regularize="dropout"), dense=(8,)
)
PIXELS = bars(23, 0)[0]


def extractor(layer: str | None = None) -> Extractor:
    return Extractor(DESCRIPTION, make_network(DESCRIPTION, seed=4), SYMMETRIC, layer)


def test_features_are_those_of_a_forward_pass_by_hand() -> None:
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


def test_dropout_is_off_and_no_gradients_are_kept() -> None:
    one = extractor()
    one.network.train()
    first = one.features(PIXELS)
    assert np.array_equal(first, one.features(PIXELS))


def test_blocks_cover_all_images_in_order() -> None:
    one = extractor()
    seen: list[int] = []
    handle = one.network.get_submodule("block1").register_forward_hook(lambda module, given, found: seen.append(len(found)))
    found = one.features(PIXELS, at_once=5)
    handle.remove()
    assert seen == [5, 5, 5, 5, 3]
    np.testing.assert_allclose(found, one.features(PIXELS), rtol=1e-5, atol=1e-6)
    assert one.width == 8 * 4 * 4


@pytest.mark.parametrize("layer", [None, "dense1", "block1.conv"])
def test_an_extractor_comes_back_from_its_file(layer: str | None) -> None:
    one = extractor(layer)
    other = from_bytes(one.to_bytes(), "a.pt")
    assert other.description == one.description
    assert other.table() == one.table()
    assert other.sha256 == one.sha256
    assert np.array_equal(other.features(PIXELS), one.features(PIXELS))


def test_the_hash_follows_weights_layer_and_scaling() -> None:
    plain = Extractor(DESCRIPTION, make_network(DESCRIPTION, seed=4))
    other = Extractor(DESCRIPTION, make_network(DESCRIPTION, seed=5), SYMMETRIC)
    assert len({extractor().sha256, extractor("dense1").sha256, plain.sha256, other.sha256}) == 4


def test_damaged_and_foreign_files() -> None:
    data = extractor().to_bytes()
    for damaged in (b"", b"PK", data[: len(data) // 2]):
        with pytest.raises(FileError, match=r"a\.pt: not a readable file of torch"):
            from_bytes(damaged, "a.pt")
    with pytest.raises(DescriptionError, match="no layer 'block7'"):
        Extractor(DESCRIPTION, network(), None, "block7")
