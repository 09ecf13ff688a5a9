"""Benchmark of fastmlp's estimators against scikit-learn's, which are timed alternately in the same process.

Before a case is timed, it is run once with each library. This compiles kernels and starts worker processes. The scores of both
estimators must then agree, otherwise the benchmark stops with an error.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmlp.bench.machine import PACKAGES, machine
from fastmlp.bench.rounds import Disagreement
from fastmlp.data.load import load_data
from fastmlp.engines import installed_versions
from fastmlp.engines.jit import check_jit
from fastmlp.errors import FastMLPError

Say = Callable[[str], None]

QUALITY = 0.03  # maximum difference between the scores of both libraries
CALLS = 200  # number of calls per measurement, for short calls
SHORT, MORE_ROUNDS = 0.3, 5  # cases of fewer seconds have so many times as many rounds, because single times vary more
REST = 0.2  # seconds between two measurements, because BLAS threads spin-wait for a while after their work


class Prepared(NamedTuple):
    """A benchmark case, prepared for one library.

    run : function that is timed
    score : function that returns the score of the estimator after a run; higher is better
    calls : number of calls of the estimator in one run, by which the time is divided
    """

    run: Callable[[], Any]
    score: Callable[[], float]
    calls: int = 1


class EstimatorCase(NamedTuple):
    """A benchmark case.

    title : description of the case
    prepare : function that prepares the case for a library, given its classifier class and its regressor class
    """

    title: str
    prepare: Callable[[Any, Any], Prepared]


def fitting(kind: str, X: Any, y: Any, **parameters: Any) -> Callable[[Any, Any], Prepared]:
    """Return the function `prepare` of a case that fits a new estimator. `kind` is "classifier" or "regressor"."""

    def prepare(classifier: Any, regressor: Any) -> Prepared:
        made = classifier if kind == "classifier" else regressor
        estimators: list[Any] = []

        def run() -> None:
            estimators[:] = [made(random_state=0, **parameters).fit(X, y)]

        return Prepared(run, lambda: estimators[0].score(X[:2000], y[:2000]))

    return prepare


def predicting(X: Any, y: Any, rows: int) -> Callable[[Any, Any], Prepared]:
    """Return the function `prepare` of a case that predicts the first `rows` rows of X."""

    def prepare(classifier: Any, regressor: Any) -> Prepared:
        estimator, calls = classifier(random_state=0, max_iter=20).fit(X, y), CALLS if rows == 1 else 1
        given = X[:rows]

        def run() -> None:
            for _ in range(calls):
                estimator.predict(given)

        return Prepared(run, lambda: float(estimator.score(X, y)), calls)

    return prepare


def updating(X: Any, y: Any, rows: int) -> Callable[[Any, Any], Prepared]:
    """Return the function `prepare` of a case that calls `partial_fit` with the first `rows` rows of X."""

    def prepare(classifier: Any, regressor: Any) -> Prepared:
        estimator = classifier(random_state=0).partial_fit(X, y, classes=np.unique(y))

        def run() -> None:
            for _ in range(CALLS):
                estimator.partial_fit(X[:rows], y[:rows])

        return Prepared(run, lambda: float(estimator.score(X[:rows], y[:rows])), CALLS)

    return prepare


def searching(X: Any, y: Any) -> Callable[[Any, Any], Prepared]:
    """Return the function `prepare` of a case that runs a grid search with 24 candidates and 5 folds on all cores."""
    grid = {
        "hidden_layer_sizes": [(32,), (64,), (64, 32)],
        "alpha": [1e-5, 1e-4, 1e-3, 1e-2],
        "learning_rate_init": [1e-3, 1e-2],
    }

    def prepare(classifier: Any, regressor: Any) -> Prepared:
        from sklearn.model_selection import GridSearchCV

        found: list[Any] = []

        def run() -> None:
            estimator = classifier(max_iter=50, batch_size=64, random_state=0)
            found[:] = [GridSearchCV(estimator, grid, cv=5, n_jobs=-1).fit(X, y)]

        return Prepared(run, lambda: float(found[0].best_score_))

    return prepare


def cases(data_dir: str | Path | None = None) -> Iterator[EstimatorCase]:
    """Yield all cases. Those on Fashion-MNIST are left out if its files are not in the data folder."""
    from scipy.sparse import random_array
    from sklearn.datasets import load_digits, make_classification, make_regression

    X, y = make_regression(200, 10, random_state=0)
    yield EstimatorCase("fit, regressor, 200 x 10, defaults", fitting("regressor", X, y))
    X, y = make_classification(200, 10, random_state=0)
    yield EstimatorCase("fit, classifier, 200 x 10, defaults", fitting("classifier", X, y))
    X, y = load_digits(return_X_y=True)
    X = X / 16
    yield EstimatorCase("fit, digits 1,797 x 64, defaults, 50 epochs", fitting("classifier", X, y, max_iter=50))
    yield EstimatorCase("fit, digits, lbfgs, 50 iterations", fitting("classifier", X, y, solver="lbfgs", max_iter=50))
    texts, topics = random_array((2000, 20_000), density=0.001, format="csr", rng=np.random.default_rng(0)), np.arange(2000) % 5
    yield EstimatorCase("fit, sparse 2,000 x 20,000, 0.1 % nonzero, 3 epochs", fitting("classifier", texts, topics, max_iter=3))
    yield EstimatorCase("partial_fit, 32 rows of digits", updating(X, y, 32))
    yield EstimatorCase("predict, one row of digits", predicting(X, y, 1))
    yield EstimatorCase("predict, 1,797 rows of digits", predicting(X, y, len(X)))
    yield EstimatorCase("GridSearchCV, 24 x 5 fits on digits, n_jobs=-1", searching(X, y))
    try:
        data = load_data("fashion-mnist", data_dir=data_dir)
    except FastMLPError:
        return
    X, y = np.asarray(data.x[:48_000], np.float64) / 255, np.asarray(data.y[:48_000])
    sgd = {"solver": "sgd", "batch_size": 64, "max_iter": 5, "hidden_layer_sizes": (128,), "learning_rate_init": 0.01}
    yield EstimatorCase(
        "fit, Fashion-MNIST 48,000 x 784, hidden 128, sgd, batch 64, 5 epochs", fitting("classifier", X, y, **sgd)
    )
    wide = {"batch_size": 1024, "max_iter": 2, "hidden_layer_sizes": (1024, 512)}
    yield EstimatorCase("fit, Fashion-MNIST, hidden 1024-512, adam, batch 1024, 2 epochs", fitting("classifier", X, y, **wide))


def measure(case: EstimatorCase, rounds: int) -> dict[str, Any]:
    """Time a case, and return a row of the result: median times of both libraries, ratios of the times, and scores.

    Raises
    ------
    Disagreement : the scores of both libraries differ by more than `QUALITY`
    """
    from sklearn import neural_network

    from fastmlp.estimators import MLPClassifier, MLPRegressor

    prepared = {
        "fastmlp": case.prepare(MLPClassifier, MLPRegressor),
        "scikit-learn": case.prepare(neural_network.MLPClassifier, neural_network.MLPRegressor),
    }
    scores, slowest = {}, 0.0
    for name, one in prepared.items():
        one.run()  # compiles kernels
        began = time.perf_counter()
        one.run()
        slowest, scores[name] = max(slowest, time.perf_counter() - began), one.score()
    if abs(scores["fastmlp"] - scores["scikit-learn"]) > QUALITY:
        raise Disagreement(f"{case.title}: the scores of the two libraries differ too much: {scores}")
    rounds *= MORE_ROUNDS if slowest < SHORT else 1
    seconds: dict[str, list[float]] = {name: [] for name in prepared}
    for _ in range(rounds):
        for name, one in prepared.items():
            time.sleep(REST)
            began = time.perf_counter()
            one.run()
            seconds[name].append((time.perf_counter() - began) / one.calls)
    ratios = [other / own for own, other in zip(seconds["fastmlp"], seconds["scikit-learn"], strict=True)]
    spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"case": case.title, "rounds": rounds, "seconds": medians, "ratio": spread, "scores": scores}


def duration(seconds: float) -> str:
    """Format a duration with a suitable unit.

    >>> duration(12.3), duration(0.0123), duration(0.0000123)
    ('12.3 s', '12.3 ms', '12.3 µs')
    """
    factor, unit = next((f, u) for f, u in ((1, "s"), (1e3, "ms"), (1e6, "µs")) if seconds * f >= 1 or u == "µs")
    return f"{seconds * factor:.3g} {unit}"


def row_text(row: dict[str, Any]) -> str:
    """Format a row of the result as one line of text."""
    ours, theirs, ratio = row["seconds"]["fastmlp"], row["seconds"]["scikit-learn"], row["ratio"]
    times = f"fastmlp {duration(ours)}, scikit-learn {duration(theirs)}"
    return f"{row['case']}: {times}, ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def run_estimators(say: Say, rounds: int = 5, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Time all cases, and return a result that can be written as JSON.

    Parameters
    ----------
    say : function that is called with a line of text after each case
    rounds : number of timed rounds of each case
    data_dir : folder of the data sets, as in `load_data`

    Raises
    ------
    Disagreement : the scores of both libraries differ by more than `QUALITY`
    UnavailableError : Numba's JIT compiler is disabled
    """
    check_jit("the benchmark")
    about, rows = machine(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # most cases intentionally stop before convergence
        for case in cases(data_dir):
            rows.append(measure(case, rounds))
            say(row_text(rows[-1]))
    return {"kind": "estimators", "machine": about, "versions": installed_versions(PACKAGES), "rows": rows}


def estimators_text(result: dict[str, Any]) -> str:
    """Format a result of `run_estimators` as text: one line for each case, the machine, and the versions of the packages."""
    about = result["machine"]
    where = f"{about['name']} ({about['processor']}), {about['cores']} cores, {about['date']}"
    return "\n".join([*map(row_text, result["rows"]), where, ", ".join(f"{p} {v}" for p, v in result["versions"].items())])
