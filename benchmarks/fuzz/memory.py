"""Measure the peak memory of reading a large file of each format: python -m benchmarks.fuzz.memory [--megabytes 64]
[--readers NAMES] [--out FILE.json]

Each file is read in a fresh process, after a small file of the same format, whose packages and buffers do not count. The
growth of the peak of the resident memory must be below twice the size plus 100 MB. The size is that of the file, or that of its
content for formats that are compressed, and for images and text, whose arrays can be larger than the file. Memory-mapped pages
count. The exit status is 1 if a reader needs more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import names_in
from benchmarks.fuzz.__main__ import about
from benchmarks.fuzz.large import LARGE
from benchmarks.fuzz.outcomes import SPARE_BYTES, is_refusal, peak_bytes, reset_peak, write_sample
from benchmarks.fuzz.readers import READERS
from fastmlp.files import write_json

SECONDS = 600  # limit of a reader


def measure(name: str, large: Path, small: Path) -> dict[str, Any]:
    """Read a small and a large file, and return the growth of the peak memory and the duration for the large one."""
    READERS[name].read(small)
    before, started, refused = reset_peak(), time.perf_counter(), None
    try:
        READERS[name].read(large)
    except Exception as error:
        if not is_refusal(error):
            raise
        refused = str(error)[:200]
    return {"growth_bytes": peak_bytes() - before, "seconds": time.perf_counter() - started, "refused": refused}


def measured(name: str, size: int) -> dict[str, Any]:
    """Write a large file, and return the result of `measure` in a fresh process, with the sizes and their ratios."""
    large = LARGE[name](size)
    file_bytes = sum(map(len, large.sample.files.values()))
    with tempfile.TemporaryDirectory() as place:
        path = write_sample(large.sample, Path(place, "large"))
        small = write_sample(READERS[name].samples()[0], Path(place, "small"))
        command = [sys.executable, "-m", "benchmarks.fuzz.memory", "--one", name, str(path), str(small)]
        base = max(file_bytes, large.content)
        row = {"reader": name, "file_bytes": file_bytes, "content_bytes": large.content}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return row | {"growth_bytes": None, "seconds": SECONDS, "within_limit": False}
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    row |= {**found, "of_file": found["growth_bytes"] / file_bytes, "of_content": found["growth_bytes"] / base}
    return row | {"within_limit": found["growth_bytes"] <= 2 * base + SPARE_BYTES}


def line_of(row: dict[str, Any]) -> str:
    """Return a row of the record as text."""
    size = f"{row['reader']}: {max(row['file_bytes'], row['content_bytes']) / 1e6:.0f} MB"
    if row["growth_bytes"] is None:
        return f"{size}, not read after {SECONDS} s"
    state = "" if row["within_limit"] else "  more than twice the size plus 100 MB"
    refused = "" if row["refused"] is None else "  refused"
    return f"{size}, peak {row['growth_bytes'] / 1e6:+.0f} MB, {row['of_content']:.2f} times the content{refused}{state}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64, help="size of the files [default: 64]")
    names = "comma-separated names of readers [default: all]"
    parser.add_argument("--readers", type=names_in(LARGE), default=list(LARGE), metavar="NAMES", help=names)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--one", nargs=3, metavar=("READER", "LARGE", "SMALL"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        name, large, small = options.one
        print(json.dumps(measure(name, Path(large), Path(small))))
        return
    found = []
    for name in options.readers:
        row = measured(name, options.megabytes * 10**6)
        found.append(row)
        print(line_of(row), flush=True)
    if options.out:
        write_json(options.out, {**about(), "rows": found})
    if not all(row["within_limit"] for row in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
