"""Tests of the table of results, printed on a terminal and to other streams."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest

from fastmlp.models.metrics import classification_metrics
from fastmlp.reports.text import print_result, result_table


def make_result(**changes: Any) -> dict[str, Any]:
    y_true, y_pred = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    part = {"loss": 0.123456, **classification_metrics(y_true, y_pred, ("cat", "a bird"))}
    result: dict[str, Any] = {"data": "pets", "network": "4x8x2", "test": part, "validation": {**part, "loss": 0.5}}
    result |= {"epochs": 28, "best_epoch": 23, "seconds_per_epoch": 0.0123456, "gflops": 123.456}
    result |= {"parameters": 101770, "backend": "numba", "threads": 2, "seed": 0, "out": "runs/a"}
    return result | changes


TABLE = """\
data set            pets
network             4x8x2
test accuracy       0.7500
test loss           0.1235
validation accuracy 0.7500
validation loss     0.5
best epoch          23 of 28
seconds per epoch   0.01235
GFLOP/s             123.5
parameters          101,770
backend             numba
threads             2
seed                0
run folder          runs/a

class             precision  recall      F1  support
cat                  1.0000  0.6667  0.8000        3
a bird               0.5000  1.0000  0.6667        1
macro average        0.7500  0.8333  0.7333        4
weighted average     0.8750  0.7500  0.7667        4"""


def test_table() -> None:
    assert result_table(make_result()) == TABLE


def test_the_epoch_of_the_weights_is_the_best_one_only_if_they_were_restored() -> None:
    assert result_table(make_result(settings={"restore_best": True})) == TABLE
    assert result_table(make_result(settings={})) == TABLE
    kept = TABLE.replace("best epoch          23", "weights of epoch    23")
    assert result_table(make_result(settings={"restore_best": False})) == kept != TABLE


def test_table_of_regression() -> None:
    test = {"loss": 1e-7, "mse": 4e8, "mae": 2.0, "rmse": 20000.6, "r2": None}
    table = result_table(make_result(test=test, validation=None, gflops=None, best_epoch=None))
    expected = ["test loss           1e-07", "test R²             -", "test MAE            2", "test RMSE           2e+04"]
    assert table.splitlines()[2:6] == expected
    assert "best epoch          - of 28" in table
    assert "GFLOP/s             -" in table
    assert table.splitlines()[-1] == "run folder          runs/a"


def test_long_table_is_truncated() -> None:
    y = np.arange(60).repeat(2)
    test = {"loss": 0.0, **classification_metrics(y, y, tuple(f"类{i} " + "x" * i for i in range(60)))}
    lines = result_table(make_result(test=test)).splitlines()
    rows = lines[lines.index("") + 2 :]
    assert [row.split()[0] for row in rows[:25]] == [f"类{i}" for i in range(25)]
    assert rows[25] == "(35 more classes; result.json has them all)"
    assert [row.split()[0] for row in rows[26:]] == ["macro", "weighted"]
    assert max(map(len, lines)) <= 80


class Stream(io.StringIO):
    """In-memory text stream whose method `isatty` returns True."""

    def isatty(self) -> bool:
        return True


def printed(stream: io.StringIO) -> str:
    print_result(make_result(), stream)
    return stream.getvalue()


def test_bold_headings_only_on_capable_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert printed(io.StringIO()) == TABLE + "\n"
    bold = printed(Stream())
    assert "\x1b[1m" in bold
    assert re.sub(r"\x1b\[[0-9]+m", "", bold) == TABLE + "\n"
    monkeypatch.setenv("TERM", "dumb")
    assert printed(Stream()) == TABLE + "\n"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(Stream()) == TABLE + "\n"


def test_stdout_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(make_result())
    assert capsys.readouterr() == (TABLE + "\n", "")


def test_names_contain_no_control_characters_and_fit_the_encoding() -> None:
    result = make_result(data="b\x1b[2Jä\n", out="runs/\x1b[2J\na")
    result["test"]["per_class"][0]["class"] = "\x07鱼\r"
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii", newline="") as stream:
        print_result(result, stream)
        stream.flush()
        lines = raw.getvalue().decode("ascii").splitlines()
    assert lines[0] == r"data set            b\x1b[2J?\n"
    assert lines[16].split()[0] == r"\x07?\r"
    assert len(lines) == len(TABLE.splitlines())
    assert r"run folder          runs/\x1b[2J\na" in lines
