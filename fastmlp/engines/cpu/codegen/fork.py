"""Compilation on two cores: a forked process compiles one kernel while this process compiles others.

Numba compiles one function at a time, mostly in Python, so threads would not help. A new process would need a second to
import Numba; a fork has it loaded. The child passes the kernel through the cache on disk, where this process looks first. A
failure in the child only costs time: this process compiles a kernel that is not in the cache and raises its errors.

Linux only: other systems have no fork, or system libraries that do not survive it.
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

PATIENCE = 10.0  # seconds to wait for the child after this process has compiled its own kernels; both take about as long
LOOK_SECONDS = 0.005


@contextmanager
def compiled_in_fork(kernel: Any, args: tuple[Any, ...]) -> Iterator[bool]:
    """Context in which a forked process compiles a kernel of `compiler.cached` for arguments of these types.

    Yields whether one does: not if the kernel is compiled already, or cannot be cached. After the context the cache has it.
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
    """Start a process that compiles the kernel and return its id; None if the system cannot start one."""
    # No other thread may compile during the fork: the child would wait for its locks forever.
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
    """Compile in the child, then exit without garbage collection or exit handlers of the parent."""
    try:
        gc.disable()
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        kernel.compile(signature)
    finally:
        os._exit(0)


def reap(child: int, deadline: float) -> None:
    """Wait for a process until a time of the monotonic clock, then kill it."""
    while not ended(child):
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(LOOK_SECONDS)


def ended(child: int) -> bool:
    """Whether a process has ended; reaps it if so."""
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:  # already reaped by a handler of SIGCHLD
        return True
