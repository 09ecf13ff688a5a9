"""Named data sets: what there is, where it lies, and how it is downloaded and verified.

Here: the registry `DATASETS`, `list_data`, `fetch_data`, `verify_data`, and `named_parts`, which gives the arrays.
Not here: file formats (`data_files.py`); data by their path, and the checks that all sources share (`data.py`).
Sources: scikit-learn's copy of the UCI optical digits (Alpaydin, Kaynak 1998, CC BY 4.0), kept beside this file, since
importing scikit-learn takes longer than training on them; Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, MIT licence);
MNIST (LeCun, Cortes, Burges, CC BY-SA 3.0). The SHA-256 pins are those of the published files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.csv_table import Parts, read_idx, reading
from fastmlp.data.scaling import Place
from fastmlp.errors import DataError, UnavailableError, unknown_name

DIGITS = Path(__file__).with_name("digits.csv.gz")  # 64 pixels 0..16 and the label in each line


class DataFile(NamedTuple):
    """A gzipped file by name, its SHA-256 as published, and that of its content for unpacked copies."""

    name: str
    sha256: str
    sha256_plain: str


class DataEntry(NamedTuple):
    """A named data set; files are train images, train labels, test images, test labels (none: embedded)."""

    description: str
    classes: tuple[str, ...]
    folder: str = ""
    mirrors: tuple[str, ...] = ()
    files: tuple[DataFile, ...] = ()


def _idx_files(*pins: str) -> tuple[DataFile, ...]:
    """The four files of MNIST's layout, from the hashes of the .gz files and then those of their contents."""
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(DataFile(f"{part}-ubyte.gz", pins[i], pins[i + 4]) for i, part in enumerate(parts))


DATASETS: dict[str, DataEntry] = {
    "digits": DataEntry(
        "1,797 handwritten digits of scikit-learn, enlarged from 8x8 to 28x28; embedded, no test part",
        tuple("0123456789"),
    ),
    "fashion-mnist": DataEntry(
        "60,000 + 10,000 pictures of clothes, 28x28 grey",
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
        "60,000 + 10,000 handwritten digits, 28x28 grey",
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
    """A row of `list_data`; `state` is "embedded", "present", "incomplete" or "missing"."""

    name: str
    description: str
    state: str
    folder: str


class FileStatus(NamedTuple):
    """A row of `verify_data`; `status` is "ok", "missing" or "damaged"; `found` is None if missing."""

    file: str
    status: str
    expected: str
    found: str | None


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Folder of the named data sets: the argument, else FASTMLP_DATA, else `data` in the user's cache.

    >>> data_folder("/data").as_posix()
    '/data'
    """
    chosen = data_dir or os.environ.get("FASTMLP_DATA")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("fastmlp")) / "data"


def list_data(data_dir: str | Path | None = None) -> list[Listing]:
    """The named data sets, and whether their files are there (not whether they are sound: `verify_data`).

    >>> list_data("/nowhere")[0].state, list_data("/nowhere")[1].state
    ('embedded', 'missing')
    """
    rows = []
    for name, entry in DATASETS.items():
        folder = data_folder(data_dir) / entry.folder
        there = sum(_present(folder, file) is not None for file in entry.files)
        states = {len(entry.files): "present", 0: "missing"} if entry.files else {0: "embedded"}
        rows.append(Listing(name, entry.description, states.get(there, "incomplete"), str(folder) * bool(entry.files)))
    return rows


def fetch_data(name: str, data_dir: str | Path | None = None, progress: bool = False) -> list[FileStatus]:
    """Download what is missing or damaged of a named data set; gives the rows of `verify_data`.

    progress: show a bar on stderr. Raises UnavailableError if no mirror gives the file or FASTMLP_OFFLINE=1
    forbids it; DataError for an unknown name, a folder that cannot be written, or a damaged unpacked file.

    >>> fetch_data("digits")
    []
    """
    entry = _entry(name)
    folder = data_folder(data_dir) / entry.folder
    for file in entry.files:
        rows = _verify_file(folder, file)
        for row in rows:
            if row.status == "damaged" and not row.file.endswith(".gz"):
                raise DataError(f"{row.file}: damaged (SHA-256 {row.found}); delete it, then fetch again")
        if any(row.status != "ok" for row in rows):
            _download(entry, file, folder, progress)
    return verify_data(name, data_dir)


def verify_data(name: str, data_dir: str | Path | None = None) -> list[FileStatus]:
    """Compare the files of a named data set, packed or not, with their SHA-256; embedded sets have no rows.

    >>> [row.status for row in verify_data("mnist", "/nowhere")]
    ['missing', 'missing', 'missing', 'missing']
    """
    entry = _entry(name)
    folder = data_folder(data_dir) / entry.folder
    return [row for file in entry.files for row in _verify_file(folder, file)]


def named_parts(name: str, data_dir: str | Path | None = None, progress: bool = False) -> Parts:
    """Arrays of a named data set, downloaded where missing; files that are there are used as they are.

    progress: show a bar on stderr. Raises DataError for an unknown name and for damaged files, UnavailableError
    as `fetch_data`.

    >>> named_parts("digits").x.shape
    (1797, 28, 28)
    """
    entry = _entry(name)
    if not entry.files:
        return _digits()
    folder = data_folder(data_dir) / entry.folder
    for file in entry.files:
        if _present(folder, file) is None:
            _download(entry, file, folder, progress)
    paths = [path for file in entry.files if (path := _present(folder, file))]
    x, y, x_test, y_test = (read_idx(path, dims) for path, dims in zip(paths, (3, 1, 3, 1), strict=True))
    places = {key: Place(str(path)) for key, path in zip(("x", "y", "x_test", "y_test"), paths, strict=True)}
    return Parts(x, y, entry.classes, None, x_test, y_test, places)


def _digits() -> Parts:
    """The embedded digits, 0..16 brought to 0..255, then enlarged to 28x28.

    Rounding to bytes comes first: Pillow resizes bytes in whole numbers, so all machines get the same pixels.
    """
    table = np.loadtxt(DIGITS, np.uint8, delimiter=",")
    small = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    wide = _widened(small, 28)
    x = _widened(wide.transpose(0, 2, 1), 28).transpose(0, 2, 1)
    return Parts(x, table[:, -1], DATASETS["digits"].classes)


def _widened(images: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Images (n, height, any) of this width, (n, height, width), by Pillow's bilinear filter.

    Pillow resizes one axis after the other, so all rows of all images can be given as one picture: a call for each image
    would take longer than to train on it for an epoch.
    """
    from PIL import Image

    count, height, _ = images.shape
    rows = Image.fromarray(images.reshape(count * height, -1))
    return np.asarray(rows.resize((width, count * height), Image.Resampling.BILINEAR)).reshape(count, height, width)


def _entry(name: str) -> DataEntry:
    if name not in DATASETS:
        raise DataError(unknown_name("data set", name, DATASETS))
    return DATASETS[name]


def _candidates(folder: Path, file: DataFile) -> list[tuple[Path, str]]:
    """Where a file may lie, and the SHA-256 it has there: unpacked, which comes first, or as published."""
    packed = folder / file.name
    return [(packed.with_suffix(""), file.sha256_plain), (packed, file.sha256)]


def _present(folder: Path, file: DataFile) -> Path | None:
    with reading(folder):
        return next((path for path, _ in _candidates(folder, file) if path.is_file()), None)


def _verify_file(folder: Path, file: DataFile) -> list[FileStatus]:
    """A row for each copy that is there, or one row that says the file is missing."""
    rows = []
    for path, expected in _candidates(folder, file):
        with reading(path):
            found = _file_sha256(path) if path.is_file() else None
        if found:
            rows.append(FileStatus(str(path), "ok" if found == expected else "damaged", expected, found))
    return rows or [FileStatus(str(folder / file.name), "missing", file.sha256, None)]


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(entry: DataEntry, file: DataFile, folder: Path, progress: bool) -> None:
    """Get a file from the first mirror that gives it; it comes to its place only with the right hash."""
    import pooch
    import requests

    remedy = f"copy the files to {folder}, or set FASTMLP_DATA to the folder that holds {entry.folder}"
    if os.environ.get("FASTMLP_OFFLINE", "") not in ("", "0"):
        raise UnavailableError(f"{file.name} is missing and FASTMLP_OFFLINE forbids downloading it; {remedy}")
    tried = []
    with _part_file(folder, file.name) as part:
        for url in (mirror + file.name for mirror in entry.mirrors):
            try:
                with _bar(file.name, progress) as bar:
                    pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16)(url, str(part), None)
            except requests.RequestException as error:
                status = getattr(error.response, "status_code", None)
                tried.append(f"{url} ({f'HTTP {status}' if status else type(error).__name__})")
                continue
            if _file_sha256(part) == file.sha256:
                part.replace(folder / file.name)
                return
            tried.append(f"{url} (wrong SHA-256)")
    raise UnavailableError(f"{file.name} cannot be downloaded, tried {', '.join(tried)}; {remedy}")


@contextmanager
def _part_file(folder: Path, name: str) -> Iterator[Path]:
    """A temporary name beside the final one, removed at the end whatever happens."""
    part = folder / f".{name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{folder}: cannot be written ({reason}); choose another by --data-dir or FASTMLP_DATA") from error


class _Bar:
    """What pooch asks of a progress bar, drawn by rich."""

    def __init__(self, display: Any, label: str) -> None:
        self._display, self._task = display, display.add_task(label, total=None)

    def _set_total(self, total: int) -> None:
        self._display.update(self._task, total=total)

    total = property(fset=_set_total)

    def update(self, size: int) -> None:
        self._display.advance(self._task, size)

    def reset(self) -> None:
        self._display.reset(self._task)

    def close(self) -> None:
        self._display.stop()


@contextmanager
def _bar(label: str, wanted: bool) -> Iterator[_Bar | bool]:
    """A bar on stderr if wanted, else the False that keeps pooch silent."""
    if not wanted:
        yield False
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        yield _Bar(display, label)
