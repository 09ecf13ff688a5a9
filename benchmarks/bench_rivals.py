"""Benchmarks of whole epochs: fastmlp's engines, and the other libraries that are installed.

    python -m pytest benchmarks/bench_rivals.py --benchmark-columns=median,iqr,rounds

Each library runs with one thread and with one thread per core, and the libraries are timed one after another. The published
results come from `fastmlp bench`, which times the same libraries in interleaved rounds.
"""

from __future__ import annotations

import functools
from contextlib import closing
from copy import copy
from typing import Any

import pytest

from benchmarks.cases import ROWS, Case
from benchmarks.measuring import CASES, Subject, check, measure, sized
from fastmlp.errors import UnavailableError

bench = pytest.importorskip("fastmlp.bench.rounds", reason="this version has no module fastmlp.bench.rounds")

from fastmlp.bench.cases import SYNTHETIC, Source  # noqa: E402 - must follow importorskip
from fastmlp.bench.contestant import Task  # noqa: E402
from fastmlp.bench.rivals import NAMES, contestants  # noqa: E402

EPOCH_ROWS = sized([ROWS], [60])[0]
# torch.compile runs a C++ compiler for many seconds, even for small shapes.
LEFT_OUT = sized([], ["torch-compile"])
CONTESTANTS = {(one.backend, one.threads): one for one in contestants(name for name in NAMES if name not in LEFT_OUT)}


@functools.lru_cache(maxsize=1)  # keep the rows of only one case in memory
def task_of(case: Case) -> Task:
    return bench.BenchSettings([case]).task(case, Source(SYNTHETIC, EPOCH_ROWS).rows_for(case))


@functools.cache
def specified(case: Case) -> tuple[float, float]:
    """Return the mean losses of the reference implementation over the first mini-batches, and over the next epoch."""
    losses: tuple[float, float] = bench.specified_losses(task_of(case))
    return losses


@pytest.mark.parametrize("key", CONTESTANTS, ids=lambda key: "-".join(map(str, key)))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_rivals(benchmark: Any, case: Case, key: tuple[str, int | None]) -> None:
    task, contestant = task_of(case), copy(CONTESTANTS[key])
    order = bench.order_of(1, EPOCH_ROWS)
    with closing(contestant):
        try:
            contestant.prepare(task)
        except UnavailableError as error:
            pytest.skip(str(error))
        subject = Subject(lambda: contestant.epoch(order), lambda: bench.first_losses(contestant, task), contestant.threads)
        check(subject.answer(), specified(case), bench.tolerances(contestant, task))
        with contestant.limited():
            measure(benchmark, f"rivals: epoch {case.label}, {EPOCH_ROWS} rows", contestant.backend, subject)
