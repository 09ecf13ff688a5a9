"""Tests of training_run.py: splits, the content of the run folder, and the files that remain after an error."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmlp import load
from fastmlp.data.dataset import Dataset
from fastmlp.data.splits import split
from fastmlp.errors import ConfigError, DataError, ThresholdError
from fastmlp.experiments.config.sources import resolve
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.folder import check_manifest
from fastmlp.experiments.plan import SPLIT_NAMES, make_plan
from fastmlp.experiments.result import check_accuracy
from fastmlp.experiments.training_run import run_training
from fastmlp.files import read_lines
from fastmlp.training.loop import Diverged

CONFUSIONS = ["confusion-train.png", "confusion-validation.png", "confusion.png"]
FILES = ["checkpoints", "config.toml", *CONFUSIONS, "curves.png", "data.json", "manifest.json", "metrics.jsonl"]
FILES += ["model.safetensors", "report.txt", "result.json", "timings.jsonl"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dataset(rows: int = 100, test_rows: int = 0) -> Dataset:
    """Return a data set in which the feature of each row is its row number, so that a split can be checked row by row."""
    x = np.arange(rows, dtype=np.float32)[:, None]
    x_test = -1 - np.arange(test_rows, dtype=np.float32)[:, None]
    y, y_test = (np.arange(n, dtype=np.int32) % 4 for n in (rows, test_rows))
    classes = ("a", "b", "c", "d")
    if not test_rows:
        return Dataset("numbers", x, y, classes)
    return Dataset("numbers", x, y, classes, None, x_test, y_test)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data set of three Gaussian clusters (240 rows, 5 features) to a file, and return its path."""
    draw = np.random.default_rng(1)
    y = np.arange(240) % 3
    x = draw.normal(size=(240, 5)) + 4 * np.eye(3, 5)[y]
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, x=x.astype(np.float32), y=np.array(["red", "green", "blue"])[y])
    return path


def config_for(blobs: Path, out: Path, **settings: Any) -> TrainConfig:
    usual: dict[str, Any] = {"hidden": (8,), "epochs": 6, "batch_size": 16, "lr": 0.01, "backend": "numpy"}
    return TrainConfig(data=str(blobs), out=str(out), **(usual | settings))


@pytest.fixture(scope="module")
def run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Train a network; return the run folder and the result."""
    out = tmp_path_factory.mktemp("runs") / "a"
    result, signal = run_training(config_for(blobs, out, dropout=(0.1,), stratify=True, seed=3), quiet=True)
    assert signal == 0
    return out, result


# ------------------------------------------------------------------------------------------------ the split


@pytest.mark.parametrize("stratify", [False, True])
def test_parts_share_no_row_and_lose_none(stratify: bool) -> None:
    parts = split(dataset(), **TrainConfig(stratify=stratify).split_sizes())
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 60, "validation": 20, "test": 20}
    assert sorted(np.concatenate([rows.x[:, 0] for rows in parts.values()])) == list(range(100))
    assert all((rows.x[:, 0] % 4 == rows.y).all() for rows in parts.values())
    if stratify:
        assert all(np.bincount(rows.y).tolist() == [len(rows) // 4] * 4 for rows in parts.values())


def test_the_test_part_of_the_data_is_kept_as_it_is() -> None:
    data = dataset(test_rows=7)
    parts = split(data, **TrainConfig(val_fraction=None, val_count=30).split_sizes())
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 70, "validation": 30, "test": 7}
    assert parts["test"].x is data.x_test


def test_the_split_is_a_function_of_the_seed() -> None:
    one, same, other = (split(dataset(), **TrainConfig(seed=seed).split_sizes())["train"].x for seed in (5, 5, 6))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_parts_of_no_rows_are_left_out() -> None:
    assert list(split(dataset(), **TrainConfig(val_fraction=0.0, test_fraction=0.0).split_sizes())) == ["train"]


def test_counts_beyond_the_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave none of the 100 rows"):
        split(dataset(), **TrainConfig(val_fraction=None, val_count=90).split_sizes())


def test_pixels_stay_bytes_in_every_part() -> None:
    assert {rows.x.dtype for rows in make_plan(TrainConfig()).splits.values()} == {np.dtype(np.uint8)}


# ------------------------------------------------------------------------------------------------ the folder


def test_the_folder_is_complete_and_sealed(run: tuple[Path, dict[str, Any]]) -> None:
    folder, result = run
    assert names(folder) == FILES
    check_manifest(folder)
    assert json.loads((folder / "result.json").read_text()) == result
    for picture in ("curves.png", *CONFUSIONS):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_figures_have_titles_and_show_their_splits(blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices: dict[str, Any] = {}
    curves: list[Any] = []

    def plot_confusion(confusion: Any, classes: Any, path: Path, title: str) -> None:
        matrices[path.name] = title, confusion

    monkeypatch.setattr("fastmlp.reports.confusion.plot_confusion", plot_confusion)
    monkeypatch.setattr("fastmlp.reports.curves.plot_curves", lambda history, best, path, title: curves.append((path, title)))
    result, _ = run_training(config_for(blobs, tmp_path / "a", optimizer="nesterov", seed=7), quiet=True)
    assert curves == [(tmp_path / "a" / "curves.png", "blobs, 5x8x3, nesterov, seed 7")]
    named = {"confusion.png": "test", "confusion-validation.png": "validation", "confusion-train.png": "train"}
    assert matrices == {name: (f"Confusion matrix, {split} split", result[split]["confusion"]) for name, split in named.items()}
    matrices.clear()
    without = config_for(blobs, tmp_path / "b", test_fraction=0.0, hidden=(9,) * 20)
    result, _ = run_training(without, quiet=True)
    named = {"confusion.png": "validation", "confusion-train.png": "train"}
    assert {name: title for name, (title, _) in matrices.items()} == {
        name: f"Confusion matrix, {split} split" for name, split in named.items()
    }
    assert curves[1][1] == f"blobs, {result['network']['label'][:39]}…, adam, seed 0"


def test_figures_of_the_result(run: tuple[Path, dict[str, Any]]) -> None:
    folder, result = run
    history, timings = (read_lines(folder / name) for name in ("metrics.jsonl", "timings.jsonl"))
    assert [row["epoch"] for row in history] == [row["epoch"] for row in timings] == list(range(1, 7))
    assert set(history[0]) == {"epoch", "rows", "loss", "accuracy", "val_loss", "val_accuracy", "lr"}
    assert result["epochs"] == 6
    assert result["best_epoch"] == min(history, key=lambda row: row["val_loss"])["epoch"]
    assert result["seconds_per_epoch"] == statistics.median(row["seconds"] for row in timings)
    assert result["seconds"] >= sum(row["seconds"] for row in timings)
    flops = 2 * 5 * 8 * 2 + 2 * 8 * 3 * 3  # per row: 2 matrix products in layer 1, 3 in layer 2
    assert result["gflops"] == pytest.approx(flops * 144 / result["seconds_per_epoch"] / 1e9)
    assert result["parameters"] == (5 + 1) * 8 + (8 + 1) * 3
    assert (result["backend"], result["threads"], result["settings"]["seed"], result["stopped"]) == ("numpy", 1, 3, "epochs")
    assert result["data"]["rows"] == {"train": 144, "validation": 48, "test": 48}
    assert result["data"]["classes"] == ["blue", "green", "red"]
    assert result["network"]["label"] == "5x8x3"
    assert result["out"] == str(folder)
    best = history[result["best_epoch"] - 1]
    assert result["validation"]["loss"] == best["val_loss"]
    assert result["validation"]["accuracy"] == best["val_accuracy"]
    for part in SPLIT_NAMES:
        figures = result[part]
        assert np.sum(figures["confusion"]) == result["data"]["rows"][part]
        assert figures["accuracy"] == np.trace(figures["confusion"]) / np.sum(figures["confusion"])
        assert [row["class"] for row in figures["per_class"]] == ["blue", "green", "red"]
        assert {"macro", "weighted"} <= figures.keys()
    assert result["test"]["accuracy"] > 0.9


def test_the_model_knows_its_scaling_and_its_classes(run: tuple[Path, dict[str, Any]], blobs: Path) -> None:
    model = load(run[0], backend="numpy")
    assert model.classes == ("blue", "green", "red")
    assert model.scaling is not None
    x = make_plan(resolve({}, {}, run[0] / "config.toml")).splits["train"].x
    scaled = model.scaling.apply(x)
    assert np.allclose(scaled.mean(axis=0), 0, atol=1e-5)  # scaling is fitted on the training split only
    assert np.allclose(scaled.std(axis=0), 1, atol=1e-5)


def test_the_config_gives_the_same_run_again(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, result = run
    again = resolve({"out": str(tmp_path / "b")}, {}, folder / "config.toml")
    second, _ = run_training(again, quiet=True)
    for key in (*SPLIT_NAMES, "epochs", "best_epoch", "parameters", "data", "network", "stopped"):
        assert second[key] == result[key]
    for name in ("config.toml", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_config_serves_from_any_folder(blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(blobs.parent)
    run_training(config_for(Path(blobs.name), tmp_path / "a", epochs=1), quiet=True)
    assert resolve({}, {}, tmp_path / "a" / "config.toml").data == str(blobs)


def test_without_out_the_folder_is_named_after_date_data_and_network(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(data=str(blobs), hidden=(), epochs=1, backend="numpy")
    result, _ = run_training(config, quiet=True)
    assert result["out"].startswith("runs/20")
    assert result["out"].endswith("-blobs-5x3")
    assert names(tmp_path / result["out"]) == FILES


@pytest.mark.parametrize("loss", ["squared-error", "absolute-error", "huber:0.5", "quantile"])
def test_regression(tmp_path: Path, loss: str) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 3)).astype(np.float32)
    np.savez(tmp_path / "values.npz", x=x, y=np.c_[x.sum(axis=1), x[:, 0]])
    config = config_for(tmp_path / "values.npz", tmp_path / "a", task="regression", loss=loss, epochs=40)
    result, _ = run_training(config, quiet=True)
    assert names(tmp_path / "a") == sorted({*FILES, "predictions.png"} - {*CONFUSIONS, "report.txt"})
    assert result["test"].keys() == {"loss", "mse", "mae", "rmse", "r2"}
    assert result["test"]["r2"] > 0.9
    model = load(tmp_path / "a", backend="numpy")
    assert (model.classes, model.network.loss) == ((), loss)


def test_images_keep_their_shape(tmp_path: Path) -> None:
    from PIL import Image

    for label, shade in (("dark", 10), ("light", 240)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(10):
            image = Image.new("RGB", (6, 5), (shade + number,) * 3)
            image.save(tmp_path / "photos" / label / f"{number}.png")
    config = config_for(tmp_path / "photos", tmp_path / "a", image_size=(4, 3), epochs=2)
    result, _ = run_training(config, quiet=True)
    assert load(tmp_path / "a", backend="numpy").image_shape == (4, 3, 3)
    assert names(tmp_path / "a") == sorted([*FILES, "mistakes.png"])
    assert result["data"]["features"] == 36


def test_no_validation_and_no_test_part(blobs: Path, tmp_path: Path) -> None:
    config = config_for(blobs, tmp_path / "a", val_fraction=0.0, test_fraction=0.0)
    result, _ = run_training(config, quiet=True)
    assert (result["test"], result["validation"]) == (None, None)
    assert result["best_epoch"] == 6
    # confusion.png shows the training split
    assert names(tmp_path / "a") == sorted({*FILES} - {"confusion-train.png", "confusion-validation.png"})


def test_float64(blobs: Path, tmp_path: Path) -> None:
    run_training(config_for(blobs, tmp_path / "a", dtype="float64", backend="auto"), quiet=True)
    assert load(tmp_path / "a", backend="numpy").parameters.dtype == np.float64


def test_a_time_budget_stops_the_run(blobs: Path, tmp_path: Path) -> None:
    config = config_for(blobs, tmp_path / "a", epochs=10**6, patience=0, max_time=1e-9)
    result, _ = run_training(config, quiet=True)
    assert (result["stopped"], result["epochs"]) == ("time", 1)
    assert result["seconds_per_epoch"] > 0


def test_what_is_said_on_the_way(blobs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run_training(config_for(blobs, tmp_path / "a"), quiet=True, say=said.append)
    assert said[0] == "blobs: 144 train, 48 validation, 48 test rows; network 5x8x3, 75 parameters"
    end = f"maximum number of epochs reached at epoch 6 (best epoch 6): {tmp_path / 'a'} (1 checkpoint, 4.8 kB)"
    assert said[-1] == end


# ------------------------------------------------------------------------------------------------ failures


def test_bad_settings_and_bad_data_leave_no_folder(blobs: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    bad = [
        config_for(tmp_path / "none.npz", out),
        config_for(blobs, out, dropout=(1.5,)),
        config_for(blobs, out, lr=-1.0),
        config_for(blobs, out, val_fraction=0.5, test_fraction=0.5),
        config_for(blobs, out, min_accuracy=0.5, test_fraction=0.0),
        config_for(blobs, out, predictions=True, test_fraction=0.0),
        config_for(blobs, out, val_steps=3, patience=0, val_fraction=0.0),
        config_for(blobs, out, flip=0.5),  # the data are not images
        config_for(blobs, out, patience=3, val_fraction=0.0),  # this error is detected only when training starts
    ]
    for config in bad:
        with pytest.raises((ConfigError, DataError)):
            run_training(config, quiet=True)
        assert not out.exists()


def test_a_used_folder_is_not_touched_without_force(blobs: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty; set force"):
        run_training(config_for(blobs, tmp_path), quiet=True)
    assert names(tmp_path) == ["note.txt"]
    run_training(config_for(blobs, tmp_path, force=True), quiet=True)
    assert names(tmp_path) == sorted([*FILES, "note.txt"])
    for name in ("mistakes.png", "mistakes.csv", "predictions.png", "predictions.txt"):  # of an earlier run with other data
        (tmp_path / name).touch()
    run_training(config_for(blobs, tmp_path, force=True, epochs=2), quiet=True)
    assert names(tmp_path) == sorted([*FILES, "note.txt"])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_an_empty_folder_given_by_the_user_stays(blobs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run_training(config_for(blobs, tmp_path, patience=3, val_fraction=0.0), quiet=True)
    assert names(tmp_path) == []


def test_divergence_in_the_first_epoch_leaves_no_folder(blobs: Path, tmp_path: Path) -> None:
    config = config_for(blobs, tmp_path / "a", optimizer="sgd", lr=1e30, loss="squared-error", scale="none")
    with pytest.raises(Diverged, match="epoch 1, step"):
        run_training(config, quiet=True)
    assert not (tmp_path / "a").exists()


def test_divergence_later_keeps_the_best_weights(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    np.savez(tmp_path / "line.npz", x=x, y=x)
    settings: dict[str, Any] = {"hidden": (), "batch_size": 64, "epochs": 300, "patience": 0, "scale": "none"}
    config = config_for(tmp_path / "line.npz", tmp_path / "a", task="regression", optimizer="sgd", lr=20.0, **settings)
    with pytest.raises(Diverged, match=r"loss became (inf|nan)") as caught:
        run_training(config, quiet=True)
    assert caught.value.training is not None
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    history = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert result["stopped"] == "diverged"
    assert result["epochs"] == len(history) > 3
    assert result["best_epoch"] == 1
    check_manifest(tmp_path / "a")
    assert np.isfinite(load(tmp_path / "a", backend="numpy").parameters).all()


def test_threshold() -> None:
    check_accuracy({"test": {"accuracy": 0.9}}, "test", 0.9)
    check_accuracy({"test": {"mse": 0.9}}, "test", None)
    with pytest.raises(ThresholdError, match=r"test accuracy 0\.9 is below the minimum 0\.95"):
        check_accuracy({"test": {"accuracy": 0.9}}, "test", 0.95)
    with pytest.raises(ConfigError, match="min_accuracy needs a classifier, but this is a regression model"):
        check_accuracy({"test": {"mse": 0.9}}, "test", 0.95)
