"""Reading of a table as the arrays of a data set, and as the features of a saved model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import SourceLocation
from fastmlp.data.readers.arrays import RawArrays
from fastmlp.data.readers.table import Table, read_table
from fastmlp.data.tables.encoding import (
    Column,
    Encoded,
    TableEncoding,
    check_faults,
    check_missing,
    encode,
    first_text,
    fit_encoding,
    is_images,
    narrow,
)
from fastmlp.data.tables.target import (
    PIXEL_NAME,
    Roles,
    TableOptions,
    describe,
    find_column,
    find_label_of_pixels,
    find_roles,
    find_weight,
)
from fastmlp.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

FitRows = Callable[[npt.NDArray[Any]], npt.NDArray[np.int64]]


def load_table(
    path: Path, options: TableOptions, encoding: TableEncoding | None = None, fit_rows: FitRows | None = None
) -> RawArrays:
    """Read a table with a target.

    Parameters
    ----------
    path : delimited text, or a Parquet file
    options : how it is read
    encoding : the encoding of a saved model, which is applied instead of a new one
    fit_rows : function that returns the rows to which a new encoding is fitted, for labels or targets y (n,); None for all

    Returns
    -------
    RawArrays : y has Booleans, whole numbers or float64 values, or the class numbers of labels that are texts

    Raises
    ------
    DataError : the file cannot be read, has faults or missing values, or has no features
    ConfigError : the options do not fit the table
    """
    check_missing(options.missing)
    table = read_table(path, options.delimiter, options.header)
    roles = find_roles(table, options) if encoding is None else known_roles(table, options, encoding)
    missing = options.missing if encoding is None else encoding.missing
    table, notes = without_missing(table, roles, missing, encoding is None)
    y, classes = target_of(table, roles)
    if encoding is None:
        chosen = np.arange(table.rows) if fit_rows is None else fit_rows(np.unique(y, return_inverse=True)[1])
        encoding = fit_encoding(table, roles.features, roles.target, options, np.sort(chosen))
        found = encode(table, encoding, roles.features, fitted=True)
    else:
        found = encode(table, encoding)
        if found.incomplete.any():
            complete = np.flatnonzero(~found.incomplete)
            notes = [*notes, left_out(table.rows - len(complete))]
            table, y, found = table.take(complete), y[complete], found._replace(x=found.x[complete])
    weight = None if roles.weight is None else table.numbers(roles.weight)
    x = narrow(found.x)
    whole = table.source_rows is None and table.dialect is not None
    location = SourceLocation(str(path), "line", 1 + table.header) if whole else SourceLocation(str(path))
    return RawArrays(
        x,
        y,
        classes,
        image_shape(encoding, x),
        locations=dict.fromkeys(("x", "y", "weight"), location),
        weight=weight,
        encoding=encoding,
        task=roles.task,
        text_labels=classes is not None,
        notes=(*roles.notes, *notes, *found.notes),
        source_rows=table.source_rows,
    )


def known_roles(table: Table, options: TableOptions, encoding: TableEncoding) -> Roles:
    """Return the roles of the columns of a table whose encoding is known."""
    if encoding.header and table.header:
        target = find_column(table, options.target or encoding.target, "target")
    elif options.target is not None:
        target = find_column(table, options.target, "target")
    else:
        target = find_column(table, encoding.target, "target") if not encoding.header else find_roles(table, options).target
    return Roles(target, find_weight(table, options.weight), (), options.task or "classification", ())


def without_missing(table: Table, roles: Roles, missing: str | None, features: bool) -> tuple[Table, list[str]]:
    """Return a table without the rows that have missing values and are dropped, and messages.

    features : whether missing values of the features matter, too, besides those of the target

    Raises
    ------
    DataError : the target has missing values that are not dropped, or no row is left
    """
    wrong = table.missing(roles.target)
    if wrong.any() and missing != "drop":
        count, line = int(wrong.sum()), table.location(int(np.argmax(wrong))).rpartition(": ")[2]
        raise DataError(
            f"{table.path}: missing values: the target, {describe(table, roles.target)}, has {count} (the first one in {line});"
            " remove these rows, or set missing to drop",
            settings=("missing",),
        )
    if missing == "drop" and features:
        for number in roles.features:
            wrong |= table.missing(number)
    kept = np.flatnonzero(~wrong)
    if not len(kept):
        raise DataError(f"{table.path}: every row has missing values; drop columns instead", settings=("missing", "drop"))
    if len(kept) == table.rows:
        return table, []
    return table.take(kept), [left_out(table.rows - len(kept))]


def left_out(rows: int) -> str:
    return f"{rows} row{'s'[: rows != 1]} with missing values {'is' if rows == 1 else 'are'} left out"


def target_of(table: Table, roles: Roles) -> tuple[npt.NDArray[Any], list[str] | None]:
    """Return the target (n,), and the names of the classes if the labels are texts, so that the target has class numbers.

    Other targets are Booleans or whole numbers for classification, and float64 for regression.
    """
    number = roles.target
    if table.is_text(number):
        check_faults(table, number)
        if roles.task == "classification":
            return class_numbers(table.columns[number])
        row = first_text(table, number)
        cell = table.columns[number][row].as_py()
        raise DataError(
            f"{table.location(row)}, {describe(table, number)}: {cell!r} is not a number, so it is no target of a regression; "
            "correct it, or use task 'classification'",
            settings=("task",),
        )
    values = table.numbers(number)
    if roles.task == "regression":
        wrong = ~(np.abs(values) <= np.finfo(np.float32).max)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{table.location(row)}, {describe(table, number)}: {values[row]} is not a finite float32 number; correct it"
            )
        return values, None
    if str(table.columns[number].type) == "bool":
        return values.astype(bool), None
    wrong = values != np.floor(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{table.location(row)}, {describe(table, number)}: the label {values[row]:g} is no whole number; correct it, or "
            "use task 'regression'",
            settings=("task",),
        )
    integers = table.columns[number] if str(table.columns[number].type) == "int64" else values.astype(np.int64)
    return np.asarray(integers), None


def class_numbers(texts: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the class numbers of labels (n,), and the labels that occur in sorted order."""
    import pyarrow as pa
    from pyarrow import compute

    names = sorted(texts.unique().to_pylist())
    return compute.index_in(texts, pa.array(names)).to_numpy().astype(np.int64), names


def image_shape(encoding: TableEncoding, x: npt.NDArray[Any]) -> tuple[int, int, int] | None:
    """Return the shape of rows that are square gray images: at least 8x8 bytes, or columns pixel0, pixel1, …; else None."""
    names = [PIXEL_NAME.fullmatch(column.name) for column in encoding.columns]
    numbers = [int(name[1]) for name in names if name is not None]
    side = math.isqrt(encoding.features)
    named = encoding.header and len(numbers) == len(names) and numbers == [*range(numbers[0], numbers[0] + len(numbers))]
    if side * side != encoding.features or not (named or (is_images(encoding) and x.dtype == np.uint8)):
        return None
    return side, side, 1


def load_features(path: Path, encoding: TableEncoding | None, features: int) -> Encoded:
    """Return the features of a table for a saved model; the table need not have a target.

    encoding : the encoding of the model; None if it was not trained on a table
    features : for a model without an encoding, the number of columns of features, all of which must be numbers
    """
    table = read_table(path)
    if encoding is not None:
        found = encode(table, encoding)
        return found._replace(x=narrow(found.x))
    every = range(len(table.columns))
    chosen: Sequence[int] = every
    if table.header and len(every) > features:
        chosen = find_roles(table, TableOptions()).features
    elif len(every) == features + 1:  # without names, the label is a column of text at the end, or the first column
        chosen = every[:-1] if table.is_text(every[-1]) or find_label_of_pixels(table, every) == every[-1] else every[1:]
    if len(chosen) != features:
        raise DataError(
            f"{path}: {len(every)} columns, but the model takes {features} features, or {features + 1} columns with a label"
        )
    columns = tuple(Column(table.names[number], number) for number in chosen)
    found = encode(table, TableEncoding(columns, "", table.header, len(every)), chosen)
    return found._replace(x=narrow(found.x))
