"""`MLPClassifier`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.callback import with_callbacks
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import validate_data

from fastmlp.data.labels import LabelEncoder
from fastmlp.data.rows import Array
from fastmlp.estimators.base import STOCHASTIC, BaseMLP
from fastmlp.nn.network import FloatArray


def stochastic_only(estimator: Any) -> bool:
    """Raise AttributeError, so that `hasattr` is False, if the solver has no epochs."""
    if estimator.solver not in STOCHASTIC:
        raise AttributeError(f"partial_fit is only available for stochastic optimizers. {estimator.solver} is not stochastic.")
    return True


class MLPClassifier(ClassifierMixin, BaseMLP):
    """Multi-layer perceptron classifier: a drop-in replacement of `sklearn.neural_network.MLPClassifier`.

    Parameters up to `max_fun`, fitted attributes and methods have the names, defaults and meaning of scikit-learn 1.9.
    docs/estimators.md lists all deliberate differences.

    Parameters
    ----------
    hidden_layer_sizes ... max_fun : as in scikit-learn. `activation` may also be a list with one name per hidden layer, and any
        name of `fastmlp.nn.activations.ACTIVATIONS`, such as "leaky-relu", "gelu", "silu" or "elu"
    dropout : dropout rate after hidden layers, in [0, 1); one for all, or one per layer
    class_weight : dict from class to weight, "balanced", or None, as in scikit-learn's other classifiers
    l1 : strength of the L1 penalty on weights; divided by the mini-batch size, like `alpha`
    label_smoothing : fraction of the target that is distributed evenly over all classes, in [0, 1)
    schedule : learning-rate schedule over `max_iter` epochs: None for the parameter `learning_rate`; "cosine", "exponential",
        "inverse-time", "step", "plateau"; a `Schedule`, whose rate and epochs are replaced by `learning_rate_init` and
        `max_iter`; or a `ReduceOnPlateau`
    max_grad_norm : largest Euclidean norm of the gradient; None for no gradient clipping
    max_time : time limit in seconds; None for no limit
    backend : "auto", "numba", "cuda", "numpy" or "torch", see `fastmlp.engines.make_engine`
    n_threads : number of threads of the CPU engine; None for all cores, divided by the number of joblib workers
    dtype : "float32", or "float64", which computes with NumPy

    Attributes
    ----------
    As in scikit-learn, and

    history_ : list with a dict per epoch: epoch, loss, learning_rate, seconds; with a validation set validation_loss and
        validation_score

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MLPClassifier(hidden_layer_sizes=(32,), learning_rate_init=0.01, random_state=0).fit(X, y)
    >>> bool(clf.score(X, y) > 0.9)
    True
    """

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
        """Train the network.

        Parameters
        ----------
        X : (n, features) array-like, data frame or sparse matrix, finite
        y : (n,) labels of any kind, or (n, labels) zeros and ones for multilabel classification
        sample_weight : (n,) weights of the rows, not negative; None for equal weights. Rows of weight 0 are left out
        validation : (X, y), scored after each epoch; the parameters of the best epoch are kept. With `early_stopping` they
            replace the fraction of the training rows

        Raises
        ------
        ValueError : invalid data or parameters, or a training run that diverged
        """
        return self._fit(X, y, sample_weight, validation)

    @available_if(stochastic_only)
    @with_callbacks
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> MLPClassifier:
        """Train one epoch, continuing from the previous call of `fit` or `partial_fit`.

        Parameters
        ----------
        X, y, sample_weight : as in `fit`
        classes : all labels, required in the first call; optional afterwards

        Raises
        ------
        ValueError : as `fit`, or with `early_stopping`
        """
        if classes is not None:
            labels = unique_labels(classes)
            if hasattr(self, "classes_") and not np.array_equal(self.classes_, labels):
                raise ValueError(
                    f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}"
                )
            if not hasattr(self, "classes_"):
                self._set_classes(y, labels)
        elif not hasattr(self, "classes_"):
            raise ValueError("classes must be passed on the first call to partial_fit.")
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the label of each row, (n,), or zeros and ones, (n, labels), for multilabel classification."""
        return self._decode(self._pre_activations(X))

    def predict_proba(self, X: Any) -> FloatArray:
        """Return probabilities, (n, classes), in the dtype of the training data.

        For multilabel classification they are those of each label, and do not sum to 1.
        """
        outputs = self._outputs(X)
        return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 and not self._multilabel else outputs

    def predict_log_proba(self, X: Any) -> FloatArray:
        """Return the logarithm of `predict_proba`."""
        probabilities = self.predict_proba(X)
        return np.log(probabilities, out=probabilities)

    # ------------------------------------------------------------------------------------------------ for BaseMLP

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

    def _check_arrays(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, Array]:
        dtypes = (np.float64, np.float32)
        X, y = validate_data(self, X, y, accept_sparse=("csr", "csc"), multi_output=True, dtype=dtypes, reset=reset)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _set_classes(self, y: Any, labels: Array) -> None:
        check_classification_targets(y)
        kind = type_of_target(y)
        if kind.startswith("multiclass-multioutput"):
            raise ValueError("Multioutput target data is not supported; give (n,) labels or (n, labels) zeros and ones")
        self._multilabel = kind.startswith("multilabel")
        self._encoder = LabelEncoder(labels)
        self.classes_ = self._encoder.classes

    def _encode(self, y: Array) -> Array:
        """Return the network's targets: class numbers (n,), or (n, 1) or (n, labels) zeros and ones."""
        if self._multilabel:
            return np.asarray(y.toarray() if hasattr(y, "toarray") else y, np.float64)
        codes = self._encoder.encode(y)
        if len(self.classes_) > 2:
            return codes
        return codes[:, None].astype(np.float64)

    def _targets(self, y: Array) -> Array:
        if y.ndim == 1 or not self.label_smoothing:  # the network smooths class numbers
            return y
        return y * (1 - self.label_smoothing) + self.label_smoothing / 2

    def _output_name(self) -> str:
        return "softmax" if len(self.classes_) > 2 and not self._multilabel else "logistic"

    def _decode(self, z: FloatArray) -> npt.NDArray[Any]:
        if self._multilabel:
            return (z > 0).astype(int)
        return self._encoder.decode(z.argmax(axis=1) if z.shape[1] > 1 else np.ravel(z > 0) & (len(self.classes_) > 1))

    def _score_of(self, z: FloatArray, y: Array, weights: FloatArray | None) -> float:
        correct = z.argmax(axis=1) == y if y.ndim == 1 else ((z > 0) == (y > 0)).all(axis=1)
        return float(np.average(correct, weights=weights))

    def _strata(self, y: Array) -> Array | None:
        return y > 0 if self.n_outputs_ == 1 else None

    def _class_weights(self, y: Any) -> FloatArray | None:
        return None if self.class_weight is None else compute_sample_weight(self.class_weight, y)
