"""Plot the filters and feature maps of a layer, a projection of features, model inputs, and the most confident mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp.errors import printable
from fastmlp.reports.style import COLORS, GREY, MARKERS, class_legend, new_figure, own_style, save
from fastmlp.reports.text import DENSE_CLASSES, short_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
MOST_TILES = 64  # maximum number of filters or feature maps in a figure
MOST_POINTS = 3000  # maximum number of points in a projection
COLORED_CLASSES = 20  # number of classes with a colour in a projection of more than DENSE_CLASSES classes
SHEET = (4, 6)  # rows and columns of the grid of mistakes
# Sizes in a grid of images, in inches: width of a tile, longer side of an image, height of a line of text above it, gap below
# it, height of the title, and minimum width of the figure.
TILE, IMAGE, LINE, GAP, HEADING, NARROWEST = 1.7, 1.6, 0.15, 0.2, 0.5, 4.0
LONGEST_NAME = 14  # maximum number of characters of a class name above a mistake
INPUT_COLUMNS = 8  # columns of the grid of inputs
LONGEST_CAPTION, CAPTION_END = 20, 8  # maximum number of characters of a line above an input; characters kept at its end


class Images(Protocol):
    """Images (n, height, width) or (n, height, width, 3): an array, or an object that creates the image of a row on access."""

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

    At most 3,000 rows are drawn. They are chosen at random with a fixed seed. With more than `DENSE_CLASSES` classes, the 20
    classes with the most drawn rows have colours, and the rows of the other classes are grey.
    """
    chosen = np.random.default_rng(0).permutation(len(features))[:MOST_POINTS]
    points, shares = principal(features[chosen])
    labels, numbers = labels[chosen], np.arange(len(classes))
    if len(classes) > DENSE_CLASSES:
        counts = np.bincount(labels, minlength=len(classes))
        numbers = np.sort(np.argsort(-counts, kind="stable")[:COLORED_CLASSES])
    names = [classes[number] for number in numbers.tolist()]
    with own_style():
        figure = new_figure(8.4, 6.2, f"{title}: {len(chosen):,} rows")
        axes = figure.add_subplot()
        style: dict[str, Any] = {"s": 9, "linewidths": 0, "alpha": 0.75}
        shown = []
        for place, number in enumerate(numbers):
            marker, color = MARKERS[place // len(COLORS) % len(MARKERS)], COLORS[place % len(COLORS)]
            shown.append(axes.scatter(*points[labels == number].T, marker=marker, color=color, **style))
        if len(numbers) < len(classes):
            names.append(f"{len(classes) - len(numbers):,} other classes")
            others = points[~np.isin(labels, numbers)]
            shown.append(axes.scatter(*others.T, color=GREY, zorder=0, **style))
        axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
        axes.set_ylabel(f"second principal component ({shares[1]:.0%})")
        axes.spines[["top", "right"]].set_visible(False)
        class_legend(figure, shown, names, markerscale=2.5, ncols=math.ceil(len(names) / 25))
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
    images : (n, height, width) or (n, height, width, 3), 0 to 255; see `Images`
    truth, predicted : (n,) class indices
    probability : (n,) probability or score of the predicted class; it is only used for misclassified rows
    classes : class names
    path : file to write; it is replaced atomically
    title : title of the figure, to which the number of mistakes is appended
    score : "probability", or "score" if the outputs of the network are not probabilities
    """
    worst = most_confident(truth, predicted, probability)[: SHEET[0] * SHEET[1]]
    mistakes = int((truth != predicted).sum())
    count = f"{mistakes:,} mistake{'s'[: mistakes != 1]} in {len(truth):,} row{'s'[: len(truth) != 1]}"
    more = f", the {len(worst)} most confident" if len(worst) < mistakes else ""
    texts = []
    for row in worst:
        names = [short_name(classes[k], LONGEST_NAME) for k in (truth[row], predicted[row])]
        value = f"{probability[row]:.1%}" if score == "probability" else f"{probability[row]:.4g}"
        texts.append(f"true: {names[0]}\npred.: {names[1]}\n{score} {value}")
    with own_style():
        save(_image_grid([images[row] for row in worst], texts, SHEET[1], f"{title}: {count}{more}"), path)


def most_confident(truth: Array, predicted: Array, probability: Array) -> Array:
    """Return the indices of the misclassified rows in descending order of the probability of the predicted class."""
    wrong = np.flatnonzero(truth != predicted)
    return wrong[np.argsort(-probability[wrong], kind="stable")]


def plot_inputs(images: Sequence[Array], captions: Sequence[tuple[str, ...]], path: Path, total: int) -> None:
    """Write a PNG file of the images that are the inputs of a network.

    Parameters
    ----------
    images : (height, width) or (height, width, 3), all of the same shape, 0 to 255
    captions : lines above each image
    path : file to write; it is replaced atomically
    total : number of images of which these are the first, for the title
    """
    count = f"the first {len(images)} of {total:,} images" if total > len(images) else f"{total} image{'s'[: total != 1]}"
    texts = ["\n".join(map(_short_caption, lines)) for lines in captions]
    with own_style():
        save(_image_grid(images, texts, min(INPUT_COLUMNS, len(images)), f"Model inputs: {count}"), path)


def _short_caption(line: str) -> str:
    """Return a line of a caption, whose middle is left out if it is long.

    The end is kept because it is the probability of the predicted class.
    """
    clean = printable(line)
    if len(clean) <= LONGEST_CAPTION:
        return clean
    return f"{clean[: LONGEST_CAPTION - CAPTION_END - 1]}…{clean[-CAPTION_END:]}"


def _image_grid(images: Sequence[Array], texts: Sequence[str], columns: int, title: str) -> Figure:
    """Return a figure of images (height, width) or (height, width, 3), all of the same shape, with a text above each image.

    All images are in one Axes with inches as units, because the layout of one Axes per image would take a second.
    """
    from matplotlib.patches import Rectangle

    shape = np.array(images[0].shape[:2] if images else (1, 1))
    image_height, image_width = IMAGE * shape / shape.max()
    text_height = LINE * max((text.count("\n") + 1 for text in texts), default=0)
    tile_height = text_height + image_height + GAP
    width, height = max(NARROWEST, TILE * columns), HEADING + tile_height * math.ceil(len(images) / columns)
    figure = new_figure(width, height, title)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        centre = width / 2 + TILE * (number % columns + 0.5 - columns / 2)
        top = HEADING + tile_height * (number // columns)
        axes.text(centre, top, text, ha="center", va="top", fontsize=8, parse_math=False)
        left, top = centre - image_width / 2, top + text_height
        sides = (left, left + image_width, top + image_height, top)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=sides)
        axes.add_patch(Rectangle((left, top), image_width, image_height, fill=False, ec=GREY, lw=0.5))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    return figure


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
