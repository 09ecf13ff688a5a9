"""Tests of the figure of a learning-rate range test: it has the right content, and texts do not overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from support.figures import check_legend_beside_panels, check_no_overlap, draw
from support.problems import problem

from fastmlp import LearningRateCurve, Network, find_learning_rate
from fastmlp.reports import style

TITLE = "Learning-rate range test: fashion-mnist, 784x400x250x100x10, momentum"


def make_curve(count: int, last: float = 1e-0, loss: float = 2.3) -> LearningRateCurve:
    """Return a curve of `count` values that falls, and in the last tenth increases by many orders of magnitude."""
    places = np.linspace(0, 1, count)
    losses = loss * (1 - 0.8 * places**4) + 0.05 * loss * np.random.default_rng(count).normal(size=count)
    losses[-max(1, count // 10) :] *= 1e12
    rates = np.geomspace(1e-7, last, count)
    return LearningRateCurve(rates, losses, losses * 1.01, float(rates[2 * count // 3]))


@pytest.mark.parametrize(
    "curve",
    [
        make_curve(12),
        make_curve(200),
        make_curve(1000, 10),
        make_curve(100, 2e-7),
        make_curve(50, 1e30),
        make_curve(90, 1, 1e7),
    ],
    ids=["few", "default", "many", "one decade", "wide", "large losses"],
)
def test_the_figure_shows_the_curve_without_overlaps(curve: LearningRateCurve) -> None:
    with style.own_style():
        figure = draw(curve.plot(TITLE))
        check_no_overlap(figure)
        check_legend_beside_panels(figure)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "learning rate", "loss")
    lines: dict[str, Any] = {str(line.get_label()): line for line in axes.get_lines()}
    assert set(lines) == {"mini-batch", "smoothed", f"suggestion {curve.suggestion:.3g}"}
    for label, values in (("mini-batch", curve.losses), ("smoothed", curve.smoothed)):
        assert lines[label].get_xdata().tolist() == curve.learning_rates.tolist()
        assert lines[label].get_ydata().tolist() == values.tolist()
    assert set(lines[f"suggestion {curve.suggestion:.3g}"].get_xdata()) == {curve.suggestion}
    low, high = axes.get_ylim()
    before = curve.losses[: curve.smoothed.argmin() + 1]
    assert low < before.min() < before.max() < high < 2 * before.max()  # diverging losses do not determine the axis


def test_a_notebook_displays_the_figure_of_a_test(tmp_path: Any) -> None:
    x, y = problem(60)
    figure = find_learning_rate(Network(hidden=(8,)), (x, y), backend="numpy").plot()
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == "Learning-rate range test"
    style.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == figure._repr_png_()  # type: ignore[attr-defined]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > picture.size[1] > 400
