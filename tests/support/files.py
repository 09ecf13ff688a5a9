"""Helpers of the tests of files and folders: contents, names, failing calls, and error messages of one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

NOW = datetime(2026, 11, 20, 13, 5, 1)
OLD = b"the old contents\n"
NEW = b"new" * 10_000
LEFT = ".fastmlp-0123456789abcdef.tmp"  # a file that a killed process left


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def one_line(kind: type[Exception], *parts: object) -> Iterator[None]:
    """Check that the `with` block raises an error whose message has one line and contains the given texts."""
    with pytest.raises(kind) as caught:
        yield
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value)


def raise_errno(number: int) -> Callable[..., object]:
    def fail(*_arguments: object, **_keywords: object) -> object:
        raise OSError(number, os.strerror(number))

    return fail
