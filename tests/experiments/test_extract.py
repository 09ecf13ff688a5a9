"""Tests of `fastmlp extract`, alone and followed by `train` in the same command, with small CNNs trained on small images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastmlp.cnn.extractor import from_bytes
from PIL import Image
from support.cli import ok, override, refused
from support.cnn import SHAPE, bars
from support.extract import DRAWN, arrays_of, own_folder, without_pictures  # noqa: F401 - fixtures of all tests

from fastmlp.data.images.polarity import image_stats
from fastmlp.data.load import load_data

pytestmark = pytest.mark.full

PATIENCE = 120  # timeout in seconds, long enough for a slow, busy machine; a process usually takes one second
SMALL = ["--filters", "4,6", "--dense", "8", "--epochs", "3", "--lr", "0.003", "--batch-size", "16", "--device", "cpu"]
MLP = ["--hidden", "8", "--epochs", "3", "--backend", "numpy"]
NAMES = ("row", "column", "none")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a file of images, a file of images that has a test split, and a single image."""
    folder: Path = tmp_path_factory.mktemp("home")
    pixels, labels = bars(200, 0)
    images = {"x": pixels.reshape(-1, *SHAPE[:2]), "y": np.array(NAMES)[labels]}
    np.savez(folder / "images.npz", **images)
    np.savez(
        folder / "tested.npz",
        **{name: values[:150] for name, values in images.items()},
        x_test=images["x"][150:],
        y_test=images["y"][150:],
    )
    Image.fromarray(images["x"][0]).save(folder / "first.png")
    return folder


@pytest.fixture(scope="module")
def made(home: Path) -> dict[str, Any]:
    """Write the features of images.npz to features.npz, and return the JSON output of the command."""
    result = ok("extract", "--data", home / "images.npz", *SMALL, "--out", home / "features.npz", "--json", "-q")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_file_is_a_data_set_that_has_its_parts(home: Path, made: dict[str, Any]) -> None:
    images, data = load_data(home / "images.npz"), load_data(home / "features.npz")
    assert (len(data.x), len(data.x_test), len(data.validation)) == (160, 40, 40)  # type: ignore[arg-type]
    assert data.x.shape[1] == made["features"] == 6 * 4 * 4
    assert data.x.dtype == np.float32
    assert data.classes == images.classes == tuple(sorted(NAMES))
    assert data.provenance is not None
    stats = image_stats(images.x, images.image_shape)
    assert stats is not None
    assert data.provenance["images"] == {"name": "images", "sha256": images.sha256, "stats": asdict(stats)}
    assert data.provenance["key"] == made["key"]
    assert data.provenance["settings"]["filters"] == [4, 6]
    assert data.provenance["layer"] == made["layer"] == "flatten"
    assert data.provenance["cnn"]["test"]["accuracy"] == made["cnn"]["test"]["accuracy"] > 0
    assert data.extractor is not None
    extractor = from_bytes(data.extractor, "extractor")
    assert data.provenance["extractor_sha256"] == extractor.sha256
    parts = np.concatenate([data.x, data.x_test])  # type: ignore[list-item]
    own = extractor.features(images.x)
    assert sorted(map(bytes, parts)) == sorted(map(bytes, own))
    for x, y in ((data.x, data.y), (data.x_test, data.y_test)):
        where = {bytes(row): label for row, label in zip(own, images.y, strict=True)}
        assert [where[bytes(row)] for row in x] == y.tolist()  # type: ignore[union-attr]


def test_the_last_weights_of_the_cnn_are_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, draw in DRAWN:
        monkeypatch.setattr(module, name, draw)
    marked: list[Any] = []
    monkeypatch.setattr("fastmlp.experiments.features.pictures.plot_curves", lambda history, best, *_: marked.append(best))
    command = ["extract", "--data", home / "images.npz", *override(SMALL, "--lr", "0.5"), "--out", "f.npz"]
    done = ok(*command, "--no-restore-best", "--no-shuffle")
    assert "\nweights of epoch    3 of 3\n" in done.stdout
    data = load_data("f.npz")
    assert data.provenance is not None
    found = data.provenance["cnn"]
    assert found["best_epoch"] == 3
    assert found["validation"]["loss"] == found["history"][-1]["val_loss"]
    assert data.provenance["settings"].items() >= {("restore_best", False), ("shuffle", False)}
    assert marked == [None]
    refused(2, *command)  # other settings


def test_a_test_part_of_the_images_stays_one(home: Path) -> None:
    ok("extract", "--data", home / "tested.npz", *SMALL, "--out", "f.npz", "-q")
    images, data = load_data(home / "tested.npz"), load_data("f.npz")
    assert (len(data.x), len(data.validation)) == (150, 30)  # type: ignore[arg-type]
    assert np.array_equal(data.y, images.y)
    assert np.array_equal(data.y_test, images.y_test)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_line_gives_what_two_give(dtype: str, home: Path, made: dict[str, Any]) -> None:
    settings = ["extract", "--data", home / "images.npz", *SMALL, "--feature-dtype", dtype]
    one = json.loads(ok(*settings, "train", *MLP, "--out", "one", "--json", "-q").stdout)
    ok(*settings, "--out", "f.npz", "-q")
    two = json.loads(ok("train", "--data", "f.npz", *MLP, "--out", "two", "--json", "-q").stdout)
    assert Path("one/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()
    for part in ("train", "validation", "test"):
        assert one[part] == two[part]
    assert one["data"]["extracted"]["cnn"]["test"] == two["data"]["extracted"]["cnn"]["test"]
    half = arrays_of("f.npz")["x"]
    assert half.dtype == dtype
    assert np.array_equal(half, arrays_of(home / "features.npz")["x"].astype(dtype))


def test_the_table_shows_both_accuracies(home: Path, made: dict[str, Any]) -> None:
    table = ok("train", "--data", home / "features.npz", *MLP, "--out", "run", "-q").stdout
    alone = made["cnn"]["test"]["accuracy"]
    assert f"CNN alone, test     {alone:.4f}\n" in table
    assert "\ntest accuracy       " in table


def test_a_chained_model_takes_images(home: Path, made: dict[str, Any]) -> None:
    ok("extract", "--data", home / "images.npz", *SMALL, "train", *MLP, "--out", "one", "-q")
    ok("train", "--data", home / "features.npz", *MLP, "--out", "two", "-q")
    wanted = json.loads(ok("evaluate", "two", "--split", "all", "--json").stdout)
    for arguments in (["one"], ["two", "--data", home / "images.npz"]):
        found = json.loads(ok("evaluate", *arguments, "--split", "all", "--json").stdout)
        for part in ("train", "validation", "test"):
            assert found[part]["accuracy"] == wanted[part]["accuracy"]
            assert found[part]["loss"] == pytest.approx(wanted[part]["loss"], rel=1e-5)
    whole = json.loads(ok("evaluate", "one/model.safetensors", "--data", home / "images.npz", "--json").stdout)
    assert whole["data"]["rows"] == {"test": 200}
    np.savez("first.npz", x=load_data(home / "images.npz").x[:1].reshape(1, 8, 8))
    of_picture, of_array = (ok("predict", "one", file).stdout.split("\t")[1:] for file in (home / "first.png", "first.npz"))
    assert of_picture == of_array
    np.savez("features.npz", x=arrays_of(home / "features.npz")["x"][:1])
    assert len(ok("predict", "one", "features.npz").stdout.splitlines()) == 1


CNN_FILES = {"cnn-report", "cnn-curves", "filters", "maps", "projection", "cnn-mistakes"}
PARTS = ("train", "validation", "test")


def test_pictures_of_both_stages(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, draw in DRAWN:
        monkeypatch.setattr(module, name, draw)
    ok("extract", "--data", home / "images.npz", *override(SMALL, "--epochs", "1"), "--out", "features.npz", "-q")
    ok("extract", "--data", home / "images.npz", *override(SMALL, "--epochs", "1"), "train", *MLP, "--out", "run", "-q")
    beside = {file.stem for file in Path("features-pictures").iterdir()}
    assert beside == CNN_FILES | {f"cnn-confusion-{part}" for part in PARTS}
    in_run = {file.stem for file in Path("run").glob("*.png")}
    assert in_run | {"cnn-report"} == beside | {"confusion", "confusion-validation", "confusion-train", "curves", "mistakes"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in Path("run").glob("*.png"))


def test_the_same_settings_make_nothing_anew(home: Path, made: dict[str, Any]) -> None:
    file = home / "features.npz"
    before = file.stat().st_mtime_ns
    again = ok("extract", "--data", home / "images.npz", *SMALL, "--out", file)
    assert "exists and was made with these settings; nothing to extract" in again.stderr
    assert file.stat().st_mtime_ns == before
    line = refused(2, "extract", "--data", home / "images.npz", *SMALL, "--seed", "1", "--out", file)
    assert line.startswith(f"out: {file} exists and was made with other settings; choose another name, or set force")
    shutil.copy(file, "copy.npz")
    ok("extract", "--data", home / "images.npz", *SMALL, "--seed", "1", "--out", "copy.npz", "--force", "-q")
    assert arrays_of("copy.npz")["provenance"] != arrays_of(file)["provenance"]


def test_any_layer_can_be_the_features(home: Path) -> None:
    found = json.loads(ok("extract", "--data", home / "images.npz", *SMALL, "--layer", "dense1", "--json", "-q").stdout)
    assert (found["features"], found["layer"], found["out"]) == (8, "dense1", "images-8x8x1-4-6-d8.npz")
    assert Path(found["out"]).exists()


REFUSED: list[tuple[int, list[str], str]] = [
    (2, ["--pool", "median"], "unknown pool 'median'. Valid: none, max, avg, global"),
    (2, ["--pool", "max,max", "--pool-kernel", "6"], "block 2 of 2: max pooling of 6x6 would shrink 1x1 to zero size"),
    (2, ["--kernel", "3,3,3"], "kernel has 3 values for 2 blocks"),
    (2, ["--init", "zeros"], "unknown init 'zeros'. Valid: random, xavier, he, orthogonal"),
    (2, ["--layer", "block9"], "unknown layer 'block9'; this network has block1"),
    (2, ["--out", "features.csv"], "out: features.csv must end in .npz or .safetensors, or have no suffix for a folder"),
    (2, ["--weights", "w.pth"], "weights need a backbone"),
    (2, ["--optimizer", "lion"], "unknown optimizer 'lion'"),
    (2, ["--device", "gpu"], "device must be auto, cpu or cuda, not 'gpu'"),
    (2, ["--flip", "2"], "flip must be a probability"),
    (5, ["--optimizer", "sgd", "--lr", "1e18"], "the loss became"),
]


@pytest.mark.parametrize(("code", "arguments", "message"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(code: int, arguments: list[str], message: str, home: Path) -> None:
    line = refused(code, "extract", "--data", home / "images.npz", *override(SMALL, *arguments), "-q")
    assert message in line
    assert [*Path.cwd().iterdir()] == []


def test_only_images_have_features() -> None:
    np.savez("table.npz", x=np.eye(6), y=np.arange(6) % 2)
    assert "not images; extract needs images" in refused(3, "extract", "--data", "table.npz", *SMALL)


def test_damaged_feature_files(home: Path, made: dict[str, Any]) -> None:
    arrays = arrays_of(home / "features.npz")
    for changed, message in (
        ({"validation": np.array([3, 2])}, "array 'validation': must hold row indices of x in ascending order"),
        ({"validation": np.array([999])}, "array 'validation': must hold row indices of x in ascending order"),
        ({"provenance": np.array("{")}, "array 'provenance': not a valid description of an extraction"),
    ):
        np.savez("bad.npz", **(arrays | changed))  # type: ignore[arg-type]
        assert message in refused(3, "train", "--data", "bad.npz", *MLP)
    np.savez("bad.npz", **(arrays | {"extractor": arrays["extractor"][:500]}))  # type: ignore[arg-type]
    ok("train", "--data", "bad.npz", *MLP, "--out", "run", "-q")
    assert "not a readable PyTorch file" in refused(3, "evaluate", "run", "--data", home / "images.npz")


def test_print_config_gives_the_same_run(home: Path, made: dict[str, Any]) -> None:
    text = ok("extract", "--data", home / "images.npz", *SMALL, "--print-config").stdout
    Path("a.toml").write_text(text)
    found = ok("extract", "--config", "a.toml", "--out", home / "features.npz")
    assert "nothing to extract" in found.stderr


def test_unreadable_images_are_errors_or_are_skipped(home: Path) -> None:
    for number in range(24):
        path = Path("photos", str(number % 2), f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 + 100 * (number % 2) + number).save(path)
    path.write_text("hello")
    arguments = ["extract", "--data", "photos", "--filters", "4", "--epochs", "1", "--out", "photos.npz", "-q"]
    text = refused(3, *arguments)
    assert text.startswith(f"{path}: not a readable image (")
    assert text.endswith("[--skip-bad]")
    assert "skipped 1 of" in ok(*arguments[:-1], "--skip-bad").stderr
    data = load_data("photos.npz")
    assert data.provenance is not None
    assert data.provenance["images"]["sha256"] == load_data("photos", skip_bad=True).sha256
    path.unlink()
    assert "nothing to extract" in ok(*arguments[:-1]).stderr  # the images are the same


# ------------------------------------------------------------------------------------------------ processes


# Runs the command line and sends it SIGINT when it writes the checkpoint of the second epoch.
INTERRUPTED = """
import os, signal
from fastmlp.cnn.training import Trainer
from fastmlp.commands import main

checkpoint = Trainer.checkpoint

def interrupted(trainer):
    if len(trainer.history) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return checkpoint(trainer)

Trainer.checkpoint = interrupted
main()
"""


def test_an_interrupted_run_goes_on_to_the_same_features(home: Path) -> None:
    arguments = ["extract", "--data", home / "images.npz", *override(SMALL, "--epochs", "12"), "--out"]
    ok(*arguments, "whole.npz", "-q")
    command = [sys.executable, "-c", INTERRUPTED, *map(str, arguments), "cut.npz"]
    cut = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert cut.returncode == 130, cut.stderr
    (checkpoint,) = Path.cwd().glob("cut.npz.*.checkpoint")
    assert f"interrupted after epoch 2; the same command continues from {checkpoint.name}" in cut.stderr
    assert not Path("cut.npz").exists()
    later = ok(*arguments, "cut.npz")
    assert f"continuing from {checkpoint.name}" in later.stderr
    epochs = [line.split()[1] for line in later.stderr.splitlines() if line.startswith("epoch ")]
    assert epochs == [f"{epoch}/12" for epoch in range(3, 13)]
    assert not checkpoint.exists()
    one, other = arrays_of("whole.npz"), arrays_of("cut.npz")
    assert all(np.array_equal(one[name], other[name]) for name in ("x", "y", "x_test", "validation"))


def test_without_torch_all_else_works(home: Path) -> None:
    block = "import sys; sys.modules['torch'] = None; from fastmlp.commands import main; main()"
    for arguments, code in ((["extract"], 4), (["train", *MLP, "--out", "run"], 0), (["evaluate", "run"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", block, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == code, done.stderr
        if code:
            assert "extract needs PyTorch" in done.stderr
            assert "pip install 'fastmlp[cnn]'" in done.stderr
