"""Disk cache of compiled CPU kernels. It replaces Numba's own cache, which has three problems.

Numba's `cache=True` detects changes only in the source file of the function itself. It returns stale machine code after a
change of a formula or an intrinsic in another file, it fails on a truncated file, and it writes next to the installed
package. In this cache:

- The key is a hash of every source file that affects a kernel, the versions of Python, Numba and llvmlite, the processor's
  name and features as reported by LLVM, the name of the kernel, and its signature. If any of these changes, the kernel is
  compiled again.
- The integrity of a file is checked before it is unpickled (engines/kernel_cache.py).

The entries are pickles, because Numba serializes machine code in this format. They are the only files that fastmlp unpickles
without restrictions. Only fastmlp itself writes them.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import platform
from pathlib import Path
from typing import Any

from fastmlp.engines.cpu.codegen.observer import notify
from fastmlp.engines.kernel_cache import cache_folder, read_entry, sources_hash, write_entry

# Folders and files whose sources affect a kernel; a test compares them with the imports of the kernels.
SOURCES = (
    "nn",
    "engines/functions.py",
    "engines/interrupts.py",
    "engines/kernel_cache.py",
    "engines/cpu/plan.py",
    "engines/cpu/codegen",
    "engines/cpu/kernels",
)
# Numba settings that change the generated code.
NUMBA_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")


@functools.cache
def build_hash() -> str:
    """Return the hash of the kernel sources, the Numba settings, and the versions of Python, Numba and llvmlite."""
    import llvmlite
    import numba

    settings = [getattr(numba.config, name) for name in NUMBA_SETTINGS]
    text = f"{platform.python_version()} {numba.__version__} {llvmlite.__version__} {settings}"
    return sources_hash(SOURCES, text)


class KernelCache:
    """Replacement for Numba's `dispatcher._cache`, with one file per kernel, signature and processor.

    `hits` and `misses` count the kernels that were found in the cache and those that were not.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.cache_path = str(cache_folder())
        self.hits = 0
        self.misses = 0

    def file(self, signature: Any, codegen: Any) -> Path:
        """Return the path of the file for this signature and processor."""
        text = f"{build_hash()} {self.name} {signature} {codegen.magic_tuple()}"
        return Path(self.cache_path) / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.kernel"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the compiled function from the cache, or None if it is not in the cache."""
        from numba.core.compiler import CompileResult
        from numba.core.runtime import rtsys  # type: ignore[attr-defined]

        # Machine code needs only this initialization. `target_context.refresh()` would take 0.3 s, because it also loads
        # modules that only the compiler needs, such as SciPy's linear algebra.
        rtsys.initialize(target_context)
        body = read_entry(self.file(signature, target_context.codegen()))
        if body is None:
            self.misses += 1
            notify()
            return None
        self.hits += 1
        return CompileResult._rebuild(target_context, *pickle.loads(body))  # noqa: S301 - see the module docstring

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Write the compiled function to the cache, if the cache folder can be used."""
        from numba.core.serialize import dumps

        write_entry(self.file(signature, compiled.codegen), dumps(compiled._reduce()))

    def flush(self) -> None:
        """Do nothing. Numba calls this method to remove stale entries, but entries of this cache never become stale."""

    def enable(self) -> None:
        """Do nothing: the cache is always enabled. Numba requires this method."""

    def disable(self) -> None:
        """Do nothing: the cache is always enabled. Numba requires this method."""
