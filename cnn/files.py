"""Files of torch.save as bytes: dicts of tensors and plain values, with a format version in those that cnn writes."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import torch

from .errors import FileError

FORMAT_VERSION = "format_version"


def read_state(data: bytes, name: str) -> dict[str, Any]:
    """Return the dict of tensors and plain values that torch.save wrote; other objects are not unpickled.

    Raises
    ------
    FileError : the bytes are corrupt, or hold something else
    """
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # depends on the damage: RuntimeError, UnpicklingError, EOFError, KeyError, …
        raise FileError(f"{name}: not a readable file of torch ({type(error).__name__}); restore it, or train again") from error
    if not isinstance(found, dict):
        raise FileError(f"{name}: contains no dict of weights; restore it, or train again")
    return found


def write_versioned(version: int, state: dict[str, Any]) -> bytes:
    """Return the bytes of a file with a format version, for `read_versioned`."""
    buffer = io.BytesIO()
    torch.save({FORMAT_VERSION: version, **state}, buffer)
    return buffer.getvalue()


def read_versioned(data: bytes, name: str, *, version: int, keys: Iterable[str], kind: str, remedy: str) -> dict[str, Any]:
    """Return the dict that `write_versioned` wrote.

    The format version is checked before anything else in the dict, since another version may have other keys.

    Parameters
    ----------
    data, name : the bytes, and the name of the file for messages
    version : the format version that this fastmlp reads
    keys : keys that the dict must have
    kind : what the file is, with its article, for messages
    remedy : what to do with another file, for messages

    Raises
    ------
    FileError : the bytes are corrupt, have no format version or another one, or lack a key
    """
    state = read_state(data, name)
    given = state.get(FORMAT_VERSION)
    if type(given) is not int or given != version:
        carries = "no format version" if given is None else f"format version {given}"
        raise FileError(f"{name}: {carries}, but this fastmlp reads version {version}; {remedy}")
    if missing := [key for key in keys if key not in state]:
        raise FileError(f"{name}: not {kind} (missing: {', '.join(missing)}); {remedy}")
    return state
