"""Tests of the descriptions of convolutional networks: output shapes, layer names, and invalid values."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from fastmlp.cnn.description import INITIALISATIONS, POOLINGS, REGULARISATIONS, Block, Description, from_table, make_blocks
from fastmlp.cnn.errors import DescriptionError
from support.cnn import PUBLISHED

from fastmlp.experiments.config import extract


def describe(*blocks: Block, shape: tuple[int, int, int] = (28, 28, 1), **more: Any) -> Description:
    return Description(image_shape=shape, classes=10, blocks=blocks, **more)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_can_be_described(name: str) -> None:
    blocks, features = PUBLISHED[name]
    assert describe(*blocks).features == features


def test_a_single_pooling_applies_to_all_blocks_but_the_last() -> None:
    for given in ("max", ("max",)):
        assert [block.pool for block in make_blocks((4, 5, 6), pool=given)] == ["max", "max", "none"]
    assert [block.pool for block in make_blocks((4,), pool="max")] == ["max"]
    assert [block.pool for block in make_blocks((4, 5), pool=("avg", "max"))] == ["avg", "max"]


def test_an_output_without_pixels_is_refused_with_the_number_of_its_block() -> None:
    with pytest.raises(
        DescriptionError, match=r"block 5 of 5: max pooling of 2x2 would shrink 1x1 to zero size; set pool to none"
    ):
        describe(*make_blocks((16,) * 5, pool=("max",) * 5))
    with pytest.raises(DescriptionError, match=r"block 2 of 2: a convolution of 5x5 with padding 0 does not fit into 1x1"):
        describe(*make_blocks((4, 4), kernel=(3, 5), padding=0, pool="global"))
    assert describe(*make_blocks((16,) * 4, pool=("max",) * 4)).features == 16


INVALID_BLOCKS: list[tuple[dict[str, Any], str]] = [
    ({"filters": 0}, "filters must be 1 or more, not 0"),
    ({"kernel": 0}, "kernel must be 1 or more"),
    ({"stride": 0}, "stride must be 1 or more"),
    ({"padding": -1}, "padding must be 0 or more, not -1"),
    ({"pool": "median"}, "pool must be one of none, max, avg, global, not 'median'"),
    ({"pool_kernel": 0}, "pool_kernel must be 1 or more"),
    ({"pool": "max", "pool_kernel": 3, "pool_padding": 2}, "pool_padding may be at most half of pool_kernel 3, not 2"),
    ({"regularize": "layer"}, "regularize must be one of none, batch, dropout, dropout2d"),
    ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
]


@pytest.mark.parametrize(("given", "message"), INVALID_BLOCKS)
def test_invalid_blocks(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        Block(**({"filters": 4} | given))


INVALID_NETWORKS: list[tuple[dict[str, Any], str]] = [
    ({"blocks": ()}, "at least one block"),
    ({"dense": (8, 0)}, "sizes of dense layers must be 1 or more, not 0"),
    ({"classes": 1}, "2 classes or more, not 1"),
    ({"init": "zeros"}, "init must be one of random, xavier, he, orthogonal, not 'zeros'"),
]


@pytest.mark.parametrize(("given", "message"), INVALID_NETWORKS)
def test_invalid_networks(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        Description(**({"image_shape": (8, 8, 1), "classes": 3, "blocks": (Block(filters=2),)} | given))


def test_a_sequence_of_another_length_is_refused() -> None:
    with pytest.raises(DescriptionError, match="kernel has 2 values for 3 blocks; give one value, or one per block"):
        make_blocks((1, 2, 3), kernel=(3, 3))


def test_descriptions_are_restored_from_json() -> None:
    network = describe(*PUBLISHED["iisc 7"][0], dense=(32, 16), init="he")
    assert from_table(json.loads(json.dumps(network.table()))) == network
    for invalid in ({}, {"blocks": []}, network.table() | {"colour": 1}, network.table() | {"dense": 3}):
        with pytest.raises(DescriptionError):
            from_table(invalid)


def test_labels_and_names() -> None:
    network = describe(*make_blocks((4, 8), pool="max"), dense=(16,))
    assert network.label == "28x28x1-4-8-d16"
    assert list(network.shapes()) == ["block1.conv", "block1.pool", "block2.conv"]


@pytest.mark.full
def test_torch_is_not_needed() -> None:
    script = "import sys; sys.modules['torch'] = None; import fastmlp.cnn.description, fastmlp.cnn.errors"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_settings_of_extract_have_the_same_names() -> None:
    """`fastmlp.experiments` must not import PyTorch, so it has copies of these names; they equal those of the extractor."""
    assert extract.POOLINGS == POOLINGS
    assert extract.REGULARIZERS == REGULARISATIONS
    assert extract.INITS == INITIALISATIONS
