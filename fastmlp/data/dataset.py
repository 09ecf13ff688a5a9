"""The `Dataset` class, and the function `load_data`, which loads and checks a data set given by name or path.

The readers of the file formats are in csv_table.py, arrays.py and images.py. The data sets that can be loaded by name are in
named.py. The checks of single arrays are in checks.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, listed
from fastmlp.data.checks import SourceLocation, check_features, check_labels, check_values, check_weights
from fastmlp.data.named import DATASETS, load_named
from fastmlp.data.pairs import DataSplits, Split
from fastmlp.data.readers.arrays import ARRAYS, RawArrays, is_npy_folder, read_npy_folder, read_npz, read_safetensors
from fastmlp.data.readers.csv_table import read_csv
from fastmlp.data.readers.images import read_image_folder
from fastmlp.data.rows import Array
from fastmlp.data.splits import split
from fastmlp.data.tables.encoding import TableEncoding
from fastmlp.errors import ConfigError, DataError, unknown_name
from fastmlp.files import file_errors
from fastmlp.nn.names import canonical_name

TASKS = ("classification", "regression")
PROVENANCE_KEYS = {"key", "settings", "network", "layer", "images", "cnn"}  # required keys of `Dataset.provenance`


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Summarized):
    """A data set whose arrays have been checked.

    Parameters
    ----------
    name : name of the data set, used in plot titles and folder names
    x : (n, features) array of uint8 or finite float32 values, C-contiguous; it can be memory-mapped
    y : (n,) int32 labels, or (n, k) float32 regression targets
    classes : names of the classes; empty for regression
    image_shape : (height, width, channels) if the rows are images, else None
    x_test, y_test : features and targets of the test set, with the dtypes of x and y; None without a test set
    validation : sorted indices of the validation rows in x; None if the data set does not define a validation split
    provenance : for features extracted from images, a description of how they were extracted (see features.py); else None
    extractor : for features extracted from images, the bytes of a fastmlp.cnn file with the network that extracted them
    weight : (n,) positive float32 sample weights of the rows of x; None for equal weights
    text_labels : whether the class labels were given as strings
    encoding : for tables, the encoding of their columns as features; else None
    source_rows : (n,) indices of the rows of x in the file, if rows were left out; None if all rows are in x
    notes : messages about how the data were read

    Examples
    --------
    >>> data = load_data("digits").split(validation=0.2, test=0.2, seed=0)
    >>> len(data.train), data.train.x.shape, data.train.y[:5].tolist()
    (1079, (1079, 784), [8, 5, 5, 1, 9])
    """

    name: str
    x: Array
    y: Array
    classes: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    x_test: Array | None = None
    y_test: Array | None = None
    validation: npt.NDArray[np.int64] | None = None
    provenance: Mapping[str, Any] | None = None
    extractor: bytes | None = None
    weight: npt.NDArray[np.float32] | None = None
    text_labels: bool = False
    encoding: TableEncoding | None = None
    source_rows: npt.NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def split(
        self, validation: float | int = 0.2, test: float | int = 0.2, stratify: bool = False, seed: int = 0
    ) -> DataSplits:
        """Split the data set into training, validation and test sets; empty splits are None.

        Parameters
        ----------
        validation, test : sizes; a float in [0, 1) is a fraction of the rows, an int is a number of rows. A test set that the
            data set has, or validation rows that it defines, are used instead
        stratify : whether the splits keep the class proportions
        seed : random seed, from 0 to 2^64 - 1

        Raises
        ------
        ConfigError, DataError : see `splits.split_rows`
        """
        found = split(self, validation, test, stratify, seed)
        pairs = {name: Split(rows, self.classes, self.image_shape, self.text_labels) for name, rows in found.items()}
        return DataSplits(pairs["train"], pairs.get("validation"), pairs.get("test"))

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows."""
        shown = {"name": self.name, "x": f"{self.x.shape} {self.x.dtype}", "y": f"{self.y.shape} {self.y.dtype}"}
        if self.classes:
            shown["classes"] = listed(self.classes)
        if self.image_shape is not None:
            shown["image_shape"] = str(self.image_shape)
        if self.validation is not None:
            shown["validation"] = f"{len(self.validation):,} rows"
        if self.x_test is not None:
            shown["test"] = f"{len(self.x_test):,} rows"
        return shown

    @cached_property
    def sha256(self) -> str:
        """SHA-256 hash of the dtype, shape and bytes of x, y, x_test, y_test, validation and weight, in this order.

        The hash is computed when it is first used, and then cached.
        """
        total = hashlib.sha256()
        for array in (self.x, self.y, self.x_test, self.y_test, self.validation, self.weight):
            if array is not None:
                total.update(f"{array.dtype.str} {array.shape} ".encode())
                total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


def check_dataset(arrays: RawArrays, name: str = "data", task: str = "classification") -> Dataset:
    """Check raw arrays and convert them to a `Dataset`; this function is used for all sources of data.

    Parameters
    ----------
    arrays : RawArrays
        The features x have shape (n, features), (n, height, width) or (n, height, width, channels). uint8 values are
        kept; other numbers are converted to float32. If only one of x and x_test is uint8, both become float32.
        For the task "classification", y has shape (n,) or (n, 1) and holds integers starting at 0, or strings. Strings are
        encoded in the order of `classes` if it is given, else in sorted order. A test label that is not a class of the
        training set is an error.
        For the task "regression", y has shape (n,) or (n, k) and holds numbers; `classes` is ignored.
    name : name of the returned data set
    task : "classification" or "regression"

    Raises
    ------
    ConfigError : unknown task
    DataError : ragged or empty arrays, values that are not finite in float32, arrays of different lengths, or labels that
        are not among the classes

    Examples
    --------
    >>> data = check_dataset(RawArrays(x=[[0.5, 1.0], [2.0, 3.0]], y=["spam", "ham"]))
    >>> data.classes, data.y.tolist(), data.x.dtype
    (('ham', 'spam'), [1, 0], dtype('float32'))
    """
    task = canonical_name("task", task, TASKS)
    locations = {key: SourceLocation(key) for key in (*ARRAYS, "weight")} | dict(arrays.locations or {})
    classes = _class_names(arrays.classes, locations["classes"]) if task == "classification" else ()
    x, shape, y, classes = _check_xy(arrays.x, arrays.y, task, classes, (locations["x"], locations["y"]))
    shape = arrays.image_shape or shape
    if shape and math.prod(shape) != x.shape[1]:
        raise DataError(f"{locations['x'].text} has {x.shape[1]} features, but images of shape {shape} have {math.prod(shape)}")
    if (arrays.x_test is None) != (arrays.y_test is None):
        given, missing = ("x_test", "y_test") if arrays.y_test is None else ("y_test", "x_test")
        raise DataError(f"{locations[given].text} is given without {missing}; give both x_test and y_test, or neither")
    if arrays.x_test is None:
        return Dataset(name, x, y, classes, shape, **_optional_fields(arrays, len(x), locations))
    where = (locations["x_test"], locations["y_test"])
    x_test, test_shape, y_test, _ = _check_xy(arrays.x_test, arrays.y_test, task, classes, where)
    if x_test.shape[1] != x.shape[1] or (test_shape and shape and test_shape != shape):
        found, needed = test_shape or x_test.shape[1:], shape or x.shape[1:]
        raise DataError(
            f"{where[0].text} has rows of shape {found}, but {locations['x'].text} has rows of shape {needed}; make them equal"
        )
    if y_test.shape[1:] != y.shape[1:]:
        raise DataError(f"{where[1].text} has {y_test.shape[1]} target columns, but y has {y.shape[1]}; make them equal")
    if x_test.dtype != x.dtype:
        x, x_test = x.astype(np.float32), x_test.astype(np.float32)
    return Dataset(name, x, y, classes, shape, x_test, y_test, **_optional_fields(arrays, len(x), locations))


def _optional_fields(arrays: RawArrays, rows: int, locations: Mapping[str, SourceLocation]) -> dict[str, Any]:
    """Check the fields of `Dataset` that most sources do not have, and return them by name."""
    found: dict[str, Any] = {"text_labels": np.asarray(arrays.y).dtype.kind in "UO"}
    if arrays.weight is not None:
        found["weight"] = check_weights(arrays.weight, rows, what=f"{locations['weight'].text}: the sample weight")
    if arrays.validation is not None:
        chosen = np.asarray(arrays.validation)
        whole = chosen.ndim == 1 and chosen.dtype.kind in "iu"
        if not whole or (
            len(chosen) and not (chosen[0] >= 0 and chosen[-1] < rows and (np.diff(chosen.astype(np.int64)) > 0).all())
        ):
            raise DataError(
                f"{locations['validation'].text}: must hold row indices of x in ascending order; extract the features again"
            )
        found["validation"] = chosen.astype(np.int64)
    if arrays.extractor is not None:  # without an extractor, an array called provenance was not written by fastmlp
        found["provenance"] = _provenance(str(arrays.provenance), locations["provenance"])
        found["extractor"] = np.asarray(arrays.extractor, np.uint8).tobytes()
    return found


def _provenance(text: str, location: SourceLocation) -> dict[str, Any]:
    """Parse the provenance of a feature file. Raise DataError if it is not a JSON object with all `PROVENANCE_KEYS`."""
    try:
        provenance = json.loads(text)
    except ValueError:
        provenance = None
    if not isinstance(provenance, dict) or not provenance.keys() >= PROVENANCE_KEYS:
        raise DataError(f"{location.text}: not a valid description of an extraction; extract the features again")
    return provenance


def _check_xy(
    x: Any, y: Any, task: str, classes: tuple[str, ...], locations: tuple[SourceLocation, SourceLocation]
) -> tuple[Array, tuple[int, int, int] | None, Array, tuple[str, ...]]:
    """Check x and y of the training or the test set; return x, the image shape, y and the class names."""
    x, shape = check_features(x, locations[0])
    y, classes = (check_values(y, locations[1]), ()) if task == "regression" else check_labels(y, classes, locations[1])
    if len(x) != len(y):
        raise DataError(f"{locations[0].text} has {len(x)} rows, but {locations[1].text} has {len(y)}; give one target per row")
    return x, shape, y, classes


def _class_names(values: Any, location: SourceLocation) -> tuple[str, ...]:
    """Return the class names; raise DataError unless they are distinct strings or integers."""
    array = np.asarray([] if values is None else values)
    names = tuple(map(str, array.tolist()))
    if array.ndim != 1 or (names and array.dtype.kind not in "Uui") or len(set(names)) < len(names):
        raise DataError(f"{location.text}: class names must be a list of distinct strings; correct the list or omit it")
    return names


def load_data(
    source: str | Path,
    data_dir: str | Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    task: str = "classification",
    weight: str | None = None,
    progress: bool = False,
) -> Dataset:
    """Load a data set by name or by path.

    Parameters
    ----------
    source : the name of a data set in `DATASETS`, or the path of an .npz, .safetensors or .csv file, of a folder with x.npy
        and y.npy, or of an image folder with one subfolder per class (see arrays.py, csv_table.py and images.py). A name
        takes precedence over a path: write ./mnist to load a folder called mnist.
    data_dir : folder to which the files of data sets loaded by name are downloaded (see `download.data_folder`)
    image_size : (height, width) to which the images of an image folder are resized
    task : "classification" if y holds class labels, "regression" if it holds regression targets
    weight : name of the column of a .csv file, or of the array, with the sample weights of the training rows; it is not a
        feature. None for equal weights
    progress : whether to show a progress bar on stderr while downloading

    Raises
    ------
    ConfigError : unknown task, invalid image_size, or a setting that does not apply to this source
    DataError : unknown name, missing path, or damaged data
    UnavailableError : a file is missing and cannot be downloaded

    Examples
    --------
    >>> data = load_data("digits")
    >>> data.x.shape, data.x.dtype, len(data.classes), data.image_shape
    ((1797, 784), dtype('uint8'), 10, (28, 28, 1))
    """
    name, path, task = str(source), Path(source), canonical_name("task", task, TASKS)
    named = name in DATASETS
    with file_errors("read", path):
        images = not named and is_image_folder(path)
        if not (named or path.exists()):
            hint = "give a valid name, or the path of an .npz file, a .csv file or a folder"
            raise DataError(f"{unknown_name('data set', name, DATASETS)}; there is no such file or folder either; {hint}")
        if image_size is not None and not images:
            raise ConfigError(f"image_size is for folders of images, not for {name!r}; leave it out", settings=("image_size",))
        if image_size is not None and (len(image_size) != 2 or min(image_size) < 1):
            raise ConfigError(
                f"image_size must be a height and a width of at least 1, not {image_size}", settings=("image_size",)
            )
        if task == "regression" and images:
            raise ConfigError(
                f"{path}: the targets of a folder of images are classes, not numbers; use task 'classification'",
                settings=("task",),
            )
        if weight is not None and (named or images):
            raise ConfigError(f"{name} has no sample weights; leave weight out", settings=("weight",))
        if named:
            return check_dataset(load_named(name, data_dir, progress), name, task)
        return check_dataset(_read(path, image_size, task, weight), path.resolve().stem, task)


def is_image_folder(path: Path) -> bool:
    """Return whether a path is a folder of images with one subfolder per class, and not a folder of `.npy` files."""
    return path.is_dir() and not is_npy_folder(path)


def _read(path: Path, image_size: tuple[int, int] | None, task: str, weight: str | None) -> RawArrays:
    if path.is_dir():
        return read_npy_folder(path, weight) if is_npy_folder(path) else read_image_folder(path, image_size)
    match path.suffix.lower():
        case ".npz":
            return read_npz(path, weight)
        case ".safetensors":
            return read_safetensors(path, weight)
        case ".csv":
            return read_csv(path, task, weight)
        case ".npy":
            raise DataError(f"{path}: an .npy file holds only one array; give the folder that contains x.npy and y.npy")
    raise DataError(
        f"{path}: unknown file type; give an .npz, .safetensors or .csv file, or a folder of class folders or .npy files"
    )
