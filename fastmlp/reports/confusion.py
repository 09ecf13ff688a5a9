"""Plot the confusion matrix of a final result, and the accuracy and confusion matrices of the classes over the epochs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DataError
from fastmlp.reports.style import COLORS, GREY, MARKERS, class_legend, epoch_axis, new_figure, own_style, save
from fastmlp.reports.text import DENSE_CLASSES, MOST_CLASSES, short_name

MATRICES = 5  # number of confusion matrices below the curves per class
CONFUSED_CLASSES = 20  # number of classes in figures of more than DENSE_CLASSES classes
Confusion = Sequence[Sequence[int]] | Mapping[str, Any]  # formats of `metrics.confusion_matrix`

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text


class Cells(NamedTuple):
    """The cells of a confusion matrix that are not zero: their true classes, predicted classes and counts, each (m,) int64."""

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    counts: NDArray[np.int64]


class Matrix(NamedTuple):
    """The part of a confusion matrix that a figure shows.

    classes : (m,) class indices
    counts : (m, m) counts of these classes
    support : (m,) number of rows of each of these true classes, whatever their predicted classes are
    """

    classes: NDArray[np.int64]
    counts: NDArray[np.int64]
    support: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """The counts as fractions of the rows of the true class, (m, m)."""
        return self.counts / np.maximum(self.support, 1)[:, None]


def plot_confusion(
    confusion: Confusion,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    title: str = "Confusion matrix",
) -> None:
    """Write a PNG file of a confusion matrix. The colour of each cell shows its count as a fraction of the row sum.

    With more than `DENSE_CLASSES` classes, the figure shows the rows and columns of the 20 classes with the most confusions.
    The confusions of a class are the rows of this class that are predicted as another class, and the rows of other classes
    that are predicted as this class. The row sums, the accuracy and the number of rows are those of the whole matrix.

    Parameters
    ----------
    confusion : counts in one of the formats of `metrics.confusion_matrix`, with one row per true class and one column per
        predicted class. If the figure shows at most 25 classes, the counts are written into the cells.
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
    k, cells = len(classes), _cells(confusion, len(classes))
    if total := int(cells.counts.sum()):
        correct = int(cells.counts[cells.row == cells.column].sum())
        title += f": accuracy {correct / total:.4f}, {total:,} rows"
    chosen = np.arange(k)
    if k > DENSE_CLASSES:
        chosen = _most_confused(cells, k)
        title += f"\n{len(chosen)} of {k:,} classes, those with the most confusions"
    with own_style():
        save(_confusion_figure(_part(cells, chosen, k), [short_name(classes[i]) for i in chosen.tolist()], title), path)


def _cells(confusion: Confusion, k: int) -> Cells:
    """Return the cells of a confusion matrix of k classes in any format of `metrics.confusion_matrix`."""
    shape = tuple(confusion["shape"]) if isinstance(confusion, Mapping) else np.shape(confusion)
    if shape != (k, k) or k == 0:
        raise DataError(f"confusion matrix of shape {shape} with {k} classes; pass a (k, k) matrix and k names")
    if isinstance(confusion, Mapping):
        return Cells(*(np.asarray(confusion[key], np.int64) for key in ("row", "column", "count")))
    dense = np.asarray(confusion)
    row, column = dense.nonzero()
    return Cells(row, column, dense[row, column])


def _most_confused(cells: Cells, k: int) -> NDArray[np.int64]:
    """Return the indices of the classes with the most confusions, see `plot_confusion`, in ascending order."""
    wrong = cells.row != cells.column
    as_others, from_others = (np.bincount(ends[wrong], cells.counts[wrong], k) for ends in (cells.row, cells.column))
    return np.sort(np.argsort(-(as_others + from_others), kind="stable")[:CONFUSED_CLASSES])


def _part(cells: Cells, classes: NDArray[np.int64], k: int) -> Matrix:
    """Return the part of a confusion matrix of k classes that has the rows and columns of these classes."""
    place = np.full(k, -1)
    place[classes] = np.arange(len(classes))
    row, column = place[cells.row], place[cells.column]
    inside = (row >= 0) & (column >= 0)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (row[inside], column[inside]), cells.counts[inside])
    return Matrix(classes, counts, np.bincount(cells.row, cells.counts, k)[classes].astype(np.int64))


def _confusion_figure(matrix: Matrix, names: Sequence[str], title: str) -> Figure:
    """Return a figure of a confusion matrix (k, k) with class names and a colour bar, and counts if they fit."""
    from matplotlib.colors import PowerNorm
    from rich.cells import cell_len  # counts wide characters, such as Chinese ones, twice

    k, shares = len(names), matrix.shares
    side = max(3.6, 0.45 * k) if k <= MOST_CLASSES else min(11.0, 0.2 * k + 3)  # side of the matrix, in inches
    cell = 72 * side / k  # side of a cell, in points
    font = float(np.clip(0.8 * cell, 5, 9))  # font size of the names, in points
    longest = max(cell_len(name) for name in names) * 0.62 * font
    figure = new_figure(side + longest / 72 + 2, side + longest / 72 + 1.2, title)
    axes = figure.add_subplot()
    # The colour depends on the square root of the fraction, so that fractions as small as 1 % are visible.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    if k <= MOST_CLASSES:
        _write_counts(axes, matrix.counts, image.to_rgba(shares), cell)
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


class EpochMatrix(NamedTuple):
    """Metrics of one epoch on one split.

    recall : (k,) float64, NaN for classes without rows
    cells : nonzero entries of the confusion matrix
    """

    epoch: int
    split: str
    accuracy: float
    recall: NDArray[np.float64]
    cells: Cells


def plot_classes(measured: Iterable[Mapping[str, Any]], classes: Sequence[str], path: Path) -> None:
    """Write a PNG file with the accuracy of each class over the epochs, and the confusion matrices of up to 5 epochs.

    With more than `DENSE_CLASSES` classes, it shows the 20 classes with the most confusions in the last epoch, see
    `plot_confusion`.

    Parameters
    ----------
    measured : one dict per evaluated epoch with the keys `epoch` and "validation" (or "train", without a validation split).
        The latter holds the result of `metrics.classification_metrics`. The accuracy of a class is its recall.
    classes : class names; at most 25 classes have curves, and classes without rows in the split have none
    path : file to write; it is replaced atomically

    Raises
    ------
    DataError
        The file could not be written.
    """
    k = len(classes)
    rows = [_epoch_matrix(row, k) for row in measured]
    chosen, curves, title = np.arange(k), np.arange(min(k, MOST_CLASSES)), f"Classes, {rows[-1].split} split"
    if k > DENSE_CLASSES:
        chosen = curves = _most_confused(rows[-1].cells, k)
        title += f": {len(chosen)} of {k:,} classes, those with the most confusions in epoch {rows[-1].epoch}"
    places = sorted({round(at) for at in np.linspace(0, len(rows) - 1, MATRICES)})
    with own_style():
        figure = new_figure(11, 8.2, title)
        grid = figure.add_gridspec(2, MATRICES, height_ratios=[1.6, 1])
        axes = figure.add_subplot(grid[0, :])
        epochs = [row.epoch for row in rows]
        shown: list[Any] = []
        for number, values in enumerate(np.transpose([row.recall[curves] for row in rows])):
            marker = MARKERS[number // len(COLORS) % len(MARKERS)]
            shown += axes.plot(epochs, values, marker=marker, ms=3.5, lw=1.3, color=COLORS[number % len(COLORS)])
        axes.set(xlabel="epoch", ylabel="accuracy of the class")
        epoch_axis(axes, epochs[0], epochs[-1])
        named = [(str(i), classes[i]) for i in curves.tolist()]
        class_legend(figure, shown, [name if name == number else f"{number}  {name}" for number, name in named])
        for column, at in enumerate(places):
            matrix = _part(rows[at].cells, chosen, k)
            _small_matrix(figure.add_subplot(grid[1, column]), matrix, rows[at], first=column == 0)
        save(figure, path)


def _epoch_matrix(row: Mapping[str, Any], k: int) -> EpochMatrix:
    """Return a dict of `plot_classes` as arrays, which take less memory than the dicts of many classes."""
    split = "validation" if "validation" in row else "train"
    metrics = row[split]
    recall = np.array([one["recall"] if one["support"] else np.nan for one in metrics["per_class"]])
    return EpochMatrix(row["epoch"], split, metrics["accuracy"], recall, _cells(metrics["confusion"], k))


def _small_matrix(axes: Any, matrix: Matrix, row: EpochMatrix, first: bool) -> None:
    """Draw a confusion matrix without counts. The axes show class indices, and the colours the fraction of the true class."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    axes.imshow(matrix.shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_title(f"epoch {row.epoch}: {row.accuracy:.4f}", fontsize=9)
    axes.set_xlabel("predicted class", fontsize=8)
    if first:
        axes.set_ylabel("true class", fontsize=8)
    axes.tick_params(labelsize=7)
    if len(matrix.classes) == len(row.recall):
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    else:  # the index of a class is not its place in the figure
        places = np.arange(0, len(matrix.classes), 4)
        axes.set_xticks(places, matrix.classes[places], rotation=90)
        axes.set_yticks(places, matrix.classes[places])
