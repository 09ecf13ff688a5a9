"""Tests of run folders: their names, their creation, their temporary files, and their manifest."""

from __future__ import annotations

import errno
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.files import LEFT, NEW, NOW, OLD, names, one_line, raise_errno

from fastmlp import files
from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments import folder as run_folders
from fastmlp.files import locks


def test_run_folder_without_out_is_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [run_folders.new_run_folder(None, "digits", "784x128x10", NOW) for _ in range(3)]
    base = "runs/2026-11-20_130501-digits-784x128x10"
    assert [folder.as_posix() for folder in made] == [base, f"{base}-2", f"{base}-3"]
    assert all(folder.is_dir() for folder in made)


def test_concurrent_runs_have_different_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(20) as pool:
        made = set(pool.map(lambda _: run_folders.new_run_folder(None, "digits", "1x1", NOW), range(20)))
    assert len(made) == 20


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("/home/me/my data.v2.csv", "my-data.v2"),
        ("../../etc", "etc"),
        (".", "data"),
        ("..", "data"),
        ("/", "data"),
        ("größe.npz", "größe"),
        ("x" * 500 + ".csv", "x" * 40),
        (os.fsdecode(b"\xff\xfe.csv"), "data"),
    ],
)
def test_run_folder_name_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, part: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_folders.new_run_folder(None, data, "x".join(["784"] * 100), NOW).is_dir()
    folder = run_folders.new_run_folder(None, data, "4x2", NOW)
    assert folder.as_posix() == f"runs/2026-11-20_130501-{part}-4x2"
    assert folder.resolve().parent == (tmp_path / "runs").resolve()


def test_out_is_created_or_used_if_empty(tmp_path: Path) -> None:
    for out in (tmp_path / "deep/er", str(tmp_path / "deep/er")):
        assert run_folders.new_run_folder(out, "digits", "1x1", NOW) == tmp_path / "deep/er"
    assert (tmp_path / "deep/er").is_dir()


def test_out_that_is_not_empty_needs_force(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(OLD)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch":1}\n')
    with one_line(ConfigError, tmp_path, "not empty", "set force", "choose another"):
        run_folders.new_run_folder(tmp_path, "digits", "1x1", NOW)
    assert (tmp_path / "metrics.jsonl").exists()
    assert run_folders.new_run_folder(tmp_path, "digits", "1x1", NOW, force=True) == tmp_path
    assert names(tmp_path) == ["metrics.jsonl", "model.safetensors"]  # kept until the training starts


@pytest.mark.parametrize("name", ["file", "file/below", os.fsdecode(b"caf\xe9"), "two\nlines"])
def test_out_that_cannot_be_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(OLD)
    with one_line(ConfigError, f"{tmp_path}/", "choose another"):
        run_folders.new_run_folder(tmp_path / name, "digits", "1x1", NOW, force=True)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == OLD


def test_out_on_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_line(DataError, "/proc/no-such-place"):
        run_folders.new_run_folder("/proc/no-such-place", "digits", "1x1", NOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "mkdir", raise_errno(errno.EROFS))
    with one_line(DataError, "runs", "writable disk"):
        run_folders.new_run_folder(None, "digits", "1x1", NOW)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    for number, name in enumerate(run_folders.MANIFEST_FILES):
        (tmp_path / name).write_bytes(bytes([number]) * 5000)
    run_folders.write_manifest(tmp_path)
    return tmp_path


@pytest.mark.full
def test_manifest_of_an_untouched_folder_passes(run_folder: Path) -> None:
    run_folders.check_manifest(run_folder)
    hashes = files.read_json(run_folder / "manifest.json")["sha256"]
    sealed = run_folders.MANIFEST_FILES
    shell = subprocess.run(["sha256sum", *sealed], cwd=run_folder, capture_output=True, text=True, check=True)
    assert {line.split()[1]: line.split()[0] for line in shell.stdout.splitlines()} == hashes


@pytest.mark.parametrize("name", run_folders.MANIFEST_FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "missing"])
def test_manifest_names_the_damaged_file(run_folder: Path, name: str, damage: str) -> None:
    path = run_folder / name
    data = path.read_bytes()
    flipped = data[:2500] + bytes([data[2500] ^ 1]) + data[2501:]
    path.unlink()
    if damage != "missing":
        path.write_bytes({"flip": flipped, "truncate": data[:-1], "grow": data + b"\0"}[damage])
    with one_line(DataError, path):
        run_folders.check_manifest(run_folder)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"format_version": 1, "sha256": {', "not valid JSON"),
        ("[]", "no format version, but this version of fastmlp reads format version 1"),
        ('{"format_version": 2, "sha256": {}}', "format version 2, but this version of fastmlp reads format version 1"),
        ('{"format_version": 1, "sha256": [1]}', "lists no hashes"),
        ('{"format_version": 1, "sha256": {}}', "does not list model.safetensors"),
        ('{"format_version": 1, "sha256": {"model.safetensors": 7}}', "model.safetensors differs"),
    ],
)
def test_damaged_manifest(run_folder: Path, text: str, part: str) -> None:
    (run_folder / "manifest.json").write_text(text)
    with one_line(DataError, run_folder, part, "repeat the run"):
        run_folders.check_manifest(run_folder)


def test_missing_manifest_and_missing_files(run_folder: Path) -> None:
    (run_folder / "manifest.json").unlink()
    with one_line(DataError, run_folder / "manifest.json", "cannot read"):
        run_folders.check_manifest(run_folder)
    (run_folder / "result.json").unlink()
    with one_line(DataError, run_folder / "result.json", "cannot read"):
        run_folders.write_manifest(run_folder)
    assert not (run_folder / "manifest.json").exists()


def test_a_run_removes_left_over_temporary_files_at_its_start(tmp_path: Path) -> None:
    (tmp_path / LEFT).touch()
    with run_folders.run_folder(tmp_path, "digits", "1x1", NOW) as folder:  # the folder is empty, so it can be used
        assert names(folder) == []


@pytest.mark.parametrize("finished", [[], ["config.toml"]])
def test_before_the_process_ends_temporary_files_and_empty_folders_are_removed(
    finished: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []

    def end(source: object, target: object) -> None:
        locks.remove_unfinished()
        left.extend(sorted(path.name for path in tmp_path.rglob("*")))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run_folders.run_folder(tmp_path / "run", "digits", "1x1", NOW) as folder:
        for name in finished:
            files.write_bytes(folder / name, OLD)
        monkeypatch.setattr(os, "replace", end)
        files.write_bytes(folder / "result.json", NEW)
    assert left == [*finished, "run"] * bool(finished)
    assert locks.unfinished == set()
