"""The specification: forward pass, losses, backward pass and updates of a multi-layer perceptron as NumPy formulas.

All engines compute the same and are tested against this file; the NumPy engine (engines/numpy_engine.py) runs it. Notation and
conventions are in nn/network.py. Formulas work in float32 and float64. They are written independently of the scalar functions
that Numba compiles, which are tested against them, and import nothing from there.

Source of the backward pass: Goodfellow, Bengio, Courville, "Deep Learning", 2016, algorithm 6.4; inverted dropout:
Srivastava et al. 2014, section 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer

Layers = list[tuple[FloatArray, FloatArray]]

# ------------------------------------------------------------------------------------------------ activations


def sigmoid(z: FloatArray) -> FloatArray:
    """1 / (1 + exp(-z)). SciPy is imported here, since importing it takes longer than a small training."""
    from scipy.special import expit

    return expit(z)


def normal_cdf(z: FloatArray) -> FloatArray:
    """Cumulative distribution function of the standard normal distribution."""
    from scipy.special import erfc

    return 0.5 * erfc(-z * np.sqrt(0.5).astype(z.dtype))


def normal_pdf(z: FloatArray) -> FloatArray:
    return np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi).astype(z.dtype)


def gelu_slope(z: FloatArray) -> FloatArray:
    return normal_cdf(z) + z * normal_pdf(z)


# name -> (f(z, a), f'(z, y, a)) with y = f(z)
ACTIVATIONS: dict[str, tuple[Callable[..., FloatArray], Callable[..., FloatArray]]] = {
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
    """log(sum_j exp(z_j)) of each row, (rows, 1). The maximum is subtracted first, so nothing overflows."""
    peak = z.max(axis=1, keepdims=True)
    return np.log(np.exp(z - peak).sum(axis=1, keepdims=True)) + peak


def softmax(z: FloatArray) -> FloatArray:
    return np.exp(z - log_sum_exp(z))


OUTPUTS: dict[str, Callable[[FloatArray], FloatArray]] = {"softmax": softmax, "sigmoid": sigmoid, "linear": lambda z: z}


def target_rows(network: Network, y: npt.NDArray[Any], dtype: npt.DTypeLike) -> FloatArray:
    """Targets t, (rows, outputs): numbers as they are, classes one-hot with label smoothing."""
    if y.ndim == 2:
        return y.astype(dtype)
    outputs = network.sizes[-1]
    smoothing = network.label_smoothing
    return (np.eye(outputs)[y] * (1 - smoothing) + smoothing / outputs).astype(dtype)


def row_losses(network: Network, z: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Loss of each row, (rows,), and its gradient dz, (rows, outputs), for output pre-activations z."""
    if network.loss == "cross-entropy":
        log_total = log_sum_exp(z)
        return (t * (log_total - z)).sum(axis=1), np.exp(z - log_total) - t
    y = OUTPUTS[network.output or ""](z)
    error = y - t
    if network.output == "softmax":  # the Jacobian: dy_i/dz_j = y_i (1[i=j] - y_j)
        dz = y * (error - (error * y).sum(axis=1, keepdims=True))
    elif network.output == "sigmoid":
        dz = error * y * (1 - y)
    else:
        dz = error
    return 0.5 * (error * error).sum(axis=1), dz


def plain_losses(network: Network, z: FloatArray, y: npt.NDArray[Any]) -> FloatArray:
    """Loss of each row, (rows,) float64, without label smoothing, so that networks with and without it can be compared."""
    # `replace` checks every layer again, which takes time.
    plain = replace(network, label_smoothing=0.0) if network.label_smoothing else network
    return row_losses(plain, z.astype(np.float64), target_rows(plain, y, np.float64))[0]


# ------------------------------------------------------------------------------------------------ forward and backward


class Pass(NamedTuple):
    """Results of the forward pass that the backward pass needs, one list entry per layer."""

    inputs: list[FloatArray]  # x of each layer, (rows, fan_in)
    slopes: list[FloatArray]  # dy/dz of each hidden layer, dropout included, (rows, fan_out)
    z: FloatArray  # pre-activations of the output layer


def forward(network: Network, layers: Layers, x: FloatArray, masks: list[Any] | None = None) -> Pass:
    """z = x w + b, y = f(z), layer by layer; in training `masks` are the dropout factors, 0 or 1/(1 - rate)."""
    inputs, slopes = [x], []
    for index, (layer, (w, b)) in enumerate(zip(network.layers[:-1], layers, strict=False)):
        value, slope = ACTIVATIONS[layer.activation]
        z = inputs[-1] @ w + b
        y = value(z, layer.parameter)
        s = slope(z, y, layer.parameter)
        if masks is not None and layer.dropout:
            y, s = y * masks[index], s * masks[index]
        inputs.append(y)
        slopes.append(s)
    w, b = layers[-1]
    return Pass(inputs, slopes, inputs[-1] @ w + b)


def backward(network: Network, layers: Layers, passed: Pass, dz: FloatArray) -> FloatArray:
    """Gradient of the objective, flat (parameters,); dz is of the output layer, times each row's weight in the mean loss."""
    gradient = np.empty(network.parameters, dz.dtype)
    views = network.views(gradient)
    for index in range(len(layers) - 1, -1, -1):
        w, _ = layers[index]
        dw, db = views[index]
        dw[:] = passed.inputs[index].T @ dz + network.l2 * w + network.l1 * np.sign(w)
        db[:] = dz.sum(axis=0)
        if index:
            dz = (dz @ w.T) * passed.slopes[index - 1]
    return gradient


def objective(network: Network, parameters: FloatArray, x: FloatArray, t: FloatArray) -> float:
    """Mean loss plus penalties, without dropout: the function that training minimises. Used for gradient checks."""
    layers = network.views(parameters)
    loss, _ = row_losses(network, forward(network, layers, x).z, t)
    return float(loss.mean() + penalty(network, layers))


def penalty(network: Network, layers: Layers) -> float:
    """l2/2 sum(w^2) + l1 sum(|w|)."""
    return sum(float(network.l2 / 2 * np.square(w).sum() + network.l1 * np.abs(w).sum()) for w, _ in layers)


# ------------------------------------------------------------------------------------------------ updates


def update(
    o: Optimizer, p: FloatArray, g: FloatArray, slots: FloatArray, step: int, learning_rate: float, weight_decay: FloatArray
) -> None:
    """One update in place: parameters p (P,) and slots (number of slots, P); `step` is the number of updates before this one.

    weight_decay (P,) is that of adamw, zero for biases. The rules and their sources are listed in nn/optimizers.py.
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
        p -= learning_rate * m_hat / (np.sqrt(v_hat) + o.epsilon)


def clip(gradient: FloatArray, largest: float) -> FloatArray:
    """Clip the gradient to Euclidean norm `largest`; 0 never clips. Source: Pascanu et al. 2013, algorithm 1."""
    norm = float(np.sqrt(np.square(gradient.astype(np.float64)).sum()))
    return gradient * gradient.dtype.type(largest / norm) if largest and norm > largest else gradient
