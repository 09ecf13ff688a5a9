"""Measure how fast many models train in parallel: python -m benchmarks.many [--rounds 7] [--threads T] [--out FILE.json]

In each round, the models of each case are trained one after another on one thread, and then in parallel on T threads with
`train_many`. The parallel efficiency of a round is the sequential time divided by T times the parallel time. The weights must
be identical in both training runs. The parallel efficiency of multiply-adds in registers is measured as well, because it is an
upper bound on this machine.

The script requires Fashion-MNIST (FASTMLP_DATA). It writes its results, and then exits with an error if the median efficiency
of a case is below the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.epochs import machine
from benchmarks.promises import seconds
from fastmlp import Network, Optimizer, Settings, TrainResult, train, train_many
from fastmlp.bench.machine import Ceilings
from fastmlp.bench.rounds import min_median_max
from fastmlp.data.dataset import Dataset
from fastmlp.data.load import load_data
from fastmlp.data.scaling import fit_scaling
from fastmlp.data.splits import split_rows
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.files import write_json

FLOOR = 0.95
MODELS_PER_THREAD = 4  # enough that threads are idle only briefly at the end
NETWORKS = (
    Network((784, 128, 10)),
    Network((784, 64, 10), activation="tanh", dropout=0.2),
    Network((784, 256, 64, 10), l2=1e-4),
    Network((784, 32, 32, 10), activation="gelu"),
    Network((784, 100, 100, 10), activation=("relu", "silu"), dropout=(0.1, 0.0)),
)
OPTIMIZERS = ("sgd", "adam", "nesterov", "adamw", "rmsprop")


class Case(NamedTuple):
    """Models to train on the first `rows` rows of a data set. A fifth of these rows is the validation split."""

    name: str
    data: str
    rows: int
    jobs: Sequence[tuple[Network, Settings]]


def settings(seed: int, epochs: int, optimizer: str = "sgd", batch: int = 64) -> Settings:
    """Return settings with a different learning rate for each seed."""
    return Settings(Optimizer(optimizer, 0.002 * (1 + seed / 10)), epochs=epochs, batch_size=batch, patience=0, seed=seed)


def make_cases(models: int) -> tuple[Case, ...]:
    """Return the cases, with `models` models each."""
    tiny = [(Network((64, 32, 10)), settings(seed, 60, "adam", 32)) for seed in range(models)]
    small = [(Network((784, 64, 10)), settings(seed, 20, "adam", 32)) for seed in range(models)]
    fashion = [(Network((784, 128, 10)), settings(seed, 3)) for seed in range(models)]
    mix = [
        (NETWORKS[seed % len(NETWORKS)], settings(seed, 2 + seed % 3, OPTIMIZERS[seed % len(OPTIMIZERS)], 32 << seed % 3))
        for seed in range(models)
    ]
    return (
        Case("64-32-10 on digits", "digits", 1797, tiny),
        Case("784-64-10 on digits", "digits", 1797, small),
        Case("784-128-10 on Fashion-MNIST", "fashion-mnist", 12_000, fashion),
        Case("a mix of shapes", "fashion-mnist", 12_000, mix),
    )


def data_of(case: Case, data: Dataset) -> dict[str, Any]:
    """Return the data arguments of `train` and `train_many`.

    The pixels are subsampled to the number of inputs of the networks, and the rows are split into training and validation rows.
    """
    features = case.jobs[0][0].sizes[0]
    x, y = data.x[: case.rows, :: data.x.shape[1] // features][:, :features], data.y[: case.rows]
    rest, validation = split_rows(y, (0.2,))
    scaling = fit_scaling("unit", x[rest])
    return {"train": (x[rest], y[rest]), "validation": (x[validation], y[validation]), "scaling": scaling}


def alone(case: Case, data: dict[str, Any]) -> list[TrainResult]:
    """Train the models one after the other, each on one thread."""
    return [train(network, settings=replace(own, threads=1), **data) for network, own in case.jobs]


def together(case: Case, data: dict[str, Any], threads: int) -> list[TrainResult]:
    """Train all models in parallel."""
    return [found for found in train_many(case.jobs, **data, threads=threads) if isinstance(found, TrainResult)]


def check_agreement(case: Case, data: dict[str, Any], threads: int) -> None:
    """Train all models sequentially and in parallel, as a warm-up; exit with an error unless the weights are identical."""
    for index, (one, other) in enumerate(zip(alone(case, data), together(case, data, threads), strict=True)):
        if one.state.parameters.tobytes() != other.state.parameters.tobytes():
            sys.exit(f"{case.name}: model {index} has different weights when trained in parallel")


def measure(case: Case, data: dict[str, Any], threads: int, rounds: int) -> dict[str, Any]:
    """Measure the seconds and the parallel efficiency of a case."""
    check_agreement(case, data, threads)
    ways = partial(alone, case, data), partial(together, case, data, threads)
    times = [[seconds(way) for way in ways] for _ in range(rounds)]
    return {
        "case": case.name,
        "models": len(case.jobs),
        "rows": len(data["train"][0]),
        "alone_seconds": min_median_max([one for one, _ in times]),
        "together_seconds": min_median_max([many for _, many in times]),
        "efficiency": min_median_max([one / (threads * many) for one, many in times]),
    }


def scaling_of_machine(threads: int, rounds: int) -> float:
    """Return the parallel efficiency of multiply-adds in registers, which involve neither memory accesses nor Python."""
    with contextlib.closing(Ceilings([1, threads], array_bytes=4096)) as ceilings:
        for _ in range(rounds):
            ceilings.measure()
        return ceilings.gflops[threads] / (threads * ceilings.gflops[1])


def text_of(row: dict[str, Any]) -> str:
    """Format the result of a case as a line of text."""
    efficiency, one, many = row["efficiency"], row["alone_seconds"]["median"], row["together_seconds"]["median"]
    found = f"{efficiency['median']:.1%} ({efficiency['least']:.1%} to {efficiency['most']:.1%})"
    return f"{row['case']}, {row['models']} models: sequential {one:.2f} s, parallel {many:.2f} s, efficiency {found}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    about = machine()
    rows = []
    for case in make_cases(MODELS_PER_THREAD * options.threads):
        rows.append(measure(case, data_of(case, load_data(case.data)), options.threads, options.rounds))
        print(text_of(rows[-1]), flush=True)
    machine_scaling = scaling_of_machine(options.threads, options.rounds)
    print(f"multiply-adds in registers: efficiency {machine_scaling:.1%} on {options.threads} threads")
    if options.out:
        result = {"rounds": options.rounds, "threads": options.threads, "machine_scaling": machine_scaling, "rows": rows}
        write_json(options.out, {"machine": about, **result})
    if any(row["efficiency"]["median"] < FLOOR for row in rows):
        sys.exit(f"the parallel efficiency of a case is below {FLOOR:.0%}")


if __name__ == "__main__":
    main()
