"""The folder of findings: files that were not read and not refused as they should. All of them are read again by a test.

findings/index.json has an entry per finding: its file or folder, the reader, the name that the file had, and what happened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.fuzz.campaign import Finding
from benchmarks.fuzz.samples import Sample
from fastmlp.files import read_json, write_bytes, write_json

FOLDER = Path(__file__).with_name("findings")
INDEX = "index.json"
LONGEST_MESSAGE = 200  # characters of a message in the index


def read_index(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return the entries of the index of a folder of findings."""
    return list(read_json(folder / INDEX)) if (folder / INDEX).exists() else []


def sha_of(sample: Sample) -> str:
    """Return the first eight digits of the hash of the files of a sample."""
    total = hashlib.sha256()
    for name, data in sorted(sample.files.items()):
        total.update(f"{name} {len(data)} ".encode() + data)
    return total.hexdigest()[:8]


def save(finding: Finding, sample: Sample, folder: Path = FOLDER) -> str:
    """Write the mutant of a finding, add it to the index, and return the name of its file or folder."""
    suffixes = "".join(PurePosixPath(sample.target).suffixes)
    name = f"{finding.reader}-{sha_of(sample)}{suffixes}"
    is_file = [*sample.files] == [sample.target]
    for inner, data in sample.files.items():
        path = folder / name if is_file else folder / name / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    kind, error, frame = finding.outcome.key
    message = finding.outcome.message[:LONGEST_MESSAGE].encode("ascii", "backslashreplace").decode()
    entry = {"file": name, "reader": finding.reader, "target": sample.target, "finding": kind, "error": error, "frame": frame}
    entries = [one for one in read_index(folder) if one["file"] != name]
    write_json(folder / INDEX, sorted([*entries, entry | {"message": message}], key=lambda one: str(one["file"])))
    return name


def stored(entry: Mapping[str, Any], folder: Path = FOLDER) -> Sample:
    """Return the sample of an entry of the index."""
    path = folder / entry["file"]
    if path.is_file():
        return Sample(entry["target"], {entry["target"]: path.read_bytes()})
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return Sample(entry["target"], {one.relative_to(path).as_posix(): one.read_bytes() for one in files})
