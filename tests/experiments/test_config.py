"""Tests of `TrainConfig`: conflicting settings, defaults that depend on other settings, and the objects made from it."""

from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import pytest

import fastmlp
from fastmlp.errors import ConfigError
from fastmlp.experiments.config.extract import ADDED, ExtractConfig
from fastmlp.experiments.config.names import SYNONYMS
from fastmlp.experiments.config.shared import fields_of
from fastmlp.experiments.config.sources import resolve, resolve_as
from fastmlp.experiments.config.train import FIELDS, TrainConfig
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import DEFAULT_LEARNING_RATE, RULES, Optimizer
from fastmlp.nn.schedules import ReduceOnPlateau, Schedule
from fastmlp.training.settings import DEFAULT_PATIENCE, Settings


@pytest.mark.parametrize(
    "name", ["task", "scale", "loss", "output", "optimizer", "schedule", "monitor", "backend", "precision"]
)
def test_an_unknown_name_suggests_a_valid_one(name: str) -> None:
    valid = FIELDS[name].metadata["type"].choices[0]
    with pytest.raises(ConfigError) as caught:
        resolve({name: valid + "x"}, {})
    assert str(caught.value).startswith(f"{name}: unknown ")
    assert caught.value.settings == (name,)
    assert f"did you mean {valid!r}?" in str(caught.value)


CONTRADICTIONS = [
    ({"dtype": "float64", "backend": "numba"}, "dtype float64 needs backend numpy or torch, not numba"),
    ({"min_accuracy": "1.5"}, "min_accuracy must be between 0 and 1"),
    ({"val_fraction": "-0.1"}, "val_fraction must be between 0 and 1"),
    ({"test_fraction": "2"}, "test_fraction must be between 0 and 1"),
    ({"val_count": "-1"}, "val_count must be 0 or more"),
    ({"patience": "-1"}, "patience must be 0 or more"),
    ({"min_delta": "-1"}, "min_delta must be 0 or more"),
    ({"task": "regression", "loss": "cross-entropy"}, "loss cross-entropy is for classification"),
    ({"loss": "huber:0"}, "loss: loss 'huber:0': the parameter must be"),
    ({"loss": "mse:2"}, "loss: loss 'squared-error' has no parameter"),
    ({"task": "regression", "monitor": "accuracy"}, "monitor accuracy is for classification"),
    ({"task": "regression", "stratify": "true"}, "stratify True is for classification"),
    ({"task": "regression", "min_accuracy": "0.5"}, "min_accuracy is for classification"),
    ({"schedule": "plateau", "lr_warmup": "1"}, "schedule plateau has no warm-up"),
    ({"class_weight": "cat"}, "class_weight must be balanced, or NAME=WEIGHT"),
    ({"class_weight": "cat=0"}, "class_weight must be balanced, or NAME=WEIGHT"),
    ({"task": "regression", "class_weight": "balanced"}, "class_weight is for classification"),
    ({"task": "regression", "label_smoothing": "0.1"}, "label_smoothing is for classification"),
]


@pytest.mark.parametrize(("flags", "message"), CONTRADICTIONS)
def test_contradictions(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(flags, {})


@pytest.mark.parametrize("backend", ["auto", "numpy", "torch"])
def test_float64_is_refused_only_for_the_engine_without_it(backend: str) -> None:
    assert resolve({"dtype": "float64", "backend": backend}, {}).settings().dtype == "float64"


@pytest.mark.parametrize("name", RULES)
def test_every_optimizer_has_a_default_rate(name: str) -> None:
    assert resolve({"optimizer": name}, {}).lr == DEFAULT_LEARNING_RATE[name]
    assert f"{DEFAULT_LEARNING_RATE[name]:g} for {name}" in FIELDS["lr"].metadata["help"]


def test_defaults_by_rule() -> None:
    assert TrainConfig().loss == "cross-entropy"
    assert TrainConfig(task="regression").loss == "squared-error"
    assert TrainConfig().patience == DEFAULT_PATIENCE
    assert TrainConfig(val_fraction=0.0).patience == 0
    assert TrainConfig(val_fraction=None, val_count=5).patience == DEFAULT_PATIENCE


def test_every_setting_of_the_network_is_passed_on() -> None:
    config = TrainConfig(
        hidden=(6, 5),
        activation=("tanh", "relu"),
        dropout=(0.1, 0.2),
        loss="squared-error",
        output="sigmoid",
        l1=0.1,
        l2=0.2,
        label_smoothing=0.3,
        init="normal:0.4",
        random_biases=True,
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
        random_biases=True,
    )
    assert config.network(7, 4) == expected


def test_one_activation_is_for_all_hidden_layers() -> None:
    assert TrainConfig(hidden=(6, 5), dropout=(0.1,)).network(7, 4).dropout == (0.1, 0.1)
    assert TrainConfig(hidden=(), activation=("tanh",)).network(7, 4) == Network((7, 4))
    with pytest.raises(ConfigError, match="activation has 2 values, but there are 1"):
        TrainConfig(activation=("tanh", "relu")).network(7, 4)


def test_every_setting_of_the_training_is_passed_on() -> None:
    numbers: dict[str, Any] = {name: 0.25 for name in ("momentum", "beta1", "beta2", "epsilon", "weight_decay")}
    schedule: dict[str, Any] = {"lr_decay": 0.5, "lr_gamma": 0.6, "lr_step": 3.0, "lr_warmup": 2.0}
    config = TrainConfig(
        **numbers,
        **schedule,
        max_grad_norm=1.5,
        optimizer="rmsprop",
        lr=0.7,
        schedule="cosine",
        epochs=9,
        batch_size=3,
        patience=4,
        monitor="accuracy",
        min_delta=0.1,
        shuffle=False,
        restore_best=False,
        max_time=5.0,
        seed=6,
        backend="numpy",
        threads=2,
        dtype="float64",
        precision="tf32",
    )
    settings = config.settings()
    assert settings.optimizer == Optimizer("rmsprop", 0.7, **numbers, max_grad_norm=1.5)
    assert settings.schedule == Schedule("cosine", decay=0.5, gamma=0.6, step=3.0, warmup=2.0)
    own = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    del own["optimizer"], own["schedule"]
    assert own == {name: getattr(config, name) for name in own}


def test_the_settings_of_reduce_on_plateau_are_passed_on() -> None:
    config = TrainConfig(schedule="plateau", lr_gamma=0.2, lr_patience=7)
    assert config.settings().schedule == ReduceOnPlateau(factor=0.2, patience=7)


def test_the_defaults_are_those_of_python() -> None:
    """The command line and `fastmlp.train` have the same defaults."""
    config = TrainConfig(patience=0)
    assert config.settings() == Settings(patience=0)
    assert TrainConfig(schedule="plateau").settings().schedule == ReduceOnPlateau()
    network = Network().complete(7, 4, "cross-entropy")
    assert config.network(7, 4) == network
    defaults = {name: one.default for name, one in inspect.signature(fastmlp.train).parameters.items()}
    assert (config.scale, config.target_scale) == (defaults["scaling"], defaults["target_scaling"])
    splits = inspect.signature(fastmlp.Dataset.split).parameters
    assert config.split_sizes() == {name: splits[name].default for name in ("validation", "test", "stratify", "seed")}


def test_bad_values_are_refused_by_the_classes_that_use_them() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        TrainConfig(batch_size=0).settings()
    with pytest.raises(ConfigError, match="learning_rate must be a positive number"):
        TrainConfig(lr=0.0).settings()
    with pytest.raises(ConfigError, match="dropout must be at least 0 and below 1"):
        TrainConfig(dropout=(1.0,)).network(2, 2)


@pytest.mark.parametrize("name", ["lr", "max_grad_norm", "momentum", "lr_decay", "lr_gamma", "lr_step", "lr_warmup"])
def test_errors_of_the_classes_name_the_settings(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{name: -1.0}).settings()
    assert caught.value.settings == (name,)


def test_numbers_are_written_exactly(tmp_path: Path) -> None:
    config = TrainConfig(lr=math.nextafter(0.1, 1), data='a "quoted"\\name\n.csv')
    file = tmp_path / "a.toml"
    file.write_text(config.text(), encoding="utf-8")
    assert resolve({}, {}, file) == config


# ------------------------------------------------------------------------------------------------ names and synonyms


def test_synonyms_of_settings_are_unique_and_no_settings() -> None:
    """A synonym belongs to one setting and is not itself a setting, except `device`.

    For `extract`, `device` is a setting; for `train`, it is a synonym of `backend`.
    """
    settings = {*FIELDS, *fields_of(ExtractConfig)}
    others = [other for names in SYNONYMS.values() for other in names]
    assert len(others) == len(set(others))
    assert SYNONYMS.keys() <= settings
    assert set(others) & settings == {"device"}


SPELLINGS = [
    ("activation", "ReLU,leaky_relu:0.2", ("relu", "leaky-relu:0.2")),
    ("activation", "Swish", ("silu",)),
    ("loss", "MSE", "squared-error"),
    ("loss", "CrossEntropy", "cross-entropy"),
    *(("loss", text, "absolute-error") for text in ("L1", "L1Loss", "mae", "mean_absolute_error", "absolute_loss")),
    ("loss", "HuberLoss:1.5", "huber:1.5"),
    *(("loss", text, "quantile:0.9") for text in ("Quantile_Loss:0.9", "pinball:0.9", "pinball_loss:0.9")),
    ("output", "logistic", "sigmoid"),
    ("init", "Kaiming", "he"),
    ("init", "Normal:0.1", "normal:0.1"),
    ("optimizer", "AdamW", "adamw"),
    ("schedule", "Cosine_Annealing", "cosine"),
    ("scale", "standard", "zscore"),
    ("monitor", "val_loss", "loss"),
    ("backend", "PyTorch", "torch"),
    ("dtype", "double", "float64"),
    ("precision", "bfloat16", "bf16"),
    ("task", "Regression", "regression"),
]


@pytest.mark.parametrize(("name", "text", "stored"), SPELLINGS)
def test_spellings_and_synonyms_of_names_are_stored_as_in_the_registry(name: str, text: str, stored: Any) -> None:
    assert getattr(resolve({name: text}, {}), name) == stored
    given = tuple(text.split(",")) if isinstance(stored, tuple) else text
    assert getattr(TrainConfig(**{name: given}), name) == stored


@pytest.mark.parametrize(
    ("name", "text", "stored"),
    [
        ("pool", "Average,None", ("avg", "none")),
        ("regularize", "BatchNorm", ("batch",)),
        ("regularize", "Dropout2d,SpatialDropout2D,dropout", ("dropout2d", "dropout2d", "dropout")),
        ("init", "Glorot", "xavier"),
        ("init", "PyTorch", "random"),
        ("optimizer", "SGD", "sgd"),
    ],
)
def test_names_of_extract_likewise(name: str, text: str, stored: Any) -> None:
    assert getattr(resolve_as(ExtractConfig, {name: text}, {}), name) == stored


def test_the_key_of_older_feature_files_does_not_change() -> None:
    """A setting that was added is part of the key only if its value is not the one that describes older feature files."""
    config = ExtractConfig()
    assert all(getattr(config, name) == value for name, value in ADDED.items())
    assert not config.key().keys() & ADDED.keys()
    for name, value in ADDED.items():
        changed = ExtractConfig(**{name: not value})
        assert changed.key() == config.key() | {name: not value}
        assert ExtractConfig.from_table(changed.key()) == changed
    assert ExtractConfig.from_table(config.key()) == config


def test_an_unknown_name_is_refused_without_the_command_line_too() -> None:
    with pytest.raises(ConfigError, match="unknown optimizer 'adm'; did you mean 'adam'"):
        TrainConfig(optimizer="adm")
