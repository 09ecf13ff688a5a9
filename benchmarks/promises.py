"""Figures beside their limits: what the scripts of promises print and write."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastmlp.bench_machine import machine, versions


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """A figure (value, limit, unit, at_least if the limit is a least one) and whether its limit is met."""
    met = found["value"] >= found["limit"] if found.get("at_least") else found["value"] <= found["limit"]
    return found | {"met": bool(met)}


def publish(parts: Iterable[dict[str, dict[str, Any]]], rounds: int, out: Path | None) -> None:
    """Print each figure as it comes; write all of them with the machine, the versions and the rounds if asked."""
    claims: dict[str, Any] = {}
    for part in parts:
        for name, found in part.items():
            claims[name] = row = judged(found)
            verdict = "met   " if row["met"] else "MISSED"
            print(f"{verdict} {name}: {row['value']:.3g} (limit {row['limit']}) {row['unit']}", flush=True)
    if out:
        about = {"machine": machine(), "versions": versions(), "rounds": rounds, "claims": claims}
        out.write_text(json.dumps(about, indent=2) + "\n")
