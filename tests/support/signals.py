"""Programs that get SIGINT or SIGTERM at a chosen moment, and checks of how they end and of the files that they leave."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fastmlp import load
from fastmlp.engines.kernel_cache import DIGEST_BYTES
from support.processes import ROOT

# Reports the first line of the program by closing a pipe, whose descriptor is the first argument.
PROGRAM = "import os, sys; os.close(int(sys.argv.pop(1))); from fastmlp.commands import main; main()"
MESSAGE = b"fastmlp: interrupted\n"
PATIENCE = 60  # timeout in seconds; a process usually ends within a fraction of a second


class Ended(NamedTuple):
    """How a process ended; `seconds` is the time between the signal and the end of the process and of its children."""

    code: int
    stdout: bytes
    stderr: bytes
    seconds: float


class Program:
    """A running `fastmlp` command, or another Python program, in its own process group.

    arguments : arguments of the command
    code : program to run instead of `PROGRAM`, with the same first argument
    variables : additional environment variables
    more : other arguments of `subprocess.Popen`
    """

    def __init__(self, *arguments: str | Path, code: str = PROGRAM, variables: Mapping[str, str] = {}, **more: Any) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path} | variables
        self._first_line, theirs = os.pipe()
        command = [sys.executable, "-c", code, str(theirs), *map(str, arguments)]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        try:
            self.process = subprocess.Popen(command, env=environment, pass_fds=[theirs], start_new_session=True, **streams)
        finally:
            os.close(theirs)

    def wait_for_first_line(self) -> None:
        """Return when the first line of the program runs, which is when it closes the pipe."""
        os.read(self._first_line, 1)

    def wait_for_child(self) -> None:
        """Return when the process has a child process, such as the one that compiles a kernel (Linux)."""
        children, deadline = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children"), time.monotonic() + PATIENCE
        while not children.read_text():
            assert time.monotonic() < deadline, "the process has no child"
            time.sleep(0.005)

    def end(self, *numbers: int, group: bool = False) -> Ended:
        """Send signals, to the whole process group if `group`, and wait for the end of the process and of its children."""
        began = time.monotonic()
        for number in numbers:
            if group and self.process.poll() is None:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)  # does nothing if the process has ended
        try:
            stdout, stderr = self.process.communicate(timeout=PATIENCE)  # returns when no process has the pipes open
        finally:
            self.process.kill()  # in case the signal did not end it
            os.close(self._first_line)
        return Ended(self.process.returncode, stdout or b"", stderr or b"", time.monotonic() - began)


def interrupted_after(delay: float, number: int, *arguments: str | Path, **more: Any) -> Ended:
    """Run a command, send it a signal `delay` seconds after its first line has run, and return how it ended.

    The other parameters are those of `Program`.
    """
    program = Program(*arguments, **more)
    program.wait_for_first_line()
    time.sleep(delay)
    return program.end(number)


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
    if path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix == ".jsonl":
        assert path.read_bytes().endswith(b"\n"), path
        assert all(isinstance(json.loads(line), dict) for line in path.read_bytes().splitlines())
    elif path.suffix == ".toml":
        tomllib.loads(path.read_text())
    elif path.suffix == ".safetensors":
        load(path, backend="numpy")
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".kernel":
        data = path.read_bytes()
        assert hashlib.sha256(data[DIGEST_BYTES:]).digest() == data[:DIGEST_BYTES], path
    else:
        assert path.name == "report.txt", path
        assert path.read_text().strip()
