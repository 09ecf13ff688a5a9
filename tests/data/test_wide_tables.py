"""Tests of text tables with thousands of columns, which are read in groups of columns so that they take little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest
from support.data import message

from fastmlp.data.load import load_data
from fastmlp.data.readers import delimited
from fastmlp.data.readers.table import read_table
from fastmlp.errors import DataError

COLUMNS = 2 * delimited.GROUP + 7
ROWS = ["a,b,c,,e", "1,NA,x,08:00,true", "2,1.5,NA,09:30,false", ",+2,y,10:15,", '4,3,"z, z",11:00,true']
TEXTS = {
    "header": "\n".join(ROWS) + "\n",
    "no header": "\n".join(ROWS[1:]) + "\n",
    "empty lines": "\n\n" + "\n\n".join(ROWS) + "\n",
    "line breaks in cells": "\n".join(ROWS).replace("z, z", "z\nz") + "\n",
    "types that change": "\n".join([*ROWS[:2], *[ROWS[1]] * 70_000, "1.5,word,3,4,5"]) + "\n",
    "one row": ROWS[1],
}


def write_wide(path: Path, names: list[str] | None, columns: int = COLUMNS) -> np.ndarray:
    """Write a table of small integers with a class label in the last column; return the values without it."""
    values = np.arange(5 * (columns - 1)).reshape(5, -1) % 97
    lines = [",".join([*map(str, row), "ab"[index % 2]]) for index, row in enumerate(values.tolist())]
    path.write_text("\n".join([*([",".join(names)] if names else []), *lines, ""]))
    return values


@pytest.mark.parametrize("header", [True, False])
def test_groups_of_columns_give_the_same_table(header: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "wide.csv", []
    values = write_wide(path, [f"c{index}" for index in range(COLUMNS)] if header else None)
    original = delimited.in_groups
    monkeypatch.setattr(
        delimited, "in_groups", lambda names, read: original(names, lambda chosen: (calls.append(chosen), read(chosen))[1])
    )
    data = load_data(path)
    np.testing.assert_array_equal(data.x[:], values)
    assert data.classes == ("a", "b")
    assert [len(chosen) for chosen in calls] == [delimited.GROUP, delimited.GROUP, 7]


def test_a_table_of_few_columns_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "narrow.csv", []
    values = write_wide(path, None, columns=9)
    original = delimited.in_groups
    monkeypatch.setattr(
        delimited, "in_groups", lambda names, read: original(names, lambda chosen: (calls.append(chosen), read(chosen))[1])
    )
    np.testing.assert_array_equal(load_data(path).x[:], values)
    assert calls == [None]


def test_columns_without_names_of_a_wide_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    write_wide(path, ["", "", *(f"c{index}" for index in range(COLUMNS - 2))])
    with pytest.raises(DataError, match=r"wide.csv: 4,007 columns, of which several have no name; name all columns"):
        load_data(path)


@pytest.mark.parametrize("kind", TEXTS)
def test_groups_of_columns_have_the_types_of_the_whole_table(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(TEXTS[kind])
    header = kind not in ("no header", "one row")
    whole = read_table(path, header=header)
    groups = []
    read_csv = pyarrow.csv.read_csv

    def read(*arguments: Any) -> Any:
        groups.append(arguments[3].include_columns)
        return read_csv(*arguments)

    monkeypatch.setattr(pyarrow.csv, "read_csv", read)
    monkeypatch.setattr(delimited, "GROUP", 2)
    found = read_table(path, header=header)
    assert found.names == whole.names
    assert [column.type for column in found.columns] == [column.type for column in whole.columns]
    assert [column.to_pylist() for column in found.columns] == [column.to_pylist() for column in whole.columns]
    assert groups and all(1 <= len(group) <= 2 for group in groups)


def test_an_error_in_a_wide_table_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n".join([*ROWS, "1,2"]))
    monkeypatch.setattr(delimited, "GROUP", 2)
    assert message(DataError, read_table, path).startswith(f"{path}: line 6 has 2 columns, but the first row has 5; ")


def test_long_rows_are_read_in_large_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of a column needs memory besides its values."""
    path = tmp_path / "a.csv"
    path.write_text((",".join(["1.23456789"] * 1900) + "\n") * 250)
    table = read_table(path, header=False)
    assert len(table.columns[0]) == 250 and table.columns[0].num_chunks <= 2
    monkeypatch.setattr(delimited, "LONG_BLOCK", 0)
    assert read_table(path, header=False).columns[0].num_chunks > 2
