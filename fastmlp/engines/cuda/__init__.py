"""Import of NVIDIA's Python packages: numba-cuda, which compiles kernels, and cuda.bindings, which calls the CUDA driver.

Only this file, compiler.py and kernels/device.py depend on numba-cuda. To use another compiler, only they must be changed.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from fastmlp.errors import UnavailableError

DROPPED = "row_stack"  # alias of vstack, removed in NumPy 2.5 but used by numba-cuda up to 0.30
INSTALL = "pip install 'fastmlp[cuda13]', or fastmlp[cuda12] for a driver older than 580"


def compiler_is_installed() -> bool:
    """Return whether numba-cuda is installed."""
    return importlib.util.find_spec("numba_cuda") is not None


def load_cuda() -> Any:
    """Import `numba.cuda` from numba-cuda. Numba's own `numba.cuda` is older and lacks required features.

    Raises
    ------
    UnavailableError : numba-cuda is not installed, or Numba's own module is imported instead
    """
    if not compiler_is_installed():
        raise UnavailableError(f"compiling kernels for a GPU requires numba-cuda, which is not installed: {INSTALL}")
    if not hasattr(np, DROPPED):
        setattr(np, DROPPED, np.vstack)
    if importlib.util.find_spec("_numba_cuda_redirector") is not None:  # its .pth file is not read in PYTHONPATH folders
        importlib.import_module("_numba_cuda_redirector")
    from numba import cuda

    if getattr(cuda, "implementation", "") != "NVIDIA":
        raise UnavailableError(f"Numba's own numba.cuda was imported instead of numba-cuda; reinstall numba-cuda: {INSTALL}")
    return cuda


def load_driver() -> Any:
    """Import `cuda.bindings.driver`, the module with the driver functions such as cuMemAlloc. numba-cuda depends on it.

    Raises
    ------
    UnavailableError : cuda-bindings is not installed
    """
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        raise UnavailableError(f"backend 'cuda' needs cuda-bindings, which comes with numba-cuda: {INSTALL}")
    from cuda.bindings import driver

    return driver
