"""Cache of compiled kernels on disk: the folder, its permissions, and integrity checks of its files.

- The folder is opened once and checked through its descriptor: it must be a folder, not a symbolic link, that belongs to the
  user and that no other user can write to. Its files are opened, replaced and deleted relative to the descriptor. They are
  therefore in the folder that was checked, even if its path leads to another folder in the meantime.
- fastmlp creates the folder with mode 0700, so that only its owner can access it. A folder that others can only read, such as
  one with mode 0755, is used unchanged, because they cannot change the kernels.
- Each file starts with the SHA-256 hash of its contents, which is verified before use. A file that is corrupt, or that another
  user may have written, is deleted, and its kernel is recompiled.
- If the folder cannot be used, a warning is issued once, and kernels are recompiled in each process.

The environment variable FASTMLP_CACHE_DIR sets the folder. The default is `fastmlp/kernels` in the user's cache folder. The
compilers choose the names and contents of the files (engines/cpu/codegen/cache.py, engines/cuda/compiler.py).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import platformdirs

from fastmlp.engines.interrupts import deferred_signals
from fastmlp.errors import printable

DIGEST_BYTES = 32
TEMPORARY = re.compile(r"tmp.*\.tmp")  # names of temporary files
PACKAGE = Path(__file__).parents[1]
# Whether files can be used relative to the descriptor of their folder. If not, as on Windows, their paths are used.
BY_DESCRIPTOR = hasattr(os, "O_DIRECTORY") and {os.open, os.rename, os.unlink, os.access} <= os.supports_dir_fd
# Do not follow symbolic links, do not wait for the other end of a FIFO, and do not convert line ends on Windows.
SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# Errors of `open` for a symbolic link (EMLINK on FreeBSD) and a socket (EOPNOTSUPP on FreeBSD and macOS).
REFUSED = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EOPNOTSUPP)


class UnsafeFolder(Exception):
    """The cache folder is not safe to use: another user owns it or can write to it, or it is a symbolic link."""


def cache_folder() -> Path:
    """Return the folder for compiled kernels, which may not exist yet."""
    named = os.environ.get("FASTMLP_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return platformdirs.user_cache_path("fastmlp") / "kernels"
    except RuntimeError:  # the user has no home folder, as in many containers
        return Path(os.devnull) / "no home folder"


@contextlib.contextmanager
def private_folder(folder: Path, create: bool = False) -> Iterator[tuple[Path, int | None]]:
    """Open and check the folder, and yield a pair (base, descriptor), which is valid until the end of the context.

    The file `name` in it is `base / name`, relative to the descriptor. Without descriptors, `base` is the path of the folder.

    create : whether to create the folder, with mode 0700, if it does not exist

    Raises
    ------
    OSError : the folder does not exist, is not a folder, or cannot be created or read
    UnsafeFolder : it is a symbolic link, another user owns it, or another user can write to it
    """
    if create and not os.path.lexists(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink():  # for the message: O_NOFOLLOW rejects links, too
        raise UnsafeFolder(f"{folder} is a symbolic link; use its target")
    # The folders above may be links. Another user who can rename the folder cannot replace it with one of their own, because
    # the owner and the mode are those of the folder that has been opened.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) if BY_DESCRIPTOR else None
    try:
        found = folder.lstat() if descriptor is None else os.fstat(descriptor)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if problem := unsafe_owner(found):
            raise UnsafeFolder(f"{folder} {problem}")
        yield folder if descriptor is None else Path(), descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def unsafe_owner(found: os.stat_result) -> str:
    """Return "" if a folder or a file belongs to the current user and no other user can write to it, else the reason."""
    if not hasattr(os, "geteuid"):  # Windows: the mode has no bits for other users; the profile folder is private by default
        return ""
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to the current user ({os.geteuid()})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"is writable by other users (mode {found.st_mode & 0o777:o}); run chmod 700 on it"
    return ""


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


def file_sizes(folder: Path) -> list[int]:
    """Return the sizes of the files in the folder, in bytes. Raises the exceptions of `private_folder`."""
    with private_folder(folder) as (base, descriptor), os.scandir(base if descriptor is None else descriptor) as entries:
        return [entry.stat(follow_symlinks=False).st_size for entry in entries]


def can_keep(folder: Path) -> bool:
    """Return whether `write_entry` is expected to succeed in this folder."""
    try:
        with private_folder(folder, create=True) as (base, descriptor):
            return os.access(base, os.W_OK, dir_fd=descriptor)
    except (OSError, UnsafeFolder):
        return False


def read_entry(file: Path) -> bytes | None:
    """Return the contents written by `write_entry`, or None if the file is missing, unsafe or in an unusable folder."""
    try:
        with private_folder(file.parent) as (base, descriptor):
            data = read_private(base / file.name, descriptor)
            body = data[DIGEST_BYTES:]
            if hashlib.sha256(body).digest() == data[:DIGEST_BYTES]:
                return body
            os.unlink(base / file.name, dir_fd=descriptor)
            return None
    except FileNotFoundError:
        return None
    except (OSError, UnsafeFolder) as error:
        warn_once(reason(file.parent, error))
        return None


def read_private(path: Path, folder: int | None) -> bytes:
    """Return the contents of a regular file, or b"" if it is something else or another user may have written it.

    folder : descriptor to which the path is relative, or None
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | SAFELY, dir_fd=folder)
    except OSError as error:
        if error.errno in REFUSED:
            return b""
        raise
    try:
        found = os.fstat(descriptor)
        # Reject hard links: while the folder was writable for others, they may have linked to an unrelated file of this user.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or unsafe_owner(found):
            return b""
        return os.read(descriptor, found.st_size)
    finally:
        os.close(descriptor)


def remove_left_over(folder: int | None) -> None:
    """Remove the temporary files that killed processes left in an open folder, and lock it (shared) until it is closed.

    The files are removed only if the folder can be locked exclusively (flock). Then no running process has this lock, so none
    of the files is being written. Without such locks, as on Windows and some network file systems, the files are kept.

    folder : descriptor of the folder, or None, for which nothing is done
    """
    if folder is None:
        return
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with os.scandir(folder) as entries:
            for name in [entry.name for entry in entries if TEMPORARY.fullmatch(entry.name)]:
                os.unlink(name, dir_fd=folder)
    with contextlib.suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_SH)


def write_entry(file: Path, body: bytes) -> None:
    """Write compiled code to a file. If the folder cannot be used, warn and write nothing."""
    try:
        with private_folder(file.parent, create=True) as (base, descriptor), deferred_signals():
            remove_left_over(descriptor)
            temporary = base / f"tmp{os.urandom(8).hex()}.tmp"
            created = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY, 0o600, dir_fd=descriptor)
            try:
                with os.fdopen(created, "wb") as opened:
                    opened.write(hashlib.sha256(body).digest() + body)
                os.replace(temporary, base / file.name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
            except BaseException:  # includes a second Ctrl-C, which must not leave a temporary file
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=descriptor)
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
