"""The solvers "sgd" and "adam": preparation of the data and the engine. The training loop is in epochs.py.

The initial weights, the validation split and the order of the rows are drawn from `random_state` in the same way as in
scikit-learn. Therefore training with the same `random_state` gives the same results as in scikit-learn, up to rounding errors.
If a mini-batch contains all rows, their order has no effect, and they are not shuffled.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastmlp.data.rows import Indices
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, State
from fastmlp.errors import DataError
from fastmlp.estimators.epochs import Batches, EpochLoop, Scored, SolverState
from fastmlp.estimators.parameters import check_schedule, make_optimizer
from fastmlp.estimators.rows import FitRows, cast_rows, dense_rows, merge_equal_rows, select_rows
from fastmlp.estimators.threads import default_threads

AUTO_BATCH = 200  # upper bound of the mini-batch size for batch_size="auto"


def fit_stochastic(estimator: Any, rows: FitRows, random_state: np.random.RandomState, validation: Any, once: bool) -> None:
    """Train an initialized estimator, and update its fitted attributes.

    Parameters
    ----------
    rows : training data
    random_state : generator for the validation split and for the order of the rows
    validation : the user's validation set (X, y), or None
    once : whether to train for one epoch that continues from the state of the previous call, as `partial_fit` does
    """
    parameters, dtype = estimator._parameters(), rows.x.dtype
    engine_dtype = np.dtype(estimator.dtype)
    indices, scored = split(estimator, rows, random_state, validation)
    scored = scored and scored._replace(rows=cast(scored.rows, engine_dtype))
    rows = cast(rows._replace(y=estimator._targets(rows.y)), engine_dtype)
    batches = make_batches(parameters, rows, indices)
    network = estimator._network(1 / batches.weight)
    seed = int(random_state.randint(2**31)) if np.any(estimator.dropout) else 0
    threads = default_threads(estimator.n_threads)
    state = estimator.__dict__.get("_solver_state") if once else None
    optimizer = make_optimizer(parameters) if state is None else state.optimizer
    spec = EngineSpec(network, optimizer, batches.batch_size, seed, None, threads, engine_dtype)
    engine = engine_of(estimator, spec, state)
    given = engine, network, optimizer, batches, random_state, scored
    callback = estimator._iteration_callback(engine, dtype)
    try:
        loop = EpochLoop(estimator, parameters, *given, check_schedule(parameters), state, callback)
        loop.run(1 if once else parameters["max_iter"])
        vector, estimator._solver_state = loop.end()
        estimator._expose(vector, dtype)
    except BaseException:
        engine.close()
        raise
    if once:
        estimator._kept.arrays, estimator._kept.engine, estimator._kept.spec = estimator._arrays(), engine, spec
    else:
        engine.close()
    if estimator.n_iter_ == parameters["max_iter"] and not loop.stopped and not once:
        warn_about_iterations(parameters["max_iter"])


def engine_of(estimator: Any, spec: EngineSpec, state: SolverState | None) -> Engine:
    """Return an engine into which the parameters of the estimator are loaded.

    `partial_fit` reuses the engine of its previous call if the settings and the fitted arrays have not changed.

    state : state of the optimizer after the previous call; None for a new optimizer
    """
    kept = estimator.__dict__.get("_kept")
    if kept is not None and kept.engine is not None:
        if state is not None and kept.spec == spec and kept.belongs_to(estimator._arrays()):
            engine: Engine = kept.engine
            kept.engine = None  # if the call fails, the engine is not used again
            return engine
        kept.close()
    engine, vector = make_engine(estimator.backend, spec), estimator._vector(spec.dtype)
    slots = np.zeros((len(spec.optimizer.slots), len(vector)), spec.dtype) if state is None else state.slots
    engine.load(State(vector, slots, 0 if state is None else state.step))
    return engine


def warn_about_iterations(max_iter: int) -> None:
    """Warn that training has not converged within `max_iter` epochs."""
    message = f"Stochastic Optimizer: Maximum iterations ({max_iter}) reached and the optimization hasn't converged yet."
    warnings.warn(message, ConvergenceWarning, stacklevel=6)


def cast(rows: FitRows, dtype: np.dtype[Any]) -> FitRows:
    """Return the rows in the dtype of the engine, except for class numbers, which stay integers."""
    with np.errstate(over="ignore"):
        return rows._replace(x=cast_rows(rows.x, dtype), y=rows.y if rows.y.ndim == 1 else rows.y.astype(dtype))


def check_validation(estimator: Any, validation: Any) -> FitRows:
    """Check the user's validation set (X, y), and return it with dense rows."""
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise DataError(f"validation must be a pair (X, y), not {type(validation).__name__}")
    X, y = estimator._check_more(*validation)
    return FitRows(dense_rows(X, slice(None)), y, None)


def split(estimator: Any, rows: FitRows, random_state: np.random.RandomState, validation: Any) -> tuple[Indices, Scored | None]:
    """Return the indices of the training rows, and the validation rows (None if there are none).

    Rows with weight 0 are left out. The validation rows are the user's validation set if there is one. Otherwise, with
    `early_stopping=True`, they are split off from the given rows in the same way as in scikit-learn.
    """
    used = np.arange(len(rows.y)) if rows.weights is None else np.flatnonzero(rows.weights)
    if validation is not None:
        return used, Scored(check_validation(estimator, validation), estimator._score_of)
    if not estimator.early_stopping:
        return used, None
    from sklearn.model_selection import train_test_split

    train, held = train_test_split(
        used, random_state=random_state, test_size=estimator.validation_fraction, stratify=estimator._strata(rows.y[used])
    )
    if len(held) < 2:
        raise ValueError("The validation set is too small. Increase 'validation_fraction' or the size of your dataset.")
    chosen = select_rows(rows, held)
    return train, Scored(chosen._replace(x=dense_rows(rows.x, held)), estimator._score_of)


def make_batches(parameters: dict[str, Any], rows: FitRows, indices: Indices) -> Batches:
    """Return the data for training. Equal rows are merged if a mini-batch contains all rows and there is no dropout.

    With dropout, equal rows are not merged, because each of them has its own dropout mask.
    """
    size = parameters["batch_size"]
    if size == "auto":
        size = AUTO_BATCH
    elif size > len(indices):
        warnings.warn("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=6)
    size = min(int(size), len(indices))
    if size < len(indices) or np.any(parameters["dropout"]):
        return Batches(rows, indices, size, len(indices))
    rows = merge_equal_rows(select_rows(rows, indices))
    return Batches(rows, np.arange(len(rows.y)), len(rows.y), len(indices))
