"""The class `Model`, a trained network with the scaling of its inputs and targets, and the names of its classes; `load`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, listed
from fastmlp.data.checks import check_rows
from fastmlp.data.images.polarity import ImageStats
from fastmlp.data.labels import class_labels
from fastmlp.data.rows import Features
from fastmlp.data.tables.encoding import TableEncoding
from fastmlp.data.tables.frames import encode_frame, is_frame
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, State
from fastmlp.errors import ConfigError
from fastmlp.models import file, metrics
from fastmlp.nn.blocks import inference_blocks
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.scaling import Scaling


@dataclass(frozen=True, eq=False, repr=False)  # __eq__ would compare arrays, which gives no single bool
class Model(Summarized):
    """A trained network.

    Parameters
    ----------
    network : architecture of the network
    parameters : (P,) float32 or float64, all weights and biases as a flat vector; see `Network.views`
    scaling : scaling that is applied to the inputs; None for no scaling
    classes : names of the classes; empty for regression
    image_shape : (height, width, channels) if the inputs are images, or features extracted from images; else None
    backend, threads : engine and number of threads for predictions; see `engines.make_engine`
    extractor : the bytes of a fastmlp.cnn file with the network that extracts the inputs from images; None if the inputs are
        not extracted features
    target_scaling : scaling of the targets in training, which predictions undo; None for no scaling
    text_labels : whether the class labels were given as strings, so that `predict` returns strings even for names such as "7"
    encoding : for a model of a table, the encoding of its columns as features; None for other models
    image_stats : statistics of the training images, by which images of the opposite polarity are recognized; None if unknown

    Raises
    ------
    DataError : a scaling, the class names or the image shape does not match the network, or a class name has a character that
        `labels.check_class_names` refuses
    """

    network: Network
    parameters: FloatArray
    scaling: Scaling | None = None
    classes: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    backend: str = "auto"
    threads: int | None = None
    extractor: bytes | None = None
    target_scaling: Scaling | None = None
    text_labels: bool = False
    encoding: TableEncoding | None = None
    image_stats: ImageStats | None = None
    _engines: list[Engine] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        parameters = self.parameters.view()
        parameters.flags.writeable = False  # the engine has a copy, so that changes would have no effect on predictions
        object.__setattr__(self, "parameters", parameters)
        shape = self.image_shape if self.extractor is None else None
        file.check_parts(self.network, self.classes, shape, self.scaling, self.target_scaling, self.encoding)

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows."""
        shown = {"network": self.network.label, "parameters": f"{self.network.parameters:,} {self.parameters.dtype}"}
        shown["output"] = f"{self.network.output} ({self.network.loss})"
        if self.scaling is not None:
            shown["scaling"] = self.scaling.kind
        if self.target_scaling is not None:
            shown["target_scaling"] = self.target_scaling.kind
        if self.classes:
            shown["classes"] = listed(self.classes)
        if self.image_shape is not None:
            shown["image_shape"] = str(self.image_shape)
        return shown

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields without the engine, which holds threads and buffers, for pickle and `copy`."""
        return {**vars(self), "_engines": []}

    def engine(self) -> Engine:
        """Return the engine with this model's parameters. It is created when it is first needed."""
        if not self._engines:
            spec = EngineSpec(
                self.network, Optimizer("sgd"), scaling=self.scaling, threads=self.threads, dtype=self.parameters.dtype
            )
            engine = make_engine(self.backend, spec)
            engine.load(State(self.parameters, np.empty((0, self.network.parameters), self.parameters.dtype), 0))
            self._engines.append(engine)
        return self._engines[0]

    def forward(self, x: Features) -> FloatArray:
        """Return the pre-activations of the output layer (n, outputs) for inputs x (n, features) before scaling."""
        return np.concatenate([*self._forward_blocks(x)])

    def _forward_blocks(self, x: Features) -> Iterator[FloatArray]:
        """Yield the result of `forward` in blocks of rows; all rows of a network with many outputs may exceed the memory."""
        engine, outputs = self.engine(), self.network.sizes[-1]
        checked = check_rows(self.inputs(x), self.network.sizes[0], self.parameters.dtype)
        return (engine.forward(block) for _, block in inference_blocks(checked, outputs))

    def inputs(self, x: Any) -> Any:
        """Return the features of a data frame for a model of a table, matched by the names of the columns; other x unchanged.

        Raises
        ------
        DataError : a column is missing, or a row has missing values that the model does not replace
        """
        return x if self.encoding is None or not is_frame(x) else encode_frame(x, self.encoding, self.parameters.dtype)

    @property
    def is_multilabel(self) -> bool:
        """Whether the outputs are the probabilities of independent labels, which are trained with binary cross-entropy."""
        return not self.classes and self.network.loss == "binary-cross-entropy"

    def outputs(self, x: Features) -> FloatArray:
        """Return the outputs of the network, (n, outputs) float64: probabilities, or numbers on the scale of the targets.

        Raises
        ------
        DataError : as in `predict`
        """
        from fastmlp.reference import OUTPUTS

        y = OUTPUTS[self.network.output or ""](self.forward(x).astype(np.float64))
        return y if self.target_scaling is None else self.target_scaling.invert(y)

    def predict_proba(self, x: Features) -> FloatArray:
        """Return probabilities, (n, outputs) float64: of each class with softmax, and of each label with sigmoid.

        A network with one output gives (n, 1). With sigmoid, the sum of a row is not 1.

        Raises
        ------
        ConfigError : the outputs are not probabilities
        DataError : as in `predict`
        """
        if self.network.output not in ("softmax", "sigmoid") or not (self.classes or self.is_multilabel):
            raise ConfigError("predict_proba needs a classifier with a softmax or sigmoid output; use predict or outputs")
        return self.outputs(x)

    def predict(self, x: Features) -> npt.NDArray[Any]:
        """Return the prediction for each row.

        Parameters
        ----------
        x : (n, features) numbers before scaling, or images (n, height, width[, channels]); an array, which may be
            memory-mapped, a `rows.Subset`, a list or a data frame. For a model of a table, the columns of a data frame are
            matched by their names

        Returns
        -------
        array : class labels, (n,) strings or int64, as in the training data; for a network trained with binary cross-entropy on
            a matrix of labels, 0 or 1, (n, outputs) int64; for regression, (n, outputs) float64. The shape is (n,) if there is
            one output

        Raises
        ------
        DataError : x has the wrong number of features, or values that are not finite
        """
        if self.classes:
            numbers = np.concatenate([z.argmax(axis=1) for z in self._forward_blocks(x)])
            return class_labels(self.classes, self.text_labels)[numbers]
        y = self.outputs(x)
        y = (y > 0.5).astype(np.int64) if self.is_multilabel else y
        return y.ravel() if y.shape[1] == 1 else y

    def evaluate(self, x: Any, y: Any) -> dict[str, Any]:
        """Compute the loss and all metrics on a data set.

        Parameters
        ----------
        x : inputs as in `predict`
        y : (n,) class labels as `predict` returns them, or class numbers from 0 if the classes have names; or (n,) or
            (n, outputs) numbers

        Returns
        -------
        dict : "loss", and the metrics of `classification_metrics` for class labels, or of `regression_metrics` for numbers and
            for a matrix of labels. The loss is computed from scaled targets if the model has a `target_scaling`

        Raises
        ------
        DataError : x or y does not match the network, or has invalid values
        """
        return metrics.evaluate(self, x, y)

    def score(self, x: Any, y: Any) -> float:
        """Return the accuracy, or for numbers the coefficient of determination R2, on a data set; see `evaluate`.

        For a matrix of labels, the accuracy is the fraction of rows in which all labels are predicted correctly.
        """
        return metrics.score(self, x, y)

    def save(self, path: str | Path) -> None:
        """Write the model to a safetensors file, which `fastmlp.load` reads. The file is written atomically.

        Raises
        ------
        DataError : the file cannot be written
        """
        file.save(self, path)


def load(
    path: str | Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    activations: file.CustomActivations | None = None,
) -> Model:
    """Read a model from a model file or a run folder.

    Parameters
    ----------
    path : model file, or folder that contains `model.safetensors`
    backend, threads : engine and number of threads for predictions; see `engines.make_engine`
    activations : custom activations of the network by name, each as an `Activation` or as a pair (value, slope). Needed if they
        are not registered in this process, because the file contains only their names

    Raises
    ------
    DataError : the file is missing, damaged, or not a model of this version, or an activation is unknown
    ConfigError : `activations` is invalid, or another activation with the same name is already registered

    Examples
    --------
    >>> import tempfile
    >>> network = Network((4, 3, 2))
    >>> model = Model(network, network.initial_parameters(seed=0), classes=("no", "yes"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.safetensors")
    ...     bool((load(folder).parameters == model.parameters).all())
    True
    """
    return Model(**file.read(path, activations), backend=backend, threads=threads)
