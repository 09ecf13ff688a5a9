"""Settings of a learning-rate range test, `fastmlp lr-find`: those of `train`, and the range of learning rates."""

from __future__ import annotations

from dataclasses import dataclass

from fastmlp.experiments.config.fields import FLOAT, INTEGER
from fastmlp.experiments.config.shared import training_setting
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.training.settings import TEST_END, TEST_START, TEST_STEPS, check_range

# Settings of a training run that have no effect on the test. Recipes and config files may contain them.
IGNORED = (
    *("epochs", "lr", "schedule", "lr_warmup", "lr_step", "lr_gamma", "lr_patience", "lr_decay"),
    *("patience", "monitor", "min_delta", "restore_best", "val_steps", "max_time"),
    *("out", "force", "per_class_every", "save_every", "predictions", "min_accuracy"),
)


@dataclass(frozen=True, kw_only=True)
class RangeTestConfig(TrainConfig):
    """Settings of a learning-rate range test. `training.learning_rate.find_learning_rate` describes the new ones.

    Raises
    ------
    ConfigError : see `TrainConfig` and `check_range`
    """

    start: float = training_setting(FLOAT, TEST_START, "Smallest learning rate.", common=True)
    end: float = training_setting(FLOAT, TEST_END, "Largest learning rate.", common=True)
    steps: int = training_setting(INTEGER, TEST_STEPS, "Number of mini-batches, one per learning rate.", common=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.start, self.end, self.steps)
