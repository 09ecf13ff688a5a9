"""Representations of objects: short, as text and as HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastmlp
from fastmlp import SGD, Adam, AdamW, Cosine, Model, Network, ReduceOnPlateau, Settings
from fastmlp._summary import LINE, first_and_last, summary_text
from fastmlp.errors import printable
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.schedules import Schedule

DATA = fastmlp.load_data("digits")
SCALING = fastmlp.fit_scaling("zscore", DATA.x)
NETWORK = Network((784, 8, 10))
MODEL = Model(NETWORK, NETWORK.initial_parameters(0), SCALING, DATA.classes, DATA.image_shape)
RESULT = fastmlp.train(
    NETWORK, (DATA.x[:100], DATA.y[:100]), settings=Settings(SGD(0.01), epochs=2, backend="numpy"), scaling=SCALING
)
SPLITS = DATA.split()
SETTINGS = Settings(SGD(0.1), Cosine(warmup=1), epochs=3)


def seed_results(count: int) -> fastmlp.SeedResults:
    """Results of several seeds that differ in their last loss and in their best epoch."""
    found = []
    for seed in range(count):
        history = fastmlp.History([dict(row) for row in RESULT.history])
        history[-1]["loss"] = 1.0 + seed
        found.append(RESULT._replace(history=history))
    return fastmlp.SeedResults(range(10, 10 + count), found)


@pytest.mark.parametrize(
    "shown",
    [DATA, SCALING, MODEL, RESULT, NETWORK, SPLITS, SPLITS.train, SETTINGS, SETTINGS.optimizer, SETTINGS.schedule],
    ids=lambda one: type(one).__name__,
)
def test_representations_are_short_and_name_their_class(shown: Any) -> None:
    text, html = repr(shown), shown._repr_html_()
    assert len(text.splitlines()) <= 15 and text.startswith(type(shown).__name__)
    assert (
        html.startswith(f"<table><caption>{type(shown).__name__}</caption>") and html.count("<tr>") == html.count("</tr>") >= 2
    )
    assert len(html) < 3000


def test_the_values_are_those_of_the_object() -> None:
    assert "784x8x10" in repr(MODEL) and "zscore" in repr(MODEL) and "10 (0, 1, 2, 3, ...)" in repr(MODEL)
    assert "(1797, 784) uint8" in repr(DATA)
    assert f"loss: {RESULT.history[1]['loss']:.4g}" in repr(RESULT) and "2 of 2 (stopped: epochs)" in repr(RESULT)
    assert "val_loss" not in repr(RESULT)


def test_names_of_classes_are_escaped_and_shortened() -> None:
    """Class names come from files, so they must not become HTML, and long names must not fill the screen."""
    names = ("<script>", "zero\u200bwidth", *(f"a rather long name {number}" * 20 for number in range(8)))
    model = replace(MODEL, classes=names)
    assert "<script>" not in model._repr_html_() and "&lt;script&gt;" in model._repr_html_()
    assert r"zero\u200bwidth" in repr(model) and r"zero\u200bwidth" in model._repr_html_()
    assert len(repr(model).splitlines()) <= 15
    assert max(map(len, repr(model).splitlines())) <= LINE + 20


def test_a_short_text_is_one_line() -> None:
    assert summary_text("Dataset", {"name": "a\x1b]0;title\x07\nb"}) == r"Dataset(name=a\x1b]0;title\x07\nb)"


@pytest.mark.parametrize("times", [1, 50])
def test_names_of_data_are_escaped(times: int) -> None:
    """The name of a data set is that of a file, in which any character can occur."""
    data = replace(DATA, name="a\x1b]0;title\x07\nforged\u202e\x9b<b>" * times)
    for text in (repr(data), data._repr_html_()):
        assert r"\x1b]0;title\x07" in text
        assert all(line == printable(line) and not line.startswith("forged") for line in text.split("\n"))
    assert "<b>" not in data._repr_html_()


def test_a_regression_model_has_no_classes() -> None:
    network = Network((3, 2), loss="squared-error")
    assert "classes" not in repr(Model(network, np.zeros(network.parameters, np.float32)))


SHOWN: dict[str, Any] = {
    "Network(sizes=?x128x?)": Network(),
    "Network(sizes=?x64x?, dropout=0.2)": Network(hidden=64, dropout=0.2),
    "Network(sizes=?x4x?, loss=poisson)": Network(hidden=4, loss="poisson"),
    "Network(sizes=784x8x10)": Network((784, 8, 10), "relu", 0.0, "cross-entropy", "softmax", init="kaiming"),
    "Network(sizes=3x2, loss=squared-error)": Network((3, 2), loss="squared-error"),
    "Network(sizes=3x2, output=sigmoid, loss=squared-error)": Network((3, 2), loss="squared-error", output="sigmoid"),
    "Network(sizes=9x8x7x2, activation=tanh, dropout=(0.1, 0.2), l2=0.001)": Network(
        (9, 8, 7, 2), ("tanh", "tanh"), (0.1, 0.2), l2=1e-3
    ),
    "Network(sizes=9x8x7x2, activation=('relu', 'elu'), l1=0.1)": Network((9, 8, 7, 2), ("relu", "elu"), l1=0.1),
    "Network(sizes=?x?, init=normal:0.1)": Network(hidden=(), init="Normal:0.1"),
    "Optimizer(name=adam, learning_rate=0.001)": Adam(),
    "Optimizer(name=sgd, learning_rate=0.5)": SGD(0.5),
    "Optimizer(name=momentum, learning_rate=0.01, momentum=0.8)": SGD(momentum=0.8),
    "Optimizer(name=adamw, learning_rate=0.001, weight_decay=0.1)": AdamW(weight_decay=0.1),
    "Optimizer(name=adam, learning_rate=0.001, epsilon_hat=True)": Optimizer(epsilon_hat=True),
    "Schedule(kind=constant)": Schedule(),
    "Schedule(kind=cosine, warmup=1)": Cosine(warmup=1),
    "ReduceOnPlateau()": ReduceOnPlateau(),
    "ReduceOnPlateau(patience=5)": ReduceOnPlateau(patience=5),
    "Settings(optimizer=Optimizer(name=adam, learning_rate=0.001))": Settings(dtype=np.float32, schedule="constant"),
    "Settings(optimizer=Optimizer(name=adam, learning_rate=0.001), dtype=float64)": Settings(dtype=np.float64),
}


@pytest.mark.parametrize("text", SHOWN)
def test_only_values_that_are_not_the_default_values_are_shown(text: str) -> None:
    assert repr(SHOWN[text]) == text
    assert SHOWN[text]._repr_html_().startswith(f"<table><caption>{type(SHOWN[text]).__name__}</caption>")


def test_many_settings_have_one_line_each() -> None:
    assert repr(SETTINGS).splitlines() == [
        "Settings",
        "  optimizer: Optimizer(name=sgd, learning_rate=0.1)",
        "  schedule: Schedule(kind=cosine, warmup=1)",
        "  epochs: 3",
    ]


def test_plain_sgd_has_the_default_momentum_which_it_ignores() -> None:
    assert SGD(0.1) == Optimizer("sgd", 0.1)


def test_an_empty_split_is_none() -> None:
    shown = repr(DATA.split(validation=0, test=100))
    assert "train: 1,697 rows\n  validation: None\n  test: 100 rows\n  features: 784 uint8\n  classes: 10 (0, 1" in shown


def test_results_of_several_seeds_are_a_table() -> None:
    results = seed_results(3)
    title, header, *rows, means = repr(results).splitlines()
    assert title == "SeedResults(network=784x8x10, seeds=3)"
    assert header.split() == ["seed", "best_epoch", "loss", "accuracy"]
    accuracy = f"{RESULT.history[-1]['accuracy']:.4g}"
    assert [row.split() for row in rows] == [[str(10 + seed), "2", str(1 + seed), accuracy] for seed in range(3)]
    assert re.split(r"\s{2,}", means) == ["mean ± std", "2 ± 1", f"{accuracy} ± 0"]
    assert len({len(row) for row in (header, *rows, means)}) == 1  # the columns are aligned
    html = results._repr_html_()
    assert html.startswith(f"<table><caption>{title}</caption><tr><th>seed</th><th>best_epoch</th>")
    assert html.endswith(f"<tr><td>mean ± std</td><td></td><td>2 ± 1</td><td>{accuracy} ± 0</td></tr></table>")


def test_many_seeds_are_abbreviated() -> None:
    lines = repr(seed_results(10)).splitlines()
    assert len(lines) == 13 and "..." not in repr(seed_results(10))
    lines = repr(seed_results(50)).splitlines()
    assert len(lines) == 14
    assert [line.split()[0] for line in lines[2:-1]] == ["10", "11", "12", "13", "14", "...", "55", "56", "57", "58", "59"]
    assert seed_results(50)._repr_html_().count("<tr>") == 13


def test_the_middle_of_a_long_table_is_left_out() -> None:
    assert first_and_last(range(10)) == list(range(10))
    assert first_and_last(range(11)) == [0, 1, 2, 3, 4, None, 6, 7, 8, 9, 10]
