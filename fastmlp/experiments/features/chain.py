"""Feature extraction followed by training on the features, in one process: `extract_and_train`.

Used by `fastmlp extract … train` and by recipes with a convolutional network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmlp.data.splits import split
from fastmlp.errors import ConfigError
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.features.extraction import Extracted, Tools, extract_run
from fastmlp.experiments.features.outputs import output_names, publish
from fastmlp.experiments.features.pictures import draw_extraction, images_of
from fastmlp.experiments.folder import check_free
from fastmlp.experiments.mistakes import MISTAKES_PICTURE
from fastmlp.experiments.plan import Say
from fastmlp.experiments.resume import Resume
from fastmlp.experiments.training_run import RunResult, run_training
from fastmlp.models.model import load
from fastmlp.reports.images import plot_mistakes
from fastmlp.training.settings import check_settings


class ChainResult(NamedTuple):
    """Result of `extract_and_train`.

    extracted : result of the feature extraction
    run : result of the training run on the features; None if a signal interrupted the extraction
    signal : number of the signal that interrupted the extraction or the training, or 0
    """

    extracted: Extracted
    run: RunResult | None
    signal: int


def extract_and_train(
    images: ExtractConfig,
    config: TrainConfig,
    tools: Tools,
    *,
    quiet: bool = False,
    say: Say = lambda text: None,
    resume: Resume = "never",
) -> ChainResult:
    """Train a convolutional network, extract its features, train an MLP on them, and plot the figures of both.

    Parameters
    ----------
    images : settings of the extraction
    config : settings of the training run; the features replace the data set that `config.data` names
    tools, quiet, say : as for `extraction.extract_run`
    resume : as for `training_run.run_training`

    Raises
    ------
    FastMLPError : settings or data cannot be used; if possible, raised before the convolutional network is trained
    """
    check_chain(images, config)
    extracted = extract_run(images, tools, follows=config, quiet=quiet, say=say)
    if extracted.signal:
        return ChainResult(extracted, None, extracted.signal)
    run = run_training(
        dataclasses.replace(config, data=extracted.source), quiet=quiet, say=say, data=extracted.data, resume=resume
    )
    publish(extracted, Path(run.result["out"]), say)
    if not run.signal:
        draw_chain(extracted, Path(run.result["out"]))
    return ChainResult(extracted, run, run.signal)


def draw_finished(
    images: ExtractConfig, config: TrainConfig, folder: Path, tools: Tools, *, quiet: bool = False, say: Say = lambda text: None
) -> int:
    """Plot the figures of a finished run of `extract_and_train` again; return the signal that interrupted this, or 0.

    Parameters
    ----------
    images, config, tools, quiet, say : as for `extract_and_train`
    folder : folder of the run
    """
    extracted = extract_run(images, tools, follows=config, quiet=quiet, say=say)
    if not extracted.signal:
        draw_chain(extracted, folder)
    return extracted.signal


def chain_output_names(splits: Collection[str]) -> list[str]:
    """Return the names of the files that `draw_chain` writes for the given splits in every run."""
    return [*output_names(splits), *([MISTAKES_PICTURE] if "test" in splits else [])]


def check_chain(images: ExtractConfig, config: TrainConfig) -> None:
    """Check the training settings before the features are extracted, because the extraction takes a long time.

    Raises
    ------
    ConfigError : `run_training` would reject the settings
    """
    # `extract_run` checks whether there is a validation split.
    check_settings(config.settings(), validation=True, images=False)
    config.network(1, 2)
    if config.out is not None:
        check_free(Path(config.out), config.force)
        if images.out is not None and Path(images.out).absolute() == Path(config.out).absolute():
            raise ConfigError(
                f"out: {images.out} cannot be both the file of features and the folder of the run; choose another folder",
                settings=("out",),
            )


def draw_chain(found: Extracted, folder: Path) -> None:
    """Write the figures and reports of the extraction, and plot the images that the MLP gets wrong, into the run folder."""
    draw_extraction(found, folder)
    model, data = load(folder), found.data
    assert data is not None
    if data.x_test is None or data.y_test is None:
        return
    probabilities = model.predict_proba(data.x_test)
    predicted = probabilities.argmax(axis=1)
    sure = probabilities[np.arange(len(predicted)), predicted]
    images = images_of(found.job, split(found.job.images, **found.job.config.split_sizes())["test"].x)
    title = "MLP on features, test split"
    plot_mistakes(images, data.y_test, predicted, sure, model.classes, folder / MISTAKES_PICTURE, title)
