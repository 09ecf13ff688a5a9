"""What the machine can do and what it is: ceiling of arithmetic, memory bandwidth, processor, versions.

Here: `Ceilings`, measured by kernels of its own, and the descriptions that go into a result. Not here: the training that is
held against them (rounds.py).

The ceiling is what fused multiply-adds in registers reach, without any memory: no program of float32 arithmetic on these
cores is faster. The bandwidth is STREAM's triad a = b + s c (McCalpin 1995) over arrays far larger than the last cache,
counted as STREAM counts: three arrays of 4 bytes an element, the reading of a before it is written left out.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from fastmlp.engines.cpu.threads import Team, available_cores

PACKAGES = ("numpy", "numba", "llvmlite", "scikit-learn", "torch", "jax", "numba-cuda")
CPU_FILES = Path("/sys/devices/system/cpu")
DEFAULT_CACHE_BYTES = 32 * 2**20  # bytes, where the system does not tell
MAX_TRIAD_BYTES = 2**30  # of one array
CACHE_MULTIPLE = 4  # STREAM's rule: each array at least so many times the last cache
FMA_FLOP = 4e9  # per thread and measurement: some 40 ms, far above the cost of waking a thread

# ------------------------------------------------------------------------------------------------ kernels


def accumulators() -> int:
    """Independent sums that keep every multiply-add unit busy, and still fit into the vector registers.

    Two units of 4 cycles want 8, four units (Apple) want 16. There are 16 registers without AVX-512 on x86, else 32.
    """
    from fastmlp.engines.cpu.codegen.simd import lanes

    return 24 if lanes() == 16 or platform.machine() in ("aarch64", "arm64") else 12


@functools.cache
def make_kernels() -> tuple[Any, Any]:
    """Compiled fmas(t, steps, x, results) and triad(t, threads, a, b, c, s), each the share of thread t."""
    from numba import njit

    from fastmlp.engines.cpu.codegen.intrinsics import make_fma_loop
    from fastmlp.engines.cpu.codegen.simd import lanes

    loop = make_fma_loop(accumulators(), lanes())

    def fmas(t: Any, steps: Any, x: Any, results: Any) -> None:
        results[t] = loop(steps, x)

    def triad(t: Any, threads: Any, a: Any, b: Any, c: Any, s: Any) -> None:
        for i in range(len(a) * t // threads, len(a) * (t + 1) // threads):
            a[i] = b[i] + s * c[i]

    return njit(nogil=True)(fmas), njit(nogil=True)(triad)


class Ceilings:
    """Best of repeated measurements of what so many threads can do; to be used in turn with what is held against it.

    Parameters
    ----------
    threads : numbers of threads to measure with
    array_bytes : of each of the triad's three arrays; None: four times all last caches together, a GiB at most

    Examples
    --------
    >>> ceilings = Ceilings([1], array_bytes=4096)
    >>> ceilings.measure()
    >>> ceilings.gflops[1] > 0, ceilings.triad[1] > 0
    (True, True)
    """

    def __init__(self, threads: Sequence[int], array_bytes: int | None = None) -> None:
        self.gflops = dict.fromkeys(threads, 0.0)
        self.triad = dict.fromkeys(threads, 0.0)
        size = array_bytes or min(CACHE_MULTIPLE * last_cache_bytes(), MAX_TRIAD_BYTES)
        self.arrays = [np.ones(size // 4, np.float32) for _ in range(3)]
        self.teams = [Team(number) for number in self.gflops]
        for team in self.teams:  # compile, start the threads
            self.fma_gflops(team, 1)
            self.triad_gb_per_s(team)

    def measure(self) -> None:
        """Measure once, and keep what is better than before: GFLOP/s in `gflops`, GB/s in `triad`, by threads."""
        for team in self.teams:
            steps = int(FMA_FLOP / self.flop_per_step())
            self.gflops[team.threads] = max(self.gflops[team.threads], self.fma_gflops(team, steps))
            self.triad[team.threads] = max(self.triad[team.threads], self.triad_gb_per_s(team))

    @staticmethod
    def flop_per_step() -> int:
        """Operations of one step of the loop of one thread."""
        from fastmlp.engines.cpu.codegen.simd import lanes

        return 2 * accumulators() * lanes()

    def fma_gflops(self, team: Team, steps: int) -> float:
        """GFLOP/s of multiply-adds in registers, all threads together."""
        fmas, _ = make_kernels()
        results = np.empty(team.threads, np.float32)
        began = time.perf_counter()
        team.run(fmas, steps, np.float32(0.5), results)
        return steps * self.flop_per_step() * team.threads / (time.perf_counter() - began) / 1e9

    def triad_gb_per_s(self, team: Team) -> float:
        """GB/s of a = b + s c."""
        _, triad = make_kernels()
        began = time.perf_counter()
        team.run(triad, team.threads, *self.arrays, np.float32(3))
        return sum(array.nbytes for array in self.arrays) / (time.perf_counter() - began) / 1e9

    def close(self) -> None:
        """End the threads, give back the memory."""
        self.arrays = []
        for team in self.teams:
            team.close()


def last_cache_bytes(folder: Path = CPU_FILES) -> int:
    """Bytes of all last-level caches together (Linux), else a usual size.

    >>> last_cache_bytes(Path("/nowhere")) == DEFAULT_CACHE_BYTES
    True
    """
    caches: dict[tuple[int, str], int] = {}
    for index in folder.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size, cpus = ((index / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
        caches[int(level), cpus] = int(size.removesuffix("K")) * 1024
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last) or DEFAULT_CACHE_BYTES


# ------------------------------------------------------------------------------------------------ description


def processor_name() -> str:
    """Name that the processor gives itself, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def machine() -> dict[str, Any]:
    """Date, processor, cores that this process may use, hardware threads, and how busy it is now (load over one minute)."""
    import llvmlite.binding

    return {
        "date": date.today().isoformat(),
        "processor": llvmlite.binding.get_host_cpu_name(),
        "name": processor_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": available_cores(),
        "threads": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "last_cache_bytes": last_cache_bytes(),
    }
