"""Compilation of kernels to machine code for NVIDIA GPUs: compiled by numba-cuda, linked by nvJitLink, cached on disk.

Compilation does not require a GPU. The cache files can be copied to another machine that has a driver but no compiler, because
the name of a file depends only on the sources, the kernel and the compute capability.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.engines.cuda import load_cuda
from fastmlp.engines.cuda.kernels.programs import KERNELS, KernelSpec, Shape, arguments_of
from fastmlp.engines.cuda.kernels.tiles import Tile
from fastmlp.engines.functions import numba_message
from fastmlp.engines.kernel_cache import cache_folder, read_entry, sources_hash, write_entry
from fastmlp.errors import UnavailableError
from fastmlp.nn.activations import digest_of

Capability = tuple[int, int]

# Folders and files whose source code affects kernels. A test compares the list with the imports of this file.
SOURCES = (
    "nn",
    "engines/functions.py",
    "engines/interrupts.py",
    "engines/kernel_cache.py",
    "engines/cuda/__init__.py",
    "engines/cuda/compiler.py",
    "engines/cuda/kernels",
)
ONE_AT_A_TIME = threading.Lock()  # compilation replaces attributes of Numba, which all threads share


class Built(NamedTuple):
    """A kernel for one compute capability.

    cubin : machine code
    entry : name of the kernel in the cubin
    arguments : types of the arguments, such as "float32", or "float32[]" for an array
    threads : threads per block
    registers : registers per thread
    shared : bytes of shared memory per block
    spilled : bytes of stack frame, spill stores and spill loads per thread
    """

    cubin: bytes
    entry: str
    arguments: tuple[str, ...]
    threads: int
    registers: int
    shared: int
    spilled: int


@functools.cache
def sources() -> str:
    return sources_hash(SOURCES, "")


def entry_of(name: str, kind: KernelSpec, shape: Shape | Tile, capability: Capability) -> Path:
    """Return the cache file of a kernel. Its name depends on the code of custom activations, not only on their names."""
    custom = "".join(map(digest_of, kind.activations))
    text = f"{sources()} {name} {kind} {shape} {capability} {custom}"
    return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.cubin"


@functools.cache
def compiled(name: str, kind: KernelSpec, shape: Shape | Tile, capability: Capability) -> Built:
    """Return a kernel of `KERNELS`. It is read from the cache if possible, and compiled otherwise.

    Raises
    ------
    UnavailableError : a package is missing, or the kernel cannot be compiled
    """
    file = entry_of(name, kind, shape, capability)
    if (body := read_entry(file)) is not None:
        return unpacked(body)
    try:
        with ONE_AT_A_TIME:
            built = linked(lowered(name, kind, shape, capability), capability)
    except UnavailableError:
        raise
    except Exception as error:  # Numba, NVVM and the linker raise exceptions of many types
        custom = " and ".join(activation for activation in kind.activations if digest_of(activation))
        raise UnavailableError(
            f"a kernel for compute capability {capability[0]}.{capability[1]} "
            f"{f'with the custom activation {custom} ' if custom else ''}could not be compiled ({numba_message(error)}); "
            "use backend 'numba'; `fastmlp doctor` shows what is missing"
        ) from error
    write_entry(file, packed(built))
    return built


def packed(built: Built) -> bytes:
    """Serialize a kernel as one line of JSON followed by the machine code."""
    return json.dumps(built._replace(cubin=b"")._asdict() | {"cubin": None}).encode() + b"\n" + built.cubin


def unpacked(body: bytes) -> Built:
    """Restore a kernel from the output of `packed`."""
    head, cubin = body.split(b"\n", 1)
    fields = json.loads(head)
    return Built(**fields | {"cubin": cubin, "arguments": tuple(fields["arguments"])})


# ------------------------------------------------------------------------------------------------ compilation steps


class Lowered(NamedTuple):
    """A kernel in intermediate code, as a library object of Numba. `arguments` and `threads` are those of `Built`."""

    library: Any
    arguments: tuple[str, ...]
    threads: int


def lowered(name: str, kind: KernelSpec, shape: Shape | Tile, capability: Capability) -> Lowered:
    """Compile a kernel of `KERNELS` to intermediate code."""
    load_cuda()
    from numba.core import types
    from numba.cuda.compiler import compile_cuda, kernel_fixup  # type: ignore[attr-defined]
    from numba.cuda.cudadrv.nvvm import set_launch_bounds  # type: ignore[attr-defined]

    from fastmlp.engines.cuda.kernels import device as cuda_device

    with standing_in(capability):
        kernel, arguments = KERNELS[name](cuda_device, kind, shape), arguments_of(name, kind)
        options = {"fastmath": False, "opt": 3}
        made = compile_cuda(kernel.function, types.void, signature(arguments), nvvm_options=options, cc=capability, lto=True)
        entry = made.library.get_function(made.fndesc.llvm_func_name)
        made.library._entry_name = entry.name
        kernel_fixup(entry, False)
        set_launch_bounds(entry, (kernel.threads, kernel.blocks))
    return Lowered(made.library, arguments, kernel.threads)


def linked(kernel: Lowered, capability: Capability) -> Built:
    """Compile the intermediate code of a kernel to machine code for a compute capability."""
    library, arguments, threads = kernel
    from numba.cuda.cudadrv.driver import _Linker  # type: ignore[attr-defined]

    full = (*capability, "a" if capability >= (9, 0) else "")  # "a" enables architecture-specific features
    plain = _Linker._get_linker_options

    def telling(linker: Any, ptx: Any) -> Any:
        options = plain(linker, ptx)
        options.ptxas_options = ["-v"]
        return options

    with standing_in(capability), replaced(_Linker, "_get_linker_options", telling):
        cubin = bytes(library.get_cubin(cc=full).code)
        log = library.get_linkerinfo(full)
    found, shared = re.search(r"Used (\d+) registers", log), re.search(r"(\d+) bytes smem", log)
    if found is None:
        raise RuntimeError(f"the linker's log does not contain the number of registers: {log[:300]}")
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log))
    needs = int(found[1]), int(shared[1]) if shared else 0, spilled
    return Built(cubin, library._entry_name, arguments, threads, *needs)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Context manager that replaces an attribute temporarily."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def standing_in(capability: Capability) -> Iterator[None]:
    """Context manager in which Numba compiles for this compute capability without querying a device."""
    from numba.cuda import compiler, dispatcher

    class Device:
        compute_capability = capability

    with replaced(dispatcher, "get_current_device", Device), replaced(compiler, "get_current_device", Device):
        yield


def signature(arguments: Sequence[str]) -> tuple[Any, ...]:
    """Return the Numba types of the arguments of a kernel."""
    from numba.core import types

    scalars = {"bool": types.boolean}
    plain = [scalars.get(name) or getattr(types, name) for name in (one.removesuffix("[]") for one in arguments)]
    return tuple(one[::1] if name.endswith("[]") else one for one, name in zip(plain, arguments, strict=True))
