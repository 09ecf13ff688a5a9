"""Selection of the compute engine: `make_engine` constructs an engine by name and imports only the module of that engine."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform
import warnings
from collections.abc import Callable, Iterable

import numpy as np

from fastmlp import __version__
from fastmlp.engines.base import PRECISIONS, Engine, EngineSpec
from fastmlp.engines.jit import REMEDY, check_jit, jit_is_disabled
from fastmlp.errors import ConfigError, UnavailableError
from fastmlp.nn.names import canonical_name


def make_numpy(spec: EngineSpec) -> Engine:
    """Return the NumPy engine, which runs the reference implementation."""
    from fastmlp.engines.numpy_engine import NumpyEngine

    return NumpyEngine(spec)


def make_numba(spec: EngineSpec) -> Engine:
    """Return the compiled CPU engine."""
    check_jit("backend 'numba'")
    from fastmlp.engines.cpu.engine import NumbaEngine

    return NumbaEngine(spec)


def make_torch(spec: EngineSpec) -> Engine:
    """Return the PyTorch engine, which `auto` never selects."""
    from fastmlp.engines.torch_engine import TorchEngine

    return TorchEngine(spec)


def make_cuda(spec: EngineSpec) -> Engine:
    """Return the engine for NVIDIA GPUs."""
    from fastmlp.engines.cuda.engine import CudaEngine

    return CudaEngine(spec)


Version = Callable[[str], str | None]  # returns the version of a package, or None if it is not installed
BACKENDS: dict[str, Callable[[EngineSpec], Engine]] = {
    "numpy": make_numpy,
    "numba": make_numba,
    "torch": make_torch,
    "cuda": make_cuda,
}
CHOICES = ("auto", *BACKENDS)


def fastest(spec: EngineSpec) -> str:
    """Return the name of the engine that `auto` selects: the fastest one that supports the dtype and runs on this machine."""
    from fastmlp.engines.cuda import compiler_is_installed

    if np.dtype(spec.dtype) != np.float32:
        return "numpy"
    if jit_is_disabled():
        warn_of_disabled_jit()
        return "numpy"
    if not compiler_is_installed():  # checked first, to avoid importing the other CUDA modules
        return "numba"
    from fastmlp.engines.cuda.engine import usable

    return "cuda" if usable() else "numba"


@functools.cache
def warn_of_disabled_jit() -> None:
    """Issue a warning, once per process."""
    message = f"backend 'auto' selects the NumPy engine, which is slower, because Numba's JIT compiler is disabled: {REMEDY}"
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def make_engine(backend: str, spec: EngineSpec) -> Engine:
    """Return an engine for a spec.

    `auto` selects the fastest engine that runs on this machine. It selects the GPU only if a test kernel runs on it, and the
    NumPy engine if Numba's JIT compiler is disabled.

    Warns
    -----
    RuntimeWarning : `auto` selects the CPU because the test kernel failed on the GPU, or the NumPy engine because Numba's
        JIT compiler is disabled

    Raises
    ------
    ConfigError : an unknown name, or a dtype or precision that the engine does not support
    UnavailableError : a package or device that the engine needs is missing, or Numba's JIT compiler is disabled
    """
    backend = canonical_name("backend", backend, CHOICES)
    precision = canonical_name("precision", spec.precision, PRECISIONS)
    spec = spec if precision == spec.precision else dataclasses.replace(spec, precision=precision)
    if precision != "float32" and backend != "cuda":
        raise ConfigError(f"precision {precision} needs backend cuda, not {backend}", settings=("precision", "backend"))
    if backend == "auto":
        backend = fastest(spec)
    try:
        return BACKENDS[backend](spec)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("fastmlp"):
            raise
        raise UnavailableError(f"backend {backend!r} needs {error.name}: pip install {error.name}") from error


def installed_version(package: str) -> str | None:
    """Return the version of a package without importing it, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, fastmlp and those of `packages` that are installed, without importing them."""
    found = {package: installed_version(package) for package in packages}
    known = {package: version for package, version in found.items() if version is not None}
    return {"python": platform.python_version(), "fastmlp": __version__} | known
