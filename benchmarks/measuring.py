"""Code shared by the benchmark suites: timing of operations, and the check of their results before the timing.

The environment variable FASTMLP_BENCH_SMALL=1 selects small shapes, for runs that only check the results.
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
ELEMENTWISE = 8  # number of rounding errors after a sum: activation, loss, update
REST = 0.2  # pause before each measurement, in seconds, since threads of BLAS and OpenMP spin-wait after their work

Arrays = tuple[Any, ...]


def sized(full: Sequence[Any], small: Sequence[Any]) -> Sequence[Any]:
    """Return `small` if FASTMLP_BENCH_SMALL is set, otherwise `full`."""
    return small if SMALL else full


# Networks and batch sizes of the suites.
CASES: Sequence[Case] = sized([EPOCHS[0], EPOCHS[2], EPOCHS[5]], [Case((13, 9, 5), 7)])


class Subject(NamedTuple):
    """An operation to be timed.

    run : function to be timed
    answer : function that runs the operation once, untimed, and returns its results as arrays without padding
    threads : number of threads that the operation may use; None on a GPU
    """

    run: Callable[[], Any]
    answer: Callable[[], Arrays]
    threads: int | None = 1


def check(found: Arrays, wanted: Arrays, tolerance: float | Sequence[float]) -> None:
    """Compare results with those of the reference implementation in float64.

    tolerance : largest allowed difference, relative to the largest absolute element of an array; one value for all arrays, or
        one per array. `rounding(K)` is the tolerance of a sum of K products in float32

    Raises
    ------
    AssertionError : an array differs by more than its tolerance, has another shape, or contains NaN
    """
    tolerances = np.broadcast_to(tolerance, len(wanted))
    for number, (one, exact, allowed) in enumerate(zip(found, wanted, tolerances, strict=True)):
        if np.shape(one) != np.shape(exact):
            raise AssertionError(f"result {number} has shape {np.shape(one)} instead of {np.shape(exact)}")
        error = np.abs(np.asarray(one, np.float64) - exact).max(initial=0)
        largest = np.abs(exact).max(initial=0)
        if not error <= allowed * largest:
            raise AssertionError(
                f"result {number} is off by {error:.3g}; tolerance {allowed * largest:.3g}, largest element {largest:.3g}"
            )


def rounding(terms: int) -> float:
    """Return the relative tolerance of a float32 sum of `terms` terms that is followed by elementwise operations."""
    return (terms + ELEMENTWISE) * EPS


def measure(benchmark: Any, group: str, backend: str, subject: Subject) -> None:
    """Time a subject with pytest-benchmark, as row `backend` of table `group`. Its results must have been checked before."""
    benchmark.group = group
    benchmark.name = label(backend, subject.threads)
    benchmark.extra_info.update(backend=backend, threads=subject.threads)
    if benchmark.enabled:
        time.sleep(REST)
    benchmark(subject.run)


def label(backend: str, threads: int | None) -> str:
    return backend if threads is None else f"{backend} ({threads} thread{'s' * (threads > 1)})"


def blas_threads() -> int:
    """Return the number of threads that NumPy uses for matrix products."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def numbers(*shape: int, seed: int = 0) -> Any:
    """Return an array of this shape with standard normal random numbers, float32."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def exact(*arrays: Any) -> Arrays:
    """Convert the arrays to float64."""
    return tuple(array.astype(np.float64) for array in arrays)
