"""Tests of the plot of predictions against true values and of residuals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.figures import check_no_overlap, draw

from fastmlp.reports import regression
from fastmlp.reports.regression import plot_predictions

RNG = np.random.default_rng(0)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which every saved figure is appended, drawn with the same layout as in its file."""
    found: list[Any] = []
    save = regression.save

    def kept(figure: Any, path: Path) -> None:
        save(figure, path)
        found.append(draw(figure))

    monkeypatch.setattr(regression, "save", kept)
    return found


def points(axes: Any) -> Any:
    (drawn,) = axes.collections
    return np.asarray(drawn.get_offsets())


@pytest.mark.parametrize(("rows", "targets", "scale"), [(1, 1, 1), (40, 1, 1e7), (40, 3, 1e-6), (300, 4, 100)])
def test_all_points_of_up_to_four_targets(rows: int, targets: int, scale: float, figures: list[Any], tmp_path: Path) -> None:
    true = scale * RNG.normal(size=(rows, targets))
    said = true + 0.1 * scale * RNG.normal(size=(rows, targets))
    names, metrics = [f"price in ${k}$" for k in range(targets)], [f"R² 0.{k}" for k in range(targets)]
    plot_predictions(true.astype(np.float32), said, names, metrics, tmp_path / "a.png", "houses, test split")
    (figure,) = figures
    assert figure.get_suptitle() == f"houses, test split: {rows} rows"
    check_no_overlap(figure)
    true = true.astype(np.float32).astype(float)
    for target, (left, right) in enumerate(zip(figure.axes[::2], figure.axes[1::2], strict=True)):
        order = np.argsort(true[:, target])
        wanted = np.c_[true[:, target], said[:, target]][order]
        found = points(left)
        np.testing.assert_allclose(found[np.argsort(found[:, 0])], wanted)
        residuals = np.c_[said[:, target], true[:, target] - said[:, target]]
        found = points(right)
        np.testing.assert_allclose(
            found[np.argsort(found[:, 0])], residuals[np.argsort(said[:, target])], rtol=1e-9, atol=1e-9 * scale
        )
        assert (left.get_xlabel(), left.get_ylabel()) == (f"true {names[target]}", f"predicted {names[target]}")
        assert (right.get_xlabel(), right.get_ylabel()) == (f"predicted {names[target]}", "residual (true − predicted)")
        assert left.get_title() == metrics[target]
        assert left.get_xlim() == left.get_ylim()
        (identity,) = left.lines
        assert (identity.get_slope(), np.ptp(identity.get_xy1())) == (1, 0)  # through a point (a, a)


def test_many_rows_are_sampled_and_many_targets_left_out(figures: list[Any], tmp_path: Path) -> None:
    true = RNG.normal(size=(5000, 6))
    for name in ("a.png", "b.png"):
        plot_predictions(true, true + 1, ["y"] * 6, ["R²"] * 6, tmp_path / name, "many")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    figure = figures[0]
    assert figure.get_suptitle() == "many: 3,000 of 5,000 rows, the first 4 of 6 targets"
    assert len(figure.axes) == 8
    for target, (left, right) in enumerate(zip(figure.axes[::2], figure.axes[1::2], strict=True)):
        shown = points(left)
        assert len(np.unique(shown[:, 0])) == 3000
        assert np.isin(shown[:, 0], true[:, target]).all()
        np.testing.assert_allclose(points(right)[:, 1], -1)


def test_constant_values(figures: list[Any], tmp_path: Path) -> None:
    values = np.ones((9, 1))
    plot_predictions(values, values, ["a name that is far too long to be shown"], [""], tmp_path / "a.png", "t")
    (figure,) = figures
    assert figure.axes[0].get_xlim() == (0, 2)
    assert figure.axes[0].get_xlabel() == "true a name that is far too …"
