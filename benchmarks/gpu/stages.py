"""The stages of the check, each in a process of its own: python -m benchmarks.gpu.stages NAME --out PART.json

A process that hangs, or whose device is lost, takes its own stage with it and no other; check.py starts them in turn, README's
rows first. `--list` names them.
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
from benchmarks.gpu.measures import Watch, measure_barriers, measure_copies, measure_product, peak_gflops
from benchmarks.gpu.part import Part
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
ASKED = "name,driver_version,memory.total,clocks.max.sm,power.limit"  # of nvidia-smi

Work = Callable[[Part, Sizes, Any], None]


class Stage(NamedTuple):
    """A stage.

    work : is given a part for its findings, sizes, and a `Watch` over the device, None if it needs none of this process
    limit : seconds after which its process is killed; needs : seconds without which it is not begun, by guess
    """

    name: str
    work: Work
    limit: float
    needs: float
    device: bool = True


# ------------------------------------------------------------------------------------------------ what is there


def look_around(part: Part, sizes: Sizes, watch: Any) -> None:
    """Machine, packages, the folder of kernels, and the driver as nvidia-smi tells it."""
    versions = {name: installed_version(name) for name in PACKAGES} | installed_versions(())
    part.put("machine", bench_machine.machine())
    part.put("versions", versions)
    part.put("kernels", {"sources": sources(), "carried": len(list(cache_folder().glob("*.cubin")))})
    if (tool := shutil.which("nvidia-smi")) is None:
        part.put("driver", {"reason": "there is no nvidia-smi"})
        return
    run = subprocess.run([tool, f"--query-gpu={ASKED}", "--format=csv,noheader"], capture_output=True, text=True, check=True)
    part.put("driver", dict(zip(ASKED.split(","), run.stdout.splitlines()[0].split(", "), strict=True)))


def find_device(part: Part, sizes: Sizes, watch: Any) -> None:
    """The device, a kernel that runs on it, and whether kernels can be compiled here."""
    major, minor = watch.capability
    about = {"card": watch.name, "capability": f"{major}.{minor}", "multiprocessors": watch.blocks, **watch.facts()}
    part.put("device", about | {"peak_float32_gflops": peak_gflops(watch)})
    try:
        built = linked(lowered("barriers", PLAIN, cuda.SHAPE, watch.capability), watch.capability)
        part.put("compiler", {"works": True, "registers": built.registers})
    except Exception as error:  # of whatever Numba, NVVM or the linker raise: a finding, no failure
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        print(f"kernels cannot be compiled here ({reason}); only precompiled ones can run", flush=True)
        part.put("compiler", {"works": False, "reason": reason})


# ------------------------------------------------------------------------------------------------ measuring


def measure_row(case: Case, part: Part, sizes: Sizes, watch: Any) -> None:
    """A row of README's table: our engines, in turn."""
    contests.contest(part, "rows", case, sizes, contests.own_engines(watch))


def measure_contest(kinds: Sequence[type[rivals.Eager]], case: Case, part: Part, sizes: Sizes, watch: Any) -> None:
    """Our CUDA engine against PyTorch on the device."""
    try:
        device = rivals.torch_device()
    except UnavailableError as error:
        part.add("left_out", {"what": f"{case.label}: PyTorch", "reason": str(error)})
        return
    found = [kind(device) for kind in kinds]
    contests.contest(part, "contests", case, sizes, [contests.OnDevice(watch), *found], whole=True)
    for one in found:
        if isinstance(one, rivals.Compiled) and one.compiled is not None:
            skips = {"network": case.network, "batch": case.batch, "count": one.skips() - one.skips_before}
            part.add("cudagraph_skips", skips)


def measure_products(part: Part, sizes: Sizes, watch: Any) -> None:
    """The forward pass of a layer against torch.mm, in each precision."""
    for inputs, outputs in sizes.products:
        for precision in PRECISIONS:
            label = f"{inputs}-{outputs}, {precision}"
            try:
                part.add("products", measure_product(watch, inputs, outputs, sizes, precision))
            except Exception as error:  # the others are measured
                part.error(f"product {label}", error)
            try:
                rivals.torch_device()
                part.add("products", rivals.measure_mm(inputs, outputs, sizes, precision))
            except UnavailableError as error:
                part.add("left_out", {"what": f"torch.mm {label}", "reason": str(error)})


def kept(key: str, measure: Callable[[Any, Sizes], Any]) -> Work:
    """A stage that has one finding."""
    return lambda part, sizes, watch: part.put(key, measure(watch, sizes))


def stages(sizes: Sizes) -> list[Stage]:
    """All stages, most important first: the last ones are left out when time runs out."""
    found = [Stage("machine", look_around, 30, 1, device=False), Stage("device", find_device, 30, 1)]
    found += [Stage(f"row: {case.label}", functools.partial(measure_row, case), 60, 5) for case in sizes.cases]
    found += [
        Stage("bits", measure_bits, 30, 3),
        Stage("tests", run_tests, 100, 20, device=False),
        Stage("accuracy", measure_accuracy, 40, 10),
        Stage("barriers", kept("barriers", measure_barriers), 20, 3),
        Stage("products", measure_products, 40, 5),
    ]
    found += [
        Stage(f"variants: {case.label}", functools.partial(contests.measure_variants, case), 30, 4) for case in sizes.cases
    ]
    plain, compiled = (rivals.Eager, rivals.Captured), (rivals.Compiled,)
    found += [Stage(f"PyTorch: {case.label}", functools.partial(measure_contest, plain, case), 30, 6) for case in sizes.cases]
    found += [Stage("copies", kept("copies", measure_copies), 20, 3)]
    found += [Stage(tool, functools.partial(sanitize, tool), 40, 10, device=False) for tool in TOOLS]
    name = "torch.compile"
    return found + [
        Stage(f"{name}: {case.label}", functools.partial(measure_contest, compiled, case), 60, 20) for case in sizes.cases
    ]


WATCHED = Stage("small", train_small, 120, 1)  # what the sanitizer watches; no stage of the check's own


def run_stage(stage: Stage, part: Part, sizes: Sizes, watch: Any) -> None:
    """Do a stage, and record its error if it fails."""
    try:
        stage.work(part, sizes, watch)
    except Exception as error:
        part.error(stage.name, error)


def sizes_of(options: argparse.Namespace) -> Sizes:
    """Sizes with what the command line says."""
    given = {name: getattr(options, name) for name in ("rows", "rounds") if getattr(options, name) is not None}
    return Sizes(**given | ({"device_rounds": options.rounds} if options.rounds is not None else {}))


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Options that make a check smaller, to see that all works."""
    parser.add_argument("--rows", type=int, help="training rows per epoch")
    parser.add_argument("--rounds", type=int, help="number of timed rounds")


def main() -> int:
    """Do one stage; 1 if it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path)
    add_sizes(parser)
    options = parser.parse_args()
    sizes = sizes_of(options)
    known = {stage.name: stage for stage in (*stages(sizes), WATCHED)}
    if options.list or options.name not in known:
        print("\n".join(known))
        return 0 if options.list else 2
    without_scipy.stand_in()
    stage, part = known[options.name], Part(options.out)
    try:
        watch = Watch(cuda.default_runtime()) if stage.device else None
    except UnavailableError as error:
        part.error("the device", error)
        return 1
    run_stage(stage, part, sizes, watch)
    return 1 if part.found.get("errors") else 0


if __name__ == "__main__":
    sys.exit(main())
