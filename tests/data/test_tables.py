"""Tests of the reader of tables: the dialect of text files, the types of columns, and every kind of damage."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from support.data import message as message_of

from fastmlp.data.load import load_data
from fastmlp.data.readers.dialect import find_dialect
from fastmlp.data.readers.table import Table, is_table, read_table
from fastmlp.errors import ConfigError, DataError

message = partial(message_of, DataError)
PLAIN = "kind,size,weight\nfig,1.5,2\nplum,2.5,3\nfig,3.5,4\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


def contents(table: Table) -> tuple[list[str], list[Any]]:
    return table.names, [column.to_pylist() for column in table.columns]


EXPECTED = (["kind", "size", "weight"], [["fig", "plum", "fig"], [1.5, 2.5, 3.5], [2, 3, 4]])
VARIANTS: dict[str, str | bytes] = {
    "plain": PLAIN,
    "no line break at the end": PLAIN.rstrip(),
    "blank lines at the end": PLAIN + "\n\n",
    "blank line inside": PLAIN.replace("plum", "\nplum"),
    "Windows": PLAIN.replace("\n", "\r\n"),
    "old Macintosh": PLAIN.replace("\n", "\r"),
    "byte-order mark": "\ufeff" + PLAIN,
    "UTF-16 with a mark": PLAIN.encode("utf-16"),
    "UTF-16 big-endian with a mark": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-16 without a mark": PLAIN.encode("utf-16-le"),
    "tabs": PLAIN.replace(",", "\t"),
    "semicolons": PLAIN.replace(",", ";"),
    "pipes": PLAIN.replace(",", "|"),
    "decimal commas": PLAIN.replace(",", ";").replace(".", ","),
    "decimal commas and tabs": PLAIN.replace(",", "\t").replace(".", ","),
    "quoted": '"kind","size","weight"\n"fig","1.5","2"\n"plum","2.5","3"\n"fig","3.5","4"\n',
    "spaces": "kind, size , weight\nfig, 1.5, 2\nplum, 2.5, 3\n fig , 3.5, 4\n",
    "gzip": gzip.compress(PLAIN.encode()),
    "gzip of UTF-16": gzip.compress(PLAIN.encode("utf-16")),
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_all_variants_have_the_same_content(file: Path, kind: str) -> None:
    assert contents(read_table(write(file, VARIANTS[kind]))) == EXPECTED


def test_a_table_without_header_has_numbered_columns(file: Path) -> None:
    table = read_table(write(file, PLAIN.partition("\n")[2]))
    assert contents(table) == (["column 1", "column 2", "column 3"], EXPECTED[1])


def test_quoted_cells_may_have_delimiters_quotes_and_line_breaks(file: Path) -> None:
    table = read_table(write(file, 'text,n\n"a, ""b""",1\n"two\nlines",2\nplain,3\n'))
    assert contents(table) == (["text", "n"], [['a, "b"', "two\nlines", "plain"], [1, 2, 3]])


def test_decimal_commas_after_the_start_of_the_file_are_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.data.readers.dialect.FEW_ROWS", 3)
    table = read_table(write(file, "a;b\n1;x\n2;y\n3,5;z\n"))
    assert table.floats(0).tolist() == [1, 2, 3.5]


def test_columns_may_have_points_or_commas(file: Path) -> None:
    table = read_table(write(file, "a;b;c\n1.5;2,5;1.5\n2.5;3,5;2,5\n"))
    assert contents(table) == (["a", "b", "c"], [[1.5, 2.5], [2.5, 3.5], ["1.5", "2,5"]])


@pytest.mark.parametrize("cells", ["+5,+6", "5  ,6", "  NA,5,6", "NA ,5,6"])
def test_numbers_and_missing_values_with_spaces_or_signs(file: Path, cells: str) -> None:
    table = read_table(write(file, "a,b\n" + "".join(f"{cell},1\n" for cell in cells.split(","))))
    assert not table.is_text(0)
    assert table.floats(0)[-2:].tolist() == [5, 6]


def test_large_integers_are_rounded(file: Path) -> None:
    table = read_table(write(file, "id,b\n9223372036854775807,1\n18446744073709551615,2\n12,3\n"))
    assert table.floats(0).tolist() == [2.0**63, 2.0**64, 12]


def test_columns_that_are_read_as_text(file: Path) -> None:
    for text, texts in (("code,n\n01,1\n02,2\n", {"code"}), ("01,1\n02,2\n", {"column 1"})):
        write(file, text)
        assert read_table(file, texts=lambda count, texts=texts: texts).columns[0].to_pylist() == ["01", "02"]
        assert read_table(file).floats(0).tolist() == [1, 2]


def test_a_very_long_cell(file: Path) -> None:
    write(file, "a;" + "b" * 200_000 + "\n1;2\n")
    assert "the first row cannot be read with the delimiter ','" in message(read_table, file, delimiter=",")


def test_a_byte_that_is_not_utf_8_after_the_start(file: Path) -> None:
    write(file, b"a,b\n" + b"x,1\n" * 200_000 + b"\xe9,2\n")
    assert "not text in UTF-8 or UTF-16 (byte 0xe9)" in message(read_table, file)


@pytest.mark.parametrize("missing", ["", "?", "NA", "N/A", "nan", "NaN", "null", "NULL", "None", "#N/A", " ?", '""'])
def test_missing_values(file: Path, missing: str) -> None:
    table = read_table(write(file, f"kind,size\nfig,1\n{missing},{missing}\nplum,2\n"))
    assert contents(table) == (["kind", "size"], [["fig", None, "plum"], [1, None, 2]])
    assert table.missing(0).tolist() == table.missing(1).tolist() == [False, True, False]
    assert table.missing_counts == [1, 1]


def test_types_of_columns(file: Path) -> None:
    text = "i,f,b,t,d,e\n1,1.5,true,x,2024-01-31,1e3\n-2,2,false,y,2024-02-01,5\n"
    table = read_table(write(file, text))
    assert [str(column.type) for column in table.columns] == ["int64", "double", "bool", "string", "string", "double"]
    assert table.columns[4].to_pylist() == ["2024-01-31", "2024-02-01"]
    assert table.floats(2).tolist() == [1, 0]


HEADERS = {
    "names": ("a,b\n1,2\n3,4\n", True),
    "numbers": ("1,2\n3,4\n", False),
    "texts above texts": ("shape,color\nround,red\nflat,red\n", True),
    "texts that occur below": ("p,x\ne,x\np,y\n", False),
    "texts and numbers that occur below": ("1,a\n2,b\n3,a\n", False),
    "columns of pandas": ("0,1,2,3,4\n7,8,9,10,11\n", True),
    "index and columns of pandas": (",0,1\n0,5,6\n1,7,8\n", True),
    "label and columns of pandas": ("label,0,1,2,3\n7,8,9,10,11\n", True),
    "names of pixels": ("label,1x1,1x2\n7,8,9\n", True),
    "small numbers": ("0,1,2\n3,4,5\n", False),
    "missing cells": ("?,1\n2,3\n", False),
    "an empty name": ("a,,b\n1,2,3\n", True),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_header(file: Path, kind: str) -> None:
    text, header = HEADERS[kind]
    assert find_dialect(write(file, text)).header is header


@pytest.mark.parametrize("text", ["country,2019,2020\nFR,1,2\nDE,3,4\n", "cat,2,3\ndog,2,3\n", "1,2,x\n1,2,3\n"])
def test_a_first_row_that_may_be_a_header_or_data_is_an_error(file: Path, text: str) -> None:
    assert "line 1 starts with" in message(read_table, write(file, text))
    assert read_table(file, header=True).rows == text.count("\n") - 1
    assert read_table(file, header=False).rows == text.count("\n")


@pytest.mark.parametrize(("given", "used"), [("tab", "\t"), (r"\t", "\t"), ("semicolon", ";"), (":", ":"), ("space", " ")])
def test_a_given_delimiter_is_used(file: Path, given: str, used: str) -> None:
    write(file, f"a{used}b\n1{used}2\n")
    assert contents(read_table(file, delimiter=given)) == (["a", "b"], [[1], [2]])


@pytest.mark.parametrize("given", ["", "::", '"', "\n"])
def test_a_delimiter_is_one_character(file: Path, given: str) -> None:
    assert "delimiter must be a single ASCII character" in message_of(
        ConfigError, read_table, write(file, PLAIN), delimiter=given
    )


def test_the_name_decides_what_is_a_table() -> None:
    names = ["a.csv", "b.TSV", "c.csv.gz", "d.parquet", "e.txt", "f.pq"]
    assert [is_table(Path(name)) for name in [*names, "g.npz", "h.gz", "i"]] == [True] * 6 + [False] * 3


DAMAGE: dict[str, tuple[str | bytes, str]] = {
    "empty file": ("", "the file has no rows"),
    "spaces only": ("\n \n", "the file has no rows"),
    "one column": ("a\n1\n2\n", "only one column was found; set the delimiter"),
    "header only": ("a,b\n", "no rows of data"),
    "header and blank lines": ("a,b\n\n\n", "no rows of data"),
    "short line": ("a,b,c\n1,2,3\n1,2\n", "line 3 has 2 columns, but the first row has 3"),
    "short line after a blank one": ("a,b,c\n\n1,2,3\n1,2\n", "line 4 has 2 columns, but the first row has 3"),
    "short line after a cell of two lines": ('a,b,c\n"x\ny",2,3\n1,2\n', "line 4 has 2 columns, but the first row has 3"),
    "long line": ("a,b,c\n1,2,3\n1,2,3,4\n", "line 3 has 4 columns, but the first row has 3"),
    "header of another width": ("a,b\n1,2,3\n", "line 2 has 3 columns, but the first row has 2"),
    "line of spaces": ("a,b\n1,2\n  \n3,4\n", "line 3 contains only spaces"),
    "open quotation mark": ('a,b\n1,"2\n3,4\n', "check the quotation marks"),
    "two columns of the same name": ("a,b, a\n1,2,3\n", "two columns have the name 'a'"),
    "zero byte": ("a,b\n1,\0\n", "not a text file"),
    "Latin-1": ("label,Größe\n1,2\n".encode("latin-1"), "not text in UTF-8 or UTF-16 (byte 0xf6); save it as UTF-8"),
    "half a gzip file": (gzip.compress(PLAIN.encode())[:40], "damaged gzip file"),
    "damaged gzip file": (gzip.compress(PLAIN.encode())[:-8] + bytes(8), "damaged gzip file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "a.csv"),
    "half a Parquet file": (b"PAR1" + bytes(20), "not a readable Parquet file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_reported(file: Path, kind: str) -> None:
    content, expected = DAMAGE[kind]
    text = message(read_table, write(file, content))
    assert str(file) in text
    assert expected in text


def test_a_fault_in_a_long_file_is_reported_by_its_line(file: Path) -> None:
    lines = ["a,b,c", *["1,2,3"] * 300_000, "1,2", *["1,2,3"] * 10]
    assert f"{file}: line 300002 has 2 columns" in message(read_table, write(file, "\n".join(lines)))


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in message(load_data, tmp_path / "a.csv")


# ------------------------------------------------------------------------------------------------ Parquet


def parquet(path: Path, **columns: Any) -> Path:
    pa.parquet.write_table(pa.table(columns), path)
    return path


def test_parquet(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        text=pa.array(["x", None, " y "]).dictionary_encode(),
        small=pa.array([1, 2, 3], pa.uint8()),
        half=pa.array(np.array([0.5, 1, 2], np.float16)),
        large=pa.array([1.0, None, float("nan")], pa.float64()),
        yes=pa.array([True, False, None]),
    )
    table = read_table(path)
    assert [str(column.type) for column in table.columns] == ["string", "int64", "double", "double", "bool"]
    assert table.missing_counts == [1, 0, 0, 2, 1]
    assert table.columns[0].to_pylist() == ["x", None, "y"]
    assert table.location(1) == f"{path}: row 2"


def test_the_index_of_a_pandas_frame_in_a_parquet_file_is_not_a_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": range(30), "b": range(30)}).sample(frac=1, random_state=0)
    frame.to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").names == ["a", "b"]


def test_columns_of_other_types(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", a=[[1, 2], [3]], b=[1, 2])
    assert "column 'a' has the type list<" in message(read_table, path)


def test_parquet_is_recognized_by_its_content(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.csv", y=[1.5, 2.5], x=[3, 4])
    assert load_data(path, target="y").x.tolist() == [[3], [4]]


def test_locations_are_lines(file: Path) -> None:
    table = read_table(write(file, 'a,b\n"two\nlines",1\n\nx,2\n'))
    assert [table.location(row) for row in range(2)] == [f"{file}: line 2", f"{file}: line 5"]
    assert table.take(np.array([1])).location(0) == f"{file}: line 5"


# ------------------------------------------------------------------------------------------------ large files


LARGE = {
    "numbers": ("a,b\n" + "1,2.5\n" * 20, ["int64", "double"]),
    "fractions after whole numbers": ("a,b\n" + "1,2.5\n" * 20 + "1.5,3\n", ["double", "double"]),
    "text after numbers": ("a,b\n" + "1,2.5\n" * 20 + "x,3\n", ["string", "double"]),
    "text after Booleans": ("a,b\n" + "true,2.5\n" * 20 + "x,3\n", ["string", "double"]),
    "numbers after missing values": ("a,b\n" + ",2.5\n" * 20 + "1,3\n", ["int64", "double"]),
    "text after missing values": ("a,b\n" + ",2.5\n" * 20 + "x,3\n", ["string", "double"]),
    "dates": ("a,b\n" + "2024-01-31,2.5\n" * 20 + "x,3\n", ["string", "double"]),
    "a cell of two lines at the end": ("a,b\n" + "x,2.5\n" * 20 + '"y\nz",3\n', ["string", "double"]),
    "a cell of two lines at the start": ('a,b\n"y\nz",3\n' + "x,2.5\n" * 20, ["string", "double"]),
    "no header": ("1,2.5\n" * 20 + "1.5,3\n", ["double", "double"]),
    "decimal commas": ("a;b\n" + "1;2,5\n" * 20 + "1,5;3\n", ["double", "double"]),
    "missing values with spaces": ("a,b\n" + "1,2.5\n" * 20 + " NA, ?\n", ["int64", "double"]),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("kind", LARGE)
def test_types_of_large_files_do_not_depend_on_their_start(
    file: Path, kind: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, types = LARGE[kind]
    write(file, text.encode(encoding))
    small = read_table(file)
    monkeypatch.setattr("fastmlp.data.readers.delimited.SMALL", 40)
    large = read_table(file)
    assert [str(column.type) for column in large.columns] == types
    assert [str(column.type) for column in small.columns] == types
    assert contents(small) == contents(large)


def test_faults_of_large_files(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.data.readers.delimited.SMALL", 40)
    write(file, "a,b\n" + "1,2.5\n" * 20 + "1.5\n" + "x,2\n")
    assert "line 22 has 1 columns, but the first row has 2" in message(read_table, file)


def test_times_are_read_as_written(file: Path) -> None:
    table = read_table(write(file, "time,date,n\n08:00,2024-01-31T10:00:00,1\n12:00,2024-02-01T10:00:00,2\n"))
    assert contents(table)[1] == [["08:00", "12:00"], ["2024-01-31T10:00:00", "2024-02-01T10:00:00"], [1, 2]]


@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_a_comma_that_may_separate_thousands_is_an_error(file: Path, delimiter: str) -> None:
    write(file, f"a{delimiter}b\n1,234{delimiter}1\n950{delimiter}2\n")
    assert "column 'a' has numbers such as 1,234, whose comma may separate thousands or decimals" in message(read_table, file)
    write(file, f"a{delimiter}b\n0,125{delimiter}1\n1,250{delimiter}2\n")
    assert read_table(file).floats(0).tolist() == [0.125, 1.25]


def test_a_row_that_is_longer_than_a_block(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.data.readers.delimited.BLOCK", 10)
    monkeypatch.setattr("fastmlp.data.readers.delimited.SMALL", 10)
    row = ",".join(["123456"] * 50)
    assert read_table(write(file, f"{row}\n{row}\n")).rows == 2


@pytest.mark.parametrize(("option", "value"), [("delimiter", ";"), ("header", True)])
def test_options_of_text_are_refused_for_parquet(tmp_path: Path, option: str, value: Any) -> None:
    path = parquet(tmp_path / "a.parquet", a=[1, 2], b=[3, 4])
    assert f"{option} is for text files" in message_of(ConfigError, read_table, path, **{option: value})
