"""Plots that compare several runs: accuracy or loss per epoch, one curve per run.

See also `fastmlp.reports.curves` for the curves of a single run.
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
INKS = tuple(color for color in COLORS if color != "#F0E442")  # yellow lines are hardly visible on white
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.4)), (0, (2.6, 1.2)), (0, (7, 1.2, 1.4, 1.2)))
FEW = 30  # up to this many epochs, each is drawn with a marker
MANY = 100  # with more epochs, the curve is a running median over the pale raw values
SMOOTHED = 40  # window of the running median: the number of epochs divided by this
BEGINNING = 5  # the first 1/5 of each curve is ignored for the axis limits …
FLATTENED = 1.5  # … if including it would make the range of values this many times larger
NEAR = 0.03  # published values closer than this fraction of the axis height are drawn next to each other


class Curve(NamedTuple):
    """One run in a panel.

    Parameters
    ----------
    label : its name in the legend
    place : its index among the compared runs, which selects the same colour and dashes in every panel
    history : a dict per epoch with `epoch` and `val_loss` or `val_accuracy`; None for values that are not finite
    best_epoch : the epoch whose weights were kept, or None
    published : published value of the panel's metric, or None
    """

    label: str
    place: int
    history: Sequence[Mapping[str, Any]]
    best_epoch: int | None
    published: float | None


class Panel(NamedTuple):
    """Curves of one metric: `figure` is "accuracy" or "loss"; the heading may be empty."""

    heading: str
    figure: str
    curves: Sequence[Curve]


def plot_comparison(panels: Sequence[Panel], path: Path, title: str) -> None:
    """Write a PNG with the panels next to each other and one legend; all panels must use the same labels.

    A dot marks the best epoch of each curve, and a triangle at the right edge, in the curve's colour, the published value.
    The start of the curves is cut off where it would compress the rest. Runs of more than 100 epochs are drawn as a running
    median over the pale raw values.

    Raises
    ------
    DataError
        The file could not be written.
    """
    with own_style():
        save(comparison_figure(panels, title), path)


def comparison_figure(panels: Sequence[Panel], title: str) -> Figure:
    """Return the figure of `plot_comparison`, without saving it."""
    from matplotlib.lines import Line2D

    figure = new_figure(2.6 + 4.6 * len(panels), 4.4, title)
    handles: dict[str, Line2D] = {}
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.set_title(panel.heading, fontsize="medium")
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation {panel.figure}")
        _draw_curves(axes, panel)
        for curve in panel.curves:
            handles[curve.label] = Line2D([], [], lw=1.6, **_look(curve.place))
    curves = [curve for panel in panels for curve in panel.curves]
    if any(len(curve.history) > MANY for curve in curves):
        handles["each epoch"] = Line2D([], [], lw=2.5, alpha=0.35, color=GREY)
    if any(curve.best_epoch is not None for curve in curves):
        handles["best epoch"] = Line2D([], [], ls="", marker="o", ms=7, color=GREY, markeredgecolor="white")
    if any(curve.published is not None for curve in curves):
        handles["published"] = Line2D([], [], ls="", marker="<", ms=6, color=GREY)
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, handlelength=3.4)
    return figure


def _look(place: int) -> dict[str, Any]:
    """Return the colour and dashes of a curve."""
    return {"color": INKS[place % len(INKS)], "ls": DASHES[place % len(DASHES)]}


def _draw_curves(axes: Axes, panel: Panel) -> None:
    """Draw the curves of a panel and set its axes."""
    shown = []
    for curve in panel.curves:
        epochs = np.array([row["epoch"] for row in curve.history])
        values = _values(curve, panel.figure)
        size: dict[str, Any] = {"lw": 1.6, "marker": "o", "ms": 3.5} if len(epochs) <= FEW else {"lw": 1.0}
        if len(epochs) > MANY:
            size["lw"] = 1.4
            axes.plot(epochs, values, lw=0.6, alpha=0.35, color=_look(curve.place)["color"], zorder=1)
        axes.plot(epochs, _median(values), label=curve.label, **_look(curve.place), **size)
        best = epochs == curve.best_epoch
        axes.plot(epochs[best], values[best], "o", ms=7, color=_look(curve.place)["color"], markeredgecolor="white", zorder=3)
        shown.append(values)
    given = [(curve.place, curve.published) for curve in panel.curves if curve.published is not None]
    _scale(axes, panel.figure, shown, [value for _, value in given])
    _mark_published(axes, given)
    every = [row["epoch"] for curve in panel.curves for row in curve.history]
    epoch_axis(axes, min(every), max(every))


def _values(curve: Curve, figure: str) -> Array:
    """Return the metric per epoch; values that are not finite become NaN, which interrupts the curve."""
    values = np.array([row.get(f"val_{figure}") for row in curve.history], dtype=np.float64)  # None becomes NaN
    return np.where(np.isfinite(values), values, np.nan)


def _median(values: Array) -> Array:
    """Return the running median if there are more than MANY values; windows are symmetric, so shorter at both ends."""
    count = len(values)
    half = count // SMOOTHED // 2 if count > MANY else 0
    reach = [min(half, at, count - 1 - at) for at in range(count)]
    windows = [values[at - far : at + far + 1] for at, far in enumerate(reach)]
    return np.array([np.nan if np.isnan(values[at]) else np.nanmedian(window) for at, window in enumerate(windows)])


def _scale(axes: Axes, figure: str, shown: Sequence[Array], published: Sequence[float]) -> None:
    """Set axis limits that include the curves, but not their start where it would compress the rest."""
    late = np.concatenate([values[len(values) // BEGINNING :] for values in shown] + [np.array(published)])
    whole = np.concatenate([*shown, late])
    late, whole = (late[np.isfinite(late)], whole[np.isfinite(whole)])
    late = late if late.size and np.ptp(late) > 0 and np.ptp(whole) > FLATTENED * np.ptp(late) else whole
    if not late.size:
        return
    if figure == "loss":
        low, high = whole.min(), late.max()
        scale_loss(axes, np.array([low, high]))
    else:
        low, high = late.min(), whole.max()
    to, back = (np.log, np.exp) if axes.get_yscale() == "log" else (np.asarray, np.asarray)
    margin = 0.05 * float(to(high) - to(low)) or 0.01
    bottom, top = float(back(to(low) - margin)), float(back(to(high) + margin))
    axes.set_ylim((bottom, top) if figure == "loss" else (max(bottom, -0.01), min(top, 1.01)))  # 0 <= accuracy <= 1


def _mark_published(axes: Axes, given: Sequence[tuple[int, float]]) -> None:
    """Draw a triangle at the right edge for each (place, value); nearly equal values are drawn next to each other."""
    bottom, top = axes.get_ylim()
    for number, (place, value) in enumerate(given):
        before = sum(abs(value - other) < NEAR * (top - bottom) for _, other in given[:number])
        style: dict[str, Any] = {"marker": "<", "ms": 6, "ls": "", "color": _look(place)["color"], "clip_on": False}
        axes.plot([1.018 + 0.026 * before], [value], transform=axes.get_yaxis_transform(), **style)
