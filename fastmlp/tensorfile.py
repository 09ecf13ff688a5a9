"""Safetensors files: read with errors of one line, and written so that the same content has the same bytes.

Not here: what the tensors mean (modelfile.py, feature_files.py).
Source: https://huggingface.co/docs/safetensors (8 bytes with the header's length, the header in JSON, the tensors).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fastmlp.errors import DataError

Tensors = dict[str, npt.NDArray[Any]]


def read_tensors(file: Path) -> tuple[dict[str, str], Tensors]:
    """Metadata and tensors of a safetensors file.

    Raises
    ------
    FileNotFoundError : no such file
    DataError : what is wrong with it
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is not a mapping
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a type that NumPy has not, such as bfloat16
        raise DataError(f"{file}: not a readable safetensors file ({error})") from error
    return metadata, tensors


def tensor_bytes(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; its metadata in order, since the library writes them in a random one."""
    from safetensors.numpy import save

    data = save(tensors, dict(metadata))
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
