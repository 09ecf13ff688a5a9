"""Commands `fastmlp recipes`, `recipes show`, `run` and `plot`. See experiments/recipes for the recipes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmlp.commands.console import end_by_signal, is_quiet, say, show, show_json
from fastmlp.commands.options import Group, common_options, data_dir_option

if TYPE_CHECKING:
    from fastmlp.experiments.recipes.plot import Drawn

RUNS = "runs/recipes"  # default folder of the runs


@click.group(cls=Group, invoke_without_command=True)
@common_options
@click.pass_context
def recipes(ctx: click.Context, /, as_json: bool) -> None:
    """List the published experiments; `train` and `extract` run them by --recipe."""
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
    """Show a recipe: its source, its settings, the published results, and choices where the report gives no setting."""
    from fastmlp.experiments.recipes.recipe import as_text, find

    recipe = find(name)
    if as_json:
        show_json(recipe.table())
    else:
        show(as_text(recipe))


@recipes.command("run")
@click.argument("patterns", metavar="PATTERN...", nargs=-1, required=True)
@click.option("--jobs", type=click.IntRange(1), help="Networks on pixels that train at the same time [default: one per core].")
@click.option("--out", metavar="FOLDER", default=RUNS, show_default=True, help="Folder of the run folders, one per recipe.")
@click.option("--seed", type=int, help="Random seed [default: 0].")
@data_dir_option
@common_options
@click.pass_obj
def recipes_run(tools: Any, /, patterns: tuple[str, ...], jobs: int | None, out: str, as_json: bool, **flags: Any) -> None:
    """Run recipes, and compare their results with the published ones.

    \b
    fastmlp recipes run cs776-mlp-1
    fastmlp recipes run 'cs776-mlp-*' 'ee5179-*' --jobs 2

    Finished recipes are skipped, so that the same command resumes after an interruption. Networks on pixels with the same
    data train at the same time. Variables such as FASTMLP_EPOCHS take precedence over the recipes.
    """
    from fastmlp.experiments.recipes.run import comparison, comparison_text, make_job, run_recipes, select

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
@click.option("--runs", metavar="FOLDER", default=RUNS, show_default=True, help="Folder with the runs of `recipes run`.")
@click.option("--out", metavar="FOLDER", help="Folder of the figures [default: that of the runs].")
@common_options
def recipes_plot(patterns: tuple[str, ...], runs: str, out: str | None, as_json: bool) -> None:
    """Plot finished recipes in one figure, as in the reports: validation accuracy and loss per epoch.

    \b
    fastmlp recipes plot
    fastmlp recipes plot 'cs776-pooling-*' iisc-depth-relu --out pictures

    A comparison is drawn from its finished runs, and left out if none is finished. PATTERN selects comparisons by name.
    """
    from fastmlp.experiments.recipes.plot import plot_recipes

    rows = plot_recipes(patterns, Path(runs), Path(out or runs))
    for row in rows:
        if row.missing:
            say(missing_text(row, Path(runs)))
    if as_json:
        show_json({"comparisons": [row._asdict() for row in rows]})
    else:
        show("\n".join(row.file for row in rows if row.file))


def missing_text(row: Drawn, runs: Path) -> str:
    """Return a line on the missing runs of a comparison, with the command that trains them."""
    what = f"plotted without {', '.join(row.missing)}" if row.file else "not plotted, since none of its runs is finished"
    return f"{row.name}: {what}; run `{run_command(row.missing, runs)}`"


def run_command(names: Iterable[str], runs: Path) -> str:
    """Return the command that trains these recipes in a folder."""
    return shlex.join(["fastmlp", "recipes", "run", *names, *([] if runs == Path(RUNS) else ["--out", str(runs)])])
