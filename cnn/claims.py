"""Checks of a file in the format of torch.save before PyTorch reads it, because reading could allocate any amount of memory.

The file is a zip archive with a pickle, `data.pkl`, and one member per storage of a tensor. In the format of PyTorch before
1.6, in which some published weights are stored, it is a sequence of five pickles and the storages. PyTorch executes the pickle
with a restricted unpickler, which runs no code from the file. However, it calls functions that allocate memory, such as
`bytearray(10**12)`, and hashes and prints objects that contain the same objects many times. Therefore the operations of the
pickle are compared with those that torch.save writes for dicts of tensors and plain values (pickles.py). Nothing is executed.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile

from .errors import FileError, library_errors
from .pickles import DAMAGED, REMEDY, storage_sizes

GIB = 1 << 30
MAX_RATIO = 50  # more than 1 GiB of data must not be more than this multiple of the size of the file
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
