"""From images to features: one `extract` run from its settings to its data set of features, and its file.

Here: data loaded, checked and split, the steps of a run, the checkpoint that an interrupted run leaves. Not here: networks,
which package cnn trains (it comes in as `Tools`), and what features are (features.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fastmlp.artifacts import file_sha256, json_bytes, write_bytes
from fastmlp.config_extract import ExtractConfig
from fastmlp.data import Dataset, load_data
from fastmlp.errors import ConfigError, DataError
from fastmlp.feature_files import Growing, choose_form, read_features, write_features
from fastmlp.features import Extractor, extract_rows, featured
from fastmlp.preprocess import fit_scaling
from fastmlp.progress import make_progress
from fastmlp.runs import Say, split, split_numbers
from fastmlp.signals import Signals

PIXEL = ("none", "unit", "symmetric", "zscore-global")  # scalings with the same numbers for every pixel


class Tools(Protocol):
    """What package cnn does for us; `cnn.toolkit` has functions of these names, and the class `Watch`."""

    def prepare(self, options: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int) -> Any: ...

    def train(self, prepared: Any, parts: Any, scaling: Any, watch: Any, checkpoint: tuple[bytes, str] | None) -> Any: ...

    def Watch(
        self,
        batch: Callable[..., None],
        epoch: Callable[[dict[str, Any]], None],
        checkpoint: Callable[[bytes], None] | None,
        stop: Callable[[], bool],
    ) -> Any: ...


class Job(NamedTuple):
    """A run that has been checked: the images, how they are cut, the network, and the key of all that decides the features."""

    config: ExtractConfig
    images: Dataset
    prepared: Any
    key: str
    out: Path | None

    @property
    def pictures(self) -> Path | None:
        """Where the pictures go that no run folder takes."""
        beside = None if self.out is None else self.out.with_name(f"{self.out.stem}-pictures")
        return Path(self.config.pictures) if self.config.pictures else beside

    @property
    def kept(self) -> Path:
        """Where an interrupted run leaves its checkpoint."""
        beside = self.out or Path(f"{self.images.name}-{self.prepared.label}")
        return beside.with_name(f"{beside.name}.{self.key[:12]}.checkpoint")

    def growing(self, extractor: Extractor) -> Growing | None:
        """Where the features of a trained network grow; None if they stay in memory."""
        if self.out is None:
            return None
        folder = self.out.with_name(f"{self.out.name}.{extractor.sha256[:12]}.partial")
        return Growing(folder, extractor, self.prepared.device, self.config.feature_dtype)


class Extracted(NamedTuple):
    """What an `extract` run has made.

    data : the features; None if a signal came before they were made
    result : what --json prints
    signal : that ended the training early, or 0
    job : what was asked for
    made : what package cnn gave; None if the features were there before
    """

    data: Dataset | None
    result: dict[str, Any]
    signal: int
    job: Job
    made: Any


def plan(config: ExtractConfig, tools: Tools, *, chained: bool, progress: bool) -> Job:
    """Load the images and check the settings; nothing is written.

    chained : whether the features pass on in memory; then a file is written only if it was asked for
    """
    images = load_data(config.data, config.data_dir, image_size=config.image_size, progress=progress)
    if images.image_shape is None:
        raise DataError(f"{config.data}: not images; extract needs images, such as a folder of class folders or fashion-mnist")
    prepared = tools.prepare(vars(config), images.image_shape, len(images.classes))
    settings = config.key()
    if config.weights is not None:  # what is in the file counts, not where it lies
        settings = settings | {"weights": file_sha256(Path(config.weights)), "weights_sha256": None}
    text = json_bytes({"settings": settings, "data": images.sha256})
    key = hashlib.sha256(text).hexdigest()
    rows, default = len(images.x) + (0 if images.x_test is None else len(images.x_test)), f"{images.name}-{prepared.label}"
    in_memory = chained and not config.out
    out = None if in_memory else choose_form(config.out, default, rows, prepared.width, config.feature_dtype)
    return Job(config, images, prepared, key, out)


class Stopped(Exception):
    """A signal came while features were being made."""


def extract_run(
    config: ExtractConfig, tools: Tools, *, chained: bool = False, quiet: bool = False, say: Say = lambda text: None
) -> Extracted:
    """Train a network on images, and make features of all parts.

    Parameters
    ----------
    config : the settings
    tools : package cnn
    chained : whether the features pass on in memory; then a file is written only if it was asked for
    quiet : no progress on stderr
    say : takes a line for a person on what is being done

    Returns
    -------
    Extracted : after SIGINT or SIGTERM `signal` is set, and a checkpoint lies beside the file that would have come: the same
        command goes on from it

    Raises
    ------
    FastMLPError : settings or data that cannot be used, a file that is there with other features
    """
    job = plan(config, tools, chained=chained, progress=not quiet)
    if (found := existing(job)) is not None:
        say(f"{job.out}: has been made with these settings before; nothing to do")
        return found
    with Signals() as signals:
        made = train(job, tools, signals, quiet, say)
        if made.trained.stopped == "signal":
            say(f"interrupted after epoch {len(made.trained.history)}; the same command goes on from {job.kept}")
            return Extracted(None, describe(job, made, None), signals.received, job, made)
        data, rate = make_features(job, made, signals)
    if data is None:
        say("interrupted while making features; the same command goes on from there")
        return Extracted(None, describe(job, made, rate), signals.received, job, made)
    where = "in memory" if job.out is None else str(job.out)
    images = sum(len(x) for x in (data.x, data.x_test) if x is not None)
    say(f"{data.x.shape[1]} features of {images:,} images, {rate:,.0f} images/s: {where}")
    job.kept.unlink(missing_ok=True)
    return Extracted(data, describe(job, made, rate), 0, job, made)


def existing(job: Job) -> Extracted | None:
    """The features of a file that this very run has written before.

    Raises ConfigError if another run has written it, unless it may be replaced.
    """
    if job.out is None or not job.out.exists() or (job.config.force and job.out.is_file()):
        return None
    data = read_features(job.out)  # also before a folder is replaced: nobody else's may be
    if job.config.force:
        return None
    if data.about is None or data.about["key"] != job.key:
        raise ConfigError(f"out: {job.out} is there and was made otherwise; give another --out, or --force to replace it")
    return Extracted(data, dict(data.about) | {"out": str(job.out)}, 0, job, None)


def train(job: Job, tools: Tools, signals: Signals, quiet: bool, say: Say) -> Any:
    """The trained extractor with its figures; stopped is "signal" if a signal ended its training early."""
    config, parts = job.config, split(job.images, job.config)
    rows = ", ".join(f"{len(x):,} {name}" for name, (x, _) in parts.items())
    say(f"{job.images.name}: {rows} images; network {job.prepared.label} on {job.prepared.device}")
    scaling = fit_scaling(config.scale, parts["train"][0])
    each = slice(None, 1) if config.scale in PIXEL else slice(None)
    checkpoint = None
    if config.resume and job.kept.exists():
        checkpoint = (job.kept.read_bytes(), str(job.kept))
        say(f"going on from {job.kept}")
    with make_progress(quiet=quiet, epochs=config.epochs) as display:
        watch = tools.Watch(
            display.update, display.epoch_done, lambda data: write_bytes(job.kept, data), lambda: bool(signals.received)
        )
        return tools.train(job.prepared, parts, (scaling.shift[each], scaling.factor[each]), watch, checkpoint)


def make_features(job: Job, made: Any, signals: Signals) -> tuple[Dataset | None, float]:
    """The features of all parts, None after a signal, and the images a second."""
    growing, began, images = job.growing(made.extractor), time.perf_counter(), 0
    if growing is not None and not job.config.resume:
        shutil.rmtree(growing.folder, ignore_errors=True)

    def extract(name: str, pixels: Any) -> Any:
        nonlocal images
        if growing is None:
            found = extract_rows(made.extractor, pixels, job.prepared.device, job.config.feature_dtype)
            images += len(pixels)
        else:
            images += growing.grow(name, pixels, lambda: bool(signals.received))
        if signals.received:
            raise Stopped
        return found if growing is None else growing.mapped(name)

    try:
        data = data_with(featured(job.images, extract, split_numbers(job.images, job.config)), job, made)
    except Stopped:
        return None, images / (time.perf_counter() - began)
    rate = images / (time.perf_counter() - began)
    if growing is None or job.out is None:
        return data, rate
    write_features(job.out, data, growing.folder)
    return read_features(job.out), rate


def data_with(data: Dataset, job: Job, made: Any) -> Dataset:
    """The features with what is to be known of them."""
    about = {
        "key": job.key,
        "settings": job.config.key(),
        **made.extractor.table(),
        "extractor_sha256": made.extractor.sha256,
        "images": {"name": job.images.name, "sha256": job.images.sha256},
        "cnn": figures_of(made),
    }
    return dataclasses.replace(data, about=about, extractor=made.extractor.to_bytes())


def figures_of(made: Any) -> dict[str, Any]:
    """Loss and accuracy of the network alone, by part, and its epochs."""
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


def describe(job: Job, made: Any, rate: float | None) -> dict[str, Any]:
    """What --json prints."""
    return {
        "cnn": figures_of(made),
        "network": job.prepared.description.table(),
        "layer": made.extractor.table()["layer"],
        "features": None if rate is None else made.extractor.width,
        "images_per_second": rate,
        "data": {"name": job.images.name, "sha256": job.images.sha256},
        "key": job.key,
        "out": None if job.out is None else str(job.out),
    }
