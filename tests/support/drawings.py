"""Images for the tests of polarity: drawings on paper, and textures like those of photos."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastmlp.data.dataset import Dataset
from fastmlp.data.load import load_data

Pixels = npt.NDArray[np.uint8]


@functools.cache
def digits() -> Dataset:
    return load_data("digits")


def digit(number: int, index: int = 0) -> Pixels:
    """Return an image of a digit of the built-in data set, light on dark, (28, 28)."""
    data = digits()
    return data.x[data.y == number][index].reshape(28, 28)


@functools.cache
def framed_digits() -> Pixels:
    """Return the digits in the middle 20 x 20 pixels of images of 28 x 28 pixels, light on dark, (n, 28, 28)."""
    images = [Image.fromarray(row.reshape(28, 28)).resize((20, 20), Image.Resampling.BILINEAR) for row in digits().x]
    return np.pad(np.stack(images), ((0, 0), (4, 4), (4, 4)))


def framed_digit(number: int, index: int = 0) -> Pixels:
    """Return an image of a digit in a frame, see `framed_digits`."""
    return framed_digits()[digits().y == number][index]


def on_paper(
    drawing: Pixels, paper: float = 255, ink: float = 0, noise: float = 0, shade: float = 0, margin: int = 20, seed: int = 0
) -> Pixels:
    """Return a drawing (28, 28), light on dark, as a larger grey image of ink on paper.

    noise : standard deviation of the noise
    shade : fraction by which the brightness increases from the centre to the right border
    margin : width of the paper around the drawing
    """
    large = np.asarray(Image.fromarray(drawing).resize((140, 140), Image.Resampling.BILINEAR)) / 255
    large = np.pad(large, margin)
    light = 1 + shade * np.linspace(-1, 1, large.shape[1])
    values = (paper + (ink - paper) * large) * light + np.random.default_rng(seed).normal(0, noise, large.shape)
    return values.clip(0, 255).astype(np.uint8)


# Kinds of paper: arguments of `on_paper`.
PAPERS: dict[str, dict[str, Any]] = {
    "white": {},
    "grey": {"paper": 200},
    "white with noise": {"paper": 245, "ink": 15, "noise": 4},
    "grey with noise": {"paper": 190, "ink": 40, "noise": 10},
    "much noise": {"paper": 220, "ink": 30, "noise": 25},
    "pencil": {"paper": 235, "ink": 150, "noise": 3},
    "in a dark room": {"paper": 110, "ink": 25, "noise": 4},
    "shade from the left": {"paper": 190, "ink": 30, "noise": 3, "shade": 0.25},
    "shade from the right": {"paper": 190, "ink": 30, "noise": 3, "shade": -0.25},
    "no margin": {"paper": 250, "ink": 10, "margin": 0},
    "shade and no margin": {"paper": 190, "ink": 30, "noise": 2, "shade": 0.25, "margin": 0},
}


def texture(rng: np.random.Generator, size: int) -> Any:
    """Return noise with a 1/f spectrum, as in natural images, with mean 0 and standard deviation 1."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = np.inf
    found = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequency).real
    return (found - found.mean()) / found.std()


def grey_photos(rng: np.random.Generator, brightness: float, contrast: float, count: int = 60) -> Pixels:
    """Return textures (count, 784) whose mean brightness varies from image to image."""
    means = brightness + rng.normal(0, 30, count)
    images = [mean + contrast * texture(rng, 28) for mean in means]
    return np.stack(images).clip(0, 255).astype(np.uint8).reshape(count, -1)


def gradients(rng: np.random.Generator, count: int = 60) -> Pixels:
    """Return bright skies above dark ground, (count, 784)."""
    sky = np.linspace(230, 30, 28)[:, None] + 15 * np.stack([texture(rng, 28) for _ in range(count)])
    return sky.clip(0, 255).astype(np.uint8).reshape(count, -1)


def checks(rng: np.random.Generator, count: int = 60) -> Pixels:
    """Return chequered patterns, (count, 784)."""
    phase = rng.integers(0, 8, count)[:, None, None]
    pattern = (np.indices((28, 28)).sum(axis=0)[None] + phase) // 4 % 2 * 200 + 20
    return pattern.astype(np.uint8).reshape(count, -1)


# Training images without a polarity: functions of a random generator.
PHOTOS: dict[str, Callable[[np.random.Generator], Pixels]] = {
    "mid-grey": lambda rng: grey_photos(rng, 127, 40),
    "low contrast": lambda rng: grey_photos(rng, 127, 10),
    "dark": lambda rng: grey_photos(rng, 70, 40),
    "bright": lambda rng: grey_photos(rng, 180, 40),
    "sky": gradients,
    "checks": checks,
    "uniform noise": lambda rng: rng.integers(0, 256, (60, 784), np.uint8),
    "half inverted drawings": lambda rng: np.concatenate([digits().x[:30], 255 - digits().x[30:60]]),
    "one in ten inverted": lambda rng: np.concatenate([digits().x[:54], 255 - digits().x[54:60]]),
    "blank": lambda rng: np.zeros((60, 784), np.uint8),
    "one value": lambda rng: np.full((60, 784), 250, np.uint8),
    "drawings on mid-grey": lambda rng: (128 + digits().x[:60] // 2).astype(np.uint8),
}
