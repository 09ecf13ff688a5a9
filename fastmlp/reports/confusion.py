"""Plot the confusion matrix of a final result, and the accuracy and confusion matrices of the classes over the epochs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DataError
from fastmlp.reports.style import COLORS, GREY, MARKERS, class_legend, epoch_axis, new_figure, own_style, save
from fastmlp.reports.text import MOST_CLASSES, short_name

MATRICES = 5  # number of confusion matrices below the curves per class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text


def plot_confusion(
    confusion: Sequence[Sequence[int]],
    classes: Sequence[str],
    path: str | os.PathLike[str],
    title: str = "Confusion matrix",
) -> None:
    """Write a PNG file of a confusion matrix. The colour of each cell shows its count as a fraction of the row sum.

    Parameters
    ----------
    confusion : (k, k) counts, with one row per true class and one column per predicted class. For at most 25 classes, the
        counts are written into the cells.
    classes : k class names; long names are truncated
    path : file to write; it is replaced atomically
    title : title of the figure, to which the accuracy and the number of rows are appended

    Raises
    ------
    DataError
        The shape of the matrix does not match the number of names, or the file could not be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_confusion([[5, 1], [0, 4]], ["cat", "dog"], pathlib.Path(folder, "confusion.png"))
    ...     print(pathlib.Path(folder, "confusion.png").read_bytes()[1:4])
    b'PNG'
    """
    counts = np.asarray(confusion)
    if counts.shape != (len(classes), len(classes)) or counts.size == 0:
        raise DataError(
            f"confusion matrix of shape {counts.shape} with {len(classes)} classes; pass a (k, k) matrix and k names"
        )
    with own_style():
        save(_confusion_figure(counts, [short_name(name) for name in classes], title), path)


def _confusion_figure(counts: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Return a figure of the confusion matrix `counts` (k, k) with class names and a colour bar, and counts if they fit."""
    from matplotlib.colors import PowerNorm
    from rich.cells import cell_len  # counts wide characters, such as Chinese ones, twice

    k, total = len(counts), int(counts.sum())
    side = max(3.6, 0.45 * k) if k <= MOST_CLASSES else min(11.0, 0.2 * k + 3)  # side of the matrix, in inches
    cell = 72 * side / k  # side of a cell, in points
    if total:
        title += f": accuracy {np.trace(counts) / total:.4f}, {total:,} rows"
    font = float(np.clip(0.8 * cell, 5, 9))  # font size of the names, in points
    longest = max(cell_len(name) for name in names) * 0.62 * font
    figure = new_figure(side + longest / 72 + 2, side + longest / 72 + 1.2, title)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The colour depends on the square root of the fraction, so that fractions as small as 1 % are visible.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    if k <= MOST_CLASSES:
        _write_counts(axes, counts, image.to_rgba(shares), cell)
    places = range(0, k, math.ceil(1.2 * font / cell))  # with many classes, only every n-th is labelled
    labels = [names[i] for i in places]
    axes.set_xticks(places, labels, fontsize=font, parse_math=False)
    axes.set_yticks(places, labels, fontsize=font, parse_math=False)
    if longest > 0.9 * cell * places.step:  # the labels would overlap
        _tilt(axes.get_xticklabels(), 45 if k <= MOST_CLASSES else 90)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.15 / side, 0, 0.16 / side, 1)))
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("fraction of the true class")
    return figure


def _tilt(labels: Sequence[Text], degrees: int) -> None:
    """Rotate the labels below an axis so that the end of each label is at its tick."""
    for label in labels:
        label.set(rotation=degrees, ha="right", va="top" if degrees == 45 else "center", rotation_mode="anchor")


def _write_counts(axes: Axes, counts: NDArray[np.int64], colors: NDArray[np.float64], cell: float) -> None:
    """Write the counts (k, k) into cells with the given colours (k, k, 4), in black or white, whichever has more contrast."""
    digits = len(str(counts.max()))
    size = min(10.0, 0.85 * cell / (0.64 * digits))
    for (i, j), count in np.ndenumerate(counts):
        ink = GREY if count == 0 else _readable(colors[i, j])
        text = axes.text(j, i, str(count), ha="center", va="center", color=ink, fontsize=size)
        text.set_in_layout(False)  # the font size ensures that the text fits its cell


def _readable(color: NDArray[np.float64]) -> str:
    """Return "black" or "white", whichever has more contrast on a colour (WCAG 2.1, relative luminance)."""
    linear = np.where(color[:3] <= 0.04045, color[:3] / 12.92, ((color[:3] + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"


def plot_classes(measured: Sequence[Mapping[str, Any]], classes: Sequence[str], path: Path) -> None:
    """Write a PNG file with the accuracy of each class over the epochs, and the confusion matrices of up to 5 epochs.

    Parameters
    ----------
    measured : one dict per evaluated epoch with the keys `epoch` and "validation" (or "train", without a validation split).
        The latter holds the result of `metrics.classification_metrics`. The accuracy of a class is its recall.
    classes : class names; only the first 25 classes have curves, and classes without rows in the split have none
    path : file to write; it is replaced atomically

    Raises
    ------
    DataError
        The file could not be written.
    """
    part = "validation" if "validation" in measured[0] else "train"
    places = sorted({round(at) for at in np.linspace(0, len(measured) - 1, MATRICES)})
    with own_style():
        figure = new_figure(11, 8.2, f"Classes, {part} split")
        grid = figure.add_gridspec(2, MATRICES, height_ratios=[1.6, 1])
        axes = figure.add_subplot(grid[0, :])
        epochs = [row["epoch"] for row in measured]
        shown: list[Any] = []
        for number in range(min(len(classes), MOST_CLASSES)):
            found = [row[part]["per_class"][number] for row in measured]
            values = [one["recall"] if one["support"] else np.nan for one in found]
            marker = MARKERS[number // len(COLORS) % len(MARKERS)]
            shown += axes.plot(epochs, values, marker=marker, ms=3.5, lw=1.3, color=COLORS[number % len(COLORS)])
        axes.set(xlabel="epoch", ylabel="accuracy of the class")
        epoch_axis(axes, epochs[0], epochs[-1])
        numbered = [name if name == str(number) else f"{number}  {name}" for number, name in enumerate(classes)]
        class_legend(figure, shown, numbered[:MOST_CLASSES])
        for column, at in enumerate(places):
            _small_matrix(figure.add_subplot(grid[1, column]), measured[at], part, first=column == 0)
        save(figure, path)


def _small_matrix(axes: Any, row: Mapping[str, Any], part: str, first: bool) -> None:
    """Draw a confusion matrix without counts. The axes show class indices, and the colours the fraction of the true class."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    counts = np.asarray(row[part]["confusion"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_title(f"epoch {row['epoch']}: {row[part]['accuracy']:.4f}", fontsize=9)
    axes.set_xlabel("predicted class", fontsize=8)
    if first:
        axes.set_ylabel("true class", fontsize=8)
    axes.tick_params(labelsize=7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
