"""The kernels that the check of a GPU asks for, its tests among them: python -m benchmarks.gpu.kernels records them anew.

A machine with a GPU may have no compiler for kernels, so those that will be asked for are compiled beforehand. Which these are
is recorded by running the stages and the tests over the simulator (some minutes). The tests compare each of these runs with the
record, so a kernel missing from it fails a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import ROOT
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.cuda.kernels.programs import KernelSpec, Shape
from fastmlp.engines.cuda.kernels.tiles import Tile

RECORD = Path(__file__).with_name("kernels.jsonl")
RECORD_TO = "FASTMLP_RECORD_KERNELS"  # a file to which the tests add what is asked for, instead of comparing it
# What is run over the simulator.
RUNS = (["-m", "gpu", "tests/engines"], ["tests/benchmarks/test_gpu_stages.py"])


class Asked(NamedTuple):
    """A kernel of `programs.KERNELS`, its kind, and its design: "shape" of small batches, "tile" of large ones."""

    name: str
    kind: KernelSpec
    design: str

    @classmethod
    def of(cls, name: str, kind: KernelSpec, shape: Shape | Tile) -> Asked:
        return cls(name, kind, type(shape).__name__.lower())

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Asked:
        return cls(row["name"], KernelSpec(**row["kind"] | {"activations": tuple(row["kind"]["activations"])}), row["design"])

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"name": self.name, "design": self.design, "kind": self.kind._asdict()}

    def shape(self) -> Shape | Tile:
        """How a device divides its work."""
        return cuda.SHAPE if self.design == "shape" else cuda.TILES[self.kind.precision]


def recorded(file: Path = RECORD) -> list[Asked]:
    """What the record has; a line for each."""
    return [Asked.from_row(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def written(asked: Iterable[Asked]) -> str:
    """A record's text."""
    return "".join(sorted({f"{json.dumps(one.row(), sort_keys=True)}\n" for one in asked}))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "asked.jsonl"
        for arguments in RUNS:
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
            subprocess.run(command, cwd=ROOT, env=os.environ | {RECORD_TO: str(found)}, check=True)
        RECORD.write_text(written(recorded(found)), encoding="utf-8")
    print(f"{len(recorded())} kernels in {RECORD}")


if __name__ == "__main__":
    main()
