"""Feature extraction: train a convolutional network on images, write its features as a data set, and plot figures.

The package fastmlp.cnn trains the network; it is passed in as `Tools`. data/features.py defines the data set of features.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastmlp.data.dataset import Dataset, load_data
from fastmlp.data.features import (
    Extractor,
    FeatureWriter,
    check_replaceable,
    choose_form,
    extract_rows,
    feature_dataset,
    read_features,
    write_features,
)
from fastmlp.data.named import DATASETS
from fastmlp.data.scaling import fit_scaling
from fastmlp.data.splits import split, split_indices, split_names
from fastmlp.engines.interrupts import Signals
from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.folder import RESULT_VERSION
from fastmlp.experiments.plan import FEATURES_OF, Say, check_splits
from fastmlp.files import file_errors, file_sha256, json_bytes, write_bytes
from fastmlp.models.metrics import classification_metrics
from fastmlp.reports.confusion import plot_confusion
from fastmlp.reports.curves import plot_curves
from fastmlp.reports.images import plot_filters, plot_maps, plot_mistakes, plot_projection
from fastmlp.training.progress import make_progress

PIXEL = ("none", "unit", "symmetric", "zscore-global")  # scalings with one shift and one factor for all pixels


class Tools(Protocol):
    """Interface of the module fastmlp.cnn.toolkit, which is not imported here because it needs PyTorch."""

    def prepare(self, options: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int) -> Any: ...

    def train(self, prepared: Any, parts: Any, scaling: Any, watch: Any, checkpoint: tuple[bytes, str] | None) -> Any: ...

    def Watch(
        self,
        batch: Callable[..., None],
        epoch: Callable[[dict[str, Any]], None],
        checkpoint: Callable[[bytes], None] | None,
        stop: Callable[[], bool],
    ) -> Any: ...


class ExtractJob(NamedTuple):
    """A validated extraction run. `key` is a hash of everything that determines the features."""

    config: ExtractConfig
    images: Dataset
    prepared: Any
    key: str
    out: Path | None

    @property
    def pictures(self) -> Path | None:
        """Folder for the figures: the one in the settings, or else a folder next to the feature file, or else None."""
        beside = None if self.out is None else self.out.with_name(f"{self.out.stem}-pictures")
        return Path(self.config.pictures) if self.config.pictures else beside

    @property
    def kept(self) -> Path:
        """Path of the checkpoint that the run saves if it is interrupted."""
        beside = self.out or Path(f"{self.images.name}-{self.prepared.label}")
        return beside.with_name(f"{beside.name}.{self.key[:12]}.checkpoint")

    def writer(self, extractor: Extractor, provenance: Mapping[str, Any]) -> FeatureWriter | None:
        """Return a writer that saves the features of a trained network; None if the features stay in memory."""
        if self.out is None:
            return None
        # The extractor's hash is not enough: if only the test images change, the key differs but the extractor does not.
        folder = self.out.with_name(f"{self.out.name}.{self.key[:12]}-{provenance['extractor_sha256'][:12]}.partial")
        return FeatureWriter(folder, extractor, self.prepared.device, self.config.feature_dtype)

    def clear(self) -> None:
        """Remove the checkpoint and the partial features of an interrupted run."""
        self.kept.unlink(missing_ok=True)
        if self.out is not None:
            for folder in self.out.parent.glob(f"{glob.escape(self.out.name)}.{self.key[:12]}-*.partial"):
                shutil.rmtree(folder, ignore_errors=True)


class Extracted(NamedTuple):
    """Result of an `extract` run.

    data : the features; None if a signal interrupted the run before they were complete
    result : the dict that `fastmlp extract --json` prints
    signal : number of the received signal, or 0
    job : the run that produced this result
    made : the result of `Tools.train`; None if the features were read from an existing file
    """

    data: Dataset | None
    result: dict[str, Any]
    signal: int
    job: ExtractJob
    made: Any

    @property
    def source(self) -> str:
        """Setting `data` for training on the features: the feature file, or a description of features kept in memory."""
        given = self.job.config.data
        return (
            FEATURES_OF + (given if given in DATASETS else str(Path(given).absolute()))
            if self.job.out is None
            else str(self.job.out)
        )


def plan(config: ExtractConfig, tools: Tools, *, follows: TrainConfig | None, progress: bool) -> ExtractJob:
    """Load the images and check the settings, without writing any file.

    follows : settings of a training run that uses the features in memory; if given, a feature file is written only if
        `config.out` is set
    """
    images = load_data(config.data, config.data_dir, image_size=config.image_size, progress=progress)
    if images.image_shape is None:
        raise DataError(f"{config.data}: not images; extract needs images, such as a folder of class folders or fashion-mnist")
    if follows is not None:
        check_splits(follows, split_names(images, **config.split_sizes()))
    prepared = tools.prepare(vars(config), images.image_shape, len(images.classes))
    settings = {name: value for name, value in config.key().items() if name != "data"}  # `images.sha256` is used instead
    if config.weights is not None:  # hash the content of the file, not its path
        settings = settings | {"weights": file_sha256(Path(config.weights)), "weights_sha256": None}
    text = json_bytes({"settings": settings, "data": images.sha256})
    key = hashlib.sha256(text).hexdigest()
    rows, default = len(images.x) + (0 if images.x_test is None else len(images.x_test)), f"{images.name}-{prepared.label}"
    in_memory = follows is not None and not config.out
    out = None if in_memory else choose_form(config.out, default, rows, prepared.width, config.feature_dtype)
    if config.pictures is not None and Path(config.pictures).is_file():
        raise ConfigError(f"pictures: {config.pictures} is a file; give a folder", settings=("pictures",))
    return ExtractJob(config, images, prepared, key, out)


class Stopped(Exception):
    """A signal interrupted the extraction of the features."""


def extract_run(
    config: ExtractConfig,
    tools: Tools,
    *,
    follows: TrainConfig | None = None,
    quiet: bool = False,
    say: Say = lambda text: None,
) -> Extracted:
    """Train a convolutional network on images, and extract the features of all splits.

    Parameters
    ----------
    config : settings of the extraction
    tools : the module fastmlp.cnn.toolkit
    follows : settings of a training run that uses the features in memory; if given, a feature file is written only if
        `config.out` is set
    quiet : if true, show no progress on stderr
    say : function that is called with each status message

    Returns
    -------
    Extracted : after SIGINT or SIGTERM, `signal` is the number of the signal, and calling the function again with the same
        settings continues from a checkpoint

    Raises
    ------
    FastMLPError : settings or data cannot be used, or the feature file exists and was made with other settings
    """
    job = plan(config, tools, follows=follows, progress=not quiet)
    if (found := existing(job)) is not None:
        say(f"{job.out}: exists and was made with these settings; nothing to do")
        job.clear()
        return found
    with Signals() as signals:
        made = train(job, tools, signals, quiet, say)
        provenance = provenance_of(job, made)
        if made.trained.stopped == "signal":
            say(f"interrupted after epoch {len(made.trained.history)}; the same command continues from {job.kept}")
            return Extracted(None, describe(job, provenance), signals.received, job, made)
        data, rate = make_features(job, made, provenance, signals)
    if data is None:
        say(f"interrupted during the extraction; the same command continues from {job.kept}")
        return Extracted(None, describe(job, provenance), signals.received, job, made)
    images = sum(len(x) for x in (data.x, data.x_test) if x is not None)
    speed = "" if rate is None else f", {rate:,.0f} images/s"
    say(f"{data.x.shape[1]} features of {images:,} images{speed}: {'in memory' if job.out is None else job.out}")
    job.clear()
    return Extracted(data, describe(job, provenance, data, rate), signals.received, job, made)


def existing(job: ExtractJob) -> Extracted | None:
    """Return the features in the output file if it was made with the same settings and images.

    Return None if the file does not exist or is to be replaced. Raise ConfigError if it was made with other settings.
    """
    if job.out is None or not job.out.exists():
        return None
    if job.config.force:
        check_replaceable(job.out, Path(job.config.data))
        return None
    data = read_features(job.out)
    assert data.provenance is not None
    if data.provenance["key"] != job.key:
        raise ConfigError(
            f"out: {job.out} exists and was made with other settings; choose another name, or set force to replace it",
            settings=("out", "force"),
        )
    return Extracted(data, describe(job, data.provenance, data), 0, job, None)


def train(job: ExtractJob, tools: Tools, signals: Signals, quiet: bool, say: Say) -> Any:
    """Train the convolutional network, and return the result of `Tools.train`.

    In the result, `trained.stopped` is "signal" if a signal interrupted the training.
    """
    config, splits = job.config, split(job.images, **job.config.split_sizes())
    rows = ", ".join(f"{len(one):,} {name}" for name, one in splits.items())
    say(f"{job.images.name}: {rows} images; network {job.prepared.label} on {job.prepared.device}")
    scaling = fit_scaling(config.scale, splits["train"].x)
    each = slice(None, 1) if config.scale in PIXEL else slice(None)
    checkpoint = None
    if config.resume and job.kept.exists():
        checkpoint = (job.kept.read_bytes(), str(job.kept))
        say(f"continuing from {job.kept}")
    with make_progress(quiet=quiet, epochs=config.epochs) as display:
        watch = tools.Watch(
            display.update, display.epoch_done, lambda data: write_bytes(job.kept, data), lambda: bool(signals.received)
        )
        parts = {name: (one.x, one.y) for name, one in splits.items()}
        return tools.train(job.prepared, parts, (scaling.shift[each], scaling.factor[each]), watch, checkpoint)


def make_features(
    job: ExtractJob, made: Any, provenance: Mapping[str, Any], signals: Signals
) -> tuple[Dataset | None, float | None]:
    """Extract the features of all splits.

    Return the features, or None after a signal, and the images per second, or None if no image had to be processed.
    """
    writer, began, images = job.writer(made.extractor, provenance), time.perf_counter(), 0
    if writer is not None and not job.config.resume:
        shutil.rmtree(writer.folder, ignore_errors=True)

    def extract(name: str, pixels: Any) -> Any:
        nonlocal images
        if writer is None:
            found = extract_rows(made.extractor, pixels, job.prepared.device, job.config.feature_dtype)
            images += len(pixels)
        else:
            images += writer.append(name, pixels, lambda: bool(signals.received))
        if signals.received:
            raise Stopped
        return found if writer is None else writer.mapped(name)

    try:
        data = feature_dataset(job.images, extract, split_indices(job.images, **job.config.split_sizes()))
    except Stopped:
        return None, None
    rate = images / (time.perf_counter() - began) if images else None
    data = dataclasses.replace(data, provenance=provenance, extractor=made.extractor.to_bytes())
    if writer is None or job.out is None:
        return data, rate
    write_features(job.out, data, writer.folder)
    return read_features(job.out), rate


def provenance_of(job: ExtractJob, made: Any) -> dict[str, Any]:
    """Return the provenance of the features, a dict that is stored with them."""
    return {
        "key": job.key,
        "settings": job.config.key(),
        **made.extractor.table(),
        "extractor_sha256": made.extractor.sha256,
        "images": {"name": job.images.name, "sha256": job.images.sha256},
        "cnn": figures_of(made),
    }


def figures_of(made: Any) -> dict[str, Any]:
    """Return the convolutional network's loss and accuracy on each split, and its number of epochs, time and history."""
    figures = {name: {"loss": one.loss, "accuracy": one.accuracy} for name, one in made.figures.items()}
    trained = made.trained
    seconds = sum(row["seconds"] for row in trained.history)
    return {
        **figures,
        "epochs": len(trained.history),
        "best_epoch": trained.best_epoch,
        "stopped": trained.stopped,
        "seconds": seconds,
        "history": trained.history,
    }


def describe(
    job: ExtractJob, provenance: Mapping[str, Any], data: Dataset | None = None, rate: float | None = None
) -> dict[str, Any]:
    """Return the result for JSON: the provenance, the number of features and their file; both are None without features."""
    made = {} if data is None else {"features": data.x.shape[1], "out": None if job.out is None else str(job.out)}
    return {"format_version": RESULT_VERSION, **provenance, "features": None, "out": None, **made, "images_per_second": rate}


Array = npt.NDArray[Any]


def draw_extraction(found: Extracted, folder: Path | None) -> None:
    """Plot the figures of the convolutional network into a folder; plot nothing if the features were read from a file."""
    job, made, data = found.job, found.made, found.data
    if folder is None or made is None or data is None:
        return
    with file_errors("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    classes, label, trained = data.classes, job.prepared.label, made.trained
    plot_curves(trained.history, trained.best_epoch, folder / "cnn-curves.png", f"{job.images.name}, {label}")
    splits = split(job.images, **job.config.split_sizes())
    for name, figures in made.figures.items():
        counts = classification_metrics(splits[name].y, figures.predicted, classes)["confusion"]
        plot_confusion(counts, classes, folder / f"cnn-confusion-{name}.png", f"CNN alone, {name}")
    shown = "test" if "test" in splits else "validation" if "validation" in splits else "train"
    pixels, truth = splits[shown].x, splits[shown].y
    one = np.asarray(pixels[:1])
    plot_filters(made.extractor.first_filters(), folder / "filters.png", "Filters of the first layer")
    plot_maps(pictures_of(job, one)[0], made.extractor.first_maps(one), folder / "maps.png", "Maps of the first layer")
    if data.x_test is not None and data.y_test is not None:
        plot_projection(data.x_test, data.y_test, classes, folder / "projection.png", "Features of the test split")
    else:
        plot_projection(data.x, data.y, classes, folder / "projection.png", "Features")
    if shown in made.figures:
        figures = made.figures[shown]
        title = f"CNN alone, {shown}: the most confident mistakes"
        images = pictures_of(job, np.asarray(pixels[:]))
        plot_mistakes(images, truth, figures.predicted, figures.probability, classes, folder / "cnn-mistakes.png", title)


def pictures_of(job: ExtractJob, pixels: Array) -> Array:
    """Reshape rows of pixels to uint8 images, shape (n, height, width) or (n, height, width, 3).

    Pixels of other dtypes are scaled linearly to the range from 0 to 255.
    """
    shape = job.images.image_shape
    assert shape is not None
    images = pixels.reshape(len(pixels), *shape)
    if images.dtype != np.uint8:
        low, high = float(job.images.x.min()), float(job.images.x.max())
        images = ((images - low) * (255 / max(high - low, 1e-30))).clip(0, 255).astype(np.uint8)
    return images if shape[2] == 3 else images[..., 0]
