"""Observation of the functions of `os` that change files in a folder: `observed`. They are replaced while it is active.

Files that are only read, and files that are opened in another way, such as by `open`, are not observed. power.py would detect
files that are written in another way, because they would then differ from what the observed calls have written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

NAMES = ("open", "close", "write", "fsync", "ftruncate", "replace", "rename", "unlink", "mkdir", "rmdir")
real = SimpleNamespace(**{name: getattr(os, name) for name in NAMES})  # the functions of the operating system


class Call(NamedTuple):
    """A call of a function of `os`.

    name : name of the function
    path : the file or folder; for a function that has a descriptor as its argument, the path with which it was opened
    arguments : all arguments of the function
    """

    name: str
    path: Path
    arguments: tuple[Any, ...]

    @property
    def target(self) -> Path:
        """The new path of "replace" and "rename"."""
        return Path(self.arguments[1]).absolute()


@contextlib.contextmanager
def observed(
    root: Path, before: Callable[[Call], None], after: Callable[[Call, Any], None] = lambda call, result: None
) -> Iterator[None]:
    """Call `before(call)` and `after(call, result)` for each call that concerns `root` or a path below it.

    An exception of `before` is raised instead of the call.
    """
    opened: dict[int, Path] = {}

    def path_of(first: Any) -> Path | None:
        if isinstance(first, int):
            return opened.get(first)
        path = Path(os.fsdecode(first)).absolute()
        return path if path.is_relative_to(root) else None

    def replacement(name: str) -> Callable[..., Any]:
        function = getattr(real, name)

        def observe(first: Any, *others: Any, **named: Any) -> Any:
            path = path_of(first)
            is_read = name == "open" and bool(others[0] & getattr(os, "O_NONBLOCK", 0))  # by files.reading.open_file
            if path is None or is_read or named.get("dir_fd") is not None:
                return function(first, *others, **named)
            call = Call(name, path, (first, *others))
            before(call)
            result = function(first, *others, **named)
            if name == "open":
                opened[result] = path
            elif name == "close":
                del opened[first]
            after(call, result)
            return result

        return observe

    before_us = {name: getattr(os, name) for name in NAMES}
    try:
        for name in NAMES:
            setattr(os, name, replacement(name))
        yield
    finally:
        for name, function in before_us.items():
            setattr(os, name, function)
