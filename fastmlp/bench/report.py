"""Text tables and bar chart of a benchmark, from the result of `rounds.run_bench` or from that result read from JSON."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fastmlp.bench.rivals import OURS
from fastmlp.bench.rounds import label
from fastmlp.errors import DataError, printable
from fastmlp.files import write_json
from fastmlp.files.reading import given_path
from fastmlp.reports.style import BLUE, GREY, ORANGE, new_figure, own_style, save, title_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADINGS = ("backend", "threads", "s per epoch", "least to most", "GFLOP/s", "ceiling", "times ours (range)")
TABLE_WIDTH = 120  # maximum width of a table in characters
BAR = 0.27  # height of a bar of the chart in inches
WIDTH = 8.5  # width of the chart in inches


def cases_of(result: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Yield the verdict and the result rows of each case, with the fastest row first."""
    for verdict in result["verdicts"]:
        key = verdict["network"], verdict["batch"]
        rows = [row for row in result["rows"] if (row["network"], row["batch"]) == key]
        yield verdict, sorted(rows, key=lambda row: row["seconds_per_epoch"])


def heading(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the heading of a case: its network, batch size and data."""
    first = rows[0]
    return f"{first['network']}, batch {first['batch']}, {first['rows']:,} rows of {printable(first['data'])} data"


def relative_time(row: Mapping[str, Any], ours: Mapping[str, Any] | None) -> str:
    """Format the time of a row divided by the time of our row, as "median (minimum to maximum)" over the rounds."""
    if ours is None or ours is row:
        return "" if ours is None else "1"
    ratios = [a / b for a, b in zip(row["seconds"], ours["seconds"], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


# ------------------------------------------------------------------------------------------------ text


def bench_text(result: Mapping[str, Any]) -> str:
    """Format a result of `run_bench` as text, without a final newline: tables, verdicts, machine and settings."""
    blocks = []
    for verdict, rows in cases_of(result):
        blocks.append(f"{case_table(rows)}\n{verdict['text']}")
    if result["left_out"]:
        blocks.append("\n".join(left_out_lines(result["left_out"])))
    blocks.append("\n".join(machine_lines(result)))
    return "\n\n".join(blocks)


def case_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the table of one case: a heading and one line per contestant."""
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
    Console(file=stream, width=TABLE_WIDTH, color_system=None, markup=False, emoji=False).print(table)
    return "\n".join([heading(rows), *(line.rstrip() for line in stream.getvalue().splitlines())])


def left_out_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line for each reason, with the backends that were not measured for this reason."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        reasons.setdefault(entry["reason"], []).append(entry["backend"])
    for reason, backends in reasons.items():
        yield f"not timed: {', '.join(dict.fromkeys(backends))}: {printable(reason)}"


def machine_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that describe the peak rates, the machine, the package versions and the settings."""
    about, settings = result["machine"], result["settings"]
    for ceiling in result["ceiling"]:
        threads = label("ceiling", ceiling["threads"])
        yield f"{threads}: {ceiling['gflops']:.1f} GFLOP/s (fused multiply-adds), {ceiling['triad']:.1f} GB/s (triad)"
    yield f"{about['name']} ({about['processor']}), {about['cores']} cores, initial load {about['load']:.2f}, {about['date']}"
    yield ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    dropout = f", dropout {settings['dropout']:g}" if settings["dropout"] else ""
    rounds = f"median of {settings['rounds']} interleaved rounds"
    yield f"{settings['optimizer']}, {settings['activation']}{dropout}, float32; {rounds}"


# ------------------------------------------------------------------------------------------------ files


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder for `write_bench` if it does not exist, and return its path.

    Raises
    ------
    DataError : the folder cannot be created
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot create the folder {path}: {error.strerror}; choose another folder", settings=("out",)
        ) from error
    return Path(path)


def write_bench(result: Mapping[str, Any], folder: Path) -> None:
    """Write bench.json and bench.png into a folder. Existing files are replaced.

    Raises
    ------
    DataError : a file cannot be written
    """
    folder = given_path("folder", folder)
    write_json(folder / "bench.json", result)
    plot_bench(result, folder / "bench.png")


# ------------------------------------------------------------------------------------------------ chart


def plot_bench(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a bar chart in PNG format with the GFLOP/s of each contestant in each case.

    fastmlp's compiled engines are blue; the peak arithmetic rates are vertical lines.

    Parameters
    ----------
    result : result of `run_bench`
    path : file to write; an existing file is replaced atomically

    Raises
    ------
    DataError : the file cannot be written
    """
    with own_style():
        save(_bench_figure(result), path)


def _bench_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the chart, with one panel per case and a common horizontal scale."""
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
        axes.set_xlabel("GFLOP/s (labels: median seconds per epoch)")
        lines, labels = axes.get_legend_handles_labels()
        handles = _color_handles() | dict(zip(labels, lines, strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _color_handles() -> dict[str, Any]:
    from matplotlib.patches import Patch

    return {"fastmlp, compiled": Patch(color=BLUE), "others": Patch(color=GREY)}


def _draw_case(axes: Axes, rows: Sequence[Mapping[str, Any]], ceilings: Sequence[Mapping[str, Any]], right: float) -> None:
    """Draw the bars of one case, with the fastest on top. Error bars extend from the slowest to the fastest round."""
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
    axes.set_title(title_text(heading(rows)), loc="left", fontsize=9, parse_math=False)
    axes.grid(axis="x", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
