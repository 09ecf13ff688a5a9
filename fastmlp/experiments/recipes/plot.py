"""Plots that compare recipes, made from the finished runs in a folder.

The TOML files of the reports define the comparisons. reports/comparison.py draws the plots, and run.py runs the recipes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.errors import ConfigError
from fastmlp.experiments.folder import METRICS_NAME, make_folder
from fastmlp.experiments.recipes.compare import PRINTED
from fastmlp.experiments.recipes.recipe import FOLDER, find, matching
from fastmlp.experiments.recipes.run import extracted_of, finished_result
from fastmlp.files import read_lines, read_toml
from fastmlp.files.reading import files_matching
from fastmlp.reports.comparison import Curve, Panel, plot_comparison

HEADINGS = {"cnn": "the CNN alone", "mlp": "the MLP on its features"}


class Comparison(NamedTuple):
    """A figure that compares several recipes.

    Parameters
    ----------
    name : name of the comparison, such as "cs776-pooling-he", and of its PNG file without the extension
    title : title of the figure
    networks : networks of each recipe to show: "cnn", "mlp", or both; there is one panel per network and metric
    figures : metrics to show, on the validation split: "accuracy", "loss", or both
    curves : dict from recipe to the label of its curve
    """

    name: str
    title: str
    networks: Sequence[str]
    figures: Sequence[str]
    curves: Mapping[str, str]


class Training(NamedTuple):
    """History and best epoch of one network of a run, and its published figures, see compare.py."""

    history: Sequence[Mapping[str, Any]]
    best_epoch: int | None
    published: Mapping[str, Any]

    def curve(self, label: str, place: int, metric: str) -> Curve:
        """Return the curve of a validation metric, with the published values."""
        value = self.published.get("validation", {}).get(metric)
        column = 1 + PRINTED.index(f"val_{metric}")
        printed = [(row[0], row[column]) for row in self.published.get("printed", ())]
        return Curve(label, place, self.history, self.best_epoch, value, printed=printed)


Found = Mapping[str, Mapping[str, Training]]  # recipe -> network -> training


class Drawn(NamedTuple):
    """A plotted comparison: its file (None if it was not plotted), the recipes shown, and those without a finished run."""

    name: str
    title: str
    file: str | None
    drawn: list[str]
    missing: list[str]


@functools.cache
def all_comparisons() -> Mapping[str, Comparison]:
    """Return all comparisons by name, in the order of the reports."""
    reports = [read_toml(file) for file in files_matching(FOLDER, "*.toml")]
    return {name: Comparison(name, **table) for report in reports for name, table in report.get("comparison", {}).items()}


def plot_recipes(patterns: Sequence[str], runs: Path, out: Path) -> list[Drawn]:
    """Plot the comparisons whose names match any of the patterns, or all of them, from the finished runs in a folder.

    Unfinished runs are left out, and a comparison without a finished run is not plotted. The function does not check that
    the settings of the runs are those of the recipes.

    Raises
    ------
    ConfigError : a pattern matches nothing, no comparison has a finished run, or `out` is a file
    DataError : a file of a run is damaged, or a figure cannot be written
    """
    chosen = [all_comparisons()[name] for name in matching("comparison", patterns or ["*"], all_comparisons())]
    found = {one.name: {name: kept for name in one.curves if (kept := trainings(one, name, runs))} for one in chosen}
    if not any(found.values()):
        names = ", ".join(chosen[0].curves)
        raise ConfigError(
            f"{runs} has no finished run of these comparisons; run recipes first, such as {names}", settings=("runs",)
        )
    make_folder(out)
    return [draw(one, found[one.name], out) for one in chosen]


def draw(one: Comparison, found: Found, out: Path) -> Drawn:
    """Plot a comparison, unless none of its recipes has a finished run."""
    file = out / f"{one.name}.png"
    if found:
        plot_comparison(panels_of(one, found), file, one.title)
    missing = [name for name in one.curves if name not in found]
    return Drawn(one.name, one.title, str(file) if found else None, [*found], missing)


def panels_of(one: Comparison, found: Found) -> list[Panel]:
    """Return the panels of a comparison. Missing recipes do not change the colors of the other curves."""
    panels = []
    for network in one.networks:
        for figure in one.figures:
            curves = [
                found[name][network].curve(label, place, figure)
                for place, (name, label) in enumerate(one.curves.items())
                if name in found
            ]
            panels.append(Panel(HEADINGS[network] if len(one.networks) > 1 else "", figure, curves))
    return panels


def trainings(one: Comparison, name: str, runs: Path) -> dict[str, Training] | None:
    """Return the training runs of a recipe by network; None if the run is not finished or lacks a metric to plot."""
    recipe, folder = find(name), runs / name
    result = finished_result(recipe, folder)
    if result is None:
        return None
    kept = {}
    for network in one.networks:
        trained, history, published, settings = result, None, recipe.published, result.get("settings", {})
        if network == "cnn":
            extracted = extracted_of(recipe, result)
            trained, published, settings = extracted.get("cnn", {}), published.get("cnn", {}), extracted.get("settings", {})
            history = trained.get("history", [])
        history = read_lines(folder / METRICS_NAME) if history is None else history
        if not all(any(row.get(f"val_{figure}") is not None for row in history) for figure in one.figures):
            return None
        best = trained["best_epoch"] if settings.get("restore_best", True) else None
        kept[network] = Training(history, best, published)
    return kept
