"""`Network`, the immutable description of a multi-layer perceptron, and the layout of its parameters.

Notation in all files: `x` is the input, `w` the weights [fan_in, fan_out], `b` the bias, `z = x w + b` the pre-activation,
`y = f(z)` the activation and `t` the target. `dx`, `dw`, `db` and `dz` are the gradients of the loss with respect to x, w, b
and z. `n` is a number of rows, and `B` is the number of rows of a mini-batch. In kernels, matrix products have the size
M x N x K and are computed in tiles of MR x NR. Leading dimensions `ld` are counted in elements. `t` is the index of a thread,
and `T` is the number of threads. The suffix `_p` denotes padded sizes.

Conventions of all engines:

- The loss is the mean over the rows of a mini-batch, weighted by the sample weights if given. The last mini-batch of an epoch
  may be smaller.
- The objective is loss + l2/2 sum(w^2) + l1 sum(|w|). The sums include all weights, but no biases. Reported losses do not
  include these penalties.
- The derivatives of relu and of |w| at 0 are defined as 0.
- In training, dropout scales the activations that are kept by 1/(1 - rate) (inverted dropout). Prediction has no dropout.
- Softmax cross-entropy is computed from the pre-activations with log-sum-exp. Squared error is half the squared distance.
- Class labels are converted to one-hot targets. Label smoothing e changes them to (1 - e) one_hot + e / classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp._summary import summary_html
from fastmlp.errors import ConfigError
from fastmlp.nn.activations import Activation, canonical_activation, parse_activation, parse_number
from fastmlp.nn.losses import LOSSES, OUTPUTS
from fastmlp.nn.names import canonical_name
from fastmlp.nn.philox import generator

FloatArray = npt.NDArray[np.floating[Any]]
if TYPE_CHECKING:
    Activations = str | Activation | Sequence[str | Activation]
else:  # msgspec, which reads the networks in model files, does not support a union of these types; files contain only names
    Activations = str | Sequence[str]

# Maps each name to a distribution and a function that computes its scale from fan_in and fan_out. The scale of "normal" is its
# standard deviation. With "uniform", values are between -scale and scale.
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
    """Description of one layer. The last layer of a network is linear; the output function is applied by the loss."""

    fan_in: int
    fan_out: int
    activation: str
    parameter: float  # parameter of the activation, 0 if it has none
    dropout: float  # dropout rate after the activation


@dataclass(frozen=True)
class Network:
    """Architecture, loss and regularization of a multi-layer perceptron. The weights are stored separately.

    Parameters
    ----------
    sizes : number of units of each layer, from the input to the output
    activation : one name for all hidden layers, or one per hidden layer, from `activations.ACTIVATIONS`. A number after a
        colon sets the parameter of the activation, as in "leaky-relu:0.2". An `Activation` object defines a custom activation;
        it is registered, and replaced by its name.
    dropout : dropout rate after the hidden layers, in [0, 1): one value for all hidden layers, or one per hidden layer
    loss : "cross-entropy" or "squared-error"
    output : output function: "softmax", "sigmoid" or "linear"; None selects softmax for cross-entropy, and linear for
        squared error
    l1, l2 : coefficients of the L1 and L2 penalties on the weights, as defined in the docstring of this module
    label_smoothing : fraction of the target that is distributed evenly over all classes, in [0, 1); only applied to class
        labels
    init : initialization of the weights: he (same as he-normal), he-uniform, xavier or glorot (same as xavier-uniform),
        xavier-normal, uniform (between -0.05 and 0.05) or normal (standard deviation 0.05). A number after a colon sets the
        scale, as in "normal:0.1". Biases are initialized to zero.

    Raises
    ------
    ConfigError : a name is unknown, or a value is invalid

    Examples
    --------
    >>> network = Network((784, 128, 10), activation="relu", dropout=0.2)
    >>> network.parameters, network.label
    (101770, '784x128x10')
    """

    sizes: Sequence[int]
    activation: Activations = "relu"
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
        for rate in self.dropout:  # type: ignore[union-attr]  # converted to a tuple above
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

    def _repr_html_(self) -> str:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return summary_html("Network", {**values, "parameters": f"{self.parameters:,}"})

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Descriptions of all layers with weights, from the first hidden layer to the output layer."""
        hidden = zip(self.activation, self.dropout, strict=True)  # type: ignore[arg-type]  # tuples after __post_init__
        after = [(*parse_activation(str(text)), float(rate)) for text, rate in hidden] + [("linear", 0.0, 0.0)]
        return tuple(
            Layer(fan_in, fan_out, name, parameter, rate)
            for (fan_in, fan_out), (name, parameter, rate) in zip(pairwise(self.sizes), after, strict=True)
        )

    @cached_property
    def parameters(self) -> int:
        """Total number of weights and biases."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.sizes))

    @cached_property
    def flops_per_row(self) -> int:
        """Floating-point operations per training row, in the matrix products only; layer 0 needs no gradient of its input."""
        return sum(2 * fan_in * fan_out * (3 if index else 2) for index, (fan_in, fan_out) in enumerate(pairwise(self.sizes)))

    @property
    def label(self) -> str:
        """The layer sizes as a string, such as "784x128x10"."""
        return "x".join(map(str, self.sizes))

    def views(self, vector: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        """Return the weights [fan_in, fan_out] and the bias [fan_out] of each layer, as views of a flat vector, (parameters,).

        The vector contains w (in row-major order) and b of the first layer, followed by w and b of the second layer, etc.
        """
        views, start = [], 0
        for layer in self.layers:
            end = start + layer.fan_in * layer.fan_out
            w = vector[start:end].reshape(layer.fan_in, layer.fan_out)
            views.append((w, vector[end : end + layer.fan_out]))
            start = end + layer.fan_out
        return views

    def initial_parameters(self, seed: int, dtype: npt.DTypeLike = np.float32) -> FloatArray:
        """Return the initial parameters as a vector, (parameters,) of `dtype`.

        The weights are drawn in float64 from the stream "weights" of `philox.generator`, with the layer index as the counter.
        Biases are 0.
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
    """Return "name" or "name:scale" with the name as spelled in `INITIALIZERS` or `ALIASES`; raise ConfigError if unknown.

    >>> canonical_init("Kaiming_Uniform"), canonical_init("Normal:0.1")
    ('he-uniform', 'normal:0.1')
    """
    name, colon, scale = text.partition(":")
    return canonical_name("init", name, [*INITIALIZERS, *ALIASES]) + colon + scale


def per_layer(what: str, given: Any, hidden: int) -> tuple[Any, ...]:
    """Return one value per hidden layer. `given` is either one value for all hidden layers, or a sequence of values."""
    if isinstance(given, (str, Real, Activation)) or callable(given):
        return (given,) * hidden
    values = tuple(given)
    if len(values) != hidden:
        message = f"{what} has {len(values)} values, but there are {hidden} hidden layers; give one value, or one per layer"
        raise ConfigError(message, settings=(what,))
    return values
