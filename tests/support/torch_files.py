"""Files in the format of torch.save for tests: with changed members, or with a pickle that torch.save would not write."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch

PICKLE = "archive/data.pkl"


def saved(state: Any, *, before_1_6: bool = False, protocol: int = 2) -> bytes:
    """Return a file with an object; with `before_1_6`, in the format of PyTorch before version 1.6."""
    buffer = io.BytesIO()
    torch.save(state, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not before_1_6)
    return buffer.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(contents: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return a file with a changed pickle and valid checksums."""
    contents = members(data)
    return zipped(contents | {PICKLE: change(contents[PICKLE])})
