"""Kernels for GPUs that are not here: python -m benchmarks.cuda_build [--out FOLDER]

Compiles every kernel for every compute capability through the link that a launch goes through (NVVM's intermediate code, then
nvJitLink), without a driver, and prints what each needs: registers, shared memory, and bytes spilled out of registers. Ends with
an error if any spills. --out keeps the machine code (cubins), which a machine with a driver and without NVVM can launch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from fastmlp.artifacts import write_bytes, write_json
from fastmlp.cuda_kernels import Kind, Shape, make_apply, make_train
from fastmlp.cuda_shim import load_cuda
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.optimizers import RULES

Capability = tuple[int, int]
CAPABILITIES: tuple[Capability, ...] = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0))
PLAIN = Kind(("relu",), "cross-entropy", "softmax", "sgd", False, True, False, False, False)


class Built(NamedTuple):
    """A kernel for one capability.

    cubin : its machine code; entry : its name in there
    registers, shared, spilled : of a thread, bytes of a block, bytes of a thread
    """

    cubin: bytes
    entry: str
    registers: int
    shared: int
    spilled: int


def kinds() -> Iterator[tuple[str, Kind]]:
    """The plain kernel, and every option, several in a kernel."""
    yield "relu, sgd", PLAIN
    for rule in list(RULES)[1:]:
        yield f"relu, {rule}", PLAIN._replace(rule=rule)
    losses = [(loss, output) for loss, outputs in LOSSES.items() for output in outputs]
    for number, (loss, output) in enumerate(losses):
        options = {"pixels": number % 2 == 0, "classes": number > 1, "drops": True, "penalised": True, "clips": number % 2 == 1}
        yield f"all, {loss}, {output}", Kind(tuple(ACTIVATIONS), loss, output, "adamw", **options)


@contextmanager
def standing_in(capability: Capability) -> Iterator[None]:
    """Numba asks the device at hand for its capability; here is one that has it."""
    load_cuda()
    from numba.cuda import compiler, dispatcher
    from numba.cuda.cudadrv import devices, driver

    device = mock.Mock(compute_capability=capability, MULTIPROCESSOR_COUNT=132)
    options = driver._Linker._get_linker_options

    def verbose(self: Any, ptx: Any) -> Any:
        found = options(self, ptx)
        found.ptxas_options = ["-v"]
        return found

    with (
        mock.patch.object(dispatcher, "get_current_device", lambda: device),
        mock.patch.object(compiler, "get_current_device", lambda: device),
        mock.patch.object(devices, "get_context", lambda *given: mock.Mock(device=device)),
        mock.patch.object(dispatcher._Kernel, "bind", lambda self: None),
        mock.patch.object(driver._Linker, "_get_linker_options", verbose),
    ):
        yield


def build(kernel: Any, signature: tuple[Any, ...], capability: Capability) -> Built:
    """Compile and link a new kernel for a capability."""
    with standing_in(capability):
        kernel.compile(signature)
        (overload,) = kernel.overloads.values()
        library = overload._codelibrary
        full = (*capability, "a" if capability >= (9, 0) else "")  # as Numba has it at a launch
        cubin = library.get_cubin(cc=full).code
        log = library.get_linkerinfo(full)
    found = re.search(r"Used (\d+) registers", log)
    if found is None:
        raise RuntimeError(f"nothing on registers in the linker's log: {log[:300]}")
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log))
    shared = re.search(r"(\d+) bytes smem", log)
    return Built(cubin, overload.entry_name, int(found[1]), int(shared[1]) if shared else 0, spilled)


def signatures(kind: Kind) -> dict[str, tuple[Any, ...]]:
    """The types of the arguments of each kernel, as the engine gives them."""
    from numba import types

    f, i = types.float32[::1], types.int32[::1]
    x, y = types.uint8[::1] if kind.pixels else f, i if kind.classes else f
    tables, of_rows = (i, f, types.uint32[::1], f), (x, f, f)
    numbers = (types.int32, types.int32, types.int32, types.int32, types.int64, types.uint64, types.float32)
    stores = (f, f, f, f, types.float64[::1], f, types.uint32[::1])
    train = (*tables, *of_rows, y, types.float32, types.float32, i, f, f, types.boolean[::1], f, *stores, *numbers)
    return {"train": train, "apply": (*tables, *of_rows, i, f, f, types.uint32[::1], types.int32)}


def build_all(kind: Kind, capability: Capability) -> dict[str, Built]:
    """All kernels of a kind."""
    load_cuda()
    from fastmlp import cuda_device

    made = {"train": make_train, "apply": make_apply}
    return {
        name: build(made[name](cuda_device, kind, Shape()), signature, capability)
        for name, signature in signatures(kind).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for capability in CAPABILITIES:
        for label, kind in kinds():
            for name, built in build_all(kind, capability).items():
                rows.append({"kernel": name, "kind": label, "capability": list(capability), **built._asdict()})
                file = f"{name}-{label.replace(', ', '-')}-{''.join(map(str, capability))}.cubin"
                rows[-1]["cubin"] = file
                if options.out:
                    options.out.mkdir(parents=True, exist_ok=True)
                    write_bytes(options.out / file, built.cubin)
                needs = f"{built.registers} registers, {built.shared} bytes shared, {built.spilled} bytes spilled"
                print(f"{capability[0]}.{capability[1]} {name} ({label}): {needs}", flush=True)
    if options.out:
        write_json(options.out / "kernels.json", {"kernels": rows})
    if any(row["spilled"] for row in rows):
        sys.exit("a kernel spills registers")


if __name__ == "__main__":
    main()
