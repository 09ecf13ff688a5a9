"""Scale and center drawings, as in the images of MNIST.

Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, yann.lecun.com/exdb/mnist: the digits were
scaled to fit into a box of 20 x 20 pixels, with their aspect ratio preserved, and placed into images of 28 x 28 pixels, with
their centre of mass in the middle.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastmlp.data.images.polarity import HIGH_CONTRAST, Float32, ImageStats, draw, ink

BOX = 20 / 28  # size of the box relative to the image
OVERSAMPLING = 8  # larger images are first reduced to this multiple of the size of the result, which reduces their noise


def centered(image: npt.NDArray[np.uint8], size: tuple[int, int], stats: ImageStats, *, dark: bool) -> npt.NDArray[np.uint8]:
    """Return an image with the drawing of another image, scaled to the size of `BOX` and centered.

    Parameters
    ----------
    image : (height, width) grey image of any size
    size : height and width of the result
    stats : statistics of the training images, which have a polarity
    dark : whether the ink in the image is darker than the paper

    Returns
    -------
    (height, width) uint8, with the background and the polarity of the training images; only background for a blank image

    >>> image = np.full((60, 100), 240, np.uint8)
    >>> image[5:15, 10:15] = 30
    >>> result = centered(image, (28, 28), ImageStats(0, 0, 30), dark=True)
    >>> rows, columns = np.nonzero(result)
    >>> np.unique(rows).tolist() == list(range(4, 24)), np.unique(columns).tolist() == list(range(10, 20))
    (True, True)
    """
    from PIL import Image

    reduced = Image.fromarray(image)
    reduced.thumbnail((size[1] * OVERSAMPLING, size[0] * OVERSAMPLING))
    amount = ink(np.asarray(reduced, np.float32)[None], dark=dark)[0]
    result = np.zeros(size, np.float32)
    rows, columns = np.flatnonzero((amount > HIGH_CONTRAST).any(axis=1)), np.flatnonzero((amount > HIGH_CONTRAST).any(axis=0))
    if len(rows):
        drawing = amount[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        scale = min(BOX * size[0] / drawing.shape[0], BOX * size[1] / drawing.shape[1])
        height, width = (max(1, round(side * scale)) for side in drawing.shape)
        small = np.asarray(Image.fromarray(drawing).resize((width, height), Image.Resampling.BILINEAR))
        top, left = (offset(small.sum(axis=1 - axis), size[axis]) for axis in (0, 1))
        result[top : top + height, left : left + width] = small / small.max()
    return draw(result, stats)


def offset(profile: Float32, length: int) -> int:
    """Return the position of the first row or column of a drawing in an image.

    The centre of mass of the drawing is at length / 2, counted from 0, as in the images of MNIST, or as near to it as possible
    without cutting off a part of the drawing.

    profile : sum of the ink at each position of the drawing
    length : size of the image along this axis

    >>> offset(np.float32([1, 1]), 6), offset(np.float32([9, 0, 0, 0, 1]), 6)
    (2, 1)
    """
    mass_center = float((profile * np.arange(len(profile))).sum() / profile.sum())
    return min(max(round(length / 2 - mass_center), 0), length - len(profile))
