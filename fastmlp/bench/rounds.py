"""Interleaved timing of whole training epochs of all contestants, in one process.

In each case, every contestant first trains a few batches and an epoch as an untimed warm-up, which includes compilation. Its
mean losses must agree with those of the specification from the same initial parameters; otherwise it is left out. Then, in
each round, every contestant trains one timed epoch on the same rows in the same order, and the ceiling is measured. Ratios are
taken within a round, so that other load on the machine affects both sides.
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
from fastmlp.errors import ConfigError, DivergedError, FastMLPError, UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import DEFAULT_LEARNING_RATE, Optimizer

LEARNING_RATE = 0.01  # at most; the optimiser's default if that is lower
REST = 0.2  # seconds before each epoch: threads of BLAS and OpenMP keep spinning for a while after their work
PROBE = 8  # mini-batches of the first comparison of losses
# Allowed relative difference of the mean loss over the probe. Rounding gave up to 7e-5 with all libraries, optimisers and
# networks of `CASES`; a learning rate that is 1 % off gives 5e-4.
PROBE_AGREEMENT = 2e-4
# The same over an epoch, in which rounding errors grow: up to 1e-3 was observed.
AGREEMENT = 5e-3
# Additional tolerance with dropout, plus 1 / sqrt(rows): other libraries draw their own masks.
DROPOUT_AGREEMENT = 0.02

Say = Callable[[str], None]


class Disagreement(FastMLPError):
    """An engine of fastmlp does not agree with the specification, and is not measured."""


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a benchmark.

    cases : networks and batch sizes; rows : maximum number of rows per epoch; rounds : number of timed rounds
    backends : names from `NAMES`; threads : maximum number of threads, None for one per core
    optimizer : of all networks; activation, dropout : of all their hidden layers
    data : as for `Source`; data_dir : folder of the named data sets
    rest : idle seconds before each epoch
    triad_bytes : size of each array of the triad; None derives it from the size of the caches

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
                "no case to measure; give at least one network and batch size", settings=("network", "batch_size")
            )
        for name in ("rows", "rounds", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}", settings=(name,))
        Optimizer(self.optimizer)
        contestants(self.backends)
        for case in self.cases:
            self.network(case)

    def network(self, case: Case) -> Network:
        """The network of a case."""
        return Network(case.sizes, activation=self.activation, dropout=self.dropout)

    def task(self, case: Case, rows: Rows) -> Task:
        """The training task of a case."""
        network = self.network(case)
        start = network.initial_parameters(0)
        return Task(network, rows.x, rows.y, start, case.batch, self.learning_rate, Optimizer(self.optimizer))

    @property
    def learning_rate(self) -> float:
        """Learning rate of all contestants."""
        return min(LEARNING_RATE, DEFAULT_LEARNING_RATE[self.optimizer])


@dataclass(eq=False)
class Entry:
    """A contestant in a case, its mean loss over the warm-up epoch, and the seconds of its timed epochs, one per round."""

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
    """Measure all cases; `say` is called with progress messages.

    Returns
    -------
    dict
        machine : date, processor, cores, load before the benchmark
        versions : of Python and of packages
        settings : settings of the measurement
        ceiling : for 1 and for the maximum number of threads: threads, gflops, triad (GB/s)
        rows : per case, one row for each backend at its best number of threads, and one for each number of threads of our
            compiled engine: network, batch, backend, threads, seconds_per_epoch (median), gflops, ceiling_share (fraction of
            the ceiling of the same number of threads; None for a device), least, most and seconds (of each round),
            first_loss (mean over the warm-up epoch), rows, data
        slower : the same for the other numbers of threads
        verdicts : per case, network, batch, ours, rival, ratio (median, least, most of rival's seconds divided by ours within
            a round; None if there is no rival or none of our compiled engines), text
        left_out : network, batch, backend, threads, reason

    Raises
    ------
    ConfigError : the data have no class labels
    DataError : the data cannot be read
    DivergedError : the loss of the first epoch is not finite
    UnavailableError : no contestant is available
    """
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
    """The settings as stored in the result."""
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
    """Measure one case; return its rows, verdict and the contestants left out."""
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
                say(f"  left out: {error}")
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
    """Return the order of the rows in a round, (rows,) int64; round 0 is the warm-up."""
    return np.random.default_rng(index).permutation(rows)


def first_losses(contestant: Contestant, task: Task) -> tuple[float, float]:
    """Return the mean losses of a prepared contestant over the probe and over the following epoch."""
    order = order_of(0, len(task.x))
    with contestant.limited():
        return contestant.epoch(order[: PROBE * task.batch]), contestant.epoch(order)


def specified_losses(task: Task) -> tuple[float, float]:
    """Return the first losses of the NumPy engine, which is the specification.

    Raises
    ------
    DivergedError : a loss is not finite
    """
    with contextlib.closing(OwnEngine("numpy", available_cores())) as reference:
        reference.prepare(task)
        losses = first_losses(reference, task)
    if not all(map(math.isfinite, losses)):
        raise DivergedError(
            "the training to be measured diverges; choose other data or another optimizer", settings=("data", "optimizer")
        )
    return losses


def tolerances(contestant: Contestant, task: Task) -> tuple[float, float]:
    """Return the allowed relative differences of a contestant's first losses from the specified ones."""
    own_masks = not isinstance(contestant, OwnEngine) and any(layer.dropout for layer in task.network.layers)
    counts = min(PROBE * task.batch, len(task.x)), len(task.x)
    rounded = contestant.roundoff if isinstance(contestant, OwnEngine) else 0.0
    more = [rounded + (DROPOUT_AGREEMENT + 1 / math.sqrt(count) if own_masks else 0.0) for count in counts]
    return PROBE_AGREEMENT + more[0], AGREEMENT + more[1]


def warm_up(contestant: Contestant, task: Task, specified: tuple[float, float]) -> float:
    """Compile everything, compare the first losses with the specified ones, and return the mean loss of the epoch.

    Raises
    ------
    UnavailableError : the contestant does not support the task, or disagrees with the specification
    Disagreement : an engine of fastmlp disagrees with the specification, which is a bug
    """
    contestant.prepare(task)
    losses = first_losses(contestant, task)
    for what, loss, needed, allowed in zip(
        (f"{PROBE} batches", "epoch"), losses, specified, tolerances(contestant, task), strict=True
    ):
        if not abs(loss / needed - 1) <= allowed:
            who = label(contestant.backend, contestant.threads)
            raise (Disagreement if isinstance(contestant, OwnEngine) else UnavailableError)(
                f"{who} does not agree with the specification: mean loss {loss:.6g} of the first {what}, expected "
                f"{needed:.6g}, allowed relative difference {allowed:.2g}"
            )
    return losses[1]


@contextlib.contextmanager
def ready(contestant: Contestant, task: Task, specified: tuple[float, float]) -> Iterator[Contestant]:
    """Yield a contestant, warmed up and limited to its threads, for other timers; close it at the end. With pytest-benchmark:

    with ready(contestant, task, specified_losses(task)):
        benchmark(contestant.epoch, order_of(1, len(task.x)))
    """
    with contextlib.closing(contestant):
        warm_up(contestant, task, specified)
        with contestant.limited():
            yield contestant


def one_round(entries: Sequence[Entry], order: Any, rest: float) -> None:
    """Time one epoch of each contestant on the same order of rows, and append it to the seconds of its entry."""
    for entry in entries:
        with entry.contestant.limited():
            time.sleep(rest)
            began = time.perf_counter()
            entry.contestant.epoch(order)
            entry.seconds.append(time.perf_counter() - began)


# ------------------------------------------------------------------------------------------------ results


def key_of(case: Case, contestant: Contestant) -> dict[str, Any]:
    """The fields that identify a row."""
    return {"network": case.network, "batch": case.batch, "backend": contestant.backend, "threads": contestant.threads}


def result_row(case: Case, entry: Entry, gflop: float) -> dict[str, Any]:
    """A row of the result; `run_bench` fills in the fraction of the ceiling."""
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
    """Yield each backend at its best number of threads, and our compiled engines at every number."""
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
    loss = f"we lose: {rival.label} is {times} {our.label} {rounds}"
    return {"ours": our.label, "rival": rival.label, "ratio": ratio, "text": win if won else loss}


def min_median_max(values: Sequence[float]) -> dict[str, float]:
    """Return the minimum ("least"), median and maximum ("most")."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
