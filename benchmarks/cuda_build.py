"""Kernels for GPUs that are not here: python -m benchmarks.cuda_build [--quick]

Compiles the kernels for every compute capability through the steps that a launch goes through (cuda_compile.py), without a
driver, and prints what each needs: registers, shared memory, and bytes spilled out of registers. Ends with an error if any
spills. What was compiled is kept where compiled kernels are (FASTMLP_CACHE_DIR): such a folder serves a machine with a driver
and without a compiler. --quick: the plain kernels alone, in every precision; --precision: those of one precision alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from fastmlp.contract import PRECISIONS
from fastmlp.cuda import SHAPE, TILES
from fastmlp.cuda_compile import Built, Capability, entry_of, linked, lowered, packed
from fastmlp.cuda_kernels import KERNELS, Kind, Shape
from fastmlp.cuda_mma import FIRST_CAPABILITY
from fastmlp.cuda_tiles import Tile
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.kernel_files import write_entry
from fastmlp.optimizers import RULES

CAPABILITIES: tuple[Capability, ...] = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0))
PLAIN = Kind(("relu",), "cross-entropy", "softmax", "sgd", False, True, False, False, False)


class Row(NamedTuple):
    """A kernel for a capability, and what it needs."""

    kernel: str
    kind: str
    shape: str
    capability: Capability
    built: Built

    def __str__(self) -> str:
        major, minor = self.capability
        needs = f"{self.built.registers} registers, {self.built.shared} bytes shared, {self.built.spilled} bytes spilled"
        return f"{major}.{minor} {self.kernel} by {self.shape} ({self.kind}): {needs}"


def plain_kinds() -> Iterator[tuple[str, Kind]]:
    """The plain kernel in every precision."""
    for precision in PRECISIONS:
        yield f"relu, sgd, {precision}", PLAIN._replace(precision=precision)


def kinds() -> Iterator[tuple[str, Kind]]:
    """The plain kernel in every precision, and every option, several in a kernel; the first of these has all activations."""
    yield from plain_kinds()
    losses = [(loss, output) for loss, outputs in LOSSES.items() for output in outputs]
    for number, rule in enumerate(reversed([rule for rule in RULES if rule != PLAIN.rule])):
        loss, output = losses[number % len(losses)]
        names, odd = (tuple(ACTIVATIONS) if number == 0 else ("silu",)), number % 2 == 1
        label = f"{'all activations' if number == 0 else 'silu'}, {rule}, {loss}, {output}"
        kind = Kind(names, loss, output, rule, pixels=not odd, classes=odd, drops=True, penalised=True, clips=odd)
        for precision in PRECISIONS if number == 0 else PRECISIONS[:1]:
            yield f"{label}, {precision}", kind._replace(precision=precision)


def designs(kind: Kind, capabilities: Sequence[Capability]) -> tuple[list[Shape | Tile], list[Capability]]:
    """The shapes of blocks that a kind has, and the capabilities that have what it needs."""
    if kind.precision == "float32":
        return [SHAPE, TILES["float32"]], list(capabilities)
    return [TILES[kind.precision]], [capability for capability in capabilities if capability >= FIRST_CAPABILITY]


def build_all(kinds: Iterable[tuple[str, Kind]], capabilities: Sequence[Capability]) -> Iterator[Row]:
    """All kernels of some kinds, each lowered once and linked for every capability that has what it needs."""
    for label, kind in kinds:
        shapes, fit = designs(kind, capabilities)
        for name in KERNELS:
            for shape in shapes:
                kernel = lowered(name, kind, shape, fit[0])
                for capability in fit:
                    built = linked(kernel, capability)
                    write_entry(entry_of(name, kind, shape, capability), packed(built))
                    yield Row(name, label, type(shape).__name__.lower(), capability, built)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--precision", choices=PRECISIONS)
    options = parser.parse_args()
    wanted = [
        (label, kind)
        for label, kind in (plain_kinds() if options.quick else kinds())
        if options.precision in (None, kind.precision)
    ]
    spilled = 0
    for row in build_all(wanted, CAPABILITIES):
        spilled += row.built.spilled
        print(row, flush=True)
    least = ".".join(map(str, FIRST_CAPABILITY))
    print(f"below {least} there is no tf32 and no bf16: tensor cores take them from there on")
    if spilled:
        sys.exit("a kernel spills registers")


if __name__ == "__main__":
    main()
