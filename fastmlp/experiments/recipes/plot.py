"""The comparisons that the reports draw, as pictures of the finished runs in a folder.

Here: `all_comparisons`, which are data in the reports' own files, the curves of a run folder, and what is missing. Not here:
how a picture is drawn (reports/comparison.py), and the runs themselves (run.py).
"""

from __future__ import annotations

import functools
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.errors import ConfigError
from fastmlp.experiments.folder import METRICS_NAME, make_folder
from fastmlp.experiments.recipes.recipe import FOLDER, find, matching
from fastmlp.experiments.recipes.run import extracted_of, finished_result
from fastmlp.files import read_lines
from fastmlp.reports.comparison import Curve, Panel, plot_comparison

RUNS = "runs/recipes"  # where `recipes run` puts them
HEADINGS = {"cnn": "the CNN alone", "mlp": "the MLP on its features"}


class Comparison(NamedTuple):
    """Several recipes over each other.

    Parameters
    ----------
    name : such as "cs776-pooling-he", and the picture's file without its ending
    title : heading of the picture
    networks : "cnn", "mlp", or both: those of a recipe's networks that are shown, a panel for each and each figure
    figures : "accuracy", "loss", or both, of the validation part
    curves : the label of each recipe's curve
    """

    name: str
    title: str
    networks: Sequence[str]
    figures: Sequence[str]
    curves: Mapping[str, str]


class Training(NamedTuple):
    """How one network of a run was trained, and what was published of its validation part, or None."""

    history: Sequence[Mapping[str, Any]]
    best_epoch: int | None
    published: float | None


Found = Mapping[str, Mapping[str, Training]]  # recipe, network


class Drawn(NamedTuple):
    """A picture that was made: the comparison, its file or None, the recipes in it and those that it lacks."""

    name: str
    title: str
    file: str | None
    drawn: list[str]
    missing: list[str]


@functools.cache
def all_comparisons() -> Mapping[str, Comparison]:
    """All comparisons by name, report after report."""
    reports = [tomllib.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.toml"))]
    return {name: Comparison(name, **table) for report in reports for name, table in report.get("comparison", {}).items()}


def plot_recipes(patterns: Sequence[str], runs: Path, out: Path) -> list[Drawn]:
    """Draw the comparisons whose names match one of the patterns, all without one, from the finished runs in a folder.

    What is not finished is left out of a picture, and a picture of nothing is not made. Settings are not looked at: what is
    drawn is what lies in the folder.

    Raises
    ------
    ConfigError : a pattern matches nothing; no comparison has a finished run; `out` is a file
    DataError : a file of a run is damaged; a picture could not be written
    """
    chosen = [all_comparisons()[name] for name in matching("comparison", patterns or ["*"], all_comparisons())]
    found = {one.name: {name: kept for name in one.curves if (kept := trainings(one, name, runs))} for one in chosen}
    if not any(found.values()):
        makes = command(chosen[0].curves, runs)
        raise ConfigError(f"runs: no run in {runs} that could be drawn has been finished; make some, such as by `{makes}`")
    make_folder(out)
    return [draw(one, found[one.name], out) for one in chosen]


def draw(one: Comparison, found: Found, out: Path) -> Drawn:
    """Draw a comparison from the trainings found, if there are any."""
    file = out / f"{one.name}.png"
    if found:
        plot_comparison(panels_of(one, found), file, one.title)
    missing = [name for name in one.curves if name not in found]
    return Drawn(one.name, one.title, str(file) if found else None, [*found], missing)


def panels_of(one: Comparison, found: Found) -> list[Panel]:
    """The panels of a comparison. A curve that is missing leaves its colour to nobody."""
    panels = []
    for network in one.networks:
        for figure in one.figures:
            curves = [
                Curve(label, place, kept.history, kept.best_epoch, kept.published if figure == "accuracy" else None)
                for place, (name, label) in enumerate(one.curves.items())
                if name in found
                for kept in [found[name][network]]
            ]
            panels.append(Panel(HEADINGS[network] if len(one.networks) > 1 else "", figure, curves))
    return panels


def trainings(one: Comparison, name: str, runs: Path) -> dict[str, Training] | None:
    """What a comparison shows of a recipe's run, by network; None if the run is not finished or lacks the figures."""
    recipe, folder = find(name), runs / name
    result = finished_result(recipe, folder)
    if result is None:
        return None
    kept = {}
    for network in one.networks:
        told, history, published = result, None, recipe.published
        if network == "cnn":
            told, published = extracted_of(recipe, result).get("cnn", {}), published.get("cnn", {})
            history = told.get("history", [])
        history = read_lines(folder / METRICS_NAME) if history is None else history
        if not all(any(row.get(f"val_{figure}") is not None for row in history) for figure in one.figures):
            return None
        kept[network] = Training(history, told["best_epoch"], published.get("validation"))
    return kept


def missing_text(row: Drawn, runs: Path) -> str:
    """A line for a person on what a picture lacks, and what makes it."""
    what = f"drawn without {', '.join(row.missing)}" if row.file else "not drawn, since none of its runs is finished"
    return f"{row.name}: {what}; `{command(row.missing, runs)}` makes {'it' if len(row.missing) == 1 else 'them'}"


def command(names: Iterable[str], runs: Path) -> str:
    """The command that makes runs of these recipes in a folder."""
    return shlex.join(["fastmlp", "recipes", "run", *names, *([] if runs == Path(RUNS) else ["--out", str(runs)])])
