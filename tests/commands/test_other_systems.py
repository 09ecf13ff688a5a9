"""Training works without POSIX functions, as on Windows. The test deletes them before it imports fastmlp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.full  # starts processes, which is slow

WITHOUT = """
import mmap, os, signal, sys
import numba, numpy, platformdirs  # imported first, because they may need the functions
for owner, names in {
    os: "fork geteuid getuid getloadavg O_BINARY O_DIRECTORY register_at_fork sched_getaffinity sched_yield sysconf".split(),
    signal: "SIGTERM SIGKILL SIGALRM pthread_sigmask".split(),
    mmap: [name for name in dir(mmap) if name.startswith("MADV_")],
}.items():
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)

class Mapped(mmap.mmap):
    @property
    def madvise(self):
        raise AttributeError("madvise")

mmap.mmap = Mapped
sys.modules["fcntl"] = None  # its import raises ImportError
from fastmlp.commands import main
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"{WITHOUT}\nsys.argv = ['fastmlp', *sys.argv[1:]]\nmain()"
    variables = os.environ | {"FASTMLP_CACHE_DIR": str(folder / "kernels"), "PYTHONPATH": str(ROOT)}  # own cache
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_plain_training(tmp_path: Path, backend: str) -> None:
    done = run(tmp_path, "train", "--backend", backend, "--epochs", "2", "--threads", "2", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n") == 2
    assert run(tmp_path, "evaluate", "run", "--json").returncode == 0
