"""Check fastmlp on a machine with a GPU: python -m benchmarks.gpu.check [--out gpu.json] [--seconds 345] [--after gpu.json]

The check runs the stages of stages.py one after another, each in its own process with a time limit. All results are written
to one JSON file, which is updated after each stage. If a stage fails or hangs, the other stages still run, and the exit status
is 1. If too little of --seconds remains for a stage, the stage is skipped and listed under "left_out". A second check with
--after keeps the results of the first check and runs only the stages that it did not finish.

The check requires fastmlp's dependencies and cuda-bindings. It also requires numba-cuda with NVVM, unless all kernels are
already compiled. carry.py and start.py provide the packages and kernels that are missing on a machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.findings import merge
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.stages import Stage, add_sizes, sizes_of, stages
from fastmlp.engines.kernel_cache import cache_folder
from fastmlp.files import read_json, write_json

SECONDS = 345.0  # six minutes, minus 15 s in which start.py unpacks its files


class Check:
    """One run of the check.

    result : contents of the file `out`
    limit : time limit of every stage in seconds; None uses each stage's own limit
    """

    def __init__(self, out: Path, seconds: float, limit: float | None = None) -> None:
        self.out, self.began, self.seconds, self.limit = out, time.monotonic(), seconds, limit
        self.durations: dict[
            str, float
        ] = {}  # longest duration so far, in seconds, by the part of the stage's name before the colon
        self.result: dict[str, Any] = {"settings": {"seconds": seconds}, "stages": [], "rows": [], "left_out": [], "errors": []}

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def run(self, stage: Stage, options: Sequence[str]) -> None:
        """Run a stage if enough time is left, and write the result."""
        kind = stage.name.partition(":")[0]
        needs = self.durations.get(kind, stage.needs)
        if self.left < needs:
            reason = f"it needs about {needs:.0f} s, but only {max(0.0, self.left):.0f} s are left"
            print(f"{stage.name}: skipped because {reason}", flush=True)
            self.result["left_out"].append({"what": stage.name, "reason": reason})
            write_json(self.out, self.result)
            return
        print(f"{stage.name} …", flush=True)
        began, before = time.monotonic(), cached_kernels()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "findings.json"
            status = run_in_process(stage.name, out, options, min(self.limit or stage.limit, max(self.left, 1.0)))
            found = read_json(out) if out.exists() else {}
        merge(self.result, found)
        seconds = time.monotonic() - began
        self.durations[kind] = max(seconds, self.durations.get(kind, 0.0))
        self.record_stage(stage, status, found, seconds, sorted(cached_kernels() - before))

    def record_stage(
        self, stage: Stage, status: int | None, found: dict[str, Any], seconds: float, compiled: Sequence[str]
    ) -> None:
        """Add the state of a stage to the result, and an error if its process failed without recording one."""
        state = "hung" if status is None else "failed" if status else "done"
        if status and not found.get("errors"):
            error = {"what": stage.name, "type": "process", "message": f"exit status {status}", "numerical": False}
            self.result["errors"].append(error)
        row = {"name": stage.name, "state": state, "seconds": round(seconds, 2), "kernels_compiled": len(compiled)}
        self.result["stages"].append(row)
        print(f"{stage.name}: {state}, {seconds:.1f} s", flush=True)
        write_json(self.out, self.result)


def add_earlier(result: dict[str, Any], earlier: dict[str, Any]) -> set[str]:
    """Add the findings of an earlier check to the result; return the names of the stages that it finished.

    Errors and skipped stages of the earlier check are not copied, since unfinished stages are run again. Partial findings of
    unfinished stages are kept.

    >>> result = {"rows": [], "stages": [], "errors": []}
    >>> stages = [{"name": "bits", "state": "done"}, {"name": "tests", "state": "hung"}]
    >>> add_earlier(result, {"rows": [1], "stages": stages, "errors": [2], "left_out": [3], "settings": {}})
    {'bits'}
    >>> result
    {'rows': [1], 'stages': [{'name': 'bits', 'state': 'done'}], 'errors': []}
    """
    done = [stage for stage in earlier["stages"] if stage["state"] == "done"]
    again = ("settings", "errors", "left_out")
    merge(result, {key: value for key, value in earlier.items() if key not in again} | {"stages": done})
    return {stage["name"] for stage in done}


def cached_kernels() -> set[str]:
    """Return the file names of the compiled kernels in the kernel cache."""
    return {path.name for path in cache_folder().glob("*.cubin")}


def run_in_process(name: str, out: Path, options: Sequence[str], limit: float) -> int | None:
    """Run a stage in its own process group; return its exit status, or None if it was killed after `limit` seconds."""
    command = [sys.executable, "-m", "benchmarks.gpu.stages", name, "--out", str(out), *options]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"{name}: killed after {limit:.0f} s", flush=True)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # all processes of the group have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the times of all engines as text, one line per engine, network and batch size."""
    return "\n".join(
        f"{row['network']:<28} {row['batch']:>5}  {row['backend']:<6} {row['threads'] or '':>3} "
        f"{1000 * row['seconds_per_epoch']:>10.2f} ms per epoch  {row['gflops']:>9.0f} GFLOP/s"
        for row in rows
    )


def faults(result: dict[str, Any]) -> list[str]:
    """Return a line for each failure other than a wrong result: a crash, a hung stage, or a stage that compiled kernels.

    Kernels must not be compiled during the check, since all of them should have been compiled in advance.

    >>> faults({"errors": [{"what": "bits", "type": "Disagreement", "message": "", "numerical": True}],
    ...         "stages": [{"name": "tests", "state": "hung", "kernels_compiled": 0}]})
    ['tests: hung']
    """
    errors = [f"{one['what']}: {one['type']}: {one['message']}" for one in result["errors"] if not one["numerical"]]
    states = [f"{one['name']}: hung" for one in result["stages"] if one["state"] == "hung"]
    compiled = [
        f"{one['name']}: compiled {one['kernels_compiled']} kernels" for one in result["stages"] if one["kernels_compiled"]
    ]
    return errors + states + compiled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file for the results [default: %(default)s]")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="time limit of all stages together [default: %(default)s]"
    )
    parser.add_argument("--limit", type=float, help="time limit of each stage in seconds, instead of its default")
    parser.add_argument(
        "--only", type=re.compile, default=re.compile(""), help="run only stages whose name matches this regular expression"
    )
    parser.add_argument(
        "--after", type=Path, metavar="FILE.json", help="results of an earlier check; run only its unfinished stages"
    )
    add_sizes(parser)
    options = parser.parse_args(arguments)
    sizes: Sizes = sizes_of(options)
    stage_options = [f"--{name}={value}" for name in ("rows", "rounds") if (value := getattr(options, name)) is not None]
    check = Check(options.out, options.seconds, options.limit)
    check.result["settings"] |= {"rows": sizes.rows, "rounds": sizes.rounds, "device_rounds": sizes.device_rounds}
    done = add_earlier(check.result, read_json(options.after)) if options.after else set()
    for stage in stages(sizes):
        if options.only.search(stage.name) and stage.name not in done:
            check.run(stage, stage_options)
    print(table(check.result["rows"]))
    for error in check.result["errors"]:
        print(f"{error['what']}: FAILED, {error['type']}: {error['message']}")
    return 1 if check.result["errors"] or faults(check.result) else 0


if __name__ == "__main__":
    sys.exit(main())
