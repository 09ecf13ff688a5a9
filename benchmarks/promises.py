"""Timing of calls and comparison of the results with limits, for claims.py and start.py."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastmlp.bench.machine import PACKAGES, machine
from fastmlp.engines import installed_versions

Call = Callable[[], Any]
SUSPECTS = 3  # number of worst ratios that are measured again


def seconds(call: Call) -> float:
    """Time a call, in seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def summary(values: list[float]) -> dict[str, float]:
    """Return the median ("value") and the range of the values."""
    return {"value": statistics.median(values), "least": min(values), "most": max(values)}


def ratios(call: Call, base: Call, rounds: int) -> dict[str, float]:
    """Median and range of the ratio of the times of two calls, which alternate."""
    return summary([seconds(call) / seconds(base) for _ in range(rounds)])


def worst_of(pairs: dict[str, list[Call]], rounds: int) -> tuple[str, float]:
    """Return the name and the value of the largest median ratio over pairs of calls.

    The maximum of many noisy ratios is biased upwards, so the worst ones are measured again, and only this result counts.
    """
    first = medians_in_turn(pairs, rounds)
    found = medians_in_turn({key: pairs[key] for key in sorted(first, key=lambda key: -first[key])[:SUSPECTS]}, rounds)
    return max(found.items(), key=lambda item: item[1])


def medians_in_turn(pairs: dict[str, list[Call]], rounds: int) -> dict[str, float]:
    """Median ratio of each pair of calls over interleaved rounds; the first round is a warm-up."""
    in_turn = [{key: ratio_of_sums(*calls) for key, calls in pairs.items()} for _ in range(rounds + 1)]
    return {key: statistics.median(one[key] for one in in_turn[1:]) for key in pairs}


def ratio_of_sums(call: Call, base: Call, calls: int = 5) -> float:
    """Ratio of the total times of two alternating calls, after one untimed call that fills the caches."""
    base()
    pairs = [(seconds(call), seconds(base)) for _ in range(calls)]
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)


def check_limit(found: dict[str, Any]) -> dict[str, Any]:
    """Add to a result (value, limit, unit; at_least if the limit is a minimum) whether its limit is met."""
    met = found["value"] >= found["limit"] if found.get("at_least") else found["value"] <= found["limit"]
    return found | {"met": bool(met)}


def publish(groups: Iterable[dict[str, dict[str, Any]]], rounds: int, out: Path | None) -> None:
    """Print each result when it is available; if `out` is given, write all of them with machine, versions and rounds."""
    claims: dict[str, Any] = {}
    for group in groups:
        for name, found in group.items():
            claims[name] = row = check_limit(found)
            verdict = "met   " if row["met"] else "MISSED"
            print(f"{verdict} {name}: {row['value']:.3g} (limit {row['limit']}) {row['unit']}", flush=True)
    if out:
        about = {"machine": machine(), "versions": installed_versions(PACKAGES), "rounds": rounds, "claims": claims}
        out.write_text(json.dumps(about, indent=2) + "\n")
