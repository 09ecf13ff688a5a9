"""Tests of the reader of single IDX files, with valid files and with every kind of damage."""

from __future__ import annotations

import errno
import gzip
import os
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest
from support.data import IDX_CODES, flipped, idx
from support.data import message as message_of

from fastmlp.data.readers.idx import content_sha256, read_idx
from fastmlp.errors import DataError

message = partial(message_of, DataError)
IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
GOOD = idx(IMAGES)
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize("name", ["images", "images.gz", "images.idx3-ubyte"])
@pytest.mark.parametrize("content", [GOOD, PACKED], ids=["plain", "gzipped"])
def test_the_content_and_not_the_name_decides_whether_a_file_is_gzipped(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    array = read_idx(path, (3,))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, IMAGES)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", IDX_CODES)
def test_all_types_are_read_in_native_byte_order(tmp_path, dtype, packed):
    extremes = [np.finfo(dtype).max, 0.1] if dtype.startswith("float") else [np.iinfo(dtype).min, np.iinfo(dtype).max]
    array = np.array([[*extremes, 3], [1, 2, 100]], dtype)
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    found = read_idx(path)
    assert found.dtype == np.dtype(dtype) and found.dtype.isnative
    np.testing.assert_array_equal(found, array)


def test_the_bytes_of_an_int32_are_big_endian(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(bytes([0, 0, 0x0C, 1, 0, 0, 0, 1, 0, 0, 1, 2]))
    assert read_idx(path).tolist() == [258]


DAMAGE = {
    "too short for a header": (GOOD[:9], "only 9 bytes"),
    "too short for a magic number": (GOOD[:3], "only 3 bytes"),
    "empty file": (b"", "only 0 bytes"),
    "wrong magic": (b"\1" + GOOD[1:], "starts with 0x01000803"),
    "unknown type": (b"\0\0\x0a\x03" + GOOD[4:], "unknown data type 0x0a, not one of 0x08 (uint8), 0x09 (int8), 0x0b (int16)"),
    "no rows": (idx(IMAGES[:0]), "empty array"),
    "truncated": (GOOD[:-1], "declares 2x3x4 uint8 = 24 bytes, but the file holds only 23"),
    "truncated float64": (idx(IMAGES / 2)[:-1], "declares 2x3x4 float64 = 192 bytes, but the file holds only 191"),
    "trailing byte": (GOOD + b"\0", "declares 2x3x4 uint8 = 24 bytes, but the file holds more"),
    "absurd size": (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "the file holds only 24"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_reported(tmp_path, kind, packed):
    content, expected = DAMAGE[kind]
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if packed else content)
    text = message(read_idx, path, (3,))
    if kind == "absurd size" and packed:
        assert text.startswith(f"{path}: the file has {path.stat().st_size} bytes, but ") and "set max_decompressed" in text
    else:
        assert text.startswith(f"{path}: ") and expected in text and "replace it with an intact copy" in text


def test_labels_in_the_place_of_images_are_reported(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(idx(IMAGES[:, 0, 0]))
    assert f"{path}: the number of dimensions is 1, but must be 2 or 3" in message(read_idx, path, (2, 3))


def test_other_kinds_of_files_are_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1")
    assert "zip archive; unpack it" in message(read_idx, path)
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    assert "looks like a web page" in message(read_idx, path)


GZIP_DAMAGE = {
    "truncated": PACKED[:-12],
    "checksum cut off": PACKED[:-6],
    "wrong checksum": flipped(PACKED, len(PACKED) - 8),
    "wrong length": flipped(PACKED, len(PACKED) - 1),
    "garbage in the stream": PACKED[:10] + b"\xff" * 20,
    "garbage after the stream": PACKED + b"garbage",
    "header only": PACKED[:2],
}


@pytest.mark.parametrize("kind", GZIP_DAMAGE)
def test_damaged_gzip_is_reported(tmp_path, kind):
    path = tmp_path / "images"
    path.write_bytes(PACKED)
    read_idx(path)
    assert content_sha256(path) is not None
    path.write_bytes(GZIP_DAMAGE[kind])
    assert f"{path}: damaged gzip file" in message(read_idx, path)
    assert content_sha256(path) is None


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_declares_a_huge_array_allocates_no_memory_for_it(tmp_path, packed):
    path = tmp_path / "images"
    content = GOOD[:4] + b"\x7f\xff\xff\xff" * 3 + GOOD[16:]
    path.write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    text = message(read_idx, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ("GiB of data" if packed else "the file holds only 24") in text and peak < 10 << 20


def test_a_gzip_bomb_is_read_only_up_to_the_size_in_its_header(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(200 << 20), compresslevel=1))
    tracemalloc.start()
    text = message(read_idx, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "holds more" in text and peak < 10 << 20


def test_a_missing_file_is_reported(tmp_path):
    path = tmp_path / "none.gz"
    assert message(read_idx, path).startswith(f"cannot read {path}: {os.strerror(errno.ENOENT)}; check the path")
