"""Figures of a feature extraction: `draw_extraction`. extraction.py extracts the features, and reports/ plots the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmlp.data.rows import Features
from fastmlp.data.splits import split, split_names
from fastmlp.experiments.features.extraction import Extracted, ExtractJob, picture_names
from fastmlp.experiments.mistakes import ImageRows
from fastmlp.experiments.plan import Say
from fastmlp.files.reading import exists, file_errors
from fastmlp.models.metrics import classification_metrics
from fastmlp.reports.confusion import plot_confusion
from fastmlp.reports.curves import plot_curves
from fastmlp.reports.images import plot_filters, plot_maps, plot_mistakes, plot_projection
from fastmlp.reports.text import short_name


def draw_missing(found: Extracted, folder: Path | None, say: Say) -> None:
    """Plot the figures of the convolutional network into a folder, unless its features were read from a file and all exist.

    Figures of an existing feature file are missing if the run that wrote it was killed before it had plotted them.

    Parameters
    ----------
    found : result of `extract_run`
    folder : folder of the figures; None plots nothing
    say : function that is called with a status message
    """
    if folder is None or found.data is None:
        return
    if found.made is None:
        names = picture_names(sorted(split_names(found.job.images, **found.job.config.split_sizes())))
        missing = [name for name in names if not exists(folder / name)]
        if not missing:
            return
        say(f"{folder} lacks {', '.join(missing)}; plotting the figures again")
    draw_extraction(found, folder)


def draw_extraction(found: Extracted, folder: Path) -> None:
    """Plot the figures of the convolutional network and of its features, `found.data`, into a folder.

    If the features were read from a file, the network and its history are restored from that file.
    """
    job, data = found.job, found.data
    assert data is not None
    splits = split(job.images, **job.config.split_sizes())
    made = found.made
    if made is None:
        assert data.provenance is not None
        assert data.extractor is not None
        parts = {name: (one.x, one.y) for name, one in splits.items()}
        made = job.tools.restore(job.prepared, parts, (data.extractor, str(job.out)), data.provenance["cnn"])
    with file_errors("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    classes, label, trained = data.classes, job.prepared.label, made.trained
    best = trained.best_epoch if job.config.restore_best else None
    plot_curves(trained.history, best, folder / "cnn-curves.png", f"{short_name(job.images.name)}, {label}")
    for name, figures in made.figures.items():
        counts = classification_metrics(splits[name].y, figures.predicted, classes)["confusion"]
        plot_confusion(counts, classes, folder / f"cnn-confusion-{name}.png", f"CNN alone, {name} split")
    shown = "test" if "test" in splits else "validation" if "validation" in splits else "train"
    pixels, truth = splits[shown].x, splits[shown].y
    images = images_of(job, pixels)
    plot_filters(made.extractor.first_filters(), folder / "filters.png", "Filters of the first layer")
    maps = made.extractor.first_maps(np.asarray(pixels[:1]))
    plot_maps(images[0], maps, folder / "maps.png", "Maps of the first layer")
    if data.x_test is not None and data.y_test is not None:
        plot_projection(data.x_test, data.y_test, classes, folder / "projection.png", "Features of the test split")
    else:
        plot_projection(data.x, data.y, classes, folder / "projection.png", "Features")
    figures, title = made.figures[shown], f"CNN alone, {shown} split"
    plot_mistakes(images, truth, figures.predicted, figures.probability, classes, folder / "cnn-mistakes.png", title)


def images_of(job: ExtractJob, pixels: Features) -> ImageRows:
    """Return rows of pixels as images."""
    assert job.images.image_shape is not None
    return ImageRows(pixels, job.images.image_shape, job.images.x)
