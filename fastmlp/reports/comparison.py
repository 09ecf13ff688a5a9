"""Pictures of several trainings over each other: accuracy or loss per epoch, a curve for each.

Here: PNG files of panels of curves. Not here: one training's own curves (curves.py, whose style these share), and which
trainings are compared (experiments/recipes/plot.py).
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
INKS = tuple(color for color in COLORS if color != "#F0E442")  # a line in yellow can hardly be seen on white
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.4)), (0, (2.6, 1.2)), (0, (7, 1.2, 1.4, 1.2)))
FEW = 30  # epochs that are drawn with a dot each
MANY = 100  # epochs; of more, the curve is a running median of a fortieth of them, and the epochs themselves lie pale behind it
SMOOTHED = 40
BEGINNING = 5  # a curve's first fifth does not set the scale where it would flatten the rest …
FLATTENED = 1.5  # … to less than one part in so many of the height
NEAR = 0.03  # of the height: published figures nearer than that are drawn beside each other


class Curve(NamedTuple):
    """One training in a panel.

    Parameters
    ----------
    label : its name in the legend
    place : its number among the trainings compared, which gives it the same colour and dashes in every panel
    history : a dict per epoch with `epoch` and `val_loss` or `val_accuracy`; None for what is not finite
    best_epoch : the epoch whose weights were kept, or None
    published : what was published of the figure that the panel shows, or None
    """

    label: str
    place: int
    history: Sequence[Mapping[str, Any]]
    best_epoch: int | None
    published: float | None


class Panel(NamedTuple):
    """Curves of one `figure`, "accuracy" or "loss", under a heading, which may be empty."""

    heading: str
    figure: str
    curves: Sequence[Curve]


def plot_comparison(panels: Sequence[Panel], path: Path, title: str) -> None:
    """Write a PNG of panels beside each other, with one legend; their curves have the same labels.

    The best epoch of a curve has a dot, and a published figure a triangle at the right edge in the curve's colour. Beginnings
    that would flatten the rest are cut off. Of long trainings the curve is a running median, the epochs lie pale behind it.

    Raises
    ------
    DataError
        The file could not be written.
    """
    with own_style():
        save(comparison_figure(panels, title), path)


def comparison_figure(panels: Sequence[Panel], title: str) -> Figure:
    """The figure itself, not yet written."""
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
    """Colour and dashes of a curve."""
    return {"color": INKS[place % len(INKS)], "ls": DASHES[place % len(DASHES)]}


def _draw_curves(axes: Axes, panel: Panel) -> None:
    """The curves of a panel, on scales that fit them."""
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
    """The figure's values, one an epoch; NaN, which interrupts the curve, for what is not finite."""
    values = np.array([row.get(f"val_{figure}") for row in curve.history], dtype=np.float64)  # None becomes NaN
    return np.where(np.isfinite(values), values, np.nan)


def _median(values: Array) -> Array:
    """Of many values a running median; its windows are symmetric, so shorter at both ends. Few stay as they are."""
    count = len(values)
    half = count // SMOOTHED // 2 if count > MANY else 0
    reach = [min(half, at, count - 1 - at) for at in range(count)]
    windows = [values[at - far : at + far + 1] for at, far in enumerate(reach)]
    return np.array([np.nan if np.isnan(values[at]) else np.nanmedian(window) for at, window in enumerate(windows)])


def _scale(axes: Axes, figure: str, shown: Sequence[Array], published: Sequence[float]) -> None:
    """Limits that hold the curves, but not their beginnings where these would flatten the rest."""
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
    axes.set_ylim((bottom, top) if figure == "loss" else (max(bottom, -0.01), min(top, 1.01)))  # no accuracy is outside 0 … 1


def _mark_published(axes: Axes, given: Sequence[tuple[int, float]]) -> None:
    """A triangle beyond the right edge for each (place, value); equal ones beside each other, so that all can be seen."""
    bottom, top = axes.get_ylim()
    for number, (place, value) in enumerate(given):
        before = sum(abs(value - other) < NEAR * (top - bottom) for _, other in given[:number])
        style: dict[str, Any] = {"marker": "<", "ms": 6, "ls": "", "color": _look(place)["color"], "clip_on": False}
        axes.plot([1.018 + 0.026 * before], [value], transform=axes.get_yaxis_transform(), **style)
