"""Update kernels.jsonl, the record of the kernels used by the GPU check and its tests: python -m benchmarks.gpu.kernels

A machine with a GPU may lack a kernel compiler, so the kernels are compiled in advance. The record is made by running the
stages and the tests in the simulator, which takes a few minutes. In ordinary runs, the same tests fail if they use a kernel
that is missing from the record.
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
RECORD_TO = "FASTMLP_RECORD_KERNELS"  # file to which the tests append the kernels they use
# Arguments of the two pytest runs that use the simulator.
RUNS = (["-m", "gpu", "tests/engines"], ["tests/benchmarks/test_gpu_stages.py"])


class KernelRequest(NamedTuple):
    """A kernel of `programs.KERNELS`, its specification, and its design: "shape" for small, "tile" for large batches."""

    name: str
    kind: KernelSpec
    design: str

    @classmethod
    def of(cls, name: str, kind: KernelSpec, shape: Shape | Tile) -> KernelRequest:
        return cls(name, kind, type(shape).__name__.lower())

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> KernelRequest:
        return cls(row["name"], KernelSpec(**row["kind"] | {"activations": tuple(row["kind"]["activations"])}), row["design"])

    def row(self) -> dict[str, Any]:
        """Return the JSON representation."""
        return {"name": self.name, "design": self.design, "kind": self.kind._asdict()}

    def shape(self) -> Shape | Tile:
        """Return the sizes by which the kernel divides its work among threads and blocks."""
        return cuda.SHAPE if self.design == "shape" else cuda.TILES[self.kind.precision]


def read_record(file: Path = RECORD) -> list[KernelRequest]:
    """Read the record, which has one kernel per line."""
    return [KernelRequest.from_row(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def record_text(requests: Iterable[KernelRequest]) -> str:
    """Return the text of a record."""
    return "".join(sorted({f"{json.dumps(one.row(), sort_keys=True)}\n" for one in requests}))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "requests.jsonl"
        for arguments in RUNS:
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
            subprocess.run(command, cwd=ROOT, env=os.environ | {RECORD_TO: str(found)}, check=True)
        RECORD.write_text(record_text(read_record(found)), encoding="utf-8")
    print(f"{len(read_record())} kernels in {RECORD}")


if __name__ == "__main__":
    main()
