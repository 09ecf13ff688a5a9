"""The commands below `fastmlp recipes`: parse, call, print.

Not here: what recipes are (recipes.py), and --recipe of `train` and `extract` (cli.py).
"""

from __future__ import annotations

import click

from fastmlp.console import common_options, show, show_json


@click.group(invoke_without_command=True)
@common_options
@click.pass_context
def recipes(ctx: click.Context, /, as_json: bool) -> None:
    """List the published experiments, which --recipe of `train` and `extract` runs."""
    from fastmlp.recipes import all_recipes, as_lines

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
    from fastmlp.recipes import as_text, find

    recipe = find(name)
    if as_json:
        show_json(recipe.table())
    else:
        show(as_text(recipe))
