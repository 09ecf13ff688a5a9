"""What a person gets to see after training: two pictures.

Here: the curves and the confusion matrix as PNG files. Not here: the figures themselves (metrics.py), the table
that `train` prints (tables.py) and the live display (progress.py).

The pictures use matplotlib's objects (a Figure and the Agg canvas), never pyplot: no window, no display, no
figure left over in the user's session. The user's matplotlibrc does not change them, and the same input gives
the same bytes. Colours are Okabe and Ito's (jfly.uni-koeln.de/color), which remain distinct in colour
blindness and in grey.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DataError
from fastmlp.files import write_bytes
from fastmlp.reports.text import MOST_CLASSES, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

DPI = 150
PADDING = 0.1  # inches around a picture
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8A8A8A"
LOG_FROM = 50  # a loss whose largest value is so many times its smallest gets a logarithmic axis
# For class names in scripts that DejaVu Sans, which comes with matplotlib, does not have.
FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic")


def plot_curves(
    history: Sequence[Mapping[str, Any]],
    best_epoch: int | None,
    path: str | os.PathLike[str],
    title: str = "Training",
) -> None:
    """Write a PNG of loss and accuracy per epoch, for training and validation, with the best epoch marked.

    A value of None (not measured, or a regression's accuracy) is left out; NaN and infinity interrupt the
    curve and show as a cross at the upper edge. A loss that spans decades gets a logarithmic axis.

    Parameters
    ----------
    history : a dict per epoch with `epoch` and any of `loss`, `accuracy`, `val_loss`, `val_accuracy`, and `steps`, dicts
        with the same, measured within the epoch, whose `epoch` is a fraction
    best_epoch : epoch whose weights were kept, or None
    path : file to write; replaced whole or not at all
    title : heading

    Raises
    ------
    DataError
        The file could not be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> history = [{"epoch": i, "loss": 1 / i, "accuracy": 1 - 1 / (i + 1)} for i in (1, 2, 3)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_curves(history, 3, pathlib.Path(folder, "curves.png"))
    ...     print(pathlib.Path(folder, "curves.png").read_bytes()[1:4])
    b'PNG'
    """
    with _own_style():
        _save(_curves_figure(history, best_epoch, title), path)


def plot_confusion(
    confusion: Sequence[Sequence[int]],
    classes: Sequence[str],
    path: str | os.PathLike[str],
    title: str = "Confusion matrix",
) -> None:
    """Write a PNG of a confusion matrix: a row per true class, coloured by its share of the row.

    Parameters
    ----------
    confusion : (k, k) counts, rows true, columns predicted; up to 25 classes they are written into the cells
    classes : k names; long ones are cut
    path : file to write; replaced whole or not at all
    title : heading; the accuracy and the number of rows are added to it

    Raises
    ------
    DataError
        The matrix does not fit the names, or the file could not be written.

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
        raise DataError(f"confusion matrix of shape {counts.shape} for {len(classes)} classes; it must be square")
    with _own_style():
        _save(_confusion_figure(counts, [short_name(name) for name in classes], title), path)


@contextlib.contextmanager
def _own_style() -> Iterator[None]:
    """matplotlib's own defaults, not the user's; a character that no font has becomes a box, silently."""
    import matplotlib
    from matplotlib.font_manager import get_font_names

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        fonts = [name for name in FONTS if name in get_font_names()]
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *fonts]
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from (current )?font")
        yield


def _new_figure(width: float, height: float, title: str) -> Figure:
    """Figure of this size in inches, drawn by Agg, that arranges its parts so that none overlap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    return figure


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """PNG without a note of the program's version, so that equal pictures are equal files.

    The parts are arranged once; left to itself, the figure would do it anew at each drawing. The box takes in what the
    layout cannot foresee: labels beside a matrix that must stay square. Asked for as "tight", it would cost a further drawing.
    """
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")
    buffer = io.BytesIO()
    box = figure.get_tightbbox().padded(PADDING)
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches=box, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _curves_figure(history: Sequence[Mapping[str, Any]], best_epoch: int | None, title: str) -> Figure:
    """One panel for the loss, and one for the accuracy if there is any; a legend below both."""
    keys = [key for key in ("loss", "accuracy") if key == "loss" or _measured(history, key)]
    figure = _new_figure(1.0 + 4.6 * len(keys), 4.2, title)
    handles: dict[str, Any] = {}
    for number, key in enumerate(keys):
        axes = figure.add_subplot(1, len(keys), number + 1)
        axes.set_xlabel("epoch")
        axes.set_ylabel(key)
        if history:
            _draw_panel(axes, history, key, best_epoch)
        else:
            axes.text(0.5, 0.5, "no epoch was finished", ha="center")
            axes.set_axis_off()
        lines, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _measured(history: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(row.get(key) is not None for row in history)


def _draw_panel(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, best_epoch: int | None) -> None:
    """Training and validation curve of one quantity, and the best epoch."""
    shown: list[NDArray[np.float64]] = []
    curves = ((key, "training", BLUE, 0.97), (f"val_{key}", "validation", ORANGE, 0.92))
    for name, label, color, height in curves:
        if not _measured(history, name):
            continue
        rows = [row for row in history if row.get(name) is not None]
        epochs = np.array([row["epoch"] for row in rows])
        values = np.array([row[name] for row in rows], dtype=np.float64)
        finite = np.isfinite(values)
        size = 5 if len(epochs) <= 30 else 1.5
        axes.plot(epochs, np.where(finite, values, np.nan), "o-", ms=size, lw=1.6, color=color, label=label)
        if not finite.all():
            edge = axes.get_xaxis_transform()
            crosses = np.full(int((~finite).sum()), height)
            axes.plot(epochs[~finite], crosses, "x", color=color, transform=edge, label="not finite")
        shown.append(values[finite])
        _draw_steps(axes, history, name, label, color)
    if key == "loss":
        _scale_loss(axes, np.concatenate([*shown, np.empty(0)]))
    else:
        axes.set_ylim(top=min(1.01, axes.get_ylim()[1]))  # no accuracy is above 1
    if best_epoch is not None:
        axes.axvline(best_epoch, color=GREEN, lw=1.4, ls="--", zorder=1, label=f"best epoch {best_epoch}")
    within = any(row.get("steps") for row in history)
    _epoch_axis(axes, history[0]["epoch"] - within, history[-1]["epoch"])


def _epoch_axis(axes: Axes, first: int, last: int) -> None:
    """Whole epochs below a panel, and a light grid behind its curves."""
    from matplotlib.ticker import MaxNLocator

    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(max(first - min(margin, 0.9), 0), last + margin)  # an epoch 0 does not exist
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_steps(axes: Axes, history: Sequence[Mapping[str, Any]], name: str, label: str, color: str) -> None:
    """The same quantity as it was measured within epochs, if it was."""
    steps = [step for row in history for step in row.get("steps", ()) if step.get(name) is not None]
    if steps:
        places, values = [step["epoch"] for step in steps], [step[name] for step in steps]
        axes.plot(places, values, lw=0.8, alpha=0.6, color=color, label=f"{label}, within epochs")


def _scale_loss(axes: Axes, values: NDArray[np.float64]) -> None:
    """Logarithmic axis, with plain numbers, if the values (n,) are positive and span decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if values.size == 0 or values.min() <= 0 or values.max() < LOG_FROM * values.min():
        return
    decades = math.log10(values.max() / values.min())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _confusion_figure(counts: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Matrix with labels, counts where they fit, and a colour bar; counts (k, k)."""
    from matplotlib.colors import PowerNorm
    from rich.cells import cell_len  # 2 for the wide letters of Chinese, Japanese and Korean

    k, total = len(counts), int(counts.sum())
    side = max(3.6, 0.45 * k) if k <= MOST_CLASSES else min(11.0, 0.2 * k + 3)  # of the matrix, inches
    cell = 72 * side / k  # points
    if total:
        title += f": accuracy {np.trace(counts) / total:.4f}, {total:,} rows"
    font = float(np.clip(0.8 * cell, 5, 9))  # of the names, points
    longest = max(cell_len(name) for name in names) * 0.62 * font
    figure = _new_figure(side + longest / 72 + 2, side + longest / 72 + 1.2, title)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # the square root makes room for the small shares: a confusion of 1 % is what one looks for
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    if k <= MOST_CLASSES:
        _write_counts(axes, counts, image.to_rgba(shares), cell)
    places = range(0, k, math.ceil(1.2 * font / cell))  # a label for every few classes if they are many
    labels = [names[i] for i in places]
    axes.set_xticks(places, labels, fontsize=font, parse_math=False)
    axes.set_yticks(places, labels, fontsize=font, parse_math=False)
    if longest > 0.9 * cell * places.step:  # they would touch
        _tilt(axes.get_xticklabels(), 45 if k <= MOST_CLASSES else 90)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.15 / side, 0, 0.16 / side, 1)))
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("share of the true class")
    return figure


def _tilt(labels: Sequence[Text], degrees: int) -> None:
    """Turn labels below an axis so that each ends at its tick."""
    for label in labels:
        label.set(rotation=degrees, ha="right", va="top" if degrees == 45 else "center", rotation_mode="anchor")


def _write_counts(axes: Axes, counts: NDArray[np.int64], colors: NDArray[np.float64], cell: float) -> None:
    """Counts (k, k) in cells of these colours (k, k, 4), black or white by which stands out more."""
    digits = len(str(counts.max()))
    size = min(10.0, 0.85 * cell / (0.64 * digits))
    for (i, j), count in np.ndenumerate(counts):
        ink = GREY if count == 0 else _readable(colors[i, j])
        text = axes.text(j, i, str(count), ha="center", va="center", color=ink, fontsize=size)
        text.set_in_layout(False)  # it cannot leave its cell


def _readable(color: NDArray[np.float64]) -> str:
    """Black or white, whichever has the higher contrast on a colour (WCAG 2.1, relative luminance)."""
    linear = np.where(color[:3] <= 0.04045, color[:3] / 12.92, ((color[:3] + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"
