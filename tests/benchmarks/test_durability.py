"""The command benchmarks.durability: its results, and its exit status if something was lost.

Its parts are tested in tests/experiments/test_faults.py and test_killed.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.durability import __main__ as command
from benchmarks.durability.moments import summary_of_kills, summary_of_signals
from fastmlp.files import read_json


def test_the_parts_are_written_to_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "durability.json"
    monkeypatch.setitem(command.PARTS, "kills", lambda folder, options: ({"kills": options.kills}, []))
    monkeypatch.setitem(command.PARTS, "power", lambda folder, options: ({"states": 3}, ["a checkpoint is lost"]))
    command.main(["--parts", "kills", "--kills", "7", "--out", str(out)])
    assert capsys.readouterr().out == "nothing was lost\n"
    with pytest.raises(SystemExit) as ended:
        command.main(["--parts", "power", "--out", str(out)])
    assert ended.value.code == 1
    assert capsys.readouterr().out == "a checkpoint is lost\n"
    found = read_json(out)
    assert [(name, part["lost"]) for name, part in found.items()] == [("kills", []), ("power", ["a checkpoint is lost"])]
    assert found["kills"]["kills"] == 7
    assert found["kills"].keys() > {"machine", "versions", "seed"}


def test_only_kills_at_a_call_count_as_kills_while_saving() -> None:
    """At a random time in the phase "result", the model may be evaluated."""
    row = {"run": "a", "kills_before": 0, "at": "a call", "phase": "checkpoint", "repeated": 1}
    rows = [row, row | {"phase": "result", "kills_before": 1}, row | {"at": "a random time"}, row | {"phase": "training"}]
    found = summary_of_kills(rows)
    assert (found["kills"], found["while_saving"], found["of_resumed_runs"]) == (4, 2, 1)
    assert found["repeated_epochs"] == {1: 4}
    assert found["phases"]["checkpoint, at a random time"] == 1


def test_latencies_by_moment() -> None:
    row = {"run": "a", "signal": "SIGINT", "cold": True, "phase": "compilation", "latency": 3.0}
    rows = [row, row | {"phase": "checkpoint", "latency": 1.0}, row | {"phase": "training", "latency": 0.25}]
    found = summary_of_signals([*rows, row | {"phase": "result", "latency": 0.1}])
    assert found["latency"] == {
        "while a kernel is compiled or loaded": {"signals": 1, "median": 3.0, "most": 3.0},
        "during the training": {"signals": 2, "median": 0.625, "most": 1.0},
        "at other moments": {"signals": 1, "median": 0.1, "most": 0.1},
    }
    assert found["signals"] == 4
