"""Readers of data files: IDX, `.npz`, `.csv`, a folder of class folders of images, single images.

Here: from bytes on disk to plain arrays (`Parts`), every kind of damage named by file and place.
Not here: names of data sets, downloads, and the checks that all sources share (`data.py`).
Sources: the IDX format as on the MNIST page (http://yann.lecun.com/exdb/mnist); grey = ITU-R BT.601 luma.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import math
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.errors import DataError
from fastmlp.preprocess import Place

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"})
CHUNK = 1 << 20  # bytes read at a time, so that no buffer is ever sized by what a header claims
FLOAT32_MAX = float(np.finfo(np.float32).max)
REFETCH = "delete it and get it again with `fastmlp data fetch`"


class Parts(NamedTuple):
    """What a reader found: arrays as they are in the file, not yet checked (`data.check_dataset` does)."""

    x: Any
    y: Any
    classes: Sequence[str] | None = None
    image_shape: tuple[int, int, int] | None = None
    x_test: Any = None
    y_test: Any = None
    places: Mapping[str, Place] | None = None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of the file system and of gzip into one line that names the file."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); {REFETCH}") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error


# --- IDX ----------------------------------------------------------------------------------------------------


def read_idx(path: str | Path, dims: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in `.gz`.

    Parameters
    ----------
    path : bytes 0, 0, 8 (unsigned byte), number of dimensions, the dimensions (big-endian uint32), the values
    dims : number of dimensions that the file must have: 3 for images, 1 for labels

    Returns
    -------
    array of uint8, with the shape that the header gives

    Raises
    ------
    DataError : wrong magic, type or dimensions, an empty array, too few or too many bytes, damaged gzip

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    ...     read_idx(path, 1)
    array([7, 8, 9], dtype=uint8)
    """
    path = Path(path)
    with reading(path), _open_bytes(path) as stream:
        shape = _idx_shape(path, stream.read(4 + 4 * dims), dims)
        claimed = math.prod(shape)
        # One byte more than claimed shows trailing bytes; reading to the end makes gzip compare its checksum.
        content = _read_at_most(stream, claimed + 1)
    if len(content) != claimed:
        found = "more" if len(content) > claimed else f"only {len(content)}"
        size = "x".join(map(str, shape))
        raise DataError(f"{path}: the header claims {size} = {claimed} bytes, the file holds {found}; {REFETCH}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _open_bytes(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _idx_shape(path: Path, head: bytes, dims: int) -> tuple[int, ...]:
    """Shape from the `4 + 4 * dims` bytes of an IDX header."""
    magic = bytes((0, 0, 8, dims))
    if len(head) >= 4 and head[:4] != magic:
        hint = "it is gzipped: add .gz to its name" if head[:2] == b"\x1f\x8b" else REFETCH
        raise DataError(
            f"{path}: starts with 0x{head[:4].hex()} instead of 0x{magic.hex()} "
            f"(IDX of unsigned bytes with {dims} dimensions); {hint}"
        )
    if len(head) < 4 + 4 * dims:
        raise DataError(f"{path}: only {len(head)} bytes, less than an IDX header; {REFETCH}")
    shape = struct.unpack(f">{dims}I", head[4:])
    if 0 in shape:
        raise DataError(f"{path}: the header claims an empty array {shape}; {REFETCH}")
    return shape


def _read_at_most(stream: io.BufferedIOBase, limit: int) -> bytearray:
    """Up to `limit` bytes, in chunks: memory grows with the content, not with the limit."""
    content = bytearray()
    while chunk := stream.read(min(CHUNK, limit - len(content))):
        content += chunk
    return content


# --- .npz ---------------------------------------------------------------------------------------------------


def read_npz(path: str | Path) -> Parts:
    """Read `x`, `y` and, where present, `x_test`, `y_test`, `classes` of an `.npz` file; pickles are refused.

    Other keys are ignored. Raises DataError for a damaged file, a missing key or an array of Python objects.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.npz"
    ...     np.savez(path, x=np.eye(2), y=["no", "yes"])
    ...     read_npz(path).y.tolist()
    ['no', 'yes']
    """
    path = Path(path)
    names = ("x", "y", "x_test", "y_test", "classes")
    strange = DataError(f"{path}: not a readable .npz file; write it with numpy.savez(file, x=..., y=...)")
    with reading(path), path.open("rb") as stream:
        try:
            archive = np.load(stream, allow_pickle=False)
        except (ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise strange from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise strange
        listed = ", ".join(archive.files) or "nothing"
        found: dict[str, Any] = {name: _npz_array(path, archive, name) for name in names if name in archive.files}
    if missing := [name for name in ("x", "y") if name not in found]:
        raise DataError(f"{path}: no array named {' nor '.join(missing)} (it holds: {listed}); save x and y")
    return Parts(**found, places={name: Place(f"{path}: array {name!r}") for name in names})


def _npz_array(path: Path, archive: Mapping[str, Any], name: str) -> npt.NDArray[Any]:
    """One array of the archive; the caught errors are those of damaged zip members and of damaged headers."""
    try:
        array = archive[name]
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that has no array in it
            raise ValueError("not in the format of numpy.save")
    except (
        *(ValueError, EOFError, SyntaxError, RuntimeError, MemoryError),
        *(zlib.error, zipfile.BadZipFile, tokenize.TokenError),
    ) as error:
        reason = " ".join(str(error).split())
        remedy = "save plain arrays of numbers or strings, without Python objects or ragged rows"
        raise DataError(f"{path}: array {name!r} cannot be read ({reason}); {remedy}") from error
    return array


# --- .csv ---------------------------------------------------------------------------------------------------


def read_csv(path: str | Path, target: str = "class") -> Parts:
    """Read a comma-separated table: label (or value) first, then numbers, as in Kaggle's files. UTF-8.

    The first line is data if its first cell is a number, and a header if no cell of it is a number and none
    is empty. Anything else is an error, so that no row of data is ever taken for a header.
    Labels may be text if there is a header and the label of the first data line is text; then all are text.
    Features that are all whole numbers in 0..255 become uint8, others float32. Blank lines may be at the end.
    A header ...,pixel0,pixel1,... or ...,pixel1,... with a square number of pixels gives the image shape.

    Parameters
    ----------
    path : the file
    target : "class" or "value" (the first column must then be a number)

    Raises
    ------
    DataError : with line and column: ragged or blank lines, empty cells, text, NaN, numbers beyond float32

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.csv"
    ...     _ = path.write_text("label,pixel0,pixel1,pixel2,pixel3\\ncat,0,255,0,1\\ndog,3,4,5,6\\n")
    ...     parts = read_csv(path)
    >>> parts.y.tolist(), parts.classes, parts.x.dtype, parts.image_shape
    ([0, 1], ['cat', 'dog'], dtype('uint8'), (2, 2, 1))
    """
    path = Path(path)
    first = list(itertools.islice(_csv_rows(path), 2))
    if not first or not any(cell.strip() for cell in first[0]):
        raise DataError(f"{path}: line 1 is empty; a label and numbers, separated by commas, are needed")
    if len(first[0]) < 2:
        raise DataError(f"{path}: line 1 has one column; a label and numbers, separated by commas, are needed")
    header = first[0] if _is_header(path, first) else None
    skip = int(header is not None)
    if len(first) <= skip:
        raise DataError(f"{path}: no line of data after the header; add rows")
    label = first[skip][0].strip() if first[skip] else ""
    text = target == "class" and header is not None and label != "" and not _is_number(label)
    table, names = _csv_table(path, skip, text)
    if table.shape[1] != len(first[0]):
        raise DataError(f"{path}: line 2 has {table.shape[1]} columns, line 1 has {len(first[0])}; make them equal")
    place = Place(str(path), "line", 1 + skip)
    x, y, places = _narrow(table[:, 1:]), table[:, 0].copy(), {"x": place, "y": place}
    if not text:
        return Parts(x, y, None, _pixel_shape(header), places=places)
    rank = np.argsort(np.argsort(np.array(names, object)))  # from the order of appearance to sorted order
    return Parts(x, rank[y.astype(np.intp)], sorted(names), _pixel_shape(header), places=places)


def _csv_rows(path: Path) -> Iterator[list[str]]:
    """The cells of each line, as text."""
    with reading(path), path.open(encoding="utf-8-sig", newline="") as handle:
        try:
            yield from csv.reader(handle, strict=True)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8 csv") from error
        except csv.Error as error:
            raise DataError(f"{path}: not a csv file ({error}); save it as comma-separated text") from error


def _is_number(cell: str) -> bool:
    """True if numpy's parser takes the cell for a number (Python's takes more: 1_000, other scripts)."""
    if "_" in cell or not cell.isascii():
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_header(path: Path, rows: list[list[str]]) -> bool:
    """Apply the rule in `read_csv` to the first two lines."""
    label, features = rows[0][0].strip(), [cell.strip() for cell in rows[0][1:]]
    if not label:
        raise DataError(f"{path}: line 1, column 1 is empty; put the label first (pandas: to_csv(index=False))")
    if _is_number(label):
        return False
    if all(features) and not any(map(_is_number, features)):
        if re.fullmatch(r"pixel\d+", label):
            raise DataError(f"{path}: the header starts with {label!r}; put a label column first")
        return True
    raise DataError(
        f"{path}: line 1 starts with {label!r} but is neither a header nor data; "
        "give the file a header line of names without numbers, such as label,pixel0,pixel1"
    )


def _csv_table(path: Path, skip: int, text: bool) -> tuple[npt.NDArray[np.float32], list[str]]:
    """All numbers (rows, columns); text labels are coded 0, 1, … by first appearance in the list of names."""
    codes: dict[str, int] = {}

    def code(cell: str) -> int:
        if not cell.strip():
            raise ValueError("empty label")
        return codes.setdefault(cell.strip(), len(codes))

    try:
        with reading(path), path.open(encoding="utf-8-sig") as handle:
            table: npt.NDArray[np.float32] = np.loadtxt(
                _without_blank_lines(path, handle),
                np.float32,
                delimiter=",",
                comments=None,
                quotechar='"',
                skiprows=skip,
                ndmin=2,
                converters={0: code} if text else None,
            )
    except DataError:
        raise
    except ValueError as error:
        raise DataError(_csv_fault(path, skip, text) or f"{path}: {error}") from error
    if not np.isfinite(table).all():
        raise DataError(_csv_fault(path, skip, text))
    return table, list(codes)


def _without_blank_lines(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """The lines; blank ones, which numpy would skip unnoticed, are allowed at the end only."""
    blank = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            blank = blank or number
        elif blank:
            raise DataError(f"{path}: line {blank} is blank; remove it")
        else:
            yield line


def _csv_fault(path: Path, skip: int, text: bool) -> str:
    """Describe the first bad line; slow, so only for files that the fast parser has refused."""
    width = 0
    for number, cells in enumerate(_csv_rows(path), 1):
        width = width or len(cells)
        if len(cells) != width and cells:
            return f"{path}: line {number} has {len(cells)} columns, line 1 has {width}; make them equal"
        if number <= skip:
            continue
        for column, cell in enumerate(cells, 1):
            place = f"{path}: line {number}, column {column}"
            if not cell.strip():
                return f"{place} is empty; fill it or remove the line"
            if text and column == 1:
                continue
            if not _is_number(cell):
                return f"{place}: {cell!r} is not a number; correct it or remove the line"
            if not abs(float(cell)) <= FLOAT32_MAX:
                return f"{place}: {cell!r} is not a finite float32 number; correct it or remove the line"
    return ""


def _narrow(x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """The same values as uint8 if all are whole numbers in 0..255, as pixels are; else as they are."""
    if x.min() >= 0 and x.max() <= 255:
        pixels = x.astype(np.uint8)
        if np.array_equal(pixels, x):
            return pixels
    return x


def _pixel_shape(header: list[str] | None) -> tuple[int, int, int] | None:
    """Image shape that Kaggle's header tells: pixel0 … or pixel1 …, a square number of them."""
    names = [] if header is None else [cell.strip() for cell in header[1:]]
    side = math.isqrt(len(names))
    kaggle = any(names == [f"pixel{i + start}" for i in range(len(names))] for start in (0, 1))
    return (side, side, 1) if names and kaggle and side * side == len(names) else None


# --- images: a folder of class folders, single files --------------------------------------------------------


def read_image_folder(path: str | Path, image_size: tuple[int, int] | None = None) -> Parts:
    """Read a folder of class folders of images; the folders' names, sorted, are the classes.

    A folder that holds just `train/`, or `train/` and `test/`, gives a training and a test part. Hidden files
    and files without one of `IMAGE_SUFFIXES` are ignored. Pixels are converted as by `load_images`: to one
    channel if all images are stored as grey (Pillow modes 1, L, LA, I, I;16, F), else to three; a palette
    counts as colour.

    Parameters
    ----------
    path : the folder
    image_size : (height, width) to which all are resized; None if all have one size

    Raises
    ------
    DataError : an unreadable image, two sizes, an empty or nested class folder, fewer than two classes
    """
    path = Path(path)
    inner = [item.name for item in _visible(path) if item.is_dir()]
    split = inner in (["train"], ["test", "train"])
    classes, files, y = _class_files(path / "train" if split else path)
    if len(classes) < 2:
        raise DataError(f"{path}: {len(classes)} class folders; at least two are needed, one for each class")
    if not (split and "test" in inner):
        shape = _common_shape(files, image_size)
        return Parts(_stack(files, shape), y, classes, shape)
    test_classes, test_files, test_y = _class_files(path / "test")
    if not test_classes:
        raise DataError(f"{path / 'test'}: no class folders; add them or remove the folder")
    if strange := [name for name in test_classes if name not in classes]:
        raise DataError(f"{path / 'test' / strange[0]}: no such class in train/; rename or remove the folder")
    shape = _common_shape(files + test_files, image_size)
    y_test = np.array([classes.index(name) for name in test_classes])[test_y]
    return Parts(_stack(files, shape), y, classes, shape, _stack(test_files, shape), y_test)


def load_images(paths: Iterable[str | Path], image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Read images of any size and mode as rows of pixels, for a model trained on `image_shape`.

    Of each image the first frame is taken, EXIF rotation is not applied; 16-bit grey keeps its high byte,
    floats are clipped to 0..255; transparency is laid over black; one channel is ITU-R BT.601 luma,
    (299 R + 587 G + 114 B) / 1000, three are RGB; then it is resized, bilinear with antialiasing, aspect
    ratio ignored. Nothing is inverted.

    Parameters
    ----------
    paths : files of images
    image_shape : (height, width, channels), channels 1 (grey) or 3 (colour)

    Returns
    -------
    (n, height * width * channels) uint8

    Raises
    ------
    DataError : no path, a file that is no image, damaged or absurdly large, or channels other than 1 or 3

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
        raise DataError("no image given; name at least one file")
    if len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise DataError(f"images cannot be turned into {image_shape}; needed: (height, width, 1 or 3)")
    return _stack(files, image_shape)


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden files."""
    with reading(folder):
        return sorted(item for item in folder.iterdir() if not item.name.startswith("."))


def _class_files(folder: Path) -> tuple[list[str], list[Path], list[int]]:
    """Names of the classes, image files of all, and for each file the number of its class; sorted by name."""
    groups = [(inner, _visible(inner)) for inner in _visible(folder) if inner.is_dir()]
    files: list[Path] = []
    numbers: list[int] = []
    for number, (inner, items) in enumerate(groups):
        if nested := [item for item in items if item.is_dir()]:
            raise DataError(f"{nested[0]}: a folder in a class folder; only train/ and test/ may hold class folders")
        images = [item for item in items if item.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise DataError(f"{inner}: no image in this class folder; add some or remove the folder")
        files += images
        numbers += [number] * len(images)
    return [inner.name for inner, _ in groups], files, numbers


def _common_shape(files: list[Path], image_size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Height, width and channels for all files, from their headers."""
    sizes, modes = [], set()
    for file in files:
        with _open_image(file) as image:
            sizes.append((image.height, image.width))
            modes.add(image.mode)
        if image_size is None and sizes[-1] != sizes[0]:
            (height, width), (first_height, first_width) = sizes[-1], sizes[0]
            raise DataError(
                f"{file}: {height}x{width} pixels, {files[0]} has {first_height}x{first_width}; "
                "resize all with --image-size HEIGHT,WIDTH (Python: image_size)"
            )
    grey = all(mode in {"1", "L", "LA", "La", "I", "F"} or mode.startswith("I;16") for mode in modes)
    return (*(image_size or sizes[0]), 1 if grey else 3)


@contextmanager
def _open_image(path: Path) -> Iterator[PillowImage]:
    """Open an image; what Pillow raises for damaged or hostile files becomes one line that names the file."""
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
    """Pixels of all files, (n, height * width * channels)."""
    try:
        rows = np.empty((len(files), math.prod(shape)), np.uint8)
    except MemoryError as error:
        raise DataError(f"{len(files)} images of {shape} do not fit into memory; use --image-size") from error
    for row, file in zip(rows, files, strict=True):
        with _open_image(file) as image:
            row[:] = _pixels(image, shape)
    return rows


def _pixels(image: PillowImage, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """One image converted as `load_images` says, flat."""
    from PIL import Image

    height, width, channels = shape
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).ravel()
