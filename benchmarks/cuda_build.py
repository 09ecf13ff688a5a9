"""Compile the CUDA kernels without a GPU: python -m benchmarks.cuda_build [--quick] [--out FILE.json]

The kernels are compiled for every compute capability in the same way as before a launch (engines/cuda/compiler.py), but no
driver is needed. The script prints the registers, shared memory and spilled bytes of each kernel. If a kernel spills
registers, it exits with an error. The compiled kernels are stored in the kernel cache (FASTMLP_CACHE_DIR). The cache can be
copied to a machine that has a driver but no compiler; gpu/carry.py packs one for such a machine. With --quick, only the
kernels for relu and plain SGD are compiled, in every precision.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.engines import installed_version
from fastmlp.engines.base import PRECISIONS
from fastmlp.engines.cuda.compiler import Built, Capability, entry_of, linked, lowered, packed, sources
from fastmlp.engines.cuda.engine import SHAPE, TILES
from fastmlp.engines.cuda.kernels.programs import PLAIN, KernelSpec, Shape, apply_spec
from fastmlp.engines.cuda.kernels.tensor_cores import FIRST_CAPABILITY
from fastmlp.engines.cuda.kernels.tiles import Tile
from fastmlp.engines.kernel_cache import write_entry
from fastmlp.files import write_json
from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.optimizers import RULES

RESULTS = Path(__file__).parent / "results" / "cuda_build.json"
CAPABILITIES: tuple[Capability, ...] = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0))
TOOLCHAIN = ("numba", "numba-cuda", "nvidia-nvvm", "nvidia-nvjitlink")  # packages that compile the kernels


def format_capability(capability: Capability) -> str:
    """Format a compute capability as text, such as 9.0."""
    return ".".join(map(str, capability))


class Row(NamedTuple):
    """A kernel compiled for a compute capability, with its resources."""

    kernel: str
    kind: str
    shape: str
    capability: Capability
    built: Built

    def __str__(self) -> str:
        needs = f"{self.built.registers} registers, {self.built.shared} bytes shared, {self.built.spilled} bytes spilled"
        return f"{format_capability(self.capability)} {self.kernel} by {self.shape} ({self.kind}): {needs}"

    def table(self) -> dict[str, Any]:
        """Return the row as a dictionary, as written to --out."""
        named = {"capability": format_capability(self.capability), "kernel": self.kernel, "by": self.shape, "kind": self.kind}
        return named | {key: getattr(self.built, key) for key in ("registers", "shared", "spilled")}


def plain_kinds() -> Iterator[tuple[str, KernelSpec]]:
    """Yield a label and a kernel specification for relu with plain SGD, for each precision."""
    for precision in PRECISIONS:
        yield f"relu, sgd, {precision}", PLAIN._replace(precision=precision)


class KernelRequest(NamedTuple):
    """A kernel to be compiled. `label` is a description of `kind`, the specification of the kernel."""

    name: str
    label: str
    kind: KernelSpec
    shape: Shape | Tile


def kinds() -> Iterator[tuple[str, KernelSpec]]:
    """Yield kernel specifications with their labels.

    The kernels for relu and plain SGD come first. The others together cover every option, and the first of them uses all
    activations.
    """
    yield from plain_kinds()
    _, *losses = [(loss, output) for loss, outputs in LOSSES.items() for output in outputs]  # plain_kinds() has the first loss
    rules = [rule for rule in reversed(RULES) if rule != PLAIN.rule]
    for number in range(max(len(losses), len(rules))):
        (loss, output), rule = losses[number % len(losses)], rules[number % len(rules)]
        names, odd = (tuple(ACTIVATIONS) if number == 0 else ("silu",)), number % 2 == 1
        label = f"{'all activations' if number == 0 else 'silu'}, {rule}, {loss}, {output}"
        kind = KernelSpec(names, loss, output, rule, pixels=not odd, classes=odd, drops=True, penalised=True, clips=odd)
        for precision in PRECISIONS if number == 0 else PRECISIONS[:1]:
            yield f"{label}, {precision}", kind._replace(precision=precision)


def kernels(kinds: Iterable[tuple[str, KernelSpec]]) -> Iterator[KernelRequest]:
    """Yield all kernels with these specifications.

    In float32 there are separate kernels for small and for large batches. In the other precisions, the same kernel is used for
    all batch sizes. Kernels that do not depend on the specification are yielded once. The kernels of pieces.py, which only the
    benchmarks use, contain no matrix products, so they are compiled for only one design and one precision.
    """
    for name in ("barriers", "dropout"):
        yield KernelRequest(name, "any", PLAIN, SHAPE)
    for label, kind in kinds:
        for name in ("activations", "updates") if kind.precision == "float32" else ():
            yield KernelRequest(name, label, kind, SHAPE)
        for shape in (*([SHAPE] if kind.precision == "float32" else []), TILES[kind.precision]):
            yield KernelRequest("train", label, kind, shape)
            yield KernelRequest("apply", label, apply_spec(kind), shape)


def fitting(kind: KernelSpec, capabilities: Sequence[Capability]) -> list[Capability]:
    """Return the compute capabilities that support the precision of a kernel."""
    return [one for one in capabilities if kind.precision == "float32" or one >= FIRST_CAPABILITY]


def build_all(requests: Iterable[KernelRequest], capabilities: Sequence[Capability]) -> Iterator[Row]:
    """Lower each kernel once, link it for every compute capability that supports it, and yield a row for each."""
    for name, label, kind, shape in requests:
        fit = fitting(kind, capabilities)
        kernel = lowered(name, kind, shape, fit[0])
        for capability in fit:
            built = linked(kernel, capability)
            write_entry(entry_of(name, kind, shape, capability), packed(built))
            yield Row(name, label, type(shape).__name__.lower(), capability, built)


def parse_capability(text: str) -> Capability:
    """Parse a compute capability into its major and minor number.

    >>> parse_capability("9.0")
    (9, 0)
    """
    major, point, minor = text.partition(".")
    if not (point and major.isdecimal() and minor.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a compute capability such as 9.0")
    return int(major), int(minor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    options = parser.parse_args()
    rows = []
    for row in build_all(kernels(plain_kinds() if options.quick else kinds()), CAPABILITIES):
        rows.append(row)
        print(row, flush=True)
    if options.out:
        versions = {name: installed_version(name) for name in TOOLCHAIN}
        about = {"date": datetime.date.today().isoformat(), "versions": versions, "sources": sources()}
        write_json(options.out, about | {"rows": [row.table() for row in rows]})
    print(f"tf32 and bf16 need tensor cores of compute capability {format_capability(FIRST_CAPABILITY)} or higher")
    if any(row.built.spilled for row in rows):
        sys.exit("a kernel spills registers")


if __name__ == "__main__":
    main()
