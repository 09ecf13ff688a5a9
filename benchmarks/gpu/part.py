"""What a stage of the check has found: a JSON file that is written anew after every finding."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from fastmlp.bench.rounds import Disagreement
from fastmlp.files import write_json


class Part:
    """Findings of a stage, kept at once: a stage that is killed leaves what it had.

    found : what is written to `out`; lists of a key are put one after another when parts are joined, all else is replaced
    """

    def __init__(self, out: Path | None = None) -> None:
        self.out = out
        self.found: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        """Keep a finding in place of the one before."""
        self.found[key] = value
        self.save()

    def add(self, key: str, value: Any) -> None:
        """Keep one more finding."""
        self.put(key, [*self.found.get(key, []), value])

    def error(self, who: str, error: Exception) -> None:
        """Record an error. `of_numbers` marks wrong results, as opposed to crashes."""
        traceback.print_exception(error)
        message = " ".join(str(error).split())[:500]
        print(f"{who}: FAILED, {type(error).__name__}: {message}", flush=True)
        self.add(
            "errors",
            {
                "who": who,
                "type": type(error).__name__,
                "message": message,
                "of_numbers": isinstance(error, Disagreement | AssertionError),
            },
        )

    def save(self) -> None:
        if self.out is not None:
            write_json(self.out, self.found)


def joined(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Put a part's findings into the whole.

    >>> whole = {"rows": [1], "device": None}
    >>> joined(whole, {"rows": [2], "device": "a card"})
    >>> whole
    {'rows': [1, 2], 'device': 'a card'}
    """
    for key, value in part.items():
        whole[key] = [*whole.get(key, []), *value] if isinstance(value, list) else value
