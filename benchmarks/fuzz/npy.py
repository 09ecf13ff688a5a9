"""Mutations of `.npy` arrays: the header, which is a Python literal, and the values. Source: numpy.lib.format."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from typing import Any

import numpy as np

from benchmarks.fuzz.documents import json_text
from benchmarks.fuzz.mutators import BYTES, TEXT, WORDS, Malformed, Mutator, Random, apply, check_depth, integer

DESCRIPTIONS: tuple[Any, ...] = (
    "|u1",
    "<f2",
    "<f4",
    ">f8",
    "<f16",
    "<c8",
    "|b1",
    "|O",
    "<U0",
    "<U3",
    "|S0",
    "|S9",
    "|V0",
    "|V8",
)
DESCRIPTIONS += (
    "<M8[ns]",
    "<m8",
    "<i8",
    ">i2",
    "<u8",
    "|i1",
    "<U4611686018427387904",
    "|S-1",
    "f",
    "",
    "(2,3)<f4",
    "<f4,<i4",
    "O8",
)
DESCRIPTIONS += (
    [("a", "<f4"), ("b", "|O")],
    [("a", "<i4")],
    [],
    [("a", "<f4", (2,))],
    [("", "|u1")],
    {"a": 1},
    None,
    5,
    ("<f4", (2,)),
)
DESCRIPTIONS += ([("a", [("b", "<U0")])], [("a", "<f4", (10**9, 10**9))], "x" * 10000, "<f4\0", "é", b"<f4", True)
SHAPES: tuple[Any, ...] = (
    (),
    (0,),
    (1,),
    (-1,),
    (6, -1),
    (0, 5),
    (2**31,),
    (2**40, 2),
    (2**62, 4),
    (2**63,),
    (10**400,),
    [6, 2],
    6,
    None,
)
SHAPES += (
    (True,),
    (6.0,),
    ("6",),
    (1,) * 33,
    (1,) * 70,
    (6, 1),
    (3, 2, 1),
    (2**32, 2**32),
    (-(2**63), 2),
    (0, 2**63 - 1),
    ((6,), 2),
)
VERSIONS = (b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x00\x00", b"\x09\x09", b"\x01\x01")
MAGIC = b"\x93NUMPY"


def parse_npy(data: bytes) -> tuple[bytes, dict[str, Any], bytes]:
    """Return the version, the header and the values of an `.npy` file."""
    if not data.startswith(MAGIC) or len(data) < 10:
        raise Malformed("not an .npy file")
    width = 2 if data[6] == 1 else 4
    start = 8 + width
    stop = start + int.from_bytes(data[8:start], "little")
    header = ast.literal_eval(check_depth(data[start:stop]).decode("latin-1").strip())
    if not isinstance(header, dict) or not header.keys() >= {"descr", "shape"}:
        raise Malformed("no dict")
    return data[6:8], header, data[stop:]


def build_npy(version: bytes, text: str, values: bytes) -> bytes:
    """Return an `.npy` file with a header that has the right length."""
    header = text.encode("utf-8" if version[0] == 3 else "latin-1", "replace")
    width = 2 if version[0] == 1 else 4
    header += b" " * (-(len(header) + 9 + width) % 64) + b"\n"
    length = min(len(header), (1 << 8 * width) - 1)
    return MAGIC + version + length.to_bytes(width, "little") + header[:length] + values


def mutate_npy_header(data: bytes, rng: Random) -> bytes:
    """Change the dtype, the shape or the order in the header; half of the time the values get the size that it claims."""
    version, header, values = parse_npy(data)
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.randrange(10)
        if kind < 4:
            header["descr"] = rng.choice(DESCRIPTIONS)
        elif kind < 8:
            header["shape"] = rng.choice((*SHAPES, header["shape"]))
        elif kind == 8:
            header["fortran_order"] = rng.choice((True, False, None, 1, "True", []))
        else:
            header[rng.choice(("shape ", "descr", "extra", 5))] = rng.choice((None, "<f4", (3,)))
    if rng.random() < 0.2:
        version = rng.choice(VERSIONS)
    return build_npy(version, repr(header), fitting(header, values) if rng.random() < 0.6 else values)


def fitting(header: dict[str, Any], values: bytes) -> bytes:
    """Return values of the size that a header declares, if it is small."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = operator.index(np.dtype(header["descr"]).itemsize * math.prod(header["shape"]))
    except (ValueError, TypeError, SyntaxError):
        return values
    return (values * (size // max(len(values), 1) + 1))[:size] if 0 <= size < 1 << 16 else values


def mutate_npy_text(data: bytes, rng: Random) -> bytes:
    """Change the text of the header, which is a Python literal, or its length."""
    version, header, values = parse_npy(data)
    text, kind = repr(header), rng.randrange(6)
    if kind == 0:
        text = apply(TEXT, text.encode(), rng).decode("latin-1")
    elif kind == 1:
        depth = rng.choice((10, 90, 200, 3000, 60000))
        text = text.replace("(", "(" * depth, 1).replace(")", ")" * depth, 1)
    elif kind == 2:
        text = rng.choice(
            (
                "",
                "{",
                "None",
                "()",
                "{" * 500,
                "-" * 5000 + "1",
                "{'a': 1" + "+1" * 3000,
                "\\",
                "'''",
                "{'shape': (6L,)}",
                "f''",
            )
        )
    elif kind == 3:
        text = text.replace("}", rng.choice((", ", ", 'a': 1j}", ", **{}}", "}}", "} # x", ", 'descr': '|u1'}", "}\n\n  x")))
    elif kind == 4:
        return data[:8] + integer(rng, 2) + data[10:]
    else:
        text = text.replace("(", rng.choice(("(0x", "(1e3,", "(9" + "9" * 5000 + ",", "(-", "(True,", "(\0")))
    return build_npy(version, text, values)


def mutate_npy_values(data: bytes, rng: Random) -> bytes:
    """Set values of an array to others that are special, keep its type, and mutate texts in it."""
    version, header, values = parse_npy(data)
    array = np.frombuffer(values, np.dtype(header["descr"])).copy()
    if array.dtype.kind == "U" and array.size:
        texts = array.tolist()
        index = rng.randrange(len(texts))
        texts[index] = json_text(texts[index], rng) if texts[index].startswith("{") else rng.choice(WORDS)
        array = np.array(texts)
        header["descr"] = array.dtype.str
    elif array.dtype.kind in "iuf" and array.size:
        special = (
            (np.nan, np.inf, -1, 1e308, -0.0)
            if array.dtype.kind == "f"
            else (np.iinfo(array.dtype).max, np.iinfo(array.dtype).min, 3)
        )
        with np.errstate(all="ignore"):
            array[rng.randrange(array.size) if rng.random() < 0.8 else slice(None)] = rng.choice(special)
    return build_npy(version, repr(header), array.tobytes())


NPY: tuple[Mutator, ...] = (mutate_npy_header, mutate_npy_header, mutate_npy_text, mutate_npy_values, *BYTES[:6])
