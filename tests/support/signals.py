"""Runs that get SIGINT or SIGTERM at a chosen moment, and checks of how they end and of the files that they leave."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.durability.trials import read_file
from fastmlp.engines.chunks import ChunkSize
from fastmlp.engines.interrupts import Signals
from fastmlp.engines.kernel_cache import DIGEST_BYTES
from fastmlp.engines.numpy_engine import NumpyEngine
from support.processes import ROOT

PROGRAM = "from fastmlp.commands import main; main()"
MESSAGE = b"fastmlp: interrupted\n"
PATIENCE = 60  # timeout in seconds; a process usually ends within a fraction of a second


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    stdout: bytes
    stderr: bytes


class Program:
    """A running `fastmlp` command, or another Python program, in its own process group.

    arguments : arguments of the command
    code : program to run instead of `PROGRAM`, with the same arguments
    variables : additional environment variables
    more : other arguments of `subprocess.Popen`
    """

    def __init__(self, *arguments: str | Path, code: str = PROGRAM, variables: Mapping[str, str] = {}, **more: Any) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path} | variables
        command = [sys.executable, "-c", code, *map(str, arguments)]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)

    def wait_for_child(self) -> None:
        """Return when the process has a child process, such as the one that compiles a kernel (Linux)."""
        children, deadline = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children"), time.monotonic() + PATIENCE
        while not children.read_text():
            assert time.monotonic() < deadline, "the process has no child"
            time.sleep(0.005)

    def end(self, *numbers: int, group: bool = False) -> Ended:
        """Send signals, to the whole process group if `group`, and wait for the end of the process and of its children."""
        for number in numbers:
            if group and self.process.poll() is None:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)  # does nothing if the process has ended
        try:
            stdout, stderr = self.process.communicate(timeout=PATIENCE)  # returns when no process has the pipes open
        finally:
            self.process.kill()  # in case the signal did not end it
        return Ended(self.process.returncode, stdout or b"", stderr or b"")


@contextmanager
def interrupted(rows: int, patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Send SIGINT to this process when the NumPy engine trains on row number `rows`; yield the numbers of rows per call."""
    called: list[int] = []
    handled = threading.Event()
    with patch.context() as inner:
        train, note = NumpyEngine.train, Signals._note

        def record(signals: Signals, *given: Any) -> None:
            note(signals, *given)
            handled.set()

        def count(engine: NumpyEngine, x: Any, y: Any, indices: Any, *given: Any) -> Any:
            if sum(called) < rows <= sum(called) + len(indices):
                signal.raise_signal(signal.SIGINT)
                assert handled.wait(60)  # the main thread handles signals
            called.append(len(indices))
            return train(engine, x, y, indices, *given)

        inner.setattr(NumpyEngine, "train", count)
        inner.setattr(Signals, "_note", record)
        inner.setattr(ChunkSize, "record", lambda chunk, rows, seconds: None)  # several calls per epoch
        yield called


def check_ended(ended: Ended, number: int) -> None:
    """Check the exit code of a command that was run with --quiet, and that it wrote at most one line to stderr."""
    assert ended.code == 128 + number, (ended, signal.Signals(number))
    assert ended.stderr in (b"", MESSAGE), ended


def check_files(folder: Path) -> None:
    """Check the files in a folder and its subfolders: all are complete, none is temporary, and no subfolder is empty.

    The folder is a kernel cache, or contains run folders.
    """
    for path in folder.rglob("*"):
        assert path.suffix not in (".tmp", ".part"), path
        if path.is_file():
            check_file(path)
        else:
            assert any(path.iterdir()), f"{path} is empty"


def check_file(path: Path) -> None:
    """Read a file of a run folder or of a kernel cache."""
    if path.suffix == ".kernel":
        data = path.read_bytes()
        assert hashlib.sha256(data[DIGEST_BYTES:]).digest() == data[:DIGEST_BYTES], path
    else:
        read_file(path, torn_logs=False)
    if path.suffix == ".jsonl":
        assert path.read_bytes().endswith(b"\n"), path
    elif path.suffix == ".txt":
        assert path.name == "report.txt", path
        assert path.read_text().strip()
