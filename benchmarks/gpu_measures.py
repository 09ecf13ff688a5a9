"""What gpu_check.py measures of a GPU and of our engine on it: copies, barriers, products, and epochs with their copies apart.

All of it goes through the runtime that the engine uses (fastmlp/engines/cuda/runtime.py), so the tests' simulator runs it too.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastmlp.bench.cases import Case
from fastmlp.bench.rounds import PROBE, PROBE_AGREEMENT, RATE, order_of
from fastmlp.data.scaling import fit_scaling
from fastmlp.engines.base import Engine, Job, State
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.cuda.kernels.programs import PLAIN, Kind, Shape
from fastmlp.engines.cuda.kernels.tiles import Tile
from fastmlp.engines.cuda.runtime import Launch
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.errors import FastMLPError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.scaling import Scaling

# Multiply-add units for float32 of a multiprocessor by compute capability. Source: CUDA C++ Programming Guide 13,
# "Arithmetic Instructions", results per clock cycle of 32-bit add, multiply and multiply-add.
UNITS = {(7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (10, 3): 128, (12, 0): 128}
PRODUCT_AGREEMENT = 1e-5  # of norms, float32 sums against float64
PRODUCT_ROWS = 64  # that are held against float64


class Subject(NamedTuple):
    """A network and a batch; `pixels` : its rows are uint8, scaled as they are used, else float32."""

    case: Case
    pixels: bool = True


@dataclass(frozen=True)
class Sizes:
    """How much is measured; blocks : of the barriers, from the number of multiprocessors; products : inputs and outputs."""

    subjects: tuple[Subject, ...]
    blocks: Callable[[int], Sequence[int]]
    rows: int = 60_000
    rounds: int = 7
    copied: int = 2**28  # bytes
    barriers: tuple[int, int] = (100, 1100)
    products: tuple[tuple[int, int], ...] = ((784, 512), (1024, 1024), (4096, 4096))
    product_rows: int = cuda.APPLIED
    product_launches: int = 20


class Watch:
    """A runtime that knows what it was asked for, and can time copies apart. As a runtime otherwise.

    apart : whether copies wait for what was started before, so that they are timed by themselves; it takes a little time itself
    copied : seconds of copies to the device ("in") and back ("out"); computed : seconds from launches to their end
    kernels : name, kind and shape of each program; last : the last launch that was no graph
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.kernels: dict[tuple[str, Kind, Shape | Tile], None] = {}
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

    def program(self, name: str, kind: Kind, shape: Shape | Tile) -> Any:
        self.kernels[name, kind, shape] = None
        return self.runtime.program(name, kind, shape)

    def launch(self, launch: Launch) -> None:
        self.last, self.launched = launch, self.launched or time.perf_counter()
        self.runtime.launch(launch)

    def record(self, launches: Sequence[Launch]) -> Callable[[], None]:
        replay = self.runtime.record(launches)

        def start() -> None:
            self.launched = self.launched or time.perf_counter()
            replay()

        return start


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median, least and most.

    >>> spread([3.0, 1.0, 2.0], 10)
    {'median': 20.0, 'least': 10.0, 'most': 30.0}
    """
    return {"median": scale * statistics.median(values), "least": scale * min(values), "most": scale * max(values)}


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
    """float32 multiply-adds at the highest clock; None for a card that `UNITS` does not know, or without a clock."""
    clock, units = watch.facts()["clock_hz"], UNITS.get(watch.capability)
    return 2 * units * watch.blocks * clock / 1e9 if units and clock else None


def copy_seconds(runtime: Any, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of copies of so many numbers to the device, and back."""
    array = np.random.default_rng(0).random(count, np.float32)
    handle = runtime.put(array)
    if not np.array_equal(runtime.get(handle), array):
        raise FastMLPError(f"{count:,} numbers came back from the device as others")

    def there() -> None:
        runtime.fill(handle, array)
        runtime.wait()

    return seconds_of(there, rounds), seconds_of(lambda: runtime.get(handle), rounds)


def measure_copies(watch: Watch, sizes: Sizes) -> dict[str, Any]:
    """Host's pageable memory to the device's and back: GB/s of a large array, microseconds of a single number."""
    large = copy_seconds(watch.runtime, sizes.copied // 4, sizes.rounds)
    single = copy_seconds(watch.runtime, 1, sizes.rounds)
    found: dict[str, Any] = {"bytes": sizes.copied}
    for way, of_large, of_single in zip(("in", "out"), large, single, strict=True):
        found[f"{way}_gb_per_s"] = spread([sizes.copied / one / 1e9 for one in of_large])
        found[f"{way}_single_us"] = spread(of_single, 1e6)
    return found


def measure_barriers(watch: Watch, sizes: Sizes) -> list[dict[str, Any]]:
    """Microseconds of a barrier over the grid, by blocks: from the difference of few and many in one launch.

    `launch` is a launch with no barrier and the wait for its end.
    """
    program, rows = watch.program("barriers", PLAIN, cuda.SHAPE), []
    counter = watch.put(np.zeros(1, np.uint64))
    for blocks in sizes.blocks(watch.blocks):

        def launched(count: int, blocks: int = blocks) -> float:
            watch.fill(counter, np.zeros(1, np.uint64))
            began = time.perf_counter()
            watch.launch(Launch(program, blocks, (counter, count), together=True))
            watch.wait()
            seconds = time.perf_counter() - began
            if (arrived := int(watch.get(counter)[0])) != blocks * count:
                raise FastMLPError(f"{arrived:,} arrivals at {count:,} barriers of {blocks} blocks")
            return seconds

        few, many = sizes.barriers
        times = {count: [launched(count) for _ in range(sizes.rounds + 1)][1:] for count in (0, few, many)}
        each = [(long - short) / (many - few) for short, long in zip(times[few], times[many], strict=True)]
        rows.append({"blocks": blocks, "barrier_us": spread(each, 1e6), "launch_us": spread(times[0], 1e6)})
    return rows


def check_product(network: Network, start: Any, x: Any, z: Any) -> float:
    """Relative error of z = x w + b; raises FastMLPError if rounding in float32 does not explain it."""
    ((w, b),) = network.views(start.astype(np.float64))
    wanted = x.astype(np.float64) @ w + b
    error = float(np.linalg.norm(z - wanted) / np.linalg.norm(wanted))
    if not error <= PRODUCT_AGREEMENT:
        raise FastMLPError(f"the forward pass of {network.label} has a relative error of {error:.2g}")
    return error


def measure_product(watch: Watch, inputs: int, outputs: int, sizes: Sizes) -> dict[str, Any]:
    """GFLOP/s of the forward pass of one layer, rows resident on the device: products, biases and the reading of rows."""
    network, n, count = Network((inputs, outputs)), sizes.product_rows, sizes.product_launches
    start = network.initial_parameters(0)
    with contextlib.closing(cuda.CudaEngine(Job(network, Optimizer(), n), watch)) as engine:
        engine.load(State(start, np.empty((0, len(start)), np.float32), 0))
        x = np.random.default_rng(0).random((n, inputs), np.float32)
        error = check_product(network, start, x[:PRODUCT_ROWS], engine.forward(x)[:PRODUCT_ROWS])
        launch: Any = watch.last

        def launched() -> None:
            for _ in range(count):
                watch.launch(launch)
            watch.wait()

        rates = [2 * n * inputs * outputs * count / one / 1e9 for one in seconds_of(launched, sizes.rounds)]
    peak, what = peak_gflops(watch), {"rows": n, "inputs": inputs, "outputs": outputs, "relative_error": error}
    return what | {"gflops": spread(rates), "share_of_peak": None if peak is None else statistics.median(rates) / peak}


# ------------------------------------------------------------------------------------------------ epochs of our engine


class Given(NamedTuple):
    """What a subject is trained on; x : as our engine takes it; scaled : float32, as others do."""

    x: Any
    y: Any
    scaling: Scaling | None
    scaled: Any


@functools.lru_cache(maxsize=1)
def given(features: int, outputs: int, pixels: bool, rows: int) -> Given:
    """Random rows and labels."""
    draw = np.random.default_rng(features)
    y = draw.integers(0, outputs, rows, np.int32)
    if not pixels:
        x = draw.random((rows, features), np.float32)
        return Given(x, y, None, x)
    raw = draw.integers(0, 256, (rows, features), np.uint8)
    scaling = fit_scaling("unit", raw)
    return Given(raw, y, scaling, scaling.apply(raw))


class Ours:
    """Our engine as a contestant: what it trains, in whole batches only, and its state from the start."""

    backend = "cuda"

    def __init__(self, subject: Subject, runtime: Any, sizes: Sizes) -> None:
        sizes_of, self.batch = subject.case.sizes, subject.case.batch
        self.network = Network(sizes_of, activation="relu")
        self.given = given(sizes_of[0], sizes_of[-1], subject.pixels, sizes.rows)
        self.start = self.network.initial_parameters(0)
        self.job = Job(self.network, Optimizer(), self.batch, scaling=self.given.scaling)
        self.steps = sizes.rows // self.batch
        self.probe = order_of(0, sizes.rows)[: min(PROBE, self.steps) * self.batch]
        self.engine = cuda.CudaEngine(self.job, runtime)
        self.load(self.engine)

    def load(self, engine: Engine) -> None:
        engine.load(State(self.start, np.empty((0, len(self.start)), np.float32), 0))

    def losses(self, engine: Engine) -> Any:
        """Mean losses of an engine's first steps."""
        rates = np.full(len(self.probe) // self.batch, RATE)
        found = engine.train(self.given.x, self.given.y, self.probe, rates)
        return found.loss.reshape(-1, self.batch).mean(axis=1, dtype=np.float64)

    def probe_losses(self) -> Any:
        """Mean losses of the first steps, once they are those of the specification."""
        reference = NumpyEngine(self.job)
        self.load(reference)
        found = self.losses(self.engine)
        check_same(found, self.losses(reference))
        return found

    def order(self, index: int) -> Any:
        """Rows of an epoch: as many whole batches as there are."""
        return order_of(index, len(self.given.x))[: self.steps * self.batch]

    def epoch(self, order: Any) -> float:
        """Mean loss of an epoch."""
        rates = np.full(len(order) // self.batch, RATE)
        return float(self.engine.train(self.given.x, self.given.y, order, rates).loss.mean(dtype=np.float64))

    def close(self) -> None:
        self.engine.close()


def check_same(found: Any, wanted: Any) -> None:
    """Raise FastMLPError unless losses of steps agree as closely as rounding lets them."""
    worst = float(np.max(np.abs(np.asarray(found) / np.asarray(wanted) - 1)))
    if not worst <= PROBE_AGREEMENT:
        raise FastMLPError(
            f"does not compute the same: losses of the first {len(wanted)} steps differ by {worst:.2g} relatively, "
            f"allowed {PROBE_AGREEMENT:.2g}"
        )


def row_of(stage: str, ours: Ours, subject: Subject, engine: str, seconds: Sequence[float]) -> dict[str, Any]:
    """A row of the result: seconds of epochs from the call on the host until its results are there."""
    case, steps = subject.case, ours.steps
    return {
        "stage": stage,
        "network": case.network,
        "batch": case.batch,
        "engine": engine,
        "inputs": "uint8" if subject.pixels else "float32",
        "rows": steps * case.batch,
        "steps": steps,
        "rounds": len(seconds),
        "seconds_per_epoch": statistics.median(seconds),
        "microseconds_per_step": 1e6 * statistics.median(seconds) / steps,
        "spread": spread(seconds),
        "transfers": None,
    }


def measure_epochs(watch: Watch, subject: Subject, sizes: Sizes) -> dict[str, Any]:
    """Epochs of our engine alone: first as they are, then once more with copies and computing timed apart.

    transfers : seconds of copies of an epoch, `in` and `out`; `first_in` is of the first call, with all rows and parameters
    device : seconds an epoch from the start of its launches to their end; first_epoch : with the recording of its graph
    """
    with contextlib.ExitStack() as stack:
        watch.reset()
        watch.apart = True
        stack.callback(setattr, watch, "apart", False)
        ours = Ours(subject, watch, sizes)
        stack.callback(ours.close)
        ours.probe_losses()
        first_in, watch.apart = watch.copied["in"], False
        seconds = [seconds_of_epoch(ours, ours.order(index)) for index in range(sizes.rounds + 1)]
        watch.apart, copies, device = True, [], []
        for index in range(sizes.rounds):
            watch.reset()
            seconds_of_epoch(ours, ours.order(index))
            copies.append(watch.copied)
            device.append(watch.computed)
    row, on_device = row_of("epochs", ours, subject, "cuda", seconds[1:]), statistics.median(device)
    return row | {
        "transfers": {way: statistics.median(one[way] for one in copies) for way in ("in", "out")} | {"first_in": first_in},
        "device_seconds_per_epoch": on_device,
        "device_microseconds_per_step": 1e6 * on_device / ours.steps,
        "first_epoch_seconds": seconds[0],
    }


def seconds_of_epoch(contestant: Any, order: Any) -> float:
    """Seconds of an epoch, on the host's clock."""
    began = time.perf_counter()
    contestant.epoch(order)
    return time.perf_counter() - began
