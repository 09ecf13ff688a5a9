"""Compiled kernels on disk, safely: why not Numba's own cache, and what this one promises.

Numba's `cache=True` keys an entry by the bytecode of one function. It serves stale machine code when a formula or an
intrinsic in another file changes, dies on a truncated file, and writes beside the installed package. Here

- the key is a hash over every source file that takes part in a kernel, the versions of Python, Numba and llvmlite, the
  processor as LLVM sees it, the kernel's name and the signature: what changed is simply not found;
- each file carries its own SHA-256, checked before anything is unpickled: a damaged file is removed and compiled anew;
- the folder belongs to the user alone (mode 0700); one that another user owns or may write is refused;
- where the folder cannot be used, kernels are compiled in memory, with one warning.

The entries are pickles, because that is how Numba serialises machine code. They are the only pickles fastmlp reads, and
never come from the user's hands. Folder: FASTMLP_CACHE_DIR, else `fastmlp/kernels` in the user's cache.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import stat
import tempfile
import warnings
from pathlib import Path
from typing import Any

import platformdirs

# Sources that take part in a kernel; a test holds this list against the imports of cpu_kernels.py.
SOURCES = (
    "philox.py",
    "functions.py",
    "optimizers.py",
    "cpu_cache.py",
    "cpu_simd.py",
    "cpu_instructions.py",
    "cpu_math.py",
    "cpu_compile.py",
    "cpu_plan.py",
    "cpu_products.py",
    "cpu_formulas.py",
    "cpu_pieces.py",
    "cpu_kernels.py",
)
# Settings of Numba that change the code it makes.
NUMBA_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")
DIGEST_BYTES = 32


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
    if found.st_uid != os.geteuid():
        raise UnsafeFolder(f"{folder} belongs to user {found.st_uid}, not to you ({os.geteuid()})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeFolder(f"{folder} may be written by others (mode {found.st_mode & 0o777:o}); chmod 700 it")


@functools.cache
def build_hash() -> str:
    """Hash of the kernels' sources and of the versions that compile them."""
    import llvmlite
    import numba

    here = Path(__file__).parent
    settings = [getattr(numba.config, name) for name in NUMBA_SETTINGS]
    text = f"{platform.python_version()} {numba.__version__} {llvmlite.__version__} {settings}"
    total = hashlib.sha256(text.encode())
    for name in SOURCES:
        total.update((here / name).read_bytes())
    return total.hexdigest()


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


class KernelCache:
    """Numba's interface of a dispatcher's cache, over one file per kernel, signature and processor.

    Put in place of `dispatcher._cache`; `hits` and `misses` count.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.cache_path = str(cache_folder())
        self.hits = 0
        self.misses = 0

    def file(self, signature: Any, codegen: Any) -> Path:
        """The entry's file."""
        text = f"{build_hash()} {self.name} {signature} {codegen.magic_tuple()}"
        return Path(self.cache_path) / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.kernel"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function, or None if it must be compiled."""
        from numba.core.compiler import CompileResult
        from numba.core.runtime import rtsys  # type: ignore[attr-defined]

        # All that machine code needs. `refresh` would also load what only compiling needs, SciPy's algebra among it: 0.3 s.
        rtsys.initialize(target_context)
        file = self.file(signature, target_context.codegen())
        try:
            check_private(file.parent)
            data = file.read_bytes()
            body = data[DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != data[:DIGEST_BYTES]:
                file.unlink()
                raise FileNotFoundError
        except FileNotFoundError:
            self.misses += 1
            return None
        except (OSError, UnsafeFolder) as error:
            self.misses += 1
            warn_once(reason(file.parent, error))
            return None
        self.hits += 1
        return CompileResult._rebuild(target_context, *pickle.loads(body))  # noqa: S301 - see the module docstring

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep the compiled function if the folder can be used."""
        from numba.core.serialize import dumps

        body = dumps(compiled._reduce())
        file = self.file(signature, compiled.codegen)
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(file.parent)
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

    def flush(self) -> None:
        """Numba calls this to forget a function's entries; ours never go stale."""

    def enable(self) -> None:
        """Always enabled; Numba's interface wants the method."""

    def disable(self) -> None:
        """Always enabled; Numba's interface wants the method."""
