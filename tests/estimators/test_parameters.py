"""Tests of the parameters that scikit-learn's classes do not have, and of the errors for invalid values."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import neural_network
from sklearn.datasets import load_digits, load_iris, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning

from fastmlp import MLPClassifier, MLPRegressor, ReduceOnPlateau, Schedule
from fastmlp.estimators.parameters import CHECKS
from fastmlp.nn.schedules import PlateauTracker

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
DIGITS, LABELS = (part[:400] for part in load_digits(return_X_y=True))


def classifier(**parameters: Any) -> MLPClassifier:
    return MLPClassifier(**{"hidden_layer_sizes": (12,), "max_iter": 8, "random_state": 0, **parameters})


def same(a: Any, b: Any) -> bool:
    """Return whether the fitted parameters of two estimators are bitwise identical."""
    return all(np.array_equal(p, q) for p, q in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True))


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("batch_size", ["auto", 20])
def test_rows_of_weight_zero_are_left_out(batch_size: Any) -> None:
    """The result is bitwise identical to training without these rows."""
    weights = np.random.default_rng(0).integers(0, 2, len(Y)).astype(float)
    estimator = classifier(batch_size=batch_size)
    kept = weights > 0
    with_zeros = classifier(batch_size=batch_size).fit(X, Y, weights)
    assert same(with_zeros, estimator.fit(X[kept], Y[kept]))


def test_a_weight_of_k_is_k_rows_and_the_order_does_not_matter_in_full_batches() -> None:
    rng = np.random.default_rng(0)
    weights, order = rng.integers(1, 4, len(Y)), rng.permutation(len(Y))
    weighted = classifier().fit(X, Y, weights)
    with pytest.warns(UserWarning, match="clipped"):
        repeated = classifier(batch_size=1000).fit(X.repeat(weights, axis=0), Y.repeat(weights))
    assert same(weighted, repeated)
    assert weighted.loss_curve_ == repeated.loss_curve_
    assert same(classifier().fit(X[order], Y[order]), classifier().fit(X, Y))
    assert not same(classifier(batch_size=20).fit(X[order], Y[order]), classifier(batch_size=20).fit(X, Y))


def test_class_weights_are_sample_weights() -> None:
    of_classes = {0: 1.0, 1: 3.0, 2: 0.5}
    weights = np.array([of_classes[label] for label in Y])
    assert same(classifier(class_weight=of_classes).fit(X, Y), classifier().fit(X, Y, weights))
    few = np.r_[0:20, 50:150]
    counts = np.bincount(Y[few])
    balanced = classifier(class_weight="balanced").fit(X[few], Y[few])
    assert same(balanced, classifier().fit(X[few], Y[few], (len(few) / 3 / counts)[Y[few]]))
    assert not same(balanced, classifier().fit(X[few], Y[few]))
    own = np.arange(len(Y)) % 2 + 1.0
    assert same(classifier(class_weight=of_classes).fit(X, Y, own), classifier().fit(X, Y, weights * own))


@pytest.mark.parametrize(
    "weights", [np.zeros(len(Y)), np.full(len(Y), np.nan), -np.ones(len(Y)), np.ones(3), np.ones((150, 2))]
)
def test_invalid_weights_are_refused(weights: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"sample_weight.* (must be 150 numbers|must be nonnegative|must be positive)",
    ):
        classifier().fit(X, Y, weights)


# ------------------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize(
    "changed",
    [
        {"dropout": 0.4},
        {"l1": 1.0},
        {"label_smoothing": 0.2},
        {"max_grad_norm": 0.01},
        {"activation": "leaky-relu:0.2"},
        {"activation": ["gelu"]},
        {"schedule": "cosine"},
        {"schedule": Schedule("exponential", decay=0.5)},
        {"solver": "sgd"},
    ],
    ids=str,
)
def test_every_own_parameter_has_an_effect(changed: dict[str, Any]) -> None:
    assert not same(classifier(**changed).fit(X, Y), classifier().fit(X, Y))


def test_dropout_and_activations_per_layer() -> None:
    sizes = {"hidden_layer_sizes": (8, 6)}
    estimator = classifier(**sizes, dropout=(0.0, 0.5), activation=["silu", "logistic"]).fit(X, Y)
    layers = estimator.to_model().network.layers
    assert [layer.activation for layer in layers] == ["silu", "sigmoid", "linear"]
    assert [layer.dropout for layer in layers] == [0.0, 0.5, 0.0]
    assert same(estimator, classifier(**sizes, dropout=(0.0, 0.5), activation=["silu", "logistic"]).fit(X, Y))
    with pytest.raises(ValueError, match="2 hidden layers"):
        classifier(**sizes, dropout=(0.1, 0.2, 0.3)).fit(X, Y)


def test_l1_makes_weights_small() -> None:
    small = classifier(l1=20.0, max_iter=200, learning_rate_init=0.01).fit(X, Y)
    plain = classifier(max_iter=200, learning_rate_init=0.01).fit(X, Y)
    assert np.mean(np.abs(small.coefs_[0]) < 0.01) > np.mean(np.abs(plain.coefs_[0]) < 0.01) + 0.3


@pytest.mark.parametrize("classes", [2, 3])
def test_label_smoothing_makes_predictions_less_certain(classes: int) -> None:
    rows = classes * 50
    given = {"max_iter": 300, "learning_rate_init": 0.02, "tol": 0.0}
    smooth = classifier(label_smoothing=0.2, **given).fit(X[:rows], Y[:rows]).predict_proba(X[:rows])
    sharp = classifier(**given).fit(X[:rows], Y[:rows]).predict_proba(X[:rows])
    assert np.median(sharp.max(axis=1)) > 0.98
    assert np.median(smooth.max(axis=1)) == pytest.approx(1 - 0.2 * (classes - 1) / classes, abs=0.03)


def test_a_schedule_covers_max_iter_epochs() -> None:
    estimator = classifier(schedule="cosine", max_iter=10, learning_rate_init=0.1, tol=0.0, n_iter_no_change=50).fit(X, Y)
    rates = [row["learning_rate"] for row in estimator.history_]
    np.testing.assert_allclose(rates, [0.05 * (1 + np.cos(np.pi * epoch / 10)) for epoch in range(10)])


def test_a_schedule_continues_over_calls_of_partial_fit() -> None:
    """Its epochs are those of all calls, also after a copy."""
    fitted = classifier(schedule="cosine", max_iter=6, tol=0.0).fit(X, Y)
    for schedule in ("cosine", ReduceOnPlateau(factor=0.5, patience=0, threshold=0.9)):
        estimator = classifier(schedule=schedule, max_iter=6).partial_fit(X, Y, classes=[0, 1, 2])
        for _ in range(2):
            estimator.partial_fit(X, Y)
        estimator = copy.deepcopy(estimator)
        for _ in range(3):
            estimator.partial_fit(X, Y)
        rates = [row["learning_rate"] for row in estimator.history_]
        if schedule == "cosine":
            assert rates == [row["learning_rate"] for row in fitted.history_]
        else:
            assert rates == [0.001 * 0.5 ** max(0, epoch - 1) for epoch in range(6)]


def test_rows_that_were_merged_are_counted() -> None:
    """`t_` is the number of rows that scikit-learn counts."""
    twice = classifier(max_iter=3).fit(X[:50].repeat(2, axis=0), np.tile(Y[::75], 50))
    theirs = neural_network.MLPClassifier((12,), max_iter=3, random_state=0)
    assert twice.t_ == theirs.fit(X[:50].repeat(2, axis=0), np.tile(Y[::75], 50)).t_ == 300


def test_plateau_reduces_the_learning_rate_of_later_epochs() -> None:
    estimator = classifier(schedule=ReduceOnPlateau(factor=0.5, patience=0, threshold=0.5), n_iter_no_change=50).fit(X, Y)
    rates = [row["learning_rate"] for row in estimator.history_]
    tracker = PlateauTracker(ReduceOnPlateau(factor=0.5, patience=0, threshold=0.5))
    wanted = [0.001 * tracker.update(row["loss"]) for row in estimator.history_]
    assert rates[0] == 0.001 and rates[1:] == wanted[:-1] and rates[-1] < 0.1 * rates[0]


@pytest.mark.parametrize("patience", [0, 2])
def test_plateau_is_that_of_pytorch(patience: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    judge = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, threshold=0.01)
    tracker = PlateauTracker(ReduceOnPlateau(factor=0.5, patience=patience, threshold=0.01))
    for loss in np.random.default_rng(0).uniform(1, 1.2, 20).cumprod() ** -0.05:
        judge.step(float(loss))
        assert tracker.update(float(loss)) == optimizer.param_groups[0]["lr"]
    assert tracker.multiplier < 1


# ------------------------------------------------------------------------------------------------ validation and limits


def test_a_validation_set_is_scored_after_each_epoch_and_the_best_epoch_is_kept() -> None:
    train, held = slice(0, 300), slice(300, 400)
    estimator = classifier(max_iter=30, learning_rate_init=0.03, batch_size=20)
    estimator.fit(DIGITS[train], LABELS[train], validation=(DIGITS[held], LABELS[held]))
    scores = estimator.validation_scores_
    assert len(scores) == estimator.n_iter_ == len(estimator.history_)
    assert estimator.best_validation_score_ == max(scores)
    assert estimator.score(DIGITS[held], LABELS[held]) == pytest.approx(max(scores))
    assert [row["validation_score"] for row in estimator.history_] == scores
    assert scores[-1] < max(scores)  # otherwise this test would pass even if the last epoch were kept
    stopped = classifier(max_iter=200, learning_rate_init=0.03, batch_size=20, early_stopping=True, n_iter_no_change=3)
    stopped.fit(DIGITS[train], LABELS[train], validation=(DIGITS[held], LABELS[held]))
    assert stopped.n_iter_ < 200 and stopped.t_ == 300 * stopped.n_iter_


def test_a_time_limit_ends_the_training() -> None:
    estimator = classifier(max_iter=10**7, max_time=0.2, tol=0.0, n_iter_no_change=np.inf, learning_rate_init=1e-6).fit(X, Y)
    assert 1 <= estimator.n_iter_ < 10**6


def test_ctrl_c_keeps_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmlp.engines.cpu.engine import NumbaEngine

    original, calls = NumbaEngine.train, []

    def train(engine: Any, *args: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return original(engine, *args)

    monkeypatch.setattr(NumbaEngine, "train", train)
    estimator = classifier(batch_size=70, backend="numba")
    with pytest.warns(UserWarning, match="interrupted"):
        estimator.fit(X, Y)
    monkeypatch.undo()
    assert estimator.n_iter_ == 3
    assert same(estimator, classifier(batch_size=70, max_iter=3).fit(X, Y))


# ------------------------------------------------------------------------------------------------ labels and dtypes


@pytest.mark.parametrize(
    "names",
    [
        np.array(["a", "b", "c"]),
        np.array(["a", "bc", "d"], object),
        np.array([-5, 0, 7]),
        np.array([0.0, 1.0, 2.0]),
        np.array([False, True]),
        np.array(["one"]),
    ],
    ids=str,
)
def test_labels_of_any_kind(names: Any) -> None:
    labels = names[Y % len(names)]
    estimator = classifier(max_iter=40, learning_rate_init=0.01).fit(X, labels)
    theirs = neural_network.MLPClassifier(max_iter=1, random_state=0).fit(X, labels)
    assert estimator.classes_.dtype == theirs.classes_.dtype and list(estimator.classes_) == sorted(names)
    predicted = estimator.predict(X)
    assert predicted.dtype == theirs.predict(X).dtype and set(predicted) <= set(names)
    assert estimator.predict_proba(X).shape == (len(X), max(2, len(names)))


def test_an_unknown_label_is_named() -> None:
    estimator = classifier().fit(X, np.array(["a", "b", "c"])[Y])
    with pytest.raises(ValueError, match="unknown class 'z'"):
        estimator.fit(X, np.array(["a", "b", "c"])[Y], validation=(X[:2], ["a", "z"]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", [np.float32, np.float64])
def test_predictions_have_the_dtype_of_the_training_data(given: Any, dtype: str) -> None:
    regressor = MLPRegressor(max_iter=3, dtype=dtype, random_state=0).fit(X.astype(given), Y.astype(given))
    assert {a.dtype for a in regressor.coefs_ + regressor.intercepts_} == {np.dtype(given)}
    assert regressor.predict(X).dtype == given


# ------------------------------------------------------------------------------------------------ refused

WRONG: dict[str, list[Any]] = {
    "solver": ["adamw", 1],
    "alpha": [-1, "0", True, np.nan],
    "batch_size": [0, 1.5, "all"],
    "learning_rate": ["cosine", None],
    "learning_rate_init": [0, -1.0, np.inf],
    "power_t": [-0.5],
    "max_iter": [0, 10.0],
    "shuffle": [1],
    "tol": [-1e-4],
    "verbose": ["yes"],
    "warm_start": [None],
    "momentum": [-0.1, 1.0],
    "nesterovs_momentum": [1],
    "early_stopping": ["yes"],
    "validation_fraction": [1.0, -0.1],
    "beta_1": [1.0],
    "beta_2": [1.0],
    "epsilon": [0.0],
    "n_iter_no_change": [0, 2.5],
    "max_fun": [0],
    "loss": ["absolute_error"],
    "l1": [-1],
    "label_smoothing": [1.0],
    "max_grad_norm": [0.0],
    "max_time": [0],
    "n_threads": [0],
    "dtype": ["float16", np.float64],
}


def test_the_table_of_wrong_values_is_complete() -> None:
    assert set(WRONG) == set(CHECKS)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    estimator = MLPRegressor() if name == "loss" else MLPClassifier()
    with pytest.raises(ValueError, match=f"^{name} must be "):
        estimator.set_params(**{name: value}).fit(X, Y)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_layer_sizes": (10, 0)}, "hidden_layer_sizes must be > 0"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"activation": 3}, "activation must be a name or a list"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"schedule": "adaptive"}, "adaptive"),
        ({"schedule": 0.1}, "schedule must be"),
        ({"schedule": "cosine", "learning_rate": "adaptive"}, "schedule needs learning_rate='constant'"),
        ({"solver": "lbfgs", "dropout": 0.1}, "dropout needs the solver 'sgd' or 'adam'"),
        ({"solver": "lbfgs", "max_time": 3}, "max_time needs the solver 'sgd' or 'adam'"),
        ({"backend": "abacus"}, "unknown backend"),
    ],
    ids=str,
)
def test_wrong_combinations_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(**changed).fit(X, Y)


def test_a_validation_set_must_be_a_pair_and_needs_epochs() -> None:
    with pytest.raises(ValueError, match=r"validation must be a pair \(X, y\)"):
        classifier().fit(X, Y, validation=X)
    with pytest.raises(ValueError, match="a validation set needs the solver"):
        classifier(solver="lbfgs").fit(X, Y, validation=(X, Y))
    with pytest.raises(ValueError, match="features"):
        classifier().fit(X, Y, validation=(X[:, :2], Y))


def test_warm_start_and_partial_fit_keep_the_sizes_but_may_change_other_parameters() -> None:
    estimator = classifier(warm_start=True, solver="lbfgs").fit(X, Y)
    estimator.set_params(solver="sgd", early_stopping=True).fit(X, Y)
    estimator.set_params(early_stopping=False, solver="adam").fit(X, Y)
    assert len(estimator.loss_curve_) == 16 and len(estimator.validation_scores_) == 8
    with pytest.raises(ValueError, match="do not change hidden_layer_sizes"):
        estimator.set_params(hidden_layer_sizes=(5,)).fit(X, Y)


def test_negative_targets_of_poisson_are_refused() -> None:
    with pytest.raises(ValueError, match="y >= 0"):
        MLPRegressor(loss="poisson").fit(X, Y - 1.0)


def test_convergence_is_reported() -> None:
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
        classifier().fit(X, Y)
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge"):
        classifier(solver="lbfgs", max_iter=2).fit(X, Y)


def test_multilabel_targets_are_independent_probabilities() -> None:
    features, targets = make_multilabel_classification(200, random_state=0)
    estimator = classifier(max_iter=300, learning_rate_init=0.02).fit(features, targets)
    assert estimator.predict(features).shape == targets.shape
    assert np.ptp(estimator.predict_proba(features).sum(axis=1)) > 0.5
    assert estimator.score(features, targets) > 0.5
