"""Encoding of the features of a table as numbers: one-hot encoding of categories, and imputation of missing values.

`fit_encoding` fits an encoding to the training split. It is stored in the model file, so that `encode` returns the features of
any other table in the same order; the columns are matched by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from fastmlp.data.readers.dialect import Expected, looks_numeric
from fastmlp.data.readers.table import Table, as_floats
from fastmlp.data.tables.target import TableOptions
from fastmlp.errors import ConfigError, DataError

MISSING_STRATEGIES = ("drop", "mean", "median")  # how missing values are handled, if they are not an error
MAX_CATEGORIES = 100  # distinct values of a column of text that is encoded one-hot
MAX_INVALID = 0.1  # a column in which at most this fraction of the cells is not numeric is assumed to contain errors
MAX_LISTED = 3  # names or values that a message lists


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The encoding of a column.

    name : name of the column
    position : index of the column in the table that the encoding was fitted to
    categories : for text, the values in sorted order, each of which has a feature that is 1 or 0; None for numbers
    fill_value : number with which missing values are imputed; None if they are an error
    """

    name: str
    position: int
    categories: tuple[str, ...] | None = None
    fill_value: float | None = None

    @property
    def width(self) -> int:
        """Number of features."""
        return 1 if self.categories is None else len(self.categories)


class TableEncoding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The encoding of the features of a table.

    columns : the columns that are features, in the order of the features
    target : name of the target; empty if it is not known
    header : whether the columns have names; otherwise they are matched by their positions
    n_columns : number of columns of the table that the encoding was fitted to
    missing : one of `MISSING_STRATEGIES`, or None if missing values are an error
    delimiter : delimiter of the text file that the encoding was fitted to; empty for other sources
    text_target : whether the target is text
    pixels : whether the features are the pixels of gray images, whose order is fixed
    """

    columns: tuple[Column, ...]
    target: str
    header: bool
    n_columns: int
    missing: str | None = None
    delimiter: str = ""
    text_target: bool = False
    pixels: bool = False

    @property
    def n_features(self) -> int:
        """Number of features."""
        return sum(column.width for column in self.columns)

    @property
    def feature_names(self) -> list[str]:
        """Names of the features; those of categories are the name of the column, "=" and the category."""
        return [
            name
            for column in self.columns
            for name in ([column.name] if column.categories is None else [f"{column.name}={one}" for one in column.categories])
        ]

    def text_columns(self, count: int) -> frozenset[str]:
        """Return the names of the columns that contain text in a table with a number of columns, see `read_table`."""
        if not self.header and count == len(self.columns):  # the features alone
            return frozenset(f"column {n}" for n, column in enumerate(self.columns, 1) if column.categories is not None)
        names = {column.name for column in self.columns if column.categories is not None}
        return frozenset(names | ({self.target} if self.text_target else set()))

    @property
    def expected(self) -> Expected:
        """What is known about the format of another table."""
        names = frozenset(column.name for column in self.columns) if self.header else frozenset()
        return Expected(names, self.delimiter, None if self.pixels else self.header)

    def decode(self, x: npt.NDArray[Any]) -> dict[str, list[Any]]:
        """Return the values of the columns for encoded rows x (n, features); a row without a category gives "".

        >>> columns = (Column("kind", 0, ("fig", "plum")), Column("size", 1))
        >>> TableEncoding(columns, "price", True, 3).decode(np.array([[0, 1, 2.5]]))
        {'kind': ['plum'], 'size': [2.5]}
        """
        found: dict[str, list[Any]] = {}
        start = 0
        for column in self.columns:
            part = x[:, start : start + column.width]
            start += column.width
            if column.categories is None:
                found[column.name] = part[:, 0].tolist()
            else:
                found[column.name] = [column.categories[row.argmax()] if row.any() else "" for row in part]
        return found


class Encoded(NamedTuple):
    """Encoded rows of a table.

    x : (n, features) float; incomplete rows are zero
    incomplete : (n,) bool, where a row has missing values that are not imputed
    notes : messages about columns that are ignored, and about categories that are not in the encoding
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
    DataError : a column of text has too many categories, or a column of numbers has cells that are not numeric
    """
    columns = []
    for index in features:
        categories = fill_value = None
        if table.is_text(index):
            check_categories(table, index)
            categories = tuple(sorted(table.columns[index].take(rows).unique().drop_null().to_pylist()))
        elif options.missing in ("mean", "median"):
            fill_value = mean_or_median(table.floats(index)[rows], options.missing)
        columns.append(Column(table.column_names[index], index, categories, fill_value))
    return TableEncoding(
        tuple(columns),
        table.column_names[target],
        table.header,
        len(table.columns),
        options.missing,
        "" if table.dialect is None else table.dialect.delimiter,
        table.is_text(target),
    )


def mean_or_median(values: npt.NDArray[np.float64], kind: str) -> float:
    """Return the mean or the median of the finite values; 0 if there are none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0
    return float(values.mean() if kind == "mean" else np.median(values))


def check_categories(table: Table, index: int) -> None:
    """Raise DataError if a column of text has too many categories, or if it is mostly numeric."""
    check_numeric(table, index)
    distinct = table.distinct(index)
    if len(distinct) > MAX_CATEGORIES:
        raise DataError(
            f"{table.path}: {table.describe(index)} has {len(distinct)} distinct texts, such as {distinct[0]!r}; at most "
            f"{MAX_CATEGORIES} can be encoded; drop the column",
            settings=("drop",),
        )


def check_numeric(table: Table, index: int, target: str = "") -> None:
    """Raise DataError if most cells of a column of text are numbers, so that the other cells are probably errors.

    target : see `not_numeric_cell`
    """
    import pyarrow as pa
    from pyarrow import compute

    cells = table.columns[index].drop_null()
    distinct = table.distinct(index)
    if table.dialect is None or not any(map(looks_numeric, distinct)):
        return
    others = pa.array([cell for cell in distinct if not looks_numeric(cell)], pa.string())
    count = int(compute.sum(compute.is_in(cells, others)).as_py() or 0)
    if count <= MAX_INVALID * len(cells):
        raise not_numeric_cell(table, index, target)


def not_numeric_cell(table: Table, index: int, target: str = "") -> DataError:
    """Return the error for the first cell of a column of text that is not a number.

    target : remedy if the column is the target
    """
    row = table.first_row(index, [cell for cell in table.distinct(index) if not table.is_number(cell)])
    cell = table.columns[index][row].as_py()
    remedy = target or "correct it, remove the row, or drop the column"
    return DataError(
        f"{table.location(row, index)}: {cell!r} is not a number; {remedy}", settings=("task",) if target else ("drop",)
    )


def encode(
    table: Table,
    encoding: TableEncoding,
    indices: Sequence[int] | None = None,
    *,
    fitted: bool = False,
    dtype: npt.DTypeLike = np.float32,
) -> Encoded:
    """Return the features of a table.

    indices : indices of the columns of the encoding; None to match them by name, see `match_columns`
    fitted : whether the encoding was fitted to this table, for error messages
    dtype : floating-point dtype of the features

    Raises
    ------
    DataError : a column is missing, or has missing values or cells that are not numeric
    """
    notes: list[str] = []
    if indices is None:
        indices, notes = match_columns(table, encoding)
    incomplete = np.zeros(table.rows, bool)
    if encoding.missing is None:
        check_complete(table, indices, encoding, fitted)
    elif encoding.missing == "drop":
        for index in indices:
            if table.missing_counts[index]:
                incomplete |= table.missing(index)
    x = np.zeros((table.rows, encoding.n_features), dtype)
    numeric: list[tuple[int, int, Column]] = []
    start = 0
    for index, column in zip(indices, encoding.columns, strict=True):
        if column.categories is None:
            numeric.append((index, start, column))
        else:
            notes += one_hot(table, index, column.categories, x[:, start : start + column.width])
        start += column.width
    fill_numbers(table, numeric, x, incomplete)
    x[incomplete] = 0
    return Encoded(x, incomplete, tuple(notes))


def check_complete(table: Table, indices: Sequence[int], encoding: TableEncoding, fitted: bool) -> None:
    """Raise DataError, with the remedy, if columns have missing values."""
    found = [(index, count) for index in indices if (count := table.missing_counts[index])]
    if not found:
        return
    counts = listing([f"{table.describe(index)} has {count}" for index, count in found])
    row = table.place(table.missing(found[0][0]))
    choices = f"{', '.join(MISSING_STRATEGIES[:-1])} or {MISSING_STRATEGIES[-1]}"
    if fitted:
        remedy = f"set missing to {choices}, or drop columns"
    else:
        remedy = f"fill them, or train with missing set to {choices}" if encoding.target else "fill them"
    raise DataError(
        f"{table.path}: missing values: {counts} (the first one in {row}); {remedy}",
        settings=("missing", "drop") if fitted else (),
    )


def listing(parts: Sequence[str]) -> str:
    """Return the first of some texts as a list.

    >>> listing(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(parts) - MAX_LISTED
    return ", ".join(parts[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def fill_numbers(
    table: Table, columns: Sequence[tuple[int, int, Column]], x: npt.NDArray[Any], incomplete: npt.NDArray[np.bool_]
) -> None:
    """Write columns of numbers into x (rows, features), with missing values replaced.

    The columns are written chunk by chunk, because writing one column after the other takes twice as long in a large table.

    columns : index of the column, index of its feature, and its encoding
    incomplete : (rows,) bool, rows whose values need not be finite

    Raises
    ------
    DataError : a cell is not a number, or is not finite in the dtype of x
    """
    import pyarrow as pa

    for index, _, _ in columns:
        if table.is_text(index):
            raise not_numeric_cell(table, index)
    arrays = [table.columns[index] for index, _, _ in columns]
    stop = 0
    for batch in pa.table(arrays, [str(number) for number in range(len(arrays))]).to_batches() if arrays else ():
        start, stop = stop, stop + len(batch)
        for (_, feature, column), values in zip(columns, batch.columns, strict=True):
            numbers = as_floats(values)
            if column.fill_value is not None:
                numbers = np.where(np.isnan(numbers), column.fill_value, numbers)
            with np.errstate(over="ignore"):  # an overflow becomes infinity
                x[start:stop, feature] = numbers
        features = [feature for _, feature, _ in columns]
        if not np.isfinite(x[start:stop]).all():
            check_finite(table, columns, x[start:stop, features], incomplete[start:stop], start)


def check_finite(
    table: Table, columns: Sequence[tuple[int, int, Column]], x: npt.NDArray[Any], incomplete: npt.NDArray[np.bool_], start: int
) -> None:
    """Raise DataError if a value of x, the rows of a table from `start`, is not finite, except in incomplete rows."""
    wrong = ~np.isfinite(x) & ~incomplete[:, None]
    if wrong.any():
        row, number = (int(one[0]) for one in np.nonzero(wrong))
        index = columns[number][0]
        value = table.floats(index)[start + row]
        raise DataError(
            f"{table.location(start + row, index)}: {value} is not a finite {x.dtype} number; correct it or remove the row"
        )


def one_hot(table: Table, index: int, categories: Sequence[str], out: npt.NDArray[Any]) -> list[str]:
    """Write the one-hot encoding of a column into `out` (rows, categories); return a note about unknown categories."""
    import pyarrow as pa
    from pyarrow import compute

    texts = table.columns[index].cast(pa.string())
    codes = compute.index_in(texts, pa.array(categories, pa.string())).to_numpy()
    known = ~np.isnan(codes.astype(np.float64))
    out[np.flatnonzero(known), codes[known].astype(np.int64)] = 1
    unknown = texts.filter(pa.array(~known)).drop_null()
    if not len(unknown):
        return []
    shown = listing([*map(repr, unknown.unique().to_pylist())])
    one = len(unknown) == 1
    values = "1 value" if one else f"{len(unknown)} values"
    verbs = "does not occur in the training split and is" if one else "do not occur in the training split and are"
    return [f"{values} of {table.describe(index)} {verbs} encoded as zeros: {shown}"]


def match_columns(table: Table, encoding: TableEncoding) -> tuple[list[int], list[str]]:
    """Return the indices of the columns of an encoding in a table, and messages about columns that are ignored.

    Columns are matched by their names. If the encoding was fitted to a table without a header, they are matched by their
    positions: the table must have the same number of columns, or only the features.

    Raises
    ------
    DataError : a column is missing, or one of the two tables has no header
    """
    by_position = not encoding.header or (encoding.pixels and not table.header)
    if by_position and len(table.columns) == encoding.n_columns:
        return [column.position for column in encoding.columns], []
    if by_position and len(table.columns) == len(encoding.columns):
        return [*range(len(encoding.columns))], []
    if not encoding.header:
        raise DataError(
            f"{table.path}: {len(table.columns)} columns, but the training data had {encoding.n_columns} without names, of "
            f"which {len(encoding.columns)} are features; give a table with the same columns"
        )
    if not table.header:
        names = ",".join(column.name for column in encoding.columns[:MAX_LISTED])
        raise DataError(
            f"{table.path}: the file has no header, but the model's columns have names; add a header such as {names}"
        )
    names_in_table = table.column_names
    if lacking := [column.name for column in encoding.columns if column.name not in names_in_table]:
        raise DataError(f"{table.path}: missing columns that the model needs: {listing([*map(repr, lacking)])}")
    used = {column.name for column in encoding.columns} | {encoding.target}
    other = [table.describe(index) for index, name in enumerate(names_in_table) if name not in used]
    notes = [f"ignored: {listing(other)}"] if other else []
    return [names_in_table.index(column.name) for column in encoding.columns], notes


def check_missing(missing: str | None) -> None:
    """Raise ConfigError for an unknown way to handle missing values."""
    if missing is not None and missing not in MISSING_STRATEGIES:
        raise ConfigError(f"missing must be one of {', '.join(MISSING_STRATEGIES)}, not {missing!r}", settings=("missing",))
