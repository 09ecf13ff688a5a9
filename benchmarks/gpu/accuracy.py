"""Train a published recipe on the GPU and check its test accuracy.

The recipe trains for 15 epochs on MNIST; the published training took 44 minutes.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes
from benchmarks.torch_twin import train_by
from fastmlp.bench.rounds import Disagreement
from fastmlp.errors import DataError, UnavailableError
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.plan import RunPlan, make_plan
from fastmlp.experiments.recipes.recipe import settings_of
from fastmlp.models.metrics import evaluate_with_predictions

RECIPE = "ee5179-1"  # 784-500-250-100-10, sigmoid, batch 64, 15 epochs
TOLERANCE = 0.003  # largest allowed difference of test accuracy between GPU and CPU


def plan_of(sizes: Sizes) -> RunPlan:
    """Return the plan of the recipe's training, with at most `sizes.rows` rows per split."""
    config = TrainConfig(**settings_of(RECIPE, "train") | {"backend": "numba"})
    plan = make_plan(config)
    if sizes.rows >= Sizes.rows:
        return plan
    splits = {name: replace(rows, x=rows.x[: sizes.rows], y=rows.y[: sizes.rows]) for name, rows in plan.splits.items()}
    data = replace(plan.task.data, train=splits["train"], validation=splits.get("validation"))
    return plan._replace(splits=splits, task=plan.task._replace(data=data))


def train_with(backend: str, plan: RunPlan) -> dict[str, Any]:
    """Train with the engine `backend`; return the time in seconds and the metrics."""
    began = time.perf_counter()
    training = train_by(backend, plan)
    seconds = time.perf_counter() - began
    test = evaluate_with_predictions(training.model, plan.splits["test"])[0]
    return {
        "engine": backend,
        "seconds": seconds,
        "epochs": len(training.history),
        "rows": len(plan.splits["train"]),
        "test_accuracy": test["accuracy"],
        "loss": training.history[-1]["loss"],
    }


def measure_accuracy(findings: Findings, sizes: Sizes, runtime: Any) -> None:
    """Train on the GPU and on the CPU; record an error if the test accuracies differ by more than `TOLERANCE`."""
    try:
        plan = plan_of(sizes)
    except (DataError, UnavailableError, ModuleNotFoundError) as error:  # without pooch, nothing can be downloaded
        findings.add("left_out", {"what": f"recipe {RECIPE}", "reason": str(error)})
        return
    results = []
    for backend in ("cuda", "numba"):
        results.append(train_with(backend, plan))
        findings.add("accuracy", {"recipe": RECIPE, "network": plan.network.label, **results[-1]})
    difference = abs(results[0]["test_accuracy"] - results[1]["test_accuracy"])
    if not difference <= TOLERANCE:
        findings.error(
            "accuracy", Disagreement(f"test accuracies of GPU and CPU differ by {difference:.2%}; tolerance {TOLERANCE:.2%}")
        )
