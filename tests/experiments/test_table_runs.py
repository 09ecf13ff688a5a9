"""Tests of runs on tables: from `train` to `evaluate` and `predict`, with tables whose columns have another order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from support.cli import no_figures, ok, refused  # noqa: F401 - an autouse fixture

import fastmlp
from fastmlp.errors import DataError

FAST = ("--backend", "numpy", "--epochs", "30", "--hidden", "16", "--lr", "0.01", "--no-checkpoints")
COLORS = ("red", "green", "blue")


def frame(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    """Return a table whose label depends on its number and on its text."""
    rng = np.random.default_rng(seed)
    size, color = rng.uniform(0, 10, rows).round(2), rng.choice(COLORS, rows)
    kind = np.where(color == "red", "cherry", np.where(size > 5, "melon", "grape"))
    return pd.DataFrame({"size": size, "color": color, "weight": (size * 2 + rng.normal(0, 0.1, rows)).round(3), "kind": kind})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    frame().to_csv(tmp_path / "fruit.csv", index=False)
    return tmp_path / "fruit.csv"


@pytest.fixture
def run(table: Path, tmp_path: Path) -> Path:
    ok("train", "--data", table, "--out", tmp_path / "run", *FAST)
    return tmp_path / "run"


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def predictions(run: Path, file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ok("predict", run, file, "--json").stdout)["predictions"]
    return found


def test_the_target_is_told_and_stored(table: Path, tmp_path: Path) -> None:
    result = ok("train", "--data", table, "--out", tmp_path / "run", *FAST)
    note = "target: column 4 'kind', classification; 3 features"
    assert note in result.stderr.splitlines()
    stored = read(tmp_path / "run" / "result.json")
    assert stored["data"]["notes"] == [note]
    assert stored["settings"]["task"] == "classification"
    assert stored["test"]["accuracy"] > 0.8
    assert 'task = "classification"' in (tmp_path / "run" / "config.toml").read_text()


def test_evaluation_finds_the_splits_again(run: Path) -> None:
    stored = read(run / "result.json")
    found = json.loads(ok("evaluate", run, "--split", "all", "--json").stdout)
    assert [found[name] for name in ("test", "validation", "train")] == [
        stored[name] for name in ("test", "validation", "train")
    ]


def test_other_tables_are_matched_by_name(run: Path, tmp_path: Path) -> None:
    new = frame(40, seed=1)
    new.to_csv(tmp_path / "new.csv", index=False)
    expected = predictions(run, tmp_path / "new.csv")
    others = {
        "reversed.csv": new[new.columns[::-1]],
        "without label.csv": new.drop(columns="kind"),
        "more columns.csv": new.assign(id=range(40), note="x")[["id", "kind", "weight", "note", "color", "size"]],
    }
    for name, other in others.items():
        other.to_csv(tmp_path / name, index=name.startswith("more"))
        assert [row["probabilities"] for row in predictions(run, tmp_path / name)] == [row["probabilities"] for row in expected]
    new.to_parquet(tmp_path / "new.parquet")
    assert [row["label"] for row in predictions(run, tmp_path / "new.parquet")] == [row["label"] for row in expected]
    line = refused(3, "predict", run, write(tmp_path / "lacks.csv", new.drop(columns="color")))
    assert line.endswith("missing columns that the model needs: 'color'")


def write(path: Path, table: pd.DataFrame) -> Path:
    table.to_csv(path, index=False)
    return path


def test_evaluation_of_another_table(run: Path, tmp_path: Path) -> None:
    new = frame(40, seed=1)
    results = [
        json.loads(ok("evaluate", run, "--data", write(tmp_path / name, other), "--json").stdout)["test"]
        for name, other in (("new.csv", new), ("reversed.csv", new[new.columns[::-1]]))
    ]
    assert results[0] == results[1]
    assert results[0]["accuracy"] > 0.8
    line = refused(3, "evaluate", run, "--data", write(tmp_path / "lacks.csv", new.drop(columns="kind")))
    assert "no column 'kind', which is the target that an evaluation needs; add it" in line
    other = new.assign(kind="apple")
    assert "unknown class 'apple'" in refused(3, "evaluate", run, "--data", write(tmp_path / "other.csv", other))


def test_unknown_texts_are_told(run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "new.csv", frame(3).assign(color="pink"))
    result = ok("predict", run, file)
    assert result.stderr.splitlines() == [
        f"{file}: 3 values of column 2 'color' do not occur in the training split and are encoded as zeros: 'pink'"
    ]
    assert len(result.stdout.splitlines()) == 3


def gaps(seed: int = 0) -> pd.DataFrame:
    table = frame(seed=seed)
    table.loc[3, "size"] = np.nan
    table.loc[5, "color"] = None
    return table


def test_missing_values_are_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "gaps.csv", gaps())
    line = refused(3, "train", "--data", file, "--out", tmp_path / "run", *FAST)
    assert "column 1 'size' has 1, column 2 'color' has 1 (the first one in line 5)" in line
    assert line.endswith("[--missing, --drop]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["mean", "median", "drop"])
def test_missing_values_in_training_and_prediction(missing: str, tmp_path: Path) -> None:
    file = write(tmp_path / "gaps.csv", gaps())
    ok("train", "--data", file, "--missing", missing, "--out", tmp_path / "run", *FAST)
    stored = read(tmp_path / "run" / "result.json")
    assert sum(stored["data"]["rows"].values()) == (118 if missing == "drop" else 120)
    assert json.loads(ok("evaluate", tmp_path / "run", "--json").stdout)["test"] == stored["test"]
    new = write(tmp_path / "new.csv", gaps(seed=2))
    found = predictions(tmp_path / "run", new)
    assert [number for number, row in enumerate(found) if not row["label"]] == ([3, 5] if missing == "drop" else [])
    if missing == "drop":
        result = ok("predict", tmp_path / "run", new)
        assert result.stdout.splitlines()[3] == f"{new}:4\t"
        assert result.stderr.splitlines() == [f"{new}: 2 rows with missing values cannot be predicted"]
        evaluated = ok("evaluate", tmp_path / "run", "--data", new, "--json")
        assert "dropped 2 rows with missing values" in evaluated.stderr.splitlines()
        assert json.loads(evaluated.stdout)["data"]["rows"] == {"test": 118}


def test_regression(tmp_path: Path) -> None:
    file = write(tmp_path / "fruit.csv", frame().drop(columns="kind"))
    result = ok("train", "--data", file, "--out", tmp_path / "run", *FAST)
    assert "target: column 3 'weight', regression; 2 features" in result.stderr.splitlines()
    stored = read(tmp_path / "run" / "result.json")
    assert stored["settings"]["loss"] == "squared-error"
    assert stored["test"]["r2"] > 0.8
    (tmp_path / "new.csv").write_text("color,size\nred,2\nblue,8\n")
    low, high = (row["values"][0] for row in predictions(tmp_path / "run", tmp_path / "new.csv"))
    assert low < high


def test_settings_for_another_task_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "fruit.csv", frame().drop(columns="kind"))
    line = refused(2, "train", "--data", file, "--loss", "cross-entropy", "--out", tmp_path / "run", *FAST)
    assert "loss cross-entropy is for classification, but task is regression" in line
    assert not (tmp_path / "run").exists()


def test_the_encoding_is_fitted_to_the_training_split(tmp_path: Path) -> None:
    """A text that occurs only in the test split has no feature."""
    table = frame()
    file = write(tmp_path / "fruit.csv", table)
    test = fastmlp.split_rows(np.zeros(120), (24, 24), seed=0)[2]
    table.loc[test[0], "color"] = "black"
    write(file, table)
    ok("train", "--data", file, "--val-count", "24", "--test-count", "24", "--out", tmp_path / "run", *FAST)
    encoding = fastmlp.load(tmp_path / "run").encoding
    assert encoding is not None
    assert encoding.feature_names == ["size", "color=blue", "color=green", "color=red", "weight"]
    everything = fastmlp.load_data(file).encoding
    assert everything is not None
    assert "color=black" in everything.feature_names


def test_several_seeds(table: Path, tmp_path: Path) -> None:
    result = ok("train", "--data", table, "--seeds", "2", "--out", tmp_path / "runs", *FAST)
    assert "target: column 4 'kind', classification; 3 features" in result.stderr.splitlines()
    assert predictions(tmp_path / "runs" / "seed-1", table)[0]["label"] in {"cherry", "melon", "grape"}


def test_a_run_on_a_table_can_be_verified_and_resumed(table: Path, tmp_path: Path) -> None:
    flags = [flag for flag in FAST if flag != "--no-checkpoints"]
    ok("train", "--data", table, "--out", tmp_path / "run", "--checkpoint-seconds", "0", "--patience", "0", *flags)
    ok("verify", tmp_path / "run")
    ok("train", "--resume", tmp_path / "run", "--epochs", "32")
    assert read(tmp_path / "run" / "result.json")["epochs"] == 32
    assert fastmlp.load(tmp_path / "run" / "checkpoints").encoding == fastmlp.load(tmp_path / "run").encoding


def test_lr_find_on_a_table(table: Path) -> None:
    assert float(ok("lr-find", "--data", table, "--backend", "numpy", "-q").stdout) > 0


# ------------------------------------------------------------------------------------------------ data frames


def test_data_frames_are_matched_by_name(run: Path, tmp_path: Path) -> None:
    model, new = fastmlp.load(run, backend="numpy"), frame(40, seed=1)
    expected = [row["label"] for row in predictions(run, write(tmp_path / "new.csv", new))]
    for other in (new, new[new.columns[::-1]], new.set_index("kind"), pl.from_pandas(new[new.columns[::-1]])):
        assert model.predict(other).tolist() == expected
    assert model.score(new, new["kind"]) == np.mean(new["kind"] == expected)
    assert model.evaluate(new, new["kind"])["accuracy"] == model.score(new, new["kind"])
    with pytest.raises(DataError, match="data frame: missing columns that the model needs: 'color'"):
        model.predict(new.drop(columns="color"))


def test_unknown_categories_of_a_data_frame_are_told(run: Path) -> None:
    model = fastmlp.load(run, backend="numpy")
    with pytest.warns(UserWarning, match="3 values of column [0-9] 'color' do not occur in the training split"):
        model.predict(frame(3).assign(color="pink"))


def test_data_frames_that_cannot_be_converted(run: Path) -> None:
    model, new = fastmlp.load(run, backend="numpy"), frame(3)
    for other in ([[1], [2], [3]], [1, "a", 2.5]):  # a column that the model does not use
        model.predict(new.assign(other=other))
    with pytest.raises(DataError, match="data frame: it cannot be converted to an Arrow table"):
        model.predict(new.assign(size=[1, "a", 2.5]))
    with pytest.raises(DataError, match=r"data frame: column 'size' has the type .*list"):
        model.predict(pl.from_pandas(new).with_columns(size=pl.Series([[1.0], [2.0], [3.0]])))


def test_names_of_a_data_frame_may_have_spaces(run: Path) -> None:
    model, new = fastmlp.load(run, backend="numpy"), frame(30, seed=1)
    assert model.predict(new.rename(columns={"size": " size "})).tolist() == model.predict(new).tolist()


def test_a_data_frame_for_a_table_without_names(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "fruit.csv", index=False, header=False)
    ok("train", "--data", tmp_path / "fruit.csv", "--target", "last", "--out", tmp_path / "run", *FAST)
    with pytest.raises(DataError, match="data frame: the training table had no names of columns"):
        fastmlp.load(tmp_path / "run", backend="numpy").predict(frame(3))


def test_a_data_frame_with_missing_values(tmp_path: Path) -> None:
    file = write(tmp_path / "gaps.csv", gaps())
    for missing in ("drop", "mean"):
        ok("train", "--data", file, "--missing", missing, "--out", tmp_path / missing, *FAST)
    assert len(fastmlp.load(tmp_path / "mean", backend="numpy").predict(gaps())) == 120
    with pytest.raises(DataError, match="data frame: row 4 has missing values; drop such rows"):
        fastmlp.load(tmp_path / "drop", backend="numpy").predict(gaps())


def numbers(rows: int = 80, seed: int = 0) -> tuple[pd.DataFrame, Any]:
    x = np.random.default_rng(seed).normal(size=(rows, 3))
    return pd.DataFrame(x, columns=["a", "b", "c"]), (x[:, 0] > x[:, 2]).astype(int)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_models_trained_on_data_frames_remember_the_columns(kind: str, tmp_path: Path) -> None:
    x, y = numbers()
    columns = ["c", "a", "b"]
    as_frame = pl.from_pandas if kind == "polars" else pd.DataFrame
    given: dict[str, Any] = {"epochs": 20, "backend": "numpy", "optimizer": fastmlp.Adam(0.05), "batch_size": 8}
    network = fastmlp.Network(hidden=(8,))
    result = fastmlp.train(network, (as_frame(x[:60]), y[:60]), (as_frame(x[60:]), y[60:]), **given)
    other = fastmlp.train(network, (as_frame(x[:60]), y[:60]), (as_frame(x[60:][columns]), y[60:]), **given)
    assert result.history[-1]["val_loss"] == other.history[-1]["val_loss"]
    result.model.save(tmp_path / "model.safetensors")
    model = fastmlp.load(tmp_path / "model.safetensors", backend="numpy")
    assert model.predict(as_frame(x[columns])).tolist() == model.predict(x.to_numpy()).tolist()
    assert model.score(as_frame(x[columns]), y) == model.score(x.to_numpy(), y) > 0.8
    with pytest.raises(DataError, match="missing columns that the model needs: 'c'"):
        model.predict(as_frame(x[["a", "b"]]))
    assert [row["label"] for row in predictions(tmp_path / "model.safetensors", write(tmp_path / "x.csv", x[columns]))] == [
        str(label) for label in model.predict(x)
    ]


def test_data_frames_in_float64_keep_their_precision() -> None:
    x, y = numbers()
    result = fastmlp.train(fastmlp.Network(hidden=(4,)), (x, y), epochs=2, backend="numpy", dtype="float64")
    assert result.model.outputs(x).tolist() == result.model.outputs(x.to_numpy()).tolist()


def test_columns_without_names_are_not_matched() -> None:
    x, y = numbers()
    x.columns = pd.Index([0, 1, 2])
    assert fastmlp.train(fastmlp.Network(hidden=(4,)), (x, y), epochs=2, backend="numpy").model.encoding is None


def test_splits_of_a_table_in_python(table: Path, tmp_path: Path) -> None:
    data = fastmlp.load_data(table).split(validation=0.2, test=0.2)
    model = fastmlp.train(fastmlp.Network(hidden=(16,)), data.train, data.validation, epochs=30, backend="numpy").model
    assert model.predict(frame(10)[["weight", "color", "size"]]).tolist() == model.predict(frame(10)).tolist()


DAMAGED = {
    "short line": "a,b,label\n1,2,x\n1,y\n",
    "text among numbers": "a,label\n" + "1.5,x\n" * 20 + "l.5,y\n",
    "infinity": "a,label\n" + "1,x\n" * 20 + "inf,y\n",
    "missing value": "a,label\n" + "1,x\n" * 20 + ",y\n",
    "header only": "a,label\n",
    "empty": "",
    "no target": "1.5,2.5\n2.5,3.5\n",
    "latin-1": "a,label\n1,\xe9\n".encode("latin-1"),
    "zero byte": b"a,label\n1,\0\n",
    "open quotation mark": 'a,label\n1,"x\n2,y\n',
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_tables_are_one_line_and_nothing_is_overwritten(kind: str, run: Path, tmp_path: Path) -> None:
    content, file = DAMAGED[kind], tmp_path / "bad.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for command in (
        ("train", "--data", file, "--out", run, "--force", *FAST),
        ("evaluate", run, "--data", file),
        ("predict", run, file),
    ):
        assert str(file) in refused(3, *command)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
