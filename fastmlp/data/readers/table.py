"""Reader of tables: delimited text, which may be compressed, and Parquet. Both are read with pyarrow.

pyarrow was chosen among pandas, polars and pyarrow because it is strict: it rejects rows with too few cells, which the others
fill with missing values. It also reads decimal commas, UTF-16 and Parquet without other packages, and decompresses while it
reads. It does not report the line number of an error, so after an error the file is read again with Python's csv module.
Measurements: benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.readers.delimited import parse, row_length_error
from fastmlp.data.readers.dialect import (
    MISSING,
    THOUSANDS,
    UNKNOWN,
    Dialect,
    Expected,
    check_names,
    find_dialect,
    looks_numeric,
    rows_of,
)
from fastmlp.data.readers.parquet import PARQUET, PARQUET_SUFFIXES, not_a_value, read_parquet
from fastmlp.errors import ConfigError, DataError
from fastmlp.files.reading import file_errors, open_file

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".data")

TextColumns = Callable[[int], Collection[str]]


@dataclass(frozen=True, eq=False)
class Table:
    """A table as read from a file.

    Parameters
    ----------
    path : the file
    names : names of the columns; "column 1", "column 2" and so on if the file has no header
    columns : the columns as Arrow arrays of one of the types float64, int64, Boolean and string; null is a missing value
    dialect : dialect of a text file; None for Parquet
    source_rows : (rows,) indices of the rows in the file; None if no row was dropped
    """

    path: Path
    names: list[str]
    columns: list[pa.ChunkedArray]
    dialect: Dialect | None
    source_rows: npt.NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        return len(self.columns[0])

    @property
    def header(self) -> bool:
        """Whether the names of the columns are in the file."""
        return self.dialect is None or self.dialect.header

    @cached_property
    def column_names(self) -> list[str]:
        """Names of the columns, with "column N" for columns without a name."""
        return [name or f"column {index + 1}" for index, name in enumerate(self.names)]

    def describe(self, index: int) -> str:
        """Return the number of a column, from 1, and its name, if the file has names."""
        name = self.names[index]
        return f"column {index + 1}" + (f" {name!r}" if self.header and name else "")

    def location(self, row: int, column: int | None = None) -> str:
        """Return the location of a row (from 0), or of a cell, as text.

        The line of a text file is determined by reading the file again.
        """
        cell = "" if column is None else f", {self.describe(column)}"
        row = row if self.source_rows is None else int(self.source_rows[row])
        if self.dialect is None:
            return f"{self.path}: row {row + 1}{cell}"
        skipped = row + self.dialect.header
        line = next((line for number, (line, _) in enumerate(rows_of(self.path, self.dialect)) if number == skipped), row)
        return f"{self.path}: line {line}{cell}"

    def place(self, mask: npt.NDArray[np.bool_]) -> str:
        """Return the location of the first row of a mask (rows,) without the path of the file, such as "line 7"."""
        return self.location(int(np.argmax(mask))).rpartition(": ")[2]

    def take(self, rows: npt.NDArray[np.int64]) -> Table:
        """Return a table with some of the rows."""
        source = rows if self.source_rows is None else self.source_rows[rows]
        return replace(self, columns=[column.take(rows) for column in self.columns], source_rows=source)

    def is_text(self, index: int) -> bool:
        """Return whether a column contains text."""
        return str(self.columns[index].type) == "string"

    def is_number(self, cell: str) -> bool:
        """Return whether a text is a number in the dialect of the file."""
        return self.dialect is not None and self.dialect.is_number(cell)

    def floats(self, index: int) -> npt.NDArray[np.float64]:
        """Return a column of numbers or Booleans as float64 (rows,); missing values are NaN."""
        return as_floats(self.columns[index])

    def distinct(self, index: int) -> list[str]:
        """Return the distinct texts of a column, without missing values."""
        found: list[str] = self.columns[index].unique().drop_null().to_pylist()
        return found

    def first_row(self, index: int, texts: Collection[str]) -> int:
        """Return the first row in which a column of text has one of some texts; 0 if there is none."""
        import pyarrow as pa
        from pyarrow import compute

        found = compute.is_in(self.columns[index], pa.array(sorted(texts), pa.string()))
        return int(np.argmax(found.to_numpy()))

    def missing(self, index: int) -> npt.NDArray[np.bool_]:
        """Return where a column has missing values, (rows,) bool."""
        return np.asarray(self.columns[index].is_null(nan_is_null=True).to_numpy(), bool)

    @cached_property
    def missing_counts(self) -> list[int]:
        """Number of missing values of each column."""
        return [int(self.missing(index).sum()) for index in range(len(self.columns))]


def as_floats(values: Any) -> npt.NDArray[np.float64]:
    """Return an Arrow array of numbers or Booleans as float64; null is NaN. Integers beyond 2^53 are rounded."""
    import pyarrow as pa

    numbers = values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values
    array = numbers.cast(pa.float64(), safe=False)
    found = array.to_numpy() if isinstance(array, pa.ChunkedArray) else array.to_numpy(zero_copy_only=False)
    return np.asarray(found, np.float64)


def is_table(path: Path) -> bool:
    """Return whether the name of a file is that of a table; `.gz` after it is ignored."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1:] != [] and suffixes[-1] in (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)


def read_table(
    path: str | Path,
    delimiter: str | None = None,
    header: bool | None = None,
    expected: Expected = UNKNOWN,
    texts: TextColumns = lambda count: (),
) -> Table:
    """Read a table of delimited text or a Parquet file.

    Parameters
    ----------
    path : file; its content decides whether it is Parquet, compressed text or text
    delimiter, header, expected : see `dialect.find_dialect`
    texts : function that returns the names of columns that are read as text in any case, for the number of columns; the names
        are "column N" for a file without header

    Raises
    ------
    DataError : the file cannot be read, has no rows, has rows of different lengths, or two columns have the same name

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.csv"
    ...     _ = path.write_text("size;kind\\n1,5;plum\\n?;fig\\n")
    ...     table = read_table(path)
    >>> table.names, table.floats(0).tolist(), table.columns[1].to_pylist()
    (['size', 'kind'], [1.5, nan], ['plum', 'fig'])
    """
    path = Path(path)
    with open_file(path) as stream, file_errors("read", path):
        start = stream.read(len(PARQUET))
    for name, value in (("delimiter", delimiter), ("header", header)):
        if start == PARQUET and value is not None:
            raise ConfigError(f"{name} is for text files, but {path} is a Parquet file; leave it out", settings=(name,))
    dialect = None if start == PARQUET else find_dialect(path, delimiter, header, expected)
    names, arrow = read_parquet(path) if dialect is None else read_text(path, dialect, texts)
    text_columns = texts(len(names))
    if not arrow or not len(arrow[0]):
        raise DataError(f"{path}: the table has no rows of data")
    columns = [plain(column, path, name, dialect, text=name in text_columns) for name, column in zip(names, arrow, strict=True)]
    return Table(path, names, columns, dialect)


def read_text(path: Path, dialect: Dialect, texts: TextColumns) -> tuple[list[str], list[pa.ChunkedArray]]:
    """Return the names and the columns of a text table; see `read_table` for `texts`."""
    _, first = next(rows_of(path, dialect))
    names = check_names(path, first if dialect.header else [f"column {index + 1}" for index in range(len(first))])
    arrow_names = first if dialect.header else [f"f{index}" for index in range(len(first))]
    chosen = texts(len(names))
    fixed = [arrow for name, arrow in zip(names, arrow_names, strict=True) if name in chosen]
    table = parse(path, dialect, arrow_names, fixed)
    if table.num_rows and "\n" in str(table.columns[-1][-1].as_py()):
        row_length_error(path, dialect)  # raises DataError if this is because a quotation mark is not closed
    return names, table.columns


def plain(column: pa.ChunkedArray, path: Path, name: str, dialect: Dialect | None, *, text: bool = False) -> pa.ChunkedArray:
    """Return a column as one of the types of `Table`.

    text : whether the column is converted to text in any case

    Raises
    ------
    DataError : the type of the column is neither numbers nor text, or the text cannot be decoded
    """
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type
    try:
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if not text and (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
            whole = pa.types.is_integer(kind) and kind != pa.uint64()
            return (
                column if kind in (pa.int64(), pa.float64()) else column.cast(pa.int64() if whole else pa.float64(), safe=False)
            )
        if not text and (pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            return column if pa.types.is_boolean(kind) else column.cast(pa.float64())
        trimmed = compute.utf8_trim_whitespace(column.cast(pa.string()))
        trimmed = compute.if_else(compute.is_in(trimmed, pa.array(sorted(MISSING))), pa.scalar(None, pa.string()), trimmed)
    except Exception as error:
        if dialect is not None:
            row_length_error(path, dialect)  # raises DataError if the text cannot be decoded
        raise DataError(f"{path}: column {name!r} {not_a_value(kind)}") from error
    return trimmed if text else numbers_if_possible(trimmed, path, name, dialect)


def numbers_if_possible(texts: pa.ChunkedArray, path: Path, name: str, dialect: Dialect | None) -> pa.ChunkedArray:
    """Return a column of text as numbers if all its texts are numbers that pyarrow did not recognize, such as +5 or 1,5.

    Raise DataError if it is not clear whether a comma separates thousands or decimals.
    """
    import pyarrow as pa

    first = texts.drop_null().slice(0, 1).to_pylist()
    if dialect is None or not first or not looks_numeric(first[0]):
        return texts
    coded = texts.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    cells = coded.dictionary.to_pylist()
    decimal = "," if dialect.delimiter != "," and not all(map(dialect.is_number, cells)) else dialect.decimal
    if not all(map(dialect._replace(decimal=decimal).is_number, cells)):
        return texts
    commas = [cell for cell in cells if "," in cell]
    if commas and all(map(THOUSANDS.fullmatch, commas)):
        raise DataError(
            f"{path}: column {name!r} has numbers such as {commas[0]}, whose comma may separate thousands or decimals; write "
            "them without thousands separators, or with a decimal point"
        )
    numbers = pa.array([float(cell.replace(decimal, ".")) for cell in cells], pa.float64())
    return pa.chunked_array([numbers.take(coded.indices)])
