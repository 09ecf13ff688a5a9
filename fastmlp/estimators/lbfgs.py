"""The solver "lbfgs", which minimizes the objective over all rows with SciPy's L-BFGS-B.

The objective and its gradient are computed in float64 by the reference implementation (reference.py).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastmlp.engines.base import loss_weights
from fastmlp.engines.functions import array_activations
from fastmlp.estimators.rows import FitRows
from fastmlp.nn.network import FloatArray, Network
from fastmlp.reference import ACTIVATIONS, backward, forward, penalty, row_losses, target_rows


class Minimum(NamedTuple):
    """Result of `minimize`.

    parameters : (P,) float64
    loss : value of the objective, which includes the penalties
    iterations : number of iterations
    message : reason why L-BFGS-B stopped without convergence; empty if it converged
    """

    parameters: FloatArray
    loss: float
    iterations: int
    message: str


BLOCK_ROWS = 128  # larger blocks take more than twice as long, see benchmarks/NOTES.md


def objective_and_gradient(network: Network, rows: FitRows) -> Callable[[FloatArray], tuple[float, FloatArray]]:
    """Return a function that computes the objective and its gradient, (P,), from the parameters, (P,).

    The objective is the weighted mean loss plus the penalties. The rows are processed in blocks, which takes less time than
    processing all rows at once.
    """
    n = len(rows.y)
    weights = loss_weights(np.arange(n), n, rows.weights)
    t = target_rows(network, rows.y, np.float64)
    blocks = [slice(first, first + BLOCK_ROWS) for first in range(0, n, BLOCK_ROWS)]
    without_penalties = dataclasses.replace(network, l1=0.0, l2=0.0)
    activations = ACTIVATIONS | array_activations(network)

    def evaluate(parameters: FloatArray) -> tuple[float, FloatArray]:
        layers = network.views(parameters)
        loss, gradient = penalty(network, layers), np.zeros(len(parameters))
        with np.errstate(over="ignore", invalid="ignore"):
            for block in blocks:
                passed = forward(network, layers, rows.x[block], activations=activations)
                losses, dz = row_losses(network, passed.z, t[block])
                dz *= weights[block, None]
                gradient += backward(network if block.start == 0 else without_penalties, layers, passed, dz)
                loss += float(weights[block] @ losses)
        return loss, gradient

    return evaluate


def minimize(
    network: Network, rows: FitRows, start: FloatArray, options: dict[str, Any], callback: Callable[..., None]
) -> Minimum:
    """Minimize the objective of a network over all rows.

    Parameters
    ----------
    rows : rows in float64; x may be sparse
    start : (P,) float64 initial parameters
    options : the options maxiter, maxfun and gtol of SciPy's L-BFGS-B
    callback : function that is called after each iteration with the argument `intermediate_result`, see
        `scipy.optimize.minimize`; it can raise StopIteration to stop

    Source: Byrd, Lu, Nocedal, Zhu 1995, as implemented by `scipy.optimize.minimize`.
    """
    from scipy import optimize

    result = optimize.minimize(
        objective_and_gradient(network, rows), start, method="L-BFGS-B", jac=True, options=options, callback=callback
    )
    stopped_early = "" if result.status == 0 else str(result.message)
    return Minimum(np.asarray(result.x, np.float64), float(result.fun), min(int(result.nit), options["maxiter"]), stopped_early)


def fit_lbfgs(estimator: Any, rows: FitRows) -> None:
    """Train an initialized estimator until L-BFGS-B converges.

    `tol` is the tolerance for the gradient.

    Warns
    -----
    ConvergenceWarning : L-BFGS-B stopped without convergence, for example because `max_iter` was reached
    """
    weight = len(rows.y) if rows.weights is None else rows.weights.sum()
    network, y = estimator._network(1 / weight), estimator._targets(rows.y)
    rows = rows._replace(x=rows.x.astype(np.float64), y=y if y.ndim == 1 else y.astype(np.float64))
    options = {"maxfun": estimator.max_fun, "maxiter": estimator.max_iter, "gtol": estimator.tol}
    callback, dtype = estimator._step_callback(estimator.coefs_[0].dtype), estimator.coefs_[0].dtype

    stopped = False  # whether a callback stopped the training

    def after(intermediate_result: Any) -> None:
        nonlocal stopped
        if estimator.verbose:
            print(f"loss = {intermediate_result.fun:.8f}")
        stopped = callback is not None and callback(intermediate_result.x)
        if stopped:
            raise StopIteration

    found = minimize(network, rows, estimator._vector(np.float64), options, after)
    penalties = penalty(network, network.views(found.parameters))
    estimator.n_iter_, estimator.loss_ = found.iterations, estimator._reported(found.loss - penalties) + penalties
    estimator._expose(found.parameters, dtype)
    if found.message and not stopped:
        warnings.warn(
            f"lbfgs failed to converge after {found.iterations} iteration(s): {found.message}. Increase max_iter "
            f"({estimator.max_iter}) or max_fun ({estimator.max_fun}), or scale the data.",
            ConvergenceWarning,
            stacklevel=5,
        )
