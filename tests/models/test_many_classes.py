"""Tests that metrics, predictions and messages of models with many classes need little time, memory and text."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_array
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from fastmlp.data.checks import CheckedRows
from fastmlp.data.labels import LabelEncoder
from fastmlp.data.pairs import Split, checked_names, class_factors, with_weights
from fastmlp.errors import ConfigError, DataError, unknown_name
from fastmlp.models.metrics import classification_metrics
from fastmlp.models.model import Model
from fastmlp.nn.network import Network
from fastmlp.reference import target_rows
from fastmlp.reports.text import DENSE_CLASSES

MOST = 65536
NAMES = tuple(map(str, range(MOST)))


def drawn(k: int, rows: int = 5000) -> tuple[Any, Any]:
    """Return true and predicted classes (rows,), of which a third is correct."""
    rng = np.random.default_rng(k)
    truth, other = rng.integers(0, k, (2, rows))
    return truth, np.where(rng.random(rows) < 1 / 3, truth, other)


@pytest.mark.parametrize("k", [2, DENSE_CLASSES, DENSE_CLASSES + 1, 2000])
def test_metrics_equal_scikit_learns_in_both_formats(k: int) -> None:
    truth, predicted = drawn(k)
    found = classification_metrics(truth, predicted, NAMES[:k])
    expected = confusion_matrix(truth, predicted, labels=range(k))
    if k <= DENSE_CLASSES:
        assert found["confusion"] == expected.tolist()
    else:
        cells = found["confusion"]
        row, column = expected.nonzero()  # sorted by row and column
        assert list(cells) == ["format", "shape", "row", "column", "count"]
        assert (cells["format"], cells["shape"]) == ("coo", [k, k])
        assert (cells["row"], cells["column"]) == (row.tolist(), column.tolist())
        assert cells["count"] == expected[row, column].tolist()
        matrix = coo_array((cells["count"], (cells["row"], cells["column"])), cells["shape"])
        assert (matrix.toarray() == expected).all()
        assert json.loads(json.dumps(cells)) == cells
    assert found["accuracy"] == accuracy_score(truth, predicted)
    scores = precision_recall_fscore_support(truth, predicted, labels=range(k), zero_division=0)
    for key, values in zip(("precision", "recall", "f1", "support"), scores, strict=True):
        assert [row[key] for row in found["per_class"]] == pytest.approx(values.tolist(), rel=1e-15)
    for kind in ("macro", "weighted"):
        means = precision_recall_fscore_support(truth, predicted, labels=range(k), zero_division=0, average=kind)
        assert list(found[kind].values()) == pytest.approx(means[:3])


def peak_of(call: Any, *arguments: Any) -> int:
    """Return the largest number of bytes that a call has allocated."""
    tracemalloc.start()
    try:
        call(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_square_of_the_number_of_classes() -> None:
    """Matrices of all pairs of classes would take 4 GiB with 1 byte per cell."""
    y, predicted = drawn(MOST, 1000)
    assert peak_of(classification_metrics, y, predicted, NAMES) < 100e6
    assert peak_of(target_rows, Network((2, MOST)), y[:10], np.float32) < 50e6
    model = Model(Network((2, MOST)), np.zeros(3 * MOST, np.float32), classes=NAMES, backend="numpy")
    x = np.zeros((3000, 2), np.float32)  # the outputs of all rows would take 786 MB in float32
    assert peak_of(model.predict, x) < 600e6


def test_one_hot_targets_of_the_reference_implementation() -> None:
    network = Network((2, 4), label_smoothing=0.2)
    found = target_rows(network, np.array([3, 0, 3], np.int32), np.float64)
    assert found == pytest.approx(np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1]]) * 0.8 + 0.05)


def message_of(error: type[Exception], call: Any, *arguments: Any) -> str:
    with pytest.raises(error) as caught:
        call(*arguments)
    return str(caught.value)


def test_messages_list_few_of_many_classes() -> None:
    words = [f"word {number}" for number in range(MOST)]
    rows = Split(CheckedRows(np.zeros((2, 1), np.float32), np.zeros(2, np.int32), MOST), tuple(words))
    texts = [
        unknown_name("class", "wrd 77", words),
        message_of(DataError, LabelEncoder(np.array(words)).encode, ["other"]),
        message_of(DataError, LabelEncoder(np.arange(MOST)).encode, [-1]),
        message_of(ConfigError, with_weights, rows, None, {"other": 2.0}),
    ]
    for text in texts:
        assert text.endswith(("and 65,524 more", "and 65,524 more]"))
        assert len(text) < 300
    assert "did you mean 'word 77'? Valid: word 0, word 1, " in texts[0]
    assert "label -1 is not one of the classes [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and" in texts[2]
    with pytest.raises(ConfigError, match=r"but '7' occurs more than once$"):
        checked_names([*range(MOST), 7])
    assert "is not one of the classes a, b" in message_of(ConfigError, class_factors, {"c": 1.0}, ("a", "b"), np.array([0, 1]))
