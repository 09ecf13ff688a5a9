"""Training loop of the solvers "sgd" and "adam".

As in scikit-learn, the loop shuffles the rows, applies the stopping rule and updates the fitted attributes. An engine computes
the updates of the parameters.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse

from fastmlp.data.rows import Array, Float64, Indices
from fastmlp.engines.base import Engine, State, loss_weights, step_count
from fastmlp.engines.chunks import ChunkSize
from fastmlp.estimators.rows import FitRows, dense_block_rows, dense_rows
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.schedules import PlateauTracker, ReduceOnPlateau, Schedule
from fastmlp.reference import penalty

SMALLEST_RATE = 1e-6  # learning_rate="adaptive" stops the training if the learning rate is not above this value
CALL_FLOPS = 100_000_000  # most floating-point operations of a call with several epochs: a few milliseconds
ADAPTIVE_FACTOR = 5.0  # learning_rate="adaptive" divides the learning rate by this factor


class SolverState(NamedTuple):
    """State that the next call of `partial_fit` needs, in addition to the parameters.

    optimizer : as in scikit-learn, changes of its parameters have no effect until the next call of `fit`
    slots : (number of optimizer slots, P) float, as in `engines.base.State`
    step : number of updates made so far
    learning_rate : learning rate of the next epoch, before a schedule is applied
    epochs : number of epochs since the optimizer was created
    plateau : state of a `ReduceOnPlateau` schedule, or None
    """

    optimizer: Optimizer
    slots: FloatArray
    step: int
    learning_rate: float
    epochs: int = 0
    plateau: PlateauTracker | None = None


class Batches(NamedTuple):
    """Data for training: rows, the indices of the rows that are used, and the mini-batch size.

    given : number of training rows before equal rows were merged
    """

    rows: FitRows
    indices: Indices
    batch_size: int
    given: int

    @property
    def full(self) -> bool:
        """Whether an epoch consists of a single mini-batch."""
        return self.batch_size == len(self.indices)

    @property
    def weight(self) -> float:
        """Weight of an average mini-batch: the mini-batch size times the mean weight of the rows."""
        weights = self.rows.weights
        return self.batch_size * (1.0 if weights is None else float(weights[self.indices].mean()))


class Scored(NamedTuple):
    """Validation rows, which are scored after each epoch.

    score : function that returns the score for the arguments pre-activations, targets and weights; higher is better
    """

    rows: FitRows
    score: Callable[[FloatArray, Array, FloatArray | None], float]


@dataclass
class EpochLoop:
    """Training loop of one call of `fit` or `partial_fit`.

    Parameters
    ----------
    estimator : estimator whose fitted attributes are updated after each epoch
    parameters : parameters of the estimator, as returned by `get_params`
    engine : engine for the network and the mini-batch size; the initial state must have been loaded
    network, optimizer : network that is trained, and its optimizer
    batches : training data
    random_state : generator that shuffles the rows
    scored : validation rows, or None; if there are any, the parameters with the best score are kept
    schedule : learning-rate schedule that is used instead of the parameter `learning_rate`, or None
    state : state of the previous call of `partial_fit`, or None for a new optimizer
    callback : function that is called after each epoch and returns whether to stop the training, or None
    best : (P,) parameters with the best score so far; None without validation rows
    stopped : whether the training has been stopped early
    """

    estimator: Any
    parameters: dict[str, Any]
    engine: Engine
    network: Network
    optimizer: Optimizer
    batches: Batches
    random_state: np.random.RandomState
    scored: Scored | None
    schedule: Schedule | ReduceOnPlateau | None
    state: SolverState | None = None
    callback: Callable[[], bool] | None = None
    best: FloatArray | None = None
    stopped: bool = False
    held: Any = field(init=False)

    def __post_init__(self) -> None:
        rows, batch_size = self.batches.rows, self.batches.batch_size
        self.order = np.arange(len(self.batches.indices))
        self.steps = step_count(len(self.order), batch_size)
        self.chunk = ChunkSize(batch_size, self.network.flops_per_row)
        self.weights = rows.weights  # float64: only the ratios within a mini-batch have to be representable in float32
        self.scales_with_rate = self.optimizer.name != "adam" and self.schedule is None
        self.learning_rate, self.epochs, self.plateau = self.parameters["learning_rate_init"], 0, None
        if self.state is not None:
            self.learning_rate, self.epochs, self.plateau = self.state[3:]
        if isinstance(self.schedule, ReduceOnPlateau) and self.plateau is None:
            self.plateau = PlateauTracker(self.schedule)
        self.penalty = self._penalty()
        limit = self.parameters["max_time"]
        self.deadline = math.inf if limit is None else time.monotonic() + limit
        self._add_missing_attributes()
        if self.scored is not None:
            self.held = self.engine.hold(self.scored.rows.x, self.scored.rows.y)
            self.best = self.engine.state(slots=False).parameters

    def _add_missing_attributes(self) -> None:
        """Add the attributes that accumulate over `partial_fit` calls or warm starts, unless they already exist."""
        est = self.estimator
        new = {"loss_curve_": [], "history_": [], "_no_improvement_count": 0, "best_loss_": None}
        new |= {"validation_scores_": None, "best_validation_score_": None}
        vars(est).update(new | vars(est))
        if not self.parameters["early_stopping"] and est.best_loss_ is None:
            est.best_loss_ = np.inf
        if self.scored is not None and est.validation_scores_ is None:
            est.validation_scores_, est.best_validation_score_ = [], -np.inf

    # ------------------------------------------------------------------------------------------------ epochs

    def run(self, epochs: int) -> None:
        """Train for at most `epochs` epochs. Ctrl-C stops the training with a warning."""
        self.estimator.n_iter_ = 0
        try:
            while self.estimator.n_iter_ < epochs and not self.stopped:
                self._train(min(self._epochs_per_call(), epochs - self.estimator.n_iter_))
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=6)
            self.stopped = True

    def end(self) -> tuple[FloatArray, SolverState]:
        """Return the final parameters, (P,), and the state for the next call of `partial_fit`.

        The parameters are those with the best score if there are validation rows, and otherwise those after the last epoch.
        """
        state = self.engine.state()
        parameters = state.parameters if self.best is None else self.best
        return parameters, SolverState(self.optimizer, state.slots, state.step, self.learning_rate, self.epochs, self.plateau)

    def _epochs_per_call(self) -> int:
        """Return the number of epochs in the next call of the engine.

        Small data sets are trained for several epochs per call, because the overhead of a call takes as long as an epoch. The
        number is limited so that the stopping rule cannot apply before the last of these epochs.
        """
        plain = self.schedule is None and self.parameters["learning_rate"] == "constant"
        if not plain or self.scored is not None or self.callback is not None or len(self.order) % self.batches.batch_size:
            return 1
        if self.penalty > self.parameters["tol"]:  # with several epochs, the interpolation in `_train` would be inaccurate
            return 1
        patience = self.parameters["n_iter_no_change"] + 1 - self.estimator._no_improvement_count
        # The limit is no measured time, because the number of epochs affects the interpolated penalty and so the stopping rule.
        affordable = CALL_FLOPS // (self.network.flops_per_row * len(self.order))
        return int(max(1, min(patience, affordable)))

    def _train(self, epochs: int) -> None:
        """Train for several epochs in one call of the engine, or for one epoch in one or more calls. Record each epoch."""
        began, before, chunk_rows = time.perf_counter(), self.penalty, self.chunk.rows
        indices = self.batches.indices[np.concatenate([self._next_order() for _ in range(epochs)])]
        rates = self._rates(epochs)
        losses: list[Array] = []
        done = 0
        while done < len(indices) and not (done and time.monotonic() >= self.deadline):
            chunk = indices[done : done + max(chunk_rows, self.batches.batch_size)] if epochs == 1 else indices
            first = done // self.batches.batch_size
            losses.append(self._call(chunk, rates[first : first + step_count(len(chunk), self.batches.batch_size)]))
            done += len(chunk)
            chunk_rows = self.chunk.rows
        self.penalty, seconds = self._penalty(), time.perf_counter() - began
        means = self._mean_losses(np.concatenate(losses), indices[:done], epochs)
        for index, loss in enumerate(means):
            # The penalty changes in each step. This is its mean over the steps of the epoch if the change is linear.
            fraction = (index + 0.5 * (self.steps - 1) / self.steps) / epochs
            penalized = self.estimator._reported(float(loss)) + before + fraction * (self.penalty - before)
            self._end_epoch(penalized, float(rates[0]), seconds / epochs)

    def _next_order(self) -> Indices:
        if self.parameters["shuffle"] and not self.batches.full:
            permutation = np.arange(len(self.order))
            self.random_state.shuffle(permutation)
            self.order = self.order[permutation]
        return self.order

    def _rates(self, epochs: int) -> Float64:
        """Return the learning rate of each step of the next epochs, (epochs * steps,). With a `Schedule`, epochs is 1."""
        if isinstance(self.schedule, Schedule):
            first, most = self.epochs * self.steps, self.parameters["max_iter"]
            return self.learning_rate * self.schedule.multipliers(first, self.steps, self.steps, most)
        return np.full(epochs * self.steps, self.learning_rate * (1.0 if self.plateau is None else self.plateau.multiplier))

    def _call(self, indices: Indices, rates: Float64) -> Array:
        """Train on the rows with these indices, and return the loss of each row, (n,).

        Sparse rows are converted to dense rows in blocks that consist of whole mini-batches.
        """
        began, (x, y, _) = time.perf_counter(), self.batches.rows
        if not issparse(x):
            losses = self.engine.train(x, y, indices, rates, self.weights).loss
        else:
            size = max(1, dense_block_rows(x) // self.batches.batch_size)
            parts = []
            for first in range(0, len(rates), size):
                rows = indices[first * self.batches.batch_size : (first + size) * self.batches.batch_size]
                weights = None if self.weights is None else self.weights[rows]
                given = dense_rows(x, rows), y[rows], np.arange(len(rows)), rates[first : first + size], weights
                parts.append(self.engine.train(*given).loss)
            losses = np.concatenate(parts)
        self.chunk.record(len(indices), time.perf_counter() - began)
        return losses

    def _mean_losses(self, losses: Array, indices: Indices, epochs: int) -> FloatArray:
        """Return the loss of each epoch, (epochs,) float64, for the losses of the rows, (n,).

        As in scikit-learn, it is the average of the losses of the mini-batches, each weighted by its number of rows. The loss
        of a mini-batch is the mean loss of its rows, weighted by the sample weights.
        """
        losses = np.minimum(losses, self.estimator._largest_loss())
        if self.weights is not None:
            rows = np.minimum(
                self.batches.batch_size,
                len(indices) - np.arange(len(indices)) // self.batches.batch_size * self.batches.batch_size,
            )
            losses = losses * loss_weights(indices, self.batches.batch_size, self.weights) * rows
        return losses.reshape(epochs, -1).mean(axis=1, dtype=np.float64)

    def _penalty(self) -> float:
        if not (self.network.l1 or self.network.l2):
            return 0.0
        return penalty(self.network, self.network.views(self.engine.state(slots=False).parameters))

    # ------------------------------------------------------------------------------------------------ after an epoch

    def _end_epoch(self, loss: float, rate: float, seconds: float) -> None:
        est = self.estimator
        est.n_iter_ += 1
        est.t_ += self.batches.given
        self.epochs += 1
        est.loss_ = loss
        est.loss_curve_.append(loss)
        if self.parameters["verbose"]:
            print(f"Iteration {est.n_iter_}, loss = {loss:.8f}")
        row = {"epoch": len(est.loss_curve_), "loss": loss, "learning_rate": rate, "seconds": seconds}
        est.history_.append(row | self._scores())
        self._count_improvement()
        self._change_rate()
        self.stopped |= (
            self._stops_by_patience()
            or time.monotonic() >= self.deadline
            or (self.callback is not None and self.callback())
            or self._diverged()
        )

    def _scores(self) -> dict[str, float]:
        """Score the validation rows, if there are any, and return their loss and score as entries of `history_`."""
        est, scored = self.estimator, self.scored
        if scored is None:
            return {}
        z = np.empty((len(scored.rows.y), self.network.sizes[-1]), scored.rows.x.dtype)
        loss = np.average(self.engine.evaluate(self.held, z).loss.astype(np.float64), weights=scored.rows.weights)
        score = scored.score(z, scored.rows.y, scored.rows.weights)
        est.validation_scores_.append(score)
        if self.parameters["verbose"]:
            print(f"Validation score: {score:f}")
        return {"validation_loss": est._reported(float(loss)), "validation_score": score}

    def _count_improvement(self) -> None:
        """Keep the parameters with the best score, and count the epochs without improvement as scikit-learn does.

        The count is based on the validation score if `early_stopping` is True, and otherwise on the training loss.
        """
        est, tol = self.estimator, self.parameters["tol"]
        worse = False
        if self.scored is not None:
            score = est.validation_scores_[-1]
            worse = score < est.best_validation_score_ + tol
            if score > est.best_validation_score_:
                est.best_validation_score_ = score
                self.best = self.engine.state(slots=False).parameters
        if not self.parameters["early_stopping"]:
            worse = est.loss_ > est.best_loss_ - tol
            est.best_loss_ = min(est.loss_, est.best_loss_)
        est._no_improvement_count = est._no_improvement_count + 1 if worse else 0

    def _change_rate(self) -> None:
        if self.plateau is not None:
            row = self.estimator.history_[-1]
            self.plateau.update(row.get("validation_loss", row["loss"]))
        elif self.scales_with_rate and self.parameters["learning_rate"] == "invscaling":
            self._set_rate(self.parameters["learning_rate_init"] / (self.estimator.t_ + 1) ** self.parameters["power_t"])

    def _set_rate(self, rate: float) -> None:
        """Set the learning rate of the next epochs, and rescale the velocity.

        In scikit-learn, the velocity includes the learning rate at the time of each update; in fastmlp, it does not. Rescaling
        the velocity makes both updates equal.
        """
        state = self.engine.state()
        self.engine.load(State(state.parameters, state.slots * (self.learning_rate / rate), state.step))
        self.learning_rate = rate

    def _stops_by_patience(self) -> bool:
        est = self.estimator
        if est._no_improvement_count <= self.parameters["n_iter_no_change"]:
            return False
        what = "Validation score" if self.parameters["early_stopping"] else "Training loss"
        message = (
            f"{what} did not improve more than tol={self.parameters['tol']:f} for "
            f"{self.parameters['n_iter_no_change']} consecutive epochs."
        )
        adaptive = self.scales_with_rate and self.parameters["learning_rate"] == "adaptive"
        if adaptive and self.learning_rate > SMALLEST_RATE:
            self._set_rate(self.learning_rate / ADAPTIVE_FACTOR)
            est._no_improvement_count = 0
            action = f"Setting learning rate to {self.learning_rate:f}"
        else:
            action = "Learning rate too small. Stopping." if adaptive else "Stopping."
        if self.parameters["verbose"]:
            print(f"{message} {action}")
        return action.endswith("Stopping.")

    def _diverged(self) -> bool:
        """Return whether the loss and the parameters are no longer finite.

        With validation rows, return False, because the parameters with the best score are kept.
        """
        if math.isfinite(self.estimator.loss_) or self.scored is not None:
            return False
        return not np.isfinite(self.engine.state(slots=False).parameters).all()
