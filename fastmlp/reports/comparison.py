"""Plots that compare trainings: validation accuracy or loss per epoch, one curve per training.

See also curves.py for the curves of one training, and experiments/recipes/plot.py for the comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.reports.style import COLORS, GREY, epoch_axis, new_figure, own_style, save, scale_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Array = npt.NDArray[np.float64]
LINE_COLORS = tuple(color for color in COLORS if color != "#F0E442")  # a yellow line is hardly visible on white
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.4)), (0, (2.6, 1.2)), (0, (7, 1.2, 1.4, 1.2)))
MAX_MARKED_EPOCHS = 30  # up to this number, each epoch has a dot
# Beyond this number of epochs, the curve is a running median over 1 / MEDIAN_WINDOWS of them, in front of the pale raw values.
MAX_RAW_EPOCHS = 100
MEDIAN_WINDOWS = 40
# The first 1 / BEGINNING of a curve is left out of the limits if the rest would fill less than 1 / COMPRESSION of the axis.
BEGINNING = 5
COMPRESSION = 1.5
MARKER_DISTANCE = 0.03  # fraction of the axis; the markers of published values that are closer are drawn side by side


class Curve(NamedTuple):
    """One training in a panel.

    Parameters
    ----------
    label : name in the legend
    style : number of the training in the comparison; selects the color and the dashes, which are the same in all panels
    history : a dict per epoch with `epoch` and `val_loss` or `val_accuracy`; None for values that are not finite
    best_epoch : epoch whose weights were kept, or None
    published : published value of the panel's metric, or None
    """

    label: str
    style: int
    history: Sequence[Mapping[str, Any]]
    best_epoch: int | None
    published: float | None


class Panel(NamedTuple):
    """Curves of one `metric`, "accuracy" or "loss", with a heading, which may be empty."""

    heading: str
    metric: str
    curves: Sequence[Curve]


def plot_comparison(panels: Sequence[Panel], path: Path, title: str) -> None:
    """Write a PNG file with the panels in one row and one legend; all panels have curves with the same labels.

    A dot marks the best epoch of a curve, a triangle of the same color at the right edge its published value. The beginnings
    of curves are cut off if they would compress the rest. Beyond 100 epochs, a curve is a running median, in front of the pale
    raw values.

    Raises
    ------
    DataError
        The file could not be written.
    """
    with own_style():
        save(comparison_figure(panels, title), path)


def comparison_figure(panels: Sequence[Panel], title: str) -> Figure:
    """Return the figure of `plot_comparison`."""
    from matplotlib.lines import Line2D

    figure = new_figure(2.6 + 4.6 * len(panels), 4.4, title)
    handles: dict[str, Line2D] = {}
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.set_title(panel.heading, fontsize="medium")
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation {panel.metric}")
        _draw_curves(axes, panel)
        for curve in panel.curves:
            handles[curve.label] = Line2D([], [], lw=1.6, **_line_style(curve.style))
    curves = [curve for panel in panels for curve in panel.curves]
    if any(len(curve.history) > MAX_RAW_EPOCHS for curve in curves):
        handles["each epoch"] = Line2D([], [], lw=2.5, alpha=0.35, color=GREY)
    if any(curve.best_epoch is not None for curve in curves):
        handles["best epoch"] = Line2D([], [], ls="", marker="o", ms=7, color=GREY, markeredgecolor="white")
    if any(curve.published is not None for curve in curves):
        handles["published"] = Line2D([], [], ls="", marker="<", ms=6, color=GREY)
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, handlelength=3.4)
    return figure


def _line_style(index: int) -> dict[str, Any]:
    """Return color and dashes of a curve."""
    return {"color": LINE_COLORS[index % len(LINE_COLORS)], "ls": DASHES[index % len(DASHES)]}


def _draw_curves(axes: Axes, panel: Panel) -> None:
    """Draw the curves of a panel and set the limits of its axes."""
    shown = []
    for curve in panel.curves:
        epochs = np.array([row["epoch"] for row in curve.history])
        values = _values(curve, panel.metric)
        size: dict[str, Any] = {"lw": 1.6, "marker": "o", "ms": 3.5} if len(epochs) <= MAX_MARKED_EPOCHS else {"lw": 1.0}
        if len(epochs) > MAX_RAW_EPOCHS:
            size["lw"] = 1.4
            axes.plot(epochs, values, lw=0.6, alpha=0.35, color=_line_style(curve.style)["color"], zorder=1)
        axes.plot(epochs, _median(values), label=curve.label, **_line_style(curve.style), **size)
        best = epochs == curve.best_epoch
        axes.plot(
            epochs[best], values[best], "o", ms=7, color=_line_style(curve.style)["color"], markeredgecolor="white", zorder=3
        )
        shown.append(values)
    published = [(curve.style, curve.published) for curve in panel.curves if curve.published is not None]
    _set_limits(axes, panel.metric, shown, [value for _, value in published])
    _mark_published(axes, published)
    epochs_of_all = [row["epoch"] for curve in panel.curves for row in curve.history]
    epoch_axis(axes, min(epochs_of_all), max(epochs_of_all))


def _values(curve: Curve, metric: str) -> Array:
    """Return the metric of each epoch; NaN, which interrupts the curve, for values that are not finite."""
    values = np.array([row.get(f"val_{metric}") for row in curve.history], dtype=np.float64)  # None becomes NaN
    return np.where(np.isfinite(values), values, np.nan)


def _median(values: Array) -> Array:
    """Return the running median of more than MAX_RAW_EPOCHS values, else the values.

    Windows are symmetric, so they are shorter at both ends.
    """
    count = len(values)
    half = count // MEDIAN_WINDOWS // 2 if count > MAX_RAW_EPOCHS else 0
    reach = [min(half, i, count - 1 - i) for i in range(count)]
    windows = [values[i - k : i + k + 1] for i, k in enumerate(reach)]
    return np.array([np.nan if np.isnan(values[i]) else np.nanmedian(window) for i, window in enumerate(windows)])


def _set_limits(axes: Axes, metric: str, shown: Sequence[Array], published: Sequence[float]) -> None:
    """Set limits that include the curves, but not their beginnings if these would compress the rest."""
    late = np.concatenate([values[len(values) // BEGINNING :] for values in shown] + [np.array(published)])
    whole = np.concatenate([*shown, late])
    late, whole = (late[np.isfinite(late)], whole[np.isfinite(whole)])
    late = late if late.size and np.ptp(late) > 0 and np.ptp(whole) > COMPRESSION * np.ptp(late) else whole
    if not late.size:
        return
    if metric == "loss":
        low, high = whole.min(), late.max()
        scale_loss(axes, np.array([low, high]))
    else:
        low, high = late.min(), whole.max()
    to, back = (np.log, np.exp) if axes.get_yscale() == "log" else (np.asarray, np.asarray)
    margin = 0.05 * float(to(high) - to(low)) or 0.01
    bottom, top = float(back(to(low) - margin)), float(back(to(high) + margin))
    axes.set_ylim((bottom, top) if metric == "loss" else (max(bottom, -0.01), min(top, 1.01)))  # accuracies are in [0, 1]


def _mark_published(axes: Axes, published: Sequence[tuple[int, float]]) -> None:
    """Draw a triangle at the right edge for each (index, value); close values side by side, so that all are visible."""
    bottom, top = axes.get_ylim()
    for number, (index, value) in enumerate(published):
        before = sum(abs(value - other) < MARKER_DISTANCE * (top - bottom) for _, other in published[:number])
        style: dict[str, Any] = {"marker": "<", "ms": 6, "ls": "", "color": _line_style(index)["color"], "clip_on": False}
        axes.plot([1.018 + 0.026 * before], [value], transform=axes.get_yaxis_transform(), **style)
