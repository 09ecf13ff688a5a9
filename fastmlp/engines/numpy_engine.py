"""The NumPy engine: the specification, reference.py, behind the contract of engines (base.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.engines.base import HeldRows, Job, RowMetrics, State, evaluate_blocks, row_scales, steps_of
from fastmlp.nn.blocks import RowSource
from fastmlp.nn.network import FloatArray
from fastmlp.nn.philox import keep_mask
from fastmlp.reference import backward, clip, forward, plain_losses, row_losses, target_rows, update


class NumpyEngine:
    """The specification as an engine; see `base.Engine` for its methods."""

    name = "numpy"

    def __init__(self, job: Job) -> None:
        self.job = job
        self.threads = 1
        self.decay = np.zeros(job.network.parameters, job.dtype)
        for w, _ in job.network.views(self.decay):
            w[:] = job.optimizer.weight_decay

    def load(self, state: State) -> None:
        self.parameters = state.parameters.astype(self.job.dtype)
        self.slots = state.slots.astype(self.job.dtype)
        self.step = state.step

    def state(self, slots: bool = True) -> State:
        return State(self.parameters.copy(), self.slots[: len(self.slots) * slots].copy(), self.step)

    def rows(self, x: npt.NDArray[Any]) -> FloatArray:
        scaled: FloatArray = x if self.job.scaling is None else self.job.scaling.apply(x)
        return scaled.astype(self.job.dtype, copy=False)

    def dropout_factors(self, rows: int) -> list[Any]:
        """Factors 0 or 1/(1 - rate) of each hidden layer with dropout, else None, for the batch of this step."""
        return [
            keep_mask(self.job.seed, self.step, index, rows, layer.fan_out, layer.dropout)
            * np.asarray(1 / (1 - layer.dropout), self.job.dtype)
            if layer.dropout
            else None
            for index, layer in enumerate(self.job.network.layers[:-1])
        ]

    def train(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        order: npt.NDArray[np.int64],
        rates: npt.NDArray[np.float64],
        weights: FloatArray | None = None,
    ) -> RowMetrics:
        job = self.job
        layers = job.network.views(self.parameters)
        scales = row_scales(order, job.batch_size, weights).astype(job.dtype)
        results = RowMetrics(np.empty(len(order), job.dtype), np.zeros(len(order), bool))
        with np.errstate(over="ignore", invalid="ignore"):  # divergence shows as a loss that is not finite
            for k in range(steps_of(len(order), job.batch_size)):
                batch = slice(k * job.batch_size, (k + 1) * job.batch_size)
                picked = order[batch]
                passed = forward(job.network, layers, self.rows(x[picked]), self.dropout_factors(len(picked)))
                loss, dz = row_losses(job.network, passed.z, target_rows(job.network, y[picked], job.dtype))
                gradient = backward(job.network, layers, passed, dz * scales[batch, None])
                gradient = clip(gradient, job.optimizer.clip_norm)
                update(job.optimizer, self.parameters, gradient, self.slots, self.step, float(rates[k]), self.decay)
                self.step += 1
                results.loss[batch] = loss
                if y.ndim == 1:
                    results.correct[batch] = passed.z.argmax(axis=1) == y[picked]
        return results

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):
            return forward(self.job.network, self.job.network.views(self.parameters), self.rows(x)).z

    def hold(self, x: RowSource, y: npt.NDArray[Any]) -> HeldRows:
        return HeldRows(x, y)

    def evaluate(self, held: HeldRows, z: FloatArray | None = None) -> RowMetrics:
        return evaluate_blocks(held, z, self.forward, self.row_metrics)

    def row_metrics(self, z: FloatArray, y: npt.NDArray[Any]) -> RowMetrics:
        """Metrics of rows from their pre-activations, in float64."""
        correct = z.argmax(axis=1) == y if y.ndim == 1 else np.zeros(len(z), bool)
        with np.errstate(over="ignore", invalid="ignore"):
            return RowMetrics(plain_losses(self.job.network, z, y), correct)

    def close(self) -> None:
        """Nothing to give back."""
