"""Tests of the locks of run folders and files: a second run is refused at once, and a lock ends with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from support.cli import no_figures, ok, refused  # noqa: F401 - an autouse fixture
from support.processes import ROOT

from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments.folder import locked, locked_file
from fastmlp.files import locks

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


# ------------------------------------------------------------------------------------------------ files


def test_a_file_is_locked_against_other_runs_only(tmp_path: Path) -> None:
    """The lock of a file in a shared folder does not affect other files in it, and leaves nothing."""
    with locked_file(tmp_path / "a.npz"), locked_file(tmp_path / "b.npz"):
        with pytest.raises(ConfigError, match=rf"{MESSAGE} .*a\.npz; wait"), locked_file(tmp_path / "a.npz"):
            pass
        with pytest.raises(ConfigError, match=MESSAGE), locked_file(tmp_path / "a.npz"):  # the refused run did not remove it
            pass
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(ZeroDivisionError), locked_file(tmp_path / "a.npz"):
        1 / 0  # noqa: B018
    assert [*tmp_path.iterdir()] == []


def test_the_lock_file_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".a.npz.fastmlp-lock").touch()
    with locked_file(tmp_path / "a.npz"), pytest.raises(ConfigError, match=MESSAGE), locked_file(tmp_path / "a.npz"):
        pass
    assert [*tmp_path.iterdir()] == []


def test_a_lock_file_that_is_removed_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If its owner removes the file after this process has opened it, another file is locked, which others see."""
    real, path = locks.lock, tmp_path / ".a.npz.fastmlp-lock"
    removals = iter([path])

    def lock(descriptor: int, wait: bool = False) -> bool | None:
        for removed in removals:
            removed.unlink()
        return real(descriptor, wait)

    monkeypatch.setattr(locks, "lock", lock)
    with locked_file(tmp_path / "a.npz"):
        assert path.exists()
        with pytest.raises(ConfigError, match=MESSAGE), locked_file(tmp_path / "a.npz"):
            pass
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("lock", [locked, locked_file])
def test_a_file_system_without_locks(
    lock: Callable[[Path], AbstractContextManager[None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="a cannot be locked against other runs"), lock(tmp_path / "a"):
            pass


def test_a_folder_in_which_no_file_can_be_created(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot lock .*, whose folder must exist"), locked_file(tmp_path / "b" / "a.npz"):
        pass
