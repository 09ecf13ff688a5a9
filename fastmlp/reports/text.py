"""The table that `train` prints when it is done.

Here: `print_result`, `result_table`, and names of classes short enough to show. Not here: the figures themselves
(metrics.py), the pictures (report.py) and the live display (progress.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

MOST_CLASSES = 25  # beyond, the table is cut, and the cells of the picture are too small for numbers
LONGEST_NAME = 28


def printable(text: str) -> str:
    """Text on one line, without control characters that could move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """A class name on one line, cut to 28 characters, or so many, so that it leaves room for the figures.

    >>> short_name("a class name that is far too long to be shown")
    'a class name that is far to…'
    """
    clean = printable(name)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def print_result(result: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Print `result_table` to a text stream (None: stdout); headings are bold on a terminal unless NO_COLOR is set.

    A character that the stream's encoding lacks becomes a question mark: a name must not cost a finished run.

    Examples
    --------
    >>> print_result({"data": "digits", "seed": 0})
    data set            digits
    seed                0
    """
    stream = sys.stdout if stream is None else stream
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in {"dumb", "unknown"}
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = result_table(result, color=stream.isatty() and not plain)
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")


def result_table(result: Mapping[str, Any], *, color: bool = False) -> str:
    """The short table that ends a training, for people; programs read the JSON.

    Parameters
    ----------
    result : what `result.json` holds: any of `data`, `network`, `test` and `validation` (metrics or None),
        `epochs`, `best_epoch`, `seconds_per_epoch`, `gflops`, `parameters`, `backend`, `threads`, `seed`,
        `out`, and `cnn`, the figures of the network that made the features; what is absent is left out, None shows as -
    color : bold headings, by terminal codes

    Returns
    -------
    str
        Lines without a final newline: figures, then a row per class (at most 25) of the test part.

    Examples
    --------
    >>> row = {"class": "cat", "precision": 1.0, "recall": 0.5, "f1": 0.6667, "support": 2}
    >>> mean = {"precision": 1.0, "recall": 0.5, "f1": 0.6667}
    >>> test = {"accuracy": 0.5, "loss": 0.25, "per_class": [row], "macro": mean, "weighted": mean}
    >>> print(result_table({"data": "pets", "test": test, "epochs": 9, "best_epoch": 4}))
    data set            pets
    test accuracy       0.5000
    test loss           0.25
    best epoch          4 of 9
    <BLANKLINE>
    class             precision  recall      F1  support
    cat                  1.0000  0.5000  0.6667        2
    macro average        1.0000  0.5000  0.6667        2
    weighted average     1.0000  0.5000  0.6667        2
    """
    lines = [f"{_bold(f'{name:<20}', color)}{text}" for name, text in _summary(result)]
    test = result.get("test") or {}
    if test.get("per_class"):
        lines += ["", *_class_table(test, color)]
    return "\n".join(lines)


def _summary(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of each line above the table of classes."""
    metrics = {"accuracy": ".4f", "loss": ".4g", "mse": ".4g", "mae": ".4g", "r2": ".4f"}
    others = {
        "seconds_per_epoch": ("seconds per epoch", ".4g"),
        "gflops": ("GFLOP/s", ".1f"),
        "parameters": ("parameters", ",d"),
        "backend": ("backend", ""),
        "threads": ("threads", "d"),
        "seed": ("seed", "d"),
        "out": ("run folder", ""),
    }
    for key, name in (("data", "data set"), ("network", "network")):
        if key in result:
            yield name, printable(str(result[key]))
    for part in ("test", "validation", "train"):
        figures = result.get(part) or {}
        for key, form in metrics.items():
            if key in figures:
                yield f"{part} {key}", _number(figures[key], form)
    if alone := (result.get("cnn") or {}).get("test"):
        yield "CNN alone, test", _number(alone["accuracy"], ".4f")
    if "best_epoch" in result:
        yield "best epoch", f"{_number(result['best_epoch'], 'd')} of {_number(result.get('epochs'), 'd')}"
    for key, (name, form) in others.items():
        if key in result:
            yield name, _number(result[key], form)


def _class_table(test: Mapping[str, Any], color: bool) -> Iterator[str]:
    """Heading, classes, and averages, in columns."""
    from rich.cells import cell_len

    rows = [{**row, "class": short_name(row["class"])} for row in test["per_class"]]
    total = sum(row["support"] for row in rows)
    averages = [{**test[kind], "class": f"{kind} average", "support": total} for kind in ("macro", "weighted")]
    shown = rows[:MOST_CLASSES]
    width = max(cell_len(row["class"]) for row in [*shown, *averages])

    def line(row: Mapping[str, Any]) -> str:
        space = " " * (width - cell_len(row["class"]))
        figures = f"{row['precision']:11.4f}{row['recall']:8.4f}{row['f1']:8.4f}{row['support']:9,d}"
        return f"{row['class']}{space}{figures}"

    yield _bold(f"{'class':<{width}}  precision  recall      F1  support", color)
    yield from map(line, shown)
    if len(rows) > len(shown):
        yield f"({len(rows) - len(shown)} more classes; result.json and --json have them all)"
    yield from map(line, averages)


def _number(value: Any, form: str) -> str:
    """A value in its format; - if there is none."""
    return "-" if value is None else format(value, form)


def _bold(text: str, color: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if color else text
