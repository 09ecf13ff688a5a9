"""Recipes as runs: a set of them trained, the finished ones left as they are, and ours beside the published figures.

Each recipe has a run folder below one folder, as `fastmlp train` writes it; one that has its result is finished. Networks
on pixels that share their data and its split train side by side (training/many.py), convolutional ones one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.errors import ConfigError, DivergedError, UnavailableError
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.sources import resolve, resolve_as
from fastmlp.experiments.config.train import DataSettings, TrainConfig, fields_of
from fastmlp.experiments.extraction import Tools, extract_run
from fastmlp.experiments.folder import CONFIG_NAME, RESULT_NAME, clear_logs, make_folder, read_result
from fastmlp.experiments.plan import RunPlan, Say, make_plan, portable
from fastmlp.experiments.recipes.recipe import Recipe, all_recipes, find, matching
from fastmlp.experiments.record import Recorder
from fastmlp.experiments.result import TrainOutcome, write_result
from fastmlp.experiments.training_run import periodic_saver, run_training
from fastmlp.files import read_toml, write_json
from fastmlp.training.loop import Diverged
from fastmlp.training.many import ManyInterrupted, Result, train_tasks
from fastmlp.training.monitor import EpochLog
from fastmlp.training.progress import make_progress

CNN_NAME = "cnn.json"  # what `extract` tells, for recipes without a network on its features
PARTS = ("test", "validation", "train")


class RecipeJob(NamedTuple):
    """A recipe with its settings and its folder."""

    recipe: Recipe
    images: ExtractConfig | None
    config: TrainConfig | None
    folder: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished run has told; None if it did not come to its end. Raises ConfigError if it had other settings."""
        result = finished_result(self.recipe, self.folder)
        if result is None:
            return None
        same = self.config is None or read_toml(self.folder / CONFIG_NAME) == portable(self.config)
        if self.images is not None:
            same = same and extracted_of(self.recipe, result).get("settings") == json.loads(json.dumps(self.images.key()))
        if not same:
            raise ConfigError(
                f"{self.folder} has a run with other settings; remove it, or choose another folder", settings=("out",)
            )
        return result


def finished_result(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """What the run in a recipe's folder has told, whatever its settings; None if it did not come to its end."""
    file = folder / (CNN_NAME if recipe.train is None else RESULT_NAME)
    if not file.exists():
        return None
    result = read_result(file)
    return None if result.get("stopped") == "interrupted" else result


def extracted_of(recipe: Recipe, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `extract` told, as part of a recipe's result; empty if another data set was trained on in its folder."""
    return result if recipe.train is None else result["data"].get("extracted", {})


def select(patterns: Sequence[str]) -> list[str]:
    """The recipes whose names match a pattern such as "cs776-mlp-*", in the order of the list.

    Raises ConfigError if one of them matches nothing.

    >>> select(["group7-mlp-[12]", "ee5179-1"])
    ['ee5179-1', 'group7-mlp-1', 'group7-mlp-2']
    """
    return matching("recipe", patterns, all_recipes())


def make_job(name: str, out: Path, environment: Mapping[str, str], flags: Mapping[str, Any]) -> RecipeJob:
    """A recipe with its settings; `flags` are those of data and engine that the whole set shares."""
    recipe, folder = find(name), out / name
    images = config = None
    own = {"out": str(folder), "force": True}
    if recipe.extract is not None:
        given = {key: value for key, value in flags.items() if key in fields_of(ExtractConfig)}
        kept = {"out": str(folder / "features.npz"), "pictures": str(folder)}
        images = resolve_as(ExtractConfig, given | kept, environment, recipe=recipe.extract)
    if recipe.train is not None:
        of_images = {} if images is None else {"data": images.out}
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
    """Run the jobs that are not finished; the signal that ended them early, or 0.

    Parameters
    ----------
    tools : gives fastmlp.cnn, or raises UnavailableError; asked only if a convolutional network is to be trained
    threads : networks on pixels under way at a time; None takes a thread for each core

    Raises
    ------
    UnavailableError : an engine or fastmlp.cnn is missing; after all jobs have run that need none
    """
    todo = [job for job in jobs if job.result is None]
    groups: dict[tuple[Any, ...], list[RecipeJob]] = {}
    for job in todo:
        if job.images is None and job.config is not None:
            # By backend too: one that is missing here ends its own group alone.
            shared = tuple(getattr(job.config, name) for name in (*fields_of(DataSettings), "backend"))
            groups.setdefault(shared, []).append(job)
    missing: UnavailableError | None = None
    for group in groups.values():
        say(f"{'side by side: ' if len(group) > 1 else ''}{', '.join(job.recipe.name for job in group)}")
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


def run_alone(job: RecipeJob, quiet: bool, say: Say) -> int:
    """Train a network on pixels that shares its data with no other: on all cores, as `fastmlp train` does."""
    assert job.config is not None
    try:
        return run_training(job.config, quiet=quiet, say=say).signal
    except DivergedError as error:
        say(f"{job.recipe.name}: {error}")
        return 0


def run_pixels(jobs: Sequence[RecipeJob], threads: int | None, say: Say) -> int:
    """Train networks on the same splits of the same data, each to its own run folder; the signal that came, or 0."""
    plans = plans_of(jobs)
    for job in jobs:
        make_folder(job.folder)
        clear_logs(job.folder)

    def finished(index: int, result: Result) -> None:
        plan, job = plans[index], jobs[index]
        error = result if isinstance(result, Diverged) else None
        training = result.training if isinstance(result, Diverged) else result
        if training is None:
            say(f"{job.recipe.name}: {error}")
            return
        seconds = sum(row["seconds"] + row["eval_seconds"] for row in training.history)
        write_result(plan, TrainOutcome(training, 0, error, seconds), job.folder)
        say(f"{job.recipe.name}: {training.stopped} after epoch {len(training.history)}, best {training.best_epoch}")

    def seen(index: int, row: EpochLog) -> None:
        recorders[index].epoch_done(row)

    with make_progress(quiet=True, epochs=1) as silent:
        recorders = [Recorder(silent, job.folder, portable(plan.config)) for job, plan in zip(jobs, plans, strict=True)]
        callbacks = [[periodic_saver(plan, job.folder)] for job, plan in zip(jobs, plans, strict=True)]
        tasks = [plan.task for plan in plans]
        try:
            train_tasks(tasks, threads=threads, callbacks=callbacks, progress=seen, finished=finished)
        except ManyInterrupted as stop:
            return stop.signal
        finally:
            for job in jobs:
                if not any(job.folder.iterdir()):
                    job.folder.rmdir()
    return 0


def plans_of(jobs: Sequence[RecipeJob]) -> list[RunPlan]:
    """Plans that share the data, their splits and their scaling."""
    plans: list[RunPlan] = []
    for job in jobs:
        assert job.config is not None
        plans.append(make_plan(job.config, same_data=plans[0] if plans else None))
    return plans


def run_images(job: RecipeJob, tools: Tools, quiet: bool, say: Say) -> int:
    """Train a convolutional network and, if the recipe has one, a network on its features; the signal that came, or 0."""
    assert job.images is not None
    make_folder(job.folder)
    if job.config is not None:
        from fastmlp.experiments.chain import extract_and_train

        return extract_and_train(job.images, job.config, tools, quiet=quiet, say=say).signal
    from fastmlp.experiments.extraction import draw_extraction

    extracted = extract_run(job.images, tools, quiet=quiet, say=say)
    if not extracted.signal:
        draw_extraction(extracted, job.folder)
        write_json(job.folder / CNN_NAME, extracted.result)
    return extracted.signal


# ------------------------------------------------------------------------------------------------ beside the published


def comparison(job: RecipeJob) -> dict[str, Any]:
    """Our figures of a recipe beside the published ones; None for what is not there."""
    rows = {kind: beside(published, ours) for kind, (published, ours) in networks(job).items()}
    return {"name": job.recipe.name, "done": job.result is not None, **rows}


def networks(job: RecipeJob) -> dict[str, tuple[dict[str, Any], Any]]:
    """Of each network that a recipe trains, "cnn" and "mlp": what was published, and what its training told, or None."""
    result, published = job.result, dict(job.recipe.published)
    found = {}
    if job.images is not None:
        found["cnn"] = (published.pop("cnn", {}), result and extracted_of(job.recipe, result)["cnn"])
    if job.config is not None:
        found["mlp"] = (published, result)
    return found


def shown_part(published: Mapping[str, Any]) -> str:
    """The part of the data whose accuracy is compared: what was published, the test part first, else the test part."""
    return next((part for part in PARTS if part in published), "test")


def beside(published: Mapping[str, Any], ours: Mapping[str, Any] | None) -> dict[str, Any]:
    """The figures of one network."""
    part = shown_part(published)
    theirs = published.get(part)
    accuracy = None if ours is None else ours[part]["accuracy"]
    return {
        "part": part,
        "published": theirs,
        "ours": accuracy,
        "difference": None if theirs is None or accuracy is None else accuracy - theirs,
        "epochs": None if ours is None else ours["epochs"],
        "seconds": None if ours is None else ours["seconds"],
    }


def comparison_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for a person: published, ours, difference, seconds."""
    lines = [
        f"{'recipe':<14} {'':<4} {'part':<10} {'published':>9} {'ours':>7} {'difference':>10} {'epochs':>6} {'seconds':>8}"
    ]
    for row in rows:
        for kind in ("cnn", "mlp"):
            if kind in row:
                lines.append(comparison_line(row["name"], kind, row[kind]))
    return "\n".join(lines)


def comparison_line(name: str, kind: str, one: Mapping[str, Any]) -> str:
    """One network of the table."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    published, ours = (None if one[key] is None else 100 * one[key] for key in ("published", "ours"))
    difference = None if one["difference"] is None else 100 * one["difference"]
    return (
        f"{name:<14} {kind.upper():<4} {one['part']:<10} {shown(published, '.2f'):>9} {shown(ours, '.2f'):>7} "
        f"{shown(difference, '+.2f'):>10} {shown(one['epochs'], 'd'):>6} {shown(one['seconds'], '.1f'):>8}"
    )
