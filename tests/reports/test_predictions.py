"""Tests of predictions as text, CSV, JSON and JSON lines, also for rows that could not be predicted."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from fastmlp.errors import ConfigError, printable
from fastmlp.reports.predictions import as_lines, format_of

LABELS: list[dict[str, Any]] = [
    {"input": "a.csv", "row": 1, "label": "yes", "probability": 0.75, "probabilities": {"yes": 0.75, "no": 0.25}},
    {"input": "a.csv", "row": 2, "label": "", "probability": None, "probabilities": {}, "note": "missing values"},
    {"input": 'b, "c".png', "row": 1, "label": "no", "probability": 1.0, "probabilities": {"no": 1.0}},
]
SCORES: list[dict[str, Any]] = [{"input": "a.npz", "row": 1, "label": "é", "score": 2.0, "scores": {"é": 2.0, "b": -1.0}}]
VALUES: list[dict[str, Any]] = [
    {"input": "a.csv", "row": 1, "values": []},
    {"input": "a.csv", "row": 2, "values": [0.1, -1e30]},
]
ALL = {"labels": LABELS, "scores": SCORES, "values": VALUES}


def test_lines() -> None:
    assert as_lines(LABELS, 2) == ["a.csv:1\tyes\t0.7500\tno\t0.2500", "a.csv:2\t", 'b, "c".png\tno\t1.0000']
    assert as_lines(SCORES, 1) == ["a.npz:1\té\t2.0000"]
    assert as_lines(VALUES, 1) == ["a.csv:1\t", "a.csv:2\t0.1\t-1e+30"]


def table(predictions: list[dict[str, Any]]) -> list[list[str]]:
    return list(csv.reader(format_of("a.csv")(predictions).decode().splitlines()))


def test_csv_has_a_column_per_class_or_value() -> None:
    assert table(LABELS) == [
        ["input", "row", "label", "no", "yes"],
        ["a.csv", "1", "yes", "0.25", "0.75"],
        ["a.csv", "2", "", "", ""],
        ['b, "c".png', "1", "no", "1.0", ""],
    ]
    assert table(SCORES) == [["input", "row", "label", "b", "é"], ["a.npz", "1", "é", "-1.0", "2.0"]]
    assert table(VALUES) == [["input", "row", "value_1", "value_2"], ["a.csv", "1", "", ""], ["a.csv", "2", "0.1", "-1e+30"]]


def test_names_are_escaped_and_json_has_the_exact_ones() -> None:
    """A tab or a line break in a name of a file or of a class forms neither a field nor a line."""
    file, label = "a\tb\nc\x1b]0;title\x07\udcff.csv", "no\t1\nforged\x9b\u202e"
    one = {"input": file, "row": 1, "label": label, "probability": 1.0, "probabilities": {label: 1.0}}
    assert as_lines([one], 1) == [f"{printable(file)}:1\t{printable(label)}\t1.0000"]
    assert table([one]) == [["input", "row", "label", printable(label)], [printable(file), "1", printable(label), "1.0"]]
    exact = one | {"input": file.replace("\udcff", "")}
    for name in ("a.json", "a.jsonl"):
        content = format_of(name)([exact]).decode()
        assert all(line == printable(line) for line in content.split("\n"))
        assert json.loads(content) in (exact, {"predictions": [exact]})


@pytest.mark.parametrize("kind", ALL)
def test_json_and_json_lines_have_all_keys(kind: str) -> None:
    predictions = ALL[kind]
    assert json.loads(format_of("a.json")(predictions)) == {"predictions": predictions}
    lines = format_of("folder.csv/a.JsonL")(predictions).decode().splitlines()
    assert [json.loads(line) for line in lines] == predictions


@pytest.mark.parametrize("name", ["labels", "labels.txt", "labels.csv.gz", ".csv"])
def test_another_suffix_is_refused_with_the_possible_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must end with \.csv, \.json or \.jsonl") as caught:
        format_of(name)
    assert name in str(caught.value)
    assert caught.value.settings == ("out",)
