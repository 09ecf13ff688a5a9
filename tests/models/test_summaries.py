"""Representations of objects with large arrays: short, as text and as HTML."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastmlp
from fastmlp import Model, Network, Settings
from fastmlp._summary import LINE
from fastmlp.nn.optimizers import SGD

DATA = fastmlp.load_data("digits")
SCALING = fastmlp.fit_scaling("zscore", DATA.x)
NETWORK = Network((784, 8, 10))
MODEL = Model(NETWORK, NETWORK.initial_parameters(0), SCALING, DATA.classes, DATA.image_shape)
RESULT = fastmlp.train(
    NETWORK, (DATA.x[:100], DATA.y[:100]), settings=Settings(SGD(0.01), epochs=2, backend="numpy"), scaling=SCALING
)


@pytest.mark.parametrize("shown", [DATA, SCALING, MODEL, RESULT, NETWORK], ids=lambda one: type(one).__name__)
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
    names = ("<script>", "line\nbreak", *(f"a rather long name {number}" * 20 for number in range(8)))
    model = replace(MODEL, classes=names)
    assert "<script>" not in model._repr_html_() and "&lt;script&gt;" in model._repr_html_()
    assert len(repr(model).splitlines()) <= 15
    assert max(map(len, repr(model).splitlines())) <= LINE + 20


def test_a_regression_model_has_no_classes() -> None:
    network = Network((3, 2), loss="squared-error")
    assert "classes" not in repr(Model(network, np.zeros(network.parameters, np.float32)))
