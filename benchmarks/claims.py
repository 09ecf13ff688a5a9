"""Compare the speed of the CPU engine with limits: python -m benchmarks.claims [--rounds 7] [--out FILE.json]

Each value is a time, or the ratio of two times that are measured alternately in one process over several rounds. Each value is
printed with its limit. The data are Fashion-MNIST (FASTMLP_DATA); if it is not available, they are synthetic images whose
labels can be learned. Networks with fewer inputs use the middle pixels. Random labels are not used because most units would
die, and 96 % of Adam's first moments would become subnormal numbers, with which arithmetic is slower.

updates, dropout, activations : seconds per epoch relative to SGD with relu and without dropout
tiny : microseconds per training step of a 32-16-16-10 network, batch size 64, Adam
one row : microseconds to predict one row inside the kernel (a call with one row minus a call with no rows)
predict : speed of predicting 10,000 rows, as a fraction of the ceiling (the peak multiply-add rate measured in the same run)
threads : time of five epochs with all threads relative to one thread, for the slowest of 30 shapes, and the same for
    predictions; the shapes with the largest ratios are measured again, and only the second measurement counts
busy : time with all threads while another process spins on one core, relative to one thread on the other cores
crowd : time with four threads per core relative to one thread per core (oversubscription)
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.promises import publish, ratios, seconds, summary, worst_of
from fastmlp import Network, Optimizer
from fastmlp.bench.cases import Case, Source
from fastmlp.bench.machine import Ceilings
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, State, step_count
from fastmlp.engines.cpu.threads import available_cores

ROWS = 48_000
DATA = Source("fashion-mnist", ROWS).rows_for(Case((784, 10), batch=64))
VARIANTS: dict[str, tuple[dict[str, Any], float]] = {  # settings, limit of relative time
    "momentum": ({"optimizer": "momentum"}, 1.15),
    "adam": ({"optimizer": "adam"}, 1.15),
    "dropout 0.2": ({"dropout": 0.2}, 1.10),
    "gelu": ({"activation": "gelu"}, 1.15),
    "tanh": ({"activation": "tanh"}, 1.15),
    "sigmoid": ({"activation": "sigmoid"}, 1.15),
}
WIDTHS = ((20, 40, 10), (40, 45, 10), (64, 50, 10), (64, 48, 48, 10), (100, 50, 10), (128, 64, 10))
WIDTHS = (*WIDTHS, (784, 32, 10), (784, 40, 10), (784, 50, 10), (256, 128, 10))
PREDICTED_WIDTHS = ((64, 50, 10), (784, 50, 10), (784, 128, 10))
NEVER_SLOWER = {"limit": 1.05, "unit": "x one thread"}
SPIN = "while True: pass"


def engine_of(sizes: tuple[int, ...], batch: int, threads: int | None = None, optimizer: str = "sgd", **network: Any) -> Engine:
    """Return an engine with initial parameters, whose kernels have been compiled by training on two mini-batches."""
    described, rule = Network(sizes, **network), Optimizer(optimizer)
    engine = make_engine("numba", EngineSpec(described, rule, batch_size=batch, threads=threads))
    slots = np.zeros((len(rule.slots), described.parameters), np.float32)
    engine.load(State(described.initial_parameters(0), slots, 0))
    epoch_of(engine, sizes, batch, 2 * batch)()
    return engine


def epoch_of(engine: Engine, sizes: tuple[int, ...], batch: int, rows: int = ROWS) -> Callable[[], Any]:
    """Return a function that trains one epoch on the first `rows` rows."""
    x, order = pixels(rows, sizes[0]), np.random.default_rng(1).permutation(rows)
    learning_rates = np.full(step_count(rows, batch), 0.001)
    return lambda: engine.train(x, DATA.y[:rows], order, learning_rates)


@functools.cache
def pixels(rows: int, features: int) -> npt.NDArray[np.float32]:
    """Return the middle `features` pixels of the first `rows` rows.

    The result is cached, because the address of the array affects the time.
    """
    first = (DATA.x.shape[1] - features) // 2
    return np.ascontiguousarray(DATA.x[:rows, first : first + features])


def variants(rounds: int) -> dict[str, Any]:
    results = {}
    for sizes, batch in (((784, 128, 10), 128), ((784, 400, 250, 100, 10), 128), ((784, 512, 256, 128, 64, 32, 10), 1024)):
        base = epoch_of(engine_of(sizes, batch), sizes, batch)
        for name, (settings, limit) in VARIANTS.items():
            call = epoch_of(engine_of(sizes, batch, **settings), sizes, batch)
            key = f"{name}, {'-'.join(map(str, sizes))}, {batch}"
            results[key] = ratios(call, base, rounds) | {"limit": limit, "unit": "x sgd with relu"}
    return results


def small(rounds: int) -> dict[str, Any]:
    sizes = (32, 16, 16, 10)
    call = epoch_of(engine_of(sizes, 64, optimizer="adam"), sizes, 64)
    steps = [seconds(call) / step_count(ROWS, 64) * 1e6 for _ in range(rounds)]
    engine = engine_of((784, 128, 10), 64)
    one, none = DATA.x[:1], DATA.x[:0]
    engine.forward(one)
    pairs = [(seconds(lambda: engine.forward(one)), seconds(lambda: engine.forward(none))) for _ in range(200)]
    inside = statistics.median([a for a, _ in pairs]) - statistics.median([b for _, b in pairs])
    return {
        "tiny: 32-16-16-10, 64, adam": summary(steps) | {"limit": 20, "unit": "us a step"},
        "one row: 784-128-10": {"value": inside * 1e6, "limit": 10, "unit": "us"},
    }


def prediction(rounds: int) -> dict[str, Any]:
    network = Network((784, 128, 10))
    engine = engine_of(network.sizes, 64)
    ceilings, x = Ceilings([engine.threads]), DATA.x[:10_000]
    engine.forward(x)
    flop = 2 * len(x) * sum(a * b for a, b in pairwise(network.sizes))
    shares = []
    for _ in range(rounds):
        ceilings.measure()
        shares.append(flop / seconds(lambda: engine.forward(x)) / 1e9 / ceilings.gflops[engine.threads])
    return {"predict: 784-128-10, 10,000 rows": summary(shares) | {"limit": 0.85, "unit": "of the ceiling", "at_least": True}}


def threads_never_hurt(rounds: int) -> dict[str, Any]:
    """Compare training with all threads and with one thread.

    Every round measures all shapes, so that a temporary slowdown of the machine affects all of them. A round times several
    epochs, since the engine occasionally tries other numbers of threads.
    """
    pairs = {}
    for sizes, batch in product(WIDTHS, (16, 64, 256)):
        rows = min(ROWS, max(20 * batch, int(3e8 / Network(sizes).flops_per_row))) // batch * batch
        calls = [epoch_of(engine_of(sizes, batch, threads), sizes, batch, rows) for threads in (None, 1)]
        pairs[f"{'-'.join(map(str, sizes))}, {batch}"] = calls
    worst, ratio = worst_of(pairs, rounds)
    return {f"threads: worst of {len(pairs)} shapes, {worst}": {"value": ratio, **NEVER_SLOWER}}


def threads_never_hurt_predictions(rounds: int) -> dict[str, Any]:
    """Compare prediction with all threads and with one thread.

    Threads sleep between calls, so short calls do not gain from a second thread.
    """
    pairs = {}
    for sizes, rows in product(PREDICTED_WIDTHS, (16, 64, 256, 1024, 4096)):
        x, flops = pixels(rows, sizes[0]), Network(sizes).flops_per_row // 3 * rows
        engines = [engine_of(sizes, 64, threads) for threads in (None, 1)]
        calls = [functools.partial(predict_often, engine, x, max(10, int(3e8 / flops))) for engine in engines]
        pairs[f"{'-'.join(map(str, sizes))}, {rows} rows"] = calls
    worst, ratio = worst_of(pairs, rounds)
    return {f"threads, predictions: worst of {len(pairs)} sizes, {worst}": {"value": ratio, **NEVER_SLOWER}}


def predict_often(engine: Engine, x: npt.NDArray[np.float32], times: int) -> None:
    for _ in range(times):
        engine.forward(x)


def busy(rounds: int) -> dict[str, Any]:
    """Compare all threads with one thread that may not use the last core, while another process spins on the last core."""
    sizes, cores = (784, 128, 10), sorted(os.sched_getaffinity(0))
    spinner = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{cores[-1]}}})\n{SPIN}"])
    try:
        time.sleep(0.5)
        call, base = (epoch_of(engine_of(sizes, 64, threads), sizes, 64) for threads in (None, 1))
        return {
            "busy: 784-128-10, 64": ratios(call, on_free_cores(base, cores), rounds) | {"limit": 1.3, "unit": "x one thread"}
        }
    finally:
        spinner.kill()
        spinner.wait()


def on_free_cores(call: Callable[[], Any], cores: list[int]) -> Callable[[], Any]:
    def pinned() -> None:
        os.sched_setaffinity(0, cores[:-1])
        try:
            call()
        finally:
            os.sched_setaffinity(0, cores)

    return pinned


def crowd(rounds: int) -> dict[str, Any]:
    sizes, cores = (784, 128, 10), available_cores()
    call, base = (epoch_of(engine_of(sizes, 64, threads), sizes, 64) for threads in (4 * cores, cores))
    return {f"crowd: {4 * cores} threads": ratios(call, base, rounds) | {"limit": 1.3, "unit": "x one thread per core"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(f"{ROWS:,} rows of {DATA.name} data", flush=True)
    groups = (variants, small, prediction, threads_never_hurt, threads_never_hurt_predictions, busy, crowd)
    publish((group(options.rounds) for group in groups), options.rounds, options.out)


if __name__ == "__main__":
    main()
