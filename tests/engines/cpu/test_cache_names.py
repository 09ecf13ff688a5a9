"""Cached and newly compiled kernels in one process run their own code, in any order of compilation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.full

SCRIPT = """
import sys
import numpy as np
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

network = Network((5, 7, 3), activation="tanh")
x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
y = np.arange(64, dtype=np.int32) % 3
for rule in sys.argv[1:]:
    optimizer = Optimizer(rule)
    engine = NumbaEngine(EngineSpec(network, optimizer, batch_size=8, threads=1))
    slots = np.zeros((len(optimizer.slots), network.parameters), np.float32)
    engine.load(State(network.initial_parameters(0), slots, 0))
    loss = engine.train(x, y, np.tile(np.arange(64), 4), np.full(32, 0.05)).loss
    print(rule, float(loss.astype(np.float64).sum()).hex())
"""


def losses(folder: Path, *rules: str) -> dict[str, str]:
    """Train with several optimizers, one after another, in a new process; return the loss by optimizer."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, *rules],
        cwd=ROOT,
        env={"FASTMLP_CACHE_DIR": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(line.split() for line in done.stdout.splitlines())


def test_a_kernel_from_the_cache_does_not_run_the_code_of_another(tmp_path: Path) -> None:
    """Kernels have unique symbol names, so a process can compile SGD and load Adam from the cache."""
    alone = losses(tmp_path / "a", "adam")
    together = losses(tmp_path / "a", "sgd", "adam")
    assert together["adam"] == alone["adam"]
    assert together["sgd"] == losses(tmp_path / "b", "sgd")["sgd"]
    assert together["sgd"] != together["adam"]
    # Now both kernels are loaded from the cache, in the other order.
    assert losses(tmp_path / "a", "adam", "sgd") == together
