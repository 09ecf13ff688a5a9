"""The benchmarks' own correctness: README's tables are those of the committed results, and each script runs once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import epochs, tables
from benchmarks.cases import EPOCHS, Case
from fastmlp.network import Network

README = Path(tables.ROOT) / "README.md"


def test_readme_has_the_tables_of_the_committed_results() -> None:
    text = README.read_text()
    assert tables.filled(text) == text


def test_a_figure_that_no_result_has_is_noticed() -> None:
    text = README.read_text()
    accuracy = json.loads((tables.RESULTS / "accuracy.json").read_text())["rows"][0]["test_accuracy"]
    changed = text.replace(f"{accuracy:.2%}", "99.99%", 1)
    assert changed != text
    assert tables.filled(changed) != changed


def test_a_readme_without_a_table_is_refused() -> None:
    with pytest.raises(SystemExit, match="one table 'epochs'"):
        tables.filled("no table here")


def test_the_pictures_of_readme_are_there() -> None:
    for name in ("docs/curves.png", "docs/confusion.png"):
        assert f"({name})" in README.read_text()
        assert (tables.ROOT / name).read_bytes().startswith(b"\x89PNG")


def test_the_cases_have_their_known_cost() -> None:
    """GFLOP of an epoch of 48,000 rows, counted by hand for the first: 2 (784 128 2 + 128 10 3) 48000."""
    assert Network(EPOCHS[0].sizes).flops_per_row == 2 * (784 * 128 * 2 + 128 * 10 * 3)
    cost = [round(Network(case.sizes).flops_per_row * 48e3 / 1e9, 1) for case in EPOCHS]
    assert cost == [19.6, 19.6, 118.8, 96.5, 26.6, 19.6, 127.3]


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    monkeypatch.setattr(epochs, "ROWS", 100)
    rng = np.random.default_rng(0)
    return rng.random((100, 12), np.float32), rng.integers(0, 3, 100).astype(np.int32)


def test_epochs_are_measured(few_rows: tuple[np.ndarray, np.ndarray]) -> None:
    row = epochs.measure(Case((12, 8, 3), 32), *few_rows, rounds=2)
    assert row["network"] == "12-8-3"
    assert set(row["seconds"]) == {"numpy", "numba"}
    ratio = row["ratio"]
    assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]


def test_engines_that_disagree_are_not_timed(few_rows: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = epochs.engine_for

    def of_another_start(backend: str, case: Case) -> object:
        engine = honest(backend, case)
        if backend == "numba":
            engine.load(engine.state()._replace(parameters=engine.state().parameters * np.float32(1.1)))
        return engine

    monkeypatch.setattr(epochs, "engine_for", of_another_start)
    with pytest.raises(SystemExit, match="disagree"):
        epochs.measure(Case((12, 8, 3), 32), *few_rows, rounds=1)
