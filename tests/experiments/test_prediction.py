"""Tests of prediction: images, tables and arrays, with and without labels; invalid files."""

from __future__ import annotations

import csv
import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmlp import Model, Network, load_data
from fastmlp.errors import DataError
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.prediction import input_maker, predict_files
from fastmlp.experiments.training_run import run_training
from fastmlp.reports.predictions import as_csv, as_lines


def make_model(path: Path, **settings: Any) -> Model:
    """Save a model with two features and three classes whose predictions are obvious: class k has the logit k * x[0]."""
    network = Network((2, 3), **settings)
    parameters = np.array([0, 1, 2, 0, 0, 0, 0, 0, 0], np.float32)
    model = Model(network, parameters, classes=("low", "middle", "high"), backend="numpy")
    model.save(path)
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_model(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def predict(model: Path, *inputs: Path, top: int | None = None) -> list[dict[str, Any]]:
    return predict_files(model, inputs, top, "numpy")


def labels(model: Path, file: Path) -> list[str]:
    return [one["label"] for one in predict(model, file)]


# ------------------------------------------------------------------------------------------------ tables and arrays

TABLES = {
    "features": "1,0\n-1,0\n",
    "header": "a,b\n1,0\n-1,0\n",
    "label": "7,1,0.5\n3,-1,0.5\n",
    "label and header": "label,a,b\n7,1,0\n3,-1,0\n",
    "label in words": "label,a,b\nhigh,1,0\nlow,-1,0\n",
    "quoted": '"1","0"\n"-1","0"\n',
    "spaces and blank end": " 1 , 0\n-1,0\n\n",
    "byte order mark": "\ufeff1,0\n-1,0\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_csv_with_and_without_label_and_header(kind: str, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(TABLES[kind], encoding="utf-8")
    found = predict(model, file)
    assert [one["label"] for one in found] == ["high", "low"]
    assert [(one["input"], one["row"]) for one in found] == [(str(file), 1), (str(file), 2)]


@pytest.mark.parametrize("arrays", [{}, {"y": [1, 2]}, {"y": ["a", "b"]}])
def test_npz_with_and_without_y(arrays: dict[str, Any], model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, x=[[1.0, 0.0], [-1.0, 0.0]], **arrays)
    assert labels(model, file) == ["high", "low"]


def test_npz_of_pictures(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, x=np.array([[[9, 0]]], np.uint8))  # one image of 1 x 2 pixels
    assert labels(model, file) == ["high"]


def test_probabilities_are_those_of_the_model(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("1,0\n")
    (found,) = predict(model, file)
    shares = np.exp([2.0, 1.0, 0.0]) / np.exp([2.0, 1.0, 0.0]).sum()
    assert list(found["probabilities"]) == ["high", "middle", "low"]
    assert list(found["probabilities"].values()) == pytest.approx(shares, rel=1e-6)
    assert found["probability"] == found["probabilities"]["high"]


def test_top_cuts_the_list(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("1,0\n")
    (found,) = predict(model, file, top=2)
    assert list(found["probabilities"]) == ["high", "middle"]
    assert list(predict(model, file, top=9)[0]["probabilities"]) == ["high", "middle", "low"]


def test_outputs_that_are_no_probabilities_are_scores(tmp_path: Path) -> None:
    make_model(tmp_path / "m.safetensors", loss="squared-error", output="linear")
    (tmp_path / "a.csv").write_text("1,0\n")
    (found,) = predict(tmp_path / "m.safetensors", tmp_path / "a.csv")
    assert (found["label"], found["score"]) == ("high", 2)
    assert found["scores"] == {"high": 2, "middle": 1, "low": 0}
    assert "probability" not in found


def test_values_of_a_regression(tmp_path: Path) -> None:
    network = Network((2, 2), loss="squared-error")
    parameters = np.array([1, 10, 0, 0, 0, 0.5], np.float32)
    Model(network, parameters).save(tmp_path / "m.safetensors")
    (tmp_path / "a.csv").write_text("3,0\n")
    found = predict(tmp_path / "m.safetensors", tmp_path / "a.csv")
    assert found == [{"input": str(tmp_path / "a.csv"), "row": 1, "values": [3.0, 30.5]}]
    assert as_lines(found, 1) == [f"{tmp_path / 'a.csv'}:1\t3\t30.5"]
    assert as_csv(found).decode().splitlines() == ["input,row,value_1,value_2", f"{tmp_path / 'a.csv'},1,3.0,30.5"]


# ------------------------------------------------------------------------------------------------ images


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    run_training(TrainConfig(out=str(out), epochs=8, backend="numpy", scale="unit"), quiet=True)
    return out


def digit(number: int) -> Any:
    """Return the first image of a digit, 28 x 28 pixels."""
    from PIL import Image

    data = load_data("digits")
    return Image.fromarray(data.x[data.y == number][0].reshape(28, 28))


@pytest.mark.parametrize("number", [0, 4, 6])
@pytest.mark.parametrize("form", ["grey", "colour", "large", "small", "transparent", "jpeg"])
def test_images_of_any_form(form: str, number: int, digits_run: Path, tmp_path: Path) -> None:
    image = digit(number)
    if form == "transparent":  # white strokes on a transparent background
        strokes = image.convert("LA")
        strokes.putalpha(image)
        image = strokes
    image = {"colour": image.convert("RGB"), "large": image.resize((90, 90)), "small": image.resize((14, 14))}.get(form, image)
    file = tmp_path / ("a.jpg" if form == "jpeg" else "a.PNG")
    image.save(file)
    (found,) = predict(digits_run, file)
    assert found["label"] == str(number)
    assert 0.5 < found["probability"] <= 1
    assert sum(found["probabilities"].values()) == pytest.approx(1)


def test_several_inputs_keep_their_order(digits_run: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in (3, 1, 4)]
    for file in files:
        digit(int(file.stem)).save(file)
    data = load_data("digits")
    np.savez(tmp_path / "more.npz", x=data.x[:2])
    found = predict(digits_run, *files, tmp_path / "more.npz")
    assert [one["row"] for one in found] == [1, 1, 1, 1, 2]
    assert [one["label"] for one in found[:3]] == ["3", "1", "4"]
    lines = as_lines(found, 2)
    assert lines[0].split("\t")[:2] == [str(files[0]), "3"]
    assert len(lines[0].split("\t")) == 5
    assert lines[4].startswith(f"{tmp_path / 'more.npz'}:2\t")


def test_arrays_of_npy_files_are_predicted_like_those_of_npz_files(digits_run: Path, tmp_path: Path) -> None:
    data = load_data("digits")
    for name, x in (("bytes", data.x[:9]), ("images", data.x[:9].reshape(9, 28, 28)), ("floats", np.float64(data.x[:9]))):
        np.savez(tmp_path / "a.npz", x=x)
        np.save(tmp_path / f"{name}.npy", x)
        found = predict(digits_run, tmp_path / f"{name}.npy")
        expected = predict(digits_run, tmp_path / "a.npz")
        assert [one | {"input": ""} for one in found] == [one | {"input": ""} for one in expected]
        assert as_lines(found, 1)[3].startswith(f"{tmp_path / name}.npy:4\t")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_other_files_of_arrays_are_refused(suffix: str, digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(DataError, match=r"arrays are predicted from \.npz and \.npy files"):
        predict(digits_run, tmp_path / f"a{suffix}")


def test_csv_answers_can_be_read_back(digits_run: Path, tmp_path: Path) -> None:
    file = tmp_path / 'a "strange", name.png'
    digit(5).save(file)
    found = predict(digits_run, file)
    (row,) = csv.DictReader(as_csv(found).decode().splitlines())
    assert (row["input"], row["row"], row["label"]) == (str(file), "1", found[0]["label"])
    assert {name: float(row[name]) for name in map(str, range(10))} == found[0]["probabilities"]


# ------------------------------------------------------------------------------------------------ invalid files

BAD: dict[str, tuple[str, str | bytes, str]] = {
    "three columns of two": ("a.csv", "1,2,3,4\n", "4 columns, but the model takes 2 features, or 3 columns"),
    "ragged": ("a.csv", "1,2\n3\n", "line 2 has 1 columns"),
    "words": ("a.csv", "1,2\n3,four\n", "line 2, column 2: 'four' is not a number"),
    "nan": ("a.csv", "1,2\n3,nan\n", "missing values: column 2 has 1 (the first one in line 2); fill them"),
    "header only": ("a.csv", "a,b\n", "no rows of data"),
    "empty": ("a.csv", "", "the file has no rows"),
    "not text": ("a.csv", b"\xff\xfe,1\n", "not text in UTF-8"),
    "not an archive": ("a.npz", "PK but not a zip file", "not a readable .npz"),
    "text as an archive": ("a.npz", "hello", "not a readable .npz"),
    "text as an image": ("a.png", "hello", "not a readable image"),
    "text": ("notes.doc", "hello", "not a readable image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_damage_is_named_with_the_file(kind: str, model: Path, digits_run: Path, tmp_path: Path) -> None:
    name, content, message = BAD[kind]
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        predict(model if name == "a.csv" else digits_run, file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.csv", "a.npz"])
def test_a_missing_file(name: str, digits_run: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    with pytest.raises(DataError, match=re.escape(os.strerror(errno.ENOENT))) as caught:
        predict(digits_run, file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": [1]}, r"no array x \(it holds: y\)"),
        ({"x": [[1.0, np.inf]]}, "inf is not a finite float32 number"),
        ({"x": [[1.0, 2.0, 3.0]]}, "rows of 3 features, but the model takes 2"),
        ({"x": np.empty((0, 2))}, "give at least one row"),
        ({"x": [["a", "b"]]}, "the values have dtype <U1; they must be numbers"),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, Any], message: str, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        predict(model, tmp_path / "a.npz")


def test_pickles_are_refused(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([[{}, {}]], object))
    with pytest.raises(DataError, match="holds Python objects"):
        predict(model, tmp_path / "a.npz")


def test_a_lone_array_is_refused(model: Path, tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        predict(model, tmp_path / "a.npz")


def test_an_image_for_a_model_without_images(model: Path, tmp_path: Path) -> None:
    digit(1).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="not trained on images"):
        predict(model, tmp_path / "a.png")


def test_one_bad_file_gives_no_answer_at_all(digits_run: Path, tmp_path: Path) -> None:
    digit(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("not an image")
    with pytest.raises(DataError, match=r"b\.png"):
        predict(digits_run, tmp_path / "a.png", tmp_path / "b.png")


@pytest.mark.parametrize(("shape", "width"), [((8, 4, 2), 4), ((8, 8, 1), 5), ((10**6, 10**6, 3), 4)])
def test_an_extractor_that_does_not_fit_the_model_is_refused(shape: tuple[int, int, int], width: int) -> None:
    """The extractor in a model file is untrusted; before it computes anything, its sizes are checked."""
    network = Network((4, 2))
    model = Model(network, network.initial_parameters(seed=0), classes=("a", "b"), image_shape=(8, 8, 1), extractor=b"bytes")
    fits = SimpleNamespace(image_shape=(8, 8, 1), width=4, features=lambda pixels, device: np.asarray(pixels[:, :4]))
    pixels = np.ones((3, 64), np.float32)
    assert input_maker("run", model, lambda data, name: fits)(pixels).shape == (3, 4)  # type: ignore[arg-type, return-value]
    other = SimpleNamespace(image_shape=shape, width=width)
    message = rf"computes {width} features of images of shape .*, but the model takes 4 features of images of shape \(8, 8, 1\)"
    with pytest.raises(DataError, match=message):
        input_maker("run", model, lambda data, name: other)(pixels)  # type: ignore[arg-type, return-value]
