"""Rounding error bounds for products and training runs, and checks of engines against the reference.

The tolerance of a product with K terms per entry is c K eps |A||B|, propagated through the layers. Training runs are compared
with the float64 reference; their tolerance is the effect of perturbations of the size of rounding errors on the reference.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from fastmlp.engines.base import EngineSpec, RowMetrics, State
from fastmlp.engines.functions import array_activations
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.network import Network
from fastmlp.reference import ACTIVATIONS, plain_losses
from support.engines import Course, engine_of, exact_spec, same_bits, start_state

EPS = float(np.finfo(np.float32).eps)


SAFETY = 1.0  # factor c of the tolerances; K eps is twice the proven bound for a sum of K products in any order


ELEMENTWISE = 8  # roundings after a sum (activation, loss, update), counted as additional terms


def product_tolerance(a: Any, b: Any, extra: int = 0) -> Any:
    """Return the elementwise bound c K eps |A||B| of the rounding errors of a @ b, summed in float32 in any order.

    `extra` is the number of further roundings per entry, counted as additional terms.
    """
    return SAFETY * (a.shape[-1] + extra) * EPS * (np.abs(a) @ np.abs(b))


def forward_tolerance(network: Network, parameters: Any, x: Any) -> Any:
    """Return a bound of the rounding errors of the forward pass in float32, (rows, outputs), propagated layer by layer.

    An error e in y becomes e |w| in z; an activation multiplies it by at most its largest slope and adds its own rounding.
    """
    y, error = x.astype(np.float64), np.zeros(x.shape)
    activations = ACTIVATIONS | array_activations(network)
    for layer, (w, b) in zip(network.layers, network.views(parameters.astype(np.float64)), strict=True):
        own = product_tolerance(np.c_[y, np.ones(len(y))], np.r_[w, b[None]], ELEMENTWISE)
        error = error @ np.abs(w) + own
        value, slope = activations[layer.activation]
        z = y @ w + b
        y = value(z, layer.parameter)
        steepest = max(1.2, np.abs(slope(z, y, layer.parameter)).max(initial=0))
        error = error * steepest + SAFETY * ELEMENTWISE * EPS * np.abs(y)
    return error


def perturbed(spec: EngineSpec, state: State, course: Course, size: float, seed: int) -> tuple[State, RowMetrics]:
    """Train the float64 reference with each parameter perturbed by a relative +-`size` before every batch."""
    rng = np.random.default_rng(seed)
    engine = NumpyEngine(exact_spec(spec))
    engine.load(state)
    parts = []
    for k, at in enumerate(range(0, len(course.indices), spec.batch_size)):
        now = engine.state()
        factors = 1 + size * rng.choice([-1.0, 1.0], len(now.parameters))
        engine.load(State(now.parameters * factors, now.slots, now.step))
        rows = course.indices[at : at + spec.batch_size]
        parts.append(engine.train(course.x, course.y, rows, course.learning_rates[k : k + 1], course.weights))
    losses, correct = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return engine.state(), RowMetrics(losses, correct)


class Expected(NamedTuple):
    """Results of the float64 reference, and tolerances for a float32 engine."""

    state: State
    results: RowMetrics
    parameters_tolerance: Any  # (P,)
    slots_tolerance: Any  # (slots, P)
    loss_tolerance: float


def expected(spec: EngineSpec, state: State, course: Course) -> Expected:
    """Train the reference; the tolerances are c times the effect of relative perturbations of sqrt(K) eps before each batch.

    K is the number of terms of the longest sum; rounding errors of its terms grow like sqrt(K) (Higham & Mary, "A new approach
    to probabilistic rounding error analysis", 2019, theorem 2.4). Each array of weights or biases has one tolerance: its
    largest deviation plus the rounding of its largest entry. Errors are thus not masked by larger entries of other layers.
    """
    longest = max(*spec.network.sizes, min(spec.batch_size, len(course.indices)))
    size = (longest + ELEMENTWISE) ** 0.5 * EPS
    end, results = perturbed(spec, state, course, 0, 0)
    others = [perturbed(spec, state, course, size, seed) for seed in (1, 2, 3)]

    def per_array(vector: Any, perturbed_vectors: Any) -> Any:
        deviation = np.max([np.abs(other - vector) for other in perturbed_vectors], axis=0)
        views = zip(spec.network.views(vector), spec.network.views(deviation), strict=True)
        for arrays, spreads in views:
            for values, spread in zip(arrays, spreads, strict=True):
                spread[...] = SAFETY * (spread.max() + size * np.abs(values).max())
        return deviation

    slots = [per_array(slot, [o.slots[i] for o, _ in others]) for i, slot in enumerate(end.slots)]
    loss_deviation = max(np.abs(r.loss - results.loss).max(initial=0) for _, r in others)
    # even a small loss is a difference of terms of order one
    loss_rounding = size * np.abs(results.loss).max(initial=0) + ELEMENTWISE * EPS
    return Expected(
        end,
        results,
        per_array(end.parameters, [o.parameters for o, _ in others]),
        np.array(slots).reshape(end.slots.shape),
        SAFETY * float(loss_deviation + loss_rounding),
    )


def excess(found: Any, wanted: Any, tolerance: Any) -> float:
    """Return the largest amount by which an entry exceeds its tolerance, or 0; NaN counts as infinite."""
    beyond = np.abs(np.asarray(found, np.float64) - wanted) - tolerance
    return float(np.nan_to_num(beyond, nan=np.inf).max(initial=0.0).clip(0))


def check_course(want: Expected, state: State, results: RowMetrics) -> None:
    """Compare parameters, optimizer slots, step, row losses and correct predictions of an engine with the reference."""
    assert excess(state.parameters, want.state.parameters, want.parameters_tolerance) == 0
    assert state.slots.shape == want.state.slots.shape
    assert excess(state.slots, want.state.slots, want.slots_tolerance) == 0
    assert state.step == want.state.step
    assert excess(results.loss, want.results.loss, want.loss_tolerance) == 0
    assert np.array_equal(results.correct, want.results.correct)


def check_against_reference(backend: str, spec: EngineSpec, course: Course, step: int = 0) -> None:
    """Compare several steps and a forward pass of an engine with the float64 reference."""
    start = start_state(spec)._replace(step=step)
    want = expected(spec, start, course)
    with engine_of(backend, spec, start) as engine:
        results = engine.train(*course)
        state = engine.state()
        check_course(want, state, results)
        z = np.full((len(course.x), spec.network.sizes[-1]), np.nan, spec.dtype)
        check_scored(spec.network, z, course.y, engine.evaluate(engine.hold(course.x, course.y), z))
        assert same_bits(engine.forward(course.x), z)
    exact = NumpyEngine(dataclasses.replace(spec, dtype=np.float64))
    exact.load(state)
    rows = exact.rows(course.x)
    assert z.shape == (len(course.x), spec.network.sizes[-1])
    assert excess(z, exact.forward(course.x), forward_tolerance(spec.network, state.parameters, rows)) == 0


def check_scored(network: Network, z: Any, y: Any, scored: RowMetrics) -> None:
    """Compare row losses and correct predictions with those of the same pre-activations in float64."""
    wanted = plain_losses(network, z, y)
    scale = 1 + np.abs(z).max() + (np.abs(y).max() if y.ndim == 2 else 0)  # magnitude of the terms summed in float32
    linear = network.loss_name in ("cross-entropy", "absolute-error", "quantile")
    tolerance = 2e-7 * z.shape[1] * scale ** (1 if linear else 2)
    assert np.abs(scored.loss - wanted).max() <= tolerance
    correct = z.argmax(axis=1) == y if y.ndim == 1 else np.zeros(len(z), bool)
    assert np.array_equal(scored.correct, correct)
