"""The check of a machine with a GPU, in one call: python -m benchmarks.gpu_check [--out FILE.json] [--quick] [--tests]

What is there; with --tests the contract's tests on the device; copies, barriers and products; epochs of our engine, alone and
in turn with PyTorch's. All goes into one JSON file, which is written after every stage, so that a call that is killed leaves
what it has. A stage that fails is told there and on the screen, and the others still run; the exit status is then 1. A stage
that no longer fits into --seconds is listed as left out.

A machine without a compiler for kernels (numba-cuda with NVVM) can be given compiled ones. On a machine that has it, the first
line makes a folder, for compute capability 9.0 here; with the folder and the same sources on the machine with the GPU, the
second runs there:

    FASTMLP_CACHE_DIR=kernels python -m benchmarks.cuda_build --for-check 9.0
    chmod 700 kernels && FASTMLP_CACHE_DIR=kernels python -m benchmarks.gpu_check --tests --out gpu.json

What is not in the folder is compiled there if that is possible; the file tells for each kernel which it was. NumPy 2.5 lacks a
name that numba-cuda 0.30 asks for, which engines.cuda.load_cuda gives back; so both run there. Needs fastmlp's own requirements
and cuda-bindings; PyTorch for rivals, pytest and hypothesis for --tests, greenlet for those of large batches among them.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_measures import (
    Sizes,
    Subject,
    Watch,
    measure_barriers,
    measure_copies,
    measure_epochs,
    measure_product,
    peak_gflops,
)
from benchmarks.gpu_rivals import measure_contest, torch_device
from fastmlp.bench import machine as bench_machine
from fastmlp.bench.cases import Case
from fastmlp.bench.rounds import PROBE_AGREEMENT, RATE
from fastmlp.engines import installed_version, installed_versions
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.cuda.compiler import entry_of, linked, lowered
from fastmlp.engines.cuda.kernels.programs import PLAIN
from fastmlp.engines.kernel_cache import UnsafeFolder, cache_folder, check_private
from fastmlp.errors import FastMLPError, UnavailableError
from fastmlp.files import write_json

ROOT = Path(__file__).parents[1]
BATCHES: tuple[tuple[tuple[int, ...], tuple[int, ...], bool], ...] = (
    ((784, 128, 10), (64, 128, 256, 1024, 8192), True),
    ((784, 500, 250, 100, 10), (64, 256), True),
    ((256, 512, 10), (64, 1024), False),
    ((784, 512, 256, 128, 64, 32, 10), (64, 1024, 8192), True),
)
SUBJECTS = tuple(Subject(Case(sizes, batch), pixels) for sizes, batches, pixels in BATCHES for batch in batches)


def grids(multiprocessors: int) -> list[int]:
    """Numbers of blocks whose barriers are measured."""
    return sorted({1, 16, 64, multiprocessors, 2 * multiprocessors})


FULL = Sizes(SUBJECTS, grids)
QUICK = Sizes((SUBJECTS[0], SUBJECTS[3], SUBJECTS[7]), grids, rounds=3, products=((784, 512),))

SECONDS = 420.0
TESTS_SHARE = 0.5  # of the seconds that are left, at most
# Of the first contest, by guess: PyTorch compiles in it. Later ones are taken for as long as the longest.
CONTEST_SECONDS = 40.0
# Where the tests with marker "gpu" are: of both designs, of the contract for small batches, and of tiles for large ones.
TESTS = ("tests/engines/test_contract.py", "tests/engines/test_contract_state.py", "tests/engines/cuda/test_engine.py")
NOT_ON_A_GPU = {"forked": "a child of fork cannot use CUDA that its parent has used"}


def kept_kernels() -> tuple[set[str], str | None]:
    """Files of kernels that are there before anything is compiled; and why none of them is taken, if so."""
    folder = cache_folder()
    try:
        check_private(folder)
    except (OSError, UnsafeFolder) as error:
        return set(), str(error)
    return {path.name for path in folder.glob("*.cubin")}, None


class Check:
    """Stages, what they found so far, and the seconds that are left.

    result : what is written to `out`
    watch : the device, once it is found; torch : PyTorch's name of it, if PyTorch is there
    """

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.began, self.seconds = out, time.monotonic(), seconds
        self.folder, self.refusal = kept_kernels()
        self.watch: Watch | None = None
        self.torch: str | None = None
        self.took: dict[str, float] = {}  # the last stage of a kind
        lists = ("stages", "products", "rows", "rivals", "left_out", "errors", "kernels")
        self.result: dict[str, Any] = {"settings": {"seconds": seconds}, **{name: [] for name in lists}}

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def stage(self, name: str, work: Callable[[], None], needs: float = 1.0, device: bool = True) -> None:
        """Do a part of the check if there is time for it, and a device if it asks for one; write what is known then."""
        kind = name.partition(":")[0]
        needs = self.took.get(kind, needs)
        if self.left < needs:
            self.leave_out(name, f"needs about {needs:.0f} s, and {max(0.0, self.left):.0f} s are left")
            return
        if device and self.watch is None:
            self.leave_out(name, "there is no device")
            return
        print(f"{name} …", flush=True)
        began, errors = time.monotonic(), len(self.result["errors"])
        try:
            work()
        except Exception as error:
            self.trouble(name, error)
        self.took[kind] = time.monotonic() - began
        state = "done" if len(self.result["errors"]) == errors else "failed"
        self.result["stages"].append({"name": name, "state": state, "seconds": self.took[kind]})
        self.save()

    def leave_out(self, name: str, reason: str) -> None:
        """Tell of something that is not measured."""
        print(f"{name}: left out, {reason}", flush=True)
        self.result["left_out"].append({"stage": name, "reason": reason})
        self.save()

    def trouble(self, name: str, error: Exception) -> None:
        """Tell of a failure; the exit status will be 1."""
        traceback.print_exception(error)
        message = " ".join(str(error).split())[:500]
        print(f"{name}: FAILED, {type(error).__name__}: {message}", flush=True)
        self.result["errors"].append({"stage": name, "type": type(error).__name__, "message": message})

    def save(self) -> None:
        """Write what is known, with the kernels that were asked for and where they came from."""
        if self.watch is not None:
            self.result["kernels"] = [
                {
                    "kernel": name,
                    "shape": type(shape).__name__.lower(),
                    "kind": str(kind),
                    "prebuilt": entry_of(name, kind, shape, self.watch.capability).name in self.folder,
                }
                for name, kind, shape in self.watch.kernels
            ]
        write_json(self.out, self.result)


# ------------------------------------------------------------------------------------------------ what is there


def look_around(check: Check) -> None:
    """Machine, packages, and the folder of kernels."""
    versions = installed_versions(bench_machine.PACKAGES)
    more = {
        name: installed_version(name) for name in ("cuda-bindings", "greenlet", "pytest", "nvidia-nvvm", "nvidia-nvjitlink")
    }
    check.result |= {"machine": bench_machine.machine(), "versions": versions | more}
    check.result["kernel_folder"] = {"path": cache_folder(), "prebuilt": len(check.folder), "refusal": check.refusal}
    asked = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    if (tool := shutil.which("nvidia-smi")) is None:
        check.result["driver"] = {"reason": "there is no nvidia-smi"}
        return
    command = [tool, f"--query-gpu={asked}", "--format=csv,noheader"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    check.result["driver"] = dict(zip(asked.split(","), run.stdout.splitlines()[0].split(", "), strict=True))


def find_device(check: Check, runtime: Any) -> None:
    """The device, which all later stages need."""
    watch = Watch(runtime or cuda.the_runtime())
    major, minor = watch.capability
    check.watch = watch
    check.result["device"] = {
        "card": watch.name,
        "capability": f"{major}.{minor}",
        "multiprocessors": watch.blocks,
        **watch.facts(),
        "peak_float32_gflops": peak_gflops(watch),
    }


def try_compiler(check: Check) -> None:
    """Whether kernels are compiled on this machine: a small one, not from the folder."""
    assert check.watch is not None
    began = time.monotonic()
    try:
        built = linked(lowered("barriers", PLAIN, cuda.SHAPE, check.watch.capability), check.watch.capability)
    except Exception as error:  # of whatever Numba, NVVM or the linker raise: a finding, no failure
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        check.result["compiler"] = {"works": False, "reason": reason}
        print(f"kernels cannot be compiled here ({reason}); those of the folder are taken", flush=True)
        return
    check.result["compiler"] = {"works": True, "seconds": time.monotonic() - began, "registers": built.registers}


# ------------------------------------------------------------------------------------------------ tests on the device


def run_tests(check: Check) -> None:
    """The contract's tests of backend "cuda" by pytest, on the device, in a process of its own."""
    missing = [name for name in ("pytest", "hypothesis", "greenlet") if importlib.util.find_spec(name) is None]
    found: dict[str, Any] = {"missing": missing, "deselected": NOT_ON_A_GPU}
    check.result["tests"] = found
    if {"pytest", "hypothesis"} & set(missing):
        raise UnavailableError(f"the tests need {' and '.join(missing)}: pip install {' '.join(missing)}")
    chosen = " and ".join(f"not {word}" for word in NOT_ON_A_GPU)
    # Warnings are errors to the tests, but not those of packages that are newer here than where the tests are kept.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "-W",
        "default",
        "-m",
        "gpu",
        "-k",
        chosen,
        *TESTS,
    ]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"FASTMLP_TEST_GPU": "1", "PYTHONPATH": path}
    limit = TESTS_SHARE * check.left
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit, check=False
        )
        output, status = run.stdout, run.returncode
    except subprocess.TimeoutExpired as error:
        output, status = error.stdout or b"", None
    text = output.decode(errors="replace")
    found |= counted(text) | {"status": status, "seconds_limit": limit, "end_of_output": text[-4000:]}
    if status is None:
        check.leave_out("tests, some of them", f"they took longer than {limit:.0f} s")
    if found["failed"] or status not in (0, None):
        print(text[-8000:], flush=True)
        raise FastMLPError(f"tests on the device: {found['passed']} passed, {len(found['failed'])} failed, status {status}")


def counted(text: str) -> dict[str, Any]:
    """Counts and names from what pytest -v has printed so far.

    >>> counted("a.py::one PASSED [ 1%]\\na.py::two[x y] FAILED [ 2%]\\na.py::three SKIPPED (none) [ 3%]")
    {'passed': 1, 'skipped': 1, 'failed': ['a.py::two[x y]']}
    """
    lines = re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", text, re.MULTILINE)
    states = [state for _, state in lines]
    failed = [name for name, state in lines if state in ("FAILED", "ERROR")]
    return {"passed": states.count("PASSED"), "skipped": states.count("SKIPPED"), "failed": failed}


# ------------------------------------------------------------------------------------------------ the whole


def find_rivals(check: Check) -> None:
    """Whether PyTorch has the device too."""
    try:
        check.torch = torch_device()
    except UnavailableError as error:
        print(f"no rivals: {error}", flush=True)
        check.result["rivals"].append({"engine": "torch", "state": "missing", "reason": str(error)})


def contest(check: Check, subject: Subject, sizes: Sizes) -> None:
    """A subject's rows of our engine and of its rivals."""
    assert check.watch is not None
    assert check.torch is not None
    name = f"contest: {subject.case.label}"
    rows, refused = measure_contest(
        check.watch.runtime, subject, sizes, check.torch, lambda who, error: check.trouble(f"{name}, {who}", error)
    )
    check.result["rows"] += rows
    check.result["rivals"] += refused


def run_check(check: Check, sizes: Sizes, runtime: Any = None, tests: bool = False) -> None:
    """All stages, in their order; what needs no more than our engine comes first."""
    result: Any = check.result
    result["settings"] |= {"rows": sizes.rows, "rounds": sizes.rounds, "rate": RATE, "dtype": "float32", "tf32": False}
    result["settings"] |= {"agreement": PROBE_AGREEMENT, "products": "forward pass of one layer of float32 rows, one launch"}

    def keep(key: str, measure: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
        """Put what is measured into the result: under its key, or at the end of the list that is there."""

        def work() -> None:
            found = measure(check.watch, *arguments, sizes)
            if isinstance(result.get(key), list):
                result[key].append(found)
            else:
                result[key] = found

        return work

    check.stage("machine", lambda: look_around(check), device=False)
    check.stage("device", lambda: find_device(check, runtime), device=False)
    check.stage("compiler", lambda: try_compiler(check))
    if tests:
        check.stage("tests", lambda: run_tests(check), needs=20.0)
    else:
        check.leave_out("tests", "not asked for; --tests runs them")
    check.stage("copies", keep("copies", measure_copies))
    check.stage("barriers", keep("barriers", measure_barriers))
    for inputs, outputs in sizes.products:
        check.stage(f"products: {inputs}-{outputs}", keep("products", measure_product, inputs, outputs))
    for subject in sizes.subjects:
        check.stage(f"epochs: {subject.case.label}", keep("rows", measure_epochs, subject))
    check.stage("rivals", lambda: find_rivals(check))
    for subject in sizes.subjects:
        name = f"contest: {subject.case.label}"
        if check.torch is None:
            check.leave_out(name, "there are no rivals")
        else:
            check.stage(name, functools.partial(contest, check, subject, sizes), CONTEST_SECONDS)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a person."""
    return "\n".join(
        f"{row['stage']:<8} {row['network']:<28} {row['batch']:>5}  {row['engine']:<30} "
        f"{row['microseconds_per_step']:>10.1f} us a step  {1000 * row['seconds_per_epoch']:>9.2f} ms an epoch"
        for row in rows
    )


def main(arguments: Sequence[str] | None = None, runtime: Any = None, sizes: Sizes | None = None) -> int:
    """Run the check; the exit status. `runtime` and `sizes` take the place of the GPU's and of the usual ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--quick", action="store_true", help="three networks, three rounds")
    parser.add_argument("--tests", action="store_true", help="the contract's tests on the device too")
    options = parser.parse_args(arguments)
    check = Check(options.out, options.seconds)
    run_check(check, sizes or (QUICK if options.quick else FULL), runtime, options.tests)
    print(table(check.result["rows"]))
    for error in check.result["errors"]:
        print(f"{error['stage']}: FAILED, {error['type']}: {error['message']}")
    return 1 if check.result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
