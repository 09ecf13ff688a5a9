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
OTHER_NAMES = ("species", "survived", "quality")  # if there is none, a column with one of these names
MAX_LABELS = 100  # distinct integers in the first or last column of a table without a header that may be labels
MAX_TEXT_CLASSES = 100  # with more, a column of text with mostly distinct values cannot be the target
MIN_PIXELS = 64
MANY_PIXELS = 784  # columns of bytes that are taken for pixels whatever their names are
MIN_INDEX_ROWS = 10  # rows from which a first column 0, 1, 2, … may be an index
PIXEL_NAME = re.compile(r"(?:pixel|px)[_ ]?(\d{1,9})", re.IGNORECASE)
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

    target : index of the target
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
    DataError : a column that the options name does not exist, there is no target, or it is not clear which column it is
    """
    dropped = {find_column(table, name, "drop") for name in options.drop}
    notes = []
    for index in range(len(table.columns)):
        if index not in dropped and table.missing_counts[index] == table.rows and not table.names[index]:
            dropped.add(index)  # the lines end with a delimiter
            notes.append(f"ignored: empty column {index + 1}")
    weight = find_weight(table, options.weight)
    candidates = [index for index in range(len(table.columns)) if index not in (*dropped, weight)]
    row_index = find_index(table, candidates)
    unnamed = row_index is not None and (not table.header or INDEX.fullmatch(table.names[row_index]) is not None)
    possible = [index for index in candidates if not (unnamed and index == row_index)]
    if options.target is not None:
        target = find_column(table, options.target, "target", possible)
        for other, used in (("drop", target in dropped), ("weight", target == weight)):
            if used:
                raise ConfigError(f"target and {other} are the same column, {options.target}", settings=("target", other))
    else:
        target = find_target(table, possible)
    before_label = row_index is not None and candidates[1:2] == [target] and is_label(table, target, options)
    if row_index is not None and target != row_index and len(candidates) > 2 and (unnamed or before_label):
        candidates.remove(row_index)
        notes.append(f"ignored: {table.describe(row_index)} (row index)")
    features = tuple(index for index in candidates if index != target)
    if not features:
        raise DataError(f"{table.path}: no features besides the target, {table.describe(target)}; add columns")
    task = options.task or find_task(table, target, features)
    count = f"{len(features)} feature{'s'[: len(features) != 1]}"
    notes.append(f"target: {table.describe(target)}, {task}; {count}")
    return Roles(target, weight, features, task, tuple(notes))


def find_column(table: Table, given: str, setting: str, candidates: Sequence[int] | None = None) -> int:
    """Return the index of a column that is given by its name, by its number from 1, or as "first" or "last".

    A name takes precedence over a number.

    candidates : indices of the columns among which "first" and "last" are chosen; None for all columns

    Raises
    ------
    DataError : there is no such column
    """
    names = table.names if table.header else []
    if given in names:
        return names.index(given)
    same = [index for index, name in enumerate(names) if name.lower() == given.lower()]
    if len(same) == 1:
        return same[0]
    indices = candidates or range(len(table.columns))
    if given in ("first", "last"):
        return indices[0 if given == "first" else -1]
    number = given.removeprefix("column ")
    if number.isdecimal():
        if len(number) < 10 and 1 <= int(number) <= len(table.columns):
            return int(number) - 1
        raise DataError(f"{table.path}: {setting} {given}, but the table has {len(table.columns)} columns", settings=(setting,))
    reason = f"unknown column {given!r}; the file has no header, so set {setting} to the number of a column, first or last"
    raise DataError(f"{table.path}: {unknown_name('column', given, names) if names else reason}", settings=(setting,))


def find_weight(table: Table, given: str | None) -> int | None:
    """Return the index of the column of sample weights, or None; raise DataError if it contains text."""
    if given is None:
        return None
    index = find_column(table, given, "weight")
    if table.is_text(index):
        raise DataError(f"{table.path}: {table.describe(index)} contains text, not sample weights", settings=("weight",))
    return index


def find_index(table: Table, candidates: Sequence[int]) -> int | None:
    """Return the index of the first column if it may be a row index of pandas: without a name, or 0, 1, 2, …."""
    if not candidates or candidates[0] != 0:
        return None
    if table.header and INDEX.fullmatch(table.names[0]):
        return 0
    if table.is_text(0) or table.rows < MIN_INDEX_ROWS:
        return None
    return 0 if np.array_equal(table.floats(0), np.arange(table.rows)) else None


def is_label(table: Table, target: int, options: TableOptions) -> bool:
    """Return whether the target has class labels."""
    return (options.task or find_task(table, target, ())) == "classification"


def find_target(table: Table, candidates: Sequence[int]) -> int:
    """Return the index of the target among the candidates, by the rules in docs/tables.md."""
    if not candidates:
        raise DataError(f"{table.path}: no columns are left for the target and the features", settings=("drop",))
    if table.header:
        for names in (NAMES, OTHER_NAMES):
            found = [index for index in candidates if table.names[index].lower() in names]
            if len(found) == 1:
                return found[0]
            if found:
                several = " and ".join(map(table.describe, found))
                raise DataError(f"{table.path}: {several} could each be the target; set target", settings=("target",))
    if (label := find_label_of_pixels(table, candidates)) is not None:
        return label
    if table.header and all(PIXEL_NAME.fullmatch(table.names[index]) for index in candidates):
        raise DataError(f"{table.path}: all columns are pixels; add a column with the labels", settings=("target",))
    return candidates[-1] if table.header else find_target_at_end(table, candidates)


def find_target_at_end(table: Table, candidates: Sequence[int]) -> int:
    """Return the index of the target of a table without header: the only column of text, or of labels, at one end.

    Raise DataError if neither the first nor the last column, or both of them, can be the target.
    """
    ends = (candidates[0], candidates[-1])
    texts = [index for index in candidates if table.is_text(index)]
    if len(texts) == 1 and texts[0] in ends:
        return texts[0]
    labels = [index for index in ends if not texts and has_integers(table, index, MAX_LABELS)]
    if len(labels) == 1:
        return labels[0]
    raise unclear(table)


def has_integers(table: Table, index: int, most: int) -> bool:
    """Return whether a column has at most `most` distinct values, all of which are integers."""
    if table.is_text(index):
        return False
    values = distinct(table, index)
    return len(values) <= most and bool((values == np.floor(values)).all())


def distinct(table: Table, index: int) -> npt.NDArray[np.float64]:
    """Return the distinct values of a column of numbers in ascending order, without missing values."""
    return np.unique(table.floats(index)[~table.missing(index)])


def find_label_of_pixels(table: Table, candidates: Sequence[int]) -> int | None:
    """Return the index of the label of a table of pixels, which is the first or the last column; None for other tables.

    The other columns must contain integers from 0 to 255, and their number must be that of the pixels of a square image. If
    there is a header, their names must be those of pixels, such as pixel0 or 1x1, unless there are at least 784 of them.

    Raises
    ------
    DataError : there is no header, and both the first and the last column may be the label
    """
    if not is_pixel_count(len(candidates) - 1) or not all(has_bytes(table, index) for index in candidates[1:-1]):
        return None
    ends = [candidates[0], candidates[-1]]
    if table.header:
        if not (are_pixel_names(table, candidates[1:-1]) or len(candidates) > MANY_PIXELS):
            return None
        named = [index for index in ends if not PIXEL.fullmatch(table.names[index])]
        return named[0] if len(named) == 1 else None
    possible = [index for index in ends if table.is_text(index) or are_class_numbers(distinct(table, index))]
    if len(possible) > 1:
        raise unclear(table)
    return possible[0] if possible else None


def are_pixel_names(table: Table, indices: Sequence[int]) -> bool:
    """Return whether the names of columns are those of pixels."""
    return all(PIXEL.fullmatch(table.names[index]) for index in indices)


def unclear(table: Table) -> DataError:
    """Return the error for a table without header whose target cannot be determined."""
    return DataError(
        f"{table.path}: no header, and it is not clear which column is the target; set target to its number, first or last",
        settings=("target",),
    )


def is_pixel_count(count: int) -> bool:
    """Return whether a number is that of the pixels of a square image of at least 8x8 pixels, gray or in color.

    >>> [is_pixel_count(count) for count in (75, 783, 784, 3072)]
    [False, False, True, True]
    """
    return any(
        count % channels == 0 and count // channels >= MIN_PIXELS and math.isqrt(count // channels) ** 2 * channels == count
        for channels in (1, 3)
    )


def has_bytes(table: Table, index: int) -> bool:
    """Return whether a column has integers from 0 to 255."""
    from pyarrow import compute

    column = table.columns[index]
    if table.is_text(index) or str(column.type) == "bool":
        return False
    bounds = compute.min_max(column).as_py()
    if bounds["min"] is None or not (bounds["min"] >= 0 and bounds["max"] <= 255):
        return False
    return str(column.type) == "int64" or bool(compute.all(compute.equal(column, compute.floor(column))).as_py())


def are_class_numbers(values: npt.NDArray[np.float64]) -> bool:
    """Return whether distinct values, in ascending order, are 0, 1, 2, … or 1, 2, 3, …, and more than one."""
    return 1 < len(values) <= MAX_LABELS and bool((values == np.arange(len(values)) + (values[0] == 1)).all())


def find_task(table: Table, target: int, features: Sequence[int]) -> str:
    """Return the task for a target: classification for text, Booleans, labels of images, and at most 20 distinct integers.

    Raises
    ------
    DataError : the target is text, and has too many distinct values for class labels
    """
    if table.is_text(target):
        count = len(table.distinct(target))
        if count > MAX_TEXT_CLASSES and count > table.rows / 2:
            raise DataError(
                f"{table.path}: the target, {table.describe(target)}, has {count} distinct values in {table.rows} rows, too "
                "many for class labels; set another target",
                settings=("target",),
            )
        return "classification"
    images = are_pixels(table, features)
    if str(table.columns[target].type) == "bool" or (images and has_integers(table, target, table.rows)):
        return "classification"
    return "classification" if has_integers(table, target, MOST_WHOLE_CLASSES) else "regression"


def are_pixels(table: Table, features: Sequence[int]) -> bool:
    """Return whether columns are the pixels of square grayscale images.

    They are if they are integers from 0 to 255 and there are at least 8x8 of them, without a header or with the names of
    pixels, or at least 784. Columns with the names pixel0, pixel1, … are pixels for any number that is a square.
    """
    side = math.isqrt(len(features))
    if not features or side * side != len(features) or any(table.missing_counts[index] for index in features):
        return False
    names = [PIXEL_NAME.fullmatch(table.names[index]) for index in features]
    numbers = [int(name[1]) for name in names if name is not None]
    named = table.header and len(numbers) == len(names) and numbers in ([*range(len(names))], [*range(1, len(names) + 1)])
    likely = not table.header or are_pixel_names(table, features) or len(features) >= MANY_PIXELS
    return (named or (likely and len(features) >= MIN_PIXELS)) and all(has_bytes(table, index) for index in features)
