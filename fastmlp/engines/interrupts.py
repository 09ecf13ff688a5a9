"""SIGINT and SIGTERM while something must not be torn apart: noted, and acted upon where the state is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What asks a process to end, as Ctrl-C does; not every system has the second.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


class Signals:
    """Context in which the first SIGINT or SIGTERM is only noted in `received`; a second SIGINT interrupts at once.

    Outside the main thread, where Python delivers no signals, it does nothing. Threads may share what one of them entered:
    all see what it received.

    >>> with Signals() as signals:
    ...     signal.raise_signal(signal.SIGINT)
    ...     signals.received == signal.SIGINT
    True
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) is not None:  # one that is not Python's could not be put back
                    self._before[number] = signal.signal(number, self._note)
        return self

    def end(self) -> None:
        """Make all that watch this end, as if SIGTERM, or SIGINT where there is no such signal, had come."""
        self.received = self.received or ENDING[-1]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
