"""The stub driver cuda_stub.c for NVIDIA's cuda.bindings: compile it, load it in child processes, and read its records.

`build` and `environment` are for the parent process; in the child, `Stub` gives access to the driver that the bindings loaded.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).with_suffix(".c")
SONAME = "libcuda.so.1"  # the library that the bindings load
KINDS = ("context", "stream", "module", "function", "memory", "graph", "node", "exec")  # enum Kind of cuda_stub.c
HOW = ("plain", "cooperative", "in a graph")  # enum How
MOST_PARAMETERS, PARAMETER_BYTES = 512, 4096  # limits in cuda_stub.c


class NoStubError(Exception):
    """The stub cannot be compiled on this machine; the message states the reason."""


def compiler() -> list[str]:
    """Return the C compiler command: the variable CC, the compiler that built Python, or another installed compiler.

    Raises
    ------
    NoStubError : no compiler is installed, or this is not Linux
    """
    if sys.platform != "linux":
        raise NoStubError("the stub of the CUDA driver needs Linux")
    if "CC" in os.environ:
        return shlex.split(os.environ["CC"])
    built_by = (sysconfig.get_config_var("CC") or "").split()[:1]
    for name in (*built_by, "cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise NoStubError("the stub of the CUDA driver needs a C compiler")


def build(folder: Path) -> Path:
    """Compile the stub into a folder; return the path of the library.

    Raises
    ------
    NoStubError : no working compiler is installed
    """
    target = folder / SONAME
    flags = ["-O1", "-Wall", "-Wextra", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}"]
    try:
        done = subprocess.run([*compiler(), *flags, "-o", target, SOURCE], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoStubError(f"the stub of the CUDA driver needs a C compiler: {error}") from error
    if done.returncode != 0:
        raise RuntimeError(f"{SOURCE.name} does not compile:\n{done.stderr}")
    return target


def environment(folder: Path) -> dict[str, str]:
    """Return environment variables with which cuda.bindings in a child process load the stub from a folder."""
    others = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join([str(folder), *([others] if others else [])])}


def functions_of(source: str) -> set[str]:
    """Return the driver functions named in Python source, as attributes of `driver` or as strings."""
    return set(re.findall(r"\bdriver\.(cu[A-Z]\w*)", source)) | set(re.findall(r'"(cu[A-Z]\w*)"', source))


# ------------------------------------------------------------------------------------------------ machine code


class Parameter(NamedTuple):
    """Offset and size of a kernel parameter, in bytes."""

    offset: int
    size: int


def sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the sections of a 64-bit ELF file."""
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    each, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    # The unpacked fields of a section header are name, type, flags, address, offset and size.
    headers = [struct.unpack_from("<IIQQQQ", elf, start + number * each) for number in range(count)]
    text = elf[headers[names][4] :][: headers[names][5]]
    for name, _, _, _, offset, size in headers:
        yield text[name : text.index(b"\0", name)].decode(), elf[offset : offset + size]


def attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield attribute numbers and bodies of a section .nv.info.* of a cubin.

    Each entry consists of a format byte, an attribute byte, two bytes with a value or the length of the body, and the body.
    """
    at = 0
    while at < len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, at)
        length = value if form == 4 else 0
        yield attribute, info[at + 4 : at + 4 + length]
        at += 4 + length


def parameters(cubin: bytes, entry: str) -> list[Parameter]:
    """Return the parameters of a kernel in order, read from its machine code (EIATTR_KPARAM_INFO).

    A body consists of index, ordinal, offset, and flags with the size in the upper bits. Source: the output of CUDA's
    `cuobjdump --dump-elf`.
    """
    found: dict[int, Parameter] = {}
    for attribute, body in attributes(dict(sections(cubin))[f".nv.info.{entry}"]):
        if attribute == 0x17:
            _, ordinal, offset, flags = struct.unpack("<IHHI", body)
            found[ordinal] = Parameter(offset, flags >> 18)
    assert sorted(found) == [*range(len(found))]
    return [found[ordinal] for ordinal in range(len(found))]


# ------------------------------------------------------------------------------------------------ launches


class Received(NamedTuple):
    """A launch as received by the driver.

    shape : grid, block, bytes of shared memory; how : one of `HOW`; after : index of the preceding graph node, or -1
    parameters : the bytes of each parameter; empty if the layout is unknown
    """

    entry: str
    shape: list[int]
    how: str
    after: int
    parameters: list[bytes]


class Meant(NamedTuple):
    """A launch as intended by the engine.

    layout : kernel parameters according to the machine code; for the other fields see `Received`
    """

    entry: str
    shape: list[int]
    how: str
    after: int
    parameters: list[bytes]
    layout: list[Parameter]


def laid_out(sizes: list[int]) -> list[Parameter]:
    """Return the layout of consecutive parameters, each aligned to its size, as in a C struct."""
    found, end = [], 0
    for size in sizes:
        offset = -(-end // size) * size
        found.append(Parameter(offset, size))
        end = offset + size
    return found


def mismatches(received: list[Received], meant: list[Meant]) -> list[str]:
    """List differences between received and intended launches, and between intended and actual kernel parameters."""
    if len(received) != len(meant):
        return [f"{len(received)} launches, not {len(meant)}"]
    found = []
    for number, (one, other) in enumerate(zip(received, meant, strict=True)):
        if (wanted := laid_out([len(value) for value in other.parameters])) != other.layout:
            found.append(f"launch {number}: the kernel takes {other.layout} but is given {wanted}")
        for name in Received._fields:
            if getattr(one, name) != getattr(other, name):
                found.append(f"launch {number}: {name} is {getattr(one, name)}, not {getattr(other, name)}")
    return found


# ------------------------------------------------------------------------------------------------ in a child process


class Layout(ctypes.Structure):
    """Layout of a kernel's parameters, set by `Stub.expect`; count is -1 if it was not set."""

    _fields_ = (
        ("entry", ctypes.c_char * 1024),
        ("count", ctypes.c_int),
        ("offset", ctypes.c_int * MOST_PARAMETERS),
        ("size", ctypes.c_int * MOST_PARAMETERS),
        ("next", ctypes.c_void_p),
    )


class Record(ctypes.Structure):
    """A launch or a graph node as recorded by cuda_stub.c."""

    _fields_ = (
        ("layout", ctypes.POINTER(Layout)),
        ("shape", ctypes.c_uint * 7),
        ("how", ctypes.c_int),
        ("after", ctypes.c_int),
        ("bytes", ctypes.c_ubyte * PARAMETER_BYTES),
    )


def received(record: Any) -> Received:
    """Convert a record to Python types."""
    layout, memory = record.layout.contents, bytes(record.bytes)
    found = [memory[at : at + size] for at, size in zip(layout.offset[: layout.count], layout.size, strict=False)]
    return Received(layout.entry.decode(), list(record.shape), HOW[record.how], record.after, found if layout.count > 0 else [])


class Stub:
    """The stub driver of this process, which must have been started with `environment`."""

    def __init__(self) -> None:
        self.library: Any = ctypes.CDLL(SONAME)
        self.library.stub_calls.restype = ctypes.c_long
        self.library.stub_record.restype = ctypes.POINTER(Record)
        self.library.stub_other_context.restype = ctypes.c_void_p

    def calls(self, function: str) -> int:
        """Return how often a function was called; `function` has no suffix such as _v2."""
        return int(self.library.stub_calls(function.encode()))

    def live(self) -> dict[str, int]:
        """Return the number of live objects by kind."""
        return {name: self.library.stub_live(number) for number, name in enumerate(KINDS)}

    def expect(self, entry: str, layout: list[Parameter]) -> None:
        """Set the layout of a kernel's parameters before its lookup; after the first such call, other kernels are not found."""
        offsets, sizes = ([getattr(one, name) for one in layout] for name in Parameter._fields)
        numbers = ctypes.c_int * len(layout)
        assert self.library.stub_expect(entry.encode(), numbers(*offsets), numbers(*sizes), len(layout))

    def received(self) -> list[Received]:
        """Return all launches and graph nodes since `forget`."""
        return [received(self.library.stub_record(number).contents) for number in range(self.library.stub_recorded())]

    def other_context(self) -> int:
        """Create a context that can be pushed, like the context of another library."""
        return int(self.library.stub_other_context())

    def forget(self) -> None:
        """Delete the records and clear a device fault."""
        self.library.stub_forget()
