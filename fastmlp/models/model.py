"""The class `Model`, a trained network with the scaling of its inputs and the names of its classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized, listed
from fastmlp.data.checks import check_description, check_rows
from fastmlp.data.rows import Features
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, State
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

    Raises
    ------
    DataError : the scaling, the class names or the image shape does not match the network
    """

    network: Network
    parameters: FloatArray
    scaling: Scaling | None = None
    classes: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    backend: str = "auto"
    threads: int | None = None
    extractor: bytes | None = None
    _engines: list[Engine] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        features = None if self.scaling is None else len(self.scaling.shift)
        check_description(self.network, features, len(self.classes), self.image_shape if self.extractor is None else None)

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows."""
        shown = {"network": self.network.label, "parameters": f"{self.network.parameters:,} {self.parameters.dtype}"}
        shown["output"] = f"{self.network.output} ({self.network.loss})"
        if self.scaling is not None:
            shown["scaling"] = self.scaling.kind
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
                self.network, Optimizer(), scaling=self.scaling, threads=self.threads, dtype=self.parameters.dtype
            )
            engine = make_engine(self.backend, spec)
            engine.load(State(self.parameters, np.empty((0, self.network.parameters), self.parameters.dtype), 0))
            self._engines.append(engine)
        return self._engines[0]

    def forward(self, x: Features) -> FloatArray:
        """Return the pre-activations of the output layer (n, outputs) for inputs x (n, features) before scaling."""
        return forward_rows(self.engine(), check_rows(x, self.network.sizes[0], self.parameters.dtype))

    def predict_proba(self, x: Features) -> FloatArray:
        """Return the outputs of the network, (n, outputs) float64; with softmax, they are the class probabilities.

        x (n, features) is an array of numbers, which may be memory-mapped, or a `rows.Subset`. The model scales x itself.

        Raises
        ------
        DataError : x has the wrong number of features, or values that are not finite
        """
        from fastmlp.reference import OUTPUTS

        return OUTPUTS[self.network.output or ""](self.forward(x).astype(np.float64))

    def predict(self, x: Features) -> npt.NDArray[Any]:
        """Return the predicted class indices (n,) int64, or the outputs (n, outputs) for regression.

        Raises
        ------
        DataError : as in `predict_proba`
        """
        return self.forward(x).argmax(axis=1) if self.classes else self.predict_proba(x)


def forward_rows(engine: Engine, x: Features) -> FloatArray:
    """Apply `engine.forward` to all rows, block by block, and return the result (n, outputs)."""
    return np.concatenate([engine.forward(block) for _, block in inference_blocks(x)])
