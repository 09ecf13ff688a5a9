"""Protection against decompression bombs.

A file of 3 MB can decompress to 3 GB, or declare an array of 3 GB in its header. Before memory is allocated, this size is
compared with the size of the file: more than 1 GiB and more than 50 times the size of the file is rejected. A decompressed
stream ends with an error as soon as it exceeds this limit.
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
from typing import Any

from fastmlp.errors import ConfigError, DataError
from fastmlp.files.reading import AnyPath, file_errors, library_errors, open_file

GIB = 1 << 30
MAX_DECOMPRESSED = 1.0  # default of the limit, in GiB
MAX_RATIO = 50  # up to this multiple of the size of the file is always accepted; real images compress to a tenth
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


def check_claim(place: AnyPath, declared: int, size: int, kind: str = "file") -> None:
    """Raise DataError if a file of `size` bytes declares more bytes of data than `largest` accepts.

    place : file, location in a file, or folder, for the error message
    kind : what has these bytes, for the error message

    >>> check_claim("a.npz", 3 << 30, 3_000_000)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fastmlp.errors.DataError: a.npz: the file has 3,000,000 bytes, but declares 3.0 GiB of data, more than 50 ...
    """
    if declared > largest(size):
        raise too_large(place, declared, size, kind)


def too_large(place: AnyPath, declared: int, size: int, kind: str = "file") -> DataError:
    """Return the error for a file of `size` bytes that declares more data than is accepted; see `check_claim`."""
    gib = math.ceil(10 * declared / GIB) / 10
    problem = f"the {kind} has {size:,} bytes, but declares {gib:,} GiB of data, more than {MAX_RATIO} times its size"
    remedy = f"if you trust the {kind}, set max_decompressed to more than {gib:,}"
    return DataError(f"{os.fspath(place)}: {problem}; {remedy}", settings=("max_decompressed",))


class GzipStream(io.RawIOBase):
    """The decompressed content of a gzipped file, for libraries that read from a stream.

    Parameters
    ----------
    path : name of the file, for error messages
    stream : the gzipped file
    line_bytes : number of bytes that a line of text takes in memory, if this is more than its length

    Raises
    ------
    DataError : while reading, if the gzip data are damaged or the decompressed size exceeds `largest`
    """

    def __init__(self, path: AnyPath, stream: BufferedReader, line_bytes: int = 0) -> None:
        self.path, self.line_bytes = path, line_bytes
        self.size = os.fstat(stream.fileno()).st_size
        self.limit = largest(self.size)  # not that of the thread which reads the stream
        self.count, self.lines = 0, 0
        self.gzip_file = gzip.GzipFile(fileobj=stream)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with library_errors(self.path, "damaged gzip file", "use an intact copy"):
            count = self.gzip_file.readinto(buffer)
        self.count += count
        if self.line_bytes:
            self.lines += bytes(memoryview(buffer)[:count]).count(b"\n")
        if (declared := max(self.count, self.lines * self.line_bytes)) > self.limit:
            raise too_large(self.path, declared, self.size)
        return count


@contextlib.contextmanager
def open_unpacked(path: Path, line_bytes: int = 0) -> Iterator[BufferedReader]:
    """Open a regular file as a binary stream of its contents, decompressed if the file is gzipped.

    Decompression depends on the first bytes of the file, not on its suffix.

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
