"""Limits on the memory that a small file can claim.

A file of 3 MB can unfold to 3 GB, or claim an array of that shape. Before memory is taken for compressed data, or for an array
of a declared shape, the claim is compared with the size of the file: a claim of more than 1 GiB that is also more than 50 times
as large as the file is refused. A decompressed stream ends with an error as soon as it exceeds its claim, or this limit.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
from collections.abc import Iterator
from contextvars import ContextVar
from io import BufferedReader
from pathlib import Path

from fastmlp.errors import ConfigError, DataError
from fastmlp.files.reading import AnyPath, file_errors, library_errors, open_file

GIB = 1 << 30
MAX_DECOMPRESSED = 1.0  # default of the limit, in GiB
MAX_RATIO = 50  # claims up to this multiple of the size of the file are always accepted; real images compress to a tenth
GZIP = b"\x1f\x8b"  # first bytes of a gzipped file
_limit: ContextVar[float] = ContextVar("max_decompressed", default=MAX_DECOMPRESSED)


@contextlib.contextmanager
def decompression_limit(max_decompressed: float | None) -> Iterator[None]:
    """Context manager that sets the limit on the decompressed size of files.

    The limit is a context variable, like the error handling of NumPy, because each reader of a format needs it.

    max_decompressed : limit in GiB; None leaves it unchanged

    Raises
    ------
    ConfigError : the limit is not a positive number
    """
    if max_decompressed is None:
        yield
        return
    number = isinstance(max_decompressed, int | float) and not isinstance(max_decompressed, bool)
    if not (number and 0 < max_decompressed < math.inf):
        message = f"max_decompressed must be a positive number of GiB, not {max_decompressed!r}"
        raise ConfigError(message, settings=("max_decompressed",))
    token = _limit.set(float(max_decompressed))
    try:
        yield
    finally:
        _limit.reset(token)


def largest(size: int) -> int:
    """Return the largest decompressed size in bytes that is accepted for a file of this size in bytes."""
    return max(int(_limit.get() * GIB), MAX_RATIO * size)


def check_claim(place: AnyPath, claimed: int, size: int) -> None:
    """Raise DataError if a file of `size` bytes claims to contain more bytes than `largest` accepts.

    place : file, or location in a file, for the error message

    >>> check_claim("a.npz", 3 << 30, 3_000_000)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fastmlp.errors.DataError: a.npz: 3,000,000 bytes that claim to be 3.0 GiB of data, more than 50 times as much; ...
    """
    if claimed > largest(size):
        gib = math.ceil(10 * claimed / GIB) / 10
        raise DataError(
            f"{os.fspath(place)}: {size:,} bytes that claim to be {gib:,} GiB of data, more than {MAX_RATIO} times as much; if "
            f"the file is what you expect, set max_decompressed to more than {gib:,}",
            settings=("max_decompressed",),
        )


class GzipStream(io.RawIOBase):
    """The decompressed content of a gzipped file, for libraries that read from a stream.

    Parameters
    ----------
    path : name of the file, for error messages
    stream : the gzipped file
    line_bytes : number of bytes that a line of text takes in memory, if this is more than its length

    Raises
    ------
    DataError : when it is read: the file is damaged, or more data than `largest` accepts have been read
    """

    def __init__(self, path: AnyPath, stream: BufferedReader, line_bytes: int = 0) -> None:
        self.path, self.line_bytes, self.lines = path, line_bytes, 0
        self.most = largest(os.fstat(stream.fileno()).st_size)
        self.size = os.fstat(stream.fileno()).st_size
        self.unpacked = gzip.GzipFile(fileobj=stream)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        with library_errors(self.path, "damaged gzip file", "use an intact copy"):
            count = self.unpacked.readinto(buffer)  # type: ignore[arg-type]
        self.most -= count
        if self.line_bytes:
            self.lines += bytes(memoryview(buffer)[:count]).count(b"\n")  # type: ignore[arg-type]
        if self.most < 0 or self.lines * self.line_bytes > largest(self.size):
            check_claim(self.path, largest(self.size) + 1, self.size)
        return count


@contextlib.contextmanager
def open_unpacked(path: Path, line_bytes: int = 0) -> Iterator[BufferedReader]:
    """Open a regular file for reading its content, which is decompressed if the file is gzipped, whatever its name is.

    line_bytes : see `GzipStream`

    Raises
    ------
    DataError : as `open_file`, and when the stream is read, as `GzipStream`
    """
    with open_file(path) as file:
        with file_errors("read", path):
            gzipped = is_gzipped(file)
        yield BufferedReader(GzipStream(path, file, line_bytes), 1 << 16) if gzipped else file


def is_gzipped(file: BufferedReader) -> bool:
    """Return whether a file starts like a gzipped file; its position must be at the start, and is not changed."""
    start = file.read(len(GZIP))
    file.seek(0)
    return start == GZIP
