"""The contract between the training loop and the engines: inputs and outputs, nothing about the implementation.

Padding, packing, transposed copies and device buffers are private to an engine; arrays have their true sizes here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp.nn.blocks import RowSource, inference_blocks
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.scaling import Scaling

PRECISIONS = ("float32", "tf32", "bf16")  # 23, 10 and 7 bits of mantissa; the range of all is that of float32


class State(NamedTuple):
    """Everything that training changes: enough to continue in another engine, or after a restart.

    parameters : (P,) float, the flat vector of `Network.views`
    slots : (number of optimiser slots, P) float, in the order of `Optimizer.slots`
    step : updates made so far
    """

    parameters: FloatArray
    slots: FloatArray
    step: int


class RowMetrics(NamedTuple):
    """Metrics of rows, in their order; in training computed before the update of each batch, with its dropout.

    loss : (n,) float32 or float64, without penalties
    correct : (n,) bool, whether the first largest output is the class of the row (all False for plain targets)
    """

    loss: FloatArray
    correct: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EngineSpec:
    """Specification that an engine is built for.

    scaling is applied to rows as they are used, so that pixels may stay uint8; None applies none.
    threads None lets the engine choose; only engines with their own threads read it. They may use fewer for small steps.
    precision, of `PRECISIONS`, is the precision of the operands of matrix products; everything else has the dtype.
    """

    network: Network
    optimizer: Optimizer
    batch_size: int = 64
    seed: int = 0
    scaling: Scaling | None = None
    threads: int | None = None
    dtype: npt.DTypeLike = np.float32
    precision: str = "float32"


class Engine(Protocol):
    """Trains and applies a network. Only one thread at a time may call an engine."""

    name: str
    threads: int

    def load(self, state: State) -> None:
        """Set parameters, slots and step."""

    def state(self, slots: bool = True) -> State:
        """Return a copy of parameters, slots (none with slots=False, which is faster) and step."""

    def train(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        indices: npt.NDArray[np.int64],
        learning_rates: npt.NDArray[np.float64],
        weights: FloatArray | None = None,
    ) -> RowMetrics:
        """Train on x[indices], y[indices] in batches of `batch_size`, one learning rate per batch; the last may be short.

        x (n, features) uint8 or float32; y (n,) int32 classes or (n, outputs) float32 targets;
        weights (n,) float32 sample weights, with a positive sum in each batch.
        """

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        """Return the pre-activations z of the output layer for each row of x, (n, outputs), without dropout."""

    def hold(self, x: RowSource, y: npt.NDArray[Any]) -> Any:
        """Prepare rows that are evaluated again and again, and return a handle for `evaluate`.

        x (n, features) is an array or a lazy subset of one, which engines on the CPU read in blocks and never copy whole;
        dtypes, and y, as in `train`. Neither may be changed while it is held. The handle depends on no parameters, so it
        stays valid across `train` and `load`. Memory on a device is freed with the handle or by `close`.
        """

    def evaluate(self, held: Any, z: FloatArray | None = None) -> RowMetrics:
        """Loss of each held row (dropout off, no penalties, no label smoothing), and whether its prediction is correct.

        z (n, outputs), of the engine's dtype or a wider one, is filled with the pre-activations of the output layer, as
        `forward` computes them. Works in blocks of rows, see `blocks.inference_blocks`.
        """

    def close(self) -> None:
        """Give back threads and memory; neither the engine nor its handles may be used afterwards."""


class HeldRows(NamedTuple):
    """The handle of `Engine.hold` for engines that read rows from the host's memory."""

    x: RowSource
    y: npt.NDArray[Any]


def evaluate_blocks(
    held: HeldRows,
    z: FloatArray | None,
    forward: Callable[[npt.NDArray[Any]], FloatArray],
    row_metrics: Callable[[FloatArray, npt.NDArray[Any]], RowMetrics],
) -> RowMetrics:
    """`Engine.evaluate` block by block; `row_metrics` computes the metrics of rows from their pre-activations and y."""
    parts = []
    for rows, block in inference_blocks(held.x):
        outputs = forward(block)
        if z is not None:
            z[rows] = outputs
        parts.append(row_metrics(outputs, held.y[rows]))
    return RowMetrics(np.concatenate([part.loss for part in parts]), np.concatenate([part.correct for part in parts]))


def step_count(rows: int, batch_size: int) -> int:
    """Number of batches in `rows` rows."""
    return -(-rows // batch_size)


def loss_weights(indices: npt.NDArray[np.int64], batch_size: int, weights: FloatArray | None) -> FloatArray:
    """Weight of each row in the mean loss of its batch, (len(indices),) float64: sample weight over their sum in the batch."""
    if weights is None:
        scales, rest = np.full(len(indices), 1 / batch_size), len(indices) % batch_size
        scales[len(indices) - rest :] = 1 / max(rest, 1)
        return scales
    starts = np.arange(0, len(indices), batch_size)
    picked = weights[indices].astype(np.float64)
    return picked / np.repeat(np.add.reduceat(picked, starts), np.minimum(batch_size, len(indices) - starts))
