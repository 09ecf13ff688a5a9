"""A small simulator of an NVIDIA GPU that runs unmodified kernels: it implements the API of kernels/device.py.

All threads of the grid exist at the same time, each as a greenlet, so barriers across blocks and warp collectives work. The
simulator is designed to find mistakes: shared and local memory are initialized to NaN, negative indices and misaligned vectors
are errors, deadlocks are reported, and a seed selects a natural, reversed or random order of threads.
"""

from __future__ import annotations

import functools
import random
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from greenlet import getcurrent, greenlet
from numpy import float32, float64, int32, int64, uint32, uint64

from fastmlp.engines.cuda.kernels import DEVICE_API
from fastmlp.engines.cuda.kernels.programs import KERNELS
from fastmlp.engines.cuda.runtime import Launch

MOST_SPINS = 100_000  # polls of counters after which a thread counts as stuck
POISON: dict[str, Any] = {"f": np.nan, "i": -77, "u": 77, "b": True}


class StuckError(RuntimeError):
    """Threads are deadlocked."""


class Index(NamedTuple):
    x: int
    y: int = 0
    z: int = 0


class Group:
    """Threads that synchronize with each other, and their operands in a collective operation."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.waiting: list[Thread] = []
        self.brought: dict[int, Any] = {}
        self.found: Sequence[Any] = ()


class Block:
    """A block of threads; `shared` maps the position of a declaration in the code to its shared array."""

    def __init__(self, number: int, threads: int, lanes: int) -> None:
        self.index = Index(number)
        self.shared: dict[Any, Any] = {}
        self.all = Group(f"block {number}", threads)
        self.warps = [Group(f"block {number}, warp {w}", lanes) for w in range(threads // lanes)]


class Thread:
    """One thread of the grid."""

    def __init__(self, block: Block, number: int, lanes: int, run: Callable[[], None]) -> None:
        self.block, self.index = block, Index(number)
        self.lane, self.warp = number % lanes, block.warps[number // lanes]
        self.spins = 0
        self.run = greenlet(run)


class Grid:
    """A kernel launch: its blocks, the threads that are ready to run, and the running thread."""

    def __init__(self, kernel: Kernel, blocks: int, arguments: Sequence[Any], seed: int) -> None:
        threads, lanes = kernel.threads, kernel.lanes
        self.size, self.block_size, self.seed = Index(blocks), Index(threads), seed
        self.main = getcurrent()
        self.blocks = [Block(number, threads, lanes) for number in range(blocks)]
        self.ready = [
            Thread(block, number, lanes, lambda: kernel.function(*arguments))
            for block in self.blocks
            for number in range(threads)
        ]
        self.current = self.ready[0]
        self.random = random.Random(seed)

    def next(self) -> Thread:
        """Return the next ready thread: the first for seed 0, the last for a negative seed, else a random one."""
        if self.seed > 0:
            at = self.random.randrange(len(self.ready))
            self.ready[at], self.ready[-1] = self.ready[-1], self.ready[at]
        return self.ready.pop(0 if self.seed == 0 else -1)

    def run(self) -> None:
        live = len(self.ready)
        while live:
            if not self.ready:
                groups = [group for block in self.blocks for group in (block.all, *block.warps) if group.waiting]
                raise StuckError(
                    "; ".join(f"{len(group.waiting)} of {group.size} threads wait in {group.name}" for group in groups)[:400]
                )
            self.current = self.next()
            self.current.run.switch()
            live -= self.current.run.dead

    def wait(self, group: Group) -> None:
        """Suspend the current thread until all threads of its group wait."""
        group.waiting.append(self.current)
        if len(group.waiting) == group.size:
            self.ready += group.waiting
            group.waiting = []
        self.main.switch()

    def pause(self) -> None:
        """Let other threads run, since the current one polls a value that they may change."""
        self.current.spins += 1
        if self.current.spins > MOST_SPINS:
            raise StuckError(
                f"thread {self.current.index.x} of {self.current.block.all.name} polls a counter that does not change"
            )
        self.ready.insert(0 if self.seed < 0 else len(self.ready), self.current)
        self.main.switch()


grid: Any = None  # grid of the current launch
ONE_AT_A_TIME = threading.Lock()


def together(collective: Callable[[list[Any]], Sequence[Any]], brought: Any) -> Any:
    """Return the result of a warp collective for the current lane, given its operand."""
    thread, group = grid.current, grid.current.warp
    group.brought[thread.lane] = brought
    if len(group.brought) == group.size:
        group.found, group.brought = collective([group.brought[lane] for lane in range(group.size)]), {}
    grid.wait(group)
    return group.found[thread.lane]


def poisoned(shape: int, dtype: Any) -> Any:
    return np.full(shape, POISON[np.dtype(dtype).kind], dtype)


class Shared:
    """cuda.shared"""

    @staticmethod
    def array(shape: int, dtype: Any, alignment: int | None = None) -> Any:
        """Return the array declared at this position in the code; it is created when a block first uses it."""
        frame, memory = sys._getframe(1), grid.current.block.shared
        place = frame.f_code, frame.f_lasti
        if place not in memory:
            memory[place] = poisoned(shape, dtype)
        return memory[place]


class Local:
    """cuda.local"""

    @staticmethod
    def array(shape: int, dtype: Any, alignment: int | None = None) -> Any:
        return poisoned(shape, dtype)


class Cuda:
    """The parts of Numba's module `cuda` that kernels use."""

    shared, local = Shared(), Local()
    threadIdx = property(lambda self: grid.current.index)
    blockIdx = property(lambda self: grid.current.block.index)
    blockDim = property(lambda self: grid.block_size)
    gridDim = property(lambda self: grid.size)

    @staticmethod
    def syncthreads() -> None:
        grid.wait(grid.current.block.all)

    @staticmethod
    def syncwarp() -> None:
        grid.wait(grid.current.warp)

    @staticmethod
    def shfl_xor_sync(mask: int, value: Any, other: int) -> Any:
        return together(lambda values: [values[lane ^ other] for lane in range(len(values))], value)


cuda = Cuda()


def device(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def formula(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


class Kernel:
    """A kernel for blocks of `threads` threads, in warps of `lanes` lanes."""

    def __init__(self, function: Callable[..., None], threads: int, lanes: int) -> None:
        assert threads % lanes == 0
        self.function, self.threads, self.lanes = function, threads, lanes

    def launch(self, blocks: int, arguments: Sequence[Any], seed: int = 0) -> None:
        """Run all threads of a number of blocks, in the order of `Grid.next`."""
        global grid  # noqa: PLW0603 - thread indices are global names, as on a GPU
        with ONE_AT_A_TIME, warnings.catch_warnings():
            # a GPU computes inf - inf = NaN and overflows without a warning
            warnings.filterwarnings("ignore", "(invalid value|overflow) encountered in scalar", RuntimeWarning)
            grid = Grid(self, blocks, arguments, seed)
            grid.run()


# ------------------------------------------------------------------------------------------ API of kernels/device.py


def load(a: Any, i: int) -> Any:
    assert i >= 0, "negative index"
    return a[i]


def store(a: Any, i: int, value: Any) -> None:
    assert i >= 0, "negative index"
    a[i] = value


def load_aligned(a: Any, i: int, count: int) -> Any:
    assert i >= 0, "negative index"
    assert i % count == 0, "misaligned vector"
    assert i + count <= len(a), "vector extends beyond the end of the array"
    return a[i : i + count]


def load2(a: Any, i: int) -> tuple[Any, ...]:
    return tuple(load_aligned(a, i, 2))


def load4(a: Any, i: int) -> tuple[Any, ...]:
    return tuple(load_aligned(a, i, 4))


def store2(a: Any, i: int, values: tuple[Any, ...]) -> None:
    load_aligned(a, i, 2)[:] = values


def store4(a: Any, i: int, values: tuple[Any, ...]) -> None:
    load_aligned(a, i, 4)[:] = values


def load_word(a: Any, i: int) -> Any:
    return load_aligned(a, i, 4).view(uint32)[0]


def divide(a: int, b: int) -> int:
    assert a >= 0, "negative dividend"
    return int(a) // int(b)


def remainder(a: int, b: int) -> int:
    assert a >= 0, "negative dividend"
    return int(a) % int(b)


def bits_of(x: Any) -> Any:
    return float32(x).view(uint32)


def number_of(x: Any) -> Any:
    return uint32(x).view(float32)


def tf32_of(x: Any) -> Any:
    """Round like cvt.rna.tf32.f32: 10 mantissa bits, to nearest, ties away from zero."""
    return uint32(0x7FFFFFFF) if np.isnan(x) else (bits_of(x) + uint32(0x1000)) & uint32(0xFFFFE000)


def bf16_of(x: Any) -> Any:
    """Round like cvt.rn.bf16.f32: 7 mantissa bits, to nearest, ties to even."""
    bits = bits_of(x)
    return uint32(0x7FFF) if np.isnan(x) else (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)


def bf16_pair(low: Any, high: Any) -> Any:
    return bf16_of(low) | (bf16_of(high) << uint32(16))


def terms_of(words: Any, packed: int) -> Any:
    """Unpack rows of 32-bit words, each with one tf32 number, whose lower bits are ignored, or with two bf16 numbers."""
    if packed == 1:
        return (words & uint32(0xFFFFE000)).view(float32)
    both = np.stack([words << uint32(16), words & uint32(0xFFFF0000)], axis=2)  # the lower half comes first
    return both.reshape(len(words), -1).view(float32)


def multiplied(lanes: list[Any], packed: int) -> list[tuple[Any, ...]]:
    """Compute c + a b in a warp; products and sums are rounded to float32, and operand layouts are those of the PTX ISA."""
    left, right, c = np.empty((16, 8), uint32), np.empty((8, 8), uint32), np.empty((16, 8), float32)
    for lane, brought in enumerate(lanes):
        g, p = lane // 4, lane % 4
        left[g, p], left[g + 8, p], left[g, p + 4], left[g + 8, p + 4], right[g, p], right[g, p + 4] = brought[:6]
        c[g, 2 * p], c[g, 2 * p + 1], c[g + 8, 2 * p], c[g + 8, 2 * p + 1] = brought[6:]
    for a, b in zip(terms_of(left, packed).T, terms_of(right, packed).T, strict=True):
        c += np.outer(a, b)
    places = [(lane // 4, lane % 4 * 2) for lane in range(32)]
    return [(c[g, n], c[g, n + 1], c[g + 8, n], c[g + 8, n + 1]) for g, n in places]


def mma_tf32(*brought: Any) -> tuple[Any, ...]:
    assert grid.current.warp.size == 32, "tensor cores need warps of 32 lanes"
    return together(lambda lanes: multiplied(lanes, 1), brought)


def mma_bf16(*brought: Any) -> tuple[Any, ...]:
    assert grid.current.warp.size == 32, "tensor cores need warps of 32 lanes"
    return together(lambda lanes: multiplied(lanes, 2), brought)


def arrive(counter: Any, i: int) -> None:
    counter[i] += 1


def arrived(counter: Any, i: int) -> Any:
    grid.pause()
    return counter[i]


def trap() -> None:
    raise StuckError(f"thread {grid.current.index.x} of {grid.current.block.all.name} executed a trap")


# ------------------------------------------------------------------------------------------------ device API and runtime


class DeviceApi:
    """The API of kernels/device.py for warps of `lanes` lanes; fewer lanes are faster to simulate."""

    def __init__(self, lanes: int) -> None:
        self.WARP = lanes
        vars(self).update({name: globals()[name] for name in DEVICE_API if name not in ("WARP", "kernel")})

    def kernel(self, threads: int, blocks: int = 1) -> Callable[[Callable[..., None]], Kernel]:
        return lambda function: Kernel(function, threads, self.WARP)


FEW_LANES, ALL_LANES = DeviceApi(4), DeviceApi(32)


@functools.cache
def made(maker: Callable[..., Kernel], api: DeviceApi, kind: Any, shape: Any) -> Kernel:
    return maker(api, kind, shape)


class Runtime:
    """The methods of `cuda.runtime.Runtime`, implemented on the host; each launch runs threads in another order."""

    name, capability = "simulator", (9, 0)

    def __init__(self, blocks: int = 2, seed: int = 1, api: DeviceApi = FEW_LANES) -> None:
        self.blocks, self.seed, self.api = blocks, seed, api

    @staticmethod
    def facts() -> dict[str, Any]:
        """Return None for all facts, since there is no driver, device memory or clock."""
        return {"cuda": None, "memory_bytes": None, "clock_hz": None}

    @staticmethod
    def put(array: Any) -> Any:
        return np.array(array).reshape(-1)

    @staticmethod
    def empty(size: int, dtype: Any) -> Any:
        return poisoned(size, dtype)

    @staticmethod
    def fill(handle: Any, array: Any, first: int = 0) -> None:
        assert first + array.size <= handle.size
        handle[first : first + array.size] = array.reshape(-1)

    @staticmethod
    def get(handle: Any, first: int = 0, count: int | None = None) -> Any:
        return handle[first : None if count is None else first + count].copy()

    def program(self, name: str, kind: Any, shape: Any) -> Kernel:
        return made(KERNELS[name], self.api, kind, shape)

    def launch(self, launch: Launch) -> None:
        self.seed += 1
        launch.program.launch(launch.blocks, launch.arguments, self.seed)

    def record(self, launches: Sequence[Launch]) -> Callable[[], None]:
        def replay() -> None:
            for launch in launches:
                self.launch(launch)

        return replay

    def wait(self) -> None:
        """Do nothing, since launches are synchronous."""
