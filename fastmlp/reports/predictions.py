"""Predictions as lines of text, and as CSV, JSON and JSON lines.

A prediction is a dict with the keys that `experiments.prediction.predict_files` describes. For a row that could not be
predicted, because it has missing values, the label is "" and `probabilities` or `values` is empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmlp.errors import ConfigError, printable
from fastmlp.files import json_bytes
from fastmlp.reports.text import csv_text

Prediction = dict[str, Any]
# Inputs with these suffixes have rows; others are single images.
FILES_OF_ROWS = (".csv", ".tsv", ".tab", ".txt", ".data", ".gz", ".parquet", ".pq", ".npz", ".npy", ".safetensors", ".pt")


def as_lines(predictions: Sequence[Prediction], top: int) -> list[str]:
    """Return one line per prediction, with fields separated by tabs.

    The first field is the input, with the row number for `FILES_OF_ROWS`. The label and the probability of each of the
    `top` most probable classes follow or, for regression, the predicted values. Control characters in names of files and
    classes are escaped.

    >>> as_lines([{"input": "a.png", "row": 1, "label": "7", "probability": 0.75, "probabilities": {"7": 0.75}}], 1)
    ['a.png\\t7\\t0.7500']
    """
    return ["\t".join(map(printable, [place(one), *fields(one, top)])) for one in predictions]


def place(one: Prediction) -> str:
    """Return the input of a prediction, followed by the row number for `FILES_OF_ROWS`."""
    several = Path(one["input"]).suffix.lower() in FILES_OF_ROWS
    return f"{one['input']}:{one['row']}" if several else str(one["input"])


def fields(one: Prediction, top: int) -> list[str]:
    """Return the fields that follow the input in a line: one empty field if the row could not be predicted."""
    if "values" in one:
        found = [f"{value:.6g}" for value in one["values"]]
    else:
        found = [text for name, share in list(shares_of(one).items())[:top] for text in (name, f"{share:.4f}")]
    return found or [""]


def shares_of(one: Prediction) -> Mapping[str, float]:
    """Return a dict from class to probability or score, in descending order."""
    shares: Mapping[str, float] = one["probabilities"] if "probabilities" in one else one["scores"]
    return shares


def as_csv(predictions: Sequence[Prediction]) -> bytes:
    """Return the predictions as CSV with a header line.

    The columns are input, row, label, and one column for each class that any prediction contains, in alphabetical order;
    classes that are whole numbers are in numerical order. For regression, the columns after row are the predicted values.
    """
    if any("values" in one for one in predictions):
        width = max(len(one["values"]) for one in predictions)
        names = [f"value_{number}" for number in range(1, width + 1)]
        body = [[one["input"], one["row"], *(one["values"] or [""] * width)] for one in predictions]
    else:
        shown = sorted({name for one in predictions for name in shares_of(one)}, key=class_order)
        names = ["label", *shown]
        body = [[one["input"], one["row"], one["label"], *map(shares_of(one).get, shown)] for one in predictions]
    return csv_text([["input", "row", *names], *body]).encode()


def class_order(name: str) -> tuple[bool, int, str]:
    """Return the sort key of a class name: whole numbers in numerical order, followed by other names in alphabetical order.

    >>> sorted(["b", "10", "a", "2", "-1"], key=class_order)
    ['-1', '2', '10', 'a', 'b']
    """
    number = re.fullmatch("-?[0-9]{1,18}", name)
    return (False, int(name), name) if number else (True, 0, name)


def as_json(predictions: Sequence[Prediction]) -> bytes:
    """Return the predictions as one JSON object, as `fastmlp predict --json` prints it."""
    return json_bytes({"predictions": predictions}, indent=2)


def as_jsonl(predictions: Sequence[Prediction]) -> bytes:
    """Return the predictions as one JSON object per line."""
    return b"".join(map(json_bytes, predictions))


FORMATS: dict[str, Callable[[Sequence[Prediction]], bytes]] = {".csv": as_csv, ".json": as_json, ".jsonl": as_jsonl}


def format_of(path: str | Path) -> Callable[[Sequence[Prediction]], bytes]:
    """Return the function of `FORMATS` for the suffix of a file name; raise ConfigError if there is none.

    >>> format_of("answers.JSONL")([{"input": "a.csv", "row": 1, "values": [0.5]}])
    b'{"input":"a.csv","row":1,"values":[0.5]}\\n'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        *others, last = FORMATS
        raise ConfigError(f"out: the name {str(path)!r} must end with {', '.join(others)} or {last}", settings=("out",))
    return FORMATS[suffix]
