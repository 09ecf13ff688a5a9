"""The pictures of an `extract` run, and of a training on its features.

Here: which pictures a run gets, and from what. Not here: how they are drawn (report.py, pictures.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.experiments.extraction import Extracted, Job
from fastmlp.experiments.training_run import RESULT_NAME, split
from fastmlp.files import one_line_error, read_json
from fastmlp.models.file import load
from fastmlp.models.metrics import classification_metrics
from fastmlp.reports.curves import plot_confusion, plot_curves
from fastmlp.reports.images import plot_filters, plot_maps, plot_mistakes, plot_projection

Array = npt.NDArray[Any]


def draw_extraction(found: Extracted, folder: Path | None) -> None:
    """Write the pictures of the network itself; nothing for features that were there before."""
    job, made, data = found.job, found.made, found.data
    if folder is None or made is None or data is None:
        return
    with one_line_error("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    classes, label, trained = data.classes, job.prepared.label, made.trained
    plot_curves(trained.history, trained.best_epoch, folder / "cnn-curves.png", f"{job.images.name}, {label}")
    parts = split(job.images, job.config)
    for part, figures in made.figures.items():
        counts = classification_metrics(parts[part][1], figures.predicted, classes)["confusion"]
        plot_confusion(counts, classes, folder / f"cnn-confusion-{part}.png", f"CNN alone, {part}")
    shown = "test" if "test" in parts else "validation" if "validation" in parts else "train"
    pixels, truth = parts[shown]
    one = np.asarray(pixels[:1])
    plot_filters(made.extractor.first_filters(), folder / "filters.png", "Filters of the first layer")
    plot_maps(pictures_of(job, one)[0], made.extractor.first_maps(one), folder / "maps.png", "Maps of the first layer")
    if data.x_test is not None and data.y_test is not None:
        plot_projection(data.x_test, data.y_test, classes, folder / "projection.png", "Features of the test part")
    else:
        plot_projection(data.x, data.y, classes, folder / "projection.png", "Features")
    if shown in made.figures:
        figures = made.figures[shown]
        title = f"CNN alone, {shown}: the most confident mistakes"
        images = pictures_of(job, np.asarray(pixels[:]))
        plot_mistakes(images, truth, figures.predicted, figures.probability, classes, folder / "cnn-mistakes.png", title)


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
    images = pictures_of(found.job, np.asarray(split(found.job.images, found.job.config)["test"][0][:]))
    title = "MLP on features, test: the most confident mistakes"
    plot_mistakes(images, data.y_test, predicted, sure, model.classes, run / "mistakes.png", title)


def pictures_of(job: Job, pixels: Array) -> Array:
    """Images (n, height, width) or (n, height, width, 3) uint8 from rows of pixels; other numbers are stretched to 0 … 255."""
    shape = job.images.image_shape
    assert shape is not None
    images = pixels.reshape(len(pixels), *shape)
    if images.dtype != np.uint8:
        low, high = float(job.images.x.min()), float(job.images.x.max())
        images = ((images - low) * (255 / max(high - low, 1e-30))).clip(0, 255).astype(np.uint8)
    return images if shape[2] == 3 else images[..., 0]
