"""A small version of the campaigns of benchmarks.fuzz, which also shows that they detect each kind of finding."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import fuzz as faulty

from benchmarks.durability import __main__ as durability
from benchmarks.fuzz import __main__ as command
from benchmarks.fuzz import atheris_targets, bitflips, memory, mutants
from benchmarks.fuzz.atheris_targets import executions, fuzz
from benchmarks.fuzz.campaign import Batch, Finding, Task, campaign, merge
from benchmarks.fuzz.findings import read_index, save, stored
from benchmarks.fuzz.mutants import mutant
from benchmarks.fuzz.mutators import ERRORS, Random
from benchmarks.fuzz.outcomes import (
    CRASH,
    EXCEPTION,
    FINDINGS,
    HANG,
    MEMORY,
    MESSAGE,
    OUTPUT,
    READ,
    REFUSED,
    WARNING,
    WRITES,
    Outcome,
    Target,
    check,
    size_of,
    write_sample,
)
from benchmarks.fuzz.readers import READERS, Reader
from benchmarks.fuzz.samples import Sample, folder, single
from fastmlp.errors import DataError
from fastmlp.files import read_json

MUTANTS = 30  # of each reader
CHECKPOINT_FLIPS = 17  # one of so many flips of a checkpoint is tested
SAMPLES = [single("a.bin", b"0123456789abcdef")]


def target(read: Callable[[Path], Any]) -> Target:
    return Target(read.__name__, read, SAMPLES)


def checked(reader: Reader, sample: Sample, place: Path) -> Outcome:
    path = write_sample(sample, place / "mutant")
    with redirected(place / "output.txt") as output:
        return check(reader.target(), path, size_of(sample), output=output)


@contextmanager
def redirected(path: Path) -> Iterator[int]:
    """Redirect the standard streams of the process to a file, and yield its descriptor."""
    kept = [os.dup(stream) for stream in (1, 2)]
    output = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        for stream in (1, 2):
            os.dup2(output, stream)
        yield output
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
        for descriptor in (*kept, output):
            os.close(descriptor)


# ------------------------------------------------------------------------------------------------ readers of fastmlp


@pytest.fixture(scope="module", params=READERS.values(), ids=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    found: Reader = request.param
    if found.needs_torch:
        pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    return found


def test_samples_are_read(reader: Reader, tmp_path: Path) -> None:
    for sample in reader.samples():
        checked(reader, sample, tmp_path)  # imports packages, whose memory does not count
        outcome = checked(reader, sample, tmp_path)
        assert outcome.kind == READ, outcome


def test_mutants_are_read_or_refused(reader: Reader, tmp_path: Path) -> None:
    samples = reader.samples()
    for sample in samples:  # imports packages, whose memory does not count
        checked(reader, sample, tmp_path)
    found = {index: checked(reader, mutant(samples, 0, reader.name, index), tmp_path) for index in range(MUTANTS)}
    assert {index: one for index, one in found.items() if one.kind in FINDINGS} == {}


@pytest.mark.parametrize("entry", read_index(), ids=lambda entry: entry["file"])
def test_findings_are_fixed(entry: dict[str, Any], tmp_path: Path) -> None:
    reader = READERS[entry["reader"]]
    if reader.needs_torch:
        pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    checked(reader, reader.samples()[0], tmp_path)
    outcome = checked(reader, stored(entry), tmp_path)
    assert outcome.kind in (READ, REFUSED), outcome


@pytest.mark.parametrize("name", bitflips.files())
def test_flipped_bits_are_detected(name: str, tmp_path: Path) -> None:
    data, read = bitflips.files()[name]
    every = CHECKPOINT_FLIPS if name.startswith("step") else 1
    flips = [(number // 8, number % 8) for number in range(0, 8 * len(data), every)]
    found = bitflips.flip(tmp_path / name, data, read, flips)
    assert (found.undetected, found.other) == ([], [])
    assert found.detected + len(found.harmless) == len(flips)


def test_flips_that_are_not_detected_are_reported(tmp_path: Path) -> None:
    """A reader that does not check the hash; the last bytes are weights, and the first byte is the length of the header."""
    data, _ = bitflips.files()["model.safetensors"]
    found = bitflips.flip(tmp_path / "model.safetensors", data, bitflips.content, [(len(data) - 1, 0), (0, 0)])
    assert (found.undetected, found.detected) == ([(len(data) - 1, 0)], 1)

    def raises(path: Path) -> None:
        if path.read_bytes() != data:
            raise KeyError("x")

    found = bitflips.flip(tmp_path / "model.safetensors", data, raises, [(0, 1)])
    assert found.other == ["model.safetensors: byte 0, bit 1: KeyError: 'x'"]


# ------------------------------------------------------------------------------------------------ mutants


def test_a_mutant_is_a_function_of_its_number() -> None:
    samples = READERS["csv"].samples()
    found = [mutant(samples, 0, "csv", index) for index in range(50)]
    assert found == [mutant(samples, 0, "csv", index) for index in range(50)]
    assert found != [mutant(samples, 1, "csv", index) for index in range(50)]
    assert sum(one in samples for one in found) < 5


@pytest.mark.parametrize("pattern", mutants.FORMATS)
def test_mutators_parse_the_samples(pattern: str) -> None:
    """Each mutator of a format must change a sample itself. `apply` would hide a mutator that always fails."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    files = {data for reader in READERS.values() for one in reader.samples() for name, data in one.files.items()
             if mutants.mutators_of(name) is mutants.FORMATS[pattern]}  # fmt: skip
    assert files
    for mutate in set(mutants.FORMATS[pattern]):
        assert any(changes(mutate, data, Random(seed)) for data in files for seed in range(20)), mutate


def changes(mutate: Callable[[bytes, Random], bytes], data: bytes, rng: Random) -> bool:
    try:
        return mutate(data, rng) != data
    except ERRORS:
        return False


# ------------------------------------------------------------------------------------------------ detection of findings

FAULTS: dict[Callable[[Path], Any], tuple[str, str]] = {
    faulty.read: (READ, ""),
    faulty.refuse: (REFUSED, "DataError"),
    faulty.raise_key_error: (EXCEPTION, "KeyError"),
    faulty.panic: (EXCEPTION, "Panic"),
    faulty.leave: (EXCEPTION, "SystemExit"),
    faulty.refuse_on_two_lines: (MESSAGE, "several lines"),
    faulty.refuse_at_length: (MESSAGE, "longer than 600 characters"),
    faulty.refuse_without_name: (MESSAGE, "does not name the file"),
    faulty.sleep: (HANG, ""),
    faulty.allocate: (MEMORY, ""),
    faulty.write_file: (WRITES, "open copy for writing"),
    faulty.remove_file: (WRITES, "os.remove"),
    faulty.warn: (WARNING, "DeprecationWarning"),
}


@pytest.mark.parametrize("read", FAULTS, ids=lambda read: read.__name__)
def test_faults_are_detected(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = write_sample(SAMPLES[0], tmp_path / "sample")
    outcome = check(target(read), path, 16, seconds=0.3 if read is faulty.sleep else 10)
    assert (outcome.kind, outcome.error) == FAULTS[read]


def test_output_is_detected(tmp_path: Path) -> None:
    path = write_sample(SAMPLES[0], tmp_path / "sample")
    with redirected(tmp_path / "output.txt") as output:
        outcome = check(target(faulty.print_text), path, 16, output=output)
    assert (outcome.kind, outcome.error) == (OUTPUT, "libfoo")


def test_the_frame_of_an_exception_is_its_innermost(tmp_path: Path) -> None:
    path = write_sample(SAMPLES[0], tmp_path / "sample")
    assert check(target(faulty.raise_key_error), path, 16).frame == "support/fuzz.py:raise_key_error"


@pytest.mark.full
def test_faults_that_end_a_process_are_detected() -> None:
    """A crash, a hang that holds the lock of the interpreter, and output; the mutants of other readers are not affected."""
    reads = (faulty.read_null, faulty.hold_lock, faulty.print_text, faulty.read)
    readers = [Reader(read.__name__, lambda: SAMPLES, ReadUnlessSample(read)) for read in reads]
    batches = list(campaign(readers, 3, seed=0, jobs=2, seconds=0.5))
    counts: dict[str, Counter[str]] = {reader.name: Counter() for reader in readers}
    for batch in batches:
        counts[batch.task.reader] += batch.counts
    assert counts == {"read_null": {CRASH: 3}, "hold_lock": {HANG: 3}, "print_text": {OUTPUT: 3}, "read": {READ: 3}}
    found = {(batch.task.reader, outcome.error, outcome.frame) for batch in batches for _, outcome in batch.findings}
    assert found >= {
        ("read_null", "SIGSEGV", "ctypes/__init__.py:string_at"),
        ("hold_lock", "the worker had to be ended", "support/fuzz.py:hold_lock"),
    }


class ReadUnlessSample:
    """Call a reader for mutants only: the samples, which a worker reads first, must not end it."""

    def __init__(self, read: Callable[[Path], Any]) -> None:
        self.read = read

    def __call__(self, path: Path) -> Any:
        return None if path.read_bytes() == SAMPLES[0].files["a.bin"] else self.read(path)


# ------------------------------------------------------------------------------------------------ findings and records


def test_the_smallest_mutant_of_a_finding_is_kept() -> None:
    findings: dict[Any, Finding] = {}
    one, other = Outcome(EXCEPTION, "KeyError", "a.py:f", "x"), Outcome(EXCEPTION, "KeyError", "a.py:g")
    for index, outcome in ((0, one), (1, one), (2, other), (3, one._replace(message="y"))):
        batch = Batch(Task("csv", index, index + 1), Counter(), [(index, outcome)], 0.0, 0.0, 0)
        merge(findings, batch, lambda reader, index: {0: 9, 1: 5, 2: 7, 3: 5}[index])
    assert [(one.index, one.count) for one in findings.values()] == [(1, 3), (2, 1)]


@pytest.mark.parametrize(
    "sample", [single("a.csv.gz", b"x"), folder({"x.npy": b"1", "more/y.npy": b"2"})], ids=["file", "folder"]
)
def test_findings_are_stored(sample: Sample, tmp_path: Path) -> None:
    finding = Finding("csv", 3, Outcome(EXCEPTION, "KeyError", "a.py:f", "\udc80" * 300), 1, 2)
    name = save(finding, sample, tmp_path)
    assert save(finding, sample, tmp_path) == name
    (entry,) = read_index(tmp_path)
    assert (entry["file"], entry["reader"], entry["finding"], entry["frame"]) == (name, "csv", EXCEPTION, "a.py:f")
    assert stored(entry, tmp_path) == sample
    assert name.endswith(".csv.gz") == (sample.target == "a.csv.gz")


def test_the_record_and_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = (7, Outcome(EXCEPTION, "KeyError", "a.py:f"))
    findings: list[tuple[int, Outcome]] = []

    def batches(readers: Any, mutants: int, seed: int, jobs: int) -> Iterator[Batch]:
        counts = Counter({READ: mutants - len(findings), EXCEPTION: len(findings)})
        yield Batch(Task("csv", 0, mutants), +counts, findings, 1.0, 0.5, 10)

    monkeypatch.setattr(command, "campaign", batches)
    out, kept = tmp_path / "fuzz.json", tmp_path / "findings"
    arguments = ["--readers", "csv", "--mutants", "20", "--out", str(out), "--findings", str(kept)]
    command.main(arguments)
    assert read_json(out)["readers"]["csv"].items() >= {"mutants": 20, "read": 20, "slowest_seconds": 0.5}.items()
    assert not kept.exists()
    findings.append(finding)
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 1
    record = read_json(out)
    assert record.keys() >= {"machine", "versions", "commit", "seed", "seconds", "mutants_per_cpu_second"}
    assert record["readers"]["csv"][EXCEPTION] == 1
    assert [one["file"] for one in record["findings"]] == [one["file"] for one in read_index(kept)]
    assert "csv: exception KeyError a.py:f (1 times)" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ memory and Atheris


@pytest.mark.parametrize(
    ("main", "option"),
    [
        (command.main, "--readers"),
        (memory.main, "--readers"),
        (atheris_targets.main, "--readers"),
        (durability.main, "--parts"),
    ],
)
def test_unknown_names_are_usage_errors(main: Callable[[list[str]], None], option: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main([option, "nosuch"])
    assert caught.value.code == 2
    assert f"argument {option}: unknown name 'nosuch'; valid: " in capsys.readouterr().err


@pytest.mark.full
def test_memory_is_measured_in_a_fresh_process(tmp_path: Path) -> None:
    row = memory.measured("npz", 10**7)
    assert row["within_limit"]
    assert 0.5 < row["of_content"] < 12
    assert row["file_bytes"] < row["content_bytes"]


def test_memory_beyond_the_limit_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"reader": "npz", "file_bytes": 10, "content_bytes": 10, "growth_bytes": 10**9, "of_content": 1e8, "refused": None}
    monkeypatch.setattr(memory, "measured", lambda name, size: row | {"within_limit": False})
    with pytest.raises(SystemExit):
        memory.main(["--readers", "npz", "--out", str(tmp_path / "memory.json")])
    assert read_json(tmp_path / "memory.json")["rows"][0]["reader"] == "npz"


def test_a_refused_large_file_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("small", "large"):
        (tmp_path / name).write_bytes(b"x")

    def read(path: Path) -> None:
        if path.name == "large":
            raise DataError(f"{path}: too large")

    monkeypatch.setitem(memory.READERS, "npz", READERS["npz"]._replace(read=read))
    assert memory.measure("npz", tmp_path / "large", tmp_path / "small")["refused"].endswith("too large")


@pytest.mark.full
def test_a_reader_is_fuzzed_with_atheris() -> None:
    pytest.importorskip("atheris", reason="needs Atheris: pip install 'fastmlp[fuzz]'")
    assert fuzz("idx", 3).row["executions"] > 10


def test_executions_of_a_fuzzer_that_was_started_again() -> None:
    start, progress = "INFO: Running with entropic\n", "#70 REDUCE cov: 2 ft: 6 corp: 1/4b\n"
    done = "stat::number_of_executed_units: 50\n"
    assert executions(f"x\n{start}{progress}CRASH\n{start}{progress}{done}") == 120
