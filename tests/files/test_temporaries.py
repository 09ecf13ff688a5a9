"""Tests of temporary files: those of killed processes are removed, and those of running processes are kept."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest
from support.files import LEFT, NEW, OLD, names, raise_errno

from fastmlp import files
from fastmlp.files import locks


def test_the_first_write_removes_left_over_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = ["fastmlp-0123456789abcdef.tmp", ".fastmlp-0123.tmp", f"{LEFT}~", "tmpabc.tmp"]
    for name in [LEFT, *others]:
        (tmp_path / name).touch()
    files.write_json(tmp_path / "a", {})
    assert names(tmp_path) == sorted(["a", *others])
    monkeypatch.chdir(tmp_path)
    swept: list[Path] = []
    monkeypatch.setattr(files, "sweep", swept.append)
    for path in (tmp_path / "a", "a", "b"):
        files.write_json(path, {})
    assert swept == []  # the folder is listed once per process
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    files.write_json("a", {})
    assert swept == [tmp_path / "folder"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_the_temporary_file_of_a_running_process_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    real = getattr(os, moment)

    def swept(*given: object) -> object:
        locks.sweep(tmp_path)
        assert any(name.endswith(".tmp") for name in names(tmp_path)) or names(tmp_path) == ["a"]  # "a": fsync of the folder
        return real(*given)

    monkeypatch.setattr(os, moment, swept)
    files.write_bytes(tmp_path / "a", NEW)
    assert (tmp_path / "a").read_bytes() == NEW
    assert names(tmp_path) == ["a"]


def test_a_temporary_file_that_is_removed_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sweeps = locks.lock, [locks.sweep, locks.sweep]

    def late(descriptor: int, wait: bool = False) -> bool | None:
        if wait and sweeps:  # another process removes the file that was just created
            sweeps.pop()(tmp_path)
            assert names(tmp_path) == []
        return real(descriptor, wait)

    monkeypatch.setattr(locks, "lock", late)
    files.write_bytes(tmp_path / "a", NEW)
    assert sweeps == []
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == NEW


def test_left_over_files_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are removed an hour after their last change."""
    monkeypatch.setattr(fcntl, "flock", raise_errno(errno.ENOLCK))
    old, new = tmp_path / LEFT, tmp_path / LEFT.replace("0", "f")
    for path, age in ((old, 3700), (new, 3500)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    locks.sweep(tmp_path)
    assert names(tmp_path) == [new.name]
    files.write_bytes(tmp_path / "a", NEW)
    assert (tmp_path / "a").read_bytes() == NEW


def test_what_cannot_be_swept_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder" / LEFT).mkdir(parents=True)
    (tmp_path / "folder" / LEFT.replace("0", "1")).symlink_to(tmp_path / "file")
    (tmp_path / "folder" / LEFT.replace("0", "2")).symlink_to("nowhere")
    before = names(tmp_path / "folder")
    for folder in ("folder", "file", "missing", "x" * 300):
        locks.sweep(tmp_path / folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", raise_errno(errno.EACCES))
        locks.sweep(tmp_path)
    assert names(tmp_path / "folder") == before
    assert (tmp_path / "file").read_bytes() == OLD


def test_a_left_over_file_that_cannot_be_opened_does_not_protect_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (LEFT, LEFT.replace("0", "1")):
        (tmp_path / name).touch()
    real, errors = os.open, [errno.EACCES]

    def open_file(path: Path, flags: int) -> int:
        if errors:
            raise OSError(errors.pop(), "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(os, "open", open_file)
    locks.sweep(tmp_path)
    assert len(names(tmp_path)) == 1
