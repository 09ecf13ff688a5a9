"""Model files: safetensors with the weights, the description, the scaling and the class names. No pickle.

Tensors: `layers.N.weight` [fan_in, fan_out], `layers.N.bias` [fan_out], and with a scaling `scaling.shift` and
`scaling.factor`. Metadata: one JSON object under "fastmlp", and "sha256" over that object and all tensors, since the format
itself does not notice a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastmlp.artifacts import write_bytes
from fastmlp.errors import ConfigError, DataError
from fastmlp.model import Model
from fastmlp.network import Network
from fastmlp.preprocess import Scaling

VERSION = 1
FILE_NAME = "model.safetensors"
LARGEST_FILE = 4 << 30  # bytes; a multi-layer perceptron of a billion weights


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON object in a model file's metadata."""

    version: int
    network: Network
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    scaling: str | None


def save(model: Model, path: str | Path) -> None:
    """Write a model file, atomically: the old file or the new one exists at any moment.

    Raises
    ------
    DataError : the file cannot be written
    """
    from safetensors.numpy import save as to_bytes

    tensors: dict[str, npt.NDArray[Any]] = {}
    for index, (w, b) in enumerate(model.network.views(model.parameters)):
        tensors[f"layers.{index}.weight"], tensors[f"layers.{index}.bias"] = w, b
    if model.scaling is not None:
        tensors["scaling.shift"], tensors["scaling.factor"] = model.scaling.shift, model.scaling.factor
    header = {
        "version": VERSION,
        "network": asdict(model.network),
        "classes": model.classes,
        "image_shape": model.image_shape,
        "scaling": model.scaling.kind if model.scaling is not None else None,
    }
    text = json.dumps(header)
    write_bytes(Path(path), to_bytes(tensors, {"fastmlp": text, "sha256": digest(text, tensors)}))


def load(path: str | Path, *, backend: str = "auto", threads: int | None = None) -> Model:
    """Read a model from a model file, or from a run folder that has one.

    Parameters
    ----------
    path : file or folder
    backend, threads : how the model will compute; see `backends.make_engine`

    Raises
    ------
    DataError : the file is missing, damaged, or not a model of this version

    Examples
    --------
    >>> import tempfile
    >>> from fastmlp import Model, Network
    >>> network = Network((4, 3, 2))
    >>> model = Model(network, network.initial_parameters(seed=0), classes=("no", "yes"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, f"{folder}/model.safetensors")
    ...     bool((load(folder).parameters == model.parameters).all())
    True
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    metadata, tensors = read_safetensors(file)
    if "fastmlp" not in metadata or "sha256" not in metadata:
        raise DataError(f"{file}: not a fastmlp model (its metadata lacks 'fastmlp' or 'sha256')")
    if digest(metadata["fastmlp"], tensors) != metadata["sha256"]:
        raise DataError(f"{file}: damaged, its content does not match its SHA-256; train again or restore a copy")
    try:
        header = msgspec.json.decode(metadata["fastmlp"], type=Header)
    except (msgspec.MsgspecError, ConfigError, TypeError) as error:
        raise DataError(f"{file}: the description cannot be read ({error}); it may come from another version") from error
    if header.version != VERSION:
        raise DataError(f"{file}: format version {header.version}, but this fastmlp reads version {VERSION}")
    scaling = None
    if header.scaling is not None:
        scaling = Scaling(header.scaling, tensors.pop("scaling.shift"), tensors.pop("scaling.factor"))
    parameters = gather(file, header.network, tensors)
    return Model(header.network, parameters, scaling, header.classes, header.image_shape, backend, threads)


def read_safetensors(file: Path) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    """Metadata and tensors of a safetensors file, or a DataError that says what is wrong with it."""
    from safetensors import SafetensorError, safe_open

    try:
        size = file.stat().st_size
        if size > LARGEST_FILE:
            raise DataError(f"{file}: {size} bytes are more than the {LARGEST_FILE} that a model file may have")
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is not a mapping
    except FileNotFoundError:
        raise DataError(f"{file}: no such model; `fastmlp train --out FOLDER` writes one") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: not a readable safetensors file ({error})") from error
    return metadata, tensors


def gather(file: Path, network: Network, tensors: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The flat parameter vector from the tensors of a file, each checked against the description."""
    first = tensors.get("layers.0.weight")
    vector = np.empty(network.parameters, np.float32 if first is None else first.dtype)
    for index, views in enumerate(network.views(vector)):
        for kind, view in zip(("weight", "bias"), views, strict=True):
            name = f"layers.{index}.{kind}"
            if name not in tensors or tensors[name].shape != view.shape:
                found = tensors[name].shape if name in tensors else "missing"
                raise DataError(f"{file}: tensor {name} must have shape {view.shape}, but is {found}")
            view[:] = tensors[name]
    if not np.isfinite(vector).all():
        raise DataError(f"{file}: the weights hold values that are not finite")
    return vector


def digest(text: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over the description and every tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype.str} {tensor.shape} ".encode())
        total.update(np.ascontiguousarray(tensor).tobytes())
    return total.hexdigest()
