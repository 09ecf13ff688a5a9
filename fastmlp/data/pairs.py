"""Pairs (x, y) of features and targets, as the Python interface accepts them, and their conversion to checked rows.

A pair is a `Split` of a data set, or a tuple of arrays, lists, data frames or series. Rules for a tuple:

- Strings of shape (n,) or (n, 1) are class labels. Integers and Booleans of this shape, and with loss="cross-entropy" also
  floats that are whole numbers, are class labels unless the network has one output, or has no sizes and a loss for numbers,
  such as squared-error. Other targets are numbers.
- If the network has sizes, integer labels are class numbers from 0. Otherwise, the distinct labels of the training split, in
  sorted order, are the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, listed, summary_html, summary_text
from fastmlp.data.checks import CheckedRows, as_array, check_rows, check_targets, check_weights, image_shape_of
from fastmlp.data.labels import LabelEncoder, class_labels
from fastmlp.data.rows import Array, Features, Subset
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.network import FloatArray, Network

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
    """

    rows: CheckedRows
    classes: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None

    @property
    def x(self) -> Features:
        """Features, (n, features) uint8 or float."""
        return self.rows.x

    @cached_property
    def y(self) -> Array:
        """Targets in the form in which `Model.predict` returns predictions.

        Class labels (n,), which are integers if all names of classes are integers and otherwise strings; or numbers, (n,) for
        one target per row, and (n, k) for k targets.
        """
        y = self.rows.y
        if self.classes:
            return class_labels(self.classes)[y]
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

    Raises
    ------
    ConfigError : `given` is not a pair
    DataError : no rows, wrong shapes or dtypes, values that are not finite, or labels that are not among the classes
    """
    if isinstance(given, Split):
        return given
    if not (isinstance(given, tuple | list) and len(given) == 2):
        raise ConfigError(
            f"the {name} data must be a pair (x, y), not {type(given).__name__}; write "
            "fastmlp.train(network, (x, y), (x_validation, y_validation))"
        )
    x = check_rows(given[0], network.sizes[0] or count_features(given[0]), dtype)
    if len(x) == 0:
        raise DataError(f"the {name} split has no rows")
    y, shape = as_array(given[1], f"{name} targets"), image_shape_of(given[0]) or image_shape
    if y.ndim == 0 or len(y) != len(x):
        raise DataError(f"the {name} split has {len(x)} rows but {y.size if y.ndim == 0 else len(y)} targets")
    names, column = tuple(map(str, () if classes is None else classes)), y.ndim == 1 or y.shape[1:] == (1,)
    if column and (names or (classes is None and is_labels(y, network))):
        numbers, names = encode_labels(y.ravel(), names, network.sizes[-1], name)
        return Split(CheckedRows(x, numbers, len(names)), names, shape)
    return Split(CheckedRows(x, check_targets(y, network.sizes[-1], name, dtype)), names, shape)


def with_weights(split: Split, sample_weight: Any, class_weight: Any) -> Split:
    """Return a split with sample weights, multiplied by the weights of the classes.

    Parameters
    ----------
    sample_weight : (n,) positive numbers; None for the weights that the split has
    class_weight : dict from class label to positive weight, in which missing classes have weight 1; "balanced" for
        n / (number of classes * number of rows of the class), as in scikit-learn; None for equal weights

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
    for label, weight in class_weight.items():
        if str(label) not in known:
            raise ConfigError(
                f"class_weight: {label!r} is not one of the classes {', '.join(classes)}", settings=("class_weight",)
            )
        factors[known[str(label)]] = weight
    return factors


def count_features(x: Any) -> int:
    """Return the number of features of x, (n, features) or images (n, height, width[, channels]); 0 for any other shape."""
    shape = x.shape if isinstance(x, Subset) else as_array(x, "the data").shape
    return int(np.prod(shape[1:])) if len(shape) in (2, 3, 4) else 0


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

    Raises
    ------
    DataError : y has labels of different types, or a label that is not one of the classes
    """
    y = plain_labels(y, split)
    text = y.dtype.kind == "U"
    if not names:
        names = tuple(map(str, range(outputs) if outputs and not text else np.unique(y).tolist()))
    if outputs not in (0, len(names)):
        raise DataError(f"classes has {len(names)} names, but the network has {outputs} outputs")
    labels = np.array(names) if text else class_labels(names)
    if not text and labels.dtype.kind == "U":
        labels = np.arange(len(names))  # the classes have names, but the labels are class numbers
    if not text and np.array_equal(labels, range(len(names))) and (y.min() < 0 or y.max() >= len(names)):
        raise DataError(f"{split} labels range from {y.min()} to {y.max()}, but there are {len(names)} classes, from 0")
    return LabelEncoder(labels).encode(y, f"{split} targets, row {{}}".format), names


def plain_labels(y: Array, split: str) -> Array:
    """Return labels of any dtype as strings or as int64.

    Raises
    ------
    DataError : the labels are neither all strings nor all whole numbers
    """
    if y.dtype.kind == "O":
        text = [isinstance(label, str) for label in y]
        if any(text) and not all(text):
            row = text.index(False)
            raise DataError(f"{split} targets: row {row} is {y[row]!r}, but other labels are strings; fill or remove such rows")
        y = y.astype(str) if any(text) else np.array(y.tolist())
    if y.dtype.kind == "U":
        return y
    if y.dtype.kind in "biuf" and np.isfinite(y).all() and (np.floor(y) == y).all():
        return y.astype(np.int64)
    raise DataError(f"{split} targets must be class labels, which are strings or whole numbers, not {y.dtype}")
