"""Tests of text tables with thousands of columns, which are read in groups of columns so that they take little memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmlp.data.load import load_data
from fastmlp.data.readers import delimited
from fastmlp.errors import DataError

COLUMNS = 2 * delimited.GROUP + 7


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
