"""Pairs (x, y) of features and targets, as the Python interface accepts them, and their conversion to checked rows.

A pair is a `Split` of a data set, or a tuple of arrays, lists, data frames or series. Rules for a tuple:

- Targets of shape (n,) or (n, 1) are class labels if they are strings, integers or Booleans, or if the loss is cross-entropy.
  Exceptions: integers and Booleans are numbers if all sizes of the network are given and it has one output, or if only its
  hidden sizes are given and its loss is for numbers, such as squared-error. All other targets are numbers.
- If all sizes of the network are given, integer labels must be class numbers from 0. Otherwise, the classes are the distinct
  labels of the training split in sorted order.
- If the network has no loss and the rows of a matrix are one-hot, they are class labels, too; a matrix of integers or Booleans
  that are 0 or 1 contains independent labels (binary cross-entropy).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, listed, summary_html, summary_text
from fastmlp.data.checks import CheckedRows, check_rows, check_targets, check_weights, image_shape_of
from fastmlp.data.convert import as_array
from fastmlp.data.labels import LabelEncoder, check_class_names, class_labels, is_one_hot
from fastmlp.data.rows import Array, Features
from fastmlp.data.tables.encoding import TableEncoding
from fastmlp.data.tables.frames import encode_frame, frame_encoding, is_frame
from fastmlp.errors import ConfigError, DataError, some_names
from fastmlp.nn.network import FloatArray, Network

MANY_CLASSES = 20  # more targets than this that are mostly distinct integers cause a warning
CLASSIFICATION_LOSSES = ("cross-entropy", "binary-cross-entropy")


@dataclass(frozen=True, eq=False, repr=False)
class Split(Summarized):
    """A split of a data set: a pair (x, y) whose values have been checked.

    It can be unpacked, as in `x, y = split`. `len(split)` is its number of rows.

    Parameters
    ----------
    rows : features, targets as the engines need them, and sample weights
    classes : names of the classes; empty if the targets are numbers
    image_shape : (height, width, channels) if the rows are images, else None
    text_labels : whether the class labels were given as strings
    encoding : for a table or a data frame, the encoding of its columns as features
    """

    rows: CheckedRows
    classes: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    text_labels: bool = False
    encoding: TableEncoding | None = None

    @property
    def x(self) -> Features:
        """Features, (n, features) uint8 or float."""
        return self.rows.x

    @cached_property
    def y(self) -> Array:
        """Targets in the form in which `Model.predict` returns predictions.

        Class labels (n,), strings or int64; or numbers, (n,) for one target per row, and (n, k) for k targets.
        """
        y = self.rows.y
        if self.classes:
            return class_labels(self.classes, self.text_labels)[y]
        return y.ravel() if y.shape[1:] == (1,) else y

    @property
    def sample_weight(self) -> FloatArray | None:
        """Sample weights, (n,) float32, or None."""
        return self.rows.weight

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.y))

    def __len__(self) -> int:
        return len(self.rows)

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows."""
        shown = {"x": f"{self.x.shape} {self.x.dtype}", "y": f"{self.y.shape} {self.y.dtype}"}
        return shown | ({"classes": listed(self.classes)} if self.classes else {})


class DataSplits(NamedTuple):
    """The splits of a data set. validation or test is None if the split is empty."""

    train: Split
    validation: Split | None
    test: Split | None

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows."""
        sizes = {name: None if split is None else f"{len(split):,} rows" for name, split in self._asdict().items()}
        shown = {**sizes, "features": f"{self.train.x.shape[1]:,} {self.train.x.dtype}"}
        return shown | ({"classes": listed(self.train.classes)} if self.train.classes else {})

    # A NamedTuple cannot have the base class Summarized.
    def __repr__(self) -> str:
        return summary_text("DataSplits", self._summary())

    def _repr_html_(self) -> str:
        return summary_html("DataSplits", self._summary())


def as_split(
    given: Any,
    name: str,
    network: Network,
    dtype: npt.DTypeLike,
    *,
    classes: Sequence[Any] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    encoding: TableEncoding | None = None,
) -> Split:
    """Check a pair, and return it as a `Split`. A `Split` is returned unchanged.

    Parameters
    ----------
    given : the pair, a `Split` or a tuple (x, y)
    name : "training", "validation" or "evaluation", for error messages
    network : network whose input and output sizes may not be known yet
    dtype : floating-point dtype in which numbers are stored
    classes : names of the classes; empty if the targets are numbers; None for the rules in the docstring of this module
    image_shape : (height, width, channels) if x (n, features) contains images
    encoding : encoding of the training data, to which the columns of a data frame are matched by name

    Raises
    ------
    ConfigError : `given` is not a pair
    DataError : no rows, wrong shapes or dtypes, values that are not finite, labels that are not among the classes, or names of
        classes or of columns with characters that they must not have
    """
    if isinstance(given, Split):
        return given
    if not (isinstance(given, tuple | list) and len(given) == 2):
        raise ConfigError(
            f"the {name} data must be a pair (x, y), not {type(given).__name__}; write "
            "fastmlp.train(network, (x, y), (x_validation, y_validation))"
        )
    values = given[0] if encoding is None or not is_frame(given[0]) else encode_frame(given[0], encoding, dtype)
    x = check_rows(values, network.sizes[0], dtype)
    encoding = encoding or frame_encoding(given[0])
    if len(x) == 0:
        raise DataError(f"the {name} split has no rows")
    y, shape = as_array(given[1], f"{name} targets"), image_shape_of(given[0]) or checked_shape(image_shape)
    if len(y) != len(x):
        raise DataError(f"the {name} split has {len(x)} rows but {len(y)} targets")
    names, column = checked_names(classes), y.ndim == 1 or y.shape[1:] == (1,)
    if (names or (classes is None and network.loss is None)) and is_one_hot(y):
        y, column = y.argmax(axis=1), True
    if column and (names or (classes is None and is_labels(y, network))):
        numbers, names = encode_labels(y.ravel(), names, network.sizes[-1], name)
        text = plain_labels(y.ravel()[:1], name).dtype.kind == "U"
        return Split(CheckedRows(x, numbers, len(names)), names, shape, text, encoding)
    if names and network.loss != "cross-entropy":
        raise ConfigError("classes are for class labels, but the targets are numbers; leave classes out")
    return Split(CheckedRows(x, check_targets(y, network.sizes[-1], name, dtype)), names, shape, encoding=encoding)


def checked_names(classes: Any) -> tuple[str, ...]:
    """Return the names of the classes as strings, empty for None.

    Raises
    ------
    ConfigError : the names are not distinct
    DataError : a name has a character that `check_class_names` refuses
    """
    if classes is None:
        return ()
    if isinstance(classes, str | int):
        raise ConfigError(f"classes must be a list of distinct names, not {classes!r}")
    names = tuple(map(str, classes))
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"classes must be a list of distinct names, but {repeated[0]!r} occurs more than once")
    check_class_names(names, "classes[{}]".format)
    return names


def checked_shape(shape: Any) -> tuple[int, int, int] | None:
    """Return an image shape as (height, width, channels); (height, width) means one channel."""
    if shape is None:
        return None
    if len(shape) not in (2, 3):
        raise ConfigError(f"image_shape must be (height, width, channels), not {shape!r}", settings=("image_size",))
    height, width, channels = (*shape, 1)[:3]
    return height, width, channels


def default_loss(rows: CheckedRows, y: Any) -> str:
    """Return the loss for a network that has none: for labels, for a matrix of labels, or for numbers.

    rows : checked rows
    y : targets as they were given, or None if they come from a data set; a matrix of integers or Booleans that are all 0 or 1
        is a matrix of labels
    """
    if rows.y.ndim == 1:
        return "cross-entropy"
    integers = y is not None and as_array(y, "training targets").dtype.kind in "biu"
    binary = integers and rows.y.shape[1] > 1 and bool(((rows.y == 0) | (rows.y == 1)).all())
    return "binary-cross-entropy" if binary else "squared-error"


def with_weights(split: Split, sample_weight: Any, class_weight: Any) -> Split:
    """Return a split with sample weights, multiplied by the weights of the classes.

    Parameters
    ----------
    sample_weight : (n,) positive numbers; None for the weights that the split has
    class_weight : dict from class label to a positive factor for the weights of its rows, 1 for missing classes; "balanced" for
        the factor n / (number of classes * number of rows of the class), as in scikit-learn; None for factors of 1

    Raises
    ------
    ConfigError : the targets are not class labels, or a label is not one of the classes
    DataError : invalid weights
    """
    rows = split.rows
    if sample_weight is not None:
        rows = replace(rows, weight=check_weights(sample_weight, len(rows)))
    if class_weight is not None:
        if not split.classes:
            raise ConfigError("class_weight needs class labels; leave it out for regression", settings=("class_weight",))
        factors = class_factors(class_weight, split.classes, rows.y)
        weight = factors[rows.y] if rows.weight is None else rows.weight * factors[rows.y]
        rows = replace(rows, weight=check_weights(weight, len(rows)))
    return replace(split, rows=rows)


def class_factors(class_weight: Any, classes: tuple[str, ...], numbers: Array) -> FloatArray:
    """Return the weight of each class, (classes,) float64; see `with_weights`."""
    if isinstance(class_weight, str) and class_weight == "balanced":
        counts = np.bincount(numbers, minlength=len(classes))
        return len(numbers) / ((counts > 0).sum() * np.maximum(counts, 1))
    if not hasattr(class_weight, "items"):
        raise ConfigError(f"class_weight must be a dict or 'balanced', not {class_weight!r}", settings=("class_weight",))
    known = {name: index for index, name in enumerate(classes)}
    factors = np.ones(len(classes))
    for given, weight in class_weight.items():
        label = int(given) if isinstance(given, float) and given.is_integer() else given
        if str(label) not in known:
            message = f"class_weight: {label!r} is not one of the classes {some_names(classes)}"
            raise ConfigError(message, settings=("class_weight",))
        if not (isinstance(weight, Real) and 0 < float(weight) < math.inf):
            message = f"class_weight: the weight of class {label!r} must be a positive number, not {weight!r}"
            raise ConfigError(message, settings=("class_weight",))
        factors[known[str(label)]] = weight
    return factors


def is_labels(y: Array, network: Network) -> bool:
    """Return whether targets (n,) or (n, 1) are class labels by the rules in the docstring of this module."""
    if y.dtype.kind in "UO":
        return True
    if network.is_complete and network.sizes[-1] == 1:
        return False
    if network.loss == "cross-entropy":
        return True
    return y.dtype.kind in "biu" and (network.is_complete or network.loss in (None, *CLASSIFICATION_LOSSES))


def encode_labels(y: Array, names: tuple[str, ...], outputs: int, split: str) -> tuple[Array, tuple[str, ...]]:
    """Return the class numbers of labels, (n,) int32, and the names of the classes.

    Parameters
    ----------
    y : (n,) labels
    names : names of the classes; empty to derive them
    outputs : number of outputs of the network; 0 if it is not known yet
    split : name of the split, for error messages

    Warns
    -----
    UserWarning : the classes are derived from integers, more than half of which are distinct

    Raises
    ------
    DataError : y has labels of different types, a label that is not one of the classes, or one that cannot be a class name
    """
    y = plain_labels(y, split)
    text = y.dtype.kind == "U"
    if not names:
        names = tuple(map(str, range(outputs) if outputs and y.dtype.kind in "iu" else np.unique(y).tolist()))
        check_class_names(names, lambda index: f"{split} targets, row {np.argmax(y == names[index])}")
        if not outputs and not text and len(y) > MANY_CLASSES and len(names) > len(y) / 2:
            warnings.warn(
                f"{len(names)} different integers in {len(y)} targets are used as classes; for regression, use a loss such as "
                "fastmlp.Network(loss='squared-error')",
                UserWarning,
                stacklevel=2,
            )
    if outputs not in (0, len(names)):
        found = f"{len(names)} classes, such as {names[-1]!r}"
        raise DataError(f"the {split} data have {found}, but the network has {outputs} outputs; make them equal")
    labels = class_labels(names, text)
    if not text and (labels.dtype.kind == "U" or (labels.dtype.kind == "b") != (y.dtype.kind == "b")):
        labels, y = np.arange(len(names)), y.astype(np.int64)  # the labels are class numbers
    if y.dtype.kind in "iu" and np.array_equal(labels, range(len(names))) and (y.min() < 0 or y.max() >= len(names)):
        raise DataError(
            f"{split} labels range from {y.min()} to {y.max()}, but there are {len(names)} classes, numbered from 0"
        )
    return LabelEncoder(labels).encode(y, f"{split} targets, row {{}}".format), names


def plain_labels(y: Array, split: str) -> Array:
    """Return labels of any dtype as strings, Booleans, int64, or uint64 if they are too large for int64.

    Raises
    ------
    DataError : the labels are neither all strings nor all whole numbers
    """
    if y.dtype.kind == "O":
        text = [isinstance(label, str) for label in y]
        if not all(text):
            row = text.index(False)
            raise DataError(f"{split} targets: row {row} is {y[row]!r}, but other labels are strings; fill or remove such rows")
        return y.astype(str)
    if y.dtype.kind in "Ub":
        return y
    if y.dtype.kind in "iuf":
        whole = np.isfinite(y) & (np.floor(y) == y)
        if whole.all():
            return y if y.dtype == np.uint64 and len(y) and y.max() > np.iinfo(np.int64).max else y.astype(np.int64)
        row = int(whole.argmin())
        remedy = "correct it, or for regression use fastmlp.Network(loss='squared-error')"
        raise DataError(f"{split} targets: row {row} is {y[row]}, but class labels are strings or whole numbers; {remedy}")
    raise DataError(f"{split} targets must be class labels, which are strings or whole numbers, not {y.dtype}")
