"""Helper for checks in forked child processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fastmlp

ROOT = Path(fastmlp.__file__).parents[1]  # root of the repository


def check_in_a_forked_child(holds: Callable[[], bool], seconds: float) -> None:
    """Call `holds` in a forked child process; fail if it returns False or takes longer than `seconds`."""
    child = os.fork()
    if child == 0:
        os._exit(0 if holds() else 9)
    until = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail(f"the child process did not finish within {seconds:g} s")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
