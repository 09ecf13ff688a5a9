"""Tests of the GPU check without its stages: failing stage processes, packed files, the sanitizer, and the tables."""

from __future__ import annotations

import gzip
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import carry, sanitizer, tests_on_device
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu.check import Check, faults
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.kernels import RECORD, KernelRequest, read_record, record_text
from benchmarks.gpu.report import NONE_YET, gpu_table
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.stages import Stage
from fastmlp.bench.rounds import Disagreement
from fastmlp.data.download import present
from fastmlp.data.named import DATASETS
from fastmlp.engines.cuda.kernels.programs import KERNELS
from fastmlp.errors import FastMLPError, UnavailableError
from fastmlp.files import read_json

pytestmark = pytest.mark.full

# ------------------------------------------------------------------------------------------------ processes of stages


def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, seconds: float = 600.0) -> Any:
    """Run a check with a single stage, whose process runs the shell code `code`; return the result.

    In the shell code, "$5" is the path of the file for the findings.
    """
    run = gpu_check.run_in_process

    def run_code(name: str, out: Path, options: Any, limit: float) -> int | None:
        monkeypatch.setattr(sys, "executable", str(python))
        return run(name, out, options, limit)

    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{code}\n")
    python.chmod(0o755)
    monkeypatch.setattr(gpu_check, "run_in_process", run_code)
    found = Check(tmp_path / "gpu.json", seconds)
    found.run(Stage("planted", lambda *given: None, 0.5, 1.0), ())
    result = read_json(tmp_path / "gpu.json")
    assert result == found.result
    return result


FINDING = """printf '{"rows": [1], "errors": []}' > "$5"; """


@pytest.mark.parametrize(
    ("code", "state", "rows", "expected"),
    [
        (FINDING, "done", [1], []),
        ("exit 0", "done", [], []),
        (f"{FINDING} exit 1", "failed", [1], ["planted: process: exit status 1"]),
        (f"{FINDING} kill -9 $$", "failed", [1], ["planted: process: exit status -9"]),
        (f"{FINDING} sleep 600", "hung", [1], ["planted: hung"]),
        (f"{FINDING} (sleep 600); exit 0", "hung", [1], ["planted: hung"]),
        (f"{FINDING} sleep 600 & exit 0", "done", [1], []),
    ],
)
def test_a_failed_stage_keeps_its_findings(
    code: str, state: str, rows: list[int], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The findings that a stage wrote before it failed are kept, and child processes of the stage are killed."""
    found = checked(tmp_path, monkeypatch, code)
    assert [(stage["name"], stage["state"]) for stage in found["stages"]] == [("planted", state)]
    assert found["rows"] == rows
    assert faults(found) == expected


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("end", ["wait", "exit 0"])
def test_no_process_of_a_stage_is_left_running(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process remains after a stage that hangs or exits normally; a remaining process would keep using the GPU."""
    checked(tmp_path, monkeypatch, f"sleep 600 & echo $! > {tmp_path}/started; {end}")
    command = Path("/proc") / (tmp_path / "started").read_text().strip() / "cmdline"
    for _ in range(1000):
        if not command.exists() or not command.read_bytes():  # the command line of a zombie process is empty
            return
        time.sleep(0.01)
    pytest.fail("the child process is still running")


def test_a_stage_that_no_longer_fits_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checked(tmp_path, monkeypatch, "exit 1", seconds=0.5)
    assert found["stages"] == []
    assert [row["what"] for row in found["left_out"]] == ["planted"]


def test_compiled_kernels_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))
    (tmp_path / "kernels").mkdir(mode=0o700)
    found = checked(tmp_path, monkeypatch, f"touch {tmp_path}/kernels/new.cubin")
    assert faults(found) == ["planted: compiled 1 kernels"]


# ------------------------------------------------------------------------------------------------ tests on the device


def test_outcomes_of_tests_are_counted_with_their_exceptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run_tests` raises Disagreement only if all failed tests raised an AssertionError."""
    lines = ["import pytest", "pytestmark = pytest.mark.gpu", "def test_fine(): pass", "def test_off(): assert 1 == 2"]
    lines += ["@pytest.mark.skip(reason='no')", "def test_skipped(): pass", "def test_forked(): raise KeyError"]
    (tmp_path / "test_planted.py").write_text("\n".join(lines))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: on the device\n")
    monkeypatch.setattr(tests_on_device, "ROOT", tmp_path)
    monkeypatch.setattr(tests_on_device, "TESTS", ("test_planted.py",))
    monkeypatch.setenv("PYTHONPATH", str(gpu_check.ROOT))
    findings = Findings()
    with pytest.raises(Disagreement, match=r"1 passed; failures by type: \{'AssertionError': 1\}"):
        tests_on_device.run_tests(findings, Sizes(), None)
    found = findings.found["tests"]
    assert (found["passed"], found["skipped"], found["failed"]) == (1, 1, {"test_planted.py::test_off": "AssertionError"})
    monkeypatch.setattr(tests_on_device, "DESELECTED", {"nothing": "keep all tests"})
    with pytest.raises(FastMLPError, match="'KeyError': 1") as caught:
        tests_on_device.run_tests(findings, Sizes(), None)
    assert not isinstance(caught.value, Disagreement)


# ------------------------------------------------------------------------------------------------ packed files


def test_available_data_are_packed_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompressed data files are packed as .gz files, and a data set with a missing file is not packed."""
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path / "here"))
    for name, kept in (("fashion-mnist", 4), ("mnist", 3)):
        entry = DATASETS[name]
        folder = tmp_path / "here" / entry.folder
        folder.mkdir(parents=True)
        for number, file in enumerate(entry.files[:kept]):
            plain = number == 1
            path = folder / (file.name.removesuffix(".gz") if plain else file.name)
            path.write_bytes(b"plain" if plain else gzip.compress(b"packed"))
    assert carry.carry_data(tmp_path / "there") == ["fashion-mnist"]
    found = sorted((tmp_path / "there").rglob("*.gz"))
    assert [path.name for path in found] == sorted(file.name for file in DATASETS["fashion-mnist"].files)
    assert sorted(gzip.decompress(path.read_bytes()) for path in found) == [b"packed", b"packed", b"packed", b"plain"]
    assert all(present(path.parent, file) for path in found for file in DATASETS["fashion-mnist"].files)


def test_a_folder_that_is_too_large_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(carry, "carry_wheels", lambda folder: folder.mkdir())
    monkeypatch.setattr(carry, "carry_kernels", lambda file, requests, capability: file.write_bytes(b"x" * 1000))
    monkeypatch.setattr(carry, "repository_size", lambda: 10_000)
    monkeypatch.setattr("sys.argv", ["carry", str(tmp_path / "folder")])
    monkeypatch.setattr(carry, "LARGEST", 20_000)
    carry.main()
    assert read_json(tmp_path / "folder" / "about.json")["kernels"] == len(read_record())
    monkeypatch.setattr(carry, "LARGEST", 11_000)
    with pytest.raises(SystemExit, match="the total is more than 0 MiB"):
        carry.main()


def test_offline_no_wheels_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMLP_OFFLINE", "1")
    with pytest.raises(UnavailableError, match="FASTMLP_OFFLINE forbids"):
        carry.carry_wheels(tmp_path / "wheels")
    assert not (tmp_path / "wheels").exists()


def test_every_recorded_kernel_exists() -> None:
    """Every line of kernels.jsonl names an existing kernel, and no line occurs twice."""
    requests = read_record()
    assert len(set(requests)) == len(requests) == len(RECORD.read_text(encoding="utf-8").splitlines())
    for one in requests:
        assert one.name in KERNELS
        assert KernelRequest.of(one.name, one.kind, one.shape()) == one
    assert record_text(requests) == RECORD.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ the sanitizer


@pytest.mark.parametrize(("status", "fails"), [(0, False), (99, True), (1, True)])
def test_the_exit_status_of_the_sanitizer(status: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(f'#!/bin/sh\necho "$@"\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    findings = Findings()
    if fails:
        with pytest.raises(FastMLPError, match=f"memcheck: exit status {status}"):
            sanitizer.sanitize("memcheck", findings, Sizes(), None)
    else:
        sanitizer.sanitize("memcheck", findings, Sizes(), None)
    (row,) = findings.found["sanitizer"]
    assert row["status"] == status
    assert row["end_of_output"].startswith("--tool memcheck --error-exitcode 99 ")
    assert row["end_of_output"].rstrip().endswith("-m benchmarks.gpu.stages small")


def test_a_missing_sanitizer_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sanitizer, "SEARCH_PATHS", ())
    findings = Findings()
    sanitizer.sanitize("racecheck", findings, Sizes(), None)
    assert findings.found == {"left_out": [{"what": "racecheck", "reason": "compute-sanitizer is not installed"}]}


# ------------------------------------------------------------------------------------------------ tables


def engine_row(backend: str, threads: int | None, seconds: float, over: float | None, batch: int = 64) -> dict[str, Any]:
    spread = None if over is None else {"median": over, "least": over - 0.5, "most": over + 0.5}
    row = {"network": "9-6-3", "batch": batch, "backend": backend, "threads": threads}
    return row | {"seconds_per_epoch": seconds, "over_cuda": spread}


RESULT: dict[str, Any] = {
    "settings": {"rows": 48000, "rounds": 3, "device_rounds": 7},
    "device": {"card": "A card", "capability": "9.0", "multiprocessors": 132, "cuda": "13.0"},
    "machine": {"cores": 16, "processor": "a processor", "date": "2000-01-01"},
    "versions": {"python": "3.12.3", "numpy": "2.5.2", "numba": None, "torch": "2.11.0"},
    "stages": [{"name": "row: 9-6-3, batch 64", "state": "done"}, {"name": "bits", "state": "hung"}],
    "rows": [
        engine_row("cuda", None, 0.006, 1.0),
        engine_row("numba", 1, 0.2, 33.0),
        engine_row("numba", 16, 0.03, 5.0),
        engine_row("numpy", 16, 0.4, 66.0),
        engine_row("numba", 1, 0.1, None, batch=128),
    ],
}


def test_the_table_of_engines_shows_the_results() -> None:
    assert gpu_table(None) == NONE_YET
    head, ruler, first, second, empty, note = gpu_table(RESULT).splitlines()
    assert head == "| network, batch | NumPy | Numba, 1 thread | Numba, 16 threads | CUDA | fastest CPU / CUDA (range) |"
    assert ruler == "| --- " * 6 + "|"
    assert first == "| 9-6-3, 64 | 400.00 | 200.00 | 30.00 | 6.00 | 5.00 (4.50 to 5.50) |"
    assert second == "| 9-6-3, 128 | – | 100.00 | – | – | – |"
    assert empty == ""
    assert note.startswith(
        "A card (compute capability 9.0, 132 multiprocessors, CUDA 13.0) and 16 cores (a processor), 2000-01-01, "
    )
    assert "Python 3.12.3, numpy 2.5.2, torch 2.11.0; milliseconds per epoch of 48,000 rows" in note
    assert "median of 3 rounds (7 for 'CUDA alone')" in note
    assert note.endswith("one epoch of each engine per round. Stages that failed: bits.")


def test_the_tables_of_precisions_and_of_pytorch() -> None:
    variant = {"network": "9-6-3", "batch": 64, "device_microseconds_per_step": 7.96, "pixels": False}
    more = {
        "variants": [
            variant | {"optimizer": "sgd", "precision": "float32", "seconds_per_epoch": 0.006},
            variant | {"optimizer": "adam", "precision": "tf32", "seconds_per_epoch": 0.005},
        ],
        "contests": [
            engine_row("cuda", None, 0.006, 1.0),
            engine_row("torch eager", None, 0.16, 26.0),
            engine_row("torch CUDA graph", None, 0.024, 4.0),
        ],
        "accuracy": [
            {"recipe": "a recipe", "network": "9x3", "epochs": 15, "engine": "cuda", "seconds": 1.25, "test_accuracy": 0.861}
        ],
    }
    _, variants, contests, accuracy, _ = gpu_table(RESULT | more).split("\n\n")
    assert variants.splitlines()[2] == "| 9-6-3, 64 | 6.00 | 5.00 | 8.0 |"
    assert contests.splitlines()[0].split(" | ")[1:3] == ["PyTorch eager", "PyTorch, CUDA graph"]
    assert contests.splitlines()[2] == "| 9-6-3, 64 | 160.00 | 24.00 | 4.00 (3.50 to 4.50) |"
    assert accuracy == "15 epochs of 9x3 on MNIST (a recipe) by cuda: 1.2 s, test accuracy 86.10%."
