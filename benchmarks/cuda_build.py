"""Kernels for GPUs that are not here: python -m benchmarks.cuda_build [--quick]

Compiles the kernels for every compute capability through the steps that a launch goes through (cuda_compile.py), without a
driver, and prints what each needs: registers, shared memory, and bytes spilled out of registers. Ends with an error if any
spills. What was compiled is kept where compiled kernels are (FASTMLP_CACHE_DIR): such a folder serves a machine with a driver
and without a compiler. --quick: the plain kernels alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastmlp.cuda import SHAPE, TILE
from fastmlp.cuda_compile import Built, Capability, entry_of, linked, lowered, packed
from fastmlp.cuda_kernels import KERNELS, Kind
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


def kinds() -> Iterator[tuple[str, Kind]]:
    """The plain kernel, and every option, several in a kernel; the first of these has all activations."""
    yield "relu, sgd", PLAIN
    losses = [(loss, output) for loss, outputs in LOSSES.items() for output in outputs]
    for number, rule in enumerate(reversed([rule for rule in RULES if rule != PLAIN.rule])):
        loss, output = losses[number % len(losses)]
        names, odd = (tuple(ACTIVATIONS) if number == 0 else ("silu",)), number % 2 == 1
        label = f"{'all activations' if number == 0 else 'silu'}, {rule}, {loss}, {output}"
        yield label, Kind(names, loss, output, rule, pixels=not odd, classes=odd, drops=True, penalised=True, clips=odd)


def build_all(kinds: Iterable[tuple[str, Kind]], capabilities: tuple[Capability, ...]) -> Iterator[Row]:
    """All kernels of some kinds, each lowered once and linked for every capability."""
    for label, kind in kinds:
        for name in KERNELS:
            for shape in (SHAPE, TILE):
                kernel = lowered(name, kind, shape, capabilities[0])
                for capability in capabilities:
                    built = linked(kernel, capability)
                    write_entry(entry_of(name, kind, shape, capability), packed(built))
                    yield Row(name, label, type(shape).__name__.lower(), capability, built)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    spilled = 0
    for row in build_all([("relu, sgd", PLAIN)] if options.quick else kinds(), CAPABILITIES):
        spilled += row.built.spilled
        print(row, flush=True)
    if spilled:
        sys.exit("a kernel spills registers")


if __name__ == "__main__":
    main()
