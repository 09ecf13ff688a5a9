"""Compilation of kernels: functions are compiled once, unused code is omitted, and kernels are called by address."""

from __future__ import annotations

import functools
import json
import operator
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import types
from numba.core.typing.context import Context
from support.cpu import run_script

from fastmlp.engines.cpu.codegen import compiler
from fastmlp.engines.cpu.codegen.compiler import RememberedTypes, address_of, compiled
from fastmlp.engines.cpu.codegen.intrinsics import array_at, call
from fastmlp.engines.kernel_cache import read_entry, write_entry


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))


@pytest.mark.parametrize(("called", "wrapper"), [("python", "cpython"), ("address", "cfunc")])
def test_a_kernel_is_its_code_and_one_way_in(called: str, wrapper: str) -> None:
    """A compiled kernel has its own code and one wrapper, without code of inlined functions and unused wrappers."""
    twice = compiled(lambda x: x + x)
    fourfold = compiled(lambda x: twice(twice(x)))
    kernel = compiled(lambda x: fourfold(x), called=called)  # noqa: PLW0108 - the wrapper is tested
    kernel.compile((types.int64,))
    (assembly,) = kernel.inspect_asm().values()
    code, way_in = re.findall(r"\.type\s+(\S+),\s*@function", assembly)
    assert wrapper not in code
    assert wrapper in way_in


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.uint32])
def test_a_call_by_address_hands_over_integers_floats_and_arrays(dtype: Any) -> None:
    def scaled(source, to, n, factor):  # type: ignore[no-untyped-def]
        numbers, results = array_at(source, n, dtype), array_at(to, n, np.float32)
        for i in range(n):
            results[i] = np.float32(numbers[i]) * factor

    address = address_of(scaled, f"scaled {dtype.__name__}", 3, 1)

    def caller(source, to, factor):  # type: ignore[no-untyped-def]
        call(address, (source.ctypes.data, to.ctypes.data, len(source), factor))

    source, to = np.arange(9).astype(dtype), np.full(11, -1, np.float32)
    compiled(caller, called="python")(source, to, np.float32(0.5))
    np.testing.assert_array_equal(to, [*(0.5 * source), -1, -1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_llvm_hands_over_machine_code_waits_until_all_is_compiled(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals are deferred until compilation ends, since an exception in a callback from LLVM would be lost."""
    kernel, before = compiler.cached(lambda x: x + 1, "next"), signal.getsignal(number)
    engine = kernel.targetctx.codegen()._engine._ee
    hand_over = engine._object_cache_notify

    def interrupted(module: Any, machine_code: Any) -> None:
        signal.raise_signal(number)
        hand_over(module, machine_code)

    monkeypatch.setattr(engine, "_object_cache_notify", interrupted)
    signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            kernel(3)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    monkeypatch.undo()
    assert len(kernel.overloads) == 1
    assert kernel(3) == 4


def test_a_second_ctrl_c_ends_compiling_at_once() -> None:
    def compile_twice_interrupted(signature: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        compiler.undisturbed(compile_twice_interrupted)(())


def test_a_signal_while_a_kernel_is_written_takes_effect_afterwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rename = os.replace

    def replace(source: Any, target: Any, **folders: int) -> None:
        signal.raise_signal(signal.SIGINT)
        rename(source, target, **folders)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_entry(tmp_path / "kernels" / "a.kernel", b"code")
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["a.kernel"]
    assert read_entry(tmp_path / "kernels" / "a.kernel") == b"code"


def test_the_type_of_a_call_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba resolves the type of a call once for each function and each combination of argument types."""
    asked: Counter[tuple[str, ...]] = Counter()
    answer = Context.resolve_function_type

    def counted(self: Any, func: Any, args: Any, kws: Any) -> Any:
        if isinstance(func, types.Function):
            asked[str(func.key[0]), *map(str, args)] += 1
        return answer(self, func, args, kws)

    monkeypatch.setattr(Context, "resolve_function_type", counted)
    monkeypatch.setattr(compiler, "remembered_types", functools.cache(RememberedTypes))
    part = compiled(lambda x: x + x + x)
    kernel = compiled(lambda x, y: part(x) + x + part(y) * x, called="python")
    assert kernel(2, 0.5) == 2 * 3 + 2 + 1.5 * 2
    assert asked[str(operator.add), "int64", "int64"] == asked[str(operator.add), "float64", "float64"] == 1
    assert asked[str(operator.mul), "float64", "int64"] == 1


# The script prints every function that Numba compiles for a network that needs most of them, with its argument types.
PIECES = """
import json, re
import numpy as np
from numba.core.event import install_recorder
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.codegen.compiler import compiled
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

def both(x):
    return plus(x) + plus(3)

network = Network((20, 12, 3), "tanh", dropout=0.2)
x, y = np.zeros((9, 20), np.float32), np.zeros(9, np.int32)
engine = NumbaEngine(EngineSpec(network, Optimizer("adam", max_grad_norm=1.0), batch_size=4, threads=1))
engine.load(State(network.initial_parameters(0), np.zeros((2, network.parameters), np.float32), 0))
plus = compiled(lambda x: x + 1)
with install_recorder("numba:compile") as recorder:
    engine.train(x, y, np.arange(9), np.full(3, 0.1))
    engine.forward(x)
    compiled(both, called="python")(np.int64(2))
started = [event.data for _, event in recorder.buffer if event.is_start]
own = [data for data in started if data["dispatcher"].py_func.__module__.startswith(("fastmlp", "__main__"))]
names = [re.sub("_[0-9a-f]{16}$", "", data["dispatcher"].py_func.__qualname__) for data in own]
print(json.dumps([[name, [str(kind) for kind in data["args"]]] for name, data in zip(names, own)]))
"""


@pytest.mark.full
def test_pieces_of_kernels_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are not compiled again for literal arguments or other kernels, and no address is typed as float64."""
    monkeypatch.setenv("NUMBA_OPT", "0")
    pieces = [(name, kinds) for name, kinds in json.loads(run_script(PIECES))]
    times = Counter(name for name, _ in pieces)
    assert times.pop("<lambda>") == 2  # also called with a literal, so the check must find it twice
    assert {"make_train.<locals>.train", "make_forward.<locals>.forward", "make_predict.<locals>.predict"} <= set(times)
    assert [name for name, count in times.items() if count > 1] == []
    assert [name for name, kinds in pieces if "float64" in kinds] == ["clip"]
