"""The data sets that can be loaded by name (digits, MNIST and Fashion-MNIST), and a reader of IDX files.

Sources: the digits are scikit-learn's copy of the UCI optical digits (Alpaydin, Kaynak 1998, CC BY 4.0). They are stored in
this folder because importing scikit-learn takes longer than training on them. Fashion-MNIST: Xiao, Rasul, Vollgraf 2017, MIT
licence. MNIST: LeCun, Cortes, Burges, CC BY-SA 3.0. The SHA-256 hashes are those of the published files. The IDX format is
described on the MNIST page (http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import io
import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from fastmlp.data.checks import SourceLocation
from fastmlp.data.download import DataEntry, DataFile, FileStatus, data_folder, download, present, verify_file
from fastmlp.data.readers.arrays import RawArrays
from fastmlp.errors import DataError, unknown_name
from fastmlp.files import file_errors

REFETCH = "delete it and download it again with `fastmlp data fetch`"
CHUNK = 1 << 20  # bytes read at a time; a damaged header that claims a huge size must not cause a huge allocation
DIGITS = Path(__file__).with_name("digits.csv.gz")  # each line has 64 pixel values from 0 to 16, then the label


def read_idx(path: str | Path, dims: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in `.gz`.

    Parameters
    ----------
    path : file with the bytes 0, 0 and 8 (which stands for unsigned bytes), the number of dimensions (one byte), the size of
        each dimension (big-endian uint32), and the values
    dims : required number of dimensions: 3 for images, 1 for labels

    Returns
    -------
    uint8 array with the shape given in the header

    Raises
    ------
    DataError : wrong magic number, data type or number of dimensions, an empty array, too few or too many bytes, or damaged
        gzip data

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
    with file_errors("read", path), _open_bytes(path) as stream:
        shape = _idx_shape(path, stream.read(4 + 4 * dims), dims)
        claimed = math.prod(shape)
        # Requesting one byte more than the header claims detects trailing bytes. Reading to the end makes gzip verify the
        # checksum.
        content = _read_at_most(stream, claimed + 1)
    if len(content) != claimed:
        found = "more" if len(content) > claimed else f"only {len(content)}"
        size = "x".join(map(str, shape))
        raise DataError(f"{path}: the header claims {size} = {claimed} bytes, but the file holds {found}; {REFETCH}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _open_bytes(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _idx_shape(path: Path, head: bytes, dims: int) -> tuple[int, ...]:
    """Parse the shape from the `4 + 4 * dims` bytes of an IDX header."""
    magic = bytes((0, 0, 8, dims))
    if len(head) >= 4 and head[:4] != magic:
        hint = "it is gzipped; add .gz to its name" if head[:2] == b"\x1f\x8b" else REFETCH
        raise DataError(
            f"{path}: starts with 0x{head[:4].hex()} instead of 0x{magic.hex()} "
            f"(an IDX file of unsigned bytes with {dims} dimensions); {hint}"
        )
    if len(head) < 4 + 4 * dims:
        raise DataError(f"{path}: only {len(head)} bytes, fewer than an IDX header; {REFETCH}")
    shape = struct.unpack(f">{dims}I", head[4:])
    if 0 in shape:
        raise DataError(f"{path}: the header claims an empty array {shape}; {REFETCH}")
    return shape


def _read_at_most(stream: io.BufferedIOBase, limit: int) -> bytearray:
    """Read up to `limit` bytes in chunks, so that the memory used depends on the size of the content, not on `limit`."""
    content = bytearray()
    while chunk := stream.read(min(CHUNK, limit - len(content))):
        content += chunk
    return content


def _idx_files(*hashes: str) -> tuple[DataFile, ...]:
    """Return the four files of a data set with MNIST's file names.

    `hashes` are the SHA-256 hashes of the four .gz files, followed by those of their decompressed contents.
    """
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(DataFile(f"{name}-ubyte.gz", hashes[i], hashes[i + 4]) for i, name in enumerate(names))


DATASETS: dict[str, DataEntry] = {
    "digits": DataEntry(
        "scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 28x28; part of fastmlp, without a test set",
        tuple("0123456789"),
    ),
    "fashion-mnist": DataEntry(
        "60,000 training and 10,000 test images of clothes, 28x28, grey",
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        "FashionMNIST/raw",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        _idx_files(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    "mnist": DataEntry(
        "60,000 training and 10,000 test images of handwritten digits, 28x28, grey",
        tuple("0123456789"),
        "MNIST/raw",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        _idx_files(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
}


class Listing(NamedTuple):
    """An entry of the list returned by `list_data`; `state` is "embedded", "present", "incomplete" or "missing"."""

    name: str
    description: str
    state: str
    folder: str


def list_data(data_dir: str | Path | None = None) -> list[Listing]:
    """List the data sets that can be loaded by name, and whether their files exist.

    The content of the files is not checked; use `verify_data` for this.

    >>> list_data("/nowhere")[0].state, list_data("/nowhere")[1].state
    ('embedded', 'missing')
    """
    rows = []
    for name, entry in DATASETS.items():
        folder = data_folder(data_dir) / entry.folder
        existing = sum(present(folder, file) is not None for file in entry.files)
        states = {len(entry.files): "present", 0: "missing"} if entry.files else {0: "embedded"}
        rows.append(Listing(name, entry.description, states.get(existing, "incomplete"), str(folder) * bool(entry.files)))
    return rows


def fetch_data(name: str, data_dir: str | Path | None = None, progress: bool = False) -> list[FileStatus]:
    """Download the missing and damaged files of a named data set, and return the result of `verify_data`.

    Parameters
    ----------
    name : name of the data set
    data_dir : folder to which files are downloaded, as in `load_data`
    progress : whether to show a progress bar on stderr

    Raises
    ------
    UnavailableError : no mirror has the file, or FASTMLP_OFFLINE=1 forbids downloading
    DataError : an unknown name, a folder that cannot be written, or a damaged decompressed file, which is never replaced

    >>> fetch_data("digits")
    []
    """
    entry = _entry(name)
    folder = data_folder(data_dir) / entry.folder
    for file in entry.files:
        rows = verify_file(folder, file)
        for row in rows:
            if row.status == "damaged" and not row.file.endswith(".gz"):
                raise DataError(f"{row.file}: damaged (SHA-256 {row.found}); delete it, then fetch it again")
        if any(row.status != "ok" for row in rows):
            download(entry, file, folder, progress)
    return verify_data(name, data_dir)


def verify_data(name: str, data_dir: str | Path | None = None) -> list[FileStatus]:
    """Verify the SHA-256 hashes of the files of a named data set, and return a status for each file.

    Both gzipped and decompressed files are verified. The list is empty for a data set that is part of the package.

    >>> [row.status for row in verify_data("mnist", "/nowhere")]
    ['missing', 'missing', 'missing', 'missing']
    """
    entry = _entry(name)
    folder = data_folder(data_dir) / entry.folder
    return [row for file in entry.files for row in verify_file(folder, file)]


def load_named(name: str, data_dir: str | Path | None = None, progress: bool = False) -> RawArrays:
    """Read the arrays of a named data set. Missing files are downloaded; the hashes of existing files are not verified.

    Parameters
    ----------
    name : name of the data set
    data_dir : folder to which files are downloaded, as in `load_data`
    progress : whether to show a progress bar on stderr

    Raises
    ------
    DataError : an unknown name or damaged files
    UnavailableError : as in `fetch_data`

    >>> load_named("digits").x.shape
    (1797, 28, 28)
    """
    entry = _entry(name)
    if not entry.files:
        return _digits()
    folder = data_folder(data_dir) / entry.folder
    for file in entry.files:
        if present(folder, file) is None:
            download(entry, file, folder, progress)
    paths = [path for file in entry.files if (path := present(folder, file))]
    x, y, x_test, y_test = (read_idx(path, dims) for path, dims in zip(paths, (3, 1, 3, 1), strict=True))
    locations = {key: SourceLocation(str(path)) for key, path in zip(("x", "y", "x_test", "y_test"), paths, strict=True)}
    return RawArrays(x, y, entry.classes, None, x_test, y_test, locations)


def _digits() -> RawArrays:
    """Return the digits, with pixel values scaled from 0..16 to 0..255 and images enlarged from 8x8 to 28x28.

    The values are rounded to bytes before the images are resized. Pillow resizes bytes in integer arithmetic, so the pixels
    are the same on all machines.
    """
    table = np.loadtxt(DIGITS, np.uint8, delimiter=",")
    small = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    wide = _widened(small, 28)
    x = _widened(wide.transpose(0, 2, 1), 28).transpose(0, 2, 1)
    return RawArrays(x, table[:, -1], DATASETS["digits"].classes)


def _widened(images: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Resize images of shape (n, height, any width) to shape (n, height, width) with Pillow's bilinear filter.

    Pillow resizes one axis after the other, so all images can be stacked and resized as one tall image. One call per image
    would take longer than a training epoch.
    """
    from PIL import Image

    count, height, _ = images.shape
    rows = Image.fromarray(images.reshape(count * height, -1))
    return np.asarray(rows.resize((width, count * height), Image.Resampling.BILINEAR)).reshape(count, height, width)


def _entry(name: str) -> DataEntry:
    if name not in DATASETS:
        raise DataError(unknown_name("data set", name, DATASETS))
    return DATASETS[name]
