"""Choice of the target and the features of a table, of the task, and of columns that are ignored, such as an index.

The rules are described in docs/tables.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.labels import MOST_WHOLE_CLASSES
from fastmlp.data.readers.table import Table
from fastmlp.errors import ConfigError, DataError, unknown_name

NAMES = ("label", "class", "target", "outcome", "y")  # a column with one of these names is the target
OTHER_NAMES = ("species", "survived", "quality")  # if none has, a column with one of these names
MOST_LABELS = 100  # distinct whole numbers at one end of a table without a header that may be labels
MOST_TEXT_CLASSES = 100  # with more, a column of text with mostly distinct values is not a target
FEWEST_PIXELS = 64
FEWEST_INDEXED = 10  # rows from which a first column 0, 1, 2, … may be an index
PIXEL_NAME = re.compile(r"(?:pixel|px)[_ ]?(\d+)", re.IGNORECASE)
PIXEL = re.compile(r"(pixel|px|p|x)?[_ ]?\d+([x_]\d+)?", re.IGNORECASE)  # also 1x1 or 17
INDEX = re.compile(r"unnamed: \d+|", re.IGNORECASE)  # name of the index that pandas writes


class TableOptions(NamedTuple):
    """How a table is read; see `load_data` for the parameters."""

    target: str | None = None
    drop: tuple[str, ...] = ()
    missing: str | None = None
    task: str | None = None
    weight: str | None = None
    delimiter: str | None = None
    header: bool | None = None


class Roles(NamedTuple):
    """The roles of the columns of a table.

    target : index of the target; None if the table has no target, as for predictions
    weight : index of the column of sample weights, or None
    features : indices of the features
    task : "classification" or "regression"
    notes : messages about columns that are ignored, and about the target
    """

    target: int
    weight: int | None
    features: tuple[int, ...]
    task: str
    notes: tuple[str, ...]


def find_roles(table: Table, options: TableOptions) -> Roles:
    """Return the roles of the columns of a table.

    Raises
    ------
    ConfigError : options contradict each other
    DataError : a column that the options name does not exist, there is no target, or it is not clear which column is
    """
    dropped = {find_column(table, name, "drop") for name in options.drop}
    notes = []
    for number in range(len(table.columns)):
        if number not in dropped and table.missing_counts[number] == table.rows and not table.names[number].strip():
            dropped.add(number)  # the lines end with a delimiter
            notes.append(f"column {number + 1}, which is empty, is ignored")
    weight = find_weight(table, options.weight)
    left = [number for number in range(len(table.columns)) if number not in (*dropped, weight)]
    index = find_index(table, left)
    if options.target is not None:
        target = find_column(table, options.target, "target", left)
        for other, used in (("drop", target in dropped), ("weight", target == weight)):
            if used:
                raise ConfigError(f"target and {other} are the same column, {options.target}", settings=("target", other))
    else:
        target = find_target(table, [number for number in left if number != index])
    if index is not None and target != index and is_index(table, index, target, left):
        left.remove(index)
        notes.append(f"{describe(table, index)}, which numbers the rows, is ignored")
    features = tuple(number for number in left if number != target)
    if not features:
        raise DataError(f"{table.path}: no features besides the target {describe(table, target)}; add columns")
    task = options.task or find_task(table, target, features)
    word = f"{len(features)} feature{'s'[: len(features) != 1]}"
    notes.append(f"target: {describe(table, target)}, {task}; {word}")
    return Roles(target, weight, features, task, tuple(notes))


def describe(table: Table, number: int) -> str:
    """Return the number of a column, from 1, and its name, if the file has names."""
    name = table.names[number]
    return f"column {number + 1}" + (f" {name!r}" if table.header and name else "")


def find_column(table: Table, given: str, setting: str, left: Sequence[int] | None = None) -> int:
    """Return the index of a column that is given by its name, by its number from 1, or as "first" or "last".

    left : indices among which "first" and "last" are meant; None for all columns

    Raises
    ------
    DataError : there is no such column
    """
    names = table.names if table.header else []
    if given in names:
        return names.index(given)
    same = [number for number, name in enumerate(names) if name.lower() == given.lower()]
    if len(same) == 1:
        return same[0]
    places = left or range(len(table.columns))
    if given in ("first", "last"):
        return places[0 if given == "first" else -1]
    number = given.removeprefix("column ")
    if number.isdecimal():
        if 1 <= int(number) <= len(table.columns):
            return int(number) - 1
        raise DataError(f"{table.path}: {setting} {given}, but the table has {len(table.columns)} columns", settings=(setting,))
    hint = "" if names else "; the file has no header, so give the number of the column, first or last"
    known = unknown_name("column", given, names) if names else f"unknown column {given!r}"
    raise DataError(f"{table.path}: {known}{hint}", settings=(setting,))


def find_weight(table: Table, given: str | None) -> int | None:
    """Return the index of the column of sample weights, or None; raise DataError if it has text."""
    if given is None:
        return None
    number = find_column(table, given, "weight")
    if table.is_text(number):
        raise DataError(f"{table.path}: {describe(table, number)} has text, so it has no sample weights", settings=("weight",))
    return number


def find_index(table: Table, left: Sequence[int]) -> int | None:
    """Return the first column if it may be an index that pandas wrote: 0, 1, 2, …, or whole numbers without a name."""
    if not left or left[0] != 0 or table.is_text(0) or table.missing_counts[0]:
        return None
    values = table.numbers(0)
    unnamed = table.header and INDEX.fullmatch(table.names[0]) is not None
    counts = np.array_equal(values, np.arange(len(values)))
    return 0 if unnamed or (counts and len(values) >= FEWEST_INDEXED) else None


def is_index(table: Table, index: int, target: int, left: Sequence[int]) -> bool:
    """Return whether the column of `find_index` is an index: it has no name, or the target is the next column."""
    unnamed = not table.header or INDEX.fullmatch(table.names[index]) is not None
    return unnamed or target == left[1]


def find_target(table: Table, left: Sequence[int]) -> int:
    """Return the index of the target among the columns `left`, by the rules in docs/tables.md."""
    if not left:
        raise DataError(f"{table.path}: no columns are left for the target and the features", settings=("drop",))
    if table.header:
        for names in (NAMES, OTHER_NAMES):
            found = [number for number in left if table.names[number].lower() in names]
            if len(found) == 1:
                return found[0]
            if found:
                several = " and ".join(describe(table, number) for number in found)
                raise DataError(f"{table.path}: {several} may all be the target; give the target", settings=("target",))
    if (label := find_label_of_pixels(table, left)) is not None:
        return label
    if table.header and all(PIXEL_NAME.fullmatch(table.names[number]) for number in left):
        raise DataError(f"{table.path}: all columns are pixels; add a column with the labels", settings=("target",))
    return left[-1] if table.header else find_target_at_end(table, left)


def find_target_at_end(table: Table, left: Sequence[int]) -> int:
    """Return the index of the target of a table without header: the only column of text, or of labels, at one end.

    Raise DataError if no column or both may be the target.
    """
    ends = (left[0], left[-1])
    texts = [number for number in left if table.is_text(number)]
    if len(texts) == 1 and texts[0] in ends:
        return texts[0]
    labels = [number for number in ends if not texts and is_label_like(table, number, MOST_LABELS)]
    if len(labels) == 1:
        return labels[0]
    raise DataError(
        f"{table.path}: no header, and it is not clear which column is the target; give its number, first or last",
        settings=("target",),
    )


def is_label_like(table: Table, number: int, most: int) -> bool:
    """Return whether a column has at most `most` distinct values, which are whole numbers."""
    if table.is_text(number):
        return False
    values = distinct(table, number)
    return len(values) <= most and bool((values == np.floor(values)).all())


def distinct(table: Table, number: int) -> npt.NDArray[np.float64]:
    """Return the distinct values of a column of numbers in ascending order, without missing values."""
    return np.unique(table.numbers(number)[~table.missing(number)])


def find_label_of_pixels(table: Table, left: Sequence[int]) -> int | None:
    """Return the index of the label of a table of pixels, which is at one end; None if the table has no pixels.

    The other columns must be bytes, and their number that of square images of at least 8x8 pixels, gray or in color. If both
    ends may be the label, the one whose name is not that of a pixel is, then the one whose values are consecutive.
    """
    if not is_pixel_count(len(left) - 1) or not all(is_byte_like(table, number) for number in left[1:-1]):
        return None
    ends = [left[0], left[-1]]
    names = [number for number in ends if not PIXEL.fullmatch(table.names[number])]
    if table.header and len(names) == 1:
        return names[0]
    possible = [number for number in ends if table.is_text(number) or are_class_numbers(distinct(table, number))]
    return possible[0] if possible else None


def is_pixel_count(count: int) -> bool:
    """Return whether a number is that of the pixels of a square image, gray or in color.

    >>> [is_pixel_count(count) for count in (783, 784, 3072)]
    [False, True, True]
    """
    return count >= FEWEST_PIXELS and any(
        count % channels == 0 and math.isqrt(count // channels) ** 2 * channels == count for channels in (1, 3)
    )


def is_byte_like(table: Table, number: int) -> bool:
    """Return whether a column has whole numbers from 0 to 255."""
    from pyarrow import compute

    column = table.columns[number]
    if table.is_text(number) or str(column.type) == "bool":
        return False
    bounds = compute.min_max(column).as_py()
    if bounds["min"] is None or not (bounds["min"] >= 0 and bounds["max"] <= 255):
        return False
    return str(column.type) == "int64" or bool(compute.all(compute.equal(column, compute.floor(column))).as_py())


def are_class_numbers(values: npt.NDArray[np.float64]) -> bool:
    """Return whether distinct values, in ascending order, are 0, 1, 2, … or 1, 2, 3, …, and more than one."""
    return 1 < len(values) <= MOST_LABELS and bool((values == np.arange(len(values)) + (values[0] == 1)).all())


def find_task(table: Table, target: int, features: Sequence[int]) -> str:
    """Return the task for a target: classification for text, Booleans, labels of images, and at most 20 whole numbers.

    Raises
    ------
    DataError : the target is text, and has too many different values for class labels
    """
    values = table.columns[target]
    if table.is_text(target):
        count = len(values.drop_null().unique())
        if count > MOST_TEXT_CLASSES and count > table.rows / 2:
            raise DataError(
                f"{table.path}: {describe(table, target)} was taken as the target, but it has {count} different texts in "
                f"{table.rows} rows, which are no class labels; give the target",
                settings=("target",),
            )
        return "classification"
    images = is_pixel_count(len(features)) and all(is_byte_like(table, number) for number in features)
    if str(values.type) == "bool" or (images and is_label_like(table, target, table.rows)):
        return "classification"
    return "classification" if is_label_like(table, target, MOST_WHOLE_CLASSES) else "regression"
