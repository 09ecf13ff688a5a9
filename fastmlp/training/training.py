"""`train`: one network, trained from data to a model. Many at once: many.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from fastmlp.data.checks import Rows
from fastmlp.data.rows import Features
from fastmlp.engines.interrupts import Signals
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.scaling import Scaling
from fastmlp.training.loop import Callback, Progress, Training, loop_for
from fastmlp.training.settings import Settings, TrainingData, check_data, check_settings


def train(  # noqa: PLR0913 - the settings are one argument; what remains is data
    network: Network,
    x: Features,
    y: npt.NDArray[Any],
    *,
    settings: Settings | None = None,
    validation: Rows | None = None,
    scaling: Scaling | None = None,
    sample_weight: FloatArray | None = None,
    classes: Sequence[str] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
) -> Training:
    """Train a network.

    Parameters
    ----------
    network : its description
    x : (n, features) uint8 or float, memory-mapped or not, or a `rows.Subset`; scaled by `scaling` as rows are used
    y : (n,) integer classes 0 … outputs - 1, or (n, outputs) targets
    settings : how to train
    validation : (x, y) to measure after each epoch; the weights of the best epoch are kept
    scaling : fitted on x, see `preprocess.fit_scaling`; stored with the model
    sample_weight : (n,) positive weights of the rows in the loss
    classes : names of the classes; None numbers them
    image_shape : (height, width, channels) if the rows are images, which `Settings.flip` and `shift` move; kept in the model
    callbacks : each is called with the epoch's history row and the engine; True stops the training
    progress : shows the course, see `progress.make_progress`

    Raises
    ------
    ConfigError : settings that contradict each other or the data
    DataError : data that do not fit the network
    Diverged : the loss became NaN or infinite
    Interrupted : SIGINT or SIGTERM came (only seen in the main thread); carries the training so far

    Examples
    --------
    >>> import numpy as np
    >>> from fastmlp.nn.optimizers import Optimizer, Schedule
    >>> x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
    >>> settings = Settings(Schedule(0.03), Optimizer("adam"), epochs=40, batch_size=16)
    >>> training = train(Network((2, 16, 2), activation="tanh"), x, y, settings=settings)
    >>> bool((training.model.predict(x) == y).mean() > 0.9)
    True
    """
    settings = settings or Settings()
    names = None if classes is None else tuple(classes)
    data = check_data(network, settings.dtype, TrainingData(x, y, validation, sample_weight, scaling, names, image_shape))
    check_settings(settings, data)
    with loop_for(network, settings, data, progress) as loop:
        loop.compile()
        with Signals() as signals:
            return loop.run(signals, callbacks)
