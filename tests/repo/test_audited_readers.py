"""Readers and commands run no code from files, start no processes, open no connections, and write only where they are told to.

Each test runs a program of support/audit.py with an audit hook in a child process, and examines the violations that it found.
test_no_code_from_data.py checks the source code.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import no_figures  # noqa: F401 - no figures in the runs that are samples
from support.processes import ROOT
from support.samples import RUN, write_samples

pytestmark = pytest.mark.full

PATIENCE = 300  # seconds


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def audited(program: str, folder: Path, *arguments: str, **variables: str) -> list[tuple[str, str, str]]:
    """Run a program of support/audit.py; return the violations as tuples (name, event, arguments)."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    work = folder / "work"
    work.mkdir()
    command = [sys.executable, "-B", "-m", "support.audit", program, str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": path} | variables
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []
    return [(name, event, given) for name, event, given in json.loads((folder / "found.json").read_text())]


def test_readers_only_read(samples: Path, tmp_path: Path) -> None:
    shutil.copytree(samples, tmp_path / "samples")
    assert audited("readers", tmp_path) == []
    assert contents(tmp_path / "samples") == contents(samples)


def test_each_violation_of_a_reader_is_detected(tmp_path: Path) -> None:
    found = [(name, event) for name, event, _ in audited("violations", tmp_path)]
    names = list(dict.fromkeys(name for name, _ in found))
    assert len(names) == 19
    assert {(name, name) for name in names} <= set(found)


def test_each_violation_of_a_command_is_detected(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    found = [(name, event) for name, event, _ in audited("violations_of_commands", tmp_path)]
    events = ["exec", "pickle.find_class", "pickle.find_class", "subprocess.Popen", "socket.getaddrinfo", "open", "os.remove"]
    assert found == [(event, event) for event in events]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the path of a descriptor is needed")
def test_commands_write_only_to_the_given_folders(samples: Path, tmp_path: Path) -> None:
    shutil.copytree(samples, tmp_path / "samples")
    allowed, home = tmp_path / "allowed", tmp_path / "home"
    for folder in (home, allowed, allowed / "tmp"):
        folder.mkdir()
    small = ["--hidden", "4", "--epochs", "2", "-q"]
    cnn = ["--filters", "2", "--dense", "4", "--epochs", "1", "--device", "cpu"]
    table, images, run = tmp_path / "samples" / "table.csv", tmp_path / "samples" / "images", allowed / "run"
    lines = [
        ["train", "--data", table, *small, "--backend", "numba", "--out", run],
        ["train", "--resume", run, "--epochs", "4", "-q"],
        ["verify", run, "-q"],
        ["train", "--data", images, *RUN, "--out", allowed / "of-images"],
        ["evaluate", run, "--data", table, "--mistakes", allowed / "mistakes.csv"],
        ["predict", run, table, "--out", allowed / "answers.csv"],
        ["predict", allowed / "of-images", images, "--show", allowed / "show.png"],
        ["compare", run, allowed / "of-images", "--out", allowed / "compare.png"],
        ["lr-find", "--data", images, "--hidden", "4", "--steps", "10", "--backend", "numpy", "--out", allowed / "lr.png"],
        ["extract", "--data", tmp_path / "samples" / "arrays.npz", *cnn, "--out", allowed / "features.npz"],
        ["extract", "--data", images, *cnn, "--out", allowed / "new.npz", "train", *RUN, "--out", allowed / "of-features"],
        ["data", "list"],
        ["recipes"],
    ]
    found = audited(
        "commands",
        tmp_path,
        json.dumps([[str(one) for one in line] for line in lines]),
        HOME=str(home),
        XDG_CACHE_HOME=str(home / "cache"),
        TMPDIR=str(allowed / "tmp"),
        TORCHINDUCTOR_CACHE_DIR=str(allowed / "tmp" / "torch"),
        MPLCONFIGDIR=str(allowed / "matplotlib"),
        FASTMLP_CACHE_DIR=str(allowed / "kernels"),
        NUMBA_OPT="0",
    )
    assert found == []
    assert list((allowed / "kernels").glob("*.kernel")), "the cache of the kernels was not used"
    assert list(home.iterdir()) == []
    assert contents(tmp_path / "samples") == contents(samples)
