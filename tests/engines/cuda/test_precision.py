"""Simulated tensor-core products in tf32 and bf16: errors are within proven bounds, but larger than those of float32.

A precision with p significand bits, including the implicit bit, has the unit roundoff u = 2^-p. Operands are rounded once, to
nearest. A product of two rounded operands has at most 2 p = 22 bits, so float32 represents it exactly; no product here is close
to underflow. A float32 sum of K terms has an error of less than K eps times the sum of the magnitudes, where eps = 2^-23, in
any order of summation, whether sums are rounded or truncated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from support.cuda import ROUNDED, ROWS, SMALL_TILES, check_product, product_bound, rounded, roundoff

pytest.importorskip("greenlet", reason="the simulator of backend 'cuda' needs greenlet: pip install greenlet")

from support import cuda_simulator
from support.cuda_simulator import ALL_LANES, FEW_LANES, Runtime
from support.engines import Course, exact_spec, same_bits, start_state
from support.tolerances import ELEMENTWISE, EPS, excess

from fastmlp.engines import BACKENDS, make_engine
from fastmlp.engines.base import PRECISIONS, EngineSpec
from fastmlp.engines.cuda.engine import TILES, CudaEngine
from fastmlp.engines.cuda.kernels.tensor_cores import MMA_TILES
from fastmlp.engines.cuda.kernels.tiled import make_arithmetic
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.errors import ConfigError, UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

pytestmark = pytest.mark.full

NETWORK = Network((35, 19, 5), "tanh")


def with_ones(y: Any) -> Any:
    return np.c_[y, np.ones(len(y))]


# ------------------------------------------------------------------------------------------------ products


@pytest.mark.parametrize("across", [(True, False), (True, True), (False, False), (False, True)])
@pytest.mark.parametrize("precision", ROUNDED)
def test_products_of_rounded_operands(precision: str, across: tuple[bool, bool]) -> None:
    for seed, tile in zip((0, -1, 5), SMALL_TILES[precision], strict=True):
        check_product(precision, tile, across, seed)


@pytest.mark.parametrize("precision", ROUNDED)
def test_products_by_the_tiles_that_a_device_gets(precision: str) -> None:
    check_product(precision, MMA_TILES[precision], (True, False), 2)


def test_rounding_is_that_of_a_device() -> None:
    """The simulator rounds like a GPU: ties and values near ties of both signs, infinities and NaN."""
    x = np.float32([1 + 2**-11, -1 - 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 0.1, -(1 + 2**-8 + 2**-20), 0, -np.inf])
    tf32 = np.array([cuda_simulator.tf32_of(one) for one in x]).view(np.float32)
    bf16 = np.array([cuda_simulator.bf16_pair(np.float32(7), one) & np.uint32(0xFFFF0000) for one in x]).view(np.float32)
    assert tf32[:2].tolist() == [1 + 2**-10, -1 - 2 * 2**-10]
    assert bf16[2:4].tolist() == [1, 1 + 2**-6]
    for found, precision in ((tf32, "tf32"), (bf16, "bf16")):
        assert np.array_equal(found, rounded(precision, x))
    assert np.isnan(cuda_simulator.tf32_of(np.float32(np.nan)).view(np.float32))
    assert cuda_simulator.bf16_pair(np.float32(1), np.float32(np.nan)) == 0x7FFF3F80


def test_tiles_that_tensor_cores_cannot_fill_are_refused() -> None:
    for wrong in ({"packed": 1}, {"high": 1}, {"wide": 3}, {"terms": 24}, {"rows": 48}):
        with pytest.raises(ValueError, match="tensor cores cannot multiply"):
            make_arithmetic(ALL_LANES, MMA_TILES["bf16"]._replace(**wrong), "bf16")
    with pytest.raises(ValueError, match="with 4 lanes"):
        make_arithmetic(FEW_LANES, MMA_TILES["tf32"], "tf32")


# ------------------------------------------------------------------------------------------------ a step and a forward pass


def course_of(rows: int) -> Course:
    rng = np.random.default_rng([rows, 4])
    x, y = rng.normal(size=(rows, NETWORK.sizes[0])).astype(np.float32), rng.integers(0, NETWORK.sizes[-1], rows)
    return Course(x, y.astype(np.int32), rng.permutation(rows), np.ones(1))


def bounds_of(parameters: Any, course: Course, u: float) -> tuple[Any, list[Any]]:
    """Return error bounds of the output pre-activations of `NETWORK`, and of its parameters after a step with learning rate 1.

    The derivative of tanh is at most 1 and its second derivative at most 0.77 in magnitude; a softmax probability changes by at
    most half the largest change of a pre-activation in its row.
    """
    (w1, b1), (w2, b2) = NETWORK.views(parameters.astype(np.float64))
    x, t = course.x.astype(np.float64), np.eye(NETWORK.sizes[-1])[course.y]
    off_z1 = product_bound(with_ones(x), np.r_[w1, b1[None]], u)
    y = np.tanh(x @ w1 + b1)
    slope, off_y, off_slope = 1 - y * y, off_z1 + ELEMENTWISE * EPS, 0.77 * off_z1 + ELEMENTWISE * EPS
    z = y @ w2 + b2
    off_z = product_bound(with_ones(y), np.r_[w2, b2[None]], u, np.c_[off_y, np.zeros(len(x))])
    share = np.exp(z - z.max(axis=1, keepdims=True))
    dz = (share / share.sum(axis=1, keepdims=True) - t) / len(x)
    off_dz = (0.5 * off_z.max(axis=1, keepdims=True) + ELEMENTWISE * EPS) / len(x) + 0 * dz
    back, off_back = dz @ w2.T, product_bound(dz, w2.T, u, off_dz)
    delta = back * slope
    off_delta = (np.abs(back) + off_back) * (slope + off_slope) * (1 + ELEMENTWISE * EPS) - np.abs(delta)
    bounds = []
    for inputs, off, gradient, off_gradient in ((x, 0 * x, delta, off_delta), (y, off_y, dz, off_dz)):
        factor, off_factor = with_ones(inputs).T, np.c_[off, np.zeros(len(x))].T
        bounds.append(product_bound(factor, gradient, u, off_factor, off_gradient))
    whole = [np.abs(np.r_[w, b[None]]) for w, b in ((w1, b1), (w2, b2))]
    # the update itself is rounded too; gradients are at most 1 here
    return off_z, [bound + EPS * (magnitude + 1) for bound, magnitude in zip(bounds, whole, strict=True)]


def check_step(precision: str, seed: int, rows: int = ROWS) -> tuple[float, float]:
    """Check a forward pass and a step against their bounds; return the largest errors as fractions of the bounds.

    With tf32 and bf16, errors must be much larger than with float32; otherwise products were not rounded to that precision.
    """
    spec = EngineSpec(NETWORK, Optimizer("sgd"), batch_size=rows, precision=precision)
    course, start = course_of(rows), start_state(spec)
    words = FEW_LANES if precision == "float32" else ALL_LANES
    plain = dataclasses.replace(spec, precision="float32")
    engines = CudaEngine(spec, Runtime(3, seed, words)), NumpyEngine(exact_spec(spec)), NumpyEngine(plain)
    ends = []
    for engine in engines:
        engine.load(start)
        z = engine.forward(course.x)
        engine.train(*course)
        layers = [np.r_[w, b[None]] for w, b in NETWORK.views(engine.state().parameters.astype(np.float64))]
        ends.append([z, *layers])
    off_z, off_layers = bounds_of(start.parameters, course, roundoff(precision))
    shares = []
    for found, exact, single, bound in zip(*ends, [off_z, *off_layers], strict=True):
        assert excess(found, exact, bound) == 0
        assert precision == "float32" or np.abs(found - exact).max() > 50 * np.abs(single - exact).max()
        shares.append(float((np.abs(found - exact) / bound).max()))
    return shares[0], max(shares[1:])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_is_within_the_bound_of_its_precision(precision: str) -> None:
    assert all(0 < share <= 1 for share in check_step(precision, 1))


@pytest.mark.parametrize("precision", ROUNDED)
def test_what_is_rounded_already_is_multiplied_as_in_float32(precision: str) -> None:
    network = Network((NETWORK.sizes[0], 13))
    spec, x = EngineSpec(network, Optimizer("sgd"), precision=precision), rounded(precision, course_of(ROWS).x)
    start = start_state(spec)
    start = start._replace(parameters=rounded(precision, start.parameters))
    engine = CudaEngine(spec, Runtime(2, 3, ALL_LANES))
    engine.load(start)
    ((w, b),) = network.views(start.parameters.astype(np.float64))
    assert excess(engine.forward(x), x @ w + b, product_bound(with_ones(x), np.r_[w, b[None]], 0.0)) == 0


@pytest.mark.parametrize("precision", ROUNDED)
def test_no_phase_multiplies_in_float32(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> None:
        pytest.fail("a kernel for float32 products was built")

    for name in ("tiled.make_sums", "programs.make_forward", "programs.make_delta", "programs.make_gradient"):
        monkeypatch.setattr(f"fastmlp.engines.cuda.kernels.{name}", never)
    cuda_simulator.made.cache_clear()
    check_step(precision, 1, 6)


@pytest.mark.parametrize("precision", ROUNDED)
def test_the_grid_and_the_order_of_threads_change_no_bit(precision: str) -> None:
    network = Network((20, 18, 5), "relu", dropout=0.3, l2=0.1)
    spec = EngineSpec(network, Optimizer("adamw", max_grad_norm=1.0), batch_size=9, seed=7, precision=precision)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (9, 20), np.uint8), rng.integers(0, 5, 9).astype(np.int32)
    ends = []
    for blocks, seed in ((1, 0), (2, -5), (3, 8)):
        engine = CudaEngine(spec, Runtime(blocks, seed, ALL_LANES))
        engine.load(start_state(spec))
        results = engine.train(x, y, np.arange(9), np.full(1, 1e-3))
        ends.append((engine.state(), results))
    assert np.isfinite(ends[0][0].parameters).all()
    assert same_bits(ends[0], ends[1])
    assert same_bits(ends[0], ends[2])


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("backend", ["auto", *[name for name in BACKENDS if name != "cuda"]])
@pytest.mark.parametrize("precision", ROUNDED)
def test_other_engines_refuse(backend: str, precision: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_engine(backend, EngineSpec(NETWORK, Optimizer("sgd"), precision=precision))
    assert str(caught.value) == f"precision {precision} needs backend cuda, not {backend}"
    assert caught.value.settings == ("precision", "backend")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown precision 'tf23'; did you mean 'tf32'"):
        make_engine("cuda", EngineSpec(NETWORK, Optimizer("sgd"), precision="tf23"))
    with pytest.raises(ConfigError, match="unknown backend 'cud'"):
        make_engine("cud", EngineSpec(NETWORK, Optimizer("sgd"), precision="tf32"))


def test_a_gpu_without_these_tensor_cores_is_refused() -> None:
    class Old(Runtime):
        name, capability = "simulated Turing", (7, 5)

    for precision in ROUNDED:
        with pytest.raises(UnavailableError) as caught:
            CudaEngine(EngineSpec(NETWORK, Optimizer("sgd"), precision=precision), Old())
        assert str(caught.value) == (
            f"precision {precision} needs a GPU of compute capability 8.0 or more, and simulated Turing has 7.5; "
            "use precision 'float32'"
        )
    CudaEngine(EngineSpec(NETWORK, Optimizer("sgd")), Old())


def test_every_precision_has_a_tile() -> None:
    assert set(TILES) == set(PRECISIONS) == {"float32", *ROUNDED}
    assert {field.name: field.default for field in dataclasses.fields(EngineSpec)}["precision"] == "float32"
