"""Helpers of the CPU engine's tests: guarded memory, reference epilogues, specs, and scripts in child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastmlp.engines.base import EngineSpec, RowMetrics
from fastmlp.engines.cpu.codegen.simd import BIAS, BIAS_RELU, KEEP, TIMES, WHERE_POSITIVE
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.plan import Layout
from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from support.engines import Course, start_state
from support.processes import ROOT
from support.tolerances import EPS, product_tolerance

GUARD = np.float32(-12345.678)
FLOAT_BYTES = 4
PATIENCE = 120  # seconds


class Placed(NamedTuple):
    """A block inside a larger buffer full of guard values."""

    buffer: Any
    block: Any
    strides: tuple[int, ...]

    @property
    def at(self) -> int:
        """Address of the block."""
        return int(self.block.ctypes.data)

    def stray(self) -> int:
        """Number of entries outside the block that have changed."""
        outside = self.buffer.copy()
        place(outside, self.block.shape, self.strides)[...] = GUARD
        return int((outside != GUARD).sum())


def place(buffer: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Return a view with the given strides, in elements, that is not aligned to a vector."""
    return np.lib.stride_tricks.as_strided(buffer[33:], shape, [FLOAT_BYTES * s for s in strides])


def placed(values: Any, strides: tuple[int, ...]) -> Placed:
    """Copy values to a view with these strides, with guard values before, between and after the rows."""
    size = 66 + sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True))
    buffer = np.full(size, GUARD)
    block = place(buffer, values.shape, strides)
    block[...] = values
    return Placed(buffer, block, strides)


class Scattered(NamedTuple):
    """Rows of floats in random order inside a buffer full of guard values; some rows lie before the address `at`."""

    buffer: Any
    at: int
    table: Any

    @property
    def rows(self) -> int:
        """Address of the table with the byte offset of each row relative to `at`."""
        return int(self.table.ctypes.data)


def scattered(values: Any) -> Scattered:
    """Copy the rows of a matrix to random places, with guard values before, between and after them."""
    rows, size = values.shape
    starts = 33 + np.random.default_rng(rows).permutation(rows) * (size + 5)
    buffer = np.full(66 + rows * (size + 5), GUARD)
    for start, row in zip(starts, values, strict=True):
        buffer[start : start + size] = row
    middle = len(buffer) // 2
    return Scattered(buffer, buffer[middle:].ctypes.data, (starts - middle) * FLOAT_BYTES)


class Meaning(NamedTuple):
    """NumPy reference of an epilogue: value(product, extra) and tolerance(product tolerance, product, extra)."""

    value: Callable[[Any, Any], Any]
    tolerance: Callable[[Any, Any, Any], Any]
    extra_like_c: bool


MEANINGS = {
    KEEP: Meaning(lambda p, e: p, lambda t, p, e: t, True),
    BIAS: Meaning(lambda p, e: p + e, lambda t, p, e: t + EPS * abs(p + e), False),
    BIAS_RELU: Meaning(lambda p, e: np.maximum(p + e, 0), lambda t, p, e: t + EPS * abs(p + e), False),
    TIMES: Meaning(lambda p, e: p * e, lambda t, p, e: t * abs(e) + EPS * abs(p * e), True),
    WHERE_POSITIVE: Meaning(lambda p, e: np.where(e > 0, p, 0), lambda t, p, e: t * (e > 0), True),
}


class Case(NamedTuple):
    """Operands of a product: a (rows, k), b (k, columns), extra (columns,) or (rows, columns)."""

    a: Any
    b: Any
    extra: Any


def make_case(epilogue: int, rows: int, columns: int, k: int, seed: int = 0) -> Case:
    rng = np.random.default_rng([seed, rows, columns, k])
    a, b, extra = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, k), (k, columns), (rows, columns)))
    extra[:, ::3] = 0  # WHERE_POSITIVE must distinguish 0 from positive numbers
    return Case(a, b, extra if MEANINGS[epilogue].extra_like_c else extra[0])


def excess_of(epilogue: int, case: Case, c: Any) -> float:
    """Return the largest amount by which an entry of C exceeds its tolerance; NaN counts as infinite."""
    meaning = MEANINGS[epilogue]
    a, b, extra = (array.astype(np.float64) for array in case)
    product = a @ b
    wanted = meaning.value(product, extra)
    beyond = abs(c - wanted) - meaning.tolerance(product_tolerance(a, b), product, extra)
    return float(np.nan_to_num(beyond, nan=np.inf).max())


# ------------------------------------------------------------------------------------------------ engines

# The tests of the engine share few kernels, since each takes seconds to compile; kernels do not depend on layer sizes.
FUSED_NAMES = ["relu", "linear"]
EVERY_NAME = [f"{name}:0.5" if entry.default is not None else name for name, entry in ACTIVATIONS.items()]
PENALISED = Optimizer("adam", max_grad_norm=0.5)
EVERY_IDS = ["clipped adam", "momentum with dropout"]


def fused_job(sizes: tuple[int, ...] = (13, 21, 9, 5), optimizer: Optimizer | None = None, **settings: Any) -> EngineSpec:
    """Return a spec with alternating relu and linear hidden layers, whose activations are all fused into the products."""
    names = (FUSED_NAMES * len(sizes))[: len(sizes) - 2]
    return EngineSpec(
        Network(sizes, names), optimizer or Optimizer("sgd"), **{"batch_size": 7, "seed": 3, "threads": 1} | settings
    )


def every_job(optimizer: Optimizer, dropout: float = 0.0, **settings: Any) -> EngineSpec:
    """Return a spec with a hidden layer of each activation, sizes that need padding, and L1 and L2 penalties."""
    sizes = (11, *(9 + 2 * (n % 5) for n in range(len(EVERY_NAME))), 5)
    network = Network(sizes, EVERY_NAME, dropout=dropout, l1=1e-3, l2=1e-2)
    return EngineSpec(network, optimizer, **{"batch_size": 7, "seed": 3, "threads": 2} | settings)


def trained_engine(spec: EngineSpec, course: Course) -> tuple[NumbaEngine, RowMetrics]:
    engine = NumbaEngine(spec)
    engine.load(start_state(spec))
    return engine, engine.train(*course)


def outcome(spec: EngineSpec, course: Course) -> tuple[Any, ...]:
    """Train a new engine; return its state, the row metrics and the predictions."""
    engine, results = trained_engine(spec, course)
    z = engine.forward(course.x)
    state = engine.state()
    engine.close()
    return state, results, z


def pieces_of_arena(layout: Layout, rows: int, gathers: bool = True) -> list[tuple[int, int]]:
    """Return (start, length) of the gathered inputs, if any, and of the activations, slopes and gradients of all layers."""
    inputs, *others = layout.plan.widths
    inner = [(int(width[kind]), rows * int(width["ld"])) for width in others for kind in ("y_at", "s_at", "dz_at")]
    return [(int(inputs["y_at"]), rows * int(inputs["ld"])), *inner] if gathers else inner


def run_script(script: str, *arguments: str) -> str:
    """Run a Python script in a new process, check that it succeeds, and return its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
