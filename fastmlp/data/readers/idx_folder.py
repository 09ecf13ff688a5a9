"""Reader of data sets of IDX files: MNIST, Fashion-MNIST, KMNIST, EMNIST, QMNIST, and others with similar names.

A data set has training images and labels, and possibly test images and labels. The words in the name of a file determine which
of these it contains, in any spelling (`train-images-idx3-ubyte.gz`, `train-images.idx3-ubyte`, `qmnist-test-labels-idx2-int`).
Its content determines whether it is an IDX file and whether it is gzipped. Sources: Cohen et al. 2017 (EMNIST: images are
stored transposed, `NAME-mapping.txt` lists the characters of the classes), Yadav, Bottou 2019 (QMNIST: labels of 8 columns).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import SourceLocation
from fastmlp.data.labels import LabelEncoder, check_class_names
from fastmlp.data.readers.arrays import RawArrays
from fastmlp.data.readers.idx import idx_dims, read_idx
from fastmlp.data.readers.images import IMAGE_SUFFIXES
from fastmlp.errors import DataError
from fastmlp.files.reading import entries, is_file, is_folder, read_bytes

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "t10k": "test"}
IMAGES = frozenset({"images", "image", "imgs", "img", "features", "x"})
LABELS = frozenset({"labels", "label", "targets", "target", "y"})
FORMAT = re.compile(r"idx\d?|u?byte|int|short|float|double|bin|gz")  # words in a name that specify the format
NAMES = {"x": "train-images", "y": "train-labels", "x_test": "t10k-images", "y_test": "t10k-labels"}
DIMS = {"x": (2, 3, 4), "y": (1, 2), "x_test": (2, 3, 4), "y_test": (1, 2)}
QMNIST_COLUMNS = 8  # columns of the labels of QMNIST: the class, then the origin of the image in NIST's database
MAPPING_LINE = re.compile(r"\s*\d{1,9}(\s+\d{1,9})+\s*", re.ASCII)
MAX_MAPPING = 1 << 20  # bytes of a mapping file; that of EMNIST has 62 lines
LISTED = 12  # maximum number of files that an error message lists


class IdxFile(NamedTuple):
    """A file of a data set.

    group : name of the data set: the words of the file name except the split, the kind and the format; "" for MNIST's names
    key : the array of `RawArrays` that it contains: "x", "y", "x_test" or "y_test"
    dims : number of dimensions of the array; None if the file has the name, but not the content of an IDX file
    """

    path: Path
    group: str
    key: str
    dims: int | None


def is_idx(path: Path) -> bool:
    """Return whether a path is a folder with IDX files, see `read_idx_folder`, or an IDX file."""
    return idx_file(path) is not None if is_file(path) else bool(idx_folders(path))


def read_idx_folder(path: str | Path) -> RawArrays:
    """Read a data set from a folder of IDX files.

    The files are in the folder, in its subfolder `raw/`, or in `NAME/raw/` or `NAME/` if there is only one such folder. Each
    file can also be in a folder of the same name, as created by some programs that unpack archives. If a folder has several
    data sets, the path of a file of one of them selects this one.

    Images of EMNIST, whose file names start with "emnist-", are transposed, because they are stored transposed. The first
    column of labels with 8 columns of int32, as in QMNIST, is used. If there is a file `GROUP-mapping.txt`, as in EMNIST, the
    characters that it lists are the class names.

    Raises
    ------
    DataError : missing files, several candidates for a file, or a damaged file
    """
    path = Path(path)
    chosen = idx_file(path) if is_file(path) else None
    folders = [path.parent] if is_file(path) else idx_folders(path)
    if len(folders) != 1:
        raise DataError(f"{path}: IDX files in {len(folders)} folders ({_listed(map(str, folders))}); give one of them")
    files = idx_files(folders[0])
    group = chosen.group if chosen else choose_group(folders[0], files)
    paths = {key: found for key in NAMES if (found := choose_file(folders[0], files, key, (group,)))}
    check_complete(folders[0], paths, files, group)
    arrays = read_files(paths, group)
    if chosen is None and (others := [file.path.name for file in files if file.group != group and file.dims is not None]):
        return arrays._replace(notes=(*arrays.notes, f"{folders[0]}: files that were not used: {_listed(others)}"))
    return arrays


def idx_folders(path: Path) -> list[Path]:
    """Return the folders with IDX files: `path`, else `path/raw`, else all `path/NAME/raw` (torchvision) and `path/NAME`.

    Of the latter, folders that only have files with the name, but not the content of an IDX file are returned if there are no
    others.
    """
    if not is_folder(path):
        return []
    first = next((folder for folder in (path, path / "raw") if idx_files(folder)), None)
    if first:
        return [first]
    inner = [folder for folder in entries(path) if is_folder(folder) and not folder.name.startswith(".")]
    found = {folder: files for one in inner for folder in (one / "raw", one) if (files := idx_files(folder))}
    return [folder for folder, files in found.items() if any(file.dims is not None for file in files)] or list(found)


def idx_files(folder: Path) -> list[IdxFile]:
    """Return the IDX files in a folder, sorted by name, including those in subfolders with the name of an IDX file."""
    outer = [path for path in entries(folder) if not _is_ignored(path.name)] if is_folder(folder) else []
    inner = [one for path in outer if parse_name(path.name)[2] and is_folder(path) for one in entries(path)]
    return [file for path in [*outer, *inner] if (file := idx_file(path))]


def idx_file(path: Path) -> IdxFile | None:
    """Return the description of a file; None if it has neither the content nor the name of an IDX file, or is a folder.

    Hidden files and images are not opened.
    """
    if _is_ignored(path.name) or not is_file(path):
        return None
    group, split, named = parse_name(path.name)
    words, dims = {*words_of(path.name)}, idx_dims(path)
    labels = bool(LABELS & words)
    images = not labels and (bool(IMAGES & words) or (dims or 0) > 1)
    if dims is None and not (named and (images or labels)):
        return None
    return IdxFile(path, group, ("x" if images else "y") + ("_test" if split == "test" else ""), dims)


def _is_ignored(name: str) -> bool:
    """Return whether a file has the name of a hidden file or of an image."""
    return name.startswith(".") or name.lower().endswith(tuple(IMAGE_SUFFIXES))


def parse_name(name: str) -> tuple[str, str | None, bool]:
    """Return the group and the split of a file name, and whether it is the name of an IDX file.

    >>> parse_name("emnist-letters-test-images-idx3-ubyte.gz"), parse_name("train-images.idx3-ubyte")
    (('emnist-letters', 'test', True), ('', 'train', True))
    >>> parse_name("train-labels.csv.gz")
    ('csv', 'train', False)
    """
    words = words_of(name)
    split = next((SPLITS[word] for word in words if word in SPLITS), None)
    group = "-".join(word for word in words if word not in {*SPLITS, *IMAGES, *LABELS} and not FORMAT.fullmatch(word))
    return group, split, any(re.fullmatch(r"idx\d", word) for word in words)


def words_of(name: str) -> list[str]:
    """Return the words of a file name in lower case, separated by anything but letters and digits."""
    return re.findall(r"[a-z0-9]+", name.lower())


def choose_group(folder: Path, files: Sequence[IdxFile]) -> str:
    """Return the group of the only data set with training images and labels. Raise DataError if there are several."""
    keys = {group: {file.key for file in files if file.group == group} for group in sorted({file.group for file in files})}
    complete = [group for group, found in keys.items() if {"x", "y"} <= found]
    if len(complete) > 1:
        names = _listed(group or "one without a name" for group in complete)
        raise DataError(f"{folder}: files of {len(complete)} data sets ({names}); give the path of a file of one of them")
    return complete[0] if complete else max(keys, key=lambda group: len(keys[group]))


def choose_file(folder: Path, files: Sequence[IdxFile], key: str, groups: Iterable[str]) -> Path | None:
    """Return the file of an array; None if there is none.

    Files with the content of an IDX file are preferred to those that have only the name, then files in `folder` to those in
    subfolders, labels of one dimension to those of two (QMNIST has both), and a decompressed file to the same file with `.gz`.

    Raises
    ------
    DataError : several files are left
    """
    found = [file for file in files if file.key == key and file.group in groups]
    found = [file for file in found if file.dims is not None] or found
    found = [file for file in found if file.path.parent == folder] or found
    found = [file for file in found if file.dims == 1] or found if key.startswith("y") else found
    names = {file.path.name for file in found}
    found = [file for file in found if not (file.path.suffix == ".gz" and file.path.stem in names)]
    if len(found) > 1:
        raise DataError(
            f"{folder}: {len(found)} files for {NAMES[key]} ({_listed(str(file.path.relative_to(folder)) for file in found)}); "
            "keep one of them"
        )
    return found[0].path if found else None


def _name_of(key: str, group: str) -> str:
    return f"{group}-{NAMES[key].replace('t10k', 'test')}" if group else NAMES[key]


def check_complete(folder: Path, paths: Mapping[str, Path], files: Sequence[IdxFile], group: str) -> None:
    """Raise DataError if the training images or labels are missing, or one of the test images and labels."""
    needed = NAMES if {"x_test", "y_test"} & paths.keys() else ("x", "y")
    if missing := [_name_of(key, group) for key in needed if key not in paths]:
        found = _listed(str(file.path.relative_to(folder)) for file in files)
        verb = "is" if len(missing) == 1 else "are"
        raise DataError(f"{folder}: {' and '.join(missing)} {verb} missing; found: {found}; add the missing files")


def read_files(paths: Mapping[str, Path], group: str = "") -> RawArrays:
    """Read the IDX files of a data set; see `read_idx_folder`.

    paths : the files by the names of the arrays; "x" and "y" are required
    group : name of the data set in the names of the files
    """
    arrays: dict[str, Any] = {key: read_idx(path, DIMS[key]) for key, path in paths.items()}
    locations = {key: SourceLocation(str(path)) for key, path in paths.items()}
    notes = []
    if group == "emnist" or group.startswith("emnist-"):
        arrays |= {key: arrays[key].swapaxes(1, 2) for key in ("x", "x_test") if key in arrays and arrays[key].ndim == 3}
        notes.append(f"{paths['x'].parent}: the images of EMNIST are stored transposed; rows and columns were swapped")
    for key in ("y", "y_test"):
        if key in arrays and arrays[key].dtype == np.int32 and arrays[key].shape[1:] == (QMNIST_COLUMNS,):
            arrays[key] = arrays[key][:, 0]
            notes.append(f"{paths[key]}: labels of {QMNIST_COLUMNS} columns, as in QMNIST; the first column is the class")
    if mapping := _mapping_file(paths["x"], group):
        labels, arrays["classes"] = read_mapping(mapping)
        encoder = LabelEncoder(labels)
        for key in ("y", "y_test"):
            if key in arrays and arrays[key].ndim == 1:
                arrays[key] = encoder.encode(arrays[key], locations[key].row)
        locations["classes"] = SourceLocation(str(mapping))
        notes.append(f"{mapping}: used for the class names")
    return RawArrays(**arrays, locations=locations, notes=notes)


def _mapping_file(images: Path, group: str) -> Path | None:
    path = images.with_name(f"{group}-mapping.txt")
    return path if group and is_file(path) else None


def read_mapping(path: Path) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the labels, (k,) in the order of the file, and the class names of a mapping file of EMNIST.

    A line has a label and one or more code points, as in "1 65 97" for "A/a".

    Raises
    ------
    DataError : an empty file, a line with other content, a label that occurs twice, or a character that class names must not
        contain
    """
    labels, names, numbers = [], [], []
    lines = read_bytes(path, MAX_MAPPING).decode("latin-1").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        valid = MAPPING_LINE.fullmatch(line) is not None
        label, *codes = map(int, line.split()) if valid else (0,)
        if not valid or max(codes) > sys.maxunicode:
            raise DataError(f"{path}: line {number} is {line[:40]!r}; a line must be a label and code points, as in '1 65 97'")
        labels.append(label)
        names.append("/".join(map(chr, codes)))
        numbers.append(number)
    check_class_names(names, lambda index: f"{path}: line {numbers[index]}")
    if not labels or len({*labels}) < len(labels):
        raise DataError(f"{path}: {'a label occurs twice' if labels else 'empty'}; correct or remove the file")
    return np.array(labels), names


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:LISTED]) + (f" and {len(found) - LISTED} more" if len(found) > LISTED else "")
