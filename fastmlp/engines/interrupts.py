"""Deferred SIGINT and SIGTERM: recorded when received, and handled where the state is consistent."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# Signals that end a process, such as Ctrl-C; SIGTERM does not exist on every system.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


class Signals:
    """Context in which the first SIGINT or SIGTERM is only recorded in `received`; a second SIGINT interrupts at once.

    Outside the main thread, where Python delivers no signals, it does nothing. Threads may share one instance, and all see
    what it received.

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
                if signal.getsignal(number) is not None:  # a handler not installed from Python cannot be restored
                    self._before[number] = signal.signal(number, self._note)
        return self

    def end(self) -> None:
        """Stop everything that checks this instance, as if SIGTERM (or SIGINT where it does not exist) had been received."""
        self.received = self.received or ENDING[-1]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
