"""Exceptions of the feature extractor. Each message states the invalid value, the valid values, and how to correct it.

The attribute `exit_code` is the exit code of the command line: 2 for invalid usage, 3 for an invalid file, 4 for a missing
package or device, and 5 for a loss that is NaN or infinite.
"""

from __future__ import annotations

from collections.abc import Sequence


class CNNError(Exception):
    """Base class of the exceptions of the feature extractor.

    Parameters
    ----------
    message : description of the error; settings are named as in Python ("pool_kernel"), not as command-line flags
    settings : names of the settings to change, such as "device"; the command line adds their flags to the message
    """

    exit_code = 2

    def __init__(self, message: str = "", *, settings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.settings = tuple(settings)


class DescriptionError(CNNError):
    """A network description or a setting is invalid."""


class FileError(CNNError):
    """A checkpoint or weight file is missing or corrupt, or was written for another network."""

    exit_code = 3


class MissingError(CNNError):
    """A package or a device is not available."""

    exit_code = 4


class DivergedError(CNNError):
    """The training loss became NaN or infinite."""

    exit_code = 5
