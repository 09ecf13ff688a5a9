"""The command `fastmlp compare`. experiments/comparison.py implements it."""

from __future__ import annotations

import sys

import click

from fastmlp.commands.common.console import given_flags, resolved, say, show, show_json
from fastmlp.commands.common.options import Command, common_options
from fastmlp.errors import ConfigError
from fastmlp.reports.tables import STYLES

JSON = "json"


@click.command(cls=Command)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train"]),
    default="test",
    show_default=True,
    envvar="FASTMLP_SPLIT",
    help="Split of the metrics.",
)
@click.option(
    "--sort",
    metavar="METRIC",
    envvar="FASTMLP_SORT",
    help="Sort the runs by accuracy, loss, macro-f1, r2, mae or rmse, the best first [default: the order of the arguments].",
)
@click.option(
    "--format",
    "style",
    type=click.Choice([*STYLES, JSON]),
    envvar="FASTMLP_FORMAT",
    help="Format of the tables [default: text]; json is the same as --json.",
)
@click.option("--out", metavar="FILE.png", help="Plot the accuracy and the loss per epoch of all runs to this file.")
@common_options
def compare(runs: tuple[str, ...], split: str, sort: str | None, style: str | None, out: str | None, as_json: bool) -> None:
    """Compare runs: their metrics, the settings that differ, and their learning curves.

    \b
    fastmlp compare runs/a runs/b
    fastmlp compare runs/ --sort accuracy --out curves.png
    fastmlp compare runs/a runs/b --split validation --format markdown

    RUN is a run folder, the output folder of `train --seeds` (means and standard deviations), or a folder that contains
    such folders, such as runs/ or the output folder of `recipes run`. runs/latest is the run in the folder runs that was
    started or resumed last. The best value of each metric is marked.

    A run that has not finished has only validation metrics, which are those of its best epoch so far. The curves show the
    validation split, or the training split for runs without a validation split. An existing FILE.png is replaced.
    """
    from fastmlp.experiments.comparison import compare_runs
    from fastmlp.reports.tables import comparison_text
    from fastmlp.reports.text import shows_bold

    chosen = chosen_format(style, as_json)
    result = compare_runs([resolved(run) for run in runs], split=split, sort=sort, out=out)
    for text in result["notes"]:
        say(text)
    if out is not None:
        say(f"curves: {out}")
    if chosen == JSON:
        show_json(result)
    else:
        show(comparison_text(result, chosen, color=shows_bold(sys.stdout)))


def chosen_format(style: str | None, as_json: bool) -> str:
    """Return the format of the tables; flags take precedence over the environment variables of --format and --json."""
    given = given_flags({"style": style, "as_json": as_json})
    if len(given) == 2 and style != JSON:
        raise ConfigError(f"json and format {style} exclude each other; give only one", settings=("json", "format"))
    if as_json and (style is None or "style" not in given):
        return JSON
    return style or "text"
