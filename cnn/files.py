"""Reading and writing of files in the format of torch.save: dicts of tensors and plain values, as bytes.

Files that this package writes have a format version. Files of pretrained weights from torchvision do not have one. All files
may be untrusted: `read_file` opens only regular files, `claims.check_claims` bounds the memory that reading can allocate,
and the other functions check the types and shapes of what was read.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import torch

from .claims import check_claims
from .errors import FileError, library_errors
from .pickles import DAMAGED, REMEDY

FORMAT_VERSION = "format_version"

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # shape and dtype of each tensor, by name


class Source(NamedTuple):
    """The file that is being checked, for error messages.

    name : name of the file
    problem : start of the message of a failed check
    remedy : advice at the end of the message
    """

    name: str
    problem: str
    remedy: str

    def error(self, reason: str) -> FileError:
        """Return the error for a check that failed."""
        return FileError(f"{self.name}: {self.problem} ({reason}); {self.remedy}")


def read_file(path: Path, settings: Sequence[str] = ()) -> bytes:
    """Return the contents of a regular file. A named pipe is rejected without waiting for a writer.

    settings : names of the settings with the path, for the error

    Raises
    ------
    FileError : the file does not exist, cannot be read, or is not a regular file
    """

    def open_now(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    problem, remedy = f"{path}: cannot be read", "check the path"
    with library_errors(FileError, problem, remedy, settings), open(path, "rb", opener=open_now) as stream:
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return stream.read()
    raise FileError(f"{problem} (not a regular file); {remedy}", settings=settings)


def read_state(data: bytes, name: str) -> dict[str, Any]:
    """Read a dict of tensors and plain values written by torch.save. Other objects are not unpickled.

    Parameters
    ----------
    data : content of the file
    name : name of the file, for error messages

    Raises
    ------
    FileError : the data are damaged, do not contain such a dict, or declare much more data than their size
    """
    return read_dict(_load(data, name)) or {}


def _load(data: bytes, name: str) -> Any:
    """Implement `read_state`; the result may be an OrderedDict, whose attributes are controlled by the file."""
    check_claims(data, name)
    with library_errors(FileError, f"{name}: {DAMAGED}", REMEDY), own_messages(name), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # `check_claims` accepts only protocols that work
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if read_dict(found) is None:
        raise FileError(f"{name}: does not contain a dict of weights; {REMEDY}")
    return found


@contextlib.contextmanager
def own_messages(name: str) -> Iterator[None]:
    """Replace messages of torch.load that advise to read the file with weights_only=False, which can run code in the file.

    name : name of the file

    Raises
    ------
    FileError : in place of an exception with such a message
    """
    try:
        yield
    except Exception as error:
        if "weights_only" not in str(error):
            raise
        raise FileError(f"{name}: {DAMAGED} (it is damaged, or has objects other than tensors); {REMEDY}") from None


def read_dict(found: object) -> dict[Any, Any] | None:
    """Return a copy of a dict or OrderedDict that was read from a file, and None for other types.

    It is copied because the file can set attributes of an OrderedDict, including `items` and `get`.
    """
    return dict(dict.items(found)) if isinstance(found, dict) else None


def read_weights(data: bytes, name: str) -> OrderedDict[str, torch.Tensor]:
    """Read a state dict of a network, as torchvision publishes them.

    The versions of the modules are kept (attribute `_metadata`), because some networks of torchvision need them.

    Raises
    ------
    FileError : as for `read_state`, or an entry is not a tensor of a network
    """
    found = _load(data, name)
    source = Source(name, "does not contain the weights of a network", REMEDY)
    weights: OrderedDict[str, torch.Tensor] = OrderedDict(read_dict(found) or {})
    for key, value in weights.items():
        if type(key) is not str or not isinstance(value, torch.Tensor):
            raise source.error(f"entry {repr(key)[:60]} is of type {type(value).__name__}; entries must be tensors with a name")
        check_stored(source, key, value)
    modules = vars(found).get("_metadata") if isinstance(found, OrderedDict) else None
    if modules is not None:
        weights._metadata = read_versions(source, modules)  # type: ignore[attr-defined]
    return weights


def read_versions(source: Source, modules: object) -> dict[str, dict[str, int | None]]:
    """Return the versions of the modules of a state dict, in the format of PyTorch; raise FileError if they are invalid."""
    versions = {}
    for module, entry in (read_dict(modules) or {}).items():
        version = (read_dict(entry) or {}).get("version")
        if type(module) is not str or type(version) not in (int, NoneType):
            raise source.error("invalid versions of modules")
        versions[module] = {"version": version}
    return versions


def check_stored(source: Source, place: str, value: torch.Tensor) -> None:
    """Raise FileError if a tensor takes more memory than its elements in the file, as after torch.Tensor.expand."""
    stored = value.untyped_storage().nbytes()
    if value.is_neg() or value.numel() * value.element_size() > stored:
        raise source.error(f"{place} has shape {list(value.shape)}, but the file stores only {stored:,} bytes of it")


def check_tensor(source: Source, place: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor that was read from a file, without gradient and hooks.

    place : location in the file, for error messages

    Raises
    ------
    FileError : it is not a tensor, has another shape or dtype, or takes more memory than in the file
    """
    if type(value) is not torch.Tensor:
        raise source.error(f"{place} is a {type(value).__name__}, not a tensor")
    if tuple(value.shape) != shape or value.dtype != dtype:
        raise source.error(f"{place} has shape {list(value.shape)} and dtype {value.dtype}, not {list(shape)} and {dtype}")
    check_stored(source, place, value)
    return value.detach()


def check_tensors(source: Source, place: str, found: Any, shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return a dict of tensors that was read from a file; raise FileError if it has other names, shapes or dtypes.

    place : location in the file, for error messages
    """
    if (tensors := read_dict(found)) is None:
        raise source.error(f"{place} is a {type(found).__name__}, not a dict")
    if tensors.keys() != shapes.keys():
        name = next(iter(shapes.keys() - tensors.keys()), None)
        reason = f": tensor {name!r} is missing" if name else f" has {len(tensors)} entries, not {len(shapes)}"
        raise source.error(f"{place}{reason}")
    return {name: check_tensor(source, f"{place} {name}", tensors[name], *shapes[name]) for name in shapes}


def shapes_of(network: torch.nn.Module) -> Shapes:
    """Return the shapes and dtypes of the state dict of a network."""
    return {name: (tuple(value.shape), value.dtype) for name, value in network.state_dict().items()}


def state_of(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return a state dict with these tensors and the versions of the modules of a network."""
    state = network.state_dict()
    state.update(tensors)
    return state


def write_versioned(version: int, state: dict[str, Any]) -> bytes:
    """Serialize a dict together with a format version; `read_versioned` is the inverse."""
    buffer = io.BytesIO()
    torch.save({FORMAT_VERSION: version, **state}, buffer)
    return buffer.getvalue()


def read_versioned(data: bytes, name: str, *, version: int, keys: Iterable[str], kind: str, remedy: str) -> dict[str, Any]:
    """Return a dict that was serialized by `write_versioned`.

    The format version is checked first, because files of other versions may have different keys.

    Parameters
    ----------
    data : content of the file
    name : name of the file, for error messages
    version : required format version
    keys : required keys of the dict
    kind : description of the file with its article, such as "an extractor", for error messages
    remedy : advice at the end of error messages, such as "extract the features again"

    Raises
    ------
    FileError : the data are damaged, have no or a different format version, or lack a required key
    """
    state = read_state(data, name)
    given = state.get(FORMAT_VERSION)
    if type(given) is not int or given != version:
        kind_found = given if type(given) is int else f"of type {type(given).__name__}"
        carries = "no format version" if given is None else f"format version {kind_found}"
        raise FileError(f"{name}: {carries}, but this version of fastmlp reads format version {version}; {remedy}")
    if missing := [key for key in keys if key not in state]:
        raise FileError(f"{name}: not {kind} (missing: {', '.join(missing)}); {remedy}")
    return state
