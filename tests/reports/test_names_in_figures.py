"""Tests that names from data and files are shown in figures unparsed, on one line and shortened, with any characters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fastmlp.bench import report as bench_report
from fastmlp.errors import printable
from fastmlp.experiments.comparison import legend_labels
from fastmlp.models.metrics import classification_metrics
from fastmlp.reports import comparison, confusion, curves, images, learning_rate, regression, style
from fastmlp.reports.comparison import Curve, Panel, plot_comparison
from fastmlp.reports.confusion import plot_classes, plot_confusion
from fastmlp.reports.curves import plot_band, plot_curves
from fastmlp.reports.images import plot_filters, plot_inputs, plot_maps, plot_mistakes, plot_projection
from fastmlp.reports.regression import plot_predictions

# Matplotlib raises an error if it parses "$\frac$" as math; "{x}" and "%s" are for other parsers.
STRANGE = "_$\\frac$ {x} %s \x1b]0;title\x07\ta\nb\u202e\x9b\udcff\U000e0001"
NAMES = {"strange": STRANGE, "long": "wide \u732b$\udcff" * 20_000}
RNG = np.random.default_rng(0)
HISTORY = [{"epoch": epoch, "loss": 1 / epoch, "val_loss": 2 / epoch, "val_accuracy": 0.5} for epoch in (1, 2)]
PICTURES = RNG.integers(0, 256, (2, 4, 4), np.uint8)


def draw_comparison(name: str, path: Path) -> None:
    labels = legend_labels([f"{name}1", f"{name}2", "other"])
    runs = [Curve(label, place, HISTORY, 1, None) for place, label in enumerate(labels)]
    plot_comparison([Panel(name, metric, runs) for metric in ("accuracy", "loss")], path, name)


def draw_classes(name: str, path: Path) -> None:
    names, labels = (name, "other"), np.array([0, 1])
    plot_classes([{"epoch": 1, "train": classification_metrics(labels, labels, names)}], names, path)


def draw_learning_rate(name: str, path: Path) -> None:
    rates, losses = np.geomspace(1e-3, 1, 5), np.array([3.0, 2, 1, 2, 3])
    with style.own_style():
        style.save(learning_rate.learning_rate_figure(rates, losses, losses, 0.1, name), path)


def draw_bench(name: str, path: Path) -> None:
    row = {"network": "2-3-2", "batch": 64, "rows": 9, "data": name, "backend": "numpy", "threads": 1, "gflops": 1.0}
    row |= {"seconds_per_epoch": 1.0, "least": 1.0, "most": 1.0, "seconds": [1.0]}
    machine = {"cores": 2, "processor": name, "date": "2026-11-21"}
    result = {"machine": machine, "ceiling": [], "rows": [row], "verdicts": [{"network": "2-3-2", "batch": 64}]}
    bench_report.plot_bench(result, path)


TWO = np.array([0, 1])
FIGURES: dict[str, Callable[[str, Path], None]] = {
    "comparison": draw_comparison,
    "confusion": lambda name, path: plot_confusion([[1, 2], [3, 4]], [name, "other"], path, name),
    "classes": draw_classes,
    "curves": lambda name, path: plot_curves(HISTORY, 1, path, name),
    "band": lambda name, path: plot_band([HISTORY, HISTORY], path, name),
    "filters": lambda name, path: plot_filters(PICTURES.astype(float), path, name),
    "maps": lambda name, path: plot_maps(PICTURES[0], PICTURES.astype(float), path, name),
    "projection": lambda name, path: plot_projection(RNG.normal(size=(2, 3)), TWO, [name, "other"], path, name),
    "mistakes": lambda name, path: plot_mistakes(PICTURES, TWO, 1 - TWO, np.ones(2), [name, "other"], path, name),
    "inputs": lambda name, path: plot_inputs(list(PICTURES), [(name, name)] * 2, path, 2),
    "predictions": lambda name, path: plot_predictions(np.eye(2), np.eye(2), [name] * 2, [name] * 2, path, name),
    "learning rate": draw_learning_rate,
    "bench": draw_bench,
}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved during a test."""
    saved: list[Figure] = []

    def save(figure: Figure, path: Any) -> None:
        saved.append(figure)
        style.save(figure, path)

    for module in (comparison, confusion, curves, images, regression, bench_report):
        monkeypatch.setattr(module, "save", save)
    return saved


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("figure", FIGURES)
def test_names_are_shown_in_every_figure(figure: str, kind: str, figures: list[Figure], tmp_path: Path) -> None:
    FIGURES[figure](NAMES[kind], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert max(picture.size) < 6000
    for text in [text for saved in figures for text in saved.findobj(Text)]:
        assert isinstance(text, Text)
        shown = text.get_text()
        assert all(line == printable(line) and len(line) <= style.LONGEST_TITLE for line in shown.split("\n")), shown
        assert "$" not in shown or not text.get_parse_math(), shown


def test_figures_of_different_runs_have_different_labels() -> None:
    long = "a" * 1000
    assert legend_labels(["a", "b"]) == ["a", "b"]
    assert [len(label) for label in legend_labels([f"{long[:80]}1", f"{long[:80]}2"])] == [81, 81]
    labels = legend_labels([f"{long}1", "b", f"{long}2"])
    assert len({*labels}) == 3 and max(map(len, labels)) < 60


def test_lines_of_a_title_are_kept() -> None:
    assert style.new_figure(1, 1, "one\ntwo\tthree").get_suptitle() == "one\ntwo\\tthree"
