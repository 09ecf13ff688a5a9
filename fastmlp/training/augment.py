"""Random augmentation of training images: horizontal flips and shifts, drawn again in every epoch.

It is used for multi-layer perceptrons. The package fastmlp.cnn implements the augmentation for convolutional networks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from fastmlp.data.rows import Array
from fastmlp.nn.philox import generator

Shape = tuple[int, int, int]  # height, width, channels


class Augmentation(NamedTuple):
    """The random transformations of all images in an epoch, in the order in which they are trained on.

    Parameters
    ----------
    mirrored : (n,) bool, True for images that are flipped horizontally; the flip is applied before the shift
    offsets : (n, 2) int64, number of pixels by which each image is shifted down and to the right
    """

    mirrored: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]

    def select(self, start: int, end: int) -> Augmentation:
        """Return the transformations of the images in the slice `start:end`."""
        return Augmentation(self.mirrored[start:end], self.offsets[start:end])


def sample_augmentation(seed: int, epoch: int, images: int, flip: float, shift: int) -> Augmentation:
    """Draw the random transformations for an epoch.

    Parameters
    ----------
    seed, epoch : the transformations differ between seeds and between epochs, and are reproducible
    images : number of images
    flip : probability of a horizontal flip
    shift : maximum shift in pixels; vertical and horizontal shifts are drawn uniformly from -`shift` to `shift`

    Examples
    --------
    >>> augmentation = sample_augmentation(0, 1, 10_000, 0.3, 1)
    >>> augmentation.mirrored.mean().round(1), np.unique(augmentation.offsets).tolist()
    (np.float64(0.3), [-1, 0, 1])
    """
    rng = generator(seed, "augment", epoch)
    return Augmentation(rng.random(images) < flip, rng.integers(-shift, shift, (images, 2), endpoint=True))


def augment(x: Array, shape: Shape, augmentation: Augmentation) -> Array:
    """Transform images (n, height * width * channels). The dtype is preserved. Shifted images are padded with 0.

    >>> augmentation = Augmentation(np.array([False, True]), np.array([[0, 1], [0, 0]]))
    >>> augment(np.array([[1, 2, 3], [1, 2, 3]]), (1, 3, 1), augmentation).tolist()
    [[0, 1, 2], [3, 2, 1]]
    """
    images = x.reshape(-1, *shape)
    images = np.where(augmentation.mirrored[:, None, None, None], images[:, :, ::-1], images)
    if augmentation.offsets.any():
        images = shift_images(images, augmentation.offsets)
    return images.reshape(x.shape)


def shift_images(images: Array, offsets: npt.NDArray[np.int64]) -> Array:
    """Shift images (n, height, width, channels) by `offsets` (n, 2). The result is a window into the zero-padded images."""
    count, height, width, _ = images.shape
    margin = int(np.abs(offsets).max())
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = sliding_window_view(padded, (height, width), axis=(1, 2))  # (n, top, left, channels, height, width)
    top, left = (margin - offsets).T
    return np.moveaxis(windows[np.arange(count), top, left], 1, -1)
