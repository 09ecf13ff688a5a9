"""Tests of experiments/record.py: models and metrics per class that are saved during training are those of their epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import forget_settings, ok, refused

from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.plan import make_plan
from fastmlp.experiments.record import EpochFiles
from fastmlp.experiments.training_run import run_training
from fastmlp.files import read_lines
from fastmlp.models.metrics import evaluate_with_predictions
from fastmlp.models.model import Model, load

pytestmark = pytest.mark.full  # the tests take ten seconds

COMMON: dict[str, Any] = {"hidden": (8,), "dropout": (0.2,), "backend": "numpy", "lr": 0.01}


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


def run(out: str, **settings: Any) -> Path:
    run_training(TrainConfig(**COMMON | settings, out=out), quiet=True)
    return Path(out)


def test_checkpoints_are_the_models_of_their_epochs() -> None:
    """A saved model has the validation metrics of its epoch, the class names and the image shape."""
    folder = run("long", epochs=7, patience=0, save_every=3)
    kept = sorted(path.name for path in (folder / "models").iterdir())
    assert kept == ["epoch-0003.safetensors", "epoch-0006.safetensors"]
    plan = make_plan(TrainConfig(**COMMON))
    for epoch in (3, 6):
        model = load(folder / "models" / f"epoch-{epoch:04d}.safetensors", backend="numpy")
        row = read_lines(folder / "metrics.jsonl")[epoch - 1]
        found = evaluate_with_predictions(model, plan.splits["validation"])[0]
        assert (found["loss"], found["accuracy"]) == (row["val_loss"], row["val_accuracy"])
        assert model.classes == plan.data.classes
        assert model.image_shape == plan.data.image_shape
    last = load(run("short", epochs=6, val_fraction=0, test_fraction=0.2) / "model.safetensors")
    assert not np.array_equal(last.parameters, model.parameters)  # trained on other rows


def test_a_saved_model_is_evaluated_on_the_parts_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is evaluated on the splits of its run, so not on training rows, also if the run has not finished."""
    folder = run("a", epochs=2, patience=0, save_every=2)
    file = folder / "models" / "epoch-0002.safetensors"
    row = read_lines(folder / "metrics.jsonl")[1]
    for source in ([], ["--data", "digits"]):
        told = json.loads(ok("evaluate", file, *source, "--split", "validation", "--json").stdout)
        assert told["validation"]["accuracy"] == row["val_accuracy"]
        assert told["data"]["rows"] == {"validation": 359}
    monkeypatch.chdir(file.parent)
    assert json.loads(ok("evaluate", file.name, "--json").stdout)["data"]["rows"] == {"test": 359}
    Path("../manifest.json").unlink()
    for source in ([], ["--data", "digits"]):
        assert json.loads(ok("evaluate", file.name, *source, "--json").stdout)["data"]["rows"] == {"test": 359}
    assert json.loads(ok("evaluate", file.name, *source, "--json").stdout)["complete"] is False


def test_a_saved_model_predicts_labels_and_targets_as_the_model_of_the_run() -> None:
    """The labels of text stay texts, and the targets are on their scale."""
    x = np.random.default_rng(0).random((60, 3))
    for name, y in (("texts", np.array(["7", "8"])[(x[:, 0] > 0.5).astype(int)]), ("numbers", 1000 + 50 * x[:, 0])):
        np.savez(f"{name}.npz", x=x, y=y)
        given = {"data": f"{name}.npz", "task": "regression" if name == "numbers" else "classification", "epochs": 2}
        folder = run(name, **given, val_fraction=0, save_every=2)
        models = [load(path, backend="numpy") for path in (folder, folder / "models" / "epoch-0002.safetensors")]
        of_run, saved = (model.predict(x) for model in models)
        assert saved.dtype == of_run.dtype
        assert np.array_equal(saved, of_run)


def test_classes_are_told_of_their_epochs() -> None:
    folder = run("a", epochs=5, patience=0, per_class_every=2, save_every=2)
    lines, plan = read_lines(folder / "classes.jsonl"), make_plan(TrainConfig(**COMMON))
    assert [line["epoch"] for line in lines] == [2, 4]
    for line in lines:
        model = load(folder / "models" / f"epoch-{line['epoch']:04d}.safetensors", backend="numpy")
        for part in ("train", "validation"):
            figures = evaluate_with_predictions(model, plan.splits[part])[0]
            del figures["loss"]
            assert line[part] == figures
    assert lines[0]["validation"] != lines[1]["validation"]
    assert (folder / "classes.png").read_bytes()[1:4] == b"PNG"


def test_nothing_is_kept_unasked_and_nothing_changes_by_it() -> None:
    plain, watched = run("plain", epochs=3), run("watched", epochs=3, per_class_every=1, save_every=1, val_steps=5)
    assert not [name for name in ("models", "classes.jsonl", "classes.png") if (plain / name).exists()]
    assert (plain / "model.safetensors").read_bytes() == (watched / "model.safetensors").read_bytes()


def test_a_second_run_into_the_folder_leaves_none_of_the_first() -> None:
    run("a", epochs=4, patience=0, per_class_every=1, save_every=1)
    run("a", epochs=2, patience=0, per_class_every=2, save_every=2, force=True, seed=1)
    assert [line["epoch"] for line in read_lines(Path("a/classes.jsonl"))] == [2]
    assert [path.name for path in Path("a/models").iterdir()] == ["epoch-0002.safetensors"]


def test_nothing_is_left_of_a_first_run_that_the_second_does_not_write() -> None:
    run("a", epochs=1, per_class_every=1, predictions=True)
    run("a", epochs=1, force=True)
    run("plain", epochs=1)
    assert sorted(path.name for path in Path("a").iterdir()) == sorted(path.name for path in Path("plain").iterdir())


@pytest.mark.parametrize("name", ["per-class-every", "save-every"])
@pytest.mark.parametrize("value", ["0", "-2"])
def test_impossible_numbers_are_refused(name: str, value: str) -> None:
    line = refused(2, "train", f"--{name}", value)
    assert line == f"{name.replace('-', '_')} must be 1 or more, not {value}; leave it out to disable it [--{name}]"


def test_epochs_after_a_checkpoint_are_removed() -> None:
    files = EpochFiles(Path.cwd(), prefix="a-")
    for epochs, kept in ((5, [2, 4]), (3, [2]), (1, [])):
        Path("a-classes.jsonl").write_text('{"epoch": 2}\n{"epoch": 4}\n{"epo')
        Path("a-models").mkdir(exist_ok=True)
        for epoch in (2, 4):
            Path("a-models", f"epoch-{epoch:04d}.safetensors").touch()
        files.truncate(epochs)
        assert [line["epoch"] for line in read_lines(files.classes)] == kept if kept else not files.classes.exists()
        assert [int(path.stem[-4:]) for path in sorted(files.models.iterdir())] == kept


def test_a_folder_that_cannot_be_made_is_one_line() -> None:
    Path("a").mkdir()
    Path("a/models").write_text("not a folder")
    line = refused(3, "train", "--epochs", "2", "--backend", "numpy", "--save-every", "1", "--out", "a", "--force", "-q")
    assert "a/models" in line


def test_models_hold_their_own_parameters() -> None:
    """Later epochs do not change the parameters of a saved model."""
    seen: list[Model] = []
    save = Model.save

    def keep(model: Model, path: Path) -> None:
        if path.parent.name == "models":
            seen.append(model)
        save(model, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "save", keep)
        run("a", epochs=3, patience=0, save_every=1)
    first, second, third = (model.parameters for model in seen)
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)


def test_an_epoch_that_was_cut_short_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.engines.chunks.CHUNK_SECONDS", 1e-9)
    folder = run("a", epochs=1000, max_time=1e-9, per_class_every=1, save_every=1)
    (row,) = read_lines(folder / "metrics.jsonl")
    assert row["rows"] < json.loads((folder / "result.json").read_text())["data"]["rows"]["train"]
    assert not (folder / "classes.jsonl").exists()
    assert not (folder / "models").exists()
    assert not (folder / "classes.png").exists()
