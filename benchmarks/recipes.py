"""Reproduce published experiments: python -m benchmarks.recipes PATTERN… [--seeds N] [--folder FOLDER] [--out FILE.json]

The script runs all recipes whose names match a PATTERN (`fastmlp recipes run`), and writes their results and the published
figures to FILE.json. Finished runs in --folder are reused, and rows of other recipes in FILE.json are kept. If a validation or
test accuracy differs by more than half a percentage point from the published one, the script exits with an error after writing
the file.

The data sets must be available (FASTMLP_DATA). The results are those of seed 0; with --seeds 2 or more, the mean and standard
deviation over the seeds are added. `fastmlp recipes show NAME` lists the settings that a published report does not specify.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.epochs import machine
from fastmlp.experiments.plan import SPLIT_NAMES
from fastmlp.experiments.recipes.compare import figures, networks, value_of
from fastmlp.experiments.recipes.recipe import all_recipes
from fastmlp.experiments.recipes.run import RecipeJob, make_job, select
from fastmlp.files import read_json, write_json

ROOT = Path(__file__).parent.parent
MARGIN = 0.005  # maximum difference of an accuracy that counts as reproduced
OWN = "best-"  # names of our own recipes begin with this; they may be better than the published accuracy
KEPT = ("accuracy", "loss", "macro_f1")  # metrics of each split in the file


def run(patterns: list[str], folder: Path, seed: int) -> None:
    """Run the recipes with the command-line interface, as a user does."""
    command = [
        sys.executable,
        "-c",
        "from fastmlp.commands import main; main()",
        "recipes",
        "run",
        *patterns,
        "--out",
        str(folder),
    ]
    command += ["--seed", str(seed)] if seed else []
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def collect(job: RecipeJob) -> dict[str, Any]:
    """Return the results of a finished run, and the command that reproduces them."""
    recipe, command = job.recipe, "train" if job.images is None else "extract"
    both = " train" if job.images is not None and job.config is not None else ""
    row = {"name": recipe.name, "title": recipe.title, "seed": 0, "command": f"fastmlp {command} --recipe {recipe.name}{both}"}
    return row | {"cnn": None, "mlp": None} | {kind: network_row(*one) for kind, one in networks(job).items()}


def network_row(published: dict[str, Any], result: dict[str, Any], history: Any) -> dict[str, Any]:
    """Return our metrics and times of one network, and the published figures beside ours."""
    metrics = {
        split: {name: value for name in KEPT if (value := value_of(result, split, name)) is not None}
        for split in SPLIT_NAMES
        if result.get(split)
    }
    times = {"epochs": result["epochs"], "best_epoch": result["best_epoch"], "seconds": round(result["seconds"], 1)}
    if "seconds_per_epoch" in result:  # median, without evaluation
        times["seconds_per_epoch"] = round(result["seconds_per_epoch"], 3)
    return metrics | times | {"figures": [one.table() for one in figures(published, result, history)]}


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of seed 0, extended by the mean and standard deviation of the accuracies over all seeds."""
    first = rows[0]
    for kind in ("cnn", "mlp"):
        if first[kind] is not None:
            values = {split: [row[kind][split]["accuracy"] for row in rows] for split in SPLIT_NAMES if split in first[kind]}
            seeds = {split: {"mean": mean(of), "deviation": stdev(of), "values": of} for split, of in values.items()}
            first = first | {kind: first[kind] | {"seeds": seeds}}
    return first


def missed(row: dict[str, Any]) -> list[str]:
    """Return a line for each validation or test accuracy that differs by more than MARGIN from the published one."""
    texts = []
    for kind in ("cnn", "mlp"):
        for one in row[kind]["figures"] if row[kind] else ():
            split = one["split"]
            if one["metric"] != "accuracy" or one["published"] is None or split not in ("validation", "test"):
                continue
            ours = row[kind]["seeds"][split]["mean"] if "seeds" in row[kind] else one["ours"]
            difference = ours - one["published"]
            if difference < -MARGIN or (difference > MARGIN and not row["name"].startswith(OWN)):
                texts.append(f"{row['name']}: {kind} {one['name']} {ours:.4f}, published {one['published']:.4f}")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "recipes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    folders = [options.folder / f"seed-{seed}" if seed else options.folder for seed in range(options.seeds)]
    for seed, folder in enumerate(folders):
        run(options.patterns, folder, seed)
    rows = {row["name"]: row for row in read_json(options.out)["rows"]} if options.out and options.out.exists() else {}
    for name in select(options.patterns):
        found = [
            collect(make_job(name, folder, os.environ, {"seed": seed} if seed else {})) for seed, folder in enumerate(folders)
        ]
        rows[name] = (over_seeds(found) if len(found) > 1 else found[0]) | {"machine": machine()}
    if options.out:
        write_json(options.out, {"rows": [rows[name] for name in all_recipes() if name in rows]})
    if misses := [text for row in rows.values() for text in missed(row)]:
        sys.exit("\n".join(misses))


if __name__ == "__main__":
    main()
