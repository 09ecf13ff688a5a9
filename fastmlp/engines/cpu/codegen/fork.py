"""Compilation on two cores: a forked process compiles one kernel while this process compiles others.

Numba compiles one function at a time, mostly in Python, so threads would not help. A new process would need a second to
import Numba, but a forked process has already loaded it. The child writes the kernel to the disk cache, and this process then
loads it from there. If the child fails, only time is lost: this process compiles the kernel itself, and raises any error.

Forks are used on Linux only. Other systems have no fork, or their system libraries do not work in a forked process.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from numba.core.compiler_lock import global_compiler_lock

from fastmlp.engines.cpu.codegen.observer import notify
from fastmlp.engines.interrupts import ENDING
from fastmlp.engines.kernel_cache import can_keep

# Maximum seconds to wait for the child after this process has compiled its own kernels. Both processes usually need about the
# same time.
PATIENCE = 10.0
LOOK_SECONDS = 0.005  # seconds between checks for the end of the child
PR_SET_PDEATHSIG = 1  # option of prctl(2): the signal that a process gets when its parent ends


@contextmanager
def compiled_in_fork(kernel: Any, args: tuple[Any, ...]) -> Iterator[bool]:
    """Context manager that compiles a kernel, a result of `compiler.cached`, for arguments of these types in a forked process.

    Yields True if a process was forked. Yields False, and compiles nothing, if the kernel is already compiled or cached, if
    the cache cannot be written, or if the system cannot fork. At exit, the context manager waits for the forked process; the
    kernel is then in the cache unless that process failed.
    """
    signature = tuple(map(kernel.typeof_pyval, args))
    file = kernel._cache.file(signature, kernel.targetctx.codegen())
    child = None
    if (
        sys.platform == "linux"
        and hasattr(os, "fork")
        and signature not in kernel.overloads
        and not os.path.exists(file)  # noqa: PTH110 - unlike Path.exists, it does not raise for a folder that cannot be searched
        and can_keep(file.parent)
    ):
        notify()  # before the fork, so that the child does not notify again
        child = forked(kernel, signature)
    deadline = 0.0
    try:
        yield child is not None
        deadline = time.monotonic() + PATIENCE
    finally:
        if child is not None:
            reap(child, deadline)


def forked(kernel: Any, signature: tuple[Any, ...]) -> int | None:
    """Fork a process that compiles the kernel, and return its process id, or None if the system cannot start a process."""
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl
    # No other thread may be compiling during the fork, or the child would wait forever for the locks of that thread.
    with global_compiler_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks with threads
        # The child must not run the signal handlers of this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            child = os.fork()
            if child == 0:
                compile_and_exit(kernel, signature, parent, prctl)
            return child
        except OSError:
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def compile_and_exit(kernel: Any, signature: tuple[Any, ...], parent: int, prctl: Callable[..., int]) -> NoReturn:
    """Compile the kernel in the child, then exit without garbage collection and without the exit handlers of the parent.

    The child also ends if its parent, the process `parent`, ends before it.
    """
    try:
        gc.disable()
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent:  # the parent may have ended before the call of prctl
            kernel.compile(signature)
    finally:
        os._exit(0)


def reap(child: int, deadline: float) -> None:
    """Wait until a child process has ended. Kill it if it is still running at `deadline`, a value of `time.monotonic()`."""
    while not ended(child):
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(LOOK_SECONDS)


def ended(child: int) -> bool:
    """Return whether a child process has ended. If it has, it is also removed from the process table."""
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:  # a SIGCHLD handler has already waited for the process
        return True
