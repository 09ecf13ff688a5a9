"""Evaluate the public weights of report R2 (iisc), and compare them with the recipes: python -m benchmarks.iisc_weights CLONE

CLONE is a clone of https://github.com/EshwarSR/IISc-DL-Project-2, the code of the report. Its folder `models` has the weights
of every network after the last epoch. The script prints their accuracy and loss on the report's training and validation splits
(scikit-learn's train_test_split, stratified, random_state 42) and on the test split. It exits with an error if a published
figure of a recipe differs from them. No code of the clone is run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastmlp.cnn import network as cnn_network
from fastmlp.cnn import toolkit
from sklearn.model_selection import train_test_split

from fastmlp.data.load import load_data
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.sources import resolve_as
from fastmlp.experiments.recipes.recipe import Recipe, all_recipes

BATCH = 1024
DIGITS = 5e-5  # the figures of the recipes have four digits

Split = tuple[torch.Tensor, torch.Tensor]


def splits_of(data_folder: str | None) -> dict[str, Split]:
    """Return pixels in [0, 1], (n, 784) float32, and labels of the report's splits."""
    data = load_data("fashion-mnist", data_folder)
    assert data.x_test is not None
    x, y = np.asarray(data.x[:], np.float32) / 255, np.asarray(data.y, np.int64)
    train, validation, y_train, y_validation = train_test_split(x, y, test_size=10_000, stratify=y, random_state=42)
    test = np.asarray(data.x_test[:], np.float32) / 255, np.asarray(data.y_test, np.int64)
    named = {"train": (train, y_train), "validation": (validation, y_validation), "test": test}
    return {name: (torch.from_numpy(rows), torch.from_numpy(labels)) for name, (rows, labels) in named.items()}


def network_of(recipe: Recipe) -> torch.nn.Module:
    """Return the network of a recipe for rows of 784 pixels."""
    if recipe.extract is not None:
        settings = resolve_as(ExtractConfig, {}, {}, recipe=recipe.extract)
        network = cnn_network.build(toolkit.prepare(vars(settings), (28, 28, 1), 10).description, seed=0)
        return torch.nn.Sequential(torch.nn.Unflatten(1, (1, 28, 28)), network)
    assert recipe.train is not None
    activations = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid, "linear": torch.nn.Identity}
    activation = activations[recipe.train.get("activation", ["relu"])[0]]
    sizes = [784, *recipe.train["hidden"]]
    hidden = [layer for pair in pairwise(sizes) for layer in (torch.nn.Linear(*pair), activation())]
    return torch.nn.Sequential(*hidden, torch.nn.Linear(sizes[-1], 10))


def evaluate(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Return accuracy and mean cross-entropy."""
    network.eval()
    with torch.no_grad():
        z = torch.cat([network(rows) for rows in x.split(BATCH)])
    loss = torch.nn.functional.cross_entropy(z, y)
    return {"accuracy": float((z.argmax(1) == y).float().mean()), "loss": float(loss)}


def figures_of(recipe: Recipe, published: Mapping[str, Any], clone: Path, splits: Mapping[str, Split]) -> dict[str, Any]:
    """Return the figures of the public weights of a recipe by split. The tensors of both networks have the same order."""
    epochs = (recipe.extract or recipe.train or {})["epochs"]
    weights = torch.load(clone / "models" / published["weights"] / f"{epochs}.pt", map_location="cpu", weights_only=True)
    network = network_of(recipe)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return {name: evaluate(network, *split) for name, split in splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    options = parser.parse_args()
    splits, differing = splits_of(os.environ.get("FASTMLP_DATA")), []
    for name, recipe in all_recipes().items():
        published = recipe.published.get("cnn", recipe.published)
        if "weights" not in published:
            continue
        for split, figures in figures_of(recipe, published, options.clone, splits).items():
            print(f"{name:<12} {split:<10} accuracy {figures['accuracy']:.4f}  loss {figures['loss']:.4f}", flush=True)
            if any(abs(value - published[split][metric]) > DIGITS for metric, value in figures.items()):
                differing.append(f"{name}: {split}")
    if differing:
        sys.exit(f"published figures differ: {', '.join(differing)}")


if __name__ == "__main__":
    main()
