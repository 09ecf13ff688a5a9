"""Parsing of delimited text with pyarrow, and the line numbers of its errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmlp.data.readers.dialect import MISSING, Dialect, open_text, rows_of
from fastmlp.errors import DataError, FastMLPError
from fastmlp.files.limits import open_unpacked
from fastmlp.files.reading import check_regular, read_bytes, reason, size_of

if TYPE_CHECKING:
    import pyarrow as pa

SMALL = 1 << 20  # bytes of a small file
CELL = 8  # bytes of a number in memory
BLOCK = 1 << 20  # bytes that pyarrow reads at a time, its default
LONG_BLOCK = 16 << 20  # bytes that are read at a time if the rows are long
ROWS = 256  # rows of a block, if it has fewer bytes than LONG_BLOCK: each column of a block needs 600 bytes besides its values
GROUP = 2000  # columns that are read at a time: while pyarrow reads a column, it needs 16 kB for the texts in `MISSING`


def parse(path: Path, dialect: Dialect, names: Sequence[str], texts: Sequence[str]) -> pa.Table:
    """Return a text table as an Arrow table; raise DataError with the line of the first error.

    If pyarrow has to infer the types of the columns, it keeps the text of the whole file in memory. Therefore, the types are
    inferred from the start of the file. If they do not fit the rest, integers become float64; then all types are inferred.

    names : names of the columns for pyarrow
    texts : names of the columns that are read as text
    """
    import pyarrow as pa

    if len(names) > GROUP and len(set(names)) < len(names):  # groups of columns are chosen by name
        raise DataError(f"{path}: {len(names):,} columns, of which several have no name; name all columns")
    row = longest_row(path, dialect)
    block = max(BLOCK, 4 * row, min(ROWS * row, LONG_BLOCK))  # bytes; a block must contain a row
    fixed = dict.fromkeys(texts, pa.string())
    types = sample_types(path, dialect, names) | fixed
    wider = {name: pa.float64() if kind == pa.int64() else kind for name, kind in types.items()}
    error: Exception | None = None
    for column_types in [types, *([wider] if wider != types else []), *([fixed] if fixed != types else [])]:
        try:
            table = read_csv(path, dialect, names, column_types, block)
        except FastMLPError:  # from the decompression
            raise
        except Exception as failed:
            error = failed
            if "conversion error" not in str(failed):  # not because of the types
                break
        else:
            temporal = [field.name for field in table.schema if pa.types.is_temporal(field.type)]
            return parse(path, dialect, names, [*texts, *temporal]) if temporal else table  # as written, such as 08:00
    try:  # cells with line breaks are read more slowly, and are rare
        return read_csv(path, dialect, names, fixed, block, several_lines=True)
    except FastMLPError:
        raise
    except Exception:
        assert error is not None
        raise DataError(row_length_error(path, dialect) or f"{path}: {reason(error)}; correct the file") from error


def read_csv(
    path: Path, dialect: Dialect, names: Sequence[str], types: Mapping[str, Any], block: int, *, several_lines: bool = False
) -> pa.Table:
    """Call pyarrow's reader.

    names : names of all columns
    types : types of columns by name; those of other columns are inferred
    block : number of bytes that are read at a time
    several_lines : whether quoted cells may have line breaks
    """
    from pyarrow import csv

    spaced = [text for name in MISSING for text in (name, f" {name}")]
    read = csv.ReadOptions(
        encoding=dialect.encoding.replace("-sig", ""),
        autogenerate_column_names=not dialect.header,
        block_size=block,
        use_threads=len(names) <= GROUP,  # each thread would keep the memory of its columns
    )
    options = csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=several_lines)

    def read_columns(chosen: Sequence[str] | None) -> pa.Table:
        convert = csv.ConvertOptions(
            null_values=spaced,
            strings_can_be_null=True,
            decimal_point=dialect.decimal,
            column_types=dict(types),
            include_columns=chosen,
        )
        with open_stream(path, dialect) as stream:
            return csv.read_csv(stream, read, options, convert)

    return in_groups(names, read_columns)


def in_groups(names: Sequence[str], read_columns: Callable[[Sequence[str] | None], pa.Table]) -> pa.Table:
    """Return the table that a function reads, which is called for `GROUP` columns at a time if there are more.

    read_columns : function of the names of the columns to read; None for all columns
    """
    import pyarrow as pa

    if len(names) <= GROUP:
        return read_columns(None)
    groups = [names[start : start + GROUP] for start in range(0, len(names), GROUP)]
    return pa.Table.from_arrays([column for group in groups for column in read_columns(group).columns], list(names))


def longest_row(path: Path, dialect: Dialect) -> int:
    """Return the number of characters of the longest of the first rows."""
    return max(sum(map(len, row)) + len(row) for _, row in itertools.islice(rows_of(path, dialect), 3))


def sample_types(path: Path, dialect: Dialect, names: Sequence[str]) -> dict[str, Any]:
    """Return the types of the columns at the start of a large file by name; empty for a small file.

    Columns that have only missing values there are left out. Dates are text.
    """
    import pyarrow as pa
    from pyarrow import csv

    if size_of(path) < SMALL:
        return {}
    with open_text(path, dialect) as stream:
        text = stream.read(SMALL)
    text = text[: text.rfind("\n") + 1]
    read = csv.ReadOptions(autogenerate_column_names=not dialect.header)
    options = csv.ParseOptions(delimiter=dialect.delimiter)

    def read_columns(chosen: Sequence[str] | None) -> pa.Table:
        convert = csv.ConvertOptions(
            null_values=[*MISSING], strings_can_be_null=True, decimal_point=dialect.decimal, include_columns=chosen
        )
        return csv.read_csv(pa.BufferReader(text.encode()), read, options, convert)

    try:
        table = in_groups(names, read_columns)
    except Exception:  # the whole file has the same error, or a cell with a line break
        return {}
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    known = (pa.int64(), pa.float64(), pa.bool_())
    return {name: kind if kind in known else pa.string() for name, kind in types.items() if kind != pa.null()}


@contextmanager
def open_stream(path: Path, dialect: Dialect) -> Iterator[Any]:
    """Open a file for pyarrow. A small file is read with a line break at its end, which pyarrow needs if there is one row."""
    import pyarrow as pa

    if size_of(path) < SMALL and not dialect.gzipped and dialect.encoding.startswith("utf-8"):
        yield pa.BufferReader(read_bytes(path).rstrip(b"\r\n") + b"\n")
    elif dialect.gzipped:  # the stream of pyarrow would have no limit
        columns = len(next(rows_of(path, dialect))[1])
        with open_unpacked(path, CELL * columns) as stream:
            yield pa.PythonFile(stream, "r")
    else:
        check_regular(path)
        yield pa.input_stream(str(path), compression=None)


def row_length_error(path: Path, dialect: Dialect) -> str:
    """Return a message about the first row with a different number of cells than the first row; "" if there is none.

    Raise DataError if a quotation mark is not closed, or if the file cannot be decoded.
    """
    first = 0
    for line, row in rows_of(path, dialect):
        first = first or len(row)
        if len(row) == 1 and not row[0].strip():
            return f"{path}: line {line} contains only spaces; remove it"
        if len(row) != first:
            return (
                f"{path}: line {line} has {len(row)} columns, but the first row has {first}; correct the line or the delimiter"
            )
    return ""
