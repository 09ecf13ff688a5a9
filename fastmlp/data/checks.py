"""Checks of features, targets and sample weights.

The values of an array are checked only once; a `CheckedRows` object stores arrays that have been checked. Training and
evaluation accept `CheckedRows` and compare only shapes, so that they need not read a large memory-mapped file again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.convert import as_array, not_numeric, plain_objects
from fastmlp.data.labels import LabelEncoder, check_class_names, is_one_hot
from fastmlp.data.rows import Array, Features, Subset, first_not_finite
from fastmlp.errors import DataError
from fastmlp.nn.blocks import blocks
from fastmlp.nn.network import FloatArray, Network

MOST_CLASSES = 65536  # more classes are rejected, because their number is the size of the output layer


@dataclass(frozen=True, eq=False)
class CheckedRows:
    """Features and targets whose values have been checked, in the dtypes that engines accept.

    Objects of this class are created by `pairs.as_split`, and by `splits.split` from a `dataset.Dataset`, whose arrays were
    checked when it was loaded.

    Parameters
    ----------
    x : (n, features) uint8 or finite float values, C-contiguous, n >= 1; an array, which may be memory-mapped, or a
        `rows.Subset`
    y : (n,) int32 labels from 0 to `classes` - 1, or (n, outputs) finite float targets
    classes : number of classes of the labels; 0 for float targets
    weight : (n,) positive finite float32 sample weights; None for equal weights
    """

    x: Features
    y: Array
    classes: int = 0
    weight: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.y)


class SourceLocation(NamedTuple):
    """The source of an array. Error messages use it to give the location of a row.

    >>> SourceLocation("a.csv", "line", 2).row(5)
    'a.csv: line 7'
    """

    text: str
    unit: str = "row"
    first: int = 0

    def row(self, index: int) -> str:
        """Return the location of row `index` (from 0) as text."""
        return f"{self.text}: {self.unit} {self.first + index}"


def finite(array: npt.NDArray[Any], dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], tuple[int, ...] | None]:
    """Convert an array to a C-contiguous array of `dtype`. Return it with the index of the first non-finite value, or None."""
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which is then found as a non-finite value
        cast = np.ascontiguousarray(array, dtype)
    return cast, first_not_finite(cast)


def wrong_features(features: int, x: Features) -> DataError:
    """Return the error for rows whose shape is not (n, features)."""
    if x.ndim == 1:
        return DataError(f"the data has shape {x.shape}; write x[:, None] for one feature, or x[None] for one row")
    return DataError(f"the network takes rows of {features} features, but the data has shape {x.shape}")


def flat_rows(array: Array) -> Array:
    """Return images (n, height, width) or (n, height, width, channels) as rows (n, features); other arrays unchanged."""
    return array.reshape(len(array), -1) if array.ndim in (3, 4) else array


def image_shape_of(x: Any) -> tuple[int, int, int] | None:
    """Return (height, width, channels) if x has the shape of images, (n, height, width[, channels]); otherwise None."""
    shape = np.shape(x) if not isinstance(x, Subset) else x.shape
    if len(shape) not in (3, 4):
        return None
    height, width, channels = (*shape[1:], 1)[:3]
    return height, width, channels


def check_rows(x: Any, features: int, dtype: npt.DTypeLike) -> Features:
    """Check that x is finite, and return it as a C-contiguous array (n, features) of uint8 or `dtype`.

    uint8 values stay uint8; other numbers are converted to `dtype`. Images (n, height, width[, channels]) become rows. An array
    that already has this dtype and layout is not copied, and a `rows.Subset` of such an array stays a subset. Anything else is
    copied.

    features : number of features that the rows must have; 0 for any number

    Raises
    ------
    DataError : a wrong shape, or values that are not finite numbers
    """
    rows = x if isinstance(x, Subset) else flat_rows(as_array(x, "the data"))
    if rows.ndim != 2 or rows.shape[1] != (features or rows.shape[1]):
        raise wrong_features(features, rows)
    if rows.dtype.kind not in "buif":
        raise not_numeric(x, np.asarray(rows))
    if isinstance(rows, Subset) and not (rows.dtype in (np.uint8, dtype) and rows.array.flags.c_contiguous):
        rows = np.asarray(rows)
    if rows.dtype == np.uint8:
        return rows if isinstance(rows, Subset) else np.ascontiguousarray(rows)
    cast, index = (rows, first_not_finite(rows)) if isinstance(rows, Subset) else finite(rows, dtype)
    if index is not None:
        value = rows[index[0]][index[1]]
        remedy = (
            f"too large for {np.dtype(dtype)}; rescale the feature"
            if np.isfinite(value)
            else "remove or fill such values first"
        )
        raise DataError(f"row {index[0]}, feature {index[1]} is {value}; {remedy}")
    return cast


def check_targets(y: Array, outputs: int, split: str, dtype: npt.DTypeLike) -> Array:
    """Return targets that are numbers, (n,) or (n, k), as finite values (n, k) of `dtype`.

    outputs : number of outputs of the network, which must be k; 0 for any k

    Raises
    ------
    DataError : wrong dtype or shape, or values that are not finite
    """
    if y.ndim == 1 and outputs in (0, 1):
        y = y[:, None]
    if y.dtype.kind not in "buif" or y.ndim != 2 or y.shape[1] != (outputs or y.shape[1]) or y.shape[1] == 0:
        raise wrong_targets(outputs, y, split)
    y, index = finite(y, dtype)
    if index is not None:
        raise DataError(f"{split} targets are not finite {np.dtype(dtype)} numbers in row {index[0]}, output {index[1]}")
    return y


def wrong_targets(outputs: int, y: Array, split: str) -> DataError:
    """Return the error for targets whose dtype or shape does not match the network's outputs."""
    needed = f"(n,) class labels or (n, {outputs or 'k'}) numbers"
    return DataError(f"{split} targets must be {needed}, not {y.dtype} of shape {y.shape}")


def are_probabilities(y: FloatArray) -> bool:
    """Return whether each row of y (n, classes) sums to 1 within 1e-4 and has no negative values."""
    return bool(np.allclose(y.sum(axis=1), 1, atol=1e-4) and (y >= 0).all())


def match_network(network: Network, rows: CheckedRows, split: str, dtype: npt.DTypeLike) -> CheckedRows:
    """Check that rows have the shapes that a network needs, and return them in the dtype of the engine.

    The values of x are not checked again.

    Raises
    ------
    DataError : wrong number of features or outputs, or targets outside the range of the loss
    """
    x, y, outputs = rows.x, rows.y, network.sizes[-1]
    if x.shape[1] != network.sizes[0]:
        raise wrong_features(network.sizes[0], x)
    if y.ndim == 1:
        if rows.classes > outputs:
            raise DataError(f"the {split} split has {rows.classes} classes, but the network has {outputs} outputs")
    elif y.shape[1] != outputs:
        raise wrong_targets(outputs, y, split)
    else:
        check_target_range(network, y, split)
    if x.dtype not in (np.uint8, dtype):
        x = np.asarray(x, dtype)
    return replace(rows, x=x, y=y if y.ndim == 1 else np.asarray(y, dtype))


# For each loss with a limited range of targets: a function that checks float targets, and the requirement in words.
TARGET_RANGES: dict[str, tuple[Callable[[FloatArray], bool], str]] = {
    "cross-entropy": (are_probabilities, "be nonnegative and sum to 1"),
    "binary-cross-entropy": (lambda y: bool(((y >= 0) & (y <= 1)).all()), "be between 0 and 1"),
    "poisson": (lambda y: bool((y >= 0).all()), "be nonnegative"),
}


def check_target_range(network: Network, y: FloatArray, split: str) -> None:
    """Raise DataError if float targets y (n, outputs) are outside the range for which the loss of the network is defined."""
    if network.loss_name not in TARGET_RANGES:
        return
    in_range, needed = TARGET_RANGES[network.loss_name]
    if not all(in_range(block) for _, block in blocks(y)):
        raise DataError(
            f"{split} targets must {needed} with the {network.loss_name} loss; for other targets use loss='squared-error'",
            settings=("loss",),
        )


def check_weights(
    sample_weight: Any,
    rows: int,
    *,
    dtype: type[np.floating[Any]] = np.float32,
    zeros: bool = False,
    what: str = "sample_weight",
) -> FloatArray:
    """Check sample weights, and return them as (rows,) of the dtype, in which they must be finite.

    what : name of the weights, for error messages
    zeros : if True, weights may be zero, but at least one must be positive; if False, all weights must be positive

    Raises
    ------
    DataError : the shape is wrong, or a weight is not finite, negative, or zero where this is not allowed
    """
    given = as_array(sample_weight, what)
    if given.dtype.kind not in "buif" or given.shape != (rows,):
        raise DataError(f"{what} must be {rows} numbers, not {given.dtype} of shape {given.shape}")
    weights, _ = finite(given, dtype)
    good = np.isfinite(weights) & (weights >= 0 if zeros else weights > 0)
    if not good.all():
        row, needed = int(good.argmin()), "nonnegative" if zeros else "positive"
        raise DataError(f"{what} of row {row} is {given[row]}; all weights must be {needed} and finite")
    if not weights.any():
        raise DataError(f"{what}: all weights are zero; at least one must be positive")
    return weights


def check_description(network: Network, features: int | None, classes: Sequence[str], shape: tuple[int, ...] | None) -> None:
    """Raise DataError unless the scaling, the class names and the image shape match the network, and the names are valid."""
    first, last = network.sizes[0], network.sizes[-1]
    if features is not None and features != first:
        raise DataError(f"the scaling is for {features} features, but the network takes {first}; pass one value per feature")
    if len(classes) not in (0, last):
        raise DataError(f"classes has {len(classes)} names, but the network has {last} outputs; pass one name per output")
    check_class_names(classes)
    if shape is not None and int(np.prod(shape)) != first:
        problem = f"image_shape {shape} has {int(np.prod(shape))} pixels, but the network takes {first} features"
        raise DataError(f"{problem}; correct image_shape")


def check_features(values: Any, location: SourceLocation) -> tuple[Array, tuple[int, int, int] | None]:
    """Return the features (n, features) as uint8 or float32, and the image shape if the values are images (n, h, w[, c]).

    Raise DataError for any other shape, an empty array, or values that are not finite float32 numbers.

    >>> check_features([[1, 2], [3, 4]], SourceLocation("x"))[0].dtype
    dtype('float32')
    """
    array = _array(values, location)
    if array.ndim not in (2, 3, 4):
        raise DataError(
            f"{location.text}: shape {array.shape}; the shape must be (n, features) or (n, height, width[, channels])"
        )
    height, width, channels = (*array.shape[1:], 1, 1)[:3]
    rows = array.reshape(len(array), -1)
    x = np.ascontiguousarray(rows) if rows.dtype == np.uint8 else _float32(rows, location)
    return x, None if array.ndim == 2 else (height, width, channels)


def check_values(values: Any, location: SourceLocation) -> Array:
    """Return regression targets of shape (n,) or (n, k) as a float32 array (n, k).

    Raise DataError for any other shape, an empty array, or values that are not finite float32 numbers.

    >>> check_values([1, 2], SourceLocation("y")).tolist()
    [[1.0], [2.0]]
    """
    array = _array(values, location)
    if array.ndim > 2:
        raise DataError(f"{location.text}: shape {array.shape}; targets must be (n,) or (n, k)")
    return _float32(array.reshape(len(array), -1), location)


def check_labels(
    values: Any, names: tuple[str, ...], location: SourceLocation, encoder: LabelEncoder | None = None
) -> tuple[Array, tuple[str, ...], LabelEncoder]:
    """Return the class numbers of labels, int32 (n,), the names of the classes, and the encoder of the labels.

    Parameters
    ----------
    values : labels, (n,) or (n, 1): integer values, Booleans or strings; or one-hot rows, (n, k)
    names : names of the classes, of which integer labels are indices; if empty, the classes are the values that occur
    location : source of the labels, for error messages
    encoder : encoder of the training labels, for labels of the test set

    Raises
    ------
    DataError : a wrong shape, an empty array, a label that is not one of the classes, or one that cannot be a class name

    Examples
    --------
    >>> check_labels(["b", "a", "b"], (), SourceLocation("y"))[:2]
    (array([1, 0, 1], dtype=int32), ('a', 'b'))
    >>> check_labels([5, 7, 5], (), SourceLocation("y"))[:2]
    (array([0, 1, 0], dtype=int32), ('5', '7'))
    """
    array = _array(values, location)
    if is_one_hot(array):
        names = names or tuple(map(str, range(array.shape[1])))
        array = array.argmax(axis=1)
    if array.ndim != 1 and array.shape != (len(array), 1):
        raise DataError(f"{location.text}: shape {array.shape}; labels must be (n,), or (n, classes) with one 1 in each row")
    array = _plain_labels(array.ravel(), location)
    if array.dtype.kind in "iuf":
        array = _whole(array, location, 0 if encoder is not None else len(names))
    if encoder is None:
        encoder = label_encoder(array, names)
    if len(encoder.classes) > MOST_CLASSES:
        raise DataError(
            f"{location.text}: {len(encoder.classes)} different labels; at most {MOST_CLASSES} classes are possible; for "
            "regression use task 'regression'"
        )
    numbers = encoder.encode(array, location.row)
    if not names:
        names = tuple(map(str, encoder.classes.tolist()))
        check_class_names(names, lambda index: location.row(int(np.argmax(numbers == index))))
    return numbers, names, encoder


def label_encoder(labels: Array, names: tuple[str, ...]) -> LabelEncoder:
    """Return the encoder of labels: to the index of their name, or their rank among the labels if there are no names.

    If there are names, integer labels are indices into them.
    """
    if not names:
        return LabelEncoder(np.unique(labels))
    return LabelEncoder(np.array(names) if labels.dtype.kind == "U" else np.arange(len(names)))


def _plain_labels(array: Array, location: SourceLocation) -> Array:
    """Return labels (n,) of any dtype as numbers, Booleans or strings."""
    if array.dtype.kind == "O":  # some are strings
        other = [row for row, label in enumerate(array) if not isinstance(label, str)]
        if other:
            value = array[other[0]]
            raise DataError(f"{location.row(other[0])}: label {value!r} is not a string, but other labels are; make them equal")
        array = array.astype(str)
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{location.text}: a label is not text in UTF-8; save the labels as strings") from error
    if array.dtype.kind not in "buifU":
        raise DataError(f"{location.text}: the labels have dtype {array.dtype}; they must be integers or strings")
    return array


def _whole(array: Array, location: SourceLocation, classes: int) -> Array:
    """Return labels with integer values as integers. `classes` is the number of class names; 0 if there are none."""
    good = np.isfinite(array) & (np.floor(array) == array)
    if classes:
        good &= (array >= 0) & (array < classes)
    if not good.all():
        row = int(good.argmin())
        needed = f"an integer from 0 to {classes - 1}" if classes else "an integer"
        remedy = "correct it, or for regression use task 'regression'"
        raise DataError(f"{location.row(row)}: label {array[row]} is not {needed}; {remedy}", settings=("task",))
    return array.astype(np.int64) if array.dtype.kind == "f" or array.max() <= np.iinfo(np.int64).max else array


def _array(values: Any, location: SourceLocation) -> Array:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{location.text}: the rows have different lengths; make them equally long") from error
    if array.size == 0 or array.ndim == 0:
        raise DataError(f"{location.text}: empty (shape {array.shape}); give at least one row")
    return plain_objects(array, location.text) if array.dtype.kind == "O" else array


def _float32(rows: Array, location: SourceLocation) -> Array:
    """Return the numbers (n, k) as a C-contiguous float32 array. Raise DataError unless all are finite."""
    if rows.dtype.kind not in "buif":
        raise DataError(f"{location.text}: the values have dtype {rows.dtype}; they must be numbers")
    result, index = finite(rows, np.float32)
    if index is not None:
        row, column = index
        reason = f"{rows[row, column]} is not a finite float32 number"
        raise DataError(f"{location.row(row)}, column {column}: {reason}; correct or remove it")
    return result
