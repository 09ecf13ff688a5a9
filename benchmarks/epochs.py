"""Seconds per training epoch of the engines, side by side: python -m benchmarks.epochs [--rounds 7] [--out FILE.json]

Each round trains one epoch with each engine in turn, on the same rows in the same order. The first round warms up and is not
counted. In it, from the same start, the engines' mean losses must agree. The ratio is taken within each round, so that a
neighbour on the machine hurts both sides; its median and range are shown. Needs the real Fashion-MNIST (FASTMLP_DATA).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.cases import EPOCHS, ROWS, Case
from fastmlp import Network, Optimizer, load_data
from fastmlp.backends import make_engine
from fastmlp.contract import Engine, Job, State, steps_of
from fastmlp.cpu_threads import available_cores

RATE = 0.01
REST = 0.2  # seconds between the engines: the threads of a BLAS spin on for a while after their work
AGREEMENT = 1e-3  # relative difference of the engines' mean losses over the first epoch


def engine_for(backend: str, case: Case) -> Engine:
    network = Network(case.sizes)
    engine = make_engine(backend, Job(network, Optimizer(), batch_size=case.batch))
    engine.load(State(network.initial_parameters(0), np.empty((0, network.parameters), np.float32), 0))
    return engine


def measure(case: Case, x: Any, y: Any, rounds: int) -> dict[str, Any]:
    """Seconds of each engine in each round, and what follows from them. NumPy gets its better number of BLAS threads."""
    blas_threads = sorted({1, available_cores()})
    engines = {"numba": (engine_for("numba", case), None)}
    engines |= {f"numpy {threads}": (engine_for("numpy", case), threads) for threads in blas_threads}
    x = np.ascontiguousarray(x[:, : case.sizes[0]])
    rates = np.full(steps_of(ROWS, case.batch), RATE)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for index in range(rounds + 1):
        order = np.random.default_rng(index).permutation(ROWS)
        losses = {}
        for name, (engine, threads) in engines.items():
            time.sleep(REST)
            with threadpool_limits(threads, user_api="blas"):
                began = time.perf_counter()
                losses[name] = float(engine.train(x, y, order, rates).loss.mean())
            if index:
                seconds[name].append(time.perf_counter() - began)
        if index == 0 and max(losses.values()) / min(losses.values()) - 1 > AGREEMENT:
            sys.exit(f"{case.label}: the engines disagree, {losses}")
    for engine, _ in engines.values():
        engine.close()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    threads = min(blas_threads, key=lambda threads: median[f"numpy {threads}"])
    ratios = [a / b for a, b in zip(seconds[f"numpy {threads}"], seconds["numba"], strict=True)]
    gflop = Network(case.sizes).flops_per_row * ROWS / 1e9
    best = {"numpy": median[f"numpy {threads}"], "numba": median["numba"]}
    return {
        "network": "-".join(map(str, case.sizes)),
        "batch": case.batch,
        "gflop": round(gflop, 1),
        "numpy_threads": threads,
        "seconds": {backend: round(value, 4) for backend, value in best.items()},
        "gflops": {backend: round(gflop / value, 1) for backend, value in best.items()},
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
    }


def machine() -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "processor": llvmlite.binding.get_host_cpu_name(),
        "cores": available_cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = load_data("fashion-mnist")
    x, y = data.x[:ROWS].astype(np.float32) / np.float32(255), data.y[:ROWS]
    about = machine()
    rows = []
    for case in EPOCHS:
        rows.append(measure(case, x, y, options.rounds))
        s, r = rows[-1]["seconds"], rows[-1]["ratio"]
        print(
            f"{case.label:36} numpy ({rows[-1]['numpy_threads']} threads) {s['numpy']:.3f} s  numba {s['numba']:.3f} s  "
            f"{r['median']:.2f}x ({r['least']:.2f} to {r['most']:.2f})",
            flush=True,
        )
    if options.out:
        options.out.write_text(json.dumps({"rounds": options.rounds, "machine": about, "rows": rows}, indent=2) + "\n")
    if any(row["ratio"]["median"] <= 1 for row in rows):
        sys.exit("the Numba engine is not faster on every row")


if __name__ == "__main__":
    main()
