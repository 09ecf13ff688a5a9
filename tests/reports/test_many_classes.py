"""Tests of figures and reports of more than 200 classes: they show 20 classes, and read both formats of confusion matrices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.figures import check_legend_beside_panels, check_no_overlap, draw

from fastmlp.commands.common.console import show_reports
from fastmlp.errors import DataError
from fastmlp.models.metrics import classification_metrics
from fastmlp.reports import confusion, images
from fastmlp.reports.confusion import plot_classes, plot_confusion
from fastmlp.reports.images import plot_projection
from fastmlp.reports.text import DENSE_CLASSES, classification_report

K = 300
NAMES = tuple(f"class ${number}" for number in range(K))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which every saved figure is appended, drawn with the same layout as in its file."""
    found: list[Any] = []
    save = confusion.save

    def kept(figure: Any, path: Path) -> None:
        save(figure, path)
        found.append(draw(figure))

    for module in (confusion, images):
        monkeypatch.setattr(module, "save", kept)
    return found


def metrics_of(seed: int = 0, k: int = K) -> dict[str, Any]:
    """Return metrics of 4,000 rows, in which some classes have many more rows than others."""
    rng = np.random.default_rng(seed)
    truth, other = (k * rng.random((2, 4000)) ** 2).astype(int)
    return classification_metrics(truth, np.where(rng.random(4000) < 0.5, truth, other), NAMES[:k])


def dense(matrix: Any) -> Any:
    """Return a confusion matrix in coordinate format as an array (k, k)."""
    counts = np.zeros(matrix["shape"], int)
    counts[matrix["row"], matrix["column"]] = matrix["count"]
    return counts


def most_confused(counts: Any) -> list[int]:
    """Return the 20 classes with the most rows outside the diagonal, in their row or in their column."""
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    ranked = sorted(range(len(counts)), key=lambda number: (-wrong[number].sum() - wrong[:, number].sum(), number))
    return sorted(ranked[:20])


def test_the_figure_shows_the_most_confused_classes(figures: list[Any], tmp_path: Path) -> None:
    metrics = metrics_of()
    counts = dense(metrics["confusion"])
    plot_confusion(metrics["confusion"], NAMES, tmp_path / "a.png", "Digits")
    (figure,) = figures
    check_no_overlap(figure)
    chosen = most_confused(counts)
    assert chosen != list(range(20))
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == [NAMES[number] for number in chosen]
    shown = counts[np.ix_(chosen, chosen)]
    found = {text.get_position(): int(text.get_text()) for text in axes.texts}
    assert found == {(j, i): count for (i, j), count in np.ndenumerate(shown)}
    # The colour is the fraction of all rows of the true class, also of those that are predicted as a class that is not shown.
    assert np.allclose(axes.images[0].get_array(), shown / counts.sum(axis=1)[chosen, None])
    first, second = figure.get_suptitle().splitlines()
    assert first == f"Digits: accuracy {metrics['accuracy']:.4f}, 4,000 rows"
    assert second == "20 of 300 classes, those with the most confusions"


def test_matrices_in_both_formats_give_the_same_figures(tmp_path: Path) -> None:
    """Results that were written in the dense format are still read."""
    for k in (3, K):
        counts = dense(metrics_of()["confusion"])[:k, :k]
        row, column = counts.nonzero()
        cells = {"row": row.tolist(), "column": column.tolist(), "count": counts[row, column].tolist()}
        plot_confusion({"format": "coo", "shape": [k, k], **cells}, NAMES[:k], tmp_path / "coo.png")
        plot_confusion(counts.tolist(), NAMES[:k], tmp_path / "dense.png")
        assert (tmp_path / "coo.png").read_bytes() == (tmp_path / "dense.png").read_bytes()
    rows = [{"epoch": epoch, "validation": metrics_of(epoch)} for epoch in (1, 2)]
    old = [
        row | {"validation": row["validation"] | {"confusion": dense(row["validation"]["confusion"]).tolist()}} for row in rows
    ]
    plot_classes(rows, NAMES, tmp_path / "coo.png")
    plot_classes(old, NAMES, tmp_path / "dense.png")
    assert (tmp_path / "coo.png").read_bytes() == (tmp_path / "dense.png").read_bytes()


def test_the_largest_matrix_that_is_shown_completely(figures: list[Any], tmp_path: Path) -> None:
    metrics = metrics_of(k=DENSE_CLASSES)
    plot_confusion(metrics["confusion"], NAMES[:DENSE_CLASSES], tmp_path / "a.png")
    assert figures[0].axes[0].images[0].get_array().shape == (DENSE_CLASSES, DENSE_CLASSES)
    assert "most confusions" not in figures[0].get_suptitle()


def test_the_figure_of_a_model_without_mistakes_shows_the_first_classes(figures: list[Any], tmp_path: Path) -> None:
    y = np.arange(K)
    plot_confusion(classification_metrics(y, y, NAMES)["confusion"], NAMES, tmp_path / "a.png")
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == list(NAMES[:20])
    assert "accuracy 1.0000" in figures[0].get_suptitle()


def test_a_sparse_matrix_of_another_shape_than_the_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shape \(300, 300\) with 299 classes; pass a \(k, k\) matrix"):
        plot_confusion(metrics_of()["confusion"], NAMES[1:], tmp_path / "a.png")


def test_classes_over_epochs_are_those_with_the_most_confusions_in_the_last_epoch(figures: list[Any], tmp_path: Path) -> None:
    rows = [{"epoch": epoch, "validation": metrics_of(epoch)} for epoch in (2, 4)]
    plot_classes(iter(rows), NAMES, tmp_path / "a.png")
    (figure,) = figures
    check_no_overlap(figure)
    first, last = (dense(row["validation"]["confusion"]) for row in rows)
    chosen = most_confused(last)
    assert chosen != most_confused(first)
    curves, *matrices = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{number}  {NAMES[number]}" for number in chosen]
    for line, number in zip(curves.lines, chosen, strict=True):
        recalls = [row["validation"]["per_class"][number]["recall"] for row in rows]
        assert list(line.get_ydata()) == recalls
    for axes, counts in zip(matrices, (first, last), strict=True):
        expected = counts[np.ix_(chosen, chosen)] / np.maximum(counts.sum(axis=1), 1)[chosen, None]
        assert np.allclose(axes.images[0].get_array(), expected)
        for axis in (axes.xaxis, axes.yaxis):
            labels = [
                (int(place), label.get_text()) for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            ]
            assert labels == [(place, str(chosen[place])) for place in range(0, 20, 4)]
    assert figure.get_suptitle().endswith("20 of 300 classes, those with the most confusions in epoch 4")


def test_a_projection_has_colours_for_the_most_frequent_classes(figures: list[Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = (K * rng.random(2500) ** 2).astype(int)
    plot_projection(rng.normal(size=(2500, 3)), labels, NAMES, tmp_path / "a.png", "Features")
    (figure,) = figures
    check_no_overlap(figure)
    check_legend_beside_panels(figure)
    counts = np.bincount(labels, minlength=K)
    chosen = sorted(sorted(range(K), key=lambda number: (-counts[number], number))[:20])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [*(NAMES[number] for number in chosen), "280 other classes"]
    sizes = [len(points.get_offsets()) for points in figure.axes[0].collections]
    assert sizes == [*counts[chosen].tolist(), 2500 - counts[chosen].sum()]


def test_a_report_on_a_terminal_lists_200_classes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = metrics_of()
    show_reports({"test": metrics})
    assert capsys.readouterr().out == classification_report(metrics)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    show_reports({"test": metrics})
    lines, whole = capsys.readouterr().out.splitlines(), classification_report(metrics).splitlines()
    assert lines[: 2 + DENSE_CLASSES] == whole[: 2 + DENSE_CLASSES]
    assert lines[2 + DENSE_CLASSES] == "(100 more classes; redirect the output to a file to see all of them)"
    assert lines[3 + DENSE_CLASSES :] == whole[2 + K :]
    show_reports({"test": metrics_of(k=DENSE_CLASSES)})
    assert "more classes" not in capsys.readouterr().out
