"""Tests of the plots of filters, feature maps, projections, mistakes and classes: texts do not overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.figures import check_legend_beside_panels, check_no_overlap, draw

from fastmlp.models.metrics import classification_metrics
from fastmlp.reports import confusion
from fastmlp.reports import images as pictures
from fastmlp.reports.confusion import MATRICES, plot_classes
from fastmlp.reports.images import plot_filters, plot_inputs, plot_maps, plot_mistakes, plot_projection, principal

RNG = np.random.default_rng(0)
LONG = [f"a class with a rather long name {number}" for number in range(12)]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which every saved figure is appended, drawn with the same layout as in its file."""
    found: list[Any] = []
    save = pictures.save

    def kept(figure: Any, path: Path) -> None:
        save(figure, path)
        found.append(draw(figure))

    for module in (pictures, confusion):
        monkeypatch.setattr(module, "save", kept)
    return found


def tiles_of(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.images]


@pytest.mark.parametrize("count", [1, 3, 8, 17, 48])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_inputs(count: int, channels: tuple[int, ...], figures: list[Any], tmp_path: Path) -> None:
    images = list(RNG.integers(0, 256, (count, 9, 7, *channels), np.uint8))
    captions = [(f"{LONG[number % 12]}.png", f"a long class name, number {number}  0.9987") for number in range(count)]
    plot_inputs(images, captions, tmp_path / "a.png", max(count, 20))
    (figure,) = figures
    check_no_overlap(figure)
    (axes,) = figure.axes
    for drawn, text, image, (name, _) in zip(axes.images, axes.texts, images, captions, strict=True):
        assert text.get_text() == f"{name[:11]}…{name[-8:]}\na long clas…  0.9987"
        np.testing.assert_array_equal(drawn.get_array(), image)
        assert drawn.get_clim() == (0, 255)
    shown = f"the first {count} of 20 images" if count < 20 else f"{count} images"
    assert figure.get_suptitle() == f"Model inputs: {shown}"


@pytest.mark.parametrize("count", [1, 7, 20])
def test_filters_and_maps(count: int, figures: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_TILES", 12)
    filters, maps = RNG.normal(size=(count, 5, 5)), RNG.random((count, 14, 14))
    plot_filters(filters, tmp_path / "a.png", "Filters")
    plot_maps(RNG.integers(0, 256, (28, 28)), maps, tmp_path / "b.png", "Maps")
    shown = min(count, 12)
    for figure, more in zip(figures, (0, 1), strict=True):
        check_no_overlap(figure)
        tiles = tiles_of(figure)
        assert len(tiles) == shown + more
        assert [axes.get_title() for axes in tiles[more:]] == [str(number) for number in range(1, shown + 1)]
        assert figure.axes[-1].get_ylabel() == ("output after ReLU" if more else "weight")
    assert ("the first 12 of 20" in figures[0].get_suptitle()) == (count == 20)
    np.testing.assert_array_equal(tiles_of(figures[0])[-1].images[0].get_array(), filters[shown - 1])
    bound = np.abs(filters).max()
    assert tiles_of(figures[0])[0].images[0].get_clim() == (-bound, bound)
    assert tiles_of(figures[1])[0].get_title() == "input"


def test_filters_of_zeros(figures: list[Any], tmp_path: Path) -> None:
    plot_filters(np.zeros((2, 3, 3)), tmp_path / "a.png", "Filters")
    plot_maps(np.zeros((4, 4)), np.zeros((2, 3, 3)), tmp_path / "b.png", "Maps")
    assert all(tiles_of(figure)[-1].images[0].get_clim()[1] == 1 for figure in figures)


@pytest.mark.parametrize("classes", [["no", "yes"], [str(digit) for digit in range(10)], LONG, [str(n) for n in range(60)]])
def test_projection_shows_every_class_in_the_legend(classes: list[str], figures: list[Any], tmp_path: Path) -> None:
    labels = RNG.integers(0, len(classes), 500)
    plot_projection(RNG.normal(size=(500, 7)) + labels[:, None], labels, classes, tmp_path / "a.png", "Features")
    (figure,) = figures
    check_no_overlap(figure)
    check_legend_beside_panels(figure)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(classes)
    (axes,) = figure.axes
    assert [len(points.get_offsets()) for points in axes.collections] == np.bincount(labels, minlength=len(classes)).tolist()
    assert "first principal component (" in axes.get_xlabel()
    looks = {(points.get_facecolor().tobytes(), points.get_paths()[0].vertices.tobytes()) for points in axes.collections}
    assert len(looks) == min(len(classes), 50)


def test_principal_components_equal_eigenvectors_of_the_covariance() -> None:
    features = RNG.normal(size=(300, 5)) @ RNG.normal(size=(5, 5)) + 3
    points, shares = principal(features.astype(np.float32))
    values, vectors = np.linalg.eigh(np.cov(features.T))
    wanted = (features - features.mean(axis=0)) @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(points), np.abs(wanted), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(shares, values[[-1, -2]] / values.sum(), rtol=1e-4)
    assert (points[np.abs(points).argmax(axis=0), [0, 1]] > 0).all()
    for flat in (np.ones((4, 3)), np.arange(4.0)[:, None], np.zeros((1, 2))):
        points, shares = principal(flat)
        assert points.shape == (len(flat), 2)
        assert np.isfinite(points).all()
        assert np.isfinite(shares).all()


@pytest.mark.parametrize("wrong", [0, 7, 60])
@pytest.mark.parametrize("colour", [(), (3,)])
def test_most_confident_mistakes_come_first(wrong: int, colour: tuple[int, ...], figures: list[Any], tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (100, 9, 9, *colour), np.uint8)
    truth, probability = RNG.integers(0, 12, 100), RNG.random(100)
    predicted = truth.copy()
    predicted[:wrong] = (truth[:wrong] + 1) % 12
    plot_mistakes(images, truth, predicted, probability, LONG, tmp_path / "a.png", "Mistakes")
    (figure,) = figures
    more = ", the 24 most confident" if wrong == 60 else ""
    assert figure.get_suptitle() == f"Mistakes: {wrong} mistakes in 100 rows{more}"
    (axes,) = figure.axes
    worst = np.argsort(-probability[:wrong])[:24]
    for image, text, row in zip(axes.images, axes.texts, worst, strict=True):
        np.testing.assert_array_equal(image.get_array(), images[row])
        names = [LONG[k][:13] + "…" for k in (truth[row], predicted[row])]
        assert text.get_text() == f"true: {names[0]}\npred.: {names[1]}\nprobability {probability[row]:.1%}"
        below, box = image.get_window_extent(), text.get_window_extent()
        assert 0 < box.y0 - below.y1 < 0.1 * figure.dpi  # the text is above its image
        assert abs((box.x0 + box.x1) - (below.x0 + below.x1)) < 0.02 * figure.dpi
    check_no_overlap(figure)
    boxes = [artist.get_window_extent() for artist in (*axes.images, *axes.texts)]
    assert not any(one.overlaps(two) for number, one in enumerate(boxes) for two in boxes[number + 1 :])


@pytest.mark.parametrize("shape", [(5, 20), (20, 5), (40, 40)])
def test_images_of_mistakes_keep_their_aspect_ratio(shape: tuple[int, int], figures: list[Any], tmp_path: Path) -> None:
    images, truth = RNG.integers(0, 256, (7, *shape), np.uint8), np.zeros(7, int)
    plot_mistakes(images, truth, truth + 1, np.full(7, 1.25), ["a", "b"], tmp_path / "a.png", "Mistakes", score="score")
    (axes,) = figures[0].axes
    for image, text in zip(axes.images, axes.texts, strict=True):
        box = image.get_window_extent()
        assert box.height / box.width == pytest.approx(shape[0] / shape[1])
        assert 0 < text.get_window_extent().y0 - box.y1 < 0.1 * figures[0].dpi  # the text is directly above its image
    assert {text.get_text() for text in axes.texts} == {"true: a\npred.: b\nscore 1.25"}
    plot_mistakes(images[:1], truth[:1], truth[:1] + 1, np.ones(1), ["a", "b"], tmp_path / "b.png", "Mistakes")
    assert figures[1].get_suptitle() == "Mistakes: 1 mistake in 1 row"


def test_equal_input_gives_identical_files(tmp_path: Path) -> None:
    labels = RNG.integers(0, 3, 5000)
    features = RNG.normal(size=(5000, 4))
    for name in ("a.png", "b.png"):
        plot_projection(features, labels, ["a", "b", "$c$"], tmp_path / name, "Features")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_legends_show_class_names_unparsed(figures: list[Any], tmp_path: Path) -> None:
    classes = ["_background_", "$x^2$", "a\nb", "back\\slash$", "日本"]
    labels = np.arange(10) % 5
    plot_projection(RNG.normal(size=(10, 3)), labels, classes, tmp_path / "a.png", "Features")
    plot_classes([{"epoch": 1, "train": classification_metrics(labels, labels, tuple(classes))}], classes, tmp_path / "b.png")
    names = ["_background_", "$x^2$", r"a\nb", "back\\slash$", "日本"]
    for figure, wanted in zip(figures, (names, [f"{number}  {name}" for number, name in enumerate(names)]), strict=True):
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == wanted
        assert not any(text.get_parse_math() for text in legend.get_texts())


def measured(k: int, epochs: int, part: str) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(2, 2 * epochs + 1, 2):
        truth = RNG.integers(0, k, 400)
        predicted = np.where(RNG.random(400) < epoch / (2 * epochs + 1), truth, RNG.integers(0, k, 400))
        rows.append({"epoch": epoch, part: classification_metrics(truth, predicted, tuple(map(str, range(k))))})
    return rows


@pytest.mark.parametrize(("k", "epochs", "part"), [(2, 1, "train"), (10, 4, "validation"), (40, 25, "validation")])
def test_accuracy_of_classes_over_epochs(k: int, epochs: int, part: str, figures: list[Any], tmp_path: Path) -> None:
    rows, names = measured(k, epochs, part), [f"class ${number}" for number in range(k)]
    plot_classes(rows, names, tmp_path / "a.png")
    (figure,) = figures
    check_no_overlap(figure)
    curves, *matrices = figure.axes
    assert len(curves.lines) == min(k, 25)
    assert curves.lines[1].get_xdata().tolist() == [row["epoch"] for row in rows]
    assert list(curves.lines[1].get_ydata()) == [row[part]["per_class"][1]["recall"] for row in rows]
    assert part in figure.get_suptitle()
    shown = [axes.get_title() for axes in matrices]
    assert len(shown) == min(epochs, MATRICES)
    assert shown[-1] == f"epoch {rows[-1]['epoch']}: {rows[-1][part]['accuracy']:.4f}"
    counts = np.array(rows[0][part]["confusion"])
    assert np.allclose(matrices[0].images[0].get_array(), counts / np.maximum(counts.sum(1, keepdims=True), 1))
    plot_classes(rows, names, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
