"""Reading and writing of files in the format of torch.save: dicts of tensors and plain values, as bytes.

Files that this package writes have a format version. Files of pretrained weights from torchvision do not have one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import torch

from .errors import FileError

FORMAT_VERSION = "format_version"


def read_state(data: bytes, name: str) -> dict[str, Any]:
    """Read a dict of tensors and plain values written by torch.save. Other objects are not unpickled.

    Parameters
    ----------
    data : content of the file
    name : name of the file, for error messages

    Raises
    ------
    FileError : the data are corrupt or do not contain such a dict
    """
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # corrupt files raise RuntimeError, UnpicklingError, EOFError, KeyError, …
        raise FileError(f"{name}: not a readable PyTorch file ({type(error).__name__}); restore it, or train again") from error
    if not isinstance(found, dict):
        raise FileError(f"{name}: does not contain a dict of weights; restore it, or train again")
    return found


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
    FileError : the data are corrupt, have no or a different format version, or lack a required key
    """
    state = read_state(data, name)
    given = state.get(FORMAT_VERSION)
    if type(given) is not int or given != version:
        carries = "no format version" if given is None else f"format version {given}"
        raise FileError(f"{name}: {carries}, but this version of fastmlp reads format version {version}; {remedy}")
    if missing := [key for key in keys if key not in state]:
        raise FileError(f"{name}: not {kind} (missing: {', '.join(missing)}); {remedy}")
    return state
