"""Cache of compiled kernels on disk: the folder, its permissions, and integrity checks of its files.

- Each file starts with the SHA-256 hash of its contents, which is verified before use. A corrupt file is deleted and its
  kernel is recompiled.
- The folder is created with mode 0700, so that only its owner can access it. A folder that another user owns or can write to
  is rejected.
- If the folder cannot be used, a warning is issued once, and kernels are recompiled in each process.

The environment variable FASTMLP_CACHE_DIR sets the folder. The default is `fastmlp/kernels` in the user's cache folder. The
compilers choose the names and contents of the files (engines/cpu/codegen/cache.py, engines/cuda/compiler.py).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import platformdirs

from fastmlp.engines.interrupts import deferred_signals
from fastmlp.errors import printable

DIGEST_BYTES = 32
PACKAGE = Path(__file__).parents[1]


class UnsafeFolder(Exception):
    """The cache folder is not safe to use: another user owns it or can write to it, or it is not a folder."""


def cache_folder() -> Path:
    """Return the folder for compiled kernels, which may not exist yet."""
    named = os.environ.get("FASTMLP_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return platformdirs.user_cache_path("fastmlp") / "kernels"
    except RuntimeError:  # the user has no home folder, as in many containers
        return Path(os.devnull) / "no home folder"


def check_private(folder: Path) -> None:
    """Raise UnsafeFolder unless `folder` is a folder that the current user owns and no other user can write to."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolder(f"{folder} is not a folder")
    if not hasattr(os, "geteuid"):  # Windows: the mode has no bits for other users; the profile folder is private by default
        return
    if found.st_uid != os.geteuid():
        raise UnsafeFolder(f"{folder} belongs to user {found.st_uid}, not to the current user ({os.geteuid()})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeFolder(f"{folder} is writable by other users (mode {found.st_mode & 0o777:o}); run chmod 700 on it")


def sources_hash(places: Iterable[str], text: str, package: Path = PACKAGE) -> str:
    """Return a hash of source files of the package, and of `text`, which holds everything else that affects compilation.

    places : files and folders relative to the package; a folder includes its subfolders
    """
    total = hashlib.sha256(text.encode())
    for name in sources_of(places, package):
        body = (package / name).read_bytes()
        total.update(f"{name} {len(body)}\n".encode() + body)
    return total.hexdigest()


def sources_of(places: Iterable[str], package: Path = PACKAGE) -> list[str]:
    """Return the paths of the source files in `places`. Raise FileNotFoundError for a folder without source files."""
    found: set[str] = set()
    for place in places:
        files = list((package / place).rglob("*.py")) if (package / place).is_dir() else [package / place]
        if not files:
            raise FileNotFoundError(f"no source files in {package / place}")
        found |= {file.relative_to(package).as_posix() for file in files}
    return sorted(found)


@functools.cache
def warn_once(reason: str) -> None:
    """Warn that compiled kernels cannot be cached, once per reason and process."""
    warnings.warn(
        f"compiled kernels are not cached on disk: {printable(reason)}. "
        "Training works, but each process recompiles its kernels; set FASTMLP_CACHE_DIR to another folder",
        RuntimeWarning,
        stacklevel=2,
    )


def reason(folder: Path, error: OSError | UnsafeFolder) -> str:
    """Return why the folder cannot be used. The text is the same for all files, so that `warn_once` warns once."""
    return f"{folder}: {error.strerror}" if isinstance(error, OSError) else str(error)


def make_private(folder: Path) -> None:
    """Create the folder if it does not exist. Raise OSError or UnsafeFolder if it cannot be used."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)


def can_keep(folder: Path) -> bool:
    """Return whether `write_entry` is expected to succeed in this folder."""
    try:
        make_private(folder)
    except (OSError, UnsafeFolder):
        return False
    return os.access(folder, os.W_OK)


def read_entry(file: Path) -> bytes | None:
    """Return the contents written by `write_entry`, or None if the file is missing, corrupt or in an unusable folder."""
    try:
        check_private(file.parent)
        data = file.read_bytes()
        body = data[DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != data[:DIGEST_BYTES]:
            file.unlink()
            return None
        return body
    except FileNotFoundError:
        return None
    except (OSError, UnsafeFolder) as error:
        warn_once(reason(file.parent, error))
        return None


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Remove the temporary files that killed processes left in the folder, and hold a shared lock on it until the end.

    The files are removed only if the folder can be locked exclusively (flock). Then no running process is in this context, so
    none of the files is being written. Without such locks, as on Windows and some network file systems, the files are kept.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in folder.glob("tmp*.tmp"):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def write_entry(file: Path, body: bytes) -> None:
    """Write compiled code to a file. If the folder cannot be used, warn and write nothing."""
    try:
        make_private(file.parent)
        with (
            deferred_signals(),
            writing(file.parent),
            tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as opened,
        ):
            try:
                opened.write(hashlib.sha256(body).digest() + body)
                opened.flush()
                Path(opened.name).replace(file)
            except BaseException:  # includes a second Ctrl-C, which must not leave a temporary file
                Path(opened.name).unlink(missing_ok=True)
                raise
    except (OSError, UnsafeFolder) as error:
        warn_once(reason(file.parent, error))


def with_globals(function: Callable[..., Any], names: dict[str, Any], cells: tuple[Any, ...] | None = None) -> FunctionType:
    """Return a copy of a function with other globals, so that it calls compiled versions of other functions.

    cells : other closure variables; None keeps those of the function
    """
    assert isinstance(function, FunctionType)
    closure = function.__closure__ if cells is None else cells
    twin = FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    twin.__qualname__ = function.__qualname__
    return twin
