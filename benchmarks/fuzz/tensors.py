"""Mutations of safetensors files, of models in this format, and of Parquet files.

Sources: https://huggingface.co/docs/safetensors, https://parquet.apache.org/docs/file-format.
"""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any

import numpy as np

from benchmarks.fuzz.documents import json_text
from benchmarks.fuzz.mutators import BYTES, Malformed, Mutator, Random, apply, check_depth, integer
from fastmlp.data.readers.tensors import Tensors, tensor_bytes
from fastmlp.models.file import digest

SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
}
SIZES |= {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F8_E8M0": 1, "F4": 1, "F6_E2M3": 1, "X": 1, "": 1}
SHAPES: tuple[Any, ...] = (
    [],
    [0],
    [1],
    [6],
    [2**63],
    [2**64],
    [2**32, 2**32],
    [-1],
    [0, 2**40],
    [1] * 70,
    "6",
    None,
    [6.0],
    [True],
    [[6]],
)

# ------------------------------------------------------------------------------------------------ safetensors


def parse_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the values of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(check_depth(data[8 : 8 + length]))
    if not isinstance(header, dict) or not all(isinstance(one, dict) for one in header.values()):
        raise Malformed("no dict")
    return header, data[8 + length :]


def build_safetensors(text: str, values: bytes) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    content += b" " * (-len(content) % 8)
    return struct.pack("<Q", len(content)) + content + values


def mutate_tensor(data: bytes, rng: Random) -> bytes:
    """Change the dtype, the shape or the offsets of a tensor; the values get the size that the header declares, if possible."""
    header, values = parse_safetensors(data)
    names = [name for name in header if name != "__metadata__"]
    if not names:
        raise Malformed("no tensors")
    name, kind = rng.choice(names), rng.randrange(5)
    tensor = header[name]
    if kind == 0:
        tensor["dtype"] = rng.choice(sorted(SIZES))
    elif kind == 1:
        tensor["shape"] = rng.choice(SHAPES)
    elif kind == 2:
        tensor["data_offsets"] = [
            rng.choice((0, 1, 8, 2**40, 2**64, -1, len(values))) for _ in range(rng.choice((2, 2, 2, 1, 3)))
        ]
    elif kind == 3:
        header[rng.choice(("x", "y", "", "a\nb", "\ud800", "x" * 500, "training.record", "é"))] = header.pop(name)
    else:
        del header[name]
    return refitted(header, values) if rng.random() < 0.7 else build_safetensors(json.dumps(header), values)


def refitted(header: dict[str, Any], values: bytes) -> bytes:
    """Return a safetensors file in which all offsets fit the dtypes and shapes, if the tensors are small."""
    found, parts, start = {}, [], 0
    for name, one in header.items():
        if name == "__metadata__":
            found[name] = one
            continue
        first, last = one["data_offsets"]
        size = SIZES[one["dtype"]] * math.prod(one["shape"])
        part = values[first:last]
        if not 0 <= size < 1 << 16:
            raise Malformed("large")
        found[name] = one | {"data_offsets": [start, start + size]}
        parts.append((part + bytes(size))[:size])
        start += size
    return build_safetensors(json.dumps(found), b"".join(parts))


def mutate_header(data: bytes, rng: Random) -> bytes:
    """Change any value of the header, which is JSON, or its length."""
    header, values = parse_safetensors(data)
    if rng.random() < 0.15:
        return integer(rng, 8) + data[8:]
    if rng.random() < 0.15:  # a name that occurs twice
        text = json.dumps(header)
        return build_safetensors(text[:-1] + ", " + text[1:], values)
    return build_safetensors(json_text(json.dumps(header), rng), values)


def mutate_metadata(data: bytes, rng: Random) -> bytes:
    """Change a value of the metadata; a value that is JSON remains a string."""
    header, values = parse_safetensors(data)
    metadata = header.get("__metadata__")
    if not metadata:
        raise Malformed("no metadata")
    key = rng.choice(sorted(metadata))
    metadata[key] = (
        json_text(metadata[key], rng) if rng.random() < 0.8 else rng.choice(("", "null", "[]", "\0", "[1]", '["a", 1]'))
    )
    return build_safetensors(json.dumps(header), values)


SAFETENSORS: tuple[Mutator, ...] = (mutate_tensor, mutate_tensor, mutate_header, mutate_metadata, mutate_metadata, *BYTES[:5])

# ------------------------------------------------------------------------------------------------ models


def parse_model(data: bytes) -> tuple[str, Tensors]:
    """Return the description, which is a JSON text, and the tensors of a model file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    text = str(parse_safetensors(data)[0]["__metadata__"]["fastmlp"])
    try:
        return text, load(data)
    except SafetensorError as error:
        raise Malformed(str(error)) from error


def build_model(text: str, tensors: Tensors) -> bytes:
    """Return a model file whose hash is right."""
    return tensor_bytes(tensors, {"fastmlp": text, "sha256": digest(text, tensors)})


def mutate_description(data: bytes, rng: Random) -> bytes:
    """Change the description of a model, and correct the hash."""
    text, tensors = parse_model(data)
    return build_model(json_text(text, rng), tensors)


def mutate_tensors_of_model(data: bytes, rng: Random) -> bytes:
    """Change, remove, rename or add tensors of a model, and correct the hash."""
    text, tensors = parse_model(data)
    name = rng.choice(sorted(tensors))
    old, kind = tensors[name], rng.randrange(7)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[rng.choice((*tensors, "extractor", "scaling.shift", "training.loss", "layers.9.bias", ""))] = old
    elif kind == 2:
        tensors[name] = old.astype(rng.choice(("u1", "<f2", "<f4", "<f8", "<i8", "?")))
    elif kind == 3:
        tensors[name] = rng.choice((old.ravel()[:-1], old[None], old.reshape(-1), np.zeros((0, *old.shape), old.dtype)))
    elif kind == 4 and old.dtype.kind == "f" and old.size:
        tensors[name] = old.copy()
        tensors[name].flat[rng.randrange(old.size)] = rng.choice((np.nan, np.inf, -1, 0, 1e30))
    elif name in ("training.record", "extractor"):
        inner = mutate_record if name == "training.record" else BYTES[0]
        tensors[name] = np.frombuffer(apply((inner,), old.tobytes(), rng), np.uint8)
    else:
        tensors |= {"training.record": np.frombuffer(b"{}", np.uint8), "training.parameters": old, "training.slots": old}
    return build_model(text, tensors)


def mutate_record(data: bytes, rng: Random) -> bytes:
    """Change the record of a checkpoint, which is a JSON text."""
    return json_text(data.decode(), rng).encode()


def mutate_record_of_checkpoint(data: bytes, rng: Random) -> bytes:
    """Change the record of a checkpoint, and correct the hash."""
    text, tensors = parse_model(data)
    if "training.record" not in tensors:
        raise Malformed("not a checkpoint")
    tensors["training.record"] = np.frombuffer(mutate_record(tensors["training.record"].tobytes(), rng), np.uint8)
    return build_model(text, tensors)


MODEL: tuple[Mutator, ...] = (*[mutate_description] * 3, *[mutate_tensors_of_model] * 2, mutate_record_of_checkpoint)
MODEL += (mutate_tensor, mutate_header, mutate_metadata, *BYTES[:3])

# ------------------------------------------------------------------------------------------------ Parquet

PAGE_START = re.compile(rb"\x15[\x00\x04\x06]\x15")  # the type of a page in Thrift's compact protocol, and the next field


def mutate_footer(data: bytes, rng: Random) -> bytes:
    """Change bytes of the footer of a Parquet file."""
    (length,) = struct.unpack("<I", data[-8:-4])
    if rng.random() < 0.1:
        return data[:-8] + integer(rng, 4) + data[-4:]
    start = len(data) - 8 - length
    if not 4 <= start < len(data) - 8:
        raise Malformed("no footer")
    footer = data[start:-8]
    for _ in range(rng.choice((1, 1, 2, 3))):
        footer = rng.choice(BYTES)(footer, rng)
    size = struct.pack("<I", len(footer)) if rng.random() < 0.8 else data[-8:-4]
    return data[:start] + footer + size + data[-4:]


def mutate_page(data: bytes, rng: Random) -> bytes:
    """Change bytes of the header of a page of a Parquet file, or the first bytes after it."""
    starts = [found.start() for found in PAGE_START.finditer(data)]
    if not starts:
        raise Malformed("no pages")
    start = rng.choice(starts)
    page = rng.choice(BYTES[:5])(data[start : start + 40], rng)[:40]
    return data[:start] + page + data[start + len(page) :]


PARQUET: tuple[Mutator, ...] = (mutate_footer, mutate_footer, mutate_footer, mutate_page, mutate_page, *BYTES[:4])


def mutate_idx(data: bytes, rng: Random) -> bytes:
    """Change the type, the number of dimensions or a dimension in the header of an IDX file."""
    kind = rng.randrange(4)
    if kind == 0:
        return data[:2] + bytes([rng.choice((8, 9, 11, 12, 13, 14, 0, 255))]) + data[3:]
    if kind == 1:
        return data[:3] + bytes([rng.choice((0, 1, 2, 3, 4, 5, 255))]) + data[4:]
    if kind == 2:
        start = 4 + 4 * rng.randrange(4)
        return data[:start] + integer(rng, 4, ">") + data[start + 4 :]
    return rng.choice((b"PK\x03\x04", b"\x1f\x8b", b"<html>", b"\0\0")) + data[rng.randrange(5) :]


IDX: tuple[Mutator, ...] = (mutate_idx, mutate_idx, mutate_idx, *BYTES)
