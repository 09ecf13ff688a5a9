"""What the tests of data share: the error of a call, and IDX files."""

from __future__ import annotations

import struct

import numpy as np
import pytest


def message(error, call, *arguments, **settings) -> str:
    """Text of the error that a call must raise: one line."""
    with pytest.raises(error) as caught:
        call(*arguments, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def idx(array: np.ndarray) -> bytes:
    """The array of uint8 as an IDX file."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
