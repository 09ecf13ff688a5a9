"""The mutants of the samples of a reader: the mutators of each file by its name, and changes of folders."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from benchmarks.fuzz.archives import ZIP, gzip_inner, mutate_gzip
from benchmarks.fuzz.documents import CSV, JSON, LINES, TOML
from benchmarks.fuzz.mutators import BYTES, LONGEST, TEXT, Mutator, Random, apply, splice
from benchmarks.fuzz.npy import NPY
from benchmarks.fuzz.pickles import PICKLE
from benchmarks.fuzz.pictures import JPEG, PNG, PNM, TIFF, WEBP
from benchmarks.fuzz.samples import Sample
from benchmarks.fuzz.tensors import IDX, MODEL, PARQUET, SAFETENSORS

# The mutators of a file; the first pattern that matches its name decides.
FORMATS: dict[str, Sequence[Mutator]] = {
    "*.csv.gz": (*[gzip_inner(CSV)] * 3, mutate_gzip, mutate_gzip, *BYTES),
    "*ubyte.gz": (*[gzip_inner(IDX)] * 3, mutate_gzip, mutate_gzip, *BYTES),
    "*.gz": (*[gzip_inner(IDX)] * 3, mutate_gzip, mutate_gzip, *BYTES),
    "*.csv": CSV,
    "*.parquet": PARQUET,
    "*.npz": ZIP,
    "*.npy": NPY,
    "*.pt": (*ZIP, *PICKLE[:2]),
    "*.pth": ZIP,
    "model.safetensors": MODEL,
    "step-*.safetensors": MODEL,
    "*.safetensors": SAFETENSORS,
    "*idx*": IDX,
    "*.txt": TEXT,
    "*.toml": TOML,
    "*.json": JSON,
    "*.jsonl": LINES,
    "*.png": PNG,
    "*.jpg": JPEG,
    "*.tif": TIFF,
    "*.webp": WEBP,
    "*.pgm": PNM,
    "*": BYTES,
}
MANIFEST = "data/manifest.json"


def mutators_of(name: str) -> Sequence[Mutator]:
    """Return the mutators of a file."""
    return next(found for pattern, found in FORMATS.items() if fnmatch.fnmatchcase(PurePosixPath(name).name, pattern))


def mutant(samples: Sequence[Sample], seed: int, reader: str, index: int) -> Sample:
    """Return the mutant with a number; it is a function of the arguments."""
    rng = Random(f"{seed} {reader} {index}")
    sample = rng.choice(samples)
    files = dict(sample.files)
    name = rng.choice(sorted(files))
    if len(files) > 1 and rng.random() < 0.1:
        change_folder(files, name, rng)
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            files[name] = mutated(files[name], name, samples, rng)
    if MANIFEST in files and name != MANIFEST and rng.random() < 0.8:
        correct_manifest(files)
    return Sample(sample.target, files)


def mutated(data: bytes, name: str, samples: Sequence[Sample], rng: Random) -> bytes:
    """Return a mutant of the bytes of a file; `samples` have the files with which it may be spliced."""
    if rng.random() < 0.03:
        others = [other for sample in samples for key, other in sample.files.items() if key == name]
        return splice(data, rng.choice(others or [data]), rng)[:LONGEST]
    return apply(BYTES if rng.random() < 0.15 else mutators_of(name), data, rng)


def change_folder(files: dict[str, bytes], name: str, rng: Random) -> None:
    """Remove, rename, empty or exchange files of a folder."""
    kind, other = rng.randrange(4), rng.choice(sorted(files))
    if kind == 0:
        del files[name]
    elif kind == 1:
        path = PurePosixPath(name)
        renamed = (
            f"{name}.gz",
            str(path.with_suffix(".txt")),
            str(path.with_name(f".{path.name}")),
            str(path.with_name("a b")),
        )
        files[rng.choice((*renamed, str(path.parent / "more" / path.name)))] = files.pop(name)
    elif kind == 2:
        files[name] = b""
    else:
        files[name], files[other] = files[other], files[name]


def correct_manifest(files: dict[str, bytes]) -> None:
    """Set the hashes in the manifest of a run to those of its files, so that the mutants are parsed."""
    import hashlib

    try:
        manifest = json.loads(files[MANIFEST])
        for key in manifest["sha256"]:
            if f"data/{key}" in files:
                manifest["sha256"][key] = hashlib.sha256(files[f"data/{key}"]).hexdigest()
        files[MANIFEST] = json.dumps(manifest).encode()
    except (ValueError, KeyError, TypeError):  # the manifest itself was mutated
        return
