"""Custom activations in every engine: results, precision, errors of the compiler, and the cache of compiled kernels."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import float32, float64, int32
from numba.types import UniTuple
from support.activations import BINARY, FORMULAS, MISH, ONE, SOFTSIGN, STEP
from support.engines import engine_of, make_course, run_course, same_bits, start_state
from support.many import same_training
from support.problems import problem, set_up
from support.processes import ROOT
from support.tolerances import EPS, check_against_reference

from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cpu.codegen.compiler import compiled_custom, from_python
from fastmlp.engines.cpu.kernels.formulas import activation_address
from fastmlp.engines.functions import array_activations
from fastmlp.errors import ConfigError
from fastmlp.nn.activations import ACTIVATIONS, Activation, register
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.training.api import train, train_many

CUDA_COMPILER = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
Z = np.random.default_rng(0).uniform(-6, 6, (7, 33)).astype(np.float32)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Activation]:
    """Run every test with an empty registry of custom activations, as in a new process."""
    empty: dict[str, Activation] = {}
    monkeypatch.setattr("fastmlp.nn.activations.CUSTOM", empty)
    return empty


# ------------------------------------------------------------------------------------------------ results


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_engine_equals_the_reference(every_backend: str, dropout: float) -> None:
    register(SOFTSIGN)
    network = Network((7, 9, 8, 6, 7, 4), [MISH, "softsign:0.5", "relu", STEP], dropout=dropout)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=8, threads=2)
    check_against_reference(every_backend, spec, make_course(network, 20))


def test_every_engine_uses_a_slope_that_is_not_the_derivative(every_backend: str) -> None:
    network = Network((7, 9, 4), BINARY)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=20)
    course, start = make_course(network, 20, 20, epochs=1), start_state(spec)
    states = [run_course(backend, spec, start, course)[0] for backend in (every_backend, "numpy")]
    np.testing.assert_allclose(states[0].parameters, states[1].parameters, rtol=0, atol=1e-6)
    (w, _), _ = network.views(states[0].parameters - start.parameters)
    assert np.abs(w).max() > 1e-3


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_of_arrays_equal_the_formulas(name: str, dtype: Any) -> None:
    activation, formula = FORMULAS[name]
    network = Network((7, 5, 3), activation)
    value, slope = array_activations(network)[name]
    a, z = 0.75, Z.astype(dtype)
    y = value(z, a)
    s = slope(z, y, a)
    assert y.dtype == s.dtype == dtype
    exact = formula(z.astype(np.float64), a)
    np.testing.assert_allclose(y, exact[0], rtol=16 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(s, exact[1], rtol=0, atol=16 * np.finfo(dtype).eps)


def activate(name: str, z: Any, a: float = 0.0) -> tuple[Any, Any]:
    """Call the CPU kernel of an activation; return f(z) and f'(z)."""
    y, s = z.copy(), np.full_like(z, np.nan)
    kernel = from_python(activation_address(name), 6, 1)
    kernel(y.ctypes.data, s.ctypes.data, z.shape[1], len(z), z.shape[1], z.shape[1], a)
    return y, s


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_copy_of_a_built_in_activation_has_the_same_bits(name: str, numba_backend: str) -> None:
    value, slope, default = ACTIVATIONS[name]
    copy = register(Activation(f"my-{name}", value, slope, default))
    assert same_bits(activate(copy, Z, 0.3), activate(name, Z, 0.3))
    spec = EngineSpec(Network((7, 9, 4), name), Optimizer("sgd"), batch_size=8, threads=1)
    other = EngineSpec(Network((7, 9, 4), copy), Optimizer("sgd"), batch_size=8, threads=1)
    course = make_course(spec.network, 20)
    state, results = run_course(numba_backend, spec, start_state(spec), course)
    assert same_bits(run_course(numba_backend, other, start_state(spec), course), (state, results))


def test_train_many_with_custom_activations(numba_backend: str) -> None:
    x, y = problem()
    settings = set_up(backend=numba_backend, epochs=2)
    jobs = [(Network((4, width, 3), activation), settings) for width in (5, 9) for activation in (MISH, SOFTSIGN, "tanh")]
    for (network, how), result in zip(jobs, train_many(jobs, (x, y), threads=2), strict=True):
        assert same_training(result, train(network, (x, y), settings=how))


# ------------------------------------------------------------------------------------------------ precision


def fast(z: Any, a: Any) -> Any:
    return ONE / (ONE + math.exp(-z))


def slow(z: Any, a: Any) -> Any:
    return 1.0 / (1.0 + math.exp(-1.0 * z))


def of_integers(z: Any, a: Any) -> Any:
    return 1 / (1 + math.exp(-z))


def logistic_slope(z: Any, y: Any, a: Any) -> Any:
    return 1.0 * y * (1.0 - y)


@pytest.mark.parametrize(("value", "returned"), [(fast, float32), (slow, float64), (of_integers, float64)])
def test_python_constants_make_a_function_float64(value: Callable[..., Any], returned: Any) -> None:
    dispatcher = compiled_custom(Activation("logistic-2", value, logistic_slope).formulas.value)
    dispatcher.compile((float32, float32))
    assert dispatcher.nopython_signatures[0].return_type == returned


@pytest.mark.parametrize(("value", "ulp"), [(fast, 3.0), (slow, 0.501), (of_integers, 3.0)])
def test_results_are_rounded_to_float32(value: Callable[..., Any], ulp: float) -> None:
    """A function with float64 constants is computed in float64, also by the functions of `math`, and rounded once."""
    z = np.linspace(-20, 20, 20_001).astype(np.float32)[None]
    y, s = activate(register(Activation("logistic-2", value, logistic_slope)), z)
    assert y.dtype == s.dtype == np.float32
    exact = 1 / (1 + np.exp(-z.astype(np.float64)))
    assert (np.abs(y - exact) <= ulp * np.spacing(exact.astype(np.float32))).all()
    assert (np.abs(s - y.astype(np.float64) * (1 - y.astype(np.float64))) <= EPS / 4).all()


def test_functions_of_math_may_be_imported_by_name() -> None:
    from math import exp, tanh

    import numpy as numeric

    def with_names(z: Any, a: Any) -> Any:
        return tanh(z) + exp(z)

    def with_attributes(z: Any, a: Any) -> Any:
        return math.tanh(z) + math.exp(z)

    def with_numpy(z: Any, a: Any) -> Any:
        return numeric.tanh(z) + numeric.exp(z)

    def slope(z: Any, y: Any, a: Any) -> Any:
        return ONE - math.tanh(z) * math.tanh(z) + math.exp(z)

    found, z = [], Z.astype(np.float64)
    for name, value in (("with-names", with_names), ("with-attributes", with_attributes), ("with-numpy", with_numpy)):
        found.append(activate(register(Activation(name, value, slope)), Z))
        y, s = found[-1]
        np.testing.assert_allclose(y, np.tanh(z) + np.exp(z), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(s, 1 - np.tanh(z) ** 2 + np.exp(z), rtol=1e-6, atol=1e-6)
    assert same_bits(found[0], found[1])  # both use the vectorized functions
    assert not same_bits(found[0], found[2])


# ------------------------------------------------------------------------------------------------ errors


def uses_a_dict(z: Any, a: Any) -> Any:
    return {"z": z}.get("z", str(a))


@pytest.mark.parametrize("backend", ["numpy", "numba", "torch"])
def test_a_function_that_numba_cannot_compile(backend: str) -> None:
    network = Network((7, 5, 3), Activation("uses-a-dict", uses_a_dict, lambda z, y, a: ONE))
    with (
        pytest.raises(ConfigError, match=r"activation 'uses-a-dict' cannot be compiled by Numba: \w*Error: ") as caught,
        engine_of(backend, EngineSpec(network, Optimizer("sgd"))) as engine,
    ):
        engine.forward(Z[:, :7])
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


# ------------------------------------------------------------------------------------------------ caches


def test_a_cached_kernel_is_never_used_for_other_functions(registry: dict[str, Activation]) -> None:
    """All definitions have the same name and use the same cache folder."""

    def times(factor: Any) -> tuple[Any, Any]:
        return activate(register(Activation("linear-2", lambda z, a: factor * z, lambda z, y, a: factor)), Z)

    for factor in (np.float32(2), np.float32(3), np.float32(2)):
        y, s = times(factor)
        assert np.array_equal(y, factor * Z)
        assert (s == factor).all()
        registry.clear()


def test_the_key_of_a_cuda_kernel_contains_the_code(registry: dict[str, Activation]) -> None:
    compiler = pytest.importorskip("fastmlp.engines.cuda.compiler")
    from fastmlp.engines.cuda.engine import SHAPE
    from fastmlp.engines.cuda.kernels.programs import PLAIN

    def entry() -> Any:
        return compiler.entry_of("train", PLAIN._replace(activations=("relu", "linear-2")), SHAPE, (9, 0))

    entries = []
    for factor in (2, 3, 2.0):
        register(Activation("linear-2", lambda z, a, k=factor: k * z, lambda z, y, a, k=factor: k))
        entries.append(entry())
        registry.clear()
    assert len(set(entries)) == 3
    with pytest.raises(ConfigError, match="unknown activation 'linear-2'"):
        entry()


PROGRAM = """
import json, sys
import numpy as np
import fastmlp
from fastmlp.engines.cpu.codegen import cache

hits, plain = [], cache.KernelCache.load_overload

def load_overload(self, *given):
    found = plain(self, *given)
    hits.extend([self.name.split()[1]] if found is not None and self.name.startswith("activate") else [])
    return found

cache.KernelCache.load_overload = load_overload
factor = np.float32(sys.argv[1])
double = fastmlp.Activation("mine", lambda z, a: factor * z, lambda z, y, a: factor)
x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
network = fastmlp.Network((4, 16, 3), activation=double)
settings = fastmlp.Settings(fastmlp.SGD(0.1), epochs=1, backend="numba", threads=2)
result = fastmlp.train(network, (x, np.arange(30) % 3), settings=settings)
print(json.dumps({"hits": hits, "loss": result.history[-1]["loss"]}))
"""


@pytest.mark.full
def test_processes_with_other_functions_of_the_same_name_share_a_cache_folder(tmp_path: Path) -> None:
    """The first process also compiles the training kernel in a fork."""
    found = []
    for factor in ("2", "3", "2"):
        command = [sys.executable, "-W", "error", "-c", PROGRAM, factor]
        environment = os.environ | {"FASTMLP_CACHE_DIR": str(tmp_path / "kernels"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0]["loss"] == found[2]["loss"] != found[1]["loss"]
    assert [one["hits"] for one in found] == [[], [], ["mine"]]


@CUDA_COMPILER
@pytest.mark.full
def test_cuda_kernels_with_custom_activations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels are compiled for a GPU that is not installed, in float32 and with Python constants."""
    from fastmlp.engines.cuda import compiler
    from fastmlp.engines.cuda.engine import SHAPE
    from fastmlp.engines.cuda.kernels import device
    from fastmlp.engines.cuda.kernels.passes import make_activate
    from fastmlp.engines.cuda.kernels.programs import PLAIN
    from fastmlp.errors import UnavailableError

    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))
    names = tuple(register(activation) for activation in (MISH, STEP, BINARY, SOFTSIGN))
    with compiler.standing_in((7, 5)):
        activate = make_activate(device, ("relu", *names))
        _, returned = device.cuda.compile_ptx(activate.py_func, (int32, float32, float32), device=True, cc=(7, 5))
    assert returned == UniTuple(float32, 2)
    built = compiler.compiled("train", PLAIN._replace(activations=("relu", *names)), SHAPE, (7, 5))
    assert built.cubin.startswith(b"\x7fELF")
    register(Activation("uses-a-dict", uses_a_dict, lambda z, y, a: ONE))
    with pytest.raises(UnavailableError, match="custom activation uses-a-dict"):
        compiler.compiled("train", PLAIN._replace(activations=("relu", "uses-a-dict")), SHAPE, (7, 5))
