"""What the check measures of a GPU by itself: copies, barriers, products, and where the time of launches and copies goes.

All of it goes through the runtime that the engine uses (fastmlp/engines/cuda/runtime.py), so the tests' simulator runs it too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu.sizes import Sizes, grids
from fastmlp.bench.rounds import Disagreement, spread
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.cuda.kernels.programs import PLAIN
from fastmlp.engines.cuda.runtime import Launch
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

# float32 multiply-adds per clock and multiprocessor, by compute capability. Source: CUDA C++ Programming Guide 13,
# "Arithmetic Instructions", results per clock cycle of 32-bit add, multiply and multiply-add.
UNITS = {(7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (10, 3): 128, (12, 0): 128}
# Allowed relative error of a product (2-norm, against float64), from the rounding of sums and of both operands.
PRODUCT_AGREEMENT = {"float32": 1e-5, "tf32": 1e-3, "bf16": 8e-3}
PRODUCT_ROWS = 64  # compared with float64


class Watch:
    """A wrapper of a runtime that keeps its last launch and can time copies separately.

    apart : whether copies wait for what was started before, so that they are timed by themselves; it adds overhead
    copied : seconds of copies to the device ("in") and back ("out"); computed : seconds from launches to their end
    last : the last launch that was no graph
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.last: Launch | None = None
        self.apart = False
        self.reset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def reset(self) -> None:
        """Count from here."""
        self.copied = {"in": 0.0, "out": 0.0}
        self.computed = 0.0
        self.launched: float | None = None

    def timed(self, way: str, copy: Callable[[], Any]) -> Any:
        """A copy, and its seconds."""
        if not self.apart:
            return copy()
        self.wait()
        began = time.perf_counter()
        found = copy()
        self.copied[way] += time.perf_counter() - began
        return found

    def wait(self) -> None:
        self.runtime.wait()
        if self.launched is not None:
            self.computed += time.perf_counter() - self.launched
            self.launched = None

    def put(self, array: Any) -> Any:
        return self.timed("in", lambda: self.runtime.put(array))

    def fill(self, handle: Any, array: Any) -> None:
        self.timed("in", lambda: self.runtime.fill(handle, array))

    def get(self, handle: Any, first: int = 0, count: int | None = None) -> Any:
        return self.timed("out", lambda: self.runtime.get(handle, first, count))

    def launch(self, launch: Launch) -> None:
        self.last, self.launched = launch, self.launched or time.perf_counter()
        self.runtime.launch(launch)

    def record(self, launches: Sequence[Launch]) -> Callable[[], None]:
        replay = self.runtime.record(launches)

        def start() -> None:
            self.launched = self.launched or time.perf_counter()
            replay()

        return start


def scaled(values: Sequence[float], scale: float) -> dict[str, float]:
    """`spread` in another unit.

    >>> scaled([3.0, 1.0, 2.0], 10)
    {'median': 20.0, 'least': 10.0, 'most': 30.0}
    """
    return spread([scale * value for value in values])


def seconds_of(work: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each of so many rounds, after one that is not timed; `work` ends when the device has."""
    work()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found


# ------------------------------------------------------------------------------------------------ the device alone


def peak_gflops(watch: Watch) -> float | None:
    """Peak float32 GFLOP/s at the highest clock, a multiply-add as two; None if the card or its clock is unknown."""
    clock, units = watch.facts()["clock_hz"], UNITS.get(watch.capability)
    return 2 * units * watch.blocks * clock / 1e9 if units and clock else None


def copy_seconds(runtime: Any, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of copies of so many numbers to the device, and back."""
    array = np.random.default_rng(0).random(count, np.float32)
    handle = runtime.put(array)
    if not np.array_equal(runtime.get(handle), array):
        raise Disagreement(f"{count:,} numbers came back from the device as others")

    def there() -> None:
        runtime.fill(handle, array)
        runtime.wait()

    return seconds_of(there, rounds), seconds_of(lambda: runtime.get(handle), rounds)


def measure_copies(watch: Watch, sizes: Sizes) -> dict[str, Any]:
    """Host's pageable memory to the device's and back: GB/s of a large array, microseconds of a single number."""
    large = copy_seconds(watch.runtime, sizes.copied // 4, sizes.device_rounds)
    single = copy_seconds(watch.runtime, 1, sizes.device_rounds)
    found: dict[str, Any] = {"bytes": sizes.copied}
    for way, of_large, of_single in zip(("in", "out"), large, single, strict=True):
        found[f"{way}_gb_per_s"] = spread([sizes.copied / one / 1e9 for one in of_large])
        found[f"{way}_single_us"] = scaled(of_single, 1e6)
    return found


def measure_barriers(watch: Watch, sizes: Sizes) -> list[dict[str, Any]]:
    """Microseconds of a barrier over the grid, by blocks: from the difference of few and many in one launch.

    `launch` is a launch with no barrier and the wait for its end.
    """
    program, rows = watch.program("barriers", PLAIN, cuda.SHAPE), []
    counter = watch.put(np.zeros(1, np.uint64))
    for blocks in grids(watch.blocks):

        def launched(count: int, blocks: int = blocks) -> float:
            watch.fill(counter, np.zeros(1, np.uint64))
            began = time.perf_counter()
            watch.launch(Launch(program, blocks, (counter, count), together=True))
            watch.wait()
            seconds = time.perf_counter() - began
            if (arrived := int(watch.get(counter)[0])) != blocks * count:
                raise Disagreement(f"{arrived:,} arrivals at {count:,} barriers of {blocks} blocks")
            return seconds

        few, many = sizes.barriers
        times = {count: [launched(count) for _ in range(sizes.device_rounds + 1)][1:] for count in (0, few, many)}
        each = [(long - short) / (many - few) for short, long in zip(times[few], times[many], strict=True)]
        rows.append({"blocks": blocks, "barrier_us": scaled(each, 1e6), "launch_us": scaled(times[0], 1e6)})
    return rows


def check_product(network: Network, start: Any, x: Any, z: Any, precision: str) -> float:
    """Relative error of z = x w + b; raises Disagreement if rounding does not explain it."""
    ((w, b),) = network.views(start.astype(np.float64))
    wanted = x.astype(np.float64) @ w + b
    error = float(np.linalg.norm(z - wanted) / np.linalg.norm(wanted))
    if not error <= PRODUCT_AGREEMENT[precision]:
        raise Disagreement(f"the forward pass of {network.label} in {precision} has a relative error of {error:.2g}")
    return error


def measure_product(watch: Watch, inputs: int, outputs: int, sizes: Sizes, precision: str = "float32") -> dict[str, Any]:
    """GFLOP/s of the forward pass of one layer of float32 rows on the device: the product, biases and the reading of rows."""
    network, n, count = Network((inputs, outputs)), sizes.product_rows, sizes.product_launches
    start = network.initial_parameters(0)
    spec = EngineSpec(network, Optimizer(), n, precision=precision)
    with contextlib.closing(cuda.CudaEngine(spec, watch)) as engine:
        engine.load(State(start, np.empty((0, len(start)), np.float32), 0))
        x = np.random.default_rng(0).random((n, inputs), np.float32)
        error = check_product(network, start, x[:PRODUCT_ROWS], engine.forward(x)[:PRODUCT_ROWS], precision)
        launch: Any = watch.last

        def launched() -> None:
            for _ in range(count):
                watch.launch(launch)
            watch.wait()

        rates = [2 * n * inputs * outputs * count / one / 1e9 for one in seconds_of(launched, sizes.device_rounds)]
    what = {"rows": n, "inputs": inputs, "outputs": outputs, "precision": precision, "relative_error": error}
    return what | {"engine": "cuda", "gflops": spread(rates)}
