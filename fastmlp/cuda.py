"""The CUDA engine: `contract.Engine` over kernels on an NVIDIA GPU. Holds the device's arrays; no arithmetic."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.contract import Job, RowResults, State, row_scales
from fastmlp.cuda_kernels import CHUNK, Kind, Shape, make_apply, make_train, phases
from fastmlp.cuda_plan import gathered, make_plan, padded, spread
from fastmlp.cuda_runtime import Runtime
from fastmlp.errors import ConfigError
from fastmlp.network import FloatArray
from fastmlp.optimizers import DECAY, L1, L2
from fastmlp.reference import NumpyEngine

OF_WEIGHTS_ONLY = [DECAY, L1, L2]  # columns of the table of scalars
APPLIED = 4096  # rows that pass through a network at once where nothing is trained
SHAPE = Shape()

train_kernel = functools.cache(make_train)
apply_kernel = functools.cache(make_apply)


class CudaEngine:
    """Kernels on a GPU; see `contract.Engine` for the methods. One thread at a time may call.

    Rows that training has seen stay on the device as long as the caller passes the same array: change them in place, and the
    engine goes on with the old ones.

    Raises
    ------
    ConfigError : the job asks for another dtype than float32
    UnavailableError : no device, or a package is missing
    """

    name = "cuda"
    threads = 1

    def __init__(self, job: Job, runtime: Any = None, shape: Shape | None = None) -> None:
        if np.dtype(job.dtype) != np.float32:
            raise ConfigError(f"backend 'cuda' computes in float32, not {np.dtype(job.dtype)}; take backend 'numpy'")
        self.job, self.runtime, self.shape = job, runtime or Runtime(), shape or SHAPE
        self.rows = 0  # rows of a batch that the arena has room for
        self.resident: tuple[Any, Any] = (None, None)  # an array of the caller's, and its copy on the device
        put, network, scaling = self.runtime.put, job.network, job.scaling
        width = padded(network.sizes[0])
        self.shift, self.factor = (
            put(vector(values, network.sizes[0], width))
            for values in ((0.0, 1.0) if scaling is None else (scaling.shift, scaling.factor))
        )
        self.counter = put(np.zeros(1, np.uint32))

    def load(self, state: State) -> None:
        network, put = self.job.network, self.runtime.put
        size = make_plan(network, 1).parameters
        slots = dict(zip(self.job.optimizer.slots, state.slots, strict=False))
        empty = np.zeros(1, np.float32)
        self.parameters = put(spread(network, state.parameters, size))
        self.slots = [put(spread(network, slots[name], size) if name in slots else empty) for name in ("m", "v")]
        clips = self.job.optimizer.clip_norm > 0
        self.kept, self.partial = put(np.zeros(size if clips else 1, np.float32)), put(np.zeros(-(-size // CHUNK)))
        self.step = state.step

    def state(self, slots: bool = True) -> State:
        network, get = self.job.network, self.runtime.get
        named = dict(zip(("m", "v"), self.slots, strict=True))
        vectors = [gathered(network, get(named[name])) for name in self.job.optimizer.slots if slots]
        whole = np.array(vectors, np.float32).reshape(-1, network.parameters)
        return State(gathered(network, get(self.parameters)), whole, self.step)

    def train(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        order: npt.NDArray[np.int64],
        rates: npt.NDArray[np.float64],
        weights: FloatArray | None = None,
    ) -> RowResults:
        job, network, put = self.job, self.job.network, self.runtime.put
        optimizer, count = job.optimizer, len(order)
        self.make_room(max(1, min(job.batch_size, count)))
        scalars = np.repeat(optimizer.scalars(rates, self.step, network.l1, network.l2)[:, None], 2, axis=1)
        scalars[:, 1, OF_WEIGHTS_ONLY] = 0
        share = network.label_smoothing / network.sizes[-1]
        results = put(np.empty(max(count, 1), np.float32)), put(np.empty(max(count, 1), bool))
        kind = self.kind(x, y)
        arguments = (
            *self.tables, self.on_device(x), self.shift, self.factor, put(y.reshape(-1)),
            np.float32(1 - network.label_smoothing + share), np.float32(share),
            put(order.astype(np.int32)), put(row_scales(order, job.batch_size, weights).astype(np.float32)), *results,
            put(scalars.reshape(-1)), self.parameters, *self.slots, self.kept, self.partial, self.arena, self.counter,
            job.batch_size, count, 0, len(rates) * phases(len(network.layers), kind.clips), np.int64(self.step),
            np.uint64(job.seed), np.float32(optimizer.clip_norm),
        )  # fmt: skip
        self.start(train_kernel(self.runtime.words, kind, self.shape), arguments)
        self.step += len(rates)
        loss, correct = (self.runtime.get(one)[:count] for one in results)
        return RowResults(loss, correct)

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        network, put = self.job.network, self.runtime.put
        outputs = network.sizes[-1]
        z = np.empty((len(x), outputs), np.float32)
        kernel = apply_kernel(self.runtime.words, self.kind(x, np.empty(0)), self.shape)
        order = put(np.arange(min(APPLIED, max(len(x), 1)), dtype=np.int32))
        for first in range(0, len(x), APPLIED):
            part = x[first : first + APPLIED]
            self.make_room(len(part))
            arguments = (*self.tables, put(self.widened(part)), self.shift, self.factor, order, self.parameters, self.arena)
            self.start(kernel, (*arguments, self.counter, len(part)))
            z[first : first + len(part)] = self.outputs(len(part))
        return z

    def score(self, z: FloatArray, y: npt.NDArray[Any]) -> RowResults:
        """On the host, where z is, by the specification."""
        return NumpyEngine(self.job).score(z, y)

    def close(self) -> None:
        """Give the device's memory back."""
        self.resident = (None, None)
        for name in ("parameters", "slots", "kept", "partial", "arena", "tables", "shift", "factor", "counter"):
            self.__dict__.pop(name, None)

    # -------------------------------------------------------------------------------------------- the device

    def kind(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Kind:
        """What the kernels are compiled for."""
        network, optimizer = self.job.network, self.job.optimizer
        return Kind(
            make_plan(network, 1).activations,
            network.loss,
            network.output or "",
            optimizer.name,
            x.dtype == np.uint8,
            y.ndim == 1,
            any(layer.dropout for layer in network.layers),
            network.l1 > 0 or network.l2 > 0,
            optimizer.clip_norm > 0,
        )

    def make_room(self, rows: int) -> None:
        """Let the arena hold a batch of so many rows; what it holds between calls does not matter."""
        if rows > self.rows:
            self.plan = make_plan(self.job.network, rows)
            self.tables = [self.runtime.put(one) for one in self.plan[:4]]
            self.arena = self.runtime.put(np.zeros(self.plan.arena, np.float32))
            self.rows = rows

    def start(self, kernel: Any, arguments: tuple[Any, ...]) -> None:
        """Launch over the whole device, whose blocks wait for each other."""
        self.runtime.fill(self.counter, np.zeros(1, np.uint32))
        self.runtime.launch(kernel, self.runtime.blocks, self.shape.threads, arguments, together=True)

    def on_device(self, x: npt.NDArray[Any]) -> Any:
        """The caller's rows, copied once."""
        if self.resident[0] is not x:
            self.resident = x, self.runtime.put(self.widened(x))
        return self.resident[1]

    def widened(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows as kernels read them, flat, padded with zeros to the width of the plan."""
        whole = np.zeros((len(x), padded(x.shape[1])), x.dtype)
        whole[:, : x.shape[1]] = x
        return whole.reshape(-1)

    def outputs(self, rows: int) -> FloatArray:
        """z of the last layer of so many rows, from the arena."""
        outputs = self.job.network.sizes[-1]
        width, at = padded(outputs), self.plan.last_output
        return self.runtime.get(self.arena[at : at + rows * width]).reshape(rows, width)[:, :outputs]


def vector(values: Any, features: int, width: int) -> npt.NDArray[np.float32]:
    """One float32 per feature, from one per feature or one for all; zeros beyond."""
    whole = np.zeros(width, np.float32)
    whole[:features] = values
    return whole
