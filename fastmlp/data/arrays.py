"""Folders of `.npy` files, memory-mapped: training sets that may be larger than memory.

Here: from files on disk to arrays (`Parts`) whose bytes stay in the files. Not here: `.npz`, which is read whole
(`data_files.py`); checks that all sources share (`data.py`).
Source: the format as in numpy.lib.format.
"""

from __future__ import annotations

import math
import mmap
import os
import tokenize
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from fastmlp.data.csv_table import ARRAYS, Parts, reading
from fastmlp.data.scaling import Place
from fastmlp.errors import DataError

# A file larger than this share of the machine's memory will not stay in it. Training asks for rows in random order: reading
# ahead, up to megabytes for each row, would then only drop pages that are still to be used.
READ_AHEAD_SHARE = 0.5
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def is_npy_folder(path: Path) -> bool:
    """Whether a folder is one of arrays: `x.npy` or `y.npy` is in it."""
    with reading(path):
        return any((path / f"{name}.npy").is_file() for name in ARRAYS[:2])


def read_npy_folder(path: str | Path) -> Parts:
    """Map `x.npy`, `y.npy` and what else `ARRAYS` names: an `.npz` file unpacked.

    Nothing is read but headers. Rows of uint8 or float32 (of this machine's byte order, C order) then stay in their file:
    the system reads them when they are used and drops them when memory is short. A file larger than READ_AHEAD_SHARE of
    the memory is read page by page, without reading ahead. Other types are converted in memory by
    `data.check_dataset`. A file must not be changed while it is mapped: if it becomes shorter, the system ends the process
    by SIGBUS, which no program can turn into a message.

    Raises
    ------
    DataError : a missing file, a damaged header, more or fewer bytes than the header claims, Python objects

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.eye(2, dtype=np.uint8))
    ...     np.save(f"{folder}/y.npy", ["no", "yes"])
    ...     parts = read_npy_folder(folder)
    >>> type(parts.x).__name__, parts.x.tolist(), parts.y.tolist()
    ('memmap', [[1, 0], [0, 1]], ['no', 'yes'])
    """
    files = {name: Path(path) / f"{name}.npy" for name in ARRAYS}
    with reading(Path(path)):
        found: dict[str, Any] = {name: map_npy(file) for name, file in files.items() if file.is_file()}
    if missing := [name for name in ARRAYS[:2] if name not in found]:
        raise DataError(f"{files[missing[0]]}: no such file; a folder of arrays needs x.npy and y.npy")
    return Parts(**found, places={name: Place(str(file)) for name, file in files.items()})


def map_npy(path: Path) -> npt.NDArray[Any]:
    """The array of an `.npy` file, mapped and read-only. Raises DataError as `read_npy_folder`."""
    with reading(path), path.open("rb") as stream:
        shape, fortran, dtype = _header(path, stream)
        if dtype.hasobject:
            raise DataError(f"{path}: holds Python objects; save a plain array of numbers or strings")
        claimed, held = math.prod(shape) * dtype.itemsize, os.fstat(stream.fileno()).st_size - stream.tell()
        if claimed != held or min(shape, default=0) < 0:
            size = "x".join(map(str, shape))
            raise DataError(
                f"{path}: the header claims {size} {dtype} = {claimed} bytes, the file holds {held}; save the array again"
            )
        array = np.memmap(stream, dtype, "r", stream.tell(), shape, "F" if fortran else "C")
    pages: Any = array.base  # the mmap object
    if array.nbytes > READ_AHEAD_SHARE * os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE:
        pages.madvise(mmap.MADV_RANDOM)
    return array


def _header(path: Path, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type, from the header of an `.npy` file."""
    try:
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"version {version}")
        return HEADERS[version](stream)
    except (ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable .npy file ({reason}); write it with numpy.save") from error
