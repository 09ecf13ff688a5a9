"""Tests that the classification report equals scikit-learn's, and that files of predictions can be read back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from support.cli import forget_settings, ok, refused

from fastmlp.models.metrics import classification_metrics
from fastmlp.reports.text import classification_report, predictions_text

NAMES = {3: ("a", "bb", "ccc"), 10: tuple(f"a class with a long name {k}" for k in range(10))}


def by_sklearn(truth: np.ndarray, predicted: np.ndarray, names: tuple[str, ...], digits: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about a class that is never predicted
        text: str = sklearn.metrics.classification_report(
            truth, predicted, labels=range(len(names)), target_names=names, digits=digits, zero_division=0
        )
    return text


@pytest.mark.parametrize("digits", [2, 4])
@pytest.mark.parametrize("k", NAMES)
@pytest.mark.parametrize("rows", [2, 200, 300_000])
def test_report_equals_that_of_scikit_learn(rows: int, k: int, digits: int) -> None:
    rng = np.random.default_rng(rows + k)
    truth, predicted = rng.integers(0, k - 1, rows), rng.integers(0, k - 1, rows)  # the last class does not occur
    predicted[0] = truth[0]  # at least one correct prediction; without any, scikit-learn formats support as 1.0
    ours = classification_report(classification_metrics(truth, predicted, NAMES[k]), digits)
    assert ours == by_sklearn(truth, predicted, NAMES[k], digits)
    other = classification_metrics(truth, np.zeros_like(predicted) + (truth[0] == 0), NAMES[k])
    assert classification_report(other, digits) != by_sklearn(truth, predicted, NAMES[k], digits)


def test_names_are_printed_on_one_line() -> None:
    """The line breaks and other control characters of a class name are escaped, so that it stays on one line."""
    names = ("a,b", "c\nd", "\x1b[2J", "$x$", "_", "日本語")
    truth = np.arange(6)
    text = classification_report(classification_metrics(truth, truth, names))
    assert [line.split()[0] for line in text.splitlines()[2:8]] == ["a,b", r"c\nd", r"\x1b[2J", "$x$", "_", "日本語"]


def test_long_names_are_truncated_in_the_report() -> None:
    text = classification_report(classification_metrics(np.arange(2), np.arange(2), ("a" * 10**6, "b")))
    assert max(map(len, text.splitlines())) < 150
    assert f"{'a' * 99}…" in text


def test_predictions_can_be_read_back() -> None:
    truth, predicted = np.array([3, 1, 2, 1]), np.array([3, 1, 1, 1])
    loss, accuracy, *rows = predictions_text(truth, predicted, {"loss": 0.1 + 0.2, "accuracy": 0.75}).splitlines()
    assert (loss, accuracy) == ("loss 0.30000000000000004", "accuracy 0.75")
    assert [tuple(map(int, row.split(","))) for row in rows] == list(zip(truth, predicted, strict=True))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two runs on the digits: `run` has a file of predictions, and `plain` has none."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        forget_settings(patch)
        patch.chdir(folder)
        ok("train", "--epochs", "2", "--backend", "numpy", "--predictions", "--out", "run", "-q")
        ok("train", "--epochs", "1", "--backend", "numpy", "--hidden", "4", "--out", "plain", "-q")
    return folder


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)
    monkeypatch.chdir(home)


def test_train_and_evaluate_write_the_same_report_and_predictions() -> None:
    result = json.loads(Path("run/result.json").read_text())
    assert Path("run/report.txt").read_text() == classification_report(result["test"])
    assert ok("evaluate", "run", "--report", "--predictions", "again.txt").stdout == classification_report(result["test"])
    text = Path("run/predictions.txt").read_text()
    assert Path("again.txt").read_text() == text
    loss, accuracy, *rows = text.splitlines()
    assert loss == f"loss {result['test']['loss']}"
    assert accuracy == f"accuracy {result['test']['accuracy']}"
    confusion = np.zeros((10, 10), int)
    for row in rows:
        confusion[tuple(map(int, row.split(",")))] += 1
    assert confusion.tolist() == result["test"]["confusion"]
    ok("evaluate", "run", "--split", "validation", "--predictions", "validation.txt")
    assert len(Path("validation.txt").read_text().splitlines()) == 2 + result["data"]["rows"]["validation"]


def test_predictions_are_not_written_by_default() -> None:
    assert not Path("plain/predictions.txt").exists()
    assert Path("plain/report.txt").exists()


def test_reports_of_several_splits_have_headings() -> None:
    text = ok("evaluate", "run", "--report", "--split", "all").stdout
    assert [line for line in text.splitlines() if line in ("test", "validation", "train")] == ["test", "validation", "train"]
    assert "per_class" in json.loads(ok("evaluate", "run", "--report", "--json").stdout)["test"]


def test_reports_and_predictions_need_one_split_and_classes() -> None:
    line = refused(2, "evaluate", "run", "--split", "all", "--predictions", "a.txt")
    assert line == "predictions are written for one split, not for all [--split, --predictions]"
    np.savetxt("values.csv", np.random.default_rng(0).random((40, 3)), delimiter=",", header="y,a,b", comments="")
    values = ["--data", "values.csv", "--task", "regression", "--backend", "numpy", "--epochs", "1"]
    assert "is for classification" in refused(2, "train", *values, "--predictions")
    assert "is for classification" in refused(2, "train", *values, "--per-class-every", "2")
    ok("train", *values, "--out", "values", "-q")
    assert not Path("values/report.txt").exists()
    assert "needs a classifier, but this is a regression model [--report]" in refused(2, "evaluate", "values", "--report")
    assert "is a regression model; use `fastmlp predict`" in refused(2, "evaluate", "values", "--predictions", "b.txt")
