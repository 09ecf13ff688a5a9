"""Untrusted data: only regular files of bounded size are read, and any damage gives a one-line error message."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import safetensors.numpy
from PIL import Image
from pyarrow import parquet
from support.data import at_once, idx, message  # noqa: F401 - a fixture

from fastmlp.data.load import load_data
from fastmlp.data.readers import tensors
from fastmlp.data.readers.arrays import map_npy, read_npz
from fastmlp.data.readers.dialect import Dialect
from fastmlp.errors import DataError

ROWS = 200_000
MIB = 1 / 1024  # in GiB
NAMES = ("a", "a.csv", "a.csv.gz", "a.parquet", "a.npz", "a.safetensors", "a.npy", "train-images-idx3-ubyte", "a.pt")

posix = pytest.mark.skipif(os.name != "posix", reason="named pipes and devices exist only on POSIX systems")


# ------------------------------------------------------------------------------------------------ only regular files


@posix
@pytest.mark.parametrize("name", NAMES)
def test_named_pipes_and_devices_are_refused_at_once(name: str, tmp_path: Path, at_once: None) -> None:  # noqa: F811
    os.mkfifo(tmp_path / name)
    assert str(tmp_path) in message(DataError, load_data, tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert str(tmp_path) in message(DataError, load_data, tmp_path / name)


@posix
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["loop", "long name", "zero byte"])
def test_paths_that_cannot_be_opened(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / {"loop": name, "long name": "n" * 300 + name, "zero byte": f"\0{name}"}[kind]
    if kind == "loop":
        path.symlink_to(path)
    assert str(tmp_path) in message(DataError, load_data, path)


@posix
def test_a_named_pipe_in_a_folder_of_images_or_arrays(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "images" / name / "1.png")
    os.mkfifo(tmp_path / "images" / "dog" / "2.png")
    text = message(DataError, load_data, tmp_path / "images")
    assert text == f"cannot read {tmp_path}/images/dog/2.png: it is a named pipe; give the path of a file"
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "x.npy", np.eye(3))
    os.mkfifo(tmp_path / "arrays" / "y.npy")
    assert "it is a named pipe" in message(DataError, load_data, tmp_path / "arrays")


# ------------------------------------------------------------------------------------------------ only bounded sizes


def npz(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((ROWS, 8)), y=np.arange(ROWS) % 2)


def csv(path: Path) -> None:
    path.write_bytes(gzip.compress(b"a,b,label\n" + b"0,0,no\n0,0,yes\n" * ROWS))


def short_cells(path: Path) -> None:
    """Each line takes 10 bytes as text, and 40 in memory."""
    path.write_bytes(gzip.compress(b"a,b,c,d,label\n" + b"1,2,3,4,5\n1,2,3,4,6\n" * 20_000))


def several_arrays(path: Path) -> None:
    """Each array is below the limit, but their sum is not."""
    x, y = np.zeros((600, 1000), np.uint8), np.arange(600) % 2
    np.savez_compressed(path, x=x, y=y, x_test=x, y_test=y)


def idx_file(path: Path) -> None:
    labels = path.with_name("train-labels-idx1-ubyte")
    path.write_bytes(gzip.compress(idx(np.zeros((ROWS, 4, 4), np.uint8))))
    labels.write_bytes(idx(np.zeros(ROWS, np.uint8)))


def numbers(path: Path) -> None:
    parquet.write_table(pa.table({"a": np.zeros(ROWS), "b": np.zeros(ROWS), "label": np.zeros(ROWS, int)}), path)


def text(path: Path) -> None:
    """A text of 1 MB is in the file once, and in the table 20 times."""
    column = pa.array(["x" * 1_000_000] * 20 + ["y"] * 20)
    parquet.write_table(pa.table({"a": column, "label": ["no", "yes"] * 20}), path)


def coded(path: Path) -> None:
    """Each text has one more character than the one before, and only this one is in the file."""
    column = pa.array(["x" * (2000 + number % 20) for number in range(4000)])
    table = pa.table({"a": column, "label": ["no", "yes"] * 2000})
    parquet.write_table(table, path, use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY"}, write_statistics=False)


def binary(path: Path) -> None:
    """Text without the type of text."""
    column = pa.array([b"x" * 1_000_000] * 20 + [b"y"] * 20)
    parquet.write_table(pa.table({"a": column, "label": ["no", "yes"] * 20}), path, store_schema=False)


def repeated(path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(1).expand(ROWS, 8), "y": torch.zeros(1, dtype=torch.int64).expand(ROWS)}, path)


def packed_pt(path: Path) -> None:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(ROWS, 8), "y": torch.arange(ROWS) % 2}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))


def images(path: Path) -> None:
    for name in ("cat", "dog"):
        (path / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (400, 400)).save(path / name / f"{number}.png")


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "npz": (npz, "a.npz"),
    "npz of several arrays": (several_arrays, "a.npz"),
    "csv.gz": (csv, "a.csv.gz"),
    "csv.gz of short cells": (short_cells, "a.csv.gz"),
    "idx.gz": (idx_file, "train-images-idx3-ubyte"),
    "Parquet numbers": (numbers, "a.parquet"),
    "Parquet text": (text, "a.parquet"),
    "Parquet text with prefixes": (coded, "a.parquet"),
    "Parquet bytes": (binary, "a.parquet"),
    "repeated tensor": (repeated, "a.pt"),
    "compressed tensors": (packed_pt, "a.pt"),
    "images": (images, "folder"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_rejected_unless_the_limit_is_raised(kind: str, tmp_path: Path) -> None:
    make, name = BOMBS[kind]
    make(tmp_path / name)
    found = message(DataError, load_data, tmp_path / name, max_decompressed=MIB)
    assert found.startswith(f"{tmp_path}/") and "more than 50 times its size" in found and "set max_decompressed to" in found
    assert ("the folder of images has" if kind == "images" else "the file has") in found
    assert len(load_data(tmp_path / name, max_decompressed=1).x) >= 16
    assert len(load_data(tmp_path / name).x) >= 16


@pytest.mark.parametrize("kind", ["npz", "idx.gz", "repeated tensor", "images"])
def test_bombs_are_rejected_before_memory_is_allocated(kind: str, tmp_path: Path) -> None:
    make, name = BOMBS[kind]
    make(tmp_path / name)
    load_data("digits")  # imports
    tracemalloc.start()
    try:
        message(DataError, load_data, tmp_path / name, max_decompressed=MIB)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


DTYPES = ["|V0", "<U0", [("a", "<f8")], "|O", "<M8[D]"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_without_numbers_are_refused(dtype: Any, tmp_path: Path) -> None:
    """A trillion values of 0 bytes fit into any file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": (10**12,)})
    for name, array in (("x", np.eye(3)), ("y", np.arange(3))):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "y.npy").write_bytes(header.getvalue())
    assert str(tmp_path / "y.npy") in message(DataError, map_npy, tmp_path / "y.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.write(tmp_path / name, name)
    assert message(DataError, read_npz, tmp_path / "a.npz").startswith(f"{tmp_path / 'a.npz'}: array 'y'")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_methods_are_refused(method: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(3), y=np.arange(3))
    with zipfile.ZipFile(tmp_path / "a.npz") as old, zipfile.ZipFile(tmp_path / "b.npz", "w", method) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert "unsupported compression method" in message(DataError, read_npz, tmp_path / "b.npz")


# ------------------------------------------------------------------------------------------------ any exception of a library


def test_dtypes_that_numpy_lacks(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    y = torch.zeros(4, dtype=torch.int64)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16):
        save_file({"x": torch.zeros(4, 2).to(dtype), "y": y}, tmp_path / "a.safetensors")
        text = message(DataError, load_data, tmp_path / "a.safetensors")
        assert text.startswith(f"{tmp_path / 'a.safetensors'}: tensor 'x': cannot be read as a NumPy array (")
    torch.save({"x": torch.zeros(4, 2).to(torch.float8_e4m3fn), "y": y}, tmp_path / "a.pt")
    assert message(DataError, load_data, tmp_path / "a.pt").startswith(f"{tmp_path / 'a.pt'}: tensor 'x': cannot be converted")


@pytest.mark.parametrize("error", [AttributeError, SystemError, RecursionError, MemoryError, KeyError])
@pytest.mark.parametrize(
    ("name", "library", "function"),
    [
        ("a.npz", np, "load"),
        ("a.npz", np.lib.format, "read_magic"),
        ("x.npy", np, "memmap"),
        ("a.safetensors", safetensors, "safe_open"),
        ("a.parquet", parquet, "ParquetFile"),
        ("a.csv", pa.csv, "read_csv"),
        ("a.csv.gz", gzip.GzipFile, "readinto"),
    ],
)
def test_every_exception_of_a_library_names_the_file(
    error: type[Exception], name: str, library: Any, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise error("planted fault")

    arrays = {"x": np.eye(4), "y": np.arange(4) % 2}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    for key, array in arrays.items():
        np.save(tmp_path / f"{key}.npy", array)
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    parquet.write_table(pa.table({"a": [1.0, 2.0], "label": ["no", "yes"]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("a,label\n1,no\n2,yes\n")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    load_data(tmp_path / name)
    monkeypatch.setattr(library, function, fail)
    text = message(DataError, load_data, tmp_path / name)
    assert text.startswith(f"{tmp_path / name}: ") and "planted fault" in text and "; " in text


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    """NumPy stores characters as 32 bits, and fails later if they are no characters."""
    for name, array in (("x", np.eye(3)), ("y", np.array(["ab", "cd", "ef"]))):
        np.save(tmp_path / f"{name}.npy", array)
    data = bytearray((tmp_path / "y.npy").read_bytes())
    data[-4:] = b"\0\0\x11\0"
    (tmp_path / "y.npy").write_bytes(data)
    assert "invalid Unicode code points" in message(DataError, map_npy, tmp_path / "y.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.write(tmp_path / name, name)
    assert "array 'y': text with invalid Unicode code points" in message(DataError, read_npz, tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["pixel" + "9" * 5000, "9" * 5000])
def test_long_numbers_in_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"label,{name}\n" + "no,1\nyes,2\n" * 5)
    assert load_data(tmp_path / "a.csv", header=True).classes == ("no", "yes")
    assert "the table has 2 columns" in message(DataError, load_data, tmp_path / "a.csv", target="8" * 5000, header=True)
    (tmp_path / "b.csv").write_text("label,a\n" + f"{name},1\nyes,2\n" * 5)
    assert load_data(tmp_path / "b.csv").classes == (name, "yes")


def test_long_cells_are_read_in_linear_time() -> None:
    """The steps of a regular expression cannot be counted; the text is so long that their square would take hours."""
    for text in ("1" * 3_000_000 + "x", "1." + "1" * 3_000_000 + "x", "1,1" * 1_000_000):
        assert not Dialect("utf-8", False).is_number(text)
        assert not Dialect("utf-8", False, ";", ",").is_number(text)


# ------------------------------------------------------------------------------------------------ files of torch.save


def pickled(path: Path, value: Any, **options: Any) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(value, path, **options)
    return path


def test_files_of_torch_save_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    x, y = torch.eye(4), torch.arange(4) % 2
    for value in ({"x": x, "y": y}, (x, y), [x, y], {"x": torch.nn.Parameter(x), "y": y}, {"x": x, "y": y, "classes": y}):
        for options in ({}, {"_use_new_zipfile_serialization": False}):
            found = load_data(pickled(tmp_path / "a.pt", value, **options)) if "classes" not in value else None
            assert found is None or np.array_equal(found.x, np.eye(4))


class Huge:
    """Its pickle calls bytearray, which PyTorch's restricted unpickler allows."""

    def __reduce__(self) -> Any:
        return bytearray, (1 << 40,)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_pickles_that_allocate_memory_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    path = pickled(tmp_path / "a.pt", {"x": Huge()}, **options)
    assert "bytearray', which is not a tensor" in message(DataError, load_data, path)


def test_compressed_members_are_refused_before_pytorch_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    packed_pt(tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", None)
    assert "more than 50 times its size" in message(DataError, load_data, tmp_path / "a.pt", max_decompressed=MIB)


def test_tar_archives_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would unpack them into a temporary folder."""
    pytest.importorskip("torch")
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = 8
            archive.addfile(member, io.BytesIO(bytes(8)))
    monkeypatch.setattr(tempfile, "mkdtemp", None)
    assert "not a readable file of tensors" in message(DataError, load_data, tmp_path / "a.pt")
    monkeypatch.setattr(tensors, "check_pickles", lambda file, stream: None)
    assert "not a readable file of tensors" in message(DataError, load_data, tmp_path / "a.pt")


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_all_encodings_of_text_are_read(encoding: str, kind: Any, tmp_path: Path) -> None:
    texts = pa.array(["no", "yes"] * 40).cast(kind)
    table = pa.table({"a": np.arange(80.0), "label": texts})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, use_dictionary=False, column_encoding={"label": encoding, "a": "PLAIN"})
    assert load_data(path).classes == ("no", "yes")


@pytest.mark.parametrize("values", [[[1.0], [2.0]], [{"b": 1}, {"b": 2}], [b"ab", b"cd"]])
def test_columns_whose_size_is_not_known_are_refused(values: list[Any], tmp_path: Path) -> None:
    column = pa.array(values, pa.binary(2)) if isinstance(values[0], bytes) else pa.array(values)
    parquet.write_table(pa.table({"a": column, "label": ["no", "yes"]}), tmp_path / "a.parquet")
    assert "column 'a' has the type" in message(DataError, load_data, tmp_path / "a.parquet", drop="a")


def test_tables_with_very_many_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1," * 100_000 + "1\n")
    text = message(DataError, load_data, path)
    assert text.startswith(f"{path}: 100,001 columns, more than 100,000; save the data as a folder of arrays")


def test_an_extractor_of_another_kind_is_named(tmp_path: Path) -> None:
    arrays = {"x": np.eye(4), "y": np.arange(4) % 2}
    for extractor in (np.array([b"ab"]), np.zeros((2, 2), np.uint8), np.zeros(3)):
        np.savez(tmp_path / "a.npz", **arrays, extractor=extractor, provenance=np.array("{}"))
        assert str(tmp_path / "a.npz") in message(DataError, load_data, tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **arrays, extractor=np.zeros(3, np.uint8))
    assert "has no matching array 'provenance'" in message(DataError, load_data, tmp_path / "a.npz")
