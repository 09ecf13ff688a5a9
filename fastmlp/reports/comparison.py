"""Plots that compare several runs: accuracy or loss per epoch, one curve per run.

See also `fastmlp.reports.curves` for the curves of a single run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.reports.style import COLORS, GREY, epoch_axis, new_figure, own_style, save, scale_loss, title_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
INKS = tuple(color for color in COLORS if color != "#F0E442")  # yellow lines are hardly visible on white
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.4)), (0, (2.6, 1.2)), (0, (7, 1.2, 1.4, 1.2)))
FEW = 30  # curves with at most this many epochs have a marker for each epoch
MANY = 100  # curves with more epochs than this are running medians, with the raw values in a paler colour
BAND = 0.18  # opacity of the band of a standard deviation
SMOOTHED = 40  # window of the running median: the number of epochs divided by this
# The axis limits do not include the first 1/BEGINNING of each curve if this would make the range of values more than
# FLATTENED times larger.
BEGINNING = 5
FLATTENED = 1.5
NEAR = 0.03  # published values closer than this fraction of the axis height are drawn next to each other


class Curve(NamedTuple):
    """The curve of one run in a panel.

    Parameters
    ----------
    label : name of the run in the legend
    place : index of the run, which determines the colour and the dashes of its curves in all panels
    history : one dict per epoch with `epoch` and `val_loss` or `val_accuracy`; values that are not finite are None. If they
        are means of several runs, there are also standard deviations, such as `val_loss_std`, which are drawn as a band
    best_epoch : epoch whose weights were kept, or None
    published : published value of the metric shown in the panel, or None
    split : the split of the metrics, "validation" or "training"; those of "training" are `loss` and `accuracy` in the history
    printed : published values per epoch, as pairs (epoch, value)
    """

    label: str
    place: int
    history: Sequence[Mapping[str, Any]]
    best_epoch: int | None
    published: float | None
    split: str = "validation"
    printed: Sequence[tuple[int, float]] = ()


class Panel(NamedTuple):
    """A panel with the curves of one metric, which is "accuracy" or "loss"; `heading` may be empty."""

    heading: str
    metric: str
    curves: Sequence[Curve]


def plot_comparison(panels: Sequence[Panel], path: Path, title: str) -> None:
    """Write a PNG file with the panels side by side and one legend for all panels.

    A run must have the same label in all panels. A dot marks the best epoch of each run. In the colour of the run, a triangle
    at the right edge marks the published value, and crosses mark published values of epochs. The start of the curves is cut off
    if it would compress the rest. For runs of more than 100 epochs, a running median is drawn on top of the raw values, which
    have a paler colour.

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
    from matplotlib.patches import Patch
    from rich.cells import cell_len

    curves = [curve for panel in panels for curve in panel.curves]
    shown = sorted(curves, key=lambda curve: curve.place)
    entries = {curve.label: Line2D([], [], lw=1.6, **_look(curve.place)) for curve in shown}
    longest = max(map(cell_len, entries))
    figure = new_figure(max(2.6, 0.8 + 0.09 * longest) + 4.6 * len(panels), max(4.4, 1.6 + 0.22 * len(entries)), title)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.set_title(title_text(panel.heading), fontsize="medium", parse_math=False)
        axes.set_xlabel("epoch")
        axes.set_ylabel(_axis_label(panel))
        _draw_curves(axes, panel)
    handles: list[tuple[str, Artist]] = [*entries.items()]
    if any(len(curve.history) > MANY for curve in curves):
        handles.append(("each epoch", Line2D([], [], lw=2.5, alpha=0.35, color=GREY)))
    if any(_has_band(curve, panel.metric) for panel in panels for curve in panel.curves):
        handles.append(("± std. dev.", Patch(alpha=BAND, color=GREY, lw=0)))
    if any(curve.best_epoch is not None for curve in curves):
        handles.append(("best epoch", Line2D([], [], ls="", marker="o", ms=7, color=GREY, markeredgecolor="white")))
    if any(curve.published is not None for curve in curves):
        handles.append(("published", Line2D([], [], ls="", marker="<", ms=6, color=GREY)))
    if any(curve.printed for curve in curves):
        handles.append(("published epochs", Line2D([], [], ls="", marker="x", ms=5, color=GREY)))
    legend = figure.legend(
        [handle for _, handle in handles],
        ["run"] * len(handles),
        loc="outside right center",
        frameon=False,
        handlelength=3.4,
    )
    # The labels are set afterwards, see `style.class_legend`.
    for text, (label, _) in zip(legend.get_texts(), handles, strict=True):
        text.set(text=label, parse_math=False)
    return figure


def _axis_label(panel: Panel) -> str:
    """Return the label of the y-axis: the metric and, if it is the same for all curves, the split."""
    splits = {curve.split for curve in panel.curves}
    return f"{splits.pop()} {panel.metric}" if len(splits) == 1 else panel.metric


def _look(place: int) -> dict[str, Any]:
    """Return the colour and dashes of a curve."""
    return {"color": INKS[place % len(INKS)], "ls": DASHES[place % len(DASHES)]}


def _draw_curves(axes: Axes, panel: Panel) -> None:
    """Draw the curves of a panel and set its axes."""
    shown = []
    for curve in panel.curves:
        epochs = np.array([row["epoch"] for row in curve.history])
        values = _values(curve, panel.metric)
        size: dict[str, Any] = {"lw": 1.6, "marker": "o", "ms": 3.5} if len(epochs) <= FEW else {"lw": 1.0}
        if len(epochs) > MANY:
            size["lw"] = 1.4
            axes.plot(epochs, values, lw=0.6, alpha=0.35, color=_look(curve.place)["color"], zorder=1)
        axes.plot(epochs, _median(values), label=curve.label, **_look(curve.place), **size)
        if _has_band(curve, panel.metric):
            deviation = _values(curve, f"{panel.metric}_std")
            color = _look(curve.place)["color"]
            axes.fill_between(epochs, values - deviation, values + deviation, color=color, alpha=BAND, lw=0)
        best = epochs == curve.best_epoch
        axes.plot(epochs[best], values[best], "o", ms=7, color=_look(curve.place)["color"], markeredgecolor="white", zorder=3)
        if curve.printed:
            axes.plot(*np.array(curve.printed).T, "x", ms=5, color=_look(curve.place)["color"], zorder=4)
        shown += [values, np.array([value for _, value in curve.printed])]
    given = [(curve.place, curve.published) for curve in panel.curves if curve.published is not None]
    _scale(axes, panel.metric, shown, [value for _, value in given])
    _mark_published(axes, given)
    every = [row["epoch"] for curve in panel.curves for row in curve.history]
    every += [epoch for curve in panel.curves for epoch, _ in curve.printed]
    epoch_axis(axes, min(every), max(every))


def _values(curve: Curve, metric: str) -> Array:
    """Return the metric per epoch; values that are not finite become NaN, which interrupts the curve."""
    key = f"val_{metric}" if curve.split == "validation" else metric
    values = np.array([row.get(key) for row in curve.history], dtype=np.float64)  # None becomes NaN
    return np.where(np.isfinite(values), values, np.nan)


def _has_band(curve: Curve, metric: str) -> bool:
    """Return whether the history of a curve has standard deviations."""
    return bool(np.isfinite(_values(curve, f"{metric}_std")).any())


def _median(values: Array) -> Array:
    """Return the running median of the values, or the values themselves if there are at most MANY of them.

    The windows are symmetric and therefore become shorter at both ends.
    """
    count = len(values)
    half = count // SMOOTHED // 2 if count > MANY else 0
    reach = [min(half, at, count - 1 - at) for at in range(count)]
    windows = [values[at - far : at + far + 1] for at, far in enumerate(reach)]
    return np.array([np.nan if np.isnan(values[at]) else np.nanmedian(window) for at, window in enumerate(windows)])


def _scale(axes: Axes, metric: str, shown: Sequence[Array], published: Sequence[float]) -> None:
    """Set the limits of the y-axis. They exclude the start of the curves if it would compress the rest."""
    late = np.concatenate([values[len(values) // BEGINNING :] for values in shown] + [np.array(published)])
    whole = np.concatenate([*shown, late])
    late, whole = (late[np.isfinite(late)], whole[np.isfinite(whole)])
    late = late if late.size and np.ptp(late) > 0 and np.ptp(whole) > FLATTENED * np.ptp(late) else whole
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
    axes.set_ylim((bottom, top) if metric == "loss" else (max(bottom, -0.01), min(top, 1.01)))  # 0 <= accuracy <= 1


def _mark_published(axes: Axes, given: Sequence[tuple[int, float]]) -> None:
    """Draw a triangle at the right edge for each (place, value). The triangles of nearly equal values are side by side."""
    bottom, top = axes.get_ylim()
    for number, (place, value) in enumerate(given):
        before = sum(abs(value - other) < NEAR * (top - bottom) for _, other in given[:number])
        style: dict[str, Any] = {"marker": "<", "ms": 6, "ls": "", "color": _look(place)["color"], "clip_on": False}
        axes.plot([1.018 + 0.026 * before], [value], transform=axes.get_yaxis_transform(), **style)
