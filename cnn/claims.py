"""Checks of a file in the format of torch.save before PyTorch reads it, because reading could allocate any amount of memory.

The file is a zip archive with a pickle, `data.pkl`, and one member per storage of a tensor. In the format of PyTorch before
1.6, in which some published weights are stored, it is a sequence of five pickles and the storages. PyTorch executes the pickle
with a restricted unpickler, which runs no code from the file. However, it calls functions that allocate memory, such as
`bytearray(10**12)`, and hashes and prints objects that contain the same objects many times. Therefore the operations of the
pickle are compared with those that torch.save writes for dicts of tensors and plain values. Nothing is executed for this.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

from .errors import FileError, library_errors

GIB = 1 << 30
MAX_RATIO = 50  # more than 1 GiB of data must not be more than this multiple of the size of the file
REMEDY = "use an intact copy, or create the file again"
DAMAGED = "not a readable PyTorch file"

# Bytes per element of the storages of tensors, and the functions that construct tensors and dicts.
SIZES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "BFloat16": 2, "Half": 2, "Short": 2, "Bool": 1, "Byte": 1, "Char": 1}
STORAGES = {f"torch {name}Storage": size for name, size in SIZES.items()}
FUNCTIONS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
GLOBALS = frozenset({"collections OrderedDict", *STORAGES, *(f"torch._utils {name}" for name in FUNCTIONS)})
# Operations that push a number, a string, a boolean or None, and the others that torch.save writes.
PLAIN = re.compile("BININT|BININT1|BININT2|LONG1|BINFLOAT|BINUNICODE|SHORT_BINSTRING|NONE|NEWTRUE|NEWFALSE")
OTHERS = re.compile("PROTO|STOP|EMPTY_(DICT|LIST|TUPLE)|MARK|TUPLE[123]?|APPENDS?|SETITEMS?|REDUCE|BUILD|BINPERSID")
PUT = ("BINPUT", "LONG_BINPUT")
GET = ("BINGET", "LONG_BINGET")
PROTOCOL = 2  # of the pickles of torch.save
PICKLES = 5  # of the format before PyTorch 1.6: magic number, version, system, object, keys of the storages


def check_claim(name: str, declared: int, size: int) -> None:
    """Raise FileError if a file of `size` bytes declares more than 1 GiB and more than MAX_RATIO times its size.

    name : name of the file, for the error message
    declared : number of bytes that the contents would take

    >>> check_claim("a.pt", 2 << 30, 100 << 20)
    """
    if declared > max(GIB, MAX_RATIO * size):
        gib = math.ceil(10 * declared / GIB) / 10
        problem = f"the file has {size:,} bytes, but declares {gib:,} GiB of data, more than {MAX_RATIO} times its size"
        raise FileError(f"{name}: {problem}; use a file from a trusted source")


def check_claims(data: bytes, name: str) -> None:
    """Check that a file contains only tensors and plain values, and does not declare much more data than its size.

    Parameters
    ----------
    data : content of the file
    name : name of the file, for error messages

    Raises
    ------
    FileError : the file is damaged, declares too much data (see `check_claim`), or contains other objects
    """
    if data.startswith(b"PK"):
        with library_errors(FileError, f"{name}: {DAMAGED}", REMEDY):
            archive = zipfile.ZipFile(io.BytesIO(data))
        with archive:
            check_zip(archive, data, name)
    else:
        stream = io.BytesIO(data)
        sizes: dict[str, int] = {}
        for _ in range(PICKLES):
            sizes |= storage_sizes(stream, name)
        check_claim(name, sum(sizes.values()), len(data))


def check_zip(archive: zipfile.ZipFile, data: bytes, name: str) -> None:
    """Check the members of a zip archive in the format of torch.save; see `check_claims`."""
    entries = archive.infolist()
    check_claim(name, sum(entry.file_size for entry in entries), len(data))
    # PyTorch reads the archive with another library, which must not find other members: there is only one list of members, at
    # the end, and no two members have the same name. That library ignores the case of names.
    names = {entry.filename.lower() for entry in entries}
    if len(names) != len(entries) or archive.start_dir != start_of_directory(data):
        raise FileError(f"{name}: {DAMAGED} (the zip archive has duplicate or hidden members); {REMEDY}")
    folder = entries[0].filename.partition("/")[0] if entries else ""
    if f"{folder}/constants.pkl" in names:
        raise FileError(f"{name}: a TorchScript program, not a file of weights; save the state dict of the network")
    with library_errors(FileError, f"{name}: {DAMAGED}", REMEDY):
        pickle = archive.read(f"{folder}/data.pkl")
    check_claim(name, sum(storage_sizes(io.BytesIO(pickle), name).values()), len(data))


def start_of_directory(data: bytes) -> int:
    """Return the position of the list of members of a zip archive without a comment, as stated at its end; -1 if not found."""
    end, zip64 = len(data) - 22, len(data) - 22 - 20 - 56
    if zip64 >= 0 and data[end - 20 : end - 16] == b"PK\6\7":
        (position,) = struct.unpack_from("<Q", data, end - 12)
        return int(struct.unpack_from("<Q", data, zip64 + 48)[0]) if position == zip64 else -1
    return int(struct.unpack_from("<L", data, end + 16)[0]) if data[end : end + 4] == b"PK\5\6" else -1


def operations(stream: io.BytesIO, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the operations of a pickle as (name, argument); raise FileError if they cannot be parsed."""
    parsed = pickletools.genops(stream)
    while True:
        with library_errors(FileError, f"{name}: {DAMAGED}", REMEDY):
            operation = next(parsed, None)
        if operation is None:
            return
        yield operation[0].name, operation[1]


def storage_sizes(stream: io.BytesIO, name: str) -> dict[str, int]:
    """Return the size in bytes of each storage in a pickle, by key. The pickle is parsed, but not executed.

    Parameters
    ----------
    stream : stream at the start of the pickle; afterwards, it is at its end
    name : name of the file, for error messages

    Raises
    ------
    FileError : the pickle is damaged, contains other objects than tensors and plain values, or contains the same list, tuple,
        dict or tensor twice
    """
    memo: dict[int, Any] = {}
    sizes: dict[str, int] = {}
    values: list[Any] = []  # plain values since the last MARK
    last: Any = None  # the plain value that the previous operation pushed
    arguments: list[Any] = []  # values of the tuple that has just been completed
    for operation, argument in operations(stream, name):
        if operation in PUT:
            memo[argument] = last
            continue
        last = plain_value(operation, argument, memo)
        if (last is None and not OTHERS.fullmatch(operation)) or (operation == "PROTO" and argument != PROTOCOL):
            if operation in GET:
                problem = "two entries share one tensor, list or dict (such as tied weights), which is not supported"
                raise FileError(f"{name}: {problem}; clone the tensors before torch.save")
            found = argument if operation == "GLOBAL" else operation if argument is None else f"{operation} {argument!r}"
            problem = f"contains objects other than tensors, numbers and strings ({found[:60]})"
            raise FileError(f"{name}: {problem}; save the state dict with torch.save(model.state_dict(), file)")
        if operation == "BINPERSID":
            key, size = storage_size(arguments, name)
            sizes[key] = size
        arguments = values if operation == "TUPLE" else []
        if operation in ("MARK", "TUPLE"):
            values = []
        elif last is not None:
            values.append(last)
    return sizes


def plain_value(operation: str, argument: Any, memo: dict[int, Any]) -> Any:
    """Return the number, string or name of a global that an operation pushes, "NONE" for None; None for other operations."""
    if operation in GET:
        return memo.get(argument)
    if operation == "GLOBAL":
        return argument if argument in GLOBALS else None
    if PLAIN.fullmatch(operation):
        return operation if argument is None else argument
    return None


def storage_size(arguments: list[Any], name: str) -> tuple[str, int]:
    """Return the key and the size in bytes of a storage from its description, ("storage", type, key, device, numel, …)."""
    match arguments[:5]:
        case ["storage", str(kind), str(key), str(), int(count)] if kind in STORAGES and count >= 0:
            return key, count * STORAGES[kind]
    raise FileError(f"{name}: {DAMAGED} (a tensor storage has an invalid type or size); {REMEDY}")
