"""The command-line interface: one module per command; program.py combines them.

This file imports only what the signal handler needs, because the handler must be installed before anything else is imported.
"""

from __future__ import annotations

import os
import select
import signal
import sys

TYPE_CHECKING = False  # importing it from typing would take several milliseconds
if TYPE_CHECKING:
    from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]  # Windows has no SIGTERM
SIGNAL_CODE = 128  # the exit code after a signal is 128 plus the signal number, as in a shell
STDERR = 2
SHOW_CURSOR = b"\x1b[?25h"  # progress bars hide the cursor


def main() -> None:
    """Entry point of the console script `fastmlp`."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored, for example, in a background job of a script
            signal.signal(number, end_process)
    from fastmlp.commands.common.console import prepare_process
    from fastmlp.commands.program import program

    prepare_process()
    program(prog_name="fastmlp")


def end_process(number: int, frame: FrameType | None) -> None:
    """Handle a signal: end the process at once, with one line on stderr and without temporary files.

    The handler does not raise an exception, because an exception that is raised at an arbitrary place may be lost (in a
    destructor, or in a function that C calls) or replaced by another one (in an import). It imports nothing, because the signal
    may have interrupted an import. Results are flushed when they are written (common/console.py), so none are lost.
    """
    try:
        for other in SIGNALS:  # a second signal must not print a second line
            signal.signal(other, signal.SIG_IGN)
        remove = getattr(sys.modules.get("fastmlp.files.locks"), "remove_unfinished", None)
        if remove is not None:
            remove()
        start = SHOW_CURSOR + b"\n" if os.isatty(STDERR) else b""  # a progress bar does not end its last line
        # Do not wait for a pipe that is full. (On Windows, select works with sockets only.)
        if os.name == "nt" or select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, start + b"fastmlp: interrupted\n")
    finally:  # also if stderr is closed
        os._exit(SIGNAL_CODE + number)
