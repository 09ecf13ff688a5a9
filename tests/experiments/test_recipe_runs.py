"""Tests of `fastmlp recipes run` on small images: finished runs are skipped, and unfinished runs are continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import call, ok, refused
from support.cnn import SHAPE, bars
from support.extract import own_folder, without_pictures  # noqa: F401 - fixtures of all tests
from support.many import NETWORK
from support.problems import problem, set_up

from benchmarks import recipes as benchmark
from benchmarks.epochs import machine
from benchmarks.tables import recipes_table
from fastmlp.experiments.recipes.compare import Figure, comparison_text, figures, overridden
from fastmlp.experiments.recipes.recipe import all_recipes, find
from fastmlp.experiments.recipes.run import RecipeJob, make_job, select
from fastmlp.files import read_lines
from fastmlp.nn.optimizers import SGD
from fastmlp.training.api import train_many
from fastmlp.training.loop import Diverged
from fastmlp.training.result import TrainResult

pytestmark = pytest.mark.full

PATIENCE = 120  # timeout in seconds, long enough for a slow, busy machine; a process usually takes one second
TINY = {"FASTMLP_DATASET": "images.npz", "FASTMLP_EPOCHS": "2", "FASTMLP_BACKEND": "numpy", "FASTMLP_VAL_COUNT": "40"}
CNN = {"FASTMLP_FILTERS": "4,6", "FASTMLP_DENSE": "8", "FASTMLP_DEVICE": "cpu"}


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> None:
    pixels, labels = bars(200, 0)
    np.savez(tmp_path / "images.npz", x=pixels.reshape(-1, *SHAPE[:2]), y=labels)


def test_patterns_select_in_the_order_of_the_list() -> None:
    assert select(["iisc-cnn-8", "cs776-mlp-*"]) == [*[f"cs776-mlp-{row}" for row in range(1, 9)], "iisc-cnn-8"]
    assert select(["*"]) == [*all_recipes()]
    assert refused(2, "recipes", "run", "cs776-mlp-1", "cs777-*").startswith("unknown recipe 'cs777-*'")


def test_networks_on_pixels_come_out_as_train_makes_them(numba_backend: str) -> None:
    """`recipes run` and `train` give bitwise identical models.

    The test uses the compiled engine, because the rounding of NumPy's matrix products depends on BLAS and on memory alignment.
    """
    tiny = TINY | {"FASTMLP_BACKEND": numba_backend}
    found = json.loads(ok("recipes", "run", "group7-mlp-[13]", "iisc-mlp-2", "--json", "-q", **tiny).stdout)["recipes"]
    assert [row["name"] for row in found] == ["group7-mlp-1", "group7-mlp-3", "iisc-mlp-2"]
    for row in found:
        ok("train", "--recipe", row["name"], "--out", f"alone-{row['name']}", "-q", **tiny)
        alone, run = Path(f"alone-{row['name']}"), Path("runs/recipes") / row["name"]
        assert (run / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
        assert {path.name for path in run.iterdir()} == {path.name for path in alone.iterdir()}
        result, other = (json.loads((folder / "result.json").read_text()) for folder in (run, alone))
        (figure,) = row["mlp"]["figures"]
        assert figure["ours"] == result["test"]["accuracy"] == other["test"]["accuracy"]
        assert result["test"] == other["test"]
        assert len((run / "metrics.jsonl").read_text().splitlines()) == row["mlp"]["epochs"] == 2


def test_what_is_finished_stays_and_what_is_not_is_made() -> None:
    arguments = ["recipes", "run", "group7-mlp-*", "--out", "set"]
    ok(*arguments, "-q", **TINY)
    files = [Path("set") / f"group7-mlp-{row}" / "result.json" for row in range(1, 5)]
    before = [file.stat().st_mtime_ns for file in files]
    files[2].unlink()
    again = ok(*arguments, **TINY)
    assert again.stderr.startswith("group7-mlp-3\n")
    assert "in parallel" not in again.stderr
    assert [file.stat().st_mtime_ns != time for file, time in zip(files, before, strict=True)] == [False, False, True, False]
    assert len((files[2].parent / "metrics.jsonl").read_text().splitlines()) == 2
    result = json.loads(files[0].read_text())
    files[0].write_text(json.dumps(result | {"stopped": "interrupted"}))
    assert ok(*arguments, **TINY).stderr.startswith("group7-mlp-1\n")
    assert json.loads(files[0].read_text())["stopped"] == "epochs"
    line = refused(2, *arguments, **TINY | {"FASTMLP_EPOCHS": "3"}, FASTMLP_QUIET="1")
    assert line == "set/group7-mlp-1 has a run with other settings; remove it, or choose another folder [--out]"


def test_a_run_that_was_killed_before_its_manifest_is_not_finished() -> None:
    arguments, folder = ["recipes", "run", "group7-mlp-2", "--out", "set"], Path("set/group7-mlp-2")
    ok(*arguments, "-q", **TINY)
    for name in ("manifest.json", "curves.png"):
        (folder / name).unlink()
    model = (folder / "model.safetensors").read_bytes()
    assert ok(*arguments, **TINY).stderr.startswith("group7-mlp-2\n")
    assert (folder / "manifest.json").exists()
    assert (folder / "curves.png").exists()
    assert (folder / "model.safetensors").read_bytes() == model


def test_what_a_report_watches_is_kept_of_networks_side_by_side() -> None:
    """Networks that are trained in parallel write the same files as networks that are trained alone.

    These are metrics per class, predictions, and the validation metrics within epochs.
    """
    watched = TINY | {"FASTMLP_PER_CLASS_EVERY": "1", "FASTMLP_VAL_STEPS": "2", "FASTMLP_PREDICTIONS": "1"}
    ok("recipes", "run", "iisc-mlp-1", "iisc-mlp-2", "--out", "set", "-q", **watched)
    for name in ("iisc-mlp-1", "iisc-mlp-2"):
        ok("train", "--recipe", name, "--out", name, "-q", **watched)
        lines = read_lines(Path("set") / name / "classes.jsonl")
        assert [line["epoch"] for line in lines] == [1, 2]
        assert [line["validation"].keys() for line in lines] == [lines[0]["train"].keys()] * 2
        assert (Path("set") / name / "predictions.txt").read_text().count("\n") == 2 + 40
        files = (folder / name / "metrics.jsonl" for folder in (Path("set"), Path()))
        found, alone = ([len(row["steps"]) for row in read_lines(file)] for file in files)
        assert found == alone != [0, 0]
        for file in ("classes.png", "report.txt"):
            assert (Path("set") / name / file).exists() == (Path(name) / file).exists() is True


@pytest.mark.parametrize("names", [["iisc-mlp-1", "iisc-mlp-2"], ["iisc-mlp-1"], ["iisc-cnn-3"]])
def test_a_folder_that_cannot_be_made_is_one_line(names: list[str]) -> None:
    Path("file").touch()
    for out, code in (("file", 2), ("/proc/nowhere", 3)):
        done = call("recipes", "run", *names, "--out", out, "-q", **TINY | CNN)
        assert done.exit_code == code, done.output
        (line,) = done.stderr.splitlines()
        assert f"{out}/{names[0]}" in line


def test_a_network_alone_that_diverges_ends_no_other() -> None:
    wild = TINY | {"FASTMLP_LR": "1e30"}
    done = ok("recipes", "run", "group7-mlp-1", "iisc-mlp-1", "--out", "set", **wild)
    assert done.stderr.count("loss became") == 2
    assert "lower the learning rate" in done.stderr
    assert not [*Path("set").rglob("result.json")]


def test_an_engine_that_is_missing_ends_its_group_alone() -> None:
    block = "import sys; sys.modules['torch'] = None; from fastmlp.commands import main; main()"
    environment = {name: value for name, value in TINY.items() if name != "FASTMLP_BACKEND"}
    command = [sys.executable, "-c", block, "recipes", "run", "ee5179-[234]", "group7-mlp-1", "--out", "set"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 4, done.stderr
    assert "backend 'torch' needs torch" in done.stderr
    assert sorted(path.parent.name for path in Path("set").rglob("result.json")) == ["ee5179-2", "ee5179-3", "group7-mlp-1"]


def test_convolutional_networks_run_too() -> None:
    arguments = ["recipes", "run", "cs776-cnn-1", "iisc-cnn-3", "--out", "set"]
    small = TINY | CNN
    table = ok(*arguments, "-q", **small).stdout.splitlines()
    assert [line.split()[:3] for line in table[1:4]] == [
        ["cs776-cnn-1", "CNN", "test"],
        ["cs776-cnn-1", "MLP", "test"],
        ["iisc-cnn-3", "CNN", "test"],
    ]
    assert [line.split()[0] for line in table[4:]] == ["cs776-cnn-1", "iisc-cnn-3"]  # ran with other settings
    ok("extract", "--recipe", "cs776-cnn-1", "-q", "train", "--out", "alone", "-q", **small)
    assert Path("set/cs776-cnn-1/model.safetensors").read_bytes() == Path("alone/model.safetensors").read_bytes()
    before = Path("set/iisc-cnn-3/cnn.json").stat().st_mtime_ns
    assert ok(*arguments, "-q", **small).stdout.splitlines() == table
    assert Path("set/iisc-cnn-3/cnn.json").stat().st_mtime_ns == before
    for name in ("cs776-cnn-1", "iisc-cnn-3"):
        other = small | {"FASTMLP_DENSE": "9"}
        assert "has a run with other settings" in refused(2, "recipes", "run", name, "--out", "set", "-q", **other)


def test_an_interrupted_set_goes_on() -> None:
    arguments = ["recipes", "run", "group7-mlp-*", "--out", "set"]
    settings = TINY | {"FASTMLP_EPOCHS": "1000000"}
    command = [sys.executable, "-c", "from fastmlp.commands import main; main()", *arguments]
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = [Path(f"set/group7-mlp-{row}/metrics.jsonl") for row in (1, 2)]
    until = time.monotonic() + PATIENCE
    while not all(file.exists() for file in metrics[:1]):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "–" in out
    assert not [*Path("set").rglob("result.json")]
    ok(*arguments, "-q", **TINY)
    assert len(metrics[0].read_text().splitlines()) == 2
    assert len([*Path("set").rglob("result.json")]) == 4


def test_without_torch_networks_on_pixels_run_all_the_same() -> None:
    block = "import sys; sys.modules['torch'] = None; from fastmlp.commands import main; main()"
    command = [sys.executable, "-c", block, "recipes", "run", "group7-mlp-1", "cs776-cnn-1", "--out", "set"]
    done = subprocess.run(command, env=os.environ | TINY, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 4, done.stderr
    assert "extract needs PyTorch" in done.stderr
    assert Path("set/group7-mlp-1/result.json").exists()


# ------------------------------------------------------------------------------------------------ the table


def test_figures_stand_beside_the_published_ones() -> None:
    ours: dict[str, Any] = {"test": {"accuracy": 0.7, "loss": 0.9, "macro": {"f1": 0.6, "recall": 0.65}}, "validation": None}
    ours |= {"epochs": 12, "best_epoch": 7, "seconds": 3.21}
    history = [
        {"epoch": epoch, "loss": epoch / 10, "accuracy": 0.5, "val_loss": epoch / 5, "val_accuracy": 0.4}
        for epoch in range(1, 13)
    ]
    published = {
        "test": {"accuracy": 0.75, "macro_f1": 0.55},
        "epochs": 20,
        "best_epoch": 15,
        "printed": [[15, 0.5, 0.6, 1.0, 0.3], [16, 0.4, 0.7, 1.1, 0.2]],
    }
    found = {one.name: (one.published, one.ours) for one in figures(published, ours, history)}
    assert found == {
        "test accuracy": (0.75, 0.7),
        "test macro F1": (0.55, 0.6),
        "train loss, best epoch": (0.5, 0.7),
        "train accuracy, best epoch": (0.6, 0.5),
        "validation loss, best epoch": (1.0, 1.4),
        "validation accuracy, best epoch": (0.3, 0.4),
        "epochs": (20, 12),
        "best epoch": (15, 7),
    }
    same_epoch = figures({"printed": [[2, 0.5, 0.6, 1.0, 0.3], [10, 0.4, 0.7, 1.1, 0.2]]}, ours, history)
    assert [(one.name, one.published, one.ours) for one in same_epoch[:2]] == [
        ("test accuracy", None, 0.7),
        ("train loss, epoch 10", 0.4, 1.0),
    ]
    assert {one.ours for one in figures(published, None, ())} == {None}
    assert [(one.name, one.ours) for one in figures({}, ours | {"test": None, "train": {"accuracy": 0.9}}, ())] == [
        ("train accuracy", 0.9)
    ]


def test_the_table_of_figures() -> None:
    figure = Figure("test", "accuracy", 0.75, 0.8).table(), Figure("train", "loss", 0.1234, 0.1).table()
    done = {"figures": figure, "epochs": 12, "best_epoch": 3, "seconds": 3.21}
    unfinished = {
        "figures": [Figure("", "epochs", 20, None).table()],
        "epochs": None,
        "best_epoch": None,
        "seconds": None,
    }
    rows = [
        {"name": "a", "overridden": [], "cnn": done, "mlp": unfinished},
        {"name": "b", "overridden": ["epochs"], "mlp": done},
    ]
    lines = [line.split() for line in comparison_text(rows).splitlines()]
    assert lines[:-1] == [
        ["recipe", "figure", "published", "ours", "difference", "epochs", "seconds"],
        ["a", "CNN", "test", "accuracy", "75.00", "80.00", "+5.00", "12", "3.2"],
        ["train", "loss", "0.1234", "0.1000", "-0.0234"],
        ["a", "MLP", "epochs", "20", "–", "–", "–", "–"],
        ["b", "MLP", "test", "accuracy", "75.00", "80.00", "+5.00", "12", "3.2"],
        ["train", "loss", "0.1234", "0.1000", "-0.0234"],
    ]
    assert " ".join(lines[-1]).startswith("b ran with other settings than the recipe (epochs)")


def test_figures_of_other_settings_are_left_out() -> None:
    arguments = ["recipes", "run", "group7-mlp-1", "--out", "set", "--json", "-q"]
    (row,) = json.loads(ok(*arguments, **TINY).stdout)["recipes"]
    assert row["overridden"] == ["data", "val_fraction", "val_count", "epochs"]
    assert [(one["name"], one["published"], one["difference"]) for one in row["mlp"]["figures"]] == [
        ("test accuracy", None, None)
    ]
    job = make_job("group7-mlp-1", Path("set"), {"FASTMLP_BACKEND": "numpy"}, {"seed": 3, "data_dir": "."})
    assert overridden(job) == []
    assert overridden(make_job("cs776-cnn-1", Path("set"), {"FASTMLP_DENSE": "9"}, {})) == ["dense"]


def test_a_job_that_has_not_run_has_no_result() -> None:
    assert RecipeJob(find("ee5179-1"), None, None, Path("nowhere")).result is None


def test_a_run_on_other_data_in_the_folder_is_refused() -> None:
    """A run folder that `train` wrote for a file of images is not accepted as the run of a recipe that trains on features."""
    ok("train", "--data", "images.npz", "--out", "set/cs776-cnn-1", "-q", **TINY)
    line = refused(2, "recipes", "run", "cs776-cnn-1", "--out", "set", "-q", **TINY, **CNN)
    assert line == "set/cs776-cnn-1 has a run with other settings; remove it, or choose another folder [--out]"


# ------------------------------------------------------------------------------------------------ many models


def test_many_models_tell_when_each_has_ended() -> None:
    x, y = problem()
    seen: list[tuple[int, Any, bool]] = []
    jobs = [(NETWORK, set_up(epochs=epochs, optimizer=SGD(rate))) for epochs, rate in ((6, 0.1), (1, 0.1), (2, 1e30))]
    rows: list[int] = []
    results = train_many(
        jobs,
        (x, y),
        threads=1,
        progress=lambda index, row: rows.append(index),
        finished=lambda index, result: seen.append((index, result, index in rows)),
        scaling=None,
    )
    assert sorted(index for index, _, _ in seen) == [0, 1, 2]
    assert all(result is results[index] for index, result, _ in seen)
    assert {index: type(result) for index, result, _ in seen} == {0: TrainResult, 1: TrainResult, 2: Diverged}
    assert [after for index, _, after in sorted(seen) if index < 2] == [True, True]  # its epochs were reported before


# ------------------------------------------------------------------------------------------------ the committed results


def test_figures_are_collected_and_misses_are_named() -> None:
    small = TINY | CNN
    names = ["cs776-cnn-1", "iisc-cnn-3", "group7-mlp-1"]
    ok("recipes", "run", *names, "--out", "set", "-q", **small)
    rows = {name: benchmark.collect(make_job(name, Path("set"), small, {})) for name in names}
    assert rows["cs776-cnn-1"]["command"] == "fastmlp extract --recipe cs776-cnn-1 train"
    assert rows["iisc-cnn-3"]["command"] == "fastmlp extract --recipe iisc-cnn-3"
    assert rows["group7-mlp-1"]["command"] == "fastmlp train --recipe group7-mlp-1"
    result = json.loads(Path("set/cs776-cnn-1/result.json").read_text())
    assert rows["cs776-cnn-1"]["mlp"]["test"]["accuracy"] == result["test"]["accuracy"]
    assert rows["cs776-cnn-1"]["mlp"]["test"]["macro_f1"] == result["test"]["macro"]["f1"]
    assert rows["cs776-cnn-1"]["cnn"]["test"]["accuracy"] == result["data"]["extracted"]["cnn"]["test"]["accuracy"]
    assert rows["iisc-cnn-3"]["mlp"] is None
    table = recipes_table({"rows": [row | {"machine": machine()} for row in rows.values()]})
    accuracy = result["test"]["accuracy"]
    assert "| cs776-cnn-1 | MLP on its features | " in table
    assert f"| {100 * accuracy:.2f} ({100 * (accuracy - 0.8868):+.2f}) | " in table


def test_a_miss_is_more_than_half_a_point() -> None:
    def missed(split: str, published: float, ours: float, name: str = "a") -> list[str]:
        figure = Figure(split, "accuracy", published, ours).table()
        return benchmark.missed({"name": name, "cnn": None, "mlp": {"figures": [figure]}})

    assert missed("test", 0.9, 0.896) == missed("train", 0.99, 0.5) == missed("test", 0.9, 0.95, "best-mlp") == []
    assert missed("test", 0.9, 0.894) == ["a: mlp test accuracy 0.8940, published 0.9000"]
    assert missed("validation", 0.9, 0.95) == ["a: mlp validation accuracy 0.9500, published 0.9000"]
    assert missed("test", 0.9, 0.89, "best-mlp") == ["best-mlp: mlp test accuracy 0.8900, published 0.9000"]


def test_figures_over_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TINY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["recipes", "group7-mlp-2", "--seeds", "3", "--folder", "set", "--out", "rows.json"])
    benchmark.main()
    (row,) = json.loads(Path("rows.json").read_text())["rows"]
    runs = [Path("set") / folder / "group7-mlp-2" / "result.json" for folder in ("", "seed-1", "seed-2")]
    results = [json.loads(run.read_text()) for run in runs]
    assert [result["settings"]["seed"] for result in results] == [0, 1, 2]
    values = [result["test"]["accuracy"] for result in results]
    found = row["mlp"]["seeds"]["test"]
    assert found["values"] == values
    assert (found["mean"], found["deviation"]) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert row["mlp"]["test"]["accuracy"] == values[0]
    shown = f"| {100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f} (3 seeds) |"
    assert shown in recipes_table({"rows": [row]})
    for published, misses in ((np.mean(values) + 0.006, 1), (np.mean(values) - 0.006, 1), (np.mean(values) + 0.004, 0)):
        figure = Figure("test", "accuracy", float(published), float(published)).table()
        network = {"figures": [figure], "seeds": row["mlp"]["seeds"]}
        assert len(benchmark.missed({"name": "a", "cnn": None, "mlp": network})) == misses  # the mean counts, not seed 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("result.json", "[]", "set/group7-mlp-2/result.json: no format version"),
        ("config.toml", "a = ", "set/group7-mlp-2/config.toml: not valid TOML"),
        ("config.toml", None, "cannot read set/group7-mlp-2/config.toml"),
    ],
)
def test_damaged_runs_are_named(name: str, text: str | None, message: str) -> None:
    ok("recipes", "run", "group7-mlp-2", "--out", "set", "-q", **TINY)
    file = Path("set/group7-mlp-2") / name
    file.unlink() if text is None else file.write_text(text)
    assert refused(3, "recipes", "run", "group7-mlp-2", "--out", "set", "-q", **TINY).startswith(message)
