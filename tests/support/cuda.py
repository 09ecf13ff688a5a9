"""Helpers of the CUDA tests: specs, training runs and checks of the simulated CUDA engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmlp.engines.base import EngineSpec, RowMetrics, State
from fastmlp.engines.cuda.engine import CudaEngine
from fastmlp.engines.cuda.kernels.tiled import make_arithmetic, make_get, make_walk
from fastmlp.engines.cuda.kernels.tiles import Tile, make_product
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from support import cuda_simulator
from support.cuda_simulator import ALL_LANES, Runtime
from support.engines import Course, exact_spec, make_course, start_state
from support.tolerances import ELEMENTWISE, EPS, check_scored, excess, forward_tolerance

# A spec with every kernel phase, two tiles per block, partial tiles, a short last batch, dropout, and optimizer slots.
SPEC = EngineSpec(
    Network((20, 13, 9, 5), ("relu", "silu"), dropout=(0.3, 0.0), l2=0.1), Optimizer("momentum"), batch_size=9, seed=7
)


CLIPPED = EngineSpec(Network((20, 40, 5), "tanh", l1=1e-2), Optimizer("adamw", max_grad_norm=1.0), batch_size=9)


def trained(spec: EngineSpec, runtime: Runtime) -> tuple[State, RowMetrics]:
    """Train on two full mini-batches and a short one; return the state and the row metrics."""
    course = make_course(spec.network, 22, spec.batch_size, epochs=1, weighted=True)
    engine = CudaEngine(spec, runtime)
    engine.load(start_state(spec))
    results = engine.train(*course)
    return engine.state(), results


def check_evaluated(spec: EngineSpec, course: Course, runtime: Runtime) -> None:
    """Check the pre-activations and metrics of held rows against the NumPy engine in float64."""
    engine, exact, found = CudaEngine(spec, runtime), NumpyEngine(exact_spec(spec)), []
    z = np.full((len(course.x), spec.network.sizes[-1]), np.nan, np.float32)
    for one in (engine, exact):
        one.load(start_state(spec))
        found.append(one.evaluate(one.hold(course.x, course.y), z if one is engine else None))
    tolerance = forward_tolerance(spec.network, start_state(spec).parameters, course.x)
    assert excess(z, exact.forward(course.x), tolerance) == 0
    check_scored(spec.network, z, course.y, found[0])
    assert excess(found[0].loss, found[1].loss, 4 * np.max(tolerance)) == 0
    assert np.array_equal(found[0].correct, found[1].correct)


BITS = {"tf32": 11, "bf16": 8}


ROUNDED = tuple(BITS)


ROWS = 37


SMALL_TILES = {
    "tf32": (Tile(32, 16, 16, 2, 4, 1, gap=8), Tile(32, 32, 8, 4, 4, 1, gap=8), Tile(16, 32, 16, 2, 4, 1, gap=0)),
    "bf16": (Tile(32, 16, 32, 2, 4, 1, 8, 2), Tile(32, 32, 16, 4, 4, 1, 8, 2), Tile(16, 32, 32, 2, 4, 1, 4, 2)),
}


def roundoff(precision: str) -> float:
    """Return the unit roundoff of a precision, or 0 for float32, whose operands are not rounded."""
    return 0.0 if precision == "float32" else 2.0 ** -BITS[precision]


def rounded(precision: str, x: Any) -> Any:
    """Round to a precision, with arithmetic in float64; ties are rounded away from zero in tf32, and to even in bf16."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = mantissa * 2 ** BITS[precision]
    nearest = np.rint(scaled) if precision == "bf16" else np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)
    return np.ldexp(nearest, exponent - BITS[precision]).astype(np.float32)


def product_bound(a: Any, b: Any, u: float, off_a: Any = 0.0, off_b: Any = 0.0) -> Any:
    """Return an error bound of the product a b with operand errors off_a and off_b, rounded operands, and sums in float32.

    A rounded operand has at most the magnitude (|a| + off_a)(1 + u). The error of a product of two operands is at most the
    product of these magnitudes minus |a| |b|.
    """
    largest = ((np.abs(a) + off_a) * (1 + u)) @ ((np.abs(b) + off_b) * (1 + u))
    return largest * (1 + (a.shape[1] + ELEMENTWISE) * EPS) - np.abs(a) @ np.abs(b)


def padded_rows(matrix: Any) -> tuple[Any, int, int, int]:
    """Return a matrix in the format of `make_get`: contiguous rows, padded with zeros to a multiple of 8 columns."""
    rows, width = matrix.shape
    whole = np.zeros((rows, -(-width // 8) * 8), np.float32)
    whole[:, :width] = matrix
    return whole.reshape(-1), 0, whole.shape[1], rows


def multiplied(precision: str, tile: Tile, a: Any, b: Any, across: tuple[bool, bool], seed: int = 0) -> Any:
    """Multiply a and b with two thread blocks; `across` describes the memory layout of each factor, as in tiles.py."""
    out, get = np.full((len(a), b.shape[1]), np.nan, np.float32), make_get(ALL_LANES)
    left, right = padded_rows(a if across[0] else a.T), padded_rows(b.T if across[1] else b)

    def put(to: Any, m: int, n: int, value: Any) -> None:
        if m < out.shape[0] and n < out.shape[1]:
            to[m, n] = value

    arithmetic = make_arithmetic(ALL_LANES, tile, precision)
    product = make_product(ALL_LANES, tile, arithmetic, (across[0], get), (across[1], get), put)
    walk, memory = make_walk(ALL_LANES, tile, product), tile.shared(32)

    def kernel() -> None:
        shared = cuda_simulator.cuda.shared.array(memory, np.float32)
        walk(left, right, len(a), b.shape[1], a.shape[1], shared, out)

    ALL_LANES.kernel(tile.threads)(kernel).launch(2, (), seed)
    return out


def check_product(precision: str, tile: Tile, across: tuple[bool, bool], seed: int) -> None:
    """Check a product of random matrices with odd sizes, so that several tiles and stages are needed and some are partial."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(ROWS, 45)).astype(np.float32), rng.normal(size=(45, 21)).astype(np.float32)
    found = multiplied(precision, tile, a, b, across, seed)
    one, other, u = (rounded(precision, x).astype(np.float64) for x in (a, b)), (a, b), roundoff(precision)
    near, exact = np.matmul(*one), np.matmul(*(x.astype(np.float64) for x in other))
    assert excess(found, near, product_bound(rounded(precision, a), rounded(precision, b), 0.0)) == 0
    assert np.linalg.norm(found - near) <= 1e-6 * np.linalg.norm(near)
    assert excess(found, exact, product_bound(a, b, u)) == 0
    assert excess(found, exact, product_bound(a, b, 0.0)) > 0
