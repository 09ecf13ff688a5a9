"""Small images and networks for tests of CNN feature extraction."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fastmlp.cnn.description import Description, make_blocks
from fastmlp.cnn.network import build

SHAPE = (8, 8, 1)


def bars(count: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return pixels and labels of noisy images with a horizontal bright bar (class 0), a vertical one (1), or none (2)."""
    rng = np.random.default_rng(seed)
    pixels, labels = rng.integers(0, 120, (count, *SHAPE[:2]), np.uint8), rng.integers(0, 3, count)
    places = rng.integers(0, 8, count)
    for image, label, place in zip(pixels, labels, places, strict=True):
        if label < 2:
            image[(place, slice(None)) if label == 0 else (slice(None), place)] = 200
    return pixels.reshape(count, -1), labels


def network(seed: int = 0, regularize: str = "none") -> torch.nn.Module:
    blocks = make_blocks((6, 8), pool="max", regularize=regularize)
    return build(Description(image_shape=SHAPE, classes=3, blocks=blocks, dense=(8,)), seed)


FIVE = {"kernel": 3, "padding": 1}

# The networks of the published reports: their blocks, and the size of the flattened output of the last block.
PUBLISHED: dict[str, tuple[Any, int]] = {
    "cs776 equal": (make_blocks((16,) * 5, pool="max", **FIVE), 16),
    "cs776 doubled": (make_blocks((16, 32, 64, 128, 256), pool="avg", **FIVE), 256),
    "cs776 global": (make_blocks((16, 32, 64, 128, 256), pool="global", **FIVE), 256),
    "cs776 kernel 2": (make_blocks((16, 32, 64, 128, 256), pool="max", kernel=2, padding=1), 3 * 3 * 256),
    "cs776 kernel 5": (make_blocks((32, 64, 128, 256, 512), pool="max", kernel=5, padding=2), 512),
    "iisc 1": (make_blocks((8,), kernel=5, padding=2, pool="avg", pool_kernel=4, pool_stride=2, pool_padding=2), 8 * 15 * 15),
    "iisc 3": (
        make_blocks(
            (8, 12),
            kernel=(5, 4),
            padding=(2, 1),
            pool=("avg", "avg"),
            pool_kernel=4,
            pool_stride=2,
            pool_padding=(2, 0),
            regularize="batch",
        ),
        12 * 6 * 6,
    ),
    "iisc 7": (
        make_blocks(
            (8, 12, 16),
            kernel=(5, 4, 4),
            padding=(2, 1, 1),
            pool=("max",) * 3,
            pool_kernel=(4, 4, 3),
            pool_stride=2,
            pool_padding=(2, 0, 0),
            regularize="batch",
        ),
        16 * 2 * 2,
    ),
    "group7 1": (make_blocks((49, 98, 196, 392, 784), kernel=(3, 2, 2, 2, 2), padding=1, pool=("max",) * 5), 784),
    "group7 6": (
        make_blocks((49, 98, 196, 392), kernel=(3, 2, 2, 2), stride=(2, 1, 1, 1), padding=1, pool=("max",) * 4),
        392,
    ),
}
