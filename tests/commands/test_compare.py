"""Tests of `fastmlp compare`: formats, streams, options and their environment variables, and errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from support.cli import FAST, call, forget_settings, no_figures, ok, override, refused  # noqa: F401 - no_figures is a fixture

from fastmlp.experiments import compare_runs


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run every test in its own folder, without settings from environment variables."""
    forget_settings(monkeypatch)
    for name in ("FORMAT", "SORT", "SPLIT"):
        monkeypatch.delenv(f"FASTMLP_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "runs"
    ok("train", *FAST, "--out", folder / "a|b", "-q")
    ok("train", *override(FAST, "--lr", "0.01"), "--out", folder / "c_d", "-q")
    return folder


def test_a_table_and_the_settings_that_differ(runs: Path) -> None:
    done = ok("compare", runs)
    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[0] == "run"
    assert [line.split()[0] for line in lines[1:3]] == ["a|b", "c_d"]
    assert [line.count("*") for line in lines[1:3]] == [0, 3]
    assert lines[3:] == ["* best value", "", "setting  a|b    c_d", "lr       0.001  0.01"]
    assert done.stderr == ""


def test_json_is_one_object_in_both_spellings(runs: Path) -> None:
    expected = compare_runs(runs)
    for arguments in (["--json"], ["--format", "json"], ["--json", "--format", "json"]):
        assert json.loads(ok("compare", runs, *arguments).stdout) == expected
    assert json.loads(ok("compare", runs, FASTMLP_JSON="1").stdout) == expected
    assert json.loads(ok("compare", runs, FASTMLP_FORMAT="json").stdout) == expected


def test_flags_take_precedence_over_variables(runs: Path) -> None:
    text = ok("compare", runs, "--format", "csv").stdout
    assert ok("compare", runs, "--format", "csv", FASTMLP_JSON="1").stdout == text
    assert ok("compare", runs, FASTMLP_FORMAT="csv").stdout == text
    assert json.loads(ok("compare", runs, "--json", FASTMLP_FORMAT="csv").stdout) == compare_runs(runs)
    assert "val accuracy" in ok("compare", runs, FASTMLP_SPLIT="validation").stdout
    assert "train accuracy" in ok("compare", runs, "--split", "train", FASTMLP_SPLIT="validation").stdout
    assert ok("compare", runs, FASTMLP_SORT="loss").stdout == ok("compare", runs, "--sort", "loss").stdout


def test_the_other_formats(runs: Path) -> None:
    assert ok("compare", runs, "--format", "markdown").stdout.splitlines()[2].startswith(r"| a\|b | digits   | 784x16x10 | ")
    assert r"c\_d & digits & 784x16x10 & 12,730 & \textbf{" in ok("compare", runs, "--format", "latex").stdout
    rows = list(csv.DictReader(ok("compare", runs, "--format", "csv", "--sort", "accuracy").stdout.splitlines()))
    assert [(row["run"], row["settings.lr"]) for row in rows] == [("c_d", "0.01"), ("a|b", "0.001")]


def test_the_curves_are_written_only_with_out(runs: Path, tmp_path: Path) -> None:
    ok("compare", runs)
    assert [*tmp_path.iterdir()] == []
    done = ok("compare", runs, "--out", "curves.png")
    assert done.stderr == "curves: curves.png\n"
    assert done.stdout == ok("compare", runs).stdout
    assert Path("curves.png").read_bytes()[1:4] == b"PNG"
    assert ok("compare", runs, "--out", "curves.png", "-q").stderr == ""


def test_notes_are_on_stderr(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "c_d", tmp_path / "killed")
    for name in ("manifest.json", "result.json"):
        (tmp_path / "killed" / name).unlink()
    done = ok("compare", runs / "a|b", "killed")
    assert done.stderr == "killed has not finished: 3 of 3 epochs completed; it has no metrics of the test split\n"
    assert "  3 of 3  " in done.stdout
    assert ok("compare", runs / "a|b", "killed", "-q").stderr == ""


def test_refusals(runs: Path, tmp_path: Path) -> None:
    run = runs / "c_d"
    assert refused(2, "compare", run, runs) == f"the run {run} is given twice; give each run once"
    assert refused(3, "compare", run, "none") == "none: no such folder; check the path"
    assert refused(2, "compare", run, "--out", "a.pdf").endswith("the name 'a.pdf' must end with .png [--out]")
    assert refused(2, "compare", run, "--sort", "acuracy").endswith("r2, mae, rmse [--sort]")
    assert refused(2, "compare", run, "--sort", "r2").endswith("accuracy, loss, macro_f1 [--sort, --split]")
    for style in ("csv", "text"):
        line = refused(2, "compare", run, "--json", "--format", style)
        assert line == f"json and format {style} exclude each other; give only one [--json, --format]"
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text("{}")
    assert refused(3, "compare", runs, "run").startswith("run/result.json differs from its SHA-256 in manifest.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("arguments", "named"), [([], "RUN..."), (["a", "--split", "all"], "'all'"), (["a", "--format", "html"], "'html'")]
)
def test_usage_errors(arguments: list[str], named: str) -> None:
    result = call("compare", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert named in result.stderr.splitlines()[-1]
