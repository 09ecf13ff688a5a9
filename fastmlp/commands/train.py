"""Command `fastmlp train`; the run itself is in experiments/training_run.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fastmlp.commands.console import end_by_signal, is_quiet, is_verbose, note, say, show, show_figures
from fastmlp.commands.options import Sections, common_options, recipe_option, setting_options, source_options
from fastmlp.experiments.config.train import Config


@click.command(cls=Sections)
@setting_options(Config)
@source_options
@recipe_option
@common_options
def train(recipe: str | None, config: str | None, print_config: bool, as_json: bool, **flags: Any) -> None:
    """Train a network, measure it, and write a run folder.

    \b
    fastmlp train
    fastmlp train --data mnist --hidden 500,250,100 --optimizer sgd --lr 0.01 --epochs 15
    fastmlp train --data prices.csv --target value --hidden 64,64 --activation silu
    fastmlp train --data photos/ --image-size 32,32 --max-time 2m --json
    fastmlp train --config runs/a/config.toml --seed 1
    fastmlp train --recipe cs776-mlp-6 --seed 1

    Every setting can also come from a variable, such as FASTMLP_BATCH_SIZE for --batch-size, or from a key in
    the --config file, such as batch_size = 64. The flag wins over the variable, the variable over the file.
    FASTMLP_DATA is the variable of --data-dir, that of --data is FASTMLP_DATASET.

    The run folder gets config.toml, metrics.jsonl (a line per epoch), result.json (what --json prints),
    model.safetensors, curves.png, confusion.png, report.txt and manifest.json. Ctrl-C ends the training and keeps the best
    weights so far.
    """
    from fastmlp.experiments.config.sources import resolve
    from fastmlp.experiments.recipes.recipe import settings_of

    settings = resolve(flags, os.environ, config, settings_of(recipe, "train"))
    if print_config:
        show(settings.text())
        return
    run_training(settings, as_json)


def run_training(settings: Config, as_json: bool, extracted: Any = None) -> None:
    """What `train` does with its settings; `extracted` is what `extract` has just made."""
    from fastmlp.experiments.result import check_accuracy
    from fastmlp.experiments.training_run import train_run

    if is_verbose():
        note(settings.text())
    outcome = train_run(settings, quiet=is_quiet(), say=say, data=extracted and extracted.data)
    if extracted is not None and not outcome.signal:
        from fastmlp.experiments.chain import draw_chain

        draw_chain(extracted, Path(outcome.result["out"]))
    show_figures(outcome.result, as_json)
    end_by_signal(outcome.signal)
    check_accuracy(outcome.result, "test", settings.min_accuracy)
