"""Polarity of images, light on dark or dark on light: statistics of the training images, and inversion of other images.

The predictions of a network that was trained on light strokes on black, such as MNIST, are arbitrary for dark strokes on
paper. They are still arbitrary after inversion if the paper is grey: border pixels are almost constant in the training images,
so z-score scaling multiplies their values by large factors. Inversion therefore also replaces the paper with the background of
the training images; tests/data/test_polarity.py measures the effect on MNIST.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastmlp.data.rows import Array, Features
from fastmlp.nn.blocks import blocks

Polarity = Literal["light on dark", "dark on light"]
Float32 = npt.NDArray[np.float32]

MOST_ROWS = 1000  # maximum number of training images from which statistics are computed
BLOCK_PIXELS = 1 << 22  # maximum number of pixels that are converted to floats at a time
MOST_DISTANCE = 32  # maximum difference of a uniform background from 0 or 255
MOST_STD = 32  # maximum standard deviation of a uniform background over the images
MOST_COLOR = 8  # images with a larger `colorfulness` have no polarity, because inversion would change their colours
LEAST_DIFFERENCE = 64  # minimum difference between the background of the training images and that of the opposite polarity
# A pixel is paper if its contrast, see `ink`, is below NOISE standard deviations of the paper. This limit is clipped to the
# range from LOW_CONTRAST to HIGH_CONTRAST times the maximum contrast, and is at least half a grey level.
NOISE, LOW_CONTRAST, HIGH_CONTRAST = 5, 1 / 20, 1 / 3
# The brightness of the paper is fitted FITS times, each time without the border pixels whose residual was more than OUTLIER
# robust standard deviations, because these are strokes.
FITS, OUTLIER = 8, 3


@dataclass(frozen=True)
class ImageStats:
    """Statistics of training images of type uint8; `image_stats` computes them, rounded to three decimals.

    Parameters
    ----------
    background, background_std : mean and standard deviation, over the images, of the median of the border pixels
    mean : mean of all pixels
    colorfulness : mean of the difference between the largest and the smallest channel of a pixel; 0 for grey images
    """

    background: float
    background_std: float
    mean: float
    colorfulness: float = 0.0

    @property
    def polarity(self) -> Polarity | None:
        """Polarity of the images; None if they are coloured, or have no uniform dark or light background, such as photos."""
        if self.background_std > MOST_STD or self.colorfulness > MOST_COLOR:
            return None
        if self.background <= MOST_DISTANCE and self.mean > self.background:
            return "light on dark"
        return "dark on light" if self.background >= 255 - MOST_DISTANCE and self.mean < self.background else None


def image_stats(x: Features, image_shape: tuple[int, int, int] | None) -> ImageStats | None:
    """Return the statistics of at most `MOST_ROWS` rows of x, evenly spaced; None if x has no uint8 images of this shape.

    x : (n, height * width * channels)

    >>> x = np.zeros((3, 16), np.uint8)
    >>> x[:, 5:7] = 240
    >>> stats = image_stats(x, (4, 4, 1))
    >>> stats, stats.polarity
    (ImageStats(background=0.0, background_std=0.0, mean=30.0, colorfulness=0.0), 'light on dark')
    """
    if image_shape is None or x.dtype != np.uint8 or x.shape[1] != math.prod(image_shape):
        return None
    chosen = np.linspace(0, len(x) - 1, min(len(x), MOST_ROWS)).round().astype(np.int64)
    backgrounds, means, colors = [], [], []
    for _, indices in blocks(chosen, most_images(x)):
        rows = x[indices]
        pixels = rows.reshape(len(rows), -1, image_shape[2])
        backgrounds.append(np.median(border(grey(rows, image_shape)), axis=1))
        means.append(rows.mean(axis=1))
        colors.append((pixels.max(axis=2) - pixels.min(axis=2)).mean(axis=1))
    background, mean, color = map(np.concatenate, (backgrounds, means, colors))
    values = background.mean(), background.std(), mean.mean(), color.mean()
    return ImageStats(*(round(float(value), 3) for value in values))


def is_opposite(x: Array, image_shape: tuple[int, int, int], stats: ImageStats | None) -> npt.NDArray[np.bool_]:
    """Return for each image whether its polarity is the opposite of that of the training images, (n,) bool.

    An image has the opposite polarity if the median of its border differs from the background of the training images by at
    least `LEAST_DIFFERENCE`, and the pixel that differs most from this median is darker, if the training images are light on
    dark, or else lighter. If the training images have no polarity, or their statistics are unknown, no image has the opposite
    polarity.

    x : (n, height * width * channels) uint8

    >>> stats = ImageStats(0, 0, 30)
    >>> is_opposite(np.uint8([[250, 40, 250, 250], [0, 200, 0, 0]]), (2, 2, 1), stats).tolist()
    [True, False]
    """
    if stats is None or stats.polarity is None:
        return np.zeros(len(x), bool)
    found = []
    for _, block in blocks(x, most_images(x)):
        images = grey(block, image_shape)
        paper = np.median(border(images), axis=1)
        light, dark = images.max(axis=(1, 2)) - paper, paper - images.min(axis=(1, 2))
        if stats.polarity == "light on dark":
            found.append((paper - stats.background >= LEAST_DIFFERENCE) & (dark > light))
        else:
            found.append((stats.background - paper >= LEAST_DIFFERENCE) & (light > dark))
    return np.concatenate([np.zeros(0, bool), *found])


def inverted(x: Array, image_shape: tuple[int, int, int], stats: ImageStats) -> npt.NDArray[np.uint8]:
    """Return images of the opposite polarity, see `is_opposite`, with the polarity of the training images.

    Paper becomes the background of the training images, and the pixel with the most ink becomes white if they are light on
    dark, or else black. All channels of the result are equal.

    x : (n, height * width * channels) uint8

    >>> x = np.full((1, 3, 4), 250, np.uint8)
    >>> x[0, 1, 1:3] = 0, 50
    >>> inverted(x.reshape(1, 12), (3, 4, 1), ImageStats(0, 0, 30)).reshape(3, 4).tolist()
    [[0, 0, 0, 0], [0, 255, 204, 0], [0, 0, 0, 0]]
    """
    result = np.empty_like(x)
    for rows, block in blocks(x, most_images(x)):
        drawn = draw(ink(grey(block, image_shape), dark=stats.polarity == "light on dark"), stats)
        result[rows] = np.repeat(drawn.reshape(len(drawn), -1), image_shape[2], axis=1)
    return result


def most_images(x: Features) -> int:
    """Return the maximum number of rows of x that are converted to floats at a time."""
    return max(1, BLOCK_PIXELS // x.shape[1])


def grey(x: Array, image_shape: tuple[int, int, int]) -> Float32:
    """Return the mean of the channels of images as an array (n, height, width)."""
    return x.reshape(len(x), *image_shape).mean(axis=3, dtype=np.float32)


def border(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the border pixels of images (n, height, width) as an array (n, pixels)."""
    rows, columns = images[:, [0, -1], :], images[:, :, [0, -1]]
    return np.concatenate([rows.reshape(len(images), -1), columns.reshape(len(images), -1)], axis=1)


def ink(images: Float32, *, dark: bool) -> Float32:
    """Return the amount of ink in each pixel of drawings, from 0 for paper to 1 for the pixel with the most ink in an image.

    The brightness of the paper is modelled as a linear function of the position, because photos are rarely lit evenly. It is
    fitted to the border pixels by least squares, without outliers such as strokes at the border. The contrast of a pixel is its
    difference from the paper relative to the largest possible difference, because ink reflects a constant fraction of the
    light. The amount of ink is the contrast relative to the maximum contrast in the image; it is 0 for pixels of low contrast.

    images : (n, height, width), 0 to 255
    dark : whether the ink is darker than the paper
    """
    count, height, width = images.shape
    position = np.stack(np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij"))
    design = np.stack([np.ones((height, width)), *position])
    at_border = border(design).T
    pixels = border(images).astype(np.float64)
    residuals = pixels - np.median(pixels, axis=1, keepdims=True)
    for _ in range(FITS):
        robust_std = 1.4826 * np.median(np.abs(residuals), axis=1, keepdims=True)
        inlier = (np.abs(residuals) <= OUTLIER * robust_std + 2).astype(np.float64)
        normal = np.einsum("nb,bi,bj->nij", inlier, at_border, at_border) + 1e-6 * np.eye(3)  # images can have a single row
        right = np.einsum("nb,bi,nb->ni", inlier, at_border, pixels)
        plane = np.linalg.solve(normal, right[..., None])[..., 0]
        residuals = pixels - plane @ at_border.T
    std = np.sqrt((inlier * residuals**2).sum(axis=1) / inlier.sum(axis=1))
    paper = (plane @ design.reshape(3, -1)).reshape(count, height, width)
    largest = np.maximum(paper if dark else 255 - paper, 1)
    contrast = (paper - images if dark else images - paper) / largest
    most = np.maximum(contrast.max(axis=(1, 2)), 1e-6)
    limit = np.clip(NOISE * std / largest.mean(axis=(1, 2)), LOW_CONTRAST * most, HIGH_CONTRAST * most)
    is_ink = (contrast > limit[:, None, None]) & (contrast * largest >= 0.5)  # less than half a grey level is a rounding error
    found: Float32 = np.where(is_ink, contrast / most[:, None, None], 0).astype(np.float32)
    return found


def draw(amount: Float32, stats: ImageStats) -> npt.NDArray[np.uint8]:
    """Return drawings with the background and the polarity of the training images.

    amount : array of amounts of ink, see `ink`
    """
    end = 255 if stats.polarity == "light on dark" else 0
    return (stats.background + amount * (end - stats.background)).round().astype(np.uint8)
