"""Plot the result of a learning-rate range test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastmlp.reports.style import BLUE, GREEN, GREY, light_grid, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def learning_rate_figure(
    learning_rates: NDArray[np.float64],
    losses: NDArray[np.float64],
    smoothed: NDArray[np.float64],
    suggestion: float,
    title: str,
) -> Figure:
    """Return a figure of the loss of each mini-batch and the smoothed loss over the learning rate, and of the suggestion.

    The axis of the loss ends at the largest loss before the minimum of the smoothed loss, because the losses of diverging
    training may be larger by many orders of magnitude.

    Parameters
    ----------
    learning_rates, losses, smoothed : (n,)
    suggestion : learning rate that is marked
    title : title of the figure
    """
    figure = new_figure(6.4, 4.2, title)
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.plot(learning_rates, losses, lw=0.7, color=GREY, label="mini-batch")
    axes.plot(learning_rates, smoothed, lw=1.8, color=BLUE, label="smoothed")
    axes.axvline(suggestion, color=GREEN, lw=1.4, ls="--", zorder=1, label=f"suggestion {suggestion:.3g}")
    low, high = losses.min(), losses[: smoothed.argmin() + 1].max()
    margin = 0.08 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    light_grid(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
