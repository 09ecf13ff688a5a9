"""Opening and finding of files that are read: only regular files are opened, and every error message is one line with a remedy.

Data, images, settings and models may be untrusted files. A named pipe would block the process until someone writes to it, and
a device such as /dev/zero has no end, so both are rejected. All other modules find and open files with these functions, which a
test checks (tests/repo/test_reading.py); the functions of pathlib and os raise errors for names that are too long, loops of
symbolic links, and folders that cannot be searched or are removed at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from fastmlp.errors import ConfigError, DataError, FastMLPError, WriteError

AnyPath = str | os.PathLike[str]
Result = TypeVar("Result")

MAX_REASON = 200  # characters of the message of another library in an error message
_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or choose another folder",
    errno.EACCES: "check the permissions or choose another folder",
    errno.EPERM: "check the permissions or choose another folder",
    errno.EROFS: "choose a folder on a writable disk",
    errno.ENOENT: "check the path, whose folder must exist",
    errno.EEXIST: "it is a file; choose another name",
    errno.ENOTDIR: "check the path; one of its folders is a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the symbolic link that leads back to itself",
}
_READING_REMEDIES = _REMEDIES | {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENOENT: "check the path",
    errno.ENXIO: "it is a socket; give the path of a file",
    errno.EISDIR: "it is a folder; give the path of a file",
}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def given_path(name: str, given: Any) -> Path:
    """Return an argument of a public function as a path.

    Raises
    ------
    ConfigError : it is neither a string nor a path, or it is an empty string, which would be the current folder

    Examples
    --------
    >>> given_path("path", 123)
    Traceback (most recent call last):
    fastmlp.errors.ConfigError: path must be a path (str or pathlib.Path), not int
    """
    if isinstance(given, str | os.PathLike) and isinstance(os.fspath(given), str):
        if os.fspath(given):
            return Path(given)
        raise ConfigError(f"{name} is empty; give a path", settings=(name,))
    raise ConfigError(f"{name} must be a path (str or pathlib.Path), not {type(given).__name__}")


def check_paths(**given: Any) -> None:
    """Raise ConfigError if an argument of a public function, by name, is neither None nor a path, see `given_path`."""
    for name, value in given.items():
        if value is not None:
            given_path(name, value)


def given_paths(name: str, given: Any) -> list[str | Path]:
    """Return an argument of a public function that is a path or an iterable of paths as a list, unchanged.

    Raises
    ------
    ConfigError : it is something else
    """
    if isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable):
        given = [given]
    paths = list(given)
    for one in paths:
        given_path(name, one)
    return paths


@contextlib.contextmanager
def file_errors(verb: str, path: AnyPath) -> Iterator[None]:
    """Convert file-system errors to one-line messages with the path, the reason and a remedy.

    Raises
    ------
    WriteError : `verb` is not "read"
    DataError : `verb` is "read"
    """
    try:
        yield
    except OSError as error:
        remedies = _READING_REMEDIES if verb == "read" else _REMEDIES
        remedy = remedies.get(error.errno or 0, "check the disk and the path")
        kind = DataError if verb == "read" else WriteError
        raise kind(f"cannot {verb} {os.fspath(path)}: {error.strerror or error}; {remedy}") from error


@contextlib.contextmanager
def library_errors(place: AnyPath, problem: str, remedy: str, kind: type[FastMLPError] = DataError) -> Iterator[None]:
    """Convert every exception raised in the block to an error of type `kind` with a one-line message.

    The block contains only the call of the library that reads the file. The types of exceptions that libraries raise for
    damaged files are not documented and change between versions, so all of them are converted, including MemoryError,
    RecursionError, and the PanicException of extensions in Rust, which is a BaseException. Errors of fastmlp pass unchanged:
    they come from a stream of fastmlp that the library reads.

    Parameters
    ----------
    place : file, or location in a file
    problem : text after the place, such as "not a readable .npz file"; the reason follows in parentheses
    remedy : advice at the end of the message
    kind : type of the error

    Raises
    ------
    FastMLPError : of type `kind`, if the library raised an exception

    Examples
    --------
    >>> with library_errors("a.json", "not valid JSON", "create it again"):
    ...     int("1x")
    Traceback (most recent call last):
    fastmlp.errors.DataError: a.json: not valid JSON (invalid literal for int() with base 10: '1x'); create it again
    """
    try:
        yield
    except FastMLPError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # such as KeyboardInterrupt
            raise
        raise kind(f"{os.fspath(place)}: {problem} ({reason(error)}); {remedy}") from error


def reason(error: BaseException) -> str:
    """Return the message of an exception as one short line; the type of the exception is added to messages of one word.

    >>> reason(KeyError("x")), reason(ValueError("not a\\n number")), reason(MemoryError())
    ("KeyError: 'x'", 'not a number', 'MemoryError')
    """
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    if " " not in text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "…"


def _called(function: Callable[..., Result], path: AnyPath, *arguments: Any) -> Result:
    """Call a function of `os` with a path; raise DataError for its errors, including that of an invalid path."""
    try:
        with file_errors("read", path):
            return function(path, *arguments)
    except DataError:
        raise
    except ValueError as error:  # a zero byte, or a lone surrogate
        raise DataError(f"cannot read {os.fspath(path)}: not a valid path ({reason(error)}); check the path") from error


def _mode(path: AnyPath) -> int | None:
    """Return the mode of a file or folder, following symbolic links; None if it does not exist."""

    def mode(path: AnyPath) -> int | None:
        try:
            return os.stat(path).st_mode  # noqa: PTH116 - Path() takes time, and this function is called very often
        except (FileNotFoundError, NotADirectoryError):
            return None

    return _called(mode, path)


def exists(path: AnyPath) -> bool:
    """Return whether a file, a folder or anything else has this path; raise DataError if this cannot be determined."""
    return _mode(path) is not None


def is_file(path: AnyPath) -> bool:
    """Return whether a path refers to a regular file, following symbolic links; False if it does not exist.

    Raise DataError if this cannot be determined.
    """
    return stat.S_ISREG(_mode(path) or 0)


def is_folder(path: AnyPath) -> bool:
    """Return whether a path refers to a folder, following symbolic links; False if it does not exist.

    Raise DataError if this cannot be determined.
    """
    return stat.S_ISDIR(_mode(path) or 0)


def check_regular(path: AnyPath) -> None:
    """Raise DataError unless a path refers to a regular file, for libraries that open files themselves."""
    _check_mode(path, _called(os.stat, path).st_mode)


def _check_mode(path: AnyPath, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise DataError(f"cannot read {os.fspath(path)}: it is {kind}; give the path of a file")


@contextlib.contextmanager
def open_file(path: AnyPath) -> Iterator[BufferedReader]:
    """Open a regular file for reading. Only errors of opening are converted; exceptions in the block pass unchanged.

    A named pipe is opened without waiting for a writer, so that it can be rejected.

    Raises
    ------
    DataError : the file does not exist, cannot be opened, or is not a regular file
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = _called(os.open, path, flags)
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
        stream = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with stream:
        yield stream


def read_bytes(path: AnyPath, most: int | None = None) -> bytes:
    """Return the contents of a regular file.

    most : maximum number of bytes that such a file can have

    Raises
    ------
    DataError : the file does not exist, cannot be read, is not a regular file, or is larger than `most`
    """
    with open_file(path) as stream, file_errors("read", path):
        data = stream.read() if most is None else stream.read(most + 1)
    if most is not None and len(data) > most:
        problem = f"larger than {most:,} bytes, the maximum for this kind of file"
        raise DataError(f"cannot read {os.fspath(path)}: {problem}; check the path")
    return data


def size_of(path: AnyPath) -> int:
    """Return the size of a file in bytes; raise DataError if the file does not exist."""
    return _called(os.stat, path).st_size


def modified(path: AnyPath) -> int:
    """Return the time of the last change of a file, in nanoseconds; raise DataError if the file does not exist."""
    return _called(os.stat, path).st_mtime_ns


def entries(folder: AnyPath) -> list[Path]:
    """Return the paths in a folder, sorted by name; raise DataError if it cannot be read."""
    return [Path(folder, name) for name in sorted(_called(os.listdir, folder))]


def files_matching(folder: AnyPath, pattern: str) -> list[Path]:
    """Return the paths in a folder whose names match a shell pattern (`fnmatch`), sorted; empty if there is no such folder.

    Raise DataError if the folder cannot be read.
    """
    return [path for path in entries(folder) if fnmatch.fnmatchcase(path.name, pattern)] if is_folder(folder) else []


def real_path(path: AnyPath) -> Path:
    """Return the absolute path without symbolic links; the links of a loop are kept.

    Raise DataError if the path is relative, and the current folder does not exist any more.
    """
    return Path(_called(os.path.realpath, path))
