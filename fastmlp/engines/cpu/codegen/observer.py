"""Notification of the compilation of kernels, which takes seconds the first time that a machine needs them.

A progress display registers a function, which is called before the first kernel of a process is compiled. Kernels that are
loaded from the cache do not count. Observers belong to the thread that registers them, since output of another thread would
be mixed with its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

Observer = Callable[[], None]


class Observers(threading.local):
    """The observers of a thread. The one that was added last is notified."""

    def __init__(self) -> None:
        self.functions: list[Observer] = []


OBSERVERS = Observers()
announced = threading.Event()  # set when an observer has been called in this process


def add_observer(function: Observer) -> None:
    """Register a function in this thread."""
    OBSERVERS.functions.append(function)


def remove_observer(function: Observer) -> None:
    """Remove an observer; do nothing if it is not registered in this thread."""
    with contextlib.suppress(ValueError):
        OBSERVERS.functions.remove(function)


@contextlib.contextmanager
def observer(function: Observer) -> Iterator[None]:
    """Context manager in which a function is an observer."""
    add_observer(function)
    try:
        yield
    finally:
        remove_observer(function)


def notify() -> None:
    """Call the observer of this thread, once per process. It is called before a kernel is compiled."""
    if OBSERVERS.functions and not announced.is_set():
        announced.set()
        OBSERVERS.functions[-1]()
