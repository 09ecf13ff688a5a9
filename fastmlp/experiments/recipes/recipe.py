"""Recipes: settings of `train` and `extract` for published experiments and for our own best models, with published results.

The folder `published` has one TOML file per report. In the file, each experiment is a table: `[mlp.NAME]` for an MLP on pixels,
`[cnn.NAME]` for a convolutional network. The tables `[mlp]`, `[cnn]` and `[features]` have the settings that experiments share;
`[features]` is for MLPs on the features of a CNN. `[comparison.NAME]` defines a figure that compares several experiments.

config/sources.py reads the settings, run.py runs the recipes, and plot.py plots the figures.
"""

from __future__ import annotations

import fnmatch
import functools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.errors import ConfigError, unknown_name
from fastmlp.files import read_toml
from fastmlp.files.reading import files_matching

FOLDER = Path(__file__).parent / "published"
NOT_SETTINGS = ("published", "choices", "features")


class Recipe(NamedTuple):
    """One experiment of a report.

    Parameters
    ----------
    name : such as "cs776-mlp-1"
    source : description of the report, its data and their splits
    extract : settings of `fastmlp extract`; None if the experiment has no convolutional network
    train : settings of `fastmlp train`; None if the experiment has only a convolutional network
    published : published figures of the network that `train` trains, such as {"test": {"accuracy": 0.8825}}; the key "cnn" has
        those of the convolutional network. compare.py describes the keys
    choices : values that we chose for settings that the report does not state, with reasons
    """

    name: str
    source: str
    extract: Mapping[str, Any] | None
    train: Mapping[str, Any] | None
    published: Mapping[str, Any]
    choices: tuple[str, ...]

    @property
    def title(self) -> str:
        """Short description of the network.

        >>> find("cs776-mlp-3").title, find("cs776-cnn-2").title
        ('MLP 128, gelu, dropout 0.2', 'CNN 16-16-16-16-16, avg, dense 32')
        """
        if self.extract is not None:
            given, words = self.extract, [f"CNN {'-'.join(map(str, self.extract['filters']))}", self.extract["pool"][0]]
            words += [given[name] for name in ("init",) if name in given] + given.get("regularize", [])
            words += [f"dense {'-'.join(map(str, given['dense']))}"] if given["dense"] else []
            return ", ".join(words)
        assert self.train is not None
        words = [f"MLP {'-'.join(map(str, self.train['hidden']))}", self.train.get("activation", ["relu"])[0]]
        words += [f"{word} {self.train[name]}" for name, word in (("l2", "l2"), ("lr_decay", "decay")) if name in self.train]
        return ", ".join(words + [f"dropout {rate:g}" for rate in self.train.get("dropout", [])])

    def table(self) -> dict[str, Any]:
        """Return the fields and the title as a dict that can be written as JSON."""
        return {"title": self.title, **self._asdict(), "choices": list(self.choices)}


@functools.cache
def all_recipes() -> Mapping[str, Recipe]:
    """Return all recipes by name, in the order of the reports and of their experiments."""
    return {recipe.name: recipe for file in files_matching(FOLDER, "*.toml") for recipe in read_recipes(file)}


def find(name: str) -> Recipe:
    """Return the recipe with this name; raise ConfigError if there is none."""
    if name not in all_recipes():
        raise ConfigError(unknown_name("recipe", name, all_recipes()))
    return all_recipes()[name]


def matching(kind: str, patterns: Sequence[str], names: Collection[str]) -> list[str]:
    """Return the names that match any of the patterns, in the order of `names`; raise ConfigError if a pattern matches none.

    >>> matching("recipe", ["b?", "a1"], ["a1", "a2", "b1"])
    ['a1', 'b1']
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ConfigError(unknown_name(kind, pattern, names))
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def read_recipes(file: Path) -> Iterator[Recipe]:
    """Yield the recipes in the file of a report."""
    report = read_toml(file)
    for kind in ("mlp", "cnn"):
        shared = {name: value for name, value in report[kind].items() if not isinstance(value, dict)} if kind in report else {}
        for name, row in report.get(kind, {}).items():
            if not isinstance(row, dict):
                continue
            settings = {key: value for key, value in (shared | row).items() if key not in NOT_SETTINGS}
            of_features = report.get("features", {}) | row["features"] if "features" in row else None
            choices = [*report.get("choices", ()), *shared.get("choices", ()), *row.get("choices", ())]
            yield Recipe(
                name=name,
                source=report["source"],
                extract=settings if kind == "cnn" else None,
                train=settings if kind == "mlp" else of_features,
                published=row["published"],
                choices=tuple(choices),
            )


def settings_of(name: str | None, command: str) -> Mapping[str, Any]:
    """Return the settings of a recipe for the command "train", "extract" or "extract train"; empty if `name` is None.

    Raise ConfigError if the name is unknown, or if another command runs the recipe.
    """
    if name is None:
        return {}
    recipe = find(name)
    if command == "train" and recipe.extract is not None:
        raise ConfigError(
            f"recipe {name} trains a convolutional network; run it with `fastmlp extract … train`", settings=("recipe",)
        )
    if command != "train" and recipe.extract is None:
        raise ConfigError(f"recipe {name} trains a network on pixels; run it with `fastmlp train`", settings=("recipe",))
    found = recipe.extract if command == "extract" else recipe.train
    return found or {}


def as_lines(found: Mapping[str, Recipe]) -> str:
    """Return a line for each recipe: name, network, and published results."""
    rows = [(recipe.name, recipe.title, published_text(recipe.published)) for recipe in found.values()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {title:<{widths[1]}}  {text}".rstrip() for name, title, text in rows)


def published_text(published: Mapping[str, Any]) -> str:
    """Return the published results as text.

    >>> published_text({"cnn": {"test": {"accuracy": 0.8769}}, "test": {"accuracy": 0.8868}, "note": "their best"})
    'CNN: test 87.69 %; MLP: test 88.68 %; their best'
    """
    texts = []
    for kind, figures in (("CNN", published.get("cnn", {})), ("MLP", published)):
        accuracies = {split: figures.get(split, {}).get("accuracy") for split in ("train", "validation", "test")}
        parts = [f"{split} {100 * accuracy:.4g} %" for split, accuracy in accuracies.items() if accuracy is not None]
        if parts:
            texts.append(f"{kind}: {', '.join(parts)}" if "cnn" in published else ", ".join(parts))
    return "; ".join([*texts, *([published["note"]] if "note" in published else [])])


def as_text(recipe: Recipe) -> str:
    """Return a recipe as text, with its settings as TOML."""
    lines = [f"{recipe.name}: {recipe.title}", recipe.source, f"published: {published_text(recipe.published) or 'no result'}"]
    lines += [f"chosen: {text}" for text in recipe.choices]
    for command, settings in (("extract", recipe.extract), ("train", recipe.train)):
        if settings is not None:
            lines += ["", f"[{command}]", *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]
    return "\n".join(lines)
