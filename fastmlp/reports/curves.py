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
        save(_curves_figure(history, best_epoch, title), path)


def _curves_figure(history: Sequence[Mapping[str, Any]], best_epoch: int | None, title: str) -> Figure:
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


def _measured(history: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(row.get(key) is not None for row in history)


def _draw_panel(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, best_epoch: int | None) -> None:
    """Draw the training and validation curves of one metric, and the best epoch."""
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
