"""Contract tests of the engines, part 1: every engine is compared with the NumPy reference in float64.

Kernels depend on the activations, the loss and the optimizer, and take seconds to compile, so the cases use few combinations.
All shapes are tested with ReLU networks trained with SGD. One network with a layer of every activation is trained with each
loss and output.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engines import REAL_GPU, Course, engine_of, make_course, marks_of, run_course, same_bits, start_state
from support.tolerances import check_against_reference, check_course, excess, expected, forward_tolerance

from fastmlp.data.scaling import fit_scaling
from fastmlp.engines import BACKENDS, make_engine
from fastmlp.engines.base import EngineSpec, State, loss_weights, step_count
from fastmlp.errors import ConfigError
from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import RULES, Optimizer
from fastmlp.reference import clip

pytestmark = pytest.mark.usefixtures("eager_threads")

BASE = EngineSpec(Network((13, 18, 5)), Optimizer("sgd"), batch_size=8, threads=2)

# ------------------------------------------------------------------------------------------------ shapes

# Name: layer sizes, number of rows, mini-batch size.
SHAPES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "one row": ((7, 5, 3), 1, 4),
    "one row, batch 1": ((7, 5, 3), 1, 1),
    "one feature": ((1, 6, 3), 13, 4),
    "one hidden unit": ((6, 1, 3), 13, 4),
    "one output": ((6, 4, 1), 13, 4),
    "one of everything": ((1, 1, 1), 3, 2),
    "9 outputs": ((6, 8, 9), 13, 4),
    "17 outputs": ((6, 8, 17), 13, 4),
    "33 outputs": ((6, 8, 33), 13, 4),
    "primes": ((13, 31, 29, 11), 37, 7),
    "no hidden layer": ((13, 10), 20, 8),
    "no hidden layer, wide": ((70, 37), 20, 8),
    "batch 1": ((13, 9, 5), 6, 1),
    "batch of all rows": ((13, 9, 5), 20, 20),
    "batch larger than the data": ((13, 9, 5), 20, 64),
    "last batch of one row": ((13, 9, 5), 17, 8),
    "last batch one row short": ((13, 9, 5), 31, 16),
    "many batches": ((5, 6, 3), 200, 3),
    "batch 65": ((13, 9, 5), 130, 65),
    "batch 129": ((20, 17, 5), 200, 129),
    "deep and narrow": ((5, *[3] * 10, 4), 20, 8),
    "wide and shallow": ((130, 65, 10), 20, 8),
    "two tiles and one": ((64, 129, 10), 20, 8),
    "bottleneck": ((40, 2, 40, 7), 20, 8),
    **{f"hidden {w}": ((13, w, 5), 20, 8) for w in (7, 8, 15, 16, 17, 31, 32, 33, 63)},
    **{f"features {w}": ((w, 9, 5), 20, 8) for w in (7, 8, 9, 15, 16, 17, 31, 33, 65)},
    **{f"batch {b}": ((13, 9, 5), 3 * b - 1, b) for b in (2, 7, 9, 15, 17, 31, 33)},
    **{f"two hidden of {w}": ((9, w, w, 4), 20, 8) for w in (1, 7, 9, 16, 17)},
}


# Shapes for the GPU simulator, where each shape takes 0.25 seconds; every edge case occurs once.
SIMULATED = (
    *("one of everything", "primes", "no hidden layer", "batch 1", "batch larger than the data", "last batch of one row"),
    *("deep and narrow", "bottleneck", "hidden 33", "features 17", "batch 15", "two hidden of 9"),
)
PAIRS = [
    pytest.param(name, shape, marks=marks_of(name))
    for name in BACKENDS
    for shape in (SHAPES if name != "cuda" or REAL_GPU else SIMULATED)
]


@pytest.fixture(scope="module")
def backend(every_backend: str) -> str:
    """Run each test with every backend; without a GPU, backend "cuda" is simulated."""
    return every_backend


@pytest.mark.parametrize(("every_backend", "shape"), PAIRS, indirect=["every_backend"])
def test_awkward_shapes(backend: str, shape: str) -> None:
    sizes, rows, batch = SHAPES[shape]
    network = Network(sizes)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=batch, threads=3)
    check_against_reference(backend, spec, make_course(network, rows, batch))


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=3, max_size=5),
    rows=st.integers(1, 40),
    batch=st.integers(1, 50),
    threads=st.integers(1, 4),
    weighted=st.booleans(),
)
def test_any_shape(backend: str, sizes: list[int], rows: int, batch: int, threads: int, weighted: bool) -> None:
    network = Network(sizes)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=batch, threads=threads)
    check_against_reference(backend, spec, make_course(network, rows, batch, epochs=1, weighted=weighted))


def test_the_comparison_sees_a_single_wrong_entry(backend: str) -> None:
    """A small error in a single weight, bias, optimizer slot, loss, correctness flag or step count is detected."""
    network = Network((13, 9, 5))
    spec = EngineSpec(network, Optimizer("momentum"), batch_size=8)
    course, start = make_course(network, 20), start_state(spec)
    want = expected(spec, start, course)
    state, results = want.state, want.results
    check_course(want, state, results)
    moved = np.abs(state.parameters - start.parameters)
    assert want.parameters_tolerance.max() < 1e-3 * moved.max()

    def changed(array: Any, at: Any, by: float) -> Any:
        array = array.copy()
        array[at] += by
        return array

    last = network.parameters - 1  # a bias
    little = 1e-3 * moved.max()
    wrong = {
        "weight": (state._replace(parameters=changed(state.parameters, 5, little)), results),
        "bias": (state._replace(parameters=changed(state.parameters, last, little)), results),
        "lost": (state._replace(parameters=changed(state.parameters, 5, np.nan)), results),
        "slot": (state._replace(slots=changed(state.slots, (0, 7), 1e-3)), results),
        "step": (state._replace(step=state.step + 1), results),
        "loss": (state, results._replace(loss=changed(results.loss, 3, 1e-3))),
        "flag": (state, results._replace(correct=results.correct ^ (np.arange(40) == 3))),
    }
    for name, (bad_state, bad_results) in wrong.items():
        with pytest.raises(AssertionError):
            check_course(want, bad_state, bad_results)
            pytest.fail(f"a wrong {name} was not detected")


# ------------------------------------------------------------------------------------------------ kinds

EVERY_ACTIVATION = ("relu", "tanh", "leaky-gelu:0.2", "linear", "elu:0.7", "silu", "leaky-relu:0.3", "gelu", "sigmoid")

# Loss, output, optimizer, and arguments of `make_course`. The network has one layer of each activation.
MIXED: dict[str, tuple[str, str, Optimizer, dict[str, Any]]] = {
    "cross-entropy": ("cross-entropy", "softmax", Optimizer("sgd"), {}),
    "linear": ("squared-error", "linear", Optimizer("nesterov", momentum=0.8), {"targets": True, "rate": 0.01}),
    "sigmoid": ("squared-error", "sigmoid", Optimizer("adam", epsilon=1e-3), {"rate": 0.003}),
    "softmax": ("squared-error", "softmax", Optimizer("rmsprop", beta2=0.9), {"targets": True, "rate": 0.001}),
    "binary": ("binary-cross-entropy", "sigmoid", Optimizer("momentum"), {"targets": True, "rate": 0.01}),
    "poisson": ("poisson", "exp", Optimizer("sgd"), {"targets": True, "rate": 0.01}),
}

# Name: arguments of `Network`, optimizer, arguments of `make_course`, step count at the start.
EXTRAS: dict[str, tuple[dict[str, Any], Optimizer, dict[str, Any], int]] = {
    "l1 and l2": ({"l1": 1e-2, "l2": 0.1}, Optimizer("sgd"), {}, 0),
    "label smoothing": ({"label_smoothing": 0.2}, Optimizer("sgd"), {}, 0),
    "sample weights": ({}, Optimizer("sgd"), {"weighted": True}, 0),
    "dropout": ({"dropout": 0.3}, Optimizer("sgd"), {}, 0),
    "dropout in one layer": ({"dropout": (0.0, 0.5)}, Optimizer("sgd"), {}, 0),
    "dropout, late, l2, weights": ({"dropout": (0.5, 0.2), "l2": 0.1}, Optimizer("sgd"), {"weighted": True}, 10**6),
    "adam, epsilon-hat": ({}, Optimizer("adam", epsilon=1e-3, epsilon_hat=True), {"rate": 0.003}, 0),
    "adamw, epsilon-hat, late": ({}, Optimizer("adamw", epsilon=1e-3, epsilon_hat=True), {"rate": 0.003}, 300),
    "adamw, clipped": ({}, Optimizer("adamw", weight_decay=0.3, max_grad_norm=2.0), {"rate": 0.003}, 0),
    "adamw, clipped, late": ({}, Optimizer("adamw", weight_decay=0.3, max_grad_norm=2.0), {"rate": 0.003}, 1000),
    "adamw, clipped, penalties": ({"l1": 1e-2, "l2": 0.1}, Optimizer("adamw", max_grad_norm=2.5), {"rate": 0.003}, 0),
    "momentum, clipped, dropout, targets": (
        {"dropout": 0.3, "l1": 1e-2},
        Optimizer("momentum", max_grad_norm=1.8),
        {"targets": True, "weighted": True},
        0,
    ),
}


def test_the_tables_cover_the_registries() -> None:
    """Every activation, loss, output and optimizer occurs in a table whose cases run with every engine."""
    assert {text.partition(":")[0] for text in EVERY_ACTIVATION} == set(ACTIVATIONS)
    # test_contract_losses.py trains with every loss whose only output function is linear.
    assert {(loss, output) for loss, output, _, _ in MIXED.values()} == {
        (loss, output) for loss, outputs in LOSSES.items() for output in outputs if [*outputs] != ["linear"]
    }
    assert {o.name for _, _, o, _ in MIXED.values()} | {o.name for _, o, _, _ in EXTRAS.values()} == set(RULES)
    assert {"numpy", "numba", "torch"} <= set(BACKENDS)


@pytest.mark.parametrize("kind", MIXED)
def test_every_activation_under_every_loss_and_output(backend: str, kind: str) -> None:
    loss, output, optimizer, of_course = MIXED[kind]
    sizes = (7, *range(6, 6 + len(EVERY_ACTIVATION)), 4)
    for activations in (EVERY_ACTIVATION, EVERY_ACTIVATION[::-1]):
        network = Network(sizes, activations, loss=loss, output=output)
        spec = EngineSpec(network, optimizer, batch_size=8, threads=3)
        check_against_reference(backend, spec, make_course(network, 20, **of_course))


def make_extra(extra: str) -> tuple[EngineSpec, Course, int]:
    of_network, optimizer, of_course, step = EXTRAS[extra]
    network = Network((13, 18, 11, 5), **of_network)
    spec = EngineSpec(network, optimizer, batch_size=8, seed=2**63 + 5, threads=3)
    return spec, make_course(network, 21, **of_course), step


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras(backend: str, extra: str) -> None:
    check_against_reference(backend, *make_extra(extra))


@pytest.mark.parametrize("extra", [name for name, (_, o, _, _) in EXTRAS.items() if o.max_grad_norm])
def test_clipped_cases_clip_some_batches_and_leave_others(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms exceed the threshold by less than a factor of two, so a threshold wrong by that factor would be detected."""
    norms = []

    def note(gradient: Any, largest: float) -> Any:
        norms.append(np.linalg.norm(gradient))
        return clip(gradient, largest)

    monkeypatch.setattr("fastmlp.engines.numpy_engine.clip", note)
    spec, course, step = make_extra(extra)
    run_course("numpy", spec, start_state(spec)._replace(step=step), course)
    relative = np.array(norms) / spec.optimizer.max_grad_norm
    assert relative.min() < 0.99
    assert 1.01 < relative.max() < 2


@pytest.mark.parametrize("kind", ["none", "unit", "symmetric", "zscore", "zscore-global"])
def test_pixels_stay_uint8_and_are_scaled_as_they_are_used(backend: str, kind: str) -> None:
    network = Network((13, 9, 5))
    course = make_course(network, 20, uint8=True, rate=1e-4 if kind == "none" else 0.05)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=8, scaling=fit_scaling(kind, course.x), threads=2)
    check_against_reference(backend, spec, course)
    start = start_state(spec)
    scaled = dataclasses.replace(spec, scaling=None)
    one = run_course(backend, spec, start, course)
    other = run_course(backend, scaled, start, course._replace(x=spec.scaling.apply(course.x)))
    assert same_bits(one, other)  # the same two float32 operations per input


def test_float_rows_are_scaled_too(backend: str) -> None:
    network = Network((13, 9, 5))
    course = make_course(network, 20)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=8, scaling=fit_scaling("zscore", course.x))
    check_against_reference(backend, spec, course)


def test_the_compiled_engine_refuses_float64(numba_backend: str) -> None:
    with pytest.raises(ConfigError, match="float32"):
        make_engine(numba_backend, EngineSpec(Network((3, 2)), Optimizer("sgd"), dtype=np.float64))


def test_row_scales_are_shares_of_the_batch() -> None:
    indices = np.array([2, 0, 1, 2, 1])
    weights = np.array([1, 2, 6], np.float32)
    assert loss_weights(indices, 2, None).tolist() == [0.5, 0.5, 0.5, 0.5, 1]
    assert loss_weights(indices, 2, weights).tolist() == [6 / 7, 1 / 7, 0.25, 0.75, 1]
    assert loss_weights(indices[:0], 2, weights).tolist() == []
    assert [step_count(rows, 4) for rows in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize("activation", ["relu", *EVERY_ACTIVATION])
def test_a_nan_is_seen_in_the_loss(activation: str, backend: str) -> None:
    """A NaN in a row makes the loss of that row NaN, and all losses from the next batch on; no activation suppresses it."""
    alone = activation == "relu"  # the other cases share compiled kernels, with a layer of each activation
    activations = "relu" if alone else (activation, *(a for a in EVERY_ACTIVATION if a != activation))
    network = Network((13, *[9] * (1 if alone else len(EVERY_ACTIVATION)), 5), activations)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=8, threads=2)
    course = make_course(network, 24, epochs=1)
    bad = course.indices[10]  # a row of the second batch
    course.x[bad, 3] = np.nan
    _, results = run_course(backend, spec, start_state(spec), course)
    seen = np.isnan(results.loss)
    assert seen[10]
    assert not np.delete(seen[:16], 10).any()
    assert seen[16:].all()
    clean = course.x.copy()
    clean[bad] = 0
    state = start_state(spec)
    state.parameters[0] = np.nan
    with engine_of(backend, spec, state) as engine:
        assert np.isnan(engine.forward(clean)[0]).any()


def test_correct_is_the_first_largest_output(backend: str) -> None:
    """The predicted class is the first one with the largest output, as with `numpy.argmax`."""
    network = Network((4, 3), init="uniform:0")
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=3)
    start = State(network.initial_parameters(0), np.empty((0, network.parameters), np.float32), 0)
    course = Course(np.ones((3, 4), np.float32), np.arange(3, dtype=np.int32), np.arange(3), np.full(1, 0.1))
    _, results = run_course(backend, spec, start, course)
    assert results.correct.tolist() == [True, False, False]
    assert results.correct.dtype == bool


# ------------------------------------------------------------------------------------------------ properties


def test_forward_of_a_row_does_not_depend_on_the_others(backend: str) -> None:
    """Outputs are bit-identical with the 'numba' backend, which sums in a fixed order, and equal up to rounding with others."""
    network = Network((37, 18, 21, 5))
    spec = EngineSpec(network, Optimizer("sgd"), threads=3)
    x = make_course(network, 150).x
    with engine_of(backend, spec) as engine:
        whole = engine.forward(x)
        alone = np.concatenate([engine.forward(x[i : i + 1]) for i in range(len(x))])
        backwards = engine.forward(np.ascontiguousarray(x[::-1]))[::-1]
        parameters = engine.state().parameters
    if backend != "numba":
        tolerance = 2 * forward_tolerance(network, parameters, x)
        assert excess(alone, whole, tolerance) == excess(backwards, whole, tolerance) == 0
    else:
        assert same_bits(alone, whole)
        assert same_bits(np.ascontiguousarray(backwards), whole)


def read_only(x: Any) -> Any:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


WAYS = {
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "Fortran order": np.asfortranarray,
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "read-only": read_only,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pixels", [False, True])
def test_rows_may_lie_in_memory_in_any_way(backend: str, way: str, pixels: bool) -> None:
    network = Network((13, 18, 5))
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=8)
    course = make_course(network)
    course = course._replace(x=(course.x * 50).clip(0, 255).astype(np.uint8)) if pixels else course
    other = WAYS[way](course.x)
    assert np.array_equal(other, course.x)
    assert way == "read-only" or not other.flags.c_contiguous
    assert same_bits(
        run_course(backend, spec, start_state(spec), course._replace(x=other)),
        run_course(backend, spec, start_state(spec), course),
    )
    with engine_of(backend, spec) as engine:
        assert same_bits(engine.forward(other), engine.forward(course.x))


def test_forward_has_no_dropout_and_changes_nothing(backend: str) -> None:
    network = Network((13, 18, 5), dropout=0.5)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=8)
    x = make_course(network).x
    with engine_of(backend, spec) as engine:
        before = engine.state()
        z = engine.forward(x)
        assert same_bits(engine.forward(x), z)
        assert same_bits(engine.state(), before)
    with engine_of(backend, dataclasses.replace(spec, network=Network((13, 18, 5)))) as plain:
        assert same_bits(plain.forward(x), z)


def test_the_gradient_is_zero_at_a_perfect_fit(backend: str) -> None:
    """If the targets equal the outputs, a step with learning rate 1 changes the parameters only by rounding errors."""
    network = Network((13, *[9] * len(EVERY_ACTIVATION), 5), EVERY_ACTIVATION, loss="squared-error")
    spec = EngineSpec(network, Optimizer("nesterov"), batch_size=24)  # MIXED compiles these kernels too
    x = make_course(network).x
    start = start_state(spec)
    with engine_of(backend, spec, start) as engine:
        z = engine.forward(x)
        tolerance = forward_tolerance(network, start.parameters, x).max()
        engine.train(x, z, np.arange(24), np.ones(1))
        moved = np.abs(engine.state().parameters - start.parameters).max()
        engine.load(start)
        engine.train(x, z + np.float32(0.1), np.arange(24), np.ones(1))
        assert moved <= 10 * tolerance
        assert np.abs(engine.state().parameters - start.parameters).max() > max(0.05, 100 * moved)


def test_the_order_within_a_batch_matters_by_rounding_only(backend: str) -> None:
    course, start = make_course(BASE.network, weighted=True), start_state(BASE)
    shuffled = course.indices.reshape(-1, 8)[:, np.random.default_rng(3).permutation(8)].ravel()
    want = expected(BASE, start, course)
    state, results = run_course(backend, BASE, start, course._replace(indices=shuffled))
    assert excess(state.parameters, want.state.parameters, want.parameters_tolerance) == 0
    back = np.argsort(np.random.default_rng(3).permutation(8))
    losses = results.loss.reshape(-1, 8)[:, back].ravel()
    assert excess(losses, want.results.loss, want.loss_tolerance) == 0


def test_training_descends(backend: str) -> None:
    network = Network((13, 18, 5))
    course = make_course(network, 24, epochs=40, rate=0.3)
    _, results = run_course(backend, BASE, start_state(BASE), course)
    epochs = results.loss.reshape(40, 24).mean(axis=1)
    assert epochs[-1] < 0.3 * epochs[0]
    assert results.correct[-24:].mean() > 0.9
