"""Tests of files of arrays as other libraries write them: names, formats, kinds of labels, dtypes and memory layouts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.data import message as message_of

from fastmlp.data.dataset import check_dataset
from fastmlp.data.load import load_data
from fastmlp.data.readers.arrays import RawArrays
from fastmlp.errors import ConfigError, DataError, UnavailableError

message = partial(message_of, DataError)
X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([1, 2, 1, 3, 2, 1])
TEST = {"x": X[:2] + 1, "y": Y[:2]}

NAMES = [
    ("x", "y", "x_test", "y_test"),
    ("X", "y", "X_test", "y_test"),
    ("X", "Y", None, None),
    ("x_train", "y_train", "x_test", "y_test"),
    ("X_train", "y_train", "X_test", "y_test"),
    ("train_x", "train_y", "test_x", "test_y"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("data", "target", None, None),
    ("data", "targets", None, None),
    ("images", "labels", None, None),
    ("features", "labels", None, None),
    ("inputs", "targets", None, None),
    ("arr_0", "arr_1", None, None),
]


def named(names: tuple[Any, ...]) -> dict[str, Any]:
    values = zip(names, (X, Y, TEST["x"], TEST["y"]), strict=True)
    return {name: value for name, value in values if name}


def write_pt(path: Path, content: Any) -> None:
    torch = pytest.importorskip("torch")
    if isinstance(content, dict):
        content = {name: torch.tensor(value) for name, value in content.items()}
    torch.save(content, path)


def write_npy_folder(path: Path, arrays: dict[str, Any]) -> None:
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


WRITERS = {
    "a.npz": lambda path, arrays: np.savez(path, **arrays),
    "folder": write_npy_folder,
    "a.safetensors": lambda path, arrays: save_file({name: np.ascontiguousarray(v) for name, v in arrays.items()}, path),
    "a.pt": write_pt,
}


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("names", NAMES)
def test_names_of_other_libraries(tmp_path: Path, names: tuple[Any, ...], file: str) -> None:
    WRITERS[file](tmp_path / file, named(names))
    data = load_data(tmp_path / file)
    assert data.x.tolist() == X.tolist()
    assert data.classes == ("1", "2", "3")
    assert data.y.tolist() == (Y - 1).tolist()
    assert (data.x_test is None) == (names[2] is None)
    if data.y_test is not None:
        assert data.y_test.tolist() == [0, 1]


def test_other_arrays_are_ignored_with_a_note(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y, x_val=X, comment="hello")
    assert load_data(tmp_path / "a.npz").notes == (f"{tmp_path / 'a.npz'}: ignored arrays: comment, x_val",)


def test_names_of_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=X, target=Y - 1, target_names=["fig", "plum", "date"])
    data = load_data(tmp_path / "a.npz")
    assert data.classes == ("fig", "plum", "date")
    assert data.y.tolist() == (Y - 1).tolist()


@pytest.mark.parametrize("file", ["x.npy", "y.npy"])
def test_one_file_of_a_pair(tmp_path: Path, file: str) -> None:
    write_npy_folder(tmp_path / "pair", {"x": X, "y": Y})
    assert load_data(tmp_path / "pair" / file).x.tolist() == X.tolist()
    (tmp_path / "pair" / "y.npy").unlink()
    if file == "x.npy":
        assert f"{tmp_path / 'pair' / 'y.npy'}: no such file" in message(load_data, tmp_path / "pair" / file)


def test_arrays_without_a_pair_of_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, Y=Y)
    assert "no array named y (it holds: Y, x); save x and y" in message(load_data, tmp_path / "a.npz")


# ------------------------------------------------------------------------------------------------ .pt


def test_pt_pair(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save((torch.tensor(X), torch.tensor(Y)), tmp_path / "a.pt")
    assert load_data(tmp_path / "a.pt").x.tolist() == X.tolist()


def test_pt_kinds_of_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    torch.save({"x": x.to(torch.bfloat16), "y": torch.tensor(Y)}, tmp_path / "a.pt")
    assert load_data(tmp_path / "a.pt").x.tolist() == X.tolist()
    torch.save({"x": x.T, "y": torch.tensor(Y[:2])}, tmp_path / "a.pt")
    assert load_data(tmp_path / "a.pt").x.tolist() == X.T.tolist()
    torch.save({"x": torch.tensor(X) * 1j, "y": torch.tensor(Y)}, tmp_path / "a.pt")
    assert "tensor 'x' is not a dense tensor of real numbers" in message(load_data, tmp_path / "a.pt")


class Surprise:
    """An object whose unpickling would write a file."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("surprise"),))


class OfTorch:
    """An object whose unpickling would call a function of PyTorch that constructs no tensor."""

    def __reduce__(self) -> Any:
        import torch

        return (torch.get_num_threads, ())


def test_pt_files_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Surprise(), "y": torch.tensor(Y)}, tmp_path / "a.pt")
    assert "getattr" in message(load_data, tmp_path / "a.pt")
    torch.save({"x": OfTorch(), "y": torch.tensor(Y)}, tmp_path / "a.pt")
    text = message(load_data, tmp_path / "a.pt")
    assert "a.pt: not a readable file of tensors (it is damaged, or has objects other than tensors); save a dict" in text
    assert "weights_only" not in text  # PyTorch's own message advises to switch the protection off


@pytest.mark.parametrize("new", [True, False])
def test_pickle_protocols(tmp_path: Path, new: bool) -> None:
    """Protocol 3 is read without a warning. PyTorch cannot read 4 and 5 with weights_only=True."""
    torch = pytest.importorskip("torch")
    content = {"x": torch.tensor(X), "y": torch.tensor(Y)}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=3, _use_new_zipfile_serialization=new)
    assert load_data(tmp_path / "a.pt").x.tolist() == X.tolist()
    torch.save(content, tmp_path / "a.pt", pickle_protocol=4, _use_new_zipfile_serialization=new)
    assert "a.pt: it has pickle protocol 4, but tensors are read only with 2 or 3; save" in message(
        load_data, tmp_path / "a.pt"
    )
    assert not (tmp_path / "surprise").exists()


PT_DAMAGE = {
    "a number": (5, "neither a dict of tensors nor a pair of tensors"),
    "a list of three": ([1, 2, 3], "neither a dict of tensors nor a pair of tensors"),
    "numbers in a dict": ({"x": 5}, "neither a dict of tensors nor a pair of tensors"),
}


@pytest.mark.parametrize("kind", PT_DAMAGE)
def test_pt_with_other_content(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    content, expected = PT_DAMAGE[kind]
    torch.save(content, tmp_path / "a.pt")
    assert expected in message(load_data, tmp_path / "a.pt")


def test_damaged_pt(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 no archive")
    assert "not a readable file of tensors" in message(load_data, tmp_path / "a.pt")


def test_pt_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pt").write_bytes(b"")
    assert ".pt files need PyTorch" in message_of(UnavailableError, load_data, tmp_path / "a.pt")


# ------------------------------------------------------------------------------------------------ labels


LABELS: dict[str, tuple[Any, tuple[str, ...], list[int]]] = {
    "integers from 0": ([0, 1, 2], ("0", "1", "2"), [0, 1, 2]),
    "integers from 1": ([1, 2, 3], ("1", "2", "3"), [0, 1, 2]),
    "integers with gaps": ([7, 300, -4], ("-4", "7", "300"), [1, 2, 0]),
    "-1 and 1": ([-1, 1, 1], ("-1", "1"), [0, 1, 1]),
    "large integers": (np.array([1 << 63, 5, 5], np.uint64), ("5", "9223372036854775808"), [1, 0, 0]),
    "whole floats": ([1.0, 2.0, 1.0], ("1", "2"), [0, 1, 0]),
    "Booleans": ([True, False, True], ("False", "True"), [1, 0, 1]),
    "one column": ([[3], [4], [3]], ("3", "4"), [0, 1, 0]),
    "strings": (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
    "bytes": (np.array([b"b", b"a", b"b"]), ("a", "b"), [1, 0, 1]),
    "objects that are strings": (np.array(["b", "a", "b"], object), ("a", "b"), [1, 0, 1]),
    "objects that are integers": (np.array([5, 6, 5], object), ("5", "6"), [0, 1, 0]),
    "one-hot rows": ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], ("0", "1", "2"), [2, 0, 1]),
    "one-hot rows of floats": (np.eye(3)[[2, 0, 2]], ("0", "1", "2"), [2, 0, 2]),
    "one-hot Booleans": (np.eye(2, dtype=bool)[[1, 0, 1]], ("0", "1"), [1, 0, 1]),
    "big-endian": (np.array([5, 6, 5], ">i2"), ("5", "6"), [0, 1, 0]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels(kind: str) -> None:
    labels, classes, y = LABELS[kind]
    data = check_dataset(RawArrays(X[:3], labels))
    assert data.y.dtype == np.int32
    assert (data.classes, data.y.tolist()) == (classes, y)


def test_one_hot_rows_are_told_and_keep_classes_that_do_not_occur() -> None:
    data = check_dataset(RawArrays(X[:2], np.eye(10)[[3, 7]]))
    assert data.classes == tuple("0123456789")
    assert data.y.tolist() == [3, 7]
    assert data.notes == ("y: one-hot encoded labels of 10 classes",)


def test_test_labels_are_numbered_like_the_training_labels() -> None:
    data = check_dataset(RawArrays(X, Y * 10, x_test=X[:2], y_test=[30, 10]))
    assert data.y_test is not None
    assert data.y_test.tolist() == [2, 0]
    text = message(check_dataset, RawArrays(X, Y * 10, x_test=X[:2], y_test=[30, 40]))
    assert text == "y_test: row 1: label 40 is not one of the classes [10, 20, 30]"


def test_macro_averages_have_no_phantom_class(tmp_path: Path) -> None:
    from fastmlp.models.metrics import classification_metrics

    data = check_dataset(RawArrays(X, Y))
    assert classification_metrics(data.y, data.y, data.classes)["macro"]["recall"] == 1


TASKS = {
    "few whole numbers": (np.arange(6) % 3, "classification"),
    "few whole floats": (np.arange(6.0) % 3, "classification"),
    "many classes of integers": (np.arange(200) % 100, "classification"),
    "mostly distinct integers": (np.arange(200), "regression"),
    "many whole floats": (np.arange(100.0) % 30, "regression"),
    "fractions": (np.arange(6) / 4, "regression"),
    "several columns of numbers": (np.arange(12.0).reshape(6, 2), "regression"),
    "strings": (["a", "b"], "classification"),
}


@pytest.mark.parametrize("kind", TASKS)
def test_task(kind: str) -> None:
    y, task = TASKS[kind]
    data = check_dataset(RawArrays(np.ones((len(y), 2)), y))
    assert ("classification" if data.classes else "regression") == task
    assert bool(data.notes) == (task == "regression")


def test_a_given_task_is_used() -> None:
    assert check_dataset(RawArrays(X, Y), task="regression").y.tolist() == Y[:, None].tolist()
    assert "label 0.5 is not an integer" in message(check_dataset, RawArrays(X, Y / 2), task="classification")


# ------------------------------------------------------------------------------------------------ dtypes and layouts


LAYOUTS = {
    "float64": X.astype(np.float64),
    "float16": X.astype(np.float16),
    "big-endian": X.astype(">f4"),
    "big-endian integers": X.astype(">i4"),
    "Fortran order": np.asfortranarray(X),
    "Booleans": X > 3,
    "every second row": np.repeat(X, 2, axis=0)[::2],
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_dtypes_and_layouts(tmp_path: Path, kind: str, mapped: bool) -> None:
    x = LAYOUTS[kind]
    if mapped:
        write_npy_folder(tmp_path / "a", {"x": x, "y": Y})
        data = load_data(tmp_path / "a")
    else:
        np.savez(tmp_path / "a.npz", x=x, y=Y)
        data = load_data(tmp_path / "a.npz")
    assert data.x.dtype == np.float32
    assert data.x.flags.c_contiguous
    assert data.x.tolist() == x.tolist()


def test_bytes_in_fortran_order_stay_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(X.astype(np.uint8)), y=Y)
    assert load_data(tmp_path / "a.npz").x.dtype == np.uint8


def test_more_classes_than_an_output_layer_has() -> None:
    text = message(check_dataset, RawArrays(np.ones((140_000, 1)), np.arange(140_000) // 2), task="classification")
    assert "70000 different labels; at most 65536 classes" in text


def test_the_weight_is_a_setting() -> None:
    with pytest.raises(ConfigError, match="digits has no sample weights"):
        load_data("digits", weight="w")


# ------------------------------------------------------------------------------------------------ headers of safetensors

HEADERS: dict[str, dict[str, Any]] = {
    "metadata": {"__metadata__": {str(number): "" for number in range(600_000)}},
    "tensors": {str(number): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)},
    "shape": {"a": {"dtype": "U8", "shape": [0] + [1] * 1_100_000, "data_offsets": [0, 0]}},
    "class names": {"__metadata__": {"classes": json.dumps([str(number) for number in range(1_000_000)])}},
}


def write_header(path: Path, header: dict[str, Any]) -> Path:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_with_too_many_values_are_refused(tmp_path: Path, kind: str) -> None:
    """Such a header would take many times its size in memory."""
    path = write_header(tmp_path / "a.safetensors", HEADERS[kind])
    text = message(load_data, path)
    assert text.startswith(f"{path}: ")
    assert "has too many values: more than 2,097,152 bytes of JSON outside strings; use another file" in text


def test_long_strings_in_a_header_are_read(tmp_path: Path) -> None:
    names = [f"{number} {'x' * 200}" for number in range(20_000)]
    metadata = {"classes": json.dumps(names), "notes": '["' + 'a, "' * 100_000}
    save_file({"x": np.zeros((40_000, 1), np.uint8), "y": np.arange(40_000) % 20_000}, tmp_path / "a.safetensors", metadata)
    assert load_data(tmp_path / "a.safetensors").classes == tuple(names)
