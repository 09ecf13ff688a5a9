"""Training task of the benchmark, interface `Contestant` of timed implementations, and the contestant for fastmlp's engines.

All contestants (engines and other libraries) train the same network in float32, from the same initial parameters, on the same
rows in the same order. The first epoch of a contestant includes compilation and must not be timed.
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
    """The training task that all contestants perform: a classifier with softmax and cross-entropy loss.

    x : inputs of shape (n, features), float32, C-contiguous
    y : class labels of shape (n,), int32
    start : initial parameters of shape (parameters,), float32, in the layout of `Network.views`
    batch : mini-batch size
    """

    network: Network
    x: FloatArray
    y: npt.NDArray[np.int32]
    start: FloatArray
    batch: int
    learning_rate: float
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("sgd"))
    seed: int = 0


class Contestant(Protocol):
    """Interface of an implementation to be timed. It is identified by `backend` and `threads` (None for a GPU)."""

    backend: str
    threads: int | None

    def prepare(self, task: Task) -> None:
        """Load the data and the initial parameters.

        Raises
        ------
        UnavailableError : a package is missing, or the library does not support the task
        """

    def limited(self) -> AbstractContextManager[Any]:
        """Return a context manager that limits the computation to `threads` threads. Epochs must run inside this context."""

    def epoch(self, order: Order) -> float:
        """Train for one epoch and return the mean loss over its rows.

        The loss of each mini-batch is computed before the update. `order` contains the indices of the rows to train on, in
        order. Its shape is (k,) with batch <= k <= n.
        """

    def close(self) -> None:
        """Stop the threads and release the memory of the implementation."""


def library(package: str, module: str) -> Any:
    """Import and return a module of an optional package. `package` is the name of the package for pip.

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
    """Return `table[name]`; raise UnavailableError if the library named `who` does not support `name`."""
    if name not in table:
        raise UnavailableError(f"{who} does not support {name}")
    return table[name]


def limit_blas(threads: int) -> AbstractContextManager[Any]:
    """Return a context manager that limits BLAS, which computes NumPy's matrix products, to a number of threads."""
    limits: AbstractContextManager[Any] = library("threadpoolctl", "threadpoolctl").threadpool_limits(threads, user_api="blas")
    return limits


class OwnEngine:
    """Contestant for one of fastmlp's engines. For the NumPy engine, `threads` is the number of BLAS threads.

    roundoff : unit roundoff of the operands of matrix products if they have reduced precision; 0 for float32
    """

    roundoff = 0.0

    def __init__(self, backend: str, threads: int | None) -> None:
        self.backend = backend
        self.threads = threads
        self.close: Callable[[], None] = lambda: None  # until `prepare` has created the engine

    def make(self, task: Task) -> Engine:
        """Create the engine for a task."""
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
