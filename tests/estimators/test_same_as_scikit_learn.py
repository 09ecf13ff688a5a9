"""With the same parameters, data and `random_state`, fastmlp and scikit-learn have the same loss after every epoch."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from sklearn import neural_network
from sklearn.datasets import load_digits, make_multilabel_classification, make_regression

from fastmlp import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PAIRS = [(MLPClassifier, neural_network.MLPClassifier), (MLPRegressor, neural_network.MLPRegressor)]
TOLERANCE = 1e-4  # relative tolerance of the loss of each epoch


def digits(classes: int = 10) -> tuple[Any, Any]:
    """Return 600 rows of the digits with labels below `classes`, or 200 rows for at most three classes.

    Both numbers are multiples of 200, the default mini-batch size.
    """
    X, y = load_digits(n_class=classes, return_X_y=True)
    rows = slice(0, 600 if classes > 3 else 200)
    return X[rows] / 16, y[rows]


def regression(outputs: int = 1) -> tuple[Any, Any]:
    X, y = make_regression(400, 10, n_targets=outputs, noise=1.0, random_state=0)
    return X, y / 100


def multilabel() -> tuple[Any, Any]:
    X, y = make_multilabel_classification(400, 12, n_classes=5, random_state=0)
    return X / 10, y


def poisson() -> tuple[Any, Any]:
    X, _ = regression()
    return X, np.random.default_rng(0).poisson(np.exp(X[:, 0])).astype(float)


# name -> index in PAIRS, data, parameters
PROBLEMS: dict[str, tuple[int, tuple[Any, Any], dict[str, Any]]] = {
    "multiclass": (0, digits(), {}),
    "binary": (0, digits(2), {}),
    "multilabel": (0, multilabel(), {}),
    "regression": (1, regression(), {}),
    "multi-output": (1, regression(3), {}),
    "poisson": (1, poisson(), {"loss": "poisson"}),
}
SOLVERS: dict[str, dict[str, Any]] = {
    "sgd": {"solver": "sgd", "momentum": 0, "learning_rate_init": 0.02},
    "momentum": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.01},
    "nesterov": {"solver": "sgd", "learning_rate_init": 0.01},
    "adam": {"solver": "adam"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "mini-batches": {"batch_size": 40},
    "not shuffled": {"batch_size": 40, "shuffle": False},
    "large alpha": {"alpha": 5.0, "batch_size": 100},
    "logistic": {"activation": "logistic"},
    "tanh": {"activation": "tanh", "hidden_layer_sizes": (20, 10)},
    "identity": {"activation": "identity", "hidden_layer_sizes": 8},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.3, "power_t": 0.1, "batch_size": 50},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.02, "n_iter_no_change": 2, "batch_size": 50},
    "stops by tol": {"tol": 0.05, "n_iter_no_change": 3, "batch_size": 50},
}


def fit_both(problem: str, **parameters: Any) -> tuple[Any, Any]:
    """Fit fastmlp's estimator in float64 and scikit-learn's estimator on the same problem, and return both."""
    index, (X, y), own = PROBLEMS[problem]
    ours, theirs = PAIRS[index]
    given = {"max_iter": 20, "random_state": 3, **own, **parameters}
    return ours(dtype="float64", **given).fit(X, y), theirs(**given).fit(X, y)


def check_curves(ours: Any, theirs: Any, tolerance: float = TOLERANCE) -> None:
    assert ours.n_iter_ == theirs.n_iter_ and ours.t_ == theirs.t_
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=tolerance)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_parameters_are_those_of_scikit_learn_in_the_same_order(ours: Any, theirs: Any) -> None:
    """Names, kinds and defaults are equal. The parameters that only fastmlp has are keyword-only and come last."""
    mine = list(inspect.signature(ours).parameters.values())
    wanted = list(inspect.signature(theirs).parameters.values())
    described = [(p.name, p.kind, p.default) for p in mine]
    assert described[: len(wanted)] == [(p.name, p.kind, p.default) for p in wanted]
    assert len(mine) > len(wanted) and all(p.kind is p.KEYWORD_ONLY for p in mine[len(wanted) :])


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_fitted_attributes_are_those_of_scikit_learn(problem: str, solver: str) -> None:
    """All public fitted attributes of scikit-learn exist, and the arrays have the same shapes and dtypes."""
    ours, theirs = fit_both(problem, solver=solver, max_iter=2)
    for name in [name for name in vars(theirs) if name.endswith("_") and not name.startswith("_")]:
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert np.ndim(mine) == np.ndim(other) if name not in ("coefs_", "intercepts_") else True, name
        if name in ("coefs_", "intercepts_"):
            assert [a.shape for a in mine] == [a.shape for a in other] and mine[0].dtype == other[0].dtype
        elif name in ("out_activation_", "n_layers_", "n_outputs_", "n_features_in_"):
            assert mine == other


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_loss_curves_follow_scikit_learn(problem: str, solver: str) -> None:
    check_curves(*fit_both(problem, **SOLVERS[solver]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("problem", ["multiclass", "regression"])
def test_variants_follow_scikit_learn(problem: str, variant: str) -> None:
    ours, theirs = fit_both(problem, **VARIANTS[variant])
    check_curves(ours, theirs, 2e-3 if variant == "large alpha" else TOLERANCE)  # the penalty is interpolated


def test_another_parameter_is_another_curve() -> None:
    """The comparison detects an `alpha` that is 10 % larger."""
    X, y = digits()
    given = {"max_iter": 20, "random_state": 3, "solver": "sgd", "dtype": "float64"}
    theirs = neural_network.MLPClassifier(alpha=1.0, max_iter=20, random_state=3, solver="sgd").fit(X, y)
    check_curves(MLPClassifier(alpha=1.0, **given).fit(X, y), theirs)
    with pytest.raises(AssertionError):
        check_curves(MLPClassifier(alpha=1.1, **given).fit(X, y), theirs)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_lbfgs_follows_scikit_learn(problem: str) -> None:
    """The loss is the same after up to 20 iterations.

    For several outputs with squared error, only the first iteration is compared, because the gradient that scikit-learn
    computes is not the gradient of its loss.
    """
    for iterations in (1, 2, 3, 5, 8, 12, 16, 20):
        if problem == "multi-output" and iterations > 1:
            break
        ours, theirs = fit_both(problem, solver="lbfgs", max_iter=iterations, tol=0.0)
        assert ours.n_iter_ == theirs.n_iter_
        assert ours.loss_ == pytest.approx(theirs.loss_, rel=TOLERANCE)


@pytest.mark.parametrize("problem", ["multiclass", "binary", "regression"])
def test_early_stopping_follows_scikit_learn(problem: str) -> None:
    """The validation rows, the scores, the best score and the best parameters are the same."""
    ours, theirs = fit_both(problem, early_stopping=True, max_iter=15, validation_fraction=0.25, batch_size=50, alpha=0.0)
    np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, atol=1e-6)
    assert ours.best_validation_score_ == pytest.approx(theirs.best_validation_score_, abs=1e-6)
    assert ours.best_loss_ is None
    for mine, other in zip(ours.coefs_, theirs.coefs_, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_partial_fit_and_warm_start_follow_scikit_learn() -> None:
    X, y = digits()
    ours = MLPClassifier(random_state=3, dtype="float64", solver="sgd", batch_size=50)
    theirs = neural_network.MLPClassifier(random_state=3, solver="sgd", batch_size=50)
    for estimator in (ours, theirs):
        for _ in range(5):
            estimator.partial_fit(X, y, classes=np.arange(10))
        estimator.set_params(warm_start=True, max_iter=4).fit(X, y)
    check_curves(ours, theirs)
    assert len(ours.loss_curve_) == 9


def test_sample_weights_follow_scikit_learn() -> None:
    X, y = digits()
    weights = np.random.default_rng(0).uniform(0.5, 2, len(y))
    given = {"random_state": 3, "max_iter": 20, "alpha": 0.0, "solver": "sgd", "batch_size": 50}
    ours = MLPClassifier(dtype="float64", **given).fit(X, y, weights)
    check_curves(ours, neural_network.MLPClassifier(**given).fit(X, y, weights))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_float32_follows_float64(problem: str) -> None:
    """The default engine, which computes in float32, gives nearly the same losses and predictions as float64."""
    index, (X, y), own = PROBLEMS[problem]
    given = {"max_iter": 20, "random_state": 3, **own}
    fast, precise = (PAIRS[index][0](dtype=dtype, **given).fit(X, y) for dtype in ("float32", "float64"))
    np.testing.assert_allclose(fast.loss_curve_, precise.loss_curve_, rtol=2e-4)
    assert fast.coefs_[0].dtype == np.float64
    assert np.mean(np.abs(fast.predict(X) - precise.predict(X))) < 1e-3
