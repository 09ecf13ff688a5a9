"""Readers of `.npz` files, of `.safetensors` files, and of folders of `.npy` files.

Folders of `.npy` files are memory-mapped and may be larger than memory. The readers return `RawArrays`. If a file is damaged,
the error message gives the file and the location. The values of the arrays are checked in dataset.py. Sources: the
documentation of numpy.lib.format for the `.npy` format, and that of safetensors.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile

from fastmlp.data.checks import SourceLocation
from fastmlp.data.readers.names import ARRAYS, TRAINING, find_names
from fastmlp.data.readers.tensors import read_pt_tensors, read_tensors
from fastmlp.errors import DataError
from fastmlp.files.limits import check_claim
from fastmlp.files.reading import file_errors, files_matching, is_file, library_errors, open_file, size_of

if TYPE_CHECKING:
    from fastmlp.data.tables.encoding import TableEncoding

# Read-ahead is disabled for files larger than this fraction of the machine's memory, because they do not fit into the page
# cache. Training reads rows in random order, so reading ahead would only evict pages that are still needed.
READ_AHEAD_SHARE = 0.5
UNREADABLE = "save plain arrays of numbers or strings, without Python objects or ragged rows"  # remedy
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class RawArrays(NamedTuple):
    """Arrays as read from a file, before `dataset.check_dataset` checks and converts them; see `Dataset` for the fields.

    encoding : for tables, the encoding of the features, else None
    task : "classification" or "regression" if the reader knows it, else None
    notes : messages about how the data were read
    text_labels : whether the labels are texts, if y has their numbers; None if y has the labels themselves
    """

    x: Any
    y: Any
    classes: Sequence[str] | None = None
    image_shape: tuple[int, int, int] | None = None
    x_test: Any = None
    y_test: Any = None
    locations: Mapping[str, SourceLocation] | None = None
    validation: Any = None
    provenance: Any = None
    extractor: Any = None
    weight: Any = None
    encoding: TableEncoding | None = None
    task: str | None = None
    notes: Sequence[str] = ()
    text_labels: bool | None = None
    source_rows: Any = None


def is_npy_folder(path: Path) -> bool:
    """Return whether a folder contains features or targets as `.npy` files and is therefore read as a folder of arrays."""
    return any(is_file(path / f"{name}.npy") for name in {name for pair in TRAINING for name in pair})


def read_npy_folder(path: str | Path, weight: str | None = None) -> RawArrays:
    """Memory-map `x.npy`, `y.npy` and the other `.npy` files in a folder, as in an unpacked `.npz` file; see `find_names`.

    This function reads only the headers of the files. uint8 and float32 arrays in native byte order and C order are not
    copied into memory: the operating system reads pages of the file when they are used, and evicts them when memory is short.
    Arrays of other types are copied into memory when `dataset.check_dataset` converts them. Read-ahead is disabled for files
    larger than the fraction READ_AHEAD_SHARE of the memory. A file must not be changed while it is memory-mapped: if it is
    truncated, the operating system ends the process with SIGBUS, which Python cannot catch.

    weight : name of the array with the sample weights; None for equal weights

    Raises
    ------
    DataError : a missing file, a damaged header, more or fewer bytes than the header declares, or an array of Python objects

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.eye(2, dtype=np.uint8))
    ...     np.save(f"{folder}/y.npy", ["no", "yes"])
    ...     arrays = read_npy_folder(folder)
    >>> type(arrays.x).__name__, arrays.x.tolist(), arrays.y.tolist()
    ('memmap', [[1, 0], [0, 1]], ['no', 'yes'])
    """
    folder = Path(path)
    available = [file.stem for file in files_matching(folder, "*.npy")]
    missing = [name for name in ARRAYS[:2] if name not in available]
    if missing and not any({*pair} <= {*available} for pair in TRAINING):
        raise DataError(f"{folder / missing[0]}.npy: no such file; a folder of arrays needs x.npy and y.npy")
    names, notes = find_names(folder, available, weight)
    found: dict[str, Any] = {key: map_npy(folder / f"{name}.npy") for key, name in names.items()}
    locations = {key: SourceLocation(str(folder / f"{name}.npy")) for key, name in names.items()}
    return RawArrays(**found, locations=locations, notes=notes)


def map_npy(path: Path) -> npt.NDArray[Any]:
    """Memory-map the array of an `.npy` file, read-only. Raise DataError as `read_npy_folder` does."""
    with open_file(path) as stream, file_errors("read", path):
        shape, fortran, dtype = read_header(path, stream, os.fstat(stream.fileno()).st_size)
        with library_errors(path, "cannot be mapped into memory", "save the array again"):
            array = np.memmap(stream, dtype, "r", stream.tell(), shape, "F" if fortran else "C")
    check_text(path, array)
    pages: Any = array.base  # the mmap object
    if hasattr(mmap, "MADV_RANDOM") and array.nbytes > READ_AHEAD_SHARE * os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE:
        pages.madvise(mmap.MADV_RANDOM)  # MADV_RANDOM does not exist on Windows
    return array


def read_header(place: str | Path, stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array in the format of `numpy.save`.

    NumPy allocates an array of the declared shape before it reads the values, so the shape is compared with the size first.

    Parameters
    ----------
    place : file, or array in a file, for error messages
    stream : the header and the values
    size : number of bytes of the stream

    Returns
    -------
    shape, whether the array is in Fortran order, and dtype

    Raises
    ------
    DataError : a damaged header, an array of Python objects, or a shape that does not match the number of bytes
    """
    with library_errors(place, "not in the format of numpy.save", "save the array with numpy.save"):
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = HEADERS[version](stream)
        negative = min(shape, default=0) < 0
    if dtype.hasobject:
        raise DataError(f"{place}: holds Python objects; save a plain array of numbers or strings, without ragged rows")
    if negative:
        raise DataError(f"{place}: invalid shape {shape}; save the array again")
    if dtype.itemsize == 0:
        raise DataError(f"{place}: values of dtype {dtype} have no content; save an array of numbers or strings")
    declared, found = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if declared != found:
        problem = f"the header declares shape {shape} and dtype {dtype}, which need {declared:,} bytes, but {found:,} follow"
        raise DataError(f"{place}: {problem}; save the array again")
    return shape, fortran, dtype


def read_npz(path: str | Path, weight: str | None = None) -> RawArrays:
    """Read `x`, `y` and the other arrays of a data set from an `.npz` file, without unpickling; see `find_names`.

    weight : name of the array with the sample weights; None for equal weights

    Raises
    ------
    DataError : a damaged file, a missing array, or an array of Python objects

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.npz"
    ...     np.savez(path, x=np.eye(2), y=["no", "yes"])
    ...     read_npz(path).y.tolist()
    ['no', 'yes']
    """
    path = Path(path)
    with open_npz(path) as archive:
        names, notes = find_names(path, archive.files, weight)
        check_claim(path, sum(member_of(str(path), archive, name).file_size for name in names.values()), size_of(path))
        found: dict[str, Any] = {key: npz_array(path, archive, name) for key, name in names.items()}
    locations = {key: SourceLocation(f"{path}: array {name!r}") for key, name in names.items()}
    return RawArrays(**found, locations=locations, notes=notes)


@contextmanager
def open_npz(path: Path, example: str = "x=..., y=...") -> Iterator[NpzFile]:
    """Open an `.npz` file without unpickling. `example` is the text shown in error messages for the arguments of numpy.savez.

    Raises
    ------
    DataError : the file cannot be opened, or is not an archive of arrays, such as a file written by `numpy.save`

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.npz"
    ...     np.savez(path, x=np.eye(2))
    ...     with open_npz(path) as archive:
    ...         archive.files, npz_array(path, archive, "x").shape
    (['x'], (2, 2))
    """
    problem, remedy = "not a readable .npz file", f"write it with numpy.savez(file, {example})"
    with open_file(path) as stream:
        with library_errors(path, problem, remedy):
            archive = np.load(stream, allow_pickle=False)
        if not isinstance(archive, NpzFile):
            raise DataError(f"{path}: {problem}; {remedy}")
        yield archive


def npz_array(path: Path, archive: NpzFile, name: str) -> npt.NDArray[Any]:
    """Return one array of an archive opened by `open_npz`.

    Raises
    ------
    DataError : the array is damaged or contains Python objects, or `limits.check_claim` rejects its size
    """
    place = f"{path}: array {name!r}"
    assert archive.zip is not None
    member = member_of(place, archive, name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the memory of the others is not bounded
        raise DataError(f"{place}: unsupported compression method; write the file with numpy.savez or numpy.savez_compressed")
    check_claim(place, member.file_size, size_of(path))
    with library_errors(place, "cannot be read", UNREADABLE):
        with archive.zip.open(member) as stream:
            read_header(place, stream, member.file_size)
        array = np.asarray(archive[name])
    check_text(place, array)
    return array


def member_of(place: str, archive: NpzFile, name: str) -> zipfile.ZipInfo:
    """Return the member of an archive with an array."""
    assert archive.zip is not None
    with library_errors(place, "cannot be read", UNREADABLE):
        members = {member.filename: member for member in archive.zip.infolist()}
        return members.get(f"{name}.npy") or members[name]  # NpzFile removes the suffix from the names


def check_text(place: str | Path, array: npt.NDArray[Any]) -> None:
    """Raise DataError if an array of text has invalid Unicode code points; NumPy stores 32 bits per character."""
    if array.dtype.kind == "U" and array.size:
        codes = np.ascontiguousarray(array).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
        if codes.max() > sys.maxunicode:
            raise DataError(f"{place}: text with invalid Unicode code points; save the array again")


def read_safetensors(path: str | Path, weight: str | None = None) -> RawArrays:
    """Read `x`, `y` and the other tensors of a data set from a safetensors file; see `find_names`.

    The class names are stored as a JSON list under the key "classes" of the metadata.

    weight : name of the tensor with the sample weights; None for equal weights

    Raises
    ------
    DataError : a damaged file, a missing tensor, or class names that are not a JSON list of strings

    >>> import tempfile
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"x": np.eye(2), "y": np.arange(2)}, f"{folder}/a.safetensors", {"classes": '["no", "yes"]'})
    ...     arrays = read_safetensors(f"{folder}/a.safetensors")
    >>> arrays.y.tolist(), arrays.classes
    ([0, 1], ['no', 'yes'])
    """
    path = Path(path)
    metadata, tensors = read_tensors(path)
    names, notes = find_names(path, tensors, weight, "tensor")
    found: dict[str, Any] = {key: tensors[name] for key, name in names.items()}
    found |= {"provenance": metadata.get("provenance"), "classes": class_names(path, metadata.get("classes"))}
    locations = {key: SourceLocation(f"{path}: tensor {name!r}") for key, name in names.items()}
    locations |= {key: SourceLocation(f"{path}: {key!r} in the metadata", "name") for key in ("classes", "provenance")}
    return RawArrays(**found, locations=locations, notes=notes)


def read_pt(path: str | Path, weight: str | None = None) -> RawArrays:
    """Read a data set from a file of `torch.save`: a dict of tensors, see `find_names`, or a pair (x, y).

    weight : name of the tensor with the sample weights; None for equal weights

    Raises
    ------
    DataError : a damaged file, other content than tensors, or a missing tensor
    UnavailableError : PyTorch is not installed
    """
    path = Path(path)
    tensors = read_pt_tensors(path)
    names, notes = find_names(path, tensors, weight, "tensor")
    found: dict[str, Any] = {key: tensors[name] for key, name in names.items()}
    locations = {key: SourceLocation(f"{path}: tensor {name!r}") for key, name in names.items()}
    return RawArrays(**found, locations=locations, notes=notes)


def class_names(path: Path, text: str | None) -> list[str] | None:
    """Parse the class names in the metadata of a safetensors file. Raise DataError if they are not a JSON list of strings."""
    with library_errors(path, "'classes' in the metadata is not JSON", "correct it or leave it out"):
        names = json.loads(text or "null")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f"{path}: 'classes' in the metadata is not a list of names in JSON; correct it or leave it out")
    return names
