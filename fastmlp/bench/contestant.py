"""What takes part in a benchmark: the task, the interface of a contestant, and fastmlp's own engines behind it.

Here: `Task`, `Contestant`, `OwnEngine`. Not here: other libraries (pytorch.py, rivals.py), the clock and the check
that all compute the same (rounds.py).

Each contestant trains the same network from the same parameters, in float32, on the same rows in the same order. Its first
epoch must not be timed: in it everything is compiled.
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
    """What every contestant trains: a classifier with softmax cross-entropy.

    x : (n, features) float32, C-contiguous; y : (n,) int32 classes; start : (parameters,) float32, as `Network.views`
    """

    network: Network
    x: FloatArray
    y: npt.NDArray[np.int32]
    start: FloatArray
    batch: int
    rate: float
    optimizer: Optimizer = field(default_factory=Optimizer)
    seed: int = 0


class Contestant(Protocol):
    """A way to train. `backend` and `threads` are its name; threads is None if that says nothing of it."""

    backend: str
    threads: int | None

    def prepare(self, task: Task) -> None:
        """Take over data and start.

        Raises UnavailableError if a package is missing, or the library cannot do what the task asks for.
        """

    def limited(self) -> AbstractContextManager[Any]:
        """A context in which the contestant has its number of threads; to be entered before the clock starts."""

    def epoch(self, order: Order) -> float:
        """Train on these rows in this order (k,), batch <= k <= n; gives their mean loss, each before its update."""

    def close(self) -> None:
        """Give back threads and memory."""


def library(package: str, module: str) -> Any:
    """A module of an optional package.

    Raises
    ------
    UnavailableError : it cannot be imported
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{error.name} is not installed: pip install {package}") from error
    except (ImportError, OSError) as error:
        raise UnavailableError(f"{package} cannot be imported ({error}); reinstall it") from error


def pick(table: dict[str, Any], name: str, who: str) -> Any:
    """An entry of a library's table, or UnavailableError: it has none."""
    if name not in table:
        raise UnavailableError(f"{who} has no {name}")
    return table[name]


def limit_blas(threads: int) -> AbstractContextManager[Any]:
    """NumPy's matrix product on so many threads."""
    limits: AbstractContextManager[Any] = library("threadpoolctl", "threadpoolctl").threadpool_limits(threads, user_api="blas")
    return limits


class OwnEngine:
    """One of fastmlp's engines. The threads of the NumPy engine are those of its matrix product.

    roundoff : to which it rounds the operands of its products, beyond what float32 rounds
    """

    roundoff = 0.0

    def __init__(self, backend: str, threads: int | None) -> None:
        self.backend = backend
        self.threads = threads
        self.close: Callable[[], None] = lambda: None  # until there is an engine

    def make(self, task: Task) -> Engine:
        """The engine that trains."""
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
        rates = np.full(step_count(len(order), task.batch), task.rate)
        return float(self.engine.train(task.x, task.y, order, rates).loss.mean(dtype=np.float64))
