"""Base class of `MLPClassifier` and `MLPRegressor`: training, fitted attributes, callbacks, and the outputs of the network."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from fastmlp.data.checks import check_weights
from fastmlp.data.rows import Array
from fastmlp.engines.base import Engine
from fastmlp.errors import ConfigError, DataError
from fastmlp.estimators.kept import Kept
from fastmlp.estimators.lbfgs import fit_lbfgs
from fastmlp.estimators.parameters import check_parameters, hidden_sizes, initial_parameters, make_network
from fastmlp.estimators.rows import FitRows, cast_rows, forward_rows
from fastmlp.estimators.stochastic import fit_stochastic
from fastmlp.estimators.threads import default_threads
from fastmlp.models.model import Model
from fastmlp.nn.network import FloatArray, Network
from fastmlp.reference import OUTPUTS

STOCHASTIC = ("sgd", "adam")
PREDICTION = ("activation", "solver", "dtype", "backend", "n_threads")  # parameters that predictions depend on
CURVES = ("loss_curve_", "history_", "best_loss_", "validation_scores_", "best_validation_score_", "_no_improvement_count")
# scikit-learn's name of the output activation -> fastmlp's names of the loss and of the output function
LOSSES = {
    "softmax": ("cross-entropy", "softmax"),
    "logistic": ("binary-cross-entropy", "sigmoid"),
    "identity": ("squared-error", "linear"),
    "exp": ("poisson", "exp"),
}


@functools.cache
def parameter_names(estimator: type[BaseEstimator]) -> tuple[str, ...]:
    """Return the names of the constructor parameters of `MLPClassifier` or `MLPRegressor`.

    For a subclass, these are the parameters of the base class in this package, even if the subclass has another constructor.
    """
    own: Any = next(kind for kind in estimator.__mro__ if kind.__module__.startswith(__package__) and "__init__" in vars(kind))
    return tuple(own._get_param_names())


class BaseMLP(CallbackSupportMixin, BaseEstimator, ABC):
    """Base class of `MLPClassifier` and `MLPRegressor`."""

    def _set_parameters(self, values: dict[str, Any]) -> None:
        """Store each argument of the constructor in an attribute, unchanged, as scikit-learn requires.

        values : the `locals()` of the constructor
        """
        for name, value in values.items():
            if name != "self":
                setattr(self, name, value)

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters as `get_params` does, but without inspecting the constructor in each call."""
        return {name: getattr(self, name) for name in parameter_names(type(self))}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # ------------------------------------------------------------------------------------------------ subclasses

    def _check_arrays(self, X: Any, y: Any, *, reset: bool, y_numeric: bool = False) -> tuple[Any, Any]:
        """Check X and y as scikit-learn's MLP does, and return X in float32 or float64, and y as (n,) if it has one column."""
        given = {
            "accept_sparse": ("csr", "csc"),
            "multi_output": True,
            "y_numeric": y_numeric,
            "dtype": (np.float64, np.float32),
        }
        X, y = validate_data(self, X, y, reset=reset, **given)
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    @abstractmethod
    def _check_xy(self, X: Any, y: Any, *, reset: bool, incremental: bool) -> tuple[Any, Array]:
        """Check the training data, set attributes such as `classes_`, and return X and the targets of the network.

        reset : whether `n_features_in_` and `feature_names_in_` are set from X; if False, X is checked against them
        incremental : whether `partial_fit` is the caller
        """

    @abstractmethod
    def _check_more(self, X: Any, y: Any) -> tuple[Any, Array]:
        """Check the user's validation set, and return X and the targets of the network."""

    @abstractmethod
    def _output_name(self) -> str:
        """Return scikit-learn's name of the output function, a key of `LOSSES`."""

    @abstractmethod
    def _score_of(self, z: FloatArray, y: Array, weights: FloatArray | None) -> float:
        """Return the result of `score`, given the pre-activations z (n, outputs) and the targets y of the network."""

    @abstractmethod
    def _strata(self, y: Array) -> Array | None:
        """Return the class of each row for a stratified validation split, or None if the split is not stratified."""

    def _class_weights(self, y: Any) -> FloatArray | None:
        """Return the class weight of each row, (n,), or None if there are no class weights."""
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
        elif (have := self._fitted_sizes()) != (need := tuple(self._network(0.0).sizes)):
            raise ConfigError(
                f"the layers now have {need} units, not {have} as before; do not change hidden_layer_sizes between calls",
                settings=("hidden_layer_sizes",),
            )
        # The number of iterations is not known in advance, because training may stop early.
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
        if not all(np.isfinite(array).all() for array in self._arrays()):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed."
            )
        return self

    def _weights(self, y: Any, sample_weight: Any, rows: int) -> FloatArray | None:
        """Return the sample weights multiplied by the class weights, (rows,) float64, or None if there are none."""
        weights = self._class_weights(y)
        if sample_weight is not None:
            given = np.asarray(sample_weight, np.float64)
            given = np.full(rows, given) if given.ndim == 0 else given
            weights = check_weights(given, rows, dtype=np.float64, zeros=True) * (1.0 if weights is None else weights)
        if weights is not None and not weights.any():
            raise DataError("the product of sample weights and class weights must not be zero for all rows")
        return weights

    def _initialize(self, X: Any, random_state: np.random.RandomState) -> None:
        """Draw the initial parameters, and reset the attributes that accumulate over `partial_fit` calls or warm starts."""
        self.n_iter_ = self.t_ = 0
        self.out_activation_ = self._output_name()
        network = self._network(0.0)
        self.n_layers_ = len(network.sizes)
        self._expose(initial_parameters(network, self.activation, random_state), X.dtype)
        self.__dict__.pop("_solver_state", None)
        for name in CURVES:
            self.__dict__.pop(name, None)

    def _network(self, per_row: float) -> Network:
        """Return the network. Its penalty coefficients are `alpha` and `l1`, each multiplied by `per_row`."""
        sizes = (self.n_features_in_, *hidden_sizes(self.hidden_layer_sizes), self.n_outputs_)
        return make_network(self._parameters(), sizes, LOSSES[self.out_activation_], per_row)

    def _fitted_sizes(self) -> tuple[int, ...]:
        """Return the number of units of each layer of the fitted arrays."""
        return (self.coefs_[0].shape[0], *(len(b) for b in self.intercepts_))

    def _reported(self, loss: float) -> float:
        """Convert a loss that is summed over the outputs to the loss that scikit-learn reports.

        scikit-learn averages squared errors over the outputs, and sums all other losses.
        """
        return loss / self.n_outputs_ if self.out_activation_ == "identity" else loss

    def _largest_loss(self) -> float:
        """Return the value at which the reported loss of a row is clipped."""
        return np.inf

    def _targets(self, y: Array) -> Array:
        """Return the targets for training, which are the targets y with label smoothing.

        Scores and stratified splits use y without label smoothing.
        """
        return y

    def _vector(self, dtype: npt.DTypeLike) -> FloatArray:
        """Return `coefs_` and `intercepts_` as a flat vector, (P,), in the order of `Network.views`."""
        pairs = zip(self.coefs_, self.intercepts_, strict=True)
        return np.concatenate([np.ravel(array) for pair in pairs for array in pair]).astype(dtype)

    def _expose(self, vector: FloatArray, dtype: npt.DTypeLike) -> None:
        """Set `coefs_` and `intercepts_` to read-only arrays of the given dtype."""
        self.__dict__.update(self._fitted(vector, dtype))

    def _fitted(self, vector: FloatArray, dtype: npt.DTypeLike) -> dict[str, Any]:
        """Return the attributes that depend on the parameters: `coefs_`, `intercepts_` and an empty cache."""
        exposed = vector.astype(dtype)
        # Arrays that are changed in place would have no effect on cached engines. Arrays that are replaced are detected.
        exposed.flags.writeable = False
        views = self._network(0.0).views(exposed)
        return {"coefs_": [w for w, _ in views], "intercepts_": [b for _, b in views], "_kept": Kept()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for array in self._arrays() if hasattr(self, "coefs_") else ():
            array.flags.writeable = False  # pickle does not keep the flag

    def _arrays(self) -> tuple[Array, ...]:
        return (*self.coefs_, *self.intercepts_)

    # ------------------------------------------------------------------------------------------------ callbacks

    def _iteration_callback(self, engine: Engine, dtype: npt.DTypeLike) -> Callable[[], bool] | None:
        """Return the function of `_step_callback` without its argument, which is taken from the engine."""
        call = self._step_callback(dtype)
        return None if call is None else lambda: call(engine.state(slots=False).parameters)

    def _step_callback(self, dtype: npt.DTypeLike) -> Callable[[FloatArray], bool] | None:
        """Return a function that calls scikit-learn's callbacks after an iteration, or None if there are no callbacks.

        Its argument is the vector of parameters, (P,), and it returns whether a callback requests to stop the training.
        """
        if not getattr(self, "_skl_callbacks", None):
            return None
        root = self._callback_fit_ctx

        def call(vector: FloatArray) -> bool:
            step = root.subcontext(task_name="iteration")
            step.call_on_fit_task_begin(estimator=self, **self._hook_arguments)
            fitted = lambda: self._fitted(vector, dtype)  # noqa: E731 - evaluated only if a callback needs it
            return bool(step.call_on_fit_task_end(estimator=self, **self._hook_arguments, reconstruction_attributes=fitted))

        return call

    # ------------------------------------------------------------------------------------------------ prediction

    def _model(self) -> Model:
        """Return the network for predictions. It is cached until an array or a parameter that it depends on is replaced."""
        kept, arrays = self.__dict__.setdefault("_kept", Kept()), self._arrays()
        key = repr([getattr(self, name) for name in PREDICTION])
        if not kept.belongs_to(arrays):
            kept.renew(arrays)
        if kept.model is None or kept.key != key:
            kept.model, kept.key = self._make_model(), key
        return kept.model

    def _make_model(self) -> Model:
        float64 = self.dtype == "float64" or self.solver == "lbfgs"
        return Model(
            make_network(self._parameters(), self._fitted_sizes(), LOSSES[self.out_activation_], 0.0),
            self._vector(np.float64 if float64 else np.float32),
            backend="numpy" if float64 else self.backend,
            threads=default_threads(self.n_threads),
        )

    def _pre_activations(self, X: Any) -> FloatArray:
        """Check X and return the pre-activations of the output layer, (n, outputs)."""
        if not hasattr(self, "coefs_"):
            check_is_fitted(self)  # raises NotFittedError; called only in this case, because it is slow
        model = self._model()
        return forward_rows(model.engine(), cast_rows(self._checked_rows(X), model.parameters.dtype))

    def _checked_rows(self, X: Any) -> Any:
        """Check X as `validate_data` does.

        For arrays, the check of feature names is skipped, which saves a fifth of the time of predicting a single row.
        """
        if type(X) is np.ndarray and not hasattr(self, "feature_names_in_"):
            X = check_array(X, estimator=self)
            if X.shape[1] == self.n_features_in_:
                return X
        return validate_data(self, X, accept_sparse=("csr", "csc"), reset=False)

    def _outputs(self, X: Any) -> FloatArray:
        """Check X and return the outputs of the network, (n, outputs), in the dtype of the fitted arrays."""
        z = self._pre_activations(X).astype(np.float64)
        return OUTPUTS[LOSSES[self.out_activation_][1]](z).astype(self.coefs_[0].dtype)

    def to_model(self) -> Model:
        """Return the fitted network as a `fastmlp.Model`, which `fastmlp.save` can save to a safetensors file.

        For more than two classes, the class names of the model are the labels as strings. For two classes, and for multilabel
        classification, the model has sigmoid outputs and no class names.

        Raises
        ------
        sklearn.exceptions.NotFittedError : the estimator has not been fitted
        DataError : a label has a character that class names must not contain, such as a tab or a line break; see
            `data.labels.check_class_names`. Estimators accept such labels, as scikit-learn does
        """
        check_is_fitted(self)
        names = tuple(map(str, self.classes_)) if self.out_activation_ == "softmax" else ()
        model = self._model()
        if model.classes != names:
            self._kept.model = model = replace(model, classes=names)
        return model
