"""Tests of data sets in folders of IDX files: layouts and spellings, EMNIST, QMNIST, and folders with wrong files."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.cli import FAST, no_figures, ok, refused  # noqa: F401 - autouse fixture
from support.data import idx
from support.data import message as message_of

from fastmlp.data.load import is_image_folder, load_data
from fastmlp.data.readers.idx_folder import read_idx_folder
from fastmlp.errors import ConfigError, DataError

message = partial(message_of, DataError)
random = np.random.default_rng(5)
SET = {
    "train-images": random.integers(0, 256, (20, 4, 3), np.uint8),
    "train-labels": np.arange(20, dtype=np.uint8) % 4,
    "t10k-images": random.integers(0, 256, (8, 4, 3), np.uint8),
    "t10k-labels": np.arange(8, dtype=np.uint8) % 4,
}
FORMATS = {"images": "idx3-ubyte", "labels": "idx1-ubyte", "IMAGES": "IDX3-UBYTE", "LABELS": "IDX1-UBYTE"}


def write(folder: Path, arrays=None, spelling: str = "{name}-{format}", packed: bool = False) -> Path:
    """Write the arrays as IDX files whose names are `spelling` with the name of the array and its format."""
    for name, array in (SET if arrays is None else arrays).items():
        path = folder / spelling.format(name=name, format=FORMATS[name.rpartition("-")[2]])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder


def renamed(**names: str) -> dict[str, np.ndarray]:
    """Return the arrays with other names; `train` and `t10k` are replaced in the names."""
    return {names[name.partition("-")[0]] + "-" + name.partition("-")[2]: array for name, array in SET.items()}


def with_file(name: str, content: bytes):
    """Return a function that writes the files to a folder, and then another file."""

    def change(folder: Path) -> None:
        write(folder)
        (folder / name).write_bytes(content)

    return change


LAYOUTS = {
    "plain": write,
    "gzipped": partial(write, spelling="{name}-{format}.gz", packed=True),
    "gzipped without .gz": partial(write, packed=True),
    "plain with .gz": partial(write, spelling="{name}-{format}.gz"),
    "dots": partial(write, spelling="{name}.{format}"),
    "dots, gzipped": partial(write, spelling="{name}.{format}.gz", packed=True),
    "underscores": partial(write, spelling="{name}_{format}"),
    "bare names": partial(write, spelling="{name}"),
    ".idx": partial(write, spelling="{name}.idx"),
    "upper case": lambda folder: write(folder, {name.upper(): array for name, array in SET.items()}, "{name}.IDX"),
    "raw": lambda folder: write(folder / "raw"),
    "NAME/raw": lambda folder: write(folder / "KMNIST" / "raw", packed=True),
    "NAME": lambda folder: write(folder / "kmnist", packed=True),
    "NAME beside other folders": lambda folder: write(other_files(folder / "docs").parent / "kmnist"),
    "NAME beside a hidden copy": lambda folder: write(write(folder / ".cache").parent / "kmnist"),
    "a folder for each file": partial(write, spelling="{name}-{format}/{name}.{format}"),
    "a file and a folder of the same file": lambda folder: write(
        write(folder, spelling="{name}.{format}"), spelling="{name}-{format}/{name}-{format}"
    ),
    "plain and gzipped": lambda folder: write(write(folder), spelling="{name}-{format}.gz", packed=True),
    "prefix": partial(write, spelling="k49-{name}-{format}"),
    "test instead of t10k": lambda folder: write(folder, renamed(train="train", t10k="test")),
    "training and testing": lambda folder: write(folder, renamed(train="training", t10k="testing")),
    "other files beside them": lambda folder: write(other_files(folder)),
    "a failed download beside them": with_file("train-images.idx3-ubyte", b"<html>"),
}


def other_files(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("README.md", "train-labels.tsv.gz", ".train-images-idx3-ubyte.gz.12.part", "train-images-idx3-ubyte.zip"):
        (folder / name).write_bytes(b"other content")
    Image.new("L", (2, 2)).save(folder / "sprite.png")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_give_the_same_arrays(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "data")
    data = load_data(tmp_path / "data")
    assert data.x_test is not None and data.y_test is not None
    np.testing.assert_array_equal(data.x, SET["train-images"].reshape(20, 12))
    np.testing.assert_array_equal(data.x_test, SET["t10k-images"].reshape(8, 12))
    assert data.y.tolist() == SET["train-labels"].tolist() and data.y_test.tolist() == SET["t10k-labels"].tolist()
    assert data.image_shape == (4, 3, 1) and data.classes == tuple("0123") and data.x.dtype == np.uint8
    assert data.notes == ()


def test_a_set_without_test_files_has_no_test_set(tmp_path):
    write(tmp_path, {name: SET[name] for name in ("train-images", "train-labels")})
    assert load_data(tmp_path).x_test is None


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32", "float64"])
def test_images_and_labels_of_other_types(tmp_path, dtype):
    images, labels = random.normal(0, 50, (6, 2, 2)).astype(dtype), np.array([5, 7, -5, 7, 5, -5], dtype)
    (tmp_path / "train-images-idx3").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1").write_bytes(idx(labels))
    data = load_data(tmp_path, task="classification")
    assert data.x.dtype == np.float32 and data.classes == ("-5", "5", "7") and data.y.tolist() == [1, 2, 0, 2, 1, 0]
    np.testing.assert_array_equal(data.x, images.reshape(6, 4).astype(np.float32))


def test_tables_and_numbers_as_idx_files(tmp_path):
    x, y = random.normal(0, 1, (6, 3)).astype(np.float32), random.normal(0, 1, 6)
    (tmp_path / "x.idx2-float").write_bytes(idx(x))
    (tmp_path / "y.idx1-double").write_bytes(idx(y))
    data = load_data(tmp_path)
    assert data.classes == () and data.image_shape is None
    np.testing.assert_array_equal(data.x, x)
    np.testing.assert_array_equal(data.y[:, 0], y.astype(np.float32))


# --- EMNIST and QMNIST ---


LETTERS = "1 65 97\n2 66 98\n3 67\n4 68 100\n"


def emnist(folder: Path, name: str = "letters", first: int = 1, mapping: str | None = LETTERS) -> Path:
    """Write files as in EMNIST: transposed images, and labels from 1 in the set "letters"."""
    for key, array in renamed(train=f"emnist-{name}-train", t10k=f"emnist-{name}-test").items():
        stored = array.transpose(0, 2, 1).copy() if array.ndim == 3 else array + np.uint8(first)
        write(folder, {key: stored}, "{name}-{format}.gz", packed=True)
    if mapping is not None:
        (folder / f"emnist-{name}-mapping.txt").write_text(mapping)
    return folder


def test_emnist_is_transposed_and_has_the_class_names_of_its_mapping(tmp_path):
    data = load_data(emnist(tmp_path))
    assert data.x_test is not None and data.y_test is not None
    np.testing.assert_array_equal(data.x, SET["train-images"].reshape(20, 12))
    np.testing.assert_array_equal(data.x_test, SET["t10k-images"].reshape(8, 12))
    assert data.image_shape == (4, 3, 1) and data.classes == ("A/a", "B/b", "C", "D/d")
    assert data.y.tolist() == SET["train-labels"].tolist() and data.y_test.tolist() == SET["t10k-labels"].tolist()
    assert f"{tmp_path}: the images of EMNIST are stored transposed; rows and columns were swapped" in data.notes
    assert f"{tmp_path / 'emnist-letters-mapping.txt'}: used for the class names" in data.notes


def test_emnist_without_a_mapping_has_numbers_as_classes(tmp_path):
    data = load_data(emnist(tmp_path, mapping=None))
    assert data.classes == ("1", "2", "3", "4") and data.y.tolist() == SET["train-labels"].tolist()


def test_of_several_data_sets_in_a_folder_one_is_chosen_by_a_file(tmp_path):
    emnist(emnist(tmp_path), "digits", 0, "0 48\n1 49\n2 50\n3 51\n")
    text = message(load_data, tmp_path)
    assert text.startswith(f"{tmp_path}: files of 2 data sets (emnist-digits, emnist-letters); give the path of a file of one")
    assert load_data(tmp_path / "emnist-digits-train-images-idx3-ubyte.gz").classes == tuple("0123")
    assert load_data(tmp_path / "emnist-letters-test-labels-idx1-ubyte.gz").classes[0] == "A/a"


def test_files_of_an_incomplete_second_data_set_are_named_in_a_note(tmp_path):
    write(emnist(tmp_path), {"train-images": SET["train-images"]})
    data = load_data(tmp_path)
    assert f"{tmp_path}: files that were not used: train-images-idx3-ubyte" in data.notes and data.classes[0] == "A/a"


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ("1 65\n2 66\n3 67\n", "train-labels-idx1-ubyte.gz: row 3: label 4 is not one of the classes"),
        ("1 65\n2\n", "mapping.txt: line 2 is '2'; a line must be a label and code points"),
        ("1 65\ntwo 66\n", "mapping.txt: line 2 is 'two 66'"),
        ("1 65\n2 1114112\n", "mapping.txt: line 2 is '2 1114112'"),
        ("1 65\n2 55296\n", r"mapping.txt: line 2: the class name '\ud800' is not valid Unicode"),
        ("1 65\n1 66\n", "mapping.txt: a label occurs twice"),
        ("\n", "mapping.txt: empty"),
    ],
)
def test_a_damaged_mapping_is_reported(tmp_path, mapping, expected):
    assert expected in message(load_data, emnist(tmp_path, mapping=mapping))


def qmnist(folder: Path) -> Path:
    """Write files as in QMNIST: labels of 8 columns, and additional test labels of one column."""
    for split, origin in (("train", "train"), ("test", "t10k")):
        labels = random.integers(0, 100, (len(SET[f"{origin}-labels"]), 8), np.int32)
        labels[:, 0] = SET[f"{origin}-labels"]
        write(folder, {f"qmnist-{split}-images": SET[f"{origin}-images"]}, "{name}-{format}.gz", packed=True)
        (folder / f"qmnist-{split}-labels-idx2-int.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def test_the_first_of_the_8_label_columns_of_qmnist_is_the_class(tmp_path):
    qmnist(tmp_path)
    data = load_data(tmp_path)
    assert data.y_test is not None and data.classes == tuple("0123")
    assert data.y.tolist() == SET["train-labels"].tolist() and data.y_test.tolist() == SET["t10k-labels"].tolist()
    assert any("qmnist-train-labels-idx2-int.gz: labels of 8 columns" in note for note in data.notes)
    write(tmp_path, {"qmnist-test-labels": SET["t10k-labels"]}, "{name}-{format}.gz", packed=True)  # as in its repository
    assert not any("qmnist-test-labels-idx2-int.gz" in note for note in load_data(tmp_path).notes)


# --- folders that are refused ---


def removed(*names: str):
    """Return a function that writes the files to a folder, except those of some arrays."""
    return lambda folder: write(folder, {name: array for name, array in SET.items() if name not in names})


REFUSED = {
    "no train labels": (
        removed("train-labels"),
        "train-labels is missing; found: t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, train-images-idx3-ubyte; add",
    ),
    "no train images": (removed("train-images"), "train-images is missing; found: "),
    "only a test part": (removed("train-images", "train-labels"), "train-images and train-labels are missing; found: t10k-"),
    "no test labels": (removed("t10k-labels"), "t10k-labels is missing; found: "),
    "no test images": (removed("t10k-images"), "t10k-images is missing; found: "),
    "only one file": (removed("train-labels", "t10k-images", "t10k-labels"), "train-labels is missing"),
    "incomplete with a prefix": (
        lambda folder: write(folder, {"kmnist-train-images": SET["train-images"], "kmnist-test-labels": SET["t10k-labels"]}),
        "kmnist-train-labels and kmnist-test-images are missing",
    ),
    "two candidates": (
        with_file("train-images.idx3-ubyte", idx(SET["train-images"])),
        "2 files for train-images (train-images-idx3-ubyte, train-images.idx3-ubyte); keep one of them",
    ),
    "fewer labels": (with_file("train-labels-idx1-ubyte", idx(SET["train-labels"][:-1])), "train-labels-idx1-ubyte has 19"),
    "fewer test labels": (with_file("t10k-labels-idx1-ubyte", idx(SET["t10k-labels"][:-1])), "t10k-labels-idx1-ubyte has 7"),
    "smaller test images": (
        with_file("t10k-images-idx3-ubyte", idx(SET["t10k-images"][:, :2])),
        "t10k-images-idx3-ubyte has rows of shape (2, 3, 1)",
    ),
    "labels as images": (
        with_file("train-images-idx3-ubyte", idx(SET["train-labels"])),
        "train-images-idx3-ubyte: the number of dimensions is 1, but must be 2, 3 or 4",
    ),
    "images as labels": (
        with_file("train-labels-idx1-ubyte", idx(SET["train-images"])),
        "train-labels-idx1-ubyte: the number of dimensions is 3, but must be 1 or 2",
    ),
    "empty file": (with_file("train-labels-idx1-ubyte", b""), "train-labels-idx1-ubyte: only 0 bytes"),
    "wrong magic": (with_file("t10k-labels-idx1-ubyte", b"text"), "t10k-labels-idx1-ubyte: not an IDX file"),
    "truncated": (with_file("train-images-idx3-ubyte", idx(SET["train-images"])[:-1]), "idx3-ubyte: the header declares"),
    "damaged gzip": (
        with_file("train-images-idx3-ubyte", gzip.compress(idx(SET["train-images"]))[:-9]),
        "train-images-idx3-ubyte: damaged gzip file",
    ),
    "a label of the test set that does not occur": (
        with_file("t10k-labels-idx1-ubyte", idx(SET["t10k-labels"] + np.uint8(1))),
        "t10k-labels-idx1-ubyte: row 3: label 4 is not one of the classes",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_folder_is_refused(tmp_path, kind):
    change, expected = REFUSED[kind]
    change(tmp_path)
    text = message(load_data, tmp_path)
    assert str(tmp_path) in text and expected in text


def test_several_folders_below_a_folder_are_named(tmp_path):
    for name in ("KMNIST", "QMNIST"):
        write(tmp_path / name / "raw")
    text = message(load_data, tmp_path)
    assert f"IDX files in 2 folders ({tmp_path / 'KMNIST' / 'raw'}, {tmp_path / 'QMNIST' / 'raw'})" in text


def test_settings_of_other_sources_are_refused(tmp_path):
    write(tmp_path)
    assert "has no sample weights" in message_of(ConfigError, load_data, tmp_path, weight="w")
    assert "image_size is for folders of images" in message_of(ConfigError, load_data, tmp_path, image_size=(2, 2))


def test_a_folder_of_images_stays_one(tmp_path):
    for name in ("cat", "dog", "raw"):
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name / "train-images.png")
    for name in ("labels.txt", "train_labels", "label_idx.csv"):
        (tmp_path / name).write_text("cat dog raw")
    assert is_image_folder(tmp_path) and load_data(tmp_path).classes == ("cat", "dog", "raw")
    write(tmp_path)
    assert not is_image_folder(tmp_path)


def test_the_readers_notes_and_locations(tmp_path):
    arrays = read_idx_folder(qmnist(tmp_path))
    assert arrays.locations is not None
    assert arrays.locations["y"].row(3) == f"{tmp_path / 'qmnist-train-labels-idx2-int.gz'}: row 3"


# --- the command line ---


def test_train_and_evaluate_on_a_folder_of_idx_files(tmp_path):
    emnist(tmp_path / "letters")
    assert "stored transposed" in ok("train", "--data", tmp_path / "letters", "--out", tmp_path / "run", *FAST).stderr
    ok("evaluate", tmp_path / "run", "--data", tmp_path / "letters")


def test_a_missing_file_is_exit_code_3(tmp_path):
    removed("train-labels")(tmp_path / "data")
    text = refused(3, "train", "--data", tmp_path / "data", "--out", tmp_path / "run", *FAST)
    assert "train-labels is missing; found:" in text and not (tmp_path / "run").exists()


def test_a_large_mapping_is_rejected(tmp_path):
    folder = emnist(tmp_path, mapping="1 65\n" * (1 << 18))
    assert "larger than 1,048,576 bytes" in message_of(DataError, load_data, folder)
