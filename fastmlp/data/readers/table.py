"""Reader of tables: delimited text, which may be compressed, and Parquet. Both are read with pyarrow.

pyarrow was chosen among pandas, polars and pyarrow because it is strict: it rejects rows that are too short, which the others
fill with missing values. It also reads decimal commas, UTF-16 and Parquet without other packages, and decompresses while it
reads. It does not tell the line of a fault, so after an error the file is read again by Python's csv module. Measurements:
benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.readers.dialect import COMMA_NUMBER, MISSING, Dialect, find_dialect, open_text, rows_of
from fastmlp.errors import DataError
from fastmlp.files import file_errors

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".data")
PARQUET_SUFFIXES = (".parquet", ".pq")
PARQUET = b"PAR1"
SMALL = 1 << 20  # bytes of a small file


@dataclass(frozen=True, eq=False)
class Table:
    """A table as read from a file.

    Parameters
    ----------
    path : the file
    names : names of the columns; "column 1", "column 2" and so on if the file has no header
    columns : the columns as Arrow arrays of one of the types float64, int64, Boolean and string; in all of them, null is a
        missing value. Other types have become strings
    dialect : dialect of a text file; None for Parquet
    source_rows : (rows,) indices of the rows in the file; None if no row was left out
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

    def location(self, row: int) -> str:
        """Return the location of a row (from 0) as text. The line of a text file is found by reading the file again."""
        row = row if self.source_rows is None else int(self.source_rows[row])
        if self.dialect is None:
            return f"{self.path}: row {row + 1}"
        skipped = row + self.dialect.header
        line = next((line for number, (line, _) in enumerate(rows_of(self.path, self.dialect)) if number == skipped), row)
        return f"{self.path}: line {line}"

    def take(self, rows: npt.NDArray[np.int64]) -> Table:
        """Return a table with some of the rows."""
        source = rows if self.source_rows is None else self.source_rows[rows]
        return replace(self, columns=[column.take(rows) for column in self.columns], source_rows=source)

    def is_text(self, column: int) -> bool:
        """Return whether a column has text."""
        return str(self.columns[column].type) == "string"

    def numbers(self, column: int) -> npt.NDArray[np.float64]:
        """Return a column of numbers or Booleans as float64 (rows,); missing values are NaN."""
        import pyarrow as pa

        values = self.columns[column]
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.int8())
        return values.cast(pa.float64()).to_numpy().astype(np.float64, copy=False)

    def missing(self, column: int) -> npt.NDArray[np.bool_]:
        """Return where a column has missing values, (rows,) bool."""
        return np.asarray(self.columns[column].is_null(nan_is_null=True).to_numpy(), bool)

    @cached_property
    def missing_counts(self) -> list[int]:
        """Number of missing values of each column."""
        return [int(self.missing(number).sum()) for number in range(len(self.columns))]


def is_table(path: Path) -> bool:
    """Return whether the name of a file is that of a table; `.gz` after it is ignored."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1:] != [] and suffixes[-1] in (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)


def read_table(path: str | Path, delimiter: str | None = None, header: bool | None = None) -> Table:
    """Read a table of delimited text or a Parquet file.

    Parameters
    ----------
    path : file; its content decides whether it is Parquet, compressed text or text
    delimiter, header : see `dialect.find_dialect`; ignored for Parquet

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
    >>> table.names, table.numbers(0).tolist(), table.columns[1].to_pylist()
    (['size', 'kind'], [1.5, nan], ['plum', 'fig'])
    """
    path = Path(path)
    with file_errors("read", path), path.open("rb") as stream:
        start = stream.read(len(PARQUET))
    if start == PARQUET:
        names, columns, dialect = *read_parquet(path), None
    else:
        dialect = find_dialect(path, delimiter, header)
        names, columns, dialect = read_text(path, dialect)
    if not columns or not len(columns[0]):
        raise DataError(f"{path}: no rows of data; add rows")
    return Table(path, unique_names(path, names), columns, dialect)


def unique_names(path: Path, names: list[str]) -> list[str]:
    """Return the names of columns without spaces around them; raise DataError if a name occurs twice."""
    stripped = [name.strip() for name in names]
    for name in stripped:
        if name and stripped.count(name) > 1:
            raise DataError(f"{path}: two columns have the name {name!r}; rename one of them")
    return stripped


def read_parquet(path: Path) -> tuple[list[str], list[pa.ChunkedArray]]:
    """Return the names and the columns of a Parquet file."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except Exception as error:
        raise DataError(f"{path}: not a readable Parquet file ({first_line(error)}); write it again") from error
    return table.column_names, [plain(column) for column in table.columns]


def read_text(path: Path, dialect: Dialect) -> tuple[list[str], list[pa.ChunkedArray], Dialect]:
    """Return the names and the columns of a text table, and its dialect, in which the decimal mark may have changed."""
    table = parse(path, dialect)
    if table.num_rows and "\n" in str(table.columns[-1][-1].as_py()):
        fault(path, dialect)  # raises DataError if this is because a quotation mark is not closed
    columns = [plain(column) for column in table.columns]
    points = dialect.delimiter == "," or dialect.decimal == "," or any(str(column.type) == "double" for column in columns)
    if not points and any(has_decimal_commas(column) for column in columns):
        dialect = dialect._replace(decimal=",")  # there was no such number at the start of the file
        columns = [plain(column) for column in parse(path, dialect).columns]
    names = table.column_names if dialect.header else [f"column {number + 1}" for number in range(len(columns))]
    return names, columns, dialect


def parse(path: Path, dialect: Dialect) -> pa.Table:
    """Return a text table as an Arrow table; raise DataError with the line of the first fault.

    If pyarrow has to infer the types of the columns, it keeps the text of the whole file. Therefore, the types are inferred
    from the start of the file. If they do not fit the rest, whole numbers become float64; then all types are inferred.
    """
    import pyarrow as pa

    types = sample_types(path, dialect)
    wider = {name: pa.float64() if kind == pa.int64() else kind for name, kind in types.items()}
    attempts = [one for number, one in enumerate((types, wider, {})) if number == 0 or one != types]
    error: Exception | None = None
    for column_types in attempts:
        try:
            return read_csv(path, dialect, column_types)
        except Exception as failed:
            error = failed
            if not is_conversion(failed):
                break
    try:  # cells with line breaks are read more slowly, and are rare
        return read_csv(path, dialect, {}, several_lines=True)
    except Exception:
        raise DataError(fault(path, dialect) or f"{path}: {first_line(error)}") from error


def read_csv(path: Path, dialect: Dialect, types: Mapping[str, Any], *, several_lines: bool = False) -> pa.Table:
    """Call pyarrow's reader.

    types : types of columns by name; those of other columns are inferred
    several_lines : whether quoted cells may have line breaks
    """
    from pyarrow import csv

    spaced = [text for name in MISSING for text in (name, f" {name}")]
    convert = csv.ConvertOptions(
        null_values=spaced, strings_can_be_null=True, decimal_point=dialect.decimal, column_types=dict(types)
    )
    read = csv.ReadOptions(encoding=dialect.encoding.replace("-sig", ""), autogenerate_column_names=not dialect.header)
    options = csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=several_lines)
    with open_stream(path, dialect) as stream:
        return csv.read_csv(stream, read, options, convert)


def sample_types(path: Path, dialect: Dialect) -> dict[str, Any]:
    """Return the types of the columns at the start of a large file by name; empty for a small file.

    Columns that have only missing values there are left out. Dates are text.
    """
    import pyarrow as pa
    from pyarrow import csv

    if path.stat().st_size < SMALL:
        return {}
    with open_text(path, dialect) as stream:
        text = stream.read(SMALL)
    text = text[: text.rfind("\n") + 1]
    read = csv.ReadOptions(autogenerate_column_names=not dialect.header)
    convert = csv.ConvertOptions(null_values=[*MISSING], strings_can_be_null=True, decimal_point=dialect.decimal)
    try:
        table = csv.read_csv(pa.BufferReader(text.encode()), read, csv.ParseOptions(delimiter=dialect.delimiter), convert)
    except Exception:  # the whole file has the same fault, or a cell with a line break
        return {}
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    known = (pa.int64(), pa.float64(), pa.bool_())
    return {name: kind if kind in known else pa.string() for name, kind in types.items() if kind != pa.null()}


def is_conversion(error: Exception) -> bool:
    """Return whether pyarrow could not convert a cell to the type of its column."""
    return "conversion error" in str(error)


def open_stream(path: Path, dialect: Dialect) -> Any:
    """Open a file for pyarrow. A small file is read with a line break at its end, which pyarrow needs if there is one row."""
    import pyarrow as pa

    if path.stat().st_size < SMALL and not dialect.gzipped and dialect.encoding.startswith("utf-8"):
        return pa.BufferReader(path.read_bytes().rstrip(b"\r\n") + b"\n")
    return pa.input_stream(str(path), compression="gzip" if dialect.gzipped else None)


def fault(path: Path, dialect: Dialect) -> str:
    """Return a message about the first row with a different number of cells than the first one; "" if there is none.

    Raise DataError if a quotation mark is not closed.
    """
    first = 0
    for line, row in rows_of(path, dialect):
        first = first or len(row)
        if len(row) == 1 and not row[0].strip():
            return f"{path}: line {line} is blank but for spaces; remove it"
        if len(row) != first:
            return f"{path}: line {line} has {len(row)} columns, but line 1 has {first}; make them equal"
    return ""


def first_line(error: Exception | None) -> str:
    """Return the message of an error of pyarrow as one short line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as one of the types of `Table`."""
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        whole = pa.types.is_integer(kind) and kind != pa.uint64()
        return column if kind in (pa.int64(), pa.float64()) else column.cast(pa.int64() if whole else pa.float64())
    if pa.types.is_boolean(kind):
        return column
    text = compute.utf8_trim_whitespace(column.cast(pa.string()))
    return compute.if_else(compute.is_in(text, pa.array(sorted(MISSING))), pa.scalar(None, pa.string()), text)


def has_decimal_commas(column: pa.ChunkedArray) -> bool:
    """Return whether all values of a column of text are numbers with a decimal comma."""
    if str(column.type) != "string" or column.null_count == len(column):
        return False
    values = column.drop_null().unique().to_pylist()
    return all(COMMA_NUMBER.fullmatch(value) for value in values)
