"""Checks of the parameters of the estimators, and construction of the network, the optimizer and the schedule from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from fastmlp.engines import CHOICES
from fastmlp.errors import ConfigError
from fastmlp.nn.activations import Activation
from fastmlp.nn.names import canonical_name
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.schedules import ReduceOnPlateau, Schedule, make_schedule

SOLVERS = ("lbfgs", "sgd", "adam")
LEARNING_RATES = ("constant", "invscaling", "adaptive")
DTYPES = ("float32", "float64")
ACTIVATIONS = {"identity": "linear", "logistic": "sigmoid"}  # scikit-learn's names -> fastmlp's, if they differ

NOT_OF_LBFGS = ("dropout", "l1", "schedule", "max_grad_norm", "max_time")  # parameters that "lbfgs" does not support

Check = tuple[Callable[[Any], bool], str]  # whether a value is valid, and the requirement in words


def is_a(value: Any, kind: type) -> bool:
    """Return whether a value is an instance of an abstract number type, such as Integral. Booleans are not numbers here."""
    return isinstance(value, kind) and not isinstance(value, (bool, np.bool_))


def number(least: float, most: float = np.inf, *, open_left: bool = False, open_right: bool = False) -> Check:
    """Return a check for a finite number from `least` to `most`. `open_left` and `open_right` exclude these bounds."""

    def valid(value: Any) -> bool:
        if not is_a(value, Real) or not math.isfinite(value):
            return False
        return bool((value > least if open_left else value >= least) and (value < most if open_right else value <= most))

    return valid, f"a number in {'(' if open_left else '['}{least:g}, {most:g}{')' if open_right or most == np.inf else ']'}"


def one_of(*names: str) -> Check:
    """Return a check for one of the names."""
    return lambda value: isinstance(value, str) and value in names, f"one of {', '.join(map(repr, names))}"


def or_else(check: Check, other: Any) -> Check:
    """Return a check that accepts the value `other` in addition to the values that `check` accepts."""
    valid, needed = check
    return lambda value: (type(value) is type(other) and value == other) or valid(value), f"{needed} or {other!r}"


WHOLE: Check = (lambda v: is_a(v, Integral) and bool(v >= 1), "an integer of at least 1")
SWITCH: Check = (lambda v: isinstance(v, (bool, np.bool_)), "True or False")

CHECKS: dict[str, Check] = {
    "solver": one_of(*SOLVERS),
    "alpha": number(0),
    "batch_size": or_else(WHOLE, "auto"),
    "learning_rate": one_of(*LEARNING_RATES),
    "learning_rate_init": number(0, open_left=True),
    "power_t": number(0),
    "max_iter": WHOLE,
    "shuffle": SWITCH,
    "tol": number(0),
    "verbose": (lambda v: isinstance(v, (bool, np.bool_)) or (is_a(v, Integral) and bool(v >= 0)), "True, False or an integer"),
    "warm_start": SWITCH,
    "momentum": number(0, 1, open_right=True),
    "nesterovs_momentum": SWITCH,
    "early_stopping": SWITCH,
    "validation_fraction": number(0, 1, open_right=True),
    "beta_1": number(0, 1, open_right=True),
    "beta_2": number(0, 1, open_right=True),
    "epsilon": number(0, open_left=True),
    "n_iter_no_change": or_else(WHOLE, np.inf),
    "max_fun": WHOLE,
    "loss": one_of("squared_error", "poisson"),
    "l1": number(0),
    "label_smoothing": number(0, 1, open_right=True),
    "max_grad_norm": or_else(number(0, open_left=True), None),
    "max_time": or_else(number(0, open_left=True), None),
    "n_threads": or_else(WHOLE, None),
    "dtype": one_of(*DTYPES),
}


def check_parameters(parameters: dict[str, Any]) -> None:
    """Raise ConfigError, a ValueError, if a parameter has an invalid value or if two parameters cannot be combined."""
    for name, value in parameters.items():
        valid, needed = CHECKS.get(name, (None, ""))
        if valid is not None and not valid(value):
            raise ConfigError(f"{name} must be {needed}, not {value!r}", settings=(name,))
    if parameters["solver"] == "lbfgs":
        for name in NOT_OF_LBFGS:
            if np.any(parameters[name]):
                raise ConfigError(f"{name} needs the solver 'sgd' or 'adam', not 'lbfgs'", settings=(name, "solver"))
    if not all(is_a(rate, Real) for rate in np.ravel(parameters["dropout"])):
        raise ConfigError(
            f"dropout must be a number or a list of numbers, not {parameters['dropout']!r}", settings=("dropout",)
        )
    canonical_name("backend", parameters["backend"], CHOICES)
    check_schedule(parameters)


def hidden_sizes(given: Any) -> tuple[int, ...]:
    """Return `hidden_layer_sizes` as a tuple. As in scikit-learn, it may also be a single number."""
    sizes = tuple(given) if hasattr(given, "__iter__") and not isinstance(given, str) else (given,)
    if not all(is_a(size, Integral) and bool(size > 0) for size in sizes):
        raise ConfigError(f"hidden_layer_sizes must be > 0, got {list(sizes)}.", settings=("hidden_layer_sizes",))
    return tuple(int(size) for size in sizes)


def activation_names(given: Any) -> Any:
    """Return `activation`, one name or one name per hidden layer, with scikit-learn's names replaced by fastmlp's.

    Custom activations, which are `Activation` objects, are returned unchanged.
    """
    if isinstance(given, Activation):
        return given
    if isinstance(given, str):
        return ACTIVATIONS.get(given, given)
    try:
        return tuple(ACTIVATIONS.get(name, name) for name in given)
    except TypeError:
        raise ConfigError(
            f"activation must be a name or a list with one name per hidden layer, not {given!r}", settings=("activation",)
        ) from None


def dropout_rates(given: Any) -> float | tuple[float, ...]:
    """Return `dropout` as a number or a tuple with one number per hidden layer."""
    return float(given) if np.ndim(given) == 0 else tuple(float(rate) for rate in given)


def make_network(parameters: dict[str, Any], sizes: tuple[int, ...], loss: tuple[str, str], per_row: float) -> Network:
    """Return the network of an estimator.

    Parameters
    ----------
    parameters : parameters of the estimator, as returned by `get_params`
    sizes : number of units of each layer, from the input to the output
    loss : names of the loss and of the output function, see `nn.losses.LOSSES`
    per_row : factor of `alpha` and `l1`, which is 1 / (weight of a mini-batch), or 0 for a network that is not trained
    """
    return Network(
        sizes,
        activation=activation_names(parameters["activation"]),
        dropout=dropout_rates(parameters["dropout"]),
        loss=loss[0],
        output=loss[1],
        l1=parameters["l1"] * per_row,
        l2=parameters["alpha"] * per_row,
        label_smoothing=parameters.get("label_smoothing", 0.0) if loss[0] == "cross-entropy" else 0.0,
    )


def make_optimizer(parameters: dict[str, Any]) -> Optimizer:
    """Return the optimizer for the solver "sgd" or "adam"."""
    name = "adam"
    if parameters["solver"] == "sgd":
        name = "nesterov" if parameters["nesterovs_momentum"] else "momentum"
        name = name if parameters["momentum"] else "sgd"
    return Optimizer(
        name,
        parameters["learning_rate_init"],
        momentum=parameters["momentum"],
        beta1=parameters["beta_1"],
        beta2=parameters["beta_2"],
        epsilon=max(parameters["epsilon"], float(np.finfo(np.float32).tiny)),
        max_grad_norm=parameters["max_grad_norm"] or 0.0,
        epsilon_hat=True,  # as in scikit-learn
    )


def check_schedule(parameters: dict[str, Any]) -> Schedule | ReduceOnPlateau | None:
    """Return the learning-rate schedule for the parameter `schedule`, or None if this parameter is None.

    Raises
    ------
    ConfigError : the name is unknown, or `learning_rate` is not "constant"
    """
    given = parameters["schedule"]
    if given is None:
        return None
    if parameters["learning_rate"] != "constant":
        raise ConfigError(
            f"schedule needs learning_rate='constant', not {parameters['learning_rate']!r}", settings=("schedule",)
        )
    return make_schedule(given)


def initial_parameters(network: Network, activation: Any, random_state: np.random.RandomState) -> FloatArray:
    """Draw the initial parameters, (P,) float64, in the same order and from the same distribution as scikit-learn.

    The weights and biases of a layer are uniformly distributed in ±sqrt(factor / (fan_in + fan_out)). The factor is 2 if
    `activation`, the parameter of the estimator, is the logistic function (in the first hidden layer), and otherwise 6.

    Source: Glorot & Bengio 2010, equation 16.
    """
    vector = np.empty(network.parameters)
    names = activation_names(activation)
    sigmoid = (names if isinstance(names, (str, Activation)) else [*names, ""][0]) == "sigmoid"
    for w, b in network.views(vector):
        bound = np.sqrt((2.0 if sigmoid else 6.0) / sum(w.shape))
        w[:] = random_state.uniform(-bound, bound, w.shape)
        b[:] = random_state.uniform(-bound, bound, b.shape)
    return vector
