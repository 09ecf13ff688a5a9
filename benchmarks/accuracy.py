"""Test accuracy and training time of whole runs, by the command line: python -m benchmarks.accuracy [--out FILE.json]

Each run is a command that a user could type; its figures are the object that `--json` prints. Needs the real data sets
(FASTMLP_DATA). The floor beside each command is half a point below what the published system reports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.epochs import machine

ROOT = Path(__file__).parent.parent
FASHION = (
    "--data fashion-mnist --activation relu --optimizer sgd --lr 0.001 --batch-size 64 --epochs 200 --patience 5 "
    "--scale zscore --seed 0"
)


class Run(NamedTuple):
    """A command after `fastmlp train`, the published test accuracy, and the least that we accept."""

    options: str
    published: float | None
    floor: float


RUNS = (
    Run("", None, 0.95),
    Run(f"{FASHION} --hidden 128", 0.8815, 0.8765),
    Run(f"{FASHION} --hidden 400,250,100 --dropout 0.2", 0.8855, 0.8805),
    Run(
        "--data mnist --hidden 500,250,100 --activation relu --optimizer sgd --lr 0.01 --batch-size 64 --epochs 15 --seed 0",
        0.94,
        0.94,
    ),
)


def execute(run: Run) -> dict[str, Any]:
    """Run the command and pick its figures."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import cli; cli.main()", "train", *run.options.split()]
        done = subprocess.run([*command, "--out", folder, "--force", "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    return {
        "command": f"fastmlp train {run.options}".strip(),
        "published": run.published,
        "floor": run.floor,
        "test_accuracy": result["test"]["accuracy"],
        "epochs": result["epochs"],
        "best_epoch": result["best_epoch"],
        "seconds_per_epoch": result["seconds_per_epoch"],
        "training_seconds": round(result["seconds_per_epoch"] * result["epochs"], 2),
        "threads": result["threads"],
        "seed": result["seed"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    about = machine()
    rows = []
    for run in RUNS:
        rows.append(execute(run))
        print(f"{rows[-1]['test_accuracy']:.4f} (at least {run.floor}) {rows[-1]['command']}", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=2) + "\n")
    if any(row["test_accuracy"] < row["floor"] for row in rows):
        sys.exit("a run missed its floor")


if __name__ == "__main__":
    main()
