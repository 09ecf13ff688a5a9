"""The NumPy engine: runs the reference implementation, reference.py, through the engine interface of base.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.engines.base import EngineSpec, HeldRows, RowMetrics, State, evaluate_blocks, loss_weights, step_count
from fastmlp.engines.functions import array_activations
from fastmlp.nn.blocks import RowSource
from fastmlp.nn.network import FloatArray
from fastmlp.nn.philox import keep_mask
from fastmlp.reference import ACTIVATIONS, backward, clip, forward, plain_losses, row_losses, target_rows, update


class NumpyEngine:
    """Engine that runs the reference implementation; see `base.Engine` for its methods."""

    name = "numpy"

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.threads = 1
        self.activations = ACTIVATIONS | array_activations(spec.network)
        self.decay = np.zeros(spec.network.parameters, spec.dtype)
        for w, _ in spec.network.views(self.decay):
            w[:] = spec.optimizer.weight_decay

    def load(self, state: State) -> None:
        self.parameters = state.parameters.astype(self.spec.dtype)
        self.slots = state.slots.astype(self.spec.dtype)
        self.step = state.step

    def state(self, slots: bool = True) -> State:
        return State(self.parameters.copy(), self.slots[: len(self.slots) * slots].copy(), self.step)

    def rows(self, x: npt.NDArray[Any]) -> FloatArray:
        scaled: FloatArray = x if self.spec.scaling is None else self.spec.scaling.apply(x)
        return scaled.astype(self.spec.dtype, copy=False)

    def dropout_factors(self, rows: int) -> list[Any]:
        """Return the dropout factors, 0 or 1/(1 - rate), of each hidden layer; None for a layer without dropout."""
        return [
            keep_mask(self.spec.seed, self.step, index, rows, layer.fan_out, layer.dropout)
            * np.asarray(1 / (1 - layer.dropout), self.spec.dtype)
            if layer.dropout
            else None
            for index, layer in enumerate(self.spec.network.layers[:-1])
        ]

    def train(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        indices: npt.NDArray[np.int64],
        learning_rates: npt.NDArray[np.float64],
        weights: FloatArray | None = None,
    ) -> RowMetrics:
        spec = self.spec
        layers = spec.network.views(self.parameters)
        scales = loss_weights(indices, spec.batch_size, weights).astype(spec.dtype)
        results = RowMetrics(np.empty(len(indices), spec.dtype), np.zeros(len(indices), bool))
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is reported as a non-finite loss
            for k in range(step_count(len(indices), spec.batch_size)):
                batch = slice(k * spec.batch_size, (k + 1) * spec.batch_size)
                picked = indices[batch]
                masks = self.dropout_factors(len(picked))
                passed = forward(spec.network, layers, self.rows(x[picked]), masks, self.activations)
                loss, dz = row_losses(spec.network, passed.z, target_rows(spec.network, y[picked], spec.dtype))
                gradient = backward(spec.network, layers, passed, dz * scales[batch, None])
                gradient = clip(gradient, spec.optimizer.max_grad_norm)
                update(spec.optimizer, self.parameters, gradient, self.slots, self.step, float(learning_rates[k]), self.decay)
                self.step += 1
                results.loss[batch] = loss
                if y.ndim == 1:
                    results.correct[batch] = passed.z.argmax(axis=1) == y[picked]
        return results

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        layers = self.spec.network.views(self.parameters)
        with np.errstate(over="ignore", invalid="ignore"):
            return forward(self.spec.network, layers, self.rows(x), activations=self.activations).z

    def hold(self, x: RowSource, y: npt.NDArray[Any]) -> HeldRows:
        return HeldRows(x, y)

    def evaluate(self, held: HeldRows, z: FloatArray | None = None) -> RowMetrics:
        return evaluate_blocks(held, z, self.spec.network.sizes[-1], self.forward, self.row_metrics)

    def row_metrics(self, z: FloatArray, y: npt.NDArray[Any]) -> RowMetrics:
        """Return the metrics of rows, computed in float64 from their pre-activations."""
        correct = z.argmax(axis=1) == y if y.ndim == 1 else np.zeros(len(z), bool)
        with np.errstate(over="ignore", invalid="ignore"):
            return RowMetrics(plain_losses(self.spec.network, z, y), correct)

    def close(self) -> None:
        """Do nothing: this engine holds no threads or device memory."""
