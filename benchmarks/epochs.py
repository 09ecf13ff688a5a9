"""README's table of speeds: python -m benchmarks.epochs [--rounds 7] [--out FOLDER]

`fastmlp bench --all` on the real Fashion-MNIST (FASTMLP_DATA) and nothing else; its object goes to results/epochs.json, its
chart beside it. Ends with an error if another library is faster anywhere, after all has been written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import EPOCHS
from fastmlp.bench import machine as bench_machine
from fastmlp.bench.report import bench_text, plot_bench
from fastmlp.bench.rounds import BenchSettings, run_bench
from fastmlp.engines import installed_versions
from fastmlp.files import write_json

RESULTS = Path(__file__).parent / "results"
DATA = "fashion-mnist"


def machine() -> dict[str, Any]:
    """Machine and versions in one, as other scripts' results have them."""
    return bench_machine.machine() | installed_versions(bench_machine.PACKAGES)


def lost(result: dict[str, Any]) -> list[str]:
    """Where another library is faster than our compiled engine."""
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
    options.out.mkdir(parents=True, exist_ok=True)  # what is wrong with it should be known before a quarter of an hour
    result = run_bench(BenchSettings(EPOCHS, rounds=options.rounds, data=DATA), lambda text: print(text, flush=True))
    print(bench_text(result))
    if {row["data"] for row in result["rows"]} != {DATA}:
        sys.exit(f"{DATA} is not there, and figures of made-up data are not kept; name its folder by FASTMLP_DATA")
    write_json(options.out / "epochs.json", result)
    plot_bench(result, options.out / "epochs.png")
    if found := lost(result):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
