"""NVIDIA's compute-sanitizer over a small training, where it exists: accesses out of bounds, and races in shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.part import Part
from benchmarks.gpu.sizes import Sizes
from fastmlp.errors import FastMLPError

TOOLS = ("memcheck", "racecheck")
PLACES = ("/usr/local/cuda/bin",)
FOUND = 99  # exit status requested if the tool reports errors


def sanitizer() -> str | None:
    """The program, if there is one."""
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *PLACES]))


def sanitize(tool: str, part: Part, sizes: Sizes, watch: Any) -> None:
    """Run the stage "small" under a tool.

    Raises
    ------
    FastMLPError : the tool found something, or the training failed under it
    """
    if (program := sanitizer()) is None:
        part.add("left_out", {"what": tool, "reason": "there is no compute-sanitizer"})
        return
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, "-m", "benchmarks.gpu.stages", "small"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    output = f"{run.stdout}{run.stderr}"
    part.add("sanitizer", {"tool": tool, "status": run.returncode, "end_of_output": output[-3000:]})
    if run.returncode != 0:
        raise FastMLPError(f"{tool}: exit status {run.returncode} ({FOUND} means that it reported errors): {output[-300:]}")
