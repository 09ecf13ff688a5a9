"""The estimators `MLPClassifier` and `MLPRegressor`, which have the interface of scikit-learn's classes of these names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmlp._lazy import lazy

if TYPE_CHECKING:
    from fastmlp.estimators.classifier import MLPClassifier as MLPClassifier
    from fastmlp.estimators.regressor import MLPRegressor as MLPRegressor

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "classifier": ["MLPClassifier"],
        "regressor": ["MLPRegressor"],
    },
)
