"""Functions that time calls and compare the results with limits, for claims.py and start.py."""

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
SUSPECTS = 3  # number of largest ratios that are measured again


def seconds(call: Call) -> float:
    """Return the duration of a call in seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def summary(values: list[float]) -> dict[str, float]:
    """Return the median ("value"), the minimum ("least") and the maximum ("most") of the values."""
    return {"value": statistics.median(values), "least": min(values), "most": max(values)}


def ratios(call: Call, base: Call, rounds: int) -> dict[str, float]:
    """Run two calls alternately; return the median and range of the ratio of their times, `call` divided by `base`."""
    return summary([seconds(call) / seconds(base) for _ in range(rounds)])


def worst_of(pairs: dict[str, list[Call]], rounds: int) -> tuple[str, float]:
    """Return the name and the value of the largest median time ratio of several pairs of calls.

    The maximum of many noisy ratios is biased upwards. Therefore the largest ratios are measured again, and only the second
    measurement counts.
    """
    first = medians_in_turn(pairs, rounds)
    found = medians_in_turn({key: pairs[key] for key in sorted(first, key=lambda key: -first[key])[:SUSPECTS]}, rounds)
    return max(found.items(), key=lambda item: item[1])


def medians_in_turn(pairs: dict[str, list[Call]], rounds: int) -> dict[str, float]:
    """Return the median time ratio of each pair of calls. Each round measures all pairs; the first round is a warm-up."""
    in_turn = [{key: ratio_of_sums(*calls) for key, calls in pairs.items()} for _ in range(rounds + 1)]
    return {key: statistics.median(one[key] for one in in_turn[1:]) for key in pairs}


def ratio_of_sums(call: Call, base: Call, calls: int = 5) -> float:
    """Return the ratio of the total times of two calls that alternate. An untimed call of `base` fills the caches first."""
    base()
    pairs = [(seconds(call), seconds(base)) for _ in range(calls)]
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)


def check_limit(found: dict[str, Any]) -> dict[str, Any]:
    """Return the result with the additional key "met", which tells whether the value is within the limit.

    found : keys "value", "limit" and "unit"; "at_least" is true if the limit is a minimum rather than a maximum
    """
    met = found["value"] >= found["limit"] if found.get("at_least") else found["value"] <= found["limit"]
    return found | {"met": bool(met)}


def publish(groups: Iterable[dict[str, dict[str, Any]]], rounds: int, out: Path | None) -> None:
    """Print each result as soon as it is available; if `out` is given, write all results to this JSON file.

    The file also describes the machine, the versions of packages and the number of rounds.
    """
    claims: dict[str, Any] = {}
    for group in groups:
        for name, found in group.items():
            claims[name] = row = check_limit(found)
            verdict = "met   " if row["met"] else "MISSED"
            print(f"{verdict} {name}: {row['value']:.3g} (limit {row['limit']}) {row['unit']}", flush=True)
    if out:
        about = {"machine": machine(), "versions": installed_versions(PACKAGES), "rounds": rounds, "claims": claims}
        out.write_text(json.dumps(about, indent=2) + "\n")
