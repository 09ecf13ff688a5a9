"""Measuring whole epochs of contestants against each other, in one process, in turn.

Here: `BenchSettings`, `run_bench`, the JSON object that comes of it, and `ready` for other clocks. Not here: the contestants
(contestant.py and the files after it), the ceiling (machine.py), the table and the chart (report.py).

For each case every contestant first trains a few batches and an epoch that are not timed: everything is compiled in them, and
from the same start their mean losses must be those of the specification, else the contestant is left out. Then come rounds:
in each, one epoch of every contestant in turn, all on the same rows in the same order, and the ceiling. Ratios are taken
within a round, so that a neighbour on the machine hurts both sides.
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

LEARNING_RATE = 0.01  # or less, where the update rule wants less
REST = 0.2  # seconds before each epoch: the threads of a BLAS or of OpenMP spin on for a while after their work
PROBE = 8  # batches of the first check
# Relative difference of the mean loss over the probe that rounding explains: up to 7e-5 was seen with libraries, rules and
# README's networks; a learning rate that is 1 % off makes 5e-4.
PROBE_AGREEMENT = 2e-4
# The same over an epoch, in which rounding grows: up to 1e-3 was seen.
AGREEMENT = 5e-3
# With dropout the masks of other libraries are their own: so much more, plus 1 / sqrt(rows).
DROPOUT_AGREEMENT = 0.02

Say = Callable[[str], None]


class Disagreement(FastMLPError):
    """An engine does not compute what the specification says, and is not measured."""


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    cases : networks and batches; rows : of an epoch, at most; rounds : that are timed
    backends : names in `NAMES`; threads : the most threads, None for one a core
    optimizer : of all networks; activation, dropout : of all their hidden layers
    data : as for `Source`; data_dir : folder of named data sets
    rest : seconds of rest before each epoch
    triad_bytes : of each array of the triad, None for what the caches ask for

    Raises
    ------
    ConfigError : no case, an unknown name, or a number that cannot be
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
        """What contestants train in a case."""
        network = self.network(case)
        start = network.initial_parameters(0)
        return Task(network, rows.x, rows.y, start, case.batch, self.learning_rate, Optimizer(self.optimizer))

    @property
    def learning_rate(self) -> float:
        """Learning rate of all contestants."""
        return min(LEARNING_RATE, DEFAULT_LEARNING_RATE[self.optimizer])


@dataclass(eq=False)
class Entry:
    """A contestant in a case, its mean loss over the epoch of the warm-up, and the seconds of its epochs, one a round."""

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
    """A contestant in words.

    >>> label("numba", 2), label("torch", 1), label("cuda", None)
    ('numba (2 threads)', 'torch (1 thread)', 'cuda')
    """
    return backend if threads is None else f"{backend} ({threads} thread{'s' * (threads > 1)})"


# ------------------------------------------------------------------------------------------------ measuring


def run_bench(settings: BenchSettings, say: Say = lambda text: None) -> dict[str, Any]:
    """Measure all cases; `say` is told what is going on.

    Returns
    -------
    dict
        machine : date, processor, cores, load before
        versions : of Python and of packages
        settings : what was measured, and how
        ceiling : for 1 and for the most threads: threads, gflops, triad (GB/s)
        rows : for each case one for each backend with its best number of threads, and of our compiled engine one for each
            number: network, batch, backend, threads, seconds_per_epoch (median), gflops, ceiling_share (of the ceiling of
            as many threads; None for a device), least, most and seconds (of each round),
            first_loss (mean over the epoch of the warm-up), rows, data
        slower : the same for numbers of threads that were not the best
        verdicts : for each case network, batch, ours, rival, ratio (median, least, most of rival's to our seconds within
            a round; None without a rival or without us), text
        left_out : network, batch, backend, threads, reason

    Raises
    ------
    ConfigError : settings that cannot be
    DataError : the data cannot be read
    DivergedError : the loss of the first epoch is not finite
    UnavailableError : nobody is left to be measured
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
    """The settings as they go into the result."""
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
    """Rows, verdict and who was left out, of one case."""
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
            raise UnavailableError(f"{case.label}: nobody to measure; {left_out[0]['reason']}")
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
    """Order of the rows in a round, (rows,) int64; round 0 is the warm-up."""
    return np.random.default_rng(index).permutation(rows)


def first_losses(contestant: Contestant, task: Task) -> tuple[float, float]:
    """Mean loss of a prepared contestant over the probe and over the epoch that follows it."""
    order = order_of(0, len(task.x))
    with contestant.limited():
        return contestant.epoch(order[: PROBE * task.batch]), contestant.epoch(order)


def specified_losses(task: Task) -> tuple[float, float]:
    """First losses of the NumPy engine, which is the specification."""
    with contextlib.closing(OwnEngine("numpy", available_cores())) as reference:
        reference.prepare(task)
        losses = first_losses(reference, task)
    if not all(map(math.isfinite, losses)):
        raise DivergedError(
            "the training to be measured diverges; choose other data or another optimizer", settings=("data", "optimizer")
        )
    return losses


def tolerances(contestant: Contestant, task: Task) -> tuple[float, float]:
    """How far a contestant's first losses may be from the specified ones, relatively."""
    own_masks = not isinstance(contestant, OwnEngine) and any(layer.dropout for layer in task.network.layers)
    counts = min(PROBE * task.batch, len(task.x)), len(task.x)
    rounded = contestant.roundoff if isinstance(contestant, OwnEngine) else 0.0
    more = [rounded + (DROPOUT_AGREEMENT + 1 / math.sqrt(count) if own_masks else 0.0) for count in counts]
    return PROBE_AGREEMENT + more[0], AGREEMENT + more[1]


def warm_up(contestant: Contestant, task: Task, specified: tuple[float, float]) -> float:
    """Compile everything, and hold the first losses against the specified ones; gives that of the epoch.

    Raises
    ------
    UnavailableError : the contestant cannot do the task, or does something else
    Disagreement : the same of an engine of ours, which is a bug
    """
    contestant.prepare(task)
    losses = first_losses(contestant, task)
    for what, loss, needed, allowed in zip(
        (f"{PROBE} batches", "epoch"), losses, specified, tolerances(contestant, task), strict=True
    ):
        if not abs(loss / needed - 1) <= allowed:
            who = label(contestant.backend, contestant.threads)
            raise (Disagreement if isinstance(contestant, OwnEngine) else UnavailableError)(
                f"{who} does not compute the same: mean loss {loss:.6g} of the first {what}, specified {needed:.6g}, "
                f"allowed relative difference {allowed:.2g}"
            )
    return losses[1]


@contextlib.contextmanager
def ready(contestant: Contestant, task: Task, specified: tuple[float, float]) -> Iterator[Contestant]:
    """A contestant warmed up and with its threads, for another clock than ours; closed at the end. With pytest-benchmark:

    with ready(contestant, task, specified_losses(task)):
        benchmark(contestant.epoch, order_of(1, len(task.x)))
    """
    with contextlib.closing(contestant):
        warm_up(contestant, task, specified)
        with contestant.limited():
            yield contestant


def one_round(entries: Sequence[Entry], order: Any, rest: float) -> None:
    """An epoch of each, on the same order of rows; what each takes is added to its seconds."""
    for entry in entries:
        with entry.contestant.limited():
            time.sleep(rest)
            began = time.perf_counter()
            entry.contestant.epoch(order)
            entry.seconds.append(time.perf_counter() - began)


# ------------------------------------------------------------------------------------------------ results


def key_of(case: Case, contestant: Contestant) -> dict[str, Any]:
    """What a row begins with."""
    return {"network": case.network, "batch": case.batch, "backend": contestant.backend, "threads": contestant.threads}


def result_row(case: Case, entry: Entry, gflop: float) -> dict[str, Any]:
    """A row of the result; `run_bench` adds the share of the ceiling."""
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
    """Each backend with the number of threads that suits it best; our compiled engine with each number."""
    for entry in entries:
        same = [other for other in entries if other.backend == entry.backend]
        if entry.backend in OURS or entry is min(same, key=lambda other: other.median):
            yield entry


def verdict(entries: Sequence[Entry]) -> dict[str, Any]:
    """Who is fastest, and by how much our compiled engine wins or loses."""
    ours = [entry for entry in entries if entry.backend in OURS]
    others = [entry for entry in entries if entry.backend not in OURS]
    if not (ours and others):
        fastest = min(entries, key=lambda entry: entry.median).label
        return {"ours": None, "rival": None, "ratio": None, "text": f"fastest: {fastest}; nobody to compare with"}
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
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


spread = min_median_max  # the former name, which benchmarks/gpu imports
