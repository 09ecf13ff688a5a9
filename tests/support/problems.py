"""Small training runs for tests: a classification problem, settings, and a callback that stores parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmlp.engines.base import Engine
from fastmlp.nn.optimizers import SGD
from fastmlp.training.settings import Settings


def problem(rows: int = 150, seed: int = 0, noise: float = 0.0) -> tuple[Any, Any]:
    """Return features and labels of three linearly separable classes; `noise` is the fraction of random labels."""
    rng = np.random.default_rng([seed, rows])
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    y = (x @ np.random.default_rng(9).normal(size=(4, 3))).argmax(axis=1)
    random = rng.random(rows) < noise
    y[random] = rng.integers(0, 3, random.sum())
    return x, y


def set_up(**changes: Any) -> Settings:
    """Return settings of a short training run, updated with `changes`."""
    defaults: dict[str, Any] = {"optimizer": SGD(0.1), "epochs": 4, "batch_size": 16, "patience": 0, "backend": "numpy"}
    return Settings(**{**defaults, **changes})


class Keeper:
    """A callback that stores the parameters at the end of each epoch."""

    def __init__(self) -> None:
        self.parameters: list[Any] = []

    def __call__(self, row: dict[str, Any], engine: Engine) -> None:
        self.parameters.append(engine.state().parameters)
        assert row["epoch"] == len(self.parameters)
