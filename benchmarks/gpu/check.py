"""The check of a machine with a GPU: python -m benchmarks.gpu.check [--out gpu.json] [--seconds 345] [--after gpu.json]

The stages of stages.py in turn, each in a process of its own with a limit of seconds, all findings in one JSON file that is
written after each. A stage that fails or hangs costs only itself; the exit status is then 1. A stage that no longer fits into
--seconds is listed as left out; a second check with --after takes over what the first has found, and does the rest.

It needs fastmlp's requirements and cuda-bindings, and numba-cuda with NVVM unless all kernels are already compiled. carry.py
and start.py bring what a machine lacks.
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
from benchmarks.gpu.part import joined
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.stages import Stage, add_sizes, sizes_of, stages
from fastmlp.engines.kernel_cache import cache_folder
from fastmlp.files import read_json, write_json

SECONDS = 345.0  # of six minutes, with what start.py unpacks before


class Check:
    """The whole check.

    result : what is written to `out`
    limit : seconds of any stage at most, in place of its own
    """

    def __init__(self, out: Path, seconds: float, limit: float | None = None) -> None:
        self.out, self.began, self.seconds, self.limit = out, time.monotonic(), seconds, limit
        self.took: dict[str, float] = {}  # the last stage of a kind
        self.result: dict[str, Any] = {"settings": {"seconds": seconds}, "stages": [], "rows": [], "left_out": [], "errors": []}

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def run(self, stage: Stage, options: Sequence[str]) -> None:
        """Do a stage if there is time for it; write what is known then."""
        kind = stage.name.partition(":")[0]
        needs = self.took.get(kind, stage.needs)
        if self.left < needs:
            reason = f"needs about {needs:.0f} s, and {max(0.0, self.left):.0f} s are left"
            print(f"{stage.name}: left out, {reason}", flush=True)
            self.result["left_out"].append({"what": stage.name, "reason": reason})
            write_json(self.out, self.result)
            return
        print(f"{stage.name} …", flush=True)
        began, before = time.monotonic(), kernels()
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part.json"
            status = in_a_process(stage.name, part, options, min(self.limit or stage.limit, max(self.left, 1.0)))
            found = read_json(part) if part.exists() else {}
        joined(self.result, found)
        seconds = time.monotonic() - began
        self.took[kind] = max(seconds, self.took.get(kind, 0.0))
        self.judge(stage, status, found, seconds, sorted(kernels() - before))

    def judge(self, stage: Stage, status: int | None, found: dict[str, Any], seconds: float, compiled: Sequence[str]) -> None:
        """Add how a stage went, and an error of its process that no finding tells of."""
        state = "hung" if status is None else "failed" if status else "done"
        if status and not found.get("errors"):
            error = {"who": stage.name, "type": "process", "message": f"it ended with status {status}", "of_numbers": False}
            self.result["errors"].append(error)
        row = {"name": stage.name, "state": state, "seconds": round(seconds, 2), "kernels_compiled": len(compiled)}
        self.result["stages"].append(row)
        print(f"{stage.name}: {state}, {seconds:.1f} s", flush=True)
        write_json(self.out, self.result)


def taken_over(result: dict[str, Any], earlier: dict[str, Any]) -> set[str]:
    """Add an earlier check's findings to the result; return the names of its finished stages.

    Of the other stages, which are run again, errors are dropped, and what was left out; partial findings are kept.

    >>> result = {"rows": [], "stages": [], "errors": []}
    >>> stages = [{"name": "bits", "state": "done"}, {"name": "tests", "state": "hung"}]
    >>> taken_over(result, {"rows": [1], "stages": stages, "errors": [2], "left_out": [3], "settings": {}})
    {'bits'}
    >>> result
    {'rows': [1], 'stages': [{'name': 'bits', 'state': 'done'}], 'errors': []}
    """
    done = [stage for stage in earlier["stages"] if stage["state"] == "done"]
    again = ("settings", "errors", "left_out")
    joined(result, {key: value for key, value in earlier.items() if key not in again} | {"stages": done})
    return {stage["name"] for stage in done}


def kernels() -> set[str]:
    """Files of compiled kernels."""
    return {path.name for path in cache_folder().glob("*.cubin")}


def in_a_process(name: str, part: Path, options: Sequence[str], limit: float) -> int | None:
    """The exit status of a stage, None if it and all that it started were killed after so many seconds."""
    command = [sys.executable, "-m", "benchmarks.gpu.stages", name, "--out", str(part), *options]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"{name}: killed after {limit:.0f} s", flush=True)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # nobody is left of those it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """README's rows for a person."""
    return "\n".join(
        f"{row['network']:<28} {row['batch']:>5}  {row['backend']:<6} {row['threads'] or '':>3} "
        f"{1000 * row['seconds_per_epoch']:>10.2f} ms an epoch  {row['gflops']:>9.0f} GFLOP/s"
        for row in rows
    )


def faults(result: dict[str, Any]) -> list[str]:
    """All failures except wrong results: crashes, hung stages, kernels compiled. With the stub driver there must be none.

    >>> faults({"errors": [{"who": "bits", "type": "Disagreement", "message": "", "of_numbers": True}],
    ...         "stages": [{"name": "tests", "state": "hung", "kernels_compiled": 0}]})
    ['tests: hung']
    """
    errors = [f"{one['who']}: {one['type']}: {one['message']}" for one in result["errors"] if not one["of_numbers"]]
    states = [f"{one['name']}: hung" for one in result["stages"] if one["state"] == "hung"]
    compiled = [
        f"{one['name']}: compiled {one['kernels_compiled']} kernels" for one in result["stages"] if one["kernels_compiled"]
    ]
    return errors + states + compiled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="results [default: %(default)s]")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all stages together [default: %(default)s]")
    parser.add_argument("--limit", type=float, help="time limit of every stage, in seconds, instead of its own")
    parser.add_argument(
        "--only", type=re.compile, default=re.compile(""), help="run only stages whose name matches this regular expression"
    )
    parser.add_argument("--after", type=Path, metavar="FILE.json", help="an earlier check: its finished stages are kept")
    add_sizes(parser)
    options = parser.parse_args(arguments)
    sizes: Sizes = sizes_of(options)
    passed_on = [f"--{name}={value}" for name in ("rows", "rounds") if (value := getattr(options, name)) is not None]
    check = Check(options.out, options.seconds, options.limit)
    check.result["settings"] |= {"rows": sizes.rows, "rounds": sizes.rounds, "device_rounds": sizes.device_rounds}
    done = taken_over(check.result, read_json(options.after)) if options.after else set()
    for stage in stages(sizes):
        if options.only.search(stage.name) and stage.name not in done:
            check.run(stage, passed_on)
    print(table(check.result["rows"]))
    for error in check.result["errors"]:
        print(f"{error['who']}: FAILED, {error['type']}: {error['message']}")
    return 1 if check.result["errors"] or faults(check.result) else 0


if __name__ == "__main__":
    sys.exit(main())
