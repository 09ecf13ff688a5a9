"""Kernels for GPUs that are not here: python -m benchmarks.cuda_build [--quick | --for-check CAPABILITY]

Compiles the kernels for every compute capability through the steps that a launch goes through (cuda_compile.py), without a
driver, and prints what each needs: registers, shared memory, and bytes spilled out of registers. Ends with an error if any
spills. What was compiled is kept where compiled kernels are (FASTMLP_CACHE_DIR): such a folder serves a machine with a driver
and without a compiler. --quick: the plain kernels alone. --for-check 9.0: for this capability alone, what gpu_check.py asks for
and what most of the contract's tests do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fastmlp.cuda import SHAPE, TILE
from fastmlp.cuda_compile import Built, Capability, entry_of, linked, lowered, packed
from fastmlp.cuda_kernels import Kind, Shape
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


class Wanted(NamedTuple):
    """A kernel to be built; `label` : its kind in words."""

    name: str
    label: str
    kind: Kind
    shape: Shape | Tile


def kinds() -> Iterator[tuple[str, Kind]]:
    """The plain kernel, and every option, several in a kernel."""
    yield "relu, sgd", PLAIN
    losses = [(loss, output) for loss, outputs in LOSSES.items() for output in outputs]
    for number, (loss, output) in enumerate(losses):
        rule = list(RULES)[number % len(RULES)]
        options = {"pixels": number % 2 == 0, "classes": number > 1, "drops": True, "penalised": True, "clips": number % 2 == 1}
        yield f"all activations, {loss}, {output}, {rule}", Kind(tuple(ACTIVATIONS), loss, output, rule, **options)


def kernels(kinds: Iterable[tuple[str, Kind]]) -> Iterator[Wanted]:
    """All kernels of some kinds, of both shapes; barriers, which know no kind, once."""
    yield Wanted("barriers", "any", PLAIN, SHAPE)
    for label, kind in kinds:
        for name in ("train", "apply"):
            for shape in (SHAPE, TILE):
                yield Wanted(name, label, kind, shape)


def kernels_of_check() -> Iterator[Wanted]:
    """What gpu_check.py asks for, and what most of the contract's tests do."""
    yield Wanted("barriers", "any", PLAIN, SHAPE)
    alone = PLAIN._replace(activations=())
    yield Wanted("apply", "one layer", alone, TILE)
    for shape in (SHAPE, TILE):
        for pixels in (True, False):
            yield Wanted("train", "relu, sgd, uint8" if pixels else "relu, sgd", PLAIN._replace(pixels=pixels), shape)
    of_tests = {
        "one layer": alone,
        "relu, sgd, dropout": PLAIN._replace(drops=True),
        "relu, adamw, clipped": PLAIN._replace(rule="adamw", clips=True),
    }
    for label, kind in of_tests.items():
        yield Wanted("train", label, kind, SHAPE)
    for label, kind in {"relu, sgd": PLAIN, "relu, sgd, uint8": PLAIN._replace(pixels=True), **of_tests}.items():
        yield Wanted("apply", label, kind, SHAPE)


def build_all(wanted: Iterable[Wanted], capabilities: Sequence[Capability]) -> Iterator[Row]:
    """Each kernel lowered once and linked for every capability."""
    for name, label, kind, shape in wanted:
        library: Any = lowered(name, kind, shape, capabilities[0])
        for capability in capabilities:
            built = linked(library, shape.threads, capability)
            write_entry(entry_of(name, kind, shape, capability), packed(built))
            yield Row(name, label, type(shape).__name__.lower(), capability, built)


def parse_capability(text: str) -> Capability:
    """A compute capability from text.

    >>> parse_capability("9.0")
    (9, 0)
    """
    major, point, minor = text.partition(".")
    if not (point and major.isdecimal() and minor.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability, such as 9.0")
    return int(major), int(minor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true")
    which.add_argument("--for-check", type=parse_capability, metavar="CAPABILITY")
    options = parser.parse_args()
    if options.for_check:
        wanted, capabilities = kernels_of_check(), [options.for_check]
    else:
        wanted, capabilities = kernels([("relu, sgd", PLAIN)] if options.quick else kinds()), CAPABILITIES
    spilled = 0
    for row in build_all(wanted, capabilities):
        spilled += row.built.spilled
        print(row, flush=True)
    if spilled:
        sys.exit("a kernel spills registers")


if __name__ == "__main__":
    main()
