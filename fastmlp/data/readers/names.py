"""Common names of the arrays of a data set in files, such as those of Keras, scikit-learn, PyTorch and `numpy.savez`.

Sources: `keras.datasets.mnist.load_data` (mnist.npz), the scikit-learn Bunch, torchvision's processed files.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fastmlp.errors import DataError

# Names of the arrays of a data set in files that fastmlp writes. The last three occur only in feature files.
ARRAYS = ("x", "y", "x_test", "y_test", "classes", "validation", "provenance", "extractor")
# Other names in the order of preference, in pairs of features and targets.
TRAINING = (
    ("x", "y"),
    ("X", "y"),
    ("X", "Y"),
    ("x_train", "y_train"),
    ("X_train", "y_train"),
    ("train_x", "train_y"),
    ("train_images", "train_labels"),
    ("train_data", "train_labels"),
    ("data", "target"),
    ("data", "targets"),
    ("data", "labels"),
    ("images", "labels"),
    ("features", "labels"),
    ("features", "targets"),
    ("inputs", "targets"),
    ("inputs", "labels"),
    ("arr_0", "arr_1"),
)
TEST = (
    ("x_test", "y_test"),
    ("X_test", "y_test"),
    ("test_x", "test_y"),
    ("test_images", "test_labels"),
    ("test_data", "test_labels"),
)
CLASSES = ("classes", "class_names", "target_names", "label_names")


def find_names(
    path: Path, available: Collection[str], weight: str | None = None, kind: str = "array"
) -> tuple[dict[str, str], list[str]]:
    """Return the names of the arrays of a data set in a file, by their names in `ARRAYS`, and messages about other arrays.

    Parameters
    ----------
    path : the file, for messages
    available : names of the arrays in the file
    weight : name of the array with the sample weights; None for equal weights
    kind : "array" or "tensor", for messages

    Raises
    ------
    DataError : there are no features or targets, or no array with the sample weights

    Examples
    --------
    >>> find_names(Path("mnist.npz"), ["x_test", "x_train", "y_test", "y_train"])[0]
    {'x': 'x_train', 'y': 'y_train', 'x_test': 'x_test', 'y_test': 'y_test'}
    """
    pair = next((pair for pair in TRAINING if set(pair) <= {*available}), None)
    if pair is None:
        listed = ", ".join(sorted(available)) or "nothing"
        missing = [name for name in ("x", "y") if name not in available]
        raise DataError(f"{path}: no {kind} named {' nor '.join(missing)} (it holds: {listed}); save x and y")
    names = dict(zip(("x", "y"), pair, strict=True))
    if test := next((pair for pair in TEST if set(pair) <= {*available}), None):
        names |= dict(zip(("x_test", "y_test"), test, strict=True))
    else:  # one without the other is an error of check_dataset
        names |= {name: name for name in ("x_test", "y_test") if name in available}
    if found := [name for name in CLASSES if name in available]:
        names["classes"] = found[0]
    names |= {name: name for name in ARRAYS[5:] if name in available}
    if weight is not None:
        if weight not in available:
            raise DataError(f"{path}: no {kind} named {weight!r}, which should have the sample weights", settings=("weight",))
        names["weight"] = weight
    ignored = sorted({*available} - {*names.values()})
    return names, [f"{path}: ignored {kind}s: {', '.join(ignored)}"] if ignored else []
