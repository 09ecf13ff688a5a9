"""Tests of the plots of curves and confusion matrices: they have the right content, and texts do not overlap."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import sklearn.metrics  # noqa: F401 - imported early, since its first import uses NumPy's global generator
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from support.figures import check_legend_beside_panels, check_no_overlap, draw, shown_ticks, texts
from support.processes import ROOT

from fastmlp.errors import DataError
from fastmlp.reports import confusion as confusion_pictures
from fastmlp.reports import curves, style
from fastmlp.reports.text import short_name

NAN, INF = float("nan"), float("inf")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def make_history(epochs: int, *keys: str, first: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(epochs)
    rows = []
    for i in range(epochs):
        loss = 0.2 + 2 * math.exp(-6 * i / epochs) + 0.02 * rng.normal()
        figures = {"loss": loss, "accuracy": 1 - loss / 3, "val_loss": loss + 0.1, "val_accuracy": 0.95 - loss / 3}
        absent = dict.fromkeys(figures.keys() - set(keys)) if keys else {}
        rows.append({"epoch": first + i, **figures, **absent})
    return rows


def make_confusion(k: int, rows: int = 1000) -> list[list[int]]:
    rng = np.random.default_rng(k)
    return [rng.multinomial(rows, rng.dirichlet(0.2 + 40 * np.eye(k)[i])).tolist() for i in range(k)]


@pytest.fixture(autouse=True)
def own_style() -> Iterator[None]:
    """Apply the style that the public functions use when they draw a figure."""
    with style.own_style():
        yield


def lines_of(axes: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in axes.get_lines()}


@pytest.mark.parametrize(
    ("epochs", "keys"),
    [
        *((epochs, ()) for epochs in (1, 2, 3, 31, 200, 5000)),
        (7, ("loss", "accuracy")),
        (1, ("loss",)),
        (50, ("loss", "val_loss")),
    ],
)
def test_curves_show_the_history_without_overlaps(epochs: int, keys: tuple[str, ...]) -> None:
    history = make_history(epochs, *keys)
    best = max(1, epochs * 2 // 3)
    figure = draw(curves.curves_figure(history, best, "fashion-mnist 784x400x250x100x10"))
    check_no_overlap(figure)
    check_legend_beside_panels(figure)
    quantities = ["loss"] if keys and "accuracy" not in keys else ["loss", "accuracy"]
    assert [axes.get_ylabel() for axes in figure.axes] == quantities
    for axes, quantity in zip(figure.axes, quantities, strict=True):
        assert axes.get_xlabel() == "epoch"
        lines = lines_of(axes)
        expected = {"training": quantity, f"best epoch {best}": None}
        if not keys or "val_loss" in keys:
            expected["validation"] = f"val_{quantity}"
        assert set(lines) == set(expected)
        assert set(lines[f"best epoch {best}"].get_xdata()) == {best}
        for label, key in expected.items():
            if key is not None:
                assert lines[label].get_xdata().tolist() == [row["epoch"] for row in history]
                assert lines[label].get_ydata().tolist() == [row[key] for row in history]
        ticks = [tick.get_loc() for tick in shown_ticks(axes.xaxis)]
        assert ticks
        assert all(x == round(x) >= 1 for x in ticks)
        assert lines["training"].get_marker() == "o"
        assert epochs > 30 or lines["training"].get_markersize() >= 4  # so that a single epoch is visible
        assert axes.get_xlim()[0] < 1
        assert axes.get_xlim()[1] > epochs


def test_x_axis_starts_at_the_first_epoch_of_the_history() -> None:
    figure = draw(curves.curves_figure(make_history(5, first=51), 53, "resumed"))
    assert 50 <= figure.axes[0].get_xlim()[0] < 51


def test_values_measured_within_epochs_are_drawn_at_fractional_epochs() -> None:
    history = make_history(4)
    for row in history:
        at = [row["epoch"] - 1 + part for part in (0.4, 0.8)]
        row["steps"] = [{"epoch": e, "loss": row["loss"], "val_loss": 2 - e / 10, "val_accuracy": e / 10} for e in at]
    figure = draw(curves.curves_figure(history, 2, "steps"))
    check_no_overlap(figure)
    lines = {(axes.get_ylabel(), line.get_label()): line for axes in figure.axes for line in axes.lines}
    places = [0.4, 0.8, 1.4, 1.8, 2.4, 2.8, 3.4, 3.8]
    line = lines["loss", "validation, within epochs"]
    np.testing.assert_allclose(line.get_xdata(), places)
    np.testing.assert_allclose(line.get_ydata(), [2 - place / 10 for place in places])
    assert ("accuracy", "validation, within epochs") in lines
    assert ("accuracy", "training, within epochs") not in lines  # the history has no such values
    assert figure.axes[0].get_xlim()[0] == 0


def test_empty_history() -> None:
    figure = draw(curves.curves_figure([], None, "stopped at once"))
    assert {text.get_text() for text in texts(figure)} == {"stopped at once", "no epoch was completed"}


@pytest.mark.parametrize(
    ("scale", "losses"),
    [
        ("linear", [2.0, 1.0, 0.5]),
        ("log", [2.0, 0.1, 1e-6]),
        ("log", [3.0, 0.5, 0.04]),
        ("linear", [2.0, 0.0]),
        ("linear", [1e9, -1.0]),
    ],
)
def test_losses_that_span_decades_get_a_logarithmic_axis(scale: str, losses: list[float]) -> None:
    history = [{"epoch": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    figure = draw(curves.curves_figure(history, 1, "t"))
    check_no_overlap(figure)
    axis = figure.axes[0].yaxis
    assert axis.get_scale() == scale
    shown = [tick.label1.get_text() for tick in shown_ticks(axis)]
    assert len(shown) >= 3
    assert all(re.fullmatch(r"[−-]?[0-9.]+(e[−+][0-9]+)?", text) for text in shown), shown


def test_values_that_are_not_finite_leave_a_gap_marked_by_a_cross() -> None:
    history = make_history(6)
    history[2]["loss"], history[3]["loss"], history[5]["val_loss"] = NAN, INF, -INF
    figure = draw(curves.curves_figure(history, 2, "t"))
    check_no_overlap(figure)
    training, crosses, *_ = figure.axes[0].get_lines()
    assert np.isnan(np.asarray(training.get_ydata())).tolist() == [False, False, True, True, False, False]
    assert np.asarray(crosses.get_xdata()).tolist() == [3, 4]
    assert crosses.get_marker() == "x"
    assert np.isfinite(figure.axes[0].get_ylim()).all()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(legend) == ["best epoch 2", "not finite", "training", "validation"]


def test_history_without_finite_values() -> None:
    figure = draw(curves.curves_figure([{"epoch": 1, "loss": NAN}, {"epoch": 2, "loss": INF}], None, "t"))
    check_no_overlap(figure)


def test_curves_bridge_missing_values_and_best_epoch_may_be_none() -> None:
    history = make_history(4)
    history[1]["val_loss"] = None
    lines = lines_of(draw(curves.curves_figure(history, None, "t")).axes[0])
    assert set(lines) == {"training", "validation"}
    assert lines["validation"].get_xdata().tolist() == [1, 3, 4]


def figure_of(counts: Any, names: Sequence[str], title: str = "digits") -> Figure:
    """Return the figure that `plot_confusion` would save."""
    found: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confusion_pictures, "save", lambda figure, path: found.append(figure))
        confusion_pictures.plot_confusion(counts, names, "a.png", title)
    return draw(found[0])


def confusion_figure(k: int, names: tuple[str, ...], rows: int = 1000) -> tuple[Any, Figure]:
    counts = np.array(make_confusion(k, rows))
    return counts, figure_of(counts, names)


CHINESE = tuple("甲" * i for i in range(1, 11))
LONG = tuple(f"{i}: a class name that is far too long to be shown" for i in range(300))


SHORT = tuple(map(str, range(300)))


@pytest.mark.parametrize(
    ("k", "names"),
    [
        *((k, names) for k in (1, 2, 10, 25, 100) for names in (SHORT, LONG)),
        (10, CLOTHES),
        (26, SHORT),
        (200, LONG),
        (10, CHINESE),
    ],
)
def test_confusion_labels_do_not_overlap(k: int, names: tuple[str, ...]) -> None:
    counts, figure = confusion_figure(k, names[:k])
    check_no_overlap(figure)
    axes = figure.axes[0]
    step = math.ceil(k / len(axes.get_xticks()))
    expected = [short_name(name) for name in names[:k:step]]
    assert [text.get_text() for text in axes.get_xticklabels()] == expected
    assert [text.get_text() for text in axes.get_yticklabels()] == expected
    assert step == 1 or k > 100
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert f"accuracy {np.trace(counts) / counts.sum():.4f}" in figure.get_suptitle()
    assert min(float(text.get_fontsize()) for text in axes.get_xticklabels()) >= 5
    top, bottom = axes.get_ylim()[1], axes.get_ylim()[0]
    assert top < bottom  # the first class is at the top


def test_overlap_check_fails_on_an_overlap() -> None:
    _, figure = confusion_figure(10, LONG[:10])
    for label in figure.axes[0].get_xticklabels():
        label.set(rotation=0, ha="center", rotation_mode="default")
    with pytest.raises(AssertionError, match="overlaps"):
        check_no_overlap(draw(figure))


@pytest.mark.parametrize(("k", "rows"), [(2, 50), (10, 1000), (12, 999_999), (25, 12_345_678)])
def test_counts_fit_their_cells(k: int, rows: int) -> None:
    counts, figure = confusion_figure(k, LONG[:k], rows)
    axes = figure.axes[0]
    found = {text.get_position(): int(text.get_text()) for text in axes.texts}
    assert found == {(j, i): int(n) for (i, j), n in np.ndenumerate(counts)}
    cell = axes.get_window_extent().width / k
    assert max(text.get_window_extent().width for text in axes.texts) < cell


def test_no_counts_with_more_than_25_classes() -> None:
    assert not confusion_figure(26, SHORT[:26])[1].axes[0].texts


def luminance(color: tuple[float, ...]) -> float:
    """Return the relative luminance of a colour as defined in WCAG 2.1."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_counts_are_readable_on_every_colour() -> None:
    for color in matplotlib.colormaps["Blues"](np.linspace(0, 1, 256)):
        dark, light = sorted((luminance(to_rgb(confusion_pictures._readable(color))), luminance(tuple(color))))
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    _, figure = confusion_figure(10, CLOTHES)
    assert {text.get_color() for text in figure.axes[0].texts if len(set(text.get_position())) == 1} == {"white"}


def test_colour_is_the_fraction_of_the_row() -> None:
    figure = figure_of([[1, 3], [0, 0]], ["a", "b"], "t")
    (image,) = figure.axes[0].images
    assert np.asarray(image.get_array()).tolist() == [[0.25, 0.75], [0.0, 0.0]]
    assert image.norm.vmin == 0
    assert image.norm.vmax == 1


def test_names_are_not_parsed_as_math(tmp_path: Path) -> None:
    names = ["$a_1$", "b\x1b[31m\nx", "鱼类", "\U0001f600", "%s {x}"]
    figure = figure_of(np.eye(5, dtype=int), names, "$t_1$")
    labels = [*figure.axes[0].get_xticklabels(), *figure.axes[0].get_yticklabels()]
    assert not any(label.get_parse_math() for label in labels)
    assert labels[1].get_text() == r"b\x1b[31m\nx"
    confusion_pictures.plot_confusion(np.eye(5, dtype=int).tolist(), names, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("confusion", "classes"),
    [([[1, 2]], ["a"]), ([[1]], ["a", "b"]), ([], []), ([[1, 0], [0, 1]], ["a"]), ([1, 2], ["a", "b"])],
)
def test_confusion_of_another_shape_than_the_names(tmp_path: Path, confusion: Any, classes: list[str]) -> None:
    with pytest.raises(DataError, match=f"with {len(classes)} classes; pass a .k, k. matrix"):
        confusion_pictures.plot_confusion(confusion, classes, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_files_have_margins_and_no_metadata_but_dpi(tmp_path: Path) -> None:
    curves.plot_curves(make_history(9), 4, tmp_path / "curves.png")
    confusion_pictures.plot_confusion(make_confusion(10), CLOTHES, str(tmp_path / "confusion.png"))
    for name in ("curves.png", "confusion.png"):
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
            assert set(picture.info) == {"dpi"}  # no date, no version
            assert min(picture.size) > 500
            pixels = np.asarray(picture.convert("RGB"))
        for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
            assert (edge == 255).all()  # nothing is cut off
    with pytest.raises(DataError, match="missing"):
        curves.plot_curves(make_history(2), 1, tmp_path / "missing" / "curves.png")


PLOT = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from fastmlp.reports.confusion import plot_confusion
from fastmlp.reports.curves import plot_curves
assert "matplotlib" not in sys.modules
folder = Path(sys.argv[1])
rows = [{"epoch": i, "loss": 3 / i, "accuracy": 1 - 1 / (i + 1), "val_loss": 4 / i, "val_accuracy": 0.9} for i in range(1, 9)]
plot_curves(rows, 5, folder / "curves.png")
plot_confusion([[5, 1, 0], [2, 7, 1], [0, 0, 9]], ["ant", "bee", "$cat$"], folder / "confusion.png")
sys.exit("matplotlib.pyplot" in sys.modules)
"""


def plot_in_child(folder: Path, **environment: str) -> list[bytes]:
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in {"DISPLAY", "MPLBACKEND"}} | environment
    subprocess.run([sys.executable, "-W", "error", "-c", PLOT, str(folder)], cwd=ROOT, env=environment, check=True)
    return [(folder / name).read_bytes() for name in ("curves.png", "confusion.png")]


@pytest.mark.full
def test_files_are_identical_in_every_process_and_environment(tmp_path: Path) -> None:
    settings = tmp_path / "matplotlibrc"
    settings.write_text("axes.facecolor: black\nfont.size: 30\nsavefig.dpi: 20\ntext.usetex: True\nbackend: TkAgg\n")
    blocked = tmp_path / "file"
    blocked.write_text("")
    plain = plot_in_child(tmp_path / "plain", PYTHONHASHSEED="1")
    assert plot_in_child(tmp_path / "user", PYTHONHASHSEED="2", MATPLOTLIBRC=str(settings)) == plain
    assert plot_in_child(tmp_path / "blocked", MPLCONFIGDIR=str(blocked / "below"), DISPLAY="nowhere:7") == plain


def test_rcparams_of_the_user_are_unchanged(tmp_path: Path) -> None:
    matplotlib.rcParams["axes.facecolor"] = "black"
    before = dict(matplotlib.rcParams)
    curves.plot_curves(make_history(3), 2, tmp_path / "a.png")
    confusion_pictures.plot_confusion([[1, 0], [0, 1]], ["a", "b"], tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before


def test_a_figure_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, original = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: drawn.append(figure) or original(figure, renderer))
    curves.plot_curves(make_history(3), 2, tmp_path / "a.png")
    confusion_pictures.plot_confusion([[1, 0], [0, 1]], ["a", "b"], tmp_path / "b.png")
    assert len(drawn) == 2


def test_figures_in_notebooks_do_not_depend_on_the_settings_of_the_user() -> None:
    with style.own_style():
        first, second = (curves.curves_figure(make_history(3), 2, "t") for _ in range(2))
    expected = first._repr_png_()  # type: ignore[attr-defined]
    matplotlib.rcParams.update({"figure.autolayout": True, "savefig.facecolor": "black", "savefig.transparent": True})
    assert second._repr_png_() == expected  # type: ignore[attr-defined]
