"""experiments/config/train.py: what goes together, what is chosen by rule, and the way into Network and Settings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from fastmlp.errors import ConfigError
from fastmlp.experiments.config.sources import resolve
from fastmlp.experiments.config.train import FIELDS, PATIENCE, Config, flag
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import DEFAULT_LEARNING_RATE, RULES, Optimizer
from fastmlp.nn.schedules import Schedule


@pytest.mark.parametrize(
    "name", ["target", "scale", "loss", "output", "optimizer", "schedule", "monitor", "backend", "precision"]
)
def test_an_unknown_name_is_answered_with_the_valid_ones(name: str) -> None:
    valid = FIELDS[name].metadata["kind"].metavar.split("|")[0]
    with pytest.raises(ConfigError) as caught:
        resolve({name: valid + "x"}, {})
    assert str(caught.value).startswith(f"{flag(name)}: unknown ")
    assert f"did you mean {valid!r}?" in str(caught.value)


CONTRADICTIONS = [
    ({"dtype": "float64", "backend": "numba"}, "dtype float64 needs backend numpy or torch, not numba"),
    ({"min_accuracy": "1.5"}, "min_accuracy must be between 0 and 1"),
    ({"val_fraction": "-0.1"}, "val_fraction must be between 0 and 1"),
    ({"test_fraction": "2"}, "test_fraction must be between 0 and 1"),
    ({"val_count": "-1"}, "val_count must be 0 or more"),
    ({"patience": "-1"}, "patience must be 0 or more"),
    ({"min_delta": "-1"}, "min_delta must be 0 or more"),
    ({"target": "value", "loss": "cross-entropy"}, "loss cross-entropy is for classes"),
    ({"target": "value", "monitor": "accuracy"}, "monitor accuracy is for classes"),
    ({"target": "value", "stratify": "true"}, "stratify True is for classes"),
    ({"target": "value", "min_accuracy": "0.5"}, "min_accuracy is for classes"),
    ({"target": "value", "label_smoothing": "0.1"}, "label_smoothing is for classes"),
]


@pytest.mark.parametrize(("flags", "message"), CONTRADICTIONS)
def test_contradictions(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(flags, {})


@pytest.mark.parametrize("backend", ["auto", "numpy", "torch"])
def test_float64_is_refused_for_the_engine_without_it_alone(backend: str) -> None:
    assert resolve({"dtype": "float64", "backend": backend}, {}).settings().dtype == "float64"


@pytest.mark.parametrize("name", RULES)
def test_every_optimizer_has_a_default_rate(name: str) -> None:
    assert resolve({"optimizer": name}, {}).lr == DEFAULT_LEARNING_RATE[name]
    assert f"{DEFAULT_LEARNING_RATE[name]:g} for {name}" in FIELDS["lr"].metadata["help"]


def test_what_is_chosen_by_rule() -> None:
    assert Config().loss == "cross-entropy"
    assert Config(target="value").loss == "squared-error"
    assert Config().patience == PATIENCE
    assert Config(val_fraction=0.0).patience == 0
    assert Config(val_fraction=None, val_count=5).patience == PATIENCE


def test_network_gets_every_setting_of_its_own() -> None:
    config = Config(
        hidden=(6, 5),
        activation=("tanh", "relu"),
        dropout=(0.1, 0.2),
        loss="squared-error",
        output="sigmoid",
        l1=0.1,
        l2=0.2,
        label_smoothing=0.3,
        init="normal:0.4",
    )
    expected = Network(
        (7, 6, 5, 4),
        activation=("tanh", "relu"),
        dropout=(0.1, 0.2),
        loss="squared-error",
        output="sigmoid",
        l1=0.1,
        l2=0.2,
        label_smoothing=0.3,
        init="normal:0.4",
    )
    assert config.network(7, 4) == expected


def test_one_activation_serves_all_layers_or_none() -> None:
    assert Config(hidden=(6, 5), dropout=(0.1,)).network(7, 4).dropout == (0.1, 0.1)
    assert Config(hidden=(), activation=("tanh",)).network(7, 4) == Network((7, 4))
    with pytest.raises(ConfigError, match="activation names 2 layers, but there are 1"):
        Config(activation=("tanh", "relu")).network(7, 4)


def test_settings_get_every_setting_of_their_own() -> None:
    numbers: dict[str, Any] = {name: 0.25 for name in ("momentum", "beta1", "beta2", "epsilon", "weight_decay", "clip_norm")}
    course: dict[str, Any] = {"decay": 0.5, "factor": 0.6, "every": 3.0, "warmup": 2.0}
    config = Config(
        **numbers,
        **course,
        optimizer="rmsprop",
        lr=0.7,
        schedule="cosine",
        epochs=9,
        batch_size=3,
        patience=4,
        monitor="accuracy",
        min_delta=0.1,
        max_time=5.0,
        seed=6,
        backend="numpy",
        threads=2,
        dtype="float64",
        precision="tf32",
    )
    settings = config.settings()
    assert settings.optimizer == Optimizer("rmsprop", **numbers)
    assert settings.schedule == Schedule(0.7, "cosine", epochs=9, **course)
    own = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    del own["optimizer"], own["schedule"]
    assert own == {name: getattr(config, name) for name in own}


def test_patience_zero_never_stops() -> None:
    assert Config(patience=0).settings().patience is None


def test_a_bad_value_is_refused_by_whom_it_concerns() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        Config(batch_size=0).settings()
    with pytest.raises(ConfigError, match="learning rate must be a positive number"):
        Config(lr=0.0).settings()
    with pytest.raises(ConfigError, match="dropout must be at least 0 and below 1"):
        Config(dropout=(1.0,)).network(2, 2)


def test_numbers_are_written_to_the_last_digit(tmp_path: Path) -> None:
    config = Config(lr=math.nextafter(0.1, 1), data='a "quoted"\\name\n.csv')
    file = tmp_path / "a.toml"
    file.write_text(config.text(), encoding="utf-8")
    assert resolve({}, {}, file) == config
