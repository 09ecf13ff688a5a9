"""The reference implementation: forward pass, losses, backward pass and updates of a multi-layer perceptron in NumPy.

One training step on a mini-batch x_0, for the layers l = 0, …, L with activations f_l and dropout masks m_l:

    forward     for l = 0, …, L:  z_l = x_l w_l + b_l,  and if l < L:  x_{l+1} = m_l f_l(z_l)
    row_losses  loss = mean of the losses of the rows,  dz_L = d loss / d z_L
    backward    for l = L, …, 0:  dw_l = x_l^T dz_l + l2 w_l + l1 sign(w_l),  db_l = sum of dz_l over the rows,
                                  and if l > 0:  dz_{l-1} = (dz_l w_l^T) m_{l-1} f'_{l-1}(z_{l-1})
    clip        scale the gradient down if its norm is too large
    update      update all w_l and b_l by the rule of the optimizer

All engines implement these formulas and are tested against this file; the NumPy engine (engines/numpy_engine.py) calls it
directly. nn/network.py describes the notation and the conventions. The formulas work in float32 and float64. The scalar
functions that Numba compiles are tested against them, so this file does not import those functions.

Sources: for the backward pass, Goodfellow, Bengio, Courville, "Deep Learning", 2016, algorithm 6.4; for inverted dropout,
Srivastava et al. 2014, section 10; for activations and updates, see nn/activations.py and nn/optimizers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer

Layers = list[tuple[FloatArray, FloatArray]]  # w and b of each layer

# ------------------------------------------------------------------------------------------------ activations


def sigmoid(z: FloatArray) -> FloatArray:
    """Return 1 / (1 + exp(-z)). SciPy is imported here, because its import takes longer than training a small network."""
    from scipy.special import expit

    return expit(z)


def normal_cdf(z: FloatArray) -> FloatArray:
    """Return the cumulative distribution function of the standard normal distribution."""
    from scipy.special import erfc

    return 0.5 * erfc(-z * np.sqrt(0.5).astype(z.dtype))


def normal_pdf(z: FloatArray) -> FloatArray:
    """Return the density of the standard normal distribution."""
    return np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi).astype(z.dtype)


def gelu_slope(z: FloatArray) -> FloatArray:
    """Return the derivative of gelu(z) = z P(z), which is P(z) + z P'(z), where P is `normal_cdf`."""
    return normal_cdf(z) + z * normal_pdf(z)


# name -> f(z, a) and f'(z, y, a), where y = f(z) and a is the parameter of the activation
ArrayFunctions = tuple[Callable[..., FloatArray], Callable[..., FloatArray]]
ACTIVATIONS: dict[str, ArrayFunctions] = {
    "linear": (lambda z, a: z, lambda z, y, a: np.ones_like(z)),
    "relu": (lambda z, a: np.maximum(z, 0), lambda z, y, a: (z > 0).astype(z.dtype)),
    "leaky-relu": (lambda z, a: np.where(z > 0, z, a * z), lambda z, y, a: np.where(z > 0, 1, a).astype(z.dtype)),
    "tanh": (lambda z, a: np.tanh(z), lambda z, y, a: 1 - y * y),
    "sigmoid": (lambda z, a: sigmoid(z), lambda z, y, a: y * (1 - y)),
    "gelu": (lambda z, a: z * normal_cdf(z), lambda z, y, a: gelu_slope(z)),
    "leaky-gelu": (
        lambda z, a: a * z + (1 - a) * z * normal_cdf(z),
        lambda z, y, a: a + (1 - a) * gelu_slope(z),
    ),
    "silu": (lambda z, a: z * sigmoid(z), lambda z, y, a: sigmoid(z) * (1 + z * (1 - sigmoid(z)))),
    "elu": (
        lambda z, a: np.where(z > 0, z, a * np.expm1(np.minimum(z, 0))),
        lambda z, y, a: np.where(z > 0, 1, a * np.exp(np.minimum(z, 0))).astype(z.dtype),
    ),
}

# ------------------------------------------------------------------------------------------------ outputs and losses


def log_sum_exp(z: FloatArray) -> FloatArray:
    """Return log(sum_j exp(z_j)) of each row, (rows, 1). The maximum is subtracted first to avoid overflow."""
    maximum = z.max(axis=1, keepdims=True)
    return np.log(np.exp(z - maximum).sum(axis=1, keepdims=True)) + maximum


def softmax(z: FloatArray) -> FloatArray:
    """Return exp(z_i) / sum_j exp(z_j) of each row, (rows, outputs)."""
    return np.exp(z - log_sum_exp(z))


def x_log_x(x: FloatArray) -> FloatArray:
    """Return x log(x) for x >= 0, with the limit 0 at x = 0."""
    return x * np.log(np.where(x > 0, x, 1))


OUTPUTS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "linear": lambda z: z,
    "exp": np.exp,
}


# Losses of linear outputs: name -> f(e, a) and its derivative for the errors e = z - t, where a is the parameter of the loss.
# The derivatives of absolute-error and quantile at 0 are defined as 0. Sources: see nn/losses.py.
ERROR_LOSSES: dict[str, Callable[[FloatArray, float], tuple[FloatArray, FloatArray]]] = {
    "absolute-error": lambda e, a: (np.abs(e), np.sign(e)),
    "huber": lambda e, a: (np.where(np.abs(e) <= a, 0.5 * e * e, a * (np.abs(e) - 0.5 * a)), np.clip(e, -a, a)),
    "quantile": lambda e, a: (
        np.maximum(a * -e, (a - 1) * -e),
        (1 - a) * np.sign(np.maximum(e, 0)) + a * np.sign(np.minimum(e, 0)),
    ),
}


def target_rows(network: Network, y: npt.NDArray[Any], dtype: npt.DTypeLike) -> FloatArray:
    """Return targets, (rows, outputs): class labels (rows,) are one-hot encoded with label smoothing, others are unchanged."""
    if y.ndim == 2:
        return y.astype(dtype)
    outputs = network.sizes[-1]
    smoothing = network.label_smoothing
    one_hot = y[:, None] == np.arange(outputs)
    return (one_hot * (1 - smoothing) + smoothing / outputs).astype(dtype)


def row_losses(network: Network, z: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the loss of each row, (rows,), and its gradient with respect to z, (rows, outputs).

    z (rows, outputs) are the pre-activations of the output layer, and t (rows, outputs) are the targets.

    - cross-entropy, for targets that sum to 1: loss = sum_j t_j (log_sum_exp(z) - z_j), dz = softmax(z) - t
    - binary cross-entropy, for targets in [0, 1]: loss = sum_j max(z_j, 0) - z_j t_j + log(1 + exp(-|z_j|)),
      dz = sigmoid(z) - t
    - poisson, for targets t >= 0: loss = sum_j y_j - t_j - t_j log(y_j / t_j) with y = exp(z), dz = y - t
    - squared error, for the output function y = g(z): loss = 1/2 sum_j (y_j - t_j)^2, dz_j = sum_i (y_i - t_i) dy_i/dz_j
    - absolute error, Huber and quantile: loss = sum_j f(z_j - t_j), dz_j = f'(z_j - t_j), with the functions `ERROR_LOSSES`
    """
    if network.loss_name == "cross-entropy":
        log_sum = log_sum_exp(z)
        return (t * (log_sum - z)).sum(axis=1), np.exp(z - log_sum) - t
    y = OUTPUTS[network.output or ""](z)
    error = y - t
    if network.loss_name in ERROR_LOSSES:
        loss, dz = ERROR_LOSSES[network.loss_name](error, network.loss_parameter)
        return loss.sum(axis=1), dz
    if network.loss_name == "binary-cross-entropy":
        return (np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))).sum(axis=1), error
    if network.loss_name == "poisson":
        return (error + x_log_x(t) - t * z).sum(axis=1), error
    if network.output == "softmax":  # the Jacobian is dy_i/dz_j = y_i (1[i=j] - y_j)
        dz = y * (error - (error * y).sum(axis=1, keepdims=True))
    elif network.output == "sigmoid":
        dz = error * y * (1 - y)
    else:
        dz = error
    return 0.5 * (error * error).sum(axis=1), dz


def plain_losses(network: Network, z: FloatArray, y: npt.NDArray[Any]) -> FloatArray:
    """Return the loss of each row for evaluation, (rows,) float64.

    Label smoothing is not applied, so that losses of networks with and without label smoothing are comparable.
    """
    # Do not call `replace` unless necessary: it validates all fields again, which is slow.
    unsmoothed = replace(network, label_smoothing=0.0) if network.label_smoothing else network
    return row_losses(unsmoothed, z.astype(np.float64), target_rows(unsmoothed, y, np.float64))[0]


# ------------------------------------------------------------------------------------------------ forward and backward


class ForwardPass(NamedTuple):
    """Results of the forward pass that the backward pass needs; the lists have one entry per layer."""

    inputs: list[FloatArray]  # input of each layer, (rows, fan_in)
    slopes: list[FloatArray]  # dy/dz of each hidden layer, including dropout, (rows, fan_out)
    z: FloatArray  # pre-activations of the output layer, (rows, outputs)


def forward(
    network: Network,
    layers: Layers,
    x: FloatArray,
    masks: list[Any] | None = None,
    activations: Mapping[str, ArrayFunctions] = ACTIVATIONS,
) -> ForwardPass:
    """Compute z = x w + b and y = f(z) layer by layer, for x (rows, inputs).

    `masks` contains one array per hidden layer with the dropout factors of its units, (rows, fan_out), each 0 or
    1/(1 - rate). It is None in prediction, where dropout is not applied. `activations` contains the value and the slope of each
    activation; networks with custom activations need them in addition to `ACTIVATIONS`.
    """
    inputs, slopes = [x], []
    for index, (layer, (w, b)) in enumerate(zip(network.layers[:-1], layers, strict=False)):
        value, slope = activations[layer.activation]
        z = inputs[-1] @ w + b
        y = value(z, layer.parameter)
        s = slope(z, y, layer.parameter)
        if masks is not None and layer.dropout:
            y, s = y * masks[index], s * masks[index]
        inputs.append(y)
        slopes.append(s)
    w, b = layers[-1]
    return ForwardPass(inputs, slopes, inputs[-1] @ w + b)


def backward(network: Network, layers: Layers, forward_pass: ForwardPass, dz: FloatArray) -> FloatArray:
    """Return the gradient of the objective with respect to all parameters, as a flat vector (parameters,).

    dz (rows, outputs) is the gradient from `row_losses`, multiplied by the weight of each row in the mean loss.
    """
    gradient = np.empty(network.parameters, dz.dtype)
    views = network.views(gradient)
    for index in range(len(layers) - 1, -1, -1):
        w, _ = layers[index]
        dw, db = views[index]
        dw[:] = forward_pass.inputs[index].T @ dz + network.l2 * w + network.l1 * np.sign(w)
        db[:] = dz.sum(axis=0)
        if index:
            dz = (dz @ w.T) * forward_pass.slopes[index - 1]
    return gradient


def objective(network: Network, parameters: FloatArray, x: FloatArray, t: FloatArray) -> float:
    """Return the objective that training minimizes: mean loss plus penalties, without dropout. Used for gradient checks."""
    layers = network.views(parameters)
    loss, _ = row_losses(network, forward(network, layers, x).z, t)
    return float(loss.mean() + penalty(network, layers))


def penalty(network: Network, layers: Layers) -> float:
    """Return l2/2 sum(w^2) + l1 sum(|w|) over the weights of all layers."""
    return sum(float(network.l2 / 2 * np.square(w).sum() + network.l1 * np.abs(w).sum()) for w, _ in layers)


# ------------------------------------------------------------------------------------------------ updates


def update(
    o: Optimizer, p: FloatArray, g: FloatArray, slots: FloatArray, step: int, learning_rate: float, weight_decay: FloatArray
) -> None:
    """Update parameters p (P,) and optimizer slots (number of slots, P) in place, given the gradient g (P,).

    `step` is the number of updates made before this one. `weight_decay` (P,) is only used by adamw, and is zero for biases.
    nn/optimizers.py lists the update rules and their sources. If g^2 overflows, the parameter becomes NaN.
    """
    t = step + 1
    if o.name == "sgd":
        p -= learning_rate * g
    elif o.name in ("momentum", "nesterov"):
        (m,) = slots
        m[:] = o.momentum * m + g
        p -= learning_rate * (g + o.momentum * m if o.name == "nesterov" else m)
    elif o.name == "rmsprop":
        (v,) = slots
        v[:] = o.beta2 * v + (1 - o.beta2) * g**2
        p -= learning_rate * g / (np.sqrt(v) + o.epsilon)
    else:
        m, v = slots
        if o.name == "adamw":
            p -= learning_rate * weight_decay * p
        m[:] = o.beta1 * m + (1 - o.beta1) * g
        v[:] = o.beta2 * v + (1 - o.beta2) * g**2
        m_hat = m / (1 - o.beta1**t)
        v_hat = v / (1 - o.beta2**t)
        epsilon = o.epsilon / np.sqrt(1 - o.beta2**t) if o.epsilon_hat else o.epsilon
        p -= learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)
    if "v" in o.slots:  # g / sqrt(v) is 0 for an infinite v, so training would not report that it diverged
        p[np.isinf(slots[-1])] = np.nan


def clip(gradient: FloatArray, max_norm: float) -> FloatArray:
    """Return the gradient, scaled down to the Euclidean norm `max_norm` if its norm is larger; max_norm = 0 disables clipping.

    If the square of the norm overflows in float64, the gradient becomes NaN. Source: Pascanu et al. 2013, algorithm 1.
    """
    norm = float(np.sqrt(np.square(gradient.astype(np.float64)).sum()))
    if max_norm and norm > max_norm:
        return gradient * gradient.dtype.type(max_norm / norm if norm < np.inf else np.nan)
    return gradient
