"""The same training in PyTorch: python -m benchmarks.torch_twin RUN… [--out FILE.json]

Takes finished run folders (relu, cross-entropy, plain SGD, dropout or not), and trains their networks once more with PyTorch:
the same rows in each part, the same scaling, the same initial weights, the same order of rows in every epoch, the best epoch by
the same validation loss. Only dropout masks are PyTorch's own. Shows how far the figures of a run are fastmlp's doing, and
how far they are the experiment's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.epochs import machine
from fastmlp.artifacts import read_json
from fastmlp.config_sources import resolve
from fastmlp.philox import generator
from fastmlp.preprocess import fit_scaling
from fastmlp.runs import CONFIG_NAME, RESULT_NAME, Plan, make_plan


def twin_of(plan: Plan) -> torch.nn.Sequential:
    """The run's network with its initial weights."""
    network = plan.network
    pieces: list[torch.nn.Module] = []
    for layer, (w, b) in zip(network.layers, network.views(network.initial_parameters(plan.config.seed)), strict=True):
        linear = torch.nn.Linear(layer.fan_in, layer.fan_out)
        linear.weight.data, linear.bias.data = torch.from_numpy(w.T.copy()), torch.from_numpy(b.copy())
        pieces += [linear, torch.nn.ReLU(), torch.nn.Dropout(layer.dropout)]
    return torch.nn.Sequential(*pieces[:-2])


def train_twin(plan: Plan) -> dict[str, Any]:
    """Train, and give the figures of the epoch with the least validation loss."""
    config, rows = plan.config, plan.parts
    scaling = fit_scaling(config.scale, rows["train"][0])
    parts = {name: (torch.from_numpy(scaling.apply(x)), torch.from_numpy(y.astype(np.int64))) for name, (x, y) in rows.items()}
    x, y = parts["train"]
    torch.manual_seed(config.seed)
    model = twin_of(plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr or 0.0)
    measure = torch.nn.CrossEntropyLoss()
    best: dict[str, Any] = {"validation_loss": float("inf"), "epoch": 0}
    for epoch in range(1, config.epochs + 1):
        model.train()
        order = torch.from_numpy(generator(config.seed, "order", epoch).permutation(len(x)))
        for picked in order.split(config.batch_size):
            optimizer.zero_grad()
            measure(model(x[picked]), y[picked]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            z = {name: model(parts[name][0]) for name in ("validation", "test")}
        loss = measure(z["validation"], parts["validation"][1]).item()
        if loss < best["validation_loss"]:
            accuracy = {f"{name}_accuracy": (z[name].argmax(1) == parts[name][1]).double().mean().item() for name in z}
            best = {"validation_loss": loss, "epoch": epoch, **accuracy}
        if config.patience and epoch - best["epoch"] >= config.patience:
            break
    return best


def compare(run: Path) -> dict[str, Any]:
    """Our figures of a run, and PyTorch's."""
    plan = make_plan(resolve({}, {}, run / CONFIG_NAME))
    result = read_json(run / RESULT_NAME)
    ours = {"epoch": result["best_epoch"], "validation_loss": result["validation"]["loss"]}
    ours |= {f"{part}_accuracy": result[part]["accuracy"] for part in ("validation", "test")}
    row = {"network": plan.network.label, "dropout": list(plan.config.dropout), "ours": ours, "pytorch": train_twin(plan)}
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [compare(run) for run in options.runs]
    if options.out:
        found = {"machine": machine(), "torch": torch.__version__, "rows": rows}
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
