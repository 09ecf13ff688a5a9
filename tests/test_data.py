"""Data sets by name and by path, the check that all pass, and real downloads from local mirrors."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import struct
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rich.style  # noqa: F401 - draws a number from `random` at its first import, which must not be in a test
from PIL import Image

from fastmlp.data import (
    DATASETS,
    DataEntry,
    DataFile,
    Dataset,
    Parts,
    check_dataset,
    data_folder,
    fetch_data,
    list_data,
    load_data,
    verify_data,
)
from fastmlp.errors import ConfigError, DataError, UnavailableError

NAN, INF = float("nan"), float("inf")


def message(error, call, *arguments, **settings) -> str:
    """Text of the error that a call must raise: one line."""
    with pytest.raises(error) as caught:
        call(*arguments, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- check_dataset ---


@pytest.mark.parametrize(
    ("x", "dtype", "shape"),
    [
        (np.ones((3, 4), np.uint8), np.uint8, None),
        (np.asfortranarray(np.ones((3, 4), np.uint8)), np.uint8, None),
        (np.ones((3, 4), ">f8"), np.float32, None),
        (np.ones((3, 4), bool), np.float32, None),
        (np.ones((3, 4), np.int64), np.float32, None),
        (np.ones((3, 2, 2), np.uint8), np.uint8, (2, 2, 1)),
        (np.ones((3, 2, 1, 2), np.float16), np.float32, (2, 1, 2)),
    ],
)
def test_features_come_as_uint8_or_float32_rows(x, dtype, shape):
    checked = check_dataset(Parts(x, [0, 1, 1]))
    assert checked.x.dtype == dtype and checked.x.shape == (3, 4) and checked.x.flags.c_contiguous
    assert checked.image_shape == shape and checked.x.tolist() == np.ones((3, 4)).tolist()


@pytest.mark.parametrize(
    ("y", "given", "labels", "classes"),
    [
        ([0, 2, 1], None, [0, 2, 1], ("0", "1", "2")),
        ([[0.0], [2.0], [1.0]], None, [0, 2, 1], ("0", "1", "2")),
        ([False, True, True], None, [0, 1, 1], ("0", "1")),
        (["b", "a", "b"], None, [1, 0, 1], ("a", "b")),
        (["b", "a", "b"], ["b", "c", "a"], [0, 2, 0], ("b", "c", "a")),
        ([0, 1, 1], ["no", "yes", "perhaps"], [0, 1, 1], ("no", "yes", "perhaps")),
    ],
)
def test_labels_become_class_numbers(y, given, labels, classes):
    checked = check_dataset(Parts(np.eye(3), np.array(y), given))
    assert checked.y.dtype == np.int32 and checked.y.tolist() == labels and checked.classes == classes


def test_values_become_columns_of_float32():
    checked = check_dataset(Parts(np.eye(2), [1, 2.5], ["a"], None, np.eye(2), [[3], [4]]), target="value")
    assert checked.y.dtype == np.float32 and checked.y.tolist() == [[1], [2.5]] and checked.classes == ()
    assert checked.y_test is not None and checked.y_test.tolist() == [[3], [4]]


def test_a_float_test_part_makes_both_float():
    checked = check_dataset(Parts(np.eye(2, dtype=np.uint8), [0, 1], None, None, np.eye(2), [1, 1]))
    assert checked.x_test is not None and checked.x.dtype == checked.x_test.dtype == np.float32


GOOD = {"x": np.eye(3), "y": [0, 1, 2], "x_test": np.eye(3)[:2], "y_test": [2, 0]}
DAMAGE = {
    "NaN": ({"x": [[1, 0, 0], [0, NAN, 0], [0, 0, 1]]}, "x: row 1, column 1: nan is not a finite"),
    "infinity": ({"x_test": [[1, 0, 0], [0, 0, -INF]]}, "x_test: row 1, column 2: -inf is not a finite"),
    "beyond float32": ({"x": np.eye(3) * 1e39}, "x: row 0, column 0: 1e+39 is not a finite float32"),
    "ragged rows": ({"x": [[1, 2], [1], [1, 2]]}, "x: rows of different lengths"),
    "Python objects": ({"x": np.full((3, 3), None)}, "x: values of type object"),
    "complex": ({"x": np.eye(3) * 1j}, "x: values of type complex128"),
    "text for features": ({"x": np.full((3, 3), "a")}, "x: values of type <U1"),
    "one dimension": ({"x": np.ones(3)}, "x: shape (3,)"),
    "five dimensions": ({"x": np.ones((3, 1, 1, 1, 3))}, "x: shape (3, 1, 1, 1, 3)"),
    "no rows": ({"x": np.ones((0, 3)), "y": []}, "x: empty"),
    "no features": ({"x": np.ones((3, 0))}, "x: empty"),
    "fewer labels": ({"y": [0, 1]}, "x has 3 rows, y has 2"),
    "fewer test labels": ({"y_test": [0]}, "x_test has 2 rows, y_test has 1"),
    "negative label": ({"y": [0, -1, 2]}, "y: row 1: label -1 is not a whole number in 0..65535"),
    "fraction": ({"y": [0, 1, 1.5]}, "y: row 2: label 1.5"),
    "NaN label": ({"y": [0, 1, NAN]}, "y: row 2: label nan"),
    "absurd label": ({"y": [0, 1, 1 << 40]}, "y: row 2: label 1099511627776"),
    "label beyond the names": ({"classes": ["a", "b"]}, "y: row 2: label 2 is not a whole number in 0..1"),
    "test label beyond": ({"y_test": [2, 3]}, "y_test: row 1: label 3 is not a whole number in 0..2"),
    "labels in columns": ({"y": [[0, 1], [1, 0], [0, 1]]}, "y: shape (3, 2)"),
    "labels of objects": ({"y": np.array([0, 1, None])}, "y: labels of type object"),
    "unknown name": ({"y": ["a", "b", "c"], "y_test": ["a", "d"]}, "y_test: row 1: unknown class 'd'"),
    "name that is not given": ({"y": ["a", "b", "c"], "classes": ["a", "b"]}, "y: row 2: unknown class 'c'"),
    "equal class names": ({"classes": ["a", "b", "a"]}, "classes: class names must be"),
    "class names of floats": ({"classes": [0.5, 1.5, 2.5]}, "classes: class names must be"),
    "test rows alone": ({"y_test": None}, "x_test without its partner"),
    "test labels alone": ({"x_test": None}, "y_test without its partner"),
    "other test features": ({"x_test": np.ones((2, 4))}, "x_test has rows of 4, x of 3"),
    "other image shape": (
        {"x": np.ones((3, 2, 3)), "x_test": np.ones((2, 3, 2))},
        "x_test has rows of (3, 2, 1), x of (2, 3, 1)",
    ),
    "impossible image shape": ({"image_shape": (2, 2, 1)}, "x has 3 features, images of (2, 2, 1) have 4"),
}


def test_good_parts_pass():
    assert check_dataset(Parts(**GOOD)).classes == ("0", "1", "2")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_in_arrays_is_named(kind):
    change, expected = DAMAGE[kind]
    assert message(DataError, check_dataset, Parts(**(GOOD | change))).startswith(expected)


VALUE_DAMAGE = {
    "NaN": ({"y": [0, NAN, 1]}, "y: row 1, column 0: nan is not a finite"),
    "text": ({"y": ["a", "b", "c"]}, "y: values of type <U1"),
    "three dimensions": ({"y": np.ones((3, 1, 1))}, "y: shape (3, 1, 1)"),
    "other number of test values": ({"y_test": [[1, 2], [3, 4]]}, "y_test has targets of 2 columns, y of 1"),
}


@pytest.mark.parametrize("kind", VALUE_DAMAGE)
def test_damage_in_values_is_named(kind):
    change, expected = VALUE_DAMAGE[kind]
    assert check_dataset(Parts(**GOOD), target="value").y.tolist() == [[0], [1], [2]]
    assert message(DataError, check_dataset, Parts(**(GOOD | change)), target="value").startswith(expected)


def test_an_unknown_target_names_the_nearest():
    assert "did you mean 'value'" in message(ConfigError, check_dataset, Parts(**GOOD), target="valu")


def test_sha256_changes_with_every_part():
    base = check_dataset(Parts(**GOOD))
    assert base.sha256 == check_dataset(Parts(**GOOD)).sha256
    changes = [{"x": 2 * np.eye(3)}, {"y": [0, 2, 1]}, {"x_test": np.eye(3)[1:]}, {"y_test": [1, 0]}]
    others = [check_dataset(Parts(**(GOOD | change))).sha256 for change in changes]
    others.append(check_dataset(Parts(GOOD["x"], GOOD["y"])).sha256)
    reshaped = Dataset("", base.x.reshape(1, 9), base.y, (), None, base.x_test, base.y_test)
    assert len({base.sha256, reshaped.sha256, *others}) == 7


# --- load_data ---


def test_digits_are_the_same_everywhere():
    digits = load_data("digits")
    assert digits.x.shape == (1797, 784) and digits.x.dtype == np.uint8 and digits.image_shape == (28, 28, 1)
    assert digits.classes == tuple("0123456789") and digits.x_test is None
    assert (int(digits.x.min()), int(digits.x.max())) == (0, 255)
    assert digits.sha256 == "fb2c1416c96510faaf0689ca615d8ebb403070bcaca18dd5a297f4bf820c1a3c"


def test_sources_by_path(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.eye(2), y=[0, 1])
    (tmp_path / "b.CSV").write_text("label,a\n0,1\n1,2\n")
    for name in ("no", "yes"):
        (tmp_path / "c" / name).mkdir(parents=True)
        Image.new("L", (4, 2)).save(tmp_path / "c" / name / "a.png")
    assert load_data(tmp_path / "a.npz").x.tolist() == [[1, 0], [0, 1]]
    assert load_data(str(tmp_path / "b.CSV"), target="value").y.tolist() == [[0], [1]]
    folder = load_data(tmp_path / "c", image_size=(3, 3))
    assert (folder.name, folder.classes, folder.image_shape) == ("c", ("no", "yes"), (3, 3, 1))


def test_errors_of_files_name_file_and_place(tmp_path):
    np.savez(tmp_path / "a.npz", x=[[1, NAN]], y=[0])
    (tmp_path / "b.csv").write_text("label,a\n0,1\n-1,2\n")
    place = f"{tmp_path / 'a.npz'}: array 'x': row 0, column 1: nan"
    assert message(DataError, load_data, tmp_path / "a.npz").startswith(place)
    assert message(DataError, load_data, tmp_path / "b.csv").startswith(f"{tmp_path / 'b.csv'}: line 3: label -1")


def test_an_unknown_source_names_the_nearest_and_paths():
    text = message(DataError, load_data, "fashion-mnits")
    assert "did you mean 'fashion-mnist'?" in text and "no such file or folder" in text
    assert "no such file" in message(DataError, load_data, "nowhere/data.npz")


def test_settings_that_do_not_fit_the_source(tmp_path):
    (tmp_path / "a.txt").write_text("1,2")
    assert "give .npz, .csv or a folder" in message(DataError, load_data, tmp_path / "a.txt")
    assert "image size is for folders" in message(ConfigError, load_data, "digits", image_size=(2, 2))
    assert "both at least 1" in message(ConfigError, load_data, tmp_path, image_size=(0, 2))
    assert "no values" in message(ConfigError, load_data, tmp_path, target="value")


def test_the_data_folder_is_argument_then_environment_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path))
    assert data_folder("given") == Path("given") and data_folder() == tmp_path
    for unset in (lambda: monkeypatch.setenv("FASTMLP_DATA", ""), lambda: monkeypatch.delenv("FASTMLP_DATA")):
        unset()
        assert data_folder().parts[-2:] == ("fastmlp", "data")
    assert data_folder("~/x") == Path.home() / "x"


@pytest.mark.data
@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_the_real_files_load_and_match_their_pins(name, tmp_path):
    if "FASTMLP_DATA" not in os.environ or list_data()[list(DATASETS).index(name)].state != "present":
        pytest.skip(f"FASTMLP_DATA names no folder with {name}")
    assert {row.status for row in verify_data(name)} == {"ok"}
    real = load_data(name)
    assert real.x.shape == (60000, 784) and real.x.dtype == np.uint8 and real.image_shape == (28, 28, 1)
    assert real.x_test is not None and real.x_test.shape == (10000, 784)
    entry = DATASETS[name]
    for file in entry.files[2:]:  # unpacked copies are checked by the other pin
        content = gzip.decompress((data_folder() / entry.folder / file.name).read_bytes())
        plain = tmp_path / entry.folder / file.name[:-3]
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.write_bytes(content)
    assert [row.status for row in verify_data(name, tmp_path)] == ["missing", "missing", "ok", "ok"]


# --- downloads from local mirrors ---


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(48, dtype=np.uint8).reshape(4, 3, 4)
PARTS = {
    "train-images": IMAGES,
    "train-labels": IMAGES[:, 0, 0] // 12,
    "test-images": IMAGES[:1],
    "test-labels": IMAGES[0, 0, :1],
}
CONTENT = {name: idx(np.ascontiguousarray(array)) for name, array in PARTS.items()}
PACKED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENT.items()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; under /cut it promises more bytes than it sends."""

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.startswith("/cut"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"only this")
        return None


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of a server with /good, /corrupt (wrong bytes) and /cut; anything else is 404."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("FASTMLP_OFFLINE", raising=False)
    root = tmp_path / "www"
    for folder, tail in (("good", b""), ("corrupt", b"!")):
        (root / folder).mkdir(parents=True)
        for name, content in PACKED.items():
            (root / folder / name).write_bytes(content + tail)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def tiny(monkeypatch):
    """Registers the data set "tiny" with the mirrors that it is called with."""

    def register(*mirrors: str) -> None:
        pairs = zip(PACKED.items(), CONTENT.values(), strict=True)
        files = tuple(DataFile(name, sha256(packed), sha256(plain)) for (name, packed), plain in pairs)
        monkeypatch.setitem(DATASETS, "tiny", DataEntry("for tests", tuple("abcd"), "Tiny/raw", mirrors, files))

    return register


@pytest.mark.parametrize("first", ["nothing-here", "corrupt", "cut", "closed"])
def test_a_bad_first_mirror_is_passed_over(server, tiny, tmp_path, first, capfd):
    tiny("http://127.0.0.1:9/" if first == "closed" else f"{server}/{first}/", f"{server}/good/")
    loaded = load_data("tiny", tmp_path / "data")
    assert loaded.x.tolist() == IMAGES.reshape(4, 12).tolist() and loaded.y.tolist() == [0, 1, 2, 3]
    assert loaded.x_test is not None and loaded.image_shape == (3, 4, 1)
    raw = tmp_path / "data" / "Tiny" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == PACKED
    assert capfd.readouterr() == ("", "")


def test_all_mirrors_failing_leaves_nothing_and_names_what_was_tried(server, tiny, tmp_path):
    tiny(f"{server}/nothing-here/", f"{server}/corrupt/", f"{server}/cut/", "http://127.0.0.1:9/")
    text = message(UnavailableError, load_data, "tiny", tmp_path / "data")
    assert "nothing-here/train-images.gz (HTTP 404)" in text and "/cut/train-images.gz (" in text
    assert "corrupt/train-images.gz (wrong SHA-256)" in text and ":9/train-images.gz (ConnectionError)" in text
    raw = tmp_path / "data" / "Tiny" / "raw"
    assert f"copy the files to {raw}" in text and "FASTMLP_DATA" in text
    assert list(raw.iterdir()) == []


def test_offline_forbids_downloads_but_not_files_that_are_there(server, tiny, tmp_path, monkeypatch):
    tiny(f"{server}/good/")
    monkeypatch.setenv("FASTMLP_OFFLINE", "1")
    text = message(UnavailableError, load_data, "tiny", tmp_path)
    assert "train-images.gz is missing and FASTMLP_OFFLINE forbids" in text and "FASTMLP_DATA" in text
    assert not (tmp_path / "Tiny").exists()
    monkeypatch.setenv("FASTMLP_OFFLINE", "0")
    load_data("tiny", tmp_path)
    monkeypatch.setenv("FASTMLP_OFFLINE", "1")
    load_data("tiny", tmp_path)


def test_list_fetch_and_verify(server, tiny, tmp_path):
    tiny(f"{server}/good/")
    raw = tmp_path / "Tiny" / "raw"
    assert list_data(tmp_path)[-1] == ("tiny", "for tests", "missing", str(raw))
    assert {row.status for row in verify_data("tiny", tmp_path)} == {"missing"}
    rows = fetch_data("tiny", tmp_path)
    assert [row.status for row in rows] == ["ok"] * 4 and all(row.found == row.expected for row in rows)
    assert list_data(tmp_path)[-1].state == "present"
    (raw / "test-labels.gz").unlink()
    assert list_data(tmp_path)[-1].state == "incomplete"
    (raw / "train-labels.gz").write_bytes(PACKED["train-labels.gz"][:-1])
    assert [row.status for row in verify_data("tiny", tmp_path)] == ["ok", "damaged", "ok", "missing"]
    assert "damaged gzip" in message(DataError, load_data, "tiny", tmp_path)
    assert [row.status for row in fetch_data("tiny", tmp_path)] == ["ok"] * 4


def test_unpacked_files_come_first_and_are_never_replaced(server, tiny, tmp_path):
    tiny(f"{server}/good/")
    fetch_data("tiny", tmp_path)
    plain = tmp_path / "Tiny" / "raw" / "train-labels"
    plain.write_bytes(CONTENT["train-labels"])
    rows = verify_data("tiny", tmp_path)
    assert [Path(row.file).name for row in rows][1:3] == ["train-labels", "train-labels.gz"]
    assert {row.status for row in rows} == {"ok"}
    plain.write_bytes(idx(np.array([3, 3, 3, 3], np.uint8)))
    assert load_data("tiny", tmp_path).y.tolist() == [3, 3, 3, 3]
    assert verify_data("tiny", tmp_path)[1].status == "damaged"
    assert f"{plain}: damaged" in message(DataError, fetch_data, "tiny", tmp_path)
    assert plain.exists()


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("train-labels", np.array([0, 1, 2, 4], np.uint8), "train-labels: row 3: label 4 is not a whole"),
        ("train-labels", np.array([0, 1, 2], np.uint8), "train-labels has 3; give each row its target"),
        ("test-images", IMAGES[:1, :2], "test-images has rows of (2, 4, 1)"),
    ],
)
def test_idx_files_that_do_not_fit_each_other(server, tiny, tmp_path, name, array, expected):
    tiny(f"{server}/good/")
    fetch_data("tiny", tmp_path)
    load_data("tiny", tmp_path)
    (tmp_path / "Tiny" / "raw" / name).write_bytes(idx(array))
    assert expected in message(DataError, load_data, "tiny", tmp_path)


def test_a_folder_that_cannot_be_written_is_named(server, tiny, tmp_path):
    tiny(f"{server}/good/")
    (tmp_path / "file").write_text("")
    text = message(DataError, load_data, "tiny", tmp_path / "file")
    assert f"{tmp_path / 'file' / 'Tiny' / 'raw'}: cannot be written" in text


def test_a_bar_is_drawn_on_stderr_only_when_asked(server, tiny, tmp_path, capfd):
    tiny(f"{server}/corrupt/", f"{server}/good/")
    fetch_data("tiny", tmp_path, progress=True)
    shown = capfd.readouterr()
    assert shown.out == "" and all(name in shown.err for name in PACKED)
    size = len(PACKED["train-images.gz"])
    assert f"{size}/{size} bytes" in shown.err


def test_unknown_names_of_data_sets():
    for call in (fetch_data, verify_data):
        assert "did you mean 'mnist'?" in message(DataError, call, "mnits")
    assert fetch_data("digits") == verify_data("digits") == []


def test_heavy_packages_are_imported_only_when_needed():
    heavy = "numba torch sklearn matplotlib scipy rich pooch requests PIL".split()
    code = f"import sys, fastmlp.data; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
