"""Epochs on a machine with a GPU: our engines and PyTorch in turn, and the CUDA engine with its copies timed apart.

Rows, checks and rounds are those of `fastmlp bench` (fastmlp/bench/rounds.py): what does not compute what the specification
does is not measured.
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

from benchmarks.gpu.measures import Watch
from benchmarks.gpu.part import Part
from benchmarks.gpu.sizes import Sizes
from fastmlp.bench.cases import Case, Rows, Source
from fastmlp.bench.contestant import Contestant, Order, OwnEngine, Task
from fastmlp.bench.rounds import (
    BenchSettings,
    Entry,
    label,
    one_round,
    order_of,
    result_row,
    specified_losses,
    spread,
    warm_up,
)
from fastmlp.data.scaling import fit_scaling
from fastmlp.engines.base import Engine, EngineSpec, step_count
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.engines.cuda import engine as cuda
from fastmlp.errors import UnavailableError
from fastmlp.nn.scaling import Scaling

NUMBERS_OF_THREADS = (1, 2, 4, 8, 16)
ROUNDOFF = {"float32": 0.0, "tf32": 2.0**-11, "bf16": 2.0**-8}  # unit roundoff
PIXELS = 255  # what the scaling "unit" divides by


class Variant(NamedTuple):
    """A way in which the CUDA engine trains; pixels : its rows are uint8, scaled as they are used, else float32."""

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
    """The CUDA engine, over a runtime that is given."""

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
            pixels: Any = np.rint(task.x * PIXELS).astype(np.uint8)
            self.scaling, task = fit_scaling("unit", pixels), dataclasses.replace(task, x=pixels)
        super().prepare(task)


@functools.lru_cache(maxsize=1)  # a process has one case
def rows_of(case: Case, data: str, rows: int) -> Rows:
    return Source(data, rows).rows_for(case)


def task_of(case: Case, sizes: Sizes, optimizer: str = "sgd", whole: bool = False) -> tuple[Task, str]:
    """What is trained, and the name of its data: "synthetic" where `sizes.data` is missing; whole : no short last batch."""
    rows = rows_of(case, sizes.data, sizes.rows)
    task = BenchSettings([case], rows=sizes.rows, optimizer=optimizer).task(case, rows)
    count = len(task.x) // task.batch * task.batch if whole else len(task.x)
    return dataclasses.replace(task, x=task.x[:count], y=task.y[:count]), rows.name


def admitted(part: Part, task: Task, contestants: Sequence[Contestant], stack: contextlib.ExitStack) -> list[Entry]:
    """Those that compute the same, warmed up; the others are reported with the reason."""
    specified, found = specified_losses(task), []
    for contestant in contestants:
        who = label(contestant.backend, contestant.threads)
        stack.callback(contestant.close)
        try:
            found.append(Entry(contestant, warm_up(contestant, task, specified)))
        except Exception as error:  # of ours, or whatever PyTorch's compiler raises: the others are measured
            if isinstance(error, UnavailableError) and not isinstance(contestant, OwnEngine):
                part.add("left_out", {"what": f"{task.network.label}, batch {task.batch}: {who}", "reason": str(error)})
            else:
                part.error(who, error)
    return found


def row_of(case: Case, entry: Entry, entries: Sequence[Entry], gflop: float) -> dict[str, Any]:
    """A row; over_cuda : its seconds over those of the CUDA engine in the same round, None where that is missing."""
    pairs = [zip(entry.seconds, other.seconds, strict=True) for other in entries if other.backend == "cuda"]
    over = spread([one / ours for one, ours in pairs[0]]) if pairs else None
    return result_row(case, entry, gflop) | {"over_cuda": over}


def contest(part: Part, key: str, case: Case, sizes: Sizes, contestants: Sequence[Contestant], whole: bool = False) -> None:
    """Rows of all contestants in a case, an epoch of each in turn; they are kept after each round."""
    task, data = task_of(case, sizes, whole=whole)
    gflop = task.network.flops_per_row * len(task.x) / 1e9
    with contextlib.ExitStack() as stack:
        entries = admitted(part, task, contestants, stack)
        for index in range(1, sizes.rounds + 1):
            one_round(entries, order_of(index, len(task.x)), sizes.rest)
            part.put(key, [row_of(case, entry, entries, gflop) | {"rows": len(task.x), "data": data} for entry in entries])


def own_engines(runtime: Any) -> list[Contestant]:
    """Our engines: CUDA first, then the compiled one on several numbers of threads, and NumPy on all cores."""
    cores = available_cores()
    several = [OwnEngine("numba", threads) for threads in NUMBERS_OF_THREADS if threads <= cores]
    return [OnDevice(runtime), *several, OwnEngine("numpy", cores)]


# ------------------------------------------------------------------------------------------------ the CUDA engine alone


class Timed(NamedTuple):
    """Seconds of epochs of the CUDA engine: on the host's clock, of copies in and out, and from launches to their end."""

    whole: list[float]
    copied: list[dict[str, float]]
    computed: list[float]


def timed_epochs(watch: Watch, contestant: Contestant, orders: Sequence[Order]) -> Timed:
    """Each epoch twice: as it is, and once more with copies and computing timed apart, which adds overhead."""
    found = Timed([], [], [])
    for order in orders:
        began = time.perf_counter()
        contestant.epoch(order)
        found.whole.append(time.perf_counter() - began)
    watch.apart = True
    try:
        for order in orders:
            watch.reset()
            contestant.epoch(order)
            found.copied.append(watch.copied)
            found.computed.append(watch.computed)
    finally:
        watch.apart = False
    return found


def measure_variant(watch: Watch, case: Case, sizes: Sizes, variant: Variant) -> dict[str, Any]:
    """A row of the CUDA engine alone.

    seconds_per_epoch : median on the host's clock; device_seconds : from the start of an epoch's launches to their end
    copies : seconds `in` and `out` of an epoch, rows of the data left out, which stay on the device

    Raises
    ------
    Disagreement : it does not compute what the specification does
    """
    task, data = task_of(case, sizes, variant.optimizer)
    with contextlib.closing(OnDevice(watch, variant)) as contestant:
        warm_up(contestant, task, specified_of(case, sizes, variant.optimizer))
        orders = [order_of(index, len(task.x)) for index in range(1, sizes.device_rounds + 1)]
        found = timed_epochs(watch, contestant, orders)
    steps = step_count(len(task.x), task.batch)
    return {
        "network": case.network,
        "batch": case.batch,
        **variant._asdict(),
        "data": data,
        "rows": len(task.x),
        "seconds_per_epoch": statistics.median(found.whole),
        "spread": spread(found.whole),
        "device_seconds": statistics.median(found.computed),
        "device_microseconds_per_step": 1e6 * statistics.median(found.computed) / steps,
        "copies": {way: statistics.median(one[way] for one in found.copied) for way in ("in", "out")},
        "gflops": task.network.flops_per_row * len(task.x) / 1e9 / statistics.median(found.whole),
    }


@functools.lru_cache(maxsize=4)
def specified_of(case: Case, sizes: Sizes, optimizer: str) -> tuple[float, float]:
    """First losses of the specification, the same for all precisions."""
    return specified_losses(task_of(case, sizes, optimizer)[0])


def measure_variants(case: Case, part: Part, sizes: Sizes, watch: Watch) -> None:
    """A row for each way in which the CUDA engine trains."""
    for variant in VARIANTS:
        try:
            part.add("variants", measure_variant(watch, case, sizes, variant))
        except Exception as error:  # the others are measured
            part.error(f"{case.label}, {variant}", error)
