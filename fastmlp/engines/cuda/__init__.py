"""Imports of NVIDIA's Python packages: numba-cuda, the compiler, and cuda.bindings, the driver API.

Only this file imports them. A port to a successor of numba-cuda changes this file, kernels/device.py and compiler.py.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from fastmlp.errors import UnavailableError

DROPPED = "row_stack"  # alias of vstack that NumPy 2.5 removed and numba-cuda up to 0.30 uses
INSTALL = "pip install 'fastmlp[cuda13]', or fastmlp[cuda12] for a driver older than 580"


def compiler_is_installed() -> bool:
    """Whether numba-cuda is installed."""
    return importlib.util.find_spec("numba_cuda") is not None


def load_cuda() -> Any:
    """Return `numba.cuda` of numba-cuda; the one included in Numba is older and lacks features that the kernels need.

    Raises
    ------
    UnavailableError : the package is missing, or does not replace Numba's own
    """
    if not compiler_is_installed():
        raise UnavailableError(f"kernels for a GPU are compiled by numba-cuda, which is missing: {INSTALL}")
    if not hasattr(np, DROPPED):
        setattr(np, DROPPED, np.vstack)
    if importlib.util.find_spec("_numba_cuda_redirector") is not None:  # Python ignores its .pth file in folders on PYTHONPATH
        importlib.import_module("_numba_cuda_redirector")
    from numba import cuda

    if getattr(cuda, "implementation", "") != "NVIDIA":
        raise UnavailableError(f"numba.cuda is Numba's own, not that of numba-cuda; reinstall it: {INSTALL}")
    return cuda


def load_driver() -> Any:
    """Return the module of the driver's functions, such as cuMemAlloc, from cuda.bindings, a dependency of numba-cuda.

    Raises
    ------
    UnavailableError : the package is missing
    """
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        raise UnavailableError(f"backend 'cuda' needs cuda-bindings, which comes with numba-cuda: {INSTALL}")
    from cuda.bindings import driver

    return driver
