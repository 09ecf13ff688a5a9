"""Losses of the compiled engine: many rows at once have the bits of the scalar formula, row by row, and become vectors."""

from __future__ import annotations

import ctypes
import platform
import re
from typing import Any

import numpy as np
import pytest
from conftest import same_bits, start_state
from numba import njit, types

from fastmlp import cpu_formulas
from fastmlp.contract import Job
from fastmlp.cpu import NumbaEngine
from fastmlp.cpu_compile import compiled, compiled_with_callees
from fastmlp.cpu_formulas import BESIDES, FEW_OUTPUTS, LOSS, MANY_ROWS, PEAK, SCALE, loss_block, loss_of_rows, loss_side
from fastmlp.cpu_simd import lanes
from fastmlp.functions import LOSSES
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer

PAIRS = [(loss, output) for loss, outputs in LOSSES.items() for output in outputs]
every_loss = pytest.mark.parametrize(("loss", "output"), PAIRS)


def operands(n: int, rows: int) -> tuple[Any, Any, Any]:
    """z and targets (n, rows), and scales (rows,): numbers of all sizes, equal peaks, NaN and infinities."""
    rng = np.random.default_rng([n, rows])
    z = (rng.normal(size=(n, rows)) * 10 ** rng.uniform(-3, 2, rows)).astype(np.float32)
    t = np.zeros((n, rows), np.float32)
    t[rng.integers(0, n, rows), np.arange(rows)] = 1
    t[:, 1], z[:, 2] = 1 / n, 1
    z[n // 2, 5], z[0, 6], z[n - 1, 7] = np.nan, np.inf, -np.inf
    return z, t, rng.uniform(0.1, 2, rows).astype(np.float32)


def by_rows(loss: str, output: str, z: Any, t: Any, scales: Any) -> tuple[Any, Any]:
    """Losses and scaled dz by the formula, one row after the other."""
    formula = compiled_with_callees(LOSSES[loss][output])

    @njit(error_model="numpy")
    def run(z, t, dz, n):
        return formula(z, t, dz, n)

    dz = np.empty_like(z.T)
    losses = np.array(
        [run(one.copy(), two.copy(), dz[r], len(one)) for r, (one, two) in enumerate(zip(z.T, t.T, strict=True))], np.float32
    )
    return losses, (dz * scales[:, None]).T.copy()


def by_kernel(loss: str, output: str, z: Any, t: Any, scales: Any) -> tuple[Any, Any, Any]:
    """Losses, scaled dz and peaks by the kernel for all rows; what lies around its block must stay."""
    n, side = z.shape
    besides = np.full((BESIDES, side), np.float32(7))
    besides[SCALE] = scales
    block = np.concatenate([z, t, np.full_like(z, np.nan), besides])
    guarded = np.full(block.size + 64, np.float32(-3))
    own = guarded[32:-32].reshape(block.shape)
    own[:] = block
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(loss_of_rows(loss, output, n, side))(own.ctypes.data)
    assert (guarded[:32] == -3).all()
    assert (guarded[-32:] == -3).all()
    assert same_bits((own[: 2 * n].copy(), own[3 * n + SCALE].copy()), (block[: 2 * n], scales))
    return own[3 * n + LOSS].copy(), own[2 * n : 3 * n].copy(), own[3 * n + PEAK].copy()


@every_loss
@pytest.mark.parametrize("n", [1, 2, 10, 11, 37])
def test_many_rows_have_the_bits_of_one_after_the_other(loss: str, output: str, n: int) -> None:
    z, t, scales = operands(n, MANY_ROWS)
    finite, numbers = np.isfinite(z).all(axis=0), ~np.isnan(z).any(axis=0)
    wanted_loss, wanted_dz = by_rows(loss, output, z, t, scales)
    for side in (1, MANY_ROWS):
        blocks = [slice(r, r + side) for r in range(0, MANY_ROWS, side)]
        parts = [by_kernel(loss, output, z[:, at], t[:, at], scales[at]) for at in blocks]
        found_loss, found_dz, peaks = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
        assert same_bits((found_loss[finite], found_dz[:, finite]), (wanted_loss[finite], wanted_dz[:, finite]))
        np.testing.assert_array_equal(found_loss, wanted_loss)  # a NaN is a NaN, whatever its other bits
        np.testing.assert_array_equal(found_dz, wanted_dz)
        assert (peaks == z.argmax(axis=0))[numbers].all()
        assert np.isnan(found_loss[~numbers]).all()


def assembly(loss: str, output: str, n: int, side: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the kernel, compiled anew."""
    functions: list[Any] = []
    monkeypatch.setattr(cpu_formulas, "address_of", lambda function, name, integers: functions.append(function) or 0)
    loss_of_rows.__wrapped__(loss, output, n, side)
    kernel = compiled(functions.pop(), called="address")
    kernel.compile((types.int64,))
    return str(next(iter(kernel.overloads.values())).library.get_asm_str())


def vectors(text: str) -> int:
    """How many instructions of x86 add or multiply vectors of float32."""
    return len(re.findall(r"\bv?(?:mul|add|sub|fmadd\w*|fnmadd\w*)ps\s", text))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64") or not FEW_OUTPUTS[lanes()], reason="short vectors")
def test_softmax_of_few_outputs_becomes_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    most = FEW_OUTPUTS[lanes()]
    for n in (3, most):
        assert vectors(assembly("cross-entropy", "softmax", n, MANY_ROWS, monkeypatch)) >= 15 * n  # exp alone has 12
    assert vectors(assembly("cross-entropy", "softmax", most, 1, monkeypatch)) < 15 * most


@every_loss
def test_batches_of_any_size_have_the_bits_of_rows_one_by_one(loss: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the engine: full blocks, rests and single rows; the loss, the hits, and dz by what training makes of it."""
    network = Network((6, 5, 3), loss=loss, output=output)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(75, 6)).astype(np.float32)
    y = rng.integers(0, 3, 75).astype(np.int32) if loss == "cross-entropy" else rng.uniform(size=(75, 3)).astype(np.float32)
    found = []
    for few in (FEW_OUTPUTS, dict.fromkeys(FEW_OUTPUTS, 0), dict.fromkeys(FEW_OUTPUTS, 3)):
        monkeypatch.setattr(cpu_formulas, "FEW_OUTPUTS", few)
        assert loss_block(network, lanes()) == (9 + BESIDES) * loss_side(network, lanes())
        engine = NumbaEngine(Job(network, Optimizer("sgd"), batch_size=37, threads=1))
        engine.load(start_state(engine.job))
        trained = engine.train(x, y, np.arange(75)[::-1], np.full(3, 0.1))
        scored = engine.score(engine.forward(x), y)
        found.append((tuple(trained), tuple(scored), engine.state()))
        engine.close()
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])
