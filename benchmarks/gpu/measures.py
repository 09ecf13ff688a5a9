"""Measure copies, barriers and matrix products on a GPU; also a runtime that times launches and copies.

All measurements use the engine's runtime (fastmlp/engines/cuda/runtime.py), so they can also run in the tests' simulator.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu.sizes import Sizes, grids
from fastmlp.bench.rounds import Disagreement, min_median_max
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.cuda.kernels.programs import PLAIN
from fastmlp.engines.cuda.runtime import Launch
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

# float32 multiply-adds per clock cycle and multiprocessor, by compute capability. Source: CUDA C++ Programming Guide 13,
# "Arithmetic Instructions", results per clock cycle of 32-bit add, multiply and multiply-add.
UNITS = {(7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (10, 3): 128, (12, 0): 128}
# Relative tolerance of a product (2-norm, compared with float64). It allows for the rounding of the sums and of both operands.
PRODUCT_AGREEMENT = {"float32": 1e-5, "tf32": 1e-3, "bf16": 8e-3}
PRODUCT_ROWS = 64  # number of rows compared with float64


class TimedRuntime:
    """A wrapper of a runtime that times copies and computation, and remembers the last launch.

    separate : if true, each copy first waits for earlier work, so that it is timed alone; this adds overhead
    copied : seconds of copies to the device ("in") and from the device ("out"); counted only if `separate` is true
    computed : seconds from the first launch until all launches have finished
    last : the last launch that was not part of a CUDA graph
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.last: Launch | None = None
        self.separate = False
        self.reset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def reset(self) -> None:
        """Reset the times to zero."""
        self.copied = {"in": 0.0, "out": 0.0}
        self.computed = 0.0
        self.launched: float | None = None

    def timed(self, way: str, copy: Callable[[], Any]) -> Any:
        """Run a copy and add its seconds to `copied`."""
        if not self.separate:
            return copy()
        self.wait()
        began = time.perf_counter()
        found = copy()
        self.copied[way] += time.perf_counter() - began
        return found

    def wait(self) -> None:
        self.inner.wait()
        if self.launched is not None:
            self.computed += time.perf_counter() - self.launched
            self.launched = None

    def put(self, array: Any) -> Any:
        return self.timed("in", lambda: self.inner.put(array))

    def fill(self, handle: Any, array: Any) -> None:
        self.timed("in", lambda: self.inner.fill(handle, array))

    def get(self, handle: Any, first: int = 0, count: int | None = None) -> Any:
        return self.timed("out", lambda: self.inner.get(handle, first, count))

    def launch(self, launch: Launch) -> None:
        self.last, self.launched = launch, self.launched or time.perf_counter()
        self.inner.launch(launch)

    def record(self, launches: Sequence[Launch]) -> Callable[[], None]:
        replay = self.inner.record(launches)

        def start() -> None:
            self.launched = self.launched or time.perf_counter()
            replay()

        return start


def scaled(values: Sequence[float], scale: float) -> dict[str, float]:
    """Multiply the values by `scale` and return their `min_median_max`.

    >>> scaled([3.0, 1.0, 2.0], 10)
    {'median': 20.0, 'least': 10.0, 'most': 30.0}
    """
    return min_median_max([scale * value for value in values])


def seconds_of(work: Callable[[], Any], rounds: int) -> list[float]:
    """Return the seconds of `rounds` calls of `work`, after one untimed call. `work` must wait for the device."""
    work()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found


# ------------------------------------------------------------------------------------------------ the device


def peak_gflops(runtime: TimedRuntime) -> float | None:
    """Return the peak float32 GFLOP/s (a multiply-add counts as two), or None if the card or its maximum clock is unknown."""
    clock, units = runtime.facts()["clock_hz"], UNITS.get(runtime.capability)
    return 2 * units * runtime.blocks * clock / 1e9 if units and clock else None


def copy_seconds(runtime: Any, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Time copies of `count` float32 numbers to the device and back, in seconds."""
    array = np.random.default_rng(0).random(count, np.float32)
    handle = runtime.put(array)
    if not np.array_equal(runtime.get(handle), array):
        raise Disagreement(f"{count:,} numbers changed on the way to the device and back")

    def copy_in() -> None:
        runtime.fill(handle, array)
        runtime.wait()

    return seconds_of(copy_in, rounds), seconds_of(lambda: runtime.get(handle), rounds)


def measure_copies(runtime: TimedRuntime, sizes: Sizes) -> dict[str, Any]:
    """Measure copies between pageable host memory and the device: GB/s of a large array, and microseconds of one number."""
    large = copy_seconds(runtime.inner, sizes.copied // 4, sizes.device_rounds)
    single = copy_seconds(runtime.inner, 1, sizes.device_rounds)
    found: dict[str, Any] = {"bytes": sizes.copied}
    for way, of_large, of_single in zip(("in", "out"), large, single, strict=True):
        found[f"{way}_gb_per_s"] = min_median_max([sizes.copied / one / 1e9 for one in of_large])
        found[f"{way}_single_us"] = scaled(of_single, 1e6)
    return found


def measure_barriers(runtime: TimedRuntime, sizes: Sizes) -> list[dict[str, Any]]:
    """Measure the time of a grid-wide barrier for several numbers of blocks.

    The time is computed from the difference between a launch with many barriers and a launch with few barriers. The results
    have these keys:

    barrier_us : microseconds per barrier
    launch_us : microseconds of a launch without barriers, including the wait for its end
    """
    program, rows = runtime.program("barriers", PLAIN, cuda.SHAPE), []
    counter = runtime.put(np.zeros(1, np.uint64))
    for blocks in grids(runtime.blocks):

        def run_launches(count: int, blocks: int = blocks) -> float:
            runtime.fill(counter, np.zeros(1, np.uint64))
            began = time.perf_counter()
            runtime.launch(Launch(program, blocks, (counter, count), together=True))
            runtime.wait()
            seconds = time.perf_counter() - began
            if (arrived := int(runtime.get(counter)[0])) != blocks * count:
                raise Disagreement(f"{arrived:,} arrivals were counted at {count:,} barriers of {blocks} blocks")
            return seconds

        few, many = sizes.barriers
        times = {count: [run_launches(count) for _ in range(sizes.device_rounds + 1)][1:] for count in (0, few, many)}
        each = [(long - short) / (many - few) for short, long in zip(times[few], times[many], strict=True)]
        rows.append({"blocks": blocks, "barrier_us": scaled(each, 1e6), "launch_us": scaled(times[0], 1e6)})
    return rows


def check_product(network: Network, start: Any, x: Any, z: Any, precision: str) -> float:
    """Return the relative error of z = x w + b; raise Disagreement if it exceeds `PRODUCT_AGREEMENT`."""
    ((w, b),) = network.views(start.astype(np.float64))
    expected = x.astype(np.float64) @ w + b
    error = float(np.linalg.norm(z - expected) / np.linalg.norm(expected))
    if not error <= PRODUCT_AGREEMENT[precision]:
        raise Disagreement(f"the forward pass of {network.label} in {precision} has a relative error of {error:.2g}")
    return error


def measure_product(
    runtime: TimedRuntime, inputs: int, outputs: int, sizes: Sizes, precision: str = "float32"
) -> dict[str, Any]:
    """Measure the GFLOP/s of the forward pass of one layer with biases; the inputs are float32 rows in device memory."""
    network, n, count = Network((inputs, outputs)), sizes.product_rows, sizes.product_launches
    start = network.initial_parameters(0)
    spec = EngineSpec(network, Optimizer("sgd"), n, precision=precision)
    with contextlib.closing(cuda.CudaEngine(spec, runtime)) as engine:
        engine.load(State(start, np.empty((0, len(start)), np.float32), 0))
        x = np.random.default_rng(0).random((n, inputs), np.float32)
        error = check_product(network, start, x[:PRODUCT_ROWS], engine.forward(x)[:PRODUCT_ROWS], precision)
        launch: Any = runtime.last

        def run_launches() -> None:
            for _ in range(count):
                runtime.launch(launch)
            runtime.wait()

        rates = [2 * n * inputs * outputs * count / one / 1e9 for one in seconds_of(run_launches, sizes.device_rounds)]
    what = {"rows": n, "inputs": inputs, "outputs": outputs, "precision": precision, "relative_error": error}
    return what | {"engine": "cuda", "gflops": min_median_max(rates)}
