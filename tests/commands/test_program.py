"""Tests that run the program in this process: help, streams, settings, and the output of each command."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.cli import FAST, SMALL, call, forget_settings, ok, refused

import fastmlp
from fastmlp.commands.common.console import warn


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


# ------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"], ["data"], ["data", "fetch"], ["doctor"]])
def test_short_and_long_help_are_the_same(command: list[str]) -> None:
    assert ok(*command, "-h").stdout == ok(*command, "--help").stdout


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"], ["compare"]])
def test_examples_come_before_options(command: list[str]) -> None:
    text = ok(*command, "--help").stdout
    first_option = re.search(r"^  -", text, re.MULTILINE)
    assert first_option is not None
    assert text.index("\n  fastmlp ") < first_option.start()


def test_help_shows_the_default_learning_rate_of_each_optimizer() -> None:
    words = " ".join(ok("train", "--help").stdout.split())
    assert "[default: 0.05 for sgd, 0.01 for momentum, 0.01 for nesterov, 0.001 for rmsprop, 0.001 for adam" in words


def test_version() -> None:
    assert ok("--version").stdout == f"fastmlp {fastmlp.__version__}\n"


# ------------------------------------------------------------------------------------------------ train: streams


def test_train_prints_a_table_on_stdout_and_progress_on_stderr(tmp_path: Path) -> None:
    result = ok("train", *FAST, "--out", tmp_path / "a")
    assert result.stdout.startswith("data set            digits\nnetwork             784x16x10\n")
    assert f"run folder          {tmp_path / 'a'}" in result.stdout
    assert "macro average" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0].startswith("digits: 1,079 train, 359 validation, 359 test rows; network 784x16x10")
    assert [line.split()[1] for line in lines[1:4]] == ["1/3", "2/3", "3/3"]
    end = f"maximum number of epochs reached at epoch 3 (best epoch 3): {tmp_path / 'a'} (1 checkpoint, 213.0 kB)"
    assert lines[4:] == [end]


def test_json_is_one_object_and_the_result_file(tmp_path: Path) -> None:
    result = ok("train", *FAST, "--out", tmp_path / "a", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "a" / "result.json").read_text())
    assert "epoch 3/3" in result.stderr


def test_quiet_leaves_stderr_empty(tmp_path: Path) -> None:
    assert ok("train", *FAST, "-q").stderr == ""
    assert ok("train", *FAST, FASTMLP_QUIET="1").stderr == ""


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    warn("compiled kernels are not kept", RuntimeWarning, "kernel_cache.py", 74)
    assert capsys.readouterr().err == "fastmlp: warning: compiled kernels are not kept\n"


def test_verbose_shows_the_settings(tmp_path: Path) -> None:
    assert 'optimizer = "adam"' in ok("train", *FAST, "-v").stderr


def test_train_without_arguments_is_accurate(tmp_path: Path) -> None:
    result = json.loads(ok("train", "--json", "-q").stdout)
    assert result["test"]["accuracy"] >= 0.95
    assert Path(result["out"], "model.safetensors").is_file()


# ------------------------------------------------------------------------------------------------ train: settings


def printed(*arguments: str | Path, **variables: str) -> dict[str, Any]:
    return tomllib.loads(ok("train", "--print-config", *arguments, **variables).stdout)


def test_print_config_is_valid_input_and_trains_nothing(tmp_path: Path) -> None:
    first = ok("train", "--print-config", "--hidden", "400,250,100", "--dropout", "0.2", "--stratify", "--max-time", "2m")
    (tmp_path / "a.toml").write_text(first.stdout)
    second = ok("train", "--print-config", "--config", tmp_path / "a.toml")
    assert first.stdout == second.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]


def test_flag_before_variable_before_file_before_default(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("epochs = 2\nseed = 2\nlr = 0.2\nstratify = true\n")
    file: list[str | Path] = ["--config", tmp_path / "a.toml"]
    found = printed(*file, "--epochs", "4", "--no-stratify", FASTMLP_EPOCHS="3", FASTMLP_SEED="3", FASTMLP_STRATIFY="yes")
    assert (found["epochs"], found["seed"], found["lr"], found["batch_size"]) == (4, 3, 0.2, 64)
    assert found["stratify"] is False


def test_the_config_file_itself_can_come_from_a_variable(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("epochs = 2\n")
    (tmp_path / "b.toml").write_text("epochs = 3\n")
    assert printed(FASTMLP_CONFIG=str(tmp_path / "a.toml"))["epochs"] == 2
    assert printed("--config", tmp_path / "b.toml", FASTMLP_CONFIG=str(tmp_path / "a.toml"))["epochs"] == 3


def test_a_runs_config_gives_the_same_run(run: Path, tmp_path: Path) -> None:
    found = json.loads(ok("train", "--config", run / "config.toml", "--out", tmp_path / "b", "--json").stdout)
    assert found["test"] == json.loads((run / "result.json").read_text())["test"]


# ------------------------------------------------------------------------------------------------ evaluate, predict


def test_evaluate_gives_the_metrics_of_the_result(run: Path) -> None:
    found = json.loads(ok("evaluate", run, "--json").stdout)
    result = json.loads((run / "result.json").read_text())
    assert found["test"] == result["test"]
    assert json.loads(ok("evaluate", run, "--data", "digits", "--json").stdout) == found
    assert json.loads(ok("evaluate", run, "--json", FASTMLP_DATASET="digits", FASTMLP_SPLIT="validation").stdout)[
        "validation"
    ] == result["validation"]  # fmt: skip


def test_evaluate_prints_a_table(run: Path) -> None:
    text = ok("evaluate", run).stdout
    assert "data set            digits\n" in text
    assert f"test accuracy       {json.loads((run / 'result.json').read_text())['test']['accuracy']:.4f}\n" in text


def test_evaluate_draws_the_mistakes(run: Path, tmp_path: Path) -> None:
    ok("evaluate", run, "--split", "train", "--mistakes", tmp_path / "train.png")
    assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")
    line = refused(2, "evaluate", run, "--mistakes", tmp_path / "train.csv")
    assert line == "mistakes: digits is not a table; use a name that ends with .png [--mistakes]"
    line = refused(2, "evaluate", run, "--split", "all", "--mistakes", tmp_path / "all.png")
    assert line == "mistakes are written for one split, not for all [--split, --mistakes]"
    refused(3, "evaluate", run, "--mistakes", tmp_path / "none" / "a.png")


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """Write an image of the digit 7, in color and larger than the training images, and return its path."""
    data = fastmlp.load_data("digits")
    picture = Image.fromarray(data.x[data.y == 7][0].reshape(28, 28)).convert("RGB").resize((50, 40))
    picture.save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def test_predict_prints_a_line_per_row(run: Path, seven: Path) -> None:
    name, label, share = ok("predict", run, seven).stdout.rstrip("\n").split("\t")
    assert (name, label) == (str(seven), "7")
    assert 0.1 < float(share) <= 1
    assert len(ok("predict", run, seven, seven, "--top", "3").stdout.splitlines()[1].split("\t")) == 7


def test_predict_json(run: Path, seven: Path) -> None:
    found = json.loads(ok("predict", run / "model.safetensors", seven, "--json").stdout)
    (one,) = found["predictions"]
    assert (one["input"], one["row"], one["label"]) == (str(seven), 1, "7")
    assert len(one["probabilities"]) == 10
    assert one["probability"] == max(one["probabilities"].values())


def test_predict_writes_a_csv_file(run: Path, seven: Path, tmp_path: Path) -> None:
    assert ok("predict", run, seven, "--out", tmp_path / "labels.csv").stdout == ""
    header, row = (tmp_path / "labels.csv").read_text().splitlines()
    assert header == "input,row,label,0,1,2,3,4,5,6,7,8,9"
    assert row.startswith(f"{seven},1,7,")
    refused(3, "predict", run, seven, "--out", tmp_path / "none" / "labels.csv")


def test_predict_writes_the_format_of_the_suffix(run: Path, seven: Path, tmp_path: Path) -> None:
    found = ok("predict", run, seven, seven, "--json", "--out", tmp_path / "labels.json").stdout
    assert (tmp_path / "labels.json").read_text() == found
    ok("predict", run, seven, seven, "--out", tmp_path / "labels.jsonl", "--top", "2")
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [(one["input"], one["label"], len(one["probabilities"])) for one in lines] == [(str(seven), "7", 2)] * 2
    for name in ("labels.txt", "labels"):
        line = refused(2, "predict", run, tmp_path / "none.png", "--out", tmp_path / name)
        assert line.endswith(f"{name}' must end with .csv, .json or .jsonl [--out]")
        assert not (tmp_path / name).exists()


# ------------------------------------------------------------------------------------------------ data, doctor


def test_data_list(tmp_path: Path) -> None:
    lines = ok("data", "list", "--data-dir", tmp_path).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["digits", "embedded"], ["fashion-mnist", "missing"], ["mnist", "missing"]]
    found = json.loads(ok("data", "list", "--json", FASTMLP_DATA=str(tmp_path)).stdout)
    assert found["datasets"][2]["folder"].startswith(str(tmp_path))


def test_data_verify(tmp_path: Path) -> None:
    nothing = ok("data", "verify", "--data-dir", tmp_path)
    assert nothing.stdout == ""  # no file exists, so none is damaged
    assert "no data set files found" in nothing.stderr
    result = call("data", "verify", "mnist", "--data-dir", tmp_path, "--json")
    assert result.exit_code == 3
    assert {row["status"] for row in json.loads(result.stdout)["files"]} == {"missing"}
    assert "damaged or missing" in result.stderr
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"damaged")
    result = call("data", "verify", "--data-dir", tmp_path)
    assert result.exit_code == 3
    assert result.stdout.startswith("damaged  ")


def test_data_fetch_of_what_is_embedded_does_nothing(tmp_path: Path) -> None:
    assert ok("data", "fetch", "digits", "--data-dir", tmp_path).stdout == ""
    assert json.loads(ok("data", "fetch", "digits", "--json").stdout) == {"files": []}


def test_doctor(tmp_path: Path) -> None:
    result = ok("doctor", "--json", "--data-dir", tmp_path)
    found = json.loads(result.stdout)
    assert found["ok"] is True
    assert {check["state"] for check in found["checks"]} <= {"ok", "note"}
    text = ok("doctor", "--data-dir", tmp_path).stdout
    assert str(tmp_path) in text
    assert len(text.splitlines()) == len(found["checks"])
