"""The PyTorch engine: the same training with PyTorch's definitions. Needs the package torch.

It validates the other engines independently, and reproduces published experiments that were trained in PyTorch: the same rows
in the same order, initial parameters and dropout masks, but activations and losses from torch.nn.functional, gradients from
autograd, and updates from torch.optim. It is not optimised for speed, and `auto` never selects it; `fastmlp bench` measures
the fastest training step in PyTorch (bench/pytorch.py, which shares the tables below).

Float32 or float64, on the CPU. PyTorch's threads belong to the process, not to an engine: `EngineSpec.threads` is ignored,
since several engines may run, and `threads` is PyTorch's own setting (OMP_NUM_THREADS, torch.set_num_threads).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fastmlp.engines.base import EngineSpec, HeldRows, RowMetrics, State, evaluate_blocks, loss_weights, step_count
from fastmlp.nn.blocks import RowSource
from fastmlp.nn.network import FloatArray, Layer, Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.philox import keep_mask

Function = Callable[[torch.Tensor], torch.Tensor]

# PyTorch's threads do not exist in a forked child, which would wait for them forever; with one thread it needs no others.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))

# ------------------------------------------------------------------------------------------------ definitions


def activations(a: float) -> dict[str, Function]:
    """Activations that PyTorch implements, by fastmlp's names; a is the parameter of those that have one."""
    return {
        "linear": lambda z: z,
        "relu": functional.relu,
        "leaky-relu": functools.partial(functional.leaky_relu, negative_slope=a),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "gelu": functional.gelu,
        "silu": functional.silu,
        "elu": functools.partial(functional.elu, alpha=a),
    }


def activation(layer: Layer) -> Function:
    """The activation of a layer, composed of PyTorch's."""
    a = layer.parameter
    return {**activations(a), "leaky-gelu": lambda z: a * z + (1 - a) * functional.gelu(z)}[layer.activation]


OUTPUTS: dict[str, Function] = {"softmax": lambda z: z.softmax(1), "sigmoid": torch.sigmoid, "linear": lambda z: z}


def row_losses(network: Network, z: torch.Tensor, y: npt.NDArray[Any], smoothing: float) -> torch.Tensor:
    """Loss of each row, (rows,), from output pre-activations z (rows, outputs); classes y are smoothed, targets are not."""
    classes = y.ndim == 1
    target = torch.tensor(y, dtype=torch.int64 if classes else z.dtype)
    if network.loss == "cross-entropy":
        return functional.cross_entropy(z, target, reduction="none", label_smoothing=smoothing if classes else 0.0)
    if classes:  # cast first: integers times a float would be float32
        target = functional.one_hot(target, z.shape[1]).to(z.dtype) * (1 - smoothing) + smoothing / z.shape[1]
    error = OUTPUTS[network.output or ""](z) - target
    return 0.5 * error.square().sum(1)


# name -> names in torch.optim's state, in the order of `Optimizer.slots`
SLOTS: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("momentum_buffer",),
    "nesterov": ("momentum_buffer",),
    "rmsprop": ("square_avg",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}


def make_optimizer(o: Optimizer, weights: Any, biases: Any, learning_rate: float = 0.0, **how: bool) -> torch.optim.Optimizer:
    """torch.optim's rule of the same name, with adamw's decay on weights only; `how` selects one of its implementations."""
    made = torch.optim
    # PyTorch rejects nesterov without momentum, which is plain SGD; without momentum it has no slot, and nothing reads it.
    heavy = {"momentum": o.momentum, "nesterov": o.name == "nesterov" and o.momentum > 0}
    means = {"betas": (o.beta1, o.beta2), "eps": o.epsilon}
    rules: dict[str, tuple[Any, dict[str, Any]]] = {
        "sgd": (made.SGD, {}),
        "momentum": (made.SGD, heavy),
        "nesterov": (made.SGD, heavy),
        "rmsprop": (made.RMSprop, {"alpha": o.beta2, "eps": o.epsilon}),
        "adam": (made.Adam, means),
        "adamw": (made.AdamW, means),
    }
    rule, settings = rules[o.name]
    groups = [
        {"params": weights, "weight_decay": o.weight_decay if o.name == "adamw" else 0.0},
        {"params": biases, "weight_decay": 0.0},
    ]
    found: torch.optim.Optimizer = rule(groups, lr=learning_rate, **settings, **how)
    return found


# PyTorch raises an error if a product with the learning rate overflows float32; engines return a loss that is not finite.
LARGEST_LEARNING_RATE = 1e35


def clip(parameters: Iterable[torch.Tensor], largest: float) -> None:
    """Scale the gradients down to the norm `largest` if their norm exceeds it.

    torch.nn.utils.clip_grad_norm_ is not used: it adds 1e-6 to the norm, so clipped gradients are shorter than `largest`, by
    a tenth for a norm of 1e-5. The specification, Pascanu et al., does not.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]).norm().item()
    if norm > largest:
        for g in gradients:
            g.mul_(largest / norm)


# ------------------------------------------------------------------------------------------------ the engine


class TorchEngine:
    """Training by autograd and torch.optim; see `base.Engine` for its methods."""

    name = "torch"

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.dtype = {4: torch.float32, 8: torch.float64}[np.dtype(spec.dtype).itemsize]
        self.activations = [activation(layer) for layer in spec.network.layers[:-1]]
        self.threads = torch.get_num_threads()

    def load(self, state: State) -> None:
        self.weights, self.biases = self.tensors(state.parameters)
        for p in self.leaves():
            p.requires_grad_()
        self.optimizer = make_optimizer(self.spec.optimizer, self.weights, self.biases)
        self.step = state.step
        for key, slot in zip(SLOTS[self.spec.optimizer.name], state.slots, strict=True):
            weights, biases = self.tensors(slot)
            for p, values in zip(self.leaves(), [*weights, *biases], strict=True):
                # PyTorch's float32 would stop counting steps at 2^24
                entry = self.optimizer.state[p] or {"step": torch.tensor(state.step, dtype=torch.float64)}
                self.optimizer.state[p] = {**entry, key: values}

    def state(self, slots: bool = True) -> State:
        keys = SLOTS[self.spec.optimizer.name] if slots else ()
        kept = [self.flat([self.optimizer.state[p][key] for p in self.leaves()]) for key in keys]
        shape = (len(keys), self.spec.network.parameters)
        return State(self.flat(self.leaves()), np.array(kept, self.spec.dtype).reshape(shape), self.step)

    def leaves(self) -> list[torch.Tensor]:
        """All weights, then all biases."""
        return [*self.weights, *self.biases]

    def tensors(self, vector: FloatArray) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Copies of the weights, (fan_out, fan_in) as in PyTorch, and biases of each layer from a flat vector."""
        views = self.spec.network.views(vector)
        return [self.tensor(np.ascontiguousarray(w.T)) for w, _ in views], [self.tensor(b) for _, b in views]

    def tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """Copy into memory aligned by PyTorch: rounding in products depends on the alignment of the operands."""
        return torch.tensor(array, dtype=self.dtype)

    def flat(self, tensors: list[torch.Tensor]) -> FloatArray:
        """A new flat vector from tensors in the order of `leaves`."""
        vector = np.empty(self.spec.network.parameters, self.spec.dtype)
        layers = len(tensors) // 2
        for (w, b), weight, bias in zip(self.spec.network.views(vector), tensors[:layers], tensors[layers:], strict=True):
            w[:], b[:] = weight.detach().numpy().T, bias.detach().numpy()
        return vector

    def rows(self, x: npt.NDArray[Any]) -> torch.Tensor:
        """Scaled rows, the input of the network."""
        return self.tensor(np.ascontiguousarray(x if self.spec.scaling is None else self.spec.scaling.apply(x)))

    def dropout_factors(self, rows: int) -> list[torch.Tensor | None]:
        """Factors 0 or 1/(1 - rate) of each hidden layer with dropout, else None; masks as in all engines."""
        spec = self.spec
        return [
            self.tensor(keep_mask(spec.seed, self.step, index, rows, layer.fan_out, layer.dropout)) / (1 - layer.dropout)
            if layer.dropout
            else None
            for index, layer in enumerate(spec.network.layers[:-1])
        ]

    def outputs(self, x: torch.Tensor, factors: list[torch.Tensor | None] | None = None) -> torch.Tensor:
        """Pre-activations of the output layer; `factors` are the dropout factors in training."""
        for index, function in enumerate(self.activations):
            x = function(functional.linear(x, self.weights[index], self.biases[index]))
            factor = None if factors is None else factors[index]
            x = x if factor is None else x * factor
        return functional.linear(x, self.weights[-1], self.biases[-1])

    def penalty(self) -> torch.Tensor | float:
        """l2/2 sum(w^2) + l1 sum(|w|)."""
        network = self.spec.network
        l2 = sum(w.square().sum() for w in self.weights) if network.l2 else 0.0
        l1 = sum(w.abs().sum() for w in self.weights) if network.l1 else 0.0
        return network.l2 / 2 * l2 + network.l1 * l1

    def update(self, objective: torch.Tensor, learning_rate: float) -> None:
        """One step down the objective's gradient."""
        self.optimizer.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        if self.spec.optimizer.clip_norm:
            clip(self.leaves(), self.spec.optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate if learning_rate <= LARGEST_LEARNING_RATE else np.inf
        self.optimizer.step()
        self.step += 1

    def train(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        indices: npt.NDArray[np.int64],
        learning_rates: npt.NDArray[np.float64],
        weights: FloatArray | None = None,
    ) -> RowMetrics:
        spec = self.spec
        scales = self.tensor(loss_weights(indices, spec.batch_size, weights))
        results = RowMetrics(np.empty(len(indices), spec.dtype), np.zeros(len(indices), bool))
        for k in range(step_count(len(indices), spec.batch_size)):
            batch = slice(k * spec.batch_size, (k + 1) * spec.batch_size)
            picked = indices[batch]
            z = self.outputs(self.rows(x[picked]), self.dropout_factors(len(picked)))
            loss = row_losses(spec.network, z, y[picked], spec.network.label_smoothing)
            self.update((loss * scales[batch]).sum() + self.penalty(), float(learning_rates[k]))
            results.loss[batch] = loss.detach().numpy()
            results.correct[batch] = correct_rows(z, y[picked])
        return results

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        with torch.no_grad():
            found: FloatArray = self.outputs(self.rows(x)).numpy()
        return found

    def hold(self, x: RowSource, y: npt.NDArray[Any]) -> HeldRows:
        return HeldRows(x, y)

    def evaluate(self, held: HeldRows, z: FloatArray | None = None) -> RowMetrics:
        return evaluate_blocks(held, z, self.forward, self.row_metrics)

    def row_metrics(self, z: FloatArray, y: npt.NDArray[Any]) -> RowMetrics:
        """Metrics of rows from their pre-activations, in float64."""
        given = torch.tensor(z, dtype=torch.float64)
        return RowMetrics(row_losses(self.spec.network, given, y, 0.0).numpy(), correct_rows(given, y))

    def close(self) -> None:
        """Nothing to free."""


def correct_rows(z: torch.Tensor, y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether the first largest output is the class of the row; False for plain targets."""
    if y.ndim == 2:
        return np.zeros(len(y), bool)
    found: npt.NDArray[np.bool_] = z.argmax(1).numpy() == y
    return found
