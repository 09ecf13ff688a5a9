"""Tests of the reader of .npz files, with valid files and with every kind of damage."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.data import flipped
from support.data import message as message_of

from fastmlp.data.readers.arrays import read_npz
from fastmlp.errors import DataError

message = partial(message_of, DataError)
IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


# --- .npz ---


def write_npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz_arrays_are_read_unchanged(tmp_path):
    written = {"x": IMAGES, "y": [1, 0], "x_test": IMAGES[:1], "y_test": [1], "classes": ["a", "b"], "more": [1]}
    arrays = read_npz(write_npz(tmp_path / "a.npz", **written))
    np.testing.assert_array_equal(arrays.x, IMAGES)
    assert arrays.y_test.tolist() == [1] and list(arrays.classes) == ["a", "b"]
    assert arrays.locations["y"].row(3) == f"{tmp_path / 'a.npz'}: array 'y': row 3"


def test_the_message_for_an_npz_without_y_lists_its_arrays(tmp_path):
    assert "no array named y (it holds: Y, x)" in message(read_npz, write_npz(tmp_path / "a.npz", x=[[1]], Y=[1]))


@pytest.mark.parametrize("kind", ["x", "y"])
def test_npz_with_python_objects_is_rejected(tmp_path, kind):
    arrays = {"x": np.zeros((2, 2)), "y": np.zeros(2)} | {kind: np.array([[1], [1, 2]], object)}
    assert f"array '{kind}': holds Python objects" in message(read_npz, write_npz(tmp_path / "a.npz", **arrays))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def header_only(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


NPY = npy(np.zeros((2, 3)))
NPY_DAMAGE = {
    "truncated": NPY[:-1],
    "damaged header": NPY.replace(b"}", b" "),
    "absurd shape": header_only((2, 1 << 50)) + bytes(48),
    "wrong magic": b"x" + NPY[1:],
    "empty": b"",
}


@pytest.mark.parametrize("kind", NPY_DAMAGE)
def test_a_damaged_member_of_npz_is_reported(tmp_path, kind):
    good = zipped(tmp_path / "good.npz", x=NPY, y=npy(np.zeros(2)))
    assert read_npz(good).x.shape == (2, 3)
    bad = zipped(tmp_path / "bad.npz", x=NPY_DAMAGE[kind], y=npy(np.zeros(2)))
    text = message(read_npz, bad)
    assert str(bad) in text and "'x'" in text


def test_a_flipped_bit_in_npz_is_detected_by_its_checksum(tmp_path):
    content = zipped(tmp_path / "a.npz", x=NPY, y=npy(np.zeros(2))).read_bytes()
    at = content.index(NPY) + len(NPY) - 1
    (tmp_path / "a.npz").write_bytes(flipped(content, at))
    path = tmp_path / "a.npz"
    assert message(read_npz, path).startswith(f"{path}: array 'x': not in the format of numpy.save (")


@pytest.mark.parametrize("content", [b"", b"plain text", NPY, b"PK\x03\x04 cut"])
def test_a_file_that_is_not_npz_is_reported(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    assert f"{tmp_path / 'a.npz'}: not a readable .npz file" in message(read_npz, tmp_path / "a.npz")
