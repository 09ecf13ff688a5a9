"""Measure start-up times: python -m benchmarks.start [--rounds 5] [--out FILE.json]

kernels, cold : compile the training and prediction kernels of a first network (784-128-10, relu, SGD); the cache is empty
kernels, another network : compile the kernels that a second network (gelu, Adam, squared error, dropout) needs in addition
kernels, cached : load the kernels of the first network from the cache
command : run `fastmlp train` on digits with cached kernels, from the start of the process to its end

Each time is measured in a new process. The times of kernels start when the engine holds the parameters, and end after its
first training step and prediction. They include Numba's own start-up.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.promises import publish, summary

ROOT = Path(__file__).parent.parent
FIRST = "Network((784, 128, 10)), Optimizer('sgd')"
OTHER = "Network((784, 100, 10), 'gelu', loss='squared-error', dropout=0.2), Optimizer('adam')"
COMPILE = """
import sys, time
import numpy as np
from fastmlp import Network, Optimizer
from fastmlp.engines import make_engine
from fastmlp.engines.base import EngineSpec, State

network, optimizer = {spec}
engine = make_engine("numba", EngineSpec(network, optimizer))
slots = np.zeros((len(optimizer.slots), network.parameters), np.float32)
engine.load(State(network.initial_parameters(0), slots, 0))
x, y = np.zeros((64, 784), np.float32), np.zeros(64, np.int32)
began = time.perf_counter()
engine.train(x, y, np.arange(64), np.full(1, 0.1))
engine.evaluate(engine.hold(x, y))
print(time.perf_counter() - began)
"""
LIMITS = {
    "kernels, cold": 3.0,
    "kernels, another network": 3.0,
    "kernels, cached": 0.4,
    "command: fastmlp train, digits": 2.0,
}


def printed_by(arguments: list[str], cache: str, folder: str) -> str:
    """Run Python in a new process with `cache` as the kernel cache folder; return its standard output."""
    env = os.environ | {"FASTMLP_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=folder, capture_output=True, text=True, check=True).stdout


def kernels(spec: str, cache: str, folder: str) -> float:
    """Return the seconds in which a new process compiles or loads the kernels of a network and runs them once."""
    return float(printed_by(["-c", COMPILE.format(spec=spec)], cache, folder))


def one_round() -> list[float]:
    """Measure once; return the seconds in the order of LIMITS."""
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "kernels")
        found = [kernels(spec, cache, folder) for spec in (FIRST, OTHER, FIRST)]
        command = ["-m", "fastmlp", "train", "--out", "first"]
        printed_by(command, cache, folder)
        began = time.perf_counter()
        printed_by([*command[:-1], "second"], cache, folder)
        return [*found, time.perf_counter() - began]


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    columns = zip(*(one_round() for _ in range(rounds)), strict=True)
    return {
        name: summary(list(values)) | {"limit": limit, "unit": "s"}
        for (name, limit), values in zip(LIMITS.items(), columns, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    publish([measure(options.rounds)], options.rounds, options.out)


if __name__ == "__main__":
    main()
