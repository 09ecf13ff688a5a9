"""Tests of sample weights in files: read from a column or an array, kept with the rows, used in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.cli import call, ok, refused
from support.engines import same_bits

import fastmlp
from fastmlp.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
WEIGHT = np.linspace(0.5, 2, 60).astype(np.float32)
NAMES = np.array(["no", "yes"])
FAST = ("--epochs", "2", "--hidden", "4", "--backend", "numpy", "--val-fraction", "0", "--test-count", "10")


def write_csv(path: Path, weight: Any = WEIGHT) -> Path:
    """Write a table whose third column has the weights."""
    lines = ["label,a,importance,b,c"]
    lines += [f"{NAMES[y]},{x[0]!r},{w!r},{x[1]!r},{x[2]!r}" for y, x, w in zip(Y, X.tolist(), weight.tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_npz(path: Path) -> Path:
    np.savez(path, x=X, y=NAMES[Y], importance=WEIGHT)
    return path


def write_safetensors(path: Path) -> Path:
    save_file({"x": X, "y": Y, "importance": WEIGHT}, path, {"classes": json.dumps(NAMES.tolist())})
    return path


def write_folder(path: Path) -> Path:
    path.mkdir()
    for name, array in {"x": X, "y": NAMES[Y], "importance": WEIGHT}.items():
        np.save(path / f"{name}.npy", array)
    return path


SOURCES = {"a.csv": write_csv, "a.npz": write_npz, "a.safetensors": write_safetensors, "a": write_folder}


@pytest.mark.parametrize("name", SOURCES)
def test_weights_are_read_and_are_no_feature(name: str, tmp_path: Path) -> None:
    data = fastmlp.load_data(SOURCES[name](tmp_path / name), weight="importance")
    assert np.array_equal(data.x, X)
    assert data.weight is not None
    assert (data.weight.dtype, data.weight.tolist()) == (np.float32, WEIGHT.tolist())
    train = data.split(validation=0, test=10).train
    assert train.sample_weight is not None
    kept = [int(np.flatnonzero((x == row).all(axis=1))[0]) for x, row in ((X, row) for row in np.asarray(train.x))]
    assert np.array_equal(train.sample_weight, WEIGHT[kept])


def test_a_split_with_weights_trains_like_arrays_with_weights(tmp_path: Path) -> None:
    train = fastmlp.load_data(write_csv(tmp_path / "a.csv"), weight="importance").split(validation=0).train
    given: dict[str, Any] = {"epochs": 2, "backend": "numpy"}
    one = fastmlp.train(fastmlp.Network(), train, **given)
    other = fastmlp.train(fastmlp.Network(), (train.x, train.y), sample_weight=train.sample_weight, **given)
    plain = fastmlp.train(fastmlp.Network(), (train.x, train.y), **given)
    assert same_bits(one.state, other.state)
    assert not same_bits(one.state, plain.state)


def test_the_command_uses_the_column_and_class_weights(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv")
    flags = ("--data", file, "--weight", "importance", "--class-weight", "yes=3")
    ok("train", *flags, *FAST, "--out", tmp_path / "run")
    train = fastmlp.load_data(file, weight="importance").split(validation=0, test=10).train
    network = fastmlp.Network(hidden=4)
    given: dict[str, Any] = {"epochs": 2, "backend": "numpy", "class_weight": {"yes": 3.0}}
    assert same_bits(fastmlp.load(tmp_path / "run").parameters, fastmlp.train(network, train, **given).model.parameters)
    evaluated = json.loads(ok("evaluate", tmp_path / "run", "--json").stdout)  # finds the same rows again
    assert evaluated["data"]["rows"] == {"test": 10}
    assert 'weight = "importance"' in (tmp_path / "run" / "config.toml").read_text()


def test_wrong_columns_and_weights_are_refused(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv")
    assert "unknown column 'importanc'; did you mean 'importance'" in refused(
        3, "train", "--data", file, "--weight", "importanc"
    )
    assert "column 1 'label' contains text, not sample weights" in refused(3, "train", "--data", file, "--weight", "label")
    assert "--weight" in refused(2, "train", "--weight", "importance")  # digits have no weights
    negative = write_csv(tmp_path / "b.csv", np.where(np.arange(60) == 3, -1, WEIGHT))
    assert "column 3 'importance': the sample weight is -1; all weights must be positive" in refused(
        3, "train", "--data", negative, "--weight", "importance"
    )
    for name in ("a.npz", "a.safetensors", "a"):
        with pytest.raises(DataError, match="named 'missing', which should have the sample weights"):
            fastmlp.load_data(SOURCES[name](tmp_path / name), weight="missing")
    (tmp_path / "c.csv").write_text("0,1,2\n1,2,3\n")
    with pytest.raises(DataError, match="unknown column 'w'; the file has no header"):
        fastmlp.load_data(tmp_path / "c.csv", weight="w")
    (tmp_path / "d.csv").write_text("label,w\n1,2\n")
    with pytest.raises(DataError, match="no features besides"):
        fastmlp.load_data(tmp_path / "d.csv", weight="w")
    with pytest.raises(ConfigError, match="digits has no sample weights"):
        fastmlp.load_data("digits", weight="w")
    assert call("train", "--data", file, "--class-weight", "maybe=2", *FAST).exit_code == 2
