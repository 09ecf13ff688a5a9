"""Tests of errors on the command line, in this process: each type of error has an exit code and a one-line message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.cli import FAST, SMALL, call, forget_settings, ok, refused


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run every test in its own folder, without settings from environment variables."""
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small network on digits, and return the run folder."""
    out = tmp_path_factory.mktemp("runs") / "a"
    ok("train", *SMALL, "--epochs", "8", "--scale", "unit", "--out", out, "-q")
    return out


# -------------------------------------------------------------------------------------- exit code 2: usage and configuration


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["tarin"], ["tarin"]),
        (["train", "--hiden", "3"], ["--hiden"]),
        (["train", "surplus"], ["surplus"]),
        (["evaluate"], ["RUN|MODEL"]),
        (["predict", "runs/a"], ["INPUT"]),
        (["evaluate", "a", "--split", "tset"], ["--split", "tset", "validation"]),
        (["evaluate", "a", "--min-accuracy", "2"], ["--min-accuracy", "2"]),
        (["predict", "a", "b", "--top", "0"], ["--top", "0"]),
    ],
)
def test_usage_errors(arguments: list[str], named: list[str]) -> None:
    """Click reports the error, and the last line of its message names the wrong argument."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert [name for name in named if name not in last] == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--config", ""], "--config"),
        (["train", "--recipe", ""], "--recipe"),
        (["train", "--resume", ""], "--resume"),
        (["train", "--data", ""], "--data"),
        (["train", "--data-dir", ""], "--data-dir"),
        (["train", "--out", ""], "--out"),
        (["lr-find", "--out", ""], "--out"),
        (["extract", "--data", "digits", "--config", ""], "--config"),
        (["extract", "--data", "digits", "--weights", ""], "--weights"),
        (["extract", "--data", "digits", "train", "--config", ""], "--config"),
        (["evaluate", ""], "RUN|MODEL"),
        (["evaluate", "a", "--data", ""], "--data"),
        (["evaluate", "a", "--predictions", ""], "--predictions"),
        (["predict", "a", ""], "INPUT..."),
        (["predict", "a", "b", "--out", ""], "--out"),
        (["compare", "a", "", "b"], "RUN..."),
        (["compare", "a", "--out", ""], "--out"),
        (["recipes", "show", ""], "NAME"),
        (["recipes", "plot", "--runs", ""], "--runs"),
        (["bench", "--out", ""], "--out"),
        (["doctor", "--data-dir", ""], "--data-dir"),
    ],
)
def test_empty_paths_and_names(arguments: list[str], named: str) -> None:
    """An empty text is not taken for the current folder, or ignored."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert named in result.stderr.splitlines()[-1]
    assert "empty" in result.stderr.splitlines()[-1]


def test_what_may_be_empty() -> None:
    """No hidden layers, and variables of the environment, which are ignored."""
    assert "hidden = []" in ok("train", "--hidden", "", "--print-config").stdout
    assert ok("train", "--print-config", FASTMLP_CONFIG="", FASTMLP_OUT="").stdout == ok("train", "--print-config").stdout


def test_without_a_command_the_help_is_shown() -> None:
    result = call()
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == ok("--help").stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizr = 'sgd'", "unknown key 'optimizr'; did you mean 'optimizer'?"),
        ("epochs = 'five'", "epochs must be a whole number, not 'five'"),
        ("hidden = [1, 2", "not valid TOML ("),
        ("optimizer = 'adm'", "unknown optimizer 'adm'; did you mean 'adam'?"),
        ("val_count = 3\nval_fraction = 0.1", "exclude each other; give only one [--val-count, --val-fraction]"),
    ],
)
def test_a_bad_config_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    line = refused(2, "train", "--config", tmp_path / "a.toml")
    assert message in line
    assert "a.toml" in line or "val_count" in line


def test_a_missing_config_file() -> None:
    assert "none.toml: there is no such file" in refused(2, "train", "--config", "none.toml")


BAD_FLAGS = {
    "--task": "price",
    "--val-fraction": "1",
    "--val-count": "5000",
    "--test-count": "5000",
    "--scale": "minmax",
    "--hidden": "0",
    "--activation": "relu,relu",
    "--dropout": "1",
    "--loss": "hinge",
    "--output": "linear",
    "--label-smoothing": "1",
    "--l1": "-1",
    "--l2": "-1",
    "--init": "normal:-1",
    "--optimizer": "lion",
    "--lr": "0",
    "--momentum": "1",
    "--beta1": "1",
    "--beta2": "-0.1",
    "--epsilon": "0",
    "--weight-decay": "-1",
    "--max-grad-norm": "-1",
    "--schedule": "triangle",
    "--lr-decay": "-1",
    "--lr-gamma": "0",
    "--lr-step": "0",
    "--lr-warmup": "-1",
    "--batch-size": "0",
    "--epochs": "0",
    "--patience": "-1",
    "--monitor": "f1",
    "--min-delta": "-1",
    "--max-time": "0s",
    "--seed": "-1",
    "--backend": "tpu",
    "--threads": "0",
    "--dtype": "float16",
    "--precision": "tf32",
    "--min-accuracy": "2",
    "--image-size": "8,8",
}


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_a_bad_value_is_a_line_and_exit_2(flag: str, tmp_path: Path) -> None:
    refused(2, "train", "-q", flag, BAD_FLAGS[flag], "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_used_folder_needs_force(run: Path) -> None:
    assert "not empty; set force" in refused(2, "train", "-q", "--out", run)


# ------------------------------------------------------------------------------------------------ exit codes 1 and 3 to 6


def test_a_bug_shows_a_traceback_and_how_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.experiments.training_run.run_training", lambda *settings, **more: 1 / 0)
    result = call("train")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "ZeroDivisionError" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("fastmlp: this is a bug in fastmlp; please report it")


def test_bad_data_is_3(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("1,2,3\n0,4\n")
    assert "bad.csv: line 2" in refused(3, "train", "-q", "--data", tmp_path / "bad.csv")
    assert "no such file or folder" in refused(3, "train", "-q", "--data", "none.npz")
    assert "no such model" in refused(3, "evaluate", "none", "--data", "digits")


def test_what_is_unavailable_is_4(tmp_path: Path) -> None:
    offline = {"FASTMLP_OFFLINE": "1", "FASTMLP_DATA": str(tmp_path / "data")}
    assert "FASTMLP_OFFLINE" in refused(4, "data", "fetch", "mnist", "-q", **offline)
    assert "FASTMLP_OFFLINE" in refused(4, "train", "--data", "mnist", "-q", **offline)


def test_not_enough_memory_is_4(tmp_path: Path) -> None:
    line = refused(4, "train", "-q", "--hidden", "10000000000000", "--backend", "numpy", "--out", tmp_path / "a")
    assert "not enough memory" in line
    assert not (tmp_path / "a").exists()


def test_divergence_is_5() -> None:
    arguments = ["--optimizer", "sgd", "--lr", "1e30", "--loss", "squared-error", "--scale", "none"]
    line = refused(5, "train", "-q", *FAST, *arguments)
    assert "epoch 1, step" in line
    assert "lower the learning rate" in line


def test_a_missed_threshold_is_6_after_the_result(run: Path) -> None:
    for command in (["train", *FAST, "-q"], ["evaluate", run], ["evaluate", run, "--split", "all"]):
        result = call(*command, "--json", "--min-accuracy", "1")
        assert result.exit_code == 6
        assert json.loads(result.stdout)["test"]["accuracy"] < 1
        assert result.stderr.startswith("fastmlp: error: test accuracy 0.")
        ok(*command, "--min-accuracy", "0.5")


def test_twice_verbose_or_debug_shows_the_traceback() -> None:
    for result in (call("train", "-v", "-v", "--lr", "0"), call("train", "--lr", "0", FASTMLP_DEBUG="1")):
        assert result.exit_code == 2
        assert "optimizers.py" in result.stderr
        assert "fastmlp: error: learning_rate must" in result.stderr


def test_evaluate_on_data_that_do_not_fit_is_3(run: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "narrow.npz", x=np.ones((4, 5)), y=[0, 1, 2, 3])
    assert "takes rows of 784 features" in refused(3, "evaluate", run, "--data", tmp_path / "narrow.npz")
    np.savez(tmp_path / "words.npz", x=np.ones((2, 784)), y=["one", "two"])
    assert "unknown class 'one'" in refused(3, "evaluate", run, "--data", tmp_path / "words.npz")


def test_a_text_file_or_no_file_instead_of_an_image_is_3(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.doc").write_text("not an image")
    assert "notes.doc: not a readable image" in refused(3, "predict", run, tmp_path / "notes.doc")
    assert "none.png" in refused(3, "predict", run, tmp_path / "none.png")


def test_an_unknown_data_set_names_the_nearest() -> None:
    assert "did you mean 'mnist'?" in refused(3, "data", "fetch", "mnits")
