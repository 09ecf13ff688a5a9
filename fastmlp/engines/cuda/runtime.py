"""Interface to an NVIDIA GPU: memory, launches, graphs, and readable errors. It does not depend on networks.

A simulator in the tests has the same methods and runs the same kernels. Tests also run this file with a fake driver in Python,
and with a stub libcuda.so.1 under NVIDIA's cuda.bindings.

Source: CUDA Driver API 12 and 13, sections 6.7 to 6.24 (contexts, modules, memory, streams, execution, graphs).

The calling thread may use the CUDA context of another library, so each method pushes its own context and pops it at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.engines.cuda import INSTALL, load_driver
from fastmlp.engines.cuda.compiler import Built, compiled
from fastmlp.engines.cuda.kernels.programs import KernelSpec, Shape
from fastmlp.engines.cuda.kernels.tiles import Tile
from fastmlp.errors import UnavailableError

Array = npt.NDArray[Any]

# C types of scalars, by name.
SCALARS: dict[str, Any] = {"int32": ctypes.c_int32, "float32": ctypes.c_float, "uint64": ctypes.c_uint64}
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
OLDEST_DRIVER = 12000  # CUDA 12.0, in the format of cuDriverGetVersion
# Hints, by the function that failed.
HINTS = {"cuModuleLoadData": f"kernels may be newer than the driver: {INSTALL}; "}
# CUDA_ERROR_ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, ILLEGAL_INSTRUCTION to LAUNCH_FAILED: every later call returns the same error.
FAULTS = {700, 702, *range(715, 720)}
FAULT = "a kernel crashed, and this process can no longer use the GPU; "
REMEDY = "use backend 'numba'; `fastmlp doctor` shows what is missing"


def cuda_version(number: int) -> str:
    """Format a version number of the driver.

    >>> cuda_version(12040)
    '12.4'
    """
    return f"{number // 1000}.{number % 1000 // 10}"


class NoDeviceError(UnavailableError):
    """There is no GPU, or no driver for it, as on most machines."""


class Handle:
    """An array in device memory, which is freed with this object."""

    def __init__(self, runtime: Runtime, address: int, size: int, dtype: npt.DTypeLike) -> None:
        self.runtime, self.address, self.size, self.dtype = runtime, address, size, np.dtype(dtype)

    def __del__(self) -> None:
        self.runtime.release("cuMemFree", self.address)

    def values(self) -> list[Any]:
        """An array argument of a Numba kernel: owner, parent, elements, item size, address, shape, strides."""
        sizes = (0, 0, self.size, self.dtype.itemsize, self.address, self.size, self.dtype.itemsize)
        return [ctypes.c_uint64(value) for value in sizes]


def type_of(value: Any) -> str:
    """The type of an argument; Python integers are passed to kernels as int32."""
    if isinstance(value, Handle):
        return f"{value.dtype}[]"
    return "int32" if isinstance(value, int) else type(value).__name__


class Graph:
    """Launches that are started together; holds them so that their arrays stay allocated."""

    def __init__(self, runtime: Runtime, whole: Any, launches: Sequence[Launch]) -> None:
        self.runtime, self.whole, self.launches = runtime, whole, launches

    def __call__(self) -> None:
        with self.runtime.entered():
            self.runtime.checked_call("cuGraphLaunch", self.whole, self.runtime.stream)

    def __del__(self) -> None:
        self.runtime.release("cuGraphExecDestroy", self.whole)


class Program(NamedTuple):
    """A loaded kernel."""

    function: Any
    built: Built


class Launch(NamedTuple):
    """A launch of a kernel; `together` : cooperative, all blocks must be resident at once."""

    program: Any
    blocks: int
    arguments: Sequence[Any]
    together: bool = False


def values_of(launch: Launch) -> list[Any]:
    """The arguments of a launch as C scalars.

    Raises
    ------
    TypeError : an argument does not have the type that the kernel was compiled for
    """
    values: list[Any] = []
    for number, (value, wanted) in enumerate(zip(launch.arguments, launch.program.built.arguments, strict=True)):
        if type_of(value) != wanted:
            raise TypeError(f"argument {number} of a kernel is {type_of(value)}, not {wanted}")
        values += value.values() if isinstance(value, Handle) else [SCALARS[wanted](value)]
    return values


def addresses(values: Sequence[Any]) -> Any:
    """An array of the addresses of C scalars, which must stay alive while it is read."""
    return (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])


class Runtime:
    """The first device in CUDA_VISIBLE_DEVICES.

    name : of the card
    blocks : number of multiprocessors, which is a number of blocks that can always be resident at once
    capability : compute capability

    Raises
    ------
    NoDeviceError : no driver, or no device
    UnavailableError : here and in every method: a package is missing, the driver is too old, or the device fails
    """

    def __init__(self, driver: Any = None) -> None:
        self.driver = driver or load_driver()
        try:
            self.checked_call("cuInit", 0)
            device = self.checked_call("cuDeviceGet", 0)
        except RuntimeError as error:  # of the driver, or of the bindings if the driver is missing or lacks functions
            reason = " ".join(str(error).removesuffix(f"; {REMEDY}").split())
            raise NoDeviceError(f"backend 'cuda' needs an NVIDIA GPU and its driver ({reason}); {REMEDY}") from error
        if (version := int(self.checked_call("cuDriverGetVersion"))) < OLDEST_DRIVER:
            found, needed = cuda_version(version), cuda_version(OLDEST_DRIVER)
            raise UnavailableError(f"the driver supports CUDA up to {found}, but {needed} is needed; update it, or {REMEDY}")
        attributes = self.driver.CUdevice_attribute
        major, minor, blocks = (
            int(self.checked_call("cuDeviceGetAttribute", getattr(attributes, f"CU_DEVICE_ATTRIBUTE_{name}"), device))
            for name in ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "MULTIPROCESSOR_COUNT")
        )
        self.capability, self.blocks = (major, minor), blocks
        self.name = self.checked_call("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
        self.context = self.checked_call("cuDevicePrimaryCtxRetain", device)
        with self.entered():
            self.stream = self.checked_call("cuStreamCreate", 0)
        self.programs: dict[Any, Program] = {}

    def facts(self) -> dict[str, Any]:
        """CUDA version of the driver, bytes of device memory, and highest clock rate in Hz."""
        version, clock = (
            int(self.checked_call("cuDriverGetVersion")),
            self.driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_CLOCK_RATE,
        )
        device = self.checked_call("cuDeviceGet", 0)
        return {
            "cuda": cuda_version(version),
            "memory_bytes": int(self.checked_call("cuDeviceTotalMem", device)),
            "clock_hz": 1000 * int(self.checked_call("cuDeviceGetAttribute", clock, device)),
        }

    def checked_call(self, function: str, *arguments: Any) -> Any:
        """Call a driver function and return its output; raise UnavailableError if it fails."""
        result, *found = self.call(function, *arguments)
        self.check(function, result)
        return found[0] if len(found) == 1 else found

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a driver function and return its status and output.

        The bindings raise on error codes of newer drivers that they do not know; this raises UnavailableError.
        """
        try:
            return getattr(self.driver, function)(*arguments)
        except (KeyError, ValueError) as error:
            reason = f"an error that cuda-bindings do not know ({error})"
            raise UnavailableError(f"the GPU failed in {function}: {reason}; {REMEDY}") from error

    def try_call(self, function: str, *arguments: Any) -> bool:
        """Call a driver function and ignore errors, which after a fault repeat the first one; return whether it succeeded."""
        try:
            return int(self.call(function, *arguments)[0]) == 0
        except UnavailableError:
            return False

    def check(self, function: str, result: Any) -> None:
        """Raise UnavailableError with a description unless the status is success."""
        if int(result) != 0:
            text = self.driver.cuGetErrorString(result)[1] or b"an unknown error"
            remedy = f"{FAULT if int(result) in FAULTS else HINTS.get(function, '')}{REMEDY}"
            raise UnavailableError(f"the GPU failed in {function}: {text.decode()} (error {int(result)}); {remedy}")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Context manager that pushes the CUDA context of the calling thread and pops it at the end."""
        self.checked_call("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            self.try_call("cuCtxPopCurrent")

    def release(self, function: str, what: Any) -> None:
        """Free memory or a graph. Ignores errors: after a fault, or when the process ends, everything is freed anyway."""
        if self.try_call("cuCtxPushCurrent", self.context):
            self.try_call(function, what)
            self.try_call("cuCtxPopCurrent")

    # -------------------------------------------------------------------------------------------- memory

    def put(self, array: Array) -> Handle:
        """Copy an array to device memory, flat."""
        handle = self.empty(array.size, array.dtype)
        self.fill(handle, array)
        return handle

    def empty(self, size: int, dtype: npt.DTypeLike) -> Handle:
        """Uninitialised memory for `size` elements."""
        wanted = max(1, size) * np.dtype(dtype).itemsize
        with self.entered():
            result, address = self.call("cuMemAlloc", wanted)
            if int(result) == OUT_OF_MEMORY:
                free, whole = self.checked_call("cuMemGetInfo")
                raise UnavailableError(
                    f"the GPU's memory is full: {wanted:,} bytes needed, {free:,} of {whole:,} free; "
                    "use fewer rows, a smaller batch size, or backend 'numba'"
                )
            self.check("cuMemAlloc", result)
        return Handle(self, int(address), size, dtype)

    def fill(self, handle: Handle, array: Array, first: int = 0) -> None:
        """Copy an array to the elements from `first` on; waits for earlier launches."""
        whole = np.ascontiguousarray(array, handle.dtype)
        assert first + whole.size <= handle.size
        if whole.size:
            with self.entered():
                self.checked_call("cuMemcpyHtoD", handle.address + first * whole.itemsize, whole.ctypes.data, whole.nbytes)

    def get(self, handle: Handle, first: int = 0, count: int | None = None) -> Array:
        """Copy `count` elements from `first` on to host memory; waits for earlier launches."""
        found = np.empty(handle.size - first if count is None else count, handle.dtype)
        if found.size:
            with self.entered():
                self.checked_call("cuMemcpyDtoH", found.ctypes.data, handle.address + first * found.itemsize, found.nbytes)
        return found

    # -------------------------------------------------------------------------------------------- launches

    def program(self, name: str, kind: KernelSpec, shape: Shape | Tile) -> Program:
        """Load a kernel of `programs.KERNELS`, once."""
        key = (name, kind, shape)
        if key not in self.programs:
            built = compiled(name, kind, shape, self.capability)
            with self.entered():
                module = self.checked_call("cuModuleLoadData", built.cubin)
                self.programs[key] = Program(self.checked_call("cuModuleGetFunction", module, built.entry.encode()), built)
        return self.programs[key]

    def launch(self, launch: Launch) -> None:
        """Start a kernel; raises like `values_of`."""
        values = values_of(launch)
        pointers = addresses(values)
        shape = (launch.blocks, 1, 1, launch.program.built.threads, 1, 1, 0, self.stream, ctypes.addressof(pointers))
        with self.entered():
            if launch.together:
                self.checked_call("cuLaunchCooperativeKernel", launch.program.function, *shape)
            else:
                self.checked_call("cuLaunchKernel", launch.program.function, *shape, 0)

    def record(self, launches: Sequence[Launch]) -> Graph:
        """A CUDA graph that runs these launches in order when it is called.

        The graph is built node by node. A stream capture would be invalidated by freeing an array, and after an error it would
        report the failure to end the capture instead of the first error.
        """
        with self.entered():
            graph = self.checked_call("cuGraphCreate", 0)
            try:
                last: list[Any] = []
                for launch in launches:
                    values = values_of(launch)
                    pointers = addresses(values)  # read, like the values, while the node is added
                    last = [self.checked_call("cuGraphAddKernelNode", graph, last, len(last), self.node(launch, pointers))]
                whole = self.checked_call("cuGraphInstantiate", graph, 0)
            finally:
                self.try_call("cuGraphDestroy", graph)
        return Graph(self, whole, launches)

    def node(self, launch: Launch, pointers: Any) -> Any:
        """Parameters of a graph node for a launch."""
        found = self.driver.CUDA_KERNEL_NODE_PARAMS()
        found.func, found.sharedMemBytes, found.kernelParams = launch.program.function, 0, ctypes.addressof(pointers)
        found.gridDimX, found.gridDimY, found.gridDimZ = launch.blocks, 1, 1
        found.blockDimX, found.blockDimY, found.blockDimZ = launch.program.built.threads, 1, 1
        return found

    def wait(self) -> None:
        """Wait for all launches to finish."""
        with self.entered():
            self.checked_call("cuStreamSynchronize", self.stream)


@functools.cache
def default_runtime() -> Runtime:
    """The device of this process."""
    return Runtime()
