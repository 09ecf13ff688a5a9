"""Untrusted run folders, settings and models: any file that a command reads may contain anything."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support.cli import FAST, call, forget_settings, no_figures, ok, refused  # noqa: F401 - a fixture

from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments.config.sources import read_config, resolve
from fastmlp.experiments.folder import read_data, read_history, read_run_result, write_manifest
from fastmlp.experiments.prediction import predict_files
from fastmlp.files import json_bytes, read_toml
from fastmlp.models.file import FILE_NAME
from fastmlp.models.model import load
from fastmlp.training.checkpoints import file as checkpoints

MIB = str(1 / 1024)  # in GiB
posix = pytest.mark.skipif(os.name != "posix", reason="named pipes exist only on POSIX systems")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    ok("train", *FAST, "--out", folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


# ------------------------------------------------------------------------------------------------ only regular files

FILES = ["config.toml", "result.json", "manifest.json", FILE_NAME]
COMMANDS: dict[str, Callable[[Path, Path], list[Any]]] = {
    "evaluate": lambda run, data: ["evaluate", run],
    "predict": lambda run, data: ["predict", run, data],
    "compare": lambda run, data: ["compare", run, run.parent / "other"],
    "verify": lambda run, data: ["verify", run],
    "resume": lambda run, data: ["train", "--resume", run],
}
# Commands that do not read a file.
UNUSED = {
    ("predict", "config.toml"),
    ("predict", "result.json"),
    ("predict", "manifest.json"),
    ("compare", FILE_NAME),
    ("resume", FILE_NAME),
    ("resume", "result.json"),
    ("resume", "manifest.json"),
}


@posix
@pytest.mark.parametrize(("command", "name"), sorted({*itertools.product(COMMANDS, FILES)} - UNUSED))
def test_named_pipes_in_a_run_folder_are_refused_at_once(command: str, name: str, run: Path, trained: Path) -> None:
    shutil.copytree(trained, run.parent / "other")
    (run.parent / "new.csv").write_text("1\n")
    (run / name).unlink()
    os.mkfifo(run / name)
    text = refused(3, *COMMANDS[command](run, run.parent / "new.csv"))
    assert text == f"cannot read {run / name}: it is a named pipe; give the path of a file"


@posix
@pytest.mark.parametrize("option", ["--data", "--config"])
def test_named_pipes_as_options(option: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert "it is a named pipe" in refused(3, "train", option, tmp_path / "pipe.csv")


@posix
def test_named_pipes_and_devices_as_inputs(run: Path, tmp_path: Path) -> None:
    for name in ("pipe.png", "pipe.npz", "pipe.npy", "pipe.csv", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        assert "it is a named pipe" in refused(3, "predict", run, tmp_path / name)
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    assert "it is a device" in refused(3, "predict", run, tmp_path / "zero.npy")
    assert "it is a device" in refused(3, "predict", "/dev/zero", tmp_path / "pipe.csv")


@posix
@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "compare", "verify", "extract"])
def test_paths_that_cannot_be_read(command: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / ("n" * 300)):
        options = ["--data"] if command in ("train", "extract") else []
        others = [path] if command in ("predict", "compare") else []
        assert "; " in refused(3, command, *options, path, *others)


def test_an_empty_input(run: Path) -> None:
    assert "Argument 'INPUT...' is empty" in call("predict", run, "").stderr
    with pytest.raises(ConfigError, match="inputs is empty; give a path"):
        predict_files(run, [""])


@posix
@pytest.mark.parametrize("command", [["train", *FAST], ["compare", "."], ["predict", "run", "a.csv"]])
def test_a_current_folder_that_was_removed(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert refused(3, *command) == "the current folder does not exist any more; change to another folder"


# ------------------------------------------------------------------------------------------------ only bounded sizes


def test_the_limit_is_an_option_of_all_commands_that_read_data(run: Path, tmp_path: Path) -> None:
    x = np.zeros((40_000, 64), np.uint8)  # 2.5 MB that are compressed to 3 kB
    np.savez_compressed(tmp_path / "a.npz", x=x, y=np.arange(len(x)) % 10)
    ok("train", "--data", tmp_path / "a.npz", *FAST, "--out", tmp_path / "small", "--max-decompressed", "1")
    assert read_toml(tmp_path / "small" / "config.toml")["max_decompressed"] == 1.0
    for command in (
        ["train", "--data", tmp_path / "a.npz", *FAST, "--out", tmp_path / "new"],
        ["evaluate", tmp_path / "small"],
        ["evaluate", tmp_path / "small", "--data", tmp_path / "a.npz"],
        ["predict", tmp_path / "small", tmp_path / "a.npz"],
        ["extract", "--data", tmp_path / "a.npz"],
    ):
        text = refused(3, *command, "--max-decompressed", MIB)
        assert text.endswith(" [--max-decompressed]") and text.startswith(f"{tmp_path / 'a.npz'}: ")
    for value in ("0", "-1"):
        text = refused(2, "predict", tmp_path / "small", tmp_path / "a.npz", "--max-decompressed", value)
        assert "max_decompressed must be a positive number of GiB" in text
    assert not (tmp_path / "new").exists()


DEEP: dict[str, tuple[str, str]] = {
    "arrays": ("hidden = " + "[" * 5000 + "]" * 5000, "not valid TOML ("),
    "fewer arrays": ("hidden = " + "[" * 50 + "]" * 50, "values are nested more than 8 levels deep"),
    "dotted key": (".".join(["a"] * 10_000) + " = 1", "line 1: a key has more than 8 dots"),
    "dotted keys in a table": ("a = {" + ".".join(["b"] * 10_000) + " = 1}", "line 1: a key has more than 8 dots"),
    "dots and spaces": (" . ".join(["a"] * 10_000) + " = 1", "line 1: a key has more than 8 dots"),
    "dotted strings": ("\n" + ".".join(['"a"', "'b'"] * 10_000) + " = 1", "line 2: a key has more than 8 dots"),
    "dotted key after strings": ('x = """\n\\"""" # """\n' + ".".join("a" * 10) + " = 1", "line 3: a key has more than 8 dots"),
    "strings that are not closed": ('\\"""\n' * 50_000, "not valid TOML ("),
    "quotes that are not closed": ('"' + '\\"' * 130_000, "not valid TOML ("),
    "a backslash at the end": ('\\"""\n' * 50_000 + "\\", "not valid TOML ("),
    "dotted header": ("[" + ".".join(["a"] * 10_000) + "]", "line 1: a key has more than 8 dots"),
    "decimal integer": ("seed = " + "1" * 5000, "not valid TOML ("),
    "hexadecimal integer": ("seed = 0x" + "f" * 5000, "an integer does not fit into 64 bits"),
    "size": ("#" * (1 << 18) + "\nseed = 1", "larger than 262,144 bytes"),
    "zero byte": ("seed = 1\0", "not valid TOML ("),
}


@pytest.mark.parametrize("kind", DEEP)
def test_settings_that_take_time_or_memory_are_refused(kind: str, tmp_path: Path) -> None:
    text, message = DEEP[kind]
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises((ConfigError, DataError)) as caught:
        resolve({}, {}, path)
    assert str(path) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "# " + "." * 5000,
        "lr = 0.1  # ... " + "." * 5000,
        'data = "' + "../" * 200 + 'a.npz"',
        "data = '" + "../" * 200 + "a.npz'",
        "data = '''\n" + "../" * 200 + "it's.'''''",
        'data = """\n' + "../" * 200 + '\\""" a """""',
        'data = "\\"' + "." * 200 + '"',
        "dropout = [" + ", ".join(["0.5"] * 200) + "]",
    ],
)
def test_dots_that_are_not_in_keys_are_read(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(line + "\nseed = 7\n")
    table = read_toml(tmp_path / "a.toml")
    assert table["seed"] == 7
    assert table == tomllib.loads(line + "\nseed = 7\n")


def test_seeds_of_64_bits_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f"seed = {2**64 - 1}\n")
    assert resolve({}, {}, tmp_path / "a.toml").seed == 2**64 - 1


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f"optimizer = '{'x' * 5000}'\n")
    with pytest.raises(ConfigError) as caught:
        resolve({}, {}, tmp_path / "a.toml")
    assert len(str(caught.value)) <= 600
    assert "Valid: " in str(caught.value)


# ------------------------------------------------------------------------------------------------ types of all that is read

OTHERS: list[Any] = [None, 1, "x", [], [1], {}, True]


def is_damage(error: DataError, path: Path) -> bool:
    return str(error).startswith(str(path)) and "; " in str(error)


@pytest.mark.parametrize("key", ["data", "network", "settings", "parameters", "best_epoch", "stopped", "test", "seconds"])
def test_items_of_result_json(key: str, run: Path) -> None:
    path, found = run / "result.json", json.loads((run / "result.json").read_text())
    wrong = [{}, [], [1]] if key != "test" else [[], [1], "x", 1]
    for value in [*wrong, ...]:
        table = {name: item for name, item in found.items() if name != key} | ({} if value is ... else {key: value})
        path.write_bytes(json_bytes(table))
        with pytest.raises(DataError) as caught:
            read_run_result(run)
        assert is_damage(caught.value, path)


@pytest.mark.parametrize("key", ["accuracy", "loss", "macro"])
def test_metrics_of_result_json(key: str, run: Path, trained: Path) -> None:
    found = json.loads((run / "result.json").read_text())
    for value in ("x", [], {}):
        (run / "result.json").write_bytes(json_bytes(found | {"test": found["test"] | {key: value}}))
        write_manifest(run, sorted(json.loads((trained / "manifest.json").read_text())["sha256"]))
        assert refused(3, "compare", run, trained).startswith(f"{run / 'result.json'}: damaged (")


@pytest.mark.parametrize("key", ["name", "features", "classes"])
@pytest.mark.parametrize("value", [None, True, {}, [1]])
def test_items_of_data_json(key: str, value: Any, run: Path) -> None:
    path = run / "data.json"
    path.write_bytes(json_bytes(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DataError) as caught:
        read_data(run)
    assert is_damage(caught.value, path)


@pytest.mark.parametrize("text", ["[1]", '{"epoch": "x"}', "[" * 9999, '{"epoch": 1, "loss": []}', "\udcff"])
def test_lines_of_metrics_jsonl(text: str, run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(DataError) as caught:
        read_history(run)
    assert is_damage(caught.value, run / "metrics.jsonl")


@pytest.mark.parametrize("text", ["lr = 'fast'", "batch_size = 0", "a = 1", "= 1"])
def test_settings_of_a_run_are_named(text: str, run: Path) -> None:
    (run / "config.toml").write_text(text)
    with pytest.raises(DataError) as caught:
        read_config(run / "config.toml")
    assert is_damage(caught.value, run / "config.toml")


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def tensors(run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """Return the path of a checkpoint, and the tensors that the reader gets, which tests change."""
    path = checkpoints.files_of(run)[-1]
    fields, found = checkpoints.file.read_checkpoint(path)
    monkeypatch.setattr(checkpoints.file, "read_checkpoint", lambda path: (fields, found))
    assert checkpoints.read(path).checkpoint.best_epoch >= 1
    return path, found


def replaced(found: dict[str, Any], **items: Any) -> dict[str, Any]:
    """Return the tensors with some items of the record replaced."""
    record = json.loads(found["record"].tobytes()) | items
    return {"record": np.frombuffer(json_bytes(record), np.uint8)}


PARTIAL = {"steps": [], "since": 0, "seconds": 0.0, "eval_seconds": 0.0}
WRONG_TENSORS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "parameters of another size": lambda found: {"parameters": found["parameters"][1:]},
    "parameters of another dtype": lambda found: {"parameters": found["parameters"].astype(int)},
    "slots of another size": lambda found: {"slots": found["slots"][:, 1:]},
    "slots of another shape": lambda found: {"slots": found["parameters"]},
    "slots without a shape": lambda found: {"slots": np.float32(1.0)},
    "partial epoch without tensors": lambda found: replaced(found, partial=PARTIAL),
    "partial epoch of another type": lambda found: replaced(found, partial=PARTIAL | {"since": "x"}) | partial_tensors(3, 3),
    "partial epoch with another item": lambda found: replaced(found, partial=PARTIAL | {"type": 1}) | partial_tensors(3, 3),
    "partial epoch of two lengths": lambda found: replaced(found, partial=PARTIAL) | partial_tensors(3, 4),
    "history of another type": lambda found: replaced(found, history=[{"epoch": 1}]),
    "settings without epochs": lambda found: replaced(found, settings={}),
    "environment without a backend": lambda found: replaced(found, environment={}),
    "another record": lambda found: {"record": np.frombuffer(b"[" * 9999, np.uint8)},
}


def partial_tensors(losses: int, correct: int) -> dict[str, Any]:
    return {"loss": np.zeros(losses, np.float32), "correct": np.zeros(correct, bool)}


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_checkpoints_whose_tensors_or_record_are_wrong(kind: str, tensors: tuple[Path, dict[str, Any]]) -> None:
    path, found = tensors
    found |= WRONG_TENSORS[kind](found)
    with pytest.raises(DataError) as caught:
        checkpoints.read(path)
    assert is_damage(caught.value, path)


def test_a_partial_epoch_is_read(tensors: tuple[Path, dict[str, Any]]) -> None:
    path, found = tensors
    found |= replaced(found, partial=PARTIAL) | partial_tensors(3, 3)
    partial = checkpoints.read(path).checkpoint.partial
    assert partial is not None
    assert len(partial.metrics.loss) == 3


def test_a_model_with_the_encoding_of_another_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,label\n" + "".join(f"{i},{i * i},{'no' if i % 2 else 'yes'}\n" for i in range(40)))
    ok("train", "--data", tmp_path / "a.csv", *FAST, "--out", tmp_path / "run")
    model = load(tmp_path / "run")
    assert model.encoding is not None
    encoding = msgspec.structs.replace(model.encoding, columns=model.encoding.columns[:1])
    object.__setattr__(model, "encoding", encoding)
    wrong = tmp_path / "wrong.safetensors"
    model.save(wrong)
    assert refused(3, "predict", wrong, tmp_path / "a.csv").startswith(f"{wrong}: the table encoding has 1 features")
