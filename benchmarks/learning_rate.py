"""Compare rules that suggest a learning rate: python -m benchmarks.learning_rate [--seeds 3] [--out FILE.json]

For each data set, optimizer and seed, the learning-rate range test of fastmlp is performed, and several rules suggest a
learning rate from its smoothed loss. A network with the default settings is trained with each suggestion, and with the
optimizer's default learning rate. The results are the suggestions, and the smallest validation loss of each training run; no
test data are used.

Rules: "two thirds" of the longest decreasing subsequence (fastmlp's rule); "half" of it, as in fastai's valley; "steepest"
descent without the first ten values and the last one, as in Lightning; a tenth of the learning rate of the "minimum", as in
fastai.

The script requires Fashion-MNIST (FASTMLP_DATA).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes

from benchmarks.epochs import machine
from fastmlp import Network, Optimizer, Settings, TrainResult, load_data, train_many
from fastmlp.files import write_json
from fastmlp.training.learning_rate import LearningRateCurve, find_learning_rate, longest_descent

RESULTS = Path(__file__).parent / "results" / "learning_rate.json"
OPTIMIZERS = ("sgd", "adam")
SKIP_BEGIN, SKIP_END = 10, 1  # of Lightning's lr_find


def steepest(curve: LearningRateCurve) -> float:
    """Return the learning rate at the smallest slope of the smoothed loss."""
    slopes = np.gradient(curve.smoothed)[SKIP_BEGIN : len(curve.smoothed) - SKIP_END]
    return float(curve.learning_rates[SKIP_BEGIN + slopes.argmin()])


def half(curve: LearningRateCurve) -> float:
    """Return the learning rate in the middle of the longest descent."""
    descent = longest_descent(curve.smoothed)
    return float(curve.learning_rates[descent[len(descent) // 2]])


RULES: dict[str, Callable[[LearningRateCurve], float]] = {
    "two thirds": lambda curve: curve.suggestion,
    "half": half,
    "steepest": steepest,
    "minimum": lambda curve: float(curve.learning_rates[curve.smoothed.argmin()] / 10),
}


def data_sets() -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the training split and the validation split of each data set."""
    for name in ("digits", "fashion-mnist"):
        data = load_data(name, os.environ.get("FASTMLP_DATA")).split(validation=0.2)
        yield name, data.train, data.validation
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    yield "diabetes", *((x[rows], y[rows]) for rows in np.split(order, [len(order) * 4 // 5]))


def measure(train: Any, validation: Any, optimizer: str, seeds: int) -> dict[str, Any]:
    """Return, for each rule and for the default, one learning rate and one smallest validation loss per seed."""
    curves = [find_learning_rate(Network(), train, optimizer=optimizer, seed=seed) for seed in range(seeds)]
    rates = {name: [rule(curve) for curve in curves] for name, rule in RULES.items()}
    rates["default"] = [Optimizer(optimizer).learning_rate] * seeds
    jobs = [
        (Network(), Settings(Optimizer(optimizer, rate), seed=seed))
        for of_rule in rates.values()
        for seed, rate in enumerate(of_rule)
    ]
    results = iter(train_many(jobs, train, validation))
    losses = {name: [next(results) for _ in of_rule] for name, of_rule in rates.items()}
    return {
        name: {
            "learning_rates": rates[name],
            "val_losses": [one.metrics["val_loss"] if isinstance(one, TrainResult) else None for one in of_rule],
        }
        for name, of_rule in losses.items()
    }


def summary(row: dict[str, list[Any]]) -> str:
    """Return the geometric mean and the range of the learning rates, and the mean validation loss, as text."""
    rates, finished = row["learning_rates"], [loss for loss in row["val_losses"] if loss is not None]
    loss = f"{statistics.fmean(finished):.4f}" if len(finished) == len(rates) else f"{len(rates) - len(finished)} diverged"
    return f"{math.exp(statistics.fmean(map(math.log, rates))):.2g} ({min(rates):.2g} to {max(rates):.2g}): {loss}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for name, train, validation in data_sets():
        for optimizer in OPTIMIZERS:
            rules = measure(train, validation, optimizer, options.seeds)
            rows.append({"data": name, "optimizer": optimizer, "rules": rules})
            for rule, row in rules.items():
                print(f"{name}, {optimizer}, {rule}: {summary(row)}", flush=True)
    write_json(options.out, {"seeds": options.seeds, "machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
