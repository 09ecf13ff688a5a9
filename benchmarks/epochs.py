"""Table of training speeds in the documentation: python -m benchmarks.epochs [--rounds 7] [--out FOLDER]

Runs `fastmlp bench --all` on Fashion-MNIST (FASTMLP_DATA) and writes the result to results/epochs.json and the chart to
results/epochs.png. Without Fashion-MNIST it says so, measures on synthetic pixels, writes nothing and exits with an error.
Exits with an error, after writing, if another library is faster in any case.
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
    """Machine and versions in one dictionary, as in the results of other scripts."""
    return bench_machine.machine() | installed_versions(bench_machine.PACKAGES)


def lost(result: dict[str, Any]) -> list[str]:
    """Cases in which another library is faster than our compiled engines."""
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
    options.out.mkdir(parents=True, exist_ok=True)  # report an unusable folder before a quarter of an hour of work
    if Source(DATA).data is None:
        print(f"{DATA} was not found (FASTMLP_DATA): measuring on {SYNTHETIC} pixels, nothing will be written", flush=True)
    result = run_bench(BenchSettings(EPOCHS, rounds=options.rounds, data=DATA), lambda text: print(text, flush=True))
    print(bench_text(result))
    if {row["data"] for row in result["rows"]} != {DATA}:
        names = ", ".join(sorted({row["data"] for row in result["rows"]}))
        sys.exit(f"measured on {names} data instead of {DATA}, so nothing was written; set FASTMLP_DATA to its folder")
    write_json(options.out / "epochs.json", result)
    plot_bench(result, options.out / "epochs.png")
    if found := lost(result):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
