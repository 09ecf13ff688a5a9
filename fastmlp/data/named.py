"""The data sets that can be loaded by name: digits, MNIST and Fashion-MNIST.

The files of MNIST and Fashion-MNIST are searched for in the folders that torchvision, Keras and Zalando's repository use, with
any spelling of their names (see `readers.idx_folder`), and downloaded only if they are not found.

Sources: the digits are scikit-learn's copy of the UCI optical digits (Alpaydin, Kaynak 1998, CC BY 4.0). They are stored in
this folder because importing scikit-learn takes longer than training on them. Fashion-MNIST: Xiao, Rasul, Vollgraf 2017, MIT
licence. MNIST: LeCun, Cortes, Burges, CC BY-SA 3.0. The SHA-256 hashes are those of the published files; that of mnist.npz is
taken from Keras.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.download import DataEntry, DataFile, FileStatus, data_folder, download, present, verify_file
from fastmlp.data.readers.arrays import RawArrays, read_npz
from fastmlp.data.readers.idx import content_sha256
from fastmlp.data.readers.idx_folder import NAMES, choose_file, idx_files, read_files, words_of
from fastmlp.errors import DataError, unknown_name
from fastmlp.files import file_sha256
from fastmlp.files.reading import entries, is_file, is_folder

DIGITS = Path(__file__).with_name("digits.csv.gz")  # each line has 64 pixel values from 0 to 16, then the label
KEYS = tuple(NAMES)  # the arrays of the four files of a `DataEntry`, in this order


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
        (60_000, 10_000),
        ("fashion-mnist", "fashionmnist", "fashion"),
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
        (60_000, 10_000),
        ("mnist",),
        ("mnist.npz", "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"),
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
        if not entry.files:
            rows.append(Listing(name, entry.description, "embedded", ""))
            continue
        found = _locate(name, data_dir)
        state = {len(entry.files): "present", 0: "missing"}.get(len(found.paths), "incomplete")
        rows.append(Listing(name, entry.description, "present" if found.archive else state, str(found.archive or found.folder)))
    return rows


class Located(NamedTuple):
    """Location of the files of a named data set.

    folder : the folder with the files; the folder for downloads if no folder has all files
    paths : the files that exist, by the names of the arrays
    archive : Keras's file with the whole data set, if it exists and no folder has all files
    incomplete : a folder that has only some of the files, and the names of these files
    """

    folder: Path
    paths: Mapping[str, Path]
    archive: Path | None = None
    incomplete: tuple[Path, tuple[str, ...]] | None = None


def _locate(name: str, data_dir: str | Path | None) -> Located:
    """Find the files of a named data set in the data folder; the folder of torchvision's layout has precedence."""
    entry, root = DATASETS[name], data_folder(data_dir)
    official = root / entry.folder
    paths = _paths(official, entry)
    if len(paths) == len(KEYS):
        return Located(official, paths)
    incomplete = None
    for folder in _other_folders(name, root):
        found = _paths(folder, entry)
        if len(found) == len(KEYS):
            if not _is_another(found["y"], entry):
                return Located(folder, found)
        elif found and incomplete is None:
            incomplete = (folder, tuple(path.name for path in found.values()))
    archives = [root / entry.archive[0], root / name / entry.archive[0]] if entry.archive else []
    return Located(official, paths, next((file for file in archives if is_file(file)), None), incomplete)


def _other_folders(name: str, root: Path) -> Iterator[Path]:
    """Yield the folders in a data folder that may contain a data set, except the one to which it is downloaded.

    These are NAME/raw/ and NAME/ in any spelling of the name, in the data folder (Keras) and in its subfolder data/ (Zalando's
    repository), and the data folder itself unless it has the name of another data set.
    """
    names = DATASETS[name].names
    for base in (root, root / "data"):
        for folder in (one for one in (entries(base) if is_folder(base) else []) if "-".join(words_of(one.name)) in names):
            yield from (folder / "raw", folder)
    own = "-".join(words_of((root.parent if root.name == "raw" else root).name))
    if not any(own in entry.names for other, entry in DATASETS.items() if other != name):
        yield from (root / "raw", root)


def _paths(folder: Path, entry: DataEntry) -> dict[str, Path]:
    """Return the files of a data set in a folder, by the names of the arrays. Published names precede other spellings."""
    found = {key: path for key, file in zip(KEYS, entry.files, strict=True) if (path := present(folder, file))}
    if len(found) < len(KEYS):
        files = idx_files(folder)
        others = {key: choose_file(folder, files, key, ("", *entry.names)) for key in KEYS if key not in found}
        found |= {key: path for key, path in others.items() if path}
    return {key: found[key] for key in KEYS if key in found}


def _is_another(labels: Path, entry: DataEntry) -> bool:
    """Return whether a file with training labels is the published file of another data set."""
    content = content_sha256(labels)
    return any(content == other.files[1].sha256_plain for other in DATASETS.values() if other.files and other is not entry)


def fetch_data(name: str, data_dir: str | Path | None = None, progress: bool = False) -> list[FileStatus]:
    """Download the missing and damaged files of a named data set, and return the result of `verify_data`.

    Parameters
    ----------
    name : name of the data set
    data_dir : folder to which files are downloaded, as in `load_data`
    progress : whether to show a progress bar on stderr

    Raises
    ------
    UnavailableError : no mirror has the file, or FASTMLP_OFFLINE forbids downloading it
    DataError : an unknown name, a folder that cannot be written, or a damaged decompressed file, which is never replaced

    >>> fetch_data("digits")
    []
    """
    entry = _entry(name)
    rows = verify_data(name, data_dir)
    if all(row.status == "ok" for row in rows):
        return rows
    folder = data_folder(data_dir) / entry.folder
    paths = _paths(folder, entry)
    for key, file in zip(KEYS, entry.files, strict=True):
        rows = verify_file(folder, file, paths.get(key))
        for row in rows:
            if row.status == "damaged" and row.file != str(folder / file.name):
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
    if not entry.files:
        return []
    found = _locate(name, data_dir)
    if found.archive and entry.archive:
        expected, actual = entry.archive[1], file_sha256(found.archive)
        return [FileStatus(str(found.archive), "ok" if actual == expected else "damaged", expected, actual)]
    files = zip(KEYS, entry.files, strict=True)
    return [row for key, file in files for row in verify_file(found.folder, file, found.paths.get(key))]


def load_named(name: str, data_dir: str | Path | None = None, progress: bool = False) -> RawArrays:
    """Read the arrays of a named data set. Missing files are downloaded; the hashes of existing files are not verified.

    Nothing is downloaded if `_locate` finds the files in another layout or spelling. A note says so if the files are not in the
    folder for downloads, or if the numbers of rows are not the published ones.

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
    found, notes = _locate(name, data_dir), []
    if found.archive:
        arrays = read_npz(found.archive)
    else:
        paths = dict(found.paths)
        hint = f"{found.incomplete[0]} has only {', '.join(found.incomplete[1])}; " if found.incomplete else ""
        for key, file in zip(KEYS, entry.files, strict=True):
            if key not in paths:
                download(entry, file, found.folder, progress, hint)
                paths[key] = found.folder / file.name
        arrays = read_files({key: paths[key] for key in KEYS})
    place = found.archive or found.folder
    if place != data_folder(data_dir) / entry.folder:
        notes.append(f"{name}: read from {place}")
    rows = (len(arrays.x), 0 if arrays.x_test is None else len(arrays.x_test))
    if entry.rows and rows != entry.rows:
        (train, test), (train_rows, test_rows) = rows, entry.rows
        notes.append(
            f"{name}: {train:,} training and {test:,} test rows in {place}; the published data set has {train_rows:,} and "
            f"{test_rows:,}"
        )
    return arrays._replace(classes=entry.classes, notes=(*arrays.notes, *notes))


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
