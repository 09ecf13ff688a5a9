"""benchmarks.search trains every variant once, does not use the test set, and reuses existing rows."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fastmlp.cnn import toolkit
from support.cli import forget_settings

from benchmarks import search
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.sources import resolve, resolve_as
from fastmlp.experiments.features.extraction import Tools, extract_run
from fastmlp.experiments.recipes.recipe import Recipe
from fastmlp.experiments.training_run import run_training
from fastmlp.files import read_json

pytestmark = pytest.mark.full

BASE: dict[str, Any] = {"data": "digits", "hidden": [8], "epochs": 3, "backend": "numpy", "val_count": 300, "patience": 0}
PIXELS = {"about": "a", "train": BASE, "grid": {"lr": [0.01, 0.001], "scale": ["unit", "zscore"]}, "variants": [{"seed": 1}]}
IMAGES: dict[str, Any] = {
    "about": "b",
    "extract": {"data": "digits", "filters": [4], "dense": [8], "epochs": 2, "val_count": 300},
    "train": {"hidden": [8], "epochs": 2, "backend": "numpy"},
    "variants": [{}, {"flip": 0.5}],
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    found = {"pixels": dict(PIXELS), "images": dict(IMAGES)}
    monkeypatch.setattr(search, "searches", lambda: found)
    return found


def rows_of(name: str) -> list[dict[str, Any]]:
    search.run(name, Path("images"), Path("found.json"))
    rows: list[dict[str, Any]] = read_json("found.json")[name]["rows"]
    return rows


def test_each_variant_has_the_results_of_train() -> None:
    rows = rows_of("pixels")
    wanted = list(search.variants(PIXELS))
    assert len(rows) == len(wanted) == 5
    assert all(row["settings"] in wanted for row in rows)
    assert all("test" not in row and row["epochs"] == 3 for row in rows)
    changed = {"lr": 0.01, "scale": "unit"}
    (row,) = [row for row in rows if row["settings"] == changed]
    # The search has no test split, so this run has none either; both train on the same rows.
    result = run_training(resolve({"out": "run"}, {}, recipe=BASE | changed | {"test_fraction": 0.0}), quiet=True).result
    assert row["validation"] == result["validation"]["accuracy"]
    assert row["best_epoch"] == result["best_epoch"]


def test_a_variant_may_change_the_splits(few: dict[str, Any]) -> None:
    few["pixels"] |= {"grid": {"val_count": [300, 600]}, "variants": []}
    changed = {"val_count": 600}
    (row,) = [row for row in rows_of("pixels") if row["settings"] == changed]
    result = run_training(resolve({"out": "run"}, {}, recipe=BASE | changed | {"test_fraction": 0.0}), quiet=True).result
    assert (row["validation"], row["val_loss"]) == (result["validation"]["accuracy"], result["validation"]["loss"])


def test_existing_rows_are_reused(few: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_of("pixels")
    made: list[Any] = []
    monkeypatch.setattr(search, "train_together", lambda search, group, keep: made.extend(changed for changed, _ in group))
    assert rows_of("pixels") == before
    assert made == []
    few["pixels"] |= {"variants": [{"seed": 1}, {"seed": 2}]}
    rows_of("pixels")
    assert made == [{"seed": 2}]
    few["pixels"] |= {"train": BASE | {"epochs": 4}}
    rows_of("pixels")
    assert len(made) == 7  # changed shared settings invalidate all rows


def test_only_searches_that_explain_use_the_test_split() -> None:
    for name, one in tomllib.loads(search.SEARCHES.read_text()).items():
        assert not one.get("test") or name in ("cs776-readings", "cs776-cnn-13", "ee5179-4-activation")
    pixels, classes = np.arange(20 * 64).reshape(20, 8, 8) % 256, np.arange(20) % 2
    np.savez("parts.npz", x=pixels.astype(np.uint8), y=classes, x_test=pixels[:6].astype(np.uint8), y_test=classes[:6])
    assert search.images_of({"test": True}, "parts.npz").x_test is not None
    assert search.images_of(IMAGES, "parts.npz").x_test is None
    images = search.images_of(IMAGES, "digits")
    search.save_images(images, Path("a.npz"))
    assert Path("a.npz").stat().st_size > 1797 * 64


def test_a_search_on_features_has_results_of_both_networks() -> None:
    rows = rows_of("images")
    assert [row["settings"] for row in rows] == [{}, {"flip": 0.5}]
    for row in rows:
        assert row["cnn"]["epochs"] == row["epochs"] == 2
        assert 0 < row["cnn"]["validation"] <= 1
        assert 0 < row["validation"] <= 1
        assert "test" not in row
    assert rows[0]["cnn"] != rows[1]["cnn"]


def test_variants_of_the_network_on_the_features_share_features(few: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    few["images"] |= {"test": True, "variants": [{"seed": 1}, {"seed": 1, "follows": {"hidden": [3], "epochs": 3}}]}
    trained: list[Any] = []
    train = toolkit.train
    monkeypatch.setattr(toolkit, "train", lambda *given: trained.append(0) or train(*given))
    first, second = rows_of("images")
    assert len(trained) == 1
    assert first["cnn"] == second["cnn"]
    assert (first["epochs"], second["epochs"]) == (2, 3)
    config = resolve_as(ExtractConfig, {}, {}, recipe=IMAGES["extract"] | {"seed": 1})
    own = resolve({"out": "run"}, {}, recipe=IMAGES["train"] | {"hidden": [3], "epochs": 3})
    data = extract_run(config, cast("Tools", toolkit), follows=own, quiet=True).data
    assert second["validation"] == run_training(own, data=data, quiet=True).result["validation"]["accuracy"]


def test_a_variant_cannot_restore_the_test_split(few: dict[str, Any]) -> None:
    few["images"] |= {"variants": [{"test_fraction": 0.3, "data": "digits"}]}
    (row,) = rows_of("images")
    assert "test" not in row["cnn"]


def test_a_search_that_explains_a_recipe_reports_test_accuracies(few: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe("of-images", "", IMAGES["extract"], IMAGES["train"], {}, ())
    monkeypatch.setattr(search, "find", {"of-images": recipe}.__getitem__)
    few["images"] = {"about": "c", "recipe": "of-images", "variants": [{"monitor": "accuracy"}], "test": True}
    (row,) = rows_of("images")
    config = resolve_as(ExtractConfig, {}, {}, recipe=IMAGES["extract"] | {"monitor": "accuracy"})
    own = resolve({"out": "run"}, {}, recipe=IMAGES["train"])
    extracted = extract_run(config, cast("Tools", toolkit), follows=own, quiet=True)
    assert (row["cnn"]["test"], row["test"]) == (
        extracted.result["cnn"]["test"]["accuracy"],
        run_training(own, data=extracted.data, quiet=True).result["test"]["accuracy"],
    )


def test_a_variant_that_diverges_is_reported(few: dict[str, Any]) -> None:
    few["pixels"] |= {"grid": {"lr": [1e30]}, "variants": [], "train": BASE | {"optimizer": "sgd"}}
    (row,) = rows_of("pixels")
    assert "loss became" in row["diverged"]
