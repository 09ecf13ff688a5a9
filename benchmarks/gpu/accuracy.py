"""A whole published training on the device: 15 epochs of MNIST that took its authors 44 minutes, and its test accuracy."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu.part import Part
from benchmarks.gpu.sizes import Sizes
from benchmarks.torch_twin import train_by
from fastmlp.bench.rounds import Disagreement
from fastmlp.errors import DataError, UnavailableError
from fastmlp.experiments.config.train import Config
from fastmlp.experiments.plan import Plan, make_plan
from fastmlp.experiments.recipes.recipe import settings_of
from fastmlp.models.metrics import evaluate

RECIPE = "ee5179-1"  # 784-500-250-100-10, sigmoid, batch 64, 15 epochs
ALLOWED = 0.003  # difference of test accuracies between GPU and CPU


def plan_of(sizes: Sizes) -> Plan:
    """The recipe, with fewer rows where the check has fewer."""
    config = Config(**settings_of(RECIPE, "train") | {"backend": "numba"})
    plan = make_plan(config)
    parts = {name: (x[: sizes.rows], y[: sizes.rows]) for name, (x, y) in plan.parts.items()}
    return plan._replace(parts=parts) if sizes.rows < Sizes.rows else plan


def trained_by(backend: str, plan: Plan) -> dict[str, Any]:
    """Seconds and figures of a training by one engine."""
    began = time.perf_counter()
    training = train_by(backend, plan)
    seconds = time.perf_counter() - began
    test = evaluate(training.model, *plan.parts["test"])
    return {
        "engine": backend,
        "seconds": seconds,
        "epochs": len(training.history),
        "rows": len(plan.parts["train"][0]),
        "test_accuracy": test["accuracy"],
        "loss": training.history[-1]["loss"],
    }


def measure_accuracy(part: Part, sizes: Sizes, watch: Any) -> None:
    """The training on the device, and on the CPU; an error if their accuracies differ."""
    try:
        plan = plan_of(sizes)
    except (DataError, UnavailableError) as error:
        part.add("left_out", {"what": f"recipe {RECIPE}", "reason": str(error)})
        return
    ends = []
    for backend in ("cuda", "numba"):
        ends.append(trained_by(backend, plan))
        part.add("accuracy", {"recipe": RECIPE, "network": plan.network.label, **ends[-1]})
    difference = abs(ends[0]["test_accuracy"] - ends[1]["test_accuracy"])
    if not difference <= ALLOWED:
        part.error(
            "accuracy", Disagreement(f"test accuracies of GPU and CPU differ by {difference:.2%}, allowed {ALLOWED:.2%}")
        )
