"""Tests of `fastmlp train --seeds`: same splits, a run folder per seed, means and standard deviations, curves with a band."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import call, ok, refused
from support.engines import same_bits

import fastmlp
from fastmlp.files import read_toml

FAST = ("--epochs", "3", "--hidden", "8", "--backend", "numpy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeds") / "runs"
    ok("train", *FAST, "--seed", "4", "--seeds", "3", "--threads", "2", "--out", path)
    return path


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "seeds.json").read_text())


def test_each_seed_has_a_complete_run_folder(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "seed-4", "seed-5", "seed-6", "seeds.json"]
    for seed in (4, 5, 6):
        run = folder / f"seed-{seed}"
        assert {"config.toml", "metrics.jsonl", "result.json", "model.safetensors"} <= {path.name for path in run.iterdir()}
        config = read_toml(run / "config.toml")
        assert (config["seed"], config["split_seed"]) == (seed, 4)


def test_a_run_is_repeated_by_its_config(folder: Path, tmp_path: Path) -> None:
    """The run of a seed has the same bits as a single run with its config.toml, which has the seed of the splits."""
    ok("train", "--config", folder / "seed-6" / "config.toml", "--out", tmp_path / "run")
    one, other = fastmlp.load(folder / "seed-6"), fastmlp.load(tmp_path / "run")
    assert same_bits(one.parameters, other.parameters)
    assert not same_bits(one.parameters, fastmlp.load(folder / "seed-5").parameters)


def test_the_summary_has_means_and_deviations(folder: Path) -> None:
    summary = summary_of(folder)
    results = [json.loads((folder / f"seed-{seed}" / "result.json").read_text()) for seed in (4, 5, 6)]
    assert [run["seed"] for run in summary["runs"]] == [4, 5, 6]
    for split in ("train", "validation", "test"):
        for key in ("loss", "accuracy"):
            values = [result[split][key] for result in results]
            found = summary[split][key]
            assert (found["mean"], found["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_seeds_of_python_and_of_the_command_line_are_the_same(folder: Path) -> None:
    data = fastmlp.load_data("digits").split(seed=4)
    network = fastmlp.Network(hidden=8)
    results = fastmlp.train(network, data.train, data.validation, seeds=(4, 5, 6), epochs=3, backend="numpy")
    for seed, result in zip(results.seeds, results, strict=True):
        assert same_bits(result.model.parameters, fastmlp.load(folder / f"seed-{seed}").parameters)
    assert data.test is not None
    found = summary_of(folder)["test"]["accuracy"]
    assert results.score(*data.test) == pytest.approx((found["mean"], found["std"]))


def test_the_table_and_the_json_on_stdout(folder: Path, tmp_path: Path) -> None:
    printed = json.loads(ok("train", *FAST, "--seed", "4", "--seeds", "3", "--out", tmp_path / "a", "--json").stdout)
    assert printed == summary_of(folder) | {"out": str(tmp_path / "a")}
    lines = ok("train", *FAST, "--seeds", "2", "--out", tmp_path / "b", "--val-fraction", "0").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["seed", "0", "1", "mean"]
    assert "validation" not in lines[0]
    assert "±" in lines[-1]


def test_regression_and_one_seed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(60.0).reshape(30, 2), y=np.arange(30.0))
    flags = ("--data", tmp_path / "a.npz", "--task", "regression", *FAST)
    result = json.loads(ok("train", *flags, "--seeds", "1", "--out", tmp_path / "run", "--json").stdout)
    assert result["test"]["r2"]["std"] == 0
    assert set(result["test"]) == {"loss", "mse", "mae", "rmse", "r2"}
    header = ok("train", *flags, "--seeds", "1", "--out", tmp_path / "again").stdout.splitlines()[0]
    names = ["loss", "MAE", "RMSE", "R²"]
    assert re.split(" {2,}", header)[2:] == [f"{split} {name}" for split in ("validation", "test") for name in names]


def test_errors_and_exit_codes(folder: Path, tmp_path: Path) -> None:
    assert call("train", "--seeds", "0").exit_code == 2
    assert "is not empty" in refused(2, "train", *FAST, "--seeds", "2", "--out", folder)
    result = call("train", *FAST, "--seeds", "2", "--out", tmp_path / "a", "--min-accuracy", "1")
    assert result.exit_code == 6
    assert "test accuracy" in result.stderr
    diverging = ("--optimizer", "sgd", "--lr", "1e30", "--scale", "none", "-q")
    assert "diverged" in refused(5, "train", *FAST, *diverging, "--seeds", "2", "--out", tmp_path / "b")
