"""Tests that sparse labels get few classes whatever their source is, and that runs of many classes write small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import confusion_matrix
from support.cli import forget_settings, no_figures, ok
from support.data import idx

import fastmlp
from fastmlp.data.checks import CheckedRows
from fastmlp.data.load import load_data
from fastmlp.errors import ConfigError
from fastmlp.estimators import MLPClassifier
from fastmlp.experiments.mistakes import Answers, scores_of_mistakes
from fastmlp.experiments.prediction import Rows, predictions_of
from fastmlp.models.model import Model
from fastmlp.reports.predictions import as_lines
from fastmlp.training.api import train_many

__all__ = ["no_figures"]
X = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
Y = np.arange(60, dtype=np.int32) % 2
Y[40] = 65535
CLASSES = ("0", "1", "65535")
SETTINGS: dict[str, Any] = {"epochs": 1, "backend": "numpy"}


def save_npz(path: Path) -> Path:
    np.savez(path / "a.npz", x=X, y=Y)
    return path / "a.npz"


def save_npy(path: Path) -> Path:
    np.save(path / "x.npy", X)
    np.save(path / "y.npy", Y)
    return path


def save_csv(path: Path) -> Path:
    pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": Y}).to_csv(path / "a.csv", index=False)
    return path / "a.csv"


def save_parquet(path: Path) -> Path:
    pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": Y}).to_parquet(path / "a.parquet")
    return path / "a.parquet"


def save_idx(path: Path) -> Path:
    (path / "train-images-idx3-ubyte").write_bytes(idx(np.arange(120, dtype=np.uint8).reshape(60, 1, 2)))
    (path / "train-labels-idx1-ubyte").write_bytes(idx(Y))
    return path


def save_safetensors(path: Path) -> Path:
    save_file({"x": X, "y": Y}, path / "a.safetensors")
    return path / "a.safetensors"


def save_pt(path: Path) -> Path:
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.tensor(X), "y": torch.tensor(Y)}, path / "a.pt")
    return path / "a.pt"


@pytest.mark.parametrize("save", [save_npz, save_npy, save_csv, save_parquet, save_idx, save_safetensors, save_pt])
def test_labels_of_a_file_are_numbered_by_the_values_that_occur(save: Any, tmp_path: Path) -> None:
    data = load_data(save(tmp_path))
    assert data.classes == CLASSES
    assert data.y.tolist() == [min(int(label), 2) for label in Y]


def check_model(model: Any) -> None:
    """Check that a model has 3 outputs, predicts the labels that occur, and is evaluated with them."""
    assert model.network.sizes == (2, 3)
    assert model.classes == CLASSES
    assert set(model.predict(X).tolist()) <= {0, 1, 65535}
    assert len(model.evaluate(X, Y)["per_class"]) == 3


def test_labels_of_arrays_in_python() -> None:
    network, pair = fastmlp.Network(hidden=()), (X, Y)
    check_model(fastmlp.train(network, pair, pair, **SETTINGS).model)
    check_model(fastmlp.train(network, (X.tolist(), Y.tolist()), **SETTINGS).model)
    check_model(fastmlp.train(network, (X, pd.Series(Y)), **SETTINGS).model)
    for one in fastmlp.train(network, pair, seeds=(0, 1), **SETTINGS):
        check_model(one.model)
    for one in train_many([(network, fastmlp.Settings(**SETTINGS))] * 2, pair, pair):
        check_model(one.model)
    found = fastmlp.find_learning_rate(fastmlp.Network(hidden=(), loss="cross-entropy"), pair, backend="numpy")
    assert found.losses[0] < 2 * np.log(3)  # the loss of an untrained network of 65536 classes is 11


def test_labels_of_estimators() -> None:
    settings: dict[str, Any] = {"hidden_layer_sizes": (4,), "backend": "numpy", "random_state": 0}
    fitted = MLPClassifier(max_iter=1, **settings)
    with pytest.warns(ConvergenceWarning):
        fitted.fit(X, Y)
    for estimator in (fitted, MLPClassifier(**settings).partial_fit(X, Y, classes=np.unique(Y))):
        assert estimator.classes_.tolist() == [0, 1, 65535]
        assert estimator.predict_proba(X).shape == (60, 3)
        assert set(estimator.predict(X).tolist()) <= {0, 1, 65535}
    many = list(range(65536))
    with pytest.raises(ValueError, match="is not the same as on last call to partial_fit") as caught:
        fitted.partial_fit(X, Y, classes=many)
    assert len(str(caught.value)) < 300
    with pytest.raises(ConfigError, match=r"has the keys \[10, .* and 65,521 more\], which are not classes of y") as caught:
        MLPClassifier(class_weight=dict.fromkeys(many[2:-1], 1.0), **settings).fit(X, Y)
    assert len(str(caught.value)) < 300


def test_multilabel_estimators_take_one_label_per_row() -> None:
    estimator = MLPClassifier(hidden_layer_sizes=(), backend="numpy", random_state=0)
    estimator.partial_fit(X, np.eye(3, dtype=int)[Y % 3], classes=[0, 1, 2])
    assert estimator._encode(np.array([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_labels_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)
    flags = ["--hidden", "", "--epochs", "1", "--backend", "numpy", "-q", "--data", save_npz(tmp_path)]
    ok("train", *flags, "--out", tmp_path / "one")
    ok("train", *flags, "--seeds", "2", "--out", tmp_path / "seeds")
    for run in (tmp_path / "one", tmp_path / "seeds" / "seed-0"):
        result = json.loads((run / "result.json").read_text())
        assert result["data"]["classes"] == list(CLASSES)
        assert np.shape(result["test"]["confusion"]) == (3, 3)
        assert fastmlp.load(run).network.sizes == (2, 3)
    np.savez(tmp_path / "new.npz", x=X[:10], y=[65535, 0] * 5)  # two of the three classes
    found = json.loads(ok("evaluate", tmp_path / "one", "--data", tmp_path / "new.npz", "--json").stdout)
    assert np.sum(found["test"]["confusion"], axis=1).tolist() == [5, 0, 5]


K = 2000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with 4,000 rows of 2,000 classes, and `data.npz` in it."""
    folder = tmp_path_factory.mktemp("many") / "run"
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(K), rng.integers(0, K, 4000 - K)])
    np.savez(folder.parent / "data.npz", x=rng.normal(size=(4000, 2)).astype(np.float32), y=y)
    settings = ["--hidden", "", "--epochs", "1", "--per-class-every", "1", "--backend", "numpy", "--task", "classification"]
    with pytest.MonkeyPatch.context() as patch:
        forget_settings(patch)
        ok("train", "--data", folder.parent / "data.npz", *settings, "--predictions", "--out", folder, "-q")
    return folder


def test_files_of_a_run_do_not_grow_with_the_square_of_the_number_of_classes(run: Path) -> None:
    content = (run / "result.json").read_bytes()
    result = json.loads(content)
    # A number of a list in the confusion matrix has at most 4 digits, on a line with 8 spaces, a comma and a line break. At
    # most one cell per row has a count, which is 3 numbers. An entry in `per_class` has 7 lines and at most 200 characters.
    assert len(content) <= 4000 * 3 * (8 + 4 + 2) + 3 * K * 200 + K * 16 + 20_000
    (line,) = (run / "classes.jsonl").read_bytes().splitlines()
    assert len(line) <= 3200 * 3 * (4 + 1) + 2 * K * 130 + 1000
    truth, predicted = np.loadtxt(run / "predictions.txt", int, delimiter=",", skiprows=2, unpack=True)
    expected = confusion_matrix(truth, predicted, labels=range(K))
    cells = result["test"]["confusion"]
    row, column = expected.nonzero()
    assert (cells["row"], cells["column"]) == (row.tolist(), column.tolist())
    assert (cells["shape"], cells["count"]) == ([K, K], expected[row, column].tolist())
    assert json.loads(line)["validation"]["confusion"].keys() == cells.keys()


def test_evaluate_gives_the_same_matrix(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert json.loads(ok("evaluate", run, "--json", "--backend", "numpy").stdout)["test"] == result["test"]
    assert ok("evaluate", run, "--report").stdout == (run / "report.txt").read_text()
    assert "(1975 more classes; result.json has them all)" in ok("evaluate", run).stdout


def test_predict_computes_only_the_classes_that_it_prints(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("fastmlp.reports.predictions.as_lines", lambda found, top: seen.append(found) or as_lines(found, top))
    np.savez(run.parent / "new.npz", x=X)
    assert len(ok("predict", run, run.parent / "new.npz", "--backend", "numpy").stdout.splitlines()) == 60
    assert [len(one["probabilities"]) for one in seen[0]] == [1] * 60
    everything = ok("predict", run, run.parent / "new.npz", "--backend", "numpy", "--json").stdout
    assert [len(one["probabilities"]) for one in json.loads(everything)["predictions"]] == [K] * 60


def test_predictions_and_scores_of_mistakes_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    network = fastmlp.Network((2, 3))
    model = Model(network, network.initial_parameters(seed=1), classes=CLASSES, backend="numpy")
    outputs, y = model.outputs(X), np.minimum(Y, 2)
    predicted = outputs.argmax(axis=1)
    wrong = predicted != y
    assert 20 < wrong.sum() < 60
    data = load_data("digits")  # not used
    monkeypatch.setattr("fastmlp.nn.blocks.ROWS_AT_ONCE", 7)
    scores = scores_of_mistakes(model, Answers(data, "test", X, CheckedRows(X, y, 3), predicted, None))
    assert scores == pytest.approx(np.where(wrong, outputs.max(axis=1), 0), rel=1e-6)
    found = predictions_of(model, Path("a.npz"), Rows(X), 1)
    assert [one["label"] for one in found] == [CLASSES[number] for number in predicted]
    assert [one["probability"] for one in found] == pytest.approx(outputs.max(axis=1).tolist(), rel=1e-6)
    assert model.predict(X).tolist() == [int(CLASSES[number]) for number in predicted]
