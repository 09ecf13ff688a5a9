"""scikit-learn's own tests of its MLP, and its checks of estimators (`check_estimator`), applied to fastmlp's estimators."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import sklearn
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmlp import MLPClassifier, MLPRegressor

# The tests match scikit-learn's messages, so they belong to this version.
VERSION = "1.9."
SUITE = "sklearn.neural_network.tests.test_mlp"
# These tests use private attributes of scikit-learn's classes, such as `_optimizer` and `_loss_grad_lbfgs`.
NOT_RUN = (
    "test_gradient",
    "test_learning_rate_warmstart",
    "test_adaptive_learning_rate",
)

pytestmark = pytest.mark.filterwarnings("default")  # scikit-learn's tests cause warnings intentionally


def load_suite(**classes: Any) -> ModuleType:
    """Return a new copy of scikit-learn's test module in which `classes` replace the classes of `sklearn.neural_network`."""
    spec = importlib.util.find_spec(SUITE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.multiple("sklearn.neural_network", **classes):
        spec.loader.exec_module(module)
    return module


def suite_of(module: ModuleType) -> dict[str, Any]:
    """Return the test functions of a module, without those in NOT_RUN."""
    return {name: value for name, value in vars(module).items() if name.startswith("test_") and name not in NOT_RUN}


SUITE_MODULE = load_suite(MLPClassifier=MLPClassifier, MLPRegressor=MLPRegressor)

if sklearn.__version__.startswith(VERSION):
    globals().update(suite_of(SUITE_MODULE))


@pytest.fixture(autouse=True)
def no_global_random_numbers() -> Iterator[None]:
    """Seed NumPy's global generator, which scikit-learn's tests use. This fixture overrides the one in conftest.py."""
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    yield
    np.random.set_state(before)  # noqa: NPY002


@pytest.fixture
def global_random_seed() -> int:
    """Return a seed, as the fixture of this name in scikit-learn's conftest.py does."""
    return 42


def test_the_suite_is_scikit_learns_and_uses_our_classes():
    """More than 35 tests are collected, all tests in NOT_RUN exist, and the module uses fastmlp's classes."""
    if not sklearn.__version__.startswith(VERSION):
        pytest.skip(f"the tests are those of scikit-learn {VERSION}x, but {sklearn.__version__} is installed")
    assert SUITE_MODULE.MLPClassifier is MLPClassifier and SUITE_MODULE.MLPRegressor is MLPRegressor
    assert len(suite_of(SUITE_MODULE)) > 35
    assert all(callable(getattr(SUITE_MODULE, name)) for name in NOT_RUN)


def test_the_adapter_would_show_a_wrong_estimator():
    """scikit-learn's tests fail for a classifier whose predictions are wrong."""

    class Wrong(MLPClassifier):
        def predict(self, X: Any) -> Any:
            return super().predict(X)[::-1]

    module = load_suite(MLPClassifier=Wrong, MLPRegressor=MLPRegressor)
    X, y = module.classification_datasets[0]
    with pytest.raises(AssertionError):
        module.test_lbfgs_classification(X, y)


@parametrize_with_checks([MLPClassifier(), MLPRegressor()])
def test_estimator_contract(estimator, check):
    """Every check of scikit-learn passes for estimators with default parameters."""
    check(estimator)
