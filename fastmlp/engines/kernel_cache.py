"""Files of compiled kernels: their folder, its permissions, and the integrity of their contents.

- Each file contains its own SHA-256, checked before use: a corrupt file is removed and its kernel recompiled.
- Only the user may access the folder (mode 0700); a folder that another user owns or may write to is rejected.
- If the folder cannot be used, kernels are compiled in memory, with one warning.

Folder: FASTMLP_CACHE_DIR, else `fastmlp/kernels` in the user's cache folder. The compilers define the names and contents of
files (engines/cpu/codegen/cache.py, engines/cuda/compiler.py).
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType
from typing import Any

import platformdirs

DIGEST_BYTES = 32
PACKAGE = Path(__file__).parents[1]


class UnsafeFolder(Exception):
    """Another user may write to the cache folder, or it is not a folder."""


def cache_folder() -> Path:
    """Folder of compiled kernels; it may not exist."""
    named = os.environ.get("FASTMLP_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return platformdirs.user_cache_path("fastmlp") / "kernels"
    except RuntimeError:  # a user without a home folder, as in many containers
        return Path(os.devnull) / "no home folder"


def check_private(folder: Path) -> None:
    """Raise UnsafeFolder unless it is a folder that the current user owns and nobody else may write to."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolder(f"{folder} is not a folder")
    if not hasattr(os, "geteuid"):  # Windows: the user's cache belongs to the user; the mode does not describe other users
        return
    if found.st_uid != os.geteuid():
        raise UnsafeFolder(f"{folder} belongs to user {found.st_uid}, not to you ({os.geteuid()})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeFolder(f"{folder} may be written by others (mode {found.st_mode & 0o777:o}); chmod 700 it")


def sources_hash(places: Iterable[str], text: str, package: Path = PACKAGE) -> str:
    """Hash of source files of the package, and of a text with everything else that affects compilation.

    A place is a file, or a folder including its subfolders, relative to the package.
    """
    total = hashlib.sha256(text.encode())
    for name in sources_of(places, package):
        body = (package / name).read_bytes()
        total.update(f"{name} {len(body)}\n".encode() + body)
    return total.hexdigest()


def sources_of(places: Iterable[str], package: Path = PACKAGE) -> list[str]:
    """Names of the source files in such places, relative to the package; a place without any is an error."""
    found: set[str] = set()
    for place in places:
        files = list((package / place).rglob("*.py")) if (package / place).is_dir() else [package / place]
        if not files:
            raise FileNotFoundError(f"no source files in {package / place}")
        found |= {file.relative_to(package).as_posix() for file in files}
    return sorted(found)


@functools.cache
def warn_once(reason: str) -> None:
    """Warn once per reason and process that kernels are recompiled at each start."""
    warnings.warn(
        f"compiled kernels are not cached on disk: {reason}. "
        "Training works, but each start compiles again; set FASTMLP_CACHE_DIR to another folder",
        RuntimeWarning,
        stacklevel=2,
    )


def reason(folder: Path, error: OSError | UnsafeFolder) -> str:
    """Why the folder cannot be used; the same text for all files in it."""
    return f"{folder}: {error.strerror}" if isinstance(error, OSError) else str(error)


def make_private(folder: Path) -> None:
    """Create the folder if needed; raise OSError or UnsafeFolder if it cannot be used."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)


def can_keep(folder: Path) -> bool:
    """Whether `write_entry` is expected to succeed in this folder."""
    try:
        make_private(folder)
    except (OSError, UnsafeFolder):
        return False
    return os.access(folder, os.W_OK)


def read_entry(file: Path) -> bytes | None:
    """Contents written by `write_entry`; None if there are no valid contents."""
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


def write_entry(file: Path, body: bytes) -> None:
    """Write compiled code, if the folder can be used."""
    try:
        make_private(file.parent)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as opened:
            try:
                opened.write(hashlib.sha256(body).digest() + body)
                opened.flush()
                Path(opened.name).replace(file)
            except BaseException:  # Ctrl-C must leave no file behind either
                Path(opened.name).unlink(missing_ok=True)
                raise
    except (OSError, UnsafeFolder) as error:
        warn_once(reason(file.parent, error))


def with_globals(function: Callable[..., Any], names: dict[str, Any]) -> FunctionType:
    """The same function with other globals, for compiling formulas."""
    assert isinstance(function, FunctionType)
    twin = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    twin.__qualname__ = function.__qualname__
    return twin
