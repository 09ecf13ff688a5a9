"""`Network`, the frozen description of a multi-layer perceptron, and the layout of its parameters.

Notation in all files: `x` input, `w` weights [fan_in, fan_out], `b` bias, `z = x w + b` pre-activation, `y = f(z)` activation,
`t` target; `dx dw db dz` gradients of the loss with respect to these; `n` rows, `B` rows of a mini-batch. In kernels: matrix
products are M x N x K, their tiles MR x NR; leading dimensions `ld` are in elements; thread `t` of `T`; suffix `_p` for padded
sizes.

Conventions of all engines:

- the loss is the mean over the rows of a mini-batch, weighted by sample weights if given; the last mini-batch may be shorter;
- objective = loss + l2/2 sum(w^2) + l1 sum(|w|), over weights, not biases; reported losses do not include the penalties;
- the derivative of relu at 0 is 0, that of |w| at 0 is 0;
- dropout is inverted: in training, kept activations are scaled by 1/(1 - rate); prediction has no dropout;
- softmax cross-entropy is computed from pre-activations by log-sum-exp; squared error is half the squared distance;
- classes are one-hot targets; label smoothing e turns them into (1 - e) one-hot + e / classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.errors import ConfigError
from fastmlp.nn.activations import canonical_activation, parse_activation, parse_number
from fastmlp.nn.losses import LOSSES, OUTPUTS
from fastmlp.nn.names import canonical_name
from fastmlp.nn.philox import generator

FloatArray = npt.NDArray[np.floating[Any]]

# name -> (distribution, scale from fan_in and fan_out). The scale is the standard deviation of "normal", the half-width of
# "uniform".
# Sources: Glorot & Bengio 2010 equation 16; He et al. 2015 equation 10.
INITIALIZERS: dict[str, tuple[str, Callable[[int, int], float]]] = {
    "xavier-uniform": ("uniform", lambda i, o: math.sqrt(6 / (i + o))),
    "xavier-normal": ("normal", lambda i, o: math.sqrt(2 / (i + o))),
    "he-uniform": ("uniform", lambda i, o: math.sqrt(6 / i)),
    "he-normal": ("normal", lambda i, o: math.sqrt(2 / i)),
    "uniform": ("uniform", lambda i, o: 0.05),
    "normal": ("normal", lambda i, o: 0.05),
}
ALIASES = {
    "he": "he-normal",
    "xavier": "xavier-uniform",
    "glorot": "xavier-uniform",
    "glorot-uniform": "xavier-uniform",
    "glorot-normal": "xavier-normal",
}


class Layer(NamedTuple):
    """Description of one layer. The last layer of a network is linear; its output function is part of the loss."""

    fan_in: int
    fan_out: int
    activation: str
    parameter: float  # of the activation, 0 if it has none
    dropout: float  # dropout rate after the activation


@dataclass(frozen=True)
class Network:
    """Architecture of a multi-layer perceptron: everything but the values of its weights.

    Parameters
    ----------
    sizes : number of units of each layer, from the input to the output
    activation : one for all hidden layers, or one per layer; names in `activations.ACTIVATIONS`, "leaky-relu:0.2" sets the
        parameter
    dropout : dropout rate after hidden layers, in [0, 1); one for all, or one per layer
    loss : "cross-entropy" or "squared-error"
    output : "softmax", "sigmoid" or "linear"; None is softmax for cross-entropy, linear for squared error
    l1, l2 : coefficients of the penalties on weights, see the conventions in the module's docstring
    label_smoothing : fraction of the target that is distributed evenly over all classes, in [0, 1); for class labels only
    init : initial weights: he (= he-normal), he-uniform, xavier or glorot (= xavier-uniform), xavier-normal,
        uniform (±0.05), normal (sd 0.05); "normal:0.1" sets the scale. Biases start at zero.

    Raises
    ------
    ConfigError : an unknown name, or an invalid value

    Examples
    --------
    >>> network = Network((784, 128, 10), activation="relu", dropout=0.2)
    >>> network.parameters, network.label
    (101770, '784x128x10')
    """

    sizes: Sequence[int]
    activation: str | Sequence[str] = "relu"
    dropout: float | Sequence[float] = 0.0
    loss: str = "cross-entropy"
    output: str | None = None
    l1: float = 0.0
    l2: float = 0.0
    label_smoothing: float = 0.0
    init: str = "he"

    def __post_init__(self) -> None:
        whole = all(isinstance(size, Integral) for size in self.sizes)
        if not whole or len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ConfigError(
                f"sizes must be two or more whole numbers of at least 1, not {self.sizes!r}", settings=("hidden",)
            )
        sizes = tuple(int(size) for size in self.sizes)
        hidden = len(sizes) - 2
        set_field = object.__setattr__  # sets fields of a frozen dataclass
        set_field(self, "sizes", sizes)
        activations = per_layer("activation", self.activation, hidden)
        set_field(self, "activation", tuple(canonical_activation(text) for text in activations))
        set_field(self, "dropout", per_layer("dropout", self.dropout, hidden))
        for rate in self.dropout:  # type: ignore[union-attr]  # a tuple now
            if not 0 <= rate < 1:
                raise ConfigError(f"dropout must be at least 0 and below 1, not {rate}", settings=("dropout",))
        self._check_loss()
        name, _, scale = canonical_init(self.init).partition(":")
        name = ALIASES.get(name, name)
        set_field(self, "init", f"{name}:{scale}" if scale else name)
        if scale and parse_number(f"init {self.init!r}", scale) < 0:
            raise ConfigError(f"init {self.init!r}: the scale must not be negative", settings=("init",))

    def _check_loss(self) -> None:
        object.__setattr__(self, "loss", canonical_name("loss", self.loss, LOSSES))
        outputs = LOSSES[self.loss]
        output = next(iter(outputs)) if self.output is None else canonical_name("output", self.output, OUTPUTS)
        object.__setattr__(self, "output", output)
        if self.output not in outputs:
            raise ConfigError(
                f"loss {self.loss!r} needs output {' or '.join(outputs)}, not {self.output!r}", settings=("loss", "output")
            )
        for field in ("l1", "l2"):
            if not (getattr(self, field) >= 0 and math.isfinite(getattr(self, field))):
                raise ConfigError(f"{field} must be zero or a positive number, not {getattr(self, field)}", settings=(field,))
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}", settings=("label_smoothing",)
            )

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of weights, first to last."""
        hidden = zip(self.activation, self.dropout, strict=True)  # type: ignore[arg-type]  # tuples since __post_init__
        after = [(*parse_activation(text), float(rate)) for text, rate in hidden] + [("linear", 0.0, 0.0)]
        return tuple(
            Layer(fan_in, fan_out, name, parameter, rate)
            for (fan_in, fan_out), (name, parameter, rate) in zip(pairwise(self.sizes), after, strict=True)
        )

    @cached_property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.sizes))

    @cached_property
    def flops_per_row(self) -> int:
        """Floating-point operations to train on one row: forward pass, weight gradients, input gradients except of layer 0."""
        return sum(2 * fan_in * fan_out * (3 if index else 2) for index, (fan_in, fan_out) in enumerate(pairwise(self.sizes)))

    @property
    def label(self) -> str:
        """The sizes as one word, such as "784x128x10"."""
        return "x".join(map(str, self.sizes))

    def views(self, vector: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        """Return weights [fan_in, fan_out] and bias [fan_out] of each layer, as views of a flat vector, (parameters,).

        The vector is the concatenation of w, row by row, and b of the first layer, then those of the second layer, etc.
        """
        views, start = [], 0
        for layer in self.layers:
            end = start + layer.fan_in * layer.fan_out
            w = vector[start:end].reshape(layer.fan_in, layer.fan_out)
            views.append((w, vector[end : end + layer.fan_out]))
            start = end + layer.fan_out
        return views

    def initial_parameters(self, seed: int, dtype: npt.DTypeLike = np.float32) -> FloatArray:
        """Return initial parameters, (parameters,) of `dtype`.

        They are drawn in float64 from the stream "weights" of `philox.generator`, with one counter per layer. Biases are 0.
        """
        vector = np.zeros(self.parameters, np.float64)
        name, _, text = self.init.partition(":")
        distribution, scale_of = INITIALIZERS[name]
        for index, (w, _b) in enumerate(self.views(vector)):
            scale = float(text) if text else scale_of(*w.shape)
            draw = generator(seed, "weights", index)
            w[:] = draw.uniform(-scale, scale, w.shape) if distribution == "uniform" else draw.normal(0, scale, w.shape)
        return vector.astype(dtype)


def canonical_init(text: str) -> str:
    """Return "name" or "name:scale" with the name as in `INITIALIZERS` or `ALIASES`; raise ConfigError if it is unknown.

    >>> canonical_init("Kaiming_Uniform"), canonical_init("Normal:0.1")
    ('he-uniform', 'normal:0.1')
    """
    name, colon, scale = text.partition(":")
    return canonical_name("init", name, [*INITIALIZERS, *ALIASES]) + colon + scale


def per_layer(what: str, given: Any, hidden: int) -> tuple[Any, ...]:
    """Return a setting for each hidden layer, from one for all or a sequence with one per layer."""
    if isinstance(given, (str, Real)):
        return (given,) * hidden
    values = tuple(given)
    if len(values) != hidden:
        message = f"{what} has {len(values)} values, but there are {hidden} hidden layers; give one, or one per layer"
        raise ConfigError(message, settings=(what,))
    return values
