"""Run the recipes that are not finished; compare.py compares their results with the published ones.

Each recipe has its own run folder, as written by `fastmlp train`. A recipe is finished if the folder has all files of a run
that was not interrupted; other runs continue from their checkpoints. MLPs on pixels with the same data and splits are trained
in parallel (training/many.py); convolutional networks are trained one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.errors import ConfigError, DivergedError, UnavailableError
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.shared import DataSettings, fields_of
from fastmlp.experiments.config.sources import read_config, resolve, resolve_as
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.features.chain import chain_output_names, draw_finished, extract_and_train
from fastmlp.experiments.features.extraction import Tools, extract_run
from fastmlp.experiments.features.pictures import draw_missing
from fastmlp.experiments.folder import CONFIG_NAME, MANIFEST_NAME, RESULT_NAME, make_folder, read_result
from fastmlp.experiments.plan import SPLIT_NAMES, RunPlan, Say, make_plan, portable
from fastmlp.experiments.recipes.recipe import Recipe, all_recipes, find, matching
from fastmlp.experiments.sweeps.parallel import NamedRun, train_in_parallel
from fastmlp.experiments.training_run import run_training
from fastmlp.files import write_json
from fastmlp.files.reading import exists

CNN_NAME = "cnn.json"  # result file of a recipe that has only a convolutional network


class RecipeJob(NamedTuple):
    """A recipe with its settings and its run folder."""

    recipe: Recipe
    images: ExtractConfig | None
    config: TrainConfig | None
    folder: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """Result of the finished run, or None if there is none. Raises ConfigError if the run had other settings."""
        result = finished_result(self.recipe, self.folder)
        if result is None or (self.config is not None and not exists(self.folder / MANIFEST_NAME)):
            return None  # without a manifest, the run was killed after it had written its result
        same = self.config is None or portable(read_config(self.folder / CONFIG_NAME)) == portable(self.config)
        if self.images is not None:
            same = same and extracted_of(self.recipe, result).get("settings") == json.loads(json.dumps(self.images.key()))
        if not same:
            raise ConfigError(
                f"{self.folder} has a run with other settings; remove it, or choose another folder", settings=("out",)
            )
        return result


def finished_result(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """Return the result of the finished run in a recipe's folder without checking its settings; None if there is none."""
    file = folder / (CNN_NAME if recipe.train is None else RESULT_NAME)
    if not exists(file):
        return None
    result = read_result(file)
    return None if result.get("stopped") in ("interrupted", "failed") else result


def extracted_of(recipe: Recipe, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a recipe's result that `extract` produced; empty if the run did not train on extracted features."""
    return result if recipe.train is None else result["data"].get("extracted", {})


def select(patterns: Sequence[str]) -> list[str]:
    """Return the names of the recipes that match any of the patterns, such as "cs776-mlp-*", in the order of `all_recipes`.

    Raise ConfigError if a pattern matches nothing.

    >>> select(["group7-mlp-[12]", "ee5179-1"])
    ['ee5179-1', 'group7-mlp-1', 'group7-mlp-2']
    """
    return matching("recipe", patterns, all_recipes())


def make_job(name: str, out: Path, environment: Mapping[str, str], flags: Mapping[str, Any]) -> RecipeJob:
    """Return a recipe with its settings. `flags` has settings, such as `seed`, that override those of the recipe."""
    recipe, folder = find(name), out / name
    images = config = None
    own = {"out": str(folder), "force": True}
    if recipe.extract is not None:
        given = {key: value for key, value in flags.items() if key in fields_of(ExtractConfig)}
        kept = {"out": str(folder / "features.npz"), "pictures": str(folder)}
        images = resolve_as(ExtractConfig, given | kept, environment, recipe=recipe.extract)
    if recipe.train is not None:
        of_images = {} if images is None else {"data": images.out}
        own |= {"task": "classification"}  # as all reports do
        config = resolve(dict(flags) | own | of_images, environment, recipe=recipe.train)
    return RecipeJob(recipe, images, config, folder)


# ------------------------------------------------------------------------------------------------ running


def run_recipes(
    jobs: Iterable[RecipeJob],
    tools: Callable[[], Tools],
    threads: int | None,
    *,
    quiet: bool = False,
    say: Say = lambda text: None,
) -> int:
    """Run the jobs that are not finished or lack figures; return the signal that interrupted them, or 0.

    Parameters
    ----------
    tools : function that returns the module fastmlp.cnn.toolkit or raises UnavailableError; it is called only if there is a
        convolutional network to train
    threads : number of MLPs on pixels that are trained in parallel; None means one per core

    Raises
    ------
    UnavailableError : an engine or PyTorch is missing; raised after the jobs that do not need it
    """
    todo = [job for job in jobs if job.result is None or lacks_figures(job)]
    groups: dict[tuple[Any, ...], list[RecipeJob]] = {}
    for job in todo:
        if job.images is None and job.config is not None:
            # The backend is part of the key, so that a missing engine affects only its own group.
            shared = tuple(getattr(job.config, name) for name in (*fields_of(DataSettings), "weight", "backend"))
            groups.setdefault(shared, []).append(job)
    missing: UnavailableError | None = None
    for group in groups.values():
        say(f"{'in parallel: ' if len(group) > 1 else ''}{', '.join(job.recipe.name for job in group)}")
        try:
            signal = run_pixels(group, threads, say) if len(group) > 1 else run_alone(group[0], quiet, say)
        except UnavailableError as error:
            signal, missing = 0, error
        if signal:
            return signal
    for job in todo:
        if job.images is not None:
            say(f"{job.recipe.name}: {job.recipe.title}")
            if signal := run_images(job, tools(), quiet, say):
                return signal
    if missing is not None:
        raise missing
    return 0


def lacks_figures(job: RecipeJob) -> bool:
    """Return whether a finished job with a CNN and an MLP lacks figures, because it was killed while it plotted them.

    A job without its feature file is left as it is, because the CNN would have to be trained again.
    """
    if job.images is None or job.config is None or not exists(Path(str(job.images.out))):
        return False
    result = job.result
    assert result is not None
    names = chain_output_names([name for name in SPLIT_NAMES if result[name] is not None])
    return not all(exists(job.folder / name) for name in names)


def run_alone(job: RecipeJob, quiet: bool, say: Say) -> int:
    """Train a single MLP on all cores, as `fastmlp train` does; return the signal that interrupted it, or 0."""
    assert job.config is not None
    try:
        return run_training(job.config, quiet=quiet, say=say, resume="if possible").signal
    except DivergedError as error:
        say(f"{job.recipe.name}: {error}")
        return 0


def run_pixels(jobs: Sequence[RecipeJob], threads: int | None, say: Say) -> int:
    """Train MLPs on the same data in parallel, each with its own run folder; return the signal that interrupted them, or 0."""
    runs = [NamedRun(job.recipe.name, plan, job.folder) for job, plan in zip(jobs, plans_of(jobs), strict=True)]
    return train_in_parallel(runs, threads, say, resume="if possible")


def plans_of(jobs: Sequence[RecipeJob]) -> list[RunPlan]:
    """Return the plans of jobs that share their data, splits and scaling."""
    plans: list[RunPlan] = []
    for job in jobs:
        assert job.config is not None
        plans.append(make_plan(job.config, same_data=plans[0] if plans else None))
    return plans


def run_images(job: RecipeJob, tools: Tools, quiet: bool, say: Say) -> int:
    """Train a CNN and, if the recipe has one, an MLP on its features; return the signal that interrupted them, or 0.

    If the job is finished, only its figures are plotted.
    """
    assert job.images is not None
    make_folder(job.folder)
    if job.config is not None and job.result is not None:
        return draw_finished(job.images, job.config, job.folder, tools, quiet=quiet, say=say)
    if job.config is not None:
        return extract_and_train(job.images, job.config, tools, quiet=quiet, say=say, resume="if possible").signal
    extracted = extract_run(job.images, tools, quiet=quiet, say=say)
    if not extracted.signal:
        draw_missing(extracted, job.folder, say)
        write_json(job.folder / CNN_NAME, extracted.result)
    return extracted.signal
