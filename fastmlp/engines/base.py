"""The interface between the training loop and the engines. It defines inputs and outputs, not how they are computed.

Padding, packing, transposed copies and device buffers are private to each engine; the arrays in this interface are not padded.
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

PRECISIONS = ("float32", "tf32", "bf16")  # 23, 10 and 7 mantissa bits; all have the exponent range of float32


class State(NamedTuple):
    """The state of training. It is sufficient to continue training in another engine or after a restart.

    parameters : (P,) float, all weights and biases in the order of `Network.views`
    slots : (number of optimizer slots, P) float, optimizer state in the order of `Optimizer.slots`
    step : number of updates made so far
    """

    parameters: FloatArray
    slots: FloatArray
    step: int


class RowMetrics(NamedTuple):
    """Metrics of each row, in the order of the rows.

    In training, the metrics of a mini-batch are computed with dropout and before the parameters are updated.

    loss : (n,) float32 or float64, without L1 and L2 penalties
    correct : (n,) bool, whether the predicted class, which is the index of the (first) maximum of the outputs, equals the
        label; all False for float targets
    """

    loss: FloatArray
    correct: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EngineSpec:
    """Settings from which an engine is constructed.

    scaling : applied to each mini-batch when it is read, so that stored pixels can stay uint8; None applies no scaling
    threads : maximum number of threads; None lets the engine choose. Engines without threads of their own ignore it. An engine
        may use fewer threads for small mini-batches
    precision : precision of the operands of matrix products, one of `PRECISIONS`; everything else is computed in `dtype`
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
    """Interface of all engines. An engine trains a network and computes its outputs. Engines are not thread-safe."""

    name: str
    threads: int

    def load(self, state: State) -> None:
        """Set the parameters, the optimizer slots and the step."""

    def state(self, slots: bool = True) -> State:
        """Return a copy of the training state. slots=False omits the optimizer slots, which is faster."""

    def train(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        indices: npt.NDArray[np.int64],
        learning_rates: npt.NDArray[np.float64],
        weights: FloatArray | None = None,
    ) -> RowMetrics:
        """Train on x[indices], y[indices] in mini-batches of `batch_size` rows and return the metrics of these rows.

        x : (n, features) uint8 or float32
        y : (n,) int32 class labels, or (n, outputs) float32 targets
        learning_rates : one per mini-batch; the last mini-batch may have fewer rows
        weights : (n,) float32 sample weights, with a positive sum in each mini-batch

        If the optimizer squares a gradient and the square overflows, the parameter becomes NaN.
        """

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        """Return the pre-activations z of the output layer for each row of x, (n, outputs), without dropout."""

    def hold(self, x: RowSource, y: npt.NDArray[Any]) -> Any:
        """Prepare rows for repeated evaluation and return a handle for `evaluate`.

        x (n, features) is an array or a lazy subset of an array; engines on the CPU read it in blocks and never copy it as a
        whole. The dtypes of x and y are those of `train`. Do not change x or y while the handle is in use. The handle does not
        depend on the parameters, so it stays valid after `train` and `load`. Device memory is freed when the handle is
        deleted or the engine is closed.
        """

    def evaluate(self, held: Any, z: FloatArray | None = None) -> RowMetrics:
        """Return the loss of each row, and whether its prediction is correct, without dropout, penalties or label smoothing.

        held : a handle from `hold`
        z : (n, outputs), filled with the pre-activations of the output layer, as computed by `forward`; its dtype is that of
            the engine or a wider one

        The rows are processed in blocks, to limit memory use.
        """

    def close(self) -> None:
        """Release threads and memory. Neither the engine nor its handles may be used afterwards."""


class HeldRows(NamedTuple):
    """The handle that `Engine.hold` returns for engines that read the rows from host memory."""

    x: RowSource
    y: npt.NDArray[Any]


def evaluate_blocks(
    held: HeldRows,
    z: FloatArray | None,
    outputs: int,
    forward: Callable[[npt.NDArray[Any]], FloatArray],
    row_metrics: Callable[[FloatArray, npt.NDArray[Any]], RowMetrics],
) -> RowMetrics:
    """Evaluate rows block by block. `row_metrics` computes the metrics of a block from its pre-activations and y.

    outputs : number of outputs of the network
    """
    parts = []
    for rows, block in inference_blocks(held.x, outputs):
        found = forward(block)
        if z is not None:
            z[rows] = found
        parts.append(row_metrics(found, held.y[rows]))
    return RowMetrics(np.concatenate([part.loss for part in parts]), np.concatenate([part.correct for part in parts]))


def step_count(rows: int, batch_size: int) -> int:
    """Return the number of mini-batches into which `rows` rows are divided."""
    return -(-rows // batch_size)


def loss_weights(indices: npt.NDArray[np.int64], batch_size: int, weights: FloatArray | None) -> FloatArray:
    """Return the weight of each row in the mean loss of its mini-batch, (len(indices),) float64.

    The weight of a row is its sample weight divided by the sum of the sample weights in the mini-batch.
    """
    if weights is None:
        scales, rest = np.full(len(indices), 1 / batch_size), len(indices) % batch_size
        scales[len(indices) - rest :] = 1 / max(rest, 1)
        return scales
    starts = np.arange(0, len(indices), batch_size)
    picked = weights[indices].astype(np.float64)
    return picked / np.repeat(np.add.reduceat(picked, starts), np.minimum(batch_size, len(indices) - starts))
