"""Tests of `check_dataset`, and of loading data sets by name and by path."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from support.data import message

from fastmlp.data.dataset import Dataset, RawArrays, check_dataset
from fastmlp.data.load import load_data
from fastmlp.data.named import DIGITS
from fastmlp.errors import ConfigError, DataError

NAN, INF = float("nan"), float("inf")


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
def test_features_become_uint8_or_float32_rows(x, dtype, shape):
    checked = check_dataset(RawArrays(x, [0, 1, 1]))
    assert checked.x.dtype == dtype and checked.x.shape == (3, 4) and checked.x.flags.c_contiguous
    assert checked.image_shape == shape and checked.x.tolist() == np.ones((3, 4)).tolist()


@pytest.mark.parametrize(
    ("y", "given", "labels", "classes"),
    [
        ([0, 2, 1], None, [0, 2, 1], ("0", "1", "2")),
        ([[0.0], [2.0], [1.0]], None, [0, 2, 1], ("0", "1", "2")),
        ([False, True, True], None, [0, 1, 1], ("False", "True")),
        (["b", "a", "b"], None, [1, 0, 1], ("a", "b")),
        (["b", "a", "b"], ["b", "c", "a"], [0, 2, 0], ("b", "c", "a")),
        ([0, 1, 1], ["no", "yes", "perhaps"], [0, 1, 1], ("no", "yes", "perhaps")),
    ],
)
def test_labels_are_encoded_as_int32(y, given, labels, classes):
    checked = check_dataset(RawArrays(np.eye(3), np.array(y), given))
    assert checked.y.dtype == np.int32 and checked.y.tolist() == labels and checked.classes == classes


def test_regression_targets_become_columns_of_float32():
    checked = check_dataset(RawArrays(np.eye(2), [1, 2.5], ["a"], None, np.eye(2), [[3], [4]]), task="regression")
    assert checked.y.dtype == np.float32 and checked.y.tolist() == [[1], [2.5]] and checked.classes == ()
    assert checked.y_test is not None and checked.y_test.tolist() == [[3], [4]]


def test_a_float_test_set_makes_both_splits_float():
    checked = check_dataset(RawArrays(np.eye(2, dtype=np.uint8), [0, 1], None, None, np.eye(2), [1, 1]))
    assert checked.x_test is not None and checked.x.dtype == checked.x_test.dtype == np.float32


GOOD = {"x": np.eye(3), "y": [0, 1, 2], "x_test": np.eye(3)[:2], "y_test": [2, 0]}
DAMAGE = {
    "NaN": ({"x": [[1, 0, 0], [0, NAN, 0], [0, 0, 1]]}, "x: row 1, column 1: nan is not a finite"),
    "infinity": ({"x_test": [[1, 0, 0], [0, 0, -INF]]}, "x_test: row 1, column 2: -inf is not a finite"),
    "beyond float32": ({"x": np.eye(3) * 1e39}, "x: row 0, column 0: 1e+39 is not a finite float32"),
    "ragged rows": ({"x": [[1, 2], [1], [1, 2]]}, "x: the rows have different lengths"),
    "Python objects": ({"x": np.full((3, 3), None)}, "x: row 0, column 0: nan is not a finite"),
    "complex": ({"x": np.eye(3) * 1j}, "x: the values have dtype complex128"),
    "text for features": ({"x": np.full((3, 3), "a")}, "x: the values have dtype <U1"),
    "one dimension": ({"x": np.ones(3)}, "x: shape (3,)"),
    "five dimensions": ({"x": np.ones((3, 1, 1, 1, 3))}, "x: shape (3, 1, 1, 1, 3)"),
    "no rows": ({"x": np.ones((0, 3)), "y": []}, "x: empty"),
    "no features": ({"x": np.ones((3, 0))}, "x: empty"),
    "fewer labels": ({"y": [0, 1]}, "x has 3 rows, but y has 2"),
    "fewer test labels": ({"y_test": [0]}, "x_test has 2 rows, but y_test has 1"),
    "negative class number": ({"y": [0, -1, 2], "classes": ["a", "b", "c"]}, "y: row 1: label -1 is not an integer from"),
    "fraction": ({"y": [0, 1, 1.5], "classes": ["a", "b"]}, "y: row 2: label 1.5 is not an integer from 0 to 1"),
    "NaN label": ({"y": [0, 1, NAN], "classes": ["a", "b"]}, "y: row 2: label nan"),
    "NaN target": ({"y": [0, 1, NAN]}, "y: row 2, column 0: nan is not a finite"),
    "label beyond the names": ({"classes": ["a", "b"]}, "y: row 2: label 2 is not an integer from 0 to 1"),
    "test label beyond": ({"y_test": [2, 3]}, "y_test: row 1: label 3 is not one of the classes [0, 1, 2]"),
    "labels in columns": ({"y": [[0, 1], [1, 1], [0, 1]], "classes": ["a", "b"]}, "y: shape (3, 2)"),
    "labels of objects": ({"y": np.array([0, 1, None])}, "y: row 2, column 0: nan is not a finite"),
    "labels of other objects": ({"y": np.array([0, 1, {}])}, "y: row 2 is {}, which is not a number"),
    "unknown name": ({"y": ["a", "b", "c"], "y_test": ["a", "d"]}, "y_test: row 1: unknown class 'd'"),
    "name not in classes": ({"y": ["a", "b", "c"], "classes": ["a", "b"]}, "y: row 2: unknown class 'c'"),
    "equal class names": ({"classes": ["a", "b", "a"]}, "classes: class names must be"),
    "class names of floats": ({"classes": [0.5, 1.5, 2.5]}, "classes: class names must be"),
    "test rows alone": ({"y_test": None}, "x_test is given without y_test"),
    "test labels alone": ({"x_test": None}, "y_test is given without x_test"),
    "other test features": (
        {"x_test": np.ones((2, 4))},
        "x_test has rows of shape (4,), but x has rows of shape (3,)",
    ),
    "other image shape": (
        {"x": np.ones((3, 2, 3)), "x_test": np.ones((2, 3, 2))},
        "x_test has rows of shape (3, 2, 1), but x has rows of shape (2, 3, 1)",
    ),
    "impossible image shape": ({"image_shape": (2, 2, 1)}, "x has 3 features, but images of shape (2, 2, 1) have 4"),
}


def test_valid_arrays_are_accepted():
    assert check_dataset(RawArrays(**GOOD)).classes == ("0", "1", "2")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_in_arrays_is_reported(kind):
    change, expected = DAMAGE[kind]
    assert message(DataError, check_dataset, RawArrays(**(GOOD | change))).startswith(expected)


TARGET_DAMAGE = {
    "NaN": ({"y": [0, NAN, 1]}, "y: row 1, column 0: nan is not a finite"),
    "text": ({"y": ["a", "b", "c"]}, "y: the values have dtype <U1"),
    "three dimensions": ({"y": np.ones((3, 1, 1))}, "y: shape (3, 1, 1)"),
    "other number of test targets": ({"y_test": [[1, 2], [3, 4]]}, "y_test has 2 target columns, but y has 1"),
}


@pytest.mark.parametrize("kind", TARGET_DAMAGE)
def test_damage_in_regression_targets_is_reported(kind):
    change, expected = TARGET_DAMAGE[kind]
    assert check_dataset(RawArrays(**GOOD), task="regression").y.tolist() == [[0], [1], [2]]
    assert message(DataError, check_dataset, RawArrays(**(GOOD | change)), task="regression").startswith(expected)


def test_the_message_for_an_unknown_task_suggests_the_nearest():
    assert "did you mean 'regression'" in message(ConfigError, check_dataset, RawArrays(**GOOD), task="regresion")


def test_sha256_changes_with_every_array():
    base = check_dataset(RawArrays(**GOOD))
    assert base.sha256 == check_dataset(RawArrays(**GOOD)).sha256
    changes = [{"x": 2 * np.eye(3)}, {"y": [0, 2, 1]}, {"x_test": np.eye(3)[1:]}, {"y_test": [1, 0]}]
    others = [check_dataset(RawArrays(**(GOOD | change))).sha256 for change in changes]
    others.append(check_dataset(RawArrays(GOOD["x"], GOOD["y"])).sha256)
    reshaped = Dataset("", base.x.reshape(1, 9), base.y, (), None, base.x_test, base.y_test)
    assert len({base.sha256, reshaped.sha256, *others}) == 7


# --- load_data ---


def test_digits_have_the_same_bits_on_all_machines():
    digits = load_data("digits")
    assert digits.x.shape == (1797, 784) and digits.x.dtype == np.uint8 and digits.image_shape == (28, 28, 1)
    assert digits.classes == tuple("0123456789") and digits.x_test is None
    assert (int(digits.x.min()), int(digits.x.max())) == (0, 255)
    assert digits.sha256 == "fb2c1416c96510faaf0689ca615d8ebb403070bcaca18dd5a297f4bf820c1a3c"


def test_digits_are_equal_to_scikit_learns():
    table = np.loadtxt(DIGITS, delimiter=",")
    reference = load_digits()
    assert np.array_equal(table[:, :-1], reference.data) and np.array_equal(table[:, -1], reference.target)
    assert load_data("digits").y.tolist() == reference.target.tolist()


def test_digits_are_enlarged_as_by_one_pillow_call_per_image():
    small = np.rint(load_digits().images[:3] * (255 / 16)).astype(np.uint8)
    single = [np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR)) for image in small]
    assert np.array_equal(load_data("digits").x[:3], np.stack(single).reshape(3, -1))


def test_data_sets_are_loaded_by_path(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.eye(2), y=[0, 1])
    (tmp_path / "b.CSV").write_text("label,a\n0,1\n1,2\n")
    for name in ("no", "yes"):
        (tmp_path / "c" / name).mkdir(parents=True)
        Image.new("L", (4, 2)).save(tmp_path / "c" / name / "a.png")
    assert load_data(tmp_path / "a.npz").x.tolist() == [[1, 0], [0, 1]]
    assert load_data(str(tmp_path / "b.CSV"), task="regression").y.tolist() == [[0], [1]]
    folder = load_data(tmp_path / "c", image_size=(3, 3))
    assert (folder.name, folder.classes, folder.image_shape) == ("c", ("no", "yes"), (3, 3, 1))


def test_errors_name_file_and_location(tmp_path):
    np.savez(tmp_path / "a.npz", x=[[1, NAN]], y=[0])
    (tmp_path / "b.csv").write_text("label,a\n0,1\n1.5,2\n")
    location = f"{tmp_path / 'a.npz'}: array 'x': row 0, column 1: nan"
    assert message(DataError, load_data, tmp_path / "a.npz").startswith(location)
    text = message(DataError, load_data, tmp_path / "b.csv", task="classification")
    assert text.startswith(f"{tmp_path / 'b.csv'}: line 3, column 1 'label': the label 1.5")


def test_the_message_for_an_unknown_source_suggests_names_and_paths():
    text = message(DataError, load_data, "fashion-mnits")
    assert "did you mean 'fashion-mnist'?" in text and "no such file or folder" in text
    assert "no such file" in message(DataError, load_data, "nowhere/data.npz")


def test_settings_that_do_not_apply_to_the_source_are_rejected(tmp_path):
    (tmp_path / "a.doc").write_text("1,2")
    assert "give a table (.csv, .tsv, .parquet), an .npz" in message(DataError, load_data, tmp_path / "a.doc")
    assert "image_size is for folders" in message(ConfigError, load_data, "digits", image_size=(2, 2))
    assert "a height and a width of at least 1" in message(ConfigError, load_data, tmp_path, image_size=(0, 2))
    assert "not numbers" in message(ConfigError, load_data, tmp_path, task="regression")


@pytest.mark.full
def test_heavy_packages_are_imported_only_when_needed():
    heavy = ["numba", "torch", "sklearn", "matplotlib", "scipy", "rich", "pooch", "requests", "PIL"]
    code = f"import sys, fastmlp.data.dataset; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
