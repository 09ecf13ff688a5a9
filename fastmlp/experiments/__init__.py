"""Training runs saved in run folders, evaluation and prediction with saved models, feature extraction, and recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmlp._lazy import lazy

if TYPE_CHECKING:
    from fastmlp.experiments.comparison import compare_runs as compare_runs
    from fastmlp.experiments.config.extract import ExtractConfig as ExtractConfig
    from fastmlp.experiments.config.train import TrainConfig as TrainConfig
    from fastmlp.experiments.evaluation import evaluate_run as evaluate_run
    from fastmlp.experiments.features.extraction import extract_run as extract_run
    from fastmlp.experiments.prediction import predict_files as predict_files
    from fastmlp.experiments.range_test import run_range_test as run_range_test
    from fastmlp.experiments.training_run import run_training as run_training

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "comparison": ["compare_runs"],
        "config.extract": ["ExtractConfig"],
        "config.train": ["TrainConfig"],
        "evaluation": ["evaluate_run"],
        "features.extraction": ["extract_run"],
        "prediction": ["predict_files"],
        "range_test": ["run_range_test"],
        "training_run": ["run_training"],
    },
)
