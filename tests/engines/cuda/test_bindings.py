"""Tests of cuda/runtime.py with several versions of NVIDIA's cuda.bindings and a stub driver in C that computes nothing.

For each version, a child process (support/cuda_stub_child.py) trains, predicts and provokes errors; the tests check its report.
They show that the bindings accept the calls of the runtime, and which calls the driver receives. Numerical results are tested
in test_runtime.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.cuda_stub import (
    KINDS,
    Meant,
    NoStubError,
    Parameter,
    Received,
    build,
    environment,
    functions_of,
    laid_out,
    mismatches,
)
from support.processes import ROOT

RUNTIME = ROOT / "fastmlp" / "engines" / "cuda" / "runtime.py"
MISSING = [name for name in ("numba_cuda", "cuda") if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.full, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]

INSTALLED = "installed"
VERSIONS = (INSTALLED, "12.9", "13.0", "13.5")
# Driver functions that are made to fail: error code, beginning of the expected error message, and another part of it.
FAILURES: dict[str, tuple[int, str, str]] = {
    "cuLaunchKernel": (
        719,
        "the GPU failed in cuLaunchKernel: ",
        "a kernel crashed, and this process can no longer use the GPU",
    ),
    "cuLaunchCooperativeKernel": (719, "the GPU failed in cuLaunchCooperativeKernel: ", "a kernel crashed"),
    "cuGraphAddKernelNode": (2, "the GPU failed in cuGraphAddKernelNode: ", "(error 2); use backend 'numba'"),
    "cuGraphLaunch": (700, "the GPU failed in cuGraphLaunch: ", "a kernel crashed"),
    "cuModuleLoadData": (209, "the GPU failed in cuModuleLoadData: ", "kernels may be newer than the driver"),
    "cuMemcpyHtoD": (999, "the GPU failed in cuMemcpyHtoD: an unknown error (error 999); ", "use backend 'numba'"),
    "cuMemAlloc": (12345, "the GPU failed in cuMemAlloc: an error code that cuda-bindings does not define (", "12345"),
    "cuInit": (
        100,
        "backend 'cuda' needs an NVIDIA GPU and its driver (the GPU failed in cuInit: ",
        "(error 100)); use backend",
    ),
}


# ------------------------------------------------------------------------------------------------ child processes


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the compiled stub driver."""
    folder = tmp_path_factory.mktemp("driver")
    try:
        build(folder)
    except NoStubError as error:
        pytest.skip(str(error))
    return folder


def child(stub: Path, bindings: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the stub driver; bindings in the folder `bindings` take precedence over the installed ones."""
    own = environment(stub)
    folders = [*([bindings] if bindings else []), ROOT, ROOT / "tests", *filter(None, [os.environ.get("PYTHONPATH")])]
    own["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, env=own, cwd=ROOT, capture_output=True, text=True, check=False)


def report_of(stub: Path, bindings: Path | None) -> dict[str, Any]:
    """Return the report of a child process with the bindings in a folder, or with the installed bindings."""
    failures = json.dumps([[function, code] for function, (code, _, _) in FAILURES.items()])
    done = child(stub, bindings, "-m", "support.cuda_stub_child", failures)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def install(version: str, folder: Path) -> None:
    """Install a version of cuda-bindings in a folder; skip the test if pip fails."""
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "0", "--timeout", "20"]
    what = ["--no-deps", "--only-binary", ":all:", "--target", str(folder), f"cuda-bindings=={version}.*", "cuda-pathfinder"]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *quiet, *what], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        pytest.skip(f"pip cannot install cuda-bindings {version}: {said[-1][:200]}")


@pytest.fixture(scope="session")
def installed(stub: Path) -> dict[str, Any]:
    """Report with the installed bindings; its child process compiles kernels that the other child processes reuse."""
    return report_of(stub, None)


@pytest.fixture(scope="session", params=VERSIONS)
def report(request: pytest.FixtureRequest, stub: Path, installed: Any) -> Any:
    """Reports with all versions of the bindings, one after the other."""
    if request.param == INSTALLED:
        return installed
    with tempfile.TemporaryDirectory(prefix="fastmlp-bindings-") as folder:  # up to 100 MB, which `tmp_path` would not delete
        install(request.param, Path(folder))
        found = report_of(stub, Path(folder))
        assert found["version"].startswith(f"{request.param}."), "the wrong version of the bindings was imported"
        assert Path(found["file"]).is_relative_to(folder)
    return found


# ------------------------------------------------------------------------------------------------ received calls


def test_every_function_of_the_driver_that_the_runtime_names_is_called(report: Any) -> None:
    named = functions_of(RUNTIME.read_text())
    assert {"cuInit", "cuGetErrorString", "cuGraphAddKernelNode", "cuMemFree"} <= named  # examples of every notation
    assert set(report["calls"]) == named
    assert [name for name, calls in report["calls"].items() if calls == 0] == []


def test_every_launch_arrives_as_it_was_meant(report: Any) -> None:
    """The driver receives the intended launches of two training calls, a prediction and an evaluation.

    With tiles, two steps of five phases are recorded in a graph once, and both training calls launch it.
    """
    small, tiles = {"cooperative": 4}, {"in a graph": 10, "cooperative": 2}
    cases = report["cases"]
    assert [case["launches"] for case in cases.values()] == [small, small, tiles]
    assert report["runtime"]["launches"] == {"plain": 1}
    assert [case["wrong"] for case in (*cases.values(), report["runtime"])] == [[]] * 4


def test_memory_and_graphs_are_given_back(report: Any) -> None:
    for name, case in report["cases"].items():
        held, left = ([case[when][kind] for kind in ("memory", "exec", "graph", "node")] for when in ("held", "left"))
        assert held[0] > 0, name
        assert held[1:] == [int(name.startswith("tiles")), 0, 0], name  # executable graphs only
        assert left == [0, 0, 0, 0], name


def test_the_callers_context_is_current_again(report: Any) -> None:
    """Each call restores the caller's CUDA context: no context in the first case, another library's in later cases."""
    first, *others = (case["contexts"] for case in report["cases"].values())
    assert set(first) == {0}
    assert len({*others[0], *others[1]}) == 1
    assert others[0][0] != 0
    assert {context for failure in report["failures"].values() for context in failure["contexts"]} == {others[0][0]}


def test_what_the_device_is_and_has(report: Any) -> None:
    found = report["runtime"]
    assert found["device"] == ["STUB H200", [9, 0], 132]
    assert found["facts"] == {"cuda": "13.0", "memory_bytes": 128 << 30, "clock_hz": 1_980_000_000}
    assert found["there and back"] == [2, 3, 4]


def test_errors_are_a_line_that_names_the_first_function_that_failed(report: Any) -> None:
    assert set(report["failures"]) == set(FAILURES)
    for function, (_, beginning, part) in FAILURES.items():
        kind, text = report["failures"][function]["error"]
        assert kind == ("NoDeviceError" if function == "cuInit" else "UnavailableError"), function
        assert text.startswith(beginning), function
        assert part in text, function
        assert report["failures"][function]["graphs"] == 0, function


def test_memory_that_is_full_and_what_is_no_machine_code(report: Any) -> None:
    (full, memory), (refused, image) = (report["runtime"][name] for name in ("full", "no machine code"))
    assert (full, refused) == ("UnavailableError", "UnavailableError")
    assert memory.startswith("the GPU's memory is full: 4,398,046,511,104 bytes needed, ")
    assert re.match(r"the GPU failed in cuModuleLoadData: .+ \(error 200\); kernels may be newer than the driver", image)


# ------------------------------------------------------------------------------------------------ the checks themselves

MEANT = Meant("train", [3, 1, 1, 256, 1, 1, 0], "in a graph", 1, [b"12345678", b"1234", b"87654321"], laid_out([8, 4, 8]))
SAME = Received(*MEANT[:-1])


def test_parameters_are_aligned_to_their_size() -> None:
    assert MEANT.layout == [Parameter(0, 8), Parameter(8, 4), Parameter(16, 8)]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"entry": "apply"}, "entry"),
        ({"shape": [2, *SAME.shape[1:]]}, "shape"),
        ({"shape": [3, 1, 1, 128, 1, 1, 0]}, "shape"),
        ({"how": "cooperative"}, "how"),
        ({"after": 0}, "after"),
        ({"parameters": [b"12345678", b"1235", b"87654321"]}, "parameters"),
        ({"parameters": SAME.parameters[:2]}, "parameters"),
        ({"parameters": SAME.parameters[::-1]}, "parameters"),
    ],
)
def test_a_launch_with_a_mistake_is_seen(change: dict[str, Any], where: str) -> None:
    assert mismatches([SAME], [MEANT]) == []
    (told,) = mismatches([SAME._replace(**change)], [MEANT])
    assert told.startswith(f"launch 0: {where} is ")


@pytest.mark.parametrize("sizes", [[8, 8, 8], [8, 4], [4, 8, 8]])
def test_a_kernel_that_takes_other_parameters_is_seen(sizes: list[int]) -> None:
    (told,) = mismatches([SAME], [MEANT._replace(layout=laid_out(sizes))])
    assert told.startswith("launch 0: the kernel takes ")


def test_a_launch_too_many_is_seen() -> None:
    assert mismatches([SAME, SAME], [MEANT]) == ["2 launches, not 1"]


def test_functions_are_found_however_they_are_named() -> None:
    source = 'self.driver.cuMemFree(1); ask("cuInit", 0); driver.CUresult; "cubin"; HINTS = {"cuModuleLoadData": 1}'
    assert functions_of(source) == {"cuMemFree", "cuInit", "cuModuleLoadData"}


# Calls that a driver rejects, with their error codes, and some calls that it accepts.
REFUSED = """
import ctypes
from cuda.bindings import driver as d
from support.cuda_stub import Stub

def codes(*calls): return [int(call[0]) for call in calls]

stub = Stub()
assert codes(d.cuDeviceGet(0)) == [3]
d.cuInit(0)
assert codes(d.cuDeviceGet(1), d.cuMemAlloc(8), d.cuStreamCreate(0), d.cuCtxPopCurrent()) == [101, 201, 201, 201]
assert codes(d.cuCtxPushCurrent(d.CUcontext(8))) == [400]
context = d.cuDevicePrimaryCtxRetain(0)[1]
d.cuCtxPushCurrent(context)
stream, memory = d.cuStreamCreate(0)[1], int(d.cuMemAlloc(8)[1])
module = d.cuModuleLoadData(b"\\x7fELF and more")[1]
function, source = d.cuModuleGetFunction(module, b"any")[1], ctypes.create_string_buffer(64)
assert codes(d.cuModuleLoadData(b"no ELF"), d.cuModuleGetFunction(d.CUmodule(8), b"any")) == [200, 400]
assert codes(d.cuStreamSynchronize(d.CUstream(8)), d.cuStreamSynchronize(stream)) == [400, 0]
fill = lambda at, count: d.cuMemcpyHtoD(at, ctypes.addressof(source), count)
assert codes(fill(memory, 8), fill(memory, 9), fill(memory + 4, 5), fill(memory - 1, 1)) == [0, 1, 1, 1]
assert codes(d.cuMemAlloc(1 << 40), d.cuMemFree(memory + 4), d.cuMemFree(memory), d.cuMemFree(memory)) == [2, 1, 0, 1]
start = lambda what, where, blocks, threads, extra: d.cuLaunchKernel(what, blocks, 1, 1, threads, 1, 1, 0, where, 0, extra)
assert codes(start(function, stream, 9, 64, 0), start(function, stream, 9, 64, 8)) == [0, 1]
assert codes(start(function, stream, 0, 64, 0)) == [1]
assert codes(start(function, stream, 9, 2048, 0), start(d.CUfunction(8), stream, 9, 64, 0)) == [1, 400]
assert codes(start(function, d.CUstream(8), 9, 64, 0)) == [400]
meet = lambda blocks: d.cuLaunchCooperativeKernel(function, blocks, 1, 1, 1024, 1, 1, 0, stream, 0)
assert codes(meet(2 * 132), meet(2 * 132 + 1)) == [0, 720]
graph = d.cuGraphCreate(0)[1]
whole = d.cuGraphInstantiate(graph, 0)[1]
assert codes(d.cuGraphLaunch(whole, stream), d.cuGraphLaunch(d.CUgraphExec(8), stream)) == [0, 400]
assert codes(d.cuGraphExecDestroy(whole), d.cuGraphExecDestroy(whole), d.cuGraphLaunch(whole, stream)) == [0, 1, 400]
assert codes(d.cuGraphDestroy(graph), d.cuGraphDestroy(graph), d.cuGraphInstantiate(graph, 0)) == [0, 1, 400]
d.cuCtxPushCurrent(d.CUcontext(stub.other_context()))
assert codes(d.cuStreamSynchronize(stream), start(function, stream, 9, 64, 0)) == [400, 400]
d.cuCtxPopCurrent()
stub.expect("kernel", [])
assert codes(d.cuModuleGetFunction(module, b"kernel"), d.cuModuleGetFunction(module, b"other")) == [0, 500]
assert codes(d.cuCtxPopCurrent(), d.cuCtxPopCurrent()) == [0, 201]
print(stub.calls("cuMemFree"), [one.how for one in stub.received()], stub.live()["graph"])
"""


def test_the_stub_refuses_what_a_driver_refuses(stub: Path) -> None:
    done = child(stub, None, "-c", REFUSED)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 ['plain', 'cooperative'] 0\n"


def test_a_function_can_hang(stub: Path) -> None:
    code = "from cuda.bindings import driver; driver.cuDriverGetVersion(); print('begun', flush=True); driver.cuInit(0)"
    own = {**environment(stub), "CUDA_STUB_HANG": "cuInit"}
    with subprocess.Popen([sys.executable, "-c", code], env=own, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()


def test_the_kinds_of_handles_are_those_of_the_stub() -> None:
    source = (ROOT / "tests" / "support" / "cuda_stub.c").read_text()
    (names,) = re.findall(r"enum Kind \{ (.+), KINDS \};", source)
    assert names.lower().split(", ") == [*KINDS]
