"""Tests of the rows that a model gets wrong: the table of a run and of an evaluation, and the picture of images."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmlp import Model, load
from fastmlp.data.dataset import Dataset
from fastmlp.data.splits import split_indices
from fastmlp.data.tables.encoding import Column, TableEncoding
from fastmlp.errors import ConfigError
from fastmlp.experiments import evaluation, mistakes
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.evaluation import evaluate_run
from fastmlp.experiments.mistakes import ImageRows, kinds_of_mistakes
from fastmlp.experiments.training_run import run_training

COLUMNS = (Column("color", 0, ("blue", "red")), Column("size", 2))
ENCODING = TableEncoding(COLUMNS, "kind", True, 3)
CONFIG: dict[str, Any] = {"data": "fruits.csv", "hidden": (), "epochs": 1, "backend": "numpy", "lr": 0.01}


@pytest.fixture(autouse=True)
def no_other_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plot no confusion matrices and no curves, to save time."""
    monkeypatch.setattr("fastmlp.reports.confusion.plot_confusion", lambda *given: None)
    monkeypatch.setattr("fastmlp.reports.curves.plot_curves", lambda *given: None)


def table(task: str, rows: int = 400, **changes: Any) -> Dataset:
    """Return a table with a column of text and a column of numbers, of whose file every third row was left out."""
    rng = np.random.default_rng(0)
    red, size = rng.integers(0, 2, rows), np.round(rng.normal(size=rows), 1)
    x = np.c_[1 - red, red, size].astype(np.float32)
    x[::7, :2] = 0  # a color that is not in the encoding
    target = size + red + rng.normal(size=rows)
    source = np.flatnonzero(np.arange(2 * rows) % 3)[:rows]
    given: dict[str, Any] = {"encoding": ENCODING, "source_rows": source} | changes
    if task == "regression":
        return Dataset("fruits", x, target.astype(np.float32)[:, None], **given)
    return Dataset("fruits", x, (target > 0).astype(np.int32), ("fig", "plum"), **given)


def trained(data: Dataset, out: Path, **settings: Any) -> Model:
    task = "classification" if data.classes else "regression"
    run_training(TrainConfig(out=str(out), **(CONFIG | {"task": task} | settings)), quiet=True, data=data)
    return load(out, backend="numpy")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def colors(x: Any) -> list[str]:
    return ["blue" if row[0] else "red" if row[1] else "" for row in x]


def check_classification(path: Path, model: Model, data: Dataset, rows: Any, numbers: Any, word: str = "probability") -> None:
    """Check the table of the misclassified rows among some rows of a data set that have these numbers in the file."""
    x, outputs = data.x[rows], model.outputs(data.x[rows])
    predicted = outputs.argmax(axis=1)
    scores = outputs.max(axis=1)
    wrong = np.flatnonzero(predicted != data.y[rows])
    order = wrong[np.argsort(-scores[wrong], kind="stable")]
    assert len(order) > 2
    found = rows_of(path)
    assert list(found[0]) == ["row", "true", "predicted", word, "color", "size"]
    assert [int(row["row"]) for row in found] == numbers[order].tolist()
    assert [row["true"] for row in found] == [data.classes[k] for k in data.y[rows][order]]
    assert [row["predicted"] for row in found] == [data.classes[k] for k in predicted[order]]
    np.testing.assert_allclose([float(row[word]) for row in found], scores[order], rtol=1e-6)
    assert [row["color"] for row in found] == colors(x[order])
    assert [row["size"] for row in found] == [str(value).removesuffix(".0") for value in x[order, 2]]  # such as 0.3


@pytest.mark.parametrize("sizes", [{}, {"test_fraction": 0.0}, {"test_fraction": 0.0, "val_fraction": 0.0}])
def test_a_run_writes_the_misclassified_rows_of_the_test_split_or_the_next(sizes: dict[str, float], tmp_path: Path) -> None:
    data = table("classification")
    model = trained(data, tmp_path / "run", **sizes)
    splits = split_indices(data, **TrainConfig(**sizes).split_sizes())
    rows = splits[["test", "validation", "train"][len(sizes)]]
    assert data.source_rows is not None
    check_classification(tmp_path / "run" / "mistakes.csv", model, data, rows, 1 + data.source_rows[rows])
    assert not (tmp_path / "run" / "mistakes.png").exists()


def test_without_rows_that_were_left_out_and_with_a_test_set(tmp_path: Path) -> None:
    data, other = table("classification", source_rows=None), table("classification")
    model = trained(data, tmp_path / "a", val_fraction=0.0, test_fraction=0.5)
    rows = split_indices(data, 0, 0.5)["test"]
    check_classification(tmp_path / "a" / "mistakes.csv", model, data, rows, 1 + rows)
    data = table("classification", x_test=other.x[50:], y_test=other.y[50:])
    model = trained(data, tmp_path / "b")
    check_classification(tmp_path / "b" / "mistakes.csv", model, other, np.arange(50, 400), np.arange(1, 351))


def test_outputs_that_are_no_probabilities_are_scores(tmp_path: Path) -> None:
    data = table("classification")
    model = trained(data, tmp_path / "run", loss="squared-error", output="linear")
    rows = split_indices(data, **TrainConfig().split_sizes())["test"]
    assert data.source_rows is not None
    check_classification(tmp_path / "run" / "mistakes.csv", model, data, rows, 1 + data.source_rows[rows], "score")


def test_a_regression_writes_the_rows_with_the_largest_residuals(tmp_path: Path) -> None:
    data = table("regression", rows=600)
    model = trained(data, tmp_path / "run")
    rows = split_indices(data, **TrainConfig().split_sizes())["test"]
    predicted = model.predict(data.x[rows])
    residuals = data.y[rows, 0] - predicted
    order = np.argsort(-np.abs(residuals), kind="stable")[:100]
    found = rows_of(tmp_path / "run" / "mistakes.csv")
    assert len(rows) == 120
    assert list(found[0]) == ["row", "true", "predicted", "residual", "color", "size"]
    assert data.source_rows is not None
    assert [int(row["row"]) for row in found] == (1 + data.source_rows[rows][order]).tolist()
    for name, values in (("true", data.y[rows, 0]), ("predicted", predicted), ("residual", residuals)):
        np.testing.assert_allclose([float(row[name]) for row in found], values[order], rtol=1e-4, atol=1e-6)
    assert [row["color"] for row in found] == colors(data.x[rows][order])
    assert (tmp_path / "run" / "predictions.png").exists()


def test_no_mistakes_give_only_a_header(tmp_path: Path) -> None:
    x = np.repeat([[1, 0, -1], [0, 1, 1]], 50, axis=0).astype(np.float32)
    data = Dataset("fruits", x, np.repeat([0, 1], 50).astype(np.int32), ("fig", "plum"), encoding=ENCODING)
    trained(data, tmp_path / "run", lr=0.1, epochs=20)
    assert (tmp_path / "run" / "mistakes.csv").read_text() == "row,true,predicted,probability,color,size\n"


# ------------------------------------------------------------------------------------------------ images


def images(task: str = "classification", channels: int = 1, dtype: Any = np.uint8) -> Dataset:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (200, 4 * 5 * channels)).astype(dtype)
    if task == "regression":
        return Dataset("pictures", x, x[:, :1].astype(np.float32), (), (4, 5, channels))
    return Dataset("pictures", x, rng.integers(0, 3, 200).astype(np.int32), ("a", "b", "c"), (4, 5, channels))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return a list of the arguments of each call of `plot_mistakes`."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(mistakes, "plot_mistakes", lambda *given, score: found.append((*given, score)))
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_run_draws_the_misclassified_images(channels: int, dtype: Any, drawn: list[tuple[Any, ...]], tmp_path: Path) -> None:
    data = images(channels=channels, dtype=dtype)
    model = trained(data, tmp_path / "run")
    rows = split_indices(data, **TrainConfig().split_sizes())["test"]
    ((pictures, truth, predicted, scores, *rest),) = drawn
    assert rest == [data.classes, tmp_path / "run" / "mistakes.png", "pictures, test split", "probability"]
    np.testing.assert_array_equal(truth, data.y[rows])
    outputs = model.outputs(data.x[rows])
    np.testing.assert_array_equal(predicted, outputs.argmax(axis=1))
    wrong = predicted != truth
    assert 0 < wrong.sum() < 40
    np.testing.assert_allclose(scores[wrong], outputs.max(axis=1)[wrong], rtol=1e-6)
    whole = data.x[rows].reshape(-1, 4, 5, channels)
    for row in (0, 39):
        image = pictures[row]
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, whole[row] if channels == 3 else whole[row, ..., 0])


def test_images_of_other_numbers_are_scaled_by_the_range_of_all() -> None:
    pixels = np.array([[-1, 0], [0, 3]], np.float32)
    rows = ImageRows(pixels[:1], (1, 2, 1), pixels)
    assert rows[0].tolist() == [[0, 63]]  # 255 / 4, rounded down
    assert ImageRows(np.ones((1, 2), np.float32), (2, 1, 1), np.ones(2))[0].tolist() == [[0], [0]]


def test_which_files_fit_the_data() -> None:
    assert kinds_of_mistakes(images()) == (".png",)
    assert kinds_of_mistakes(images(channels=2)) == kinds_of_mistakes(images("regression")) == ()
    assert kinds_of_mistakes(table("regression")) == (".csv",)
    assert kinds_of_mistakes(Dataset("a", np.zeros((2, 3)), np.zeros(2, np.int32), ("a",))) == ()
    assert kinds_of_mistakes(table("classification", image_shape=(1, 3, 1))) == (".png", ".csv")  # a table of pixels


# ------------------------------------------------------------------------------------------------ evaluate


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train on a table; `evaluate_run` gets the same table, or for other.csv a table with reversed rows."""
    data = table("classification")
    trained(data, tmp_path / "run")
    other = replace(data, x=data.x[::-1].copy(), y=data.y[::-1].copy(), source_rows=None)
    monkeypatch.setattr(evaluation, "load_source", lambda source: other if source.name == "other.csv" else data)
    return tmp_path


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_evaluate_writes_the_table_of_each_split(split: str, home: Path) -> None:
    evaluate_run(home / "run", split=split, mistakes=home / "found.CSV")
    data, model = table("classification"), load(home / "run", backend="numpy")
    rows = split_indices(data, **TrainConfig().split_sizes())[split]
    assert data.source_rows is not None
    check_classification(home / "found.CSV", model, data, rows, 1 + data.source_rows[rows])
    same = (home / "found.CSV").read_bytes() == (home / "run" / "mistakes.csv").read_bytes()
    assert same == (split == "test")


def test_evaluate_on_other_data_numbers_all_rows(home: Path) -> None:
    evaluate_run(home / "run", "other.csv", mistakes=home / "found.csv")
    data, model = table("classification"), load(home / "run", backend="numpy")
    rows = np.arange(400)[::-1]
    check_classification(home / "found.csv", model, data, rows, np.arange(1, 401))


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("found.txt", "test", r"the name '.*found\.txt' must end with \.png or \.csv"),
        ("found.csv", "all", "mistakes are written for one split, not for all"),
        ("found.png", "test", r"fruits has no images with class labels; .* ends with \.csv"),
    ],
)
def test_evaluate_refuses_a_file_that_does_not_fit(name: str, split: str, message: str, home: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        evaluate_run(home / "run", split=split, mistakes=home / name)
    assert "mistakes" in caught.value.settings
    assert not (home / name).exists()


def test_evaluate_draws_images_and_refuses_a_table_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[Any, ...]]
) -> None:
    data = images()
    trained(data, tmp_path / "run")
    monkeypatch.setattr(evaluation, "load_source", lambda source: data)
    result = evaluate_run(tmp_path / "run", split="train", mistakes=tmp_path / "train.png")
    (_, (pictures, truth, predicted, *_, path, title, _)) = drawn
    assert (path, title) == (tmp_path / "train.png", "pictures, train split")
    assert np.mean(truth == predicted) == pytest.approx(result["train"]["accuracy"])
    rows = split_indices(data, **TrainConfig().split_sizes())["train"]
    np.testing.assert_array_equal(pictures[3], data.x[rows[3]].reshape(4, 5))
    with pytest.raises(ConfigError, match=r"pictures is not a table; use a name that ends with \.png"):
        evaluate_run(tmp_path / "run", mistakes=tmp_path / "found.csv")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["data"]["name"] == "pictures"
