"""End-to-end test of the GPU check from a packed folder, in a new virtual environment, with a stub of the CUDA driver.

The test runs the same command as on a machine with a GPU, with Python 3.12, NumPy 2.5, numba-cuda and the packed wheels, but
without a kernel compiler. The stub driver accepts all calls but computes nothing. Therefore wrong results are expected, and
any other failure of the check fails the test. Further runs check that missing files, hung stages and a lost device are
reported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.cuda_stub import NoStubError, build, environment
from support.processes import ROOT

from benchmarks.gpu.check import faults
from benchmarks.gpu.contests import VARIANTS
from benchmarks.gpu.kernels import KernelRequest, read_record
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.stages import stages
from fastmlp.engines.cuda.compiler import KERNELS, arguments_of, compiled, entry_of, load_cuda, packed
from fastmlp.engines.cuda.kernels import device
from fastmlp.engines.kernel_cache import write_entry
from fastmlp.files import read_json

pytestmark = pytest.mark.full

CAPABILITY = (9, 0)
COMPILED = 12  # one of so many kernels is compiled
INSTALLED = ("numpy==2.5.*", "numba", "numba-cuda")  # as on the GPU machine, without a kernel compiler
# The default time limits of the stages assume an idle machine; higher limits keep the test from failing on a busy machine.
FEWER = ("--rows", "2048", "--rounds", "1", "--seconds", "3000", "--limit", "600")


def python312() -> str:
    """Return the path of a Python 3.12 interpreter; skip the test if none is installed."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable, shutil.which("python3.12"), *map(str, versions.glob("3.12*/bin/python3.12"))]
    for candidate in filter(None, candidates):
        code = "import sys; sys.exit(sys.version_info[:2] != (3, 12))"
        if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
            return candidate
    pytest.skip("this test needs Python 3.12")


def run_or_skip(*command: Any) -> None:
    """Run a command that needs the package index; if it fails, skip the test and report the last line of its output."""
    run = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip(f"{command[1:4]} failed: {run.stderr.strip().splitlines()[-1]}")


class Machine(NamedTuple):
    """Paths of a Python interpreter with few packages, of the folder of the stub driver, and of the packed folder."""

    python: Path
    stub: Path
    carried: Path


class Run(NamedTuple):
    """Exit status of a check, the contents of its JSON file, and its output."""

    status: int
    result: dict[str, Any]
    output: str


def fill_cache(requests: Sequence[KernelRequest]) -> None:
    """Write stand-ins of most kernels to the cache: the code of another kernel, since the stub driver runs none of them.

    `carry` then compiles only one kernel in `COMPILED`. That all kernels can be compiled is tested in
    tests/engines/cuda/test_build.py and recorded in benchmarks/results/cuda_build.json.
    """
    load_cuda()
    first, *others = requests
    real = compiled(first.name, first.kind, first.shape(), CAPABILITY)
    for index, (name, kind, shape) in enumerate((one.name, one.kind, one.shape()) for one in others):
        if index % COMPILED:
            stand_in = real._replace(arguments=arguments_of(name, kind), threads=KERNELS[name](device, kind, shape).threads)
            write_entry(entry_of(name, kind, shape, CAPABILITY), packed(stand_in))


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("rehearsal")
    python, bare = python312(), folder / "bare" / "bin" / "python"
    try:
        build(folder)
    except NoStubError as error:
        pytest.skip(str(error))
    run_or_skip(python, "-m", "venv", "--without-pip", folder / "bare")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")
    run_or_skip(sys.executable, "-m", "pip", "--python", bare, "install", *quiet, *INSTALLED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTMLP_CACHE_DIR", str(folder / "cache"))
        fill_cache(read_record())
        run_or_skip(sys.executable, "-m", "benchmarks.gpu.carry", folder / "carried")
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # a copied folder may belong to a different user
        for path in (folder / "carried", *(folder / "carried").rglob("*")):
            os.chown(path, 12345, 12345)
    return Machine(bare, folder, folder / "carried")


def run_check(machine: Machine, out: Path, *options: str, carried: Path | None = None, **variables: str) -> Run:
    """Run start.py from another working directory, with fewer rows than on a machine with a GPU."""
    here = {name: value for name, value in environment(machine.stub).items() if not name.startswith(("FASTMLP", "PYTHON"))}
    command = [
        machine.python,
        ROOT / "benchmarks" / "gpu" / "start.py",
        carried or machine.carried,
        "--out",
        out,
        *FEWER,
        *options,
    ]
    run = subprocess.run(
        [*map(str, command)], cwd=out.parent, env=here | variables, capture_output=True, text=True, timeout=900, check=False
    )
    return Run(run.returncode, read_json(out) if out.exists() else {}, run.stdout + run.stderr)


def copy_carried(machine: Machine, folder: Path) -> Path:
    """Copy the packed folder, so that a test can remove files from it."""
    return shutil.copytree(machine.carried, folder / "carried", ignore=shutil.ignore_patterns("data")) / "."


def only_results_are_wrong(machine: Machine, tmp_path: Path) -> None:
    found = run_check(machine, tmp_path / "gpu.json")
    result = found.result
    assert faults(result) == [], found.output[-3000:]
    assert [stage["name"] for stage in result["stages"]] == [stage.name for stage in stages(Sizes())]
    assert result["compiler"]["works"] is False
    assert result["versions"]["numpy"].startswith("2.5.")
    assert result["kernels"]["carried"] == len(read_record())
    assert (result["device"]["card"], result["device"]["multiprocessors"]) == ("STUB H200", 132)
    # A driver that computes nothing must not pass the check.
    assert found.status == 1
    assert {error["what"] for error in result["errors"]} >= {"cuda", "tests", "barriers", "losses of small batches"}
    assert len(result["tests"]["failed"]) > 100
    # The CPU engines work as on any machine.
    assert {row["backend"] for row in result["rows"]} == {"numba", "numpy"}
    assert len({(row["network"], row["batch"]) for row in result["rows"]}) == 7


def a_missing_wheel(machine: Machine, tmp_path: Path) -> None:
    carried = copy_carried(machine, tmp_path)
    (wheel,) = (carried / "wheels").glob("msgspec-*.whl")
    wheel.unlink()
    found = run_check(machine, tmp_path / "gpu.json", carried=carried)
    assert (found.status, found.result) == (1, {})
    assert "msgspec" in found.output


def a_missing_wheel_of_the_tests(machine: Machine, tmp_path: Path) -> None:
    carried = copy_carried(machine, tmp_path)
    (wheel,) = (carried / "wheels").glob("greenlet-*.whl")
    wheel.unlink()
    found = run_check(machine, tmp_path / "gpu.json", "--only", "^(device|tests)$", carried=carried)
    assert [fault.partition(": ")[0] for fault in faults(found.result)] == ["tests"]
    assert "greenlet" in faults(found.result)[0]


def a_missing_kernel(machine: Machine, tmp_path: Path) -> None:
    """If a kernel is missing, only the stage that uses this kernel fails."""
    carried = copy_carried(machine, tmp_path)
    (lost,) = (one for one in read_record() if one.name == "barriers")
    name = entry_of(lost.name, lost.kind, lost.shape(), CAPABILITY).name
    with tarfile.open(carried / "kernels.tar.xz") as archive:
        archive.extractall(tmp_path / "kernels", filter="data")
    (tmp_path / "kernels" / name).unlink()
    with tarfile.open(carried / "kernels.tar.xz", "w:xz", preset=0) as archive:
        archive.add(tmp_path / "kernels", ".")
    other = "variants: 784-128-10, batch 128"
    found = run_check(machine, tmp_path / "gpu.json", "--only", f"^(device|barriers|{other})$", carried=carried)
    (fault,) = faults(found.result)
    assert fault.startswith("barriers: UnavailableError: a kernel for compute capability 9.0 could not be compiled")
    assert [stage["name"] for stage in found.result["stages"]] == ["device", "barriers", other]
    assert sum(error["numerical"] for error in found.result["errors"]) == len(VARIANTS)  # all of them ran


def a_hung_stage(machine: Machine, tmp_path: Path) -> None:
    chosen = ("--only", "^(device|barriers|copies)$", "--limit", "20")
    found = run_check(machine, tmp_path / "gpu.json", *chosen, CUDA_STUB_HANG="cuLaunchCooperativeKernel")
    assert faults(found.result) == ["barriers: hung"]
    assert [(stage["name"], stage["state"]) for stage in found.result["stages"]] == [
        ("device", "done"),
        ("barriers", "hung"),
        ("copies", "done"),
    ]
    assert found.status == 1
    again = run_check(machine, tmp_path / "again.json", *chosen[:2], "--after", str(tmp_path / "gpu.json"))
    assert [stage["name"] for stage in again.result["stages"]] == ["device", "copies", "barriers"]
    assert faults(again.result) == []
    assert again.result["copies"] == found.result["copies"]


def a_lost_device(machine: Machine, tmp_path: Path) -> None:
    found = run_check(
        machine, tmp_path / "gpu.json", "--only", "^(barriers|copies)$", CUDA_STUB_FAIL="cuLaunchCooperativeKernel:719"
    )
    (fault,) = faults(found.result)
    assert fault.startswith("barriers: UnavailableError: the GPU failed in cuLaunchCooperativeKernel")
    assert [stage["state"] for stage in found.result["stages"]] == ["failed", "done"]


def test_the_rehearsal(machine: Machine, tmp_path: Path) -> None:
    """The check works from a packed folder, and each provoked failure is reported.

    All scenarios are in a single test because the fixture `machine` takes more than a minute. Two run at a time, and the hung
    stage, which only waits for its time limit, comes first.
    """
    scenarios = (
        a_hung_stage,
        only_results_are_wrong,
        a_missing_wheel,
        a_missing_wheel_of_the_tests,
        a_missing_kernel,
        a_lost_device,
    )
    with ThreadPoolExecutor(2) as pool:
        runs = []
        for scenario in scenarios:
            (tmp_path / scenario.__name__).mkdir()
            runs.append(pool.submit(scenario, machine, tmp_path / scenario.__name__))
    for run in runs:
        run.result()
