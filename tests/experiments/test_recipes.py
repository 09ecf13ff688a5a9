"""Tests of the recipes: all experiments of the reports are present, settings are valid, and flags override settings."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fastmlp.cnn import toolkit
from support.cli import ok, refused
from support.cnn import SHAPE, bars
from support.extract import DRAWN, own_folder  # noqa: F401 - a fixture of all tests

from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.sources import resolve_as
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.recipes.recipe import all_recipes, find, published_text

ROWS = {
    "cs776-mlp": 8,
    "cs776-cnn": 14,
    "iisc-mlp": 18,
    "iisc-cnn": 8,
    "ee5179": 5,
    "group7-mlp": 4,
    "group7-cnn": 6,
    "group7": 1,
    "best-mlp": 1,
    "best-cnn-mlp": 1,
}
IMAGE = (28, 28, 1)


def test_every_row_is_there() -> None:
    assert Counter(re.sub(r"-(\d+|both)$", "", name) for name in all_recipes()) == ROWS
    assert sum(ROWS.values()) == 64 + 2
    numbers = [int(name.rpartition("-")[2]) for name in all_recipes() if name.startswith("iisc-mlp")]
    assert numbers == list(range(1, 19))


@pytest.mark.parametrize("name", all_recipes())
def test_every_recipe_is_a_run_that_can_be_made(name: str) -> None:
    recipe = find(name)
    assert recipe.source.startswith(name.partition("-")[0])
    assert all(text.endswith(".") for text in recipe.choices)
    width = IMAGE[0] * IMAGE[1]
    if recipe.extract is not None:
        settings = resolve_as(ExtractConfig, {}, {}, recipe=recipe.extract)
        width = toolkit.prepare(vars(settings), IMAGE, 10).width
        assert settings.data == "fashion-mnist"
    if recipe.train is not None:
        config = resolve_as(TrainConfig, {}, {}, recipe=recipe.train)
        config.settings()
        assert config.network(width, 10).sizes == (width, *config.hidden, 10)
    assert recipe.extract is not None or recipe.train is not None


def test_some_rows_as_they_are_published() -> None:
    """The settings and the published accuracies of some recipes equal values that are repeated in this test."""
    assert find("cs776-mlp-6").train == {
        "data": "fashion-mnist",
        "scale": "zscore",
        "optimizer": "sgd",
        "lr": 0.001,
        "batch_size": 52,
        "epochs": 200,
        "patience": 5,
        "min_delta": 0.001,
        "hidden": [400, 250, 100],
        "dropout": [0.2],
    }
    widths = {"cs776-cnn-1": 16, "cs776-cnn-14": 512, "iisc-cnn-3": 12 * 6 * 6}
    widths |= {f"group7-cnn-{row}": 784 for row in (1, 3, 4, 5, 6)} | {"group7-cnn-2": 49}
    for name, width in widths.items():
        settings = resolve_as(ExtractConfig, {}, {}, recipe=find(name).extract or {})
        assert toolkit.prepare(vars(settings), IMAGE, 10).width == width


def test_published_text() -> None:
    assert published_text({}) == ""
    shown = {"train": {"accuracy": 0.94}, "validation": {"accuracy": 0.91, "loss": 0.3}, "test": {"accuracy": 0.9062}}
    assert published_text(shown) == "train 94 %, validation 91 %, test 90.62 %"
    assert published_text({"cnn": {"test": {"accuracy": 0.9}}, "train": {"loss": 0.3}}) == "CNN: test 90 %"


# ------------------------------------------------------------------------------------------------ the command line


def settings_printed(*arguments: str | Path, **variables: str) -> str:
    return ok(*arguments, "--print-config", **variables).stdout


def test_a_recipe_gives_the_settings_and_all_else_wins_over_it() -> None:
    text = settings_printed("train", "--recipe", "iisc-mlp-3")
    assert 'activation = [\n    "tanh",\n]' in text
    assert "batch_size = 128\n" in text
    assert "stratify = true\n" in text
    assert "val_count = 10000\n" in text
    assert "val_fraction" not in text  # the recipe's val_count replaces the default val_fraction
    Path("a.toml").write_text("batch_size = 32\nepochs = 9\n")
    text = settings_printed("train", "--recipe", "iisc-mlp-3", "--config", "a.toml", "--epochs", "7", FASTMLP_LR="0.5")
    for line in ("batch_size = 32\n", "epochs = 7\n", "lr = 0.5\n"):
        assert line in text
    assert settings_printed("train", FASTMLP_RECIPE="iisc-mlp-3") == settings_printed("train", "--recipe", "iisc-mlp-3")
    assert "filters = [\n    8,\n    12,\n]" in settings_printed("extract", "--recipe", "iisc-cnn-3")


def test_a_recipe_of_the_other_command_is_refused() -> None:
    assert refused(2, "train", "--recipe", "cs776-cnn-1").endswith("run it with `fastmlp extract … train` [--recipe]")
    assert refused(2, "extract", "--recipe", "cs776-mlp-1").endswith("run it with `fastmlp train` [--recipe]")
    assert refused(2, "train", "--recipe", "cs776-mlp-66").startswith(
        "unknown recipe 'cs776-mlp-66'; did you mean 'cs776-mlp-6'?"
    )


@pytest.mark.full
def test_a_recipe_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, _ in DRAWN:
        monkeypatch.setattr(module, name, lambda *given: None)
    pixels, labels = bars(120, 0)
    np.savez("images.npz", x=pixels.reshape(-1, *SHAPE[:2]), y=labels)
    small = ["--data", "images.npz", "--filters", "4,6", "--dense", "8", "--epochs", "1"]
    ok("extract", "--recipe", "cs776-cnn-1", *small, "train", "--epochs", "2", "--backend", "numpy", "--out", "run", "-q")
    config = Path("run/config.toml").read_text()
    for line in ('optimizer = "sgd"\n', "lr = 0.001\n", "hidden = [\n    32,\n]", "epochs = 2\n", "patience = 10\n"):
        assert line in config
    about = json.loads(Path("run/result.json").read_text())["data"]["extracted"]
    assert about["settings"]["restore_best"] is False


def test_the_list_and_a_recipe() -> None:
    lines = ok("recipes").stdout.splitlines()
    assert len(lines) == 66
    assert lines[5] == "cs776-mlp-6   MLP 400-250-100, relu, dropout 0.2               test 88.55 %; their best"
    listed = json.loads(ok("recipes", "--json").stdout)["recipes"]
    assert [row["name"] for row in listed] == [*all_recipes()]
    shown = ok("recipes", "show", "cs776-cnn-14").stdout
    assert "published: test 92.35 %\n" in shown
    assert "chosen: Padding 2, so that" in shown
    assert '[extract]\ndata = "fashion-mnist"\n' in shown
    assert json.loads(ok("recipes", "show", "cs776-cnn-14", "--json").stdout) == listed[21]
    assert refused(2, "recipes", "show", "nothing").startswith("unknown recipe 'nothing'")
