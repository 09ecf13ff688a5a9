"""Tests of the number of threads: it is limited by CPU affinity, quota and the amount of work, and is at least one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cpu import engine as cpu
from fastmlp.engines.cpu import threads as cpu_threads
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.threads import LEAST_FLOPS, LEAST_ROWS, MUCH_FLOPS, available_cores, worthwhile
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

AFFINITY = """
import os
from fastmlp.engines.cpu.threads import available_cores
cores = sorted(os.sched_getaffinity(0))
counts = [available_cores()]
for keep in (cores[:1], cores[-1:], cores[:2], cores):
    os.sched_setaffinity(0, keep)
    counts.append(available_cores() - len(set(keep)))
print(*counts)
"""


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not support CPU affinity")
def test_cores_are_those_of_the_affinity() -> None:
    if Path("/sys/fs/cgroup/cpu.max").exists() and not Path("/sys/fs/cgroup/cpu.max").read_text().startswith("max"):
        pytest.skip("the control group has a CPU quota, which may be lower than the affinity")
    root = ROOT
    done = subprocess.check_output([sys.executable, "-c", AFFINITY], cwd=root, text=True, timeout=60)
    total, *differences = map(int, done.split())
    assert total == len(os.sched_getaffinity(0)) >= 1
    assert differences == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("quota", "most"), [("max 100000", 10**6), ("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 1)]
)
def test_cores_are_within_the_quota(quota: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota + "\n")
    monkeypatch.setattr(cpu_threads, "Path", lambda _: file)
    without_quota = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert available_cores() == min(without_quota or 1, most)


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_threads_are_as_many_as_have_enough_to_do(threads: int) -> None:
    for count in range(1, threads + 1):
        rows, flops = LEAST_ROWS * count, LEAST_FLOPS * count
        assert worthwhile(threads, rows, flops) == count
        assert worthwhile(threads, 10**9, flops) == worthwhile(threads, rows, max(flops, MUCH_FLOPS * count - 1)) == count
        assert worthwhile(threads, rows - 1, flops) == worthwhile(threads, rows, flops - 1) == max(count - 1, 1)
        assert worthwhile(threads, 1, MUCH_FLOPS * count) == count
    assert worthwhile(threads, 0, 0) == 1
    assert worthwhile(threads, 10**9, 10**15) == threads


def test_an_engine_has_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network((3, 4, 2))
    for cores, asked, wanted in ((2, 5, 2), (2, 1, 1), (8, 5, 5), (3, None, min(3, available_cores()))):
        monkeypatch.setattr(cpu, "most_threads", lambda cores=cores: cores)
        assert NumbaEngine(EngineSpec(network, Optimizer("sgd"), threads=asked)).threads == wanted
