"""Deferred handling of SIGINT and SIGTERM: a signal is recorded, and handled later, when the training state is consistent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Signals that ask a process to end; Ctrl-C sends SIGINT. SIGTERM does not exist on every system.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


class Signals:
    """Context manager that only records the first SIGINT or SIGTERM, in `received`.

    A second signal is handled as before the context (before the outermost one, if they are nested). It raises KeyboardInterrupt
    if it would have been ignored or handled by the system.

    Python delivers signals to the main thread only, so in other threads the context manager has no effect. Several threads may
    share one instance and read its `received`.

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
                if signal.getsignal(number) is not None:  # a handler not set by Python cannot be restored
                    self._before[number] = signal.signal(number, self._note)
        return self

    def end(self) -> None:
        """Set `received` to SIGTERM (SIGINT on systems without SIGTERM), to stop all threads that read it."""
        self.received = self.received or ENDING[-1]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = number
            return
        before = self._before[number]
        while isinstance(outer := getattr(before, "__self__", None), Signals):
            before = outer._before[number]
        if not callable(before):  # SIG_DFL or SIG_IGN
            raise KeyboardInterrupt
        before(number, frame)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Context manager in which SIGINT and SIGTERM are recorded. A recorded signal is raised again after the context."""
    with Signals() as signals:
        yield
    if signals.received:
        signal.raise_signal(signals.received)
