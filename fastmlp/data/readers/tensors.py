"""Reading and writing of safetensors files.

Specification of the format: https://huggingface.co/docs/safetensors. A file contains the length of the header in 8 bytes, the
header in JSON, and the tensors.
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
    """Return the metadata and the tensors of a safetensors file.

    Raises
    ------
    FileNotFoundError : the file does not exist
    DataError : the file is damaged
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - `opened` is not a mapping
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: NumPy lacks the dtype (bfloat16)
        raise DataError(f"{file}: not a readable safetensors file ({error})") from error
    return metadata, tensors


def tensor_bytes(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file. The metadata are sorted, because safetensors writes them in random order."""
    from safetensors.numpy import save

    data = save(tensors, dict(metadata))
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
