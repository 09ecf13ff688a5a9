"""Tests of feature files in their three file formats, of interrupted extractions, and of error messages of `extract`."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fastmlp.cnn.extractor import Extractor
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file
from support.cli import call, ok, override, refused
from support.cnn import SHAPE, bars
from support.extract import arrays_of, own_folder, without_pictures  # noqa: F401 - autouse fixtures

from fastmlp.data import features as feature_files
from fastmlp.data.load import load_data
from fastmlp.data.rows import is_mapped
from fastmlp.experiments.features import extraction, pictures
from fastmlp.models.model import load
from fastmlp.nn.blocks import blocks

pytestmark = pytest.mark.full

SMALL = ["--filters", "4,6", "--dense", "8", "--epochs", "1", "--batch-size", "16", "--device", "cpu"]
MLP = ["--hidden", "8", "--epochs", "3", "--backend", "numpy"]
FORMS = ("features.npz", "features.safetensors", "features")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images as an .npz file and as a folder of .npy files, and their features in all file formats."""
    folder: Path = tmp_path_factory.mktemp("home")
    pixels, labels = bars(200, 0)
    images = {"x": pixels.reshape(-1, *SHAPE[:2]), "y": np.array(["row", "column", "none"])[labels]}
    np.savez(folder / "images.npz", **images)
    (folder / "images").mkdir()
    for name, values in images.items():
        np.save(folder / "images" / f"{name}.npy", values)
    for form in FORMS:
        ok("extract", "--data", folder / "images.npz", *SMALL, "--out", folder / form, "-q")
    return folder


def content(path: Path) -> dict[str, Any]:
    """Return the content of a feature file as a dict that can be compared with others."""
    data = load_data(path)
    assert data.provenance is not None
    assert data.extractor is not None
    provenance = {name: value for name, value in data.provenance.items() if name not in ("cnn", "key")}
    return {"sha256": data.sha256, "classes": data.classes, "provenance": provenance, "extractor": len(data.extractor)}


def test_all_forms_have_the_same_content(home: Path) -> None:
    assert content(home / FORMS[0]) == content(home / FORMS[1]) == content(home / FORMS[2])
    assert [is_mapped(load_data(home / form).x) for form in FORMS] == [False, False, True]
    assert not [*home.glob("*.partial"), *home.glob("*.checkpoint")]


def test_all_forms_train_the_same_model(home: Path) -> None:
    for form in FORMS:
        ok("train", "--data", home / form, *MLP, "--out", f"run-{form}", "-q")
        ok("extract", "--data", home / "images.npz", *SMALL, "--out", home / form, "train", *MLP, "--out", f"one-{form}", "-q")
    models = {Path(f"{kind}-{form}/model.safetensors").read_bytes() for form in FORMS for kind in ("run", "one")}
    assert len(models) == 1
    ok("evaluate", "run-features", "--data", home / "images")


def test_the_same_content_has_the_same_bytes(home: Path) -> None:
    ok("extract", "--data", home / "images.npz", *SMALL, "--out", "again.safetensors", "-q")
    one, other = (load_data(path) for path in (home / FORMS[1], Path("again.safetensors")))
    assert one.sha256 == other.sha256
    assert json.dumps(dict(one.provenance or {}))[:200] == json.dumps(dict(other.provenance or {}))[:200]


def test_mapped_images_give_the_same_features(home: Path) -> None:
    ok("extract", "--data", home / "images", *SMALL, "--out", "f.npz", "-q")
    assert load_data("f.npz").sha256 == load_data(home / "features.npz").sha256


def test_features_too_large_for_a_file_become_a_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "LARGEST_FILE", 200 * 96 * 4 - 1)
    small = ["extract", "--data", home / "images.npz", *SMALL]
    found = json.loads(ok(*small, "--json", "-q").stdout)
    assert found["out"] == "images-8x8x1-4-6-d8"
    assert Path(found["out"], "x.npy").exists()
    line = refused(2, *small, "--out", "f.npz", "-q")
    assert line.endswith("GiB of features are too many for one file; choose a folder, such as f [--out]")
    ok(*small, "--out", "f.npz", "--feature-dtype", "float16", "-q")
    monkeypatch.setattr(feature_files, "LARGEST_FILE", 200 * 96 * 2 - 1)
    assert refused(2, *small, "--feature-dtype", "float16", "-q").startswith("feature_dtype: float16 needs a single file")
    line = refused(2, *small, "--out", "f", "--feature-dtype", "float16", "-q")
    assert line.startswith("feature_dtype: float16 needs a single file")


def test_a_folder_that_is_not_features_is_not_replaced(home: Path) -> None:
    small = ["extract", "--data", home / "images.npz", *SMALL]
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    shutil.copytree(home / "images", "data")
    for name, force in itertools.product(("mine", "data"), ([], ["--force"])):
        line = refused(2, *small, "--out", name, *force, "-q")
        what = "also contains letter.txt" if force and name == "mine" else "exists and was not made by extract"
        assert line == f"out: {name} {what}; choose another path [--out]"
    assert Path("mine/letter.txt").exists()
    shutil.copytree(home / "features", "theirs")
    assert "was made with other settings" in refused(2, *small, "--seed", "1", "--out", "theirs", "-q")
    ok(*small, "--seed", "1", "--out", "theirs", "--force", "-q")
    assert load_data("theirs").sha256 != load_data(home / "features").sha256


# ------------------------------------------------------------------------------------------------ interruption


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each forward pass appends its number of images; there are at most 16 images per pass.

    The first item can be set to the number of a pass, from 1, during which the process receives SIGINT.
    """
    monkeypatch.setattr(feature_files, "AT_ONCE", 16)
    seen = [0]
    original = Extractor.features

    def features(self: Extractor, pixels: Any, *given: Any) -> Any:
        if len(pixels) > 1:  # a pass with one image only determines the number of features
            seen.append(len(pixels))
            if len(seen) - 1 == seen[0]:
                os.kill(os.getpid(), signal.SIGINT)
        return original(self, pixels, *given)

    monkeypatch.setattr(Extractor, "features", features)
    return seen


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_extraction_continues(form: str, passes: list[int], home: Path) -> None:
    small = ["extract", "--data", home / "images.npz", *SMALL, "--out", form]
    passes[0] = 4
    stopped = call(*small)
    assert stopped.exit_code == 130, stopped.output
    assert "interrupted during the extraction; the same command continues" in stopped.stderr
    assert not Path(form).exists()
    (partial,) = Path.cwd().glob("*.partial")
    with (partial / "x.npy").open("ab") as stream:
        stream.write(b"torn")
    done = len(passes) - 1
    assert done == 4
    ok(*small)
    assert passes[1:] == [16] * 10 + [16, 16, 8]  # 160 rows of x and 40 rows of x_test, each processed only once
    assert load_data(form).sha256 == load_data(home / form).sha256 == load_data(home / "features.npz").sha256
    assert [path.name for path in Path.cwd().iterdir()] == [form]


def test_an_interrupt_stops_the_whole_chain(passes: list[int], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes[0] = 1
    stopped = call("extract", "--data", home / "images.npz", *SMALL, "train", *MLP, "--out", "run")
    assert stopped.exit_code == 130, stopped.output
    assert not Path("run").exists()
    again = ok("extract", "--data", home / "images.npz", *SMALL, "train", *MLP, "--out", "run")
    assert "continuing from" in again.stderr
    ok("train", "--data", home / "features.npz", *MLP, "--out", "two", "-q")
    assert Path("run/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()


def test_blocks_of_other_settings_are_not_used(passes: list[int], home: Path) -> None:
    small = ["extract", "--data", home / "images.npz", *SMALL, "--out", "f.npz"]
    passes[0] = 4
    assert call(*small).exit_code == 130
    (partial,) = Path.cwd().glob("*.partial")
    head = feature_files.npy_header((7, 96), np.dtype(np.float32))
    (partial / "x.npy").write_bytes(head + b"\1" * 96 * 4 * 7)
    ok(*small, "-q")
    assert load_data("f.npz").sha256 == load_data(home / "features.npz").sha256


def test_a_full_disk_is_reported_in_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_files, "os", SimpleNamespace(**vars(os) | {"fsync": full}))
    line = refused(3, "extract", "--data", home / "images.npz", *SMALL, "--out", "f", "-q")
    assert line.endswith("x.npy: No space left on device; free some space or choose another folder")


def test_blocks_begin_at_the_given_row() -> None:
    x = np.arange(10)[:, None]
    assert [rows for rows, _ in blocks(x, 4, 4)] == [slice(4, 8), slice(8, 10)]
    assert [*blocks(x, 4, 10)] == []


@pytest.mark.parametrize("chained", [False, True])
def test_a_signal_at_the_last_moment_is_not_lost(chained: bool, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = extraction.write_features

    def interrupted(*given: Any) -> None:
        original(*given)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(extraction, "write_features", interrupted)
    monkeypatch.setattr(pictures, "draw_extraction", lambda *given: pytest.fail("the process must end; the next run plots"))
    arguments = ["extract", "--data", home / "images.npz", *SMALL, "--out", "f.npz"]
    assert call(*arguments, *["train", *MLP, "--out", "run"] * chained).exit_code == 130
    assert load_data("f.npz").sha256 == load_data(home / "features.npz").sha256
    assert not Path("run").exists()


def test_changed_images_are_detected_when_an_extraction_continues(passes: list[int], home: Path) -> None:
    """Changed test images are detected as well, although the network is not trained on them."""
    arrays = {"x": load_data(home / "images.npz").x.reshape(-1, *SHAPE[:2]), "y": arrays_of(home / "images.npz")["y"]}
    tested = {name: values[:150] for name, values in arrays.items()} | {
        f"{name}_test": values[150:] for name, values in arrays.items()
    }
    np.savez("i.npz", **tested)
    arguments = ["extract", "--data", "i.npz", *SMALL, "--out", "f.npz"]
    passes[0] = 13  # the last block of x_test
    assert call(*arguments).exit_code == 130
    np.savez("i.npz", **tested | {"x_test": tested["x_test"][::-1]})  # type: ignore[arg-type]
    ok(*arguments, "-q")
    ok(*arguments[:-1], "clean.npz", "-q")
    assert load_data("f.npz").sha256 == load_data("clean.npz").sha256


def test_files_of_an_interrupted_run_are_removed_when_obsolete(home: Path) -> None:
    arguments = ["extract", "--data", home / "images.npz", *SMALL, "--out", "f.npz"]
    key = json.loads(ok(*arguments, "--json", "-q").stdout)["key"]
    left = [Path(f"f.npz.{key[:12]}.checkpoint"), Path(f"f.npz.{key[:12]}-0123456789ab.partial")]
    left[0].touch()
    left[1].mkdir()
    assert "nothing to extract" in ok(*arguments).stderr
    assert [path.name for path in Path.cwd().iterdir()] == ["f.npz"]


def test_an_interrupted_run_reports_no_features(passes: list[int], home: Path) -> None:
    passes[0] = 2
    stopped = call("extract", "--data", home / "images.npz", *SMALL, "--out", "f.npz", "--json", "-q")
    found = json.loads(stopped.stdout)
    assert (stopped.exit_code, found["features"], found["out"]) == (130, None, None)


def test_json_has_the_same_keys_when_nothing_is_done(home: Path) -> None:
    arguments = ["extract", "--data", home / "images.npz", *SMALL, "--out", "f.npz", "--json", "-q"]
    first, second = (json.loads(ok(*arguments).stdout) for _ in range(2))
    assert first.keys() == second.keys()
    assert first | {"images_per_second": None} == second


def test_images_are_identified_by_content_and_not_by_name(home: Path) -> None:
    shutil.copy(home / "images.npz", "images.npz")
    ok("extract", "--data", "images.npz", *SMALL, "--out", "f.npz", "-q")
    assert "nothing to extract" in ok("extract", "--data", Path("images.npz").absolute(), *SMALL, "--out", "f.npz").stderr


# ------------------------------------------------------------------------------------------------ splits


def test_training_rows_of_the_extractor_never_evaluate_the_mlp(home: Path) -> None:
    """If the images have no validation or test split, an MLP trained on their features has none either."""
    none = ["--val-fraction", "0", "--test-fraction", "0"]
    for form in FORMS:
        ok("extract", "--data", home / "images.npz", *SMALL, *none, "--out", form, "-q")
        result = json.loads(ok("train", "--data", form, *MLP, "--out", f"run-{form}", "--json", "-q").stdout)
        assert result["data"]["rows"] == {"train": 200}
    chained = [
        "extract",
        "--data",
        home / "images.npz",
        *SMALL,
        "--val-fraction",
        "0",
        "train",
        *MLP,
        "--out",
        "one",
        "--json",
        "-q",
    ]
    assert json.loads(ok(*chained).stdout)["data"]["rows"] == {"train": 160, "test": 40}
    assert json.loads(ok("evaluate", "one", "--json").stdout)["data"]["rows"] == {"test": 40}


def test_a_chain_records_where_its_features_are(home: Path) -> None:
    chain = ["extract", "--data", home / "images.npz", *SMALL]
    ok(*chain, "train", *MLP, "--out", "one", "-q")
    line = refused(2, "train", "--config", "one/config.toml", "--out", "again")
    assert line.startswith(f"features of {home / 'images.npz'} were kept in memory only; run `fastmlp extract … train` again")
    ok(*chain, "--out", "f.npz", "train", *MLP, "--out", "two", "-q")
    ok("train", "--config", "two/config.toml", "--out", "again", "-q")
    assert Path("again/model.safetensors").read_bytes() == Path("one/model.safetensors").read_bytes()
    for run in ("one", "two"):
        assert json.loads(ok("evaluate", run, "--json").stdout)["data"]["rows"] == {"test": 40}


def test_json_can_be_given_on_either_side_of_a_chain(home: Path) -> None:
    found = ok("extract", "--data", home / "images.npz", *SMALL, "--json", "-q", "train", *MLP, "--out", "one").stdout
    assert json.loads(found)["data"]["extracted"]["settings"]["filters"] == [4, 6]


def test_features_are_not_mistaken_for_pixels_of_the_same_number(home: Path) -> None:
    ok("extract", "--data", home / "images.npz", *override(SMALL, "--filters", "4,4"), "--out", "f.npz", "-q")
    ok("train", "--data", "f.npz", *MLP, "--out", "run", "-q")
    data, model = load_data("f.npz"), load("run", backend="numpy")
    assert data.x.shape[1] == 64
    labels = [line.split("\t")[1] for line in ok("predict", "run", "f.npz").stdout.splitlines()]
    assert labels == model.predict(data.x).tolist()


# ------------------------------------------------------------------------------------------------ settings


OUTS: list[tuple[str, str]] = [
    ("none/x/f.npz", "there is no folder none/x; create it"),
    ("used/file/f.npz", "there is no folder used/file"),
    ("x" * 210 + ".npz", "the name is longer than 200 bytes"),
    ("x" * 300, "the name is longer than 200 bytes"),
    (".", "was not made by extract"),
]


@pytest.mark.parametrize(("out", "message"), OUTS)
def test_an_output_that_cannot_be_written_is_reported_before_training(out: str, message: str, home: Path) -> None:
    Path("used").mkdir()
    Path("used/file").touch()
    line = refused(2, "extract", "--data", home / "images.npz", *override(SMALL, "--epochs", "1000000"), "--out", out, "-q")
    assert message in line
    assert not [*Path.cwd().glob("*.checkpoint")]


def test_force_replaces_features_only(home: Path) -> None:
    shutil.copy(home / "images.npz", "i.npz")
    arguments = ["extract", "--data", "i.npz", *SMALL, "--force", "--out"]
    assert refused(2, *arguments, "i.npz", "-q") == "out: i.npz is the data set of images; choose another path [--out]"
    shutil.copy(home / "images.npz", "j.npz")
    assert "j.npz exists and was not made by extract" in refused(2, *arguments, "j.npz", "-q")
    shutil.copytree(home / "features", "f")
    Path("f/notes.txt").write_text("mine")
    assert refused(2, *arguments, "f", "-q") == "out: f also contains notes.txt; choose another path [--out]"
    Path("f/notes.txt").unlink()
    Path("f/x.npy").write_bytes(b"damaged")
    ok(*arguments, "f", "-q")
    assert load_data("f").sha256 == load_data(home / "features").sha256
    Path("g.npz").write_bytes(b"damaged")
    ok(*arguments, "g.npz", "-q")
    Path("link").symlink_to("f")
    ok(*arguments, "link", "-q")
    assert Path("link").is_symlink()
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["f", "g.npz", "i.npz", "j.npz", "link"]


def test_features_that_overflow_float16_are_rejected(home: Path) -> None:
    np.savez(
        "huge.npz", x=1e6 * load_data(home / "images.npz").x.reshape(-1, *SHAPE[:2]).astype(np.float32), y=np.arange(200) % 3
    )
    arguments = ["extract", "--data", "huge.npz", *SMALL, "--scale", "none", "--feature-dtype", "float16"]
    for chain in (["--out", "f.npz"], ["train", *MLP]):
        assert "exceed the range of float16; use feature_dtype float32" in refused(3, *arguments, "-q", *chain)
    assert not Path("f.npz").exists()


def test_pictures_need_a_folder(home: Path) -> None:
    Path("p").touch()
    assert "pictures: p is a file" in refused(2, "extract", "--data", home / "images.npz", *SMALL, "--pictures", "p", "-q")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--hidden", "x"], "--hidden"),
        (["--activation", "rleu"], "unknown activation 'rleu'"),
        (["--lr", "-1"], "rate"),
        (["--shift", "1"], "flip and shift can only be used with images"),
        (["--out", "used"], "the folder used is not empty"),
        (["--out", "used/file"], "used/file or one of its parents is a file"),
        (["--out", "used/file/run"], "used/file/run or one of its parents is a file"),
        (["--out", "f.npz"], "f.npz cannot be both the file of features and the folder of the run"),
    ],
)
def test_the_settings_of_train_are_checked_before_extraction(settings: list[str], message: str, home: Path) -> None:
    Path("used").mkdir()
    Path("used/file").touch()
    chain = ["extract", "--data", home / "images.npz", *override(SMALL, "--epochs", "1000000"), "--out", "f.npz"]
    assert message in refused(2, *chain, "train", *settings)


@pytest.mark.parametrize(
    ("split", "setting"), [("test", "--predictions"), ("test", "--min-accuracy=0"), ("val", "--val-steps=3")]
)
def test_the_splits_are_checked_before_extraction(split: str, setting: str, home: Path) -> None:
    """A missing split is reported before the extraction starts. Data that include a test set are accepted."""
    endless = override(SMALL, "--epochs", "1000000", f"--{split}-fraction", "0")
    line = refused(2, "extract", "--data", home / "images.npz", *endless, "-q", "train", setting)
    name = setting.split("=", maxsplit=1)[0]
    assert f"split; set {split}_fraction, or leave {name.removeprefix('--').replace('-', '_')} out" in line
    assert line.endswith(f" [{name}, --{split}-fraction]")
    if split == "test":
        images = arrays_of(home / "images.npz")
        np.savez("tested.npz", **images, x_test=images["x"][:9], y_test=images["y"][:9])
        own = ["extract", "--data", "tested.npz", *SMALL, "--test-fraction", "0", "-q"]
        ok(*own, "train", *MLP, setting, "--out", "run")


def test_extract_has_no_task_flag() -> None:
    assert "--task" not in ok("extract", "--help").stdout
    Path("a.toml").write_text('task = "regression"\n')
    assert (
        refused(2, "extract", "--config", "a.toml")
        == "extract trains a classifier, so task must be classification; leave it out"
    )


# ------------------------------------------------------------------------------------------------ safetensors


def test_safetensors_files_are_read_as_data_sets() -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6, dtype=np.int32) % 2
    save_file({"x": x, "y": y, "x_test": x[:2], "y_test": y[:2]}, "a.safetensors", {"classes": '["no", "yes"]'})
    data = load_data("a.safetensors")
    assert (data.x.tolist(), data.classes, len(data.x_test)) == (x.tolist(), ("no", "yes"), 2)  # type: ignore[arg-type]
    save_file({"x": x, "y": y}, "b.safetensors")
    assert load_data("b.safetensors").classes == ("0", "1")
    save_file({"x": x}, "c.safetensors")
    assert "c.safetensors: no tensor named y (it holds: x)" in refused(3, "train", "--data", "c.safetensors")
    for text in ("no, yes", "3", "[1, 2]"):
        save_file({"x": x, "y": y}, "d.safetensors", {"classes": text})
        assert "'classes' in the metadata is not " in refused(3, "train", "--data", "d.safetensors")
    save_torch_file({"x": torch.ones(2, 2, dtype=torch.bfloat16), "y": torch.arange(2)}, "f.safetensors")
    assert "f.safetensors: tensor 'x': cannot be read as a NumPy array" in refused(3, "train", "--data", "f.safetensors")
    for provenance in ("hello", "5", "{}"):
        save_file({"x": x, "y": y}, "g.safetensors", {"provenance": provenance})
        assert load_data("g.safetensors").provenance is None
    Path("e.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:90])
    assert "e.safetensors: not a readable safetensors file" in refused(3, "train", "--data", "e.safetensors")


# ------------------------------------------------------------------------------------------------ backbones


def test_a_backbone_with_local_weights_in_a_chain() -> None:
    from torchvision.models import mobilenet_v3_small

    pixels, labels = bars(40, 0)
    large = pixels.reshape(-1, *SHAPE[:2]).repeat(4, axis=1).repeat(4, axis=2)
    np.savez("large.npz", x=large, y=labels)
    for seed in (3, 4):
        torch.manual_seed(seed)
        torch.save(mobilenet_v3_small(weights=None).state_dict(), f"{seed}.pth")
    digest = hashlib.sha256(Path("3.pth").read_bytes()).hexdigest()
    settings = ["--data", "large.npz", "--backbone", "mobilenet_v3_small", "--epochs", "1", "--lr", "1e-6", "-q"]
    assert f"4.pth: SHA-256 is {hashlib.sha256(Path('4.pth').read_bytes()).hexdigest()}, not {digest}" in refused(
        3, "extract", *settings, "--weights", "4.pth", "--weights-sha256", digest
    )
    ok("extract", *settings, "--weights", "3.pth", "--weights-sha256", digest, "train", *MLP, "--out", "run")
    ok("extract", *settings, "--weights", "3.pth", "--out", "f")
    ok("train", "--data", "f", *MLP, "--out", "two", "-q")
    assert Path("run/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()
    Image.fromarray(large[0]).save("first.png")
    assert len(ok("predict", "run", "first.png").stdout.split("\t")) == 3
    Path("3.pth").rename("moved.pth")
    ok("extract", *settings, "--weights", "moved.pth", "--out", "f")  # does nothing, because the weights are the same
    Path("4.pth").rename("3.pth")
    assert "was made with other settings" in refused(2, "extract", *settings, "--weights", "3.pth", "--out", "f")
