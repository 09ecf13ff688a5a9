"""Results as text: the table that `fastmlp train` prints, the classification report, and the list of predictions."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy.typing as npt

from fastmlp.errors import printable

MOST_CLASSES = 25  # with more classes, the table is truncated and the confusion matrix is drawn without counts
DENSE_CLASSES = 200  # with more classes, confusion matrices are stored in sparse form, and figures show 20 classes
LONGEST_NAME = 28
LONGEST_REPORTED = 100  # maximum number of characters of a class name in a classification report
REPORT_NAME = "report.txt"
PREDICTIONS_NAME = "predictions.txt"
HEADINGS = ("precision", "recall", "f1-score", "support")
# The metrics of a split that tables for human readers show: key, name and format. The mean squared error is left out, since its
# unit is the square of that of the target.
SHOWN_METRICS = {
    "accuracy": ("accuracy", ".4f"),
    "loss": ("loss", ".4g"),
    "r2": ("R²", ".4f"),
    "mae": ("MAE", ".4g"),
    "rmse": ("RMSE", ".4g"),
}


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    r"""Return a name on one line, with control characters escaped, truncated to `longest` characters.

    >>> short_name("a class name that is far too long to be shown"), short_name("two\nlines")
    ('a class name that is far to…', 'two\\nlines')
    """
    clean = printable(name[: longest + 1])
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def print_result(result: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Print the table of `result_table` to a text stream, by default stdout.

    On a terminal, headings are bold unless NO_COLOR is set. Characters that the stream cannot encode are printed as question
    marks, so that an unusual class name does not cause an error at the end of a run.

    Examples
    --------
    >>> print_result({"data": "digits", "seed": 0})
    data set            digits
    seed                0
    """
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = result_table(result, color=shows_bold(stream))
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")


def shows_bold(stream: TextIO) -> bool:
    """Return whether terminal escape codes may be written to a stream: to a terminal, unless NO_COLOR is set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in {"dumb", "unknown"}
    return stream.isatty() and not plain


def result_table(result: Mapping[str, Any], *, color: bool = False) -> str:
    """Return a short table of the results of a run for human readers; result.json contains all results for programs.

    Parameters
    ----------
    result : content of `result.json`: any of `data`, `network`, `test` and `validation` (metrics or None),
        `epochs`, `best_epoch`, `seconds_per_epoch`, `gflops`, `parameters`, `backend`, `threads`, `seed`,
        `settings`, `out`, `features` (a file), and `cnn`, the metrics of the CNN that extracted the features. Absent keys are
        omitted from the table; None is shown as "-".
    color : whether to print headings in bold by means of terminal escape codes

    Returns
    -------
    str
        The table without a final newline: the metrics, then one line per class of the test split, for at most 25 classes.

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
    lines = [f"{bold(f'{name:<20}', color)}{text}" for name, text in _summary(result)]
    test = result.get("test") or {}
    if test.get("per_class"):
        lines += ["", *_class_table(test, color)]
    return "\n".join(lines)


def _summary(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each line above the table of classes."""
    others = {
        "seconds_per_epoch": ("seconds per epoch", ".4g"),
        "gflops": ("GFLOP/s", ".1f"),
        "parameters": ("parameters", ",d"),
        "backend": ("backend", ""),
        "threads": ("threads", "d"),
        "seed": ("seed", "d"),
        "out": ("run folder", ""),
        "features": ("features", ""),
    }
    for key, name in (("data", "data set"), ("network", "network")):
        if key in result:
            yield name, printable(str(result[key]))
    for part in ("test", "validation", "train"):
        figures = result.get(part) or {}
        for key, (name, form) in SHOWN_METRICS.items():
            if key in figures:
                yield f"{part} {name}", _number(figures[key], form)
    if alone := (result.get("cnn") or {}).get("test"):
        yield "CNN alone, test", _number(alone["accuracy"], ".4f")
    if "best_epoch" in result:
        kept = "best epoch" if (result.get("settings") or {}).get("restore_best", True) else "weights of epoch"
        yield kept, f"{_number(result['best_epoch'], 'd')} of {_number(result.get('epochs'), 'd')}"
    for key, (name, form) in others.items():
        if key in result:
            yield name, printable(_number(result[key], form))


def metrics_text(figures: Mapping[str, Any]) -> str:
    """Return the metrics of a split as text.

    >>> metrics_text({"mse": 4.0, "mae": 1.5, "rmse": 2.0, "r2": 0.75})
    'R² 0.7500, MAE 1.5, RMSE 2'
    """
    found = [(name, _number(figures[key], form)) for key, (name, form) in SHOWN_METRICS.items() if key in figures]
    return ", ".join(f"{name} {value}" for name, value in found)


def _class_table(test: Mapping[str, Any], color: bool) -> Iterator[str]:
    """Yield the lines of the table of classes: the heading, one line per class, and the averages."""
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

    yield bold(f"{'class':<{width}}  precision  recall      F1  support", color)
    yield from map(line, shown)
    if len(rows) > len(shown):
        yield f"({len(rows) - len(shown)} more classes; result.json has them all)"
    yield from map(line, averages)


def _number(value: Any, form: str) -> str:
    """Return the formatted value, or "-" for None."""
    return "-" if value is None else format(value, form)


def bold(text: str, color: bool) -> str:
    """Return a text in bold, by means of terminal escape codes, if `color` is true."""
    return f"\x1b[1m{text}\x1b[0m" if color else text


def classification_report(figures: Mapping[str, Any], digits: int = 2, most: int | None = None) -> str:
    """Return the text of `sklearn.metrics.classification_report` for a result of `metrics.classification_metrics`.

    most : maximum number of classes to list; a final line gives the number of omitted classes. None lists all classes

    Unlike in scikit-learn, control characters in class names, such as line breaks, are escaped, and names of more than 100
    characters are truncated.

    >>> import numpy as np
    >>> from fastmlp.models.metrics import classification_metrics
    >>> figures = classification_metrics(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ("cat", "dog"))
    >>> print(classification_report(figures))
                  precision    recall  f1-score   support
    <BLANKLINE>
             cat       1.00      0.50      0.67         2
             dog       0.67      1.00      0.80         2
    <BLANKLINE>
        accuracy                           0.75         4
       macro avg       0.83      0.75      0.73         4
    weighted avg       0.83      0.75      0.73         4
    <BLANKLINE>
    """
    rows = [row | {"class": short_name(row["class"], LONGEST_REPORTED)} for row in figures["per_class"]]
    total = sum(row["support"] for row in rows)
    width = max(len("weighted avg"), *(len(row["class"]) for row in rows))

    def line(name: str, row: Mapping[str, float], support: int) -> str:
        scores = "".join(f" {row[key]:>9.{digits}f}" for key in ("precision", "recall", "f1"))
        return f"{name:>{width}} {scores} {support:>9}\n"

    head = " " * width + " " + "".join(f" {name:>9}" for name in HEADINGS) + "\n\n"
    classes = "".join(line(row["class"], row, row["support"]) for row in rows[:most])
    if most is not None and len(rows) > most:
        classes += f"({len(rows) - most:,} more classes; redirect the output to a file to see all of them)\n"
    accuracy = f"{'accuracy':>{width}} " + " " * 20 + f" {figures['accuracy']:>9.{digits}f} {total:>9}\n"
    averages = "".join(line(f"{name} avg", figures[name], total) for name in ("macro", "weighted"))
    return f"{head}{classes}\n{accuracy}{averages}"


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    r"""Return rows as CSV, each of which is one line. Cells are quoted where necessary; None is an empty cell.

    Control characters in texts, such as tabs and line breaks, are escaped as in error messages, so that a name cannot inject
    rows; JSON preserves the exact names.

    >>> csv_text([["name", "size"], ["a\nb", 1.5], ["c,d", None]])
    'name,size\na\\nb,1.5\n"c,d",\n'
    """
    text = io.StringIO()
    cells = ([printable(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def predictions_text(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], figures: Mapping[str, Any]) -> str:
    """Return a text with the loss, the accuracy, and one line `true,predicted` with two class indices for each row.

    >>> import numpy as np
    >>> print(predictions_text(np.array([9, 2]), np.array([9, 4]), {"loss": 0.75, "accuracy": 0.5}))
    loss 0.75
    accuracy 0.5
    9,9
    2,4
    <BLANKLINE>
    """
    lines = [f"loss {figures['loss']}", f"accuracy {figures['accuracy']}"]
    lines += [f"{true},{said}" for true, said in zip(truth.tolist(), predicted.tolist(), strict=True)]
    return "\n".join(lines) + "\n"
