"""Tests of the path RUNS/latest, which is replaced with the run that was started last, as an argument of all commands."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.cli import FAST, forget_settings, no_figures, ok, refused  # noqa: F401 - a fixture

from fastmlp.errors import DataError
from fastmlp.experiments.folder import resolve_run


def test_every_command_accepts_it_and_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name, time in (("a", 30), ("b", 20)):
        ok("train", *FAST, "--out", f"runs/{name}", "-q")
        os.utime(f"runs/{name}/config.toml", (time, time))
    note = f"runs/latest: {Path('runs/a')}\n"
    np.savez("rows.npz", x=np.zeros((2, 784), np.uint8))
    assert ok("predict", "runs/latest", "rows.npz").stderr == note
    assert ok("evaluate", "runs/latest").stderr == note
    compared = ok("compare", "runs/b", "runs/latest")
    assert compared.stderr == note
    assert [line.split()[0] for line in compared.stdout.splitlines()[1:3]] == ["b", "a"]
    assert ok("predict", "runs/latest/model.safetensors", "rows.npz").stdout == ok("predict", "runs/a", "rows.npz").stdout
    assert ok("verify", "runs/latest", "-q").stdout.startswith(f"{Path('runs/a')}: epochs 1 to 3 were reproduced")
    result = ok("train", "--resume", "runs/latest", "--epochs", "4")
    assert result.stderr.startswith(note)
    assert len(Path("runs/a/metrics.jsonl").read_text().splitlines()) == 4
    assert len(Path("runs/b/metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_that_is_training_is_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a"):
        ok("train", *FAST, "--out", f"runs/{name}", "-q")
    os.utime("runs/b/config.toml", (0, 0))
    os.utime("runs/a/config.toml", (1, 1))
    Path("runs/a/manifest.json").unlink()
    assert "runs/a: the run has not finished" in ok("evaluate", "runs/latest").stderr.replace("\\", "/")


def test_without_a_run_the_commands_exit_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for command in (
        ("predict", "runs/latest", "a.png"),
        ("evaluate", "runs/latest"),
        ("compare", "runs/latest"),
        ("train", "--resume", "runs/latest"),
    ):
        text = refused(3, *command)
        assert text == f"{Path('runs/latest')}: there is no run in runs; give the path of a run, or train one"


def touch_run(folder: Path, time: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").touch()
    os.utime(folder / "config.toml", (time, time))
    return folder


def test_resolution_of_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch_run(tmp_path / "b", 10)
    last = touch_run(tmp_path / "a", 20)
    (tmp_path / "z").mkdir()  # not a run
    assert resolve_run(tmp_path / "latest") == last
    assert resolve_run(tmp_path / "b") == tmp_path / "b"
    assert resolve_run(str(tmp_path / "none")) == tmp_path / "none"
    assert resolve_run(tmp_path / "latest" / "models" / "a.safetensors") == last / "models" / "a.safetensors"
    touch_run(tmp_path / "seeds" / "seed-0", 15)
    assert resolve_run(tmp_path / "latest") == last
    touch_run(tmp_path / "seeds" / "seed-1", 25)
    assert resolve_run(tmp_path / "latest") == tmp_path / "seeds"
    monkeypatch.chdir(tmp_path)
    assert resolve_run("latest") == Path("seeds")
    own = touch_run(tmp_path / "latest", 0)
    assert resolve_run(own) == own
    assert resolve_run(own / "model.safetensors") == own / "model.safetensors"


def test_without_runs_there_is_no_latest(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="there is no run in"):
            resolve_run(folder / "latest")
        with pytest.raises(DataError, match="latest: there is no run in"):
            resolve_run(folder / "latest" / "model.safetensors")
