"""Stages of the GPU check; run one with python -m benchmarks.gpu.stages NAME --out FINDINGS.json

check.py runs each stage in its own process, so that a hang or a lost device affects only one stage. The stages that the
documentation needs most come first. `--list` prints the names of all stages.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import contests, rivals, without_scipy
from benchmarks.gpu.accuracy import measure_accuracy
from benchmarks.gpu.bits import measure_bits, train_small
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.measures import TimedRuntime, measure_barriers, measure_copies, measure_product, peak_gflops
from benchmarks.gpu.sanitizer import TOOLS, sanitize
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.tests_on_device import run_tests
from fastmlp.bench import machine as bench_machine
from fastmlp.bench.cases import Case
from fastmlp.engines import installed_version, installed_versions
from fastmlp.engines.base import PRECISIONS
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.cuda.compiler import linked, lowered, sources
from fastmlp.engines.cuda.kernels.programs import PLAIN
from fastmlp.engines.kernel_cache import cache_folder
from fastmlp.errors import UnavailableError

PACKAGES = (*bench_machine.PACKAGES, "cuda-bindings", "greenlet", "pytest", "nvidia-nvvm", "nvidia-nvjitlink")
SMI_FIELDS = "name,driver_version,memory.total,clocks.max.sm,power.limit"  # fields queried from nvidia-smi

Work = Callable[[Findings, Sizes, Any], None]


class Stage(NamedTuple):
    """A stage of the check.

    work : function called with the findings, the sizes, and a `TimedRuntime`, which is None if `device` is false
    limit : time limit of the stage's process in seconds
    needs : estimated duration in seconds; the stage is skipped if less time is left
    device : whether the stage's process itself uses the GPU
    """

    name: str
    work: Work
    limit: float
    needs: float
    device: bool = True


# ------------------------------------------------------------------------------------------------ machine and device


def describe_machine(findings: Findings, sizes: Sizes, runtime: Any) -> None:
    """Record the machine, the package versions, the number of compiled kernels, and the driver reported by nvidia-smi."""
    versions = {name: installed_version(name) for name in PACKAGES} | installed_versions(())
    findings.put("machine", bench_machine.machine())
    findings.put("versions", versions)
    findings.put("kernels", {"sources": sources(), "carried": len(list(cache_folder().glob("*.cubin")))})
    if (tool := shutil.which("nvidia-smi")) is None:
        findings.put("driver", {"reason": "nvidia-smi is not installed"})
        return
    run = subprocess.run(
        [tool, f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    findings.put("driver", dict(zip(SMI_FIELDS.split(","), run.stdout.splitlines()[0].split(", "), strict=True)))


def describe_device(findings: Findings, sizes: Sizes, runtime: Any) -> None:
    """Record the properties of the GPU, and whether kernels can be compiled on this machine."""
    major, minor = runtime.capability
    about = {"card": runtime.name, "capability": f"{major}.{minor}", "multiprocessors": runtime.blocks, **runtime.facts()}
    findings.put("device", about | {"peak_float32_gflops": peak_gflops(runtime)})
    try:
        built = linked(lowered("barriers", PLAIN, cuda.SHAPE, runtime.capability), runtime.capability)
        findings.put("compiler", {"works": True, "registers": built.registers})
    except Exception as error:  # many types are raised; a missing compiler is not a failure
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        print(f"kernels cannot be compiled on this machine ({reason}); only precompiled kernels can run", flush=True)
        findings.put("compiler", {"works": False, "reason": reason})


# ------------------------------------------------------------------------------------------------ measuring


def measure_row(case: Case, findings: Findings, sizes: Sizes, runtime: Any) -> None:
    """Compare all of fastmlp's engines on one network and batch size: a row of the table in docs/speed.md."""
    contests.contest(findings, "rows", case, sizes, contests.own_engines(runtime))


def measure_contest(kinds: Sequence[type[rivals.Eager]], case: Case, findings: Findings, sizes: Sizes, runtime: Any) -> None:
    """Compare the CUDA engine with PyTorch on the GPU."""
    try:
        device = rivals.torch_device()
    except UnavailableError as error:
        findings.add("left_out", {"what": f"{case.label}: PyTorch", "reason": str(error)})
        return
    found = [kind(device) for kind in kinds]
    contests.contest(findings, "contests", case, sizes, [contests.OnDevice(runtime), *found], whole_batches=True)
    for one in found:
        if isinstance(one, rivals.Compiled) and one.compiled is not None:
            skips = {"network": case.network, "batch": case.batch, "count": one.skips() - one.skips_before}
            findings.add("cudagraph_skips", skips)


def measure_products(findings: Findings, sizes: Sizes, runtime: Any) -> None:
    """Compare the forward pass of a layer with torch.mm in each precision."""
    for inputs, outputs in sizes.products:
        for precision in PRECISIONS:
            label = f"{inputs}-{outputs}, {precision}"
            try:
                findings.add("products", measure_product(runtime, inputs, outputs, sizes, precision))
            except Exception as error:  # continue with the other precisions
                findings.error(f"product {label}", error)
            try:
                rivals.torch_device()
                findings.add("products", rivals.measure_mm(inputs, outputs, sizes, precision))
            except UnavailableError as error:
                findings.add("left_out", {"what": f"torch.mm {label}", "reason": str(error)})


def single_result(key: str, measure: Callable[[Any, Sizes], Any]) -> Work:
    """Return the function `work` of a stage that records one finding, under `key`."""
    return lambda findings, sizes, runtime: findings.put(key, measure(runtime, sizes))


def stages(sizes: Sizes) -> list[Stage]:
    """Return all stages. The most important ones come first, since the last ones are skipped if time runs out."""
    found = [Stage("machine", describe_machine, 30, 1, device=False), Stage("device", describe_device, 30, 1)]
    found += [Stage(f"row: {case.label}", functools.partial(measure_row, case), 60, 5) for case in sizes.cases]
    found += [
        Stage("bits", measure_bits, 30, 3),
        Stage("tests", run_tests, 100, 20, device=False),
        Stage("accuracy", measure_accuracy, 40, 10),
        Stage("barriers", single_result("barriers", measure_barriers), 20, 3),
        Stage("products", measure_products, 40, 5),
    ]
    found += [
        Stage(f"variants: {case.label}", functools.partial(contests.measure_variants, case), 30, 4) for case in sizes.cases
    ]
    plain, compiled = (rivals.Eager, rivals.Captured), (rivals.Compiled,)
    found += [Stage(f"PyTorch: {case.label}", functools.partial(measure_contest, plain, case), 30, 6) for case in sizes.cases]
    found += [Stage("copies", single_result("copies", measure_copies), 20, 3)]
    found += [Stage(tool, functools.partial(sanitize, tool), 40, 10, device=False) for tool in TOOLS]
    name = "torch.compile"
    return found + [
        Stage(f"{name}: {case.label}", functools.partial(measure_contest, compiled, case), 60, 20) for case in sizes.cases
    ]


SANITIZED = Stage("small", train_small, 120, 1)  # run by compute-sanitizer; not a stage of the check


def run_stage(stage: Stage, findings: Findings, sizes: Sizes, runtime: Any) -> None:
    """Run a stage; if it fails, record the error."""
    try:
        stage.work(findings, sizes, runtime)
    except Exception as error:
        findings.error(stage.name, error)


def sizes_of(options: argparse.Namespace) -> Sizes:
    """Return the problem sizes, changed by the options of the command line."""
    given = {name: getattr(options, name) for name in ("rows", "rounds") if getattr(options, name) is not None}
    return Sizes(**given | ({"device_rounds": options.rounds} if options.rounds is not None else {}))


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options that reduce the problem sizes for a quick functional test."""
    parser.add_argument("--rows", type=int, help="training rows per epoch")
    parser.add_argument("--rounds", type=int, help="number of timed rounds")


def main() -> int:
    """Run one stage; return 1 if it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path)
    add_sizes(parser)
    options = parser.parse_args()
    sizes = sizes_of(options)
    known = {stage.name: stage for stage in (*stages(sizes), SANITIZED)}
    if options.list or options.name not in known:
        print("\n".join(known))
        return 0 if options.list else 2
    without_scipy.install()
    stage, findings = known[options.name], Findings(options.out)
    try:
        runtime = TimedRuntime(cuda.default_runtime()) if stage.device else None
    except UnavailableError as error:
        findings.error("device", error)
        return 1
    run_stage(stage, findings, sizes, runtime)
    return 1 if findings.found.get("errors") else 0


if __name__ == "__main__":
    sys.exit(main())
