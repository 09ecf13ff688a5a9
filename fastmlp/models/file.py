"""Save and load model files, which are safetensors files with the weights, the description, the scaling and the class names.

The tensors are `layers.N.weight` [fan_in, fan_out] and `layers.N.bias` [fan_out]. A model with a scaling also has
`scaling.shift` and `scaling.factor`, and a model with scaled targets has `targets.shift` and `targets.factor`. A model of
extracted features also has `extractor`, the bytes of a fastmlp.cnn file as uint8. A checkpoint is a model file that also has
`training.*`, see training/checkpoints.py. The metadata has two keys: "fastmlp" is a JSON object with the description, and
"sha256" is the hash of this object and of all tensors, because the safetensors format itself does not detect flipped bits.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import check_description
from fastmlp.data.images.polarity import ImageStats
from fastmlp.data.readers.tensors import read_tensors, tensor_bytes
from fastmlp.data.tables.encoding import TableEncoding
from fastmlp.errors import ConfigError, DataError, printable
from fastmlp.files import write_bytes
from fastmlp.files.reading import exists, files_matching, given_path, is_folder, library_errors, reason, size_of
from fastmlp.nn.activations import Activation, UnknownActivation, register
from fastmlp.nn.names import normalize
from fastmlp.nn.network import Network
from fastmlp.nn.scaling import Scaling

if TYPE_CHECKING:
    from fastmlp.models.model import Model

VERSION = 1
FILE_NAME = "model.safetensors"
CHECKPOINTS_NAME, CHECKPOINT_FILES = "checkpoints", "step-*.safetensors"  # subfolder of a run folder, and names of its files
# Maps the names of custom activations to the activations, or to pairs (value, slope).
CustomActivations = Mapping[str, Activation | tuple[Callable[..., Any], Callable[..., Any]]]
INPUTS, TARGETS = "scaling", "targets"  # prefixes of the tensors of the scaling of the inputs and of the targets
EXTRACTOR = "extractor"  # name of the tensor with the bytes of a fastmlp.cnn file
TRAINING = "training."  # prefix of the tensors of a checkpoint that are not part of the model
LARGEST_FILE = 16 << 30  # bytes; enough for a checkpoint with a billion float32 weights and two optimizer slots


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON object in a model file's metadata."""

    format_version: int
    network: Network
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    scaling: str | None
    target_scaling: str | None = None
    text_labels: bool = False
    encoding: TableEncoding | None = None
    image_stats: ImageStats | None = None


def save(model: Model, path: str | Path, training: Mapping[str, npt.NDArray[Any]] = MappingProxyType({})) -> None:
    """Write a model file atomically.

    training : tensors of a checkpoint, by name without the prefix `TRAINING`

    Raises
    ------
    DataError : the file cannot be written
    """
    tensors: dict[str, npt.NDArray[Any]] = {f"{TRAINING}{name}": array for name, array in training.items()}
    for index, (w, b) in enumerate(model.network.views(model.parameters)):
        tensors[f"layers.{index}.weight"], tensors[f"layers.{index}.bias"] = w, b
    for prefix, scaling in ((INPUTS, model.scaling), (TARGETS, model.target_scaling)):
        if scaling is not None:
            tensors |= {f"{prefix}.{name}": array for name, array in scaling.to_arrays().items()}
    if model.extractor is not None:
        tensors[EXTRACTOR] = np.frombuffer(model.extractor, np.uint8)
    header: dict[str, Any] = {
        "format_version": VERSION,
        "network": {name: value for name, value in asdict(model.network).items() if name != "hidden"},  # part of sizes
        "classes": model.classes,
        "image_shape": model.image_shape,
        "scaling": None if model.scaling is None else model.scaling.kind,
        "target_scaling": None if model.target_scaling is None else model.target_scaling.kind,
        "text_labels": model.text_labels,
    }
    if model.encoding is not None:
        header["encoding"] = msgspec.to_builtins(model.encoding)
    if model.image_stats is not None:
        header["image_stats"] = asdict(model.image_stats)
    text = json.dumps(header)
    write_bytes(path, tensor_bytes(tensors, {"fastmlp": text, "sha256": digest(text, tensors)}))


def read(path: str | Path, activations: CustomActivations | None = None) -> dict[str, Any]:
    """Return the fields of `Model` that a model file, or the model file of a run folder, contains; see `read_checkpoint`."""
    return read_checkpoint(path, activations)[0]


def read_checkpoint(
    path: str | Path, activations: CustomActivations | None = None
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read a model file, and return the fields of `Model` by name, and the tensors of a checkpoint as given to `save`.

    activations : custom activations by name, see `model.load`

    Raises
    ------
    DataError : the file is missing, damaged, or not a model of this version, or an activation is unknown
    ConfigError : `activations` is invalid, or another activation with the same name is already registered
    """
    for name, given in (activations or {}).items():
        register_as(name, given)
    file = model_file(given_path("path", path))
    metadata, tensors = read_file(file)
    if "fastmlp" not in metadata or "sha256" not in metadata:
        raise DataError(f"{file}: not a fastmlp model (its metadata lacks 'fastmlp' or 'sha256')")
    if digest(metadata["fastmlp"], tensors) != metadata["sha256"]:
        raise DataError(f"{file}: damaged, since its content does not match its SHA-256 hash; train again or restore a copy")
    header = read_header(file, metadata["fastmlp"])
    training = {name.removeprefix(TRAINING): tensors.pop(name) for name in [*tensors] if name.startswith(TRAINING)}
    try:
        scaling, extractor = take_scaling(header.scaling, INPUTS, tensors), take_extractor(tensors)
        target_scaling = take_scaling(header.target_scaling, TARGETS, tensors)
        shape = None if extractor else header.image_shape
        check_parts(header.network, header.classes, shape, scaling, target_scaling, header.encoding)
        parameters = gather(header.network, tensors)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    model = {
        "network": header.network,
        "parameters": parameters,
        "scaling": scaling,
        "classes": header.classes,
        "image_shape": header.image_shape,
        "extractor": extractor,
        "target_scaling": target_scaling,
        "text_labels": header.text_labels,
        "encoding": header.encoding,
        "image_stats": header.image_stats,
    }
    return model, training


def check_parts(
    network: Network,
    classes: tuple[str, ...],
    image_shape: tuple[int, ...] | None,
    scaling: Scaling | None,
    target_scaling: Scaling | None,
    encoding: TableEncoding | None,
) -> None:
    """Raise DataError unless the parts of a model match its network; see `Model` for the parameters.

    image_shape : None also for a model with an extractor, whose network does not take images
    """
    check_description(network, None if scaling is None else len(scaling.shift), classes, image_shape)
    first, last = network.sizes[0], network.sizes[-1]
    if encoding is not None and encoding.n_features != first:
        problem = f"the table encoding has {encoding.n_features} features, but the network takes {first}"
        raise DataError(f"{problem}; use the encoding of the training table, or train the model again")
    if target_scaling is not None and len(target_scaling.shift) != last:
        raise DataError(f"the target scaling is for {len(target_scaling.shift)} targets, but the network has {last}")


def files_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder; the last one is the newest."""
    return files_matching(folder, CHECKPOINT_FILES)


def model_file(path: Path) -> Path:
    """Return the path of a model file, or the file in a folder: model.safetensors, or else the newest checkpoint.

    Warns
    -----
    RuntimeWarning : the folder is that of a run that has not finished, and its newest checkpoint is used
    """
    if not is_folder(path) or exists(path / FILE_NAME):
        return path / FILE_NAME if is_folder(path) else path
    if found := files_in(path):
        return found[-1]
    if found := files_in(path / CHECKPOINTS_NAME):
        text = f"{path}: the run has not finished; using its newest checkpoint, {found[-1].name}"
        warnings.warn(printable(text), RuntimeWarning, stacklevel=4)
        return found[-1]
    return path / FILE_NAME


def register_as(name: str, given: Activation | tuple[Callable[..., Any], Callable[..., Any]]) -> None:
    """Register a custom activation under a name. Raise ConfigError if it is invalid or has a different name."""
    if not isinstance(given, Activation):
        if not (isinstance(given, tuple) and len(given) == 2):
            raise ConfigError(f"activations[{name!r}] must be an Activation or a pair (value, slope), not {given!r}")
        given = Activation(name, *given)
    if normalize(given.name) != normalize(name):
        raise ConfigError(f"activations[{name!r}] is an Activation with another name, {given.name!r}; use the same name")
    register(given)


def read_header(file: Path, text: str) -> Header:
    """Parse the description in a model file. Raise DataError if a field is unknown, missing, or of the wrong type."""
    problem = "invalid model description"
    remedy = "it may come from another version of fastmlp: use that version, or train the model again"
    with library_errors(file, problem, remedy):
        found = msgspec.json.decode(text)
    check_format_version(file, found, VERSION)  # before the fields, which may differ in other versions
    try:
        header = msgspec.convert(found, Header)
    except Exception as error:  # msgspec calls the checks of Network, which raise ConfigError
        if isinstance(error.__cause__, UnknownActivation):
            name = error.__cause__.activation
            raise DataError(
                f"{file}: the network has the activation {name!r}, which is not built in; if it is a custom activation, load "
                f"the file in Python with load(path, activations={{{name!r}: ...}}), where ... is a fastmlp.Activation or a "
                "pair (value, slope)"
            ) from error
        raise DataError(f"{file}: {problem} ({reason(error)}); {remedy}") from error
    if not header.network.is_complete:
        raise DataError(f"{file}: {problem} (the sizes of the network are missing); {remedy}")
    unknown = set(found["network"]) - {field.name for field in fields(Network)}
    if unknown:
        raise DataError(f"{file}: {problem} (the network has unknown fields {', '.join(sorted(unknown))}); {remedy}")
    return header


def take_scaling(kind: str | None, prefix: str, tensors: dict[str, npt.NDArray[Any]]) -> Scaling | None:
    """Return the scaling of the inputs or of the targets, and remove its tensors from `tensors`."""
    if kind is None:
        return None
    arrays = {}
    for name in ("shift", "factor"):
        if f"{prefix}.{name}" not in tensors:
            raise DataError(f"tensor {prefix}.{name} is missing")
        arrays[name] = tensors.pop(f"{prefix}.{name}")
    return Scaling(kind, **arrays)


def take_extractor(tensors: dict[str, npt.NDArray[Any]]) -> bytes | None:
    """Return the extractor of a model file and remove its tensor from `tensors`."""
    found = tensors.pop(EXTRACTOR, None)
    return None if found is None else found.tobytes()


def read_file(file: Path) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    """Read the metadata and the tensors of a model file. Raise DataError if the file is missing or damaged."""
    if not exists(file):
        raise DataError(f"{file}: no such model; `fastmlp train` writes one into its run folder")
    if (size := size_of(file)) > LARGEST_FILE:
        raise DataError(f"{file}: the file has {size:,} bytes, more than {LARGEST_FILE:,}; check that it is a model file")
    return read_tensors(file)


def check_format_version(path: Path, found: Any, version: int) -> None:
    """Check the format version of a file.

    Parameters
    ----------
    path : path of the file, for the error message
    found : contents of the file
    version : the format version that this version of fastmlp can read

    Raises
    ------
    DataError : the format version is missing, or differs from `version`

    Examples
    --------
    >>> check_format_version(Path("result.json"), {"format_version": 2}, 1)
    Traceback (most recent call last):
    fastmlp.errors.DataError: result.json: format version 2, but this version of fastmlp reads format version 1; repeat the run
    """
    given = found.get("format_version") if isinstance(found, dict) else None
    if type(given) is not int or given != version:  # True and 1.0 are equal to 1
        found_version = "no format version" if given is None else f"format version {reprlib.repr(given)}"
        raise DataError(f"{path}: {found_version}, but this version of fastmlp reads format version {version}; repeat the run")


def gather(network: Network, tensors: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the flat parameter vector of a network, assembled from its tensors.

    The names, shapes and dtypes of the tensors are checked first, so that a damaged description with huge layer sizes does not
    cause a huge memory allocation.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for index, layer in enumerate(network.layers):
        wanted[f"layers.{index}.weight"], wanted[f"layers.{index}.bias"] = (layer.fan_in, layer.fan_out), (layer.fan_out,)
    for name in [*wanted, *tensors]:
        if name not in tensors or name not in wanted:
            raise DataError(f"tensor {name} is {'missing' if name in wanted else 'not part of the network'}")
        if tensors[name].shape != wanted[name]:
            raise DataError(f"tensor {name} must have shape {wanted[name]}, but has shape {tensors[name].shape}")
        dtype = tensors["layers.0.weight"].dtype
        if tensors[name].dtype != dtype or dtype not in (np.float32, np.float64):
            raise DataError(f"tensor {name} has dtype {tensors[name].dtype}; all tensors must be float32, or all float64")
    vector = np.concatenate([tensors[name].ravel() for name in wanted])
    if not np.isfinite(vector).all():
        raise DataError("the weights have values that are not finite")
    return vector


def digest(text: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 hash of the description and of the name, dtype, shape and bytes of every tensor."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype.str} {tensor.shape} ".encode())
        total.update(np.ascontiguousarray(tensor).tobytes())
    return total.hexdigest()
