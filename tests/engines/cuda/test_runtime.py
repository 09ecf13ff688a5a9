"""Tests of cuda/runtime.py with a fake driver: arguments are passed correctly, memory is freed, errors are one line long."""

from __future__ import annotations

import gc
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("greenlet", reason="the simulator of backend 'cuda' needs greenlet: pip install greenlet")

from support.cli import call, forget_settings, ok, refused
from support.cuda import CLIPPED, SPEC
from support.cuda_simulator import ALL_LANES
from support.cuda_simulator import Runtime as Simulated
from support.engines import make_course, same_bits, start_state
from support.fake_driver import WHOLE_MEMORY, FakeDriver, Result, stand_in
from support.tolerances import check_course, expected

from fastmlp.engines import fastest
from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cuda import compiler, load_cuda, load_driver
from fastmlp.engines.cuda.compiler import Built, packed, unpacked
from fastmlp.engines.cuda.engine import CudaEngine, usable
from fastmlp.engines.cuda.kernels.programs import PLAIN, Shape
from fastmlp.engines.cuda.runtime import Launch, NoDeviceError, Runtime
from fastmlp.errors import UnavailableError
from fastmlp.models.model import load

pytestmark = pytest.mark.full


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Fake driver of a GPU with warps of 32 lanes."""
    return stand_in(monkeypatch)


@pytest.mark.parametrize("small", [256, 0])
@pytest.mark.parametrize("spec", [SPEC, CLIPPED])
def test_an_engine_over_the_driver(spec: EngineSpec, small: int, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in one launch or as a graph, prediction and evaluation have the same results as in the simulator."""
    monkeypatch.setattr("fastmlp.engines.cuda.engine.SMALL_BATCH", small)
    course = make_course(spec.network, 22, spec.batch_size, epochs=1, weighted=True)
    engine, other = (CudaEngine(spec, one) for one in (Runtime(driver), Simulated(3, 2, ALL_LANES)))
    for one in (engine, other):
        one.load(start_state(spec))
    results = engine.train(*course)
    check_course(expected(spec, start_state(spec), course), engine.state(), results)
    assert same_bits(other.train(*course), results)
    assert same_bits(other.state(), engine.state())
    assert same_bits(other.forward(course.x), engine.forward(course.x))
    held, same = (one.hold(course.x, course.y) for one in (engine, other))
    assert same_bits(tuple(other.evaluate(same)), tuple(engine.evaluate(held)))
    assert driver.graphs == (0 if small else 1)
    assert driver.used() > 0
    engine.close()  # frees memory although `held` exists
    gc.collect()
    assert (driver.used(), driver.graphs) == (0, 0)


def test_held_rows_are_freed_with_their_handle(driver: FakeDriver) -> None:
    course, engine = make_course(SPEC.network, 22), CudaEngine(SPEC, Runtime(driver))
    engine.load(start_state(SPEC))
    engine.evaluate(engine.hold(course.x, course.y))
    gc.collect()
    before = driver.used()
    held = engine.hold(course.x, course.y)
    assert driver.used() >= before + course.x.nbytes + course.y.nbytes
    del held
    gc.collect()
    assert driver.used() == before


def test_what_a_device_is(driver: FakeDriver) -> None:
    runtime = Runtime(driver)
    assert (runtime.name, runtime.capability, runtime.blocks) == ("A card", (9, 0), 3)


def test_arrays_there_and_back(driver: FakeDriver) -> None:
    runtime = Runtime(driver)
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    handle = runtime.put(array[:, ::-1])
    assert np.array_equal(runtime.get(handle, 4, 3), [7, 6, 5])
    runtime.fill(handle, array)
    assert np.array_equal(runtime.get(handle), np.arange(12))
    runtime.fill(handle, array[0], 6)
    assert np.array_equal(runtime.get(handle, 4), [4, 5, 0, 1, 2, 3, 10, 11])
    assert runtime.get(runtime.put(np.empty(0, np.float32))).shape == (0,)


# ------------------------------------------------------------------------------------------------ errors


def test_memory_that_is_full_tells_how_much_is_wanted_and_free(driver: FakeDriver) -> None:
    runtime = Runtime(driver)
    held = runtime.empty(1000, np.float32)
    with pytest.raises(UnavailableError) as caught:
        runtime.empty(WHOLE_MEMORY, np.float32)
    assert str(caught.value) == (
        "the GPU's memory is full: 4,294,967,296 bytes needed, 1,073,737,824 of 1,073,741,824 free; "
        "use fewer rows, a smaller batch size, or backend 'numba'"
    )
    assert held.size == 1000


@pytest.mark.parametrize(
    "function", ["cuMemAlloc", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuModuleLoadData", "cuLaunchCooperativeKernel"]
)
def test_a_device_that_fails_is_a_line(function: str, driver: FakeDriver) -> None:
    course = make_course(SPEC.network, 22, 9, epochs=1)
    engine = CudaEngine(SPEC, Runtime(driver))
    engine.load(start_state(SPEC))
    driver.fails[function] = Result.LAUNCH_FAILED
    with pytest.raises(
        UnavailableError,
        match=rf"^the GPU failed in {function}: launch failed \(error 719\); .*use backend 'numba'; ",
    ):
        engine.train(*course)


def test_kernels_that_the_driver_cannot_load_tell_what_to_install(driver: FakeDriver) -> None:
    engine = CudaEngine(SPEC, Runtime(driver))
    engine.load(start_state(SPEC))
    driver.fails["cuModuleLoadData"] = Result.NO_BINARY_FOR_GPU
    with pytest.raises(UnavailableError, match=r"kernels may be newer than the driver: pip install 'fastmlp\[cuda13\]'"):
        engine.train(*make_course(SPEC.network, 22, 9, epochs=1))


def test_a_driver_that_is_too_old(driver: FakeDriver) -> None:
    driver.version = 11080
    with pytest.raises(
        UnavailableError, match=r"^the driver supports CUDA up to 11.8, but 12.0 is needed; update it, or use backend"
    ):
        Runtime(driver)


@pytest.mark.parametrize("function", ["cuGraphCreate", "cuGraphAddKernelNode", "cuGraphInstantiate", "cuGraphLaunch"])
def test_of_a_graph_that_fails_the_first_error_is_told_and_nothing_is_left(
    function: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first error of a graph that fails is raised, whatever later calls of the driver return."""
    monkeypatch.setattr("fastmlp.engines.cuda.engine.SMALL_BATCH", 0)
    engine = CudaEngine(SPEC, Runtime(driver))
    engine.load(start_state(SPEC))
    driver.fails = {function: Result.OUT_OF_MEMORY}
    with pytest.raises(UnavailableError, match=rf"^the GPU failed in {function}: .* \(error 2\); use backend 'numba'"):
        engine.train(*make_course(SPEC.network, 22, 9, epochs=1))
    gc.collect()
    assert (driver.graphs, driver.contexts) == (function == "cuGraphLaunch", [])  # a complete graph is kept
    driver.fails |= {"cuGraphDestroy": Result.LAUNCH_FAILED, "cuCtxPopCurrent": Result.NO_DEVICE}
    with pytest.raises(UnavailableError, match=rf"^the GPU failed in {function}: "):
        engine.train(*make_course(SPEC.network, 22, 9, epochs=1))


def test_an_array_that_is_given_back_while_a_graph_is_built_does_not_disturb_it(driver: FakeDriver) -> None:
    """Garbage collection may free memory while a graph is built, which would be an error during stream capture."""
    runtime, add, freed = Runtime(driver), driver.cuGraphAddKernelNode, []
    program = runtime.program("barriers", PLAIN, Shape(64, 8))
    counter = runtime.put(np.zeros(1, np.uint64))
    garbage = [runtime.put(np.zeros(9, np.float32))]

    def collect(*arguments: Any) -> Any:
        while garbage:
            freed.append(garbage.pop().address)
        return add(*arguments)

    driver.cuGraphAddKernelNode = collect  # type: ignore[method-assign]
    graph = runtime.record([Launch(program, 3, (counter, 2)) for _ in range(2)])
    assert freed
    assert not set(freed) & set(driver.memory)
    graph()
    assert runtime.get(counter)[0] == 2 * 2 * 3
    assert not any("Capture" in call for call in driver.calls)


# ------------------------------------------------------------------------------------------------ contexts


def test_the_device_that_the_caller_uses_is_current_again_after_every_call(driver: FakeDriver) -> None:
    """Each call, including calls from destructors, uses the engine's context and then restores the caller's."""
    runtime = Runtime(driver)
    driver.contexts = ["another library's"]
    engine = CudaEngine(SPEC, runtime)
    engine.load(start_state(SPEC))
    engine.train(*make_course(SPEC.network, 22, 9, epochs=1))
    graph = runtime.record([])
    graph()
    runtime.wait()
    used = driver.used()
    assert (used > 0, driver.graphs, driver.contexts) == (True, 1, ["another library's"])
    engine.close()
    del graph
    gc.collect()
    assert (driver.used(), driver.graphs, driver.contexts) == (0, 0, ["another library's"])


def test_a_failure_leaves_the_callers_device_too(driver: FakeDriver) -> None:
    runtime = Runtime(driver)
    driver.contexts = ["another library's"]
    held = runtime.put(np.zeros(3, np.float32))
    driver.fails = dict.fromkeys(("cuMemcpyHtoD", "cuMemFree"), Result.LAUNCH_FAILED)
    with pytest.raises(UnavailableError, match="a kernel crashed, and this process can no longer use the GPU; use"):
        runtime.put(np.zeros(3, np.float32))
    assert driver.contexts == ["another library's"]
    driver.fails = {"cuCtxPushCurrent": Result.LAUNCH_FAILED}
    del held  # must neither free memory nor pop the context while another library's context is current
    gc.collect()
    assert driver.contexts == ["another library's"]


def test_an_error_number_unknown_to_the_bindings_gives_one_line_and_keeps_the_callers_device(driver: FakeDriver) -> None:
    """The bindings raise KeyError or ValueError for unknown error numbers; later errors must not hide the first one."""
    runtime = Runtime(driver)
    driver.contexts = ["another library's"]
    held, pop = runtime.put(np.zeros(3, np.float32)), driver.cuCtxPopCurrent

    def unknown(*given: Any) -> Any:
        raise KeyError(12345)

    def popped() -> Any:
        pop()
        raise ValueError("6789 is not a valid CUresult")

    driver.cuMemcpyHtoD = driver.cuMemFree = unknown  # type: ignore[method-assign]
    driver.cuCtxPopCurrent = popped  # type: ignore[method-assign]
    with pytest.raises(
        UnavailableError, match=r"in cuMemcpyHtoD: an error code that cuda-bindings does not define \(12345\); use backend"
    ):
        runtime.fill(held, np.zeros(3, np.float32))
    del held  # an exception in the destructor would fail the test
    gc.collect()
    assert driver.contexts == ["another library's"]


# ------------------------------------------------------------------------------------------------ backend "auto"


def chosen(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> str:
    """Return the backend that "auto" selects if `runtime` creates the runtime of the GPU."""
    monkeypatch.setattr("fastmlp.engines.cuda.engine.default_runtime", runtime)
    monkeypatch.setattr("fastmlp.engines.cuda.engine.usable", usable)  # simulations replace it
    usable.cache_clear()
    try:
        return fastest(SPEC)
    finally:
        usable.cache_clear()


def test_auto_takes_a_gpu_on_which_a_kernel_ran(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, lambda: Runtime(driver)) == "cuda"
    assert {"cuModuleLoadData", "cuLaunchCooperativeKernel"} <= set(driver.calls)


@pytest.mark.parametrize(
    "fault", ["compiler", "cuModuleLoadData", "cuLaunchCooperativeKernel", "cuMemcpyDtoH", "driver", "count"]
)
def test_else_the_cpu_with_a_note(fault: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend "auto" selects the CPU and warns once if the GPU cannot run a kernel, for example without NVVM."""
    if fault == "compiler":

        def missing(*given: Any) -> Any:
            raise UnavailableError("a kernel could not be compiled: no NVVM")

        monkeypatch.setattr("fastmlp.engines.cuda.runtime.compiled", missing)
    elif fault == "driver":
        driver.version = 11080
    elif fault == "count":
        monkeypatch.setattr(Runtime, "launch", lambda *given: None)
    else:
        driver.fails[fault] = Result.LAUNCH_FAILED
    with pytest.warns(RuntimeWarning, match="^backend 'cuda' cannot be used, falling back to the CPU: ") as told:
        assert chosen(monkeypatch, lambda: Runtime(driver)) == "numba"
    assert len(told) == 1


def test_a_machine_without_a_gpu_needs_no_note(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.fails["cuInit"] = Result.NO_DEVICE
    assert chosen(monkeypatch, lambda: Runtime(driver)) == "numba"


def test_without_a_driver(driver: FakeDriver) -> None:
    def missing(flags: int) -> Any:
        raise RuntimeError("libcuda.so.1:\n  cannot open shared object file")

    driver.cuInit = missing  # type: ignore[method-assign]
    with pytest.raises(
        NoDeviceError, match=r"needs an NVIDIA GPU and its driver \(libcuda.so.1: cannot open shared object file\)"
    ):
        Runtime(driver)


def test_without_a_device(driver: FakeDriver) -> None:
    driver.fails["cuInit"] = Result.NO_DEVICE
    with pytest.raises(NoDeviceError) as caught:
        Runtime(driver)
    reason = "the GPU failed in cuInit: no device (error 100)"
    remedy = "use backend 'numba'; `fastmlp doctor` shows what is missing"
    assert str(caught.value) == f"backend 'cuda' needs an NVIDIA GPU and its driver ({reason}); {remedy}"


@pytest.mark.parametrize(("load", "package"), [(load_cuda, "numba_cuda"), (load_driver, "cuda.bindings")])
def test_a_package_that_is_missing(load: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(UnavailableError, match=r"pip install 'fastmlp\[cuda13\]'"):
        load()


def test_a_kernel_that_cannot_be_compiled_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise ValueError("NVVM:\n no such thing")

    monkeypatch.setattr(compiler, "lowered", broken)
    kind = CudaEngine(SPEC, Simulated()).kernel_spec(np.empty((1, 20), np.float32), np.empty(1))
    with pytest.raises(
        UnavailableError, match=r"compute capability 6.1 could not be compiled \(ValueError: NVVM: no such thing\); use backend"
    ):
        compiler.compiled("train", kind, Shape(), (6, 1))


def test_an_argument_of_another_type_is_refused(driver: FakeDriver) -> None:
    engine = CudaEngine(SPEC, Runtime(driver))
    engine.load(start_state(SPEC))
    course = make_course(SPEC.network, 22, 9, epochs=1)
    with pytest.raises(TypeError, match=r"argument 4 of a kernel is float64\[\], not float32\[\]"):
        engine.train(*course._replace(x=course.x.astype(np.float64)))


def test_kernels_as_bytes() -> None:
    built = Built(b"\x7fELF\n\n\0", "entry", ("float32[]", "int32"), 256, 255, 8192, 0)
    assert unpacked(packed(built)) == built


# ------------------------------------------------------------------------------------------------ interrupted runs


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Options of a short training run that saves a checkpoint in each epoch."""
    forget_settings(monkeypatch)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(60, 6)).astype(np.float32), y=np.arange(60) % 3)
    data = ["--data", str(tmp_path / "rows.npz"), "--val-count", "12", "--batch-size", "16", "--hidden", "8"]
    return [*data, "--epochs", "6", "--save-every", "1"]


def check_what_is_left(run: Path, flags: list[str]) -> None:
    """Check that the last checkpoint is complete and that this process can still train on the CPU."""
    kept = sorted((run / "models").iterdir())
    assert kept
    assert load(kept[-1], backend="numba").network.sizes == (6, 8, 3)
    assert "epoch 6/6" in ok("train", "--backend", "numba", *flags, "--patience", "0", "--out", f"{run}-cpu").output


class Dying(Simulated):
    """A simulated GPU that fails from its fifth kernel launch on."""

    def launch(self, launch: Any) -> None:
        if self.seed > 4:
            raise UnavailableError("the GPU failed in cuLaunchKernel: lost (error 719); use backend 'numba'")
        super().launch(launch)


def test_a_lost_device_leaves_checkpoints_and_the_process(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fastmlp.engines.cuda.engine.default_runtime", Dying)
    line = refused(4, "train", "-q", "--backend", "cuda", *flags, "--out", tmp_path / "a")
    assert line == "the GPU failed in cuLaunchKernel: lost (error 719); use backend 'numba'"
    check_what_is_left(tmp_path / "a", flags)


class Interrupted(Simulated):
    """A simulated GPU whose fourth kernel launch is interrupted by Ctrl-C."""

    def launch(self, launch: Any) -> None:
        if self.seed == 4:
            signal.raise_signal(signal.SIGINT)
        super().launch(launch)


def test_ctrl_c_leaves_the_best_weights_checkpoints_and_the_process(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fastmlp.engines.cuda.engine.default_runtime", Interrupted)
    result = call("train", "--backend", "cuda", *flags, "--out", tmp_path / "a")
    assert result.exit_code == 130
    assert re.search(r"\ninterrupted at epoch (\d) \(best epoch \1\): ", result.stderr)
    assert load(tmp_path / "a", backend="numpy").network.sizes == (6, 8, 3)
    check_what_is_left(tmp_path / "a", flags)
