"""Training of one model, or of many models concurrently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmlp._lazy import lazy

if TYPE_CHECKING:
    from fastmlp.training.api import train as train
    from fastmlp.training.api import train_many as train_many
    from fastmlp.training.learning_rate import LearningRateCurve as LearningRateCurve
    from fastmlp.training.learning_rate import find_learning_rate as find_learning_rate
    from fastmlp.training.result import TrainResult as TrainResult
    from fastmlp.training.settings import Settings as Settings

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "api": ["train", "train_many"],
        "learning_rate": ["LearningRateCurve", "find_learning_rate"],
        "result": ["TrainResult"],
        "settings": ["Settings"],
    },
)
