"""Tests of the lock of a run folder: a second run is refused at once, and the lock ends with the process that holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cli import ok, refused
from support.processes import ROOT

from fastmlp.errors import ConfigError
from fastmlp.experiments.folder import locked

FAST = ("train", "-q", "--hidden", "4", "--backend", "numpy")
SHORT = ("--epochs", "2")
MESSAGE = "another run is writing to"
PATIENCE = 120  # seconds, for a slow, busy machine

pytestmark = pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="the system has no locks of folders")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [(), ("--force",), ("--seeds", "2"), ("--seeds", "2", "--force")])
def test_a_second_run_is_refused_and_changes_nothing(flags: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    ok(*FAST, *SHORT, "--out", out)
    before = content(out)
    with locked(out):
        assert MESSAGE in refused(2, *FAST, *SHORT, *flags, "--out", out)
    assert content(out) == before
    ok(*FAST, *SHORT, *(flag for flag in flags if flag != "--force"), "--force", "--out", out)


def test_the_folder_of_a_seed_is_locked_too(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "seed-1"):
        assert MESSAGE in refused(2, *FAST, *SHORT, "--seeds", "2", "--out", tmp_path / "runs", "--force")


def test_a_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a"):
        1 / 0  # noqa: B018
    with locked(tmp_path / "a"), pytest.raises(ConfigError, match=MESSAGE), locked(tmp_path / "a"):
        pass


@pytest.mark.full
def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fastmlp", *FAST, "--epochs", "1000000", "--patience", "0", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + PATIENCE
        while not (out / "metrics.jsonl").exists():
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        assert MESSAGE in refused(2, *FAST, *SHORT, "--out", out, "--force")
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.communicate()
    ok(*FAST, *SHORT, "--out", out, "--force")
