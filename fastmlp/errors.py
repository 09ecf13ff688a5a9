"""Exceptions of fastmlp, with the exit codes of the command line.

Messages say what was given, what is needed, and what to do. Any other exception is a bug (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FastMLPError(Exception):
    """Base class of all exceptions of fastmlp.

    Parameters
    ----------
    message : what was given, what is needed, and what to do; settings are named as in Python, not as command-line flags
    settings : names of the settings to change, such as "val_fraction"; the command line appends their flags to the message
    """

    exit_code = 1

    def __init__(self, message: str = "", *, settings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.settings = tuple(settings)


class ConfigError(FastMLPError, ValueError):
    """A setting is invalid, or two settings contradict each other."""

    exit_code = 2


class DataError(FastMLPError, ValueError):
    """A file or an array is damaged, has the wrong shape, or has invalid values."""

    exit_code = 3


class UnavailableError(FastMLPError, RuntimeError):
    """An optional package, a device or the network is missing."""

    exit_code = 4


class DivergedError(FastMLPError, ArithmeticError):
    """The training loss became NaN or infinite."""

    exit_code = 5


class ThresholdError(FastMLPError, AssertionError):
    """A metric is below the minimum that the user set."""

    exit_code = 6


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return the message for a name that is not in a registry, with the most similar valid name and a list of all.

    >>> unknown_name("activation", "rleu", ["relu", "tanh"])
    "unknown activation 'rleu'; did you mean 'relu'? Valid: relu, tanh"
    """
    names = list(allowed)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {given!r}{hint} Valid: {', '.join(names)}"
