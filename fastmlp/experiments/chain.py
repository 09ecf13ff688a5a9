"""A training on the features of an `extract` run: the pictures that its run folder gets beside its own.

Not here: the pictures of the extraction itself (extraction.py), and how they are drawn (reports/).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmlp.data.splits import split
from fastmlp.experiments.extraction import Extracted, draw_extraction, pictures_of
from fastmlp.experiments.folder import RESULT_NAME
from fastmlp.files import read_json
from fastmlp.models.file import load
from fastmlp.reports.confusion import plot_confusion
from fastmlp.reports.images import plot_mistakes


def draw_chain(found: Extracted, run: Path) -> None:
    """Write into a finished run's folder what its training on the features got wrong, and the pictures of the network."""
    draw_extraction(found, run)
    result, model, data = read_json(run / RESULT_NAME), load(run), found.data
    assert data is not None
    for part in ("train", "validation", "test"):
        if result[part] is not None:
            title = f"MLP on features, {part}"
            plot_confusion(result[part]["confusion"], model.classes, run / f"confusion-{part}.png", title)
    if data.x_test is None or data.y_test is None:
        return
    probabilities = model.predict_proba(data.x_test)
    predicted = probabilities.argmax(axis=1)
    sure = probabilities[np.arange(len(predicted)), predicted]
    images = pictures_of(found.job, np.asarray(split(found.job.images, **found.job.config.split_sizes())["test"][0][:]))
    title = "MLP on features, test: the most confident mistakes"
    plot_mistakes(images, data.y_test, predicted, sure, model.classes, run / "mistakes.png", title)
