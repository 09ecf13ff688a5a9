"""Tests that run the program in separate processes: signals, pipes, terminals, encodings, and exit codes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import ok
from support.engines import need_backend
from support.processes import ROOT
from support.signals import MESSAGE, Program, check_ended, check_files

from fastmlp import load
from fastmlp.experiments.config.sources import VARIABLES
from fastmlp.experiments.folder import check_manifest

pytestmark = pytest.mark.full

MAIN = [sys.executable, "-W", "error", "-c", "from fastmlp.commands import main; main()"]
ENDLESS = ["train", "--hidden", "16", "--epochs", "1000000", "--patience", "0"]
ALL_FILES = {
    "checkpoints",
    "config.toml",
    "data.json",
    "timings.jsonl",
    "confusion-validation.png",
    "confusion.png",
    "curves.png",
    "manifest.json",
    "metrics.jsonl",
    "mistakes.png",
    "model.safetensors",
    "report.txt",
    "result.json",
}
PATIENCE = 120  # timeout in seconds, for a slow, busy machine; the commands usually take about one second


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES.values()}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path} | variables


def start(*arguments: str | Path, **more: Any) -> subprocess.Popen[bytes]:
    variables = more.pop("variables", {})
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    process: subprocess.Popen[bytes] = subprocess.Popen([*MAIN, *map(str, arguments)], env=environment(**variables), **streams)
    return process


def finish(*arguments: str | Path, **more: Any) -> tuple[int, bytes, bytes]:
    process = start(*arguments, **more)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return process.returncode, stdout, stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with a run whose class names are not ASCII, and tables with 1 and 20,000 rows for prediction."""
    folder = tmp_path_factory.mktemp("home")
    x = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    np.savez(folder / "data.npz", x=x, y=np.repeat(["crème", "brûlée"], 20))
    settings = ["--hidden", "4", "--epochs", "20", "--lr", "0.1", "--backend", "numpy", "-q"]
    code, _, stderr = finish("train", "--data", folder / "data.npz", *settings, "--out", folder / "run")
    assert (code, stderr) == (0, b"")
    (folder / "row.csv").write_text("0,1\n")
    (folder / "table.csv").write_text("0,1\n" * 20_000)
    return folder


# ------------------------------------------------------------------------------------------------ signals


def wait_for_epochs(metrics: Path, epochs: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < epochs:
        assert time.monotonic() < deadline, f"{metrics} does not have {epochs} lines"
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_training_and_keeps_the_best_weights(number: int, code: int, name: str, tmp_path: Path) -> None:
    out = tmp_path / "a"
    process = start(*ENDLESS, "--backend", need_backend(name), "--out", out, "--json")
    try:
        wait_for_epochs(out / "metrics.jsonl", 5)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=PATIENCE)  # a million epochs take longer
    finally:
        process.kill()  # in case the signal did not end it
    assert process.returncode == code
    assert {path.name for path in out.iterdir()} == ALL_FILES
    check_manifest(out)
    assert np.isfinite(load(out, backend="numpy").parameters).all()
    result = json.loads(stdout)
    assert result == json.loads((out / "result.json").read_text())
    assert result["stopped"] == "interrupted"
    assert result["validation"]["accuracy"] > 0.5
    assert result["epochs"] == len((out / "metrics.jsonl").read_text().splitlines())
    assert re.search(rb"\ninterrupted at epoch \d+ \(best epoch \d+\): ", stderr)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_training_leaves_nothing(number: int, code: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    process = start("train", "--config", tmp_path / "a.toml", "--out", tmp_path / "a")  # blocks until the FIFO has a writer
    descriptor = os.open(tmp_path / "a.toml", os.O_WRONLY)  # returns when the process opens the FIFO
    process.send_signal(number)
    os.close(descriptor)  # the signal does not interrupt a read that starts after it arrived; this ends it
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (code, b"")
    assert b"Traceback" not in stderr
    assert not (tmp_path / "a").exists()


# Sends itself a signal, once or twice, when a module is imported, when a file is written (before the temporary file is
# renamed), or at the exit.
INTERRUPTED = """
import atexit, os, signal, sys

moment, number, times = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))
rename = os.replace

def reached(what):
    for _ in range(times if what == moment else 0):
        signal.raise_signal(number)

class Finder:
    def find_spec(name, path=None, target=None):
        reached(name)

def replace(source, target):
    reached(os.path.basename(target))
    rename(source, target)

sys.meta_path.insert(0, Finder)
os.replace = replace
atexit.register(reached, "exit")
from fastmlp.commands import main
main()
"""
SHORT = ["train", "--hidden", "4", "--epochs", "2", "--backend", "numpy", "--json", "-q"]
SIGNALS = [signal.SIGINT, signal.SIGTERM]
BEFORE_THE_RESULT = {"checkpoints", "config.toml", "data.json", "metrics.jsonl", "model.safetensors", "timings.jsonl"}


def interrupted_at(moment: str, number: int, *arguments: str | Path, times: int = 1, **more: Any) -> Program:
    signals = [moment, str(int(number)), str(times)]
    return Program(*signals, *arguments, code=INTERRUPTED, variables=environment(), **more)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", ["click", "numpy", "matplotlib.figure", "result.json", "exit"])
def test_a_signal_ends_the_process_at_any_moment(moment: str, number: int, tmp_path: Path) -> None:
    ended = interrupted_at(moment, number, *SHORT, "--out", tmp_path / "a").end()
    check_ended(ended, number)
    assert ended.stderr == MESSAGE
    check_files(tmp_path)
    if moment == "exit":
        assert json.loads(ended.stdout) == json.loads((tmp_path / "a" / "result.json").read_text())
        check_manifest(tmp_path / "a")
    elif moment == "result.json":
        assert {path.name for path in (tmp_path / "a").iterdir()} == BEFORE_THE_RESULT
    else:
        assert not (tmp_path / "a").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled in a child process only on Linux")
@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_during_the_compilation(number: int, group: bool, tmp_path: Path) -> None:
    """Ctrl-C in a terminal is sent to the whole process group, so the child process that compiles a kernel gets it, too."""
    variables = environment(FASTMLP_CACHE_DIR=str(tmp_path / "kernels"), NUMBA_OPT="0")
    backend = ["--backend", need_backend("numba"), "--threads", "2"]
    program = Program(*ENDLESS, *backend, "-q", "--out", tmp_path / "a", variables=variables)
    program.wait_for_child()
    ended = program.end(number, group=group)
    check_ended(ended, number)
    assert ended.stderr == MESSAGE
    assert not (tmp_path / "a").exists()
    check_files(tmp_path / "kernels")


def test_the_first_run_on_a_machine_says_that_kernels_are_compiled(tmp_path: Path) -> None:
    command = ["train", "--hidden", "4", "--epochs", "1", "--backend", need_backend("numba"), "--out"]
    runs: list[tuple[str, list[str]]] = [("a", []), ("a", []), ("b", ["-q"]), ("c", ["--seeds", "2"]), ("c", ["--seeds", "2"])]
    messages = []
    for number, (cache, more) in enumerate(runs):
        variables = environment(FASTMLP_CACHE_DIR=str(tmp_path / cache), NUMBA_OPT="0")
        code, _, stderr = finish(*command, tmp_path / f"run-{number}", *more, variables=variables)
        assert code == 0
        messages.append(stderr.splitlines())
    line = b"compiling kernels, once on this machine"
    assert messages[0][1] == line
    assert [lines.count(line) for lines in messages] == [1, 0, 0, 1, 0]
    assert messages[2] == []


@pytest.mark.parametrize(("first", "second"), [SIGNALS, SIGNALS[::-1]])
def test_a_second_signal_ends_the_process_while_it_writes_the_result(first: int, second: int, tmp_path: Path) -> None:
    program = interrupted_at("result.json", second, *ENDLESS, "--backend", "numpy", "-q", "--out", tmp_path / "a")
    wait_for_epochs(tmp_path / "a" / "metrics.jsonl", 3)
    ended = program.end(first)
    check_ended(ended, second)
    assert ended.stderr == MESSAGE
    assert {path.name for path in (tmp_path / "a").iterdir()} == BEFORE_THE_RESULT
    check_files(tmp_path)


def test_a_second_signal_shows_the_cursor_of_the_terminal_again(tmp_path: Path) -> None:
    """Both signals arrive in the first epoch. While the progress bar is displayed, the cursor is hidden."""
    ours, theirs = pty.openpty()
    command = [*SHORT[:-1], "--out", tmp_path / "a"]  # without -q
    program = interrupted_at("config.toml", signal.SIGINT, *command, times=2, stderr=theirs)
    os.close(theirs)
    text = read_terminal(ours)
    assert program.end().code == 130
    assert text.count("\x1b[?25l") == 1
    assert text.endswith("\x1b[?25h\r\nfastmlp: interrupted\r\n")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("state", ["closed", "full"])
def test_a_signal_ends_a_process_that_cannot_write_to_stderr(state: str) -> None:
    ours, theirs = os.pipe()
    if state == "closed":
        os.close(ours)
    else:
        os.set_blocking(theirs, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(theirs, bytes(4096))
        os.set_blocking(theirs, True)
    program = interrupted_at("click", signal.SIGTERM, "data", "list", stderr=theirs)
    os.close(theirs)
    assert program.end().code == 143
    if state == "full":
        os.close(ours)


def test_an_ignored_signal_stays_ignored() -> None:
    ignoring = INTERRUPTED.replace("rename =", "signal.signal(signal.SIGINT, signal.SIG_IGN)\nrename =")
    ended = Program("click", str(int(signal.SIGINT)), "1", "data", "list", code=ignoring, variables=environment()).end()
    assert (ended.code, ended.stderr) == (0, b"")


def test_commands_in_another_program_install_no_signal_handlers() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    ok("data", "list")
    assert [signal.getsignal(number) for number in SIGNALS] == before


# ------------------------------------------------------------------------------------------------ pipes and disks


def test_a_closed_pipe_is_no_error(home: Path) -> None:
    for arguments in (["--json"], []):
        with start("predict", home / "run", home / "table.csv", *arguments) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == b""
        assert process.returncode == 0


def test_a_full_disk_behind_stdout_is_a_line_and_exit_3(home: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, stderr = finish("evaluate", home / "run", stdout=full)
    assert code == 3
    assert stderr.decode() == f"fastmlp: error: the result cannot be written to stdout: {os.strerror(errno.ENOSPC)}\n"


def test_a_closed_stderr_does_not_stop_the_training(tmp_path: Path) -> None:
    command = ["train", "--hidden", "4", "--epochs", "30", "--patience", "0", "--backend", "numpy", "--json"]
    with start(*command, "--out", tmp_path / "a") as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["epochs"] == 30
    assert process.returncode == 0


# ------------------------------------------------------------------------------------------------ terminals and encodings


def read_terminal(descriptor: int) -> str:
    """Return what is written to a pseudo-terminal until no process has it open, and close it."""
    text = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # how Linux reports that the other end is closed
            piece = b""
        if not piece:
            break
        text += piece
    os.close(descriptor)
    return text.decode()


def on_a_terminal(*arguments: str | Path, stream: str, **variables: str) -> str:
    """Run a command whose `stream` (stdout or stderr) is a pseudo-terminal, and return what it writes there."""
    ours, theirs = pty.openpty()
    process = start(*arguments, variables={"TERM": "xterm", **variables}, **{stream: theirs})
    os.close(theirs)
    text = read_terminal(ours)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return text


def test_colours_only_on_a_terminal_and_not_with_no_color(home: Path) -> None:
    command: list[str | Path] = ["evaluate", home / "run"]
    assert "\x1b[1m" in on_a_terminal(*command, stream="stdout")
    assert "\x1b" not in on_a_terminal(*command, stream="stdout", NO_COLOR="1")
    assert b"\x1b" not in finish(*command)[1]


def test_a_bar_only_on_a_terminal(tmp_path: Path) -> None:
    command = ["train", "--hidden", "4", "--epochs", "20", "--backend", "numpy", "--out"]
    bar = on_a_terminal(*command, tmp_path / "a", stream="stderr")
    assert re.search("\x1b\\[[0-9;]*[AK]", bar)  # the cursor moves up, or a line is cleared
    lines = finish(*command, tmp_path / "b")[2].decode()
    assert "\x1b" not in lines
    assert "epoch 20/20" in lines


def test_the_backend_of_a_notebook_is_ignored(home: Path, tmp_path: Path) -> None:
    """A notebook exports MPLBACKEND to its commands, and the backend may be missing in their environment."""
    command = ["train", "--hidden", "16", "--epochs", "1", "--out", tmp_path / "run"]
    variables = {"MPLBACKEND": "module://a_backend_that_is_not_installed"}
    code, _, stderr = finish(*command, variables=variables, cwd=home)
    assert code == 0, stderr
    assert (tmp_path / "run" / "curves.png").stat().st_size > 0


def test_names_in_any_encoding(home: Path) -> None:
    for variables in ({}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        code, stdout, stderr = finish("predict", home / "run", home / "row.csv", "--json", variables=variables)
        assert (code, stderr) == (0, b"")
        assert json.loads(stdout)["predictions"][0]["label"] == "brûlée"
        code, stdout, stderr = finish("predict", home / "run", home / "row.csv", variables=variables)
        assert (code, stderr) == (0, b"")
        assert len(stdout.splitlines()) == 1
        code, stdout, stderr = finish("evaluate", home / "run", variables=variables)
        assert (code, stderr) == (0, b"")


def test_a_file_name_that_is_not_unicode(home: Path, tmp_path: Path) -> None:
    strange = os.fsencode(tmp_path) + b"/\xff.csv"
    Path(os.fsdecode(strange)).write_text("0,1\n")
    process = subprocess.run(
        [*MAIN, "predict", str(home / "run"), strange], env=environment(), capture_output=True, timeout=PATIENCE, check=False
    )
    assert (process.returncode, process.stderr) == (0, b"")
    assert b"\\udcff.csv:1\tbr" in process.stdout


# ------------------------------------------------------------------------------------------------ exit codes in a shell


def test_exit_codes_reach_the_shell(home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "numba"  # an installation in which Numba cannot be imported
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('Numba needs another NumPy')\n")
    without_numba = {"PYTHONPATH": os.pathsep.join([str(broken.parent), str(ROOT)])}
    diverging = ["--optimizer", "sgd", "--lr", "1e30", "--loss", "squared-error", "--backend", "numpy", "-q"]
    cases: list[tuple[int, list[str | Path], dict[str, str]]] = [
        (0, ["data", "list"], {}),
        (2, ["train", "--epochs", "none"], {}),
        (2, ["train", "--nonsense"], {}),
        (3, ["evaluate", tmp_path / "none"], {}),
        (4, ["doctor"], without_numba),
        (5, ["train", *diverging, "--scale", "none", "--out", tmp_path / "a"], {}),
        (6, ["evaluate", home / "run", "--data", tmp_path / "wrong.npz", "--min-accuracy", "0.5"], {}),
    ]
    np.savez(tmp_path / "wrong.npz", x=np.eye(2), y=["brûlée", "crème"])  # with swapped labels
    for code, arguments, variables in cases:
        found, stdout, stderr = finish(*arguments, variables=variables)
        assert found == code, (arguments, stdout, stderr)
        assert b"Traceback" not in stderr
        assert (stderr != b"") == (code != 0)


def test_doctor_reports_what_is_broken(tmp_path: Path) -> None:
    broken = tmp_path / "numba"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('Numba needs another NumPy')\n")
    variables = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    code, stdout, stderr = finish("doctor", "--json", variables=variables)
    assert code == 4
    found = json.loads(stdout)
    assert found["ok"] is False
    (check,) = [check for check in found["checks"] if check["state"] == "broken"]
    assert (check["name"], check["value"]) == ("self-test", "Numba needs another NumPy")
    assert stderr.decode().startswith("fastmlp: error: broken: self-test")
