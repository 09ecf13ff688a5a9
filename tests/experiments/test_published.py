"""Tests of the published figures of the recipes: their form, and their agreement with transcripts of the reports.

The transcripts are not part of the project. The tests that need them read REFERENCE_RESULTS.md and published_epochs.csv in the
parent folder of FASTMLP_DATA, and are skipped if these are missing.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fastmlp.experiments.recipes.compare import METRICS, PRINTED
from fastmlp.experiments.recipes.recipe import Recipe, all_recipes, find

SPLITS = ("train", "validation", "test")
KEYS = {*SPLITS, "cnn", "epochs", "best_epoch", "printed", "note", "weights"}
TRANSCRIPTS = Path(os.environ.get("FASTMLP_DATA") or "missing").parent


def transcript(name: str) -> str:
    """Return the text of a transcript, or skip the test if it is missing."""
    file = TRANSCRIPTS / name
    if not file.is_file():
        pytest.skip(f"the transcript {name} of the reports is not beside FASTMLP_DATA")
    return file.read_text(encoding="utf-8")


def networks_of(recipe: Recipe) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Yield the published figures and the settings of each network of a recipe."""
    yield recipe.published, recipe.train
    yield recipe.published.get("cnn", {}), recipe.extract


@pytest.mark.parametrize("name", all_recipes())
def test_published_figures_have_the_right_form(name: str) -> None:
    for figures, trained in networks_of(find(name)):
        assert set(figures) <= KEYS
        assert trained is not None or set(figures) <= {"cnn", "note"}
        for split in SPLITS:
            metrics = figures.get(split, {})
            assert set(metrics) <= set(METRICS)
            assert all(0 < value < (3 if metric == "loss" else 1) for metric, value in metrics.items())
        rows = figures.get("printed", [])
        assert all(len(row) == 1 + len(PRINTED) for row in rows)
        assert [row[0] for row in rows] == sorted({row[0] for row in rows})
        if "best_epoch" in figures:
            assert trained is not None
            assert figures["epochs"] - figures["best_epoch"] == trained["patience"]


def test_the_printed_epochs_are_those_of_the_transcript() -> None:
    rows: dict[tuple[str, bool], list[list[float]]] = defaultdict(list)
    counted: dict[str, int] = {}
    for row in csv.DictReader(transcript("published_epochs.csv").splitlines()):
        values = [float(row[name]) for name in ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy")]
        rows[row["recipe"], row["part"] == "cnn"].append(values)
        if row["patience"] == "0" and row["part"] == "mlp":
            counted[row["recipe"]] = int(row["epoch"])
    ours = {
        (name, of_cnn): figures["printed"]
        for name, recipe in all_recipes().items()
        for of_cnn, figures in ((False, recipe.published), (True, recipe.published.get("cnn", {})))
        if "printed" in figures
    }
    assert ours == rows
    assert sum(map(len, rows.values())) == 161
    assert {name: find(name).published["best_epoch"] for name in counted} == counted


def table_rows(text: str) -> dict[str, list[str]]:
    """Return the cells after the first of all table rows that begin with the name of one recipe."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines if cells[0] in all_recipes()}


def accuracy(figures: Mapping[str, Any], split: str = "test") -> float | None:
    """Return a published accuracy in percent, or None."""
    value = figures.get(split, {}).get("accuracy")
    return None if value is None else round(100 * value, 2)


def first_number(text: str) -> float | None:
    found = re.match(r"[\d.]+", text)
    return None if found is None else float(found[0])


def test_cs776_is_as_transcribed() -> None:
    text = transcript("REFERENCE_RESULTS.md")
    rows = {name: cells for name, cells in table_rows(text).items() if name.startswith("cs776")}
    assert len(rows) == 22
    for name, cells in rows.items():
        published = find(name).published
        assert accuracy(published) == first_number(cells[-1] if "cnn" in name else cells[-2])
        if "cnn" in name:
            assert accuracy(published.get("cnn", {})) == first_number(cells[-2])
        else:
            assert published["epochs"] == first_number(cells[-1])
    stops = re.search(r"stop \(best\) epochs of cnn-1 … cnn-12: ([^:]+):", text)
    assert stops is not None
    pairs = [(int(stop), int(best)) for stop, best in re.findall(r"(\d+) \((\d+)\)", stops[1])]
    recipes = [find(f"cs776-cnn-{number}").published for number in range(1, 13)]
    assert [(one["epochs"], one["best_epoch"]) for one in recipes] == pairs


def test_iisc_is_as_transcribed() -> None:
    """The accuracies of the public weights, without rounding, have the digits that the report prints."""
    text = transcript("REFERENCE_RESULTS.md")
    rows = table_rows(text)
    for name in ("iisc-mlp-17", "iisc-mlp-18"):
        train, validation = (find(name).published[split]["accuracy"] for split in ("train", "validation"))
        assert f"train {int(100 * train)}, val {int(100 * validation)}" in rows[name][-1]
    printed = {3: "94/91", 4: "82/81", 5: "94/89", 6: "88/87", 7: "92/89", 8: "93/88", 1: "86/86", 2: "89/89"}
    for number, digits in printed.items():
        assert digits in text
        figures = find(f"iisc-cnn-{number}").published["cnn"]
        assert "/".join(str(int(100 * figures[split]["accuracy"])) for split in ("train", "validation")) == digits
    assert "**test 87.39**" in rows["iisc-mlp-18"][-1]
    assert "**test 90.62**" in rows["iisc-cnn-3"][-1]
    assert accuracy(find("iisc-mlp-18").published) == 87.39
    assert accuracy(find("iisc-cnn-3").published["cnn"]) == 90.62
    assert all(int(100 * find(f"iisc-mlp-{row}").published["validation"]["accuracy"]) in (85, 86) for row in (5, 6, 7))
    assert "(sigmoid is said to perform less" in text


def test_ee5179_is_as_transcribed() -> None:
    text = transcript("REFERENCE_RESULTS.md")
    rows = table_rows(text)
    for number in (1, 2, 3, 4):
        assert accuracy(find(f"ee5179-{number}").published) == first_number(rows[f"ee5179-{number}"][-1])
    assert accuracy(find("ee5179-5").published, "train") == first_number(rows["ee5179-5"][-1])
    assert "78 (train)" in rows["ee5179-5"][-1]
    losses = re.findall(r"(sigmoid|tanh|relu) ([\d.]+) / ([\d.]+)", text)
    ours = [find(f"ee5179-{number}").published for number in (1, 2, 3)]
    assert [(float(train), float(validation)) for _, train, validation in losses] == [
        (one["train"]["loss"], one["validation"]["loss"]) for one in ours
    ]


def test_group7_is_as_transcribed() -> None:
    text = transcript("REFERENCE_RESULTS.md")
    rows = table_rows(text)

    def shown(figures: Mapping[str, Any], split: str) -> str:
        f1 = figures[split].get("macro_f1")
        return f"{100 * figures[split]['accuracy']:.2f}" + (f" (F1 {f1:.4f})" if f1 else "")

    for name in ("group7-mlp-1", "group7-both"):
        published = find(name).published
        assert f"train {shown(published, 'train')}, val {shown(published, 'validation')}" in rows[name][-1]
    cnn = {number: find(f"group7-cnn-{number}").published["cnn"]["test"] for number in range(1, 6)}
    assert f"test {100 * cnn[1]['accuracy']:.1f}, loss {cnn[1]['loss']}" in rows["group7-cnn-1"][-1]
    for first in (2, 4):
        pairs = "; ".join(
            f"{100 * cnn[row]['accuracy']:.1f} ({'loss ' * (row == 2)}{cnn[row]['loss']})" for row in (first, first + 1)
        )
        assert f"| {pairs} |" in text
