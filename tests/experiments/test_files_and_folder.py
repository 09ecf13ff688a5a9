"""Tests of files.py and run folders: atomic writing when the system reports errors, and one-line errors for corrupt files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from fastmlp import files
from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments import folder as run_folders
from fastmlp.files import locks

NOW = datetime(2026, 11, 20, 13, 5, 1)
OLD = b"the old contents\n"
NEW = b"new" * 10_000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def one_line(kind: type[Exception], *parts: object) -> Iterator[None]:
    """Check that the `with` block raises an error whose message has one line and contains the given texts."""
    with pytest.raises(kind) as caught:
        yield
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_contents_with_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for data in (OLD, NEW, b""):
            files.write_bytes(tmp_path / "a", data)
            assert (tmp_path / "a").read_bytes() == data
        files.append_line(tmp_path / "b", {})
    finally:
        os.umask(before)
    assert names(tmp_path) == ["a", "b"]
    for name in ("a", "b"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask


def raise_errno(number: int) -> Callable[..., object]:
    def fail(*_arguments: object, **_keywords: object) -> object:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("function", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EIO, "check the disk")])
def test_failure_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, remedy: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, raise_errno(number))
        with one_line(DataError, path, os.strerror(number), remedy):
            files.write_bytes(path, NEW)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["a.bin"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:1000]))
    files.write_bytes(tmp_path / "a", NEW)
    files.append_line(tmp_path / "b", {"text": "x" * 5000})
    assert (tmp_path / "a").read_bytes() == NEW
    assert json.loads((tmp_path / "b").read_bytes()) == {"text": "x" * 5000}


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Let the operating system limit the size of files. Python ignores SIGXFSZ, so a longer write raises OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_real_failure_in_the_middle_of_a_write(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)
    with file_size_limit(4096), one_line(DataError, path, os.strerror(errno.EFBIG), "ulimit -f"):
        files.write_bytes(path, NEW)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EINVAL, nullcontext()), (errno.EIO, pytest.raises(DataError, match=re.escape(os.strerror(errno.EIO))))],
)
def test_folder_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: AbstractContextManager[object]
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with expected:  # file systems without fsync of folders return EINVAL
        files.write_bytes(tmp_path / "a", NEW)
    assert (tmp_path / "a").read_bytes() == NEW  # the file is complete even after EIO
    assert names(tmp_path) == ["a"]


def test_file_and_then_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_replace = os.replace

    def replace(source: Path, target: Path) -> None:
        steps.append("replace")
        real_replace(source, target)

    def fsync(descriptor: int) -> None:
        state = os.fstat(descriptor)
        steps.append("folder" if stat.S_ISDIR(state.st_mode) else f"file of {state.st_size}")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_bytes(tmp_path / "a", b"12345")
    assert steps == ["file of 5", "replace", "folder"]


def test_ctrl_c_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "a", b"1")
    assert names(tmp_path) == []


LEFT = ".fastmlp-0123456789abcdef.tmp"  # a file that a killed process left


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


def test_a_run_removes_left_over_temporary_files_at_its_start(tmp_path: Path) -> None:
    (tmp_path / LEFT).touch()
    with run_folders.run_folder(tmp_path, "digits", "1x1", NOW) as folder:  # the folder is empty, so it can be used
        assert names(folder) == []


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


@pytest.mark.full
def test_kill_leaves_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    code = (
        "import sys\nfrom fastmlp.files import write_bytes\n"
        "while True:\n  for c in b'ab':\n    write_bytes(sys.argv[1], bytes([c]) * 10**6); print(flush=True)"
    )
    for lines in (1, 4, 7):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
        assert path.read_bytes() in (b"a" * 10**6, b"b" * 10**6)


def read(path: Path, _value: object) -> None:
    files.read_json(path)


@pytest.mark.parametrize("name", ["missing/a.json", "file/a.json", "x" * 300, "folder"])
@pytest.mark.parametrize("use", [files.write_json, files.append_line, read])
def test_bad_path(tmp_path: Path, name: str, use: Callable[[Path, object], None]) -> None:
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    with one_line(DataError, name, "; "):
        use(tmp_path / name, {})


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with one_line(DataError, "pipe: it is not a regular file; choose another name"):
        files.write_bytes(tmp_path / "pipe", b"1")
    assert (tmp_path / "pipe").is_fifo()


def test_json_keeps_order_and_digits(tmp_path: Path) -> None:
    value = {"z": 0.1 + 0.2, "a": [1, 2.5e-300, True, None, "é"], "m": {"y": 5e-324, "x": 2**53 + 1}}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text("utf-8")
    assert text.startswith('{\n  "z": 0.30000000000000004,\n  "a"')
    assert text.endswith("}\n")
    assert files.read_json(tmp_path / "a.json") == json.loads(text) == value
    assert list(json.loads(text)) == ["z", "a", "m"]


def test_json_has_no_nan_and_takes_numpy_scalars_and_paths() -> None:
    assert files.json_bytes([float("nan"), -float("inf"), np.float32("inf")]) == b"[null,null,null]\n"
    value = {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": Path("runs/a"), "e": (1,)}
    assert files.json_bytes(value) == b'{"a":0.5,"b":3,"c":true,"d":"runs/a","e":[1]}\n'


@pytest.mark.parametrize("value", [np.zeros(2), object(), 1j])
def test_other_types_raise_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be written to a file"):
        files.json_bytes({"a": value})
    with pytest.raises(TypeError, match="cannot be written to a file"):
        files._without_none({"a": value})


def test_strings_that_are_not_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    with one_line(DataError, "not valid Unicode", "rename"):
        files.write_json(tmp_path / "a.json", {"out": name})
    with one_line(DataError, tmp_path / "a.toml", "line 2", "rename"):
        files.write_toml(tmp_path / "a.toml", {"seed": 0, "out": name})
    assert names(tmp_path) == []


def test_toml_reads_back(tmp_path: Path) -> None:
    text = 'quote " and \\ and é\n'
    config = {"rate": 1e-05, "hidden": (400, 250), "patience": None, "name": text, "scale": np.float32(0.5)}
    nested = {"out": Path("runs/a"), "clip": None, "flag": False}
    files.write_toml(tmp_path / "a.toml", {**config, "nested": nested})
    expected = {"rate": 1e-05, "hidden": [400, 250], "name": text, "scale": 0.5}
    expected["nested"] = {"out": "runs/a", "flag": False}
    assert tomllib.loads((tmp_path / "a.toml").read_text("utf-8")) == expected


def test_append_line_gives_one_object_per_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"epoch": i, "loss": 1 / (i + 3), "note": "two\nlines"} for i in range(5)]
    for number, row in enumerate(rows, 1):
        files.append_line(path, row)
        assert len(path.read_text().splitlines()) == number  # each line is written immediately
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def test_an_incomplete_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, {"epoch": 1})
    before = path.read_bytes()
    with file_size_limit(100), pytest.raises(DataError, match=re.escape(os.strerror(errno.EFBIG))):
        files.append_line(path, {"epoch": 2, "text": "x" * 1000})
    assert path.read_bytes() == before
    files.append_line(path, {"epoch": 2})
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("data", [b'{"a": [1, 2', b"", b'{"a": NaN}', b'{"a": 1} x', b'{"a": "\xff"}', b"[" * 100_000])
def test_damaged_json(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(data)
    with one_line(DataError, path, "is not valid JSON", "repeat the run"):
        files.read_json(path)


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
