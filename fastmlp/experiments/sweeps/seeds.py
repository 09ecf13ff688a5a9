"""Training with several seeds on the same splits: `run_seeds`, and its summary with means and standard deviations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from fastmlp.errors import DivergedError
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.folder import (
    METRICS_NAME,
    RESULT_NAME,
    RESULT_VERSION,
    SEED_FOLDER,
    read_result,
    read_run_result,
    run_folder,
)
from fastmlp.experiments.plan import RunPlan, Say, make_plan
from fastmlp.experiments.result import CURVES_NAME
from fastmlp.experiments.resume import Resume
from fastmlp.experiments.sweeps.parallel import NamedRun, train_in_parallel
from fastmlp.files import converted, read_lines, write_json
from fastmlp.files.reading import exists
from fastmlp.reports.text import SHOWN_METRICS, short_name
from fastmlp.training.result import mean_and_deviation

SEEDS_NAME = "seeds.json"
METRICS = ("loss", "accuracy", "mse", "mae", "rmse", "r2")  # metrics of a split that are summarized, those that it has


class SeedsResult(NamedTuple):
    """The content of seeds.json, and the number of the signal that ended the training early, or 0."""

    result: dict[str, Any]
    signal: int


class SeedOfRun(msgspec.Struct):
    """The item of a run in seeds.json that `read_seeds` returns."""

    seed: int


class SeedsFile(msgspec.Struct):
    """The items of seeds.json that `read_seeds` checks."""

    runs: Annotated[list[SeedOfRun], msgspec.Meta(min_length=1)]


def run_seeds(
    config: TrainConfig, seeds: Sequence[int], *, say: Say = lambda text: None, resume: Resume = "never", strict: bool = False
) -> SeedsResult:
    """Train with several seeds, on the same splits and in parallel.

    The output folder contains a run folder per seed, seeds.json with the summary, and curves.png with the mean and the standard
    deviation per epoch.

    Parameters
    ----------
    config : settings of the runs; `config.threads` is the number of runs that are trained in parallel
    seeds : the random seeds; `config.seed` determines the splits unless `config.split_seed` is set
    say : function that is called with each status message
    resume, strict : as for `train_in_parallel`

    Raises
    ------
    FastMLPError : settings or data cannot be used; no folder is created
    DivergedError : all runs diverged in the first epoch
    """
    count = len(seeds)
    split_seed = config.seed if config.split_seed is None else config.split_seed
    plans: list[RunPlan] = []
    for seed in seeds:
        settings = replace(config, seed=seed, split_seed=split_seed)
        plans.append(make_plan(settings, same_data=plans[0] if plans else None))
    plan = plans[0]
    now = datetime.now().astimezone()
    label = f"{plan.network.label}-{count}-seeds"
    with run_folder(config.out, plan.data.name, label, now, force=config.force or resume == "always") as folder:
        rows = ", ".join(f"{len(split):,} {name}" for name, split in plan.splits.items())
        for note in plan.data.notes:
            say(note)
        say(f"{plan.data.name}: {rows} rows; network {plan.network.label}, {count} seeds")
        runs = [NamedRun(f"seed {seed}", one, folder / f"{SEED_FOLDER}{seed}") for seed, one in zip(seeds, plans, strict=True)]
        signal = train_in_parallel(runs, config.threads, say, resume=resume, strict=strict)
        results = {run.name: read_run_result(run.folder) for run in runs if exists(run.folder / RESULT_NAME)}
        if not results and not signal:
            raise DivergedError("training diverged in the first epoch with all seeds", settings=("lr",))
        result = summarize(results.values(), folder)
        if results:
            write_json(folder / SEEDS_NAME, result)
            draw(runs, results, folder)
    return SeedsResult(result, signal)


def summarize(results: Iterable[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Return the content of seeds.json: the metrics of each run, and their means and sample standard deviations."""
    rows: list[dict[str, Any]] = []
    for result in results:
        found = {split: result[split] for split in ("train", "validation", "test") if result[split] is not None}
        metrics = {split: {key: one[key] for key in METRICS if key in one} for split, one in found.items()}
        described = {"seed": result["settings"]["seed"], "best_epoch": result["best_epoch"], "stopped": result["stopped"]}
        rows.append({**described, **metrics})
    splits = [split for split in ("train", "validation", "test") if rows and split in rows[0]]
    summary: dict[str, Any] = {
        split: {
            key: {"mean": mean, "std": deviation}
            for key, (mean, deviation) in mean_and_deviation([row[split] for row in rows]).items()
        }
        for split in splits
    }
    return {"format_version": RESULT_VERSION, "out": str(folder), "runs": rows, **summary}


def read_seeds(folder: Path) -> list[int]:
    """Return the seeds in the file seeds.json; raise DataError if it is missing or damaged."""
    path = folder / SEEDS_NAME
    return [run.seed for run in converted(path, read_result(path), SeedsFile).runs]


def mean_metrics(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the mean of each metric of each split from the content of seeds.json."""
    splits = [split for split in ("train", "validation", "test") if split in result]
    return {split: {key: one["mean"] for key, one in result[split].items()} for split in splits}


def draw(runs: Sequence[NamedRun], results: Mapping[str, Any], folder: Path) -> None:
    """Plot the loss and the accuracy per epoch of all runs, with their mean and standard deviation."""
    from fastmlp.reports.curves import plot_band

    histories = [read_lines(run.folder / METRICS_NAME) for run in runs if run.name in results]
    title = f"{short_name(runs[0].plan.data.name)}, {runs[0].plan.network.label}, {len(histories)} seeds"
    plot_band(histories, folder / CURVES_NAME, title)


def seeds_text(result: Mapping[str, Any]) -> str:
    """Return the summary as a table: one line per seed, then mean ± standard deviation.

    >>> runs = [{"seed": seed, "best_epoch": 3, "test": {"loss": 0.5 + seed, "accuracy": 0.9}} for seed in (0, 1)]
    >>> print(seeds_text({"runs": runs, "test": {"loss": {"mean": 1, "std": 0.7071}, "accuracy": {"mean": 0.9, "std": 0}}}))
    seed        best epoch  test loss  test accuracy
    0           3           0.5        0.9
    1           3           1.5        0.9
    mean ± std              1 ± 0.71   0.9 ± 0
    """
    splits = [split for split in ("validation", "test") if split in result] or ["train"]
    columns = [(split, key) for split in splits for key in result[split] if key in SHOWN_METRICS]
    header = ["seed", "best epoch", *(f"{split} {SHOWN_METRICS[key][0]}" for split, key in columns)]
    lines = [header]
    for run in result["runs"]:
        lines.append([str(run["seed"]), str(run["best_epoch"]), *(f"{run[split][key]:.4g}" for split, key in columns)])
    means = [result[split][key] for split, key in columns]
    lines.append(["mean ± std", "", *(f"{one['mean']:.4g} ± {one['std']:.2g}" for one in means)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
