"""Reading of a table as the arrays of a data set, and as the features of a saved model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import SourceLocation
from fastmlp.data.labels import check_class_names
from fastmlp.data.readers.arrays import RawArrays
from fastmlp.data.readers.dialect import Expected
from fastmlp.data.readers.table import Table, read_table
from fastmlp.data.tables.encoding import (
    Column,
    Encoded,
    TableEncoding,
    check_missing,
    check_numeric,
    encode,
    fit_encoding,
    not_numeric_cell,
)
from fastmlp.data.tables.target import (
    Roles,
    TableOptions,
    are_pixels,
    find_column,
    find_label_of_pixels,
    find_roles,
    find_target,
    find_target_at_end,
    find_weight,
    is_pixel_count,
)
from fastmlp.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST = 2.0**53  # integers up to this are exact in float64
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
    fit_rows : function that returns the rows to which a new encoding is fitted, for class numbers or targets y (n,); None for
        all rows

    Returns
    -------
    RawArrays : y has Booleans, integers or float64 values, or the class numbers of labels that are text

    Raises
    ------
    DataError : the file cannot be read, has errors or missing values, or has no features
    ConfigError : the options contradict each other
    """
    check_missing(options.missing)
    if encoding is None:
        table = read_table(path, options.delimiter, options.header)
        roles = find_roles(table, options)
    else:
        table = read_table(path, options.delimiter, options.header, encoding.expected, encoding.text_columns)
        roles = known_roles(table, options, encoding)
    table, notes = drop_incomplete(table, roles, options.missing if encoding is None else encoding.missing)
    y, classes = target_of(table, roles, options.task)
    if encoding is None:
        encoding, found = fit(table, roles, options, y, fit_rows)
    else:
        found = encode(table, encoding)
        if found.incomplete.any():
            complete = np.flatnonzero(~found.incomplete)
            check_rows_left(table, len(complete))
            notes = [*notes, dropped(table.rows - len(complete))]
            table, y, found = table.take(complete), y[complete], found._replace(x=found.x[complete])
    form = [] if table.dialect is None or not table.dialect.note else [table.dialect.note]
    return RawArrays(
        as_bytes(found, encoding.pixels).x,
        y,
        classes,
        (math.isqrt(encoding.n_features),) * 2 + (1,) if encoding.pixels else None,
        locations=dict.fromkeys(("x", "y", "weight"), rows_location(table)),
        weight=None if roles.weight is None else weights_of(table, roles.weight),
        encoding=encoding,
        task=roles.task,
        text_labels=classes is not None,
        notes=(*form, *roles.notes, *notes, *found.notes),
        source_rows=table.source_rows,
    )


def fit(
    table: Table, roles: Roles, options: TableOptions, y: npt.NDArray[Any], fit_rows: FitRows | None
) -> tuple[TableEncoding, Encoded]:
    """Fit an encoding to a table, and return it with the encoded features; see `load_table`."""
    codes = y if roles.task == "regression" else np.unique(y, return_inverse=True)[1]
    rows = np.arange(table.rows) if fit_rows is None else np.sort(fit_rows(codes))
    encoding = fit_encoding(table, roles.features, roles.target, options, rows)
    encoding = msgspec.structs.replace(encoding, pixels=are_pixels(table, roles.features))
    return encoding, encode(table, encoding, roles.features, fitted=True)


def rows_location(table: Table) -> SourceLocation:
    """Return the source of the rows of a table for error messages."""
    if table.source_rows is None and table.dialect is not None:
        return SourceLocation(str(table.path), "line", 1 + table.header)
    return SourceLocation(str(table.path), first=1)


def known_roles(table: Table, options: TableOptions, encoding: TableEncoding) -> Roles:
    """Return the roles of the columns of a table whose encoding is known."""
    weight = find_weight(table, options.weight)
    task = options.task or "classification"
    given = options.target or (encoding.target if table.header == encoding.header else "")
    if given == encoding.target and table.header and given and given not in table.names:
        raise DataError(f"{table.path}: no column {given!r}, which is the target that an evaluation needs; add it")
    if given:
        return Roles(find_column(table, given, "target"), weight, (), task, ())
    features = {column.name for column in encoding.columns}
    others = [index for index, name in enumerate(table.column_names) if name not in features and index != weight]
    target = others[0] if len(others) == 1 else find_target(table, others)
    return Roles(target, weight, (), task, (f"target: {table.describe(target)}, {task}",))


def drop_incomplete(table: Table, roles: Roles, missing: str | None) -> tuple[Table, list[str]]:
    """Return a table without the rows that lack the target or a feature, if missing is "drop", and messages.

    The features are only known if the encoding is not.

    Raises
    ------
    DataError : the target has missing values that are not dropped, or no row is left
    """
    wrong = table.missing(roles.target)
    if wrong.any() and missing != "drop":
        where = f"{table.describe(roles.target)}, has {int(wrong.sum())} (the first one in {table.place(wrong)})"
        remedy = "remove these rows" + (", or set missing to drop" if roles.features else "")
        raise DataError(
            f"{table.path}: missing values: the target, {where}; {remedy}",
            settings=("missing",) if roles.features else (),
        )
    if missing == "drop":
        for index in (*roles.features, *([] if roles.weight is None else [roles.weight])):
            wrong |= table.missing(index)
    kept = np.flatnonzero(~wrong)
    check_rows_left(table, len(kept))
    if len(kept) == table.rows:
        return table, []
    return table.take(kept), [dropped(table.rows - len(kept))]


def check_rows_left(table: Table, count: int) -> None:
    """Raise DataError if no row without missing values is left."""
    if not count:
        raise DataError(f"{table.path}: every row has missing values; fill them, or drop columns", settings=("drop",))


def dropped(rows: int) -> str:
    """Return the message that rows were dropped.

    >>> dropped(1)
    'dropped 1 row with missing values'
    """
    return f"dropped {rows} row{'s'[: rows != 1]} with missing values"


def target_of(table: Table, roles: Roles, task: str | None) -> tuple[npt.NDArray[Any], list[str] | None]:
    """Return the target (n,), and the class names if the labels are text, so that the target consists of class numbers.

    Other targets are Booleans or integers for classification, and float64 for regression.

    task : the task that was given; None if it was inferred
    """
    index = roles.target
    if table.is_text(index):
        if roles.task == "regression":
            raise not_numeric_cell(table, index, "correct it, or use another target or task 'classification'")
        if task is None:
            check_numeric(table, index, "correct it, or set task to 'classification'")
        numbers, names = class_numbers(table.columns[index])
        check_class_names(names, lambda number: table.location(int(np.argmax(numbers == number)), index))
        return numbers, names
    values = table.floats(index)
    if roles.task == "regression":
        check_target(table, index, np.abs(values) <= np.finfo(np.float32).max, "{} is not a finite float32 number; correct it")
        return values, None
    if str(table.columns[index].type) == "bool":
        return values.astype(bool), None
    if str(table.columns[index].type) == "int64":
        return np.asarray(table.columns[index]), None
    is_integer = (values == np.floor(values)) & (np.abs(values) < LARGEST)
    check_target(table, index, is_integer, "the label {} is not an integer; correct it, or use task 'regression'")
    return values.astype(np.int64), None


def check_target(table: Table, index: int, good: npt.NDArray[np.bool_], text: str) -> None:
    """Raise DataError for the first row that is not good; `text` has a placeholder for the value."""
    if not good.all():
        row = int(np.argmin(good))
        reason = text.format(f"{table.floats(index)[row]:g}")
        raise DataError(f"{table.location(row, index)}: {reason}", settings=("task",) if "task" in text else ())


def class_numbers(texts: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the class numbers of labels (n,), and the labels that occur in sorted order."""
    import pyarrow as pa
    from pyarrow import compute

    names = sorted(texts.unique().to_pylist())
    return compute.index_in(texts, pa.array(names)).to_numpy().astype(np.int64), names


def weights_of(table: Table, index: int) -> npt.NDArray[np.float64]:
    """Return the sample weights (n,); raise DataError with the location if one is missing, not finite or not positive."""
    values = table.floats(index)
    good = (values > 0) & np.isfinite(values)
    if not good.all():
        row = int(np.argmin(good))
        value = "missing" if np.isnan(values[row]) else f"{values[row]:g}"
        raise DataError(
            f"{table.location(row, index)}: the sample weight is {value}; all weights must be positive and finite",
            settings=("weight",),
        )
    return values


def as_bytes(found: Encoded, pixels: bool) -> Encoded:
    """Return encoded rows as uint8 if they are pixels, and integers from 0 to 255; otherwise return them unchanged."""
    x = found.x
    if pixels and len(x) and x.min() >= 0 and x.max() <= 255:
        narrow = x.astype(np.uint8)
        if np.array_equal(narrow, x):
            return found._replace(x=narrow)
    return found


def load_features(path: Path, encoding: TableEncoding | None, features: int) -> Encoded:
    """Return the features of a table for a saved model; the table need not have a target.

    encoding : the encoding of the model; None if it was not trained on a table
    features : for a model without an encoding, the number of columns of features, all of which must be numbers
    """
    if encoding is not None:
        table = read_table(path, None, None, encoding.expected, encoding.text_columns)
        return as_bytes(encode(table, encoding), encoding.pixels)
    table = read_table(path, None, None, Expected(delimiter="," if features == 1 else ""))
    every = range(len(table.columns))
    chosen: Sequence[int] = every
    if table.header and len(every) > features:
        chosen = find_roles(table, TableOptions()).features
    elif len(every) == features + 1:
        label = find_label_of_pixels(table, every)
        label = find_target_at_end(table, every) if label is None else label
        chosen = [index for index in every if index != label]
    if len(chosen) != features:
        raise DataError(
            f"{path}: {len(every)} columns, but the model takes {features} features, or {features + 1} columns with a label"
        )
    columns = tuple(Column(table.column_names[index], index) for index in chosen)
    plain = TableEncoding(columns, "", table.header, len(every))
    return as_bytes(encode(table, plain, chosen), is_pixel_count(features))
