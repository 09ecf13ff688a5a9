"""The commands `fastmlp extract` and `fastmlp extract … train`, implemented in experiments/features/."""

from __future__ import annotations

import os
from typing import Any

import click

from fastmlp.commands.common.console import end_by_signal, is_quiet, is_verbose, note_lines, say, show, show_extraction
from fastmlp.commands.common.options import (
    Chain,
    Sections,
    common_options,
    config_option,
    recipe_option,
    setting_options,
    source_options,
)
from fastmlp.commands.common.toolkit import extraction_tools
from fastmlp.commands.train import show_run
from fastmlp.experiments.config.extract import INHERITED, ExtractConfig
from fastmlp.experiments.config.train import TrainConfig


@click.group(cls=Chain, invoke_without_command=True)
@setting_options(ExtractConfig, ["task"])
@source_options
@recipe_option
@common_options
@click.pass_context
def extract(
    ctx: click.Context, /, recipe: str | None, config: str | None, print_config: bool, as_json: bool, **flags: Any
) -> None:
    """Train a CNN on images and extract features.

    The features are a data set for `fastmlp train`.

    \b
    fastmlp extract --data fashion-mnist --filters 16,32,64,128,256 --init xavier --out features.npz
    fastmlp train --data features.npz --hidden 512
    fastmlp extract --data fashion-mnist --epochs 10 train --hidden 512        both in one command
    fastmlp extract --data photos/ --image-size 64,64 --backbone resnet18 --flip 0.5
    fastmlp extract --kernel 5,4 --padding 2,1 --filters 8,12 --pool avg,avg --pool-kernel 4 --regularize batch

    The feature file is a data set with the same splits as the images. It also contains the convolutional network, so
    that `evaluate` and `predict` accept images for a model that was trained on the features. Figures and a
    classification report of the CNN alone are written to a folder next to the feature file. The same settings and
    images give the same features; if the file exists already, nothing is extracted. After Ctrl-C, run the same
    command again to continue.

    This command needs PyTorch: pip install 'fastmlp[cnn]'.
    """
    from fastmlp.experiments.config.sources import resolve_as
    from fastmlp.experiments.features.extraction import extract_run
    from fastmlp.experiments.features.pictures import draw_missing
    from fastmlp.experiments.recipes.recipe import settings_of

    settings = resolve_as(ExtractConfig, flags, os.environ, config, settings_of(recipe, "extract"))
    ctx.obj = settings, settings_of(recipe, "extract train"), as_json
    if print_config:
        show(settings.text())
        ctx.exit()
    if ctx.invoked_subcommand is not None:  # `train` checks its settings first, then runs the extraction
        return
    found = extract_run(settings, extraction_tools(), quiet=is_quiet(), say=say)
    if not found.signal:
        draw_missing(found, found.job.pictures, say)
    show_extraction(found.result, as_json)
    end_by_signal(found.signal)


@extract.command("train", cls=Sections)
@setting_options(TrainConfig, INHERITED)
@config_option
@common_options
@click.pass_obj
def extract_train(chained: tuple[ExtractConfig, Any, bool], /, config: str | None, as_json: bool, **flags: Any) -> None:
    """Extract features and train a network on them. The options are those of `fastmlp train`, except the data options."""
    from fastmlp.experiments.config.sources import resolve
    from fastmlp.experiments.features.chain import extract_and_train

    images, recipe, json_before = chained
    settings = resolve(flags | images.inherited_flags(), os.environ, config, recipe)
    if is_verbose():
        note_lines(settings.text())
    chain = extract_and_train(images, settings, extraction_tools(), quiet=is_quiet(), say=say)
    end_by_signal(chain.signal if chain.run is None else 0)
    if chain.run is not None:
        show_run(chain.run, as_json or json_before, settings.min_accuracy)
