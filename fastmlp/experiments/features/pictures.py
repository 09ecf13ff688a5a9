"""Figures and reports of a feature extraction: `draw_extraction`. extraction.py extracts the features, reports/ plots them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmlp.data.rows import Features
from fastmlp.data.splits import split, split_names
from fastmlp.experiments.features.extraction import Extracted, ExtractJob
from fastmlp.experiments.features.outputs import (
    CLASSES,
    CLASSES_FIGURE,
    CONFUSION,
    CURVES,
    FILTERS,
    MAPS,
    MISTAKES,
    OPTIONAL,
    PREDICTIONS,
    PROJECTION,
    REPORT,
    network_metrics,
    output_names,
    publish,
)
from fastmlp.experiments.folder import remove_files
from fastmlp.experiments.mistakes import ImageRows
from fastmlp.experiments.plan import SPLIT_NAMES, Say
from fastmlp.files import iterate_lines, write_bytes
from fastmlp.files.reading import exists, file_errors
from fastmlp.reports.confusion import plot_classes, plot_confusion
from fastmlp.reports.curves import plot_curves
from fastmlp.reports.images import plot_filters, plot_maps, plot_mistakes, plot_projection
from fastmlp.reports.text import classification_report, predictions_text, short_name


def draw_missing(found: Extracted, folder: Path | None, say: Say) -> None:
    """Write the figures and reports of the convolutional network, unless its features were read from a file and all exist.

    Files of an existing feature file are missing if the run that wrote it was killed before it had written them, or if it had
    other settings of the results, such as `predictions`.

    Parameters
    ----------
    found : result of `extract_run`
    folder : folder of the files; None writes nothing
    say : function that is called with a status message
    """
    if folder is None or found.data is None:
        return
    publish(found, folder, say)
    if found.made is None:
        names = output_names(sorted(split_names(found.job.images, **found.job.config.split_sizes())))
        names += [PREDICTIONS] * found.job.config.predictions + [CLASSES_FIGURE] * exists(folder / CLASSES)
        missing = [name for name in names if not exists(folder / name)]
        if not missing:
            return
        say(f"{folder} lacks {', '.join(missing)}; writing all figures and reports again")
    draw_extraction(found, folder)


def draw_extraction(found: Extracted, folder: Path) -> None:
    """Write the figures and reports of the convolutional network and of its features, `found.data`, into a folder.

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
    plot_curves(trained.history, best, folder / CURVES, f"{short_name(job.images.name)}, {label}")
    metrics = {name: network_metrics(splits[name].y, one, classes) for name, one in made.figures.items()}
    for name, found_metrics in metrics.items():
        plot_confusion(found_metrics["confusion"], classes, folder / CONFUSION.format(name), f"CNN alone, {name} split")
    shown = next(name for name in SPLIT_NAMES if name in splits)
    pixels, truth = splits[shown].x, splits[shown].y
    images = images_of(job, pixels)
    plot_filters(made.extractor.first_filters(), folder / FILTERS, "Filters of the first layer")
    maps = made.extractor.first_maps(np.asarray(pixels[:1]))
    plot_maps(images[0], maps, folder / MAPS, "Maps of the first layer")
    if data.x_test is not None and data.y_test is not None:
        plot_projection(data.x_test, data.y_test, classes, folder / PROJECTION, "Features of the test split")
    else:
        plot_projection(data.x, data.y, classes, folder / PROJECTION, "Features")
    figures, title = made.figures[shown], f"CNN alone, {shown} split"
    plot_mistakes(images, truth, figures.predicted, figures.probability, classes, folder / MISTAKES, title)
    write_bytes(folder / REPORT, classification_report(metrics[shown]).encode())
    remove_files(folder, OPTIONAL)
    if job.config.predictions:
        write_bytes(folder / PREDICTIONS, predictions_text(truth, figures.predicted, metrics["test"]).encode())
    if exists(folder / CLASSES):
        plot_classes(iterate_lines(folder / CLASSES), classes, folder / CLASSES_FIGURE)


def images_of(job: ExtractJob, pixels: Features) -> ImageRows:
    """Return rows of pixels as images."""
    assert job.images.image_shape is not None
    return ImageRows(pixels, job.images.image_shape, job.images.x)
