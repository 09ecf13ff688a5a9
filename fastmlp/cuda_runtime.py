"""An NVIDIA GPU as the engine sees it: its memory, its size, and launches. No arithmetic, and nothing of networks.

A simulator in the tests has the same methods and runs the same kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.cuda_shim import INSTALL, load_cuda
from fastmlp.errors import UnavailableError

Array = npt.NDArray[Any]


class Runtime:
    """The first device that CUDA_VISIBLE_DEVICES leaves.

    words : what kernels are made with
    blocks : multiprocessors, as many blocks as are at work at once whatever they need
    name : of the card

    Raises
    ------
    UnavailableError : no package, no driver, no device
    """

    def __init__(self) -> None:
        cuda: Any = load_cuda()
        with explained(cuda):
            device = cuda.get_current_device()
            self.blocks = int(device.MULTIPROCESSOR_COUNT)
            self.name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
        from fastmlp import cuda_device

        self.cuda, self.words = cuda, cuda_device

    def put(self, array: Array) -> Any:
        """A copy in the device's memory."""
        with explained(self.cuda):
            return self.cuda.to_device(np.ascontiguousarray(array))

    def fill(self, handle: Any, array: Array) -> None:
        """Overwrite what `put` gave."""
        with explained(self.cuda):
            handle.copy_to_device(np.ascontiguousarray(array))

    def get(self, handle: Any) -> Array:
        """A copy in the host's memory; waits for the launches before."""
        with explained(self.cuda):
            found: Array = handle.copy_to_host()
            return found

    def launch(self, kernel: Any, blocks: int, threads: int, arguments: Sequence[Any], together: bool = False) -> None:
        """Start a kernel; `together` asks that all its blocks are at work at once, or fails.

        Whole numbers of Python are int32 to a kernel.
        """
        typed = [np.int32(value) if isinstance(value, int) else value for value in arguments]
        with explained(self.cuda):
            signature = tuple(self.cuda.typeof(value) for value in typed)
            if signature not in kernel.overloads:
                kernel.compile(signature)
                kernel.overloads[signature].cooperative = together
            kernel[blocks, threads](*typed)


@contextmanager
def explained(cuda: Any) -> Iterator[None]:
    """Errors of the driver as one line with the remedy."""
    from numba.cuda.cudadrv.driver import CudaAPIError
    from numba.cuda.cudadrv.error import CudaSupportError

    try:
        yield
    except CudaSupportError as error:
        reason = " ".join(str(error).split())
        raise UnavailableError(f"backend 'cuda' needs an NVIDIA GPU and its driver ({reason}); take --backend numba") from error
    except CudaAPIError as error:
        raise UnavailableError(f"the GPU failed: {' '.join(str(error).split())}; take --backend numba") from error


__all__ = ["INSTALL", "Runtime"]
