"""Tests of the polarity of images: drawings of the opposite polarity are recognized and inverted, photos never are."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.drawings import PAPERS, PHOTOS, Pixels, digit, digits, on_paper

import fastmlp
from fastmlp.data.images.centering import centered
from fastmlp.data.images.polarity import ImageStats, image_stats, inverted, is_opposite
from fastmlp.data.readers.image_conversion import to_row
from fastmlp.data.rows import Subset

SHAPE = (28, 28, 1)


def stats_of(x: Any, shape: tuple[int, int, int] = SHAPE) -> ImageStats:
    found = image_stats(x, shape)
    assert found is not None
    return found


def small(image: Pixels) -> Pixels:
    """Return an image as a row of 28 x 28 pixels, as `load_images` resizes it."""
    return to_row(Image.fromarray(image), SHAPE)[None]


LIGHT = stats_of(digits().x)
DARK = stats_of(255 - digits().x)

# ------------------------------------------------------------------------------------------------ statistics


def test_statistics_of_drawings_have_a_polarity() -> None:
    assert LIGHT.polarity == "light on dark"
    assert DARK.polarity == "dark on light"
    assert LIGHT.mean + DARK.mean == pytest.approx(255)


def test_statistics_are_those_of_evenly_spaced_rows() -> None:
    x = np.zeros((5000, 9), np.uint8)
    x[2500:, 4] = 90  # the rows may be sorted by class
    assert stats_of(x, (3, 3, 1)).mean == pytest.approx(5)


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_have_no_polarity_and_nothing_is_inverted(name: str) -> None:
    x = PHOTOS[name](np.random.default_rng(0))
    stats = stats_of(x)
    assert stats.polarity is None
    drawings = np.concatenate([digits().x[:50], 255 - digits().x[:50]])
    assert not is_opposite(np.concatenate([x, 255 - x, drawings]), SHAPE, stats).any()


def test_coloured_drawings_have_no_polarity_and_grey_ones_in_three_channels_do() -> None:
    grey = np.repeat(255 - digits().x[:60], 3, axis=1)
    assert stats_of(grey, (28, 28, 3)).polarity == "dark on light"
    coloured = grey.reshape(60, 784, 3).copy()
    coloured[:, :, 0] = 255  # red ink
    stats = stats_of(coloured.reshape(60, -1), (28, 28, 3))
    assert stats.colorfulness > 20
    assert stats.polarity is None


def test_statistics_of_a_subset_are_those_of_its_rows() -> None:
    rows = np.arange(0, 600, 3)
    assert image_stats(Subset(digits().x, rows), SHAPE) == image_stats(digits().x[rows], SHAPE)


def test_other_arrays_have_no_statistics() -> None:
    assert image_stats(digits().x.astype(np.float32), SHAPE) is None
    assert image_stats(digits().x, None) is None
    assert image_stats(digits().x, (28, 28, 3)) is None
    assert not is_opposite(255 - digits().x[:5], SHAPE, None).any()


def test_a_trained_model_has_the_statistics_of_its_training_images() -> None:
    images, y = digits().x[:200].reshape(-1, 28, 28), digits().y[:200]
    settings: dict[str, Any] = {"epochs": 1, "backend": "numpy"}
    model = fastmlp.train(fastmlp.Network(hidden=(4,)), (images, y), **settings).model
    assert model.image_stats == image_stats(digits().x[:200], SHAPE)
    model = fastmlp.train(fastmlp.Network(hidden=(4,)), (images / 255, y), **settings).model
    assert model.image_stats is None
    model = fastmlp.train(fastmlp.Network(hidden=(4,)), (images.reshape(200, -1), y), **settings).model
    assert model.image_stats is None


# ------------------------------------------------------------------------------------------------ recognition


@pytest.mark.parametrize("paper", PAPERS)
def test_ink_on_paper_is_opposite_to_light_on_dark_only(paper: str) -> None:
    for number in range(10):
        image = on_paper(digit(number), **PAPERS[paper])
        x = np.concatenate([small(image), small(255 - image)])
        assert is_opposite(x, SHAPE, LIGHT).tolist() == [True, False]
        assert is_opposite(x, SHAPE, DARK).tolist() == [False, True]


def test_training_images_are_never_opposite() -> None:
    assert not is_opposite(digits().x, SHAPE, LIGHT).any()
    assert not is_opposite(255 - digits().x, SHAPE, DARK).any()
    assert is_opposite(255 - digits().x, SHAPE, LIGHT).all()


def test_blank_images_are_not_opposite() -> None:
    blank = np.repeat(np.array([[0], [128], [255]], np.uint8), 784, axis=1)
    assert not is_opposite(blank, SHAPE, LIGHT).any()
    assert not is_opposite(blank, SHAPE, DARK).any()


# ------------------------------------------------------------------------------------------------ inversion


@pytest.mark.parametrize("paper", PAPERS)
def test_inverted_drawings_are_like_the_training_images(paper: str) -> None:
    similarity = 0.93 if paper == "shade and no margin" else 0.97  # strokes at the border impair the fit of the shade
    for number in range(10):
        clean = small(on_paper(digit(number), margin=PAPERS[paper].get("margin", 20)))
        image = small(on_paper(digit(number), **PAPERS[paper]))
        for x, stats, expected in ((image, LIGHT, 255 - clean), (255 - image, DARK, clean)):
            found = inverted(x, SHAPE, stats)
            background = np.abs(expected.astype(int) - stats.background) < 1
            assert np.abs(found.astype(int) - stats.background)[background].max() <= 25
            assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > similarity
            assert np.abs(found.astype(int) - stats.background).max() >= 254


def test_a_clean_drawing_is_inverted_pixel_by_pixel() -> None:
    x = 255 - small(on_paper(digit(8)))
    x = (x.astype(int) * 255 // x.max()).astype(np.uint8)
    strong = x > 255 / 20  # fainter pixels count as paper
    found = inverted(255 - x, SHAPE, LIGHT)
    assert (found[strong] == x[strong]).all()
    assert (found[~strong] == 0).all()


def test_all_channels_are_equal_after_inversion() -> None:
    image = small(on_paper(digit(3), paper=220, noise=3))
    found = inverted(np.repeat(image, 3, axis=1), (28, 28, 3), LIGHT)
    np.testing.assert_array_equal(found.reshape(784, 3), np.repeat(inverted(image, SHAPE, LIGHT).T, 3, axis=1))


def test_images_are_inverted_one_by_one_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    x = 255 - digits().x[:7]
    together = inverted(x, SHAPE, LIGHT), is_opposite(x, SHAPE, LIGHT)
    monkeypatch.setattr("fastmlp.data.images.polarity.BLOCK_PIXELS", 3 * 784)
    assert image_stats(digits().x, SHAPE) == LIGHT
    np.testing.assert_array_equal(inverted(x, SHAPE, LIGHT), together[0])
    np.testing.assert_array_equal(is_opposite(x, SHAPE, LIGHT), together[1])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 1), (5, 1, 1), (2, 2, 1), (3, 3, 1), (2, 9, 3)])
def test_images_of_any_size(shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, int(np.prod(shape))), np.uint8)
    assert inverted(x, shape, LIGHT).shape == x.shape
    assert is_opposite(x, shape, LIGHT).shape == (4,)
    assert centered(x[0].reshape(shape).mean(axis=2).astype(np.uint8), shape[:2], LIGHT, dark=True).shape == shape[:2]


# ------------------------------------------------------------------------------------------------ centering


def box(image: Pixels) -> tuple[int, int, int, int]:
    """Return the first and the last row and column of the strokes of an image, light on dark."""
    rows, columns = np.flatnonzero((image > 60).any(axis=1)), np.flatnonzero((image > 60).any(axis=0))
    return rows[0], rows[-1], columns[0], columns[-1]


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("number", [0, 1, 4, 7])
def test_a_small_drawing_in_a_corner_is_scaled_and_moved_into_the_middle(paper: str, number: int) -> None:
    corner = on_paper(digit(number), **PAPERS[paper] | {"margin": 220})[180:, :400]
    found = centered(corner, (28, 28), LIGHT, dark=True)
    top, bottom, left, right = box(found)
    assert 18 <= max(bottom - top, right - left) + 1 <= 20
    weights = found.astype(float)
    center = [(weights * axis).sum() / weights.sum() for axis in np.indices((28, 28))]
    assert center == pytest.approx([14, 14], abs=0.75)


def test_the_aspect_ratio_is_preserved_and_the_box_is_proportional_to_the_image() -> None:
    image = np.full((300, 200), 240, np.uint8)
    image[100:180, 30:70] = 20
    for size in ((28, 28), (56, 56), (28, 84), (42, 28)):
        top, bottom, left, right = box(centered(image, size, LIGHT, dark=True))
        height, width = bottom - top + 1, right - left + 1
        assert height == pytest.approx(size[0] * 20 / 28, abs=1)
        assert width == pytest.approx(height / 2, abs=1)


def test_centering_for_dark_on_light_and_for_drawings_that_have_the_right_polarity() -> None:
    image = on_paper(digit(5), paper=230, ink=20)
    light = centered(image, (28, 28), LIGHT, dark=True)
    np.testing.assert_array_equal(light, centered(255 - image, (28, 28), LIGHT, dark=False))
    np.testing.assert_allclose(255 - light, centered(image, (28, 28), DARK, dark=True), atol=1)


def test_thin_strokes_become_as_bright_as_in_the_training_images_and_faint_smudges_are_ignored() -> None:
    image = np.full((300, 300), 240, np.uint8)
    image[80:220, 100] = image[80, 100:180] = 60
    expected = centered(image, (28, 28), LIGHT, dark=True)
    assert expected.max() == 255
    image[20:40, 250:270] = 215
    found = centered(image, (28, 28), LIGHT, dark=True)
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("value", [0, 1, 200, 254, 255])
def test_a_blank_image_gives_background(value: int, dark: bool) -> None:
    image = np.full((90, 120), value, np.uint8)
    assert (centered(image, (28, 28), LIGHT, dark=dark) == round(LIGHT.background)).all()
    stats = LIGHT if dark else DARK
    assert (inverted(image.reshape(1, -1), (90, 120, 1), stats) == round(stats.background)).all()


# ------------------------------------------------------------------------------------------------ real data


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_images_and_their_inverses(name: str) -> None:
    if "FASTMLP_DATA" not in os.environ:
        pytest.skip("needs FASTMLP_DATA")
    x = fastmlp.load_data(name).x
    stats = stats_of(x)
    assert stats.polarity == "light on dark"
    assert is_opposite(x, SHAPE, stats).mean() < 1e-4
    assert is_opposite(255 - x[::10], SHAPE, stats).mean() > 0.999


@pytest.mark.data
def test_mnist_on_paper_is_classified_almost_as_well_as_mnist() -> None:
    if "FASTMLP_DATA" not in os.environ:
        pytest.skip("needs FASTMLP_DATA")
    data = fastmlp.load_data("mnist").split(validation=0.1, test=0)
    network = fastmlp.Network(hidden=(32,))
    model = fastmlp.train(network, (data.train.x[:12_000], data.train.y[:12_000]), epochs=4, seed=0, image_shape=SHAPE).model
    assert model.image_stats is not None
    assert data.validation is not None
    x, y = np.asarray(data.validation.x[:400]), data.validation.y[:400]
    before = model.score(x, y)
    assert before > 0.9
    for paper in ("white", "grey", "grey with noise", "pencil", "shade from the left"):
        images = [on_paper(row.reshape(28, 28), **PAPERS[paper] | {"margin": 0}, seed=k) for k, row in enumerate(x)]
        rows = np.concatenate([small(image) for image in images])
        assert is_opposite(rows, SHAPE, model.image_stats).all()
        assert model.score(inverted(rows, SHAPE, model.image_stats), y) > before - 0.03
        if paper == "grey with noise":
            assert model.score(255 - rows, y) < 0.5  # inversion alone is not enough
        middle = [centered(image, (28, 28), model.image_stats, dark=True).ravel() for image in images]
        assert model.score(np.stack(middle), y) > before - 0.04
