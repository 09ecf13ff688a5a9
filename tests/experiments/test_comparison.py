"""Tests of `compare_runs`: which runs are compared, their metrics and settings, notes, errors, and the curves."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from support.cli import no_figures, ok  # noqa: F401 - no_figures is a fixture
from support.figures import check_legend_beside_panels, check_no_overlap, draw
from support.files import one_line

from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments import compare_runs
from fastmlp.experiments.comparison import panels_of
from fastmlp.experiments.folder import write_manifest
from fastmlp.experiments.sweeps.stored import expanded, read_entry
from fastmlp.files import read_lines
from fastmlp.reports.comparison import comparison_figure
from fastmlp.reports.style import own_style

FAST = ("--backend", "numpy", "--hidden", "8", "-q")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train runs on the digits (one without a validation split, one with three seeds) and three regressions."""
    folder = tmp_path_factory.mktemp("comparison") / "runs"
    ok("train", *FAST, "--epochs", "3", "--out", folder / "a")
    ok("train", *FAST, "--epochs", "4", "--lr", "0.01", "--out", folder / "b")
    ok("train", *FAST, "--epochs", "3", "--val-fraction", "0", "--out", folder / "without")
    ok("train", *FAST, "--epochs", "3", "--seeds", "3", "--out", folder / "seeds")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    np.savez(folder.parent / "table.npz", x=x, y=x.sum(axis=1))
    regression = ("--data", folder.parent / "table.npz", "--task", "regression", "--epochs", "5")
    ok("train", *FAST, *regression, "--out", folder.parent / "regression" / "r1")
    ok("train", *FAST, *regression, "--lr", "0.05", "--out", folder.parent / "regression" / "r2")
    ok("train", *FAST, *regression, "--loss", "huber", "--out", folder.parent / "huber")
    return folder


def result_of(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def names_in(result: dict[str, Any]) -> list[str]:
    return [run["name"] for run in result["runs"]]


def kill(run: Path, to: Path, *, epochs: int | None = None) -> Path:
    """Copy a run as if it had been killed, after the given number of epochs."""
    shutil.copytree(run, to)
    for name in ("manifest.json", "result.json", "model.safetensors"):
        (to / name).unlink()
    for name in ("metrics.jsonl", "timings.jsonl"):
        lines = (to / name).read_text().splitlines(keepends=True)[:epochs]
        (to / name).write_text("".join(lines))
    return to


# ------------------------------------------------------------------------------------------------ metrics


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_the_metrics_are_those_of_the_results(runs: Path, split: str) -> None:
    found = compare_runs([runs / "a", runs / "b"], split=split)
    assert found["metrics"] == ["accuracy", "loss", "macro_f1"]
    assert names_in(found) == ["a", "b"]
    for run in found["runs"]:
        result = result_of(Path(run["folder"]))
        expected = {"accuracy": result[split]["accuracy"], "loss": result[split]["loss"]}
        assert run["metrics"] == expected | {"macro_f1": result[split]["macro"]["f1"]}
        for name in ("parameters", "best_epoch", "epochs", "seconds", "backend", "stopped"):
            assert run[name] == result[name]
        assert (run["data"], run["network"], run["max_epochs"]) == ("digits", "784x8x10", result["settings"]["epochs"])
        assert (run["std"], run["seeds"], run["finished"]) == (None, None, True)


def test_metrics_of_a_regression(runs: Path) -> None:
    found = compare_runs(runs.parent / "regression")
    assert found["metrics"] == ["r2", "mae", "rmse", "loss"]
    for run in found["runs"]:
        test = result_of(Path(run["folder"]))["test"]
        assert run["metrics"] == {"r2": test["r2"], "mae": test["mae"], "rmse": math.sqrt(test["mse"]), "loss": test["loss"]}
    assert found["best"] == {"r2": ["r2"], "mae": ["r2"], "rmse": ["r2"], "loss": ["r2"]}


def test_several_seeds_are_one_row_with_deviations(runs: Path) -> None:
    (run,) = compare_runs([runs / "seeds"])["runs"]
    summary = json.loads((runs / "seeds" / "seeds.json").read_text())
    for name in ("accuracy", "loss"):
        assert (run["metrics"][name], run["std"][name]) == pytest.approx(tuple(summary["test"][name].values()))
    results = [result_of(runs / "seeds" / f"seed-{seed}") for seed in range(3)]
    f1 = [result["test"]["macro"]["f1"] for result in results]
    assert (run["metrics"]["macro_f1"], run["std"]["macro_f1"]) == pytest.approx((np.mean(f1), np.std(f1, ddof=1)))
    assert run["seconds"] == pytest.approx(np.mean([result["seconds"] for result in results]))
    assert (run["seeds"], run["epochs"], run["finished"], run["stopped"]) == ([0, 1, 2], 3.0, True, None)


def test_the_best_values_and_the_order(runs: Path) -> None:
    found = compare_runs([runs / "a", runs / "b"])
    assert found["best"] == {"accuracy": ["b"], "loss": ["b"], "macro_f1": ["b"]}
    assert found["runs"][0]["metrics"]["accuracy"] < found["runs"][1]["metrics"]["accuracy"]
    for name in ("accuracy", "Loss", "macro-F1"):
        assert names_in(compare_runs([runs / "a", runs / "b"], sort=name)) == ["b", "a"]
    assert names_in(compare_runs([runs / "b", runs / "a"])) == ["b", "a"]
    assert compare_runs([runs / "b", runs / "a"], sort="loss")["settings"]["lr"] == [0.01, 0.001]
    assert compare_runs([runs / "a"])["best"] == {"accuracy": [], "loss": [], "macro_f1": []}


def test_equal_values_are_all_the_best(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "b", tmp_path / "copy")
    found = compare_runs([runs / "a", runs / "b", tmp_path / "copy"])
    assert found["best"]["accuracy"] == ["b", "copy"]


def test_runs_without_the_metric_are_sorted_last(runs: Path) -> None:
    for metric in ("accuracy", "loss"):
        found = compare_runs([runs / "without", runs / "a", runs / "b"], split="validation", sort=metric)
        assert names_in(found) == ["b", "a", "without"]
    assert found["runs"][2]["metrics"] == {"accuracy": None, "loss": None, "macro_f1": None}


def test_classification_and_regression_can_be_mixed(runs: Path) -> None:
    found = compare_runs([runs / "a", runs.parent / "regression", runs / "b"])
    assert found["metrics"] == ["accuracy", "loss", "macro_f1", "r2", "mae", "rmse"]
    assert [run["metrics"]["r2"] is None for run in found["runs"]] == [True, False, False, True]
    assert [run["metrics"]["accuracy"] is None for run in found["runs"]] == [False, True, True, False]
    assert found["notes"] == ["the runs have different tasks (classification, regression), with different metrics"]
    assert (found["best"]["accuracy"], found["best"]["r2"], found["best"]["loss"]) == (["b"], ["r2"], [])


def test_losses_of_different_loss_functions_are_not_compared(runs: Path) -> None:
    found = compare_runs([runs.parent / "regression" / "r1", runs.parent / "huber"])
    assert found["notes"] == ["the runs have different values of loss; their losses are not comparable"]
    assert found["best"]["loss"] == []
    assert len(found["best"]["r2"]) == 1


def test_different_data_are_noted(runs: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.eye(20), y=np.arange(20) % 2)
    ok("train", *FAST, "--epochs", "1", "--data", tmp_path / "other.npz", "--out", tmp_path / "run")
    found = compare_runs([runs / "a", tmp_path / "run"])
    assert found["notes"] == ["the runs have different data (digits, other); their metrics are not comparable"]
    assert found["best"]["accuracy"] == []
    np.savez(tmp_path / "other.npz", x=np.eye(20), y=np.arange(20) % 4 // 2)
    ok("train", *FAST, "--epochs", "1", "--data", tmp_path / "other.npz", "--out", tmp_path / "again")
    found = compare_runs([tmp_path / "run", tmp_path / "again"])
    assert found["notes"] == ["the runs have different data with the name other; their metrics are not comparable"]


# ------------------------------------------------------------------------------------------------ settings


def test_only_settings_that_differ_are_listed(runs: Path) -> None:
    assert compare_runs([runs / "a", runs / "b"])["settings"] == {"epochs": [3, 4], "lr": [0.001, 0.01]}
    assert compare_runs([runs / "a", runs / "b"])["notes"] == []
    assert compare_runs([runs / "a"])["settings"] == {}


def test_settings_of_several_seeds(runs: Path) -> None:
    """The seed of the splits is None for the run, and 0 for the seeds, which means the same."""
    found = compare_runs([runs / "seeds", runs / "a"])
    assert found["settings"] == {"seed": [[0, 1, 2], 0]}
    assert found["notes"] == []


def test_different_splits_are_noted(runs: Path, tmp_path: Path) -> None:
    ok("train", "--backend", "numpy", "-q", "--epochs", "3", "--seed", "1", "--hidden", "none", "--out", tmp_path / "seed")
    found = compare_runs([runs / "a", tmp_path / "seed"])
    assert found["settings"] == {"seed": [0, 1], "hidden": [[8], []]}
    assert found["notes"] == ["the runs have different splits, so their metrics may have been computed on different rows"]


# ------------------------------------------------------------------------------------------------ which runs


def test_a_folder_of_runs_is_replaced_with_its_runs(runs: Path) -> None:
    assert names_in(compare_runs(runs)) == ["a", "b", "seeds", "without"]
    assert names_in(compare_runs([runs.parent / "regression", runs / "a"])) == ["r1", "r2", "a"]


def test_runs_in_a_folder_are_in_the_order_of_their_numbers(runs: Path, tmp_path: Path) -> None:
    for name in ("run-10", "run-2", "run-x"):
        shutil.copytree(runs / "a", tmp_path / name)
    (tmp_path / "latest").symlink_to(tmp_path / "run-2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert [path.name for path in expanded([tmp_path])] == ["run-2", "run-10", "run-x"]


def test_seeds_without_a_summary_are_single_runs(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "seeds", tmp_path / "runs" / "seeds")
    (tmp_path / "runs" / "seeds" / "seeds.json").unlink()
    (tmp_path / "runs" / "seeds" / "seed-9").mkdir()  # killed before its settings were written
    for path in (tmp_path / "runs", tmp_path / "runs" / "seeds"):
        assert names_in(compare_runs(path)) == ["seed-0", "seed-1", "seed-2"]


def test_runs_of_the_same_name_are_told_apart_by_their_paths(runs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(runs / "a", tmp_path / "x" / "a")
    shutil.copytree(runs / "a", tmp_path / "y" / "a")
    monkeypatch.chdir(tmp_path)
    assert names_in(compare_runs(["x/a", "y/a", runs / "b"])) == ["x/a", "y/a", "b"]
    monkeypatch.chdir(tmp_path / "x" / "a")
    assert names_in(compare_runs(".")) == ["a"]


# ------------------------------------------------------------------------------------------------ unfinished runs


def test_a_killed_run_has_its_state_so_far(runs: Path, tmp_path: Path) -> None:
    killed = kill(runs / "b", tmp_path / "killed", epochs=2)
    found = compare_runs([runs / "a", killed])
    one = found["runs"][1]
    assert found["notes"] == [f"{killed} has not finished: 2 of 4 epochs completed; it has no metrics of the test split"]
    assert one["metrics"] == {"accuracy": None, "loss": None, "macro_f1": None}
    assert (one["finished"], one["stopped"], one["epochs"], one["best_epoch"], one["max_epochs"]) == (False, None, 2, 2, 4)
    assert (one["network"], one["parameters"], one["backend"]) == ("784x8x10", result_of(runs / "b")["parameters"], "numpy")
    rows = read_lines(killed / "timings.jsonl")
    assert one["seconds"] == pytest.approx(sum(row["seconds"] + row["eval_seconds"] for row in rows))
    assert found["best"]["accuracy"] == []


def test_the_validation_metrics_of_a_killed_run_are_those_of_its_best_epoch(runs: Path, tmp_path: Path) -> None:
    killed = kill(runs / "b", tmp_path / "killed")
    found = compare_runs([runs / "b", killed], split="validation")
    whole, part = found["runs"]
    assert part["metrics"] == whole["metrics"] | {"macro_f1": None}
    assert part["best_epoch"] == whole["best_epoch"]
    assert found["notes"] == [f"{killed} has not finished: 4 of 4 epochs completed"]
    assert found["best"]["accuracy"] == ["b", "killed"]


@pytest.mark.parametrize(
    "options", [["--monitor", "accuracy"], ["--min-delta", "0.1"], ["--val-fraction", "0"], ["--no-restore-best"], []]
)
def test_the_best_epoch_of_a_killed_run_is_that_of_early_stopping(options: list[str], tmp_path: Path) -> None:
    ok("train", *FAST, "--epochs", "25", "--lr", "0.05", "--patience", "0", *options, "--out", tmp_path / "run")
    (run,) = compare_runs(kill(tmp_path / "run", tmp_path / "killed"))["runs"]
    assert run["best_epoch"] == result_of(tmp_path / "run")["best_epoch"]
    assert (run["best_epoch"] < 25) == (options[:1] not in (["--val-fraction"], ["--no-restore-best"]))


def test_a_run_that_keeps_the_last_weights(tmp_path: Path) -> None:
    """Its weights, its metrics and its texts are those of the last epoch, and `verify` repeats it."""
    flags = (*FAST, "--epochs", "25", "--lr", "0.05", "--patience", "3", "--checkpoint-seconds", "0")
    done = ok("train", *flags, "--no-restore-best", "--out", tmp_path / "last")
    ok("train", *flags, "--out", tmp_path / "best")
    best, last = (result_of(tmp_path / name) for name in ("best", "last"))
    assert (last["stopped"], last["epochs"], best["best_epoch"]) == ("patience", best["epochs"], best["epochs"] - 3)
    assert last["best_epoch"] == last["epochs"]
    rows = read_lines(tmp_path / "last" / "metrics.jsonl")
    assert (rows[-1]["val_loss"], rows[-4]["val_loss"]) == (last["validation"]["loss"], best["validation"]["loss"])
    assert f"weights of epoch    {last['epochs']} of {last['epochs']}\n" in done.stdout
    result = json.loads(ok("verify", tmp_path / "last", "--json").stdout)
    assert result["same"] is True
    assert legend(figure_of(tmp_path / "last"))[-1] == "last"
    assert legend(figure_of(tmp_path / "best"))[-1] == "best epoch"


def test_epochs_with_a_loss_that_is_not_finite_are_not_the_best(runs: Path, tmp_path: Path) -> None:
    killed = kill(runs / "b", tmp_path / "killed")
    rows = read_lines(killed / "metrics.jsonl")
    rows[-1] |= {"val_loss": None, "val_accuracy": None}
    (killed / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = compare_runs(killed, split="validation")["runs"]
    assert (run["best_epoch"], run["metrics"]["loss"]) == (3, rows[2]["val_loss"])


def test_a_killed_regression(runs: Path, tmp_path: Path) -> None:
    killed = kill(runs.parent / "regression" / "r1", tmp_path / "killed")
    (run,) = compare_runs(killed, split="validation")["runs"]
    loss = result_of(runs.parent / "regression" / "r1")["validation"]["loss"]
    assert run["metrics"] == {"r2": None, "mae": None, "rmse": None, "loss": loss}
    assert (run["network"], run["parameters"]) == (None, None)


def test_a_run_killed_in_its_first_epoch(runs: Path, tmp_path: Path) -> None:
    killed = kill(runs / "a", tmp_path / "killed")
    for name in ("metrics.jsonl", "timings.jsonl"):
        (killed / name).unlink()
    found = compare_runs(killed, split="validation")
    (run,) = found["runs"]
    assert (run["epochs"], run["best_epoch"], run["seconds"], run["metrics"]["loss"]) == (0, None, None, None)
    assert "0 of 3 epochs completed; it has no metrics of the validation split" in found["notes"][0]


def test_seeds_of_which_one_has_not_finished(runs: Path, tmp_path: Path) -> None:
    """Seeds are resumed with the seeds.json of the earlier runs in place."""
    shutil.copytree(runs / "seeds", tmp_path / "seeds")
    shutil.rmtree(tmp_path / "seeds" / "seed-1")
    killed = kill(runs / "seeds" / "seed-1", tmp_path / "seeds" / "seed-1", epochs=1)
    found = compare_runs(tmp_path / "seeds")
    (run,) = found["runs"]
    assert (run["finished"], run["metrics"]["accuracy"], run["epochs"]) == (False, None, pytest.approx(7 / 3))
    assert found["notes"] == [f"{killed} has not finished: 1 of 3 epochs completed; it has no metrics of the test split"]
    (killed / "timings.jsonl").unlink()
    assert compare_runs(tmp_path / "seeds")["runs"][0]["seconds"] is None


def test_a_run_that_ended_early_is_noted(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "a", folder)
    (folder / "result.json").write_text(json.dumps(result_of(folder) | {"stopped": "interrupted", "epochs": 2, "train": None}))
    write_manifest(folder)
    assert compare_runs(folder)["notes"] == [f"{folder} ended early (interrupted), after 2 of 3 epochs"]
    assert compare_runs(folder, split="train")["runs"][0]["metrics"]["accuracy"] is None


# ------------------------------------------------------------------------------------------------ errors


def test_invalid_options(runs: Path, tmp_path: Path) -> None:
    with one_line(ConfigError, "there are no runs to compare; give at least one run folder"):
        compare_runs([])
    with one_line(ConfigError, "split must be one of test, validation, train, not 'tset'"):
        compare_runs(runs, split="tset")
    with one_line(ConfigError, "sort: unknown metric 'acuracy'; did you mean 'accuracy'?"):
        compare_runs(runs, sort="acuracy")
    with one_line(ConfigError, "no run has the metric r2; metrics of these runs: accuracy, loss, macro_f1"):
        compare_runs(runs / "a", sort="r2")
    with one_line(ConfigError, "no run has the metric loss; metrics of these runs: none"):
        compare_runs(runs / "without", sort="loss", split="validation")
    for name in ("curves.pdf", "config.toml", "png"):
        with one_line(ConfigError, f"out: the name {str(tmp_path / name)!r} must end with .png"):
            compare_runs(runs, out=tmp_path / name)
    with one_line(DataError, f"cannot write {tmp_path / 'none' / 'a.png'}", "whose folder must exist"):
        compare_runs(runs, out=tmp_path / "none" / "a.png")
    assert [*tmp_path.iterdir()] == []


def test_a_run_that_is_given_twice(runs: Path) -> None:
    with one_line(ConfigError, f"the run {runs / 'a'} is given twice; give each run once"):
        compare_runs([runs / "a", runs / "b", runs / "a"])
    again = runs / ".." / "runs" / "a"
    with one_line(ConfigError, f"the run {again} is given twice, also as {runs / 'a'}; give each run once"):
        compare_runs([runs, again])


def test_paths_without_a_run(runs: Path, tmp_path: Path) -> None:
    with one_line(DataError, f"{tmp_path / 'none'}: no such folder; check the path"):
        compare_runs([runs / "a", tmp_path / "none"])
    with one_line(DataError, f"{tmp_path} is not a run folder, since it has no config.toml; check the path"):
        compare_runs(tmp_path)
    for inner in (runs / "a" / "result.json", runs / "a" / "checkpoints"):
        with one_line(DataError, f"{inner} is part of the run folder {runs / 'a'}; give the path of the run folder"):
            compare_runs(inner)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", "{}", "result.json differs from its SHA-256 in manifest.json"),
        ("result.json", None, "cannot read {}/result.json"),
        ("config.toml", "lr = 1", "config.toml differs from its SHA-256"),
        ("manifest.json", "{", "manifest.json: not valid JSON"),
        ("metrics.jsonl", None, "cannot read {}/metrics.jsonl"),
        ("metrics.jsonl", '{"epoch": 1', "{}/metrics.jsonl: damaged"),
        ("metrics.jsonl", '{"epoch": 1}\n', "{}/metrics.jsonl: damaged (Object missing required field `loss`"),
        ("metrics.jsonl", '{"epoch":2,"loss":1,"accuracy":1,"val_loss":1,"val_accuracy":1}\n', "the epochs are not 1 to 1"),
    ],
)
def test_damaged_files_of_a_finished_run_are_named(
    name: str, content: str | None, message: str, runs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "a", folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with one_line(DataError, message.format(folder), str(folder / name)):
        compare_runs([runs / "b", folder])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.toml", "lr = [", "config.toml: not valid TOML"),
        ("config.toml", "lrr = 1", "{}/config.toml: invalid settings (unknown key 'lrr'"),
        ("data.json", '{"format_version": 1}', "{}/data.json: damaged (Object missing required field `name`)"),
        ("data.json", '{"format_version": 9}', "{}/data.json"),
        ("timings.jsonl", '{"epoch": 1}\n', "{}/timings.jsonl: damaged (Object missing required field `seconds`"),
    ],
)
def test_damaged_files_of_a_killed_run_are_named(name: str, content: str, message: str, runs: Path, tmp_path: Path) -> None:
    folder = kill(runs / "a", tmp_path / "run")
    (folder / name).write_text(content)
    with one_line(DataError, message.format(folder, folder), str(folder / name)):
        compare_runs(folder)


@pytest.mark.parametrize("runs_entry", ["[]", '[{"seed": "x"}]', "{}", "[{}]", "null"])
def test_damaged_seeds(runs_entry: str, runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seeds"
    shutil.copytree(runs / "seeds", folder)
    (folder / "seeds.json").write_text(f'{{"format_version": 1, "runs": {runs_entry}}}')
    with one_line(DataError, f"{folder / 'seeds.json'}: damaged ("):
        compare_runs(folder)
    shutil.copy(runs / "seeds" / "seeds.json", folder)
    shutil.rmtree(folder / "seed-1")
    with one_line(DataError, f"{folder / 'seed-1'} is not a run folder"):
        compare_runs(folder)


# ------------------------------------------------------------------------------------------------ curves


@pytest.fixture
def in_own_style() -> Iterator[None]:
    with own_style():
        yield


def figure_of(*paths: Path) -> Figure:
    entries = [read_entry(path, "test") for path in paths]
    return draw(comparison_figure(panels_of(entries, [path.name for path in paths]), "runs"))


def lines_of(figure: Figure, panel: int) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[panel].get_lines() if len(line.get_xdata()) > 1}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.usefixtures("in_own_style")
def test_the_curves_are_those_of_the_validation_split(runs: Path) -> None:
    figure = figure_of(runs / "a", runs / "b")
    assert [axes.get_ylabel() for axes in figure.axes] == ["validation accuracy", "validation loss"]
    for panel, key in enumerate(("val_accuracy", "val_loss")):
        for name, line in lines_of(figure, panel).items():
            assert line.get_ydata().tolist() == [row[key] for row in read_lines(runs / name / "metrics.jsonl")]
    assert legend(figure) == ["a", "b", "best epoch"]
    check_no_overlap(figure)
    check_legend_beside_panels(figure)


@pytest.mark.usefixtures("in_own_style")
def test_the_curves_of_runs_without_validation_are_those_of_the_training(runs: Path) -> None:
    rows = read_lines(runs / "without" / "metrics.jsonl")
    figure = figure_of(runs / "without")
    assert [axes.get_ylabel() for axes in figure.axes] == ["training accuracy", "training loss"]
    assert lines_of(figure, 1)["without"].get_ydata().tolist() == [row["loss"] for row in rows]
    figure = figure_of(runs / "a", runs / "without")
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "loss"]
    assert legend(figure) == ["a", "without (training)", "best epoch"]
    assert lines_of(figure, 0)["without (training)"].get_ydata().tolist() == [row["accuracy"] for row in rows]


@pytest.mark.usefixtures("in_own_style")
def test_several_seeds_are_a_mean_with_a_band(runs: Path) -> None:
    figure = figure_of(runs / "a", runs / "seeds")
    histories = [read_lines(runs / "seeds" / f"seed-{seed}" / "metrics.jsonl") for seed in range(3)]
    values = np.array([[row["val_loss"] for row in history] for history in histories])
    assert lines_of(figure, 1)["seeds"].get_ydata() == pytest.approx(values.mean(axis=0))
    (band,) = figure.axes[1].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx((values.mean(axis=0) + values.std(axis=0, ddof=1)).max())
    assert legend(figure) == ["a", "seeds", "± std. dev.", "best epoch"]
    assert len([line for line in figure.axes[1].get_lines() if len(line.get_xdata()) == 1]) == 1  # the best epoch of a


@pytest.mark.usefixtures("in_own_style")
def test_a_regression_has_no_accuracy(runs: Path, tmp_path: Path) -> None:
    regression = runs.parent / "regression" / "r1"
    assert [axes.get_ylabel() for axes in figure_of(regression).axes] == ["validation loss"]
    figure = figure_of(regression, runs / "a", kill(runs / "b", tmp_path / "killed", epochs=0))
    assert [[*lines_of(figure, panel)] for panel in (0, 1)] == [["a"], ["r1", "a"]]
    assert legend(figure) == ["r1", "a", "best epoch"]
    colors = [lines_of(figure, panel)["a"].get_color() for panel in (0, 1)]
    assert colors[0] == colors[1] != lines_of(figure, 1)["r1"].get_color()


@pytest.mark.usefixtures("in_own_style")
def test_names_in_the_legend(runs: Path, tmp_path: Path) -> None:
    long = "a" * 60
    names = ["_hidden", "$x$", f"{long}1", f"{long}2", "best epoch"]
    for name in names:
        shutil.copytree(runs / "a", tmp_path / name)
    figure = figure_of(*(tmp_path / name for name in names))
    assert legend(figure) == [*names, "best epoch"]
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())
    assert all(axes.get_window_extent().width > 3.5 * figure.dpi for axes in figure.axes)  # panels beside long names
    check_no_overlap(figure)
    check_legend_beside_panels(figure)
    assert legend(figure_of(tmp_path / f"{long}1"))[0] == "a" * 39 + "…"


@pytest.mark.usefixtures("in_own_style")
@pytest.mark.parametrize("count", [2, 12, 40])
def test_many_runs_have_different_looks_and_a_legend_that_fits(count: int, runs: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"run-{number}" for number in range(count)]
    for path in paths:
        shutil.copytree(runs / "a", path, ignore=shutil.ignore_patterns("checkpoints", "model.safetensors"))
    figure = figure_of(*paths)
    looks = {(line.get_color(), str(line._dash_pattern)) for line in lines_of(figure, 0).values()}
    assert len(looks) == min(count, 36)
    box = figure.legends[0].get_window_extent()
    assert 0 < box.y0 < box.y1 < figure.bbox.height
    check_legend_beside_panels(figure)


def test_the_figure_is_written_and_replaced(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "curves.PNG"
    out.write_text("old")
    assert compare_runs(runs, out=out)["out"] == str(out)
    assert out.read_bytes()[1:4] == b"PNG"
    assert compare_runs(runs)["out"] is None


def test_without_an_epoch_there_are_no_curves(runs: Path, tmp_path: Path) -> None:
    killed = kill(runs / "a", tmp_path / "killed", epochs=0)
    with one_line(ConfigError, "out: no run has completed an epoch, so there are no curves; leave it out"):
        compare_runs(killed, out=tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
