"""Measure the training speeds shown in the documentation: python -m benchmarks.epochs [--rounds 7] [--out FOLDER]

The script runs the measurements of `fastmlp bench --all` on Fashion-MNIST (FASTMLP_DATA). It writes the result to
results/epochs.json and a chart to results/epochs.png. If Fashion-MNIST is not available, it measures on synthetic pixels,
writes no files and exits with an error. If another library is faster in any case, it writes the files and exits with an error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import EPOCHS
from fastmlp.bench import machine as bench_machine
from fastmlp.bench.cases import SYNTHETIC, Source
from fastmlp.bench.report import bench_text, plot_bench
from fastmlp.bench.rounds import BenchSettings, run_bench
from fastmlp.engines import installed_versions
from fastmlp.files import write_json

RESULTS = Path(__file__).parent / "results"
DATA = "fashion-mnist"


def machine() -> dict[str, Any]:
    """Return the machine and the versions of packages in one dictionary, as stored in the results of other scripts."""
    return bench_machine.machine() | installed_versions(bench_machine.PACKAGES)


def lost(result: dict[str, Any]) -> list[str]:
    """Return a line for each case in which another library is faster than fastmlp's compiled engines."""
    return [
        f"{verdict['network']}, batch {verdict['batch']}: {verdict['text']}"
        for verdict in result["verdicts"]
        if verdict["ratio"] and verdict["ratio"]["median"] < 1
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)  # fail now, not after measuring, if the folder cannot be created
    if Source(DATA).data is None:
        print(f"{DATA} was not found (set FASTMLP_DATA): measuring on {SYNTHETIC} pixels without writing files", flush=True)
    result = run_bench(BenchSettings(EPOCHS, rounds=options.rounds, data=DATA), lambda text: print(text, flush=True))
    print(bench_text(result))
    if {row["data"] for row in result["rows"]} != {DATA}:
        names = ", ".join(sorted({row["data"] for row in result["rows"]}))
        sys.exit(f"measured on {names} data instead of {DATA}, so no files were written; set FASTMLP_DATA to its folder")
    write_json(options.out / "epochs.json", result)
    plot_bench(result, options.out / "epochs.png")
    if found := lost(result):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
