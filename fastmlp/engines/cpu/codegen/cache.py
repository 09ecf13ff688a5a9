"""Cache of compiled kernels on disk, and why it replaces Numba's own cache.

Numba's `cache=True` keys an entry by the bytecode of one function. It serves stale machine code when a formula or an
intrinsic in another file changes, dies on a truncated file, and writes beside the installed package. Here

- the key is a hash over every source file that takes part in a kernel, the versions of Python, Numba and llvmlite, the
  processor as LLVM sees it, the kernel's name and the signature: what changed is simply not found;
- files are checked before anything is unpickled (engines/kernel_cache.py).

The entries are pickles, because that is how Numba serialises machine code. They are the only ones fastmlp loads
without restriction, and never come from the user's hands.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import platform
from pathlib import Path
from typing import Any

from fastmlp.engines.kernel_cache import cache_folder, read_entry, sources_hash, write_entry

# Folders and files whose sources affect a kernel; a test compares them with the imports of the kernels.
SOURCES = (
    "nn",
    "engines/interrupts.py",
    "engines/kernel_cache.py",
    "engines/cpu/plan.py",
    "engines/cpu/codegen",
    "engines/cpu/kernels",
)
# Settings of Numba that change the code it makes.
NUMBA_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")


@functools.cache
def build_hash() -> str:
    """Hash of the kernels' sources and of the versions that compile them."""
    import llvmlite
    import numba

    settings = [getattr(numba.config, name) for name in NUMBA_SETTINGS]
    text = f"{platform.python_version()} {numba.__version__} {llvmlite.__version__} {settings}"
    return sources_hash(SOURCES, text)


class KernelCache:
    """Numba's interface of a dispatcher's cache, over one file per kernel, signature and processor.

    Replaces `dispatcher._cache`; `hits` and `misses` count.
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

        # All that machine code needs. `refresh` would also load modules for compilation, such as SciPy's linear algebra: 0.3 s.
        rtsys.initialize(target_context)
        body = read_entry(self.file(signature, target_context.codegen()))
        if body is None:
            self.misses += 1
            return None
        self.hits += 1
        return CompileResult._rebuild(target_context, *pickle.loads(body))  # noqa: S301 - see the module docstring

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Save the compiled function if the folder can be used."""
        from numba.core.serialize import dumps

        write_entry(self.file(signature, compiled.codegen), dumps(compiled._reduce()))

    def flush(self) -> None:
        """Called by Numba to remove the entries of a function; entries of this cache never become stale."""

    def enable(self) -> None:
        """Always enabled; Numba's interface requires the method."""

    def disable(self) -> None:
        """Always enabled; Numba's interface requires the method."""
