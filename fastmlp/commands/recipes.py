"""The commands below `fastmlp recipes`: parse, call, print.

Not here: what recipes are (experiments/recipes/recipe.py), and --recipe of `train` and `extract` (options.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fastmlp.commands.console import end_by_signal, is_quiet, say, show, show_json
from fastmlp.commands.options import common_options, data_dir_option


@click.group(invoke_without_command=True)
@common_options
@click.pass_context
def recipes(ctx: click.Context, /, as_json: bool) -> None:
    """List the published experiments, which --recipe of `train` and `extract` runs."""
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
    """Show a recipe: its source, its settings, what was published, and what was chosen where the report is silent."""
    from fastmlp.experiments.recipes.recipe import as_text, find

    recipe = find(name)
    if as_json:
        show_json(recipe.table())
    else:
        show(as_text(recipe))


@recipes.command("run")
@click.argument("patterns", metavar="PATTERN...", nargs=-1, required=True)
@click.option("--jobs", type=click.IntRange(1), help="Networks on pixels under way at a time [default: one for each core].")
@click.option("--out", metavar="FOLDER", default="runs/recipes", show_default=True, help="Each recipe gets a run folder in it.")
@click.option("--seed", type=int, help="Instead of 0.")
@data_dir_option
@common_options
@click.pass_obj
def recipes_run(tools: Any, /, patterns: tuple[str, ...], jobs: int | None, out: str, as_json: bool, **flags: Any) -> None:
    """Run recipes, and print their figures beside the published ones.

    \b
    fastmlp recipes run cs776-mlp-1
    fastmlp recipes run 'cs776-mlp-*' 'ee5179-*' --jobs 2

    What has been finished before stays as it is, so that the same command goes on after an interruption. Networks on pixels
    that share their data train side by side. Variables such as FASTMLP_EPOCHS win over the recipes.
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
@click.option("--runs", metavar="FOLDER", default="runs/recipes", show_default=True, help="Where `recipes run` put its runs.")
@click.option("--out", metavar="FOLDER", help="Where the pictures go [default: the folder of the runs].")
@common_options
def recipes_plot(patterns: tuple[str, ...], runs: str, out: str | None, as_json: bool) -> None:
    """Draw finished recipes over each other, as the reports do: accuracy and loss of the validation part per epoch.

    \b
    fastmlp recipes plot
    fastmlp recipes plot 'cs776-pooling-*' iisc-depth-relu --out pictures

    A comparison is drawn from those of its runs that are finished; without any it is left out. PATTERN chooses some by name.
    """
    from fastmlp.experiments.recipes.plot import missing_text, plot_recipes

    rows = plot_recipes(patterns, Path(runs), Path(out or runs))
    for row in rows:
        if row.missing:
            say(missing_text(row, Path(runs)))
    if as_json:
        show_json({"comparisons": [row._asdict() for row in rows]})
    else:
        show("\n".join(row.file for row in rows if row.file))
