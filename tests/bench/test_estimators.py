"""Tests of the benchmark of the estimators, `fastmlp bench --estimators`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_iris
from support.cli import ok, refused

from fastmlp.bench import estimators
from fastmlp.bench.estimators import (
    EstimatorCase,
    Prepared,
    cases,
    estimators_text,
    fitting,
    predicting,
    run_estimators,
    updating,
)
from fastmlp.bench.rounds import Disagreement

X, Y = load_iris(return_X_y=True)


def small_cases(_: Any = None) -> list[EstimatorCase]:
    return [
        EstimatorCase("fit", fitting("classifier", X, Y, max_iter=30, learning_rate_init=0.01)),
        EstimatorCase("fit regressor", fitting("regressor", X, Y.astype(float), max_iter=30, learning_rate_init=0.01)),
        EstimatorCase("predict", predicting(X, Y, 1)),
        EstimatorCase("partial_fit", updating(X, Y, 20)),
    ]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "cases", small_cases)
    monkeypatch.setattr(estimators, "REST", 0.0)
    monkeypatch.setattr(estimators, "CALLS", 3)


def test_every_case_is_timed_with_both_libraries(small: None) -> None:
    lines: list[str] = []
    result = run_estimators(lines.append, rounds=2)
    assert [row["case"] for row in result["rows"]] == ["fit", "fit regressor", "predict", "partial_fit"]
    for row in result["rows"]:
        assert set(row["seconds"]) == {"fastmlp", "scikit-learn"} and min(row["seconds"].values()) > 0
        assert row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
        assert abs(row["scores"]["fastmlp"] - row["scores"]["scikit-learn"]) <= estimators.QUALITY
    assert len(lines) == 4 and lines[0].startswith("fit: fastmlp ")
    assert estimators_text(result).splitlines()[:4] == lines
    assert result["versions"]["scikit-learn"]


def test_a_library_with_another_quality_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark stops with an error if the scores of both libraries differ, and does not compare times."""

    def prepare(classifier: Any, regressor: Any) -> Prepared:
        return Prepared(lambda: None, lambda: 0.9 if "fastmlp" in classifier.__module__ else 0.5)

    monkeypatch.setattr(estimators, "cases", lambda _: [EstimatorCase("unequal", prepare)])
    with pytest.raises(Disagreement, match="unequal: the scores of the two libraries differ too much"):
        run_estimators(print, rounds=1)


def test_the_command_writes_the_result(small: None, tmp_path: Path) -> None:
    done = ok("bench", "--estimators", "--rounds", "1", "--out", tmp_path / "out", "--json")
    written = json.loads((tmp_path / "out" / "estimators.json").read_text())
    assert written == json.loads(done.stdout)


def test_settings_of_the_other_benchmark_are_refused() -> None:
    assert "the estimators are compared in cases of their own" in refused(2, "bench", "--estimators", "--network", "4-3-2")


def test_the_cases_need_no_download(tmp_path: Path) -> None:
    """Without the files of Fashion-MNIST, the cases that need them are left out."""
    titles = [case.title for case in cases(tmp_path)]
    assert len(titles) >= 8 and not any("Fashion" in title for title in titles)
    assert len(set(titles)) == len(titles)
