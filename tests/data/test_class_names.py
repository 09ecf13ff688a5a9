"""Tests that class names with control characters are refused by every source of data, before the training."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file
from sklearn.exceptions import ConvergenceWarning
from support.data import idx, message

import fastmlp
from fastmlp.data.checks import CheckedRows
from fastmlp.data.dataset import Dataset, check_dataset
from fastmlp.data.labels import check_class_names
from fastmlp.data.load import load_data
from fastmlp.data.pairs import Split
from fastmlp.data.readers.arrays import RawArrays
from fastmlp.errors import DataError

TITLE = "\x1b]0;title\x07"  # sets the title of a terminal
# Names that are refused, with the reason in the message.
REFUSED = {
    "escape": (f"cat{TITLE}", "contains the control character U+001B"),
    "tab": ("cat\tdog", "contains the control character U+0009"),
    "line break": ("cat\ndog", "contains the control character U+000A"),
    "carriage return": ("cat\rdog", "contains the control character U+000D"),
    "delete": ("cat\x7f", "contains the control character U+007F"),
    "control sequence introducer": ("cat\x9b2J", "contains the control character U+009B"),
    "line separator": ("cat\u2028dog", "contains the line separator U+2028"),
    "paragraph separator": ("cat\u2029dog", "contains the paragraph separator U+2029"),
    "override": ("cat\u202e", "contains the bidirectional control character U+202E"),
    "isolate": ("\u2066cat", "contains the bidirectional control character U+2066"),
    "lone surrogate": ("cat\udcff", "is not valid Unicode, because of the lone surrogate U+DCFF"),
}
ACCEPTED = (
    "",
    "cat",
    "naïve café",
    "猫",
    "\u0642\u0637\u0629",
    "\u200f\u05d7\u05ea\u05d5\u05dc",
    "क्\u200dष",
    "👩\u200d👧",
    "a\xa0b",
    "$x$ [red] <b> %s",
    "\\n",
)
X = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)


def labels(name: str) -> list[str]:
    """Return 12 labels of the classes "dog" and `name`; row 1 is the first one with this name."""
    return ["dog", name] * 6


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_name_is_escaped_in_the_message(kind: str) -> None:
    name, reason = REFUSED[kind]
    text = message(DataError, check_class_names, ["dog", name], "there, name {}".format)
    assert text.startswith("there, name 1: the class name ")
    assert text.endswith(f" {reason}; rename the class")
    assert text.isprintable()


def test_long_names_are_truncated_in_the_message() -> None:
    assert len(message(DataError, check_class_names, ["a" * 10**6 + "\n"])) < 200


def test_names_must_be_strings() -> None:
    assert message(DataError, check_class_names, ["cat", 7]) == "classes[1]: the class name 7 is not a string; pass str"


def test_names_in_all_scripts_are_accepted() -> None:
    check_class_names(ACCEPTED)
    names = [name for name in ACCEPTED if name]
    data = check_dataset(RawArrays(np.zeros((len(names), 2)), names))
    assert set(data.classes) == set(names)


# ------------------------------------------------------------------------------------------------ files


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "a.npz", x=X, **arrays)
    return folder / "a.npz"


def npy(folder: Path, **arrays: Any) -> Path:
    for key, values in {"x": X, **arrays}.items():
        np.save(folder / f"{key}.npy", values)
    return folder


def safetensors(folder: Path, name: str) -> Path:
    save_file({"x": X, "y": np.arange(12) % 2}, folder / "a.safetensors", {"classes": json.dumps(["dog", name])})
    return folder / "a.safetensors"


def image_folder(folder: Path, name: str) -> Path:
    for one in ("dog", name):
        (folder / one).mkdir()
        Image.new("L", (2, 2)).save(folder / one / "1.png")
    return folder


def table(folder: Path, name: str) -> Path:
    pd.DataFrame({"size": X[:, 0], "label": labels(name)}).to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


def parquet(folder: Path, name: str) -> Path:
    pd.DataFrame({"size": X[:, 0], "label": labels(name)}).to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def emnist(folder: Path, name: str) -> Path:
    for key, array in {"images-idx3": np.zeros((2, 2, 2), np.uint8), "labels-idx1": np.array([0, 1], np.uint8)}.items():
        (folder / f"emnist-letters-train-{key}-ubyte").write_bytes(idx(array))
    (folder / "emnist-letters-mapping.txt").write_text(f"0 65\n\n1 {ord(name[3])}\n")
    return folder


# For each source: a function that writes it, with a class of a given name, and the location in the message.
FILES: dict[str, tuple[Callable[[Path, str], Path], str]] = {
    "labels in .npz": (lambda folder, name: npz(folder, y=labels(name)), "a.npz: array 'y': row 1: "),
    "test labels": (
        lambda folder, name: npz(folder, y=["dog", "cat"] * 6, x_test=X, y_test=labels(name)),
        "a.npz: array 'y_test': row 1: ",
    ),
    "names in .npz": (
        lambda folder, name: npz(folder, y=np.arange(12) % 2, classes=["dog", name]),
        "a.npz: array 'classes': row 1: ",
    ),
    "labels in .npy": (lambda folder, name: npy(folder, y=labels(name)), "y.npy: row 1: "),
    "names in .npy": (lambda folder, name: npy(folder, y=np.arange(12) % 2, classes=["dog", name]), "classes.npy: row 1: "),
    "metadata": (safetensors, "a.safetensors: 'classes' in the metadata: name 1: "),
    "image folder": (image_folder, "class folder "),
    "emnist": (emnist, "emnist-letters-mapping.txt: line 3: "),
    "table": (table, "a.csv: line 3, column 2 'label': "),
    "parquet": (parquet, "a.parquet: row 2, column 2 'label': "),
}


@pytest.mark.parametrize("kind", ["escape", "line separator", "override"])
@pytest.mark.parametrize("source", FILES)
def test_every_source_refuses_such_names(source: str, kind: str, tmp_path: Path) -> None:
    write, location = FILES[source]
    text = message(DataError, load_data, write(tmp_path, REFUSED[kind][0]))
    assert location in text
    reason = "is not one of the classes" if source == "test labels" else REFUSED[kind][1]
    assert reason in text or "unknown class" in text
    assert text.isprintable()
    (tmp_path / "fine").mkdir()
    assert len(load_data(write(tmp_path / "fine", "cat" if source != "emnist" else "catB")).classes) == 2


@pytest.mark.parametrize("source", ["labels in .npz", "names in .npy", "metadata"])
def test_lone_surrogates_in_arrays_and_metadata(source: str, tmp_path: Path) -> None:
    write, location = FILES[source]
    text = message(DataError, load_data, write(tmp_path, "cat\ud800"))
    assert location in text and "the lone surrogate U+D800" in text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such file names")
def test_class_folders_whose_names_are_not_utf_8(tmp_path: Path) -> None:
    text = message(DataError, load_data, image_folder(tmp_path, os.fsdecode(b"caf\xe9")))
    assert r"class folder 1: the class name 'caf\udce9' is not valid Unicode" in text


# ------------------------------------------------------------------------------------------------ Python


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_and_names_that_are_given_to_train(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, reason = REFUSED[kind]
    monkeypatch.setattr("fastmlp.training.api.train_task", lambda *given: pytest.fail("the training started"))
    network, numbers = fastmlp.Network(hidden=4), np.arange(12) % 2
    text = message(DataError, fastmlp.train, network, (X, labels(name)))
    assert text.startswith("training targets, row 1: ") and reason in text
    text = message(DataError, fastmlp.train, network, (X, numbers), classes=["dog", name])
    assert text.startswith("classes[1]: ") and reason in text
    split = Split(CheckedRows(X, numbers.astype(np.int32), 2), ("dog", name))
    assert reason in message(DataError, fastmlp.train, network, split)
    data = Dataset("data", X, numbers.astype(np.int32), ("dog", name))
    assert reason in message(DataError, fastmlp.train, network, data.split(validation=0, test=0).train)


def test_labels_of_a_data_frame() -> None:
    frame = pd.DataFrame({"size": X[:, 0], "label": labels("cat\n")})
    text = message(DataError, fastmlp.train, fastmlp.Network(hidden=4), (frame[["size"]], frame["label"]))
    assert r"row 1: the class name 'cat\n' contains the control character U+000A" in text


def test_names_of_columns_must_be_unicode_to_be_stored(tmp_path: Path) -> None:
    """They are stored in the model file as JSON, which has no lone surrogates. Other characters are stored exactly."""
    network, y = fastmlp.Network(hidden=4), labels("cat")
    frame = pd.DataFrame(X, columns=pd.Index(["size", "b\ud800"], dtype=object))
    text = message(DataError, fastmlp.train, network, (frame, y))
    assert text == r"data frame: the name of column 2, 'b\ud800', is not valid Unicode; rename the column"
    frame = pd.DataFrame({f"size\n{TITLE}": X[:, 0], "b\u202e\x9b": X[:, 1]})
    model = fastmlp.train(network, (frame, y), epochs=1, backend="numpy").model
    model.save(tmp_path / "m.safetensors")
    loaded = fastmlp.load(tmp_path / "m.safetensors", backend="numpy")
    assert loaded.encoding is not None
    assert [column.name for column in loaded.encoding.columns] == list(frame.columns)
    assert loaded.predict(frame).tolist() == model.predict(frame).tolist()
    assert message(DataError, loaded.predict, frame[["b\u202e\x9b"]]).isprintable()


@pytest.mark.parametrize("kind", REFUSED)
def test_models_and_estimators(kind: str) -> None:
    """An estimator accepts such labels, as in scikit-learn, but not as the class names of a model."""
    name, reason = REFUSED[kind]
    network = fastmlp.Network((2, 3))
    text = message(DataError, fastmlp.Model, network, network.initial_parameters(0), classes=("a", "b", name))
    assert text.startswith("classes[2]: ") and reason in text
    y = np.array(["dog", "fox", name] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator = fastmlp.MLPClassifier((4,), max_iter=1, backend="numpy", random_state=0).fit(X, y)
    assert set(estimator.predict(X)) <= set(y)
    assert reason in message(DataError, estimator.to_model)
