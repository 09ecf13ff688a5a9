"""The commands `fastmlp recipes`, `recipes show`, `recipes run` and `recipes plot`. experiments/recipes implements them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmlp.commands.common.console import end_by_signal, is_quiet, say, show, show_json
from fastmlp.commands.common.options import Group, common_options, data_dir_option
from fastmlp.errors import printable

if TYPE_CHECKING:
    from fastmlp.experiments.recipes.plot import Drawn

RUNS = "runs/recipes"  # default folder for the run folders


@click.group(cls=Group, invoke_without_command=True)
@common_options
@click.pass_context
def recipes(ctx: click.Context, /, as_json: bool) -> None:
    """List the recipes for published experiments.

    `fastmlp train --recipe NAME` or `fastmlp extract --recipe NAME` runs one of them.
    """
    from fastmlp.experiments.recipes.recipe import all_recipes, as_lines

    if ctx.invoked_subcommand is not None:
        return
    if as_json:
        show_json({"recipes": [recipe.table() for recipe in all_recipes().values()]})
    else:
        show(as_lines(all_recipes()))


@recipes.command("show")
@click.argument("name")
@common_options
def recipes_show(name: str, as_json: bool) -> None:
    """Show the details of a recipe.

    The details are the source, the settings, the published results, and our choices for settings that are not published.
    """
    from fastmlp.experiments.recipes.recipe import as_text, find

    recipe = find(name)
    if as_json:
        show_json(recipe.table())
    else:
        show(as_text(recipe))


@recipes.command("run")
@click.argument("patterns", metavar="PATTERN...", nargs=-1, required=True)
@click.option("--jobs", type=click.IntRange(1), help="Number of MLPs on pixels to train in parallel [default: one per core].")
@click.option("--out", metavar="FOLDER", default=RUNS, show_default=True, help="Folder for the run folders, one per recipe.")
@click.option("--seed", type=int, help="Random seed [default: 0].")
@data_dir_option
@common_options
@click.pass_obj
def recipes_run(tools: Any, /, patterns: tuple[str, ...], jobs: int | None, out: str, as_json: bool, **flags: Any) -> None:
    """Run recipes, and compare their results with the published ones.

    \b
    fastmlp recipes run cs776-mlp-1
    fastmlp recipes run 'cs776-mlp-*' 'ee5179-*' --jobs 2

    Finished recipes are skipped, so the same command continues after an interruption. MLPs that train on the same pixels
    are trained in parallel. Environment variables such as FASTMLP_EPOCHS override the settings of the recipes; the
    published figures are then left out.
    """
    from fastmlp.experiments.recipes.compare import comparison, comparison_text
    from fastmlp.experiments.recipes.run import make_job, run_recipes, select

    found = [make_job(name, Path(out), os.environ, flags) for name in select(patterns)]
    number = run_recipes(found, tools, jobs, quiet=is_quiet(), say=say)
    rows = [comparison(job) for job in found]
    if as_json:
        show_json({"recipes": rows})
    else:
        show(comparison_text(rows))
    end_by_signal(number)


@recipes.command("plot")
@click.argument("patterns", metavar="[PATTERN...]", nargs=-1)
@click.option("--runs", metavar="FOLDER", default=RUNS, show_default=True, help="Output folder of `recipes run`.")
@click.option("--out", metavar="FOLDER", help="Folder for the figures [default: the folder of the runs].")
@common_options
def recipes_plot(patterns: tuple[str, ...], runs: str, out: str | None, as_json: bool) -> None:
    """Plot the learning curves of finished recipes.

    The figures show the validation accuracy and loss per epoch, as in the published reports.

    \b
    fastmlp recipes plot
    fastmlp recipes plot 'cs776-pooling-*' iisc-depth-relu --out pictures

    A comparison is one figure with the curves of several recipes. Recipes that are not finished are left out of the
    figure; a comparison without a finished recipe is not plotted. PATTERN selects comparisons by name.
    """
    from fastmlp.experiments.recipes.plot import plot_recipes

    rows = plot_recipes(patterns, Path(runs), Path(out or runs))
    for row in rows:
        if row.missing:
            say(missing_text(row, Path(runs)))
    if as_json:
        show_json({"comparisons": [row._asdict() for row in rows]})
    else:
        show("\n".join(printable(row.file) for row in rows if row.file))


def missing_text(row: Drawn, runs: Path) -> str:
    """Return a message that names the missing runs of a comparison, and the command that trains them."""
    what = f"plotted without {', '.join(row.missing)}" if row.file else "not plotted, since none of its runs is finished"
    return f"{row.name}: {what}; run `{run_command(row.missing, runs)}`"


def run_command(names: Iterable[str], runs: Path) -> str:
    """Return the shell command that runs the given recipes and writes them into the folder `runs`."""
    return shlex.join(["fastmlp", "recipes", "run", *names, *([] if runs == Path(RUNS) else ["--out", str(runs)])])
