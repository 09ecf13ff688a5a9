"""The quick tier is held to what it promises: each thing that a test without the marker "full" must not do is refused."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from typing import Any

import pytest
from support.cuda_simulator import Grid

REFUSED = pytest.fail.Exception
# Imported here, as test modules do, since what a test first imports itself is not yet there to be refused.
TRAINING = importlib.import_module("fastmlp.cnn.training") if importlib.util.find_spec("torch") else None


def test_a_quick_test_starts_no_python() -> None:
    for start in (subprocess.run, subprocess.Popen, subprocess.check_output):
        with pytest.raises(REFUSED, match="mark it full"):
            start([sys.executable, "-c", ""])


def test_a_quick_test_may_import_a_library_that_asks_the_system() -> None:
    """As ctypes does, which runs ldconfig."""
    assert subprocess.run(["true"], check=False).returncode == 0


def test_a_quick_test_simulates_no_gpu() -> None:
    nothing: Any = None
    with pytest.raises(REFUSED, match="mark it full"):
        Grid.run(nothing)


@pytest.mark.skipif(TRAINING is None, reason="torch is not installed")
def test_a_quick_test_trains_no_convolutional_network() -> None:
    with pytest.raises(REFUSED, match="mark it full"):
        TRAINING.Trainer.run(None)


@pytest.mark.full
def test_a_full_test_may() -> None:
    assert subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=False).returncode == 3
