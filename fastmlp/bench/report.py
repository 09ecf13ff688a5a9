"""What a person gets to see of a benchmark: the table in words, and the chart.

Here: `bench_text`, `plot_bench`, `write_bench`. They read what `rounds.run_bench` gives, or the same from a JSON file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fastmlp.bench.rivals import OURS
from fastmlp.bench.rounds import label
from fastmlp.errors import DataError
from fastmlp.files import write_json
from fastmlp.reports.style import BLUE, GREY, ORANGE, new_figure, own_style, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADINGS = ("backend", "threads", "s per epoch", "least to most", "GFLOP/s", "ceiling", "times ours (range)")
WIDEST = 120  # columns of a table, which is then as wide as it needs
BAR = 0.27  # inches of the chart for one bar
WIDTH = 8.5  # inches of the chart


def cases_of(result: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Verdict and rows of each case, fastest first."""
    for verdict in result["verdicts"]:
        key = verdict["network"], verdict["batch"]
        rows = [row for row in result["rows"] if (row["network"], row["batch"]) == key]
        yield verdict, sorted(rows, key=lambda row: row["seconds_per_epoch"])


def heading(rows: Sequence[Mapping[str, Any]]) -> str:
    """Network, batch and data of one case."""
    first = rows[0]
    return f"{first['network']}, batch {first['batch']}, {first['rows']:,} rows of {first['data']} data"


def relative_time(row: Mapping[str, Any], ours: Mapping[str, Any] | None) -> str:
    """How many times as long as ours a row takes, the ratio taken within each round: median (least to most)."""
    if ours is None or ours is row:
        return "" if ours is None else "1"
    ratios = [a / b for a, b in zip(row["seconds"], ours["seconds"], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


# ------------------------------------------------------------------------------------------------ words


def bench_text(result: Mapping[str, Any]) -> str:
    """Tables, who wins and who does not, and the machine, of what `run_bench` gives; lines without a final newline."""
    blocks = []
    for verdict, rows in cases_of(result):
        blocks.append(f"{case_table(rows)}\n{verdict['text']}")
    if result["left_out"]:
        blocks.append("\n".join(left_out_lines(result["left_out"])))
    blocks.append("\n".join(machine_lines(result)))
    return "\n\n".join(blocks)


def case_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Heading and a line for each contestant of one case."""
    from rich.console import Console
    from rich.table import Table

    ours = next((row for row in rows if row["backend"] in OURS), None)
    table = Table(box=None, pad_edge=False)
    for number, text in enumerate(HEADINGS):
        table.add_column(text, justify="right" if number else "left")
    for row in rows:
        share = row["ceiling_share"]
        table.add_row(
            row["backend"],
            "-" if row["threads"] is None else str(row["threads"]),
            f"{row['seconds_per_epoch']:.4g}",
            f"{row['least']:.4g} to {row['most']:.4g}",
            f"{row['gflops']:.1f}",
            "-" if share is None else f"{share:.0%}",
            relative_time(row, ours),
        )
    stream = io.StringIO()
    Console(file=stream, width=WIDEST, color_system=None).print(table)
    return "\n".join([heading(rows), *(line.rstrip() for line in stream.getvalue().splitlines())])


def left_out_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each reason, with whom it kept out."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        reasons.setdefault(entry["reason"], []).append(entry["backend"])
    for reason, backends in reasons.items():
        yield f"left out: {', '.join(dict.fromkeys(backends))}: {reason}"


def machine_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Ceiling, machine, versions and settings."""
    about, settings = result["machine"], result["settings"]
    for ceiling in result["ceiling"]:
        threads = label("ceiling", ceiling["threads"])
        yield f"{threads}: {ceiling['gflops']:.1f} GFLOP/s (fused multiply-adds), {ceiling['triad']:.1f} GB/s (triad)"
    yield f"{about['name']} ({about['processor']}), {about['cores']} cores, load {about['load']:.2f} before, {about['date']}"
    yield ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    dropout = f", dropout {settings['dropout']:g}" if settings["dropout"] else ""
    rounds = f"rounds: {settings['rounds']}, in turn; the median counts"
    yield f"{settings['optimizer']}, {settings['activation']}{dropout}, float32; {rounds}"


# ------------------------------------------------------------------------------------------------ files


def make_folder(path: str | os.PathLike[str]) -> Path:
    """A folder for `write_bench`; it may exist.

    Raises
    ------
    DataError : it cannot be made
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {path}: {error.strerror}; choose another folder", settings=("out",)) from error
    return Path(path)


def write_bench(result: Mapping[str, Any], folder: Path) -> None:
    """Write bench.json and bench.png into a folder, in place of what was there.

    Raises
    ------
    DataError : a file cannot be written
    """
    write_json(folder / "bench.json", result)
    plot_bench(result, folder / "bench.png")


# ------------------------------------------------------------------------------------------------ picture


def plot_bench(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a PNG: for each case a bar of GFLOP/s for each contestant, ours in blue, with the ceiling as a line.

    Parameters
    ----------
    result : what `run_bench` gives
    path : file to write; replaced whole or not at all

    Raises
    ------
    DataError : the file could not be written
    """
    with own_style():
        save(_bench_figure(result), path)


def _bench_figure(result: Mapping[str, Any]) -> Figure:
    """A panel for each case, all on one scale."""
    cases = list(cases_of(result))
    bars = [len(rows) for _, rows in cases]
    about = result["machine"]
    title = f"Training speed, {about['cores']} cores ({about['processor']}), {about['date']}"
    figure = new_figure(WIDTH, 1.4 + sum(BAR * number + 0.5 for number in bars), title)
    ceilings = result["ceiling"]
    fastest = [row["gflops"] * row["seconds_per_epoch"] / row["least"] for row in result["rows"]]
    right = max([ceiling["gflops"] for ceiling in ceilings] + fastest)
    grid = figure.add_gridspec(len(cases), 1, height_ratios=bars)
    axes = None
    for number, (_, rows) in enumerate(cases):
        axes = figure.add_subplot(grid[number], sharex=axes)
        _draw_case(axes, rows, ceilings, right)
        axes.tick_params(labelbottom=number == len(cases) - 1)
    if axes is not None:
        axes.set_xlabel("GFLOP/s (beside each bar: seconds per epoch, median)")
        lines, labels = axes.get_legend_handles_labels()
        handles = _color_handles() | dict(zip(labels, lines, strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _color_handles() -> dict[str, Any]:
    from matplotlib.patches import Patch

    return {"fastmlp, compiled": Patch(color=BLUE), "others": Patch(color=GREY)}


def _draw_case(axes: Axes, rows: Sequence[Mapping[str, Any]], ceilings: Sequence[Mapping[str, Any]], right: float) -> None:
    """Bars of one case, fastest on top, with whiskers from the slowest to the fastest round."""
    places = range(len(rows))
    speeds = [row["gflops"] for row in rows]
    colors = [BLUE if row["backend"] in OURS else GREY for row in rows]
    work = [row["gflops"] * row["seconds_per_epoch"] for row in rows]  # GFLOP
    slow = [speed - gflop / row["most"] for speed, gflop, row in zip(speeds, work, rows, strict=True)]
    fast = [gflop / row["least"] - speed for speed, gflop, row in zip(speeds, work, rows, strict=True)]
    axes.barh(places, speeds, 0.72, color=colors, xerr=[slow, fast], error_kw={"lw": 1, "ecolor": "black"})
    for place, speed, extra, row in zip(places, speeds, fast, rows, strict=True):
        axes.annotate(
            f"{row['seconds_per_epoch']:.3g} s",
            (speed + extra, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )
    for ceiling, style in zip(ceilings, ("-", ":") if len(ceilings) == 1 else (":", "-"), strict=False):
        axes.axvline(ceiling["gflops"], color=ORANGE, ls=style, lw=1.4, zorder=1, label=label("ceiling", ceiling["threads"]))
    axes.set_yticks(places, [label(row["backend"], row["threads"]) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, right * 1.12)
    axes.set_title(heading(rows), loc="left", fontsize=9, parse_math=False)
    axes.grid(axis="x", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
