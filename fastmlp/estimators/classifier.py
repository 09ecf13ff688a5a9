"""The estimator `MLPClassifier`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, issparse
from sklearn.base import ClassifierMixin
from sklearn.callback import with_callbacks
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from fastmlp.data.labels import LabelEncoder
from fastmlp.data.rows import Array
from fastmlp.errors import ConfigError, some_names
from fastmlp.estimators.base import STOCHASTIC, BaseMLP
from fastmlp.nn.network import FloatArray


def stochastic_only(estimator: Any) -> bool:
    """Return True if the solver has epochs, and otherwise raise AttributeError, so that `hasattr` returns False."""
    if estimator.solver not in STOCHASTIC:
        raise AttributeError(f"partial_fit is only available for stochastic optimizers. {estimator.solver} is not stochastic.")
    return True


class MLPClassifier(ClassifierMixin, BaseMLP):
    """Multi-layer perceptron classifier: a drop-in replacement for `sklearn.neural_network.MLPClassifier`.

    The parameters up to `max_fun`, the fitted attributes and the methods have the same names, defaults and meaning as in
    scikit-learn 1.9. docs/estimators.md lists all deliberate differences.

    Parameters
    ----------
    hidden_layer_sizes, ..., max_fun : as in scikit-learn. In addition, `activation` may be any name in
        `fastmlp.nn.activations.ACTIVATIONS`, such as "leaky-relu", "gelu", "silu" or "elu", a `fastmlp.Activation`, or
        a list with one of these per hidden layer
    dropout : dropout rate of the hidden layers, in [0, 1): one number for all of them, or one per hidden layer
    class_weight : dict from class label to weight, "balanced" or None, as in other classifiers of scikit-learn
    l1 : coefficient of the L1 penalty on the weights, >= 0; it is divided by the mini-batch size, like `alpha`
    label_smoothing : fraction of the target that is distributed evenly over all classes, in [0, 1)
    schedule : learning-rate schedule, which requires `learning_rate="constant"`: None, "constant", "cosine", "exponential",
        "inverse-time", "step", "plateau", a schedule such as `fastmlp.Cosine(warmup=1)`, or a
        `fastmlp.ReduceOnPlateau`. It multiplies `learning_rate_init`, and its number of epochs is `max_iter`. "plateau" uses
        the validation loss if there is one, and otherwise the training loss. Each call of `fit` restarts the schedule, and
        calls of `partial_fit` continue it
    max_grad_norm : maximum Euclidean norm of the gradient; larger gradients are scaled down to this norm. None disables
        gradient clipping
    max_time : time limit of each call of `fit` or `partial_fit`, in seconds; None for no limit
    backend : compute engine: "numba" (CPU), "cuda" (NVIDIA GPU), "numpy", "torch" (PyTorch), or "auto", which selects the
        fastest one that works on this machine. The solver "lbfgs" ignores this parameter
    n_threads : maximum number of threads of the backend "numba"; None for all cores, or for a worker process of joblib, the
        number of cores divided by the number of workers
    dtype : dtype of the computations: "float32", or "float64", for which `backend="auto"` selects the NumPy engine. The solver
        "lbfgs" always uses float64

    Attributes
    ----------
    All fitted attributes of scikit-learn's class exist. There is one more:

    history_ : list with a dict for each epoch. The keys are "epoch", "loss", "learning_rate" (of the first update of the
        epoch) and "seconds", and with validation rows also "validation_loss" and "validation_score". The solver "lbfgs" does
        not set this attribute

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MLPClassifier(hidden_layer_sizes=(32,), learning_rate_init=0.01, random_state=0).fit(X, y)
    >>> bool(clf.score(X, y) > 0.9)
    True
    """

    loss = "log_loss"  # for code that reads scikit-learn's attribute

    def __init__(  # noqa: PLR0913 - scikit-learn's parameters
        self,
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
        class_weight: Any = None,
        l1: float = 0.0,
        label_smoothing: float = 0.0,
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
        tags.classifier_tags.multi_label = True
        return tags

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation: Any = None) -> MLPClassifier:
        """Train the network, and return the estimator.

        Parameters
        ----------
        X : (n, features) array-like, data frame or SciPy sparse matrix of finite numbers
        y : (n,) class labels, such as integers or strings; for multilabel classification (n, labels) zeros and ones
        sample_weight : (n,) nonnegative weights, not all zero; None for equal weights. Rows with weight 0 are left out
        validation : pair (X, y) that is scored after each epoch; the parameters of the epoch with the best score are kept.
            With `early_stopping=True`, this pair is used instead of a fraction of the training rows

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
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> MLPClassifier:
        """Train for one epoch, continuing from the previous call of `fit` or `partial_fit`, and return the estimator.

        The solver must be "sgd" or "adam".

        Parameters
        ----------
        X, y, sample_weight : as in `fit`
        classes : (k,) all class labels; required in the first call, and optional in later calls

        Raises
        ------
        ValueError : as in `fit`, or `early_stopping` is True, or `classes` is missing or differs from the previous call
        fastmlp.errors.UnavailableError : as in `fit`
        """
        if isinstance(self.class_weight, str):
            raise ConfigError(
                f"partial_fit does not support class_weight={self.class_weight!r}, which needs all rows; pass a dict",
                settings=("class_weight",),
            )
        if classes is not None:
            labels = unique_labels(classes) if len(classes) else np.empty(0)
            if hasattr(self, "classes_") and not np.array_equal(self.classes_, labels):
                raise ValueError(  # the repr of an array is short, unlike that of a list
                    f"`classes={np.asarray(classes)!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}"
                )
            if not hasattr(self, "classes_"):
                self._set_classes(y, labels)
        elif not hasattr(self, "classes_"):
            raise ValueError("classes must be passed on the first call to partial_fit.")
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the predicted class label of each row of X (n, features).

        The result has the shape (n,), or (n, labels) with zeros and ones for multilabel classification.

        Raises
        ------
        sklearn.exceptions.NotFittedError : the estimator has not been fitted
        ValueError : X is invalid, for example because it has another number of features than the training data
        """
        return self._decode(self._pre_activations(X))

    def predict_proba(self, X: Any) -> FloatArray:
        """Return the probability of each class, (n, classes), in the dtype of the training data, for X (n, features).

        For multilabel classification, the shape is (n, labels). Each label has an independent probability, so the rows do not
        sum to 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError : the estimator has not been fitted
        ValueError : X is invalid, for example because it has another number of features than the training data
        """
        outputs = self._outputs(X)
        return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 and not self._multilabel else outputs

    def predict_log_proba(self, X: Any) -> FloatArray:
        """Return the natural logarithm of the result of `predict_proba`. The shape, the dtype and the errors are the same."""
        probabilities = self.predict_proba(X)
        return np.log(probabilities, out=probabilities)

    # ------------------------------------------------------------------------------------------------ methods of BaseMLP

    def _check_xy(self, X: Any, y: Any, *, reset: bool, incremental: bool) -> tuple[Any, Array]:
        X, y = self._check_arrays(X, y, reset=reset)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._set_classes(y, unique_labels(y))
        elif self.warm_start and not incremental:
            classes = unique_labels(y)
            if set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                    f"got {self.classes_}, `y` has {classes}"
                )
        return X, self._encode(y)

    def _check_more(self, X: Any, y: Any) -> tuple[Any, Array]:
        X, y = self._check_arrays(X, y, reset=False)
        return X, self._encode(y)

    def _set_classes(self, y: Any, labels: Array) -> None:
        check_classification_targets(y)
        kind = type_of_target(y)
        if kind.startswith("multiclass-multioutput"):
            raise ValueError("Multioutput target data is not supported; y must be (n,) labels, or (n, labels) zeros and ones")
        if len(labels) == 0:
            raise ValueError("classes must contain at least one label")
        self._multilabel = kind.startswith("multilabel")
        self._sparse_labels = issparse(y)
        self._encoder = LabelEncoder(labels)
        self.classes_ = self._encoder.classes

    def _encode(self, y: Any) -> Array:
        """Return the targets of the network.

        These are (n,) int32 class numbers for more than two classes, (n, 1) float64 zeros and ones for one or two classes, and
        (n, labels) float64 zeros and ones for multilabel classification.

        Raises
        ------
        ValueError : y has another number of dimensions or columns than in the first call, or other labels
        """
        if not self._multilabel:
            if y.ndim != 1:
                raise ValueError(f"y has shape {y.shape}, but the classifier was not fitted with multilabel targets")
            codes = self._encoder.encode(y)
            return codes if len(self.classes_) > 2 else codes[:, None].astype(np.float64)
        if y.ndim == 1:  # one label per row
            return (self._encoder.encode(y)[:, None] == np.arange(len(self.classes_))).astype(np.float64)
        if y.shape[1] != len(self.classes_):
            raise ValueError(f"y has {y.shape[1]} columns, but there are {len(self.classes_)} labels")
        return (np.asarray(y.toarray() if issparse(y) else y) != 0).astype(np.float64)

    def _largest_loss(self) -> float:
        # scikit-learn clips probabilities at the machine epsilon, which matters for data that are not scaled.
        clips = not (self._multilabel or self.label_smoothing)
        return float(-np.log(np.finfo(self.coefs_[0].dtype).eps)) if clips else np.inf

    def _targets(self, y: Array) -> Array:
        if y.ndim == 1 or not self.label_smoothing:  # for class numbers, the loss applies label smoothing
            return y
        return y * (1 - self.label_smoothing) + self.label_smoothing / 2

    def _output_name(self) -> str:
        return "softmax" if len(self.classes_) > 2 and not self._multilabel else "logistic"

    def _decode(self, z: FloatArray) -> npt.NDArray[Any]:
        if self._multilabel:
            labels = (z > 0).astype(int)
            return csr_matrix(labels) if self._sparse_labels else labels
        return self._encoder.decode(z.argmax(axis=1) if z.shape[1] > 1 else self._positive(z).ravel())

    def _positive(self, z: FloatArray) -> npt.NDArray[np.bool_]:
        """Return whether each output predicts its label; a single class is always predicted."""
        return (z > 0) & (len(self.classes_) > 1)

    def _score_of(self, z: FloatArray, y: Array, weights: FloatArray | None) -> float:
        correct = z.argmax(axis=1) == y if y.ndim == 1 else (self._positive(z) == (y > 0)).all(axis=1)
        return float(np.average(correct, weights=weights))

    def _strata(self, y: Array) -> Array | None:
        return y > 0 if self.n_outputs_ == 1 else None

    def _class_weights(self, y: Any) -> FloatArray | None:
        if self.class_weight is None:
            return None
        if isinstance(self.class_weight, Mapping) and not self._multilabel:
            if unknown := set(self.class_weight) - set(self.classes_.tolist()):
                keys = some_names([repr(key) for key in sorted(unknown, key=str)])
                raise ConfigError(f"class_weight has the keys [{keys}], which are not classes of y")
            of_class = [self.class_weight.get(name, 1.0) for name in self.classes_.tolist()]
            weights: FloatArray = np.asarray(of_class, np.float64)[self._encoder.encode(column_or_1d(y))]
        else:
            weights = compute_sample_weight(self.class_weight, y)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ConfigError("class weights must be nonnegative finite numbers", settings=("class_weight",))
        return weights
