"""Training images mirrored and moved at random, anew in each epoch.

Here: what is drawn, and what it makes of images. Not here: where in an epoch it is done (loop.py), and the augmentation of a
convolutional network, which its own package knows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from fastmlp.data.rows import Array
from fastmlp.nn.philox import generator

Shape = tuple[int, int, int]  # height, width, channels


class Moves(NamedTuple):
    """What is done to the images of an epoch, in its order.

    Parameters
    ----------
    mirrored : (n,) bool, left and right change places, first
    offsets : (n, 2) int64, pixels down and to the right
    """

    mirrored: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]

    def part(self, start: int, end: int) -> Moves:
        """Those of the images from `start` to before `end`."""
        return Moves(self.mirrored[start:end], self.offsets[start:end])


def draw_moves(seed: int, epoch: int, images: int, flip: float, shift: int) -> Moves:
    """The moves of an epoch: mirrored with probability `flip`, offsets uniform from -`shift` to `shift` each way.

    >>> moves = draw_moves(0, 1, 10_000, 0.3, 1)
    >>> moves.mirrored.mean().round(1), np.unique(moves.offsets).tolist()
    (np.float64(0.3), [-1, 0, 1])
    """
    numbers = generator(seed, "augment", epoch)
    return Moves(numbers.random(images) < flip, numbers.integers(-shift, shift, (images, 2), endpoint=True))


def augmented(x: Array, shape: Shape, moves: Moves) -> Array:
    """Images (n, height * width * channels) after their moves, of the same type; what comes in from outside is 0.

    >>> moves = Moves(np.array([False, True]), np.array([[0, 1], [0, 0]]))
    >>> augmented(np.array([[1, 2, 3], [1, 2, 3]]), (1, 3, 1), moves).tolist()
    [[0, 1, 2], [3, 2, 1]]
    """
    images = x.reshape(-1, *shape)
    images = np.where(moves.mirrored[:, None, None, None], images[:, :, ::-1], images)
    if moves.offsets.any():
        images = shifted(images, moves.offsets)
    return images.reshape(x.shape)


def shifted(images: Array, offsets: npt.NDArray[np.int64]) -> Array:
    """Images (n, height, width, channels), each moved by its offset: a window of what it is in a wide enough black frame."""
    count, height, width, _ = images.shape
    frame = int(np.abs(offsets).max())
    framed = np.pad(images, ((0, 0), (frame, frame), (frame, frame), (0, 0)))
    windows = sliding_window_view(framed, (height, width), axis=(1, 2))  # (n, top, left, channels, height, width)
    top, left = (frame - offsets).T
    return np.moveaxis(windows[np.arange(count), top, left], 1, -1)
