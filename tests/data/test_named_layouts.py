"""Tests of the layouts in which MNIST and Fashion-MNIST are found, and of their notes and hashes. Nothing is downloaded."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.cli import call
from support.data import idx, message

from fastmlp.data.download import DataEntry, DataFile
from fastmlp.data.load import load_data
from fastmlp.data.named import DATASETS, fetch_data, list_data, load_named, verify_data
from fastmlp.errors import DataError, UnavailableError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DOTS = tuple(name.replace("-idx", ".idx") for name in FILES)
IMAGES = np.random.default_rng(3).integers(0, 256, (30, 28, 28), np.uint8)
LABELS = np.arange(30, dtype=np.uint8) % 10
ARRAYS = (IMAGES, LABELS, IMAGES[:10], LABELS[:10])
ROWS = "30 training and 10 test rows in {place}; the published data set has 60,000 and 10,000"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("FASTMLP_OFFLINE", "1")


def write(folder: Path, names=FILES, packed: bool = False, suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, ARRAYS, strict=True):
        (folder / (name + suffix)).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder


def keras(folder: Path) -> Path:
    """Write the file in which Keras stores MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = dict(zip(("x_train", "y_train", "x_test", "y_test"), ARRAYS, strict=True))
    np.savez(folder / "mnist.npz", **arrays)  # type: ignore[arg-type]
    return folder / "mnist.npz"


GZ: Mapping = {"packed": True, "suffix": ".gz"}
# For each layout: the name of the data set, a function that writes it below a folder and returns where it is, and whether this
# is the folder for downloads.
LAYOUTS = {
    "torchvision": ("mnist", lambda root: write(root / "MNIST" / "raw"), True),
    "torchvision, gzipped": ("fashion-mnist", lambda root: write(root / "FashionMNIST" / "raw", **GZ), True),
    "gzipped without .gz": ("mnist", lambda root: write(root / "MNIST" / "raw", packed=True), True),
    "plain with .gz": ("mnist", lambda root: write(root / "MNIST" / "raw", suffix=".gz"), True),
    "dots": ("mnist", lambda root: write(root / "MNIST" / "raw", DOTS), True),
    "NAME": ("mnist", lambda root: write(root / "MNIST", DOTS, packed=True), False),
    "name/raw": ("mnist", lambda root: write(root / "mnist" / "raw", **GZ), False),
    "the data folder": ("mnist", lambda root: write(root, DOTS), False),
    "raw": ("mnist", lambda root: write(root / "raw"), False),
    "prefix": ("fashion-mnist", lambda root: write(root, [f"fashion-mnist-{name}" for name in FILES], **GZ), False),
    "Keras": ("fashion-mnist", lambda root: write(root / "fashion-mnist", **GZ), False),
    "Keras, one file": ("mnist", keras, False),
    "Zalando's repository": ("fashion-mnist", lambda root: write(root / "data" / "fashion", **GZ), False),
    "Zalando's data folder": ("fashion-mnist", lambda root: write(root / "fashion", **GZ), False),
    "Fashion_MNIST": ("fashion-mnist", lambda root: write(root / "Fashion_MNIST"), False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_are_found(tmp_path, layout):
    name, place, official = LAYOUTS[layout][0], LAYOUTS[layout][1](tmp_path), LAYOUTS[layout][2]
    arrays = load_named(name, tmp_path)
    for found, written in zip((arrays.x, arrays.y, arrays.x_test, arrays.y_test), ARRAYS, strict=True):
        np.testing.assert_array_equal(found, written)
    assert list(arrays.notes) == [f"{name}: read from {place}"] * (not official) + [f"{name}: {ROWS.format(place=place)}"]
    data = load_data(name, tmp_path)
    assert data.classes == DATASETS[name].classes and data.x.shape == (30, 784)
    listed = {row.name: row for row in list_data(tmp_path)}[name]
    assert (listed.state, listed.folder) == ("present", str(place))
    assert {row.status for row in verify_data(name, tmp_path)} == {"damaged"}  # these are not the published files


def test_the_folder_for_downloads_precedes_other_layouts(tmp_path):
    write(tmp_path / "mnist")
    write(tmp_path)
    keras(tmp_path)
    write(tmp_path / "MNIST" / "raw")
    assert len(load_named("mnist", tmp_path).notes) == 1


def test_files_of_other_data_sets_are_not_taken(tmp_path):
    """Files with the prefix of another data set, or in a folder with its name, are not used."""
    for folder in (tmp_path / "emnist", tmp_path / "fashion"):
        write(folder, [f"emnist-digits-{name}" for name in FILES] if folder.name == "emnist" else FILES)
        with pytest.raises(UnavailableError):
            load_named("mnist", folder)
    load_named("fashion-mnist", tmp_path / "fashion")


def test_the_published_labels_of_another_data_set_are_recognized(tmp_path, monkeypatch):
    write(tmp_path, DOTS, **GZ)
    load_named("mnist", tmp_path)
    hashes = [hashlib.sha256(idx(array)).hexdigest() for array in ARRAYS]
    files = tuple(DataFile(f"{name}.gz", "", plain) for name, plain in zip(FILES, hashes, strict=True))
    monkeypatch.setitem(DATASETS, "other", DataEntry("for tests", tuple("0123456789"), "Other/raw", (), files))
    with pytest.raises(UnavailableError):
        load_named("mnist", tmp_path)
    load_named("other", tmp_path)


def test_without_a_download_the_files_that_exist_are_named(tmp_path):
    write(tmp_path / "mnist")
    (tmp_path / "mnist" / FILES[1]).unlink()
    text = message(UnavailableError, load_data, "mnist", tmp_path)
    assert f"{tmp_path / 'mnist'} has only {FILES[0]}, {FILES[2]}, {FILES[3]}; copy the files to" in text
    write(tmp_path / "MNIST" / "raw", DOTS)
    (tmp_path / "MNIST" / "raw" / DOTS[1]).unlink()
    text = message(UnavailableError, load_data, "mnist", tmp_path)
    assert "train-labels-idx1-ubyte.gz is missing" in text and f"raw has only {DOTS[0]}, {DOTS[2]}, {DOTS[3]};" in text
    assert [row.state for row in list_data(tmp_path)] == ["embedded", "missing", "incomplete"]


def test_two_candidates_are_named(tmp_path):
    write(tmp_path, DOTS)
    write(tmp_path, [name.replace("-idx", "_idx") for name in FILES])
    text = message(DataError, load_data, "mnist", tmp_path)
    assert f"{tmp_path}: 2 files for train-images (train-images.idx3-ubyte, train-images_idx3-ubyte); keep one" in text


@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist", "."])
def test_damage_is_reported_in_every_layout(tmp_path, folder):
    write(tmp_path / folder, DOTS, packed=True)
    path = tmp_path / folder / DOTS[0]
    path.write_bytes(path.read_bytes()[:-9])
    assert f"{path}: damaged gzip file" in message(DataError, load_data, "mnist", tmp_path)


# --- hashes ---


@pytest.fixture
def small(monkeypatch):
    """Register the data set "small", whose published files have the arrays of these tests."""
    packed = [gzip.compress(idx(array), 9, mtime=0) for array in ARRAYS]
    files = [
        DataFile(f"{name}.gz", hashlib.sha256(content).hexdigest(), hashlib.sha256(gzip.decompress(content)).hexdigest())
        for name, content in zip(FILES, packed, strict=True)
    ]
    entry = DataEntry("for tests", tuple("0123456789"), "Small/raw", (), tuple(files), (30, 10), ("small",))
    monkeypatch.setitem(DATASETS, "small", entry)


@pytest.mark.parametrize(
    "written",
    [
        partial(write, packed=True),
        partial(write, names=DOTS),
        partial(write, suffix=".gz"),
        partial(write, names=DOTS, packed=True, suffix=".gz"),
    ],
)
@pytest.mark.parametrize("folder", ["Small/raw", "small", "."])
def test_verify_compares_the_content_whatever_the_names_are(small, tmp_path, written, folder):
    written(tmp_path / folder)
    rows = verify_data("small", tmp_path)
    assert [row.status for row in rows] == ["ok"] * 4 and all(row.expected == row.found for row in rows)
    assert fetch_data("small", tmp_path) == rows  # nothing has to be downloaded
    assert [note for note in load_named("small", tmp_path).notes if "rows" in note] == []


def test_a_damaged_file_in_another_layout_or_spelling_is_not_replaced(small, tmp_path):
    write(tmp_path / "small", DOTS)
    (tmp_path / "small" / DOTS[1]).write_bytes(idx(LABELS[::-1].copy()))
    assert [row.status for row in verify_data("small", tmp_path)] == ["ok", "damaged", "ok", "ok"]
    with pytest.raises(UnavailableError):  # fetching downloads the published files to their own folder
        fetch_data("small", tmp_path)
    write(tmp_path / "Small" / "raw", DOTS, **GZ)
    path = tmp_path / "Small" / "raw" / f"{DOTS[1]}.gz"
    path.write_bytes(b"damaged")
    assert f"{path}: damaged" in message(DataError, fetch_data, "small", tmp_path)
    assert path.read_bytes() == b"damaged"


def test_the_file_of_keras_is_verified(tmp_path, monkeypatch):
    path = keras(tmp_path)
    (row,) = verify_data("mnist", tmp_path)
    assert (row.file, row.status) == (str(path), "damaged")
    entry = DATASETS["mnist"]._replace(archive=("mnist.npz", hashlib.sha256(path.read_bytes()).hexdigest()))
    monkeypatch.setitem(DATASETS, "mnist", entry)
    assert [row.status for row in fetch_data("mnist", tmp_path)] == ["ok"]


def test_the_commands_show_where_the_files_are(small, tmp_path):
    folder = write(tmp_path / "small", DOTS)
    listed = json.loads(call("data", "list", "--json", "--data-dir", tmp_path).stdout)["datasets"][-1]
    assert listed == {"name": "small", "description": "for tests", "state": "present", "folder": str(folder)}
    result = call("data", "verify", "--json", "--data-dir", tmp_path)
    assert result.exit_code == 0
    assert [row["file"] for row in json.loads(result.stdout)["files"]] == [str(folder / name) for name in DOTS]
