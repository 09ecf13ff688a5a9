"""Read and write feature files, which store the features that a network has extracted from images.

A feature file is a data set with the arrays x (n, features), y, x_test, y_test and classes. It also contains the indices of
the validation rows in x (`validation`), the network as the bytes of a fastmlp.cnn file (`extractor`), and `provenance`, a JSON
object with the settings of the extraction, the description and the hash of the network, the layer, and the hash of the images.

The suffix of the path selects one of three file formats: `.npz`; `.safetensors`, where classes and `provenance` are metadata;
or, without a suffix, a folder of `.npy` files. A folder is memory-mapped for training, so its features may be larger than
memory; a single file has at most LARGEST_FILE bytes of features.

During extraction, features are appended block by block to `.npy` files in a temporary folder next to the feature file. If the
run is interrupted or killed, the next run with the same settings continues where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
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

from fastmlp.data.dataset import Dataset
from fastmlp.data.load import load_data
from fastmlp.data.readers.arrays import is_npy_folder, map_npy
from fastmlp.data.readers.names import ARRAYS
from fastmlp.data.readers.tensors import Tensors, tensor_bytes
from fastmlp.data.rows import Array, Features, take
from fastmlp.errors import ConfigError, DataError
from fastmlp.files import write_bytes
from fastmlp.files.reading import entries, exists, file_errors, files_matching, is_folder, real_path
from fastmlp.nn.blocks import block_rows, blocks

FILES = (".npz", ".safetensors")
LARGEST_FILE = 1 << 30  # maximum size of the features in a single file, in bytes
LONGEST_NAME = 200  # maximum length of the file name in bytes; the names of temporary files are longer
DATA_ARRAYS = ("x", "y", "x_test", "y_test", "validation")
FOLDER_FILES = {f"{name}.npy" for name in ARRAYS}
AT_ONCE = 1024  # maximum number of images per forward pass


class Extractor(Protocol):
    """A network that extracts features from images, such as `fastmlp.cnn.extractor.Extractor`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (height, width, channels) of an image."""

    @property
    def width(self) -> int:
        """Number of features per image."""

    @property
    def sha256(self) -> str:
        """SHA-256 hash of the description of the network, the layer, the scaling and the weights."""

    def features(self, pixels: Any, device: Any = "cpu") -> npt.NDArray[np.float32]:
        """Return the features (n, features) of images (n, pixels), n >= 1."""

    def to_bytes(self) -> bytes:
        """Return the extractor as bytes, from which a function of type `OpenExtractor` can restore it."""


OpenExtractor = Callable[[bytes, str], Extractor]


# ------------------------------------------------------------------------------------------------ before extraction


def choose_form(out: str | None, default: str, rows: int, width: int, dtype: str) -> Path:
    """Return the path of a feature file for `rows` rows of `width` features; its suffix determines the file format.

    If `out` is None, the path is `default` with the suffix `.npz`, or `default` without a suffix (a folder) if the size of the
    features exceeds LARGEST_FILE.

    Raises
    ------
    ConfigError : an unknown suffix, too many features for one file, float16 in a folder (only float32 can be memory-mapped for
        training), or a path that cannot be written to
    """
    size = rows * width * np.dtype(dtype).itemsize
    path = Path(default + ".npz" * (size <= LARGEST_FILE) if out is None else out)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ConfigError(f"out: the name is longer than {LONGEST_NAME} bytes; choose a shorter one", settings=("out",))
    with file_errors("write", path):
        if path.is_symlink() or not path.name:
            path = real_path(path)
    is_file = path.suffix in FILES
    if out is not None and path.suffix and not is_file:
        raise ConfigError(
            f"out: {path} must end in {' or '.join(FILES)}, or have no suffix for a folder of .npy files", settings=("out",)
        )
    if is_file and size > LARGEST_FILE:
        remedy = f"choose a folder, such as {path.with_suffix('')}" + ", and float32" * (dtype != "float32")
        raise ConfigError(f"out: {size / 2**30:.1f} GiB of features are too many for one file; {remedy}", settings=("out",))
    if not is_file and dtype != "float32":
        raise ConfigError(
            f"feature_dtype: {dtype} needs a single file; a folder is memory-mapped for training and must be float32",
            settings=("feature_dtype",),
        )
    check_place(path)
    return path


def check_place(path: Path) -> None:
    """Raise ConfigError if a path cannot be written to, so that this is reported before the network is trained."""
    with file_errors("write", path):
        if not is_folder(path.parent):
            raise ConfigError(f"out: there is no folder {path.parent}; create it, or choose another folder", settings=("out",))
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"out: the folder {path.parent} cannot be written to; choose another folder", settings=("out",))


def check_replaceable(path: Path, images: Path) -> None:
    """Raise ConfigError if a path contains anything other than features. Damaged feature files may be replaced."""
    if exists(images) and real_path(path) == real_path(images):
        raise ConfigError(f"out: {path} is the data set of images; choose another path", settings=("out",))
    if is_folder(path) and (others := [one.name for one in entries(path) if one.name not in FOLDER_FILES]):
        raise ConfigError(f"out: {path} also contains {others[0]}; choose another path", settings=("out",))
    with contextlib.suppress(DataError):  # a damaged feature file may be replaced
        read_features(path)


def read_features(path: Path) -> Dataset:
    """Read a feature file; the returned data set has the name of the images. Raise ConfigError if it has no features."""
    if not is_folder(path) or is_npy_folder(path):
        data = load_data(path)
        if data.provenance is not None:
            return dataclasses.replace(data, name=data.provenance["images"]["name"])
    raise ConfigError(f"out: {path} exists and was not made by extract; choose another path", settings=("out",))


# ------------------------------------------------------------------------------------------------ during extraction


class FeatureWriter(NamedTuple):
    """Extracts features on a device and writes them to a folder of `.npy` files in a given dtype."""

    folder: Path
    extractor: Extractor
    device: Any
    dtype: str

    def append(self, name: str, pixels: Features, stop: Callable[[], bool]) -> int:
        """Extract the features of images (n, pixels), append the missing ones to `name.npy`, and return how many were appended.

        Extraction ends early if `stop`, which is called before each block, returns True. Only complete blocks of an earlier
        run are kept, so that the features are bitwise the same as without an interruption.
        """
        width, dtype = self.extractor.width, np.dtype(self.dtype)
        head, row, path = npy_header((len(pixels), width), dtype), width * dtype.itemsize, self.folder / f"{name}.npy"
        with file_errors("write", path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if exists(path) else "w+b") as stream:
                fits = stream.read(len(head)) == head
                have = (stream.seek(0, os.SEEK_END) - len(head)) // row if fits else 0
                first = have if have == len(pixels) else have - have % block_rows(pixels, AT_ONCE)
                stream.seek(0)
                stream.write(head)
                stream.seek(len(head) + first * row)
                stream.truncate()
                done = first
                for rows, block in blocks(pixels, AT_ONCE, first):
                    if stop():
                        break
                    stream.write(rounded(self.extractor.features(block, self.device), dtype).tobytes())
                    done = rows.stop
                stream.flush()
                os.fsync(stream.fileno())
        return done - first

    def mapped(self, name: str) -> Array:
        """Memory-map the features of `name.npy`, which must be complete."""
        return map_npy(self.folder / f"{name}.npy")


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return the header of an `.npy` file in C order as bytes."""
    stream = io.BytesIO()
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, header)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------ after extraction


def write_features(path: Path, data: Dataset, unfinished: Path) -> None:
    """Write a feature file atomically. An existing folder is renamed just before the new folder is renamed to `path`.

    Parameters
    ----------
    path : path returned by `choose_form`
    data : data set of features to write
    unfinished : temporary folder of the extraction; it is removed

    Raises
    ------
    DataError : the file cannot be written
    """
    arrays = {name: values for name in DATA_ARRAYS if (values := getattr(data, name)) is not None}
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
    """Return the class names and `provenance` as string arrays."""
    return {"classes": np.array(data.classes), "provenance": np.array(json.dumps(dict(data.provenance or {})))}


def npz_bytes(arrays: Tensors) -> bytes:
    """Return the content of an `.npz` file with the given arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def write_folder(path: Path, arrays: dict[str, npt.NDArray[Any]], unfinished: Path) -> None:
    """Add the other arrays to the temporary folder of features and rename it to `path`, replacing an existing folder.

    If the process is killed between the two renames, `recover` restores the existing folder.
    """
    for name, values in arrays.items():
        if name not in ("x", "x_test"):
            buffer = io.BytesIO()
            np.save(buffer, values)
            write_bytes(unfinished / f"{name}.npy", buffer.getvalue())
    with file_errors("write", path):
        try:
            if exists(path):
                path.rename(path.with_name(f".{path.name}.{secrets.token_hex(4)}.old"))
            unfinished.rename(path)
        finally:
            recover(path)


def recover(path: Path) -> None:
    """Repair what a process leaves if it is interrupted or killed while `write_folder` replaces an existing folder.

    The existing folder was renamed to `.NAME.HEX.old`. It is renamed back if `path` does not exist; otherwise, it is removed.
    """
    for aside in files_matching(path.parent, f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.old"):
        if not exists(path):
            aside.rename(path)
        shutil.rmtree(aside, ignore_errors=True)


def extract_rows(extractor: Extractor, pixels: Features, device: Any = "cpu", dtype: str = "float32") -> Array:
    """Return the features of images (n, pixels) as a float32 array (n, features), with values rounded to `dtype`."""
    found = np.empty((len(pixels), extractor.width), np.float32)
    for rows, block in blocks(pixels, AT_ONCE):
        found[rows] = rounded(extractor.features(block, device), dtype)
    return found


def rounded(features: Array, dtype: npt.DTypeLike) -> Array:
    """Convert features (n, features) to the dtype in which they are stored.

    Raise DataError if a feature is not finite or exceeds the range of this dtype.
    """
    with np.errstate(over="ignore"):
        found = features.astype(dtype)
    if not np.isfinite(found).all():
        largest = np.abs(features).max()
        raise DataError(
            f"features up to {largest:g} exceed the range of {np.dtype(dtype)}; use feature_dtype float32, or scale the images",
            settings=("feature_dtype", "scale"),
        )
    return found


def feature_dataset(
    data: Dataset, extract: Callable[[str, Features], Array], indices: Mapping[str, npt.NDArray[np.int64]]
) -> Dataset:
    """Extract features from a data set of images, and return them as a data set with the same splits.

    Parameters
    ----------
    extract : function that is called with the name of an array, "x" or "x_test", and its images (n, pixels), and returns the
        features (n, features)
    indices : rows of `data.x` in each split, as `splits.split_indices` returns them
    """
    kept = np.sort(np.concatenate([rows for name, rows in indices.items() if name != "test"]))
    # `validation` is set even if it is empty. Otherwise, rows on which the network was trained could later be used for the
    # validation of a model that is trained on the features.
    validation = np.flatnonzero(np.isin(kept, indices.get("validation", [])))
    x_test: Features | None = data.x_test
    y_test = data.y_test
    if "test" in indices:
        x_test, y_test = take(data.x, indices["test"]), data.y[indices["test"]]
    x = extract("x", data.x if len(kept) == len(data.x) else take(data.x, kept))
    test_features = None if x_test is None else extract("x_test", x_test)
    return Dataset(data.name, x, data.y[kept], data.classes, None, test_features, y_test, validation)
