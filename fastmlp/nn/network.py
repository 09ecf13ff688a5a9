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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, changed, summary_html
from fastmlp.errors import ConfigError
from fastmlp.nn.activations import Activation, canonical_activation, parse_activation, parse_number
from fastmlp.nn.checks import check_arguments, check_number, check_switch, shown
from fastmlp.nn.losses import LOSSES, OUTPUTS, canonical_loss, parse_loss
from fastmlp.nn.names import canonical_name
from fastmlp.nn.philox import generator

FloatArray = npt.NDArray[np.floating[Any]]
if TYPE_CHECKING:
    Activations = str | Activation | Sequence[str | Activation]
else:  # msgspec, which reads the networks in model files, does not support a union of these types; files contain only names
    Activations = str | Sequence[str]

# Maps each name to a distribution and a function that computes its scale from fan_in and fan_out. The scale of "normal" is its
# standard deviation. With "uniform", values are between -scale and scale.
# Sources: Glorot & Bengio 2010 equation 16; He et al. 2015 equation 10; for "pytorch", torch.nn.Linear.reset_parameters.
INITIALIZERS: dict[str, tuple[str, Callable[[int, int], float]]] = {
    "xavier-uniform": ("uniform", lambda i, o: math.sqrt(6 / (i + o))),
    "xavier-normal": ("normal", lambda i, o: math.sqrt(2 / (i + o))),
    "he-uniform": ("uniform", lambda i, o: math.sqrt(6 / i)),
    "he-normal": ("normal", lambda i, o: math.sqrt(2 / i)),
    "pytorch": ("uniform", lambda i, o: math.sqrt(1 / i)),
    "uniform": ("uniform", lambda i, o: 0.05),
    "normal": ("normal", lambda i, o: 0.05),
}
# Names of other libraries that are easily tried as arguments of `Network`, and what to write instead.
INSTEAD = {
    **dict.fromkeys(("hidden_layer_sizes", "hidden_sizes", "hidden_units", "layers", "units"), "hidden=(128,)"),
    "alpha": "l2",
    "input_size": "nothing: the data determine it; or sizes=(784, 128, 10)",
    "output_size": "nothing: the data determine it; or sizes=(784, 128, 10)",
    "optimizer": "fastmlp.train(network, ..., optimizer='adam')",
    "learning_rate": "fastmlp.train(network, ..., optimizer=fastmlp.Adam(learning_rate=0.001))",
}
DEFAULT_HIDDEN = (128,)
LARGEST_SIZE = 2**48  # a layer with more units could not be stored in any memory
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


@dataclass(frozen=True, repr=False)
class Network(Summarized):
    """Architecture, loss and regularization of a multi-layer perceptron. The weights are stored separately.

    The sizes of the hidden layers are sufficient: `fastmlp.train` gets the sizes of the input and the output from the data.

    Parameters
    ----------
    sizes : number of units of each layer, from the input to the output; None to give only `hidden`. Input and output sizes that
        are not known yet are stored as 0
    activation : one name for all hidden layers, or one per hidden layer, from `activations.ACTIVATIONS`. A number after a
        colon sets the parameter of the activation, as in "leaky-relu:0.2". An `Activation` object defines a custom activation;
        it is registered, and replaced by its name.
    dropout : dropout rate after the hidden layers, in [0, 1): one value for all hidden layers, or one per hidden layer
    loss : name of the loss, from `losses.LOSSES`; None selects cross-entropy if the sizes are given. Otherwise, the data
        determine it: cross-entropy for class labels, squared-error for numbers. A number after a colon sets the parameter of
        the loss: delta of the Huber loss ("huber:1.5", default 1.0), in units of the scaled targets, and the level of the
        quantile loss ("quantile:0.9", default 0.5).
    output : output function: "softmax", "sigmoid", "linear" or "exp"; None selects the first one that `losses.LOSSES` lists
        for the loss: softmax for cross-entropy, sigmoid for binary cross-entropy, exp for poisson, and linear for the others
    l1, l2 : coefficients of the L1 and L2 penalties on the weights, as defined in the docstring of this module
    label_smoothing : fraction of the target that is distributed evenly over all classes, in [0, 1); only applied to class
        labels
    init : initialization of the weights: he (same as he-normal), he-uniform, xavier or glorot (same as xavier-uniform),
        xavier-normal, pytorch (the default of torch.nn.Linear: weights and biases are uniform between -1/sqrt(fan_in) and
        1/sqrt(fan_in)), uniform (between -0.05 and 0.05) or normal (standard deviation 0.05). A number after a colon sets the
        scale, as in "normal:0.1"
    hidden : sizes of the hidden layers: one number, or a sequence, which can be empty; None for one layer with 128 units
    random_biases : whether the initial biases are drawn from the distribution of the weights of their layer, instead of being
        zero; with the initialization pytorch, they always are

    Raises
    ------
    ConfigError : a name is unknown, or a value is invalid

    Examples
    --------
    >>> network = Network(hidden=(128,), activation="relu", dropout=0.2)
    >>> network.label, network.complete(784, 10, "cross-entropy").label
    ('?x128x?', '784x128x10')
    >>> Network((784, 128, 10)).parameters
    101770
    """

    sizes: Sequence[int] = None  # type: ignore[assignment]  # __post_init__ replaces None
    activation: Activations = "relu"
    dropout: float | Sequence[float] = 0.0
    loss: str = None  # type: ignore[assignment]  # __post_init__ or `complete` replaces None
    output: str | None = None
    l1: float = 0.0
    l2: float = 0.0
    label_smoothing: float = 0.0
    init: str = "he"
    hidden: Sequence[int] | int | None = None
    random_biases: bool = False

    def __new__(cls, *args: Any, **given: Any) -> Network:
        """Check the names of the arguments before `__init__`, to suggest the right ones."""
        check_arguments("fastmlp.Network", given, [one.name for one in fields(cls)], INSTEAD)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        sizes = self._check_sizes()
        hidden = len(sizes) - 2
        set_field = object.__setattr__  # sets fields of a frozen dataclass
        set_field(self, "sizes", sizes)
        set_field(self, "hidden", sizes[1:-1])
        activations = per_layer("activation", self.activation, hidden)
        set_field(self, "activation", tuple(canonical_activation(text) for text in activations))
        set_field(self, "dropout", per_layer("dropout", self.dropout, hidden))
        for rate in self.dropout:  # type: ignore[union-attr]  # converted to a tuple above
            check_number("dropout", rate, lambda x: 0 <= x < 1, "at least 0 and below 1")
        self._check_loss()
        check_switch("random_biases", self.random_biases)
        name, _, scale = canonical_init(self.init).partition(":")
        name = ALIASES.get(name, name)
        set_field(self, "init", f"{name}:{scale}" if scale else name)
        if scale and parse_number(f"init {self.init!r}", scale) < 0:
            raise ConfigError(f"init {self.init!r}: the scale must not be negative", settings=("init",))

    def _check_sizes(self) -> tuple[int, ...]:
        """Return the sizes of all layers, given as `sizes` or as `hidden`."""
        given: Any = self.sizes
        if isinstance(given, Integral):
            sizes = (given, *(value for value in (self.activation, self.dropout) if isinstance(value, Integral)))
            raise ConfigError(
                f"sizes must be one tuple, as in Network({sizes}); or give only the hidden layers, as in "
                f"Network(hidden={sizes[1:-1] or sizes}), and the data determine the other sizes",
                settings=("hidden",),
            )
        single = self.hidden is not None and not isinstance(self.hidden, Iterable)
        inner: Any = (self.hidden,) if single else self.hidden
        if given is not None and inner is not None and tuple(given)[1:-1] != tuple(inner):
            raise ConfigError("give the sizes of all layers or only those of the hidden layers, not both", settings=("hidden",))
        if given is None:
            checked: tuple[Any, ...] = DEFAULT_HIDDEN if inner is None else tuple(inner)
            given = (0, *checked, 0)
        else:
            given = tuple(given)
            checked = given if any(given[:1] + given[-1:]) else given[1:-1]  # 0 means that the size is not known yet
        if len(given) < 2 or not all(isinstance(size, Integral) and int(size) >= 1 for size in checked):
            name, needed = ("hidden", "whole") if self.sizes is None else ("sizes", "two or more whole")
            raise ConfigError(f"{name} must be {needed} numbers of at least 1, not {shown(checked)}", settings=("hidden",))
        if any(int(size) > LARGEST_SIZE for size in given):
            raise ConfigError(f"sizes must be at most 2^48, not {shown(given)}", settings=("hidden",))
        return tuple(int(size) for size in given)

    def _check_loss(self) -> None:
        given: Any = self.loss
        if given is None and self.is_complete:
            object.__setattr__(self, "loss", "cross-entropy")
        if given is not None or self.is_complete:
            self._check_output()
        for field in ("l1", "l2"):
            check_number(field, getattr(self, field), lambda x: 0 <= x < math.inf, "zero or a positive number")
        check_number("label_smoothing", self.label_smoothing, lambda x: 0 <= x < 1, "at least 0 and below 1")

    def _check_output(self) -> None:
        object.__setattr__(self, "loss", canonical_loss(self.loss))
        outputs = LOSSES[self.loss_name]
        output = next(iter(outputs)) if self.output is None else canonical_name("output", self.output, OUTPUTS)
        object.__setattr__(self, "output", output)
        if self.output not in outputs:
            raise ConfigError(
                f"loss {self.loss!r} needs output {' or '.join(outputs)}, not {self.output!r}", settings=("loss", "output")
            )

    @property
    def is_complete(self) -> bool:
        """Whether the sizes of the input and the output are known."""
        return self.sizes[0] > 0 and self.sizes[-1] > 0

    def complete(self, features: int, outputs: int, loss: str) -> Network:
        """Return the network with the sizes of the input and the output, and with a loss if it has none yet.

        A network whose sizes are known is returned unchanged.
        """
        if self.is_complete:
            return self
        return replace(self, sizes=(features, *self.sizes[1:-1], outputs), loss=self.loss or loss)

    def _summary(self) -> dict[str, Any]:
        """Return what the repr shows: the sizes, and the values that are not the default values."""
        shown = changed(self, Network(self.sizes, loss=self.loss))
        if self.loss not in (None, "cross-entropy"):
            shown["loss"] = self.loss
        for name in shown.keys() & {"activation", "dropout"}:
            values = set(getattr(self, name))
            shown[name] = values.pop() if len(values) == 1 else shown[name]  # one value for all hidden layers
        return {"sizes": self.label, **shown}

    def _repr_html_(self) -> str:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        parameters = f"{self.parameters:,}" if self.is_complete else "not known before training"
        return summary_html("Network", {**values, "parameters": parameters})

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Descriptions of all layers with weights, from the first hidden layer to the output layer.

        Raises
        ------
        ConfigError : the sizes of the input and the output are not known yet
        """
        if not self.is_complete:
            raise ConfigError(f"the input and output sizes of network {self.label} are not known; `fastmlp.train` sets them")
        hidden = zip(self.activation, self.dropout, strict=True)  # type: ignore[arg-type]  # tuples after __post_init__
        after = [(*parse_activation(str(text)), float(rate)) for text, rate in hidden] + [("linear", 0.0, 0.0)]
        return tuple(
            Layer(fan_in, fan_out, name, parameter, rate)
            for (fan_in, fan_out), (name, parameter, rate) in zip(pairwise(self.sizes), after, strict=True)
        )

    @cached_property
    def loss_name(self) -> str:
        """Name of the loss without its parameter, a key of `losses.LOSSES`."""
        return parse_loss(self.loss)[0]

    @cached_property
    def loss_parameter(self) -> float:
        """Parameter of the loss, 0 if it has none."""
        return parse_loss(self.loss)[1]

    @cached_property
    def parameters(self) -> int:
        """Total number of weights and biases."""
        return sum((layer.fan_in + 1) * layer.fan_out for layer in self.layers)

    @cached_property
    def flops_per_row(self) -> int:
        """Floating-point operations per training row, in the matrix products only; layer 0 needs no gradient of its input."""
        return sum(2 * fan_in * fan_out * (3 if index else 2) for index, (fan_in, fan_out) in enumerate(pairwise(self.sizes)))

    @property
    def label(self) -> str:
        """The layer sizes as a string, such as "784x128x10"; a size that is not known yet is shown as "?"."""
        return "x".join(str(size or "?") for size in self.sizes)

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
        If `random_biases` is true or `init` is pytorch, the biases of a layer are drawn after its weights; otherwise, they are
        0.
        """
        vector = np.zeros(self.parameters, np.float64)
        name, _, text = self.init.partition(":")
        distribution, scale_of = INITIALIZERS[name]
        for index, (w, b) in enumerate(self.views(vector)):
            scale = float(text) if text else scale_of(*w.shape)
            draw = generator(seed, "weights", index)
            for values in (w, b) if self.random_biases or name == "pytorch" else (w,):
                uniform = distribution == "uniform"
                values[:] = draw.uniform(-scale, scale, values.shape) if uniform else draw.normal(0, scale, values.shape)
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
    if isinstance(given, (str, Real, Activation)) or callable(given) or not isinstance(given, Iterable):
        return (given,) * hidden
    values = tuple(given)
    if len(values) != hidden:
        message = f"{what} has {len(values)} values, but there are {hidden} hidden layers; give one value, or one per layer"
        raise ConfigError(message, settings=(what,))
    return values
