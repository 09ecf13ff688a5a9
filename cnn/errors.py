"""Exceptions of the feature extractor. Each message states the invalid value, the valid values, and how to correct it.

The attribute `exit_code` is the exit code of the command line: 2 for invalid usage, 3 for an invalid file, 4 for a missing
package or device, and 5 for a loss that is NaN or infinite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

MAX_REASON = 200  # characters of the message of another library in an error message


def escaped(text: str) -> str:
    """Return a text whose control characters and line breaks are replaced by escape sequences."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class CNNError(Exception):
    """Base class of the exceptions of the feature extractor.

    Parameters
    ----------
    message : description of the error; settings are named as in Python ("pool_kernel"), not as command-line flags. Control
        characters and line breaks, which can come from names in files, are replaced by escape sequences
    settings : names of the settings to change, such as "device"; the command line adds their flags to the message
    """

    exit_code = 2

    def __init__(self, message: str = "", *, settings: Sequence[str] = ()) -> None:
        super().__init__(escaped(message))
        self.settings = tuple(settings)


class DescriptionError(CNNError):
    """A network description or a setting is invalid."""


class FileError(CNNError):
    """A checkpoint or weight file is missing or damaged, or was written for another network."""

    exit_code = 3


class MissingError(CNNError):
    """A package or a device is not available."""

    exit_code = 4


class DivergedError(CNNError):
    """The training loss became NaN or infinite."""

    exit_code = 5


def reason(error: Exception) -> str:
    """Return the message of an exception as one short line; the type of the exception is added to messages of one word.

    >>> reason(KeyError("x")), reason(ValueError("not a\\n number")), reason(MemoryError())
    ("KeyError: 'x'", 'not a number', 'MemoryError')
    """
    text = escaped(" ".join((getattr(error, "strerror", None) or str(error)).split()))
    if " " not in text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "…"


@contextlib.contextmanager
def library_errors(kind: type[CNNError], problem: str, remedy: str, settings: Sequence[str] = ()) -> Iterator[None]:
    """Convert every exception raised in the block to an error of type `kind` with a one-line message.

    The block contains only the call of the library. Which exceptions libraries raise for damaged files, or for networks that do
    not fit, is not documented, so all of them are converted. Exceptions of this package pass unchanged.

    Parameters
    ----------
    kind : type of the error
    problem : start of the message, such as "a.pt: not a readable PyTorch file"; the reason follows in parentheses
    remedy : advice at the end of the message
    settings : see `CNNError`

    Raises
    ------
    CNNError : of type `kind`, if the library raised an exception

    Examples
    --------
    >>> try:
    ...     with library_errors(FileError, "a.json: not valid JSON", "create it again"):
    ...         int("1x")
    ... except FileError as error:
    ...     print(error)
    a.json: not valid JSON (invalid literal for int() with base 10: '1x'); create it again
    """
    try:
        yield
    except CNNError:
        raise
    except Exception as error:
        raise kind(f"{problem} ({reason(error)}); {remedy}", settings=settings) from error
