"""Helpers of the tests of `train_many`: small models, and comparison of training results."""

from __future__ import annotations

from typing import Any

from fastmlp.nn.network import Network
from fastmlp.training.result import TrainResult
from support.engines import same_bits
from support.problems import set_up

TIMES = ("seconds", "eval_seconds", "rows_per_second")
NETWORK = Network((4, 12, 3))
SMALL = [(NETWORK, set_up(seed=seed)) for seed in range(5)]


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a training history without durations and throughput."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


def same_training(one: TrainResult, other: TrainResult) -> bool:
    """Return whether two training results are bit-identical, except for durations and throughput."""
    same = same_bits(one.state, other.state) and same_bits(one.model.parameters, other.model.parameters)
    ends = [(training.best_epoch, training.stopped, training.backend) for training in (one, other)]
    return same and ends[0] == ends[1] and timeless(one.history) == timeless(other.history)
