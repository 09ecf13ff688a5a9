"""The `Dataset` class, and the function `check_dataset`, which checks the arrays of all sources of data.

load.py loads a data set given by name or path. The checks of single arrays are in checks.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, listed
from fastmlp.data.checks import SourceLocation, check_features, check_labels, check_values, check_weights
from fastmlp.data.convert import as_array
from fastmlp.data.labels import LabelEncoder, check_class_names, infer_task, is_one_hot
from fastmlp.data.pairs import DataSplits, Split
from fastmlp.data.readers.arrays import RawArrays
from fastmlp.data.readers.names import ARRAYS
from fastmlp.data.rows import Array
from fastmlp.data.splits import split
from fastmlp.data.tables.encoding import TableEncoding
from fastmlp.errors import DataError
from fastmlp.files.reading import library_errors
from fastmlp.nn.names import canonical_name

TASKS = ("classification", "regression")


class ProvenanceImages(msgspec.Struct):
    """Fields of `Provenance.images` that fastmlp uses; other fields are ignored."""

    name: str
    sha256: str
    stats: dict[str, Any] | None = None


class ProvenanceNetwork(msgspec.Struct):
    """Fields of `Provenance.network` that fastmlp uses; other fields are ignored."""

    image_shape: tuple[int, int, int]


class Provenance(msgspec.Struct):
    """The required items of `Dataset.provenance`."""

    key: str
    settings: dict[str, Any]
    network: ProvenanceNetwork
    layer: str
    images: ProvenanceImages
    cnn: dict[str, Any]


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
    encoding : for a table, the encoding of its columns as features
    source_rows : (n,) index of each row in the file, if rows of a table were left out; else None
    notes : messages about how the data were read, such as which column is the target

    Examples
    --------
    >>> import fastmlp
    >>> data = fastmlp.load_data("digits").split(validation=0.2, test=0.2, seed=0)
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
        described = (self.classes, self.image_shape, self.text_labels, self.encoding)
        pairs = {name: Split(rows, *described) for name, rows in found.items()}
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


def check_dataset(arrays: RawArrays, name: str = "data", task: str | None = None) -> Dataset:
    """Check raw arrays and convert them to a `Dataset`; this function is used for all sources of data.

    Parameters
    ----------
    arrays : RawArrays
        The features x have shape (n, features), (n, height, width) or (n, height, width, channels). uint8 values are
        kept; other numbers are converted to float32. If only one of x and x_test is uint8, both become float32.
        For the task "classification", y holds integers, Booleans or strings, of shape (n,) or (n, 1), or one-hot rows
        (n, classes). If `classes` is given, integers are indices into it; otherwise, the classes are the values that
        occur in y, in sorted order. A test label that is not a class of the training set is an error.
        For the task "regression", y has shape (n,) or (n, k) and holds numbers; `classes` is ignored.
    name : name of the returned data set
    task : "classification" or "regression"; None to infer it from y, see `labels.infer_task`

    Raises
    ------
    ConfigError : unknown task
    DataError : ragged or empty arrays, values that are not finite in float32, arrays of different lengths, labels that are not
        among the classes, or class names with characters that `labels.check_class_names` refuses

    Examples
    --------
    >>> data = check_dataset(RawArrays(x=[[0.5, 1.0], [2.0, 3.0]], y=["spam", "ham"]))
    >>> data.classes, data.y.tolist(), data.x.dtype
    (('ham', 'spam'), [1, 0], dtype('float32'))
    """
    locations = {key: SourceLocation(key) for key in (*ARRAYS, "weight")} | dict(arrays.locations or {})
    task, notes = _task(arrays, None if task is None else canonical_name("task", task, TASKS), locations["y"])
    classes = _class_names(arrays.classes, locations["classes"]) if task == "classification" else ()
    x, shape, y, classes, encoder = _check_xy(arrays.x, arrays.y, task, classes, (locations["x"], locations["y"]))
    shape = arrays.image_shape or shape
    if shape and math.prod(shape) != x.shape[1]:
        raise DataError(f"{locations['x'].text} has {x.shape[1]} features, but images of shape {shape} have {math.prod(shape)}")
    if (arrays.x_test is None) != (arrays.y_test is None):
        given, missing = ("x_test", "y_test") if arrays.y_test is None else ("y_test", "x_test")
        raise DataError(f"{locations[given].text} is given without {missing}; give both x_test and y_test, or neither")
    fields = _optional_fields(arrays, len(x), locations) | {"notes": (*arrays.notes, *notes)}
    if arrays.x_test is None:
        return Dataset(name, x, y, classes, shape, **fields)
    where = (locations["x_test"], locations["y_test"])
    x_test, test_shape, y_test, _, _ = _check_xy(arrays.x_test, arrays.y_test, task, classes, where, encoder)
    if x_test.shape[1] != x.shape[1] or (test_shape and shape and test_shape != shape):
        found, needed = test_shape or x_test.shape[1:], shape or x.shape[1:]
        raise DataError(
            f"{where[0].text} has rows of shape {found}, but {locations['x'].text} has rows of shape {needed}; make them equal"
        )
    if y_test.shape[1:] != y.shape[1:]:
        raise DataError(f"{where[1].text} has {y_test.shape[1]} target columns, but y has {y.shape[1]}; make them equal")
    if x_test.dtype != x.dtype:
        x, x_test = x.astype(np.float32), x_test.astype(np.float32)
    return Dataset(name, x, y, classes, shape, x_test, y_test, **fields)


def _task(arrays: RawArrays, task: str | None, location: SourceLocation) -> tuple[str, list[str]]:
    """Return the task, inferred from y if it is not given or known, and messages about y."""
    task = arrays.task or task
    y = as_array(arrays.y, location.text)
    if task is None:
        task = "classification" if arrays.classes is not None else infer_task(y)
        if task == "regression":
            return task, [f"{location.text}: numbers that are not class labels; the task is regression"]
    one_hot = task == "classification" and is_one_hot(y)
    return task, [f"{location.text}: one-hot encoded labels of {y.shape[1]} classes"] if one_hot else []


def _optional_fields(arrays: RawArrays, rows: int, locations: Mapping[str, SourceLocation]) -> dict[str, Any]:
    """Check the fields of `Dataset` that most sources do not have, and return them by name."""
    text = np.asarray(arrays.y).dtype.kind in "USO" if arrays.text_labels is None else arrays.text_labels
    found: dict[str, Any] = {"text_labels": text}
    found |= {"encoding": arrays.encoding, "source_rows": arrays.source_rows}
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
        if arrays.provenance is None:
            raise DataError(f"{locations['extractor'].text} has no matching array 'provenance'; extract the features again")
        found["provenance"] = _provenance(arrays.provenance, locations["provenance"])
        extractor = np.asarray(arrays.extractor)
        if extractor.dtype != np.uint8 or extractor.ndim != 1:
            problem = "must be a 1-d uint8 array with a serialized extractor"
            raise DataError(f"{locations['extractor'].text}: {problem}; extract the features again")
        found["extractor"] = extractor.tobytes()
    return found


def _provenance(values: Any, location: SourceLocation) -> dict[str, Any]:
    """Parse the provenance of a feature file. Raise DataError if it is not a JSON object with the fields of `Provenance`."""
    remedy = "extract the features again"
    with library_errors(location.text, "not a valid description of an extraction", remedy):
        provenance = json.loads(str(values))
        msgspec.convert(provenance, Provenance)
    return dict(provenance)


def _check_xy(
    x: Any,
    y: Any,
    task: str,
    classes: tuple[str, ...],
    locations: tuple[SourceLocation, SourceLocation],
    encoder: LabelEncoder | None = None,
) -> tuple[Array, tuple[int, int, int] | None, Array, tuple[str, ...], LabelEncoder | None]:
    """Check x and y of the training or the test set; return x, the image shape, y, the class names and the label encoder.

    encoder : label encoder of the training set, for the test set
    """
    x, shape = check_features(x, locations[0])
    if task == "regression":
        y = check_values(y, locations[1])
    else:
        y, classes, encoder = check_labels(y, classes, locations[1], encoder)
    if len(x) != len(y):
        raise DataError(f"{locations[0].text} has {len(x)} rows, but {locations[1].text} has {len(y)}; give one target per row")
    return x, shape, y, classes, encoder


def _class_names(values: Any, location: SourceLocation) -> tuple[str, ...]:
    """Return the class names; raise DataError unless they are distinct strings or integers without control characters."""
    array = np.asarray([] if values is None else values)
    names = tuple(map(str, array.ravel().tolist()))
    if array.ndim != 1 or (names and array.dtype.kind not in "Uui") or len(set(names)) < len(names):
        raise DataError(f"{location.text}: class names must be a list of distinct strings; correct the list or omit it")
    check_class_names(names, location.row)
    return names
