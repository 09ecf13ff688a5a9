"""The numerical environment of an engine: what determines the rounding of its results, apart from the settings."""

from __future__ import annotations

from typing import Any

from fastmlp.engines import installed_version
from fastmlp.engines.base import Engine

# Packages whose version may change the code that an engine runs.
PACKAGES = {"numpy": ("numpy",), "numba": ("numba", "llvmlite"), "torch": ("torch",), "cuda": ("numba-cuda",)}
VECTORS = {16: "AVX-512", 8: "AVX2", 4: "128-bit vectors"}  # by float32 values per vector register


def numerical_environment(engine: Engine) -> dict[str, str]:
    """Return the engine, the instruction set or GPU, and the versions of the packages that compute, by name.

    Two training runs with the same entries and the same settings are bitwise identical. Otherwise the results agree within
    rounding errors, which grow during training.
    """
    versions = {package: installed_version(package) or "unknown" for package in PACKAGES.get(engine.name, ())}
    return {"backend": engine.name, "processor": processor(engine), **versions}


def processor(engine: Any) -> str:
    """Return the instruction set that an engine uses on the CPU, or the name of its GPU."""
    if engine.name == "numba":
        return VECTORS[engine.lanes]
    if engine.name == "cuda":
        return str(engine.runtime.name)
    if engine.name == "torch":
        from torch.backends.cpu import get_cpu_capability

        return str(get_cpu_capability())
    from threadpoolctl import threadpool_info

    # The library of matrix products in NumPy selects its kernels by the processor when it is loaded.
    found = {library.get("architecture") for library in threadpool_info() if library.get("user_api") == "blas"}
    return ", ".join(sorted(map(str, found))) or "unknown"
