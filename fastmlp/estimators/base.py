"""Common parts of `MLPClassifier` and `MLPRegressor`: `fit`, the fitted arrays, callbacks, and the network's outputs."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from fastmlp.data.checks import check_weights
from fastmlp.data.rows import Array
from fastmlp.engines.base import Engine
from fastmlp.errors import ConfigError
from fastmlp.estimators.kept import Kept
from fastmlp.estimators.lbfgs import fit_lbfgs
from fastmlp.estimators.parameters import check_parameters, initial_parameters, make_network
from fastmlp.estimators.rows import FitRows, cast_rows, forward_rows
from fastmlp.estimators.stochastic import fit_stochastic
from fastmlp.estimators.threads import default_threads
from fastmlp.models.model import Model
from fastmlp.nn.network import FloatArray, Network
from fastmlp.reference import OUTPUTS

STOCHASTIC = ("sgd", "adam")
CURVES = ("loss_curve_", "history_", "best_loss_", "validation_scores_", "best_validation_score_", "_no_improvement_count")
# scikit-learn's name of the output function -> loss and output function of the network
LOSSES = {
    "softmax": ("cross-entropy", "softmax"),
    "logistic": ("binary-cross-entropy", "sigmoid"),
    "identity": ("squared-error", "linear"),
    "exp": ("poisson", "exp"),
}


def flat(coefs: Sequence[Array], intercepts: Sequence[Array]) -> FloatArray:
    """Return weights and biases of all layers as the flat vector of `Network.views`."""
    return np.concatenate([np.ravel(array) for pair in zip(coefs, intercepts, strict=True) for array in pair])


@functools.cache
def parameter_names(estimator: type[BaseEstimator]) -> tuple[str, ...]:
    """Return the names of the constructor's parameters of the estimator of this package that a class is or is derived from."""
    own: Any = next(kind for kind in estimator.__mro__ if kind.__module__.startswith(__package__) and "__init__" in vars(kind))
    return tuple(own._get_param_names())


class BaseMLP(CallbackSupportMixin, BaseEstimator, ABC):
    """Base class of the estimators."""

    def _set_parameters(self, values: dict[str, Any]) -> None:
        """Store the constructor's arguments, its `locals()`, unchanged as scikit-learn requires."""
        for name, value in values.items():
            if name != "self":
                setattr(self, name, value)

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters as `get_params` does, without inspecting the constructor at each call."""
        return {name: getattr(self, name) for name in parameter_names(type(self))}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # ------------------------------------------------------------------------------------------------ subclasses

    @abstractmethod
    def _check_xy(self, X: Any, y: Any, *, reset: bool, incremental: bool) -> tuple[Any, Array]:
        """Check the training rows, set the attributes that describe them, and return X and the network's targets."""

    @abstractmethod
    def _check_more(self, X: Any, y: Any) -> tuple[Any, Array]:
        """Check a validation set, and return X and the network's targets."""

    @abstractmethod
    def _output_name(self) -> str:
        """Return scikit-learn's name of the output function, a key of `LOSSES`."""

    @abstractmethod
    def _score_of(self, z: FloatArray, y: Array, weights: FloatArray | None) -> float:
        """Return what `score` computes, from pre-activations z (n, outputs) and the network's targets y."""

    @abstractmethod
    def _strata(self, y: Array) -> Array | None:
        """Return the classes by which the validation split is stratified, or None."""

    def _class_weights(self, y: Any) -> FloatArray | None:
        """Return the weight of each row by its class, (n,), or None."""
        return None

    # ------------------------------------------------------------------------------------------------ fit

    def _fit(self, X: Any, y: Any, sample_weight: Any, validation: Any = None, incremental: bool = False) -> Any:
        check_parameters(self._parameters())
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, targets = self._check_xy(X, y, reset=first, incremental=incremental)
        rows = FitRows(X, targets, self._weights(y, sample_weight, len(targets)))
        self.n_outputs_ = targets.shape[1] if targets.ndim == 2 else len(self.classes_)
        random_state = check_random_state(self.random_state)
        if first:
            self._initialize(X, random_state)
        elif (have := sum(array.size for array in self._arrays())) != (need := self._network(0.0).parameters):
            raise ConfigError(
                f"the network now has {need} parameters, but {have} are fitted; do not change hidden_layer_sizes between calls",
                settings=("hidden_layer_sizes",),
            )
        # The number of iterations is not known in advance: training may stop early.
        context = self._init_callback_context(max_subtasks=None)
        self._hook_arguments = {"X": X, "y": y, "metadata": {"sample_weight": sample_weight}}
        try:
            context.call_on_fit_task_begin(estimator=self, **self._hook_arguments)
            if self.solver == "lbfgs":
                if validation is not None:
                    raise ConfigError("a validation set needs the solver 'sgd' or 'adam', not 'lbfgs'", settings=("solver",))
                fit_lbfgs(self, rows)
            else:
                fit_stochastic(self, rows, random_state, validation, once=incremental)
            context.call_on_fit_task_end(estimator=self, **self._hook_arguments, reconstruction_attributes={})
        finally:
            del self._hook_arguments
        if not all(np.isfinite(array).all() for array in (*self.coefs_, *self.intercepts_)):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed."
            )
        return self

    def _weights(self, y: Any, sample_weight: Any, rows: int) -> FloatArray | None:
        """Return the product of sample weights and class weights, (rows,) float64, or None if all are 1."""
        of_classes = self._class_weights(y)
        if sample_weight is None:
            return of_classes
        check_weights(sample_weight, rows, zeros=True)
        weights = np.asarray(sample_weight, np.float64)
        return weights if of_classes is None else weights * of_classes

    def _initialize(self, X: Any, random_state: np.random.RandomState) -> None:
        """Draw initial parameters, and reset the attributes that accumulate over calls with `warm_start` or `partial_fit`."""
        self.n_iter_ = self.t_ = 0
        self.out_activation_ = self._output_name()
        network = self._network(0.0)
        self.n_layers_ = len(network.sizes)
        self._expose(initial_parameters(network, random_state), X.dtype)
        self.__dict__.pop("_solver_state", None)
        for name in CURVES:
            self.__dict__.pop(name, None)

    def _network(self, per_row: float) -> Network:
        """Return the network; `alpha` and `l1` are multiplied by `per_row`."""
        loss = LOSSES[self.out_activation_]
        return make_network(self._parameters(), self.n_features_in_, self.n_outputs_, loss, per_row)

    def _reported(self, loss: float) -> float:
        """Return a loss as scikit-learn reports it: squared errors are averaged over the outputs, other losses are summed."""
        return loss / self.n_outputs_ if self.out_activation_ == "identity" else loss

    def _targets(self, y: Array) -> Array:
        """Return the targets that training uses, for which scores and stratified splits use the targets y."""
        return y

    def _vector(self, dtype: npt.DTypeLike) -> FloatArray:
        """Return `coefs_` and `intercepts_` as the flat vector of `Network.views`."""
        return flat(self.coefs_, self.intercepts_).astype(dtype)

    def _expose(self, vector: FloatArray, dtype: npt.DTypeLike) -> None:
        """Set `coefs_` and `intercepts_`, read-only arrays of the dtype."""
        self.__dict__.update(self._fitted(vector, dtype))

    def _fitted(self, vector: FloatArray, dtype: npt.DTypeLike) -> dict[str, Any]:
        """Return the attributes that are made of the parameters."""
        exposed = vector.astype(dtype)
        exposed.flags.writeable = False  # an assignment would not reach the engine; new arrays in the lists do
        views = self._network(0.0).views(exposed)
        return {"coefs_": [w for w, _ in views], "intercepts_": [b for _, b in views], "_kept": Kept()}

    def _arrays(self) -> tuple[Array, ...]:
        return (*self.coefs_, *self.intercepts_)

    # ------------------------------------------------------------------------------------------------ callbacks

    def _iteration_callback(self, engine: Engine, dtype: npt.DTypeLike) -> Callable[[], bool] | None:
        """Return a function that calls scikit-learn's callbacks after an epoch of an engine."""
        call = self._step_callback(dtype)
        return None if call is None else lambda: call(engine.state(slots=False).parameters)

    def _step_callback(self, dtype: npt.DTypeLike) -> Callable[[FloatArray], bool] | None:
        """Return a function from parameters to whether a callback stops the fit, or None if there are no callbacks."""
        if not getattr(self, "_skl_callbacks", None):
            return None
        root = self._callback_fit_ctx

        def call(vector: FloatArray) -> bool:
            step = root.subcontext(task_name="iteration")
            step.call_on_fit_task_begin(estimator=self, **self._hook_arguments)
            fitted = lambda: self._fitted(vector, dtype)  # noqa: E731 - evaluated only if a callback asks for it
            return bool(step.call_on_fit_task_end(estimator=self, **self._hook_arguments, reconstruction_attributes=fitted))

        return call

    # ------------------------------------------------------------------------------------------------ prediction

    def _model(self) -> Model:
        """Return the network for predictions, made anew if `coefs_` or `intercepts_` have changed."""
        kept, arrays = self.__dict__.setdefault("_kept", Kept()), self._arrays()
        if kept.model is None or not kept.belongs_to(arrays):
            kept.model, kept.arrays = self._make_model(), arrays
        return kept.model

    def _make_model(self) -> Model:
        sizes = (self.coefs_[0].shape[0], *(len(b) for b in self.intercepts_))
        float64 = self.dtype == "float64" or self.solver == "lbfgs"
        return Model(
            make_network(self._parameters(), sizes[0], sizes[-1], LOSSES[self.out_activation_], 0.0),
            self._vector(np.float64 if float64 else np.float32),
            classes=tuple(map(str, self.classes_)) if self.out_activation_ == "softmax" else (),
            backend="numpy" if float64 else self.backend,
            threads=default_threads(self.n_threads),
        )

    def _pre_activations(self, X: Any) -> FloatArray:
        """Check X and return the pre-activations of the output layer, (n, outputs)."""
        if not hasattr(self, "coefs_"):
            check_is_fitted(self)  # raises; it is slow, so it is not called for a fitted estimator
        model = self._model()
        return forward_rows(model.engine(), cast_rows(self._checked_rows(X), model.parameters.dtype))

    def _checked_rows(self, X: Any) -> Any:
        """Check rows to predict as `validate_data` does.

        For an array, there are no feature names to check, and leaving that out saves a fifth of the time of one row.
        """
        if type(X) is np.ndarray and not hasattr(self, "feature_names_in_"):
            X = check_array(X, estimator=self)
            if X.shape[1] == self.n_features_in_:
                return X
        return validate_data(self, X, accept_sparse=("csr", "csc"), reset=False)

    def _outputs(self, X: Any) -> FloatArray:
        """Return the outputs of the network, (n, outputs), in the dtype of the fitted arrays."""
        z = self._pre_activations(X).astype(np.float64)
        return OUTPUTS[LOSSES[self.out_activation_][1]](z).astype(self.coefs_[0].dtype)

    def to_model(self) -> Model:
        """Return the fitted network as a `fastmlp.Model`, which can be saved to a safetensors file."""
        check_is_fitted(self)
        return self._model()
