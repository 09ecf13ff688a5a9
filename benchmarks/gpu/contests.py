"""Time epochs on a machine with a GPU: fastmlp's engines and PyTorch alternately, copies and computation separately.

The data, the checks and the rounds are the same as in `fastmlp bench` (fastmlp/bench/rounds.py). An implementation is not
timed if its losses disagree with those of the NumPy engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.measures import TimedRuntime
from benchmarks.gpu.sizes import Sizes
from fastmlp.bench.cases import Case, Rows, Source
from fastmlp.bench.contestant import Contestant, Order, OwnEngine, Task
from fastmlp.bench.rounds import (
    BenchSettings,
    Entry,
    label,
    min_median_max,
    one_round,
    order_of,
    result_row,
    specified_losses,
    warm_up,
)
from fastmlp.data.scaling import fit_scaling
from fastmlp.engines.base import Engine, EngineSpec, step_count
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.engines.cuda import engine as cuda
from fastmlp.errors import UnavailableError
from fastmlp.nn.scaling import Scaling

THREAD_COUNTS = (1, 2, 4, 8, 16)
ROUNDOFF = {"float32": 0.0, "tf32": 2.0**-11, "bf16": 2.0**-8}  # unit roundoff of the operands
PIXEL_MAX = 255  # largest value of a pixel


class Variant(NamedTuple):
    """A configuration of the CUDA engine.

    pixels : if true, the rows are uint8 and are scaled when they are loaded; otherwise they are float32
    """

    optimizer: str = "sgd"
    precision: str = "float32"
    pixels: bool = False


PLAIN = Variant()
VARIANTS = (
    PLAIN,
    Variant(pixels=True),
    Variant("adam"),
    *(Variant(optimizer, precision) for precision in ("tf32", "bf16") for optimizer in ("sgd", "adam")),
)


class OnDevice(OwnEngine):
    """The CUDA engine on a given runtime."""

    def __init__(self, runtime: Any, variant: Variant = PLAIN) -> None:
        super().__init__("cuda", None)
        self.runtime, self.variant = runtime, variant
        self.scaling: Scaling | None = None
        self.roundoff = ROUNDOFF[variant.precision]

    def make(self, task: Task) -> Engine:
        spec = EngineSpec(
            task.network, task.optimizer, task.batch, task.seed, scaling=self.scaling, precision=self.variant.precision
        )
        return cuda.CudaEngine(spec, self.runtime)

    def prepare(self, task: Task) -> None:
        if self.variant.pixels:
            pixels: Any = np.rint(task.x * PIXEL_MAX).astype(np.uint8)
            self.scaling, task = fit_scaling("unit", pixels), dataclasses.replace(task, x=pixels)
        super().prepare(task)


@functools.lru_cache(maxsize=1)  # a process measures only one case
def rows_of(case: Case, data: str, rows: int) -> Rows:
    return Source(data, rows).rows_for(case)


def task_of(case: Case, sizes: Sizes, optimizer: str = "sgd", whole_batches: bool = False) -> tuple[Task, str]:
    """Return the training task and the name of its data set, which is "synthetic" if `sizes.data` is not available.

    whole_batches : if true, drop the rows of an incomplete last mini-batch
    """
    rows = rows_of(case, sizes.data, sizes.rows)
    task = BenchSettings([case], rows=sizes.rows, optimizer=optimizer).task(case, rows)
    count = len(task.x) // task.batch * task.batch if whole_batches else len(task.x)
    return dataclasses.replace(task, x=task.x[:count], y=task.y[:count]), rows.name


def valid_entries(
    findings: Findings, task: Task, contestants: Sequence[Contestant], stack: contextlib.ExitStack
) -> list[Entry]:
    """Warm up all contestants; return those that can be timed.

    A contestant whose losses disagree with the NumPy engine is recorded as an error, and one that is unavailable as left out.
    """
    specified, found = specified_losses(task), []
    for contestant in contestants:
        name = label(contestant.backend, contestant.threads)
        stack.callback(contestant.close)
        try:
            found.append(Entry(contestant, warm_up(contestant, task, specified)))
        except Exception as error:  # PyTorch's compiler raises many types; continue with the others
            if isinstance(error, UnavailableError) and not isinstance(contestant, OwnEngine):
                findings.add("left_out", {"what": f"{task.network.label}, batch {task.batch}: {name}", "reason": str(error)})
            else:
                findings.error(name, error)
    return found


def row_of(case: Case, entry: Entry, entries: Sequence[Entry], gflop: float) -> dict[str, Any]:
    """Return a row of the results.

    Its key "over_cuda" is the ratio of its times to the CUDA engine's times in the same rounds, or None without CUDA engine.
    """
    pairs = [zip(entry.seconds, other.seconds, strict=True) for other in entries if other.backend == "cuda"]
    over = min_median_max([one / ours for one, ours in pairs[0]]) if pairs else None
    return result_row(case, entry, gflop) | {"over_cuda": over}


def contest(
    findings: Findings, key: str, case: Case, sizes: Sizes, contestants: Sequence[Contestant], whole_batches: bool = False
) -> None:
    """Time one epoch of each contestant per round; the rows of the results are saved after each round."""
    task, data = task_of(case, sizes, whole_batches=whole_batches)
    gflop = task.network.flops_per_row * len(task.x) / 1e9
    with contextlib.ExitStack() as stack:
        entries = valid_entries(findings, task, contestants, stack)
        for index in range(1, sizes.rounds + 1):
            one_round(entries, order_of(index, len(task.x)), sizes.rest)
            findings.put(key, [row_of(case, entry, entries, gflop) | {"rows": len(task.x), "data": data} for entry in entries])


def own_engines(runtime: Any) -> list[Contestant]:
    """Return fastmlp's engines: CUDA, then Numba with several numbers of threads, then NumPy with all cores."""
    cores = available_cores()
    several = [OwnEngine("numba", threads) for threads in THREAD_COUNTS if threads <= cores]
    return [OnDevice(runtime), *several, OwnEngine("numpy", cores)]


# ------------------------------------------------------------------------------------------------ the CUDA engine alone


class EpochTimes(NamedTuple):
    """Times of epochs of the CUDA engine, in seconds.

    wall : total time of each epoch
    copied : time of the copies to the device ("in") and from the device ("out") in each epoch
    computed : time from the first launch of each epoch to the end of its last launch
    """

    wall: list[float]
    copied: list[dict[str, float]]
    computed: list[float]


def timed_epochs(runtime: TimedRuntime, contestant: Contestant, orders: Sequence[Order]) -> EpochTimes:
    """Train each epoch twice: first its total time is measured, and then the times of copies and computation.

    Measuring copies and computation separately adds overhead, so it does not contribute to the total time.
    """
    found = EpochTimes([], [], [])
    for order in orders:
        began = time.perf_counter()
        contestant.epoch(order)
        found.wall.append(time.perf_counter() - began)
    runtime.separate = True
    try:
        for order in orders:
            runtime.reset()
            contestant.epoch(order)
            found.copied.append(runtime.copied)
            found.computed.append(runtime.computed)
    finally:
        runtime.separate = False
    return found


def measure_variant(runtime: TimedRuntime, case: Case, sizes: Sizes, variant: Variant) -> dict[str, Any]:
    """Return a row of the results for one configuration of the CUDA engine. The main keys are:

    seconds_per_epoch : median total time of an epoch
    device_seconds : median time from the first launch of an epoch to the end of its last launch
    copies : median seconds of copies per epoch, "in" and "out"; the training rows are not copied, since they stay on the GPU

    Raises
    ------
    Disagreement : the losses disagree with those of the NumPy engine
    """
    task, data = task_of(case, sizes, variant.optimizer)
    with contextlib.closing(OnDevice(runtime, variant)) as contestant:
        warm_up(contestant, task, specified_of(case, sizes, variant.optimizer))
        orders = [order_of(index, len(task.x)) for index in range(1, sizes.device_rounds + 1)]
        found = timed_epochs(runtime, contestant, orders)
    steps = step_count(len(task.x), task.batch)
    return {
        "network": case.network,
        "batch": case.batch,
        **variant._asdict(),
        "data": data,
        "rows": len(task.x),
        "seconds_per_epoch": statistics.median(found.wall),
        "spread": min_median_max(found.wall),
        "device_seconds": statistics.median(found.computed),
        "device_microseconds_per_step": 1e6 * statistics.median(found.computed) / steps,
        "copies": {way: statistics.median(one[way] for one in found.copied) for way in ("in", "out")},
        "gflops": task.network.flops_per_row * len(task.x) / 1e9 / statistics.median(found.wall),
    }


@functools.lru_cache(maxsize=4)
def specified_of(case: Case, sizes: Sizes, optimizer: str) -> tuple[float, float]:
    """Return the first losses of the NumPy engine, with which the losses in all precisions are compared."""
    return specified_losses(task_of(case, sizes, optimizer)[0])


def measure_variants(case: Case, findings: Findings, sizes: Sizes, runtime: TimedRuntime) -> None:
    """Measure all configurations of the CUDA engine; record a row for each."""
    for variant in VARIANTS:
        try:
            findings.add("variants", measure_variant(runtime, case, sizes, variant))
        except Exception as error:  # continue with the others
            findings.error(f"{case.label}, {variant}", error)
