"""The errors that cnn raises on purpose. Each message says what was given, what is needed, and what to do.

`exit_code` is for programs: what they end with, 2 for usage, 3 for a bad file, 4 for something missing, 5 for a loss that
is no number.
"""

from __future__ import annotations


class CNNError(Exception):
    """Any error that the user can cure."""

    exit_code = 2


class DescriptionError(CNNError):
    """A network or a setting that cannot be."""


class FileError(CNNError):
    """A checkpoint, or a file of weights, that is missing, damaged, or of another network."""

    exit_code = 3


class MissingError(CNNError):
    """A package or a device that is not there."""

    exit_code = 4


class DivergedError(CNNError):
    """The loss became NaN or infinite."""

    exit_code = 5
