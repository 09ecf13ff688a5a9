"""Text files about predictions: a classification report in scikit-learn's layout, and predictions row by row.

Not here: the figures (metrics.py), the table that `train` prints (tables.py), csv files of `predict` (predictions.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from fastmlp.reports.text import printable

REPORT_NAME = "report.txt"
PREDICTIONS_NAME = "predictions.txt"
HEADINGS = ("precision", "recall", "f1-score", "support")


def classification_report(figures: Mapping[str, Any], digits: int = 2) -> str:
    """The text that `sklearn.metrics.classification_report` gives, from what `metrics.classification_metrics` tells.

    What a terminal would take for a command, line breaks included, is a question mark in our names, as in `print_result`.

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
    rows = [row | {"class": printable(row["class"])} for row in figures["per_class"]]
    total = sum(row["support"] for row in rows)
    width = max(len("weighted avg"), *(len(row["class"]) for row in rows))

    def line(name: str, row: Mapping[str, float], support: int) -> str:
        scores = "".join(f" {row[key]:>9.{digits}f}" for key in ("precision", "recall", "f1"))
        return f"{name:>{width}} {scores} {support:>9}\n"

    head = " " * width + " " + "".join(f" {name:>9}" for name in HEADINGS) + "\n\n"
    classes = "".join(line(row["class"], row, row["support"]) for row in rows)
    accuracy = f"{'accuracy':>{width}} " + " " * 20 + f" {figures['accuracy']:>9.{digits}f} {total:>9}\n"
    averages = "".join(line(f"{name} avg", figures[name], total) for name in ("macro", "weighted"))
    return f"{head}{classes}\n{accuracy}{averages}"


def predictions_text(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], figures: Mapping[str, Any]) -> str:
    """Loss, accuracy, and a line `true,predicted` for each row, by the numbers of the classes, in the order of the rows.

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
