"""Tests of folders of `.npy` files: which arrays stay memory-mapped and which are copied, and every kind of damage."""

from __future__ import annotations

import io
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.cli import FAST, forget_settings, ok, refused
from support.data import message as message_of

from fastmlp.data.load import load_data
from fastmlp.data.readers import arrays as arrays_module
from fastmlp.data.readers.arrays import read_npy_folder
from fastmlp.data.rows import is_mapped
from fastmlp.errors import ConfigError, DataError

message = partial(message_of, DataError)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 2), np.uint8)
LABELS = np.arange(40) % 3


def folder_of(path: Path, **arrays: object) -> Path:
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


def as_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_folder_is_read_like_the_npz_it_was_unpacked_from(tmp_path):
    arrays = {"x": PIXELS, "y": LABELS, "x_test": PIXELS[:9], "y_test": LABELS[:9], "classes": ["a", "b", "c"]}
    np.savez(tmp_path / "a.npz", **arrays)
    shutil.unpack_archive(tmp_path / "a.npz", tmp_path / "a", "zip")
    packed, mapped = load_data(tmp_path / "a.npz"), load_data(tmp_path / "a")
    assert mapped.sha256 == packed.sha256
    assert (mapped.name, mapped.classes, mapped.image_shape) == ("a", ("a", "b", "c"), (6, 2, 1))
    assert is_mapped(mapped.x) and mapped.x_test is not None and is_mapped(mapped.x_test)
    assert not is_mapped(packed.x)


@pytest.mark.parametrize(
    ("x", "stays"),
    [
        (PIXELS, True),
        (PIXELS[:, :, 0].astype(np.float32), True),
        (PIXELS[:, :, 0].astype(">f4"), False),
        (PIXELS[:, :, 0].astype(np.float64), False),
        (np.asfortranarray(PIXELS[:, :, 0]), False),
        (PIXELS[:, :, 0] > 9, False),
    ],
)
def test_only_arrays_that_engines_can_read_stay_mapped(tmp_path, x, stays):
    data = load_data(folder_of(tmp_path / "a", x=x, y=LABELS))
    assert is_mapped(data.x) == stays
    assert np.array_equal(data.x, x.reshape(40, -1))
    assert data.x.dtype == (np.uint8 if x.dtype == np.uint8 else np.float32) and data.x.flags.c_contiguous
    if stays:
        assert not data.x.flags.writeable


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_read_ahead_is_disabled_for_files_larger_than_memory(tmp_path, monkeypatch, share):
    monkeypatch.setattr(arrays_module, "READ_AHEAD_SHARE", share)
    data = load_data(folder_of(tmp_path / "a", x=PIXELS, y=LABELS))
    ranges = Path("/proc/self/smaps").read_text().split(str(tmp_path / "a" / "x.npy"))
    flags = re.search(r"VmFlags:(.*)", ranges[1])
    assert is_mapped(data.x) and flags is not None
    assert ("rr" in flags[1].split()) == (share == 0)  # MADV_RANDOM


def test_regression_targets(tmp_path):
    data = load_data(folder_of(tmp_path / "a", x=PIXELS, y=LABELS / 7), task="regression")
    assert data.y.shape == (40, 1) and data.classes == ()


def test_settings_of_image_folders_are_rejected(tmp_path):
    folder = folder_of(tmp_path / "a", x=PIXELS, y=LABELS)
    assert "image_size is for folders of images" in message_of(ConfigError, load_data, folder, image_size=(2, 2))


def test_a_run_on_images_in_a_folder_of_arrays_can_be_evaluated(tmp_path, monkeypatch):
    """For a folder of arrays, `evaluate` does not pass the model's image shape as `image_size`, which would be an error."""
    forget_settings(monkeypatch)
    folder = folder_of(tmp_path / "a", x=PIXELS, y=LABELS)
    ok("train", "--data", folder, "--out", tmp_path / "run", *FAST)
    ok("evaluate", tmp_path / "run")


# --- damage ---

GOOD = as_bytes(PIXELS)
HEADER = len(GOOD) - PIXELS.nbytes


def headed(*shape: int) -> bytes:
    """Return the content of an `.npy` file whose header declares the given shape, followed by the bytes of PIXELS."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue() + PIXELS.tobytes()


DAMAGE = {
    "empty file": (b"", "not in the format of numpy.save"),
    "not an .npy file": (b"x" * 999, "not in the format of numpy.save"),
    "another version": (GOOD[:6] + b"\x09" + GOOD[7:], "not in the format of numpy.save"),
    "header cut off": (GOOD[: HEADER - 9], "not in the format of numpy.save"),
    "header that is not Python": (GOOD.replace(b"(40, 6, 2)", b"(40, 6, 2("), "not in the format of numpy.save"),
    "an archive": (b"PK\x03\x04" + GOOD, "not in the format of numpy.save"),
    "no bytes": (GOOD[:HEADER], "declares shape (40, 6, 2) and dtype uint8, which need 480 bytes, but 0 follow; save"),
    "truncated": (GOOD[:-1], "declares shape (40, 6, 2) and dtype uint8, which need 480 bytes, but 479 follow; save"),
    "trailing byte": (GOOD + b"\0", "declares shape (40, 6, 2) and dtype uint8, which need 480 bytes, but 481 follow; save"),
    "absurd size": (headed(1 << 40, 6, 2), "bytes, but 480 follow"),
    "beyond 64 bits": (headed(1 << 60, 1 << 60), "bytes, but 480 follow"),
    "negative sizes": (headed(-40, 6, -2), "invalid shape (-40, 6, -2); save"),
    "Python objects": (as_bytes(np.array([1, None] * 20)), "holds Python objects"),
    "no rows": (as_bytes(PIXELS[:0]), "empty (shape (0, 6, 2))"),
    "text": (as_bytes(PIXELS[:, :, 0].astype(str)), "the values have dtype <U3; they must be numbers"),
    "complex": (as_bytes(PIXELS[:, :, 0].astype(complex)), "the values have dtype complex128"),
    "records": (as_bytes(np.zeros((40, 2), [("a", "f4"), ("b", "u1")])), "they must be numbers"),
    "one number": (as_bytes(np.float32(3)), "empty (shape ())"),
    "one dimension": (as_bytes(PIXELS[:, 0, 0].copy()), "shape (40,); the shape must be (n, features)"),
    "fewer rows than labels": (as_bytes(PIXELS[:39]), "has 39 rows"),
    "NaN": (as_bytes(np.where(np.arange(40) == 7, np.nan, 0)[:, None].astype("f4")), "row 7, column 0: nan"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_reported_by_file(tmp_path, kind):
    content, expected = DAMAGE[kind]
    folder = folder_of(tmp_path / "a", x=PIXELS, y=LABELS)
    load_data(folder)
    (folder / "x.npy").write_bytes(content)
    text = message(load_data, folder)
    assert text.startswith(str(folder / "x.npy")) and expected in text


def test_the_command_fails_with_exit_code_3_before_training(tmp_path, monkeypatch):
    forget_settings(monkeypatch)
    folder = folder_of(tmp_path / "a", x=PIXELS, y=LABELS)
    (folder / "x.npy").write_bytes(GOOD[:-1])
    assert "479 follow" in refused(3, "train", "--data", folder, "--out", tmp_path / "run", *FAST)
    assert not (tmp_path / "run").exists()


def test_missing_files_are_reported(tmp_path):
    folder = folder_of(tmp_path / "a", x=PIXELS)
    assert f"{folder / 'y.npy'}: no such file" in message(load_data, folder)
    (folder / "x.npy").rename(folder / "y.npy")
    assert f"{folder / 'x.npy'}: no such file" in message(read_npy_folder, folder)
    assert f"{folder / 'x.npy'}: no such file" in message(load_data, folder / "y.npy")
    (folder / "y.npy").unlink()
    assert "0 class folders" in message(load_data, folder)


def test_a_test_set_without_targets_is_rejected(tmp_path):
    folder = folder_of(tmp_path / "a", x=PIXELS, y=LABELS, x_test=PIXELS)
    assert f"{folder / 'x_test.npy'} is given without y_test" in message(load_data, folder)
