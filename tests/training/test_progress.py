"""Tests of the progress display: a bar on a terminal or in a notebook, lines on other streams, and broken streams."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import pytest
from rich.progress_bar import ProgressBar  # not in a test: importing rich draws from `random`
from support.processes import ROOT

from fastmlp.engines.cpu.codegen import observer
from fastmlp.training.progress import COMPILING, Progress, make_progress

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def row(epoch: int, **changes: Any) -> dict[str, Any]:
    metrics = {
        "epoch": epoch,
        "loss": 0.51234,
        "accuracy": 0.83,
        "val_loss": 0.49,
        "val_accuracy": 0.8425,
        "lr": 0.001,
        "seconds": 0.3,
        "eval_seconds": 0.1,
        "rows_per_second": 412345.6,
    }
    return metrics | changes


class Clock:
    """Simulated clock whose time is set by the test."""

    now = 0.0
    calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return self.now


class Terminal:
    """Pseudo-terminal with 100 columns, and a thread that records all output."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self._bytes = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # Linux raises EIO after the other end was closed
                return
            if not data:
                return
            self._bytes += data

    def text(self) -> str:
        """Close the terminal and return the recorded output."""
        self.stream.close()
        self._reader.join()
        os.close(self.master)
        return self._bytes.decode()


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    yield Terminal()


def visible(text: str) -> str:
    """Return the text without control sequences, with one line of text per line on the terminal."""
    return re.sub(r"[\r\n]+", "\n", re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text))


def run_epochs(progress: Progress, clock: Clock, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        for done in range(0, 48000, 6000):
            clock.now += 0.05
            progress.update(epoch, done, 48000, 0.6789, 0.75, 412345.6)
        progress.epoch_done(row(epoch))


def test_lines_one_per_epoch() -> None:
    stream = io.StringIO()
    clock = Clock()
    with make_progress(stream, epochs=200, clock=clock) as progress:
        run_epochs(progress, clock, 3)
    lines = stream.getvalue().splitlines()
    assert lines[2] == (
        "epoch 3/200  loss 0.5123  accuracy 0.8300  val loss 0.49  val accuracy 0.8425  412k rows/s  1 min 19 s left at most"
    )
    assert [line.split()[1] for line in lines] == ["1/200", "2/200", "3/200"]
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_lines_show_the_patience_before_the_speed_and_the_time_left() -> None:
    stream = io.StringIO()
    progress = make_progress(stream, epochs=200)
    progress.epoch_done(row(7, patience=(3, 10), val_accuracy=None))
    progress.epoch_done(row(8, patience=(4, 10)))  # too long with the speed
    assert stream.getvalue().splitlines() == [
        "epoch 7/200  loss 0.5123  accuracy 0.8300  val loss 0.49  patience 3/10  412k rows/s  1 min 17 s left at most",
        "epoch 8/200  loss 0.5123  accuracy 0.8300  val loss 0.49  val accuracy 0.8425  patience 4/10  1 min 17 s left at most",
    ]


def test_line_omits_absent_metrics_and_at_the_end_the_time_left() -> None:
    stream = io.StringIO()
    progress = make_progress(stream, epochs=2)
    progress.epoch_done(row(1, accuracy=None, val_loss=None, val_accuracy=None))
    progress.epoch_done({"epoch": 2, "loss": float("nan")})
    assert stream.getvalue().splitlines() == [
        "epoch 1/2  loss 0.5123  412k rows/s  1 s left at most",
        "epoch 2/2  loss nan",
    ]


def test_time_left_follows_the_last_five_epochs() -> None:
    stream = io.StringIO()
    progress = make_progress(stream, epochs=16)
    for epoch in range(1, 7):  # the first epoch is slow; the mean after epoch 6 excludes it
        progress.epoch_done(row(epoch, seconds=500.0 if epoch == 1 else 9.0, eval_seconds=1.0))
    lines = stream.getvalue().splitlines()
    assert "2 h 5 min left at most" in lines[0]  # 15 x 501 s
    assert lines[4].endswith("19 min 50 s left at most")  # 11 x (501 + 4 x 10) / 5 s
    assert lines[5].endswith("1 min 40 s left at most")  # 10 x 10 s


@pytest.mark.parametrize("loss", [0.5, 1.234567e-30, 9.9999e30, -1.2345e-300, float("inf")])
@pytest.mark.parametrize("epochs", [200, 10**6])
@pytest.mark.parametrize("seconds", [0.01, 86399.0, 1e9])
@pytest.mark.parametrize("patience", [{}, {"patience": (10, 10)}, {"patience": (499_999, 500_000)}])
def test_line_is_never_longer_than_120(loss: float, epochs: int, seconds: float, patience: dict[str, Any]) -> None:
    stream = io.StringIO()
    metrics = row(epochs // 2 + 1, loss=loss, val_loss=loss, seconds=seconds, rows_per_second=999.4e6, **patience)
    make_progress(stream, epochs=epochs).epoch_done(metrics)
    line = stream.getvalue()
    assert line.endswith("\n")
    assert len(line) <= 121
    assert "val accuracy 0.8425" in line


def test_quiet_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    clock = Clock()
    with make_progress(stream, quiet=True, epochs=2, clock=clock) as progress:
        run_epochs(progress, clock, 2)
    assert stream.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", None)  # as in a process without a console
    with make_progress(epochs=2, clock=clock) as progress:
        run_epochs(progress, clock, 2)


def test_terminal_shows_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with terminal(monkeypatch) as screen:
        with make_progress(screen.stream, epochs=4, clock=clock) as progress:
            run_epochs(progress, clock, 4)
        text = screen.text()
    shown = visible(text)
    assert "━" in shown
    assert "epoch 1/4" in shown
    assert "loss 0.6789  accuracy 0.7500  412k rows/s" in shown
    assert re.search(r"left at most\s*\nloss 0.6789  accuracy 0.7500  val loss 0.49  val accuracy 0.8425", shown)
    last = shown.rstrip().splitlines()[-2:]
    assert last[0].startswith("epoch 4/4 ━")
    assert last[0].rstrip().endswith("100%")  # the remaining time is not shown
    assert last[1] == "loss 0.5123  accuracy 0.8300  val loss 0.49  val accuracy 0.8425  412k rows/s"
    assert text.index(HIDE) < text.index(SHOW)
    assert text.endswith(SHOW)


def test_terminal_shows_the_patience_beside_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with terminal(monkeypatch) as screen:
        with make_progress(screen.stream, epochs=40, clock=clock) as progress:
            progress.epoch_done(row(7, patience=(3, 10)))
            clock.now += 1
            progress.update(8, 6000, 48000, 0.25, 0.875, 4e5)  # shows the patience after the last epoch
        shown = visible(screen.text()).rstrip().splitlines()
    assert any(re.fullmatch(r"epoch 8/40 [━╸╺]+ 18% patience 3/10 \d+ s left at most", line.strip()) for line in shown)
    assert shown[-1] == "loss 0.25  accuracy 0.8750  val loss 0.49  val accuracy 0.8425  400k rows/s"


def test_bar_shows_no_time_left_after_an_early_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with terminal(monkeypatch) as screen:
        with make_progress(screen.stream, epochs=200, clock=clock) as progress:
            run_epochs(progress, clock, 3)
        shown = visible(screen.text()).rstrip().splitlines()
    assert "1 min 19 s left at most" in "".join(shown)
    assert shown[-2].startswith("epoch 3/200")
    assert shown[-2].rstrip().endswith("2%")


def test_bar_is_redrawn_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with terminal(monkeypatch) as screen:
        with make_progress(screen.stream, epochs=1000, clock=clock) as progress:
            for epoch in range(1, 1001):  # one second in total
                clock.now += 0.001
                progress.update(epoch, 1, 2, 0.5, 0.5, 1.0)
                progress.epoch_done(row(epoch))
        text = screen.text()
    redraws = text.count("epoch ")
    assert 9 <= redraws <= 12  # ten, plus one at the start and one at the end
    assert "epoch 1000/1000" in text


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with terminal(monkeypatch) as screen:
        monkeypatch.setenv("NO_COLOR", "1")
        with make_progress(screen.stream, epochs=2, clock=clock) as progress:
            run_epochs(progress, clock, 2)
        text = screen.text()
    assert "━" in text
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-7])[0-9;]*m", text)


def test_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        monkeypatch.setenv("TERM", "dumb")
        with make_progress(screen.stream, epochs=2) as progress:
            progress.epoch_done(row(1))
        text = screen.text()
    assert text.startswith("epoch 1/2  loss")
    assert "\x1b" not in text


def test_a_command_in_a_notebook_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook runs a command in a pseudo-terminal, but does not move the cursor up."""
    with terminal(monkeypatch) as screen:
        monkeypatch.setenv("JPY_PARENT_PID", "1")
        with make_progress(screen.stream, epochs=2) as progress:
            progress.epoch_done(row(1))
        text = screen.text()
    assert text.startswith("epoch 1/2  loss")
    assert "\x1b" not in text


def compile_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report the compilation of two kernels, as in a process that has not compiled any yet."""
    monkeypatch.setattr(observer, "announced", threading.Event())
    observer.notify()
    observer.notify()


def test_lines_report_the_compilation_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, quiet = io.StringIO(), io.StringIO()
    with make_progress(quiet, quiet=True, epochs=2):
        compile_kernels(monkeypatch)
    with make_progress(stream, epochs=2) as progress:
        compile_kernels(monkeypatch)
        progress.epoch_done({"epoch": 2, "loss": 0.5})
    compile_kernels(monkeypatch)
    assert (stream.getvalue(), quiet.getvalue()) == (f"{COMPILING}\nepoch 2/2  loss 0.5\n", "")


def test_terminal_shows_the_compilation_until_the_training_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with terminal(monkeypatch) as screen:
        with make_progress(screen.stream, epochs=4, clock=clock) as progress:
            compile_kernels(monkeypatch)
            clock.now += 1
            progress.update(1, 6000, 48000, 0.25, 0.875, 4e5)
        compile_kernels(monkeypatch)
        lines = visible(screen.text()).rstrip().splitlines()
    assert lines.count(COMPILING) == 1
    assert [line for line in lines if not line.startswith("epoch")][-1] == "loss 0.25  accuracy 0.8750  400k rows/s"


def test_notebook_shows_the_compilation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cell, clock = ipython(monkeypatch, KERNELS[0]), Clock()
    with make_progress(epochs=4, clock=clock) as progress:
        compile_kernels(monkeypatch)
        assert COMPILING in cell.outputs[0]["text/html"]
        clock.now += 1
        progress.update(1, 6000, 48000, 0.25, 0.875, 4e5)
        assert COMPILING not in cell.outputs[0]["text/html"]
    assert capsys.readouterr() == ("", "")


class Cell:
    """Replacement for `IPython.display.display` that records the outputs of a notebook cell, and is also their handle."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, str]] = []
        self.updates: list[dict[str, str]] = []

    def __call__(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Cell:
        assert raw and display_id
        self.outputs.append(bundle)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.updates.append(bundle)
        self.outputs[-1] = bundle


def ipython(monkeypatch: pytest.MonkeyPatch, shell: object) -> Cell:
    """Install a module IPython with this shell."""
    cell, module, display = Cell(), ModuleType("IPython"), ModuleType("IPython.display")
    monkeypatch.setattr(module, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setattr(display, "display", cell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return cell


ZMQInteractiveShell = type("ZMQInteractiveShell", (), {})  # has the same name as the class of ipykernel
KERNELS = [ZMQInteractiveShell(), type("Shell", (ZMQInteractiveShell,), {})()]  # the latter as in Colab


@pytest.mark.parametrize("shell", KERNELS, ids=["ipykernel", "derived"])
def test_notebook_shows_one_bar(monkeypatch: pytest.MonkeyPatch, shell: object, capsys: pytest.CaptureFixture[str]) -> None:
    cell, clock = ipython(monkeypatch, shell), Clock()
    with make_progress(epochs=4, clock=clock) as progress:
        run_epochs(progress, clock, 3)
        html = cell.outputs[0]["text/html"]
        clock.now += 1
        progress.update(4, 24000, 48000, 0.25, 0.875, 4e5)
        text = "epoch 4/4  loss 0.25  accuracy 0.8750  val loss 0.49  val accuracy 0.8425  400k rows/s  1 s left at most"
        assert cell.outputs[0]["text/plain"] == text
        progress.epoch_done(row(4))
    progress.close()  # a second call does nothing
    run_epochs(progress, clock, 4)
    (last,) = cell.outputs
    assert re.search(r'<b>epoch 3/4</b> <progress max="4" value="[23].\d+" .*</progress> \d\d% \d s left at most<br>', html)
    assert last["text/plain"] == "epoch 4/4  loss 0.5123  accuracy 0.8300  val loss 0.49  val accuracy 0.8425  412k rows/s"
    assert 'value="4.000"' in last["text/html"] and "100%<br>loss 0.5123&ensp;accuracy" in last["text/html"]
    assert capsys.readouterr() == ("", "")


def test_notebook_shows_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, clock = ipython(monkeypatch, KERNELS[0]), Clock()
    with make_progress(epochs=4, clock=clock) as progress:
        clock.now += 1
        progress.epoch_done(row(3, patience=(2, 10)))
        assert "75% patience 2/10 1 s left at most<br>loss 0.5123&ensp;" in cell.outputs[0]["text/html"]
    assert cell.outputs[0]["text/plain"].endswith("val accuracy 0.8425  patience 2/10  412k rows/s")


def test_notebook_is_updated_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, clock = ipython(monkeypatch, KERNELS[0]), Clock()
    with make_progress(epochs=1000, clock=clock) as progress:
        for epoch in range(1, 1001):  # one second in total
            clock.now += 0.001
            progress.update(epoch, 1, 2, 0.5, 0.5, 1.0)
            progress.epoch_done(row(epoch))
    assert 9 <= len(cell.updates) <= 11  # ten, plus one at the end
    assert cell.outputs[0]["text/plain"].startswith("epoch 1000/1000")


def test_notebook_keeps_the_bar_of_a_run_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, clock = ipython(monkeypatch, KERNELS[0]), Clock()
    with pytest.raises(KeyboardInterrupt), make_progress(epochs=9, clock=clock) as progress:
        run_epochs(progress, clock, 2)
        raise KeyboardInterrupt
    assert cell.outputs[0]["text/plain"].startswith("epoch 2/9  loss 0.5123")
    assert "left" not in cell.outputs[0]["text/html"]


def test_a_stream_or_quiet_is_respected_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, clock, stream = ipython(monkeypatch, KERNELS[0]), Clock(), io.StringIO()
    with make_progress(quiet=True, epochs=2, clock=clock) as silent, make_progress(stream, epochs=2, clock=clock) as progress:
        run_epochs(silent, clock, 2)
        run_epochs(progress, clock, 2)
    assert cell.outputs == []
    assert len(stream.getvalue().splitlines()) == 2


@pytest.mark.parametrize("shell", [None, type("TerminalInteractiveShell", (), {})()], ids=["no shell", "terminal"])
def test_ipython_outside_of_a_notebook_gets_lines(
    monkeypatch: pytest.MonkeyPatch, shell: object, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = ipython(monkeypatch, shell)
    with make_progress(epochs=2) as progress:
        progress.epoch_done(row(1))
    assert cell.outputs == []
    assert capsys.readouterr().err.startswith("epoch 1/2  loss")


def test_environment_cannot_force_a_bar_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    stream = io.StringIO()
    with make_progress(stream, epochs=2) as progress:
        progress.epoch_done(row(1))
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_cursor_is_shown_again_after_an_exception(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    clock = Clock()
    with terminal(monkeypatch) as screen:
        with pytest.raises(error), make_progress(screen.stream, epochs=4, clock=clock) as progress:
            progress.update(1, 1, 2, 0.5, 0.5, 1.0)
            raise error
        progress.close()  # a second call does nothing
        run_epochs(progress, clock, 4)
        text = screen.text()
    assert text.count(HIDE) == text.count(SHOW) == 1
    assert text.endswith(SHOW)  # nothing is drawn after `close`


def test_cursor_is_shown_again_if_the_start_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with terminal(monkeypatch) as screen:
        monkeypatch.setattr(ProgressBar, "__rich_console__", interrupt)
        with pytest.raises(KeyboardInterrupt), make_progress(screen.stream, epochs=4):
            pass
        assert screen.text().endswith(SHOW)


@pytest.mark.parametrize("broken", ["pipe", "closed", "full"])
def test_broken_stream_does_not_stop_training(broken: str) -> None:
    if broken == "full":
        stream: TextIO = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails
    else:
        reader, writer = os.pipe()
        stream = os.fdopen(writer, "w")
        os.close(reader)
    if broken == "closed":
        stream.close()
    with make_progress(stream, epochs=3) as progress:
        for epoch in (1, 2, 3):
            progress.epoch_done(row(epoch))
    if broken != "closed":
        with pytest.raises(OSError) as caught:
            stream.close()
        assert caught.value.errno == (errno.ENOSPC if broken == "full" else errno.EPIPE)  # the stream is broken


def test_terminal_that_is_closed_does_not_stop_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w")
    with make_progress(stream, epochs=3, clock=clock) as progress:
        progress.update(1, 1, 2, 0.5, 0.5, 1.0)
        os.close(master)
        run_epochs(progress, clock, 3)
        monkeypatch.setattr(ProgressBar, "__rich_console__", pytest.fail)
        run_epochs(progress, clock, 3)  # nothing is drawn
        monkeypatch.undo()
    with pytest.raises(OSError) as caught:
        stream.close()
    assert caught.value.errno == errno.EIO  # the stream is broken


CHILD = """
import sys
from fastmlp.training.progress import make_progress
with make_progress(epochs=3) as progress:
    for epoch in (1, 2, 3):
        progress.epoch_done({"epoch": epoch, "loss": 0.5})
        print("a result", flush=True)
        print("a warning", file=sys.stderr, flush=True)
sys.exit(("rich" in sys.modules) + 2 * ("IPython" in sys.modules))
"""


def run_child(stderr: int, code: str = CHILD) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm"},
        text=True,
        check=False,
    )


@pytest.mark.full
def test_process_without_a_terminal_imports_neither_rich_nor_ipython() -> None:
    child = run_child(subprocess.PIPE)
    assert child.returncode == 0, child.stderr
    assert child.stdout == "a result\n" * 3
    assert [line.split("  ")[0] for line in child.stderr.splitlines()] == [
        word for epoch in (1, 2, 3) for word in (f"epoch {epoch}/3", "a warning")
    ]


@pytest.mark.full
def test_markup_in_a_warning_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    warning = "[red]a name[/red] :smile: [link=https://example.org]b[/link]"
    with terminal(monkeypatch) as screen:
        run_child(screen.stream.fileno(), CHILD.replace("a warning", warning))
        text = screen.text()
    assert visible(text).count(f"{warning}\n") == 3


@pytest.mark.full
def test_process_on_a_terminal_keeps_stdout_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        child = run_child(screen.stream.fileno())
        text = screen.text()
    assert child.stdout == "a result\n" * 3
    assert child.returncode == 1  # rich was imported, but not IPython
    assert visible(text).count("a warning\n") == 3  # on separate lines above the bar
    assert text.endswith(SHOW)


@pytest.mark.full
def test_process_with_a_broken_stderr_succeeds() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    child = run_child(writer, CHILD.replace('print("a warning", file=sys.stderr, flush=True)', "pass"))
    os.close(writer)
    assert child.stdout == "a result\n" * 3
    assert child.returncode == 0


class Counted(io.StringIO):
    """Stream that counts its writes; it is reported as a terminal if `interactive` is True."""

    writes = 0
    interactive = False

    def isatty(self) -> bool:
        return self.interactive

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


@pytest.mark.parametrize("kind", ["lines", "bar", "quiet", "notebook"])
def test_update_does_nothing_when_nothing_is_due(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """If no redraw is due, `update` writes nothing and reads the clock at most once, since it is called very often."""
    monkeypatch.setenv("TERM", "xterm")
    clock, stream = Clock(), Counted()
    stream.interactive = kind == "bar"
    cell = ipython(monkeypatch, KERNELS[0] if kind == "notebook" else None)
    with make_progress(None if kind == "notebook" else stream, kind == "quiet", epochs=3, clock=clock) as progress:
        writes, calls = stream.writes, clock.calls
        for _ in range(1000):
            progress.update(1, 64, 48000, 0.5, 0.5, 4e5)
        assert (stream.writes, len(cell.updates)) == (writes, 0)
        assert clock.calls - calls <= 1000
        clock.now += 1
        progress.update(1, 64, 48000, 0.5, 0.5, 4e5)
        assert (stream.writes > writes, len(cell.updates) > 0) == (kind == "bar", kind == "notebook")  # a redraw is due
