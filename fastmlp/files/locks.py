"""Locks of files and folders, and the removal of temporary files, also of those that killed processes left."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = re.compile(r"\.fastmlp-[0-9a-f]{16}\.tmp")  # names of the temporary files of `files.write_bytes`
ABANDONED = 3600  # seconds without a change after which a temporary file that cannot be locked is left over
# Temporary files that this process is writing, and folders that it has created and that may still be empty.
unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Delete the temporary files and the empty folders in `unfinished`, before the process ends without raising an exception.

    Files that cannot be deleted are skipped. A folder that is not empty is kept.
    """
    for path in sorted(unfinished, reverse=True):  # the files in a folder before the folder
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def sweep(folder: Path, names: re.Pattern[str] = TEMPORARY) -> None:
    """Remove the temporary files that killed processes left in a folder.

    The process that writes a temporary file holds a lock on it (`held`), so a file that can be locked is left over. On file
    systems without locks, a file is left over if it has not changed for an hour. Files that cannot be examined or removed
    are kept, because a left-over file does no harm; symbolic links are not followed.

    Parameters
    ----------
    folder : folder of the files; it may be missing
    names : pattern of their complete names
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for path in [Path(entry.path) for entry in entries if names.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
                try:
                    locked, age = lock(descriptor), time.time() - os.fstat(descriptor).st_mtime
                    if locked:  # removed while it is locked: `held` then notices that its new file is gone
                        path.unlink()
                finally:
                    os.close(descriptor)
                if locked is None and age > ABANDONED:
                    path.unlink()


def lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file or folder against other processes (flock), until it is closed or the process ends, even if killed.

    Return False if another process holds the lock and `wait` is false, and None if there are no such locks, as on Windows and
    on some network file systems.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[bool | None]:
    """Lock an existing folder until the context exits, and yield the result of `lock`; Windows has no locks of folders."""
    if not hasattr(os, "O_DIRECTORY"):
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool | None]:
    """Create a file if it does not exist, lock it until the context exits, and yield the result of `lock`.

    On Windows, the file is not created, because an open file could not be renamed.
    """
    if os.name != "posix":
        yield None
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = lock(descriptor, wait)
            # The process that held the lock before may have removed the file. Then another file must be created and locked.
            if not locked or (path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))):
                yield locked
                return
        finally:
            os.close(descriptor)
