"""Test of the benchmark of reading a .csv file, with a small table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import read_table


@pytest.mark.full
def test_all_readers_are_measured() -> None:
    result = read_table.run(300, 4, 1)
    assert set(result["readers"]) == set(read_table.READERS)
    assert result["table_bytes"] == 300 * 4 * 8
    assert all(one["seconds"]["least"] > 0 for one in result["readers"].values())
    assert "fastmlp / pyarrow: " in read_table.report(result)


def test_different_arrays_are_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastmlp

    read_table.write_table(tmp_path / "a.csv", 50, 4)
    read_table.check_same(tmp_path / "a.csv")
    data = fastmlp.load_data(tmp_path / "a.csv")
    data.x[3, 1] += 1
    monkeypatch.setattr(fastmlp, "load_data", lambda path: data)
    with pytest.raises(AssertionError, match="column 1"):
        read_table.check_same(tmp_path / "a.csv")
