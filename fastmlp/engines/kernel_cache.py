"""Files of compiled kernels: where they lie, who may write there, and that what is read is what was written.

- Each file carries its own SHA-256, checked before anything is made of it: a damaged one is removed, its kernel compiled anew.
- The folder belongs to the user alone (mode 0700); one that another user owns or may write is refused.
- Where the folder cannot be used, kernels are compiled in memory, with one warning.

Folder: FASTMLP_CACHE_DIR, else `fastmlp/kernels` in the user's cache. What a file is named by, and what is in it, is told by
those who compile (engines/cpu/codegen/cache.py, engines/cuda/compiler.py).
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
    """The cache folder may be written by somebody else, or is not a folder."""


def cache_folder() -> Path:
    """Where compiled kernels are kept; it need not exist."""
    named = os.environ.get("FASTMLP_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return platformdirs.user_cache_path("fastmlp") / "kernels"
    except RuntimeError:  # a user without a home folder, as in many containers
        return Path(os.devnull) / "no home folder"


def check_private(folder: Path) -> None:
    """Raise UnsafeFolder unless the folder is a real one, ours, and writable by nobody else."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolder(f"{folder} is not a folder")
    if not hasattr(os, "geteuid"):  # Windows: the user's cache belongs to the user, and the mode says nothing of others
        return
    if found.st_uid != os.geteuid():
        raise UnsafeFolder(f"{folder} belongs to user {found.st_uid}, not to you ({os.geteuid()})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeFolder(f"{folder} may be written by others (mode {found.st_mode & 0o777:o}); chmod 700 it")


def sources_hash(places: Iterable[str], text: str, package: Path = PACKAGE) -> str:
    """Hash of source files of the package, and of what else decides what is compiled from them.

    A place is a file, or a folder with all that is below it, relative to the package.
    """
    total = hashlib.sha256(text.encode())
    for name in sources_of(places, package):
        body = (package / name).read_bytes()
        total.update(f"{name} {len(body)}\n".encode() + body)
    return total.hexdigest()


def sources_of(places: Iterable[str], package: Path = PACKAGE) -> list[str]:
    """The source files in such places, by their names relative to the package; a place without any is an error."""
    found: set[str] = set()
    for place in places:
        files = list((package / place).rglob("*.py")) if (package / place).is_dir() else [package / place]
        if not files:
            raise FileNotFoundError(f"no source files in {package / place}")
        found |= {file.relative_to(package).as_posix() for file in files}
    return sorted(found)


@functools.cache
def warn_once(reason: str) -> None:
    """One warning per reason and process: kernels will be compiled each time."""
    warnings.warn(
        f"compiled kernels are not kept on disk: {reason}. "
        "Training works; each start compiles again. FASTMLP_CACHE_DIR names another folder.",
        RuntimeWarning,
        stacklevel=2,
    )


def reason(folder: Path, error: OSError | UnsafeFolder) -> str:
    """Why the folder cannot be used, the same text for every file in it."""
    return f"{folder}: {error.strerror}" if isinstance(error, OSError) else str(error)


def make_private(folder: Path) -> None:
    """Let there be such a folder; OSError or UnsafeFolder if there cannot be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)


def can_keep(folder: Path) -> bool:
    """Whether `write_entry` can be expected to keep something there."""
    try:
        make_private(folder)
    except (OSError, UnsafeFolder):
        return False
    return os.access(folder, os.W_OK)


def read_entry(file: Path) -> bytes | None:
    """What `write_entry` kept; None if there is nothing that can be used."""
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
    """Keep what was compiled, if the folder can be used."""
    try:
        make_private(file.parent)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as opened:
            try:
                opened.write(hashlib.sha256(body).digest() + body)
                opened.flush()
                Path(opened.name).replace(file)
            except BaseException:  # Ctrl-C too must leave nothing behind
                Path(opened.name).unlink(missing_ok=True)
                raise
    except (OSError, UnsafeFolder) as error:
        warn_once(reason(file.parent, error))


def with_globals(function: Callable[..., Any], names: dict[str, Any]) -> FunctionType:
    """The same code with other global names, as those who compile formulas need it."""
    assert isinstance(function, FunctionType)
    twin = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    twin.__qualname__ = function.__qualname__
    return twin
