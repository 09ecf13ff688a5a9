"""Reader of single IDX files, the format of MNIST. idx_folder.py finds the files of a data set.

The content of a file determines how it is read, not its name: gzipped files are recognized by their first bytes. Source: the
description of the format on the MNIST page (http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.errors import DataError
from fastmlp.files.limits import GzipStream, check_claim, open_unpacked
from fastmlp.files.reading import file_errors, size_of

CHUNK = 1 << 20  # bytes read at a time; a damaged header that declares a huge size must not cause a huge allocation
MAX_DIMS = 4  # images (n, height, width, channels)
# Data types by their code, which is the third byte of a file. The values are big-endian.
DTYPES = {code: np.dtype(f">{name}") for code, name in ((8, "u1"), (9, "i1"), (11, "i2"), (12, "i4"), (13, "f4"), (14, "f8"))}
# First bytes of other kinds of files that may have the names of IDX files.
OTHER_KINDS = {
    b"PK\x03\x04": "it is a zip archive; unpack it",
    b"\xfd7zX": "it is an xz file; unpack it with unxz",
    b"BZh": "it is a bzip2 file; unpack it with bunzip2",
    b"<": "it looks like a web page; download the file itself",
}
REFETCH = "replace it with an intact copy (`fastmlp data fetch` downloads mnist and fashion-mnist)"


def content_sha256(path: Path) -> str | None:
    """Return the SHA-256 hash of the decompressed content of a file; None if it is damaged gzip data."""
    try:
        with open_unpacked(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except DataError:
        return None


def idx_dims(path: Path) -> int | None:
    """Return the number of dimensions of an IDX file; None if the file does not start like an IDX file or is unreadable."""
    try:
        with open_unpacked(path) as stream:
            magic = stream.read(4)
    except (DataError, OSError):  # such a file is not recognized by its content
        return None
    known = len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in DTYPES and 1 <= magic[3] <= MAX_DIMS
    return magic[3] if known else None


def read_idx(path: str | Path, dims: Collection[int] = range(1, MAX_DIMS + 1)) -> npt.NDArray[Any]:
    """Read an IDX file, which may be gzipped.

    Parameters
    ----------
    path : file with two zero bytes, the code of the data type (see `DTYPES`), the number of dimensions (one byte), the size of
        each dimension (big-endian uint32), and the values (big-endian)
    dims : permitted numbers of dimensions

    Returns
    -------
    array of uint8, int8, int16, int32, float32 or float64 in native byte order, with the shape given in the header

    Raises
    ------
    DataError : the file does not start with an IDX header; unknown data type or another number of dimensions; an empty array;
        too few or too many bytes; damaged gzip data; or a size that `limits.check_claim` rejects

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    ...     read_idx(path)
    array([7, 8, 9], dtype=uint8)
    """
    path = Path(path)
    with open_unpacked(path) as stream, file_errors("read", path):
        dtype, shape = _header(path, stream, dims)
        declared = math.prod(shape) * dtype.itemsize
        if isinstance(stream.raw, GzipStream):
            check_claim(path, declared, size_of(path))
        # Requesting one byte more than the header declares detects trailing bytes. Reading to the end makes gzip verify the
        # checksum.
        content = _read_at_most(stream, declared + 1)
    if len(content) != declared:
        found = "more" if len(content) > declared else f"only {len(content)}"
        size = "x".join(map(str, shape))
        raise DataError(
            f"{path}: the header declares {size} {dtype.name} = {declared} bytes, but the file holds {found}; {REFETCH}"
        )
    array = np.frombuffer(content, dtype).reshape(shape)
    # A float64 array can be large, so its bytes are swapped in place.
    return array if dtype.isnative else array.byteswap(inplace=True).view(dtype.newbyteorder("="))


def _header(path: Path, stream: BufferedReader, dims: Collection[int]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read the header of an IDX file and return the dtype and the shape."""
    magic = stream.read(4)
    if magic[:2] != b"\0\0"[: len(magic)]:
        hint = next((hint for start, hint in OTHER_KINDS.items() if magic.startswith(start)), REFETCH)
        raise DataError(f"{path}: not an IDX file, which starts with 0x0000; this one starts with 0x{magic.hex()}; {hint}")
    if len(magic) < 4:
        raise DataError(f"{path}: only {len(magic)} bytes, fewer than an IDX header; {REFETCH}")
    if magic[2] not in DTYPES:
        codes = ", ".join(f"0x{code:02x} ({dtype.name})" for code, dtype in DTYPES.items())
        raise DataError(f"{path}: unknown data type 0x{magic[2]:02x}, not one of {codes}; {REFETCH}")
    if magic[3] not in dims:
        needed = " or ".join(", ".join(map(str, dims)).rsplit(", ", 1))
        raise DataError(f"{path}: the number of dimensions is {magic[3]}, but must be {needed}; replace the file")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path}: only {4 + len(sizes)} bytes, fewer than an IDX header; {REFETCH}")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if 0 in shape:
        raise DataError(f"{path}: the header declares an empty array {shape}; {REFETCH}")
    return DTYPES[magic[2]], shape


def _read_at_most(stream: BufferedReader, limit: int) -> bytearray:
    """Read up to `limit` bytes in chunks, so that the memory used depends on the size of the content, not on `limit`."""
    content = bytearray()
    while chunk := stream.read(min(CHUNK, limit - len(content))):
        content += chunk
    return content
