"""Only regular files are opened, and every error is one line: fastmlp/files/reading.py."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.data import at_once, message  # noqa: F401 - a fixture

from fastmlp.errors import ConfigError, DataError
from fastmlp.files import read_json, read_lines, read_toml
from fastmlp.files.reading import (
    MAX_REASON,
    check_regular,
    entries,
    exists,
    files_matching,
    is_file,
    is_folder,
    library_errors,
    modified,
    open_file,
    read_bytes,
    real_path,
    reason,
    size_of,
)

LONG = "n" * 300
posix = pytest.mark.skipif(os.name != "posix", reason="named pipes and devices exist only on POSIX systems")


def opened(path: Any) -> bytes:
    with open_file(path) as stream:
        return stream.read()


# ------------------------------------------------------------------------------------------------ files that are opened


def test_a_regular_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert opened(tmp_path / "a") == opened(str(tmp_path / "b")) == read_bytes(tmp_path / "a") == b"123"
    check_regular(tmp_path / "b")


@posix
@pytest.mark.parametrize("call", [opened, read_bytes, check_regular, read_json, read_toml, read_lines])
def test_other_kinds_are_refused_at_once(call: Callable[[Path], Any], tmp_path: Path, at_once: None) -> None:  # noqa: F811
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    with server:
        for path, kind in (
            (tmp_path / "pipe", "a named pipe"),
            (tmp_path / "folder", "a folder"),
            (Path("/dev/zero"), "a device"),
            (Path("/dev/null"), "a device"),
        ):
            assert message(DataError, call, path) == f"cannot read {path}: it is {kind}; give the path of a file"
        assert str(tmp_path / "socket") in message(DataError, call, tmp_path / "socket")


BAD_PATHS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda folder: folder / "none", os.strerror(errno.ENOENT)),
    "in a file": (lambda folder: folder / "file" / "x", os.strerror(errno.ENOTDIR)),
    "long name": (lambda folder: folder / LONG, os.strerror(errno.ENAMETOOLONG)),
    "loop": (lambda folder: folder / "loop", os.strerror(errno.ELOOP)),
    "zero byte": (lambda folder: f"{folder}/a\0b", "not a valid path"),
    "surrogate": (lambda folder: f"{folder}/\ud800", "not a valid path"),
}


@posix
@pytest.mark.parametrize("kind", BAD_PATHS)
@pytest.mark.parametrize("call", [opened, read_bytes, check_regular, size_of, modified, entries])
def test_paths_that_cannot_be_opened(kind: str, call: Callable[[Any], Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path, text = BAD_PATHS[kind]
    found = message(DataError, call, path(tmp_path))
    assert found.startswith(f"cannot read {tmp_path}/") and text in found and "; " in found


@posix
@pytest.mark.parametrize("kind", BAD_PATHS)
@pytest.mark.parametrize("probe", [exists, is_file, is_folder])
def test_probes_find_nothing_or_raise(kind: str, probe: Callable[[Any], bool], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path, text = BAD_PATHS[kind]
    if kind in ("missing", "in a file"):
        assert probe(path(tmp_path)) is False
    else:
        assert text in message(DataError, probe, path(tmp_path))


@posix
def test_probes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    found = {path.name: (exists(path), is_file(path), is_folder(path)) for path in tmp_path.iterdir()}
    assert found == {"file": (True, True, False), "dangling": (False, False, False), "pipe": (True, False, False)}
    assert (exists(tmp_path), is_file(tmp_path), is_folder(tmp_path)) == (True, False, True)


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may search every folder")
def test_a_folder_that_cannot_be_searched(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    assert "check its permissions" in message(DataError, exists, tmp_path / "closed" / "x")


def test_entries_are_sorted_and_matched(tmp_path: Path) -> None:
    for name in ("b.npy", "a.npy", ".c.npy", "d.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in entries(tmp_path)] == [".c.npy", "a.npy", "b.npy", "d.txt"]
    assert files_matching(tmp_path, "[ab].npy") == [tmp_path / "a.npy", tmp_path / "b.npy"]
    assert files_matching(tmp_path / "none", "*") == []


def test_folders_that_vanish_are_one_line(tmp_path: Path) -> None:
    """One thread creates and removes a folder, while another one lists it."""
    folder, ended = tmp_path / "folder", threading.Event()

    def change() -> None:
        while not ended.is_set():
            folder.mkdir()
            (folder / "x.npy").touch()
            (folder / "x.npy").unlink()
            folder.rmdir()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            try:
                files_matching(folder, "*.npy")
                if exists(folder / "x.npy"):
                    read_bytes(folder / "x.npy")
            except DataError as error:
                assert str(error).startswith(f"cannot read {folder}")
    finally:
        ended.set()
        thread.join()


def test_the_real_path_of_a_loop(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert real_path(tmp_path / "link") == real_path(tmp_path) / "a"
    assert real_path(tmp_path / "loop").name == "loop"


def test_the_largest_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    assert read_bytes(tmp_path / "a", 4) == b"1234"
    assert "larger than 3 bytes" in message(DataError, read_bytes, tmp_path / "a", 3)
    (tmp_path / "big.toml").write_bytes(b"#" * ((1 << 18) + 1))
    assert "larger than 262,144 bytes" in message(DataError, read_toml, tmp_path / "big.toml")


# ------------------------------------------------------------------------------------------------ errors of libraries


class PanicException(BaseException):
    """Named like the exception of extensions in Rust."""


ERRORS = (
    ValueError,
    KeyError,
    AttributeError,
    RecursionError,
    MemoryError,
    SystemError,
    AssertionError,
    OSError,
    PanicException,
)


@pytest.mark.parametrize("error", ERRORS)
def test_every_exception_of_a_library_becomes_one_line(error: type[BaseException]) -> None:
    def read() -> None:
        with library_errors("a.bin", "not readable", "create it again"):
            raise error("several\n lines")

    text = message(DataError, read)
    assert re.fullmatch(r"a\.bin: not readable \('?several(\\n)? lines'?\); create it again", text)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, ConfigError])
def test_other_exceptions_pass(error: type[BaseException]) -> None:
    with pytest.raises(error, match=r"^mine$"), library_errors("a.bin", "not readable", "create it again"):
        raise error("mine")


def test_the_type_of_the_error() -> None:
    with pytest.raises(ConfigError), library_errors("a.toml", "not valid", "correct it", ConfigError):
        raise ValueError


def test_reasons_are_short() -> None:
    assert reason(ValueError("x " * 1000)) == ("x " * 1000)[:MAX_REASON] + "…"
    assert reason(OSError(errno.EIO, os.strerror(errno.EIO), "path")) == os.strerror(errno.EIO)
    assert reason(StopIteration()) == "StopIteration"
