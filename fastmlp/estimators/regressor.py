"""The estimator `MLPRegressor`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import RegressorMixin
from sklearn.callback import with_callbacks
from sklearn.metrics import r2_score
from sklearn.utils.metaestimators import available_if

from fastmlp.data.rows import Array
from fastmlp.estimators.base import LOSSES, BaseMLP
from fastmlp.estimators.classifier import stochastic_only
from fastmlp.nn.network import FloatArray
from fastmlp.reference import OUTPUTS


class MLPRegressor(RegressorMixin, BaseMLP):
    """Multi-layer perceptron regressor: a drop-in replacement for `sklearn.neural_network.MLPRegressor`.

    The parameters up to `max_fun`, the fitted attributes and the methods have the same names, defaults and meaning as in
    scikit-learn 1.9. docs/estimators.md lists all deliberate differences.

    Parameters
    ----------
    loss : "squared_error", or "poisson", which uses the exponential function as the activation of the output layer
    hidden_layer_sizes, ..., max_fun : as in scikit-learn, except that `activation` is as in `fastmlp.MLPClassifier`
    dropout, l1, schedule, max_grad_norm, max_time, backend, n_threads, dtype : as in `fastmlp.MLPClassifier`

    Attributes
    ----------
    All fitted attributes of scikit-learn's class exist, and `history_` as in `fastmlp.MLPClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 100)[:, None]
    >>> reg = MLPRegressor(hidden_layer_sizes=(32,), learning_rate_init=0.02, random_state=0).fit(X, np.ravel(X**2))
    >>> bool(reg.score(X, np.ravel(X**2)) > 0.9)
    True
    """

    def __init__(  # noqa: PLR0913 - scikit-learn's parameters
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: Any = 0.0,
        l1: float = 0.0,
        schedule: Any = None,
        max_grad_norm: float | None = None,
        max_time: float | None = None,
        backend: str = "auto",
        n_threads: int | None = None,
        dtype: str = "float32",
    ) -> None:
        self._set_parameters(locals())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation: Any = None) -> MLPRegressor:
        """Train the network, and return the estimator.

        Parameters
        ----------
        X : (n, features) array-like, data frame or SciPy sparse matrix of finite numbers
        y : (n,) or (n, outputs) finite targets, which must be nonnegative for the loss "poisson"
        sample_weight, validation : as in `MLPClassifier.fit`

        Raises
        ------
        ValueError : the data or a parameter is invalid, or the training run diverged
        fastmlp.errors.UnavailableError : the backend needs a package or a GPU that is missing

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning : training stopped at `max_iter`, or for "lbfgs" at `max_fun`
        """
        return self._fit(X, y, sample_weight, validation)

    @available_if(stochastic_only)
    @with_callbacks
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train for one epoch, continuing from the previous call of `fit` or `partial_fit`, and return the estimator.

        The solver must be "sgd" or "adam".

        Parameters
        ----------
        X, y, sample_weight : as in `fit`

        Raises
        ------
        ValueError : as in `fit`, or `early_stopping` is True
        fastmlp.errors.UnavailableError : as in `fit`
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the predictions for X (n, features), (n,) or (n, outputs), in the dtype of the training data.

        Raises
        ------
        sklearn.exceptions.NotFittedError : the estimator has not been fitted
        ValueError : X is invalid, for example because it has another number of features than the training data
        """
        outputs = self._outputs(X)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    # ------------------------------------------------------------------------------------------------ methods of BaseMLP

    def _check_xy(self, X: Any, y: Any, *, reset: bool, incremental: bool) -> tuple[Any, Array]:
        X, y = self._check_arrays(X, y, reset=reset, y_numeric=True)
        if y.dtype.kind not in "buif":
            raise ValueError(f"y must be numbers, not {y.dtype}")
        if self.loss == "poisson" and (y < 0).any():
            raise ValueError("Some value(s) of y are out of the valid range of the loss 'poisson', which is y >= 0.")
        return X, y.reshape(len(y), -1)

    def _check_more(self, X: Any, y: Any) -> tuple[Any, Array]:
        return self._check_xy(X, y, reset=False, incremental=False)

    def _output_name(self) -> str:
        return "exp" if self.loss == "poisson" else "identity"

    def _score_of(self, z: FloatArray, y: Array, weights: FloatArray | None) -> float:
        with np.errstate(over="ignore"):
            outputs = OUTPUTS[LOSSES[self.out_activation_][1]](z.astype(np.float64))
        return float(r2_score(y, outputs, sample_weight=weights)) if np.isfinite(outputs).all() else np.nan

    def _strata(self, y: Array) -> Array | None:
        return None
