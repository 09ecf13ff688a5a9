"""Contestants for scikit-learn and JAX, and the selection of contestants by name."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fastmlp.bench.contestant import Contestant, Order, OwnEngine, Task, library, limit_blas, lookup
from fastmlp.bench.pytorch import Torch, TorchCompiled
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.errors import ConfigError, UnavailableError, unknown_name
from fastmlp.nn.network import Layer, Network
from fastmlp.nn.optimizers import Optimizer

# ------------------------------------------------------------------------------------------------ scikit-learn


class Sklearn:
    """Contestant for scikit-learn's MLPClassifier. One call of `partial_fit` with all rows trains one epoch of mini-batches.

    A first call creates the model, and its initial parameters are then replaced by those of the task. Shuffling is disabled
    (`shuffle=False`); instead, the rows are permuted within the timed epoch, because the other contestants also select their
    rows within it. The check for finite values is disabled as well (`assume_finite=True`).
    """

    backend = "sklearn"

    def __init__(self, threads: int) -> None:
        self.threads: int | None = threads

    def prepare(self, task: Task) -> None:
        networks = library("scikit-learn", "sklearn.neural_network")
        network = task.network
        self.model = networks.MLPClassifier(
            hidden_layer_sizes=network.sizes[1:-1],
            activation=self.activation(network),
            **self.rule(task.optimizer),
            alpha=0.0,
            batch_size=min(task.batch, len(task.x)),
            learning_rate_init=task.learning_rate,
            shuffle=False,
            n_iter_no_change=np.inf,
            random_state=0,
        )
        self.task = task
        self.x = np.empty_like(task.x)
        few = slice(0, self.model.batch_size)
        self.model.partial_fit(task.x[few], task.y[few], classes=np.arange(network.sizes[-1]))
        for w, b, (w_start, b_start) in zip(self.model.coefs_, self.model.intercepts_, network.views(task.start), strict=True):
            w[:], b[:] = w_start, b_start
        del self.model._optimizer  # removes the momentum of the first call; the next call creates a new optimizer

    def activation(self, network: Network) -> Any:
        """Return scikit-learn's name of the activation. All hidden layers must have the same activation."""
        if any(layer.dropout for layer in network.layers):
            raise UnavailableError("scikit-learn does not support dropout")
        if network.sizes[-1] < 3:
            raise UnavailableError("scikit-learn does not support a softmax output with two classes")
        table = {"relu": "relu", "tanh": "tanh", "sigmoid": "logistic", "linear": "identity"}
        names = {layer.activation for layer in network.layers[:-1]} or {"linear"}
        return lookup(table, " and ".join(sorted(names)), "scikit-learn")

    def rule(self, o: Optimizer) -> Any:
        """Return the parameters of MLPClassifier that select the optimizer."""
        table: dict[str, dict[str, Any]] = {
            "sgd": {"solver": "sgd", "momentum": 0.0, "nesterovs_momentum": False},
            "momentum": {"solver": "sgd", "momentum": o.momentum, "nesterovs_momentum": False},
            "nesterov": {"solver": "sgd", "momentum": o.momentum, "nesterovs_momentum": True},
            "adam": {"solver": "adam", "beta_1": o.beta1, "beta_2": o.beta2, "epsilon": o.epsilon},
        }
        return lookup(table, o.name, "scikit-learn")

    def limited(self) -> AbstractContextManager[Any]:
        stack = contextlib.ExitStack()
        stack.enter_context(library("scikit-learn", "sklearn").config_context(assume_finite=True))
        stack.enter_context(limit_blas(self.threads or 1))
        return stack

    def epoch(self, order: Order) -> float:
        task = self.task
        x = self.x[: len(order)]
        np.take(task.x, order, axis=0, out=x, mode="clip")  # mode "clip" avoids a temporary copy of `out`
        self.model.partial_fit(x, task.y[order])
        return float(self.model.loss_)

    def close(self) -> None:
        """Do nothing: no resources are held."""


# ------------------------------------------------------------------------------------------------ JAX


class Jax:
    """Contestant for JAX on the CPU. A whole epoch is one jitted scan over the mini-batches, with donated parameter buffers.

    XLA starts one thread per core when a process first uses it, and the number of threads cannot be changed afterwards.
    """

    backend = "jax"

    def __init__(self, threads: int) -> None:
        self.threads: int | None = threads

    def prepare(self, task: Task) -> None:
        if self.threads != available_cores():
            raise UnavailableError(f"JAX uses one thread per core ({available_cores()}); it cannot use {self.threads} threads")
        self.jax = jax = library("jax", "jax")
        self.task = task
        self.device = jax.devices("cpu")[0]
        self.layers = task.network.layers
        self.activations = [self.activation(layer) for layer in self.layers[:-1]]
        self.x, self.y = (jax.device_put(a, self.device) for a in (task.x, task.y))
        init, self.update, self.get = self.rule(task.optimizer, task.learning_rate)
        self.state = init([(w.copy(), b.copy()) for w, b in task.network.views(task.start)])
        self.state = jax.device_put(self.state, self.device)
        self.steps = jax.device_put(np.int32(0), self.device)
        self.jitted = jax.jit(self.whole_epoch, donate_argnums=(0, 1))

    def activation(self, layer: Layer) -> Callable[[Any], Any]:
        nn, a = self.jax.nn, layer.parameter
        table = {
            "linear": lambda z: z,
            "relu": nn.relu,
            "leaky-relu": functools.partial(nn.leaky_relu, negative_slope=a),
            "tanh": nn.tanh,
            "sigmoid": nn.sigmoid,
            "gelu": functools.partial(nn.gelu, approximate=False),
            "silu": nn.silu,
            "elu": functools.partial(nn.elu, alpha=a),
        }
        found: Callable[[Any], Any] = lookup(table, layer.activation, "JAX")
        return found

    def rule(self, o: Optimizer, learning_rate: float) -> Any:
        """Return the functions (init, update, get_params) of an optimizer from jax.example_libraries.optimizers.

        JAX's rmsprop is not supported, because its update rule differs from fastmlp's.
        """
        made = library("jax", "jax.example_libraries.optimizers")
        table = {
            "sgd": lambda: made.sgd(learning_rate),
            "momentum": lambda: made.momentum(learning_rate, o.momentum),
            "nesterov": lambda: made.nesterov(learning_rate, o.momentum),
            "adam": lambda: made.adam(learning_rate, o.beta1, o.beta2, o.epsilon),
        }
        return lookup(table, o.name, "JAX")()

    def loss(self, layers: Any, x: Any, y: Any, step: Any) -> Any:
        jax = self.jax
        for number, activation in enumerate(self.activations):
            w, b = layers[number]
            x = activation(x @ w + b)
            if dropout := self.layers[number].dropout:
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.task.seed), step), number)
                x = jax.numpy.where(jax.random.bernoulli(key, 1 - dropout, x.shape), x / (1 - dropout), 0)
        w, b = layers[-1]
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(x @ w + b), y[:, None], 1).mean()

    def whole_epoch(self, state: Any, steps: Any, x: Any, y: Any, order: Any) -> Any:
        """Train for one epoch; return the new state, the new step number and the mean loss. The last batch may be smaller."""
        jax, batch = self.jax, self.task.batch

        def one(carry: Any, picked: Any) -> Any:
            state, step = carry
            rows = x.at[picked].get(mode="promise_in_bounds"), y.at[picked].get(mode="promise_in_bounds")
            loss, gradients = jax.value_and_grad(self.loss)(self.get(state), *rows, step)
            return (self.update(step, gradients, state), step + 1), loss * len(picked)

        whole = len(order) - len(order) % batch
        carry, losses = jax.lax.scan(one, (state, steps), order[:whole].reshape(-1, batch))
        total = losses.sum()
        if whole < len(order):
            carry, last = one(carry, order[whole:])
            total += last
        return *carry, total / len(order)

    def limited(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def epoch(self, order: Order) -> float:
        picked = self.jax.device_put(order.astype(np.int32), self.device)
        self.state, self.steps, loss = self.jitted(self.state, self.steps, self.x, self.y, picked)
        return float(loss)

    def close(self) -> None:
        """Do nothing: no resources are held."""


# ------------------------------------------------------------------------------------------------ by name

RIVALS: dict[str, Callable[[int], Contestant]] = {
    "torch": Torch,
    "torch-compile": TorchCompiled,
    "sklearn": Sklearn,
    "jax": Jax,
}
# The engines of fastmlp that are timed. The engine "torch" is not among them: in a benchmark, the name "torch" means the
# fastest training step that can be written in PyTorch.
ENGINES = ("numpy", "numba", "cuda")
NAMES = (*ENGINES, *RIVALS)
OURS = ("numba", "cuda")  # the NumPy engine is the reference implementation, which is not optimized for speed


def parse_names(text: str | None) -> tuple[str, ...]:
    """Parse comma-separated names of contestants; None means all names.

    >>> parse_names("numba, jax"), parse_names(None) == NAMES
    (('numba', 'jax'), True)
    """
    return NAMES if text is None else tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def contestants(names: Iterable[str], threads: int | None = None) -> list[Contestant]:
    """Create the contestants with the given names; `prepare` has not been called yet.

    Each one is created with 1 thread and with `threads` threads (None means one per core). JAX is created only with `threads`
    threads, and the CUDA engine without a number of threads.

    Raises
    ------
    ConfigError : a name is unknown

    Examples
    --------
    >>> [(one.backend, one.threads) for one in contestants(["numpy", "jax"], 2)]
    [('numpy', 1), ('numpy', 2), ('jax', 2)]
    """
    most = threads or available_cores()
    found: list[Contestant] = []
    for name in names:
        if name not in NAMES:
            raise ConfigError(unknown_name("backend", name, NAMES), settings=("backends",))
        numbers: Sequence[int] = [most] if name == "jax" else sorted({1, most})
        if name in RIVALS:
            found += [RIVALS[name](number) for number in numbers]
        elif name == "cuda":
            found.append(OwnEngine(name, None))
        else:
            found += [OwnEngine(name, number) for number in numbers]
    return found
