"""Optimisers: their settings, and the scalar update rules that every compiled engine shares.

A rule updates one parameter: rule(p, g, m, v, s) -> (p, m, v), where p is the parameter, g its gradient, m and v its
optimiser slots, and s the step's scalars in the order of `SCALARS`, float32. The same rules in array form, the
specification, are in reference.py. Network penalties (L1, L2) are part of g; adamw's decay is decoupled and acts on
weights, never on biases.

======== ======================================================================== ======
name     update                                                                   slots
======== ======================================================================== ======
sgd      p -= rate g                                                              none
momentum m = mu m + g;  p -= rate m                                               m
nesterov m = mu m + g;  p -= rate (g + mu m)                                      m
rmsprop  v = beta2 v + (1 - beta2) g^2;  p -= rate g / (sqrt(v) + eps)            v
adam     m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;             m, v
         p -= rate mhat / (sqrt(vhat) + eps), mhat = m / (1 - beta1^t), vhat alike
adamw    p -= rate decay p, then as adam                                          m, v
======== ======================================================================== ======

Sources: momentum and nesterov, Sutskever et al. 2013, in PyTorch's form (the rate outside the velocity); rmsprop, Hinton's
lecture 6e, with beta2 as the smoothing constant; adam, Kingma & Ba 2015 algorithm 1; adamw, Loshchilov & Hutter 2019
algorithm 2. Each equals torch.optim's of the same name, which a test holds it to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.errors import ConfigError
from fastmlp.nn.names import canonical_name

ZERO = np.float32(0)

# The scalars of one step, as columns: what a rule reads of `s`.
# 1 - beta is a column of its own: in float32 it could not be had from beta.
SCALARS = ("rate", "momentum", "complement1", "complement2", "epsilon", "correction1", "correction2", "decay", "l1", "l2")
RATE, MOMENTUM, COMPLEMENT1, COMPLEMENT2, EPSILON, CORRECTION1, CORRECTION2, DECAY, L1, L2 = range(10)
FIXED = [MOMENTUM, COMPLEMENT1, COMPLEMENT2, EPSILON, DECAY, L1, L2]  # the same in all steps
OF_WEIGHTS_ONLY = [DECAY, L1, L2]
STEPS_AT_ONCE = 256  # for which `scalars_without_rates` is kept
# Learning rates that train most networks without care; those of rmsprop, adam and adamw are their authors'.
DEFAULT_LEARNING_RATE = {"sgd": 0.05, "momentum": 0.01, "nesterov": 0.01, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001}


def sign(p: Any) -> Any:
    """1, 0 or -1."""
    return np.float32(p > ZERO) - np.float32(p < ZERO)


def with_penalties(p: Any, g: Any, s: Any) -> Any:
    """The gradient of the loss with the network's L1 and L2 penalties."""
    return g + (s[L2] * p + s[L1] * sign(p))


def sgd_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    return p - s[RATE] * g, m, v


def momentum_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    m = s[MOMENTUM] * m + g
    return p - s[RATE] * m, m, v


def nesterov_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    m = s[MOMENTUM] * m + g
    return p - s[RATE] * (g + s[MOMENTUM] * m), m, v


def rmsprop_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    v = v + s[COMPLEMENT2] * (g * g - v)
    return p - s[RATE] * g / (math.sqrt(v) + s[EPSILON]), m, v


def adam_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    m = m + s[COMPLEMENT1] * (g - m)
    v = v + s[COMPLEMENT2] * (g * g - v)
    return p - s[RATE] * (m * s[CORRECTION1]) / (math.sqrt(v * s[CORRECTION2]) + s[EPSILON]), m, v


def adamw_rule(p: Any, g: Any, m: Any, v: Any, s: Any) -> Any:
    p = p - s[RATE] * s[DECAY] * p
    m = m + s[COMPLEMENT1] * (g - m)
    v = v + s[COMPLEMENT2] * (g * g - v)
    return p - s[RATE] * (m * s[CORRECTION1]) / (math.sqrt(v * s[CORRECTION2]) + s[EPSILON]), m, v


class Rule(NamedTuple):
    """An update rule, and which of the slots m and v it keeps."""

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


@dataclass(frozen=True)
class Optimizer:
    """Settings of an optimiser; what its rule does not use is ignored.

    Parameters
    ----------
    name : a key of `RULES`
    momentum : mu of momentum and nesterov, in [0, 1)
    beta1, beta2 : decay of the running means of g and g^2, in [0, 1); beta2 also is rmsprop's smoothing constant
    epsilon : added to the root in the denominator, > 0
    weight_decay : decoupled decay of adamw, >= 0 (for an L2 penalty with any optimiser, see `Network.l2`)
    clip_norm : largest Euclidean norm of the whole gradient (penalties included); 0 never clips

    Raises
    ------
    ConfigError : a name or a value that cannot be

    Examples
    --------
    >>> Optimizer("adam", beta1=0.8).slots
    ('m', 'v')
    """

    name: str = "sgd"
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical_name("optimizer", self.name, RULES))
        for field in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 0 and below 1, not {getattr(self, field)}")
        if not (self.epsilon >= np.finfo(np.float32).tiny and math.isfinite(self.epsilon)):
            raise ConfigError(f"epsilon must be a positive number that float32 can hold, not {self.epsilon}")
        for field in ("weight_decay", "clip_norm"):
            if not (getattr(self, field) >= 0 and math.isfinite(getattr(self, field))):
                raise ConfigError(f"{field} must be zero or a positive number, not {getattr(self, field)}")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the optimiser slots kept for each parameter."""
        return RULES[self.name].slots

    def scalars(self, rates: npt.NDArray[np.float64], step: int, l1: float = 0.0, l2: float = 0.0) -> npt.NDArray[np.float32]:
        """What the rules read in the steps `step`, `step` + 1, …: (len(rates), len(SCALARS)) float32.

        `step` counts the updates already made; the powers of the bias correction are taken in float64. l1 and l2 are the
        network's penalties.
        """
        return self.scalars_by_kind(rates, step, l1, l2)[:, 0]

    def scalars_by_kind(
        self, rates: npt.NDArray[np.float64], step: int, l1: float = 0.0, l2: float = 0.0
    ) -> npt.NDArray[np.float32]:
        """`scalars` of weights and of biases, (len(rates), 2, len(SCALARS)) float32: these have no decay and no penalties."""
        first, end = step // STEPS_AT_ONCE, (step + len(rates)) // STEPS_AT_ONCE + 1
        tables = [scalars_without_rates(self, l1, l2, block) for block in range(first, end)]
        start = step - first * STEPS_AT_ONCE
        table = (tables[0] if len(tables) == 1 else np.concatenate(tables))[start : start + len(rates)].copy()
        with np.errstate(over="ignore"):  # an infinite rate diverges, and is reported as that
            table[..., RATE] = rates[:, None]
        return table


@functools.lru_cache
def scalars_without_rates(optimizer: Optimizer, l1: float, l2: float, block: int) -> npt.NDArray[np.float32]:
    """`Optimizer.scalars_by_kind` of a block of STEPS_AT_ONCE steps, rates zero: kept, since epochs of few steps share one."""
    table = np.zeros((STEPS_AT_ONCE, 2, len(SCALARS)), np.float32)
    complements = 1 - optimizer.beta1, 1 - optimizer.beta2
    table[..., FIXED] = optimizer.momentum, *complements, optimizer.epsilon, optimizer.weight_decay, l1, l2
    table[:, 1, OF_WEIGHTS_ONLY] = 0
    count = np.arange(1, STEPS_AT_ONCE + 1)[:, None] + block * STEPS_AT_ONCE
    table[..., CORRECTION1 : CORRECTION2 + 1] = (1 / (1 - np.array((optimizer.beta1, optimizer.beta2)) ** count))[:, None]
    return table
