"""Tests of settings of a wrong type or size: they are refused when the object is created, with a message of one line."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fastmlp
from fastmlp.errors import ConfigError
from fastmlp.nn.checks import MOST, check_number, check_whole, shown

HUGE = 10**400
NUMBERS: list[tuple[str, Any]] = [
    ("learning_rate", fastmlp.Adam),
    ("beta1", fastmlp.Adam),
    ("epsilon", fastmlp.RMSprop),
    ("momentum", fastmlp.SGD),
    ("weight_decay", fastmlp.AdamW),
    ("max_grad_norm", fastmlp.Adam),
    ("warmup", fastmlp.Cosine),
    ("step", fastmlp.Step),
    ("gamma", fastmlp.Step),
    ("decay", fastmlp.Exponential),
    ("factor", fastmlp.ReduceOnPlateau),
    ("threshold", fastmlp.ReduceOnPlateau),
    ("dropout", fastmlp.Network),
    ("l2", fastmlp.Network),
    ("label_smoothing", fastmlp.Network),
    ("max_time", fastmlp.Settings),
    ("flip", fastmlp.Settings),
    ("min_delta", fastmlp.Settings),
]
WRONG: dict[str, Any] = {
    "text": "0.1",
    "400 digits": HUGE,
    "5000 digits": 10**5000,
    "Boolean": True,
    "complex": 1j,
    "NaN": float("nan"),
    "list": [0.1] * 3,
    "object": object(),
    "decimal": Decimal("0.1"),
    "array": np.array([0.1, 0.2]),
}
WHOLE: list[tuple[str, Any]] = [
    ("epochs", fastmlp.Settings),
    ("batch_size", fastmlp.Settings),
    ("threads", fastmlp.Settings),
    ("shift", fastmlp.Settings),
    ("seed", fastmlp.Settings),
    ("patience", fastmlp.ReduceOnPlateau),
    ("hidden", fastmlp.Network),
]


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("name", "kind"), NUMBERS)
def test_a_number_of_a_wrong_type_or_size_is_refused(name: str, kind: Any, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", ["3", 2**70, 2.0, 2.5, -1, float("nan"), object()])
@pytest.mark.parametrize(("name", "kind"), WHOLE)
def test_a_whole_number_of_a_wrong_type_or_size_is_refused(name: str, kind: Any, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{name: value})
    assert name in str(caught.value) or name == "hidden"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_every_real_number_in_the_range_is_accepted(value: Any) -> None:
    assert fastmlp.Network(hidden=3, dropout=value).dropout == (value,)
    check_number("x", value, lambda x: 0 < x < 1, "between 0 and 1")
    for whole in (1, np.int8(1), np.uint64(MOST)):
        check_whole("x", whole, 1)


def test_an_invalid_value_is_shown_in_short() -> None:
    assert shown("0.1") == "'0.1'"
    assert shown(HUGE) == "1" + 59 * "0" + "..."
    assert shown(10**5000) == "a number of type int"
    assert shown(np.zeros((3, 3))) == "array([[0., 0., 0.], [0., 0., 0.], [0., 0., 0.]])"
