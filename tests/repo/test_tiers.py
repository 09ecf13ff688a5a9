"""A test without the marker "full" fails if it starts a Python process, simulates a GPU or trains a CNN."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from typing import Any

import pytest
from support.cuda_simulator import Grid

FAILED = pytest.fail.Exception
# The module is imported here because the fixture patches only modules that are imported before the test starts.
TRAINING = importlib.import_module("fastmlp.cnn.training") if importlib.util.find_spec("torch") else None


def test_a_quick_test_cannot_start_python() -> None:
    for start in (subprocess.run, subprocess.Popen, subprocess.check_output):
        with pytest.raises(FAILED, match="mark it full"):
            start([sys.executable, "-c", ""])


def test_a_quick_test_may_start_other_programs() -> None:
    """Programs other than Python may be started; for example, ctypes runs ldconfig when it is imported."""
    assert subprocess.run(["true"], check=False).returncode == 0


def test_a_quick_test_cannot_simulate_a_gpu() -> None:
    nothing: Any = None
    with pytest.raises(FAILED, match="mark it full"):
        Grid.run(nothing)


@pytest.mark.skipif(TRAINING is None, reason="torch is not installed")
def test_a_quick_test_cannot_train_a_convolutional_network() -> None:
    with pytest.raises(FAILED, match="mark it full"):
        TRAINING.Trainer.run(None)


@pytest.mark.full
def test_a_full_test_can_start_python() -> None:
    assert subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=False).returncode == 3
