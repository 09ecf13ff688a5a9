"""The files that features lie in, and how features get into them.

A feature file is a data set like any other, with x (n, features), y, x_test, y_test and classes, and besides `validation` (the
rows of x that validate), `extractor` (the network, in bytes that fastmlp.cnn reads), and `provenance`: a JSON object with the
settings, the description and the hash of the network, the layer, and the hash of the images. It has one of three forms, by its
ending: `.npz`, `.safetensors` (classes and `provenance` are metadata), or none for a folder of `.npy` files, which are mapped
and not loaded: training reads from it the rows that it is provenance to use. One file holds up to LARGEST_FILE of features.

On their way features lie in a folder beside, in `.npy` files that append block by block, so that a run that was interrupted, or
killed, goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from fastmlp.data.arrays import ARRAYS, is_npy_folder, map_npy
from fastmlp.data.dataset import Dataset, load_data
from fastmlp.data.rows import Array, Features, take
from fastmlp.errors import ConfigError, DataError
from fastmlp.files import Tensors, file_errors, tensor_bytes, write_bytes
from fastmlp.nn.blocks import block_rows, blocks

FILES = (".npz", ".safetensors")
LARGEST_FILE = 1 << 30  # bytes of features
LONGEST_NAME = 200  # bytes; the names of what lies beside it meanwhile are longer
PARTS = ("x", "y", "x_test", "y_test", "validation")
FOLDER_FILES = {f"{name}.npy" for name in ARRAYS}
AT_ONCE = 1024  # images of a forward pass, at most


class Extractor(Protocol):
    """What turns images into features; `fastmlp.cnn.extractor.Extractor` does."""

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


# ------------------------------------------------------------------------------------------------ before


def choose_form(out: str | None, default: str, rows: int, width: int, dtype: str) -> Path:
    """Where so many rows of features are to lie; without `out` a file, or a folder if they are too many for one.

    Raises
    ------
    ConfigError : an ending that says nothing, too much for one file, or float16 in a folder, which could not be trained from
        without loading; a place that cannot be written to
    """
    size = rows * width * np.dtype(dtype).itemsize
    path = Path(default + ".npz" * (size <= LARGEST_FILE) if out is None else out)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ConfigError(f"out: the name is longer than {LONGEST_NAME} bytes; choose a shorter one", settings=("out",))
    with file_errors("write", path):
        if path.is_symlink() or not path.name:
            path = path.resolve()
    is_file = path.suffix in FILES
    if out is not None and path.suffix and not is_file:
        raise ConfigError(
            f"out: {path} must end in {' or '.join(FILES)}, or have no ending for a folder of .npy files", settings=("out",)
        )
    if is_file and size > LARGEST_FILE:
        remedy = f"choose a folder, such as {path.with_suffix('')}" + ", and float32" * (dtype != "float32")
        raise ConfigError(f"out: {size / 2**30:.1f} GiB of features are too many for one file; {remedy}", settings=("out",))
    if not is_file and dtype != "float32":
        raise ConfigError(
            f"feature_dtype: {dtype} is for one file; a folder is trained from as it is, in float32",
            settings=("feature_dtype",),
        )
    check_place(path)
    return path


def check_place(path: Path) -> None:
    """Raise ConfigError if nothing can be written at a path: it would show only after the network has been trained."""
    with file_errors("write", path):
        if not path.parent.is_dir():
            raise ConfigError(f"out: there is no folder {path.parent}; make it, or choose another", settings=("out",))
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"out: the folder {path.parent} cannot be written to; choose another", settings=("out",))


def check_replaceable(path: Path, images: Path) -> None:
    """Raise ConfigError if what is at a path is not features, or more: only these may be replaced; damaged ones may, too."""
    with file_errors("read", path):
        if images.exists() and path.samefile(images):
            raise ConfigError(f"out: {path} are the images; choose another", settings=("out",))
        if path.is_dir() and (others := [one.name for one in path.iterdir() if one.name not in FOLDER_FILES]):
            raise ConfigError(f"out: {path} also holds {others[0]}; choose another", settings=("out",))
    with contextlib.suppress(DataError):  # damaged ones
        read_features(path)


def read_features(path: Path) -> Dataset:
    """Features from their file, under the name of the images. Raises ConfigError if `extract` has not written it."""
    if not path.is_dir() or is_npy_folder(path):
        data = load_data(path)
        if data.provenance is not None:
            return dataclasses.replace(data, name=data.provenance["images"]["name"])
    raise ConfigError(f"out: {path} exists and was not made by extract; choose another", settings=("out",))


# ------------------------------------------------------------------------------------------------ on the way


class FeatureWriter(NamedTuple):
    """Features that are being made: the folder of their `.npy` files, who makes them, on which device, and of what type."""

    folder: Path
    extractor: Extractor
    device: Any
    dtype: str

    def append(self, name: str, pixels: Features, stop: Callable[[], bool]) -> int:
        """Append the features of images (n, pixels) that `name.npy` lacks, until `stop`; images done now.

        Only whole blocks of an earlier run count, so that every block is what an uninterrupted run makes of it.
        """
        width, kind = self.extractor.width, np.dtype(self.dtype)
        head, row, path = npy_header((len(pixels), width), kind), width * kind.itemsize, self.folder / f"{name}.npy"
        with file_errors("write", path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if path.exists() else "w+b") as stream:
                fits = stream.read(len(head)) == head
                have = (stream.seek(0, os.SEEK_END) - len(head)) // row if fits else 0
                first = have if have == len(pixels) else have - have % block_rows(pixels, AT_ONCE)
                stream.seek(0)
                stream.write(head)
                stream.seek(len(head) + first * row)
                stream.truncate()
                done = first
                for place, block in blocks(pixels, AT_ONCE, first):
                    if stop():
                        break
                    stream.write(rounded(self.extractor.features(block, self.device), kind).tobytes())
                    done = place.stop
                stream.flush()
                os.fsync(stream.fileno())
        return done - first

    def mapped(self, name: str) -> Array:
        """The features of `name.npy`, which is complete."""
        return map_npy(self.folder / f"{name}.npy")


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What stands before the numbers of an `.npy` file."""
    stream = io.BytesIO()
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, header)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------ at the end


def write_features(path: Path, data: Dataset, unfinished: Path) -> None:
    """Write a feature file, atomically; an old folder is moved aside just before the new one comes.

    unfinished : the folder in which its features have unfinished; gone afterwards

    Raises
    ------
    DataError : it cannot be written
    """
    arrays = {name: values for name in PARTS if (values := getattr(data, name)) is not None}
    arrays["extractor"] = np.frombuffer(data.extractor or b"", np.uint8)
    if path.suffix == ".npz":
        write_bytes(path, npz_bytes(arrays | texts(data)))
    elif path.suffix == ".safetensors":
        metadata = {"classes": json.dumps(data.classes), "provenance": json.dumps(dict(data.provenance or {}))}
        write_bytes(path, tensor_bytes({name: np.ascontiguousarray(values) for name, values in arrays.items()}, metadata))
    else:
        write_folder(path, arrays | texts(data), unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)


def texts(data: Dataset) -> Tensors:
    """Class names and `provenance` as arrays of text."""
    return {"classes": np.array(data.classes), "provenance": np.array(json.dumps(dict(data.provenance or {})))}


def npz_bytes(arrays: Tensors) -> bytes:
    """An `.npz` file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def write_folder(path: Path, arrays: dict[str, npt.NDArray[Any]], unfinished: Path) -> None:
    """Give the folder of features what else belongs to it, and its name; a folder of features that is there goes."""
    for name, values in arrays.items():
        if name not in ("x", "x_test"):
            buffer = io.BytesIO()
            np.save(buffer, values)
            write_bytes(unfinished / f"{name}.npy", buffer.getvalue())
    with file_errors("write", path):
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
        if path.exists():
            path.rename(aside)
        unfinished.rename(path)
        shutil.rmtree(aside, ignore_errors=True)


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
            f"features up to {largest:g} are beyond {np.dtype(dtype)}; use feature_dtype float32, or scale the images",
            settings=("feature_dtype", "scale"),
        )
    return found


def feature_dataset(
    data: Dataset, extract: Callable[[str, Features], Array], numbers: Mapping[str, npt.NDArray[np.int64]]
) -> Dataset:
    """The features of a data set of images, as a data set that has its parts.

    Parameters
    ----------
    extract : from "x" or "x_test" and its images (n, pixels) to their features (n, features)
    numbers : the rows of `data.x` in each of its parts, as `splits.split_indices` gives them
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
