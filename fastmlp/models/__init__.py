"""Trained networks: prediction, metrics, model files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmlp._lazy import lazy

if TYPE_CHECKING:
    from fastmlp.models.metrics import classification_metrics as classification_metrics
    from fastmlp.models.metrics import regression_metrics as regression_metrics
    from fastmlp.models.model import Model as Model
    from fastmlp.models.model import load as load

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "metrics": ["classification_metrics", "regression_metrics"],
        "model": ["Model", "load"],
    },
)
