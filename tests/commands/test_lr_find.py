"""Tests of the command `fastmlp lr-find`: its output, its figure, its settings and its exit codes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.cli import SMALL, call, forget_settings, ok, refused

import fastmlp
from fastmlp.experiments.config.learning_rate import IGNORED, RangeTestConfig
from fastmlp.experiments.config.shared import fields_of
from fastmlp.experiments.config.train import FIELDS


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run every test in its own folder, without settings from environment variables."""
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


def found(*arguments: str | Path, **variables: str) -> dict[str, Any]:
    return dict(json.loads(ok("lr-find", *SMALL, *arguments, "--json", **variables).stdout))


def test_the_result_is_that_of_the_library() -> None:
    data = fastmlp.load_data("digits").split(validation=0.2, test=0.2)
    network = fastmlp.Network(hidden=(16,))
    curve = fastmlp.find_learning_rate(network, data.train, optimizer="sgd", backend="numpy", batch_size=32, steps=150)
    result = found("--optimizer", "sgd", "--batch-size", "32", "--steps", "150")
    assert result["suggestion"] == curve.suggestion
    assert result["losses"] == curve.losses.tolist()
    assert result["learning_rates"] == curve.learning_rates.tolist()
    assert result["smoothed"] == curve.smoothed.tolist()
    assert [result[name] for name in ("data", "network", "optimizer", "out")] == ["digits", "784x16x10", "sgd", None]


def test_the_suggestion_is_the_output_and_a_valid_learning_rate(tmp_path: Path) -> None:
    result = ok("lr-find", *SMALL)
    assert result.stdout == f"{found()['suggestion']:.3g}\n"
    lines = result.stderr.splitlines()
    assert lines[0] == "digits: 1,079 train rows; network 784x16x10, 12,730 parameters"
    assert lines[1].endswith(" of 200 mini-batches, learning rates up to " + lines[1].split()[-1])
    assert lines[2] == f"to train with this learning rate, add --lr {result.stdout.strip()} to `fastmlp train`"
    ok("train", *SMALL, "--epochs", "1", "-q", "--lr", result.stdout.strip())
    assert ok("lr-find", *SMALL, "-q").stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # of `train`; without --out, there is no figure


def test_the_figure_is_written_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert found("--out", path)["out"] == str(path)
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG")
    text = refused(2, "lr-find", *SMALL, "--out", path)
    assert text == f"out: {path} exists; choose another name, or set force to replace it [--out, --force]"
    assert path.read_bytes() == picture
    found("--out", path, "--force", "--seed", "1")
    assert path.read_bytes()[:4] == picture[:4]
    assert path.read_bytes() != picture


def test_settings_come_from_flags_variables_a_file_and_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('optimizer = "sgd"\nsteps = 40\nepochs = 3\nmin_accuracy = 0.5\nout = "runs/x"\n')
    of_file = found("--config", tmp_path / "a.toml")
    assert (of_file["optimizer"], of_file["out"]) == ("sgd", None)
    assert len(of_file["losses"]) <= 40
    assert found("--config", tmp_path / "a.toml", FASTMLP_OPTIMIZER="adam")["optimizer"] == "adam"
    assert found(FASTMLP_START="1e-5", FASTMLP_END="0.001", FASTMLP_STEPS="20")["learning_rates"][::19] == [1e-5, 0.001]
    of_recipe = found("--recipe", "cs776-mlp-6", "--data", "digits")
    assert of_recipe["network"].endswith("x16x10")
    recipe = ok("lr-find", "--recipe", "cs776-mlp-6", "--print-config").stdout
    assert (
        tomllib.loads(recipe)["hidden"]
        == tomllib.loads(ok("train", "--recipe", "cs776-mlp-6", "--print-config").stdout)["hidden"]
    )


def test_print_config_is_valid_input() -> None:
    first = ok("lr-find", "--print-config", "--start", "1e-5", "--hidden", "9").stdout
    Path("a.toml").write_text(first)
    assert tomllib.loads(first)["start"] == 1e-5
    assert ok("lr-find", "--print-config", "--config", "a.toml").stdout == first


def test_the_config_of_a_run_is_valid_input() -> None:
    ok("train", *SMALL, "--epochs", "1", "-q", "--out", "run", "--optimizer", "sgd")
    assert found("--config", Path("run", "config.toml"))["optimizer"] == "sgd"


def test_settings_without_effect_are_not_options() -> None:
    assert {*IGNORED} <= FIELDS.keys()
    for name in ("lr", "epochs", "schedule", "patience"):
        assert call("lr-find", f"--{name}", "1").exit_code == 2
    assert fields_of(RangeTestConfig).keys() - FIELDS.keys() == {"start", "end", "steps"}


def test_exit_codes(tmp_path: Path) -> None:
    range_text = "start and end must be positive numbers with start < end, not 2.0 and 1.0 [--start, --end]"
    assert refused(2, "lr-find", "--start", "2", "--end", "1", "--data", "missing.npz") == range_text  # before the data
    assert refused(2, "lr-find", "--steps", "5").endswith("[--steps]")
    assert "choose a smaller start [--start, --end]" in refused(2, "lr-find", *SMALL, "-q", "--start", "5")
    assert "missing.npz" in refused(3, "lr-find", "--data", "missing.npz")
    assert "cannot write" in refused(3, "lr-find", *SMALL, "-q", "--out", tmp_path / "none" / "a.png")
