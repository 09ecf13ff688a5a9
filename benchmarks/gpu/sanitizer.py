"""Run a small training under NVIDIA's compute-sanitizer, if installed, to find invalid memory accesses and data races."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes
from fastmlp.errors import FastMLPError

TOOLS = ("memcheck", "racecheck")
SEARCH_PATHS = ("/usr/local/cuda/bin",)
ERROR_STATUS = 99  # exit status that compute-sanitizer returns if it finds errors


def sanitizer() -> str | None:
    """Return the path of compute-sanitizer, or None if it is not installed."""
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *SEARCH_PATHS]))


def sanitize(tool: str, findings: Findings, sizes: Sizes, runtime: Any) -> None:
    """Run the stage "small" under a tool of compute-sanitizer.

    Raises
    ------
    FastMLPError : the tool reported errors, or the training failed
    """
    if (program := sanitizer()) is None:
        findings.add("left_out", {"what": tool, "reason": "compute-sanitizer is not installed"})
        return
    command = [program, "--tool", tool, "--error-exitcode", str(ERROR_STATUS)]
    command += [sys.executable, "-m", "benchmarks.gpu.stages", "small"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    output = f"{run.stdout}{run.stderr}"
    findings.add("sanitizer", {"tool": tool, "status": run.returncode, "end_of_output": output[-3000:]})
    if run.returncode != 0:
        raise FastMLPError(f"{tool}: exit status {run.returncode} ({ERROR_STATUS} if the tool finds errors): {output[-300:]}")
