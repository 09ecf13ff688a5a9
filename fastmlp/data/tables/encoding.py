"""Encoding of the features of a table as numbers: one-hot encoding of text, and values for missing ones.

`fit_encoding` fits an encoding to the rows of the training split. It is stored in the model file, so that `encode` gives the
features of any other table in the same order, matched by the names of the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from fastmlp.data.readers.table import Table
from fastmlp.data.tables.target import TableOptions, describe, is_pixel_count
from fastmlp.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

MISSING_VALUES = ("drop", "mean", "median")  # how rows with missing values are treated, other than by an error
MOST_VALUES = 100  # distinct values of a column of text that is encoded one-hot
FEW_TEXTS = 0.1  # a column in which at most this fraction of the values are no numbers has faults, and is no text
MOST_EXAMPLES = 3  # names or values that a message lists


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The encoding of a column.

    name : name of the column
    position : index of the column in the table that the encoding was fitted to
    values : for text, the values in sorted order, each of which has a feature that is 1 or 0; None for numbers
    fill : number that replaces missing values; None if they are an error
    """

    name: str
    position: int
    values: tuple[str, ...] | None = None
    fill: float | None = None

    @property
    def width(self) -> int:
        """Number of features."""
        return 1 if self.values is None else len(self.values)


class TableEncoding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The encoding of the features of a table.

    columns : the columns that are features, in the order of the features
    target : name of the target
    header : whether the columns have names; otherwise they are matched by their positions
    width : number of columns of the table that the encoding was fitted to
    missing : one of `MISSING_VALUES`, or None if missing values are an error
    """

    columns: tuple[Column, ...]
    target: str
    header: bool
    width: int
    missing: str | None = None

    @property
    def features(self) -> int:
        """Number of features."""
        return sum(column.width for column in self.columns)

    @property
    def names(self) -> list[str]:
        """Names of the features; those of text are followed by "=" and the value."""
        return [
            name
            for column in self.columns
            for name in ([column.name] if column.values is None else [f"{column.name}={value}" for value in column.values])
        ]

    def decode(self, x: npt.NDArray[Any]) -> dict[str, list[Any]]:
        """Return the values of the columns for encoded rows x (n, features); text without a value gives "".

        >>> columns = (Column("kind", 0, ("fig", "plum")), Column("size", 1))
        >>> TableEncoding(columns, "price", True, 3).decode(np.array([[0, 1, 2.5]]))
        {'kind': ['plum'], 'size': [2.5]}
        """
        found: dict[str, list[Any]] = {}
        start = 0
        for column in self.columns:
            part = x[:, start : start + column.width]
            start += column.width
            if column.values is None:
                found[column.name] = part[:, 0].tolist()
            else:
                found[column.name] = [column.values[row.argmax()] if row.any() else "" for row in part]
        return found


class Encoded(NamedTuple):
    """Encoded rows of a table.

    x : (n, features) float; rows with missing values are zero if `missing` of the encoding is "drop"
    incomplete : (n,) bool, where a row has missing values and the encoding does not replace them
    notes : messages about columns that are ignored, and about values that are not in the encoding
    """

    x: npt.NDArray[Any]
    incomplete: npt.NDArray[np.bool_]
    notes: tuple[str, ...]


def fit_encoding(
    table: Table, features: Sequence[int], target: int, options: TableOptions, rows: npt.NDArray[np.int64]
) -> TableEncoding:
    """Return the encoding of the features of a table, fitted to some of its rows.

    features, target : indices of columns
    rows : indices of the rows of the training split

    Raises
    ------
    DataError : a column of text has too many values, or a column of numbers has cells that are no numbers
    """
    columns = []
    for number in features:
        name = table.names[number] if table.header and table.names[number] else f"column {number + 1}"
        if table.is_text(number):
            check_text(table, number)
            values = tuple(sorted(table.columns[number].take(rows).drop_null().unique().to_pylist()))
            columns.append(Column(name, number, values))
        else:
            columns.append(Column(name, number, None, fill_value(table, number, options.missing, rows)))
    name = table.names[target] if table.header else f"column {target + 1}"
    return TableEncoding(tuple(columns), name, table.header, len(table.columns), options.missing)


def check_text(table: Table, number: int) -> None:
    """Raise DataError if a column of text has too many values, or faults, see `check_faults`."""
    check_faults(table, number)
    distinct = table.columns[number].drop_null().unique().to_pylist()
    if len(distinct) > MOST_VALUES:
        raise DataError(
            f"{table.path}: {describe(table, number)} has {len(distinct)} different texts, such as {distinct[0]!r}; at most "
            f"{MOST_VALUES} can be encoded; drop the column",
            settings=("drop",),
        )


def check_faults(table: Table, number: int) -> None:
    """Raise DataError if most values of a column of text are numbers, so that the others are faults."""
    if table.dialect is None:
        return
    values = table.columns[number].drop_null()
    wrong = [value for value in values.unique().to_pylist() if not table.dialect.is_number(value)]
    if wrong and count_of(values, wrong) <= FEW_TEXTS * len(values):
        row = first_row(table, number, wrong)
        place = f"{table.location(row)}, {describe(table, number)}"
        raise DataError(f"{place}: {table.columns[number][row].as_py()!r} is not a number; correct it or remove the line")


def count_of(values: pa.ChunkedArray, some: Sequence[str]) -> int:
    """Return how many of the values are among some."""
    import pyarrow as pa
    from pyarrow import compute

    return int(compute.sum(compute.is_in(values, pa.array(some, pa.string()))).as_py() or 0)


def first_row(table: Table, number: int, some: Sequence[str]) -> int:
    """Return the first row in which a column of text has one of some values; 0 if there is none."""
    import pyarrow as pa
    from pyarrow import compute

    found = compute.is_in(table.columns[number], pa.array(some, pa.string())).to_numpy()
    return int(np.argmax(found))


def first_text(table: Table, number: int) -> int:
    """Return the first row in which a column of text has no number."""
    texts = table.columns[number].drop_null().unique().to_pylist()
    wrong = [text for text in texts if table.dialect is None or not table.dialect.is_number(text)]
    return first_row(table, number, wrong)


def fill_value(table: Table, number: int, missing: str | None, rows: npt.NDArray[np.int64]) -> float | None:
    """Return the number that replaces missing values of a column: the mean or the median of the given rows.

    It is 0 if all these values are missing.
    """
    if missing not in ("mean", "median"):
        return None
    values = table.numbers(number)[rows]
    values = values[~np.isnan(values)]
    if not len(values):
        return 0.0
    return float(values.mean() if missing == "mean" else np.median(values))


def encode(
    table: Table,
    encoding: TableEncoding,
    numbers: Sequence[int] | None = None,
    *,
    fitted: bool = False,
    dtype: npt.DTypeLike = np.float32,
) -> Encoded:
    """Return the features of a table.

    numbers : indices of the columns of the encoding; None to match them by name, see `match_columns`
    fitted : whether the encoding was fitted to this table, for error messages
    dtype : floating-point dtype of the features

    Raises
    ------
    DataError : a column is missing, or has missing values or cells that are no numbers
    """
    notes: list[str] = []
    if numbers is None:
        numbers, notes = match_columns(table, encoding)
    incomplete = np.zeros(table.rows, bool)
    if encoding.missing == "drop":
        for number in numbers:
            if table.missing_counts[number]:
                incomplete |= table.missing(number)
    if encoding.missing is None:
        check_complete(table, numbers, fitted)
    x = np.zeros((table.rows, encoding.features), dtype)
    start = 0
    for number, column in zip(numbers, encoding.columns, strict=True):
        if column.values is None:
            x[:, start] = numbers_of(table, number, column, incomplete, np.dtype(dtype))
        else:
            notes += one_hot(table, number, column, x[:, start : start + column.width])
        start += column.width
    x[incomplete] = 0
    return Encoded(x, incomplete, tuple(notes))


def check_complete(table: Table, numbers: Sequence[int], fitted: bool) -> None:
    """Raise DataError, with the remedy, if columns have missing values."""
    found = [(number, count) for number in numbers if (count := table.missing_counts[number])]
    if not found:
        return
    counts = listing([f"{describe(table, number)} has {count}" for number, count in found])
    line = table.location(int(np.argmax(table.missing(found[0][0])))).rpartition(": ")[2]
    treatments = f"{', '.join(MISSING_VALUES[:-1])} or {MISSING_VALUES[-1]}"
    remedy = (
        f"set missing to {treatments}, or drop columns" if fitted else f"fill them, or train with missing set to {treatments}"
    )
    raise DataError(
        f"{table.path}: missing values: {counts} (the first one in {line}); {remedy}",
        settings=("missing", "drop") if fitted else (),
    )


def listing(parts: Sequence[str]) -> str:
    """Return the first of some texts as a list.

    >>> listing(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(parts) - MOST_EXAMPLES
    return ", ".join(parts[:MOST_EXAMPLES]) + (f" and {more} more" if more > 0 else "")


def numbers_of(
    table: Table, number: int, column: Column, incomplete: npt.NDArray[np.bool_], dtype: np.dtype[Any]
) -> npt.NDArray[np.float64]:
    """Return the numbers of a column, with missing values replaced; in complete rows, they must be finite in the dtype."""
    if table.is_text(number):
        row = first_text(table, number)
        place = f"{table.location(row)}, {describe(table, number)}"
        raise DataError(f"{place}: {table.columns[number][row].as_py()!r} is not a number; correct it or remove the line")
    values = table.numbers(number)
    if column.fill is not None:
        values = np.where(np.isnan(values), column.fill, values)
    wrong_rows = ~(np.abs(values) <= np.finfo(dtype).max) & ~incomplete
    if wrong_rows.any():
        row = int(np.argmax(wrong_rows))
        raise DataError(
            f"{table.location(row)}, {describe(table, number)}: {values[row]} is not a finite {dtype} number; correct it or "
            "remove the line"
        )
    return values


def one_hot(table: Table, number: int, column: Column, out: npt.NDArray[Any]) -> list[str]:
    """Write the one-hot encoding of a column into `out` (rows, values); return a note about values that are not encoded."""
    import pyarrow as pa
    from pyarrow import compute

    assert column.values is not None
    texts = table.columns[number].cast(pa.string())
    codes = compute.index_in(texts, pa.array(column.values, pa.string())).to_numpy()
    known = ~np.isnan(codes.astype(np.float64))
    rows = np.flatnonzero(known)
    out[rows, codes[known].astype(np.int64)] = 1
    unknown = texts.filter(pa.array(~known)).drop_null()
    if not len(unknown):
        return []
    shown = ", ".join(map(repr, unknown.unique().to_pylist()[:MOST_EXAMPLES]))
    return [f"{describe(table, number)} has {len(unknown)} values that were not in the training data, such as {shown}"]


def match_columns(table: Table, encoding: TableEncoding) -> tuple[list[int], list[str]]:
    """Return the indices of the columns of an encoding in a table, and messages about columns that are ignored.

    Columns are matched by their names. If the encoding was fitted to a table without a header, they are matched by their
    positions: the table must have the same number of columns, or only the features.

    Raises
    ------
    DataError : a column is missing, or one of the two tables has no header
    """
    by_position = not encoding.header or (is_images(encoding) and not table.header)
    if by_position and (found := positions(table, encoding)) is not None:
        return found, []
    if not encoding.header:
        raise DataError(
            f"{table.path}: {len(table.columns)} columns, but the training data had {encoding.width} columns without names, "
            f"{len(encoding.columns)} of which are features; give a table with the same columns"
        )
    if not table.header:
        raise DataError(
            f"{table.path}: the file has no header, but the model's columns have names; add a header such as "
            f"{','.join(column.name for column in encoding.columns[:MOST_EXAMPLES])}",
            settings=("header",),
        )
    if lacking := [column.name for column in encoding.columns if column.name not in table.names]:
        names = listing([*map(repr, lacking)])
        raise DataError(f"{table.path}: the model needs columns that the file does not have: {names}")
    used = {column.name for column in encoding.columns} | {encoding.target}
    other = [describe(table, number) for number, name in enumerate(table.names) if name not in used]
    notes = [f"ignored: {listing(other)}"] if other else []
    return [table.names.index(column.name) for column in encoding.columns], notes


def is_images(encoding: TableEncoding) -> bool:
    """Return whether the features may be pixels, whose order is fixed, so that a file of them needs no header."""
    return is_pixel_count(len(encoding.columns)) and all(column.values is None for column in encoding.columns)


def positions(table: Table, encoding: TableEncoding) -> list[int] | None:
    """Return the positions of the features in a table with all columns, or with the features alone; None for another table."""
    if len(table.columns) == encoding.width:
        return [column.position for column in encoding.columns]
    return list(range(len(encoding.columns))) if len(table.columns) == len(encoding.columns) else None


def narrow(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert x to uint8 if all values are whole numbers from 0 to 255, such as pixels; otherwise return x unchanged."""
    if x.min() >= 0 and x.max() <= 255:
        pixels = x.astype(np.uint8)
        if np.array_equal(pixels, x):
            return pixels
    return x


def check_missing(missing: str | None) -> None:
    """Raise ConfigError for an unknown way to treat missing values."""
    if missing is not None and missing not in MISSING_VALUES:
        raise ConfigError(f"missing must be one of {', '.join(MISSING_VALUES)}, not {missing!r}", settings=("missing",))
