"""Tests of the sources of settings: types of settings, precedence of sources, invalid files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments.config.sources import PAIRS, VARIABLES, resolve
from fastmlp.experiments.config.train import FIELDS, TrainConfig

# For every setting, two texts with different valid values. One of them may be the default value.
TEXTS = {
    "data": ("a.npz", "b.csv"),
    "data_dir": ("here", "there"),
    "image_size": ("8,9", "7x6"),
    "skip_bad": ("true", "no"),
    "max_decompressed": ("2", "0.5"),
    "task": ("regression", "classification"),
    "val_fraction": ("0.1", "0.3"),
    "val_count": ("10", "20"),
    "test_fraction": ("0.1", "0.3"),
    "test_count": ("10", "20"),
    "stratify": ("true", "no"),
    "scale": ("unit", "none"),
    "seed": ("1", "2"),
    "split_seed": ("1", "2"),
    "target": ("mpg", "7"),
    "drop": ("id,name", "3"),
    "missing": ("median", "drop"),
    "delimiter": ("tab", ":"),
    "header": ("on", "0"),
    "weight": ("w", "column"),
    "class_weight": ("balanced", "cat=2,dog=0.5"),
    "hidden": ("400,250,100", "none"),
    "activation": ("tanh,relu", "leaky-relu:0.2"),
    "dropout": ("0.2,0.5", "0.1"),
    "loss": ("squared-error", "huber:1.5"),
    "output": ("linear", "sigmoid"),
    "target_scale": ("none", "unit"),
    "label_smoothing": ("0.1", "0.2"),
    "l1": ("1e-5", "1e-4"),
    "l2": ("1e-5", "1e-4"),
    "init": ("xavier", "normal:0.1"),
    "random_biases": ("on", "false"),
    "optimizer": ("sgd", "nesterov"),
    "lr": ("0.5", "1"),
    "momentum": ("0.5", "0.6"),
    "beta1": ("0.5", "0.6"),
    "beta2": ("0.5", "0.6"),
    "epsilon": ("1e-6", "1e-7"),
    "weight_decay": ("0.1", "0.2"),
    "max_grad_norm": ("1", "2"),
    "schedule": ("cosine", "step"),
    "lr_decay": ("0.1", "0.2"),
    "lr_gamma": ("0.1", "0.2"),
    "lr_step": ("1", "2"),
    "lr_patience": ("1", "2"),
    "lr_warmup": ("1", "2"),
    "batch_size": ("1", "2"),
    "epochs": ("1", "2"),
    "patience": ("1", "2"),
    "monitor": ("accuracy", "loss"),
    "min_delta": ("0.1", "0.2"),
    "restore_best": ("off", "true"),
    "shuffle": ("off", "true"),
    "flip": ("0.5", "0.1"),
    "shift": ("1", "2"),
    "val_steps": ("1", "2"),
    "max_time": ("30s", "2m"),
    "backend": ("numpy", "numba"),
    "threads": ("1", "2"),
    "dtype": ("float64", "float32"),
    "precision": ("tf32", "bf16"),
    "per_class_every": ("1", "2"),
    "save_every": ("1", "2"),
    "checkpoints": ("0", "on"),
    "checkpoint_seconds": ("5", "1m"),
    "predictions": ("on", "0"),
    "out": ("a", "b"),
    "force": ("on", "0"),
    "min_accuracy": ("0.5", "0.6"),
}


def value_of(name: str, text: str) -> Any:
    return FIELDS[name].metadata["type"].value(name, text, text=True)


def write(path: Path, name: str, text: str) -> Path:
    """Write a config file with the setting as a TOML value of its type, such as a number or a list."""
    value = value_of(name, text)
    natural = list(value) if isinstance(value, tuple) else value
    written = repr(natural).replace("'", '"').replace("True", "true").replace("False", "false")
    path.write_text(f"{name} = {written}\n")
    return path


# ------------------------------------------------------------------------------------------------ precedence of sources


def test_every_setting_is_in_the_table_above() -> None:
    assert TEXTS.keys() == FIELDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_flag_before_variable_before_file_before_default(name: str, tmp_path: Path) -> None:
    first, second = (value_of(name, text) for text in TEXTS[name])
    assert first != second
    one, two = TEXTS[name]
    file_one, file_two = write(tmp_path / "1.toml", name, one), write(tmp_path / "2.toml", name, two)

    def found(flags: dict[str, str], variables: dict[str, str], file: Path | None) -> Any:
        return getattr(resolve(flags, variables, file), name)

    assert found({}, {}, file_one) == first
    assert found({}, {}, file_two) == second
    assert found({}, {VARIABLES[name]: two}, file_one) == second
    assert found({}, {VARIABLES[name]: one}, file_two) == first
    assert found({name: one}, {VARIABLES[name]: two}, None) == first
    assert found({name: two}, {VARIABLES[name]: one}, None) == second
    assert found({name: two}, {}, file_one) == second
    assert found({name: one}, {}, file_two) == first


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_of_two_exclusive_settings_the_higher_source_takes_precedence(name: str, tmp_path: Path) -> None:
    other = PAIRS[name]
    file = write(tmp_path / "a.toml", other, TEXTS[other][0])
    config = resolve({name: TEXTS[name][0]}, {}, file)
    assert getattr(config, other) is None
    assert getattr(config, name) == value_of(name, TEXTS[name][0])


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_two_exclusive_settings_in_one_source_are_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="exclude each other; give only one"):
        resolve({name: TEXTS[name][0], PAIRS[name]: TEXTS[PAIRS[name]][0]}, {})


def test_an_empty_variable_counts_as_not_given() -> None:
    assert resolve({}, {"FASTMLP_LR": "", "FASTMLP_HIDDEN": ""}) == TrainConfig()


def test_fastmlp_data_is_the_folder_not_the_data_set() -> None:
    config = resolve({}, {"FASTMLP_DATA": "/folder", "FASTMLP_DATASET": "mnist"})
    assert (config.data, config.data_dir) == ("mnist", "/folder")


# ------------------------------------------------------------------------------------------------ types of settings

WRONG = [
    ("epochs", "many", "a whole number, not 'many'"),
    ("epochs", "1.5", "a whole number, not '1.5'"),
    ("lr", "fast", "a finite number, not 'fast'"),
    ("lr", "nan", "a finite number, not 'nan'"),
    ("lr", "inf", "a finite number, not 'inf'"),
    ("hidden", "128,,64", "whole numbers, such as 400,250,100, or none, not '128,,64'"),
    ("dropout", "0.2,high", "finite numbers, such as 0.2 or 0.2,0.5, not '0.2,high'"),
    ("stratify", "maybe", "true or false, not 'maybe'"),
    ("max_time", "2 days", "a time such as 30s, 2m or 1h"),
    ("image_size", "28,28,3", "HEIGHT,WIDTH in pixels"),
    ("image_size", "0,28", "HEIGHT,WIDTH in pixels"),
    ("out", " ", "a non-empty string, not ' '"),
]


@pytest.mark.parametrize(("name", "text", "message"), WRONG)
def test_wrong_text_is_reported_with_its_setting_or_variable(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({name: text}, {})
    assert str(caught.value).startswith(f"{name} must be ")
    assert caught.value.settings == (name,)
    assert message in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        resolve({}, {VARIABLES[name]: text})
    assert str(caught.value).startswith(f"{VARIABLES[name]} must be ")


WRONG_TOML = [
    ("epochs", '"5"', "epochs must be a whole number, not '5'"),
    ("epochs", "5.0", "epochs must be a whole number, not 5.0"),
    ("epochs", "true", "epochs must be a whole number, not True"),
    ("lr", '"0.1"', "lr must be a finite number, not '0.1'"),
    ("lr", "nan", "lr must be a finite number, not nan"),
    ("lr", "false", "lr must be a finite number, not False"),
    ("lr", str(10**400), "an integer does not fit into 64 bits"),
    ("stratify", "1", "stratify must be true or false, not 1"),
    ("scale", "1", "scale must be a name, not 1"),
    ("data", "2026-01-01", "data must be a non-empty string"),
    ("hidden", '[128, "64"]', "hidden must be whole numbers"),
    ("hidden", "[[128]]", "hidden must be whole numbers"),
    ("activation", "[1]", "activation must be names"),
    ("max_time", "true", "max_time must be a time"),
    ("lr", "{ a = 1 }", "lr must be a finite number"),
]


@pytest.mark.parametrize(("name", "toml", "message"), WRONG_TOML)
def test_wrong_type_in_a_file_names_key_and_file(name: str, toml: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(f"{name} = {toml}\n")
    with pytest.raises(ConfigError) as caught:
        resolve({}, {}, file)
    assert str(caught.value).startswith(f"{file}: {message}")


NATURAL = [
    ("hidden", "[400, 250, 100]", (400, 250, 100)),
    ("hidden", "64", (64,)),
    ("hidden", '"64,32"', (64, 32)),
    ("hidden", "[]", ()),
    ("hidden", '"none"', ()),
    ("activation", '["relu", "tanh"]', ("relu", "tanh")),
    ("activation", '"relu,tanh"', ("relu", "tanh")),
    ("dropout", "0.2", (0.2,)),
    ("dropout", "0", (0.0,)),
    ("dropout", "[0.2, 0]", (0.2, 0.0)),
    ("stratify", "true", True),
    ("lr", "1", 1.0),
    ("max_time", '"2m"', 120.0),
    ("max_time", "90", 90.0),
    ("image_size", "[28, 32]", (28, 32)),
    ("image_size", "28", (28, 28)),
]


@pytest.mark.parametrize(("name", "toml", "value"), NATURAL)
def test_natural_toml(name: str, toml: str, value: Any, tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text(f"{name} = {toml}\n")
    found = getattr(resolve({}, {}, file), name)
    assert (found, type(found)) == (value, type(value))


def test_keys_may_have_hyphens(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("batch-size = 7\n")
    assert resolve({}, {}, file).batch_size == 7
    file.write_text("batch-size = 7\nbatch_size = 8\n")
    with pytest.raises(ConfigError, match="batch_size is set twice, as batch-size and as batch_size"):
        resolve({}, {}, file)


def test_synonyms_of_settings_in_variables_and_files(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("learning-rate = 0.5\nhidden_layer_sizes = [7]\n")
    config = resolve({}, {"FASTMLP_BATCH": "9", "FASTMLP_RANDOM_STATE": "3"}, file)
    assert (config.lr, config.hidden, config.batch_size, config.seed) == (0.5, (7,), 9, 3)


def test_a_setting_and_its_synonym_in_one_source_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("learning_rate = 0.5\nlr = 0.1\n")
    with pytest.raises(ConfigError, match="lr is set twice, as learning_rate and as lr; keep one"):
        resolve({}, {}, file)
    with pytest.raises(ConfigError, match="FASTMLP_LEARNING_RATE and FASTMLP_LR are both set"):
        resolve({}, {"FASTMLP_LR": "0.1", "FASTMLP_LEARNING_RATE": "0.2"})


def test_the_variable_of_extracts_device_chooses_no_backend() -> None:
    assert resolve({}, {"FASTMLP_DEVICE": "cuda"}).backend == "auto"


# ------------------------------------------------------------------------------------------------ invalid files


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("optimizr = 'sgd'\n")
    with pytest.raises(ConfigError, match=r"a\.toml: unknown key 'optimizr'; did you mean 'optimizer'\?"):
        resolve({}, {}, file)


def test_a_table_is_an_unknown_key(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[train]\nlr = 1\n")
    with pytest.raises(ConfigError, match="unknown key 'train'"):
        resolve({}, {}, file)


def test_a_syntax_error_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("lr = 1\nepochs = = 2\n")
    with pytest.raises(ConfigError, match=r"a\.toml: not valid TOML \(.+\); correct the file$"):
        resolve({}, {}, file)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'none.toml'}: there is no such file; check the path")):
        resolve({}, {}, tmp_path / "none.toml")
    with pytest.raises(DataError, match=re.escape(f"cannot read {tmp_path}: it is a folder; give the path of a file")):
        resolve({}, {}, tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"data = '\xff'\n")
    with pytest.raises(ConfigError, match=r"not valid TOML .*utf-8"):
        resolve({}, {}, file)


# ------------------------------------------------------------------------------------------------ written and read


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("which", [0, 1])
def test_settings_written_and_read_are_the_same(name: str, which: int, tmp_path: Path) -> None:
    config = resolve({name: TEXTS[name][which]}, {})
    file = tmp_path / "a.toml"
    file.write_text(config.text(), encoding="utf-8")
    assert resolve({}, {}, file) == config
