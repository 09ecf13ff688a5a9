"""Interleaved timing of whole training epochs of all contestants, in one process.

For each case, every contestant first trains on a few mini-batches and then for one epoch. This warm-up includes compilation
and is not timed. The mean losses of the warm-up must agree with those of the reference implementation (the NumPy engine),
which starts from the same initial parameters; otherwise the contestant is not timed. Then, in each round, every contestant
trains for one timed epoch on the same rows in the same order, and the peak rates are measured. Contestants are compared by the
ratios of their times within a round, so that other load on the machine affects both times.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmlp.bench.cases import CASES, ROWS, Case, Rows, Source
from fastmlp.bench.contestant import Contestant, OwnEngine, Task
from fastmlp.bench.machine import PACKAGES, Ceilings, machine
from fastmlp.bench.rivals import NAMES, OURS, contestants
from fastmlp.engines import installed_versions
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.engines.jit import check_jit
from fastmlp.errors import ConfigError, DivergedError, FastMLPError, UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import DEFAULT_LEARNING_RATE, Optimizer

LEARNING_RATE = 0.01  # upper limit; a lower default learning rate of the optimizer takes precedence
REST = 0.2  # seconds of idle time before each epoch, because BLAS and OpenMP threads spin for a while after their work
PROBE = 8  # number of mini-batches in the probe, which is the first comparison of losses
# Allowed relative difference of the mean loss over the mini-batches of the probe. Rounding caused differences of up to 7e-5
# with all libraries, optimizers and networks of `CASES`; an error of 1 % in the learning rate causes a difference of 5e-4.
PROBE_AGREEMENT = 2e-4
# Allowed relative difference of the mean loss over an epoch. Rounding errors grow during the epoch; up to 1e-3 was observed.
AGREEMENT = 5e-3
# With dropout, other libraries draw different masks. This value plus 1 / sqrt(rows) is then added to the allowed difference.
DROPOUT_AGREEMENT = 0.02

Say = Callable[[str], None]


class Disagreement(FastMLPError):
    """The losses of one of fastmlp's engines do not agree with those of the reference implementation."""


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a benchmark.

    cases : networks and mini-batch sizes
    rows : maximum number of rows per epoch
    rounds : number of timed rounds
    backends : names of the contestants, from `NAMES`
    threads : maximum number of threads; None means one per core
    optimizer : optimizer of all networks
    activation, dropout : activation and dropout rate of all hidden layers
    data : name of a data set or "synthetic", as for `Source`
    data_dir : folder of the named data sets
    rest : idle time before each epoch, in seconds
    triad_bytes : size of each array of the memory bandwidth test; None derives it from the size of the caches

    Raises
    ------
    ConfigError : there is no case, a name is unknown, or a number is out of range
    """

    cases: Sequence[Case] = CASES[:1]
    rows: int = ROWS
    rounds: int = 5
    backends: Sequence[str] = NAMES
    threads: int | None = None
    optimizer: str = "sgd"
    activation: str = "relu"
    dropout: float = 0.0
    data: str = "fashion-mnist"
    data_dir: str | Path | None = None
    rest: float = REST
    triad_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.cases:
            raise ConfigError(
                "there is no case to measure; give at least one network and batch size", settings=("network", "batch_size")
            )
        for name in ("rows", "rounds", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}", settings=(name,))
        Optimizer(self.optimizer)
        contestants(self.backends)
        for case in self.cases:
            self.network(case)

    def network(self, case: Case) -> Network:
        """Return the network of a case."""
        return Network(case.sizes, activation=self.activation, dropout=self.dropout)

    def task(self, case: Case, rows: Rows) -> Task:
        """Return the training task of a case on the given data."""
        network = self.network(case)
        start = network.initial_parameters(0)
        return Task(network, rows.x, rows.y, start, case.batch, self.learning_rate, Optimizer(self.optimizer))

    @property
    def learning_rate(self) -> float:
        """Learning rate of all contestants: the optimizer's default, but at most `LEARNING_RATE`."""
        return min(LEARNING_RATE, DEFAULT_LEARNING_RATE[self.optimizer])


@dataclass(eq=False)
class Entry:
    """Measurements of a contestant in one case.

    first_loss : mean loss over the warm-up epoch
    seconds : duration of the timed epoch of each round
    """

    contestant: Contestant
    first_loss: float
    seconds: list[float] = field(default_factory=list)

    @property
    def backend(self) -> str:
        return self.contestant.backend

    @property
    def threads(self) -> int | None:
        return self.contestant.threads

    @property
    def label(self) -> str:
        return label(self.backend, self.threads)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def label(backend: str, threads: int | None) -> str:
    """Format the name and the number of threads of a contestant.

    >>> label("numba", 2), label("torch", 1), label("cuda", None)
    ('numba (2 threads)', 'torch (1 thread)', 'cuda')
    """
    return backend if threads is None else f"{backend} ({threads} thread{'s' * (threads > 1)})"


# ------------------------------------------------------------------------------------------------ measuring


def run_bench(settings: BenchSettings, say: Say = lambda text: None) -> dict[str, Any]:
    """Run the benchmark. `say` is called with progress messages.

    Returns
    -------
    dict
        machine : description of the machine, including its load before the benchmark
        versions : versions of Python and of packages
        settings : settings of the measurement
        ceiling : peak rates with 1 thread and with the maximum number of threads. Each entry has threads, gflops (GFLOP/s)
            and triad (GB/s)
        rows : for each case, one row per backend with its fastest number of threads; fastmlp's compiled engines have a row
            for every number of threads. A row has network, batch, backend, threads, seconds_per_epoch (median), gflops,
            ceiling_share (fraction of the peak rate with the same number of threads; None for a GPU), least and most
            (minimum and maximum seconds), seconds (of each round), rounds, first_loss (mean over the warm-up epoch), rows
            (number of training rows), data (name)
        slower : rows like the above for the slower numbers of threads
        verdicts : for each case, network, batch, ours, rival, ratio and text. The ratio is the time of the fastest other
            contestant divided by the time of our fastest engine in the same round (median, least, most). It is None if one of
            the two contestants is missing
        left_out : contestants that were not timed: network, batch, backend, threads, reason

    Raises
    ------
    ConfigError : the data have no class labels
    DataError : the data cannot be read
    DivergedError : the loss of the first epoch is not finite
    Disagreement : an engine of fastmlp disagrees with the reference implementation
    UnavailableError : no contestant is available for a case, or Numba's JIT compiler is disabled
    """
    check_jit("the benchmark")
    about = machine()
    most = settings.threads or available_cores()
    source = Source(settings.data, settings.rows, settings.data_dir)
    found: dict[str, list[Any]] = {"rows": [], "slower": [], "verdicts": [], "left_out": []}
    with contextlib.closing(Ceilings(sorted({1, most}), settings.triad_bytes)) as ceilings:
        for case in settings.cases:
            measured = measure(case, settings, source, ceilings, say)
            for key, rows in measured.items():
                found[key] += rows
    for row in found["rows"] + found["slower"]:
        ceiling = ceilings.gflops.get(row["threads"])
        row["ceiling_share"] = None if ceiling is None else row["gflops"] / ceiling
    return {
        "machine": about,
        "versions": installed_versions(PACKAGES),
        "settings": describe(settings, most),
        "ceiling": [{"threads": n, "gflops": ceilings.gflops[n], "triad": ceilings.triad[n]} for n in ceilings.gflops],
        **found,
    }


def describe(settings: BenchSettings, threads: int) -> dict[str, Any]:
    """Return the settings in the form in which they are stored in the result."""
    return {
        "rounds": settings.rounds,
        "threads": threads,
        "optimizer": settings.optimizer,
        "activation": settings.activation,
        "dropout": settings.dropout,
        "rate": settings.learning_rate,
        "dtype": "float32",
        "rest": settings.rest,
    }


def measure(case: Case, settings: BenchSettings, source: Source, ceilings: Ceilings, say: Say) -> dict[str, list[Any]]:
    """Measure one case; return the entries "rows", "slower", "verdicts" and "left_out" of the result of `run_bench`."""
    rows = source.rows_for(case)
    say(f"{case.label}: {len(rows.x):,} rows of {rows.name} data")
    task = settings.task(case, rows)
    with contextlib.ExitStack() as stack:
        entries, left_out = [], []
        specified = specified_losses(task)
        for contestant in contestants(settings.backends, settings.threads):
            stack.callback(contestant.close)
            say(f"  warm-up: {label(contestant.backend, contestant.threads)}")
            try:
                entries.append(Entry(contestant, warm_up(contestant, task, specified)))
            except UnavailableError as error:
                left_out.append({**key_of(case, contestant), "reason": str(error)})
                say(f"  not timed: {error}")
        if not entries:
            raise UnavailableError(f"{case.label}: no backend is available; {left_out[0]['reason']}")
        for index in range(1, settings.rounds + 1):
            say(f"  round {index}/{settings.rounds}")
            one_round(entries, order_of(index, len(rows.x)), settings.rest)
            time.sleep(settings.rest)
            ceilings.measure()
    gflop = task.network.flops_per_row * len(rows.x) / 1e9
    made = {id(entry): result_row(case, entry, gflop) | {"rows": len(rows.x), "data": rows.name} for entry in entries}
    best = list(best_of_each(entries))
    return {
        "rows": [made[id(entry)] for entry in best],
        "slower": [made[id(entry)] for entry in entries if entry not in best],
        "verdicts": [{"network": case.network, "batch": case.batch, **verdict(best)}],
        "left_out": left_out,
    }


def order_of(index: int, rows: int) -> Any:
    """Return the order of the rows in a round, an int64 permutation of shape (rows,). Round 0 is the warm-up."""
    return np.random.default_rng(index).permutation(rows)


def first_losses(contestant: Contestant, task: Task) -> tuple[float, float]:
    """Train a prepared contestant on the first mini-batches (the probe) and then for an epoch; return the two mean losses."""
    order = order_of(0, len(task.x))
    with contestant.limited():
        return contestant.epoch(order[: PROBE * task.batch]), contestant.epoch(order)


def specified_losses(task: Task) -> tuple[float, float]:
    """Return the result of `first_losses` for the NumPy engine, which is the reference implementation.

    Raises
    ------
    DivergedError : a loss is not finite
    """
    with contextlib.closing(OwnEngine("numpy", available_cores())) as reference:
        reference.prepare(task)
        losses = first_losses(reference, task)
    if not all(map(math.isfinite, losses)):
        raise DivergedError(
            "the training to be timed diverges; choose other data or another optimizer", settings=("data", "optimizer")
        )
    return losses


def tolerances(contestant: Contestant, task: Task) -> tuple[float, float]:
    """Return the allowed relative differences from the reference losses, for the first mini-batches and for the epoch."""
    own_masks = not isinstance(contestant, OwnEngine) and any(layer.dropout for layer in task.network.layers)
    counts = min(PROBE * task.batch, len(task.x)), len(task.x)
    rounded = contestant.roundoff if isinstance(contestant, OwnEngine) else 0.0
    more = [rounded + (DROPOUT_AGREEMENT + 1 / math.sqrt(count) if own_masks else 0.0) for count in counts]
    return PROBE_AGREEMENT + more[0], AGREEMENT + more[1]


def warm_up(contestant: Contestant, task: Task, specified: tuple[float, float]) -> float:
    """Prepare a contestant, train it on the first mini-batches and for an epoch, and return the mean loss of the epoch.

    All code is compiled during this warm-up. The losses are compared with `specified`, the losses of the reference
    implementation.

    Raises
    ------
    UnavailableError : the contestant does not support the task, or its losses disagree with the reference implementation
    Disagreement : the losses of an engine of fastmlp disagree with those of the reference implementation; this is a bug
    """
    contestant.prepare(task)
    losses = first_losses(contestant, task)
    for what, loss, needed, allowed in zip(
        (f"{PROBE} batches", "epoch"), losses, specified, tolerances(contestant, task), strict=True
    ):
        if not abs(loss / needed - 1) <= allowed:
            who = label(contestant.backend, contestant.threads)
            raise (Disagreement if isinstance(contestant, OwnEngine) else UnavailableError)(
                f"{who} does not agree with the reference implementation: mean loss {loss:.6g} of the first {what}, expected "
                f"{needed:.6g}, allowed relative difference {allowed:.2g}"
            )
    return losses[1]


@contextlib.contextmanager
def ready(contestant: Contestant, task: Task, specified: tuple[float, float]) -> Iterator[Contestant]:
    """Warm up a contestant and limit its number of threads, so that another tool can time it; close it at the end.

    Examples
    --------
    With pytest-benchmark::

        with ready(contestant, task, specified_losses(task)):
            benchmark(contestant.epoch, order_of(1, len(task.x)))
    """
    with contextlib.closing(contestant):
        warm_up(contestant, task, specified)
        with contestant.limited():
            yield contestant


def one_round(entries: Sequence[Entry], order: Any, rest: float) -> None:
    """Time one epoch of each contestant with the same order of rows, and append the duration to its entry."""
    for entry in entries:
        with entry.contestant.limited():
            time.sleep(rest)
            began = time.perf_counter()
            entry.contestant.epoch(order)
            entry.seconds.append(time.perf_counter() - began)


# ------------------------------------------------------------------------------------------------ results


def key_of(case: Case, contestant: Contestant) -> dict[str, Any]:
    """Return the fields that identify a row of the result."""
    return {"network": case.network, "batch": case.batch, "backend": contestant.backend, "threads": contestant.threads}


def result_row(case: Case, entry: Entry, gflop: float) -> dict[str, Any]:
    """Return a row of the result, except for the fraction of the peak rate, which `run_bench` adds."""
    return {
        **key_of(case, entry.contestant),
        "seconds_per_epoch": entry.median,
        "gflops": gflop / entry.median,
        "ceiling_share": None,
        "least": min(entry.seconds),
        "most": max(entry.seconds),
        "rounds": len(entry.seconds),
        "seconds": entry.seconds,
        "first_loss": entry.first_loss,
    }


def best_of_each(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the entry of each backend with its fastest number of threads, and all entries of our compiled engines."""
    for entry in entries:
        same = [other for other in entries if other.backend == entry.backend]
        if entry.backend in OURS or entry is min(same, key=lambda other: other.median):
            yield entry


def verdict(entries: Sequence[Entry]) -> dict[str, Any]:
    """Compare our fastest compiled engine with the fastest other contestant."""
    ours = [entry for entry in entries if entry.backend in OURS]
    others = [entry for entry in entries if entry.backend not in OURS]
    if not (ours and others):
        fastest = min(entries, key=lambda entry: entry.median).label
        return {"ours": None, "rival": None, "ratio": None, "text": f"fastest: {fastest}; nothing to compare with"}
    our, rival = (min(group, key=lambda entry: entry.median) for group in (ours, others))
    pairs = list(zip(rival.seconds, our.seconds, strict=True))
    ratio = min_median_max([a / b for a, b in pairs])
    won = ratio["median"] >= 1
    gain = ratio if won else min_median_max([b / a for a, b in pairs])
    always = "" if gain["least"] >= 1 else ", not in every round"
    times = f"{gain['median']:.2f} times as fast as"
    rounds = f"({gain['least']:.2f} to {gain['most']:.2f} over {len(pairs)} round{'s' * (len(pairs) > 1)}{always})"
    win = f"fastest: {our.label}, {times} {rival.label} {rounds}"
    loss = f"fastmlp is slower: {rival.label} is {times} {our.label} {rounds}"
    return {"ours": our.label, "rival": rival.label, "ratio": ratio, "text": win if won else loss}


def min_median_max(values: Sequence[float]) -> dict[str, float]:
    """Return a dict with the median, the minimum ("least") and the maximum ("most")."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
