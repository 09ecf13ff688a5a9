"""The errors that cnn raises on purpose. Each message says what was given, what is needed, and what to do.

`exit_code` is the exit code of a command-line program: 2 for usage, 3 for a bad file, 4 for a missing package or device, 5 for
a loss that is NaN or infinite.
"""

from __future__ import annotations

from collections.abc import Sequence


class CNNError(Exception):
    """Base class of the errors that the user can correct.

    Parameters
    ----------
    message : what was given, what is needed, and what to do; it names settings as Python does, never as command-line flags
    settings : names of the settings to change, such as "device"; a command line can show their flags after the message
    """

    exit_code = 2

    def __init__(self, message: str = "", *, settings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.settings = tuple(settings)


class DescriptionError(CNNError):
    """A network description or a setting is invalid."""


class FileError(CNNError):
    """A checkpoint or a file of weights is missing or corrupt, or belongs to another network."""

    exit_code = 3


class MissingError(CNNError):
    """A package or a device is not available."""

    exit_code = 4


class DivergedError(CNNError):
    """The training loss became NaN or infinite."""

    exit_code = 5
