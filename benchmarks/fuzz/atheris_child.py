"""Fuzz one reader with Atheris, in a process of its own, which libFuzzer ends: see atheris_targets.py.

python -m benchmarks.fuzz.atheris_child READER FOLDER [FLAGS OF LIBFUZZER]; the corpus is FOLDER/corpus, and the findings are
written to FOLDER/findings. In an input of the fuzzer, byte 0 selects the sample, byte 1 the file to
replace, and the rest is the new content of this file.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

# Packages whose Python code is instrumented when they are imported. Atheris cannot select a part of a package. PyTorch is
# imported without it, because this would take minutes.
INSTRUMENTED = ["fastmlp", "numpy", "PIL", "tomllib", "zipfile", "gzip", "csv", "json"]

with atheris.instrument_imports(include=INSTRUMENTED):
    import tomllib  # noqa: F401

    import numpy  # noqa: F401

with contextlib.suppress(ImportError):
    import torchvision  # noqa: F401

with atheris.instrument_imports(include=INSTRUMENTED):
    from benchmarks.fuzz.mutants import mutated
    from benchmarks.fuzz.mutators import Random
    from benchmarks.fuzz.outcomes import FINDINGS, check, size_of, write_sample
    from benchmarks.fuzz.readers import READERS
    from benchmarks.fuzz.samples import Sample
    from fastmlp.files import write_json

    target = READERS[sys.argv[1]].target()
    folder = Path(sys.argv[2])
    for warm in target.samples:  # imports the packages that the reader needs
        check(target, write_sample(warm, folder / "sample"), size_of(warm))

names = [sorted(sample.files) for sample in target.samples]
seen: set[tuple[str, str, str]] = set()


def unpacked(data: bytes) -> tuple[int, str, bytes]:
    """Return the number of the sample, the name of the file, and its content."""
    number = data[0] % len(names) if data else 0
    inner = names[number]
    return number, inner[data[1] % len(inner) if len(data) > 1 else 0], data[2:]


def sample_of(data: bytes) -> Sample:
    number, name, content = unpacked(data)
    sample = target.samples[number]
    return Sample(sample.target, {**sample.files, name: content})


def test(data: bytes) -> None:
    """Read an input; write the first one with each finding to the folder of findings."""
    sample = sample_of(data)
    outcome = check(target, write_sample(sample, folder / "mutant"), size_of(sample), None)
    if outcome.kind in FINDINGS and outcome.key not in seen:
        seen.add(outcome.key)
        (folder / "findings" / f"{len(seen)}.bin").write_bytes(data)
        write_json(folder / "findings" / f"{len(seen)}.json", outcome._asdict())


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """Return a mutant from libFuzzer, or from the mutators of the format."""
    rng = Random(seed)
    if rng.random() < 0.5:
        return atheris.Mutate(data, longest)
    content = mutated(data[2:], unpacked(data)[1], target.samples, rng)
    return (data[:2] + content)[:longest]


def main() -> None:
    """Write the samples as the first corpus, and start libFuzzer, which ends the process."""
    corpus = folder / "corpus"
    for path in (corpus, folder / "findings"):
        path.mkdir(exist_ok=True)
    for number, sample in enumerate(target.samples):
        for inner, name in enumerate(names[number]):
            (corpus / f"{number}-{inner}").write_bytes(bytes([number, inner]) + sample.files[name])
    atheris.Setup([sys.argv[0], *sys.argv[3:], str(corpus)], test, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
