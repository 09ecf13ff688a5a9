"""Tests of benchmarks/torch_twin.py: training a finished run again with PyTorch, the file of results, and the plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import ok, override
from support.extract import own_folder  # noqa: F401 - a fixture of every test here

from benchmarks import torch_twin
from benchmarks.tables import twins_table

pytestmark = pytest.mark.full

pytest.importorskip("torch", reason="the package of backend 'torch' is not installed: pip install torch")

KEPT = {"name": "other", "network": "1x1", "dropout": [0.0]}
SAME = 1e-5  # tolerance for runs of a few epochs; rounding errors are about 1e-7


def make_run(out: str, *options: str) -> Path:
    """Train on digits with dropout and return the folder of the run; `options` override the default options."""
    settings = ["--data", "digits", "--hidden", "12", "--activation", "gelu", "--dropout", "0.3", "--optimizer", "adam"]
    settings += ["--lr", "0.002", "--epochs", "3", "--val-count", "300", "--backend", "numpy", "--out", out]
    ok("train", *override(settings, *options), "-q")
    return Path(out)


def test_a_run_is_compared_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run("one"), make_run("two", "--seed", "5")]
    Path("twins.json").write_text(json.dumps({"rows": [KEPT, {"name": "one", "old": True}]}))
    monkeypatch.setattr("sys.argv", ["torch_twin", *map(str, runs), "--out", "twins.json"])
    torch_twin.main()
    other, *rows = json.loads(Path("twins.json").read_text())["rows"]
    assert other == KEPT  # rows of other runs are kept
    assert [row["name"] for row in rows] == ["one", "two"]
    for row in rows:
        result = json.loads((Path(row["name"]) / "result.json").read_text())
        assert row["ours"]["validation_loss"] == result["validation"]["loss"]
        assert row["ours"]["test_accuracy"] == row["pytorch"]["test_accuracy"] == result["test"]["accuracy"]
        assert row["pytorch"]["validation_loss"] == pytest.approx(row["ours"]["validation_loss"], rel=SAME)
        assert row["pytorch"]["epoch"] == row["ours"]["epoch"] == result["best_epoch"]
        assert 0 < row["largest_difference"] < SAME
        assert [len(curve) for who in ("ours", "pytorch") for curve in row[who]["history"].values()] == [3] * 4
        assert Path(f"twin-{row['name']}.png").read_bytes().startswith(b"\x89PNG")
    lines = twins_table({"rows": rows}).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:6]] == ["ours", "pytorch"] * 2
    assert f"PyTorch {rows[0]['machine']['torch']}" in lines[-1]


def test_a_different_training_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference is large if the run was trained with a learning rate 1 % higher than its settings say."""
    run = make_run("one", "--lr", "0.00202")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.00202", "lr = 0.002"))
    assert torch_twin.compare(run)["largest_difference"] > 100 * SAME


def test_regression_has_no_accuracy() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 4)).astype(np.float32)
    np.savez("values.npz", x=x, y=(x[:, :1] * x[:, 1:2]).astype(np.float32))
    options = [
        "--data",
        "values.npz",
        "--task",
        "regression",
        "--loss",
        "squared-error",
        "--val-count",
        "60",
        "--test-count",
        "60",
    ]
    row = torch_twin.compare(make_run("values", *options))
    for who in ("ours", "pytorch"):
        assert set(row[who]) == {"epoch", "validation_loss", "history"}
    assert row["largest_difference"] < SAME


def test_without_a_validation_split_there_is_one_curve() -> None:
    row = torch_twin.compare(make_run("all", "--val-count", "0", "--patience", "0"))
    assert [*row["ours"]["history"]] == [*row["pytorch"]["history"]] == ["loss"]
    assert "validation_loss" not in row["ours"]
    torch_twin.draw(row, Path("all.png"))
    assert Path("all.png").exists()


def test_the_difference_covers_the_common_epochs() -> None:
    one: dict[str, Any] = {"loss": [2.0, 1.0], "val_loss": [4.0, 2.0]}
    assert torch_twin.largest_difference(one, {"loss": [2.0, 1.0, 9.0], "val_loss": [4.0, 2.0, 9.0]}) == 0
    assert torch_twin.largest_difference(one, {"loss": [2.0], "val_loss": [5.0]}) == 0.25
