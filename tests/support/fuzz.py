"""Readers with faults, which a campaign of benchmarks.fuzz must find."""

from __future__ import annotations

import ctypes
import itertools
import os
import time
import warnings
from collections import deque
from pathlib import Path
from typing import NoReturn

import fastmlp
from fastmlp.errors import DataError


class Panic(BaseException):
    """An exception that is not a subclass of Exception, as those of libraries in Rust."""


class Unescaped(DataError):
    """An error whose message is not escaped."""

    def __str__(self) -> str:
        return f"{self.args[0]}: two\nlines"


def raise_key_error(path: Path) -> NoReturn:
    raise KeyError(path.name)


def panic(path: Path) -> NoReturn:
    raise Panic


def leave(path: Path) -> NoReturn:
    raise SystemExit(3)


def refuse_on_two_lines(path: Path) -> NoReturn:
    raise Unescaped(str(path))


def refuse_at_length(path: Path) -> NoReturn:
    error = DataError()
    error.args = (f"{path}: {'x' * 600}",)  # fastmlp itself cuts such messages
    raise error


def refuse_without_name(path: Path) -> NoReturn:
    raise DataError("the file is damaged")


def refuse(path: Path) -> NoReturn:
    raise DataError(f"{path}: damaged; restore it")


def sleep(path: Path) -> None:
    while True:
        time.sleep(0.01)


def hold_lock(path: Path) -> None:
    """Run an endless loop in C, in which no signal handler of Python is run."""
    deque(itertools.repeat(None), maxlen=0)


def allocate(path: Path) -> int:
    return len(bytes(1) * (200 * 10**6))


def write_file(path: Path) -> None:
    path.with_name("copy").write_bytes(b"")


def remove_file(path: Path) -> None:
    path.unlink()


def warn(path: Path) -> None:
    warnings.warn_explicit("deprecated", DeprecationWarning, fastmlp.__file__, 1)


def print_text(path: Path) -> None:
    os.write(2, b"libfoo: warning\n")


def read_null(path: Path) -> None:
    ctypes.string_at(0)


def read(path: Path) -> bytes:
    return path.read_bytes()
