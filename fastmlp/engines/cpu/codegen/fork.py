"""Compiling on two cores: a forked process compiles one kernel while this process compiles others.

Numba compiles one function at a time, most of it in Python: threads would gain nothing. A new process would need a second
to load Numba; a fork has it loaded. It hands the kernel over through the cache on disk, where this process looks first. What
goes wrong in it only costs time: a kernel that is not in the cache is compiled here, and an error shows here.

On Linux only: elsewhere libraries of the system do not survive a fork, or there is none.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from numba.core.compiler_lock import global_compiler_lock

from fastmlp.engines.interrupts import ENDING
from fastmlp.engines.kernel_cache import can_keep

PATIENCE = 10.0  # seconds that this process waits when it has compiled its own part; the shares are about equal
LOOK_SECONDS = 0.005


@contextmanager
def compiled_in_fork(kernel: Any, args: tuple[Any, ...]) -> Iterator[bool]:
    """A block in which a kernel of `compiler.cached` is compiled by another process, for arguments of these types.

    Yields whether that happens: not if the kernel is there already, or could not be handed over. After the block the cache
    has it.
    """
    signature = tuple(map(kernel.typeof_pyval, args))
    file = kernel._cache.file(signature, kernel.targetctx.codegen())
    child = None
    if (
        sys.platform == "linux"
        and hasattr(os, "fork")
        and signature not in kernel.overloads
        and not file.exists()
        and can_keep(file.parent)
    ):
        child = forked(kernel, signature)
    deadline = 0.0
    try:
        yield child is not None
        deadline = time.monotonic() + PATIENCE
    finally:
        if child is not None:
            reap(child, deadline)


def forked(kernel: Any, signature: tuple[Any, ...]) -> int | None:
    """Number of a process that compiles the kernel; None if the system has none to give."""
    # No other thread compiles while this one forks: the child would wait for its locks forever.
    with global_compiler_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: threads and forks; this one only compiles
        try:
            child = os.fork()
        except OSError:
            return None
        if child == 0:
            compile_and_exit(kernel, signature)
    return child


def compile_and_exit(kernel: Any, signature: tuple[Any, ...]) -> NoReturn:
    """What the child does. Nothing of its parent's is tidied up here, be it garbage or at the exit."""
    try:
        gc.disable()
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        kernel.compile(signature)
    finally:
        os._exit(0)


def reap(child: int, deadline: float) -> None:
    """Wait for a process until a time of the monotonic clock, then end it."""
    while not ended(child):
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(LOOK_SECONDS)


def ended(child: int) -> bool:
    """Whether a process has ended; it leaves no zombie."""
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:  # somebody else has asked: a handler of SIGCHLD
        return True
