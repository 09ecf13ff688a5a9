"""Feature extraction: train a convolutional network on images, and write its features as a data set.

The package fastmlp.cnn trains the network; it is passed in as `Tools`. data/features.py defines the data set of features, and
pictures.py plots the figures.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fastmlp.data.dataset import Dataset
from fastmlp.data.features import (
    Extractor,
    FeatureWriter,
    check_replaceable,
    choose_form,
    extract_rows,
    feature_dataset,
    read_features,
    recover,
    write_features,
)
from fastmlp.data.images.polarity import image_stats
from fastmlp.data.load import load_data
from fastmlp.data.named import DATASETS
from fastmlp.data.scaling import fit_scaling
from fastmlp.data.splits import split, split_indices, split_names
from fastmlp.engines.interrupts import Signals
from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.features.outputs import EpochRecorder, labels_of, network_metrics, remove_outputs
from fastmlp.experiments.folder import RESULT_VERSION, locked, locked_file, removed_if_empty
from fastmlp.experiments.plan import FEATURES_OF, SPLIT_NAMES, Say, check_splits
from fastmlp.files import file_sha256, json_bytes, write_bytes
from fastmlp.files.reading import exists, files_matching, is_file, is_folder, read_bytes
from fastmlp.training.progress import make_progress

PIXEL = ("none", "unit", "symmetric", "zscore-global")  # scalings with one shift and one factor for all pixels


class Tools(Protocol):
    """Interface of the module fastmlp.cnn.toolkit, which is not imported here because it needs PyTorch."""

    def prepare(self, options: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int) -> Any: ...

    def train(
        self,
        prepared: Any,
        parts: Any,
        scaling: Any,
        watch: Any,
        checkpoint: tuple[bytes, str] | None,
        snapshot: Callable[[int, Any], None],
    ) -> Any: ...

    def restore(self, prepared: Any, parts: Any, extractor: tuple[bytes, str], cnn: Mapping[str, Any]) -> Any: ...

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
    tools: Tools
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

    @property
    def saved(self) -> Path:
        """Folder of the per-class metrics and models that the run saves while it trains, see outputs.py."""
        return self.kept.with_suffix(".saved")

    def writer(self, extractor: Extractor, provenance: Mapping[str, Any]) -> FeatureWriter | None:
        """Return a writer that saves the features of a trained network; None if the features stay in memory."""
        if self.out is None:
            return None
        # The extractor's hash is not enough: if only the test images change, the key differs but the extractor does not.
        folder = self.out.with_name(f"{self.out.name}.{self.key[:12]}-{provenance['extractor_sha256'][:12]}.partial")
        return FeatureWriter(folder, extractor, self.prepared.device, self.config.feature_dtype)

    @property
    def partial(self) -> list[Path]:
        """Folders of the partial features of an interrupted run."""
        return (
            []
            if self.out is None
            else files_matching(self.out.parent, f"{glob.escape(self.out.name)}.{self.key[:12]}-*.partial")
        )

    @property
    def continuation(self) -> str:
        """Message that says what an interrupted run has saved, and what the same command will do."""
        if not exists(self.kept):
            return "no checkpoint was saved, so the same command starts again, from the beginning"
        saved = " and ".join(map(str, [self.kept, *([self.saved] if is_folder(self.saved) else []), *self.partial]))
        continues = f"continues from {saved}"
        if not self.config.resume:
            return f"the same command starts again, from the beginning, because resume is false; if it is true, it {continues}"
        return f"the same command {continues}"

    def clear(self) -> None:
        """Remove the checkpoint and the partial features of an interrupted run."""
        self.kept.unlink(missing_ok=True)
        for folder in self.partial:
            shutil.rmtree(folder, ignore_errors=True)


class Extracted(NamedTuple):
    """Result of an `extract` run.

    data : the features; None if a signal interrupted the run before they were complete
    result : the dict that `fastmlp extract --json` prints
    signal : number of the received signal, or 0
    job : the run that produced this result
    made : the result of `Tools.train`, or None if the features were read from an existing file; `Tools.restore` returns it
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
    names = ("image_size", "skip_bad", "max_decompressed")
    images = load_data(config.data, config.data_dir, **{name: getattr(config, name) for name in names}, progress=progress)
    json_bytes([images.name, images.notes, config.key(), config.out])  # names that cannot be written are refused first
    if images.image_shape is None:
        raise DataError(f"{config.data}: not images; extract needs images, such as a folder of class folders or fashion-mnist")
    for one in (config, follows):
        if one is not None:
            check_splits(one, split_names(images, **config.split_sizes()))
    prepared = tools.prepare(vars(config), images.image_shape, len(images.classes))
    settings = {name: value for name, value in config.key().items() if name != "data"}  # `images.sha256` is used instead
    if config.weights is not None:  # hash the content of the file, not its path
        settings = settings | {"weights": file_sha256(Path(config.weights)), "weights_sha256": None}
    text = json_bytes({"settings": settings, "data": images.sha256})
    key = hashlib.sha256(text).hexdigest()
    rows, default = len(images.x) + (0 if images.x_test is None else len(images.x_test)), f"{images.name}-{prepared.label}"
    in_memory = follows is not None and not config.out
    out = None if in_memory else choose_form(config.out, default, rows, prepared.width, config.feature_dtype)
    if config.pictures is not None and is_file(Path(config.pictures)):
        raise ConfigError(f"pictures: {config.pictures} is a file; give a folder", settings=("pictures",))
    return ExtractJob(config, tools, images, prepared, key, out)


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
    FastMLPError : settings or data cannot be used, the feature file exists and was made with other settings, or another run is
        writing it
    """
    job = plan(config, tools, follows=follows, progress=not quiet)
    for note in job.images.notes:
        say(note)
    with ExitStack() as stack:
        # Checkpoints need no lock: runs with the same key write the same ones, and each write is atomic.
        if job.out is not None:
            stack.enter_context(locked_file(job.out))
            recover(job.out)
        elif config.per_class_every or config.save_every:
            stack.enter_context(locked(job.saved))
            stack.enter_context(removed_if_empty(job.saved))
        if (found := existing(job)) is None:
            return train_and_extract(job, quiet, say)
        say(f"{job.out}: exists and was made with these settings; nothing to extract")
        job.clear()
        return found


def train_and_extract(job: ExtractJob, quiet: bool, say: Say) -> Extracted:
    """Implement `extract_run` for features that do not exist or are to be replaced."""
    with Signals() as signals:
        made = train(job, signals, quiet, say)
        provenance = provenance_of(job, made)
        if made.trained.stopped == "signal":
            epochs = len(made.trained.history)
            say(f"interrupted {f'after epoch {epochs}' if epochs else 'in the first epoch'}; {job.continuation}")
            return Extracted(None, describe(job, provenance), signals.received, job, made)
        data, rate = make_features(job, made, provenance, signals)
    if data is None:
        say(f"interrupted during the extraction; {job.continuation}")
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
    if job.out is None or not exists(job.out):
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


def train(job: ExtractJob, signals: Signals, quiet: bool, say: Say) -> Any:
    """Train the convolutional network, and return the result of `Tools.train`.

    In the result, `trained.stopped` is "signal" if a signal interrupted the training.
    """
    config, splits = job.config, split(job.images, **job.config.split_sizes())
    rows = ", ".join(f"{len(one):,} {name}" for name, one in splits.items())
    say(f"{job.images.name}: {rows} images; network {job.prepared.label} on {job.prepared.device}")
    scaling = fit_scaling(config.scale, splits["train"].x)
    each = slice(None, 1) if config.scale in PIXEL else slice(None)
    checkpoint = None
    if config.resume and exists(job.kept):
        checkpoint = (read_bytes(job.kept), str(job.kept))
        say(f"continuing from {job.kept}")
    recorder = EpochRecorder(job)

    def write_checkpoint(data: bytes) -> None:
        recorder.files.sync()  # the lines are not part of the checkpoint
        write_bytes(job.kept, data)

    with make_progress(quiet=quiet, epochs=config.epochs) as display:
        watch = job.tools.Watch(display.update, display.epoch_done, write_checkpoint, lambda: bool(signals.received))
        parts = {name: (one.x, one.y) for name, one in splits.items()}
        return job.tools.train(job.prepared, parts, (scaling.shift[each], scaling.factor[each]), watch, checkpoint, recorder)


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
    if job.pictures is not None:  # results of the network whose features are replaced
        remove_outputs(job.pictures, SPLIT_NAMES)
    write_features(job.out, data, writer.folder)
    return read_features(job.out), rate


def provenance_of(job: ExtractJob, made: Any) -> dict[str, Any]:
    """Return the provenance of the features, a dict that is stored with them."""
    stats = image_stats(job.images.x, job.images.image_shape)
    return {
        "key": job.key,
        "settings": job.config.key(),
        **made.extractor.table(),
        "extractor_sha256": made.extractor.sha256,
        "images": {"name": job.images.name, "sha256": job.images.sha256, "stats": stats and dataclasses.asdict(stats)},
        "cnn": figures_of(job, made),
    }


def figures_of(job: ExtractJob, made: Any) -> dict[str, Any]:
    """Return the convolutional network's metrics of each split, and its number of epochs, time and history."""
    labels = labels_of(job)
    figures = {name: network_metrics(labels[name], one, job.images.classes) for name, one in made.figures.items()}
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
