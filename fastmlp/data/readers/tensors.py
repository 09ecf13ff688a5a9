"""Reading and writing of safetensors files, and reading of the files of `torch.save`.

Specification of the format: https://huggingface.co/docs/safetensors. A file contains the length of the header in 8 bytes, the
header in JSON, and the tensors.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from fastmlp.errors import DataError, UnavailableError
from fastmlp.files.limits import check_claim
from fastmlp.files.reading import file_errors, library_errors, open_file, size_of

SAVE = "save a dict of dense tensors of numbers with torch.save"  # remedy
NOT_TENSORS = "not a readable file of tensors"
GLOBALS = frozenset({"GLOBAL", "INST", "STACK_GLOBAL"})  # operations of a pickle that name a class or a function
STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # of JSON, also one that is not closed
MAX_JSON = 1 << 21  # bytes outside strings; the description of a table with a column takes less than 100
MAX_HEADER = 100_000_000  # bytes of a header that safetensors reads
CHECKED = GLOBALS | {"PROTO"}
PROTOCOLS = (2, 3)  # of the pickles that PyTorch reads with weights_only=True
PICKLES = 5  # in the format before PyTorch 1.6: magic number, version, system, object, keys of the storages
Tensors = dict[str, npt.NDArray[Any]]


def read_tensors(file: Path) -> tuple[dict[str, str], Tensors]:
    """Return the metadata and the tensors of a safetensors file.

    Raises
    ------
    DataError : the file does not exist, is damaged, has too many values in its header, or has a tensor of a dtype that NumPy
        lacks
    """
    from safetensors import safe_open

    check_header(file)
    tensors: Tensors = {}
    with library_errors(file, "not a readable safetensors file", "create it again"), safe_open(file, "numpy") as opened:
        metadata = opened.metadata() or {}
        for name, text in metadata.items():
            if text.startswith(("{", "[")):  # such as the names of the classes, or the description of a model
                check_json(f"{file}: {name!r} in the metadata", text.encode())
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            with library_errors(f"{file}: tensor {name!r}", "cannot be read as a NumPy array", "convert it to float32"):
                tensors[name] = opened.get_tensor(name)
    return metadata, tensors


def check_header(file: Path) -> None:
    """Raise DataError if the header of a safetensors file has too many values, see `check_json`, or cannot be read."""
    with open_file(file) as stream, file_errors("read", file):
        start = stream.read(8)
        length = min(int.from_bytes(start, "little"), MAX_HEADER)
        header = stream.read(length)
    check_json(f"{file}: the header", header)


def check_json(place: str, text: bytes) -> None:
    """Raise DataError if a JSON text has more than `MAX_JSON` bytes outside strings, where a string counts as one byte.

    A value of a few bytes can take a hundred bytes of memory when it is parsed. Long strings take only their length.

    >>> check_json("a", b'["' + b"x" * 5_000_000 + b'"]')
    >>> check_json("a", b"[" * 5_000_000)
    Traceback (most recent call last):
    fastmlp.errors.DataError: a has too many values: more than 2,097,152 bytes of JSON outside strings; use another file
    """
    outside, end = 0, 0
    for found in STRINGS.finditer(text):
        outside, end = outside + found.start() - end + 1, found.end()
        if outside > MAX_JSON:
            break
    else:
        outside += len(text) - end
    if outside > MAX_JSON:
        raise DataError(f"{place} has too many values: more than {MAX_JSON:,} bytes of JSON outside strings; use another file")


def read_pt_tensors(file: Path) -> Tensors:
    """Return the tensors of a file of `torch.save`: a dict of tensors, or a pair, which are called x and y.

    The file is read with weights_only=True, so that no code in it is run.

    Raises
    ------
    DataError : the file is damaged, has other objects, or `limits.check_claim` rejects its size
    UnavailableError : PyTorch is not installed
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{file}: .pt files need PyTorch ({error}); install it with: pip install torch") from error

    with open_file(file) as stream:
        check_pickles(file, stream)
        with library_errors(file, NOT_TENSORS, SAVE), own_messages(file), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # `check_pickles` accepts only protocols that work
            content: Any = torch.load(cast(IO[bytes], WithoutDescriptor(stream)), map_location="cpu", weights_only=True)
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip(("x", "y"), content, strict=True))
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise DataError(f"{file}: neither a dict of tensors nor a pair of tensors; save {{'x': x, 'y': y}} with torch.save")
    dense = [value for value in content.values() if value.layout == torch.strided]
    check_claim(file, sum(value.nbytes for value in dense), size_of(file))  # strides of 0 repeat the values of a small storage
    return {str(name): as_numpy(file, str(name), value) for name, value in content.items()}


@contextlib.contextmanager
def own_messages(file: Path) -> Iterator[None]:
    """Replace messages of torch.load that advise to read the file with weights_only=False, which can run code in the file.

    Raises
    ------
    DataError : in place of an exception with such a message
    """
    try:
        yield
    except Exception as error:
        if "weights_only" not in str(error):
            raise
        raise DataError(f"{file}: {NOT_TENSORS} (it is damaged, or has objects other than tensors); {SAVE}") from None


class WithoutDescriptor(io.RawIOBase):
    """A stream for PyTorch, which unpacks tar archives, its format of 2016, to the disk if a stream has a descriptor."""

    def __init__(self, stream: BufferedReader) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        return self.stream.readinto(buffer)


def check_pickles(file: Path, stream: BufferedReader) -> None:
    """Check what a file of `torch.save` declares before PyTorch reads it, and set the stream to its start.

    PyTorch allocates memory for the content of compressed members, and calls functions that the pickle names. Besides its own,
    it allows functions such as bytearray, which allocate any amount of memory. The pickles are parsed, but not executed.

    Raises
    ------
    DataError : the file is damaged, has other objects than tensors and plain values, or `limits.check_claim` rejects it
    """
    size = size_of(file)
    with library_errors(file, NOT_TENSORS, SAVE):
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as archive:
                members = archive.infolist()
                check_claim(file, sum(member.file_size for member in members), size)
                pickles: list[Any] = [io.BytesIO(archive.read(one)) for one in members if one.filename.endswith("/data.pkl")]
        else:  # the format before PyTorch 1.6
            pickles = [stream] * PICKLES
        stream.seek(0)
        parsed = [
            (one.name, given) for pickle in pickles for one, given, _ in pickletools.genops(pickle) if one.name in CHECKED
        ]
        stream.seek(0)
    if protocols := [given for operation, given in parsed if operation == "PROTO" and given not in PROTOCOLS]:
        problem = f"it has pickle protocol {protocols[0]}, but tensors are read only with {PROTOCOLS[0]} or {PROTOCOLS[-1]}"
        raise DataError(f"{file}: {problem}; save them with torch.save without pickle_protocol")
    names = [given for operation, given in parsed if operation in GLOBALS]
    if other := [name for name in names if not str(name).startswith(("torch", "collections OrderedDict"))]:
        raise DataError(f"{file}: contains {str(other[0])[:60]!r}, which is not a tensor; {SAVE}")


def as_numpy(file: Path, name: str, tensor: Any) -> npt.NDArray[Any]:
    """Return a tensor as an array; bfloat16 values, which NumPy lacks, become float32."""
    import torch

    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        raise DataError(f"{file}: tensor {name!r} is not a dense tensor of real numbers; convert it first")
    with library_errors(f"{file}: tensor {name!r}", "cannot be converted to a NumPy array", SAVE):
        tensor = tensor.detach()
        return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


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
