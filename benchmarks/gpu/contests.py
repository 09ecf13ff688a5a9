"""Time epochs on a machine with a GPU: fastmlp's engines and PyTorch in turn, and the CUDA engine with separately timed copies.

Rows, checks and rounds are those of `fastmlp bench` (fastmlp/bench/rounds.py): implementations whose losses disagree with the
specification are not timed.
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
ROUNDOFF = {"float32": 0.0, "tf32": 2.0**-11, "bf16": 2.0**-8}  # unit roundoff
PIXEL_MAX = 255  # divisor of the scaling "unit"


class Variant(NamedTuple):
    """A configuration of the CUDA engine; pixels : rows are uint8 and are scaled on the fly, otherwise float32."""

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


@functools.lru_cache(maxsize=1)  # each process measures one case
def rows_of(case: Case, data: str, rows: int) -> Rows:
    return Source(data, rows).rows_for(case)


def task_of(case: Case, sizes: Sizes, optimizer: str = "sgd", whole_batches: bool = False) -> tuple[Task, str]:
    """Return the training task and the name of its data: "synthetic" if `sizes.data` is missing.

    whole_batches : drop the rows of an incomplete last batch
    """
    rows = rows_of(case, sizes.data, sizes.rows)
    task = BenchSettings([case], rows=sizes.rows, optimizer=optimizer).task(case, rows)
    count = len(task.x) // task.batch * task.batch if whole_batches else len(task.x)
    return dataclasses.replace(task, x=task.x[:count], y=task.y[:count]), rows.name


def valid_entries(
    findings: Findings, task: Task, contestants: Sequence[Contestant], stack: contextlib.ExitStack
) -> list[Entry]:
    """Warm up all contestants; return those whose losses agree with the specification, and record why the others do not."""
    specified, found = specified_losses(task), []
    for contestant in contestants:
        name = label(contestant.backend, contestant.threads)
        stack.callback(contestant.close)
        try:
            found.append(Entry(contestant, warm_up(contestant, task, specified)))
        except Exception as error:  # PyTorch's compiler may raise anything; continue with the others
            if isinstance(error, UnavailableError) and not isinstance(contestant, OwnEngine):
                findings.add("left_out", {"what": f"{task.network.label}, batch {task.batch}: {name}", "reason": str(error)})
            else:
                findings.error(name, error)
    return found


def row_of(case: Case, entry: Entry, entries: Sequence[Entry], gflop: float) -> dict[str, Any]:
    """Return a result row; over_cuda : ratio of its seconds to the CUDA engine's in the same round, None if that is missing."""
    pairs = [zip(entry.seconds, other.seconds, strict=True) for other in entries if other.backend == "cuda"]
    over = min_median_max([one / ours for one, ours in pairs[0]]) if pairs else None
    return result_row(case, entry, gflop) | {"over_cuda": over}


def contest(
    findings: Findings, key: str, case: Case, sizes: Sizes, contestants: Sequence[Contestant], whole_batches: bool = False
) -> None:
    """Time all contestants on a case, one epoch of each per round; the rows are saved after each round."""
    task, data = task_of(case, sizes, whole_batches=whole_batches)
    gflop = task.network.flops_per_row * len(task.x) / 1e9
    with contextlib.ExitStack() as stack:
        entries = valid_entries(findings, task, contestants, stack)
        for index in range(1, sizes.rounds + 1):
            one_round(entries, order_of(index, len(task.x)), sizes.rest)
            findings.put(key, [row_of(case, entry, entries, gflop) | {"rows": len(task.x), "data": data} for entry in entries])


def own_engines(runtime: Any) -> list[Contestant]:
    """Return fastmlp's engines: CUDA first, then Numba with several numbers of threads, and NumPy on all cores."""
    cores = available_cores()
    several = [OwnEngine("numba", threads) for threads in THREAD_COUNTS if threads <= cores]
    return [OnDevice(runtime), *several, OwnEngine("numpy", cores)]


# ------------------------------------------------------------------------------------------------ the CUDA engine alone


class EpochTimes(NamedTuple):
    """Seconds per epoch of the CUDA engine: wall time, copies in and out, and from the first launch to the end of the last."""

    wall: list[float]
    copied: list[dict[str, float]]
    computed: list[float]


def timed_epochs(runtime: TimedRuntime, contestant: Contestant, orders: Sequence[Order]) -> EpochTimes:
    """Time each epoch twice: as is, and with copies and computation timed separately, which adds overhead."""
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
    """Return a row for one configuration of the CUDA engine.

    seconds_per_epoch : median wall time; device_seconds : from an epoch's first launch to the end of its last
    copies : seconds of copies `in` and `out` per epoch, without the training rows, which stay on the device

    Raises
    ------
    Disagreement : the losses disagree with the specification
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
    """Return the first losses of the specification; they are the same for all precisions."""
    return specified_losses(task_of(case, sizes, optimizer)[0])


def measure_variants(case: Case, findings: Findings, sizes: Sizes, runtime: TimedRuntime) -> None:
    """Record a row for each configuration of the CUDA engine."""
    for variant in VARIANTS:
        try:
            findings.add("variants", measure_variant(runtime, case, sizes, variant))
        except Exception as error:  # continue with the others
            findings.error(f"{case.label}, {variant}", error)
