"""Epochs of the solvers "sgd" and "adam": scikit-learn's row order, stopping rule and attributes around an engine."""

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
from fastmlp.estimators.rows import FitRows, dense_block_rows, dense_rows, forward_rows
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.schedules import PlateauTracker, ReduceOnPlateau, Schedule
from fastmlp.reference import penalty

SMALLEST_RATE = 1e-6  # at which learning_rate="adaptive" stops
ADAPTIVE_FACTOR = 5.0  # by which it divides the learning rate


class SolverState(NamedTuple):
    """State that `partial_fit` continues from, besides the parameters."""

    slots: FloatArray
    step: int
    learning_rate: float


class Batches(NamedTuple):
    """What an engine trains on: its rows, the indices of those that are used, and the mini-batch size."""

    rows: FitRows
    indices: Indices
    batch_size: int

    @property
    def full(self) -> bool:
        """Whether an epoch is one mini-batch."""
        return self.batch_size == len(self.indices)

    @property
    def weight(self) -> float:
        """Weight of an average mini-batch: its number of rows times their mean weight."""
        weights = self.rows.weights
        return self.batch_size * (1.0 if weights is None else float(weights[self.indices].mean()))


class Scored(NamedTuple):
    """Rows that are scored after each epoch, and the score of pre-activations, targets and weights; higher is better."""

    rows: FitRows
    score: Callable[[FloatArray, Array, FloatArray | None], float]


@dataclass
class EpochLoop:
    """The epochs of one call of `fit` or `partial_fit`.

    Parameters
    ----------
    estimator : its fitted attributes are updated after each epoch
    parameters : of the estimator, from `get_params`
    engine : built for the network and the mini-batch size, and loaded with the initial state
    scored : rows that are scored after each epoch, or None; the parameters with the best score are kept
    schedule : replaces the parameter `learning_rate`; None for that parameter
    learning_rate : of the first epoch
    callback : called after each epoch; returning True stops the training; None for no callback
    """

    estimator: Any
    parameters: dict[str, Any]
    engine: Engine
    network: Network
    batches: Batches
    random_state: np.random.RandomState
    scored: Scored | None
    schedule: Schedule | ReduceOnPlateau | None
    learning_rate: float
    callback: Callable[[], bool] | None = None
    best: FloatArray | None = None
    stopped: bool = False
    held: Any = field(init=False)

    def __post_init__(self) -> None:
        rows, _, batch_size = self.batches
        self.order = np.arange(len(self.batches.indices))
        self.steps = step_count(len(self.order), batch_size)
        self.chunk = ChunkSize(batch_size, self.network.flops_per_row)
        self.weights = None if rows.weights is None else rows.weights.astype(np.float32)
        self.scales_with_rate = self.parameters["solver"] == "sgd" and self.schedule is None
        self.plateau = PlateauTracker(self.schedule) if isinstance(self.schedule, ReduceOnPlateau) else None
        self.multiplier = 1.0
        self.penalty = self._penalty()
        limit = self.parameters["max_time"]
        self.deadline = math.inf if limit is None else time.monotonic() + limit
        self._add_missing_attributes()
        if self.scored is not None:
            self.held = self.engine.hold(self.scored.rows.x, self.scored.rows.y)
            self.best = self.engine.state(slots=False).parameters

    def _add_missing_attributes(self) -> None:
        """Add the attributes that accumulate over calls with `warm_start` and `partial_fit`, where they do not exist yet."""
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
        """Train up to `epochs` epochs; Ctrl-C ends the training with a warning."""
        self.estimator.n_iter_ = 0
        try:
            while self.estimator.n_iter_ < epochs and not self.stopped:
                self._train(min(self._epochs_per_call(), epochs - self.estimator.n_iter_))
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=6)
            self.stopped = True

    def end(self) -> tuple[FloatArray, SolverState]:
        """Return the best parameters if rows are scored, else the last ones, (P,), and the state for `partial_fit`."""
        state = self.engine.state()
        parameters = state.parameters if self.best is None else self.best
        return parameters, SolverState(state.slots, state.step, self.learning_rate)

    def _epochs_per_call(self) -> int:
        """Number of epochs of the next call of the engine.

        Small data sets train several epochs per call, because each call costs as much as an epoch. They are as many as
        cannot trigger the stopping rule before the last of them.
        """
        plain = self.schedule is None and self.parameters["learning_rate"] == "constant"
        if not plain or self.scored is not None or self.callback is not None or len(self.order) % self.batches.batch_size:
            return 1
        if self.penalty > self.parameters["tol"]:  # the penalty of single epochs is interpolated, see `_train`
            return 1
        patience = self.parameters["n_iter_no_change"] + 1 - self.estimator._no_improvement_count
        return int(max(1, min(patience, self.chunk.rows // len(self.order))))

    def _train(self, epochs: int) -> None:
        """Train some epochs in one call of the engine, or one epoch in several calls, and record each."""
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
            # The penalty changes with each step; this is its mean over the steps of the epoch if it changes linearly.
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
        """Return the learning rate of each step of the next epochs."""
        if isinstance(self.schedule, Schedule):
            return self.schedule.rates(self.estimator.n_iter_ * self.steps, self.steps, self.steps)
        return np.full(epochs * self.steps, self.learning_rate * self.multiplier)

    def _call(self, indices: Indices, rates: Float64) -> Array:
        """Train on these rows and return the loss of each; sparse rows are converted in blocks of whole mini-batches."""
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
        """Return the mean loss of each epoch: of the mini-batches' weighted means, weighted by their numbers of rows."""
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
        est.t_ += len(self.order)
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
        """Score the held-out rows, keep the parameters if the score is the best, and return loss and score."""
        est, scored = self.estimator, self.scored
        if scored is None:
            return {}
        z = forward_rows(self.engine, scored.rows.x)
        loss = np.average(self.engine.evaluate(self.held).loss.astype(np.float64), weights=scored.rows.weights)
        score = scored.score(z, scored.rows.y, scored.rows.weights)
        est.validation_scores_.append(score)
        if self.parameters["verbose"]:
            print(f"Validation score: {score:f}")
        return {"validation_loss": est._reported(float(loss)), "validation_score": score}

    def _count_improvement(self) -> None:
        """Keep the best parameters, and count epochs without improvement by scikit-learn's rule.

        The count is of the validation score with `early_stopping`, else of the training loss.
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
            self.multiplier = self.plateau.update(row.get("validation_loss", row["loss"]))
        elif self.scales_with_rate and self.parameters["learning_rate"] == "invscaling":
            self._set_rate(self.parameters["learning_rate_init"] / (self.estimator.t_ + 1) ** self.parameters["power_t"])

    def _set_rate(self, rate: float) -> None:
        """Change the learning rate of the next epoch.

        scikit-learn's velocity contains the learning rate of its time, and that of fastmlp does not, so it is rescaled.
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
        """Whether the parameters are no longer finite, so that no further epoch can improve them."""
        if math.isfinite(self.estimator.loss_) or self.scored is not None:
            return False
        return not np.isfinite(self.engine.state(slots=False).parameters).all()
