"""Tests of environment variables with folders that cannot be used, in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

from fastmlp.experiments.config.sources import VARIABLES

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits on names"),
    pytest.mark.full,
]
PROGRAM = [sys.executable, "-c", "from fastmlp.commands import main; main()"]
TRAIN = ["train", "--data", "digits", "--hidden", "4", "--epochs", "1", "--backend", "numba", "-q", "--out"]
LONG = "x" * 300  # longer than the name of a file can be


def run(*arguments: str | Path, **variables: str) -> tuple[int, str]:
    """Run the program in a new process, and return its exit code and stderr."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES.values()}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command, environment = [*PROGRAM, *map(str, arguments)], kept | {"PYTHONPATH": path} | variables
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_kernel_cache_with_a_name_that_is_too_long(tmp_path: Path) -> None:
    code, stderr = run(*TRAIN, tmp_path / "run", FASTMLP_CACHE_DIR=str(tmp_path / LONG))
    assert code == 0
    assert stderr.startswith("fastmlp: warning: compiled kernels are not cached on disk")
    assert len(stderr.splitlines()) == 1
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("variable", ["MPLCONFIGDIR", "XDG_CACHE_HOME"])
def test_a_folder_of_matplotlib_that_is_a_loop_of_links(variable: str, tmp_path: Path) -> None:
    """Some versions of Matplotlib cannot be imported then. This is noticed before the training."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    folders = {"MPLCONFIGDIR": "", variable: str(loop)}
    code, stderr = run(*TRAIN, tmp_path / "run", **folders)
    assert "Traceback" not in stderr
    if code == 0:
        assert (tmp_path / "run" / "result.json").exists()
        return
    assert code == 2
    assert stderr.splitlines()[-1].startswith("fastmlp: error: matplotlib: cannot be imported (")
    assert "; set the environment variable MPLCONFIGDIR to a folder that can be written" in stderr
    assert not (tmp_path / "run").exists()


def test_settings_of_matplotlib_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"\xff")
    code, stderr = run(*TRAIN, tmp_path / "run", MATPLOTLIBRC=str(tmp_path))
    assert code == 2
    assert stderr.splitlines()[-1].startswith("fastmlp: error: matplotlib: cannot be imported (")
    assert "matplotlibrc" in stderr.splitlines()[-1]
