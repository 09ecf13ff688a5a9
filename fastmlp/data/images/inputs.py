"""Image inputs of a prediction: their files, reading, inversion and centering."""

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
from fastmlp.data.readers.image_conversion import to_row
from fastmlp.data.readers.images import BadImages, check_image_shape, images_in, read_image, read_or_skip, skipped_note
from fastmlp.data.rows import Array
from fastmlp.errors import ConfigError, DataError
from fastmlp.files.reading import exists, is_folder
from fastmlp.nn.names import canonical_name

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

INVERT = ("auto", "yes", "no")
MOST_KEPT = 48  # maximum number of converted images that are kept for a figure


@dataclass(frozen=True)
class ImageOptions:
    """How images are converted before they are predicted.

    Parameters
    ----------
    invert : "auto" inverts the images whose polarity is the opposite of that of the training images; "yes" inverts all
        images, and "no" none
    center : whether drawings are scaled and centered, see `centering.centered`
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
    """Conversion of images to the inputs of a model, with counts of the images.

    Parameters
    ----------
    image_shape : (height, width, channels) of the images that the model takes
    stats : statistics of the training images; None if they are unknown
    options : how images are converted
    kept : the first MOST_KEPT converted images, (features,) uint8, by name of their file and number of the row, from 1
    total, inverted : number of images that were read, and of those that were inverted
    bad : unreadable files that were skipped, with the errors

    Raises
    ------
    ConfigError : `center` is set, but the training images have no polarity, or it is unknown
    DataError : `center` is set, but the images do not have 1 or 3 channels
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
            reason = "this model has no statistics of them; train it again, on images of type uint8, or leave center out"
        else:
            reason = "those of this model have none; leave center out"
        raise ConfigError(f"center needs training images with a uniform background, but {reason}", settings=("center",))

    def read(self, file: Path) -> npt.NDArray[np.uint8] | None:
        """Return the converted image in a file as a row (1, features), or None if it is skipped.

        Raises
        ------
        DataError : the image cannot be read, or the model takes images with other than 1 and 3 channels
        """
        check_image_shape(self.image_shape)
        skipped = self.bad if self.options.skip_bad else None
        image = read_or_skip(lambda path: read_image(path, self.image_shape[2]), file, skipped)
        if image is None:
            return None
        self.total += 1
        x = to_row(image, self.image_shape)[None]
        return self.keep(file, self.convert(x, self.to_invert(x), [image]))

    def rows(self, x: npt.NDArray[np.uint8], file: Path) -> npt.NDArray[np.uint8]:
        """Return the converted images x (n, features) of an array in a file.

        With "auto", all of them are inverted if most of them have the opposite polarity, else none.
        """
        from PIL import Image

        self.total += len(x)
        selected = self.to_invert(x)
        if self.options.invert == "auto":
            selected[:] = selected.mean() > 0.5
        height, width, channels = self.image_shape
        shape = (height, width) if channels == 1 else self.image_shape
        return self.keep(file, self.convert(x, selected, (Image.fromarray(row.reshape(shape)) for row in x)))

    def to_invert(self, x: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return for each image of x (n, features) whether it has to be inverted, (n,) bool."""
        if self.options.invert == "auto":
            return is_opposite(x, self.image_shape, self.stats)
        return np.full(len(x), self.options.invert == "yes")

    def convert(
        self, x: npt.NDArray[np.uint8], selected: npt.NDArray[np.bool_], images: Iterable[PillowImage] = ()
    ) -> npt.NDArray[np.uint8]:
        """Return x (n, features) with the selected images inverted, and with all drawings centered if `center` is set.

        images : the images of x in their original size; only used for centering
        """
        self.inverted += int(selected.sum())
        if self.options.center:
            assert self.stats is not None
            size, light = self.image_shape[:2], self.stats.polarity == "light on dark"
            drawings = [
                centered(np.asarray(image.convert("L")), size, self.stats, dark=bool(invert) == light)
                for image, invert in zip(images, selected, strict=True)
            ]
            return np.repeat(np.stack(drawings).reshape(len(x), -1), self.image_shape[2], axis=1)
        if not selected.any():
            return x
        opposite = selected & is_opposite(x, self.image_shape, self.stats)
        result = np.where(selected[:, None], 255 - x, x)
        if self.stats is not None and opposite.any():
            result[opposite] = inverted(x[opposite], self.image_shape, self.stats)
        return result

    def keep(self, file: Path, x: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Keep the first rows of a file for a figure, and return x."""
        for number, row in enumerate(x[: MOST_KEPT - len(self.kept)], start=1):
            self.kept[str(file), number] = row
        return x

    def check(self) -> None:
        """Raise DataError if all images were skipped, and ConfigError if an option for images is given, but there are none."""
        if self.bad and not self.total:
            raise DataError(f"no image can be read; replace them. The first error: {next(iter(self.bad.values())).reason}")
        for name, value in (("center", self.options.center), ("invert", self.options.invert == "yes")):
            if value and not self.total:
                raise ConfigError(f"{name} is for images, but none of the inputs is an image; leave it out", settings=(name,))

    def notes(self) -> list[str]:
        """Return messages about images that were skipped, or that were inverted because of their polarity."""
        found = [skipped_note(list(map(str, self.bad)), self.total + len(self.bad))] if self.bad else []
        if self.inverted and self.options.invert == "auto":
            assert self.stats is not None
            theirs = "dark on light" if self.stats.polarity == "light on dark" else "light on dark"
            reason = f"{theirs}, whereas the training images are {self.stats.polarity}"
            count = f"{self.inverted:,} of {self.total:,} image{'s'[: self.total != 1]}"
            found.append(f"inverted {count}: {reason}; set `invert` to no to disable this")
        return found


def find_files(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the files that are given by paths of files, paths of folders of images, and glob patterns.

    A folder is replaced by the images in it, see `readers.images.images_in`. A path that does not exist and contains *, ? or [
    is a pattern, in which ** matches any number of folders. It is replaced by the files that match, or if only folders match,
    by the images in these folders.

    Raises
    ------
    DataError : a folder has no images, or cannot be read, or nothing matches a pattern
    """
    files: list[Path] = []
    for given in inputs:
        path = Path(given)
        if is_folder(path):
            files += images_in(path)
        elif exists(path) or not glob.has_magic(str(given)):
            files.append(path)
        else:
            files += matches(str(given))
    return files


def matches(pattern: str) -> list[Path]:
    """Return the files that match a pattern, sorted; if only folders match, return the images in them."""
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob accepts no absolute patterns
    files = [path for path in found if not is_folder(path)] or [file for folder in found for file in images_in(folder)]
    if not files:
        raise DataError(f"{pattern}: no file matches this pattern; check the pattern, or give the paths of files or folders")
    return list(dict.fromkeys(files))  # folders that match ** can be nested
