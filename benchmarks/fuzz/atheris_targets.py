"""Fuzz every reader with Atheris: python -m benchmarks.fuzz.atheris_targets [--seconds 600] [--readers NAMES] [--jobs 2]
[--out FILE.json] [--findings FOLDER]

In FILE.json, the rows of other readers are kept.

Atheris chooses inputs by the coverage of the Python code of fastmlp, NumPy, Pillow, tomllib and zipfile. Half of its
mutants are made by the mutators of the format. The findings are those of `python -m benchmarks.fuzz`. Each reader has a
process, which is started again with its corpus after a crash or a timeout. Atheris is part of the extra "fuzz".
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.arguments import names_in
from benchmarks.fuzz.__main__ import about
from benchmarks.fuzz.campaign import GRACE, SHARED, Finding
from benchmarks.fuzz.findings import FOLDER, save
from benchmarks.fuzz.outcomes import CRASH, HANG, MEMORY, SECONDS, Outcome, size_of
from benchmarks.fuzz.readers import READERS
from benchmarks.fuzz.samples import Sample
from fastmlp.files import read_json, write_json

MOST_MEGABYTES = 4096  # of resident memory, after which libFuzzer ends the process
LONGEST_INPUT = 16384  # bytes
PROGRESS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)")
EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
ARTIFACTS = {"crash-": CRASH, "timeout-": HANG, "oom-": MEMORY, "leak-": MEMORY}  # files that libFuzzer leaves


class Fuzzed(NamedTuple):
    """The result of fuzzing a reader: a row of the record, and the findings with their samples."""

    row: dict[str, Any]
    findings: list[tuple[Outcome, Sample]]


def sample_of(reader: str, data: bytes) -> Sample:
    """Return the sample of an input of the fuzzer; see atheris_child.py."""
    samples = READERS[reader].samples()
    sample = samples[data[0] % len(samples) if data else 0]
    names = sorted(sample.files)
    name = names[data[1] % len(names) if len(data) > 1 else 0]
    return Sample(sample.target, {**sample.files, name: data[2:]})


def findings_in(folder: Path) -> Iterator[tuple[Outcome, bytes]]:
    """Yield the findings of a process, and the inputs that ended one."""
    for path in sorted(folder.glob("findings/*.json")):
        yield Outcome(**read_json(path)), path.with_suffix(".bin").read_bytes()
    for path in sorted(folder.glob("artifacts/*")):
        kind = next((kind for start, kind in ARTIFACTS.items() if path.name.startswith(start)), None)
        if kind is not None:
            yield Outcome(kind, "the process had to be ended"), path.read_bytes()


def fuzz(reader: str, seconds: float) -> Fuzzed:
    """Fuzz a reader, and start its process again when an input has ended it."""
    with tempfile.TemporaryDirectory(prefix="fastmlp-atheris-", dir=SHARED if SHARED.is_dir() else None) as place:
        folder, log = Path(place), Path(place, "log.txt")
        (folder / "artifacts").mkdir()
        started, starts = time.monotonic(), 0
        while (left := int(seconds - (time.monotonic() - started))) > 0:
            command = [sys.executable, "-m", "benchmarks.fuzz.atheris_child", reader, place, f"-max_total_time={left}"]
            command += ["-print_final_stats=1", f"-rss_limit_mb={MOST_MEGABYTES}", f"-timeout={int(SECONDS + GRACE)}"]
            command += [f"-max_len={LONGEST_INPUT}", f"-artifact_prefix={folder / 'artifacts'}/", "-verbosity=1"]
            with log.open("ab") as stream:
                subprocess.run(command, stdout=stream, stderr=stream, check=False, timeout=left + 300)
            starts += 1
        text = log.read_text("utf-8", "replace")
        seen = PROGRESS.findall(text)
        if not seen:
            raise RuntimeError(f"{reader}: the fuzzer did not run: {text[-2000:]}")
        _, coverage, features, corpus = map(int, seen[-1])
        row: dict[str, Any] = {"reader": reader, "seconds": time.monotonic() - started, "starts": starts}
        row |= {"executions": executions(text), "coverage": coverage, "features": features, "corpus": corpus}
        unique = {outcome.key: (outcome, sample_of(reader, data)) for outcome, data in findings_in(folder)}
    return Fuzzed(row | {"findings": len(unique)}, list(unique.values()))


def executions(log: str) -> int:
    """Return the number of inputs of all starts, each of which prints a total at its end, or a progress before a crash."""
    parts = log.split("INFO: Running with entropic")[1:]
    return sum(int((EXECUTED.findall(part) or [found[0] for found in PROGRESS.findall(part)] or ["0"])[-1]) for part in parts)


def kept(file: Path | None, readers: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of an existing record, without those of the given readers, which are fuzzed again."""
    if file is None or not file.exists():
        return []
    return [row for row in read_json(file)["readers"] if row["reader"] not in readers]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="duration per reader")
    names = "comma-separated names of readers [default: all]"
    parser.add_argument("--readers", type=names_in(READERS), default=list(READERS), metavar="NAMES", help=names)
    parser.add_argument("--jobs", type=int, default=2, help="number of readers that are fuzzed at a time")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--findings", type=Path, default=FOLDER, help="folder for the inputs that trigger findings")
    options = parser.parse_args(arguments)
    rows, found = kept(options.out, options.readers), []
    with ThreadPoolExecutor(options.jobs) as pool:
        for result in pool.map(lambda reader: fuzz(reader, options.seconds), options.readers):
            row = result.row | {"jobs": options.jobs, "date": time.strftime("%Y-%m-%d")}
            rows.append(row)
            print(f"{row['reader']}: {row['executions']:,} executions, {row['features']:,} features", flush=True)
            for outcome, sample in result.findings:
                file = save(Finding(row["reader"], -1, outcome, size_of(sample), 1), sample, options.findings)
                kind, error, frame = outcome.key
                found.append({"reader": row["reader"], "finding": kind, "error": error, "frame": frame, "file": file})
                print(f"{row['reader']}: {kind} {error} {frame}: {file}", flush=True)
            if options.out:
                write_json(options.out, {**about(), "seconds_per_reader": options.seconds, "readers": rows, "findings": found})
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
