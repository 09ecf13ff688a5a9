"""A user's modules named cli and cnn, in the folder of a script, do not shadow modules of fastmlp."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.full  # starts processes, which is slow

THEIRS = "raise SystemExit('a module of the user ran')\n"


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """Create a folder with user modules named cli and cnn."""
    (tmp_path / "cli.py").write_text(THEIRS)
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "__init__.py").write_text(THEIRS)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`, which is also the first entry of the module search path."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_the_modules_would_be_found(beside: Path) -> None:
    for name in ("cli", "cnn"):
        done = run(beside, "-c", f"import {name}")
        assert (done.returncode, done.stderr) == (1, "a module of the user ran\n")


def test_the_program_is_ours(beside: Path) -> None:
    done = run(beside, "-m", "fastmlp", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fastmlp ")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_extractor_is_ours(beside: Path) -> None:
    done = run(beside, "-c", "from fastmlp.commands.common.toolkit import extraction_tools; print(extraction_tools().__name__)")
    assert (done.returncode, done.stdout) == (0, "fastmlp.cnn.toolkit\n"), done.stderr


def test_the_script_of_the_checkout_runs_the_program() -> None:
    done = run(ROOT, str(ROOT / "cli.py"), "--version")
    assert done.stdout == run(ROOT, "-m", "fastmlp", "--version").stdout
    assert done.returncode == 0
