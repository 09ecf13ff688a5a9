"""A fake CUDA driver that needs no GPU: it implements the functions of cuda.bindings.driver that cuda/runtime.py calls.

Device memory is host memory, so addresses are valid, and kernels run in the simulator. As on a GPU, kernel arguments are read
from the addresses in the launch, in the layout of Numba's kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastmlp.engines.cuda.compiler import Built, Capability
from fastmlp.engines.cuda.engine import TILES
from fastmlp.engines.cuda.kernels.programs import KERNELS, KernelSpec, Shape, arguments_of
from fastmlp.engines.cuda.kernels.tiles import Tile
from support.cuda_simulator import ALL_LANES, Kernel

WHOLE_MEMORY = 1 << 30


class Result(IntEnum):
    """CUresult."""

    SUCCESS = 0
    OUT_OF_MEMORY = 2
    NO_DEVICE = 100
    INVALID_CONTEXT = 201
    NO_BINARY_FOR_GPU = 209
    LAUNCH_FAILED = 719


class Attribute(IntEnum):
    """CUdevice_attribute."""

    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16


class Node:
    """CUDA_KERNEL_NODE_PARAMS, with any attributes."""


class Loaded(NamedTuple):
    """A simulated kernel and the types of its arguments."""

    kernel: Kernel
    arguments: tuple[str, ...]


# C type of a scalar kernel argument, and its type in the simulator.
SCALARS: dict[str, tuple[Any, Any]] = {
    "int32": (ctypes.c_int32, int),
    "float32": (ctypes.c_float, np.float32),
    "uint64": (ctypes.c_uint64, np.uint64),
}


# Prefixes of driver functions that need a current CUDA context.
OF_A_CONTEXT = ("cuMem", "cuStream", "cuModule", "cuLaunch", "cuGraphInst", "cuGraphExec", "cuGraphLaunch")


class FakeDriver:
    """A fake driver of a GPU with `WHOLE_MEMORY` bytes of memory.

    fails : functions that return an error, with the error; calls : names of all called functions
    contexts : stack of contexts, the current one last; graphs : number of live graphs and executable graphs
    """

    CUdevice_attribute, CUDA_KERNEL_NODE_PARAMS = Attribute, Node

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.modules: dict[bytes, Loaded] = {}
        self.contexts: list[str] = []
        self.fails: dict[str, Result] = {}
        self.calls: list[str] = []
        self.graphs = 0
        self.version = 13000

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and not name.startswith("cuGetError"):
            self.calls.append(name)
            if name in self.fails:
                return lambda *arguments: (self.fails[name], None)
            if name.startswith(OF_A_CONTEXT) and self.contexts[-1:] != ["context"]:
                return lambda *arguments: (Result.INVALID_CONTEXT, None)
        return super().__getattribute__(name)

    def cuInit(self, flags: int) -> Any:
        return (Result.SUCCESS,)

    def cuDriverGetVersion(self) -> Any:
        return Result.SUCCESS, self.version

    def cuGetErrorString(self, result: Result) -> Any:
        return Result.SUCCESS, result.name.lower().replace("_", " ").encode()

    def cuDeviceGet(self, ordinal: int) -> Any:
        return Result.SUCCESS, 7

    def cuDeviceGetAttribute(self, attribute: Attribute, device: int) -> Any:
        values = {Attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: 3}
        major = attribute is Attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return Result.SUCCESS, values.get(attribute, 9 if major else 0)

    def cuDeviceGetName(self, length: int, device: int) -> Any:
        return Result.SUCCESS, b"A card\0\0"

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return Result.SUCCESS, "context"

    def cuCtxPushCurrent(self, context: str) -> Any:
        self.contexts.append(context)
        return (Result.SUCCESS,)

    def cuCtxPopCurrent(self) -> Any:
        return Result.SUCCESS, self.contexts.pop()

    def cuStreamCreate(self, flags: int) -> Any:
        return Result.SUCCESS, "stream"

    def cuStreamSynchronize(self, stream: Any) -> Any:
        return (Result.SUCCESS,)

    # -------------------------------------------------------------------------------------------- memory

    def used(self) -> int:
        return sum(len(block) for block in self.memory.values())

    def cuMemAlloc(self, size: int) -> Any:
        if self.used() + size > WHOLE_MEMORY:
            return Result.OUT_OF_MEMORY, None
        block = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN as float32
        self.memory[ctypes.addressof(block)] = block
        return Result.SUCCESS, ctypes.addressof(block)

    def cuMemFree(self, address: int) -> Any:
        del self.memory[address]
        return (Result.SUCCESS,)

    def cuMemGetInfo(self) -> Any:
        return Result.SUCCESS, WHOLE_MEMORY - self.used(), WHOLE_MEMORY

    def cuMemcpyHtoD(self, target: int, source: int, size: int) -> Any:
        assert self.inside(target, size)
        ctypes.memmove(target, source, size)
        return (Result.SUCCESS,)

    def cuMemcpyDtoH(self, target: int, source: int, size: int) -> Any:
        assert self.inside(source, size)
        ctypes.memmove(target, source, size)
        return (Result.SUCCESS,)

    def inside(self, address: int, size: int) -> bool:
        """Return whether a range of addresses lies inside one allocation."""
        return any(first <= address and address + size <= first + len(block) for first, block in self.memory.items())

    # -------------------------------------------------------------------------------------------- launches

    def cuModuleLoadData(self, cubin: bytes) -> Any:
        return Result.SUCCESS, cubin

    def cuModuleGetFunction(self, module: bytes, entry: bytes) -> Any:
        assert entry == b"entry of " + module
        return Result.SUCCESS, self.modules[module]

    def cuLaunchCooperativeKernel(self, function: Loaded, *shape: Any) -> Any:
        return self.cuLaunchKernel(function, *shape, 0)

    def cuLaunchKernel(self, function: Loaded, *shape: Any) -> Any:
        *grid_block_shared, stream, pointers, extra = shape
        assert (stream, extra) == ("stream", 0)
        self.started(function, grid_block_shared, pointers)()
        return (Result.SUCCESS,)

    def started(self, function: Loaded, shape: Sequence[int], pointers: int) -> Callable[[], None]:
        """Return a function that runs a kernel with the present values of its arguments."""
        blocks, _, _, threads, _, _, shared = shape
        assert (shape[1:3], shape[4:6], shared) == ([1, 1], [1, 1], 0)
        assert threads == function.kernel.threads
        values = self.decoded(function.arguments, pointers)
        return lambda: function.kernel.launch(blocks, values, 3)

    def decoded(self, kinds: tuple[str, ...], pointers: int) -> list[Any]:
        """Return the kernel arguments, given the address of an array of pointers to them."""
        at, values = iter(range(pointers, pointers + 8 * 7 * len(kinds), 8)), []

        def read(kind: Any) -> Any:
            return kind.from_address(ctypes.c_uint64.from_address(next(at)).value).value

        for kind in kinds:
            if kind.endswith("[]"):
                dtype = np.dtype(kind[:-2])
                owner, parent, count, each, address, length, stride = (read(ctypes.c_uint64) for _ in range(7))
                assert (owner, parent, length, stride, each) == (0, 0, count, dtype.itemsize, dtype.itemsize)
                assert self.inside(address, count * each)
                values.append(np.ctypeslib.as_array((ctypes.c_uint8 * (count * each)).from_address(address)).view(dtype))
            else:
                of_c, of_numpy = SCALARS[kind]
                values.append(of_numpy(read(of_c)))
        return values

    def cuGraphCreate(self, flags: int) -> Any:
        self.graphs += 1
        return Result.SUCCESS, []

    def cuGraphAddKernelNode(self, graph: Any, before: Sequence[Any], count: int, node: Any) -> Any:
        """Append a kernel node, which must depend on the previous node; nodes run in the order of the list."""
        assert [*before] == graph[-1:]
        assert count == len(before)
        shape = [node.gridDimX, node.gridDimY, node.gridDimZ, node.blockDimX, node.blockDimY, node.blockDimZ]
        graph.append(self.started(node.func, [*shape, node.sharedMemBytes], node.kernelParams))
        return Result.SUCCESS, graph[-1]

    def cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        self.graphs += 1
        return Result.SUCCESS, [*graph]

    def cuGraphDestroy(self, graph: Any) -> Any:
        self.graphs -= 1
        return (Result.SUCCESS,)

    def cuGraphExecDestroy(self, graph: Any) -> Any:
        self.graphs -= 1
        return (Result.SUCCESS,)

    def cuGraphLaunch(self, graph: Any, stream: Any) -> Any:
        for run in graph:
            run()
        return (Result.SUCCESS,)

    # -------------------------------------------------------------------------------------------- compiler replacement

    def compiled(self, name: str, kind: KernelSpec, shape: Any, capability: Capability) -> Built:
        """Replace `cuda.compiler.compiled`; the result identifies a simulated kernel instead of containing machine code."""
        assert capability == (9, 0)
        cubin, arguments = f"{name} {kind} {shape}".encode(), arguments_of(name, kind)
        self.modules[cubin] = Loaded(KERNELS[name](ALL_LANES, kind, shape), arguments)
        return Built(cubin, f"entry of {cubin.decode()}", arguments, shape.threads, 0, 0, 0)


def stand_in(patch: pytest.MonkeyPatch) -> FakeDriver:
    """Replace the driver by a fake one, which simulates kernels with warps of 32 lanes and small blocks."""
    driver = FakeDriver()
    patch.setattr("fastmlp.engines.cuda.runtime.compiled", driver.compiled)
    patch.setattr("fastmlp.engines.cuda.engine.SHAPE", Shape(64, 8))
    patch.setitem(TILES, "float32", Tile(16, 32, 8, 4, 4, 1))
    return driver
