"""Conversion between class labels of any sortable type and class numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.errors import DataError, some_names, unknown_name

MOST_WHOLE_CLASSES = 20  # targets with at most this many distinct integer values are class labels
# Categories of characters that class names must not contain, in words.
REFUSED_CATEGORIES = {"Cc": "control character", "Zl": "line separator", "Zp": "paragraph separator"}
BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # embedding, override, isolate, and their ends
LONGEST_SHOWN = 60  # maximum number of characters of a name in an error message

INTEGER = re.compile("0|-?[1-9][0-9]{0,19}")  # of at most 64 bits, as Python writes it


def is_one_hot(y: npt.NDArray[Any]) -> bool:
    """Return whether y is a matrix (n, k), k >= 2, each row of which contains a single 1 and zeros elsewhere."""
    if y.ndim != 2 or y.shape[1] < 2 or y.dtype.kind not in "buif":
        return False
    return bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())


def infer_task(y: npt.NDArray[Any]) -> str:
    """Return the task for targets: "classification" for class labels, "regression" for other numbers.

    Class labels are strings, Booleans, one-hot rows, integer values with at most 20 distinct ones, and values of an integer
    dtype with at most n/2 distinct ones.

    >>> infer_task(np.array([1.0, 2.0])), infer_task(np.array([0.5, 2.0])), infer_task(np.array(["a", "b"]))
    ('classification', 'regression', 'classification')
    """
    if y.dtype.kind not in "iuf" or is_one_hot(y):
        return "classification"
    if y.size != len(y) or (y.dtype.kind == "f" and not (np.isfinite(y) & (np.floor(y) == y)).all()):
        return "regression"
    count = len(np.unique(y))
    few = count <= MOST_WHOLE_CLASSES or (y.dtype.kind in "iu" and count <= len(y) / 2)
    return "classification" if few else "regression"


def class_labels(names: Sequence[str], text: bool = False) -> npt.NDArray[Any]:
    """Return the labels of classes for use in arrays: integers or Booleans if all names are, and otherwise the names.

    text : whether the labels are strings in any case, because they were given as strings

    >>> class_labels(("0", "1")).tolist(), class_labels(("cat", "dog")).tolist(), class_labels(("0", "01")).tolist()
    ([0, 1], ['cat', 'dog'], ['0', '01'])
    >>> class_labels(("False", "True")).tolist(), class_labels(("0", "1"), text=True).tolist()
    ([False, True], ['0', '1'])
    """
    if not text and set(names) <= {"False", "True"}:
        return np.array([name == "True" for name in names])
    whole = not text and all(INTEGER.fullmatch(name) for name in names)
    return np.array([int(name) for name in names] if whole else names)


def check_class_names(names: Sequence[str], location: Callable[[int], str] = "classes[{}]".format) -> None:
    r"""Check that class names can be shown in one line of text and written to files.

    Every function that receives class names calls this one. Names are rejected if they contain lone surrogates
    (Python's representation of bytes in file names that are not valid UTF-8), control characters such as tabs and line breaks
    (category Cc), line and paragraph separators (Zl, Zp), or bidirectional control characters (U+202A to U+202E, U+2066 to
    U+2069), which can reverse the text that follows the name, such as the numbers in a report.
    Other formatting characters are accepted, because words of some scripts contain them.

    Parameters
    ----------
    names : names of the classes
    location : function that returns the location of the name with an index as text, for the error message

    Raises
    ------
    DataError : a name is not a string, or has such a character

    Examples
    --------
    >>> check_class_names(["cat", "d\x07g"], "a.npz: name {}".format)
    Traceback (most recent call last):
    fastmlp.errors.DataError: a.npz: name 1: the class name 'd\x07g' contains the control character U+0007; rename the class
    """
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise DataError(f"{location(index)}: the class name {name!r} is not a string; pass str")
        if not name.isprintable() and (reason := invalid_reason(name)):
            shown = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"
            raise DataError(f"{location(index)}: the class name {shown!r} {reason}; rename the class")


def invalid_reason(name: str) -> str:
    """Return why a name cannot be a class name, see `check_class_names`; empty if it can be one."""
    for char in name:
        category, code = unicodedata.category(char), f"U+{ord(char):04X}"
        if category == "Cs":
            return f"is not valid Unicode, because of the lone surrogate {code}"
        if category in REFUSED_CATEGORIES:
            return f"contains the {REFUSED_CATEGORIES[category]} {code}"
        if char in BIDI_CONTROLS:
            return f"contains the bidirectional control character {code}"
    return ""


@dataclass(frozen=True, eq=False)
class LabelEncoder:
    """Converter between class labels and class numbers, which are integers from 0 to len(classes) - 1.

    Parameters
    ----------
    classes : (k,) distinct labels of one type; label `classes[i]` has the class number i

    Examples
    --------
    >>> encoder = LabelEncoder(np.array(["cat", "dog"]))
    >>> encoder.encode(["dog", "cat", "dog"]).tolist()
    [1, 0, 1]
    >>> encoder.decode([1, 0]).tolist()
    ['dog', 'cat']
    """

    classes: npt.NDArray[Any]

    @cached_property
    def _sorter(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.classes)

    def encode(self, labels: Any, location: Callable[[int], str] = "row {}".format) -> npt.NDArray[np.int32]:
        """Return the class number of each label, (n,) int32.

        Parameters
        ----------
        labels : (n,) array-like
        location : function that returns the location of row i as text, for error messages

        Raises
        ------
        DataError : a label is not one of the classes
        """
        labels = np.asarray(labels)
        position = np.searchsorted(self.classes, labels, sorter=self._sorter).clip(max=len(self.classes) - 1)
        numbers = self._sorter[position]
        wrong = self.classes[numbers] != labels
        if np.any(wrong):
            row = int(np.argmax(wrong))
            label, names = labels[row].item() if hasattr(labels[row], "item") else labels[row], self.classes.tolist()
            text = all(isinstance(name, str) for name in (label, *names))
            known = some_names([repr(name) for name in names])
            reason = unknown_name("class", label, names) if text else f"label {label!r} is not one of the classes [{known}]"
            raise DataError(f"{location(row)}: {reason}")
        return numbers.astype(np.int32)

    def decode(self, numbers: Any) -> npt.NDArray[Any]:
        """Return the label of each class number, (n,) in the dtype of `classes`."""
        return self.classes[np.asarray(numbers, np.intp)]
