"""Types of the command-line arguments of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def names_in(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return a type of argparse for comma-separated names; argparse reports unknown names as usage errors.

    >>> names_in(("csv", "npz"))("npz,csv")
    ['npz', 'csv']
    """

    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown name {unknown[0]!r}; valid: {', '.join(known)}")
        return found

    return names
