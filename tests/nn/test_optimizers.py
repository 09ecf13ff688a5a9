"""Tests of the update rules, of the learning-rate schedules, and of the validation of their settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numba import float32, njit, types
from support.tolerances import EPS

from fastmlp.errors import ConfigError
from fastmlp.nn.optimizers import RULES, SCALARS, STEPS_AT_ONCE, Optimizer
from fastmlp.nn.schedules import SCHEDULES, Schedule
from fastmlp.reference import update

STEPS = 12
PARAMETERS = 500


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    """Compile every update rule for float32, and check that it returns float32."""
    found = {}
    for name, rule in RULES.items():
        dispatcher = njit(rule.update)
        dispatcher.compile((*[float32] * 4, float32[::1]))
        (signature,) = dispatcher.nopython_signatures
        assert signature.return_type == types.UniTuple(float32, 3), f"{name}: {signature.return_type}"
        found[name] = dispatcher
    return found


def by_the_rule(rule: Any, o: Optimizer, p: Any, gradients: Any, rates: Any, decays: Any) -> Any:
    """Return the parameters and the slots (m, v) after all steps, computed with the compiled scalar rule in float32."""
    p, m, v = p.astype(np.float32), np.zeros(len(p), np.float32), np.zeros(len(p), np.float32)
    scalars = o.scalars(rates, 0)
    without_decay = scalars.copy()
    without_decay[:, SCALARS.index("weight_decay")] = 0
    for step, g in enumerate(gradients.astype(np.float32)):
        for i in range(len(p)):
            s = scalars[step] if decays[i] else without_decay[step]
            p[i], m[i], v[i] = rule(p[i], g[i], m[i], v[i], s)
    return p, {"m": m, "v": v}


def by_the_specification(o: Optimizer, p: Any, gradients: Any, rates: Any, decays: Any) -> Any:
    """Return the parameters and the slots after all steps, computed with the reference implementation in float64."""
    p, slots = p.copy(), np.zeros((len(o.slots), len(p)))
    for step, g in enumerate(gradients):
        update(o, p, g, slots, step, float(rates[step]), decays)
    return p, dict(zip(o.slots, slots, strict=True))


def course(seed: int = 0) -> tuple[Any, Any, Any]:
    """Return parameters, gradients (steps, parameters) of many magnitudes, and learning rates; all are exact in float32."""
    rng = np.random.default_rng(seed)
    p = rng.normal(size=PARAMETERS).astype(np.float32).astype(np.float64)
    # all gradients of a parameter have the same sign, so that sums are computed without cancellation
    gradients = (
        rng.choice([-1, 1], PARAMETERS) * 10.0 ** rng.uniform(-6, 2, PARAMETERS) * rng.uniform(0.5, 2, (STEPS, PARAMETERS))
    )
    rates = (0.01 / (1 + np.arange(STEPS))).astype(np.float32).astype(np.float64)
    return p, gradients.astype(np.float32).astype(np.float64), rates


def largest_error(rule: Any, o: Optimizer) -> float:
    """Return the largest relative error of the slots and of the total change of a parameter, in units of EPS.

    The rounding error from storing the parameters in float32 after each step is subtracted first.
    """
    p, gradients, rates = course()
    decays = np.where(np.arange(PARAMETERS) % 3 == 0, 0.0, o.weight_decay)
    found, slots = by_the_rule(rule, o, p, gradients, rates, decays)
    wanted, wanted_slots = by_the_specification(o, p, gradients, rates, decays)
    moved = np.abs(wanted - p)
    largest = np.maximum(np.abs(p), np.abs(wanted))
    errors = [np.maximum(np.abs(found - wanted) - STEPS * EPS * largest, 0) / (EPS * moved)]
    for name, values in wanted_slots.items():
        errors.append(np.abs(slots[name] - values) / (EPS * np.abs(values)))
    return float(np.max(errors))


SETTINGS = [
    *(Optimizer(name) for name in RULES),
    Optimizer("momentum", momentum=0.0),
    Optimizer("nesterov", momentum=0.99),
    Optimizer("rmsprop", beta2=0.5, epsilon=1e-3),
    Optimizer("rmsprop", beta2=0.99999),
    Optimizer("adam", beta1=0.5, beta2=0.75, epsilon=1e-4),
    Optimizer("adam", beta1=0.99, beta2=0.99999),
    Optimizer("adamw", weight_decay=0.5),
]


@pytest.mark.parametrize("o", SETTINGS, ids=lambda o: f"{o.name}-{o.momentum:g}-{o.beta1:g}-{o.beta2:g}")
def test_rules_equal_the_specification(rules: Any, o: Optimizer) -> None:
    """After twelve steps, the float32 results differ from the float64 reference by less than 4 EPS per step."""
    assert largest_error(rules[o.name], o) < 4 * STEPS


def test_comparison_detects_a_wrong_learning_rate(rules: Any) -> None:
    """A relative error of 1e-5 in the learning rate is detected, since the results exceed the tolerance."""

    class Off(Optimizer):
        def scalars(self, rates: Any, step: int) -> Any:
            table = super().scalars(rates, step)
            table[:, SCALARS.index("learning_rate")] *= np.float32(1 + 1e-5)
            return table

    assert largest_error(rules["sgd"], Off("sgd")) > 4 * STEPS


def test_scalars_are_the_settings_and_bias_corrections() -> None:
    o = Optimizer("adam", momentum=0.375, beta1=0.5, beta2=0.75, epsilon=0.125, weight_decay=0.0625)
    table = o.scalars(np.array([0.5, 0.25]), step=1, l1=0.5, l2=0.125)
    assert table.dtype == np.float32
    assert dict(zip(SCALARS, table[1].tolist(), strict=True)) == {
        "learning_rate": 0.25,
        "momentum": 0.375,
        "one_minus_beta1": 0.5,
        "one_minus_beta2": 0.25,
        "epsilon": 0.125,
        "bias_correction1": float(np.float32(1 / (1 - 0.5**3))),
        "bias_correction2": float(np.float32(1 / (1 - 0.75**3))),
        "weight_decay": 0.0625,
        "l1": 0.5,
        "l2": 0.125,
    }


@pytest.mark.parametrize("step", [0, 1, STEPS_AT_ONCE - 1, STEPS_AT_ONCE, 5 * STEPS_AT_ONCE + 7])
@pytest.mark.parametrize("count", [0, 1, STEPS_AT_ONCE, 2 * STEPS_AT_ONCE + 3])
def test_scalars_of_many_steps_equal_those_of_single_steps(step: int, count: int) -> None:
    o, rates = Optimizer("adam"), np.linspace(1, 2, count)
    table = o.scalars_by_kind(rates, step, 0.5, 0.25)
    each = [o.scalars_by_kind(rates[i : i + 1], step + i, 0.5, 0.25)[0] for i in range(count)]
    assert np.array_equal(table, np.reshape(each, table.shape))
    assert table.shape == (count, 2, len(SCALARS))
    powers = np.arange(step + 1, step + count + 1)
    assert np.array_equal(table[:, 0, SCALARS.index("bias_correction2")], (1 / (1 - 0.999**powers)).astype(np.float32))
    table.fill(-1)  # does not change the cached values
    assert not (o.scalars_by_kind(rates, step, 0.5, 0.25) < 0).any()


def test_one_minus_beta_is_computed_in_float64() -> None:
    """1 - beta is accurate to float32 precision; computed from a beta in float32, it could even be zero."""
    row = dict(zip(SCALARS, Optimizer("adam", beta2=1 - 1e-9).scalars(np.ones(1), 0)[0].tolist(), strict=True))
    assert row["one_minus_beta2"] == pytest.approx(1e-9, rel=1e-6)
    assert row["one_minus_beta1"] == pytest.approx(0.1, rel=1e-7)


def test_bias_corrections_are_finite_and_reach_one() -> None:
    late = dict(zip(SCALARS, Optimizer("adam").scalars(np.ones(1), 10**7)[0].tolist(), strict=True))
    assert late["bias_correction1"] == late["bias_correction2"] == 1


@pytest.mark.parametrize("name", RULES)
def test_zero_gradient_changes_nothing(rules: Any, name: str) -> None:
    """A zero gradient leaves parameter and slots unchanged, for example for a dead unit; there is no division 0/0."""
    o = Optimizer(name, weight_decay=0.0)
    s = o.scalars(np.array([0.1]), 0)[0]
    zero = np.float32(0)
    assert rules[name](np.float32(1.5), zero, zero, zero, s) == (1.5, 0, 0)


@pytest.mark.parametrize("name", RULES)
def test_nan_gradient_propagates(rules: Any, name: str) -> None:
    s = Optimizer(name).scalars(np.array([0.1]), 0)[0]
    zero = np.float32(0)
    assert math.isnan(rules[name](np.float32(1), np.float32(np.nan), zero, zero, s)[0])


@pytest.mark.parametrize("name", [name for name in RULES if "v" in RULES[name].slots])
def test_parameter_becomes_nan_if_the_squared_gradient_overflows(rules: Any, name: str) -> None:
    """An infinite v gives NaN in the same step, because the update would be 0 in all later steps."""
    o, zero = Optimizer(name), np.float32(0)
    s = o.scalars(np.array([0.1]), 0)[0]
    p, _, v = rules[name](np.float32(1), np.float32(1e20), zero, zero, s)
    assert (math.isnan(p), v) == (True, np.inf)
    p, _, v = rules[name](np.float32(1), np.float32(1e19), zero, zero, s)
    assert math.isfinite(p)
    assert math.isfinite(v)
    parameters, slots = np.ones(2), np.zeros((len(o.slots), 2))
    with np.errstate(over="ignore"):
        update(o, parameters, np.array([1e160, 1e150]), slots, 0, 0.1, np.zeros(2))
    assert np.isnan(parameters).tolist() == [True, False]
    assert np.isfinite(slots[-1]).tolist() == [False, True]


def test_slots_of_each_rule() -> None:
    slots = {name: Optimizer(name).slots for name in RULES}
    assert slots == {
        "sgd": (),
        "momentum": ("m",),
        "nesterov": ("m",),
        "rmsprop": ("v",),
        "adam": ("m", "v"),
        "adamw": ("m", "v"),
    }


BAD_OPTIMIZERS: list[tuple[dict[str, Any], str]] = [
    ({"name": "adaam"}, "did you mean 'adam'"),
    ({"momentum": 1.0}, "momentum must be"),
    ({"momentum": -0.1}, "momentum must be"),
    ({"beta1": 1.0}, "beta1 must be"),
    ({"beta1": math.nan}, "beta1 must be"),
    ({"beta2": 1.5}, "beta2 must be"),
    ({"epsilon": 0.0}, "epsilon must be"),
    ({"epsilon": 1e-50}, "epsilon must be"),
    ({"epsilon": math.inf}, "epsilon must be"),
    ({"weight_decay": -1e-3}, "weight_decay must be"),
    ({"weight_decay": math.nan}, "weight_decay must be"),
    ({"learning_rate": 0.0}, "learning_rate must be"),
    ({"learning_rate": -0.1}, "learning_rate must be"),
    ({"learning_rate": math.nan}, "learning_rate must be"),
    ({"learning_rate": math.inf}, "learning_rate must be"),
    ({"max_grad_norm": -1.0}, "max_grad_norm must be"),
    ({"max_grad_norm": math.inf}, "max_grad_norm must be"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_OPTIMIZERS)
def test_invalid_optimizer_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Optimizer(**settings)


# ------------------------------------------------------------------------------------------------ schedules

# settings, update number, expected learning rate with the base learning rate 0.5 and 10 steps per epoch
POINTS: list[tuple[dict[str, Any], int, float]] = [
    ({}, 0, 0.5),
    ({}, 12345, 0.5),
    ({"kind": "inverse-time", "decay": 0.5}, 0, 0.5),
    ({"kind": "inverse-time", "decay": 0.5}, 20, 0.25),
    ({"kind": "inverse-time", "decay": 0.5}, 5, 0.5 / 1.25),
    ({"kind": "exponential", "decay": 0.1}, 100, 0.5 / math.e),
    ({"kind": "step", "gamma": 0.5, "step": 2}, 19, 0.5),
    ({"kind": "step", "gamma": 0.5, "step": 2}, 20, 0.25),
    ({"kind": "step", "gamma": 0.5, "step": 2}, 39, 0.25),
    ({"kind": "step", "gamma": 0.5, "step": 2}, 40, 0.125),
    ({"kind": "step", "gamma": 0.1, "step": 0.5}, 5, 0.05),
    ({"kind": "cosine", "epochs": 4}, 0, 0.5),
    ({"kind": "cosine", "epochs": 4}, 10, 0.25 * (1 + math.sqrt(0.5))),
    ({"kind": "cosine", "epochs": 4}, 20, 0.25),
    ({"kind": "cosine", "epochs": 4}, 40, 0.0),
    ({"kind": "cosine", "epochs": 4}, 400, 0.0),  # stays at the minimum after the last epoch
    ({"warmup": 2}, 0, 0.5 / 20),
    ({"warmup": 2}, 9, 0.25),
    ({"warmup": 2}, 19, 0.5),
    ({"warmup": 2}, 20, 0.5),
    ({"warmup": 0.25}, 1, 0.5 * 2 / 2.5),
    ({"warmup": 0.25}, 3, 0.5),
    ({"kind": "cosine", "epochs": 4, "warmup": 2}, 20, 0.5),
    ({"kind": "cosine", "epochs": 4, "warmup": 2}, 30, 0.25),
    ({"kind": "cosine", "epochs": 4, "warmup": 2}, 40, 0.0),
    ({"kind": "cosine", "epochs": 2, "warmup": 2}, 20, 0.5),
    ({"kind": "inverse-time", "decay": 0.5, "warmup": 2}, 40, 0.25),
    ({"kind": "step", "gamma": 0.5, "step": 1, "warmup": 1}, 20, 0.25),
]


@pytest.mark.parametrize(("settings", "update_number", "wanted"), POINTS)
def test_schedules_at_known_points(settings: dict[str, Any], update_number: int, wanted: float) -> None:
    epochs = settings.get("epochs", 50)
    schedule = Schedule(**{name: value for name, value in settings.items() if name != "epochs"})
    found = 0.5 * schedule.multipliers(update_number, 1, steps_per_epoch=10, epochs=epochs)
    assert found.dtype == np.float64
    assert found.tolist() == [pytest.approx(wanted, rel=1e-12, abs=1e-16)]


@pytest.mark.parametrize("warmup", [0.0, 1.3])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedule_is_a_function_of_the_update_number(kind: str, warmup: float) -> None:
    """The learning rates are the same whether they are computed for all updates at once or in chunks."""
    schedule = Schedule(kind, warmup=warmup, step=2)
    whole = schedule.multipliers(0, 35, 7, 5)
    pieces = [schedule.multipliers(first, min(4, 35 - first), 7, 5) for first in range(0, 35, 4)]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert schedule.multipliers(3, 0, 7, 5).shape == (0,)
    assert (whole > 0).all()
    assert whole.max() <= 1


@pytest.mark.parametrize("kind", sorted(set(SCHEDULES) - {"constant"}))
def test_all_schedules_except_constant_decrease(kind: str) -> None:
    rates = Schedule(kind, step=1).multipliers(0, 50, 10, 5)
    assert (np.diff(rates) <= 0).all()
    assert rates[-1] < rates[0]


BAD_SCHEDULES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "cosin"}, "did you mean 'cosine'"),
    ({"gamma": 0.0}, "gamma"),
    ({"gamma": 1.5}, "gamma"),
    ({"step": 0.0}, "step"),
    ({"step": math.nan}, "step"),
    ({"decay": -0.1}, "decay"),
    ({"decay": math.nan}, "decay"),
    ({"decay": math.inf}, "decay"),
    ({"warmup": -1.0}, "warmup"),
    ({"warmup": math.nan}, "warmup"),
    ({"warmup": math.inf}, "warmup"),
    ({"kind": "step", "step": math.inf}, "step"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SCHEDULES)
def test_invalid_schedule_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Schedule(**settings)
    assert "\n" not in str(caught.value)
