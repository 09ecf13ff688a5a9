"""Tests of evaluation.py: evaluating a run again gives the metrics in its result; classes of other data are matched by name."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import need_backend

from fastmlp.data.checks import CheckedRows
from fastmlp.data.load import load_data
from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.evaluation import evaluate_run
from fastmlp.experiments.folder import write_manifest
from fastmlp.experiments.result import describe_data
from fastmlp.experiments.training_run import run_training

COLOURS = np.array(["red", "green", "blue"])


def write_blobs(path: Path, seed: int, rows: int = 240, **arrays: Any) -> Path:
    draw = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    x = draw.normal(size=(rows, 5)) + 2 * np.eye(3, 5)[y]
    np.savez(path, **({"x": x.astype(np.float32), "y": COLOURS[y]} | arrays))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the data set blobs.npz and the run folder `run` of a training run on this data set."""
    folder = tmp_path_factory.mktemp("home")
    data = write_blobs(folder / "blobs.npz", 1)
    settings: dict[str, Any] = {"hidden": (8,), "epochs": 30, "lr": 0.01, "backend": "numpy", "stratify": True}
    run_training(TrainConfig(data=str(data), out=str(folder / "run"), seed=4, **settings), quiet=True)
    return folder


def result_of(home: Path) -> Any:
    return json.loads((home / "run" / "result.json").read_text())


def test_every_part_of_the_run_has_the_figures_of_the_result(home: Path) -> None:
    found, result = evaluate_run(home / "run", split="all"), result_of(home)
    for part in ("test", "validation", "train"):
        assert found[part] == result[part]
    assert found["data"] == result["data"]


@pytest.mark.parametrize("part", ["test", "validation", "train"])
def test_a_single_part(home: Path, part: str) -> None:
    found = evaluate_run(home / "run", split=part)
    assert found[part] == result_of(home)[part]
    assert {"test", "validation", "train"} & found.keys() == {part}


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_digits_to_the_last_digit_with_each_engine(name: str, tmp_path: Path) -> None:
    backend = need_backend(name)
    result, _ = run_training(TrainConfig(epochs=2, backend=backend, out=str(tmp_path / "a")), quiet=True)
    for source in (None, "digits"):
        assert evaluate_run(tmp_path / "a", source)["test"] == result["test"]


def test_float64_finds_its_engine(home: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=str(home / "blobs.npz"), out=str(tmp_path / "a"), dtype="float64", epochs=1)
    result, _ = run_training(config, quiet=True)
    assert evaluate_run(tmp_path / "a")["test"] == result["test"]
    found = evaluate_run(tmp_path / "a" / "model.safetensors", str(home / "blobs.npz"))
    assert found["backend"] == "numpy"


def test_the_runs_own_data_under_another_name_are_split_as_in_the_run(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.npz"
    copy.write_bytes((home / "blobs.npz").read_bytes())
    assert evaluate_run(home / "run", str(copy))["test"] == result_of(home)["test"]


def test_the_data_folder_of_the_run_is_found_again(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTMLP_DATA", raising=False)
    config = TrainConfig(out="a", data_dir="folder", epochs=1, backend="numpy")
    result, _ = run_training(config, quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate_run(tmp_path / "a")["test"] == result["test"]


# ------------------------------------------------------------------------------------------------ other data


def test_other_data_without_a_test_part_are_one_test_part(home: Path, tmp_path: Path) -> None:
    other = write_blobs(tmp_path / "other.npz", 2, rows=60)
    found = evaluate_run(home / "run", str(other), split="all")
    assert found["data"]["rows"] == {"test": 60}
    assert np.sum(found["test"]["confusion"]) == 60
    assert found["test"]["accuracy"] > 0.7
    model_file = evaluate_run(home / "run" / "model.safetensors", str(other), split="all", backend="numpy")
    assert model_file["test"] == found["test"]


def test_other_data_with_a_test_part(home: Path, tmp_path: Path) -> None:
    extra = {"x_test": np.zeros((6, 5), np.float32), "y_test": np.array(["red", "blue"] * 3)}
    other = write_blobs(tmp_path / "other.npz", 2, rows=60, **extra)
    found = evaluate_run(home / "run", str(other), split="all")
    assert found["data"]["rows"] == {"test": 6, "train": 60}
    with pytest.raises(ConfigError, match="has no split 'validation', only test, train"):
        evaluate_run(home / "run", str(other), split="validation")


def test_fewer_classes_are_matched_by_name(home: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    x = (draw.normal(size=(40, 5)) + 2 * np.eye(3, 5)[[0, 2] * 20]).astype(np.float32)
    other = tmp_path / "two.npz"
    np.savez(other, x=x, y=COLOURS[[0, 2] * 20])  # red and blue have indices 1 and 0 here, 2 and 0 in the model
    found = evaluate_run(home / "run", str(other))
    supports = {row["class"]: row["support"] for row in found["test"]["per_class"]}
    assert supports == {"blue": 20, "green": 0, "red": 20}
    assert found["test"]["accuracy"] > 0.8


def test_integers_are_class_numbers_if_the_classes_have_names(home: Path, tmp_path: Path) -> None:
    draw, names = np.random.default_rng(3), np.array(["blue", "green", "red"])
    x = (draw.normal(size=(40, 5)) + 2 * np.eye(3, 5)[[0, 2] * 20]).astype(np.float32)
    numbers = np.array([2, 0] * 20)
    np.savez(tmp_path / "numbers.npz", x=x, y=numbers)
    np.savez(tmp_path / "names.npz", x=x, y=names[numbers])
    found = [evaluate_run(home / "run", str(tmp_path / f"{name}.npz"))["test"] for name in ("numbers", "names")]
    assert found[0] == found[1]
    np.savez(tmp_path / "large.npz", x=x, y=numbers + 1)
    with pytest.raises(DataError, match="unknown class '3'"):
        evaluate_run(home / "run", str(tmp_path / "large.npz"))


def test_an_unknown_class_is_named(home: Path, tmp_path: Path) -> None:
    other = write_blobs(tmp_path / "other.npz", 2, rows=3, y=np.array(["red", "bleu", "green"]))
    with pytest.raises(DataError, match=r"unknown class 'bleu'; did you mean 'blue'\?"):
        evaluate_run(home / "run", str(other))


def test_another_number_of_features(home: Path, tmp_path: Path) -> None:
    other = write_blobs(tmp_path / "other.npz", 2, rows=3, x=np.zeros((3, 7), np.float32))
    with pytest.raises(DataError, match="takes rows of 5 features"):
        evaluate_run(home / "run", str(other))


def test_another_number_of_values(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.eye(30), y=np.arange(30.0))
    np.savez(tmp_path / "two.npz", x=np.eye(30), y=np.ones((30, 2)))
    config = TrainConfig(data=str(tmp_path / "one.npz"), task="regression", out=str(tmp_path / "a"), epochs=1, backend="numpy")
    result, _ = run_training(config, quiet=True)
    assert evaluate_run(tmp_path / "a")["test"] == result["test"]
    with pytest.raises(DataError, match="the model predicts 1 values, but two has 2"):
        evaluate_run(tmp_path / "a", str(tmp_path / "two.npz"))


def test_images_are_brought_to_the_size_of_the_model(tmp_path: Path) -> None:
    from PIL import Image

    for folder, size in (("photos", (6, 5)), ("larger", (12, 10))):
        for label, shade in (("dark", 10), ("light", 240)):
            (tmp_path / folder / label).mkdir(parents=True)
            for number in range(10):
                Image.new("L", size, shade + number).save(tmp_path / folder / label / f"{number}.png")
    settings: dict[str, Any] = {"epochs": 20, "lr": 0.01, "backend": "numpy"}
    result, _ = run_training(TrainConfig(data=str(tmp_path / "photos"), out=str(tmp_path / "a"), **settings), quiet=True)
    assert evaluate_run(tmp_path / "a")["test"] == result["test"]
    assert evaluate_run(tmp_path / "a", str(tmp_path / "larger"))["test"]["accuracy"] == 1


# ------------------------------------------------------------------------------------------------ invalid files


def test_changed_data_are_not_split_as_in_the_run(tmp_path: Path) -> None:
    data = write_blobs(tmp_path / "blobs.npz", 1)
    run_training(TrainConfig(data=str(data), out=str(tmp_path / "a"), epochs=1, backend="numpy"), quiet=True)
    write_blobs(data, 2)
    with pytest.raises(DataError, match=r"blobs\.npz has changed since the run"):
        evaluate_run(tmp_path / "a")
    assert evaluate_run(tmp_path / "a", str(data))["data"]["rows"] == {"test": 240}


def test_a_model_file_needs_data(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run folder.*give the data"):
        evaluate_run(home / "run" / "model.safetensors")


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such model"):
        evaluate_run(tmp_path / "none", "digits")


FILES = ("model.safetensors", "config.toml", "result.json", "manifest.json")
DAMAGED = set(itertools.product(FILES, ("flipped", "truncated", "missing")))
DAMAGED -= {("manifest.json", "missing")}  # a run without a manifest has not finished


@pytest.mark.parametrize(("name", "damage"), sorted(DAMAGED))
def test_a_damaged_run_is_refused(home: Path, tmp_path: Path, name: str, damage: str) -> None:

    shutil.copytree(home / "run", tmp_path / "run")
    file = tmp_path / "run" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.raises(DataError, match=r"model\.safetensors|config\.toml|result\.json|manifest\.json"):
        evaluate_run(tmp_path / "run")


def test_description_of_data(home: Path) -> None:
    data = load_data(home / "blobs.npz")
    described = describe_data(data, {"train": CheckedRows(data.x, data.y, 3)})
    assert described["name"] == "blobs"
    assert described["rows"] == {"train": 240}
    assert len(described["sha256"]) == 64


def test_a_result_of_another_format_version_is_refused(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    file = run / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 2}))
    write_manifest(run)
    with pytest.raises(DataError, match=r"result\.json: format version 2, but this version of fastmlp reads format version 1"):
        evaluate_run(run)
