"""Plot the loss and the accuracy of one run per epoch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.reports.style import BLUE, GREEN, ORANGE, epoch_axis, new_figure, own_style, save, scale_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_curves(
    history: Sequence[Mapping[str, Any]],
    best_epoch: int | None,
    path: str | os.PathLike[str],
    title: str = "Training",
) -> None:
    """Write a PNG file of the training and validation loss and accuracy per epoch, with the best epoch marked.

    Values that are None, such as the accuracy of a regression, are skipped. NaN and infinity interrupt the curve and are
    marked by a cross at the upper edge. The axis of the loss is logarithmic if the largest loss is at least 50 times the
    smallest.

    Parameters
    ----------
    history : one dict per epoch with `epoch` and any of `loss`, `accuracy`, `val_loss` and `val_accuracy`. Its optional item
        `steps` is a list of dicts with the same keys for evaluations within the epoch, where `epoch` is a fractional number.
    best_epoch : epoch whose weights were kept, or None
    path : file to write; it is replaced atomically
    title : title of the figure

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
    with own_style():
        save(curves_figure(history, best_epoch, title), path)


def curves_figure(history: Sequence[Mapping[str, Any]], best_epoch: int | None, title: str) -> Figure:
    """Return a figure with a panel for the loss, a panel for the accuracy if it was measured, and a legend below."""
    keys = [key for key in ("loss", "accuracy") if key == "loss" or _measured(history, key)]
    figure = new_figure(1.0 + 4.6 * len(keys), 4.2, title)
    handles: dict[str, Any] = {}
    for number, key in enumerate(keys):
        axes = figure.add_subplot(1, len(keys), number + 1)
        axes.set_xlabel("epoch")
        axes.set_ylabel(key)
        if history:
            _draw_panel(axes, history, key, best_epoch)
        else:
            axes.text(0.5, 0.5, "no epoch was completed", ha="center")
            axes.set_axis_off()
        lines, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def plot_band(histories: Sequence[Sequence[Mapping[str, Any]]], path: str | os.PathLike[str], title: str) -> None:
    """Write `band_figure` to a PNG file; raise DataError if the file cannot be written."""
    with own_style():
        save(band_figure(histories, title), path)


def band_figure(histories: Sequence[Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Return a figure of the loss and the accuracy per epoch over several runs that differ only in their seeds.

    Thin lines are the runs. A thick line is the mean, with a band of one sample standard deviation on either side; both end
    with the shortest run.
    """
    keys = [key for key in ("loss", "accuracy") if key == "loss" or _measured(histories[0], key)]
    figure = new_figure(1.0 + 4.6 * len(keys), 4.2, title)
    handles: dict[str, Any] = {}
    for number, key in enumerate(keys):
        axes = figure.add_subplot(1, len(keys), number + 1, xlabel="epoch", ylabel=key)
        shown = [_draw_band(axes, histories, *curve) for curve in _curves_of(key) if _measured(histories[0], curve[0])]
        if key == "loss":
            scale_loss(axes, np.concatenate(shown))
        epoch_axis(axes, 1, max(map(len, histories)))
        lines, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _curves_of(key: str) -> tuple[tuple[str, str, str], ...]:
    """Return the name in the history, the label and the colour of the training and the validation curve of a metric."""
    return (key, "training", BLUE), (f"val_{key}", "validation", ORANGE)


def _draw_band(
    axes: Axes, histories: Sequence[Sequence[Mapping[str, Any]]], name: str, label: str, color: str
) -> NDArray[np.float64]:
    """Draw the runs, their mean and the band of one metric; return the finite values that are drawn."""
    runs = [np.array([row[name] for row in history], np.float64) for history in histories]
    for run in runs:
        axes.plot(np.arange(1, len(run) + 1), run, lw=0.5, alpha=0.5, color=color)
    shortest = min(map(len, runs))
    common = np.array([run[:shortest] for run in runs])
    epochs, mean = np.arange(1, shortest + 1), common.mean(axis=0)
    deviation = common.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(shortest)
    axes.plot(epochs, mean, lw=1.8, color=color, label=f"{label}, mean")
    axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.2, lw=0, label=f"{label}, ± std. dev.")
    values = np.concatenate(runs)
    return values[np.isfinite(values)]


def _measured(history: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(row.get(key) is not None for row in history)


def _draw_panel(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, best_epoch: int | None) -> None:
    """Draw the training and validation curves of one metric, and the best epoch."""
    shown: list[NDArray[np.float64]] = []
    for (name, label, color), height in zip(_curves_of(key), (0.97, 0.92), strict=True):
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
        scale_loss(axes, np.concatenate([*shown, np.empty(0)]))
    else:
        axes.set_ylim(top=min(1.01, axes.get_ylim()[1]))  # accuracies are at most 1
    if best_epoch is not None:
        axes.axvline(best_epoch, color=GREEN, lw=1.4, ls="--", zorder=1, label=f"best epoch {best_epoch}")
    within = any(row.get("steps") for row in history)
    epoch_axis(axes, history[0]["epoch"] - within, history[-1]["epoch"])


def _draw_steps(axes: Axes, history: Sequence[Mapping[str, Any]], name: str, label: str, color: str) -> None:
    """Draw the values measured within epochs, if there are any."""
    steps = [step for row in history for step in row.get("steps", ()) if step.get(name) is not None]
    if steps:
        places, values = [step["epoch"] for step in steps], [step[name] for step in steps]
        axes.plot(places, values, lw=0.8, alpha=0.6, color=color, label=f"{label}, within epochs")
