"""Interface to an NVIDIA GPU: memory, kernel launches, CUDA graphs and readable errors. It contains no neural-network code.

The tests replace this file with a simulator that has the same methods and runs the same kernels. They also run this file with
a fake driver written in Python, and with NVIDIA's cuda.bindings on a stub of libcuda.so.1.

Source: CUDA Driver API 12 and 13, sections 6.7 to 6.24 (contexts, modules, memory, streams, execution, graphs).

Another library may have made its own CUDA context current in the calling thread. So each method pushes the context of this
runtime first and pops it at the end.
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

# C types of scalar kernel arguments, by the name of their Numba type.
SCALARS: dict[str, Any] = {"int32": ctypes.c_int32, "float32": ctypes.c_float, "uint64": ctypes.c_uint64}
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
OLDEST_DRIVER = 12000  # CUDA 12.0, in the format of cuDriverGetVersion
# Hints for error messages, by the driver function that failed.
HINTS = {"cuModuleLoadData": f"kernels may be newer than the driver: {INSTALL}; "}
# Errors after which every later call in the process fails with the same error: CUDA_ERROR_ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, and
# ILLEGAL_INSTRUCTION to LAUNCH_FAILED.
FAULTS = {700, 702, *range(715, 720)}
FAULT = "a kernel crashed, and this process can no longer use the GPU; "
REMEDY = "use backend 'numba'; `fastmlp doctor` shows what is missing"


def cuda_version(number: int) -> str:
    """Format a CUDA version number as reported by the driver.

    >>> cuda_version(12040)
    '12.4'
    """
    return f"{number // 1000}.{number % 1000 // 10}"


class NoDeviceError(UnavailableError):
    """There is no NVIDIA GPU, or its driver is not installed."""


class Handle:
    """An array in device memory. The memory is freed when this object is deleted."""

    def __init__(self, runtime: Runtime, address: int, size: int, dtype: npt.DTypeLike) -> None:
        self.runtime, self.address, self.size, self.dtype = runtime, address, size, np.dtype(dtype)

    def __del__(self) -> None:
        self.runtime.release("cuMemFree", self.address)

    def values(self) -> list[Any]:
        """Return this array as an argument of a Numba kernel: owner, parent, size, item size, address, shape, strides."""
        sizes = (0, 0, self.size, self.dtype.itemsize, self.address, self.size, self.dtype.itemsize)
        return [ctypes.c_uint64(value) for value in sizes]


def type_of(value: Any) -> str:
    """Return the type of a kernel argument. Python integers are passed to kernels as int32."""
    if isinstance(value, Handle):
        return f"{value.dtype}[]"
    return "int32" if isinstance(value, int) else type(value).__name__


class Graph:
    """A CUDA graph, which starts several launches in one call. It keeps the arrays of its launches allocated."""

    def __init__(self, runtime: Runtime, whole: Any, launches: Sequence[Launch]) -> None:
        self.runtime, self.whole, self.launches = runtime, whole, launches

    def __call__(self) -> None:
        with self.runtime.entered():
            self.runtime.checked_call("cuGraphLaunch", self.whole, self.runtime.stream)

    def __del__(self) -> None:
        self.runtime.release("cuGraphExecDestroy", self.whole)


class Program(NamedTuple):
    """A kernel that is loaded on the device."""

    function: Any
    built: Built


class Launch(NamedTuple):
    """A kernel launch. `together` makes it a cooperative launch, in which all blocks are resident at the same time."""

    program: Any
    blocks: int
    arguments: Sequence[Any]
    together: bool = False


def values_of(launch: Launch) -> list[Any]:
    """Return the arguments of a launch as C scalars.

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
    """Return an array of the addresses of C scalars. The scalars must stay alive while the driver reads the array."""
    return (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])


class Runtime:
    """Interface to device 0, which is the first one in CUDA_VISIBLE_DEVICES if that variable is set.

    name : product name of the GPU
    blocks : number of multiprocessors; this many blocks can always be resident at the same time
    capability : compute capability, as (major, minor)

    Raises
    ------
    NoDeviceError : there is no driver or no GPU
    UnavailableError : a package is missing, the driver is too old, or the GPU fails; every method can raise this error
    """

    def __init__(self, driver: Any = None) -> None:
        self.driver = driver or load_driver()
        try:
            self.checked_call("cuInit", 0)
            device = self.checked_call("cuDeviceGet", 0)
        except RuntimeError as error:  # cuda.bindings raises RuntimeError if the driver is missing
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
        """Return the CUDA version of the driver, the size of device memory in bytes, and the maximum clock rate in Hz."""
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
        """Call a driver function and return its output. Raise UnavailableError if it fails."""
        result, *found = self.call(function, *arguments)
        self.check(function, result)
        return found[0] if len(found) == 1 else found

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a driver function and return its status and output.

        cuda.bindings raises KeyError or ValueError for error codes of newer drivers; this method raises UnavailableError.
        """
        try:
            return getattr(self.driver, function)(*arguments)
        except (KeyError, ValueError) as error:
            reason = f"an error code that cuda-bindings does not define ({error})"
            raise UnavailableError(f"the GPU failed in {function}: {reason}; {REMEDY}") from error

    def try_call(self, function: str, *arguments: Any) -> bool:
        """Call a driver function for cleanup, ignoring errors, and return whether it succeeded."""
        try:
            return int(self.call(function, *arguments)[0]) == 0
        except UnavailableError:
            return False

    def check(self, function: str, result: Any) -> None:
        """Raise UnavailableError with a description of the error unless `result` means success."""
        if int(result) != 0:
            text = self.driver.cuGetErrorString(result)[1] or b"an unknown error"
            remedy = f"{FAULT if int(result) in FAULTS else HINTS.get(function, '')}{REMEDY}"
            raise UnavailableError(f"the GPU failed in {function}: {text.decode()} (error {int(result)}); {remedy}")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Context manager that pushes the CUDA context of this runtime in the calling thread, and pops it at the end."""
        self.checked_call("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            self.try_call("cuCtxPopCurrent")

    def release(self, function: str, what: Any) -> None:
        """Free memory or a graph. Errors are ignored, because the driver frees everything when the process ends."""
        if self.try_call("cuCtxPushCurrent", self.context):
            self.try_call(function, what)
            self.try_call("cuCtxPopCurrent")

    # -------------------------------------------------------------------------------------------- memory

    def put(self, array: Array) -> Handle:
        """Copy an array to newly allocated device memory, as a flat array."""
        handle = self.empty(array.size, array.dtype)
        self.fill(handle, array)
        return handle

    def empty(self, size: int, dtype: npt.DTypeLike) -> Handle:
        """Allocate uninitialised device memory for `size` elements."""
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
        """Copy an array into device memory, starting at element `first`, after earlier launches have finished."""
        whole = np.ascontiguousarray(array, handle.dtype)
        assert first + whole.size <= handle.size
        if whole.size:
            with self.entered():
                self.checked_call("cuMemcpyHtoD", handle.address + first * whole.itemsize, whole.ctypes.data, whole.nbytes)

    def get(self, handle: Handle, first: int = 0, count: int | None = None) -> Array:
        """Copy `count` elements, starting at element `first`, to host memory, after earlier launches have finished."""
        found = np.empty(handle.size - first if count is None else count, handle.dtype)
        if found.size:
            with self.entered():
                self.checked_call("cuMemcpyDtoH", found.ctypes.data, handle.address + first * found.itemsize, found.nbytes)
        return found

    # -------------------------------------------------------------------------------------------- launches

    def program(self, name: str, kind: KernelSpec, shape: Shape | Tile) -> Program:
        """Return a kernel of `programs.KERNELS`, which is compiled and loaded on first use."""
        key = (name, kind, shape)
        if key not in self.programs:
            built = compiled(name, kind, shape, self.capability)
            with self.entered():
                module = self.checked_call("cuModuleLoadData", built.cubin)
                self.programs[key] = Program(self.checked_call("cuModuleGetFunction", module, built.entry.encode()), built)
        return self.programs[key]

    def launch(self, launch: Launch) -> None:
        """Start a kernel without waiting for it. Raise TypeError if an argument has the wrong type."""
        values = values_of(launch)
        pointers = addresses(values)
        shape = (launch.blocks, 1, 1, launch.program.built.threads, 1, 1, 0, self.stream, ctypes.addressof(pointers))
        with self.entered():
            if launch.together:
                self.checked_call("cuLaunchCooperativeKernel", launch.program.function, *shape)
            else:
                self.checked_call("cuLaunchKernel", launch.program.function, *shape, 0)

    def record(self, launches: Sequence[Launch]) -> Graph:
        """Return a CUDA graph that runs these launches in order each time it is called.

        The graph is built node by node, not by stream capture: freeing an array would invalidate a capture, and after an
        error, CUDA would not report the original error but that the capture cannot be ended.
        """
        with self.entered():
            graph = self.checked_call("cuGraphCreate", 0)
            try:
                last: list[Any] = []
                for launch in launches:
                    values = values_of(launch)
                    pointers = addresses(values)  # the driver copies the values when the node is added
                    last = [self.checked_call("cuGraphAddKernelNode", graph, last, len(last), self.node(launch, pointers))]
                whole = self.checked_call("cuGraphInstantiate", graph, 0)
            finally:
                self.try_call("cuGraphDestroy", graph)
        return Graph(self, whole, launches)

    def node(self, launch: Launch, pointers: Any) -> Any:
        """Return the parameters of a graph node for a launch."""
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
    """Return the runtime that all engines of this process share."""
    return Runtime()
