"""Compare training from a memory-mapped file and from memory: python -m benchmarks.memmap [--gib 2] [--out FILE.json]

Each round trains a 784-128-10 network for one epoch (batch size 64, plain SGD) from each of the two sources, in alternating
order. The resulting parameters must be bitwise identical. The relative speed of a round is the in-memory time divided by the
time from the file. The file is mapped again in each round, so that its page faults are part of the time.

Before the rounds, both sources are used once as a warm-up. During the warm-up, the growth of the process's anonymous memory
(RssAnon) is measured for training from the file. The file must fit into the page cache: the number of reads from disk (major
page faults) during the timed epochs is reported and should be 0. The script runs only on Linux. It needs twice --gib of
memory, and --gib of disk space in --folder.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cases import Case
from benchmarks.epochs import machine
from fastmlp import Network, Settings, fit_scaling, train
from fastmlp.bench.rounds import min_median_max
from fastmlp.nn.optimizers import SGD
from fastmlp.training.loop import Progress

CASE = Case((784, 128, 10), 64)
TILE_ROWS = 50_000
LEAST_SPEED = 0.9  # lower limit of the relative speed


class Epoch(NamedTuple):
    seconds: float
    disk_reads: int  # number of major page faults
    parameters: Any


class Watch(Progress):
    """Record the maximum anonymous memory of the process, which is read after each chunk of steps."""

    def __init__(self) -> None:
        self.start = self.most = owned()

    def update(self, epoch: int, done: int, total: int, loss: float, accuracy: float | None, rows_per_second: float) -> None:
        self.most = max(self.most, owned())

    def epoch_done(self, row: dict[str, Any]) -> None:
        self.most = max(self.most, owned())


def owned() -> int:
    """Return the resident anonymous memory of the process in bytes."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def write_pixels(path: Path, rows: int, features: int) -> None:
    """Write a file of random pixels, a block of rows that is repeated. Writing also loads the file into the page cache."""
    tile = np.random.default_rng(0).integers(0, 256, (min(rows, TILE_ROWS), features), np.uint8)
    x = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, features))
    for start in range(0, rows, len(tile)):
        x[start : start + len(tile)] = tile[: rows - start]
    x.flush()


def train_epoch(case: Case, x: Any, y: Any, progress: Progress | None = None) -> Epoch:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    settings = Settings(SGD(0.01), epochs=1, batch_size=case.batch, backend="numba")
    training = train(Network(case.sizes), (x, y), settings=settings, scaling=fit_scaling("unit", x), progress=progress)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before
    return Epoch(training.history[0]["seconds"], faults, training.state.parameters)


def measure(case: Case, path: Path, rounds: int) -> dict[str, Any]:
    """Measure epochs from the file and from memory; return the measured values as a dictionary."""

    def mapped() -> Any:
        return np.load(path, mmap_mode="r", allow_pickle=False)

    y = np.random.default_rng(1).integers(0, case.sizes[-1], len(mapped())).astype(np.int32)
    train_epoch(case, mapped()[: case.batch], y[: case.batch])  # compiles the kernels
    watch = Watch()
    train_epoch(case, mapped(), y, watch)
    memory = np.array(mapped())
    train_epoch(case, memory, y)
    epochs: dict[str, list[Epoch]] = {"mapped": [], "memory": []}
    for index in range(rounds):
        for name in sorted(epochs, reverse=bool(index % 2)):
            epochs[name].append(train_epoch(case, mapped() if name == "mapped" else memory, y))
        if not np.array_equal(*(of_source[-1].parameters for of_source in epochs.values())):
            sys.exit("training from the file and from memory gives different parameters")
    speeds = [b.seconds / a.seconds for a, b in zip(epochs["mapped"], epochs["memory"], strict=True)]
    return {
        "network": "-".join(map(str, case.sizes)),
        "batch": case.batch,
        "rows": len(y),
        "gib": memory.nbytes / 2**30,
        "seconds": {name: round(statistics.median(e.seconds for e in of_source), 4) for name, of_source in epochs.items()},
        "speed": min_median_max(speeds),
        "disk_reads": sum(e.disk_reads for e in epochs["mapped"]),
        "owned_mib": round((watch.most - watch.start) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder of the temporary file")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "x.npy"
        write_pixels(path, int(options.gib * 2**30 / CASE.sizes[0]), CASE.sizes[0])
        row = measure(CASE, path, options.rounds)
    s, r = row["seconds"], row["speed"]
    print(
        f"{CASE.label}: {row['gib']:.2f} GiB, from the file {s['mapped']:.3f} s, in memory {s['memory']:.3f} s, "
        f"relative speed {r['median']:.1%} ({r['least']:.1%} to {r['most']:.1%}), {row['disk_reads']} reads from disk, "
        f"{row['owned_mib']} MiB of anonymous memory"
    )
    if options.out:
        options.out.write_text(json.dumps({"rounds": options.rounds, "machine": about, "rows": [row]}, indent=2) + "\n")
    if r["median"] < LEAST_SPEED:
        sys.exit(f"training from the mapped file is slower than {LEAST_SPEED:.0%} of the in-memory speed")


if __name__ == "__main__":
    main()
