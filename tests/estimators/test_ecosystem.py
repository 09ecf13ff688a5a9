"""Tests of the estimators with pipelines, searches, data frames, copies, joblib workers and callbacks."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.estimators.threads import default_threads

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
NAMES = ["a", "b", "c", "d"]


def classifier(**parameters: Any) -> MLPClassifier:
    return MLPClassifier(**{"hidden_layer_sizes": (10,), "max_iter": 5, "batch_size": 30, "random_state": 0, **parameters})


# ------------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("before", [True, False], ids=["before predict", "after predict"])
@pytest.mark.parametrize("copied", ["pickle", "deepcopy", "joblib"])
@pytest.mark.parametrize("kind", ["estimator", "model"])
def test_copies_predict_the_same_bits(kind: str, copied: str, before: bool, tmp_path: Any) -> None:
    estimator = classifier().fit(X, Y)
    given: Any = estimator if kind == "estimator" else estimator.to_model()
    if not before:
        given.predict(X)
    if copied == "joblib":
        joblib.dump(given, tmp_path / "file")
        found = joblib.load(tmp_path / "file")
    else:
        found = copy.deepcopy(given) if copied == "deepcopy" else pickle.loads(pickle.dumps(given))  # noqa: S301
    assert np.array_equal(found.predict_proba(X), given.predict_proba(X))
    assert np.array_equal(given.predict(X), found.predict(X))


def test_a_copy_continues_as_the_original_does() -> None:
    first = classifier(solver="sgd").partial_fit(X, Y, classes=[0, 1, 2])
    second = pickle.loads(pickle.dumps(first))  # noqa: S301
    assert np.array_equal(first.partial_fit(X, Y).coefs_[0], second.partial_fit(X, Y).coefs_[0])


def test_new_arrays_change_predictions_and_assignments_are_refused() -> None:
    estimator = classifier().fit(X, Y)
    before = estimator.predict_proba(X)
    with pytest.raises(ValueError, match="read-only"):
        estimator.coefs_[0][0, 0] = 1.0
    estimator.coefs_[0] = estimator.coefs_[0] * 2
    assert not np.array_equal(estimator.predict_proba(X), before)


def test_the_fitted_model_can_be_saved(tmp_path: Any) -> None:
    estimator = classifier().fit(X, Y)
    estimator.to_model().save(tmp_path / "iris.safetensors")
    loaded = fastmlp.load(tmp_path / "iris.safetensors")
    assert loaded.classes == ("0", "1", "2")
    np.testing.assert_allclose(loaded.predict_proba(X.astype(np.float32)), estimator.predict_proba(X), atol=1e-6)


# ------------------------------------------------------------------------------------------------ scikit-learn's tools


@pytest.mark.full
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_searches_give_the_same_results_with_workers(backend: str) -> None:
    search = GridSearchCV(classifier(), {"alpha": [1e-4, 1.0], "hidden_layer_sizes": [(4,), (8,)]}, cv=3)
    serial = clone(search).fit(X, Y)
    with joblib.parallel_backend(backend, n_jobs=2):
        parallel = clone(search).set_params(n_jobs=2).fit(X, Y)
    assert serial.best_params_ == parallel.best_params_
    assert np.array_equal(serial.cv_results_["mean_test_score"], parallel.cv_results_["mean_test_score"])


def test_pipelines_and_cross_validation() -> None:
    pipeline = make_pipeline(StandardScaler(), classifier(max_iter=40, learning_rate_init=0.02))
    assert cross_val_score(pipeline, X, Y, cv=3).mean() > 0.85
    copied = clone(pipeline).set_params(mlpclassifier__alpha=0.5)
    assert copied[-1].alpha == 0.5 and not hasattr(copied[-1], "coefs_")


def test_a_subclass_may_have_more_parameters() -> None:
    class Wide(MLPClassifier):
        def __init__(self, width: int = 3, max_iter: int = 4) -> None:
            super().__init__((width,), max_iter=max_iter, random_state=0)
            self.width = width

    assert Wide(5).fit(X, Y).coefs_[0].shape == (4, 5)


def test_metadata_is_routed() -> None:
    """With metadata routing, a pipeline passes sample weights and a validation set to the estimator."""
    with sklearn.config_context(enable_metadata_routing=True):
        inner = classifier().set_fit_request(sample_weight=True, validation=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), inner)
        weights = np.linspace(0.5, 2, len(Y))
        pipeline.fit(X, Y, sample_weight=weights, validation=(X, Y))
        assert len(pipeline[-1].validation_scores_) == 5
        unweighted = clone(pipeline).fit(X, Y, validation=(X, Y))
        assert not np.array_equal(pipeline[-1].coefs_[0], unweighted[-1].coefs_[0])


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_frames_keep_and_check_names(frame: Any) -> None:
    table = frame(dict(zip(NAMES, X.T, strict=True)))
    estimator = classifier().fit(table, Y)
    assert list(estimator.feature_names_in_) == NAMES
    assert np.array_equal(estimator.predict(table), classifier().fit(X, Y).predict(X))
    other = frame(dict(zip(["a", "b", "d", "c"], X.T, strict=True)))
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(other)


def test_html_and_text_representation() -> None:
    assert "MLPClassifier(dropout=0.5)" in repr(MLPClassifier(dropout=0.5))
    assert "MLPClassifier" in MLPClassifier()._repr_html_()


@pytest.mark.full
def test_the_checks_of_the_array_api_pass() -> None:
    """The checks run in a new process, because they need an environment variable that is set before SciPy is imported."""
    code = (
        "from sklearn.utils.estimator_checks import estimator_checks_generator as checks\n"
        "from fastmlp import MLPClassifier, MLPRegressor\n"
        "found = [(e, c) for e in (MLPClassifier(max_iter=5), MLPRegressor(max_iter=5)) for e, c in checks(e)]\n"
        "found = [(e, c) for e, c in found if 'array_api' in str(c)]\n"
        "print(len(found)); [c(e) for e, c in found]\n"
    )
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2


# ------------------------------------------------------------------------------------------------ sparse rows


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("batch_size", [20, "auto"])
def test_sparse_rows_are_dense_rows(container: Any, batch_size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse and dense rows give bitwise identical results, even if only a few sparse rows are converted at a time."""
    monkeypatch.setattr("fastmlp.estimators.rows.BLOCK_BYTES", 4 * 4 * 45)  # 45 rows
    rows = np.where(X > 2, X, 0)
    dense = classifier(batch_size=batch_size, early_stopping=True).fit(rows, Y)
    given = classifier(batch_size=batch_size, early_stopping=True).fit(container(rows), Y)
    assert np.array_equal(dense.coefs_[0], given.coefs_[0])
    assert dense.loss_curve_ == pytest.approx(given.loss_curve_, rel=1e-12)
    assert np.array_equal(dense.predict_proba(rows), given.predict_proba(container(rows)))


# ------------------------------------------------------------------------------------------------ threads


def test_workers_times_threads_do_not_exceed_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker process uses the limit that joblib sets, and a worker thread uses one thread. `n_threads` takes precedence."""
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert default_threads(None) is None and default_threads(3) == 3
    found = joblib.Parallel(n_jobs=2, backend="threading")(joblib.delayed(default_threads)(None) for _ in range(4))
    assert found == [1] * 4
    own: list[int | None] = []
    thread = threading.Thread(target=lambda: own.append(default_threads(None)))
    thread.start()
    thread.join()
    assert own == [None]  # a thread that the user started, not joblib
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert default_threads(None) == 2 and default_threads(8) == 8


@pytest.mark.full
def test_worker_processes_divide_the_cores() -> None:
    limits = joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(default_threads)(None) for _ in range(2))
    assert all(limit is not None and 2 * limit <= max(2, joblib.cpu_count()) for limit in limits)


# ------------------------------------------------------------------------------------------------ callbacks


class Recorder:
    """A callback that records the score after each iteration, and stops the training after iteration `last`."""

    def __init__(self, last: int = 10**9) -> None:
        self.scores: list[float] = []
        self.calls: list[str] = []
        self.last = last

    def setup(self, estimator: Any, context: Any) -> None:
        self.calls.append("setup")

    def teardown(self, estimator: Any, context: Any) -> None:
        self.calls.append("teardown")

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        pass

    def on_fit_task_end(self, estimator: Any, context: Any, *, X: Any, y: Any, fitted_estimator: Any) -> bool:
        if context.task_name != "iteration":
            return False
        self.scores.append(fitted_estimator.score(X, y))
        return len(self.scores) >= self.last


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_callbacks_see_each_iteration_and_can_stop(solver: str) -> None:
    recorder = Recorder()
    estimator = classifier(solver=solver, max_iter=6, tol=0.0).set_callbacks(recorder).fit(X, Y)
    assert recorder.calls == ["setup", "teardown"]
    assert len(recorder.scores) == estimator.n_iter_ == 6
    assert recorder.scores[-1] == estimator.score(X, Y)
    stopped = classifier(solver=solver, max_iter=6, tol=0.0).set_callbacks(Recorder(2)).fit(X, Y)
    assert stopped.n_iter_ == 2
    assert stopped.score(X, Y) == recorder.scores[1]


def test_scikit_learns_callbacks_work(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = ScoringMonitor(scoring="accuracy")
    regressor = MLPRegressor(max_iter=3, random_state=0).set_callbacks(ProgressBar())
    classifier(max_iter=4).set_callbacks(monitor).fit(X, Y)
    regressor.fit(X, Y.astype(float))
    assert len(monitor.get_logs(select="most_recent").data) >= 4
    assert "MLPRegressor" in capsys.readouterr().out


def test_a_failing_callback_is_torn_down() -> None:
    class Failing(Recorder):
        def on_fit_task_end(self, estimator: Any, context: Any) -> bool:  # type: ignore[override]
            raise RuntimeError("stop")

    failing = Failing()
    with pytest.raises(RuntimeError, match="stop"):
        classifier().set_callbacks(failing).fit(X, Y)
    assert failing.calls == ["setup", "teardown"]
