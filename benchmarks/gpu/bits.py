"""Check that repeated training runs give bit-identical results, also with different grid sizes."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import numpy as np

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.measures import TimedRuntime
from benchmarks.gpu.sizes import Sizes
from fastmlp.bench.rounds import AGREEMENT, Disagreement
from fastmlp.engines.base import Engine, EngineSpec, State
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

REPEATS = 3
LEARNING_RATE = 1e-3
# The training runs use dropout, optimizer slots and gradient clipping, and layer sizes that are not multiples of the tile size.
NETWORK = Network((784, 130, 61, 10), ("relu", "silu"), dropout=(0.2, 0.0), l2=1e-3)
SMALL = Network((20, 13, 9, 5), ("relu", "silu"), dropout=(0.3, 0.0), l2=0.1)
# The kernels for small batches, and the kernels for large batches in every precision.
JOBS = {
    "small batches": EngineSpec(NETWORK, Optimizer("adamw", max_grad_norm=1.0), 64, seed=7),
    **{
        f"tiles, {precision}": EngineSpec(NETWORK, Optimizer("adamw", max_grad_norm=1.0), 320, seed=7, precision=precision)
        for precision in ("float32", "tf32", "bf16")
    },
}


def train_steps(engine: Engine, spec: EngineSpec, steps: int) -> tuple[State, Any]:
    """Train `steps` steps on random rows, always from the same initial state; return the final state and the row losses."""
    network, batch = spec.network, spec.batch_size
    rng = np.random.default_rng(3)
    x = rng.random((4 * batch, network.sizes[0]), np.float32)
    y = rng.integers(0, network.sizes[-1], len(x), np.int32)
    order = np.concatenate([rng.permutation(len(x)) for _ in range(-(-steps // 4))])[: steps * batch]
    start = network.initial_parameters(0)
    engine.load(State(start, np.zeros((len(spec.optimizer.slots), len(start)), np.float32), 0))
    losses = engine.train(x, y, order, np.full(steps, LEARNING_RATE)).loss
    return engine.state(), losses


def digest(state: State, losses: Any) -> str:
    """Return a hash of the bits of a training's final state and losses."""
    return hashlib.sha256(b"".join(array.tobytes() for array in (state.parameters, state.slots, losses))).hexdigest()[:16]


def grid_sizes(blocks: int) -> list[int]:
    """Return the numbers of multiprocessors to use: one, a quarter, and all.

    >>> grid_sizes(132)
    [1, 33, 132]
    """
    return sorted({1, max(1, blocks // 4), blocks})


def measure_bits(findings: Findings, sizes: Sizes, runtime: TimedRuntime) -> None:
    """Record the digests of all training runs by kernel design and grid size; differing digests of a design are an error."""
    blocks = runtime.blocks
    for label, spec in JOBS.items():
        found: dict[str, list[str]] = {}
        losses = None
        for grid in grid_sizes(blocks):
            runtime.blocks = grid
            for _ in range(REPEATS):
                with contextlib.closing(cuda.CudaEngine(spec, runtime)) as engine:
                    state, losses = train_steps(engine, spec, sizes.steps)
                found.setdefault(str(grid), []).append(digest(state, losses))
        runtime.blocks = blocks
        findings.add("bits", {"design": label, "steps": sizes.steps, "digests": found})
        if len({one for row in found.values() for one in row}) > 1:
            findings.error(f"bits of {label}", Disagreement(f"results differ between grids or repeated runs: {found}"))
        if spec.precision == "float32":
            compare(findings, label, spec, sizes.steps, losses)


def compare(findings: Findings, label: str, spec: EngineSpec, steps: int, losses: Any) -> None:
    """Record an error if the mean loss disagrees with that of the NumPy engine."""
    _, expected = train_steps(NumpyEngine(spec), spec, steps)
    worst = abs(float(losses.mean(dtype=np.float64) / expected.mean(dtype=np.float64)) - 1)
    if not worst <= AGREEMENT:
        findings.error(
            f"losses of {label}",
            Disagreement(f"mean loss differs from the NumPy engine by {worst:.2g}; the tolerance is {AGREEMENT:.2g}"),
        )


def train_small(findings: Findings, sizes: Sizes, runtime: TimedRuntime) -> None:
    """Train a small network for a few steps with both kernel designs; this is what compute-sanitizer runs."""
    for batch in (9, cuda.SMALL_BATCH + 1):
        spec = EngineSpec(SMALL, Optimizer("momentum"), batch, seed=7)
        with contextlib.closing(cuda.CudaEngine(spec, runtime)) as engine:
            _, losses = train_steps(engine, spec, 5)
        compare(findings, f"batch {batch}", spec, 5, losses)
        findings.add("small", {"batch": batch, "loss": float(losses.mean(dtype=np.float64))})
