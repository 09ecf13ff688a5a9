"""Time and memory of reading a .csv file: python -m benchmarks.read_table [--rows 1000000] [--columns 30] [--out FILE.json]

The table has columns of float64 numbers with six digits, and a target with three labels. Each reading happens in a new process,
which measures the time of the call and the growth of the peak resident memory, both without the imports. The libraries take
turns. `fastmlp` is `fastmlp.load_data`, which also converts the features to one float32 array; the others are the bare readers
with their default settings. The arrays of all are compared first.

The script exits with code 1 if fastmlp takes more than 1.5 times as long as pyarrow, which it uses, or if its memory grows by
more than 3 * rows * columns * 8 bytes. It runs only on Linux.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.epochs import machine
from fastmlp.bench.rounds import min_median_max

MOST_TIME = 1.5  # times the time of pyarrow
MOST_MEMORY = 3  # times the size of the table as float64
BLOCK = 20_000  # rows that are written at a time
# For each library: the import, and an expression that reads `path`.
READERS = {
    "fastmlp": ("import fastmlp, pyarrow.csv, fastmlp.data.load", "fastmlp.load_data(path).x"),
    "pyarrow": ("import pyarrow.csv", "pyarrow.csv.read_csv(path)"),
    "polars": ("import polars", "polars.read_csv(path)"),
    "pandas": ("import pandas", "pandas.read_csv(path)"),
}
CHILD = """
import sys, time, re
path = sys.argv[1]
began = time.perf_counter()
{imports}
imported = time.perf_counter() - began

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10

before, began = peak(), time.perf_counter()
table = {read}
print(imported, time.perf_counter() - began, peak() - before)
"""


def write_table(path: Path, rows: int, columns: int) -> None:
    """Write a table with columns f0, f1, ... and label."""
    rng = np.random.default_rng(0)
    with path.open("w") as stream:
        stream.write(",".join([*(f"f{number}" for number in range(columns - 1)), "label"]) + "\n")
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            values = rng.normal(0, 100, (count, columns - 1))
            labels = rng.integers(0, 3, count)
            lines = [",".join(f"{value:.6g}" for value in row) for row in values]
            stream.writelines(f"{line},{'abc'[label]}\n" for line, label in zip(lines, labels, strict=True))


def measure(name: str, path: Path) -> tuple[float, float, int]:
    """Read the table in a new process; return the seconds of the imports and of the call, and the growth of the peak memory."""
    imports, read = READERS[name]
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(imports=imports, read=read), str(path)], capture_output=True, text=True, check=True
    )
    imported, seconds, memory = child.stdout.split()
    return float(imported), float(seconds), int(memory)


def check_same(path: Path) -> None:
    """Check that fastmlp reads the same numbers as pyarrow."""
    import pyarrow.csv

    from fastmlp import load_data

    table, data = pyarrow.csv.read_csv(path), load_data(path)
    for number in range(data.x.shape[1]):
        assert np.array_equal(data.x[:, number], table.columns[number].to_numpy().astype(np.float32)), f"column {number}"
    labels = np.array(data.classes)[data.y]
    assert labels.tolist() == table.columns[-1].to_pylist()


def run(rows: int, columns: int, rounds: int) -> dict[str, Any]:
    """Return the measurements of all libraries that are installed."""
    names = [name for name in READERS if importlib.util.find_spec(name) is not None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_table(path, rows, columns)
        check_same(path)
        found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in names}
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name].append(measure(name, path))
                time.sleep(0.2)
        size = path.stat().st_size
    readers = {
        name: dict(zip(("import_seconds", "seconds", "peak_bytes"), map(min_median_max, zip(*one, strict=True)), strict=True))
        for name, one in found.items()
    }
    ratios = [mine[1] / bare[1] for mine, bare in zip(found["fastmlp"], found["pyarrow"], strict=True)]
    return {
        "rows": rows,
        "columns": columns,
        "file_bytes": size,
        "table_bytes": rows * columns * 8,
        "rounds": rounds,
        "readers": readers,
        "time_ratio": min_median_max(ratios),
        "memory_ratio": max(one[2] for one in found["fastmlp"]) / (rows * columns * 8),
        "versions": {name: importlib.metadata.version(name) for name in names if name != "fastmlp"},
        "machine": machine(),
    }


def report(result: dict[str, Any]) -> str:
    """Return the measurements as text."""
    lines = [f"{'':<10}{'import s':>10}{'read s (min, median, max)':>28}{'peak MB':>10}"]
    for name, one in result["readers"].items():
        seconds = ", ".join(f"{one['seconds'][key]:.2f}" for key in ("least", "median", "most"))
        peak = one["peak_bytes"]["most"] / 1e6
        lines.append(f"{name:<10}{one['import_seconds']['median']:>10.3f}{seconds:>28}{peak:>10.0f}")
    times = ", ".join(f"{result['time_ratio'][key]:.2f}" for key in ("least", "median", "most"))
    lines.append(f"fastmlp / pyarrow: {times}; peak memory: {result['memory_ratio']:.2f} times the table as float64")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = run(options.rows, options.columns, options.rounds)
    print(report(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if result["time_ratio"]["median"] > MOST_TIME or result["memory_ratio"] > MOST_MEMORY:
        sys.exit("read_table: a limit is exceeded")


if __name__ == "__main__":
    main()
