"""Compiled scalar formulas in float32, compared with the NumPy formulas of the reference implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from numba import float32, int64, njit
from support.engines import LOSS_PAIRS
from support.tolerances import EPS

from fastmlp import reference
from fastmlp.errors import ConfigError
from fastmlp.nn.activations import ACTIVATIONS, parse_activation, parse_number
from fastmlp.nn.losses import LOSS_PARAMETERS, LOSSES, canonical_loss, parse_loss
from fastmlp.nn.network import Network

# a dense grid where the functions are nonlinear, and values for which exp overflows or underflows
DENSE = np.linspace(-12, 12, 4801).astype(np.float32)
EXTREME = np.array([0.0, -0.0, 1e-30, -1e-30, 30, -30, 100, -100, 1e30, -1e30], np.float32)
TINY = 1.2e-38  # slightly above the smallest normal float32
PARAMETERS = {"leaky-relu": (0.0, 0.01, 0.3), "leaky-gelu": (0.0, 0.01, 0.3, 1.0), "elu": (0.5, 1.0, 2.0)}


def with_callees(function: Callable[..., Any]) -> Any:
    """Compile a formula and all formulas that it calls with njit."""
    called = {
        name: with_callees(value)
        for name, value in function.__globals__.items()
        if isinstance(value, FunctionType) and name in function.__code__.co_names
    }
    return njit(FunctionType(function.__code__, {**function.__globals__, **called}, function.__name__))


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """Compile a formula for the given types and check that it returns float32; a literal 1.0 would make it return float64."""
    dispatcher = with_callees(function)
    dispatcher.compile(arguments)
    (signature,) = dispatcher.nopython_signatures
    assert signature.return_type == float32, f"{function.__name__} returns {signature.return_type}"
    return dispatcher


@pytest.fixture(scope="module")
def formulas() -> dict[str, tuple[Any, Any]]:
    """Return a dict from activation name to compiled (value, slope), both as functions of float32 arrays."""

    def over_array(value: Any, slope: Any) -> tuple[Any, Any]:
        @njit
        def values(z: Any, a: Any) -> Any:
            out = np.empty_like(z)
            for i in range(len(z)):
                out[i] = value(z[i], a)
            return out

        @njit
        def slopes(z: Any, a: Any) -> Any:
            out = np.empty_like(z)
            for i in range(len(z)):
                out[i] = slope(z[i], value(z[i], a), a)
            return out

        return values, slopes

    return {
        name: over_array(compiled(entry.value, *[float32] * 2), compiled(entry.slope, *[float32] * 3))
        for name, entry in ACTIVATIONS.items()
    }


def in_float64(name: str, z: Any, a: float) -> tuple[Any, Any]:
    """Return the value and the slope of the reference implementation, computed in float64 at the given float32 points."""
    value, slope = reference.ACTIVATIONS[name]
    z = z.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        y = value(z, float(np.float32(a)))
        return y, slope(z, y, float(np.float32(a)))


def cases() -> list[tuple[str, float]]:
    return [(name, a) for name in ACTIVATIONS for a in PARAMETERS.get(name, (0.0,))]


@pytest.mark.parametrize(("name", "a"), cases())
def test_activations_equal_the_specification(formulas: Any, name: str, a: float) -> None:
    """Values and slopes agree within a few rounding errors. The tolerance for values includes rounding of the argument."""
    z = np.concatenate([DENSE, EXTREME])
    wanted, wanted_slope = in_float64(name, z, a)
    value, slope = formulas[name]
    with np.errstate(over="ignore", invalid="ignore"):
        condition = np.abs(z.astype(np.float64) * wanted_slope)
    y = value(z, np.float32(a))
    assert y.dtype == np.float32
    assert (np.abs(y - wanted) <= 8 * EPS * (np.abs(wanted) + condition) + TINY).all()
    assert (np.abs(slope(z, np.float32(a)) - wanted_slope) <= 16 * EPS * max(1, a)).all()


@pytest.mark.parametrize(("name", "a"), cases())
def test_infinities_and_nan_as_in_the_specification(formulas: Any, name: str, a: float) -> None:
    """For infinities and NaN, the compiled formulas return the same values as the reference implementation."""
    z = np.array([np.inf, -np.inf, np.nan], np.float32)
    wanted, _ = in_float64(name, z, a)
    y = formulas[name][0](z, np.float32(a))
    np.testing.assert_array_equal(y, wanted.astype(np.float32))
    assert np.isnan(y[2])


@pytest.mark.parametrize(("name", "a"), cases())
def test_nan_propagates_in_both_definitions(formulas: Any, name: str, a: float) -> None:
    """NaN propagates in the compiled and in the reference formulas; otherwise divergence would not be detected."""
    z = np.array([np.nan, 1.0], np.float32)
    assert np.isnan(formulas[name][0](z, np.float32(a))).tolist() == [True, False]
    for dtype in (np.float32, np.float64):
        assert np.isnan(reference.ACTIVATIONS[name][0](z.astype(dtype), a)).tolist() == [True, False]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_formulas_run_as_plain_python(name: str) -> None:
    """The formulas can also be called from plain Python, for example in a debugger."""
    a = ACTIVATIONS[name].default or 0.0
    for z in (-3.0, -0.5, 0.0, 0.5, 3.0):
        y, slope = (float(v[0]) for v in reference_pair(name, z, a))
        assert ACTIVATIONS[name].value(z, a) == pytest.approx(y, rel=1e-6, abs=1e-7)
        assert ACTIVATIONS[name].slope(z, y, a) == pytest.approx(slope, rel=1e-6, abs=1e-7)


def reference_pair(name: str, z: float, a: float) -> tuple[Any, Any]:
    value, slope = reference.ACTIVATIONS[name]
    point = np.array([z])
    y = value(point, a)
    return y, slope(point, y, a)


def test_the_comparison_detects_the_approximation_of_gelu(formulas: Any) -> None:
    """The tanh approximation of gelu, which other libraries offer, exceeds the tolerance."""
    z = DENSE.astype(np.float64)
    approximate = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    wanted, slope = in_float64("gelu", DENSE, 0)
    assert (np.abs(approximate - wanted) > 8 * EPS * (np.abs(wanted) + np.abs(z * slope)) + TINY).any()


def test_a_wrong_return_type_is_detected() -> None:
    with pytest.raises(AssertionError, match="float64"):
        compiled(lambda z, a: 1.0 / (1.0 + math.exp(-z)), float32, float32)


def test_slopes_at_zero() -> None:
    """The slopes at 0 follow the conventions in nn/network.py and nn/activations.py; other libraries may differ."""
    zero, a = np.float32(0), np.float32(0.25)
    assert ACTIVATIONS["relu"].slope(zero, zero, a) == 0
    assert ACTIVATIONS["leaky-relu"].slope(zero, zero, a) == a
    assert ACTIVATIONS["elu"].slope(zero, zero, a) == a
    for name, wanted in (("relu", 0), ("leaky-relu", 0.25), ("elu", 0.25)):
        assert reference.ACTIVATIONS[name][1](np.zeros(1), np.zeros(1), 0.25)[0] == wanted


@pytest.mark.parametrize("a", [0.0, 0.01, 0.3, 1.0])
def test_leaky_gelu_follows_the_definition_of_leaky_relu(a: float) -> None:
    z = np.linspace(-6, 6, 601)
    value = {name: reference.ACTIVATIONS[name][0](z, a) for name in ("relu", "leaky-relu", "gelu", "leaky-gelu")}
    slope = {name: reference.ACTIVATIONS[name][1](z, value[name], a) for name in ("gelu", "leaky-gelu")}
    np.testing.assert_allclose(value["leaky-relu"], a * z + (1 - a) * value["relu"], atol=1e-15)
    np.testing.assert_allclose(value["leaky-gelu"], a * z + (1 - a) * value["gelu"], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(slope["leaky-gelu"], a + (1 - a) * slope["gelu"], rtol=1e-13, atol=1e-15)
    far = np.array([-40.0, 40.0])
    y = reference.ACTIVATIONS["leaky-gelu"][0](far, a)
    np.testing.assert_allclose(reference.ACTIVATIONS["leaky-gelu"][1](far, y, a), [a, 1], rtol=1e-13)


# ------------------------------------------------------------------------------------------------ losses


@pytest.fixture(scope="module")
def row_functions() -> dict[tuple[str, str], Any]:
    """Compile the row losses for float32 arrays and check their return types."""
    arguments = (float32[::1], float32[::1], float32[::1], int64, float32)
    return {(loss, output): compiled(row, *arguments) for loss, outputs in LOSSES.items() for output, row in outputs.items()}


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("n", [1, 2, 7, 10, 17, 33])
@pytest.mark.parametrize(("loss", "output"), LOSS_PAIRS)
def test_row_losses_equal_the_specification(row_functions: Any, loss: str, output: str, n: int, scale: float) -> None:
    network = Network((3, n), loss=loss, output=output)
    rng = np.random.default_rng(n)
    z = (scale * rng.normal(size=(20, n))).astype(np.float32)
    if output == "exp":
        z = np.minimum(z, np.float32(80))  # exp overflows float32 above 88.7, see the next test
    one_hot = np.eye(n)[rng.integers(0, n, 20)]
    t = np.where(rng.random((20, 1)) < 0.5, one_hot, rng.dirichlet(np.ones(n), 20)).astype(np.float32)
    wanted, wanted_dz = reference.row_losses(network, z.astype(np.float64), t.astype(np.float64))
    dz = np.empty_like(z)
    row, a = row_functions[network.loss_name, output], np.float32(network.loss_parameter)
    losses = [row(z[i], t[i], dz[i], n, a) for i in range(20)]
    size = np.abs(z).max(axis=1).astype(np.float64)
    if output == "exp":
        largest = np.exp(z.astype(np.float64)).max(axis=1)
        tolerance, dz_tolerance = 8 * n * EPS * (wanted + 1), 4 * EPS * (largest + 1)
    elif output == "linear":
        tolerance, dz_tolerance = 4 * n * EPS * (wanted + 1), 4 * EPS * (size + 1)
    else:  # a rounding error of z causes a relative error of the outputs, which are at most 1
        tolerance, dz_tolerance = 4 * n * EPS * (1 + size), 8 * n * EPS * (1 + np.minimum(size, 30))
    assert (np.abs(losses - wanted) <= tolerance).all()
    assert (np.abs(dz - wanted_dz) <= dz_tolerance[:, None]).all()


def test_the_poisson_loss_overflows_to_infinity_and_is_accurate_near_its_minimum(row_functions: Any) -> None:
    """The loss is 0 for exp(z) = t, even for large t, for which the separate terms of the deviance cancel."""
    row, dz = row_functions["poisson", "exp"], np.empty(1, np.float32)
    assert row(np.array([100], np.float32), np.array([2], np.float32), dz, 1, 0) == math.inf and dz[0] == math.inf
    t = np.array([1e6], np.float32)
    assert 0 <= row(np.log(t), t, dz, 1, 0) <= 1e6 * (np.log(1e6) * EPS) ** 2


@pytest.mark.parametrize("z", [-100.0, -30.0, -16.0, 16.0, 30.0, 100.0])
def test_binary_cross_entropy_is_accurate_far_from_zero(row_functions: Any, z: float) -> None:
    """A probability that is close to the target has a loss of exp(-|z|), not 0."""
    row, dz = row_functions["binary-cross-entropy", "sigmoid"], np.empty(1, np.float32)
    loss = row(np.array([z], np.float32), np.array([z > 0], np.float32), dz, 1, 0)
    assert loss == pytest.approx(math.log1p(math.exp(-abs(z))), rel=4 * EPS, abs=1e-38)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize(("loss", "output"), LOSS_PAIRS)
def test_nan_in_a_row_makes_its_loss_and_gradient_nan(row_functions: Any, loss: str, output: str, position: int) -> None:
    z, dz = np.array([0.5, -1, 2], np.float32), np.empty(3, np.float32)
    t = np.array([0, 1, 0], np.float32)
    network = Network((1, 3), loss=loss, output=output)
    row, a = row_functions[network.loss_name, output], np.float32(network.loss_parameter)
    assert math.isfinite(row(z, t, dz, 3, a))
    z[position] = np.nan
    assert math.isnan(row(z, t, dz, 3, a))
    assert math.isnan(dz[position])
    losses, gradient = reference.row_losses(network, z[None], t[None])
    assert np.isnan(losses).all()
    assert np.isnan(gradient[0, position])


def test_cross_entropy_of_an_underflowing_probability(row_functions: Any) -> None:
    """The loss is correct even if the probability underflows, because it is computed with log-sum-exp."""
    z, dz = np.array([200, 0], np.float32), np.empty(2, np.float32)
    assert row_functions["cross-entropy", "softmax"](z, np.array([0, 1], np.float32), dz, 2, 0) == 200
    assert dz.tolist() == [1, -1]


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_can_be_parsed(name: str) -> None:
    default = ACTIVATIONS[name].default
    assert parse_activation(name) == (name, default or 0.0)
    if default is None:
        with pytest.raises(ConfigError, match="has no parameter"):
            parse_activation(f"{name}:0.5")
    else:
        assert parse_activation(f"{name}:0.5") == (name, 0.5)


@pytest.mark.parametrize(
    ("given", "nearest"), [("rleu", "relu"), ("leaky_rel", "leaky-relu"), ("sigmod", "sigmoid"), ("gleu", "gelu")]
)
def test_the_error_of_an_unknown_activation_suggests_one_and_lists_all(given: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_activation(given)
    message = str(caught.value)
    assert f"did you mean {nearest!r}?" in message
    assert all(name in message for name in ACTIVATIONS)
    assert "\n" not in message


@pytest.mark.parametrize("text", ["leaky-relu:x", "elu:nan", "elu:inf", "leaky-gelu:1e999"])
def test_a_parameter_that_is_not_a_finite_number_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="not a finite number"):
        parse_activation(text)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_parsed(name: str) -> None:
    default = LOSS_PARAMETERS[name].default if name in LOSS_PARAMETERS else None
    assert parse_loss(name) == (name, default or 0.0)
    assert canonical_loss(name.upper()) == name
    if default is None:
        with pytest.raises(ConfigError, match="has no parameter") as caught:
            parse_loss(f"{name}:0.25")
        assert caught.value.settings == ("loss",)
    else:
        assert parse_loss(f"{name}:0.25") == (name, 0.25)
        assert canonical_loss(f"{name.upper()}:0.25") == f"{name}:0.25"


@pytest.mark.parametrize("text", ["huber:0", "huber:-1", "huber:1e39", "huber:1e-60", "quantile:0", "quantile:1", "quantile:2"])
def test_a_parameter_of_a_loss_outside_its_range_is_an_error(text: str) -> None:
    """The parameter must be in the range after rounding to float32, in which the kernels compute."""
    with pytest.raises(ConfigError, match=f"^loss '{text}': the parameter must be a float32 number in the range") as caught:
        parse_loss(text)
    assert caught.value.settings == ("loss",)


@pytest.mark.parametrize("text", ["huber:", "huber:x", "huber:nan", "quantile:inf", "quantile:0.1:0.2"])
def test_a_parameter_of_a_loss_that_is_not_a_finite_number_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="not a finite number") as caught:
        parse_loss(text)
    assert caught.value.settings == ("loss",)


def test_errors_of_numbers_start_with_their_source() -> None:
    assert parse_number("here", "2.5") == 2.5
    with pytest.raises(ConfigError, match=r"^here: 'two' is not"):
        parse_number("here", "two")
