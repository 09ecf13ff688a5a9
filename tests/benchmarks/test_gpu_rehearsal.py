"""The check of a GPU from the folder that is carried to it, in a bare environment, over a driver that computes nothing.

The very command that a machine with a GPU is given: Python 3.12, NumPy 2.5 and numba-cuda, no compiler for kernels, and the
carried wheels. Only wrong results are accepted; any other failure fails the test, and each kind is provoked once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.cuda_stub import NoStubError, build, environment
from support.processes import ROOT

from benchmarks.gpu import bits
from benchmarks.gpu.check import faults
from benchmarks.gpu.kernels import recorded
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.stages import stages
from fastmlp.engines.cuda.compiler import entry_of
from fastmlp.files import read_json

pytestmark = pytest.mark.full

INSTALLED = ("numpy==2.5.*", "numba", "numba-cuda")  # as on the machine: without the extra that brings a compiler
# Limits of time are for a machine of its own; here a busy one must not turn the test red.
FEWER = ("--rows", "2048", "--rounds", "1", "--seconds", "3000", "--limit", "600")


def python312() -> str:
    """A Python 3.12; skips where there is none."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable, shutil.which("python3.12"), *map(str, versions.glob("3.12*/bin/python3.12"))]
    for candidate in filter(None, candidates):
        code = "import sys; sys.exit(sys.version_info[:2] != (3, 12))"
        if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
            return candidate
    pytest.skip("the rehearsal needs Python 3.12")


def done(*command: Any) -> None:
    """Run a command that needs the package index; skips with its last line where there is none."""
    run = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip(f"{command[1:4]} does not work here: {run.stderr.strip().splitlines()[-1]}")


class Machine(NamedTuple):
    """A bare Python, the folder of the stub, and the folder that was carried."""

    python: Path
    stub: Path
    carried: Path


class Ran(NamedTuple):
    """What a check left: its exit status, its JSON, what it printed."""

    status: int
    result: dict[str, Any]
    printed: str


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("rehearsal")
    python, bare = python312(), folder / "bare" / "bin" / "python"
    try:
        build(folder)
    except NoStubError as error:
        pytest.skip(str(error))
    done(python, "-m", "venv", folder / "bare")
    done(bare, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *INSTALLED)
    done(sys.executable, "-m", "benchmarks.gpu.carry", folder / "carried")
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # a folder that was carried may come with another owner
        for path in (folder / "carried", *(folder / "carried").rglob("*")):
            os.chown(path, 12345, 12345)
    return Machine(bare, folder, folder / "carried")


def ran(machine: Machine, out: Path, *options: str, carried: Path | None = None, **variables: str) -> Ran:
    """The command as it is given there, from another folder, with fewer rows."""
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
    return Ran(run.returncode, read_json(out) if out.exists() else {}, run.stdout + run.stderr)


def copied(machine: Machine, folder: Path) -> Path:
    """A carried folder to take something out of."""
    return shutil.copytree(machine.carried, folder / "carried", ignore=shutil.ignore_patterns("data")) / "."


def only_numbers_are_wrong(machine: Machine, tmp_path: Path) -> None:
    found = ran(machine, tmp_path / "gpu.json")
    result = found.result
    assert faults(result) == [], found.printed[-3000:]
    assert [stage["name"] for stage in result["stages"]] == [stage.name for stage in stages(Sizes())]
    assert result["compiler"]["works"] is False
    assert result["versions"]["numpy"].startswith("2.5.")
    assert result["kernels"]["carried"] == len(recorded())
    assert (result["device"]["card"], result["device"]["multiprocessors"]) == ("STUB H200", 132)
    # A driver that computes nothing must not pass.
    assert found.status == 1
    assert {error["who"] for error in result["errors"]} >= {"cuda", "tests", "barriers", "losses of small batches"}
    assert len(result["tests"]["failed"]) > 100
    # Our other engines compute here as anywhere.
    assert {row["backend"] for row in result["rows"]} == {"numba", "numpy"}
    assert len({(row["network"], row["batch"]) for row in result["rows"]}) == 7


def a_wheel_that_is_missing(machine: Machine, tmp_path: Path) -> None:
    carried = copied(machine, tmp_path)
    (wheel,) = (carried / "wheels").glob("msgspec-*.whl")
    wheel.unlink()
    found = ran(machine, tmp_path / "gpu.json", carried=carried)
    assert (found.status, found.result) == (1, {})
    assert "msgspec" in found.printed


def a_wheel_of_the_tests_that_is_missing(machine: Machine, tmp_path: Path) -> None:
    carried = copied(machine, tmp_path)
    (wheel,) = (carried / "wheels").glob("greenlet-*.whl")
    wheel.unlink()
    found = ran(machine, tmp_path / "gpu.json", "--only", "^(device|tests)$", carried=carried)
    assert [fault.partition(": ")[0] for fault in faults(found.result)] == ["tests"]
    assert "greenlet" in faults(found.result)[0]


def a_kernel_that_is_missing(machine: Machine, tmp_path: Path) -> None:
    """Its stage is lost, and no other."""
    carried = copied(machine, tmp_path)
    (lost,) = (one for one in recorded() if one.name == "barriers")
    name = entry_of(lost.name, lost.kind, lost.shape(), (9, 0)).name
    with tarfile.open(carried / "kernels.tar.xz") as archive:
        archive.extractall(tmp_path / "kernels", filter="data")
    (tmp_path / "kernels" / name).unlink()
    with tarfile.open(carried / "kernels.tar.xz", "w:xz", preset=0) as archive:
        archive.add(tmp_path / "kernels", ".")
    found = ran(machine, tmp_path / "gpu.json", "--only", "^(device|barriers|bits)$", carried=carried)
    (fault,) = faults(found.result)
    assert fault.startswith("barriers: UnavailableError: a kernel for compute capability 9.0 could not be compiled")
    assert [stage["name"] for stage in found.result["stages"]] == ["device", "bits", "barriers"]
    assert len(found.result["bits"]) == len(bits.JOBS)


def a_stage_that_hangs_costs_only_itself(machine: Machine, tmp_path: Path) -> None:
    chosen = ("--only", "^(device|barriers|copies)$", "--limit", "20")
    found = ran(machine, tmp_path / "gpu.json", *chosen, CUDA_STUB_HANG="cuLaunchCooperativeKernel")
    assert faults(found.result) == ["barriers: hung"]
    assert [(stage["name"], stage["state"]) for stage in found.result["stages"]] == [
        ("device", "done"),
        ("barriers", "hung"),
        ("copies", "done"),
    ]
    assert found.status == 1
    again = ran(machine, tmp_path / "again.json", *chosen[:2], "--after", str(tmp_path / "gpu.json"))
    assert [stage["name"] for stage in again.result["stages"]] == ["device", "copies", "barriers"]
    assert faults(again.result) == []
    assert again.result["copies"] == found.result["copies"]


def a_device_that_is_lost(machine: Machine, tmp_path: Path) -> None:
    found = ran(machine, tmp_path / "gpu.json", "--only", "^(barriers|copies)$", CUDA_STUB_FAIL="cuLaunchCooperativeKernel:719")
    (fault,) = faults(found.result)
    assert fault.startswith("barriers: UnavailableError: the GPU failed in cuLaunchCooperativeKernel")
    assert [stage["state"] for stage in found.result["stages"]] == ["failed", "done"]


def test_the_rehearsal(machine: Machine, tmp_path: Path) -> None:
    """One test, since what it needs takes a minute and a half to prepare."""
    for show in (
        only_numbers_are_wrong,
        a_wheel_that_is_missing,
        a_wheel_of_the_tests_that_is_missing,
        a_kernel_that_is_missing,
        a_stage_that_hangs_costs_only_itself,
        a_device_that_is_lost,
    ):
        (tmp_path / show.__name__).mkdir()
        show(machine, tmp_path / show.__name__)
