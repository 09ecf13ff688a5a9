"""Tests of features/outputs.py: the files and metrics of the CNN alone are those that `train` writes for an MLP."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastmlp.cnn.training import Trainer
from support.cli import call, ok, refused
from support.cnn import SHAPE, bars
from support.extract import DRAWN, own_folder  # noqa: F401 - fixture of all tests

from fastmlp.data.load import load_data
from fastmlp.data.splits import split
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.features import extraction
from fastmlp.experiments.folder import locked
from fastmlp.files import read_lines
from fastmlp.models.model import load
from fastmlp.reports.text import classification_report, predictions_text

pytestmark = pytest.mark.full

SMALL = ["--filters", "8,8", "--dense", "16", "--epochs", "6", "--lr", "0.005", "--batch-size", "8", "--device", "cpu"]
SAVED = ["--per-class-every", "2", "--save-every", "3", "--predictions"]
MLP = ["--hidden", "8", "--epochs", "2", "--backend", "numpy"]
MODELS = ["epoch-0003.safetensors", "epoch-0006.safetensors"]
FOLDER = Path("f-pictures")
# Without a validation split, the last epoch counts as the best one, so its metrics are those of the result.
UNVALIDATED = ["--val-fraction", "0", "--per-class-every", "3", "--save-every", "6"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of images with a test split."""
    pixels, labels = bars(300, 0)
    x, y = pixels.reshape(-1, *SHAPE[:2]), np.array(["row", "column", "none"])[labels]
    path: Path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, x=x[:240], y=y[:240], x_test=x[240:], y_test=y[240:])
    return path


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, _ in DRAWN:
        monkeypatch.setattr(module, name, lambda *given: None)


def extract(images: Path, *arguments: Any) -> dict[str, Any]:
    """Run `extract` and return its result."""
    given = ["extract", "--data", images, *SMALL, "--out", "f.npz", "--json", *arguments]
    found: dict[str, Any] = json.loads(ok(*given).stdout)
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_metrics_are_those_of_each_split(images: Path) -> None:
    result = extract(images, "--per-class-every", "6", "--predictions")
    data = load_data(images)
    parts = split(data, **ExtractConfig(data=str(images)).split_sizes())
    for name, rows in parts.items():
        metrics = result["cnn"][name]
        assert {*metrics} == {"loss", "accuracy", "per_class", "macro", "weighted", "confusion"}
        counts = np.array(metrics["confusion"])
        assert counts.sum(axis=1).tolist() == np.bincount(rows.y, minlength=3).tolist()
        assert [one["support"] for one in metrics["per_class"]] == counts.sum(axis=1).tolist()
        assert metrics["accuracy"] == np.trace(counts) / counts.sum()
        recall = np.diag(counts) / counts.sum(axis=1)
        assert metrics["macro"]["recall"] == pytest.approx(recall.mean(), rel=1e-12)
    shown = result["cnn"]["test"]
    assert (FOLDER / "cnn-report.txt").read_text() == classification_report(shown)
    lines = (FOLDER / "cnn-predictions.txt").read_text().splitlines()
    truth, predicted = np.array([list(map(int, line.split(","))) for line in lines[2:]]).T
    assert truth.tolist() == data.y_test.tolist()  # type: ignore[union-attr]
    assert (FOLDER / "cnn-predictions.txt").read_text() == predictions_text(truth, predicted, shown)
    table = np.zeros((3, 3), int)
    np.add.at(table, (truth, predicted), 1)
    assert table.tolist() == shown["confusion"]
    text = ok("extract", "--data", images, *SMALL, "--out", "f.npz", "-q").stdout
    for one in shown["per_class"]:
        assert f"{one['precision']:11.4f}{one['recall']:8.4f}{one['f1']:8.4f}{one['support']:9,d}\n" in text


def test_the_last_line_of_the_classes_is_the_result(images: Path) -> None:
    result = extract(images, *UNVALIDATED)
    lines = read_lines(FOLDER / "cnn-classes.jsonl")
    assert [line["epoch"] for line in lines] == [3, 6]
    assert lines[-1]["train"] == {name: value for name, value in result["cnn"]["train"].items() if name != "loss"}
    assert lines[0]["train"]["confusion"] != lines[1]["train"]["confusion"]
    assert (FOLDER / "cnn-classes.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.usefixtures("without_figures")
def test_the_validation_split_is_evaluated_in_each_epoch(images: Path) -> None:
    result = extract(images, "--per-class-every", "1")
    lines, history = read_lines(FOLDER / "cnn-classes.jsonl"), result["cnn"]["history"]
    assert [line["validation"]["accuracy"] for line in lines] == [row["val_accuracy"] for row in history]
    best = lines[result["cnn"]["best_epoch"] - 1]
    for name in ("train", "validation"):
        assert best[name]["confusion"] == result["cnn"][name]["confusion"]
    assert "test" not in best


@pytest.mark.usefixtures("without_figures")
def test_a_saved_model_is_the_network_of_its_epoch(images: Path) -> None:
    result = extract(images, *UNVALIDATED)
    (file,) = (FOLDER / "cnn-models").iterdir()
    told = json.loads(ok("evaluate", file, "--data", images, "--split", "all", "--json").stdout)
    for name in ("train", "test"):
        assert told[name]["confusion"] == result["cnn"][name]["confusion"]
        assert told[name]["loss"] == pytest.approx(result["cnn"][name]["loss"], rel=1e-4)
    assert load(file).classes == ("column", "none", "row")
    np.savez("one.npz", x=load_data(images).x[:1].reshape(1, *SHAPE[:2]))
    assert len(ok("predict", file, "one.npz").stdout.splitlines()) == 1


@pytest.mark.usefixtures("without_figures")
def test_the_models_of_a_backbone(images: Path) -> None:
    pytest.importorskip("torchvision", exc_type=ImportError)
    arguments = ["--data", images, "--backbone", "squeezenet1_0"]
    assert "does not end in a dense layer" in refused(2, "extract", *arguments)
    x = np.random.default_rng(0).integers(0, 255, (12, 32, 32), np.uint8)
    np.savez("small.npz", x=x, y=np.arange(12) % 2)
    settings = ["--backbone", "resnet18", "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--val-fraction", "0"]
    arguments = ["extract", "--data", "small.npz", *settings, "--test-fraction", "0", "--save-every", "1", "--out", "f.npz"]
    result = json.loads(ok(*arguments, "--json", "-q").stdout)
    told = json.loads(ok("evaluate", FOLDER / "cnn-models/epoch-0001.safetensors", "--data", "small.npz", "--json").stdout)
    assert told["test"]["loss"] == pytest.approx(result["cnn"]["train"]["loss"], rel=1e-4)  # all rows


def test_nothing_changes_by_what_is_saved(images: Path) -> None:
    plain = extract(images)
    features = load_data("f.npz").sha256
    assert not [path for path in FOLDER.iterdir() if path.name in ("cnn-classes.jsonl", "cnn-models", "cnn-predictions.txt")]
    again = extract(images, *SAVED, "--force")
    assert (again["key"], again["extractor_sha256"]) == (plain["key"], plain["extractor_sha256"])
    assert load_data("f.npz").sha256 == features
    assert sorted(path.name for path in (FOLDER / "cnn-models").iterdir()) == MODELS
    extract(images, "--force")
    assert not [path for path in FOLDER.rglob("*") if path.name in ("cnn-classes.jsonl", *MODELS, "cnn-predictions.txt")]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["f-pictures", "f.npz"]


# ------------------------------------------------------------------------------------------------ interrupted


def interrupt(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGINT when the checkpoint of an epoch is written."""
    checkpoint = Trainer.checkpoint

    def interrupted(trainer: Trainer) -> bytes:
        if len(trainer.history) == epoch:
            os.kill(os.getpid(), signal.SIGINT)
        return checkpoint(trainer)

    monkeypatch.setattr(Trainer, "checkpoint", interrupted)


def test_a_resumed_run_has_the_same_files(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(images, *SAVED)
    whole = content(FOLDER)
    given = ["extract", "--data", images, *SMALL, *SAVED, "--out", "g.npz"]
    with monkeypatch.context() as patch:
        interrupt(3, patch)
        cut = call(*given)
    assert cut.exit_code == 128 + signal.SIGINT
    (saved,) = Path.cwd().glob("g.npz.*.saved")
    assert saved.name in cut.stderr.splitlines()[-1]
    assert sorted(content(saved)) == ["cnn-classes.jsonl", "cnn-models/epoch-0003.safetensors"]
    with (saved / "cnn-classes.jsonl").open("a") as file:  # as if the run had been killed before a checkpoint
        file.write('{"epoch": 4, "damaged')
    (saved / "cnn-models/epoch-0006.safetensors").touch()
    assert "continuing from g.npz" in ok(*given).stderr
    assert not saved.exists()
    found = content(Path("g-pictures"))
    assert found.keys() == whole.keys()
    assert {name for name in whole if found[name] != whole[name]} <= {"cnn-curves.png"}  # which shows the time per epoch


@pytest.mark.usefixtures("without_figures")
def test_a_run_that_starts_again_leaves_nothing_of_the_first(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(4, patch)
        call("extract", "--data", images, *SMALL, *SAVED, "--out", "f.npz")
    extract(images, "--no-resume")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["f.npz"]


# ------------------------------------------------------------------------------------------------ existing features


def test_files_of_existing_features(images: Path) -> None:
    """Reports and predictions are written again, but the files of the training cannot be."""
    extract(images)
    given = ["extract", "--data", images, *SMALL, *SAVED, "--out", "f.npz"]
    told = ok(*given).stderr
    assert "f-pictures lacks cnn-classes.jsonl, cnn-models, which can be written only while the CNN is trained" in told
    assert "f-pictures lacks cnn-predictions.txt; writing all figures and reports again" in told
    beyond = [*given[:-7], "--per-class-every", "9", "--save-every", "7", *given[-3:]]  # more than the number of epochs
    assert beyond[-3:] == ["--predictions", "--out", "f.npz"]
    assert "while the CNN is trained" not in ok(*beyond).stderr
    predictions = (FOLDER / "cnn-predictions.txt").read_bytes()
    (FOLDER / "cnn-report.txt").unlink()
    assert "lacks cnn-report.txt" in ok(*given).stderr
    extract(images, *SAVED, "--force")
    assert (FOLDER / "cnn-predictions.txt").read_bytes() == predictions
    assert ok(*given).stderr.endswith("nothing to extract\n")
    (FOLDER / "cnn-classes.png").unlink()
    assert "f-pictures lacks cnn-classes.png; writing" in ok(*given).stderr
    assert (FOLDER / "cnn-classes.png").exists()


@pytest.mark.usefixtures("without_figures")
def test_files_are_moved_by_the_next_run_if_a_run_is_killed(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["extract", "--data", images, *SMALL, *SAVED, "--out", "f.npz"]

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fastmlp.experiments.features.pictures.publish", killed)
        assert call(*given).exit_code
    assert not FOLDER.exists()
    ok(*given)
    assert len(read_lines(FOLDER / "cnn-classes.jsonl")) == 3
    assert sorted(path.name for path in (FOLDER / "cnn-models").iterdir()) == MODELS
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["f-pictures", "f.npz"]


# ------------------------------------------------------------------------------------------------ extract and train


@pytest.mark.parametrize("features", [[], ["--out", "f.npz"]])
def test_a_run_folder_has_the_files_of_both_networks(features: list[str], images: Path) -> None:
    of_mlp = ["--per-class-every", "1", "--save-every", "1", "--predictions"]
    given = ["extract", "--data", images, *SMALL, *SAVED, *features, "train", *MLP, *of_mlp, "--out", "run"]
    result = json.loads(ok(*given, "--json", "-q").stdout)
    names = {path.name for path in Path("run").iterdir()}
    own = {"report.txt", "predictions.txt", "classes.jsonl", "classes.png", "models"}
    assert own | {f"cnn-{name}" for name in own} <= names
    assert [line["epoch"] for line in read_lines(Path("run/cnn-classes.jsonl"))] == [2, 4, 6]
    assert sorted(path.name for path in Path("run/cnn-models").iterdir()) == MODELS
    alone = result["data"]["extracted"]["cnn"]["test"]
    assert Path("run/cnn-report.txt").read_text() == classification_report(alone)
    assert sorted(path.name for path in Path.cwd().iterdir()) == sorted([*features[1:], "run"])
    ok("extract", "--data", images, *SMALL, *features, "train", *MLP, "--out", "run", "--force", "-q")
    assert not [path for path in Path("run").rglob("*") if path.name in ("cnn-classes.jsonl", "cnn-classes.png", *MODELS)]


def test_a_second_run_with_features_in_memory_is_refused(images: Path) -> None:
    given = ["extract", "--data", images, *SMALL, *SAVED, "train", *MLP, "--out", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "train_and_extract", lambda job, *others: pytest.fail(str(job.saved)))
        with pytest.raises(pytest.fail.Exception) as folder:
            call(*given)
    with locked(Path(str(folder.value))):
        assert "another run is writing to" in refused(2, *given)


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("name", ["per-class-every", "save-every"])
def test_impossible_numbers_are_refused(name: str, images: Path) -> None:
    line = refused(2, "extract", "--data", images, f"--{name}", "0")
    assert line == f"{name.replace('-', '_')} must be 1 or more, not 0; leave it out to disable it [--{name}]"


def test_predictions_need_a_test_split(images: Path) -> None:
    with np.load(images) as arrays:
        np.savez("untested.npz", x=arrays["x"], y=arrays["y"])
    line = refused(2, "extract", "--data", "untested.npz", *SMALL, "--test-fraction", "0", "--predictions")
    assert line.startswith("predictions needs a test split; set test_fraction, or leave predictions out")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["untested.npz"]
