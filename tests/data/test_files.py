"""Tests of the readers of IDX and .npz files, with valid files and with every kind of damage."""

from __future__ import annotations

import errno
import gzip
import io
import os
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.data import idx
from support.data import message as message_of

from fastmlp.data.named import read_idx
from fastmlp.data.readers.arrays import read_npz
from fastmlp.errors import DataError

message = partial(message_of, DataError)
IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


# --- IDX ---


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_idx_reads_what_was_written(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(idx(IMAGES)) if name.endswith(".gz") else idx(IMAGES))
    array = read_idx(path, 3)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, IMAGES)


GOOD = idx(IMAGES)
IDX_DAMAGE = {
    "too short for a header": (GOOD[:9], "only 9 bytes"),
    "empty file": (b"", "only 0 bytes"),
    "another type": (b"\0\0\x0d\x03" + GOOD[4:], "starts with 0x00000d03 instead of 0x00000803"),
    "labels for images": (idx(IMAGES[:, 0, 0].copy()), "0x00000801 instead of 0x00000803"),
    "no rows": (idx(IMAGES[:0]), "empty array"),
    "truncated": (GOOD[:-1], "claims 2x3x4 = 24 bytes, but the file holds only 23"),
    "trailing byte": (GOOD + b"\0", "claims 2x3x4 = 24 bytes, but the file holds more"),
    "absurd size": (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "the file holds only 24"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", IDX_DAMAGE)
def test_idx_damage_is_reported(tmp_path, kind, packed):
    content, expected = IDX_DAMAGE[kind]
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(content) if packed else content)
    text = message(read_idx, path, 3)
    assert str(path) in text and expected in text and "fastmlp data fetch" in text


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position:][1:]


PACKED = gzip.compress(GOOD, mtime=0)
GZIP_DAMAGE = {
    "truncated": PACKED[:-12],
    "checksum cut off": PACKED[:-6],
    "wrong checksum": flipped(PACKED, len(PACKED) - 8),
    "wrong length": flipped(PACKED, len(PACKED) - 1),
    "garbage in the stream": PACKED[:10] + b"\xff" * 20,
    "garbage after the stream": PACKED + b"garbage",
    "not packed at all": GOOD,
}


@pytest.mark.parametrize("kind", GZIP_DAMAGE)
def test_damaged_gzip_is_reported(tmp_path, kind):
    path = tmp_path / "images.gz"
    path.write_bytes(PACKED)
    read_idx(path, 3)
    path.write_bytes(GZIP_DAMAGE[kind])
    assert f"{path}: damaged gzip file" in message(read_idx, path, 3)


def test_a_gzip_file_without_gz_suffix_is_reported(tmp_path):
    (tmp_path / "images").write_bytes(PACKED)
    assert "add .gz to its name" in message(read_idx, tmp_path / "images", 3)


def test_a_gzip_bomb_is_read_only_up_to_the_size_in_its_header(tmp_path):
    import tracemalloc

    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(200 << 20), compresslevel=1))
    tracemalloc.start()
    text = message(read_idx, path, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "holds more" in text and peak < 10 << 20


def test_a_missing_file_is_reported(tmp_path):
    path = tmp_path / "none.gz"
    assert message(read_idx, path, 3).startswith(f"cannot read {path}: {os.strerror(errno.ENOENT)}; check the path")


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
    assert f"array '{kind}' cannot be read (" in message(read_npz, write_npz(tmp_path / "a.npz", **arrays))


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
    assert message(read_npz, tmp_path / "a.npz").startswith(f"{tmp_path / 'a.npz'}: array 'x' cannot be read (")


@pytest.mark.parametrize("content", [b"", b"plain text", NPY, b"PK\x03\x04 cut"])
def test_a_file_that_is_not_npz_is_reported(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    assert f"{tmp_path / 'a.npz'}: not a readable .npz file" in message(read_npz, tmp_path / "a.npz")
