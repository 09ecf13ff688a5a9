"""Measurement of the peak arithmetic rate and the memory bandwidth, and a description of the machine.

The peak arithmetic rate, called the ceiling, is the rate of fused multiply-adds on registers, without memory accesses. It is
an upper bound for float32 arithmetic on the same cores. The memory bandwidth is measured with the triad a = b + s * c of the
STREAM benchmark (McCalpin 1995), on arrays much larger than the last-level cache. As in STREAM, the bytes of each of the three
arrays are counted once, although many processors also read the cache lines of `a` before they write them.
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
DEFAULT_CACHE_BYTES = 32 * 2**20  # used if the operating system does not report the size of the cache
MAX_TRIAD_BYTES = 2**30  # maximum size of each array of the triad
CACHE_MULTIPLE = 4  # STREAM requires arrays at least four times as large as the last-level cache
FMA_FLOP = 4e9  # operations per thread and measurement; takes about 40 ms, much longer than waking a thread

# ------------------------------------------------------------------------------------------------ kernels


def accumulators() -> int:
    """Number of independent accumulators that keeps all multiply-add units busy and fits into the vector registers.

    Two multiply-add units with a latency of 4 cycles need at least 8 accumulators, and four units (Apple) need at least 16.
    x86 processors without AVX-512 have 16 vector registers; the other supported processors have 32.
    """
    from fastmlp.engines.cpu.codegen.simd import lanes

    return 24 if lanes() == 16 or platform.machine() in ("aarch64", "arm64") else 12


@functools.cache
def make_kernels() -> tuple[Any, Any]:
    """Compile and return the kernels fmas(t, steps, x, results) and triad(t, threads, a, b, c, s) for thread number t."""
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
    """Peak arithmetic rate and memory bandwidth for several numbers of threads, as the best of repeated measurements.

    Alternate calls of `measure` with the measurements to be compared with the peak rates, so that both are made under the same
    machine load.

    Parameters
    ----------
    threads : numbers of threads
    array_bytes : size of each of the three arrays of the triad; None means four times the total size of the last-level
        caches, but at most 1 GiB

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
        for team in self.teams:  # untimed first calls, which compile the kernels and start the threads
            self.fma_gflops(team, 1)
            self.triad_gb_per_s(team)

    def measure(self) -> None:
        """Measure once per number of threads, and update the best values in `gflops` (GFLOP/s) and `triad` (GB/s)."""
        for team in self.teams:
            steps = int(FMA_FLOP / self.flop_per_step())
            self.gflops[team.threads] = max(self.gflops[team.threads], self.fma_gflops(team, steps))
            self.triad[team.threads] = max(self.triad[team.threads], self.triad_gb_per_s(team))

    @staticmethod
    def flop_per_step() -> int:
        """Number of floating-point operations per thread in one iteration of the multiply-add loop."""
        from fastmlp.engines.cpu.codegen.simd import lanes

        return 2 * accumulators() * lanes()

    def fma_gflops(self, team: Team, steps: int) -> float:
        """Measure the rate of multiply-adds on registers in GFLOP/s, summed over the threads."""
        fmas, _ = make_kernels()
        results = np.empty(team.threads, np.float32)
        began = time.perf_counter()
        team.run(fmas, steps, np.float32(0.5), results)
        return steps * self.flop_per_step() * team.threads / (time.perf_counter() - began) / 1e9

    def triad_gb_per_s(self, team: Team) -> float:
        """Measure the memory bandwidth of the triad a = b + s * c in GB/s."""
        _, triad = make_kernels()
        began = time.perf_counter()
        team.run(triad, team.threads, *self.arrays, np.float32(3))
        return sum(array.nbytes for array in self.arrays) / (time.perf_counter() - began) / 1e9

    def close(self) -> None:
        """Stop the threads and free the arrays."""
        self.arrays = []
        for team in self.teams:
            team.close()


def last_cache_bytes(folder: Path = CPU_FILES) -> int:
    """Return the total size of all last-level caches in bytes, or `DEFAULT_CACHE_BYTES` if it is unknown (not Linux).

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
    """Return the model name of the processor from /proc/cpuinfo, or `platform.processor()` if there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def machine() -> dict[str, Any]:
    """Return a description of the machine.

    The description contains the date, the processor, the operating system, the number of cores available to this process
    ("cores"), the number of hardware threads ("threads"), the one-minute load average ("load"), and the size of the last-level
    caches.
    """
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
