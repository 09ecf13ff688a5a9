"""Draw README's bar chart of speeds from the committed results: python -m benchmarks.speed_figure [--out FILE.png]

There is one group of bars per network and batch size. The length of a bar is the time per epoch divided by that of fastmlp's
fastest engine. All times come from the same run of `benchmarks.epochs`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.tables import LIBRARIES, RESULTS, ROOT
from fastmlp.bench.rivals import OURS
from fastmlp.reports.style import BLUE, COLORS, new_figure, own_style, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUT = ROOT / "docs" / "speed.png"
SHOWN = ("numpy", "sklearn", "torch", "torch-compile", "jax")  # libraries in the order of their bars
SIZE = (9.2, 5.4)  # inches


def relative_times(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the times per epoch divided by that of fastmlp's fastest engine.

    The keys are the label of the network and batch size, and then the library; "fastmlp" is always 1.
    """
    found: dict[str, dict[str, float]] = {}
    for verdict in result["verdicts"]:
        rows = [row for row in result["rows"] if all(row[key] == verdict[key] for key in ("network", "batch"))]
        ours = min(row["seconds_per_epoch"] for row in rows if row["backend"] in OURS)
        others = {row["backend"]: row["seconds_per_epoch"] / ours for row in rows if row["backend"] in SHOWN}
        found[f"{verdict['network']}\nbatch {verdict['batch']}"] = {"fastmlp": 1.0, **others}
    return found


def speed_figure(result: dict[str, Any]) -> Figure:
    """Draw one group of bars per network and batch size."""
    times, names = relative_times(result), ("fastmlp", *SHOWN)
    machine = result["machine"]
    title = (
        f"Time of a training epoch relative to fastmlp, {machine['cores']} cores ({machine['processor']}); shorter is faster"
    )
    figure = new_figure(*SIZE, title)
    axes = figure.subplots()
    height = 0.8 / len(names)
    colors = (BLUE, "#BBBBBB", *COLORS[1:])
    for place, name in enumerate(names):
        pairs = [(group, one[name]) for group, one in enumerate(times.values()) if name in one]
        at = [group + (place - (len(names) - 1) / 2) * height for group, _ in pairs]
        bars = axes.barh(at, [value for _, value in pairs], height, color=colors[place], label=LIBRARIES.get(name, name))
        if name != "fastmlp":
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=6)
    axes.set_yticks(range(len(times)), list(times), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color=BLUE, lw=0.8)
    axes.set_xlim(0, 1.08 * max(max(one.values()) for one in times.values()))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with own_style():
        save(speed_figure(json.loads((RESULTS / "epochs.json").read_text())), options.out)


if __name__ == "__main__":
    main()
