"""Train with both kernel designs and provoke errors, with cuda.bindings and the stub driver; print a JSON report.

test_bindings.py starts this program and checks the report. Only the number of kernel arguments is checked here, since the stub
would read invalid memory if there were too few.
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
LABELS = EngineSpec(Network(SIZES, label_smoothing=0.1), Optimizer("sgd", max_grad_norm=1.5), batch_size=9, seed=SEED)
TARGETS = EngineSpec(Network(SIZES), Optimizer("sgd"), batch_size=9, seed=SEED)
LARGE = EngineSpec(Network(SIZES), Optimizer("sgd"), batch_size=SMALL_BATCH + 1, seed=SEED)
# Name, spec, and arguments of `Engine.train`. The cases need five kernels: two that train in one launch, one that trains with
# tiles, and one for prediction in each design.
CASES: list[tuple[str, EngineSpec, Course]] = [
    ("small, uint8, labels", LABELS, make_course(LABELS.network, 22, 9, epochs=1, uint8=True)),
    ("small, float32, targets", TARGETS, make_course(TARGETS.network, 400, 9, epochs=1, targets=True, weighted=True)),
    ("tiles, float32, targets", LARGE, make_course(LARGE.network, 400, LARGE.batch_size, epochs=1, targets=True)),
]


# ------------------------------------------------------------------------------------------------ intended launches


def meant_bytes(value: Any, kind: str) -> list[bytes]:
    """Return the kernel parameters of an argument as bytes; in Numba's layout, an array has seven parameters."""
    if isinstance(value, Handle):
        each = value.dtype.itemsize
        return [struct.pack("<Q", word) for word in (0, 0, value.size, each, value.address, value.size, each)]
    return [struct.pack(FORMATS[kind], value)]


class RecordingRuntime(Runtime):
    """A runtime that records each intended launch, for comparison with the launches received by the stub."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.meant: list[Meant] = []
        super().__init__()

    def program(self, name: str, kind: Any, shape: Any) -> Program:
        built = compiled(name, kind, shape, self.capability)
        self.stub.expect(built.entry, parameters(built.cubin, built.entry))
        return super().program(name, kind, shape)

    def launch(self, launch: Launch) -> None:
        self.record_intended(launch, "cooperative" if launch.together else "plain", -1)
        super().launch(launch)

    def record(self, launches: Sequence[Launch]) -> Graph:
        for number, launch in enumerate(launches):
            self.record_intended(launch, "in a graph", len(self.meant) - 1 if number else -1)
        return super().record(launches)

    def record_intended(self, launch: Launch, how: str, after: int) -> None:
        built = launch.program.built
        pairs = zip(launch.arguments, built.arguments, strict=True)
        wanted = [one for value, kind in pairs for one in meant_bytes(value, kind)]
        layout, given = parameters(built.cubin, built.entry), len(values_of(launch))
        if not given == len(wanted) == len(layout):
            raise AssertionError(f"{given} parameters instead of {len(wanted)}; the kernel has {len(layout)}")
        shape = [launch.blocks, 1, 1, built.threads, 1, 1, 0]
        self.meant.append(Meant(built.entry, shape, how, after, wanted, layout))

    def compared(self) -> dict[str, Any]:
        """Return the number of launches by type and the mismatches, and reset the records."""
        received, meant = self.stub.received(), self.meant
        self.meant = []
        self.stub.forget()
        return {"launches": Counter(one.how for one in received), "wrong": mismatches(received, meant)}


# ------------------------------------------------------------------------------------------------ trainings


def current() -> int:
    """Return the current context of this thread, or 0 if there is none."""
    result, context = driver.cuCtxGetCurrent()
    return int(context) if int(result) == 0 else 0


def train_and_predict(engine: CudaEngine, spec: EngineSpec, course: Course) -> None:
    """Train twice, the second time reusing the recorded graph if there is one, predict once, and evaluate once."""
    engine.load(start_state(spec))
    for _ in range(2):
        engine.train(*course)
    engine.forward(course.x)
    engine.evaluate(engine.hold(course.x, course.y))


def report_of_case(stub: Stub, spec: EngineSpec, course: Course) -> dict[str, Any]:
    """Train and predict; report live objects before and after closing the engine, and the context after each call."""
    contexts = [current()]
    runtime = RecordingRuntime(stub)
    engine = CudaEngine(spec, runtime)
    contexts.append(current())
    train_and_predict(engine, spec, course)
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
    """Report on the parts of the runtime that training and prediction do not use."""
    runtime = RecordingRuntime(stub)
    plain_launch(runtime)
    runtime.wait()
    array = np.arange(7, dtype=np.float32)
    return {
        "device": [runtime.name, list(runtime.capability), runtime.blocks],
        "facts": runtime.facts(),
        "there and back": runtime.get(runtime.put(array), 2, 3).tolist(),
        "full": error_of(lambda: runtime.empty(1 << 40, np.float32)),
        "no machine code": error_of(lambda: runtime.checked_call("cuModuleLoadData", b"no machine code")),
        **runtime.compared(),
    }


# ------------------------------------------------------------------------------------------------ failures


def error_of(work: Callable[[], Any]) -> list[str]:
    """Return the type name and the message of the UnavailableError raised by `work`."""
    try:
        work()
    except UnavailableError as error:
        return [type(error).__name__, str(error)]
    raise AssertionError("no error was raised")


def report_of_a_failure(stub: Stub, function: str, code: int) -> dict[str, Any]:
    """Let a driver function fail; report the error, the current context before and after, and the remaining graphs."""

    def work() -> None:
        runtime = RecordingRuntime(stub)
        if function == "cuLaunchKernel":
            plain_launch(runtime)
            return
        _, spec, course = CASES[2 if function.startswith("cuGraph") else 0]
        train_and_predict(CudaEngine(spec, runtime), spec, course)

    before = current()
    os.environ["CUDA_STUB_FAIL"] = f"{function}:{code}"
    error = error_of(work)
    del os.environ["CUDA_STUB_FAIL"]
    stub.forget()
    gc.collect()
    return {"error": error, "contexts": [before, current()], "graphs": stub.live()["graph"]}


def report(failures: list[tuple[str, int]]) -> dict[str, Any]:
    """Return the report. The first case starts without a CUDA context, later cases with that of another library."""
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
