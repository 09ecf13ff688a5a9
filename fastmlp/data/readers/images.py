"""Reader of image files, from a folder with one subfolder per class or from a list of files.

Images are converted in the same way in both cases, see image_conversion.py.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import SourceLocation
from fastmlp.data.readers.arrays import RawArrays
from fastmlp.data.readers.image_conversion import converted, decoded, orientation, to_row
from fastmlp.errors import DataError
from fastmlp.files.limits import check_claim
from fastmlp.files.reading import entries, file_errors, is_folder, open_file, reason, size_of

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"}
)
# Pillow's formats of these suffixes. Its other readers are not used: that of PostScript starts Ghostscript with the file.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_RLE_PIXELS = 8_000_000  # of a run-length encoded BMP, which Pillow decodes in Python: 67 million pixels take 20 s
MOST_NAMES = 3  # maximum number of unreadable files that a note names
logging.getLogger("PIL").addHandler(logging.NullHandler())  # without it, messages about damaged files are written to stderr

Result = TypeVar("Result")


class BadImageError(DataError):
    """A file is not a readable image. `reason` has the path and the cause, and the message also a remedy."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; replace or remove it, or set skip_bad to leave it out", settings=("skip_bad",))
        self.reason = reason


BadImages = dict[Path, BadImageError]  # unreadable files that are skipped


def read_image_folder(
    path: str | Path,
    image_size: tuple[int, int] | None = None,
    skip_bad: bool = False,
    channels: int | None = None,
    *,
    least_classes: int = 2,
) -> RawArrays:
    """Read a folder with one subfolder of images per class; the sorted names of the subfolders are the classes.

    If the only subfolders are `train/`, or `train/` and `test/`, the subfolders of `train/` are the classes of the training
    set, and those of `test/` the classes of the test set. Hidden files and files whose suffix is not in `IMAGE_SUFFIXES` are
    ignored; a note has the number of the latter. Pixels are converted as in `load_images`. They have one channel if all images
    are stored as grey (Pillow modes 1, L, LA, I, I;16 and F), else three. An image with a palette counts as a colour image.

    Parameters
    ----------
    path : folder to read
    image_size : (height, width) to which all images are resized; None if they all have the same size
    skip_bad : whether unreadable images are left out; a note has their number and the first names
    channels : 1 for grey or 3 for colour; if None, 1 if all images are stored as grey, else 3
    least_classes : minimum number of classes

    Raises
    ------
    DataError : an unreadable image, images of different sizes without `image_size`, an empty or nested class folder, a class
        without a readable image, or fewer than `least_classes` classes
    """
    path = Path(path)
    bad: BadImages | None = {} if skip_bad else None
    inner = [item.name for item in _visible(path) if is_folder(item)]
    split = inner in (["train"], ["test", "train"])
    classes, files, y = _class_files(path / "train" if split else path)
    if len(classes) < least_classes:
        raise DataError(
            f"{path}: {len(classes)} class folders; give a folder with {least_classes} or more subfolders of images, one per "
            "class, or a folder with x.npy and y.npy"
        )
    locations = {"classes": SourceLocation(str(path / "train" if split else path), "class folder", 1)}
    if not (split and "test" in inner):
        shape = _common_shape(files, image_size, channels, bad)
        x, kept = _stack(path, files, shape, bad)
        return RawArrays(x, np.array(y)[kept], classes, shape, locations=locations, notes=_notes(path, files, bad))
    test_classes, test_files, test_y = _class_files(path / "test")
    if not test_classes:
        raise DataError(f"{path / 'test'}: no class folders; add some or remove the folder")
    number = {name: index for index, name in enumerate(classes)}
    if unknown := [name for name in test_classes if name not in number]:
        raise DataError(f"{path / 'test' / unknown[0]}: no such class in train/; rename or remove the folder")
    shape = _common_shape(files + test_files, image_size, channels, bad)
    x, kept = _stack(path, files, shape, bad)
    x_test, kept_test = _stack(path, test_files, shape, bad)
    y_test = np.array([number[name] for name in test_classes])[test_y]
    notes = _notes(path, files + test_files, bad)
    return RawArrays(x, np.array(y)[kept], classes, shape, x_test, y_test[kept_test], locations, notes=notes)


def load_images(paths: Iterable[str | Path], image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Read images of any size and colour mode as rows of pixels, converted to a given image shape.

    Only the first frame of an image is read. Images are rotated and mirrored according to their EXIF orientation. 16-bit grey
    values are reduced to their high byte. Floating-point values from 0 to 1 are multiplied by 255, and others are clipped to
    0..255. Transparent images are composited over white, or over black if nearly all of their visible pixels are light, such as
    white ink on a transparent background. With one channel, the pixels are ITU-R BT.601 luma, (299 R + 587 G + 114 B) / 1000;
    with three channels, they are RGB. Images are then resized with an antialiased bilinear filter, which does not preserve the
    aspect ratio. Images are not inverted.

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
        raise DataError("no images given; give at least one file")
    check_image_shape(image_shape)
    return _stack(files[0].parent, files, image_shape, None)[0]


def check_image_shape(image_shape: tuple[int, int, int]) -> None:
    """Raise DataError if image files cannot be converted to this shape."""
    if len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise DataError(f"images cannot be converted to shape {image_shape}; it must be (height, width, 1 or 3)")


def read_image(path: Path, channels: int) -> PillowImage:
    """Read an image as described in `load_images`, but with its own size.

    channels : 1 for grey (mode L) or 3 for colour (mode RGB)

    Raises
    ------
    DataError : as in `load_images`
    """
    with _pillow(path) as image:
        upright = decoded(image)
    return converted(upright, channels)


def images_in(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted; files and folders are selected as in image folders.

    Raises
    ------
    DataError : a folder cannot be read, or there is no image
    """
    files: list[Path] = []

    def refuse(error: OSError) -> None:
        raise error

    with file_errors("read", folder):
        for place, folders, names in os.walk(folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            files += [Path(place, name) for name in names if not name.startswith(".")]
    files = sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{folder}: no images in this folder; give a folder with images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def skipped_note(names: Sequence[str], total: int) -> str:
    """Return a note about unreadable images that were skipped.

    >>> skipped_note(["cat/1.png", "cat/7.png"], 300)
    'skipped 2 of 300 images as unreadable: cat/1.png, cat/7.png'
    """
    listed = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
    return f"skipped {len(names):,} of {total:,} image{'s'[: total != 1]} as unreadable: {listed}"


def read_or_skip(read: Callable[[Path], Result], file: Path, bad: BadImages | None) -> Result | None:
    """Return `read(file)`. If the file is not a readable image, raise BadImageError, or add it to `bad` and return None.

    bad : the files that were skipped so far; None if no file is skipped
    """
    try:
        return read(file)
    except BadImageError as error:
        if bad is None:
            raise
        bad[file] = error
        return None


def _notes(folder: Path, files: Sequence[Path], bad: Mapping[Path, BadImageError] | None) -> list[str]:
    """Return notes about files that were ignored because of their suffix, and unreadable images that were skipped.

    Raises
    ------
    DataError : all images of a class were skipped
    """
    notes = []
    classes = {file.parent for file in files}
    if others := [item for inner in classes for item in _visible(inner) if item.suffix.lower() not in IMAGE_SUFFIXES]:
        kinds = Counter(item.suffix.lower() or "no suffix" for item in others)
        listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        notes.append(f"{folder}: files without the suffix of an image were ignored: {listed}")
    if bad:
        readable = {file.parent for file in files if file not in bad}
        for file, error in bad.items():
            if file.parent not in readable:
                raise DataError(
                    f"{file.parent}: no image in this class folder can be read; replace them or remove the folder. "
                    f"The first error: {error.reason}"
                )
        notes.append(f"{folder}: {skipped_note([str(file.relative_to(folder)) for file in bad], len(files))}")
    return notes


def _visible(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden, sorted by name."""
    return [item for item in entries(folder) if not item.name.startswith(".")]


def _class_files(folder: Path) -> tuple[list[str], list[Path], list[int]]:
    """Return the class names, the image files of all classes and the label of each file, sorted by name."""
    groups = [(inner, _visible(inner)) for inner in _visible(folder) if is_folder(inner)]
    files: list[Path] = []
    labels: list[int] = []
    for label, (inner, items) in enumerate(groups):
        if nested := [item for item in items if is_folder(item)]:
            raise DataError(f"{nested[0]}: a folder inside a class folder; only train/ and test/ may contain class folders")
        images = [item for item in items if item.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"{inner}: no images in this class folder; add images ({suffixes}) or remove the folder")
        files += images
        labels += [label] * len(images)
    return [inner.name for inner, _ in groups], files, labels


def _common_shape(
    files: list[Path], image_size: tuple[int, int] | None, channels: int | None, bad: BadImages | None
) -> tuple[int, int, int]:
    """Return (height, width, channels) for all files that are not `bad`. Only the headers of most files are read."""
    sizes: dict[Path, tuple[int, int]] = {}
    modes = set()
    for file in files:
        header = read_or_skip(_header, file, bad)
        if header is None:
            continue
        sizes[file], mode = header
        modes.add(mode)
        first = next(iter(sizes))
        if image_size is None and sizes[file] != sizes[first]:
            (height, width), (first_height, first_width) = sizes[file], sizes[first]
            raise DataError(
                f"{file}: {height}x{width} pixels, but {first} has {first_height}x{first_width}; "
                "set image_size to resize all images to one height and width",
                settings=("image_size",),
            )
    if not sizes:
        assert bad
        raise DataError(f"no image can be read; replace them. The first error: {next(iter(bad.values())).reason}")
    grey = all(mode in {"1", "L", "LA", "La", "I", "F"} or mode.startswith("I;16") for mode in modes)
    return (*(image_size or next(iter(sizes.values()))), channels or (1 if grey else 3))


def _header(file: Path) -> tuple[tuple[int, int], str]:
    """Return the size (height, width) of the upright image in a file, and its mode."""
    with _pillow(file) as image:
        swapped = orientation(image) >= 5
        if swapped and image.format == "TIFF":  # Pillow itself transposes them, older versions when they are loaded
            image.load()
            swapped = False
        return (image.width, image.height) if swapped else (image.height, image.width), image.mode


@contextmanager
def _pillow(path: Path) -> Iterator[PillowImage]:
    """Open an image.

    Raise BadImageError for any exception of Pillow, including those in the block, or DataError if there is no such file.
    Images with more pixels than `PIL.Image.MAX_IMAGE_PIXELS` are rejected.
    """
    from PIL import Image, UnidentifiedImageError

    # Given the name of an uncompressed TIFF file, Pillow maps it into memory, and version 13.0 then ignores that the width and
    # the height of an image with an orientation are swapped.
    with open_file(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged metadata, which are not used
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > MAX_RLE_PIXELS and any(tile[0] == "bmp_rle" for tile in image.tile):
                    raise Image.DecompressionBombError(f"run-length encoded, with more than {MAX_RLE_PIXELS:,} pixels")
                yield image
        except Exception as error:
            # The message of this exception has the representation of a Python object.
            unknown = isinstance(error, UnidentifiedImageError)
            text = "unknown or damaged file format" if unknown else reason(error)
            raise BadImageError(f"{path}: not a readable image ({text})") from error


def _stack(
    folder: Path, files: list[Path], shape: tuple[int, int, int], bad: BadImages | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the pixels of all files that are not `bad` as an array (n, height * width * channels), and their indices (n,).

    folder : folder of the images, for the message if they are too large
    """
    check_claim(folder, len(files) * math.prod(shape), sum(map(size_of, files)), "folder of images")
    try:
        rows = np.empty((len(files), math.prod(shape)), np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{len(files)} images of {shape} do not fit into memory; set a smaller image_size", settings=("image_size",)
        ) from error
    kept: list[int] = []
    for index, file in enumerate(files):
        image = None if bad and file in bad else read_or_skip(lambda path: read_image(path, shape[2]), file, bad)
        if image is not None:
            rows[len(kept)] = to_row(image, shape)
            kept.append(index)
    return rows[: len(kept)], np.array(kept, np.int64)
