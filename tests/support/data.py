"""Helpers of the data tests: error messages and IDX files."""

from __future__ import annotations

import struct

import numpy as np
import pytest


def message(error, call, *arguments, **settings) -> str:
    """Check that a call raises `error` with a message of one line; return the message."""
    with pytest.raises(error) as caught:
        call(*arguments, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def idx(array: np.ndarray) -> bytes:
    """Return the bytes of an IDX file with an array of uint8."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
