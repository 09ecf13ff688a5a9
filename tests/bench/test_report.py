"""Tests of the text and the chart of a benchmark, made from a fixed result."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmlp.bench import report
from fastmlp.bench.report import bench_text, make_folder, plot_bench, write_bench
from fastmlp.errors import DataError, printable
from fastmlp.reports.style import own_style

SPEEDS = {("numba", 2): [1.0, 1.2], ("numba", 1): [2.0, 2.0], ("jax", 2): [1.5, 1.5], ("torch-compile", 1): [3.0, 3.6]}


def row(network: str, backend: str, threads: int | None, seconds: list[float]) -> dict[str, Any]:
    median = sum(seconds) / len(seconds)
    return {
        "network": network,
        "batch": 64,
        "backend": backend,
        "threads": threads,
        "seconds_per_epoch": median,
        "gflops": 110 / median,
        "ceiling_share": None if threads is None else 110 / median / (100 * threads),
        "least": min(seconds),
        "most": max(seconds),
        "rounds": len(seconds),
        "seconds": seconds,
        "rows": 48_000,
        "data": "synthetic",
    }


def make_result(networks: int = 2, threads: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    names = [f"784-{128 * number}-10" for number in range(1, networks + 1)]
    return {
        "machine": {"date": "2026-11-21", "processor": "znver3", "name": "AMD", "cores": 2, "load": 0.5},
        "versions": {"python": "3.11.7", "numpy": "2.4.6"},
        "settings": {"rounds": 2, "threads": 2, "optimizer": "adam", "activation": "relu", "dropout": 0.5},
        "ceiling": [{"threads": n, "gflops": 100.0 * n, "triad": 7.5 * n} for n in threads],
        "rows": [row(name, *who, seconds) for name in names for who, seconds in SPEEDS.items()],
        "slower": [],
        "verdicts": [{"network": name, "batch": 64, "text": f"fastest: numba in {name}"} for name in names],
        "left_out": [
            {"network": names[0], "batch": 64, "backend": "torch", "threads": n, "reason": "torch is not installed"}
            for n in (1, 2)
        ],
    }


def test_text() -> None:
    lines = [" ".join(line.split()) for line in bench_text(make_result()).splitlines()]
    assert lines[0] == "784-128-10, batch 64, 48,000 rows of synthetic data"
    assert lines[1] == "backend threads s per epoch least to most GFLOP/s ceiling times ours (range)"
    assert lines[2] == "numba 2 1.1 1 to 1.2 100.0 50% 1"
    assert lines[3] == "jax 2 1.5 1.5 to 1.5 73.3 37% 1.38 (1.25 to 1.50)"
    assert lines[4] == "numba 1 2 2 to 2 55.0 55% 1.83 (1.67 to 2.00)"
    assert lines[6:8] == ["fastest: numba in 784-128-10", ""]
    assert "fastest: numba in 784-256-10" in lines
    assert lines.count("not timed: torch: torch is not installed") == 1
    assert "ceiling (2 threads): 200.0 GFLOP/s (fused multiply-adds), 15.0 GB/s (triad)" in lines
    assert "AMD (znver3), 2 cores, initial load 0.50, 2026-11-21" in lines
    assert lines[-1] == "adam, relu, dropout 0.5, float32; median of 2 interleaved rounds"
    assert all(line.isascii() and len(line) < 120 for line in bench_text(make_result()).splitlines())  # for any terminal


def test_names_are_escaped_and_not_parsed_as_markup() -> None:
    strange = "a\x1b]0;title\x07\nb [red]c[/red] :smile:"
    result = make_result(1)
    result["left_out"][0]["reason"] = strange
    for one in result["rows"]:
        one |= {"data": strange, "backend": "[red]numpy[/red] :smile:"}
    text = bench_text(result)
    assert all(line == printable(line) for line in text.split("\n"))
    assert text.count("[red]numpy[/red] :smile:") == len(SPEEDS)
    assert text.count(printable(strange)) == 2


def test_text_with_a_device_and_without_our_engines() -> None:
    result = make_result(1)
    result["rows"] = [row("784-128-10", "cuda", None, [1.0, 1.0])]
    assert " ".join(bench_text(result).splitlines()[2].split()) == "cuda - 1 1 to 1 110.0 - 1"
    result["rows"] = [row("784-128-10", "torch", None, [1.0, 1.0])]
    assert " ".join(bench_text(result).splitlines()[2].split()) == "torch - 1 1 to 1 110.0 -"


def test_the_text_is_the_same_after_a_round_trip_through_json(tmp_path: Path) -> None:
    write_bench(make_result(), make_folder(tmp_path / "a" / "b"))
    assert bench_text(json.loads((tmp_path / "a" / "b" / "bench.json").read_text())) == bench_text(make_result())


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(DataError, match=r"choose another folder$") as raised:
        make_folder(tmp_path / "a" / "b")
    assert raised.value.settings == ("out",)


@pytest.mark.parametrize(("networks", "threads"), [(1, (1,)), (4, (1, 2))])
def test_chart(tmp_path: Path, networks: int, threads: tuple[int, ...]) -> None:
    plot_bench(make_result(networks, threads), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        width, height = picture.size
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert 1100 < width < 1500
    assert 250 * networks < height < 300 * networks + 500
    colors = {tuple(color) for color in np.unique(pixels, axis=0).tolist()}
    assert {(0x00, 0x72, 0xB2), (0x8A, 0x8A, 0x8A), (0xE6, 0x9F, 0x00)} <= colors  # fastmlp, other libraries, peak rate


def test_nothing_in_the_chart_overlaps() -> None:
    """The bounding boxes of all texts (names, seconds, headings, tick labels, legend) do not overlap."""
    from matplotlib.text import Text

    with own_style():
        figure = report._bench_figure(make_result(3))
        figure.canvas.draw()
        texts = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
        boxes = [(one.get_text(), one.get_window_extent()) for one in texts]
    assert len(boxes) > 30
    shown = [pair for pair in boxes if pair[1].width > 0]
    touching = [(a[0], b[0]) for a, b in itertools.combinations(shown, 2) if a[1].overlaps(b[1])]
    assert touching == []


def test_the_chart_has_axes_and_a_legend() -> None:
    with own_style():
        figure = report._bench_figure(make_result(2))
    first, last = figure.axes
    assert "GFLOP/s" in last.get_xlabel()
    assert [label.get_text() for label in first.get_yticklabels()][:2] == ["numba (2 threads)", "jax (2 threads)"]
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        "fastmlp, compiled",
        "others",
        "ceiling (1 thread)",
        "ceiling (2 threads)",
    }
