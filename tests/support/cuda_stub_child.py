"""Program of a process in which cuda.bindings load the stub: trainings by both designs, and failures; prints a JSON report.

Started by test_bindings.py, which checks the report. Nothing is checked here, except that a kernel with a wrong number of
arguments ends the process: the stub would read invalid memory.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cuda.bindings
import numpy as np
from cuda.bindings import driver

from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cuda import runtime as runtime_module
from fastmlp.engines.cuda.compiler import compiled
from fastmlp.engines.cuda.engine import SHAPE, SMALL_BATCH, CudaEngine
from fastmlp.engines.cuda.kernels.programs import PLAIN
from fastmlp.engines.cuda.runtime import Graph, Handle, Launch, Program, Runtime, values_of
from fastmlp.errors import UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from support.cuda_stub import Meant, Stub, functions_of, mismatches, parameters
from support.engines import Course, make_course, start_state

SEED = 2**63 + 5  # does not fit into a signed integer
SIZES = (20, 13, 5)
FORMATS = {"int32": "<i", "float32": "<f", "uint64": "<Q"}
LABELS = EngineSpec(Network(SIZES, label_smoothing=0.1), Optimizer("sgd", clip_norm=1.5), batch_size=9, seed=SEED)
TARGETS = EngineSpec(Network(SIZES), Optimizer("sgd"), batch_size=9, seed=SEED)
LARGE = EngineSpec(Network(SIZES), Optimizer("sgd"), batch_size=SMALL_BATCH + 1, seed=SEED)
# Name, spec, and course. Few kernels: two for training in one launch, one by tiles, and those for inference by both designs.
CASES: list[tuple[str, EngineSpec, Course]] = [
    ("small, uint8, labels", LABELS, make_course(LABELS.network, 22, 9, epochs=1, uint8=True)),
    ("small, float32, targets", TARGETS, make_course(TARGETS.network, 400, 9, epochs=1, targets=True, weighted=True)),
    ("tiles, float32, targets", LARGE, make_course(LARGE.network, 400, LARGE.batch_size, epochs=1, targets=True)),
]


# ------------------------------------------------------------------------------------------------ what is meant


def meant_bytes(value: Any, kind: str) -> list[bytes]:
    """An argument as parameters of a kernel: an array has seven, in Numba's layout."""
    if isinstance(value, Handle):
        each = value.dtype.itemsize
        return [struct.pack("<Q", word) for word in (0, 0, value.size, each, value.address, value.size, each)]
    return [struct.pack(FORMATS[kind], value)]


class Watched(Runtime):
    """The runtime, which also records the intended launches for comparison with those that the stub received."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.meant: list[Meant] = []
        super().__init__()

    def program(self, name: str, kind: Any, shape: Any) -> Program:
        built = compiled(name, kind, shape, self.capability)
        self.stub.expect(built.entry, parameters(built.cubin, built.entry))
        return super().program(name, kind, shape)

    def launch(self, launch: Launch) -> None:
        self.note(launch, "cooperative" if launch.together else "plain", -1)
        super().launch(launch)

    def record(self, launches: Sequence[Launch]) -> Graph:
        for number, launch in enumerate(launches):
            self.note(launch, "in a graph", len(self.meant) - 1 if number else -1)
        return super().record(launches)

    def note(self, launch: Launch, how: str, after: int) -> None:
        built = launch.program.built
        pairs = zip(launch.arguments, built.arguments, strict=True)
        wanted = [one for value, kind in pairs for one in meant_bytes(value, kind)]
        layout, given = parameters(built.cubin, built.entry), len(values_of(launch))
        if not given == len(wanted) == len(layout):
            raise AssertionError(f"{given} parameters, not {len(wanted)}; the kernel takes {len(layout)}")
        shape = [launch.blocks, 1, 1, built.threads, 1, 1, 0]
        self.meant.append(Meant(built.entry, shape, how, after, wanted, layout))

    def compared(self) -> dict[str, Any]:
        """Number of launches by type, and their mismatches; then restarts the count."""
        received, meant = self.stub.received(), self.meant
        self.meant = []
        self.stub.forget()
        return {"launches": Counter(one.how for one in received), "wrong": mismatches(received, meant)}


# ------------------------------------------------------------------------------------------------ what is done


def current() -> int:
    """The context of this thread; 0 if there is none, as before the first call of the driver."""
    result, context = driver.cuCtxGetCurrent()
    return int(context) if int(result) == 0 else 0


def trained(engine: CudaEngine, spec: EngineSpec, course: Course) -> None:
    """Two calls of training, the second with the recorded graph if there is one, one of prediction, one of evaluation."""
    engine.load(start_state(spec))
    for _ in range(2):
        engine.train(*course)
    engine.forward(course.x)
    engine.evaluate(engine.hold(course.x, course.y))


def report_of_case(stub: Stub, spec: EngineSpec, course: Course) -> dict[str, Any]:
    """Report of a training and of objects left after closing; reads the caller's context after each step."""
    contexts = [current()]
    runtime = Watched(stub)
    engine = CudaEngine(spec, runtime)
    contexts.append(current())
    trained(engine, spec, course)
    contexts.append(current())
    held = stub.live()
    engine.close()
    gc.collect()
    contexts.append(current())
    return {"contexts": contexts, "held": held, "left": stub.live(), **runtime.compared()}


def plain_launch(runtime: Runtime) -> None:
    """Launch a kernel without the cooperative flag."""
    program = runtime.program("barriers", PLAIN, SHAPE)
    runtime.launch(Launch(program, 3, (runtime.put(np.zeros(1, np.uint64)), 2)))


def report_of_the_runtime(stub: Stub) -> dict[str, Any]:
    """Report of functions that training does not call."""
    runtime = Watched(stub)
    plain_launch(runtime)
    runtime.wait()
    array = np.arange(7, dtype=np.float32)
    return {
        "device": [runtime.name, list(runtime.capability), runtime.blocks],
        "facts": runtime.facts(),
        "there and back": runtime.get(runtime.put(array), 2, 3).tolist(),
        "full": told(lambda: runtime.empty(1 << 40, np.float32)),
        "no machine code": told(lambda: runtime.checked_call("cuModuleLoadData", b"no machine code")),
        **runtime.compared(),
    }


# ------------------------------------------------------------------------------------------------ what fails


def told(work: Callable[[], Any]) -> list[str]:
    """Type name and message of the fastmlp error that a call raises."""
    try:
        work()
    except UnavailableError as error:
        return [type(error).__name__, str(error)]
    raise AssertionError("nothing was raised")


def report_of_a_failure(stub: Stub, function: str, code: int) -> dict[str, Any]:
    """Error if a driver function fails from the start, the caller's context before and after, and remaining graphs."""

    def work() -> None:
        runtime = Watched(stub)
        if function == "cuLaunchKernel":
            plain_launch(runtime)
            return
        _, spec, course = CASES[2 if function.startswith("cuGraph") else 0]
        trained(CudaEngine(spec, runtime), spec, course)

    before = current()
    os.environ["CUDA_STUB_FAIL"] = f"{function}:{code}"
    error = told(work)
    del os.environ["CUDA_STUB_FAIL"]
    stub.forget()
    gc.collect()
    return {"error": error, "contexts": [before, current()], "graphs": stub.live()["graph"]}


def report(failures: list[tuple[str, int]]) -> dict[str, Any]:
    """Run everything. In the first case there is no current context, in the second another library's, which must remain."""
    stub = Stub()
    found: dict[str, Any] = {"version": cuda.bindings.__version__, "file": cuda.bindings.__file__, "cases": {}}
    for number, (name, spec, course) in enumerate(CASES):
        if number == 1:
            driver.cuCtxPushCurrent(driver.CUcontext(stub.other_context()))
        found["cases"][name] = report_of_case(stub, spec, course)
    found["runtime"] = report_of_the_runtime(stub)
    found["failures"] = {function: report_of_a_failure(stub, function, code) for function, code in failures}
    found["calls"] = {name: stub.calls(name) for name in functions_of(Path(runtime_module.__file__).read_text())}
    return found


if __name__ == "__main__":
    print(json.dumps(report(json.loads(sys.argv[1]))))
