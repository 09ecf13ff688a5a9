"""Storage of the findings (results and errors) of one stage of the check in a JSON file."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from fastmlp.bench.rounds import Disagreement
from fastmlp.files import write_json


class Findings:
    """Findings of a stage. The file is rewritten after every finding, so that none is lost if the stage is killed.

    found : contents of the file `out`
    """

    def __init__(self, out: Path | None = None) -> None:
        self.out = out
        self.found: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        """Set a finding, replacing an earlier one."""
        self.found[key] = value
        self.save()

    def add(self, key: str, value: Any) -> None:
        """Append to a list of findings."""
        self.put(key, [*self.found.get(key, []), value])

    def error(self, what: str, error: Exception) -> None:
        """Record an error. Its key "numerical" is true for a wrong result and false for a crash."""
        traceback.print_exception(error)
        message = " ".join(str(error).split())[:500]
        print(f"{what}: FAILED, {type(error).__name__}: {message}", flush=True)
        self.add(
            "errors",
            {
                "what": what,
                "type": type(error).__name__,
                "message": message,
                "numerical": isinstance(error, Disagreement | AssertionError),
            },
        )

    def save(self) -> None:
        if self.out is not None:
            write_json(self.out, self.found)


def merge(whole: dict[str, Any], findings: dict[str, Any]) -> None:
    """Add the findings of a stage to those of the whole check: lists are concatenated, and other values are replaced.

    >>> whole = {"rows": [1], "device": None}
    >>> merge(whole, {"rows": [2], "device": "a card"})
    >>> whole
    {'rows': [1, 2], 'device': 'a card'}
    """
    for key, value in findings.items():
        whole[key] = [*whole.get(key, []), *value] if isinstance(value, list) else value
