"""The commands `fastmlp train` and `fastmlp lr-find`. experiments/training_run.py and range_test.py implement them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmlp.commands.common.console import (
    end_by_signal,
    given_flags,
    is_quiet,
    is_verbose,
    note_lines,
    resolved,
    resume_hint,
    say,
    show,
    show_figures,
    show_json,
)
from fastmlp.commands.common.options import Option, Sections, common_options, recipe_option, setting_options, source_options
from fastmlp.errors import ConfigError
from fastmlp.experiments.config.learning_rate import IGNORED, RangeTestConfig
from fastmlp.experiments.config.shared import DataSettings
from fastmlp.experiments.config.train import TrainConfig

if TYPE_CHECKING:
    from fastmlp.experiments.resume import Resume
    from fastmlp.experiments.training_run import RunResult


@click.command(cls=Sections)
@setting_options(TrainConfig)
@source_options
@recipe_option
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    metavar="N",
    envvar="FASTMLP_SEEDS",
    help="Train with N consecutive seeds, starting with --seed, in parallel.",
)
@click.option("--resume", metavar="RUN", help="Resume an interrupted or killed run, or train a finished one for more --epochs.")
@click.option(
    "--strict",
    cls=Option,
    common=False,
    is_flag=True,
    help="With --resume: exit with an error if the engine, the processor or a package version differs.",
)
@common_options
def train(
    recipe: str | None,
    seeds: int | None,
    resume: str | None,
    strict: bool,
    config: str | None,
    print_config: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a network, evaluate it, and write a run folder.

    \b
    fastmlp train
    fastmlp train --data mnist --hidden 500,250,100 --optimizer sgd --lr 0.01 --epochs 15
    fastmlp train --data prices.csv --task regression --hidden 64,64 --activation silu
    fastmlp train --data photos/ --image-size 32,32 --max-time 2m --json
    fastmlp train --config runs/a/config.toml --seed 1
    fastmlp train --recipe cs776-mlp-6 --seed 1
    fastmlp train --data mnist --seeds 5
    fastmlp train --resume runs/a

    Every setting can also be given as an environment variable, such as FASTMLP_BATCH_SIZE for --batch-size, or as a key
    in the --config file, such as batch_size = 64. Flags take precedence over variables, and variables over the file.
    The variable for --data is FASTMLP_DATASET; FASTMLP_DATA is the variable for --data-dir.

    The run folder contains config.toml, data.json, metrics.jsonl and timings.jsonl (one line per epoch), result.json
    (the output of --json), model.safetensors, curves.png, manifest.json and checkpoints; for classification also
    report.txt and a confusion matrix per split (confusion.png is that of the test split), for regression predictions.png;
    and the misclassified rows (for regression, those with the largest residuals): mistakes.png for images,
    mistakes.csv for tables.
    Ctrl-C stops the training and keeps the best weights so far.

    --resume continues an interrupted or killed run from its newest checkpoint. With the same engine, package versions
    and kind of CPU, the results are bitwise identical to those of an uninterrupted run. The settings are those of the
    run; only --epochs, --patience, --max-time, --backend, --threads, --data, --data-dir, --checkpoints,
    --checkpoint-seconds, --predictions and --min-accuracy can be changed.

    With --seeds, all runs have the same splits, --threads is the number of runs that are trained in parallel, and the
    output folder has a run folder per seed, seeds.json with means and standard deviations, and curves.png.
    """
    from fastmlp.experiments.config.sources import resolve
    from fastmlp.experiments.recipes.recipe import settings_of
    from fastmlp.experiments.training_run import run_training

    if resume is not None:
        resume_run(Path(resolved(resume)), flags, strict, print_config, as_json)
        return
    if strict:
        raise ConfigError("strict needs a run to resume; leave it out, or give the run", settings=("strict", "resume"))
    settings = resolve(flags, os.environ, config, settings_of(recipe, "train"))
    if not only_print(settings, print_config):
        if seeds is None:
            show_run(run_training(settings, quiet=is_quiet(), say=say), as_json, settings.min_accuracy)
        else:
            train_seeds(settings, range(settings.seed, settings.seed + seeds), as_json)


def only_print(settings: DataSettings, print_config: bool) -> bool:
    """Print the settings and return True if --print-config is given; with --verbose, write them to stderr."""
    if print_config:
        show(settings.text())
    elif is_verbose():
        note_lines(settings.text())
    return print_config


def resume_run(run: Path, flags: Mapping[str, Any], strict: bool, print_config: bool, as_json: bool) -> None:
    """Resume a run, or the runs of several seeds. Environment variables are ignored."""
    from fastmlp.experiments.resume import resumed_config, resumed_seeds
    from fastmlp.experiments.training_run import run_training

    for name in given_flags(dict.fromkeys(("recipe", "seeds", "config"))):
        raise ConfigError(f"{name} cannot be combined with resume; the settings are those of {run}", settings=(name, "resume"))
    if (several := resumed_seeds(run, flags)) is not None:
        settings, seeds = several
        if not only_print(settings, print_config):
            train_seeds(settings, seeds, as_json, resume="always", strict=strict)
        return
    settings = resumed_config(run, flags)
    if not only_print(settings, print_config):
        result = run_training(settings, quiet=is_quiet(), say=say, resume="always", strict=strict)
        show_run(result, as_json, settings.min_accuracy)


def train_seeds(
    settings: TrainConfig, seeds: Sequence[int], as_json: bool, *, resume: Resume = "never", strict: bool = False
) -> None:
    """Train with several seeds, print the summary, and check that the mean test accuracy is above the minimum."""
    from fastmlp.experiments.result import check_accuracy
    from fastmlp.experiments.sweeps.seeds import mean_metrics, run_seeds, seeds_text

    result, signal = run_seeds(settings, seeds, say=say, resume=resume, strict=strict)
    if signal and settings.checkpoints:
        say(resume_hint(result["out"]))
    if as_json:
        show_json(result)
    elif result["runs"]:
        show(seeds_text(result))
    end_by_signal(signal)
    check_accuracy(mean_metrics(result), "test", settings.min_accuracy)


def show_run(run: RunResult, as_json: bool, min_accuracy: float | None) -> None:
    """Print the metrics of a run; exit with an error code after a signal, or if the test accuracy is below the minimum."""
    from fastmlp.experiments.plan import in_memory
    from fastmlp.experiments.result import check_accuracy

    show_figures(run.result, as_json)
    settings = run.result["settings"]
    if run.signal and settings["checkpoints"] and not in_memory(settings["data"]):
        say(resume_hint(run.result["out"]))
    end_by_signal(run.signal)
    check_accuracy(run.result, "test", min_accuracy)


@click.command("lr-find", cls=Sections)
@setting_options(RangeTestConfig, IGNORED)
@click.option("--out", cls=Option, heading="Engine and result", metavar="FILE.png", help="Plot the losses to this file.")
@click.option("--force", cls=Option, heading="Engine and result", is_flag=True, help="Replace --out if it exists.")
@source_options
@recipe_option
@common_options
def lr_find(
    out: str | None,
    force: bool,
    recipe: str | None,
    config: str | None,
    print_config: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Suggest a learning rate for `fastmlp train`.

    \b
    fastmlp lr-find
    fastmlp lr-find --data fashion-mnist --optimizer sgd --hidden 400,100 --out lr-find.png
    fastmlp lr-find --recipe cs776-mlp-6 --json
    fastmlp train --lr $(fastmlp lr-find -q)

    This is the learning-rate range test (Smith 2017): the network is trained from its initial weights with a learning
    rate that increases exponentially from mini-batch to mini-batch, until the smoothed loss diverges. The suggestion is
    the learning rate at two thirds of the descent of the smoothed loss. The figure shows which other values are possible.

    Use the options of the training run, which are those of `fastmlp train`. Settings that have no effect on the test,
    such as epochs, are ignored if they are in the --config file.
    """
    from fastmlp.experiments.config.sources import resolve_as
    from fastmlp.experiments.range_test import run_range_test
    from fastmlp.experiments.recipes.recipe import settings_of

    settings = resolve_as(RangeTestConfig, flags, os.environ, config, settings_of(recipe, "train"))
    if only_print(settings, print_config):
        return
    result = run_range_test(settings, out, force=force, quiet=is_quiet(), say=say)
    if as_json:
        show_json(result)
    else:
        show(f"{result['suggestion']:.3g}")
    say(f"to train with this learning rate, add --lr {result['suggestion']:.3g} to `fastmlp train`")
