"""Notification of the compilation of kernels, which takes seconds when they are first used on a machine.

A progress display registers a function (an observer), which is called before the first kernel of a process is compiled, but
not when a kernel is loaded from the cache. An observer is only called by the thread that registered it, since another thread
may be writing its own output.
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
    """Context manager that registers an observer and removes it at the end."""
    add_observer(function)
    try:
        yield
    finally:
        remove_observer(function)


def notify() -> None:
    """Call the observer of this thread, at most once per process. This function is called before a kernel is compiled."""
    if OBSERVERS.functions and not announced.is_set():
        announced.set()
        OBSERVERS.functions[-1]()
