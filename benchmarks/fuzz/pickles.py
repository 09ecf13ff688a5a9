"""Mutations of pickles, such as those in files of torch.save. Source: pickletools."""

from __future__ import annotations

import json
import pickletools
import struct

from benchmarks.fuzz.documents import json_text
from benchmarks.fuzz.mutators import BYTES, WORDS, Malformed, Mutator, Random, integer

GLOBALS = (
    b"os\nsystem\n",
    b"builtins\neval\n",
    b"torch\nSize\n",
    b"torch\nFloatStorage\n",
    b"torch._utils\n_rebuild_parameter\n",
)
GLOBALS += (
    b"torch._utils\n_rebuild_sparse_tensor\n",
    b"torch._utils\n_rebuild_qtensor\n",
    b"torch\ndevice\n",
    b"collections\nCounter\n",
)
GLOBALS += (b"torch.serialization\n_get_layout\n", b"torch\nBFloat16Storage\n", b"torch\nQUInt8Storage\n", b"a\nb\n", b"\n\n")
GLOBALS += (
    b"torch._utils\n_rebuild_wrapper_subclass\n",
    b"torch._utils\n_rebuild_meta_tensor_no_storage\n",
    b"torch\nfloat8_e4m3fn\n",
)


def opcodes(data: bytes) -> list[tuple[str, int, int]]:
    """Return the name, the start and the end of each opcode of the first pickle."""
    found = []
    for code, _, start in pickletools.genops(data):
        found.append((code.name, start or 0))
    ends = [start for _, start in found[1:]] + [len(data)]
    return [(name, start, end) for (name, start), end in zip(found, ends, strict=True)]


def mutate_pickle(data: bytes, rng: Random) -> bytes:
    """Replace a global name or a number, or change, remove, repeat or insert an opcode."""
    found = opcodes(data)
    kind = rng.randrange(6)
    wanted = {0: ("GLOBAL",), 1: ("BININT", "BININT1", "BININT2", "LONG1"), 2: ("BINUNICODE", "SHORT_BINUNICODE")}.get(kind)
    name, start, end = rng.choice([one for one in found if wanted is None or one[0] in wanted] or found)
    if name == "GLOBAL" and kind == 0:
        return data[: start + 1] + rng.choice(GLOBALS) + data[end:]
    if kind == 1:
        return (
            data[:start]
            + rng.choice((b"J" + integer(rng, 4), b"K" + integer(rng, 1), b"\x8a\x08" + integer(rng, 8), b"N"))
            + data[end:]
        )
    if name == "BINUNICODE" and kind == 2:
        text = rng.choice(WORDS).encode("utf-8", "surrogatepass")
        return data[: start + 1] + struct.pack("<I", len(text)) + text + data[end:]
    if kind == 3:
        return data[:start] + data[end:]
    if kind == 4:
        return data[:end] + data[start:end] * rng.choice((1, 2, 1000)) + data[end:]
    opcode = (
        bytes([ord(rng.choice(pickletools.opcodes).code)])
        if rng.random() < 0.5
        else rng.choice((b"(", b")", b"}", b"R", b"N", b"."))
    )
    return data[:start] + opcode + data[start + rng.randrange(2) :]


PICKLE: tuple[Mutator, ...] = (mutate_pickle, mutate_pickle, mutate_pickle, *BYTES[:4])


def mutate_table_of_extractor(data: bytes, rng: Random) -> bytes:
    """Change the description of the network in the pickle of an extractor, which is a JSON text."""
    start = data.find(b'{"network"')
    if start < 5 or data[start - 5 : start - 4] != b"X":
        raise Malformed("no description")
    (length,) = struct.unpack("<I", data[start - 4 : start])
    text = json_text(data[start : start + length].decode(), rng).encode()
    json.loads(text)
    return data[: start - 4] + struct.pack("<I", len(text)) + text + data[start + length :]
