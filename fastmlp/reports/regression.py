"""Plot the predictions of a regression model against the true values, and the residuals against the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmlp.reports.style import BLUE, ORANGE, light_grid, new_figure, own_style, save, title_text
from fastmlp.reports.text import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = npt.NDArray[Any]
MOST_TARGETS = 4  # maximum number of targets in a figure
MOST_POINTS = 3000  # maximum number of rows in a figure
FEW_POINTS = 300  # with more rows, the points are smaller and transparent
LONGEST_NAME = 24  # maximum number of characters of the name of a target


def plot_predictions(
    truth: Array, predicted: Array, names: Sequence[str], metrics: Sequence[str], path: Path, title: str
) -> None:
    """Write a PNG file with a row of two panels per target: predicted against true values, and residuals against predictions.

    A residual is a true value minus its prediction. At most 4 targets and 3,000 rows are drawn. The rows are chosen at random
    with a fixed seed.

    Parameters
    ----------
    truth, predicted : (n, k) true and predicted values, finite
    names : names of the targets; they may be empty
    metrics : texts with the metrics of each target, which are the titles of its panels
    path : file to write; it is replaced atomically
    title : title of the figure, to which the number of rows is appended
    """
    rows, targets = truth.shape
    shown = min(targets, MOST_TARGETS)
    chosen = np.random.default_rng(0).permutation(rows)[:MOST_POINTS]
    truth, predicted = (values[chosen, :shown].astype(np.float64) for values in (truth, predicted))
    title += f": {len(chosen):,} of {rows:,} rows" if len(chosen) < rows else f": {rows:,} rows"
    title += f", the first {shown} of {targets} targets" if shown < targets else ""
    with own_style():
        figure = new_figure(9.6, 0.5 + 4.0 * shown, title)
        figure.set_layout_engine("constrained", h_pad=0.12)
        panels = figure.subplots(shown, 2, squeeze=False)
        for target, (left, right) in enumerate(panels):
            name = short_name(names[target], LONGEST_NAME)
            _draw_against_truth(left, truth[:, target], predicted[:, target], name)
            _draw_residuals(right, truth[:, target], predicted[:, target], name)
            left.set_title(title_text(metrics[target]), fontsize=9, parse_math=False)
        save(figure, path)


def _draw_against_truth(axes: Axes, truth: Array, predicted: Array, name: str) -> None:
    """Draw the predictions against the true values, with the line on which both are equal."""
    ends = np.array([min(truth.min(), predicted.min()), max(truth.max(), predicted.max())])
    axes.scatter(truth, predicted, **_style(len(truth)))
    axes.axline((ends[0], ends[0]), slope=1, color=ORANGE, lw=1.4, label="predicted = true")
    margin = 0.04 * (ends[1] - ends[0]) or 1.0
    axes.set(xlim=(ends[0] - margin, ends[1] + margin), ylim=(ends[0] - margin, ends[1] + margin), aspect="equal")
    axes.legend(loc="upper left", frameon=False)
    _label(axes, f"true {name}".rstrip(), f"predicted {name}".rstrip())


def _draw_residuals(axes: Axes, truth: Array, predicted: Array, name: str) -> None:
    """Draw the residuals against the predictions, with the line of zero residuals."""
    axes.scatter(predicted, truth - predicted, **_style(len(truth)))
    axes.axhline(0, color=ORANGE, lw=1.4)
    _label(axes, f"predicted {name}".rstrip(), "residual (true − predicted)")


def _style(points: int) -> dict[str, Any]:
    size, alpha = (16, 0.7) if points <= FEW_POINTS else (7, 0.35)
    return {"s": size, "alpha": alpha, "color": BLUE, "linewidths": 0}


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.locator_params(nbins=6)
    light_grid(axes)
