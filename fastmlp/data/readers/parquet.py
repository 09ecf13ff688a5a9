"""Reader of Parquet files with pyarrow, whose memory is bounded by `limits.largest`.

Compressed pages, and texts that a page contains once and the table many times, can make a table much larger than its file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastmlp.data.readers.delimited import CELL
from fastmlp.data.readers.dialect import check_names, check_width
from fastmlp.data.readers.parquet_pages import pages_of
from fastmlp.errors import DataError
from fastmlp.files.limits import check_claim, largest
from fastmlp.files.reading import library_errors, size_of

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_SUFFIXES = (".parquet", ".pq")
PARQUET = b"PAR1"
NO_PARQUET, CREATE_AGAIN = "not a readable Parquet file", "create it again"
BATCH = 1024  # most rows of a batch
COPIES = 3  # of a page of texts, which pyarrow needs to decode it: a dictionary, and the builder of an array
SHARE = 4  # a batch may have this fraction of the limit


def read_parquet(path: Path) -> tuple[list[str], list[pa.ChunkedArray]]:
    """Return the names and the columns of a Parquet file, without the index of a pandas data frame.

    Columns of strings are read dictionary-encoded, so that the memory is bounded by the size of the pages: a string of 1 MB
    that occurs in a million rows is stored once. Their size without the encoding is checked before they are returned.

    Raises
    ------
    DataError : the file is damaged, has columns that are neither numbers nor text, or `limits.check_claim` rejects its size
    """
    import pyarrow.parquet

    with library_errors(path, NO_PARQUET, CREATE_AGAIN), pyarrow.parquet.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        rows, columns = metadata.num_rows, metadata.num_columns
    check_claim(path, CELL * rows * columns, size_of(path))
    check_width(path, len(schema))
    for field in schema:
        check_type(path, field)
    pages = pages_of(path, CELL, f"{NO_PARQUET}; {CREATE_AGAIN}")
    check_claim(path, pages.declared + COPIES * pages.longest, size_of(path))
    index = pandas_index(schema.metadata or {})
    chosen = [name for name in schema.names if name not in index]
    names = check_names(path, chosen)
    texts = [field.name for field in schema if is_text_type(field.type)]
    try:
        table = pyarrow.parquet.read_table(path, columns=chosen, read_dictionary=texts)
    except Exception:  # some encodings of text cannot be read as dictionaries
        most = largest(size_of(path)) // (SHARE * max(pages.longest * len(texts), 1))
        table = read_batches(path, chosen, min(max(most, 1), BATCH))
    arrays = [table[name] for name in chosen]
    with library_errors(path, NO_PARQUET, CREATE_AGAIN):  # the codes of texts may be outside the dictionary
        decoded = decoded_size(arrays)
    check_claim(path, decoded, size_of(path))
    return names, arrays


def check_type(path: Path, field: pa.Field) -> None:
    """Raise DataError if the type of a column is not one whose size in memory is known or checked."""
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    known = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
    if not (is_text_type(kind) or pa.types.is_temporal(kind) or any(test(kind) for test in known)):
        raise DataError(f"{path}: column {field.name!r} {not_a_value(field.type)}")


def not_a_value(kind: pa.DataType) -> str:
    return f"has the type {kind}, which is neither numbers nor text; convert or drop it"


def read_batches(path: Path, columns: Sequence[str], rows: int) -> pa.Table:
    """Read columns of a Parquet file in batches of at most `rows` rows, so that reading ends when the limit is exceeded."""
    import pyarrow as pa
    import pyarrow.parquet

    batches: list[pa.RecordBatch] = []
    total = 0  # bytes
    with library_errors(path, NO_PARQUET, CREATE_AGAIN), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(rows, columns=columns):
            batches.append(batch)
            total += batch.nbytes
            check_claim(path, total, size_of(path))
        return pa.Table.from_batches(batches)


def is_text_type(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is a string type; some programs write text as bytes."""
    import pyarrow as pa

    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in (*texts, *binary))


def decoded_size(columns: Iterable[pa.ChunkedArray]) -> int:
    """Return the number of bytes that columns have after texts are decoded from their dictionaries."""
    import pyarrow as pa
    from pyarrow import compute

    total = 0
    for column in columns:
        if not (pa.types.is_dictionary(column.type) and is_text_type(column.type.value_type)):
            total += column.nbytes
            continue
        for chunk in column.chunks:
            lengths = compute.binary_length(chunk.dictionary).take(chunk.indices)
            total += compute.sum(lengths.cast("int64")).as_py() or 0
    return total


def pandas_index(metadata: Mapping[bytes, bytes]) -> set[str]:
    """Return the names of the columns that contain the index of a pandas data frame, from the metadata of an Arrow schema."""
    try:
        with library_errors("pandas", "not valid JSON", "create the file again"):
            found = json.loads(metadata.get(b"pandas", b"{}"))
    except DataError:  # written by another program
        return set()
    index = found.get("index_columns") if isinstance(found, dict) else None
    return {name for name in index if isinstance(name, str)} if isinstance(index, list) else set()
