"""The NumPy engine, the reference for all other engines, is compared with PyTorch and with finite differences.

Gradients are obtained from an SGD step with learning rate 1, which subtracts the gradient from the parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.engines import LOSS_PAIRS, Course, make_course, run_course, same_bits, start_state
from support.tolerances import check_course, expected, forward_tolerance, product_tolerance

from fastmlp.engines.base import EngineSpec, State, step_count
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.activations import ACTIVATIONS as SCALAR_ACTIVATIONS
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import RULES, Optimizer
from fastmlp.nn.philox import keep_mask
from fastmlp.reference import ACTIVATIONS, OUTPUTS, backward, clip, forward, objective, row_losses

F = torch.nn.functional

TORCH_ACTIVATIONS = {
    "linear": lambda z, a: z,
    "relu": lambda z, a: torch.relu(z),
    "leaky-relu": F.leaky_relu,
    "tanh": lambda z, a: torch.tanh(z),
    "sigmoid": lambda z, a: torch.sigmoid(z),
    "gelu": lambda z, a: F.gelu(z, approximate="none"),
    "leaky-gelu": lambda z, a: a * z + (1 - a) * F.gelu(z, approximate="none"),
    "silu": lambda z, a: F.silu(z),
    "elu": F.elu,
}
TORCH_OUTPUTS = {
    "linear": lambda z: z,
    "sigmoid": torch.sigmoid,
    "softmax": lambda z: torch.softmax(z, 1),
    "exp": torch.exp,
}


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torch_layers(network: Network, parameters: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the weights and biases of each layer as float64 leaf tensors."""
    return [
        (torch.tensor(w.copy(), requires_grad=True), torch.tensor(b.copy(), requires_grad=True))
        for w, b in network.views(parameters.astype(np.float64))
    ]


def torch_row_losses(
    network: Network, layers: Any, x: Any, y: Any, masks: dict[int, Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return row losses and output pre-activations, computed with PyTorch's functions."""
    h = torch.tensor(x, dtype=torch.float64)
    for index, (layer, (w, b)) in enumerate(zip(network.layers[:-1], layers, strict=False)):
        h = TORCH_ACTIVATIONS[layer.activation](h @ w + b, layer.parameter)
        if masks is not None and index in masks:
            h = h * torch.tensor(masks[index]) / (1 - layer.dropout)
    w, b = layers[-1]
    z = h @ w + b
    classes = y.ndim == 1
    if network.loss_name == "cross-entropy":
        target = torch.tensor(y, dtype=torch.int64 if classes else torch.float64)
        smoothing = network.label_smoothing if classes else 0.0
        return F.cross_entropy(z, target, reduction="none", label_smoothing=smoothing), z
    smoothing, k = network.label_smoothing, network.sizes[-1]
    hot = np.eye(k)[y] * (1 - smoothing) + smoothing / k if classes else y
    target = torch.tensor(hot, dtype=torch.float64)
    if network.loss_name == "absolute-error":
        return F.l1_loss(z, target, reduction="none").sum(1), z
    if network.loss_name == "huber":
        return F.huber_loss(z, target, reduction="none", delta=network.loss_parameter).sum(1), z
    if network.loss_name == "quantile":  # PyTorch does not have this loss
        level = network.loss_parameter
        return torch.maximum(level * (target - z), (level - 1) * (target - z)).sum(1), z
    if network.loss_name == "binary-cross-entropy":
        return F.binary_cross_entropy_with_logits(z, target, reduction="none").sum(1), z
    if network.loss_name == "poisson":  # PyTorch's loss lacks the terms that do not depend on z
        constant = torch.xlogy(target, target) - target
        return (F.poisson_nll_loss(z, target, reduction="none") + constant).sum(1), z
    error = TORCH_OUTPUTS[network.output](z) - target
    return 0.5 * (error**2).sum(1), z


def torch_objective(network: Network, layers: Any, losses: torch.Tensor, weights: Any) -> torch.Tensor:
    """Return the weighted mean loss plus the L1 and L2 penalties on the weights."""
    share = torch.ones(len(losses), dtype=torch.float64) if weights is None else torch.tensor(weights).double()
    total = (share * losses).sum() / share.sum()
    for w, _ in layers:
        total = total + network.l2 / 2 * (w**2).sum() + network.l1 * w.abs().sum()
    return total


def flat(layers: Any) -> Any:
    return np.concatenate([t.detach().numpy().ravel() for pair in layers for t in pair])


def flat_gradient(layers: Any) -> Any:
    return flat([[t.grad for t in pair] for pair in layers])


def masks_of(network: Network, seed: int, step: int, rows: int) -> dict[int, Any]:
    return {
        index: keep_mask(seed, step, index, rows, layer.fan_out, layer.dropout)
        for index, layer in enumerate(network.layers[:-1])
        if layer.dropout
    }


def one_batch(course: Course) -> Course:
    return Course(course.x, course.y, np.arange(len(course.x)), np.ones(1), course.weights)


def check_gradient(network: Network, course: Course, seed: int = 5, step: int = 3) -> None:
    """Check the row losses, correctness flags and gradients of one batch against PyTorch's autograd, in float64."""
    course = one_batch(course)
    if course.y.ndim == 2 and network.loss_name == "cross-entropy":  # float32 targets sum to 1 only approximately
        y = course.y.astype(np.float64)
        course = course._replace(y=y / y.sum(axis=1, keepdims=True))
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=len(course.x), seed=seed, dtype=np.float64)
    start = start_state(spec)._replace(step=step)
    end, results = run_course("numpy", spec, start, course)

    layers = torch_layers(network, start.parameters)
    masks = masks_of(network, seed, step, len(course.x))
    losses, z = torch_row_losses(network, layers, course.x, course.y, masks)
    torch_objective(network, layers, losses, course.weights).backward()
    wanted = flat_gradient(layers)
    assert np.abs(wanted).max() > 1e-3  # the comparison is not trivial
    np.testing.assert_allclose(start.parameters - end.parameters, wanted, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(results.loss, losses.detach().numpy(), rtol=1e-12)
    if course.y.ndim == 1:
        assert np.array_equal(results.correct, z.argmax(1).numpy() == course.y)
    else:
        assert not results.correct.any()
    assert end.step == step + 1


def test_the_registries_of_formulas_and_specification_name_the_same_things() -> None:
    assert list(ACTIVATIONS) == list(SCALAR_ACTIVATIONS) == list(TORCH_ACTIVATIONS)
    assert {output for outputs in LOSSES.values() for output in outputs} == set(OUTPUTS)


@pytest.mark.parametrize(("loss", "output"), LOSS_PAIRS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_and_gradients_equal_autograd(activation: str, loss: str, output: str) -> None:
    network = Network((6, 7, 5, 4), activation=activation, loss=loss, output=output)
    check_gradient(network, make_course(network, 9))
    check_gradient(network, make_course(network, 9, targets=True))


EXTRAS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "l1": ({"l1": 0.01}, {}),
    "l2": ({"l2": 0.1}, {}),
    "label smoothing": ({"label_smoothing": 0.15}, {}),
    "dropout": ({"dropout": (0.5, 0.2)}, {}),
    "dropout in one layer": ({"dropout": (0.0, 0.4)}, {}),
    "sample weights": ({}, {"weighted": True}),
    "steep negative sides": ({"activation": ("leaky-relu:0.3", "elu:2.5")}, {}),
    "leaky-gelu's parameter": ({"activation": ("leaky-gelu:0.25", "tanh")}, {}),
    "all": (
        {"l1": 0.01, "l2": 0.1, "label_smoothing": 0.15, "dropout": 0.3, "activation": ("gelu", "silu")},
        {"weighted": True},
    ),
}


@pytest.mark.parametrize(("loss", "output"), LOSS_PAIRS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_equal_autograd(extra: str, loss: str, output: str) -> None:
    of_network, of_course = EXTRAS[extra]
    network = Network((5, 8, 6, 3), loss=loss, output=output, **{"activation": "tanh", **of_network})
    check_gradient(network, make_course(network, 12, **of_course))


def test_the_comparison_with_autograd_sees_a_wrong_gradient() -> None:
    network = Network((5, 8, 3), l2=0.1)
    course = one_batch(make_course(network, 12))
    layers = torch_layers(network, start_state(EngineSpec(network, Optimizer("sgd"))).parameters)
    losses, _ = torch_row_losses(network, layers, course.x, course.y)
    torch_objective(Network((5, 8, 3), l2=0.1001), layers, losses, None).backward()
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=12, dtype=np.float64)
    start = start_state(spec)
    end, _ = run_course("numpy", spec, start, course)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(start.parameters - end.parameters, flat_gradient(layers), rtol=1e-10, atol=1e-14)


# ------------------------------------------------------------------------------------------------ finite differences


def gradient_of(network: Network, parameters: Any, x: Any, t: Any) -> Any:
    layers = network.views(parameters)
    passed = forward(network, layers, x)
    _, dz = row_losses(network, passed.z, t)
    return backward(network, layers, passed, dz / len(x))


def numerical_gradient(network: Network, parameters: Any, x: Any, t: Any, h: float = 1e-5) -> Any:
    """Return central differences of the objective; the step size `h` is absolute, since parameters are of order one."""
    gradient = np.empty_like(parameters)
    for i in range(len(parameters)):
        ends = []
        for sign in (1, -1):
            moved = parameters.copy()
            moved[i] += sign * h
            ends.append(objective(network, moved, x, t))
        gradient[i] = (ends[0] - ends[1]) / (2 * h)
    return gradient


def far_from_kinks(network: Network, x: Any, t: Any) -> Any:
    """Return parameters with which no value is within 1e-3 of a point where derivatives may jump.

    These points are 0 for hidden pre-activations and weights, and 0 and +-delta for the errors z - t of the output layer.
    """
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        parameters = rng.normal(0, 0.7, network.parameters)
        layers = network.views(parameters)
        y, nearest = x, min(np.abs(w).min() for w, _ in layers)
        for layer, (w, b) in zip(network.layers[:-1], layers, strict=False):
            z = y @ w + b
            nearest = min(nearest, np.abs(z).min())
            y = ACTIVATIONS[layer.activation][0](z, layer.parameter)
        w, b = layers[-1]
        errors = np.abs(y @ w + b - t)
        nearest = min(nearest, errors.min(), np.abs(errors - network.loss_parameter).min())
        if nearest > 1e-3:
            return parameters
    raise AssertionError("none of 1000 random parameter vectors is far from all kinks")


@pytest.mark.parametrize("penalties", [{}, {"l1": 0.02, "l2": 0.3}], ids=["plain", "penalties"])
@pytest.mark.parametrize(("loss", "output"), LOSS_PAIRS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_equal_finite_differences(activation: str, loss: str, output: str, penalties: Any) -> None:
    network = Network((4, 5, 4, 3), activation=activation, loss=loss, output=output, **penalties)
    rng = np.random.default_rng(7)
    x, t = rng.normal(size=(6, 4)), rng.dirichlet(np.ones(3), 6)
    parameters = far_from_kinks(network, x, t)
    gradient = gradient_of(network, parameters, x, t)
    difference = np.linalg.norm(numerical_gradient(network, parameters, x, t) - gradient)
    assert difference < 1e-6 * np.linalg.norm(gradient)


def test_finite_differences_see_a_missing_jacobian() -> None:
    """A gradient that uses only the diagonal of the softmax Jacobian, a common mistake, is far outside the tolerance."""
    network = Network((4, 3), loss="squared-error", output="softmax")
    rng = np.random.default_rng(7)
    x, t = rng.normal(size=(6, 4)), rng.dirichlet(np.ones(3), 6)
    parameters = far_from_kinks(network, x, t)
    layers = network.views(parameters)
    passed = forward(network, layers, x)
    y = OUTPUTS["softmax"](passed.z)
    slip = backward(network, layers, passed, (y - t) * y * (1 - y) / len(x))
    wanted = numerical_gradient(network, parameters, x, t)
    assert np.linalg.norm(wanted - slip) > 1e-2 * np.linalg.norm(wanted)


# ------------------------------------------------------------------------------------------------ optimizers


def torch_optimizer(o: Optimizer, layers: Any) -> torch.optim.Optimizer:
    ws, bs = zip(*layers, strict=True)
    betas = (o.beta1, o.beta2)
    everything = [*ws, *bs]
    decayed = [{"params": ws, "weight_decay": o.weight_decay}, {"params": bs, "weight_decay": 0.0}]
    make = {
        "sgd": lambda: torch.optim.SGD(everything, lr=1.0),
        "momentum": lambda: torch.optim.SGD(everything, lr=1.0, momentum=o.momentum),
        "nesterov": lambda: torch.optim.SGD(everything, lr=1.0, momentum=o.momentum, nesterov=True),
        "rmsprop": lambda: torch.optim.RMSprop(everything, lr=1.0, alpha=o.beta2, eps=o.epsilon),
        "adam": lambda: torch.optim.Adam(everything, lr=1.0, betas=betas, eps=o.epsilon),
        "adamw": lambda: torch.optim.AdamW(decayed, lr=1.0, betas=betas, eps=o.epsilon),
    }
    return make[o.name]()


def torch_clip(layers: Any, largest: float) -> float:
    """Clip gradients like `clip_grad_norm_`, but without adding 1e-6 to the norm; return the norm before clipping."""
    tensors = [t for pair in layers for t in pair]
    norm = torch.nn.utils.get_total_norm([t.grad for t in tensors])
    torch.nn.utils.clip_grads_with_norm_(tensors, largest, norm - 1e-6)
    return float(norm)


def torch_course(network: Network, o: Optimizer, start: State, course: Course, batch: int, seed: int) -> Any:
    """Train with PyTorch; return the final parameters, all row losses, and the gradient norm of each step."""
    layers = torch_layers(network, start.parameters)
    optimizer, losses, norms = torch_optimizer(o, layers), [], []
    for k in range(step_count(len(course.indices), batch)):
        rows = course.indices[k * batch : (k + 1) * batch]
        for group in optimizer.param_groups:
            group["lr"] = float(course.learning_rates[k])
        optimizer.zero_grad()
        masks = masks_of(network, seed, k, len(rows))
        loss, _ = torch_row_losses(network, layers, course.x[rows], course.y[rows], masks)
        torch_objective(network, layers, loss, None if course.weights is None else course.weights[rows]).backward()
        norms.append(torch_clip(layers, o.max_grad_norm) if o.max_grad_norm else np.linalg.norm(flat_gradient(layers)))
        optimizer.step()
        losses.append(loss.detach().numpy())
    return flat(layers), np.concatenate(losses), np.array(norms)


OPTIMIZERS = [
    *(Optimizer(name) for name in RULES),
    Optimizer("momentum", momentum=0.5, max_grad_norm=2.0),
    Optimizer("rmsprop", beta2=0.9, epsilon=1e-5),
    Optimizer("adam", beta1=0.8, beta2=0.95, epsilon=1e-6, max_grad_norm=2.0),
    Optimizer("adamw", weight_decay=0.3, max_grad_norm=2.0),
    Optimizer("sgd", max_grad_norm=2.0),
]


@pytest.mark.parametrize("o", OPTIMIZERS, ids=lambda o: f"{o.name}-{o.max_grad_norm:g}-{o.beta2:g}")
def test_ten_steps_of_every_optimizer_equal_torch(o: Optimizer) -> None:
    """Ten steps with decreasing learning rates, dropout, penalties, sample weights and a short last batch match PyTorch."""
    network = Network((6, 9, 7, 4), activation="tanh", dropout=0.25, l1=1e-3, l2=1e-2)
    course = make_course(network, 38, 4, epochs=1, rate=0.02, weighted=True)
    assert len(course.learning_rates) == 10
    assert len(course.indices) % 4 == 2
    spec = EngineSpec(network, o, batch_size=4, seed=11, dtype=np.float64)
    start = start_state(spec)
    wanted, losses, norms = torch_course(network, o, start, course, 4, 11)
    if o.max_grad_norm:
        assert norms.min() < o.max_grad_norm < norms.max()
    end, results = run_course("numpy", spec, start, course)
    assert np.abs(end.parameters - start.parameters).max() > 1e-3
    np.testing.assert_allclose(end.parameters, wanted, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(results.loss, losses, rtol=1e-10)
    assert end.step == 10


def test_optimizers_go_on_after_a_load() -> None:
    """Two training calls of five steps, with the state loaded in between, are bit-identical to one call of ten steps."""
    network = Network((4, 5, 3))
    for name in RULES:
        spec = EngineSpec(network, Optimizer(name), batch_size=4, dtype=np.float64)
        course, start = make_course(network, 40, 4, epochs=1), start_state(spec)
        whole, _ = run_course("numpy", spec, start, course)
        half, _ = run_course(
            "numpy", spec, start, course._replace(indices=course.indices[:20], learning_rates=course.learning_rates[:5])
        )
        rest = course._replace(indices=course.indices[20:], learning_rates=course.learning_rates[5:])
        end, _ = run_course("numpy", spec, half, rest)
        assert np.array_equal(end.parameters, whole.parameters), name
        assert np.array_equal(end.slots, whole.slots), name


def test_clip_leaves_short_gradients_and_shortens_long_ones() -> None:
    g = np.array([3.0, 4.0])
    assert clip(g, 5.0) is g
    assert clip(g, 0.0) is g
    np.testing.assert_allclose(clip(g, 1.0), [0.6, 0.8], rtol=1e-15)
    huge = np.full(4, 3e25, np.float32)  # the squares overflow float32
    np.testing.assert_allclose(clip(huge, 2.0), np.ones(4), rtol=1e-6)


# ------------------------------------------------------------------------------------------------ float32


@pytest.mark.parametrize(("loss", "output"), LOSS_PAIRS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_agrees_with_float64(activation: str, loss: str, output: str) -> None:
    network = Network((13, 11, 9, 5), activation=activation, loss=loss, output=output)
    spec = EngineSpec(network, Optimizer("momentum"), batch_size=8)
    rate = 2e-5 if output == "exp" else 0.05  # a large step overflows the exponential function
    course, start = make_course(network, 20, rate=rate), start_state(spec)
    state, results = run_course("numpy", spec, start, course)
    assert state.parameters.dtype == state.slots.dtype == results.loss.dtype == np.float32
    check_course(expected(spec, start, course), state, results)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_in_float32_keeps_its_bound(activation: str) -> None:
    network = Network((30, 20, 10, 5), activation=activation)
    start = start_state(EngineSpec(network, Optimizer("sgd")))
    x = make_course(network, 40).x
    z = {}
    for dtype in (np.float32, np.float64):
        engine = NumpyEngine(EngineSpec(network, Optimizer("sgd"), dtype=dtype))
        engine.load(start)
        z[dtype] = engine.forward(x)
    tolerance = forward_tolerance(network, start.parameters, x)
    difference = np.abs(z[np.float32] - z[np.float64])
    assert (difference <= tolerance).all()
    assert tolerance.max() < 2e-3 * np.abs(z[np.float64]).max()  # the bound is not too loose


def test_product_tolerance_holds_for_products_and_not_for_a_wrong_term() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(31, 203)).astype(np.float32), rng.normal(size=(203, 17)).astype(np.float32)
    exact = a.astype(np.float64) @ b
    tolerance = product_tolerance(a, b)
    assert (np.abs(a @ b - exact) <= tolerance).all()
    short = a[:, 1:] @ b[1:]  # without one of 203 terms, nearly every entry is out of tolerance
    assert (np.abs(short - exact) > tolerance).mean() > 0.9


def test_uint8_rows_are_taken_as_numbers() -> None:
    spec = EngineSpec(Network((7, 4, 3)), Optimizer("sgd"), dtype=np.float64)
    course = make_course(spec.network, 16, uint8=True, rate=1e-4)
    as_float = course._replace(x=course.x.astype(np.float64))
    one, other = (run_course("numpy", spec, start_state(spec), c) for c in (course, as_float))
    assert same_bits(one, other)
