"""What the suites of benchmarks share: subjects, the check that comes before every measurement, sizes, labels.

`FASTMLP_BENCH_SMALL=1` shrinks all shapes, for a run that only asks whether the answers are right.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_info

from benchmarks.cases import EPOCHS, Case

SMALL = bool(os.environ.get("FASTMLP_BENCH_SMALL"))
EPS = float(np.finfo(np.float32).eps)
ELEMENTWISE = 8  # roundings of what follows a sum: activation, loss, update
REST = 0.2  # seconds before each measurement: the threads of a BLAS or of OpenMP spin on for a while after their work

Arrays = tuple[Any, ...]


def sized(full: Sequence[Any], small: Sequence[Any]) -> Sequence[Any]:
    """The shapes to measure, or those for a run that is only checked."""
    return small if SMALL else full


# Networks and batches of the suites; the shapes of the single products are theirs.
CASES: Sequence[Case] = sized([EPOCHS[0], EPOCHS[2], EPOCHS[5]], [Case((13, 9, 5), 7)])


class Subject(NamedTuple):
    """Something to be measured.

    run : what is timed
    answer : runs it from its start and gives the results, float arrays of true sizes, untimed
    threads : it may use; None if that says nothing of it
    """

    run: Callable[[], Any]
    answer: Callable[[], Arrays]
    threads: int | None = 1


def check(found: Arrays, wanted: Arrays, tolerance: float | Sequence[float]) -> None:
    """Compare arrays with those of the specification in float64.

    tolerance : largest difference allowed in an array, or in each, relative to its largest entry; a sum of K products in
        float32 is allowed `rounding(K)`

    Raises
    ------
    AssertionError : an array differs by more, has another shape or holds NaN
    """
    tolerances = np.broadcast_to(tolerance, len(wanted))
    for number, (one, exact, allowed) in enumerate(zip(found, wanted, tolerances, strict=True)):
        if np.shape(one) != np.shape(exact):
            raise AssertionError(f"result {number} has shape {np.shape(one)}, specified {np.shape(exact)}")
        error = np.abs(np.asarray(one, np.float64) - exact).max(initial=0)
        largest = np.abs(exact).max(initial=0)
        if not error <= allowed * largest:
            raise AssertionError(
                f"result {number} is off by {error:.3g}, allowed {allowed * largest:.3g}, of a largest entry of {largest:.3g}"
            )


def rounding(terms: int) -> float:
    """Relative tolerance of a float32 result of so many terms, with what follows the sum."""
    return (terms + ELEMENTWISE) * EPS


def measure(benchmark: Any, group: str, backend: str, subject: Subject) -> None:
    """Time a subject whose answer has been checked, as the row `backend` of the table `group`."""
    benchmark.group = group
    benchmark.name = label(backend, subject.threads)
    benchmark.extra_info.update(backend=backend, threads=subject.threads)
    if benchmark.enabled:
        time.sleep(REST)
    benchmark(subject.run)


def label(backend: str, threads: int | None) -> str:
    return backend if threads is None else f"{backend} ({threads} thread{'s' * (threads > 1)})"


def blas_threads() -> int:
    """Threads of NumPy's matrix product."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def numbers(*shape: int, seed: int = 0) -> Any:
    """Normal float32 numbers, (shape)."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def exact(*arrays: Any) -> Arrays:
    """The arrays in float64."""
    return tuple(array.astype(np.float64) for array in arrays)
