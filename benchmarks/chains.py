"""Convolutional networks and their features, on the real data: python -m benchmarks.chains [--only NAME,…] [--out FILE.json]

Each row is one command line, `fastmlp extract … train …`, as published in a course report; its test accuracies, of the network
alone and of the MLP on its features, stand beside the published ones. With --out, rows of a file that is there stay unless they
are measured anew. Ends with an error if a row is more than half a point below what was published, after all has been
written. Fashion-MNIST (FASTMLP_DATA); seed 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.epochs import machine
from fastmlp.artifacts import read_json, write_json

ROOT = Path(__file__).parent.parent
MARGIN = 0.005  # below the published accuracy that counts as reproduced
DATA = "--data fashion-mnist --seed 0"
CS776 = f"{DATA} --scale symmetric --kernel 3 --padding 1 --epochs 10 --schedule cosine"
GROUP7 = f"{DATA} --scale symmetric --filters 49,98,196,392,784 --kernel 3,2,2,2,2 --pool max,max,max,max,max --dense 128"
MLP = "--epochs 60 --patience 5"


class Chain(NamedTuple):
    """What is run, and the published test accuracies of the network alone and of the MLP on its features, None for none."""

    extract: str
    train: str
    cnn: float | None
    mlp: float | None


DOUBLED = "--filters 16,32,64,128,256 --dense 512"
CHAINS = {
    "cs776-cnn-1": Chain(
        f"{CS776} --lr 0.003 --filters 16,16,16,16,16 --pool max --dense 32", f"--hidden 32 {MLP}", 0.8769, 0.8868
    ),
    "cs776-cnn-4": Chain(f"{CS776} {DOUBLED} --pool max", f"--hidden 512 {MLP}", 0.9155, 0.9179),
    "cs776-cnn-6": Chain(f"{CS776} {DOUBLED} --pool global", f"--hidden 512 {MLP}", 0.6428, 0.6742),
    "cs776-cnn-10": Chain(f"{CS776} {DOUBLED} --pool max --init xavier", f"--hidden 512 {MLP}", 0.9142, 0.9179),
    "group7-both": Chain(
        f"{GROUP7} --optimizer sgd --lr 0.01 --batch-size 64 --epochs 10", f"--hidden 128 {MLP}", 0.885, 0.9047
    ),
}


def execute(name: str, chain: Chain) -> dict[str, Any]:
    """Run the command and pick its figures."""
    words = ["extract", *chain.extract.split(), "train", *chain.train.split()]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import cli; cli.main()", *words, "--out", "run", "--json"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    alone = result["data"]["extracted"]["cnn"]
    return {
        "name": name,
        "command": f"fastmlp {' '.join(words)}",
        "cnn": {"accuracy": alone["test"]["accuracy"], "published": chain.cnn, "best_epoch": alone["best_epoch"]},
        "mlp": {"accuracy": result["test"]["accuracy"], "published": chain.mlp, "best_epoch": result["best_epoch"]},
        "cnn_seconds": round(alone["seconds"], 1),
        "mlp_seconds": round(result["seconds"], 1),
        "machine": machine(),
    }


def missed(row: dict[str, Any]) -> list[str]:
    """What is further below its published figure than the margin."""
    short = [kind for kind in ("cnn", "mlp") if row[kind]["accuracy"] < (row[kind]["published"] or 0) - MARGIN]
    return [f"{row['name']}: {kind} {row[kind]['accuracy']:.4f}, published {row[kind]['published']:.4f}" for kind in short]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CHAINS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = {row["name"]: row for row in read_json(options.out)["rows"]} if options.out and options.out.exists() else {}
    for name in options.only.split(","):
        rows[name] = row = execute(name, CHAINS[name])
        print(f"{name}: cnn {row['cnn']['accuracy']:.4f}, mlp {row['mlp']['accuracy']:.4f}", flush=True)
        if options.out:
            write_json(options.out, {"rows": [rows[known] for known in CHAINS if known in rows]})
    if short := [text for row in rows.values() for text in missed(row)]:
        sys.exit("\n".join(short))


if __name__ == "__main__":
    main()
