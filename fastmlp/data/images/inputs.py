"""Images that a model predicts: search for the files, reading, inversion and centering."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastmlp.data.images.centering import centered
from fastmlp.data.images.polarity import ImageStats, inverted, is_opposite
from fastmlp.data.readers.images import BadImages, check_image_shape, fit, images_in, read_image, skipped_note, unless_bad
from fastmlp.data.rows import Array
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.names import canonical_name

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

INVERT = ("auto", "yes", "no")
MOST_KEPT = 48  # maximum number of images that are kept for a figure


@dataclass(frozen=True)
class ImageOptions:
    """How images are converted before they are predicted.

    Parameters
    ----------
    invert : "auto" inverts the images whose polarity is the opposite of that of the training images; "yes" inverts all
        images, and "no" none
    center : whether the drawing is fitted into the middle, see `centering.centered`
    skip_bad : whether unreadable image files are left out

    Raises
    ------
    ConfigError : another value of `invert`
    """

    invert: str = "auto"
    center: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "invert", canonical_name("invert", self.invert, INVERT))


@dataclass
class ImageInputs:
    """Converts images to rows of pixels for a model, and counts what it did.

    Parameters
    ----------
    image_shape : (height, width, channels) of the images that the model takes
    stats : statistics of the training images; None if they are unknown
    options : how images are converted
    kept : the first MOST_KEPT rows by name of their file and number of the row, from 1
    total, inverted : number of images that were read, and of those that were inverted
    bad : unreadable files that were skipped, with the errors

    Raises
    ------
    ConfigError : images are to be centered, but the polarity of the training images is unknown
    DataError : images are to be centered, but do not have 1 or 3 channels
    """

    image_shape: tuple[int, int, int]
    stats: ImageStats | None
    options: ImageOptions
    kept: dict[tuple[str, int], Array] = field(default_factory=dict, init=False)
    total: int = field(default=0, init=False)
    inverted: int = field(default=0, init=False)
    bad: BadImages = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not self.options.center:
            return
        check_image_shape(self.image_shape)
        if self.stats is not None and self.stats.polarity is not None:
            return
        if self.stats is None:
            reason = "the model has no statistics of them; train it again, on images of type uint8, or leave center out"
        else:
            reason = "those of the model have none; leave center out"
        raise ConfigError(f"center needs training images with a uniform background, but {reason}", settings=("center",))

    def read(self, file: Path) -> npt.NDArray[np.uint8] | None:
        """Return the image in a file as a row (1, features), or None if it is skipped.

        Raises
        ------
        DataError : the image cannot be read, or the model takes images with other than 1 and 3 channels
        """
        check_image_shape(self.image_shape)
        skipped = self.bad if self.options.skip_bad else None
        image = unless_bad(lambda path: read_image(path, self.image_shape[2]), file, skipped)
        if image is None:
            return None
        self.total += 1
        x = fit(image, self.image_shape)[None]
        return self.keep(file, self.convert(x, self.flagged(x), [image]))

    def rows(self, x: npt.NDArray[np.uint8], file: Path) -> npt.NDArray[np.uint8]:
        """Return the converted images x (n, features) of an array in a file.

        With "auto", either all of them are inverted or none, depending on the majority.
        """
        from PIL import Image

        self.total += len(x)
        flagged = self.flagged(x)
        if self.options.invert == "auto":
            flagged[:] = flagged.mean() > 0.5
        height, width, channels = self.image_shape
        shape = (height, width) if channels == 1 else self.image_shape
        return self.keep(file, self.convert(x, flagged, (Image.fromarray(row.reshape(shape)) for row in x)))

    def flagged(self, x: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return for each image of x (n, features) whether it is inverted."""
        if self.options.invert == "auto":
            return is_opposite(x, self.image_shape, self.stats)
        return np.full(len(x), self.options.invert == "yes")

    def convert(
        self, x: npt.NDArray[np.uint8], flagged: npt.NDArray[np.bool_], images: Iterable[PillowImage] = ()
    ) -> npt.NDArray[np.uint8]:
        """Return x (n, features) with the flagged images inverted, and with all drawings in the middle if they are centered.

        images : the images of x in their own size; only needed if they are centered
        """
        self.inverted += int(flagged.sum())
        if self.options.center:
            assert self.stats is not None
            size, light = self.image_shape[:2], self.stats.polarity == "light on dark"
            drawings = [
                centered(np.asarray(image.convert("L")), size, self.stats, dark=bool(invert) == light)
                for image, invert in zip(images, flagged, strict=True)
            ]
            return np.repeat(np.stack(drawings).reshape(len(x), -1), self.image_shape[2], axis=1)
        if not flagged.any():
            return x
        opposite = flagged & is_opposite(x, self.image_shape, self.stats)
        result = np.where(flagged[:, None], 255 - x, x)
        if self.stats is not None and opposite.any():
            result[opposite] = inverted(x[opposite], self.image_shape, self.stats)
        return result

    def keep(self, file: Path, x: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Keep the first rows of a file for a figure, and return x."""
        for number, row in enumerate(x[: MOST_KEPT - len(self.kept)], start=1):
            self.kept[str(file), number] = row
        return x

    def check(self) -> None:
        """Raise DataError if all images were skipped, and ConfigError if an option is for images, but there are none."""
        if self.bad and not self.total:
            raise DataError(f"none of the {len(self.bad)} images can be read. The first error: {next(iter(self.bad.values()))}")
        for name, value in (("center", self.options.center), ("invert", self.options.invert == "yes")):
            if value and not self.total:
                raise ConfigError(f"{name} is for images, but the inputs are tables; leave it out", settings=(name,))

    def notes(self) -> list[str]:
        """Return messages about images that were skipped, or that were inverted because of their polarity."""
        found = [skipped_note(list(map(str, self.bad)), self.total + len(self.bad))] if self.bad else []
        if self.inverted and self.options.invert == "auto":
            assert self.stats is not None
            theirs = "dark on light" if self.stats.polarity == "light on dark" else "light on dark"
            count = f"{self.inverted:,} of {self.total:,} image{'s'[: self.total != 1]}"
            reason = f"{theirs}, but the training images are {self.stats.polarity}"
            found.append(f"{count} inverted: {reason}; set `invert` to no to turn this off")
        return found


def find_files(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the files that are given by names of files, names of folders of images, and glob patterns.

    A folder stands for its images, see `readers.images.images_in`. A name that does not exist and contains *, ? or [ is a
    pattern, in which ** matches any number of folders. It stands for the files that match, or if only folders match, for the
    images in these.

    Raises
    ------
    DataError : a folder has no images, or cannot be read, or nothing matches a pattern
    """
    files: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            files += images_in(path)
        elif path.exists() or not glob.has_magic(str(given)):
            files.append(path)
        else:
            files += matches(str(given))
    return files


def matches(pattern: str) -> list[Path]:
    """Return the files that match a pattern, sorted; if only folders match, return the images in them."""
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob accepts no absolute patterns
    files = [path for path in found if not path.is_dir()] or [file for folder in found for file in images_in(folder)]
    if not files:
        raise DataError(f"{pattern}: no file matches this pattern; check the pattern, or give a folder or the names of files")
    return list(dict.fromkeys(files))  # folders that match ** can be inside each other
