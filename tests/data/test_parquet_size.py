"""Parquet files that are larger in memory than they declare: fastmlp/data/readers/parquet.py and parquet_pages.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from support.data import message

from fastmlp.data.load import load_data
from fastmlp.data.readers import parquet as reader
from fastmlp.data.readers import parquet_pages
from fastmlp.data.readers.parquet_pages import Compact, Malformed, pages_of
from fastmlp.errors import DataError

MIB = 1 / 1024  # in GiB
LABELS = ["no", "yes"] * 10


def varint(number: int, length: int = 0) -> bytes:
    """Return a number of Thrift's compact protocol, with a number of bytes if it is given."""
    number, found = number << 1, b""
    while number > 127 or len(found) + 1 < length:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def forge(path: Path) -> None:
    """Write a table of a few kB with a text of 8 MB, and declare in its footer that all pages have one byte."""
    table = pa.table({"a": ["x" * (8 << 20)] + ["y"] * 19, "label": LABELS})
    parquet.write_table(table, path, compression="zstd", write_statistics=False, store_schema=False)
    group = parquet.ParquetFile(path).metadata.row_group(0)
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[start:]
    for size in (group.total_byte_size, group.column(0).total_uncompressed_size):
        assert footer.count(varint(size)) == 1
        footer = footer.replace(varint(size), varint(1, len(varint(size))))
    path.write_bytes(data[:start] + footer)
    assert parquet.ParquetFile(path).metadata.row_group(0).total_byte_size == 1


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        pytest.fail("pyarrow reads the file")

    monkeypatch.setattr(parquet, "read_table", fail)
    monkeypatch.setattr(reader, "read_batches", fail)


def test_a_footer_with_a_forged_size_is_refused_before_pages_are_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    forge(path)
    assert len(load_data(path).x) == 20
    no_reading(monkeypatch)
    text = message(DataError, load_data, path, max_decompressed=MIB)
    assert text.startswith(f"{path}: the file has ") and "more than 50 times its size" in text


def test_the_sum_of_the_columns_is_limited(tmp_path: Path) -> None:
    """Each text is in a page once; with all columns, the table is larger than the limit, with one it is not."""
    path = tmp_path / "a.parquet"
    columns = {f"a{number}": ["x" * 40_000] * 18 + ["y"] * 2 for number in range(4)}
    parquet.write_table(pa.table({"a": columns["a0"], "label": LABELS}), path, compression="zstd", write_statistics=False)
    assert len(load_data(path, max_decompressed=MIB).x) == 20
    parquet.write_table(pa.table({**columns, "label": LABELS}), path, compression="zstd", write_statistics=False)
    assert "more than 50 times its size" in message(DataError, load_data, path, max_decompressed=MIB)


def test_a_batch_of_long_texts_has_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of this encoding are read in batches. A row of a batch takes at most a page."""
    path = tmp_path / "a.parquet"
    table = pa.table({"a": ["x" * 500 + str(number % 20) for number in range(4000)], "label": LABELS * 200})
    parquet.write_table(table, path, use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY", "label": "PLAIN"})
    sizes = []
    batches = reader.read_batches

    def read(path: Path, columns: list[str], rows: int) -> pa.Table:
        sizes.append(rows)
        return batches(path, columns, rows)

    monkeypatch.setattr(reader, "read_batches", read)
    assert "more than 50 times its size" in message(DataError, load_data, path, max_decompressed=MIB)
    longest = pages_of(path, 8, "").longest
    assert 1 <= sizes[0] <= (1 << 20) / 4 / 2 / longest
    load_data(path)
    assert sizes[1] > sizes[0]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_the_sizes_of_pages_are_those_of_an_intact_footer(version: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    texts = [chr(97 + number % 26) * 3000 for number in range(2000)]  # also in the statistics: headers of more than 6 kB
    table = pa.table({"a": rng.random(2000), "b": rng.integers(0, 3, 2000), "text": texts})
    parquet.write_table(table, path, 700, compression=compression, data_page_version=version, data_page_size=1000)
    pages = pages_of(path, 0, "")
    metadata = parquet.ParquetFile(path).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    declared = sum(group.total_byte_size for group in groups)  # with the headers
    packed = sum(group.column(number).total_compressed_size for group in groups for number in range(3))
    assert len(groups) == 3 and pages.packed == packed and 0.7 * declared < pages.declared <= declared
    assert 26 * 3000 < pages.longest < 27 * 3010
    assert pages_of(path, 1000, "").declared >= 2000 * 3 * 1000


def test_columns_that_share_pages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, a small file could take as long as a file with all these pages."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"a": np.random.default_rng(0).random(20), "label": LABELS}), path)
    columns = parquet_pages.columns_of
    monkeypatch.setattr(parquet_pages, "columns_of", lambda footer: [*columns(footer)] * 30)
    assert message(DataError, load_data, path) == f"{path}: not a readable Parquet file; create it again"


def test_a_damaged_header_of_a_page_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"a": np.arange(20.0), "label": LABELS}), path)
    intact = path.read_bytes()
    for wrong in (b"\xff" * 12, intact[4:7] + b"\x81\x00", b"\x1f\x00"):  # a long number, a negative size, an unknown type
        path.write_bytes(intact[:4] + wrong + intact[4 + len(wrong) :])
        assert message(DataError, load_data, path) == f"{path}: not a readable Parquet file; create it again"


def test_the_depth_of_structures_is_limited() -> None:
    nested = b"\x1c" * 10_000
    with pytest.raises(Malformed):
        Compact(nested).skip(parquet_pages.STRUCT)
    reader = Compact(b"\x1c" * 9 + b"\x00" * 10)
    reader.skip(parquet_pages.STRUCT)
    assert reader.position == 19


@pytest.mark.skipif(not hasattr(pa, "json_"), reason="needs the type JSON of pyarrow 19")
def test_types_whose_texts_are_not_read_as_dictionaries_are_refused(tmp_path: Path) -> None:
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", "2"] * 10))
    parquet.write_table(pa.table({"a": column, "label": LABELS}), tmp_path / "a.parquet")
    assert "column 'a' has the type extension<arrow.json>" in message(DataError, load_data, tmp_path / "a.parquet")


def test_views_of_texts_are_read_as_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for kind in (pa.string_view(), pa.binary_view()):
        column = pa.array(["x" * 200_000] * 18 + ["y"] * 2).cast(pa.binary()).cast(kind)
        parquet.write_table(pa.table({"a": column, "label": LABELS}), path, write_statistics=False)
        assert len(load_data(path).x) == 20
        assert "more than 50 times its size" in message(DataError, load_data, path, max_decompressed=MIB)
