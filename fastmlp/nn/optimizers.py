"""Optimizers: their settings, and the scalar update rules that all compiled engines share.

A rule updates one parameter: rule(p, g, m, v, s) -> (p, m, v), where p is the parameter, g its gradient, m and v its
optimizer slots (running averages that are kept between steps), and s the float32 scalars of the step, in the order of
`SCALARS`. The reference implementation (reference.py) contains the same rules for arrays. g includes the gradients of the L1
and L2 penalties of the network. The weight decay of adamw is decoupled, and applies to weights but not to biases.

If g^2 overflows, v is infinite, and the parameter becomes NaN, so that training reports divergence. Otherwise the parameter
would never change again, because g / sqrt(v) would be 0. The rules subtract v - v, which is 0 for a finite v and NaN otherwise.

======== ======================================================================== ======
name     update                                                                   slots
======== ======================================================================== ======
sgd      p -= lr g                                                                none
momentum m = mu m + g;  p -= lr m                                                 m
nesterov m = mu m + g;  p -= lr (g + mu m)                                        m
rmsprop  v = beta2 v + (1 - beta2) g^2;  p -= lr g / (sqrt(v) + eps)              v
adam     m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;             m, v
         p -= lr mhat / (sqrt(vhat) + eps), mhat = m / (1 - beta1^t),
         vhat = v / (1 - beta2^t)
adamw    p -= lr weight_decay p; then like adam                                   m, v
======== ======================================================================== ======

Sources: momentum and nesterov, Sutskever et al. 2013, in PyTorch's form (the velocity m does not include the learning rate);
rmsprop, Hinton's lecture 6e, with beta2 as the smoothing constant; adam, Kingma & Ba 2015 algorithm 1; adamw, Loshchilov &
Hutter 2019 algorithm 2. Tests compare each rule with the corresponding optimizer of torch.optim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, changed
from fastmlp.errors import ConfigError
from fastmlp.nn.checks import check_number, shown, with_hints
from fastmlp.nn.names import canonical_name

ZERO = np.float32(0)

# Names of the scalars of a step, which a rule reads from `s`.
# 1 - beta is stored because computing it from beta in float32 would lose significant digits.
SCALARS = (
    "learning_rate",
    "momentum",
    "one_minus_beta1",
    "one_minus_beta2",
    "epsilon",
    "bias_correction1",
    "bias_correction2",
    "weight_decay",
    "l1",
    "l2",
)
LEARNING_RATE, MOMENTUM, ONE_MINUS_BETA1, ONE_MINUS_BETA2, EPSILON = range(5)
BIAS_CORRECTION1, BIAS_CORRECTION2, WEIGHT_DECAY, L1, L2 = range(5, 10)
FIXED = [MOMENTUM, ONE_MINUS_BETA1, ONE_MINUS_BETA2, EPSILON, WEIGHT_DECAY, L1, L2]  # constant during training
OF_WEIGHTS_ONLY = [WEIGHT_DECAY, L1, L2]
STEPS_AT_ONCE = 256  # steps per cached table of `scalars_without_learning_rates`
# Learning rates that work for most networks. The authors of rmsprop, adam and adamw recommend those used here.
DEFAULT_LEARNING_RATE = {"sgd": 0.05, "momentum": 0.01, "nesterov": 0.01, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001}


def sign(p: Any) -> Any:
    """Return the sign of p: 1, 0 or -1."""
    return np.float32(p > ZERO) - np.float32(p < ZERO)


def with_penalties(p: Any, g: Any, s: Any) -> Any:
    """Return g, the gradient of the loss, plus the gradients of the L1 and L2 penalties."""
    return g + (s[L2] * p + s[L1] * sign(p))


def sgd_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    return p - s[LEARNING_RATE] * g, m, v


def momentum_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    m = s[MOMENTUM] * m + g
    return p - s[LEARNING_RATE] * m, m, v


def nesterov_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    m = s[MOMENTUM] * m + g
    return p - s[LEARNING_RATE] * (g + s[MOMENTUM] * m), m, v


def rmsprop_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    v = v + s[ONE_MINUS_BETA2] * (g * g - v)
    return p - (v - v) - s[LEARNING_RATE] * g / (math.sqrt(v) + s[EPSILON]), m, v


def adam_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    m = m + s[ONE_MINUS_BETA1] * (g - m)
    v = v + s[ONE_MINUS_BETA2] * (g * g - v)
    p = p - (v - v)
    return p - s[LEARNING_RATE] * (m * s[BIAS_CORRECTION1]) / (math.sqrt(v * s[BIAS_CORRECTION2]) + s[EPSILON]), m, v


def adamw_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    p = p - s[LEARNING_RATE] * s[WEIGHT_DECAY] * p
    m = m + s[ONE_MINUS_BETA1] * (g - m)
    v = v + s[ONE_MINUS_BETA2] * (g * g - v)
    p = p - (v - v)
    return p - s[LEARNING_RATE] * (m * s[BIAS_CORRECTION1]) / (math.sqrt(v * s[BIAS_CORRECTION2]) + s[EPSILON]), m, v


class Rule(NamedTuple):
    """An update rule, and the names of the slots that it uses ("m", "v")."""

    update: Callable[[Any, Any, Any, Any, Any], Any]
    slots: tuple[str, ...]


RULES = {
    "sgd": Rule(sgd_rule, ()),
    "momentum": Rule(momentum_rule, ("m",)),
    "nesterov": Rule(nesterov_rule, ("m",)),
    "rmsprop": Rule(rmsprop_rule, ("v",)),
    "adam": Rule(adam_rule, ("m", "v")),
    "adamw": Rule(adamw_rule, ("m", "v")),
}


@dataclass(frozen=True, repr=False)
class Optimizer(Summarized):
    """Settings of an optimizer. Settings that its update rule does not use are ignored.

    Parameters
    ----------
    name : name of the optimizer, a key of `RULES`
    learning_rate : learning rate, > 0; None selects the value in `DEFAULT_LEARNING_RATE`. A `Schedule` multiplies it
    momentum : momentum coefficient mu of momentum and nesterov, in [0, 1)
    beta1, beta2 : decay rates of the running averages of g and g^2, in [0, 1); beta2 is also the smoothing constant of rmsprop
    epsilon : added to the square root in the denominator, > 0
    weight_decay : decoupled weight decay of adamw, >= 0 (`Network.l2` is an L2 penalty that works with all optimizers)
    max_grad_norm : maximum Euclidean norm of the gradient of all parameters, including penalties; larger gradients are scaled
        down to this norm; 0 disables clipping
    epsilon_hat : whether adam and adamw add epsilon to the square root of v before the bias correction, as in scikit-learn and
        TensorFlow (epsilon-hat of Kingma & Ba 2015, section 2). If False, epsilon is added after the bias correction, as in
        PyTorch

    Raises
    ------
    ConfigError : the name is unknown, or a value is invalid

    Examples
    --------
    >>> Optimizer("adam", beta1=0.8).slots, Optimizer("sgd").learning_rate
    (('m', 'v'), 0.05)
    """

    name: str = "adam"
    learning_rate: float = None  # type: ignore[assignment]  # __post_init__ replaces None
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 0.0
    epsilon_hat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical_name("optimizer", self.name, RULES))
        given: Any = self.learning_rate
        if given is None:
            object.__setattr__(self, "learning_rate", DEFAULT_LEARNING_RATE[self.name])
        check_number("learning_rate", self.learning_rate, lambda x: 0 < x < math.inf, "a positive number", settings=("lr",))
        for field in ("momentum", "beta1", "beta2"):
            check_number(field, getattr(self, field), lambda x: 0 <= x < 1, "at least 0 and below 1")
        tiny = float(np.finfo(np.float32).tiny)
        check_number("epsilon", self.epsilon, lambda x: tiny <= x < math.inf, "a positive normal float32 number")
        for field in ("weight_decay", "max_grad_norm"):
            check_number(field, getattr(self, field), lambda x: 0 <= x < math.inf, "zero or a positive number")

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows: the learning rate, and the settings that are not the default values."""
        return changed(self, Optimizer(self.name), "name", "learning_rate")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the optimizer slots of each parameter."""
        return RULES[self.name].slots

    def scalars(
        self, learning_rates: npt.NDArray[np.float64], step: int, l1: float = 0.0, l2: float = 0.0
    ) -> npt.NDArray[np.float32]:
        """Return the scalars for one step per learning rate, (len(learning_rates), len(SCALARS)) float32.

        `step` is the number of updates made before the first of these steps. The bias corrections are computed in float64. l1
        and l2 are the coefficients of the penalties.
        """
        return self.scalars_by_kind(learning_rates, step, l1, l2)[:, 0]

    def scalars_by_kind(
        self, learning_rates: npt.NDArray[np.float64], step: int, l1: float = 0.0, l2: float = 0.0
    ) -> npt.NDArray[np.float32]:
        """Return `scalars` for weights and for biases, (len(learning_rates), 2, len(SCALARS)) float32.

        Index 0 of the second axis is for weights, and index 1 for biases, which have no weight decay and no penalties.
        """
        first, end = step // STEPS_AT_ONCE, (step + len(learning_rates)) // STEPS_AT_ONCE + 1
        tables = [scalars_without_learning_rates(self, l1, l2, block) for block in range(first, end)]
        start = step - first * STEPS_AT_ONCE
        table = (tables[0] if len(tables) == 1 else np.concatenate(tables))[start : start + len(learning_rates)].copy()
        with np.errstate(over="ignore"):  # an infinite learning rate is reported later, as divergence
            table[..., LEARNING_RATE] = learning_rates[:, None]
        return table


@functools.lru_cache
def scalars_without_learning_rates(optimizer: Optimizer, l1: float, l2: float, block: int) -> npt.NDArray[np.float32]:
    """Return `Optimizer.scalars_by_kind` for a block of STEPS_AT_ONCE steps, with learning rates of 0. Results are cached."""
    table = np.zeros((STEPS_AT_ONCE, 2, len(SCALARS)), np.float32)
    complements = 1 - optimizer.beta1, 1 - optimizer.beta2
    table[..., FIXED] = optimizer.momentum, *complements, optimizer.epsilon, optimizer.weight_decay, l1, l2
    table[:, 1, OF_WEIGHTS_ONLY] = 0
    count = np.arange(1, STEPS_AT_ONCE + 1)[:, None] + block * STEPS_AT_ONCE
    corrections = 1 / (1 - np.array((optimizer.beta1, optimizer.beta2)) ** count)
    table[..., [BIAS_CORRECTION1, BIAS_CORRECTION2]] = corrections[:, None]
    if optimizer.epsilon_hat:
        # The rules add epsilon after the bias correction. The result is the same if epsilon is scaled, because
        # sqrt(v) + eps = sqrt(1 - beta2^t) (sqrt(vhat) + eps / sqrt(1 - beta2^t)).
        table[..., EPSILON] = optimizer.epsilon * np.sqrt(corrections[:, 1:])
    return table


def make_optimizer(name: Any) -> Optimizer:
    """Return the optimizer with this name and its default settings; raise ConfigError if the name is unknown."""
    if not isinstance(name, str):
        called = f"; write {name.__name__}()" if callable(name) and hasattr(name, "__name__") else ""
        raise ConfigError(f"optimizer must be a name or an optimizer, such as fastmlp.Adam(0.001), not {shown(name)}{called}")
    return Optimizer(name)


hinted = with_hints(
    lr="learning_rate",
    betas="beta1 and beta2",
    eps="epsilon",
    clipnorm="max_grad_norm",
    weight_decay="fastmlp.AdamW(weight_decay=0.01), or fastmlp.Network(l2=0.01)",
    rho="beta2",
    alpha="beta2",
)


@hinted
def SGD(
    learning_rate: float | None = None, momentum: float = 0.0, nesterov: bool = False, *, max_grad_norm: float = 0.0
) -> Optimizer:
    """Return stochastic gradient descent, with momentum if `momentum` is positive; see `Optimizer`.

    >>> SGD(0.1, momentum=0.9, nesterov=True).name
    'nesterov'
    """
    check_number("momentum", momentum, lambda x: 0 <= x < 1, "at least 0 and below 1")
    if nesterov and not momentum:
        raise ConfigError("nesterov needs a positive momentum, such as momentum=0.9", settings=("momentum",))
    name = ("nesterov" if nesterov else "momentum") if momentum else "sgd"
    used = momentum or Optimizer.momentum  # without momentum, the value is ignored
    return Optimizer(name, learning_rate, momentum=used, max_grad_norm=max_grad_norm)  # type: ignore[arg-type]


@hinted
def RMSprop(
    learning_rate: float | None = None, beta2: float = 0.999, epsilon: float = 1e-8, *, max_grad_norm: float = 0.0
) -> Optimizer:
    """Return the RMSprop optimizer with the smoothing constant `beta2`; see `Optimizer`."""
    given = {"beta2": beta2, "epsilon": epsilon, "max_grad_norm": max_grad_norm}
    return Optimizer("rmsprop", learning_rate, **given)  # type: ignore[arg-type]


@hinted
def Adam(
    learning_rate: float | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    *,
    max_grad_norm: float = 0.0,
) -> Optimizer:
    """Return the Adam optimizer; see `Optimizer`.

    >>> Adam().learning_rate
    0.001
    """
    given = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon, "max_grad_norm": max_grad_norm}
    return Optimizer("adam", learning_rate, **given)  # type: ignore[arg-type]


@hinted
def AdamW(
    learning_rate: float | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    *,
    max_grad_norm: float = 0.0,
) -> Optimizer:
    """Return the AdamW optimizer, which is Adam with decoupled weight decay; see `Optimizer`."""
    adam = Adam(learning_rate, beta1, beta2, epsilon, max_grad_norm=max_grad_norm)
    return replace(adam, name="adamw", learning_rate=learning_rate, weight_decay=weight_decay)  # type: ignore[arg-type]
