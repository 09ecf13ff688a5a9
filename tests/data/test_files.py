"""Tests of the readers of IDX, .npz and .csv files, with valid files and with every kind of damage."""

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

from fastmlp.data.load import load_data as read_csv
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
    assert "no array named y (it holds: x, Y)" in message(read_npz, write_npz(tmp_path / "a.npz", x=[[1]], Y=[1]))


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


# --- .csv ---


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


CSV_VARIANTS = {
    "header": "label,a,b\n1,2,3\n0,4,255\n",
    "no header": "1,2,3\n0,4,255\n",
    "no newline at the end": "1,2,3\n0,4,255",
    "blank lines at the end": "1,2,3\n0,4,255\n\n \n",
    "Windows": "label,a,b\r\n1,2,3\r\n0,4,255\r\n",
    "byte order mark": "\ufefflabel,a,b\n1,2,3\n0,4,255\n",
    "quoted and spaced": '"label","a","b"\n"1", 2,"3"\n0,4.0, 2.55e2\n',
}


@pytest.mark.parametrize("kind", CSV_VARIANTS)
def test_all_csv_variants_have_the_same_arrays(tmp_path, kind):
    arrays = read_csv(write(tmp_path / "a.csv", CSV_VARIANTS[kind]))
    assert arrays.x.dtype == np.uint8 and arrays.x.tolist() == [[2, 3], [4, 255]] and arrays.y.tolist() == [1, 0]


@pytest.mark.parametrize(("cell", "value"), [("256", 256), ("-1", -1), ("0.5", 0.5), ("1e-3", np.float32(1e-3))])
def test_csv_features_that_are_not_bytes_become_float32(tmp_path, cell, value):
    x = read_csv(write(tmp_path / "a.csv", f"1,2,3\n0,4,{cell}\n")).x
    assert x.dtype == np.float32 and x.tolist() == [[2, 3], [4, value]]


def test_csv_text_labels_are_sorted(tmp_path):
    arrays = read_csv(write(tmp_path / "a.csv", "kind,a\nplum,1\nfig, 2\n plum,3\n3,4\n"))
    assert arrays.classes == ["3", "fig", "plum"] and arrays.y.tolist() == [2, 1, 2, 0]


def test_csv_regression_targets_are_read_as_numbers(tmp_path):
    path = write(tmp_path / "a.csv", "price,a\n1.5,1\n-2,2\n")
    assert read_csv(path, "regression").y.tolist() == [1.5, -2]


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        ([f"pixel{i}" for i in range(9)], (3, 3, 1)),
        ([f"pixel{i}" for i in range(1, 10)], (3, 3, 1)),
        ([f"pixel{i}" for i in range(8)], None),
        ([f"pixel{i}" for i in range(2, 11)], None),
        ([f"p{i}x" for i in range(9)], None),
    ],
)
def test_csv_image_shape_is_read_from_kaggles_header(tmp_path, names, shape):
    text = ",".join(["label", *names]) + "\n" + ",".join(["0"] * (len(names) + 1)) + "\n"
    assert read_csv(write(tmp_path / "a.csv", text)).image_shape == shape


def test_a_csv_file_of_kaggles_size_is_read_by_the_fast_parser(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (2000, 784))
    rows = "\n".join(",".join(map(str, [i % 10, *row])) for i, row in enumerate(x.tolist()))
    header = ",".join(["label", *(f"pixel{i}" for i in range(784))])
    arrays = read_csv(write(tmp_path / "a.csv", f"{header}\n{rows}\n"))
    np.testing.assert_array_equal(arrays.x, x)
    assert arrays.image_shape == (28, 28, 1) and arrays.y[:12].tolist() == [*range(10), 0, 1]


CSV_DAMAGE = {
    "empty file": ("", "line 1 is empty"),
    "blank first line": ("\n1,2,3\n", "line 1 is empty"),
    "one column": ("1\n2\n", "line 1 has one column"),
    "semicolons": ("1;2;3\n", "line 1 has one column"),
    "header only": ("label,a,b\n", "no line of data"),
    "header and blank lines": ("label,a,b\n\n\n", "no line of data"),
    "short line": ("1,2,3\n1,2\n", "line 2 has 2 columns, but line 1 has 3"),
    "long line": ("label,a,b\n1,2,3\n1,2,3,4\n", "line 3 has 4 columns, but line 1 has 3"),
    "header of another width": ("label,a\n1,2,3\n", "line 2 has 3 columns, but line 1 has 2"),
    "empty cell": ("label,a,b\n1,2,3\n1,,3\n", "line 3, column 2 is empty"),
    "empty cell in the first line of data": ("1,,3\n1,2,3\n", "line 1, column 2 is empty"),
    "empty label": ("label,a,b\nx,2,3\n,2,3\n", "line 3, column 1 is empty"),
    "text in a feature": ("label,a,b\n1,2,x\n", "line 2, column 3: 'x' is not a number"),
    "text in the first line of data": ("1,2,x\n1,2,3\n", "line 1, column 3: 'x' is not a number"),
    "text label among numbers": ("label,a,b\n1,2,3\ncat,2,3\n", "line 3, column 1: 'cat' is not a number"),
    "text label without header": ("cat,2,3\ndog,2,3\n", "line 1 starts with 'cat' but is neither"),
    "half a header": ("label,a,5\n1,2,3\n", "line 1 starts with 'label' but is neither"),
    "index column of pandas": (",label,a\n0,1,2\n", "line 1, column 1 is empty; put the label first"),
    "no label column": ("pixel0,pixel1\n1,2\n", "starts with 'pixel0'; put a label column first"),
    "NaN": ("1,2,3\n0,nan,3\n", "line 2, column 2: 'nan' is not a finite"),
    "NaN before blank lines": ("label,a\nx,1\ny,nan\n\n\n", "line 3, column 2: 'nan' is not a finite"),
    "infinity": ("1,2,3\n0,4,-inf\n", "line 2, column 3: '-inf' is not a finite"),
    "beyond float32": ("1,2,3\n0,4,1e39\n", "line 2, column 3: '1e39' is not a finite"),
    "underscore": ("1,2,3\n0,4,1_0\n", "line 2, column 3: '1_0' is not a number"),
    "blank line inside": ("1,2,3\n\n0,4,5\n", "line 2 is blank"),
    "zero byte": ("1,2,3\n0,4,\0\n", "a.csv"),
    "comment sign": ("1,2,3\n0,4,5#6\n", "line 2, column 3: '5#6' is not a number"),
}


@pytest.mark.parametrize("kind", CSV_DAMAGE)
def test_csv_damage_is_reported_by_line_and_column(tmp_path, kind):
    content, expected = CSV_DAMAGE[kind]
    path = write(tmp_path / "a.csv", content)
    text = message(read_csv, path)
    assert str(path) in text and expected in text


def test_csv_in_another_encoding_is_rejected(tmp_path):
    path = tmp_path / "a.csv"
    for content in ("label,Größe\n1,2\n".encode("latin-1"), b"1,2\n3,4\n5,\xff\n", "1,2\n".encode("utf-16")):
        path.write_bytes(content)
        assert "not UTF-8 text" in message(read_csv, path)


def test_csv_text_is_rejected_as_a_regression_target(tmp_path):
    path = write(tmp_path / "a.csv", "price,a\ncheap,1\n")
    assert read_csv(path).classes == ["cheap"]
    assert "line 2, column 1: 'cheap' is not a number" in message(read_csv, path, "regression")
