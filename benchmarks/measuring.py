"""Shared code of the benchmark suites: subjects, the check before every measurement, sizes, labels.

`FASTMLP_BENCH_SMALL=1` selects small shapes, for runs that only check the results.
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
ELEMENTWISE = 8  # rounding errors of the operations after a sum: activation, loss, update
REST = 0.2  # seconds before each measurement: the threads of BLAS and OpenMP keep spinning for a while after their work

Arrays = tuple[Any, ...]


def sized(full: Sequence[Any], small: Sequence[Any]) -> Sequence[Any]:
    """Return the shapes to measure, or the small ones for a run that only checks the results."""
    return small if SMALL else full


# Networks and batch sizes of the suites, which also give the shapes of single products.
CASES: Sequence[Case] = sized([EPOCHS[0], EPOCHS[2], EPOCHS[5]], [Case((13, 9, 5), 7)])


class Subject(NamedTuple):
    """An operation to be measured.

    run : the timed call
    answer : an untimed call from the initial state that returns the results, float arrays without padding
    threads : number of threads it may use; None on a device
    """

    run: Callable[[], Any]
    answer: Callable[[], Arrays]
    threads: int | None = 1


def check(found: Arrays, wanted: Arrays, tolerance: float | Sequence[float]) -> None:
    """Compare arrays with those of the specification in float64.

    tolerance : largest allowed difference of all arrays, or of each, relative to the array's largest absolute element;
        `rounding(K)` for a sum of K products in float32

    Raises
    ------
    AssertionError : an array differs by more, has another shape or contains NaN
    """
    tolerances = np.broadcast_to(tolerance, len(wanted))
    for number, (one, exact, allowed) in enumerate(zip(found, wanted, tolerances, strict=True)):
        if np.shape(one) != np.shape(exact):
            raise AssertionError(f"result {number} has shape {np.shape(one)}, specified {np.shape(exact)}")
        error = np.abs(np.asarray(one, np.float64) - exact).max(initial=0)
        largest = np.abs(exact).max(initial=0)
        if not error <= allowed * largest:
            raise AssertionError(
                f"result {number} is off by {error:.3g}, allowed {allowed * largest:.3g}, largest element {largest:.3g}"
            )


def rounding(terms: int) -> float:
    """Relative tolerance of a float32 sum of so many terms, including the elementwise operations after it."""
    return (terms + ELEMENTWISE) * EPS


def measure(benchmark: Any, group: str, backend: str, subject: Subject) -> None:
    """Time a subject, whose results must have been checked, as row `backend` of table `group`."""
    benchmark.group = group
    benchmark.name = label(backend, subject.threads)
    benchmark.extra_info.update(backend=backend, threads=subject.threads)
    if benchmark.enabled:
        time.sleep(REST)
    benchmark(subject.run)


def label(backend: str, threads: int | None) -> str:
    return backend if threads is None else f"{backend} ({threads} thread{'s' * (threads > 1)})"


def blas_threads() -> int:
    """Number of threads of NumPy's matrix product."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def numbers(*shape: int, seed: int = 0) -> Any:
    """Standard normal random numbers, float32 of this shape."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def exact(*arrays: Any) -> Arrays:
    """Convert the arrays to float64."""
    return tuple(array.astype(np.float64) for array in arrays)
