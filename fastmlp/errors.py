"""Exceptions of fastmlp, and the exit codes that the command line uses for them.

An error message states the invalid value, the valid values and a remedy. It is one line, because everything in it that could
end the line or control a terminal is escaped (`printable`). Any exception that is not defined here is a bug (exit code 1).
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable, Sequence

MOST_NAMES = 12  # maximum number of names that an error message lists
MAX_MESSAGE = 600  # characters
JOINERS = "\u200c\u200d"  # zero-width characters that some scripts and emoji need


def printable(text: str) -> str:
    r"""Return a text whose control and formatting characters, lone surrogates and line breaks are replaced by escape sequences.

    Names in untrusted files can contain such characters, with which they could set the title of a terminal, forge further
    lines of output, or reverse the direction of writing. All other text, including that of other scripts, is unchanged.

    >>> printable("caf\u00e9\n\x1b]0;title\x07 \u202e \udc80")
    'café\\n\\x1b]0;title\\x07 \\u202e \\udc80'
    """
    return escaped(text, lambda char: char.encode("unicode_escape").decode())


def escaped(text: str, escape: Callable[[str], str]) -> str:
    """Return a text in which `escape` replaces the characters that `printable` replaces, for formats with other sequences."""
    if text.isprintable():
        return text
    good = {char for char in set(text) if char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs"}
    return text.translate({ord(char): escape(char) for char in set(text) - good})


def shortened(text: str) -> str:
    """Return a text without its middle if it has more than `MAX_MESSAGE` characters, such as a message with a very long name.

    >>> len(shortened("x" * 10_000))
    600
    """
    if len(text) <= MAX_MESSAGE:
        return text
    end = MAX_MESSAGE // 3  # the remedy is at the end
    return f"{text[: MAX_MESSAGE - end - 3]} … {text[-end:]}"


class FastMLPError(Exception):
    """Base class of all exceptions of fastmlp.

    Parameters
    ----------
    message : the invalid value, the valid values and a remedy; it uses the Python names of settings, not command-line flags
    settings : names of the settings that the user can change to avoid the error, such as "val_fraction"; the command line
        appends the corresponding flags to the message
    """

    exit_code = 1

    def __init__(self, message: str = "", *, settings: Sequence[str] = ()) -> None:
        super().__init__(shortened(printable(message)))
        self.settings = tuple(settings)


class ConfigError(FastMLPError, ValueError):
    """A setting is invalid, or two settings contradict each other."""

    exit_code = 2


class DataError(FastMLPError, ValueError):
    """A file or an array is damaged, has the wrong shape, or has invalid values."""

    exit_code = 3


class WriteError(DataError):
    """A file or a folder could not be written."""


class UnavailableError(FastMLPError, RuntimeError):
    """An optional package, a device or an internet connection is not available."""

    exit_code = 4


class DivergedError(FastMLPError, ArithmeticError):
    """A loss or a weight became NaN or infinite during training."""

    exit_code = 5


class ThresholdError(FastMLPError, AssertionError):
    """A metric is below the minimum that the user set."""

    exit_code = 6


def some_names(names: Sequence[str]) -> str:
    """Return names for an error message, separated by commas: the first `MOST_NAMES`, and the number of the others.

    >>> some_names(["cat", "dog"]), some_names([str(number) for number in range(65536)])
    ('cat, dog', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 65,524 more')
    """
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return the error message for an unknown name; it suggests the most similar valid name and lists valid names.

    >>> unknown_name("activation", "rleu", ["relu", "tanh"])
    "unknown activation 'rleu'; did you mean 'relu'? Valid: relu, tanh"
    """
    names = list(allowed)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {given!r}{hint} Valid: {some_names(names)}"
