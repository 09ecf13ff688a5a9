"""Contestants for PyTorch, in eager mode and with torch.compile. They need the package torch.

The training step is the fastest variant that we found. It selects rows with index_select, calls functions instead of modules,
and updates the parameters in place instead of using torch.optim.SGD (foreach or fused), which has more Python overhead.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastmlp.bench.contestant import Order, Task, library, lookup
from fastmlp.errors import UnavailableError
from fastmlp.nn.network import Layer
from fastmlp.nn.optimizers import Optimizer


class Torch:
    """PyTorch in eager mode on one device. Optimizers other than plain SGD are those of torch.optim, fused if available."""

    backend = "torch"

    def __init__(self, threads: int | None, device: str = "cpu") -> None:
        self.threads, self.device = threads, device

    def prepare(self, task: Task) -> None:
        self.torch = torch = library("torch", "torch")
        self.task = task
        self.x = torch.from_numpy(task.x).to(self.device)
        self.y = torch.from_numpy(task.y.astype(np.int64)).to(self.device)
        self.layers = task.network.layers
        self.activations = [self.activation(layer) for layer in self.layers[:-1]]
        views = task.network.views(task.start)
        self.parameters = [torch.from_numpy(a.copy()).to(self.device).requires_grad_() for w, b in views for a in (w.T, b)]
        self.update = self.in_place if task.optimizer.name == "sgd" else self.by_optimizer(task.optimizer)

    def activation(self, layer: Layer) -> Callable[[Any], Any]:
        from fastmlp.engines.torch_engine import activations

        found: Callable[[Any], Any] = lookup(activations(layer.parameter), layer.activation, "PyTorch")
        return found

    def by_optimizer(self, o: Optimizer) -> Callable[[Any, Any], None]:
        """Return a function that updates the parameters with torch.optim's counterpart of `o`, in its fastest version."""
        from fastmlp.engines.torch_engine import make_optimizer

        how = {"foreach" if o.name == "rmsprop" else "fused": True}  # RMSprop has no fused version
        rule = make_optimizer(o, self.parameters[0::2], self.parameters[1::2], self.task.learning_rate, **how)

        def update(parameters: Any, gradients: Any) -> None:
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g
            rule.step()

        return update

    def in_place(self, parameters: Any, gradients: Any) -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p.sub_(g, alpha=self.task.learning_rate)

    def loss(self, parameters: Any, x: Any, y: Any) -> Any:
        f = self.torch.nn.functional
        for number, activation in enumerate(self.activations):
            x = activation(f.linear(x, parameters[2 * number], parameters[2 * number + 1]))
            if dropout := self.layers[number].dropout:
                x = f.dropout(x, dropout)
        return f.cross_entropy(f.linear(x, parameters[-2], parameters[-1]), y)

    def step(self, picked: Any) -> Any:
        """Train on the mini-batch of the rows `picked`, and return its mean loss before the update."""
        loss = self.loss(self.parameters, self.x.index_select(0, picked), self.y[picked])
        gradients = self.torch.autograd.grad(loss, self.parameters)
        with self.torch.no_grad():
            self.update(self.parameters, gradients)
        return loss.detach()

    def epoch(self, order: Order) -> float:
        batches = self.torch.from_numpy(order).to(self.device).split(self.task.batch)
        losses = self.torch.stack([self.step(picked) for picked in batches])
        sizes = self.torch.tensor([len(picked) for picked in batches], device=self.device)
        return float((losses * sizes).sum() / len(order))

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            self.torch.set_num_threads(before)

    def close(self) -> None:
        """Do nothing, because no resources have to be released."""


class TorchCompiled(Torch):
    """PyTorch with torch.compile. It needs a C++ compiler.

    Row selection, loss, gradients and, for plain SGD, the update are compiled as one function, with Inductor's C++ wrapper.
    This is faster than compiling only the loss and the gradients.
    """

    backend = "torch-compile"

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        torch = self.torch
        config = library("torch", "torch._inductor.config")
        config.compile_threads = 1  # with more threads, a pool of worker processes would stay alive
        inside = task.optimizer.name == "sgd"

        def step(parameters: Any, x: Any, y: Any, picked: Any) -> Any:
            gradients, loss = torch.func.grad_and_value(self.loss)(parameters, x.index_select(0, picked), y[picked])
            if inside:
                self.update(parameters, gradients)
            return loss, gradients

        self.inside = inside
        self.parameters = [p.detach() for p in self.parameters]
        if not inside:
            self.update = self.by_optimizer(task.optimizer)
        self.compiled = torch.compile(step, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
        self.try_compiler()

    def try_compiler(self) -> None:
        """Compile the step for a full mini-batch, to detect a missing C++ compiler before the first epoch."""
        torch = self.torch
        start = [p.clone() for p in self.parameters]
        try:
            with self.limited(), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch itself uses deprecated functions
                self.compiled(start, self.x, self.y, torch.arange(min(self.task.batch, len(self.x))))
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).strip().partition("\n\n")[0].split())
            raise UnavailableError(f"torch.compile does not work on this machine: {reason}") from error

    def step(self, picked: Any) -> Any:
        with self.torch.no_grad():
            loss, gradients = self.compiled(self.parameters, self.x, self.y, picked)
            if not self.inside:
                self.update(self.parameters, gradients)
        return loss

    def close(self) -> None:
        if hasattr(self, "compiled"):
            self.torch.compiler.reset()  # PyTorch limits the number of compiled variants of a function
