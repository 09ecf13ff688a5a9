"""The one place that imports numba-cuda: what is there, what is wrong with it, and the remedy. A port to its successor begins here.

Here: `cuda`, Numba's module of that name as numba-cuda gives it, and `need_device`. Not here: what kernels say (cuda_device.py).
"""

from __future__ import annotations

import importlib.util

import numpy as np

from fastmlp.errors import UnavailableError

INSTALL = "pip install 'fastmlp[cuda13]' (cuda12 for drivers older than 580)"


def load_cuda() -> object:
    """Numba's CUDA as package numba-cuda has it; the one that comes with Numba itself is older, and lacks what kernels need.

    Raises
    ------
    UnavailableError : the package is missing, or does not take its place
    """
    if importlib.util.find_spec("numba_cuda") is None:
        raise UnavailableError(f"backend 'cuda' needs numba-cuda: {INSTALL}")
    if not hasattr(np, "row_stack"):  # numba-cuda up to 0.30 asks for it by name; NumPy 2.5 has dropped the alias
        np.vstack = np.vstack  # type: ignore[attr-defined]
    if importlib.util.find_spec("_numba_cuda_redirector") is not None:  # installed into a folder, its .pth file is not read
        import _numba_cuda_redirector  # noqa: F401
    from numba import cuda

    if getattr(cuda, "implementation", "") != "NVIDIA":
        raise UnavailableError(
            f"numba.cuda is Numba's own, not that of numba-cuda; install it into this environment: {INSTALL}"
        )
    return cuda
