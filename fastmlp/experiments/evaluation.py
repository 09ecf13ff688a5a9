"""Evaluation of a saved model on data: `evaluate_run`. models/metrics.py computes the metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastmlp.data.checks import CheckedRows
from fastmlp.data.dataset import Dataset, check_dataset
from fastmlp.data.features import OpenExtractor
from fastmlp.data.images.inputs import ImageInputs, ImageOptions
from fastmlp.data.load import Source, is_image_folder, load_source
from fastmlp.data.named import DATASETS
from fastmlp.data.readers.images import read_image_folder
from fastmlp.data.splits import Splits
from fastmlp.data.splits import split as split_data
from fastmlp.data.tables.target import TableOptions
from fastmlp.errors import ConfigError, DataError, unknown_name
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.mistakes import Answers, check_mistakes, suffix_of, write_mistakes
from fastmlp.experiments.plan import FEATURES_OF, SPLIT_NAMES, Say
from fastmlp.experiments.prediction import input_maker
from fastmlp.experiments.result import describe_data, describe_network
from fastmlp.experiments.resume import RunState, state_of
from fastmlp.files import write_bytes
from fastmlp.files.limits import decompression_limit
from fastmlp.files.reading import check_paths, given_path, is_file, real_path
from fastmlp.models.metrics import evaluate_with_predictions
from fastmlp.models.model import Model, load
from fastmlp.reports.text import predictions_text


def evaluate_run(  # noqa: PLR0913 - the options of a command
    path: str | Path,
    source: str | None = None,
    data_dir: str | None = None,
    *,
    split: str = "test",
    backend: str | None = None,
    threads: int | None = None,
    predictions: str | Path | None = None,
    invert: str = "auto",
    skip_bad: bool = False,
    max_decompressed: float | None = None,
    mistakes: str | Path | None = None,
    open_extractor: OpenExtractor | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Evaluate a saved model on data.

    Parameters
    ----------
    path : run folder, model file or checkpoint. A file in a subfolder of a run is evaluated on the data and splits of that run.
        Of a run that has not finished, the best weights in its newest checkpoint are evaluated
    source, data_dir : data set and data folder, see `load_data`; None uses those of the run
    split : "test", "train", "validation" or "all". The data of the run, recognized by their hash, are split as in the run.
        Other data keep their own test and training split; if they have no test split, all rows are used as the test split
    backend, threads : see `engines.make_engine`; None uses the values of the run
    predictions : file to which the predictions are written, see `text.predictions_text`; only for classification, and only
        if `split` is a single split
    invert : whether the images of an image folder are inverted, see `ImageOptions`; "auto" never inverts the data of the run
    skip_bad : whether unreadable files of the image folder `source` are left out; for the data of the run, the setting of the
        run is used
    max_decompressed : see `load_data`; None uses the setting of the run
    mistakes : .png file to which misclassified images are plotted, or .csv file to which the rows of a table with the largest
        mistakes are written, see `mistakes.write_mistakes`; only if `split` is a single split
    open_extractor : function that loads the feature extractor stored in the model; needed if the model was trained on
        features of images and `source` contains images
    say : function that is called with messages, for example that the run has not finished, how data other than those of the
        run were read, or that images were inverted

    Returns
    -------
    dict : one entry per split with its metrics, see `metrics.evaluate`, and the entries "model", "complete" (False for a run
        folder without a manifest: the run was killed, or is still training), "data", "network", "parameters", "backend" and
        "threads"

    Raises
    ------
    FastMLPError : the model or the split does not exist, or the data do not fit the model
    """
    run = given_path("path", path)
    check_paths(source=source, predictions=predictions, mistakes=mistakes)
    config, own = (state := state_of(run)).config, state.data
    if not own and is_file(run) and source is None:
        raise ConfigError(f"{run} is not a run folder, so its data are unknown; give the data", settings=("data",))
    if state.unfinished:
        say(state.unfinished)
    model = load(state.model, backend=backend or config.backend, threads=threads or config.threads)
    check_files(model, split, predictions, mistakes)
    options = config.table_options() if source is None else TableOptions()
    origin, skip_bad = source or config.data.removeprefix(FEATURES_OF), config.skip_bad if source is None else skip_bad
    with decompression_limit(config.max_decompressed if max_decompressed is None else max_decompressed):
        data = load_for(model, origin, data_dir or config.data_dir, options, skip_bad)
    for note in data.notes if source is not None else ():
        say(note)
    if mistakes is not None:
        check_mistakes(mistakes, data)
    images = model.extractor is not None and data.provenance is None
    if (sizes := split_sizes(data, state, images)) is None and source is None:
        raise DataError(
            f"{config.data} has changed since the run; give it explicitly to evaluate on its new content", settings=("data",)
        )
    splits = own_splits(data) if sizes is None else split_data(data, **sizes)
    chosen = {name: relabel(model, data, splits[name]) for name in SPLIT_NAMES if split in (name, "all") and name in splits}
    chosen = invert_images(model, origin, chosen, invert if sizes is None or invert == "yes" else "no", say)
    if images:
        inputs_of = input_maker(state.model, model, open_extractor)
        chosen = {name: replace(rows, x=inputs_of(rows.x)) for name, rows in chosen.items()}
    if not chosen:
        raise ConfigError(f"{data.name} has no split {split!r}, only {', '.join(splits)}", settings=("split",))
    evaluated = {name: evaluate_with_predictions(model, rows) for name, rows in chosen.items()}
    metrics: dict[str, Any] = {name: found for name, (found, _) in evaluated.items()}
    if split != "all":
        found, predicted = evaluated[split]
        answers = Answers(data, split, splits[split].x, chosen[split], predicted, sizes)
        write_files(model, answers, found, predictions, mistakes)
    engine = model.engine()
    computed = {"model": str(run), "complete": not state.unfinished, "backend": engine.name, "threads": engine.threads}
    described = {"network": describe_network(model.network), "parameters": model.network.parameters}
    return {**metrics, **computed, **described, "data": describe_data(data, chosen)}


def check_files(model: Model, split: str, predictions: str | Path | None, mistakes: str | Path | None) -> None:
    """Raise ConfigError if a file cannot be written for this split or this model; see `evaluate_run` for the parameters."""
    for name, file in (("predictions", predictions), ("mistakes", mistakes)):
        if file is not None and split == "all":
            raise ConfigError(f"{name} are written for one split, not for all", settings=("split", name))
    if mistakes is not None:
        suffix_of(mistakes)
    if predictions is not None and not model.classes:
        raise ConfigError("a file of predictions needs a classifier, but this is a regression model; use `fastmlp predict`")


def write_files(
    model: Model, answers: Answers, metrics: Any, predictions: str | Path | None, mistakes: str | Path | None
) -> None:
    """Write the files of `evaluate_run` that are not None; `metrics` has those of the split."""
    if predictions is not None:
        write_bytes(predictions, predictions_text(answers.rows.y, answers.predicted, metrics).encode())
    if mistakes is not None:
        write_mistakes(Path(mistakes), model, answers)


def load_for(model: Model, source: str, data_dir: str | None, options: TableOptions, skip_bad: bool = False) -> Dataset:
    """Load data for the model's task; the images of an image folder are converted to the model's image shape.

    Raises
    ------
    FastMLPError : see `load_data`; also raised if the shape of the images differs from that of the training images
    """
    task = "classification" if model.classes else "regression"
    if is_folder_of_images(source) and model.image_shape and model.classes and options.weight is None:
        size, channels = model.image_shape[:2], model.image_shape[2]
        arrays = read_image_folder(source, size, skip_bad, channels if channels in (1, 3) else None, least_classes=1)
        data = check_dataset(arrays, real_path(Path(source)).stem)
    else:
        options = options._replace(task=task)
        data = load_source(Source(source, data_dir, None, options, encoding=model.encoding, skip_bad=skip_bad))
    if model.extractor is not None and data.provenance is None and data.image_shape != model.image_shape:
        raise DataError(f"{source}: the model takes images of shape {model.image_shape}, not {data.image_shape}")
    return data


def is_folder_of_images(source: str) -> bool:
    """Return whether a setting `data` is the path of an image folder."""
    return source not in DATASETS and is_image_folder(Path(source))


def invert_images(model: Model, source: str, splits: dict[str, CheckedRows], invert: str, say: Say) -> dict[str, CheckedRows]:
    """Return the splits with the images of an image folder inverted; see `evaluate_run`.

    Raises
    ------
    ConfigError : `invert` is "yes", but the data are not an image folder, or the model was not trained on images
    """
    if not is_folder_of_images(source) or model.image_shape is None:
        if invert == "yes":
            raise ConfigError(f"invert is for folders of images, not for {source!r}; leave it out", settings=("invert",))
        return splits
    converter = ImageInputs(model.image_shape, model.image_stats, ImageOptions(invert))
    found = {}
    for name, rows in splits.items():
        x = np.asarray(rows.x)
        converter.total += len(x)
        found[name] = replace(rows, x=converter.convert(x, converter.to_invert(x)))
    for text in converter.notes():
        say(text)
    return found


def split_sizes(data: Dataset, state: RunState, images: bool) -> dict[str, Any] | None:
    """Return the split settings of a run if `data` are its data, or the images whose features are its data, else None."""
    if data.sha256 == state.data.get("sha256"):
        return state.config.split_sizes()
    extracted = state.data.get("extracted")
    if images and extracted and data.sha256 == extracted["images"]["sha256"]:
        return ExtractConfig.from_table(extracted["settings"]).split_sizes()
    return None


def own_splits(data: Dataset) -> Splits:
    """Return the data set's own test and training split; if it has no test split, all rows are the test split."""
    rows = CheckedRows(data.x, data.y, len(data.classes))
    if data.x_test is None or data.y_test is None:
        return {"test": rows}
    return {"test": CheckedRows(data.x_test, data.y_test, len(data.classes)), "train": rows}


def relabel(model: Model, data: Dataset, rows: CheckedRows) -> CheckedRows:
    """Return the rows with the class numbers of the model as labels; regression targets are returned unchanged.

    Labels are matched by the names of the classes. If the names are not numbers, integer labels are class indices.

    Raises
    ------
    DataError : the data have a class that the model was not trained on, or a different number of regression targets
    """
    y = rows.y
    if not model.classes:
        if y.shape[1] != model.network.sizes[-1]:
            raise DataError(f"the model predicts {model.network.sizes[-1]} values, but {data.name} has {y.shape[1]} targets")
        return rows
    number = {name: index for index, name in enumerate(model.classes)}
    used = {int(old): data.classes[old] for old in np.unique(y)}
    if not data.text_labels and not any(name.isdecimal() for name in model.classes):
        number = {str(index): index for index in range(len(model.classes))} | number
    if unknown := [name for name in used.values() if name not in number]:
        raise DataError(f"{data.name}: {unknown_name('class', unknown[0], number)}; the model was not trained on it")
    table = np.zeros(len(data.classes), np.int32)
    for old, name in used.items():
        table[old] = number[name]
    return replace(rows, y=table[y], classes=len(model.classes))
