"""Helpers of the data tests: error messages, tables and IDX files."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmlp.data.dataset import Dataset
from fastmlp.data.load import load_data


def message(error, call, *arguments, **settings) -> str:
    """Check that a call raises `error` with a message of one line; return the message."""
    with pytest.raises(error) as caught:
        call(*arguments, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def load_text(file: Path, text: str, **options: Any) -> Dataset:
    """Write a table to a file, and load it."""
    file.write_text(text)
    return load_data(file, **options)


@pytest.fixture
def at_once() -> Iterator[None]:
    """Fail if a test takes a minute, because opening a named pipe can block. Import this fixture to use it in a file."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError("blocked")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


IDX_CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def idx(array: np.ndarray) -> bytes:
    """Return the bytes of an IDX file with an array of one of the types of the format."""
    head = bytes((0, 0, IDX_CODES[array.dtype.name], array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def flipped(content: bytes, position: int) -> bytes:
    """Return the bytes with one bit changed at a position."""
    return content[:position] + bytes([content[position] ^ 1]) + content[position:][1:]
