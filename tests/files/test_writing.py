"""Tests of atomic writing, and of JSON, TOML and JSON Lines files."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from support.files import NEW, OLD, names, one_line, raise_errno

from fastmlp import files
from fastmlp.errors import DataError, printable


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
    with one_line(DataError, tmp_path / "a.toml", "the value in 'out = ", "rename"):
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


ALL_CHARACTERS = "".join(map(chr, [*range(0x3000), *range(0xFE00, 0x10000), 0x1F600, 0xE0001]))


def test_files_can_be_printed_and_strings_are_kept(tmp_path: Path) -> None:
    """Control and formatting characters in strings are escape sequences of JSON and TOML, including those in keys."""
    table = {"name": ALL_CHARACTERS, f"a key {ALL_CHARACTERS}": [ALL_CHARACTERS, 0.1]}
    files.write_json(tmp_path / "a.json", table)
    files.append_line(tmp_path / "a.jsonl", table)
    files.write_toml(tmp_path / "a.toml", table)
    assert files.read_json(tmp_path / "a.json") == json.loads((tmp_path / "a.json").read_bytes()) == table
    assert files.read_lines(tmp_path / "a.jsonl") == [table]
    assert files.read_toml(tmp_path / "a.toml") == table
    for path in tmp_path.iterdir():
        lines = path.read_bytes().decode().split("\n")
        assert lines == [*map(printable, lines)], path
        assert any("\N{SNOWMAN}" in line for line in lines)  # other characters are not escaped


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
    with one_line(DataError, path, "not valid JSON", "repeat the run"):
        files.read_json(path)
