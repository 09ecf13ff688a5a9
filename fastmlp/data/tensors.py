"""Safetensors files as data sets: tensors x, y and what else `ARRAYS` names; class names and `about` are metadata.

Here: from a file to plain arrays (`Parts`). Not here: the format (tensorfile.py), checks that all sources share (`data.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastmlp.data.csv_table import ARRAYS, Parts, reading
from fastmlp.data.scaling import Place
from fastmlp.errors import DataError
from fastmlp.tensorfile import read_tensors


def read_safetensors(path: str | Path) -> Parts:
    """Read `x`, `y` and what else `ARRAYS` names of a safetensors file; other tensors are ignored.

    Class names are a list in JSON under "classes" in the metadata. Raises DataError for a damaged file or a missing tensor.

    >>> import tempfile
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"x": np.eye(2), "y": np.arange(2)}, f"{folder}/a.safetensors", {"classes": '["no", "yes"]'})
    ...     parts = read_safetensors(f"{folder}/a.safetensors")
    >>> parts.y.tolist(), parts.classes
    ([0, 1], ['no', 'yes'])
    """
    path = Path(path)
    with reading(path):
        metadata, tensors = read_tensors(path)
    if missing := [name for name in ARRAYS[:2] if name not in tensors]:
        listed = ", ".join(sorted(tensors)) or "nothing"
        raise DataError(f"{path}: no tensor named {' nor '.join(missing)} (it holds: {listed}); save x and y")
    found: dict[str, Any] = {name: tensors[name] for name in ARRAYS if name in tensors}
    found |= {"about": metadata.get("about"), "classes": class_names(path, metadata.get("classes"))}
    return Parts(**found, places={name: Place(f"{path}: tensor {name!r}") for name in ARRAYS})


def class_names(path: Path, text: str | None) -> list[str] | None:
    """The class names in the metadata."""
    try:
        names = json.loads(text or "null")
    except ValueError:
        names = text
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f"{path}: 'classes' in the metadata is not a list of names in JSON; correct it or leave it out")
    return names
