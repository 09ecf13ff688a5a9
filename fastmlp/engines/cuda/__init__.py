"""The one place that imports what NVIDIA publishes for Python: numba-cuda, which compiles, and cuda.bindings, which drives.

A port to numba-cuda's successor begins here, and ends in kernels/device.py and compiler.py. Not here: what kernels say, and
what is asked of a device.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from fastmlp.errors import UnavailableError

DROPPED = "row_stack"  # an alias of vstack that NumPy 2.5 no longer has, and numba-cuda up to 0.30 asks for
INSTALL = "pip install 'fastmlp[cuda13]', or fastmlp[cuda12] for a driver older than 580"


def compiler_is_installed() -> bool:
    """Whether numba-cuda is there."""
    return importlib.util.find_spec("numba_cuda") is not None


def load_cuda() -> Any:
    """Numba's CUDA as numba-cuda has it; the one that comes with Numba itself is older, and lacks what kernels need.

    Raises
    ------
    UnavailableError : the package is missing, or does not take its place
    """
    if not compiler_is_installed():
        raise UnavailableError(f"kernels for a GPU are compiled by numba-cuda, which is missing: {INSTALL}")
    if not hasattr(np, DROPPED):
        setattr(np, DROPPED, np.vstack)
    if importlib.util.find_spec("_numba_cuda_redirector") is not None:  # in a folder on PYTHONPATH its .pth file is not read
        importlib.import_module("_numba_cuda_redirector")
    from numba import cuda

    if getattr(cuda, "implementation", "") != "NVIDIA":
        raise UnavailableError(f"numba.cuda is Numba's own, not that of numba-cuda; install it anew: {INSTALL}")
    return cuda


def load_driver() -> Any:
    """The driver's functions, such as cuMemAlloc, by cuda.bindings, which comes with numba-cuda and with PyTorch.

    Raises
    ------
    UnavailableError : the package is missing
    """
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        raise UnavailableError(f"backend 'cuda' needs cuda-bindings, which comes with numba-cuda: {INSTALL}")
    from cuda.bindings import driver

    return driver
