"""Mutation tests of backend "cuda": the simulator detects each mistake that is inserted into the kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("greenlet", reason="the simulator of backend 'cuda' needs greenlet: pip install greenlet")

from support import cuda_simulator
from support.cuda import CLIPPED, ROUNDED, SMALL_TILES, SPEC, check_evaluated, check_product, trained
from support.cuda_simulator import Runtime, StuckError
from support.engines import make_course, start_state
from support.tolerances import check_course, expected

from fastmlp.engines.cuda.kernels import passes, programs, tensor_cores, tiled, tiles, warps

pytestmark = [pytest.mark.usefixtures("simulated_gpu"), pytest.mark.full]

MODULES = {
    "passes": passes,
    "warps": warps,
    "tiles": tiles,
    "tensor_cores": tensor_cores,
    "tiled": tiled,
    "programs": programs,
}

# Name: file, text to replace, replacement with a mistake.
PLANTED = {
    "no barrier between phases": (
        "programs",
        "                barrier(counter, target)\n\n    return train",
        "                pass\n\n    return train",
    ),
    "no barrier before the losses of an evaluation": (
        "programs",
        "if layer + 1 < layers or evaluates != 0:",
        "if layer + 1 < layers:",
    ),
    "losses of an evaluation that begin at its first row": (
        "programs",
        "constants, indices, loss, start, rows, arena, loss, correct)\n\n    return apply",
        "constants, indices, loss, 0, rows, arena, loss, correct)\n\n    return apply",
    ),
    "a barrier for the first thread alone": (
        "passes",
        "                    trap()\n        cuda.syncthreads()",
        "                    trap()",
    ),
    "a barrier before the block has written": (
        "passes",
        "        cuda.syncthreads()  # makes the writes of the block visible to thread 0, which publishes them\n",
        "",
    ),
    "sums overwritten before they are read": (
        "warps",
        "        cuda.syncthreads()  # wait until the previous tile has been read\n",
        "",
    ),
    "sums read before they are written": (
        "warps",
        "            store(shared, warp * SUMS + lane * each + i, sums[i])\n        cuda.syncthreads()",
        "            store(shared, warp * SUMS + lane * each + i, sums[i])",
    ),
    "rows staged before those before are read": (
        "warps",
        "        cuda.syncthreads()  # wait until the previous rows have been read\n",
        "",
    ),
    "rows read before they are staged": (
        "warps",
        "(quad[0], quad[1], quad[2], quad[3]))\n        cuda.syncthreads()",
        "(quad[0], quad[1], quad[2], quad[3]))",
    ),
    "weights updated while delta reads them": (
        "programs",
        "range(i + 1 if i > 0 else 0, min(i + 2, layers))",
        "range(i, min(i + 1 if i else 2, layers))",
    ),
    "a row beyond the batch": (
        "warps",
        "if m < rows:\n                        at =",
        "if m < rows + 1:\n                        at =",
    ),
    "a tile forgotten": (
        "warps",
        "divide(rows + HIGH - 1, HIGH) * columns\n        sums, row_indices",
        "divide(rows, HIGH) * columns\n        sums, row_indices",
    ),
    "the norm of half the gradient": (
        "passes",
        "min(size, (chunk + 1) * CHUNK), lanes)",
        "min(size, (chunk + 1) * CHUNK), 2 * lanes)",
    ),
    "terms staged before those before are read": (
        "tiles",
        "        cuda.syncthreads()  # wait until the previous tile has been read\n",
        "",
    ),
    "a stage read before it is written": (
        "tiles",
        "            cuda.syncthreads()  # the next buffer is full, and this one is no longer needed\n",
        "",
    ),
    "sums read before they are stored": ("tiles", "        cuda.syncthreads()  # all sums are in shared memory\n", ""),
    "biases that no tile updates": ("tiled", "if k <= height and n < width:", "if k < height and n < width:"),
    "terms beyond the batch": (
        "tiled",
        "if row < rows and column < width:\n            fetch",
        "if column < width:\n            fetch",
    ),
    "operands that are not rounded": ("tensor_cores", "number_of(tf32_of(held[i]))", "held[i]"),
    "the terms of a word exchanged in one factor": (
        "tiles",
        "store(shared, base + (divide(quad, packed) + j) * apart + line, word(held, at, at + packed - 1))",
        "store(shared, base + (divide(quad, packed) + j) * apart + line, word(held, at + packed - 1, at))",
    ),
    "rows of a piece exchanged": (
        "tensor_cores",
        "bits_of(load(shared, at)), bits_of(load(shared, at + 8))\n            at +=",
        "bits_of(load(shared, at + 8)), bits_of(load(shared, at))\n            at +=",
    ),
    "words of a column from the wrong terms": (
        "tensor_cores",
        "bits_of(load(shared, at + 4 * apart_b))",
        "bits_of(load(shared, at + apart_b))",
    ),
    "sums stored in the place of the next lane": ("tensor_cores", "WIDE * j + 2 * p\n", "WIDE * j + 2 * (p ^ 1)\n"),
    "half of the terms of a stage": ("tensor_cores", "range(0, words, WORDS)", "range(0, words, 2 * WORDS)"),
    "the second warp at the rows of the first": ("tensor_cores", "divide(warp, across) * high,", "0 * high,"),
}
# Mistakes that affect only tensor-core products.
ROUNDED_ALONE = [
    name for name, (where, _, _) in PLANTED.items() if where == "tensor_cores" or name.startswith("the terms of a word")
]


@pytest.fixture
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Insert a mistake into one file, and replace its functions in all modules that use them."""
    where, right, wrong = PLANTED[request.param]
    source = Path(str(MODULES[where].__file__)).read_text(encoding="utf-8")
    assert source.count(right) == 1
    changed = ModuleType(f"{where} with a mistake")
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    exec(compile(source.replace(right, wrong), f"<{changed.__name__}>", "exec"), vars(changed))
    for name, value in list(vars(MODULES[where]).items()):
        if name.startswith("make_"):
            for module in MODULES.values():
                if getattr(module, name, None) is value:
                    monkeypatch.setattr(module, name, getattr(changed, name))
    if where == "programs":
        for kernel in ("train", "apply"):
            monkeypatch.setitem(programs.KERNELS, kernel, getattr(changed, f"make_{kernel}"))
    cuda_simulator.made.cache_clear()


@pytest.mark.parametrize("planted", [name for name in PLANTED if name not in ROUNDED_ALONE], indirect=True)
def test_planted_mistakes_are_caught(planted: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake causes a deadlock, an invalid index, or values outside the tolerance."""
    where = PLANTED[request.node.callspec.params["planted"]][0]
    if where in ("tiles", "tiled"):
        monkeypatch.setattr("fastmlp.engines.cuda.engine.SMALL_BATCH", 0)
    monkeypatch.setattr("fastmlp.engines.cuda.engine.APPLIED", 16)  # so that an evaluation needs two passes
    for spec in (SPEC, CLIPPED):
        course = make_course(spec.network, 22, spec.batch_size, epochs=1, weighted=True)
        want = expected(spec, start_state(spec), course)
        for seed in (0, -9, 1, 5, 9):
            try:
                runtime = Runtime(2, seed)
                check_course(want, *trained(spec, runtime))
                check_evaluated(spec, course, runtime)
            except (AssertionError, StuckError, IndexError):
                return
    pytest.fail("the mistake was not detected")


@pytest.mark.parametrize("planted", ROUNDED_ALONE, indirect=True)
def test_mistakes_with_tensor_cores_are_caught(planted: None) -> None:
    for precision in ROUNDED:
        for tile in SMALL_TILES[precision]:
            try:
                check_product(precision, tile, (True, False), 0)
            except AssertionError:
                return
    pytest.fail("the mistake was not detected")
