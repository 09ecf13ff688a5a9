"""Read image files as rows of pixels, from a folder with one subfolder per class or from a list of files.

Image sizes and colour modes are converted in the same way in both cases. Source: the conversion from colour to grey is the
luma of ITU-R BT.601.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastmlp.data.readers.arrays import RawArrays
from fastmlp.errors import DataError
from fastmlp.files import file_errors

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"})


def read_image_folder(path: str | Path, image_size: tuple[int, int] | None = None) -> RawArrays:
    """Read a folder with one subfolder of images per class; the sorted names of the subfolders are the classes.

    If the only subfolders are `train/`, or `train/` and `test/`, the subfolders of `train/` are the classes of the training
    set, and those of `test/` the classes of the test set. Hidden files and files whose suffix is not in `IMAGE_SUFFIXES` are
    ignored. Pixels are converted as in `load_images`. They have one channel if all images are stored as grey (Pillow modes 1,
    L, LA, I, I;16 and F), else three. An image with a palette counts as a colour image.

    Parameters
    ----------
    path : folder to read
    image_size : (height, width) to which all images are resized; None if they all have the same size

    Raises
    ------
    DataError : an unreadable image, images of different sizes without `image_size`, an empty or nested class folder, or fewer
        than two classes
    """
    path = Path(path)
    inner = [item.name for item in _visible(path) if item.is_dir()]
    split = inner in (["train"], ["test", "train"])
    classes, files, y = _class_files(path / "train" if split else path)
    if len(classes) < 2:
        raise DataError(
            f"{path}: {len(classes)} class folders; images need at least two, and a folder of arrays needs x.npy and y.npy"
        )
    if not (split and "test" in inner):
        shape = _common_shape(files, image_size)
        return RawArrays(_stack(files, shape), y, classes, shape)
    test_classes, test_files, test_y = _class_files(path / "test")
    if not test_classes:
        raise DataError(f"{path / 'test'}: no class folders; add them or remove the folder")
    if unknown := [name for name in test_classes if name not in classes]:
        raise DataError(f"{path / 'test' / unknown[0]}: no such class in train/; rename or remove the folder")
    shape = _common_shape(files + test_files, image_size)
    y_test = np.array([classes.index(name) for name in test_classes])[test_y]
    return RawArrays(_stack(files, shape), y, classes, shape, _stack(test_files, shape), y_test)


def load_images(paths: Iterable[str | Path], image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Read images of any size and colour mode as rows of pixels, converted to a given image shape.

    Only the first frame of an image is read, and EXIF rotation is not applied. Of 16-bit grey values, the high byte is used.
    Floating-point values are clipped to 0..255. Transparent images are composited over black. With one channel, the pixels
    are ITU-R BT.601 luma, (299 R + 587 G + 114 B) / 1000; with three channels, they are RGB. Images are then resized with an
    antialiased bilinear filter, which does not preserve the aspect ratio. Colours are never inverted.

    Parameters
    ----------
    paths : image files
    image_shape : (height, width, channels) of the result, with 1 channel (grey) or 3 channels (colour)

    Returns
    -------
    (n, height * width * channels) uint8

    Raises
    ------
    DataError : no path given; a file that is not an image, is damaged, or has too many pixels; or a number of channels other
        than 1 and 3

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "red.png"
    ...     Image.new("RGB", (5, 7), "red").save(path)
    ...     load_images([path], (2, 2, 1)), load_images([path], (1, 1, 3))
    (array([[76, 76, 76, 76]], dtype=uint8), array([[255,   0,   0]], dtype=uint8))
    """
    files = [Path(path) for path in paths]
    if not files:
        raise DataError("no image given; give at least one file")
    if len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise DataError(f"images cannot be converted to shape {image_shape}; it must be (height, width, 1 or 3)")
    return _stack(files, image_shape)


def _visible(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden, sorted by name."""
    with file_errors("read", folder):
        return sorted(item for item in folder.iterdir() if not item.name.startswith("."))


def _class_files(folder: Path) -> tuple[list[str], list[Path], list[int]]:
    """Return the class names, the image files of all classes and the label of each file, sorted by name."""
    groups = [(inner, _visible(inner)) for inner in _visible(folder) if inner.is_dir()]
    files: list[Path] = []
    labels: list[int] = []
    for label, (inner, items) in enumerate(groups):
        if nested := [item for item in items if item.is_dir()]:
            raise DataError(f"{nested[0]}: a folder inside a class folder; only train/ and test/ may contain class folders")
        images = [item for item in items if item.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise DataError(f"{inner}: no image in this class folder; add some or remove the folder")
        files += images
        labels += [label] * len(images)
    return [inner.name for inner, _ in groups], files, labels


def _common_shape(files: list[Path], image_size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Return (height, width, channels) for all files. Only the headers of the files are read."""
    sizes, modes = [], set()
    for file in files:
        with _open_image(file) as image:
            sizes.append((image.height, image.width))
            modes.add(image.mode)
        if image_size is None and sizes[-1] != sizes[0]:
            (height, width), (first_height, first_width) = sizes[-1], sizes[0]
            raise DataError(
                f"{file}: {height}x{width} pixels, but {files[0]} has {first_height}x{first_width}; "
                "set image_size to resize all images to one height and width",
                settings=("image_size",),
            )
    grey = all(mode in {"1", "L", "LA", "La", "I", "F"} or mode.startswith("I;16") for mode in modes)
    return (*(image_size or sizes[0]), 1 if grey else 3)


@contextmanager
def _open_image(path: Path) -> Iterator[PillowImage]:
    """Open an image. Raise DataError, with the file name in a one-line message, if Pillow rejects the file."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except (
        *(OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error),
        *(Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path}: not a readable image ({reason}); replace or remove it") from error


def _stack(files: list[Path], shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return the pixels of all files as an array (n, height * width * channels)."""
    try:
        rows = np.empty((len(files), math.prod(shape)), np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{len(files)} images of {shape} do not fit into memory; set a smaller image_size", settings=("image_size",)
        ) from error
    for row, file in zip(rows, files, strict=True):
        with _open_image(file) as image:
            row[:] = _pixels(image, shape)
    return rows


def _pixels(image: PillowImage, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Convert one image as described in `load_images`, and flatten it."""
    from PIL import Image

    height, width, channels = shape
    if image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).ravel()
