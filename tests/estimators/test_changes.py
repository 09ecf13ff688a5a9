"""What changes between calls: parameters, kinds of targets, arrays and processes; and values at the limits."""

from __future__ import annotations

import os
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn import neural_network

from fastmlp import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X, Y, TARGET = RNG.normal(size=(60, 4)), RNG.integers(0, 3, 60), RNG.normal(size=60)
INDICATOR = RNG.integers(0, 2, (60, 3))
SMALL: dict[str, Any] = {"max_iter": 4, "random_state": 0, "hidden_layer_sizes": (5,)}


def classifier(**parameters: Any) -> MLPClassifier:
    return MLPClassifier(**{**SMALL, **parameters})


def both(kind: str, **parameters: Any) -> tuple[Any, Any]:
    """Return fastmlp's estimator in float64 and scikit-learn's with the same parameters."""
    ours = {"classifier": MLPClassifier, "regressor": MLPRegressor}[kind]
    theirs = {"classifier": neural_network.MLPClassifier, "regressor": neural_network.MLPRegressor}[kind]
    return ours(dtype="float64", **{**SMALL, **parameters}), theirs(**{**SMALL, **parameters})


# ------------------------------------------------------------------------------------------------ targets


@pytest.mark.parametrize(
    "wrong", [np.full(60, 10**8), Y + 1, TARGET, INDICATOR[:, :2]], ids=["huge", "too large", "floats", "2 columns"]
)
def test_targets_that_do_not_fit_a_multilabel_classifier_are_refused(wrong: Any) -> None:
    """They would be indices outside the arrays of the kernels."""
    fitted = classifier().fit(X, INDICATOR)
    with pytest.raises(ValueError, match=r"classes|class|columns"):
        fitted.partial_fit(X, wrong)
    with pytest.raises(ValueError, match=r"classes|class|columns"):
        classifier().fit(X, INDICATOR, validation=(X, wrong))


def test_one_label_per_row_is_an_indicator() -> None:
    ours, theirs = both("classifier")
    curves = [estimator.fit(X, INDICATOR).partial_fit(X, Y).loss_curve_ for estimator in (ours, theirs)]
    np.testing.assert_allclose(*curves, rtol=1e-4)
    scored = classifier().fit(X, INDICATOR, validation=(X, np.eye(3, dtype=int)[Y]))
    assert scored.validation_scores_ == classifier().fit(X, INDICATOR, validation=(X, Y)).validation_scores_


def test_indicators_do_not_fit_a_classifier_of_labels() -> None:
    for labels in (Y, Y % 2):
        with pytest.raises(ValueError, match="not fitted with multilabel"):
            classifier().fit(X, labels).partial_fit(X, INDICATOR)
        with pytest.raises(ValueError, match="not fitted with multilabel"):
            classifier().fit(X, labels, validation=(X, INDICATOR))
    with pytest.raises(ValueError, match="3 columns, but there are 2 labels"):
        classifier().partial_fit(X, INDICATOR, classes=[0, 1])
    with pytest.raises(ValueError, match="at least one label"):
        classifier().partial_fit(X, Y, classes=[])


def test_sparse_indicators_give_sparse_predictions() -> None:
    dense = classifier().fit(X, INDICATOR)
    fitted = classifier().fit(X, sparse.csr_matrix(INDICATOR))
    assert sparse.issparse(fitted.predict(X)) and (fitted.predict(X).toarray() == dense.predict(X)).all()


def test_a_single_class_is_scored_as_it_is_predicted() -> None:
    ours, theirs = both("classifier", early_stopping=True, validation_fraction=0.3)
    assert ours.fit(X, Y * 0).validation_scores_ == theirs.fit(X, Y * 0).validation_scores_ == [1.0] * 4


def test_an_unknown_label_of_another_type_is_named() -> None:
    fitted = classifier().fit(X, np.array(["0", "1", "2"])[Y])
    with pytest.raises(ValueError, match=r"row 0: label \d is not one of the classes \['0', '1', '2'\]"):
        fitted.partial_fit(X, Y)


def test_texts_are_no_targets_of_regression() -> None:
    with pytest.raises(ValueError, match="y must be numbers"):
        MLPRegressor().fit(X, TARGET.astype("U8"))


# ------------------------------------------------------------------------------------------------ parameters


def test_the_optimizer_stays_until_the_next_fit() -> None:
    """Another solver, momentum or epsilon has no effect on `partial_fit`, as in scikit-learn."""
    for first, then in (
        ({"solver": "sgd"}, {"solver": "adam"}),
        ({"solver": "adam"}, {"solver": "sgd"}),
        ({"solver": "sgd", "momentum": 0}, {"momentum": 0.9}),
        ({"solver": "adam"}, {"beta_1": 0.1, "epsilon": 0.1}),
    ):
        curves = []
        for estimator in both("classifier", **first):
            estimator.partial_fit(X, Y, classes=[0, 1, 2]).set_params(**then).partial_fit(X, Y).partial_fit(X, Y)
            estimator.set_params(warm_start=True).fit(X, Y)
            curves.append(estimator.loss_curve_)
        np.testing.assert_allclose(*curves, rtol=1e-4)


def test_predictions_use_the_fitted_sizes_and_the_present_activation() -> None:
    fitted = MLPRegressor(**SMALL).fit(X, TARGET)
    before = fitted.predict(X)
    assert np.array_equal(fitted.set_params(hidden_layer_sizes=(7,)).predict(X), before)
    assert not np.array_equal(fitted.set_params(activation="tanh").predict(X), before)
    assert np.array_equal(fitted.set_params(activation="relu").predict(X), before)
    with pytest.raises(ValueError, match="do not change hidden_layer_sizes"):
        fitted.set_params(warm_start=True).fit(X, TARGET)
    swapped = MLPRegressor(**{**SMALL, "hidden_layer_sizes": (3, 5)}, warm_start=True).fit(X, X)
    with pytest.raises(ValueError, match="do not change hidden_layer_sizes"):
        swapped.set_params(hidden_layer_sizes=(5, 3)).fit(X, X)  # the same number of parameters


def test_an_array_of_the_user_may_be_changed_in_place() -> None:
    fitted = MLPRegressor(**SMALL).fit(X, TARGET)
    weights = np.array(fitted.coefs_[1])
    fitted.coefs_[1] = weights
    assert np.ptp(fitted.predict(X)) > 0
    weights[:] = 0
    assert np.ptp(fitted.predict(X)) == 0
    own = np.zeros((5, 1))
    own.flags.writeable = False
    updated = MLPRegressor(**SMALL).partial_fit(X, TARGET)
    updated.coefs_[1] = own
    updated.predict(X)  # makes the network of the new array; the engine of `partial_fit` has the old one
    assert np.abs(updated.partial_fit(X, TARGET).coefs_[1]).max() < 0.01


def test_unpickled_arrays_are_read_only() -> None:
    fitted = pickle.loads(pickle.dumps(MLPRegressor(**SMALL).fit(X, TARGET)))  # noqa: S301
    assert not any(array.flags.writeable for array in fitted.coefs_ + fitted.intercepts_)


def test_without_hidden_layers_the_initial_parameters_are_those_of_scikit_learn() -> None:
    for activation in ("logistic", "relu"):
        ours, theirs = both("classifier", hidden_layer_sizes=(), activation=activation, max_iter=1)
        np.testing.assert_allclose(ours.fit(X, Y).coefs_[0], theirs.fit(X, Y).coefs_[0], rtol=1e-6)


def test_small_numpy_integers_are_sizes() -> None:
    given = MLPRegressor(**{**SMALL, "hidden_layer_sizes": np.uint8(5)}, batch_size=np.uint8(20)).fit(X, TARGET)
    assert np.array_equal(given.coefs_[0], MLPRegressor(**SMALL, batch_size=20).fit(X, TARGET).coefs_[0])


@pytest.mark.parametrize("dropout", ["x", None, [0.1, "y"], True])
def test_dropout_must_be_numbers(dropout: Any) -> None:
    with pytest.raises(ValueError, match="dropout must be a number or a list of numbers"):
        classifier(dropout=dropout).fit(X, Y)


# ------------------------------------------------------------------------------------------------ weights and losses


def test_weights_may_be_a_number_objects_tiny_or_huge() -> None:
    """Only their ratios within a mini-batch matter, so they need not be representable in float32."""
    plain = classifier(batch_size=20).fit(X, Y)
    for weights in (2.0, np.ones(60, object), np.full(60, 1e39), np.full(60, 1e-60)):
        given = classifier(batch_size=20, alpha=0.0).fit(X, Y, weights)
        np.testing.assert_allclose(given.coefs_[0], classifier(batch_size=20, alpha=0.0).fit(X, Y).coefs_[0], atol=1e-6)
    falling = np.exp(-np.linspace(0, 200, 60))
    ours, theirs = both("classifier", batch_size=20, alpha=0.0)
    np.testing.assert_allclose(ours.fit(X, Y, falling).loss_curve_, theirs.fit(X, Y, falling).loss_curve_, rtol=1e-6)
    assert plain.n_iter_ == 4


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_of_data_that_are_not_scaled_are_clipped_as_in_scikit_learn(dtype: Any, classes: int) -> None:
    rows, labels = (1000 * X).astype(dtype), Y % classes
    ours, theirs = both("classifier", max_iter=2)
    curves = [estimator.fit(rows, labels).loss_curve_ for estimator in (ours, theirs)]
    np.testing.assert_allclose(*curves, rtol=1e-3)


@pytest.mark.parametrize(
    ("weights", "message"), [({0: -1.0}, "nonnegative"), ({0: np.nan}, "nonnegative"), ({7: 1.0}, "not classes of y")]
)
def test_wrong_class_weights_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(class_weight=weights).fit(X, Y)


def test_class_weights_of_zero_and_in_partial_fit() -> None:
    with pytest.raises(ValueError, match="must not be zero for all rows"):
        classifier(class_weight={0: 0, 1: 0, 2: 0}).fit(X, Y)
    weighted = classifier(class_weight={0: 2.0}).partial_fit(X, Y, classes=[0, 1, 2])
    weighted.partial_fit(X[Y > 0], Y[Y > 0])  # a class of the dict has no rows here
    with pytest.raises(ValueError, match="does not support class_weight='balanced'"):
        classifier(class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])


@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_overflow_of_a_squared_gradient_is_reported(backend: str, early_stopping: bool) -> None:
    """scikit-learn's "adam" continues with updates of 0."""
    large = np.concatenate([X[:, :1] * 1e21, X[:, 1:]], axis=1)
    parameters = {"solver": "adam", "activation": "identity", "early_stopping": early_stopping, "backend": backend}
    with pytest.raises(ValueError, match="non-finite parameter weights"):
        classifier(max_iter=1, **parameters).fit(large, Y)


# ------------------------------------------------------------------------------------------------ repeatability


def test_the_first_fit_of_a_process_is_like_the_second() -> None:
    """The number of epochs per call does not depend on measured times, which affect the loss by the interpolated penalty."""
    rng = np.random.default_rng(26)
    rows = rng.normal(size=(400, 10))
    labels = (rows[:, 0] + rows[:, 1] ** 2 + rng.normal(size=400) * 0.5 > 0.5).astype(int)
    given = {"random_state": 0, "max_iter": 60, "alpha": 0.1, "tol": 0.01, "n_iter_no_change": 20}
    curves = []
    for seconds in (1e-9, 0.08, 1e9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastmlp.engines.chunks.CHUNK_SECONDS", seconds)
            curves.append(MLPClassifier((30,), **given).fit(rows, labels).loss_curve_)
    assert curves[0] == curves[1] == curves[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_predicts_while_the_parent_does() -> None:
    fitted = MLPRegressor(**SMALL).fit(X, TARGET)
    wanted, stop = fitted.predict(X), threading.Event()

    def predict() -> None:
        while not stop.is_set():
            fitted.predict(X)

    thread = threading.Thread(target=predict)
    thread.start()
    codes = []
    try:
        for _ in range(8):
            child = os.fork()
            if child == 0:
                same = np.array_equal(fitted.predict(X), wanted)
                model = fitted.to_model()
                fitted.predict(X)
                os._exit(0 if same and fitted.to_model() is model else 1)  # the child makes its network only once
            codes.append(os.waitpid(child, 0)[1])
    finally:
        stop.set()
        thread.join()
    assert codes == [0] * 8
