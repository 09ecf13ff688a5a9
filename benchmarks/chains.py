"""Convolutional networks and MLPs on features, on real data: python -m benchmarks.chains [--only NAME,…] [--out FILE.json]

Each row is one command, `fastmlp extract --recipe NAME train`, or without `train` where the report knows the network alone; its
accuracies stand beside the published ones. With --out, rows of a file that is there stay unless they are measured anew; with
--keep FOLDER the features are kept there, and not made again. Ends with an error if a row is more than half a point below what
was published, after all has been written. Fashion-MNIST (FASTMLP_DATA); seed 0. What was chosen where a report is silent:
`fastmlp recipes show NAME`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.epochs import machine
from fastmlp.artifacts import read_json, write_json
from fastmlp.recipes import Recipe, find

ROOT = Path(__file__).parent.parent
PARTS = ("train", "validation", "test")
MARGIN = 0.005  # below the published accuracy that counts as reproduced
NAMES = ("cs776-cnn-1", "cs776-cnn-4", "cs776-cnn-6", "cs776-cnn-10", "group7-cnn-1", "group7-both")


def execute(recipe: Recipe, keep: Path | None) -> dict[str, Any]:
    """Run the command and pick its figures."""
    words = ["extract", "--recipe", recipe.name]
    chained = ["train"] if recipe.train is not None else []
    with tempfile.TemporaryDirectory() as folder:
        features = (keep.absolute() if keep else Path(folder)) / f"{recipe.name}.npz"
        command = [sys.executable, "-c", "import cli; cli.main()", *words, "--out", str(features)]
        command += [*chained, "--out", "run", "--json"] if chained else ["--json"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    alone = result["data"]["extracted"]["cnn"] if chained else result["cnn"]
    published = dict(recipe.published)
    of_cnn = published.pop("cnn", {})
    return {
        "name": recipe.name,
        "command": f"fastmlp {' '.join(words + chained)}",
        "cnn": figures(alone, of_cnn),
        "mlp": figures(result, published) if chained else None,
        "machine": machine(),
    }


def figures(result: dict[str, Any], published: dict[str, Any]) -> dict[str, Any]:
    """Our accuracies beside the published ones, of the same parts."""
    ours = {part: result[part]["accuracy"] for part in PARTS}
    theirs = {part: published[part] for part in PARTS if part in published}
    times = {"epochs": result["epochs"], "best_epoch": result["best_epoch"], "seconds": round(result["seconds"], 1)}
    return ours | times | {"published": theirs}


def missed(row: dict[str, Any]) -> list[str]:
    """What is further below its published figure than the margin; a share of the training part is no aim."""
    texts = []
    for kind in ("cnn", "mlp"):
        for part, published in (row[kind] or {"published": {}})["published"].items():
            ours = row[kind][part]
            if part != "train" and ours < published - MARGIN:
                texts.append(f"{row['name']}: {kind} {ours:.4f} on {part}, published {published:.4f}")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="folder of the features")
    options = parser.parse_args()
    rows = {row["name"]: row for row in read_json(options.out)["rows"]} if options.out and options.out.exists() else {}
    for name in options.only.split(","):
        rows[name] = row = execute(find(name), options.keep)
        print(*(f"{name} {kind}: {row[kind]['test']:.4f} test" for kind in ("cnn", "mlp") if row[kind]), sep="\n", flush=True)
        if options.out:
            write_json(options.out, {"rows": [rows[known] for known in NAMES if known in rows]})
    if short := [text for row in rows.values() for text in missed(row)]:
        sys.exit("\n".join(short))


if __name__ == "__main__":
    main()
