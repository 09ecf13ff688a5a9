"""The CPU engine: `contract.Engine` over the compiled kernels. Holds the buffers and the threads; no arithmetic."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.contract import Job, RowResults, State, row_scales
from fastmlp.cpu_kernels import (
    GRADIENT,
    PARAMETERS,
    SLOT_M,
    SLOT_V,
    Prediction,
    Specialisation,
    predict_kernel,
    train_kernel,
)
from fastmlp.cpu_pieces import SHARED_WORDS
from fastmlp.cpu_plan import (
    CHUNK_ROWS,
    TILE_ROWS,
    TILE_VECTORS,
    Batches,
    activation_names,
    make_layout,
    pack,
    pack_transposed,
    round_up,
    unpack,
)
from fastmlp.cpu_simd import lanes as host_lanes
from fastmlp.cpu_threads import Team, available_cores
from fastmlp.errors import ConfigError, UnavailableError
from fastmlp.network import FloatArray

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
MOST_ROWS_PER_TASK = 64
TASKS_PER_THREAD = 4  # so that a slow thread delays a step by little
LEAST_FLOPS = 500_000  # of a step per thread: below, handing over costs more than it saves (benchmarks/NOTES.md)

SLOT_ROWS = {"m": SLOT_M, "v": SLOT_V}


class NumbaEngine:
    """Compiled kernels on the engine's own threads; see `contract.Engine` for the methods.

    The number of threads changes no bit of any result. Calls from several Python threads wait for each other.

    Raises
    ------
    ConfigError : the job asks for another dtype than float32
    """

    name = "numba"

    def __init__(self, job: Job) -> None:
        if np.dtype(job.dtype) != np.float32:
            raise ConfigError(f"backend 'numba' computes in float32, not {np.dtype(job.dtype)}; take backend 'numpy'")
        network = job.network
        self.job = job
        self.lanes = host_lanes()
        self.threads = job.threads or available_cores()
        self.teams = {threads: Team(threads) for threads in {1, self.threads}}
        self.lock = threading.Lock()
        self.process = os.getpid()
        self.rows = 0  # rows that the arena has room for
        layout = make_layout(network, self.lanes, 0)
        self.plan = layout.plan
        self.store = aligned((GRADIENT + 1, layout.store))
        self.transposed = aligned((max(layout.transposed, 1),))
        own = TILE_VECTORS * (CHUNK_ROWS + 1) * self.lanes + 1 + network.sizes[-1]
        self.scratch = aligned((self.threads, round_up(own, ALIGNMENT // 4)))
        self.shared = aligned((SHARED_WORDS,), np.int64)
        features = network.sizes[0]
        scaling = job.scaling
        self.shift = np.zeros(features, np.float32) if scaling is None else vector(scaling.shift, features)
        self.factor = np.ones(features, np.float32) if scaling is None else vector(scaling.factor, features)

    def prediction(self, dropout: bool = False) -> Prediction:
        return Prediction(self.lanes, activation_names(self.job.network), dropout)

    def specialisation(self, classes: bool) -> Specialisation:
        network, optimizer = self.job.network, self.job.optimizer
        dropout = any(layer.dropout for layer in network.layers)
        return Specialisation(
            self.prediction(dropout), network.loss, network.output or "", optimizer.name, optimizer.clip_norm > 0, classes
        )

    def load(self, state: State) -> None:
        network = self.job.network
        with self.alone():
            pack(network, self.plan, self.lanes, state.parameters, self.store[PARAMETERS])
            pack_transposed(network, self.plan, self.lanes, state.parameters, self.transposed)
            for name, slot in zip(self.job.optimizer.slots, state.slots, strict=False):
                pack(network, self.plan, self.lanes, slot, self.store[SLOT_ROWS[name]])
            self.step = state.step

    def state(self) -> State:
        network = self.job.network
        with self.alone():
            rows = [PARAMETERS, *(SLOT_ROWS[name] for name in self.job.optimizer.slots)]
            vectors = [unpack(network, self.plan, self.lanes, self.store[row]) for row in rows]
        slots = np.array(vectors[1:], np.float32).reshape(-1, network.parameters)
        return State(vectors[0], slots, self.step)

    def train(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        order: npt.NDArray[np.int64],
        rates: npt.NDArray[np.float64],
        weights: FloatArray | None = None,
    ) -> RowResults:
        batch = max(1, min(self.job.batch_size, len(order)))
        team = self.team(self.job.network.flops_per_row * batch)
        results = RowResults(np.empty(len(order), np.float32), np.zeros(len(order), bool))
        with self.alone():
            self.make_room(round_up(batch, MOST_ROWS_PER_TASK))
            self.shared[:] = 0
            batches = self.batches(x, y, order, rates, weights, rows_per_task(batch, team.threads))
            self.step += len(rates)  # before: the kernel makes all its steps even if Ctrl-C is raised on its return
            team.run(
                train_kernel(self.specialisation(y.ndim == 1)),
                self.plan,
                batches,
                self.store,
                self.transposed,
                self.arena,
                self.scratch,
                self.shared.ctypes.data,
                *results,
            )
        return results

    def batches(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        order: npt.NDArray[np.int64],
        rates: npt.NDArray[np.float64],
        weights: FloatArray | None,
        task_rows: int,
    ) -> Batches:
        """What the kernel reads of a call to `train`."""
        job, network = self.job, self.job.network
        classes = y.ndim == 1
        share = network.label_smoothing / network.sizes[-1]
        return Batches(
            x=writable(x),
            labels=writable(y) if classes else np.empty(0, np.int32),
            targets=np.empty((0, 0), np.float32) if classes else writable(y),
            order=writable(np.ascontiguousarray(order, np.int64)),
            row_scale=row_scales(order, job.batch_size, weights).astype(np.float32),
            shift=self.shift,
            factor=self.factor,
            scalars=job.optimizer.scalars(rates, self.step),
            batch_size=job.batch_size,
            rows_per_task=task_rows,
            step=self.step,
            seed=np.uint64(job.seed),
            l1=np.float32(network.l1),
            l2=np.float32(network.l2),
            hot=np.float32(1 - network.label_smoothing + share),
            cold=np.float32(share),
            clip_norm=job.optimizer.clip_norm,
        )

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        network = self.job.network
        z = np.empty((len(x), network.sizes[-1]), np.float32)
        team = self.team(network.flops_per_row // 3 * len(x))
        with self.alone():
            block = rows_per_task(len(x), team.threads)
            self.make_room(block * team.threads)
            self.shared[:] = 0
            team.run(
                predict_kernel(self.prediction()),
                self.plan,
                writable(x),
                self.shift,
                self.factor,
                self.store,
                self.arena,
                self.shared.ctypes.data,
                z,
                block,
            )
        return z

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One caller at a time. A child forked while another thread was in here can never enter, and is told so."""
        if self.process != os.getpid():
            if self.lock.locked():
                raise UnavailableError("this process was forked while the engine was at work; make a new engine in it")
            self.process = os.getpid()
        with self.lock:
            yield

    def team(self, flops: int) -> Team:
        """All threads, or the caller alone if there is too little to do."""
        return self.teams[self.threads if flops >= LEAST_FLOPS * self.threads else 1]

    def make_room(self, rows: int) -> None:
        """Let the arena hold at least `rows` rows. What it holds between calls does not matter."""
        if rows > self.rows:
            layout = make_layout(self.job.network, self.lanes, rows)
            self.plan, self.arena, self.rows = layout.plan, aligned((layout.arena,)), rows

    def close(self) -> None:
        for team in self.teams.values():
            team.close()


def rows_per_task(rows: int, threads: int) -> int:
    """Rows of a task: few enough for every thread to have some to claim, many enough to use each weight often."""
    return min(round_up(max(1, rows // (threads * TASKS_PER_THREAD)), TILE_ROWS), MOST_ROWS_PER_TASK)


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Zeros that start on a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def vector(values: npt.NDArray[Any], features: int) -> npt.NDArray[np.float32]:
    """One float32 per feature, from one per feature or one for all."""
    return np.array(np.broadcast_to(values, (features,)), np.float32)


def writable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same memory without NumPy's read-only flag, for which Numba would compile every kernel a second time.

    Kernels only read it. The caller keeps the array alive.
    """
    if array.flags.writeable:
        return array
    if array.size == 0:
        return array.copy()
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    return np.ctypeslib.as_array(memory).view(array.dtype).reshape(array.shape)
