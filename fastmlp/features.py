"""Features that a convolutional network made of images: what makes them, the data set they are, the file they lie in.

Here: `featured`, `write_features`, and what an extractor must be able to do. Not here: the network (package cnn, which only the
command line knows), and how the files are read (data_files.py, data_npy.py).

A feature file is a data set like any other, with x (n, features), y, x_test, y_test and classes, and besides `validation` (the
rows of x that validate), `extractor` (the network, in bytes that package cnn reads), and `about`: a JSON object with the
settings, the description and the hash of the network, the layer, and the hash of the images.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp.artifacts import write_bytes
from fastmlp.data import Dataset
from fastmlp.errors import UnavailableError
from fastmlp.model import Model
from fastmlp.rows import Features

Array = npt.NDArray[Any]


class Extractor(Protocol):
    """What turns images into features; `cnn.extractor.Extractor` does."""

    @property
    def width(self) -> int:
        """Features of an image."""

    @property
    def sha256(self) -> str:
        """Hash over description, layer, scaling and weights."""

    def blocks(self, pixels: Array, device: Any = "cpu") -> Iterator[npt.NDArray[np.float32]]:
        """Features of images (n, pixels), block by block."""

    def to_bytes(self) -> bytes:
        """A file that an `OpenExtractor` reads."""


OpenExtractor = Callable[[bytes, str], Extractor]


def extract_rows(extractor: Extractor, pixels: Array, device: Any = "cpu", dtype: str = "float32") -> Array:
    """Features of images (n, pixels): (n, features) float32, rounded to `dtype` on the way."""
    found = [block.astype(dtype).astype(np.float32) for block in extractor.blocks(pixels, device)]
    return np.concatenate(found) if found else np.empty((0, extractor.width), np.float32)


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

    return lambda pixels: extract_rows(extractor(), np.asarray(pixels[:]))


def featured(data: Dataset, extract: Callable[[Array], Array], numbers: Mapping[str, npt.NDArray[np.int64]]) -> Dataset:
    """The features of a data set of images, as a data set that has its parts.

    Parameters
    ----------
    extract : from images (n, pixels) to features (n, features)
    numbers : the rows of `data.x` in each of its parts, as `runs.split_numbers` gives them
    """
    kept = np.sort(np.concatenate([rows for name, rows in numbers.items() if name != "test"]))
    validation = np.flatnonzero(np.isin(kept, numbers["validation"])) if "validation" in numbers else None
    x_test, y_test = data.x_test, data.y_test
    if "test" in numbers:
        x_test, y_test = data.x[numbers["test"]], data.y[numbers["test"]]
    x = data.x if len(kept) == len(data.x) else data.x[kept]
    tested = None if x_test is None else extract(x_test)
    return Dataset(data.name, extract(x), data.y[kept], data.classes, None, tested, y_test, validation)


def write_features(path: Path, data: Dataset, dtype: str) -> None:
    """Write a feature file, atomically. Raises DataError if it cannot be written."""
    assert data.about is not None and data.extractor is not None
    arrays = {name: getattr(data, name) for name in ("x", "y", "x_test", "y_test", "validation")}
    arrays |= {name: None if arrays[name] is None else arrays[name].astype(dtype) for name in ("x", "x_test")}
    texts = {"classes": np.array(data.classes), "about": np.array(json.dumps(dict(data.about)))}
    present = {name: values for name, values in arrays.items() if values is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **present, **texts, extractor=np.frombuffer(data.extractor, np.uint8))  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())
