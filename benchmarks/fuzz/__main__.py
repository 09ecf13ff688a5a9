"""Read mutants of small valid files with every reader of fastmlp: python -m benchmarks.fuzz [--mutants 100000] [--seed 0]
[--jobs 2] [--readers NAMES] [--out FILE.json] [--findings FOLDER]

Each mutant is read, or rejected with a one-line message that names the file. All else is a finding: another exception, a
crash, a hang, memory beyond twice the file plus 100 MB, another message, a file that is opened for writing, a warning, or
output. A mutant is a function of the seed, the reader and its number. The smallest mutant of each finding is saved in
--findings, and the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import names_in
from benchmarks.fuzz.campaign import Batch, Finding, campaign, merge
from benchmarks.fuzz.findings import FOLDER, save
from benchmarks.fuzz.mutants import mutant
from benchmarks.fuzz.outcomes import READ, REFUSED, size_of
from benchmarks.fuzz.readers import READERS, Reader
from fastmlp.bench.machine import machine
from fastmlp.engines import installed_versions
from fastmlp.files import write_json

PACKAGES = ("numpy", "pyarrow", "pillow", "torch", "safetensors", "msgspec", "atheris")
REPORTED = 10.0  # seconds between two lines of progress


def about() -> dict[str, Any]:
    """Return the machine, the versions of the packages that read files, and the commit of the checkout."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return {"machine": machine(), "versions": installed_versions(PACKAGES), "commit": found.stdout.strip() or None}


class Results:
    """The results of a campaign so far."""

    def __init__(self, readers: Sequence[Reader], seed: int) -> None:
        self.samples = {reader.name: reader.samples() for reader in readers}
        self.rows: dict[str, dict[str, Any]] = {}
        self.counts: dict[str, Counter[str]] = {reader.name: Counter() for reader in readers}
        self.findings: dict[Any, Finding] = {}
        self.seed = seed
        for name in self.counts:
            self.rows[name] = {"seconds": 0.0, "slowest_seconds": 0.0, "most_bytes": 0}

    def size(self, reader: str, index: int) -> int:
        return size_of(mutant(self.samples[reader], self.seed, reader, index))

    def add(self, batch: Batch) -> None:
        row = self.rows[batch.task.reader]
        self.counts[batch.task.reader] += batch.counts
        row["seconds"] += batch.seconds
        row["slowest_seconds"] = max(row["slowest_seconds"], batch.slowest)
        row["most_bytes"] = max(row["most_bytes"], batch.grown)
        merge(self.findings, batch, self.size)

    def table(self) -> dict[str, Any]:
        """Return the results per reader, for the record."""
        return {name: {"mutants": self.counts[name].total(), **self.counts[name], **row} for name, row in self.rows.items()}


def run(readers: Sequence[Reader], options: argparse.Namespace) -> Results:
    """Run the campaign, and print its progress."""
    results, each = Results(readers, options.seed), -(-options.mutants // len(readers))
    shown = time.monotonic()
    for batch in campaign(readers, each, options.seed, options.jobs):
        results.add(batch)
        if time.monotonic() - shown > REPORTED:
            done = sum(counts.total() for counts in results.counts.values())
            print(f"{done:,} of {each * len(readers):,} mutants, {len(results.findings)} findings", flush=True)
            shown = time.monotonic()
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=100_000, help="total number of mutants, divided among the readers")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations [default: 0]")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    names = "comma-separated names of readers [default: all]"
    parser.add_argument("--readers", type=names_in(READERS), default=list(READERS), metavar="NAMES", help=names)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--findings", type=Path, default=FOLDER, help="folder for the mutants that trigger findings")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    results = run([READERS[name] for name in options.readers], options)
    seconds, used = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = []
    for one in sorted(results.findings.values(), key=lambda one: (one.reader, -one.count)):
        sample = mutant(results.samples[one.reader], options.seed, one.reader, one.index)
        file = save(one, sample, options.findings)
        kind, error, frame = one.outcome.key
        row = {"reader": one.reader, "finding": kind, "error": error, "frame": frame, "count": one.count}
        rows.append(row | {"number": one.index, "file": file})
        print(f"{one.reader}: {kind} {error} {frame} ({one.count} times): {file}")
    total: Counter[str] = sum(results.counts.values(), Counter())
    rate = total.total() / (used.ru_utime + used.ru_stime)
    print(f"{total.total():,} mutants in {seconds:.0f} s, {rate:.0f} per second of CPU time: {dict(total)}")
    if options.out:
        record = {**about(), "seed": options.seed, "jobs": options.jobs, "seconds": seconds, "mutants": total.total()}
        record |= {"mutants_per_cpu_second": rate, READ: total[READ], REFUSED: total[REFUSED]}
        write_json(options.out, record | {"readers": results.table(), "findings": rows})
    if results.findings:
        sys.exit(1)


if __name__ == "__main__":
    main()
