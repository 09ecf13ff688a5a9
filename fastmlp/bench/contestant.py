"""The task of a benchmark, the interface `Contestant` of everything that is timed, and fastmlp's engines as contestants.

All contestants train the same network from the same initial parameters, in float32, on the same rows in the same order. The
first epoch includes compilation and must not be timed.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, State, step_count
from fastmlp.errors import UnavailableError
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer

Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """The training task of all contestants: a classifier with softmax cross-entropy.

    x : (n, features) float32, C-contiguous; y : (n,) int32 class labels
    start : (parameters,) float32, initial parameters in the layout of `Network.views`
    batch : mini-batch size
    """

    network: Network
    x: FloatArray
    y: npt.NDArray[np.int32]
    start: FloatArray
    batch: int
    learning_rate: float
    optimizer: Optimizer = field(default_factory=Optimizer)
    seed: int = 0


class Contestant(Protocol):
    """An implementation to be timed, identified by `backend` and `threads`; threads is None on a device."""

    backend: str
    threads: int | None

    def prepare(self, task: Task) -> None:
        """Load the data and the initial parameters.

        Raises UnavailableError if a package is missing or the library does not support the task.
        """

    def limited(self) -> AbstractContextManager[Any]:
        """Return a context manager that limits the contestant to its number of threads; enter it before timing."""

    def epoch(self, order: Order) -> float:
        """Train on the rows `order`, (k,) with batch <= k <= n; return their mean loss, each computed before its update."""

    def close(self) -> None:
        """Release threads and memory."""


def library(package: str, module: str) -> Any:
    """Import a module of an optional package.

    Raises
    ------
    UnavailableError : the module cannot be imported
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{error.name} is not installed: pip install {package}") from error
    except (ImportError, OSError) as error:
        raise UnavailableError(f"{package} cannot be imported ({error}); reinstall it") from error


def lookup(table: dict[str, Any], name: str, who: str) -> Any:
    """Return the entry `name` of a library's table; raise UnavailableError if there is none."""
    if name not in table:
        raise UnavailableError(f"{who} has no {name}")
    return table[name]


def limit_blas(threads: int) -> AbstractContextManager[Any]:
    """Return a context manager that limits NumPy's matrix product to so many threads."""
    limits: AbstractContextManager[Any] = library("threadpoolctl", "threadpoolctl").threadpool_limits(threads, user_api="blas")
    return limits


class OwnEngine:
    """One of fastmlp's engines. For the NumPy engine, `threads` is the number of BLAS threads.

    roundoff : unit roundoff of the operands of matrix products in reduced precision; 0 in float32
    """

    roundoff = 0.0

    def __init__(self, backend: str, threads: int | None) -> None:
        self.backend = backend
        self.threads = threads
        self.close: Callable[[], None] = lambda: None  # until `prepare` has created the engine

    def make(self, task: Task) -> Engine:
        """Create the engine."""
        return make_engine(
            self.backend, EngineSpec(task.network, task.optimizer, task.batch, seed=task.seed, threads=self.threads)
        )

    def prepare(self, task: Task) -> None:
        self.task = task
        self.engine = self.make(task)
        self.close = self.engine.close
        slots = np.zeros((len(task.optimizer.slots), task.network.parameters), np.float32)
        self.engine.load(State(task.start, slots, 0))

    def limited(self) -> AbstractContextManager[Any]:
        return limit_blas(self.threads or 1) if self.backend == "numpy" else contextlib.nullcontext()

    def epoch(self, order: Order) -> float:
        task = self.task
        learning_rates = np.full(step_count(len(order), task.batch), task.learning_rate)
        return float(self.engine.train(task.x, task.y, order, learning_rates).loss.mean(dtype=np.float64))
