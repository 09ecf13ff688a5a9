"""Plot the filters and feature maps of a layer, a projection of features, inputs, and the most confident mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp.reports.style import COLORS, GREY, MARKERS, class_legend, new_figure, own_style, save
from fastmlp.reports.text import short_name

Array = npt.NDArray[Any]
MOST_TILES = 64  # maximum number of filters or feature maps in a figure
MOST_POINTS = 3000  # maximum number of points in a projection
SHEET = (4, 6)  # rows and columns of the grid of mistakes
TILE = (1.7, 2.25)  # width and height of a mistake with its text, in inches
IMAGE, TEXT = 1.6, 0.45  # longer side of the image, and height of the text above it
LONGEST_NAME = 14  # maximum number of characters of a class name above a mistake
INPUT_COLUMNS = 8  # columns of the grid of inputs
LONGEST_CAPTION = 20  # maximum number of characters of a line above an input


class Images(Protocol):
    """Images by row number: an array (n, height, width) or (n, height, width, 3), or an object that makes them on demand."""

    def __getitem__(self, row: Any, /) -> Array: ...


def plot_filters(filters: Array, path: Path, title: str) -> None:
    """Write a PNG file of the filters (n, height, width) of a layer. All have the same scale, in which zero is mid-grey."""
    bound = float(np.abs(filters).max()) or 1.0
    with own_style():
        figure = _tiles(
            filters[:MOST_TILES], f"{title}: {_shown(len(filters))}", "weight", cmap="gray", vmin=-bound, vmax=bound
        )
        save(figure, path)


def plot_maps(image: Array, maps: Array, path: Path, title: str) -> None:
    """Write a PNG file of an image (height, width[, 3]) with values 0 to 255, and its feature maps (n, height, width)."""
    with own_style():
        figure = _tiles(
            maps[:MOST_TILES],
            f"{title}: {_shown(len(maps))}",
            "output after ReLU",
            image,
            cmap="viridis",
            vmin=0,
            vmax=float(maps.max()) or 1,
        )
        save(figure, path)


def plot_projection(features: Array, labels: Array, classes: Sequence[str], path: Path, title: str) -> None:
    """Write a PNG file of features (n, width) projected onto their first two principal components, coloured by label (n,).

    At most 3,000 rows are drawn. They are chosen at random with a fixed seed.
    """
    chosen = np.random.default_rng(0).permutation(len(features))[:MOST_POINTS]
    points, shares = principal(features[chosen])
    with own_style():
        figure = new_figure(8.4, 6.2, f"{title}: {len(chosen):,} rows")
        axes = figure.add_subplot()
        shown = []
        for number in range(len(classes)):
            mine = labels[chosen] == number
            marker = MARKERS[number // len(COLORS) % len(MARKERS)]
            style: dict[str, Any] = {
                "s": 9,
                "linewidths": 0,
                "alpha": 0.75,
                "marker": marker,
                "color": COLORS[number % len(COLORS)],
            }
            shown.append(axes.scatter(*points[mine].T, **style))
        axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
        axes.set_ylabel(f"second principal component ({shares[1]:.0%})")
        axes.spines[["top", "right"]].set_visible(False)
        class_legend(figure, shown, classes, markerscale=2.5, ncols=math.ceil(len(classes) / 25))
        save(figure, path)


def plot_mistakes(  # noqa: PLR0913 - keyword-only, with a default
    images: Images,
    truth: Array,
    predicted: Array,
    probability: Array,
    classes: Sequence[str],
    path: Path,
    title: str,
    *,
    score: str = "probability",
) -> None:
    """Write a PNG file of the 24 misclassified images with the highest predicted probability.

    Parameters
    ----------
    images : (n, height, width) or (n, height, width, 3), 0 to 255; an array, or an object that returns the image of a row
    truth, predicted : (n,) class indices
    probability : (n,) probability or score of the predicted class; it is only used for misclassified rows
    classes : class names
    path : file to write; it is replaced atomically
    title : title of the figure, to which the number of mistakes is appended
    score : "probability", or "score" if the outputs of the network are not probabilities
    """
    worst = most_confident(truth, predicted, probability)[: SHEET[0] * SHEET[1]]
    mistakes = int((truth != predicted).sum())
    count = f"{mistakes:,} mistake{'s'[: mistakes != 1]} in {len(truth):,} rows"
    more = f", the {len(worst)} most confident" if len(worst) < mistakes else ""
    height = 0.5 + TILE[1] * math.ceil(len(worst) / SHEET[1])
    with own_style():
        figure = new_figure(TILE[0] * SHEET[1], height, f"{title}: {count}{more}")
        # All images are in one system of axes, in inches: laying out a system for each would take a second.
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
        for number, row in enumerate(worst):
            left, top = TILE[0] * (number % SHEET[1]), 0.5 + TILE[1] * (number // SHEET[1])
            names = [short_name(classes[k], LONGEST_NAME) for k in (truth[row], predicted[row])]
            value = f"{probability[row]:.1%}" if score == "probability" else f"{probability[row]:.4g}"
            text = f"true: {names[0]}\npred.: {names[1]}\n{score} {value}"
            axes.text(left + TILE[0] / 2, top, text, ha="center", va="top", fontsize=8, parse_math=False)
            _draw_image(axes, images[row], left + TILE[0] / 2, top + TEXT + IMAGE / 2)
        axes.set(xlim=(0, TILE[0] * SHEET[1]), ylim=(height, 0), aspect="equal")
        save(figure, path)


def most_confident(truth: Array, predicted: Array, probability: Array) -> Array:
    """Return the indices of the misclassified rows in descending order of the probability of the predicted class."""
    wrong = np.flatnonzero(truth != predicted)
    return wrong[np.argsort(-probability[wrong], kind="stable")]


def _draw_image(axes: Any, image: Array, x: float, y: float) -> None:
    """Draw an image, with its aspect ratio, into a square of `IMAGE` inches with the centre (x, y)."""
    height, width = np.array(image.shape[:2]) * (IMAGE / 2 / max(image.shape[:2]))
    extent = (x - width, x + width, y + height, y - height)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)


def plot_inputs(images: Sequence[Array], captions: Sequence[tuple[str, ...]], path: Path, total: int) -> None:
    """Write a PNG file of the images that are the inputs of a network.

    Parameters
    ----------
    images : (height, width) or (height, width, 3), 0 to 255
    captions : lines above each image
    path : file to write; it is replaced atomically
    total : number of images of which these are the first, for the title
    """
    columns = min(INPUT_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    count = f"the first {len(images)} of {total:,} images" if total > len(images) else f"{total} image{'s'[: total != 1]}"
    with own_style():
        figure = new_figure(max(4.0, 1.5 * columns), 0.6 + 1.85 * rows, f"Model inputs: {count}")
        for number, (image, lines) in enumerate(zip(images, captions, strict=True), start=1):
            axes = figure.add_subplot(rows, columns, number)
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            text = "\n".join(short_name(line, LONGEST_CAPTION) for line in lines)
            axes.set_title(text, fontsize=8, parse_math=False)
            axes.set_xticks([])
            axes.set_yticks([])
        save(figure, path)


def principal(features: Array) -> tuple[Array, Array]:
    """Return the scores (n, 2) of the first two principal components, and their explained variance ratios (2,).

    They are computed by a singular value decomposition of the centred features. The sign of each component is chosen so that
    the score with the largest magnitude is positive.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(features), 2))
    points[:, : min(2, len(s))] = (u * s)[:, :2]
    points *= np.where(points[np.abs(points).argmax(axis=0), [0, 1]] < 0, -1, 1)
    total = float((s**2).sum()) or 1.0
    return points, np.pad(s**2 / total, (0, 2))[:2]


def _shown(count: int) -> str:
    return f"{count}" if count <= MOST_TILES else f"the first {MOST_TILES} of {count}"


def _tiles(tiles: Array, title: str, scale: str, first: Array | None = None, **style: Any) -> Any:
    """Return a figure with a nearly square grid of the tiles (n, height, width), and a colour bar labelled `scale`.

    If the image `first` is given, it is shown before the tiles.
    """
    count = len(tiles) + (first is not None)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = new_figure(1.4 + max(4.0, 0.95 * columns), 0.8 + max(1.5, 0.95 * rows), title)
    cells = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    for axes in cells:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(GREY)
    if first is not None:
        cells[0].imshow(first, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        cells[0].set_title("input", fontsize=7)
    for number, axes in enumerate(cells[first is not None :], start=1):
        shown = axes.imshow(tiles[number - 1], interpolation="nearest", **style)
        axes.set_title(str(number), fontsize=7)
    figure.colorbar(shown, ax=cells, fraction=0.05, aspect=30, label=scale)
    return figure
