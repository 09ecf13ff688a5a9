"""Conversion of lists, data frames, tensors and other objects to NumPy arrays, with messages for those that are not arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmlp.data.rows import Array
from fastmlp.errors import DataError


def as_array(values: Any, what: str) -> Array:
    """Return the values as an array. Objects that are numbers, as in data frames with several dtypes, become numbers.

    Parameters
    ----------
    values : array, list, data frame, series, tensor, or any other object that NumPy converts to an array
    what : name of the values, for error messages

    Raises
    ------
    DataError : the values are no array, have rows of different lengths, are masked, or are objects that are neither numbers
        nor strings

    Examples
    --------
    >>> as_array(np.array([[1, True], [2.5, False]], object), "x").dtype
    dtype('float64')
    """
    if hasattr(values, "toarray"):
        raise DataError(
            f"{what}: a sparse matrix; call toarray() on it; sparse features are accepted only by the scikit-learn estimators"
        )
    if np.ma.isMaskedArray(values) and np.ma.getmaskarray(values).any():
        raise DataError(f"{what}: a masked array with masked values; fill or remove them first")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        reason = "all rows must have the same length" if isinstance(values, list | tuple) else " ".join(str(error).split())
        raise DataError(f"{what} cannot be converted to an array; {reason}") from error
    except RuntimeError as error:  # a tensor that requires a gradient
        raise DataError(f"{what} cannot be converted to an array; {' '.join(str(error).split())}") from error
    if array.ndim == 0:
        raise DataError(f"{what} must be an array, a list or a data frame, not {type(values).__name__}")
    return array if array.dtype.kind != "O" else plain_objects(array, what)


def plain_objects(array: Array, what: str) -> Array:
    """Return an array of objects as numbers or Booleans if they are; an array that contains strings is returned unchanged.

    None becomes NaN if the other objects are numbers.

    Raises
    ------
    DataError : an object is neither a number nor a string
    """
    if any(isinstance(value, str) for value in array.flat):
        return array
    try:
        plain = np.array(array.tolist())
        return plain if plain.dtype.kind in "buif" and plain.shape == array.shape else array.astype(np.float64)
    except (ValueError, TypeError):
        place = next(index for index, value in np.ndenumerate(array) if not is_number(value))
        text = ", ".join(f"{name} {number}" for name, number in zip(("row", "column"), place, strict=False))
        raise DataError(f"{what}: {text} is {array[place]!r}, which is not a number; fill or remove it first") from None


def is_number(value: Any) -> bool:
    """Return whether an object can be converted to a float; None counts as NaN."""
    try:
        float(np.nan if value is None else value)
    except (ValueError, TypeError):
        return False
    return True


def not_numeric(values: Any, array: Array) -> DataError:
    """Return the error for features that are not numbers; it names the first such column of a data frame."""
    for index, name in enumerate(getattr(values, "columns", ())):
        column = array[:, index] if array.ndim == 2 else array
        other = [value for value in column if array.dtype.kind != "O" or isinstance(value, str)]
        if other:
            remedy = "encode it as numbers, for example with pandas.get_dummies"
            return DataError(f"the data must be numbers, but column {name!r} holds {other[0]!r}; {remedy}")
    return DataError(f"the data must be numbers, not {array.dtype}; convert them first")
