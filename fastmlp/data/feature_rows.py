"""Features that a convolutional network made of images: what makes them, and the data set they are.

Here: `featured`, `extract_rows`, and what an extractor must be able to do. Not here: the network (package cnn, which only the
command line knows), and the files that features lie in (feature_files.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp.data.dataset import Dataset
from fastmlp.data.rows import Features, blocks, take
from fastmlp.errors import DataError, UnavailableError
from fastmlp.models.model import Model

Array = npt.NDArray[Any]

AT_ONCE = 1024  # images of a forward pass, at most


class Extractor(Protocol):
    """What turns images into features; `cnn.extractor.Extractor` does."""

    @property
    def width(self) -> int:
        """Features of an image."""

    @property
    def sha256(self) -> str:
        """Hash over description, layer, scaling and weights."""

    def features(self, pixels: Any, device: Any = "cpu") -> npt.NDArray[np.float32]:
        """Features of images (n, pixels), n at least 1: (n, features)."""

    def to_bytes(self) -> bytes:
        """A file that an `OpenExtractor` reads."""


OpenExtractor = Callable[[bytes, str], Extractor]


def extract_rows(extractor: Extractor, pixels: Features, device: Any = "cpu", dtype: str = "float32") -> Array:
    """Features of images (n, pixels), in memory: (n, features) float32, rounded to `dtype` on the way."""
    found = np.empty((len(pixels), extractor.width), np.float32)
    for place, block in blocks(pixels, AT_ONCE):
        found[place] = rounded(extractor.features(block, device), dtype)
    return found


def rounded(features: Array, dtype: npt.DTypeLike) -> Array:
    """Features (n, features) in the type in which they are kept.

    Raises DataError if they are not finite, or not in that type.
    """
    with np.errstate(over="ignore"):
        found = features.astype(dtype)
    if not np.isfinite(found).all():
        largest = np.abs(features).max()
        raise DataError(
            f"features up to {largest:g} are beyond {np.dtype(dtype)}; take --feature-dtype float32, or scale the images"
        )
    return found


def input_maker(model: Model, open_extractor: OpenExtractor | None) -> Callable[[Features], Array]:
    """A function from images (n, pixels) to a model's inputs, by the model's extractor, which its first call opens.

    The call raises UnavailableError if nobody has said how to open an extractor.
    """

    @functools.cache
    def extractor() -> Extractor:
        """The extractor, opened once for all images."""
        assert model.extractor is not None
        if open_extractor is None:
            raise UnavailableError(
                "this model takes features of images; give open_extractor=cnn.extractor.from_bytes, or features"
            )
        return open_extractor(model.extractor, "the model's extractor")

    return lambda pixels: extract_rows(extractor(), pixels)


def featured(data: Dataset, extract: Callable[[str, Features], Array], numbers: Mapping[str, npt.NDArray[np.int64]]) -> Dataset:
    """The features of a data set of images, as a data set that has its parts.

    Parameters
    ----------
    extract : from "x" or "x_test" and its images (n, pixels) to their features (n, features)
    numbers : the rows of `data.x` in each of its parts, as `runs.split_numbers` gives them
    """
    kept = np.sort(np.concatenate([rows for name, rows in numbers.items() if name != "test"]))
    # Also where it is empty: rows that the network was trained on must not become a part that judges what is trained on them.
    validation = np.flatnonzero(np.isin(kept, numbers.get("validation", [])))
    x_test: Features | None = data.x_test
    y_test = data.y_test
    if "test" in numbers:
        x_test, y_test = take(data.x, numbers["test"]), data.y[numbers["test"]]
    x = extract("x", data.x if len(kept) == len(data.x) else take(data.x, kept))
    tested = None if x_test is None else extract("x_test", x_test)
    return Dataset(data.name, x, data.y[kept], data.classes, None, tested, y_test, validation)
