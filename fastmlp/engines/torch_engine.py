"""The PyTorch engine, which trains with PyTorch's own functions and optimizers. It requires the package torch.

Its purpose is to validate the other engines independently, and to reproduce published experiments that were trained in
PyTorch. Mini-batches, initial parameters and dropout masks are the same as in the other engines. Activations and losses come
from torch.nn.functional, gradients from autograd, and updates from torch.optim. The engine is not optimized for speed, and
`auto` never selects it. `fastmlp bench` measures a faster training step in PyTorch, which uses some of the functions below
(bench/pytorch.py).

The engine computes in float32 or float64 on the CPU. All engines of a process share PyTorch's threads, so it ignores
`EngineSpec.threads`; its attribute `threads` is PyTorch's own setting (OMP_NUM_THREADS, torch.set_num_threads).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fastmlp.engines.base import EngineSpec, HeldRows, RowMetrics, State, evaluate_blocks, loss_weights, step_count
from fastmlp.engines.functions import array_activations
from fastmlp.nn.blocks import RowSource
from fastmlp.nn.network import FloatArray, Layer, Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.philox import keep_mask

Function = Callable[[torch.Tensor], torch.Tensor]

# A forked child process would wait forever for PyTorch's threads, which exist only in the parent. So it uses one thread.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))

# ------------------------------------------------------------------------------------------------ definitions


def activations(a: float) -> dict[str, Function]:
    """Return the activations that PyTorch implements, by their name in fastmlp. a is the parameter of leaky-relu and elu."""
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


class CustomActivation(torch.autograd.Function):
    """A custom activation, computed by its functions of NumPy arrays; see `engines.functions.array_activations`."""

    @staticmethod
    def forward(context: Any, z: torch.Tensor, value: Any, slope: Any, a: float) -> torch.Tensor:
        y = value(z.numpy(), a)
        context.slope = torch.from_numpy(slope(z.numpy(), y, a))
        return torch.from_numpy(y)

    @staticmethod
    def backward(context: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return dy * context.slope, None, None, None


def activation(layer: Layer, custom: Mapping[str, Any]) -> Function:
    """Return the activation function of a layer. leaky-gelu does not exist in PyTorch and is computed from its gelu.

    custom : the value and the slope of each custom activation, as functions of arrays
    """
    a = layer.parameter
    if layer.activation in custom:
        value, slope = custom[layer.activation]
        return lambda z: CustomActivation.apply(z, value, slope, a)
    return {**activations(a), "leaky-gelu": lambda z: a * z + (1 - a) * functional.gelu(z)}[layer.activation]


OUTPUTS: dict[str, Function] = {
    "softmax": lambda z: z.softmax(1),
    "sigmoid": torch.sigmoid,
    "linear": lambda z: z,
    "exp": torch.exp,
}


def quantile_loss(z: torch.Tensor, target: torch.Tensor, level: float) -> torch.Tensor:
    """Return the quantile loss of each output, which PyTorch does not have. The gradient of relu at 0 is 0."""
    return level * functional.relu(target - z) + (1 - level) * functional.relu(z - target)


def row_losses(network: Network, z: torch.Tensor, y: npt.NDArray[Any], smoothing: float) -> torch.Tensor:
    """Return the loss of each row, (rows,), from the pre-activations z of the output layer, (rows, outputs).

    Label smoothing applies to class labels y (rows,), but not to float targets y (rows, outputs).
    """
    classes = y.ndim == 1
    target = torch.tensor(y, dtype=torch.int64 if classes else z.dtype)
    if network.loss_name == "cross-entropy":
        return functional.cross_entropy(z, target, reduction="none", label_smoothing=smoothing if classes else 0.0)
    if classes:  # PyTorch would promote integers times a Python float to float32
        target = functional.one_hot(target, z.shape[1]).to(z.dtype) * (1 - smoothing) + smoothing / z.shape[1]
    if network.loss_name == "absolute-error":
        return functional.l1_loss(z, target, reduction="none").sum(1)
    if network.loss_name == "huber":
        return functional.huber_loss(z, target, reduction="none", delta=network.loss_parameter).sum(1)
    if network.loss_name == "quantile":
        return quantile_loss(z, target, network.loss_parameter).sum(1)
    if network.loss_name == "binary-cross-entropy":
        return functional.binary_cross_entropy_with_logits(z, target, reduction="none").sum(1)
    if network.loss_name == "poisson":  # PyTorch's loss omits the terms that do not depend on z
        return (functional.poisson_nll_loss(z, target, reduction="none") + torch.xlogy(target, target) - target).sum(1)
    error = OUTPUTS[network.output or ""](z) - target
    return 0.5 * error.square().sum(1)


# optimizer -> keys of its state in torch.optim, in the order of `Optimizer.slots`
SLOTS: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("momentum_buffer",),
    "nesterov": ("momentum_buffer",),
    "rmsprop": ("square_avg",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}


def make_optimizer(o: Optimizer, weights: Any, biases: Any, learning_rate: float = 0.0, **how: bool) -> torch.optim.Optimizer:
    """Return the torch.optim optimizer of the same name. The weight decay of adamw applies to weights only.

    how : keyword arguments that select an implementation, such as fused=True
    """
    made = torch.optim
    # PyTorch rejects nesterov=True with momentum 0, which is equivalent to plain SGD. The momentum buffer is then unused.
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


# A larger rate is replaced by infinity: PyTorch would raise an error if a product with it overflows float32, but an engine
# must return a non-finite loss instead.
LARGEST_LEARNING_RATE = 1e35


def clip(parameters: Iterable[torch.Tensor], largest: float) -> None:
    """If the joint norm of all gradients exceeds `largest`, scale them so that it equals `largest`.

    torch.nn.utils.clip_grad_norm_ is not used because it adds 1e-6 to the norm, which makes clipped gradients too short: by
    a tenth for a norm of 1e-5. The reference implementation, which follows Pascanu et al., adds nothing. If the square of the
    norm overflows in float64, the gradients become NaN.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]).norm().item()
    if norm > largest:
        for g in gradients:
            g.mul_(largest / norm if norm < np.inf else np.nan)


# ------------------------------------------------------------------------------------------------ the engine


class TorchEngine:
    """Engine that trains with autograd and torch.optim; see `base.Engine` for its methods."""

    name = "torch"

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.dtype = {4: torch.float32, 8: torch.float64}[np.dtype(spec.dtype).itemsize]
        custom = array_activations(spec.network)
        self.activations = [activation(layer, custom) for layer in spec.network.layers[:-1]]
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
                # PyTorch's default, a float32 counter, would stop at 2^24 steps
                entry = self.optimizer.state[p] or {"step": torch.tensor(state.step, dtype=torch.float64)}
                self.optimizer.state[p] = {**entry, key: values}

    def state(self, slots: bool = True) -> State:
        keys = SLOTS[self.spec.optimizer.name] if slots else ()
        kept = [self.flat([self.optimizer.state[p][key] for p in self.leaves()]) for key in keys]
        shape = (len(keys), self.spec.network.parameters)
        return State(self.flat(self.leaves()), np.array(kept, self.spec.dtype).reshape(shape), self.step)

    def leaves(self) -> list[torch.Tensor]:
        """Return the weights of all layers, followed by the biases of all layers."""
        return [*self.weights, *self.biases]

    def tensors(self, vector: FloatArray) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Copy the weights, transposed to PyTorch's (fan_out, fan_in), and the biases of all layers from a flat vector."""
        views = self.spec.network.views(vector)
        return [self.tensor(np.ascontiguousarray(w.T)) for w, _ in views], [self.tensor(b) for _, b in views]

    def tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """Copy an array into a tensor.

        The copy has PyTorch's memory alignment. Without it, rounding errors in products would depend on the caller's array.
        """
        return torch.tensor(array, dtype=self.dtype)

    def flat(self, tensors: list[torch.Tensor]) -> FloatArray:
        """Return a new flat vector from tensors in the order of `leaves`."""
        vector = np.empty(self.spec.network.parameters, self.spec.dtype)
        layers = len(tensors) // 2
        for (w, b), weight, bias in zip(self.spec.network.views(vector), tensors[:layers], tensors[layers:], strict=True):
            w[:], b[:] = weight.detach().numpy().T, bias.detach().numpy()
        return vector

    def rows(self, x: npt.NDArray[Any]) -> torch.Tensor:
        """Return the scaled rows, which are the input of the network."""
        return self.tensor(np.ascontiguousarray(x if self.spec.scaling is None else self.spec.scaling.apply(x)))

    def dropout_factors(self, rows: int) -> list[torch.Tensor | None]:
        """Return the dropout factors, 0 or 1/(1 - rate), of each hidden layer; None for a layer without dropout."""
        spec = self.spec
        return [
            self.tensor(keep_mask(spec.seed, self.step, index, rows, layer.fan_out, layer.dropout)) / (1 - layer.dropout)
            if layer.dropout
            else None
            for index, layer in enumerate(spec.network.layers[:-1])
        ]

    def outputs(self, x: torch.Tensor, factors: list[torch.Tensor | None] | None = None) -> torch.Tensor:
        """Return the pre-activations of the output layer. `factors` are the dropout factors; pass them in training only."""
        for index, function in enumerate(self.activations):
            x = function(functional.linear(x, self.weights[index], self.biases[index]))
            factor = None if factors is None else factors[index]
            x = x if factor is None else x * factor
        return functional.linear(x, self.weights[-1], self.biases[-1])

    def penalty(self) -> torch.Tensor | float:
        """Return the L1 and L2 penalties, l2/2 sum(w^2) + l1 sum(|w|) over all weights."""
        network = self.spec.network
        l2 = sum(w.square().sum() for w in self.weights) if network.l2 else 0.0
        l1 = sum(w.abs().sum() for w in self.weights) if network.l1 else 0.0
        return network.l2 / 2 * l2 + network.l1 * l1

    def update(self, objective: torch.Tensor, learning_rate: float) -> None:
        """Compute the gradient of the objective, clip it if requested, and update the parameters.

        If the square of a gradient overflows and the optimizer uses it, the parameter becomes NaN, as in the other engines.
        """
        self.optimizer.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        if self.spec.optimizer.max_grad_norm:
            clip(self.leaves(), self.spec.optimizer.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate if learning_rate <= LARGEST_LEARNING_RATE else np.inf
            if self.spec.optimizer.epsilon_hat:
                group["eps"] = self.spec.optimizer.epsilon / np.sqrt(1 - self.spec.optimizer.beta2 ** (self.step + 1))
        self.optimizer.step()
        if "v" in self.spec.optimizer.slots:  # PyTorch's own v overflows only for larger gradients
            with torch.no_grad():
                for p in self.leaves():
                    p[~torch.isfinite(torch.square(p.grad))] = torch.nan  # type: ignore[arg-type]
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
        return evaluate_blocks(held, z, self.spec.network.sizes[-1], self.forward, self.row_metrics)

    def row_metrics(self, z: FloatArray, y: npt.NDArray[Any]) -> RowMetrics:
        """Return the metrics of rows, computed in float64 from their pre-activations."""
        given = torch.tensor(z, dtype=torch.float64)
        return RowMetrics(row_losses(self.spec.network, given, y, 0.0).numpy(), correct_rows(given, y))

    def close(self) -> None:
        """Do nothing: this engine holds no threads or device memory."""


def correct_rows(z: torch.Tensor, y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return for each row whether the index of its (first) maximum output equals its label; always False for float targets."""
    if y.ndim == 2:
        return np.zeros(len(y), bool)
    found: npt.NDArray[np.bool_] = z.argmax(1).numpy() == y
    return found
