"""Checks that texts and legends of Matplotlib figures do not overlap."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.axis import Axis, Tick
from matplotlib.figure import Figure
from matplotlib.text import Text


def draw(figure: Figure) -> Figure:
    """Render a figure, so that the positions of its texts are known."""
    figure.canvas.draw()
    return figure


def shown_ticks(axis: Axis) -> list[Tick]:
    """Return the major ticks inside the axis limits."""
    low, high = sorted(axis.get_view_interval())
    return [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def texts(figure: Figure) -> list[Text]:
    """Return all visible texts, except labels of ticks outside the axis limits and labels of axes that are turned off."""
    candidates = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    found = {text for text in candidates if text.get_visible() and text.get_text().strip()}
    for axes in figure.findobj(Axes):
        assert isinstance(axes, Axes)
        if not axes.axison:
            found &= {*axes.texts, *figure.texts}
        for axis in (axes.xaxis, axes.yaxis):
            found -= {tick.label1 for tick in axis.get_major_ticks()} - {tick.label1 for tick in shown_ticks(axis)}
    return list(found)


def check_no_overlap(figure: Figure) -> None:
    """Check that no two texts overlap; texts rotated by 45 degrees are compared by the distance of their baselines."""
    boxes = [(text, text.get_window_extent()) for text in texts(figure)]
    for i, (one, box) in enumerate(boxes):
        for two, other in boxes[i + 1 :]:
            if one.get_rotation() == two.get_rotation() == 45:
                distance = abs(box.x1 - other.x1) / math.sqrt(2)
                apart = distance > float(one.get_fontsize()) * figure.dpi / 72
            else:
                apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0
            assert apart, f"{one.get_text()!r} overlaps {two.get_text()!r}"


def check_legend_beside_panels(figure: Figure) -> None:
    """Check that the legend overlaps no panel."""
    (legend,) = figure.legends
    for axes in figure.axes:
        panel = axes.get_tightbbox()
        assert panel is not None
        assert not legend.get_window_extent().overlaps(panel)
