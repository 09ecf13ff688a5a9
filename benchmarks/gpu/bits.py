"""The same training in grids of several sizes, several times: results must be identical, bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import numpy as np

from benchmarks.gpu.measures import Watch
from benchmarks.gpu.part import Part
from benchmarks.gpu.sizes import Sizes
from fastmlp.bench.rounds import AGREEMENT, Disagreement
from fastmlp.engines.base import Engine, EngineSpec, State
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

REPEATS = 3
RATE = 1e-3
# Dropout, slots and clipping; widths that are no multiple of a tile.
NETWORK = Network((784, 130, 61, 10), ("relu", "silu"), dropout=(0.2, 0.0), l2=1e-3)
SMALL = Network((20, 13, 9, 5), ("relu", "silu"), dropout=(0.3, 0.0), l2=0.1)
# The design of small batches, and tiles in every precision that has them.
JOBS = {
    "small batches": EngineSpec(NETWORK, Optimizer("adamw", clip_norm=1.0), 64, seed=7),
    **{
        f"tiles, {precision}": EngineSpec(NETWORK, Optimizer("adamw", clip_norm=1.0), 320, seed=7, precision=precision)
        for precision in ("float32", "tf32", "bf16")
    },
}


def trained(engine: Engine, spec: EngineSpec, steps: int) -> tuple[State, Any]:
    """State and losses after so many steps from the same start, on made-up rows."""
    network, batch = spec.network, spec.batch_size
    draw = np.random.default_rng(3)
    x = draw.random((4 * batch, network.sizes[0]), np.float32)
    y = draw.integers(0, network.sizes[-1], len(x), np.int32)
    order = np.concatenate([draw.permutation(len(x)) for _ in range(-(-steps // 4))])[: steps * batch]
    start = network.initial_parameters(0)
    engine.load(State(start, np.zeros((len(spec.optimizer.slots), len(start)), np.float32), 0))
    losses = engine.train(x, y, order, np.full(steps, RATE)).loss
    return engine.state(), losses


def digest(state: State, losses: Any) -> str:
    """All bits of a training's end."""
    return hashlib.sha256(b"".join(part.tobytes() for part in (state.parameters, state.slots, losses))).hexdigest()[:16]


def parts_of(blocks: int) -> list[int]:
    """Numbers of multiprocessors to use: one, a quarter, all.

    >>> parts_of(132)
    [1, 33, 132]
    """
    return sorted({1, max(1, blocks // 4), blocks})


def measure_bits(part: Part, sizes: Sizes, watch: Watch) -> None:
    """Digests of all trainings, by design and grid; an error for each design that has more than one."""
    blocks = watch.blocks
    for label, spec in JOBS.items():
        found: dict[str, list[str]] = {}
        losses = None
        for grid in parts_of(blocks):
            watch.blocks = grid
            for _ in range(REPEATS):
                with contextlib.closing(cuda.CudaEngine(spec, watch)) as engine:
                    state, losses = trained(engine, spec, sizes.steps)
                found.setdefault(str(grid), []).append(digest(state, losses))
        watch.blocks = blocks
        part.add("bits", {"design": label, "steps": sizes.steps, "digests": found})
        if len({one for row in found.values() for one in row}) > 1:
            part.error(f"bits of {label}", Disagreement(f"results differ between grids or repeated runs: {found}"))
        if spec.precision == "float32":
            compare(part, label, spec, sizes.steps, losses)


def compare(part: Part, label: str, spec: EngineSpec, steps: int, losses: Any) -> None:
    """An error if the losses are not those of the specification."""
    _, wanted = trained(NumpyEngine(spec), spec, steps)
    worst = abs(float(losses.mean(dtype=np.float64) / wanted.mean(dtype=np.float64)) - 1)
    if not worst <= AGREEMENT:
        part.error(
            f"losses of {label}",
            Disagreement(f"the mean differs by {worst:.2g} from the specification's, allowed {AGREEMENT:.2g}"),
        )


def train_small(part: Part, sizes: Sizes, watch: Watch) -> None:
    """A few steps of a network of 20-13-9-5 by both designs, for a tool that watches every access to memory."""
    for batch in (9, cuda.SMALL_BATCH + 1):
        spec = EngineSpec(SMALL, Optimizer("momentum"), batch, seed=7)
        with contextlib.closing(cuda.CudaEngine(spec, watch)) as engine:
            _, losses = trained(engine, spec, 5)
        compare(part, f"batch {batch}", spec, 5, losses)
        part.add("small", {"batch": batch, "loss": float(losses.mean(dtype=np.float64))})
