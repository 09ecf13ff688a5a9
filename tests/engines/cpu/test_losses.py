"""Losses of the compiled engine: vectorized losses of many rows are bit-identical to the scalar formula for each row."""

from __future__ import annotations

import functools
import platform
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba import njit, types
from support.engines import LOSS_PAIRS, same_bits, start_state

from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cpu.codegen.compiler import compiled, compiled_with_callees, from_python
from fastmlp.engines.cpu.codegen.simd import lanes
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.kernels import losses as cpu_losses
from fastmlp.engines.cpu.kernels.losses import (
    EXTRAS,
    FEW_OUTPUTS,
    FLOATS,
    INTEGERS,
    MANY_ROWS,
    block_size,
    loss_block,
    loss_of_rows,
    loss_side,
    make_losses,
)
from fastmlp.nn.losses import LOSSES, parse_loss
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

every_loss = pytest.mark.parametrize(("loss", "output"), LOSS_PAIRS)


ROWS = 2 * MANY_ROWS + 5
GAP = 3  # floats between rows of z and of dz


class Found(NamedTuple):
    """Loss and correctness, (rows,), and scaled gradients dz, (rows, n)."""

    loss: Any
    correct: Any
    dz: Any


def operands(n: int) -> tuple[Any, Any, Any]:
    """Return z and targets, (ROWS, n), and loss scales, (ROWS,); z has many magnitudes, tied maxima, NaN and infinities."""
    rng = np.random.default_rng(n)
    z = (rng.normal(size=(ROWS, n)) * 10 ** rng.uniform(-3, 2, (ROWS, 1))).astype(np.float32)
    t = np.zeros((ROWS, n), np.float32)
    t[np.arange(ROWS), rng.integers(0, n, ROWS)] = 1
    t[1], z[2] = 1 / n, 1
    z[5, n // 2], z[6, 0], z[7, n - 1], z[ROWS - 1, 0] = np.nan, np.inf, -np.inf, np.nan
    return z, t, rng.uniform(0.1, 2, ROWS).astype(np.float32)


@functools.cache
def scalar_formula(name: str, output: str) -> Any:
    """Compile the scalar formula of a loss."""
    formula = compiled_with_callees(LOSSES[name][output])

    @njit(error_model="numpy")
    def run(z, t, dz, n, a):
        return formula(z, t, dz, n, a)

    return run


def by_rows(loss: str, output: str, z: Any, t: Any, scales: Any) -> tuple[Any, Any]:
    """Compute losses and scaled dz with the scalar formula, one row after another."""
    name, parameter = parse_loss(loss)
    run = scalar_formula(name, output)
    dz = np.empty_like(z)
    losses = [run(z[r], t[r], dz[r], len(z[r]), np.float32(parameter)) for r in range(len(z))]
    return np.array(losses, np.float32), dz * scales[:, None]


def by_kernel(  # noqa: PLR0917 - same arguments as the kernel
    loss: str,
    output: str,
    side: int,
    z: Any,
    y: Any,
    scales: Any,
    on_value: float = 1,
    off_value: float = 0,
    keep_dz: bool = True,
) -> Found:
    """Run the kernel on labels or targets y stored in another order; check that surrounding memory is unchanged."""
    rows, n = z.shape
    indices = np.random.default_rng(1).permutation(rows)
    data = np.empty_like(y)
    data[indices] = y
    spread = np.full((2, rows, n + GAP), np.float32(-3))  # z and dz, with gaps
    spread[0, :, :n] = z
    block = np.full(block_size(n, side) + 64, np.float32(-3))
    found = np.empty(rows, np.float32), np.ones(rows, bool)
    places = (data.ctypes.data, 0) if y.ndim == 1 else (0, data.ctypes.data)
    addresses = block[32:].ctypes.data, spread[0].ctypes.data, spread[1].ctypes.data * keep_dz, n + GAP
    results = (array.ctypes.data for array in (scales, *found))
    name, parameter = parse_loss(loss)
    kernel = from_python(loss_of_rows(name, output, n, side), INTEGERS, FLOATS)
    kernel(*addresses, rows, indices.ctypes.data, *places, *results, on_value, off_value, parameter)
    assert (block[:32] == -3).all()
    assert (block[-32:] == -3).all()
    assert (spread[:, :, n:] == -3).all()
    assert same_bits(spread[0, :, :n].copy(), z)
    return Found(*found, spread[1, :, :n].copy())


@pytest.mark.full  # takes 17 seconds
@every_loss
@pytest.mark.parametrize("n", [1, 2, 10, 11, 37])
def test_many_rows_have_the_bits_of_one_after_the_other(loss: str, output: str, n: int) -> None:
    z, t, scales = operands(n)
    finite, numbers = np.isfinite(z).all(axis=1), ~np.isnan(z).any(axis=1)
    wanted_loss, wanted_dz = by_rows(loss, output, z, t, scales)
    for side in (1, MANY_ROWS):
        found = by_kernel(loss, output, side, z, t, scales)
        assert same_bits((found.loss[finite], found.dz[finite]), (wanted_loss[finite], wanted_dz[finite]))
        np.testing.assert_array_equal(found.loss, wanted_loss)  # NaN values may differ in their bits
        np.testing.assert_array_equal(found.dz, wanted_dz)
        assert np.isnan(found.loss[~numbers]).all()
        assert not found.correct.any()
        without = by_kernel(loss, output, side, z, t, scales, keep_dz=False)
        np.testing.assert_array_equal(without.loss, wanted_loss)
        assert (without.dz == -3).all()


@every_loss
@pytest.mark.parametrize("n", [1, 2, 10, 11])
def test_labels_are_targets_and_tell_who_is_right(loss: str, output: str, n: int) -> None:
    z, _, scales = operands(n)
    numbers, peaks = ~np.isnan(z).any(axis=1), z.argmax(axis=1).astype(np.int32)
    labels = np.where(np.arange(ROWS) % 3, peaks, (peaks + 1) % n).astype(np.int32)
    on_value, off_value = np.float32(0.9), np.float32(0.025)
    targets = np.where(np.arange(n) == labels[:, None], on_value, off_value)
    for side in (1, MANY_ROWS):
        found = by_kernel(loss, output, side, z, labels, scales, on_value, off_value)
        wanted = by_kernel(loss, output, side, z, targets, scales)
        np.testing.assert_array_equal(found.loss, wanted.loss)
        np.testing.assert_array_equal(found.dz, wanted.dz)
        np.testing.assert_array_equal(found.correct[numbers], (labels == peaks)[numbers])


def assembly(loss: str, output: str, n: int, side: int) -> str:
    """Compile the kernel without the cache; return its assembly."""
    kernel = compiled(make_losses(loss, output, n, side), called="address")
    kernel.compile((types.int64,) * INTEGERS + (types.float32,) * FLOATS)
    return str(next(iter(kernel.overloads.values())).library.get_asm_str())


def vectors(text: str) -> int:
    """Return the number of x86 instructions that add or multiply float32 vectors."""
    return len(re.findall(r"\bv?(?:mul|add|sub|fmadd\w*|fnmadd\w*)ps\s", text))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64") or not FEW_OUTPUTS[lanes()], reason="short vectors")
def test_softmax_of_few_outputs_becomes_vectors() -> None:
    most = FEW_OUTPUTS[lanes()]
    for n in (3, most):
        assert vectors(assembly("cross-entropy", "softmax", n, MANY_ROWS)) >= 15 * n  # exp alone needs 12
    assert vectors(assembly("cross-entropy", "softmax", most, 1)) < 15 * most


@every_loss
def test_batches_of_any_size_have_the_bits_of_rows_one_by_one(loss: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, correctness and trained parameters have the same bits for all block sizes of the loss kernel."""
    network = Network((6, 5, 3), loss=loss, output=output)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(75, 6)).astype(np.float32)
    y = rng.integers(0, 3, 75).astype(np.int32) if loss == "cross-entropy" else rng.uniform(size=(75, 3)).astype(np.float32)
    found = []
    for few in (FEW_OUTPUTS, dict.fromkeys(FEW_OUTPUTS, 0), dict.fromkeys(FEW_OUTPUTS, 3)):
        monkeypatch.setattr(cpu_losses, "FEW_OUTPUTS", few)
        assert loss_block(network, lanes()) == (9 + EXTRAS) * loss_side(network, lanes())
        engine = NumbaEngine(EngineSpec(network, Optimizer("sgd"), batch_size=37, threads=1))
        engine.load(start_state(engine.spec))
        trained = engine.train(x, y, np.arange(75)[::-1], np.full(3, 0.1))
        scored = engine.evaluate(engine.hold(x, y))
        found.append((tuple(trained), tuple(scored), engine.state()))
        engine.close()
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


def test_networks_with_other_parameters_of_a_loss_use_the_same_kernels() -> None:
    """The parameter is an argument of the kernel: it changes losses and gradients, and no kernel is compiled for it."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)).astype(np.float32), 3 * rng.normal(size=(20, 3)).astype(np.float32)
    tables, trained, evaluated = [], [], []
    for loss in ("huber:0.5", "huber:2", "huber"):
        engine = NumbaEngine(EngineSpec(Network((6, 5, 3), loss=loss), Optimizer("sgd"), batch_size=20, threads=1))
        engine.load(start_state(engine.spec))
        evaluated.append(engine.evaluate(engine.hold(x, y)).loss)
        compiled_before = loss_of_rows.cache_info().misses
        engine.train(x, y, np.arange(20), np.full(1, 0.1))
        trained.append(engine.state().parameters)
        tables.append(repr(engine.kernel_table(np.float32, training=True)))
        assert tables == tables[:1] * len(tables)
        assert loss_of_rows.cache_info().misses == compiled_before
        engine.close()
    for found in (trained, evaluated):
        assert all(np.abs(found[i] - found[j]).max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
